//! Layer normalisation (Ba et al. 2016) with scale and shift, and what gates a branch before it is added: the two halves of adaptive
//! layer normalisation (Peebles & Xie 2022, adaLN-Zero). And their gradients.
//!
//! For every position, with c channels and m and v the mean and variance of x over them:
//!
//! y = (x - m) / sqrt(v + eps) (1 + scale) + shift; and y = residual + x gate
//!
//! Scale, shift and gate belong to images. The backward pass computes m and v again: nothing is saved.

use super::RmsNormShape as RowShape;
use super::rows::{load, store};
use super::sums::sum_rows;
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, Simd, simd_fn};

/// y = layer_norm(x) (1 + scale) + shift: `x` and `y` `[batch, positions, channels]`, `scale_shift` `[batch, 2 channels]`, each row scale before
/// shift.
pub fn layer_norm_forward(shape: &RowShape, x: &[f32], scale_shift: &[f32], eps: f32, y: &mut [f32]) {
    norm_with(Isa::detect(), shape, x, scale_shift, eps, y);
}

/// The gradients of [`layer_norm_forward`] from `dy` and its inputs.
pub fn layer_norm_backward(
    shape: &RowShape,
    x: &[f32],
    scale_shift: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dscale_shift: &mut [f32],
) {
    norm_grad_with(Isa::detect(), shape, x, scale_shift, eps, dy, dx, dscale_shift);
}

/// y = residual + x gate: `[batch, positions, channels]`, `gate` `[batch, channels]`.
pub fn gated_add_forward(shape: &RowShape, x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
    gate_with(Isa::detect(), shape, x, gate, residual, y);
}

/// The gradients of x and gate of [`gated_add_forward`]; the residual's is `dy`.
pub fn gated_add_backward(shape: &RowShape, x: &[f32], gate: &[f32], dy: &[f32], dx: &mut [f32], dgate: &mut [f32]) {
    gate_grad_with(Isa::detect(), shape, x, gate, dy, dx, dgate);
}

/// Runs `f(image, range of values, task)` for tasks that cover the activation.
fn for_each_part(shape: &RowShape, f: impl Fn(usize, std::ops::Range<usize>, usize) + Sync + Send) {
    let (c, size) = (shape.channels, shape.rows_per_task());
    let blocks = shape.positions.div_ceil(size);
    for_each_task(shape.batch * blocks, |task| {
        let (image, rows) = (task / blocks, task_range(task % blocks, size, shape.positions));
        let first = image * shape.positions;
        f(image, (first + rows.start) * c..(first + rows.end) * c, task);
    });
}

/// The sums of tasks, `[batch, tasks of an image, width]`, over the tasks of each image, in f64.
fn sum_tasks(shape: &RowShape, sums: &[f32], out: &mut [f32]) {
    let width = out.len() / shape.batch;
    for (image, out) in sums.chunks_exact(sums.len() / shape.batch).zip(out.chunks_exact_mut(width)) {
        for (k, out) in out.iter_mut().enumerate() {
            *out = image.iter().skip(k).step_by(width).map(|&part| f64::from(part)).sum::<f64>() as f32;
        }
    }
}

fn tasks(shape: &RowShape) -> usize {
    shape.batch * shape.positions.div_ceil(shape.rows_per_task())
}

pub(super) fn norm_with(isa: Isa, shape: &RowShape, x: &[f32], scale_shift: &[f32], eps: f32, y: &mut [f32]) {
    let c = shape.channels;
    shape.check(x.len(), c, Some(scale_shift.len()), y.len());
    let out = Shared::new(y);
    for_each_part(shape, |image, range, _| {
        let (scale, shift) = scale_shift[image * 2 * c..][..2 * c].split_at(c);
        // SAFETY: ranges of different tasks are disjoint and hold whole rows.
        unsafe { norm_rows(isa, &x[range.clone()], scale, shift, eps, out.part(range)) }
    });
}

#[allow(clippy::too_many_arguments, reason = "the public function's, and the instruction set")]
pub(super) fn norm_grad_with(
    isa: Isa,
    shape: &RowShape,
    x: &[f32],
    scale_shift: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dscale_shift: &mut [f32],
) {
    let c = shape.channels;
    shape.check(x.len(), c, Some(scale_shift.len()), dx.len());
    shape.check(dy.len(), c, Some(dscale_shift.len()), dx.len());
    if shape.is_empty() {
        return dscale_shift.fill(0.0);
    }
    let mut sums = Scratch::zeroed(tasks(shape) * 2 * c);
    let (dx, out) = (Shared::new(dx), Shared::new(&mut sums));
    for_each_part(shape, |image, range, task| {
        let scale = &scale_shift[image * 2 * c..][..c];
        // SAFETY: as in `norm_with`; each task has sums of its own.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * 2 * c..(task + 1) * 2 * c));
            let (x, dy) = (&x[range.clone()], &dy[range]);
            sum_rows(x.len(), c, sums, |part, sums| {
                norm_grad_rows(isa, &x[part.clone()], &dy[part.clone()], scale, eps, &mut dx[part], sums);
            });
        }
    });
    sum_tasks(shape, &sums, dscale_shift);
}

