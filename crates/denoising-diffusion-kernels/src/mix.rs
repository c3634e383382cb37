//! Two activations added or concatenated, each with its own factor, and the gradients: this preserves magnitudes where branches meet (EDM2, Karras et
//! al. 2023, eq. 88 and 103). One pass, where a tensor library takes three.

use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::simd::{Isa, simd_fn};

/// y = a + factor b; all three have the same length.
pub fn add_scaled(a: &[f32], b: &[f32], factor: f32, y: &mut [f32]) {
    add_with(Isa::detect(), a, b, factor, y);
}

/// y = factor x, of the same length.
pub fn scale(x: &[f32], factor: f32, y: &mut [f32]) {
    scale_with(Isa::detect(), x, factor, y);
}

/// The sizes and factors of two concatenated parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Number of rows.
    pub rows: usize,
    /// Values per row of each part.
    pub channels: [usize; 2],
    /// The factor of each part.
    pub factors: [f32; 2],
}

/// Each row of `y` is a row of `a` and one of `b`, scaled.
pub fn join_scaled(parts: &Parts, a: &[f32], b: &[f32], y: &mut [f32]) {
    join_with(Isa::detect(), parts, a, b, y);
}

/// The gradients of [`join_scaled`]: the two parts of `dy`, scaled.
pub fn join_scaled_backward(parts: &Parts, dy: &[f32], da: &mut [f32], db: &mut [f32]) {
    split_with(Isa::detect(), parts, dy, da, db);
}

fn add_with(isa: Isa, a: &[f32], b: &[f32], factor: f32, y: &mut [f32]) {
    assert_eq!((a.len(), b.len()), (y.len(), y.len()), "inputs and output differ in length");
    let out = Shared::new(y);
    for_each_task(a.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, a.len());
        // SAFETY: ranges of different tasks are disjoint; all slices have the range's length.
        unsafe { add_part(isa, &a[range.clone()], &b[range.clone()], factor, out.part(range)) }
    });
}

fn scale_with(isa: Isa, x: &[f32], factor: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "input and output differ in length");
    let out = Shared::new(y);
    for_each_task(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, x.len());
        // SAFETY: as in `add_with`.
        unsafe { scale_part(isa, &x[range.clone()], factor, out.part(range)) }
    });
}

impl Parts {
    /// Runs `f(rows)` for tasks that cover all rows.
    fn for_each_task(&self, f: impl Fn(std::ops::Range<usize>) + Sync + Send) {
        let width = self.channels[0] + self.channels[1];
        let size = (ELEMENTS_PER_TASK / width.max(1)).max(1);
        for_each_task(self.rows.div_ceil(size), |task| f(task_range(task, size, self.rows)));
    }

    fn check(&self, a: usize, b: usize, whole: usize) {
        let [ca, cb] = self.channels.map(|channels| self.rows * channels);
        assert_eq!((a, b, whole), (ca, cb, ca + cb), "lengths of {self:?}");
    }

    fn widths(&self) -> [usize; 3] {
        let [a, b] = self.channels;
        [a, b, a + b]
    }
}

fn join_with(isa: Isa, parts: &Parts, a: &[f32], b: &[f32], y: &mut [f32]) {
    parts.check(a.len(), b.len(), y.len());
    let ([ca, cb, width], [fa, fb]) = (parts.widths(), parts.factors);
    let out = Shared::new(y);
    parts.for_each_task(|rows| {
        for row in rows {
            let at = row * width;
            // SAFETY: ranges of rows do not overlap, and each result has the length of its source.
            unsafe {
                scale_part(isa, &a[row * ca..][..ca], fa, out.part(at..at + ca));
                scale_part(isa, &b[row * cb..][..cb], fb, out.part(at + ca..at + width));
            }
        }
    });
}

