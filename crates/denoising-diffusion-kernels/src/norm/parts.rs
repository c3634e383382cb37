//! How loops over rows of channels are divided into tasks, and how the results of tasks are summed.

use super::RmsNormShape as RowShape;
use crate::par::{for_each_task, task_range};

/// Runs `f(image, range of values, task)` for tasks that cover the activation.
pub(super) fn for_each_part(shape: &RowShape, f: impl Fn(usize, std::ops::Range<usize>, usize) + Sync + Send) {
    let (c, size) = (shape.channels, shape.rows_per_task());
    let blocks = shape.positions.div_ceil(size);
    for_each_task(shape.batch * blocks, |task| {
        let (image, rows) = (task / blocks, task_range(task % blocks, size, shape.positions));
        let first = image * shape.positions;
        f(image, (first + rows.start) * c..(first + rows.end) * c, task);
    });
}

/// Sums the results of tasks, `[batch, tasks per image, width]`, over the tasks of each image, in f64.
pub(super) fn sum_tasks(shape: &RowShape, sums: &[f32], out: &mut [f32]) {
    let width = out.len() / shape.batch;
    for (image, out) in sums.chunks_exact(sums.len() / shape.batch).zip(out.chunks_exact_mut(width)) {
        for (k, out) in out.iter_mut().enumerate() {
            *out = image.iter().skip(k).step_by(width).map(|&part| f64::from(part)).sum::<f64>() as f32;
        }
    }
}

/// Number of tasks that cover the activation.
pub(super) fn tasks(shape: &RowShape) -> usize {
    shape.batch * shape.positions.div_ceil(shape.rows_per_task())
}

/// Calls `$body` for every row; with whole vectors only if they divide the channels.
macro_rules! each_row {
    ($len:expr, $c:expr, $body:ident::<$s:ident $(, $flag:tt)*>, |$at:ident| ($($arg:expr),*)) => {
        let mut $at = 0;
        while $at < $len {
            if $c % $s::LANES == 0 {
                $body::<$s, true $(, $flag)*>($($arg),*);
            } else {
                $body::<$s, false $(, $flag)*>($($arg),*);
            }
            $at += $c;
        }
    };
}

/// Calls `$one` for every vector of a row; the last one may be incomplete.
macro_rules! each_vector {
    ($s:ident, $c:expr, |$k:ident, $n:ident| $one:block) => {
        let mut $k = 0;
        while $k < $c {
            let $n = $c - $k;
            $one
            $k += $s::LANES;
        }
    };
}

pub(super) use {each_row, each_vector};