pub(super) fn gate_with(isa: Isa, shape: &RowShape, x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
    let c = shape.channels;
    shape.check(x.len(), c, None, y.len());
    assert_eq!((residual.len(), gate.len()), (x.len(), shape.batch * c), "lengths of residual and gate of {shape:?}");
    let out = Shared::new(y);
    for_each_part(shape, |image, range, _| {
        let gate = &gate[image * c..][..c];
        // SAFETY: as in `norm_with`.
        unsafe { gate_rows(isa, &x[range.clone()], gate, &residual[range.clone()], out.part(range)) }
    });
}

pub(super) fn gate_grad_with(
    isa: Isa,
    shape: &RowShape,
    x: &[f32],
    gate: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dgate: &mut [f32],
) {
    let c = shape.channels;
    shape.check(x.len(), c, None, dx.len());
    assert_eq!((dy.len(), gate.len(), dgate.len()), (x.len(), shape.batch * c, shape.batch * c), "{shape:?}");
    if shape.is_empty() {
        return dgate.fill(0.0);
    }
    let mut sums = Scratch::zeroed(tasks(shape) * c);
    let (dx, out) = (Shared::new(dx), Shared::new(&mut sums));
    for_each_part(shape, |image, range, task| {
        let gate = &gate[image * c..][..c];
        // SAFETY: as in `norm_grad_with`.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * c..(task + 1) * c));
            let (x, dy) = (&x[range.clone()], &dy[range]);
            sum_rows(x.len(), c, sums, |part, sums| {
                gate_grad_rows(isa, &x[part.clone()], &dy[part.clone()], gate, &mut dx[part], sums);
            });
        }
    });
    sum_tasks(shape, &sums, dgate);
}

/// Calls `$body` for every row, with whole vectors if channels fill them.
macro_rules! for_rows {
    ($len:expr, $c:expr, $body:ident::<$s:ident>, |$at:ident| ($($arg:expr),*)) => {
        let mut $at = 0;
        while $at < $len {
            if $c % $s::LANES == 0 {
                $body::<$s, true>($($arg),*);
            } else {
                $body::<$s, false>($($arg),*);
            }
            $at += $c;
        }
    };
}

/// Calls `$one` for every vector of a row, the last of which may have fewer than all values.
macro_rules! for_vectors {
    ($c:expr, |$k:ident, $n:ident| $one:block) => {
        let mut $k = 0;
        while $k < $c {
            let $n = $c - $k;
            $one
            $k += S::LANES;
        }
    };
}

simd_fn! {
    unsafe fn norm_rows<S>(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, y: &mut [f32]) {
        let (len, c) = (x.len(), scale.len());
        let (x, y, affine) = (x.as_ptr(), y.as_mut_ptr(), [scale.as_ptr(), shift.as_ptr()]);
        for_rows!(len, c, norm_row::<S>, |at| (x.add(at), affine, c, eps, y.add(at)));
    }
}

simd_fn! {
    /// `sums` gains the sum of dy unit, then that of dy.
    unsafe fn norm_grad_rows<S>(x: &[f32], dy: &[f32], scale: &[f32], eps: f32, dx: &mut [f32], sums: &mut [f32]) {
        let (len, c) = (x.len(), scale.len());
        let (x, dy, scale, dx, sums) = (x.as_ptr(), dy.as_ptr(), scale.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        for_rows!(len, c, norm_grad_row::<S>, |at| (x.add(at), dy.add(at), scale, c, eps, dx.add(at), sums));
    }
}

simd_fn! {
    unsafe fn gate_rows<S>(x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, gate, residual, y) = (x.as_ptr(), gate.as_ptr(), residual.as_ptr(), y.as_mut_ptr());
        for_rows!(len, c, gate_row::<S>, |at| (x.add(at), gate, residual.add(at), c, y.add(at)));
    }
}