fn split_with(isa: Isa, parts: &Parts, dy: &[f32], da: &mut [f32], db: &mut [f32]) {
    parts.check(da.len(), db.len(), dy.len());
    let ([ca, cb, width], [fa, fb]) = (parts.widths(), parts.factors);
    let (da, db) = (Shared::new(da), Shared::new(db));
    parts.for_each_task(|rows| {
        for row in rows {
            let (of_a, of_b) = dy[row * width..][..width].split_at(ca);
            // SAFETY: rows are disjoint, and each result has the length of its source.
            unsafe {
                scale_part(isa, of_a, fa, da.part(row * ca..(row + 1) * ca));
                scale_part(isa, of_b, fb, db.part(row * cb..(row + 1) * cb));
            }
        }
    });
}

simd_fn! {
    unsafe fn add_part<S>(a: &[f32], b: &[f32], factor: f32, y: &mut [f32]) {
        let (len, a, b, y, factor) = (y.len(), a.as_ptr(), b.as_ptr(), y.as_mut_ptr(), S::splat(factor));
        let mut i = 0;
        while i < len {
            let n = len - i;
            S::store_n(y.add(i), S::fma(S::load_n(b.add(i), n), factor, S::load_n(a.add(i), n)), n);
            i += S::LANES;
        }
    }
}

simd_fn! {
    unsafe fn scale_part<S>(x: &[f32], factor: f32, y: &mut [f32]) {
        let (len, x, y, factor) = (y.len(), x.as_ptr(), y.as_mut_ptr(), S::splat(factor));
        let mut i = 0;
        while i < len {
            let n = len - i;
            S::store_n(y.add(i), S::mul(S::load_n(x.add(i), n), factor), n);
            i += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, one_and_two_threads_agree, random};

    proptest! {
        #[test]
        fn agrees_with_f64(rows in 0usize..9, channels in [0usize..40, 0usize..40], seed: u64) {
            let parts = Parts { rows, channels, factors: [0.7, -1.9] };
            let [ca, cb, width] = parts.widths();
            let (a, b) = (random(rows * ca, seed), random(rows * cb, seed ^ 1));
            let (c, dy) = (random(a.len(), seed ^ 2), random(rows * width, seed ^ 3));
            let times = |x: f32, factor: f32| f64::from(x) * f64::from(factor);
            let sum: Vec<f64> = a.iter().zip(&c).map(|(&a, &c)| f64::from(a) + times(c, 0.3)).collect();
            let whole: Vec<f64> = (0..rows * width).map(|i| {
                let (row, k) = (i / width, i % width);
                if k < ca { times(a[row * ca + k], 0.7) } else { times(b[row * cb + k - ca], -1.9) }
            }).collect();
            let da: Vec<f64> = (0..a.len()).map(|i| times(dy[i / ca * width + i % ca], 0.7)).collect();
            let db: Vec<f64> = (0..b.len()).map(|i| times(dy[i / cb * width + ca + i % cb], -1.9)).collect();
            for isa in Isa::all() {
                let (mut s, mut w) = (vec![7.0; a.len()], vec![7.0; dy.len()]);
                let (mut got_a, mut got_b) = (vec![7.0; a.len()], vec![7.0; b.len()]);
                add_with(isa, &a, &c, 0.3, &mut s);
                assert_close(&s, &sum, 2e-7);
                join_with(isa, &parts, &a, &b, &mut w);
                assert_close(&w, &whole, 2e-7);
                split_with(isa, &parts, &dy, &mut got_a, &mut got_b);
                assert_close(&got_a, &da, 2e-7);
                assert_close(&got_b, &db, 2e-7);
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let parts = Parts { rows: 900, channels: [50, 33], factors: [0.7, -1.9] };
        let (a, b) = (random(900 * 50, 1), random(900 * 33, 2));
        one_and_two_threads_agree(|| {
            let (mut y, mut da, mut db) = (vec![0.0; 900 * 83], a.clone(), b.clone());
            join_scaled(&parts, &a, &b, &mut y);
            join_scaled_backward(&parts, &y, &mut da, &mut db);
            let mut sum = a.clone();
            add_scaled(&a, &da, 0.3, &mut sum);
            scale(&sum, 1.5, &mut da);
            [y, da, db, sum].concat()
        });
    }
}
