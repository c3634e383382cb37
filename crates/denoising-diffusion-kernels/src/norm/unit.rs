//! Rows scaled to the same length, without learned parameters: y = x factor / max(|x|_2, floor); and the gradient. "Pixel norm" and the
//! normalisation of weights are based on this (EDM2, Karras et al. 2023, eq. 30 and 47).
//!
//! Nothing is saved: the backward pass recomputes |x|. Below the floor, the divisor does not depend on x.

use super::parts::{each_row, each_vector};
use super::rows::{load, store};
use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::simd::{Isa, Simd, simd_fn};

/// The sizes of rows, and the length that they are scaled to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitRows {
    /// Values per row, at least 1.
    pub len: usize,
    /// The length of the results.
    pub factor: f32,
    /// Lower bound of the length that rows are divided by; positive.
    pub floor: f32,
}

/// y = x factor / max(|x|_2, floor), row by row; a NaN makes its whole row NaN.
pub fn unit_rows_forward(rows: &UnitRows, x: &[f32], y: &mut [f32]) {
    forward_with(Isa::detect(), rows, x, y);
}

/// The same in place of `x`, with the same bits.
pub fn unit_rows_in_place(rows: &UnitRows, x: &mut [f32]) {
    in_place_with(Isa::detect(), rows, x);
}

/// The gradient of [`unit_rows_forward`] from `x` and `dy`.
pub fn unit_rows_backward(rows: &UnitRows, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward_with(Isa::detect(), rows, x, dy, dx);
}

impl UnitRows {
    fn check(&self, x: usize, y: usize) {
        assert!(self.len > 0 && x.is_multiple_of(self.len), "{x} values are not rows of {self:?}");
        assert_eq!(x, y, "inputs and outputs differ in length");
    }

    /// Runs `f(range of values)` for tasks that cover `values` of them.
    fn for_each_part(&self, values: usize, f: impl Fn(std::ops::Range<usize>) + Sync + Send) {
        let size = (ELEMENTS_PER_TASK / self.len).max(1) * self.len;
        for_each_task(values.div_ceil(size), |task| f(task_range(task, size, values)));
    }
}

pub(super) fn forward_with(isa: Isa, rows: &UnitRows, x: &[f32], y: &mut [f32]) {
    rows.check(x.len(), y.len());
    let out = Shared::new(y);
    rows.for_each_part(x.len(), |range| {
        // SAFETY: ranges of different tasks are disjoint and hold whole rows.
        unsafe { forward_rows(isa, *rows, &x[range.clone()], out.part(range)) }
    });
}

pub(super) fn in_place_with(isa: Isa, rows: &UnitRows, x: &mut [f32]) {
    rows.check(x.len(), x.len());
    let (values, x) = (x.len(), Shared::new(x));
    rows.for_each_part(values, |range| {
        // SAFETY: as in `forward_with`.
        unsafe { forward_rows_in_place(isa, *rows, x.part(range)) }
    });
}

pub(super) fn backward_with(isa: Isa, rows: &UnitRows, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    rows.check(x.len(), dx.len());
    assert_eq!(x.len(), dy.len(), "x and dy differ in length");
    let out = Shared::new(dx);
    rows.for_each_part(x.len(), |range| {
        // SAFETY: as in `forward_with`.
        unsafe { backward_rows(isa, *rows, &x[range.clone()], &dy[range.clone()], out.part(range)) }
    });
}

simd_fn! {
    unsafe fn forward_rows<S>(rows: UnitRows, x: &[f32], y: &mut [f32]) {
        let (len, c, x, y) = (x.len(), rows.len, x.as_ptr(), y.as_mut_ptr());
        each_row!(len, c, forward_row::<S>, |at| (rows, x.add(at), y.add(at)));
    }
}

simd_fn! {
    unsafe fn forward_rows_in_place<S>(rows: UnitRows, x: &mut [f32]) {
        let (len, c, x) = (x.len(), rows.len, x.as_mut_ptr());
        each_row!(len, c, forward_row::<S>, |at| (rows, x.add(at).cast_const(), x.add(at)));
    }
}