simd_fn! {
    /// `sums` gains the sum of dy x.
    unsafe fn gate_grad_rows<S>(x: &[f32], dy: &[f32], gate: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, dy, gate, dx, sums) = (x.as_ptr(), dy.as_ptr(), gate.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        for_rows!(len, c, gate_grad_row::<S>, |at| (x.add(at), dy.add(at), gate, c, dx.add(at), sums));
    }
}

/// The mean of a row, and 1 / its deviation.
#[inline(always)]
unsafe fn moments<S: Simd, const WHOLE: bool>(x: *const f32, c: usize, eps: f32) -> [f32; 2] {
    unsafe {
        let mut sum = S::splat(0.0);
        for_vectors!(c, |k, n| {
            sum = S::add(sum, load::<S, WHOLE>(x.add(k), n));
        });
        let mean = S::sum(sum) / c as f32;
        let mut squares = S::splat(0.0);
        for_vectors!(c, |k, n| {
            let off = S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean));
            squares = S::fma(off, off, squares);
        });
        // What lies behind the row was taken as 0.
        let behind = if WHOLE { 0 } else { c.next_multiple_of(S::LANES) - c };
        let variance = (S::sum(squares) - behind as f32 * mean * mean).max(0.0) / c as f32;
        // `max` would hide a NaN, which the mean has, too.
        [mean, (variance + eps + 0.0 * mean).sqrt().recip()]
    }
}

#[inline(always)]
unsafe fn norm_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    [scale, shift]: [*const f32; 2],
    c: usize,
    eps: f32,
    y: *mut f32,
) {
    unsafe {
        let [mean, inverse] = moments::<S, WHOLE>(x, c, eps);
        for_vectors!(c, |k, n| {
            let unit = S::mul(S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean)), S::splat(inverse));
            let gain = S::add(load::<S, WHOLE>(scale.add(k), n), S::splat(1.0));
            store::<S, WHOLE>(y.add(k), S::fma(unit, gain, load::<S, WHOLE>(shift.add(k), n)), n);
        });
    }
}

/// With u = dy (1 + scale): dx = (u - mean(u) - unit mean(u unit)) / deviation.
#[inline(always)]
unsafe fn norm_grad_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    dy: *const f32,
    scale: *const f32,
    c: usize,
    eps: f32,
    dx: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        let [mean, inverse] = moments::<S, WHOLE>(x, c, eps);
        let unit =
            |k: usize, n: usize| S::mul(S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean)), S::splat(inverse));
        let (mut total, mut dot) = (S::splat(0.0), S::splat(0.0));
        for_vectors!(c, |k, n| {
            let (dy, unit) = (load::<S, WHOLE>(dy.add(k), n), unit(k, n));
            let (of_scale, of_shift) = (sums.add(k), sums.add(c + k));
            store::<S, WHOLE>(of_scale, S::fma(dy, unit, load::<S, WHOLE>(of_scale, n)), n);
            store::<S, WHOLE>(of_shift, S::add(dy, load::<S, WHOLE>(of_shift, n)), n);
            let u = S::mul(dy, S::add(load::<S, WHOLE>(scale.add(k), n), S::splat(1.0)));
            total = S::add(total, u);
            dot = S::fma(u, unit, dot);
            // Kept where the result will be.
            store::<S, WHOLE>(dx.add(k), u, n);
        });
        let (total, dot) = (S::splat(S::sum(total) / c as f32), S::splat(S::sum(dot) / c as f32));
        for_vectors!(c, |k, n| {
            let off = S::sub(S::sub(load::<S, WHOLE>(dx.add(k), n), total), S::mul(unit(k, n), dot));
            store::<S, WHOLE>(dx.add(k), S::mul(off, S::splat(inverse)), n);
        });
    }
}

#[inline(always)]
unsafe fn gate_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    gate: *const f32,
    residual: *const f32,
    c: usize,
    y: *mut f32,
) {
    unsafe {
        for_vectors!(c, |k, n| {
            let (x, gate) = (load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(gate.add(k), n));
            store::<S, WHOLE>(y.add(k), S::fma(x, gate, load::<S, WHOLE>(residual.add(k), n)), n);
        });
    }
}

#[inline(always)]
unsafe fn gate_grad_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    dy: *const f32,
    gate: *const f32,
    c: usize,
    dx: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        for_vectors!(c, |k, n| {
            let dy = load::<S, WHOLE>(dy.add(k), n);
            let of_gate = sums.add(k);
            store::<S, WHOLE>(of_gate, S::fma(dy, load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(of_gate, n)), n);
            store::<S, WHOLE>(dx.add(k), S::mul(dy, load::<S, WHOLE>(gate.add(k), n)), n);
        });
    }
}
