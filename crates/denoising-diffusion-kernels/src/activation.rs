//! SiLU on flat slices: y = x sigmoid(x) (Hendrycks & Gimpel 2016; Elfwing et al. 2017).
//!
//! Layers that normalise first use the fused version in [`crate::norm`] instead.

use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::simd::{Isa, LANES, Simd, exp, simd_fn};

/// What follows a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// y = x
    Identity,
    /// y = x / (1 + e^-x)
    Silu,
}

/// y = x / (1 + e^-x), elementwise; `x` and `y` have the same length.
///
/// NaN gives NaN and +inf gives +inf; -inf gives NaN, as in PyTorch.
pub fn silu_forward(x: &[f32], y: &mut [f32]) {
    forward_with(Isa::detect(), x, y);
}

/// dx = dy s (1 + x (1 - s)) with s = 1 / (1 + e^-x); all three have the same length.
pub fn silu_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward_with(Isa::detect(), x, dy, dx);
}

fn forward_with(isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    let out = Shared::new(y);
    for_each_task(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, x.len());
        // SAFETY: ranges of different tasks are disjoint; both slices have the range's length.
        unsafe { forward_part(isa, &x[range.clone()], out.part(range)) }
    });
}

fn backward_with(isa: Isa, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "x and dy differ in length");
    assert_eq!(x.len(), dx.len(), "x and dx differ in length");
    let out = Shared::new(dx);
    for_each_task(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, x.len());
        // SAFETY: as in `forward_with`.
        unsafe { backward_part(isa, &x[range.clone()], &dy[range.clone()], out.part(range)) }
    });
}

/// y = x sigmoid(x).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// dy/dx of [`silu`].
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu_slope<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        let s = S::div(S::splat(1.0), S::add(S::splat(1.0), e));
        let t = S::mul(x, S::sub(S::splat(1.0), s));
        S::fma(s, t, s)
    }
}

simd_fn! {
    unsafe fn forward_part<S>(x: &[f32], y: &mut [f32]) {
        let (len, x, y) = (x.len(), x.as_ptr(), y.as_mut_ptr());
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            S::store(y.add(i), silu::<S>(S::load(x.add(i))));
        }
        if whole < len {
            S::store_n(y.add(whole), silu::<S>(S::load_n(x.add(whole), len - whole)), len - whole);
        }
    }
}

simd_fn! {
    unsafe fn backward_part<S>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (len, x, dy, dx) = (x.len(), x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            S::store(dx.add(i), S::mul(silu_slope::<S>(S::load(x.add(i))), S::load(dy.add(i))));
        }
        if whole < len {
            let rest = len - whole;
            let slope = silu_slope::<S>(S::load_n(x.add(whole), rest));
            S::store_n(dx.add(whole), S::mul(slope, S::load_n(dy.add(whole), rest)), rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, one_and_two_threads_agree, random};
    use proptest::prelude::*;

    #[test]
    fn silu_and_its_slope_keep_their_relative_accuracy() {
        for isa in Isa::all() {
            let x: Vec<f32> = (0..400_000).map(|i| -80.0 + i as f32 * 4e-4).collect();
            let mut y = vec![0.0; x.len()];
            forward_with(isa, &x, &mut y);
            let worst = x.iter().zip(&y).map(|(&x, &y)| {
                let exact = silu64(x.into());
                (f64::from(y) - exact).abs() / exact.abs().max(1e-30)
            });
            let worst = worst.fold(0.0, f64::max);
            assert!(worst < 3e-7, "{isa:?}: relative error {worst:e}");
        }
    }

    fn silu64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    proptest! {
        #[test]
        fn agrees_with_f64(len in 0usize..70, seed: u64) {
            let x: Vec<f32> = random(len, seed).iter().map(|v| v * 10.0).collect();
            let dy = random(len, seed ^ 1);
            let exact: Vec<f64> = x.iter().map(|&v| silu64(v.into())).collect();
            // Central differences in f64 are good to 1e-9 here.
            let exact_dx: Vec<f64> = x.iter().zip(&dy).map(|(&v, &d)| {
                let h = 1e-5;
                (silu64(f64::from(v) + h) - silu64(f64::from(v) - h)) / (2.0 * h) * f64::from(d)
            }).collect();
            for isa in Isa::all() {
                let (mut y, mut dx) = (vec![9.0; len], vec![9.0; len]);
                forward_with(isa, &x, &mut y);
                backward_with(isa, &x, &dy, &mut dx);
                assert_close(&y, &exact, 5e-7);
                assert_close(&dx, &exact_dx, 1e-6);
            }
        }
    }

    #[test]
    fn special_values_come_out_as_such() {
        let x = [f32::NAN, f32::INFINITY, -1e30, 1e30, 0.0];
        for isa in Isa::all() {
            let (mut y, mut dx) = ([0.0; 5], [0.0; 5]);
            forward_with(isa, &x, &mut y);
            backward_with(isa, &x, &[1.0; 5], &mut dx);
            assert!(y[0].is_nan() && dx[0].is_nan());
            assert_eq!(y[1..], [f32::INFINITY, 0.0, 1e30, 0.0]);
            assert_eq!(dx[2..], [0.0, 1.0, 0.5]);
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let x = random(100_003, 1);
        one_and_two_threads_agree(|| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            silu_forward(&x, &mut y);
            silu_backward(&x, &y, &mut dx);
            [y, dx].concat()
        });
    }
}