simd_fn! {
    unsafe fn backward_rows<S>(rows: UnitRows, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (len, c, x, dy, dx) = (x.len(), rows.len, x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
        each_row!(len, c, backward_row::<S>, |at| (rows, x.add(at), dy.add(at), dx.add(at)));
    }
}

/// The sum of `a b` over a row.
#[inline(always)]
unsafe fn dot<S: Simd, const WHOLE: bool>(a: *const f32, b: *const f32, c: usize) -> f32 {
    unsafe {
        // Four sums, so that none waits for the previous one.
        let mut sums = [S::splat(0.0); 4];
        let mut k = 0;
        while k + 4 * S::LANES <= c {
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = k + i * S::LANES;
                *sum = S::fma(S::load(a.add(at)), S::load(b.add(at)), *sum);
            }
            k += 4 * S::LANES;
        }
        while k < c {
            sums[0] = S::fma(load::<S, WHOLE>(a.add(k), c - k), load::<S, WHOLE>(b.add(k), c - k), sums[0]);
            k += S::LANES;
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// `y` may be `x`: a row is read before it is written, and each vector once more just before its own place is.
#[inline(always)]
unsafe fn forward_row<S: Simd, const WHOLE: bool>(rows: UnitRows, x: *const f32, y: *mut f32) {
    unsafe {
        let norm = dot::<S, WHOLE>(x, x, rows.len).sqrt();
        // Not `max`, which would turn NaN into the floor.
        let factor = S::splat(rows.factor / if norm < rows.floor { rows.floor } else { norm });
        each_vector!(S, rows.len, |k, n| {
            store::<S, WHOLE>(y.add(k), S::mul(load::<S, WHOLE>(x.add(k), n), factor), n);
        });
    }
}

/// dx = (dy - x (x dy) / |x|^2) factor / |x|; dy factor / floor below the floor.
#[inline(always)]
unsafe fn backward_row<S: Simd, const WHOLE: bool>(rows: UnitRows, x: *const f32, dy: *const f32, dx: *mut f32) {
    unsafe {
        let norm = dot::<S, WHOLE>(x, x, rows.len).sqrt();
        let (factor, along) = if norm < rows.floor {
            (rows.factor / rows.floor, 0.0)
        } else {
            // Divided twice, because the square of a small length may underflow.
            (rows.factor / norm, dot::<S, WHOLE>(x, dy, rows.len) / norm / norm)
        };
        let (factor, along) = (S::splat(factor), S::splat(-along));
        each_vector!(S, rows.len, |k, n| {
            let across = S::fma(load::<S, WHOLE>(x.add(k), n), along, load::<S, WHOLE>(dy.add(k), n));
            store::<S, WHOLE>(dx.add(k), S::mul(across, factor), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{
        assert_close, assert_some_close, numeric, one_and_two_threads_agree, random, some_indices, wide,
    };

    fn exact(rows: &UnitRows, x: &[f64]) -> Vec<f64> {
        let row = |row: &[f64]| {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(rows.floor.into());
            row.iter().map(|v| v * f64::from(rows.factor) / norm).collect::<Vec<_>>()
        };
        x.chunks_exact(rows.len).flat_map(row).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_f64_and_finite_differences(len in 1usize..=150, count in 0usize..=9, short: bool, seed: u64) {
            // With the larger floor, every row is below it.
            let rows = UnitRows { len, factor: 3.0, floor: if short { 20.0 } else { 1e-4 } };
            let mut x = random(len * count, seed);
            // No row is so short that its gradient is only rounding.
            x.chunks_exact_mut(len).for_each(|row| row[0] = 1.0);
            let dy = random(len * count, seed ^ 1);
            let (x64, of_x) = (wide(&x), some_indices(x.len()));
            let dx64 = numeric(&x64, &dy, &of_x, |x| exact(&rows, x));
            for isa in Isa::all() {
                let (mut y, mut dx) = (vec![7.0; x.len()], vec![7.0; x.len()]);
                forward_with(isa, &rows, &x, &mut y);
                backward_with(isa, &rows, &x, &dy, &mut dx);
                let mut in_place = x.clone();
                in_place_with(isa, &rows, &mut in_place);
                assert_eq!(&in_place, &y);
                assert_close(&y, &exact(&rows, &x64), 5e-7);
                assert_some_close(&dx, &of_x, &dx64, 1e-6);
            }
        }
    }

    #[test]
    fn zeros_and_bad_values_stay_in_their_row() {
        for len in [5, 32] {
            let rows = UnitRows { len, factor: 2.0, floor: 1e-4 };
            let mut x = random(3 * len, 1);
            x[..len].fill(0.0);
            x[len + 2] = f32::NAN;
            for isa in Isa::all() {
                let (mut y, mut dx) = (vec![7.0; x.len()], vec![7.0; x.len()]);
                forward_with(isa, &rows, &x, &mut y);
                backward_with(isa, &rows, &x, &vec![1.0; x.len()], &mut dx);
                assert!(y[..len].iter().all(|v| *v == 0.0) && dx[..len].iter().all(|v| *v == 2.0 / 1e-4));
                assert!([&y, &dx].iter().all(|v| v[len..2 * len].iter().all(|v| v.is_nan())));
                assert!([&y, &dx].iter().all(|v| v[2 * len..].iter().all(|v| v.is_finite())));
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let rows = UnitRows { len: 50, factor: 2.0, floor: 1e-4 };
        let (x, dy) = (random(60_000, 1), random(60_000, 2));
        one_and_two_threads_agree(|| {
            let (mut y, mut dx) = (x.clone(), x.clone());
            unit_rows_forward(&rows, &x, &mut y);
            unit_rows_backward(&rows, &x, &dy, &mut dx);
            let mut in_place = x.clone();
            unit_rows_in_place(&rows, &mut in_place);
            [y, dx, in_place].concat()
        });
    }
}
