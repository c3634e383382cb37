//! Activations on flat slices: y = x sigmoid(x) (SiLU: Hendrycks & Gimpel 2016; Elfwing et al. 2017), and y = x sigmoid(2 u) with
//! u = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh(u)) / 2 (GELU, approximated: Hendrycks & Gimpel 2016).
//!
//! Not here: SiLU after a normalisation, which is fused with it in [`crate::norm`].

use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::simd::{Isa, Simd, exp, simd_fn};

/// The activation that follows a layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// y = x
    Identity,
    /// y = x / (1 + e^-x)
    Silu,
}

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointwise {
    Silu,
    GeluTanh,
}

/// y = f(x), elementwise; `x` and `y` have the same length.
///
/// NaN gives NaN and +inf gives +inf; -inf gives NaN in SiLU, as in PyTorch.
pub fn pointwise_forward(f: Pointwise, x: &[f32], y: &mut [f32]) {
    forward_with(Isa::detect(), f, x, y);
}

/// dx = dy f'(x); all three have the same length.
pub fn pointwise_backward(f: Pointwise, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward_with(Isa::detect(), f, x, dy, dx);
}

fn forward_with(isa: Isa, f: Pointwise, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    let out = Shared::new(y);
    for_each_task(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, x.len());
        // SAFETY: ranges of different tasks are disjoint; both slices have the range's length.
        unsafe { forward_part(isa, f, &x[range.clone()], out.part(range)) }
    });
}

fn backward_with(isa: Isa, f: Pointwise, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "x and dy differ in length");
    assert_eq!(x.len(), dx.len(), "x and dx differ in length");
    let out = Shared::new(dx);
    for_each_task(x.len().div_ceil(ELEMENTS_PER_TASK), |task| {
        let range = task_range(task, ELEMENTS_PER_TASK, x.len());
        // SAFETY: as in `forward_with`.
        unsafe { backward_part(isa, f, &x[range.clone()], &dy[range.clone()], out.part(range)) }
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

/// sqrt(2 / pi), and that times 0.044715.
const GELU: [f32; 2] = [0.797_884_6, 0.035_677_408];

/// y = x sigmoid(2 u).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let root = S::fma(S::mul(x, x), S::splat(GELU[1]), S::splat(GELU[0]));
        let e = exp::<S>(S::mul(S::mul(x, root), S::splat(-2.0)));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// dy/dx of [`gelu_tanh`]: s + 2 x s (1 - s) du/dx.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn gelu_tanh_slope<S: Simd>(x: S::V) -> S::V {
    unsafe {
        // Outside this range the sigmoid is 0 (to 1e-26) or 1, and x^2 or e might not be finite. The order of arguments lets a NaN through.
        let x = S::max(S::splat(-9.0), S::min(S::splat(9.0), x));
        let square = S::mul(x, x);
        let root = S::fma(square, S::splat(GELU[1]), S::splat(GELU[0]));
        let e = exp::<S>(S::mul(S::mul(x, root), S::splat(-2.0)));
        let s = S::div(S::splat(1.0), S::add(S::splat(1.0), e));
        let slope_of_u = S::fma(square, S::splat(3.0 * GELU[1]), S::splat(GELU[0]));
        // 1 - s without rounding error.
        let t = S::mul(S::mul(x, S::mul(e, s)), S::add(slope_of_u, slope_of_u));
        S::fma(s, t, s)
    }
}

/// Calls `$one` for every whole vector and for the remainder.
macro_rules! for_vectors {
    ($len:expr, |$i:ident, $n:ident| $one:expr) => {
        let len = $len;
        let mut $i = 0;
        while $i < len {
            let $n = len - $i;
            $one;
            $i += S::LANES;
        }
    };
}

simd_fn! {
    unsafe fn forward_part<S>(f: Pointwise, x: &[f32], y: &mut [f32]) {
        let (len, x, y) = (x.len(), x.as_ptr(), y.as_mut_ptr());
        match f {
            Pointwise::Silu => {
                for_vectors!(len, |i, n| S::store_n(y.add(i), silu::<S>(S::load_n(x.add(i), n)), n));
            }
            Pointwise::GeluTanh => {
                for_vectors!(len, |i, n| S::store_n(y.add(i), gelu_tanh::<S>(S::load_n(x.add(i), n)), n));
            }
        }
    }
}

simd_fn! {
    unsafe fn backward_part<S>(f: Pointwise, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (len, x, dy, dx) = (x.len(), x.as_ptr(), dy.as_ptr(), dx.as_mut_ptr());
        match f {
            Pointwise::Silu => {
                for_vectors!(len, |i, n| {
                    let slope = silu_slope::<S>(S::load_n(x.add(i), n));
                    S::store_n(dx.add(i), S::mul(slope, S::load_n(dy.add(i), n)), n);
                });
            }
            Pointwise::GeluTanh => {
                for_vectors!(len, |i, n| {
                    let slope = gelu_tanh_slope::<S>(S::load_n(x.add(i), n));
                    S::store_n(dx.add(i), S::mul(slope, S::load_n(dy.add(i), n)), n);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, one_and_two_threads_agree, random};
    use proptest::prelude::*;

    #[test]
    fn silu_keeps_its_relative_accuracy() {
        for isa in Isa::all() {
            let x: Vec<f32> = (0..400_000).map(|i| -80.0 + i as f32 * 4e-4).collect();
            let mut y = vec![0.0; x.len()];
            forward_with(isa, Pointwise::Silu, &x, &mut y);
            let worst = x.iter().zip(&y).map(|(&x, &y)| {
                let exact = silu64(x.into());
                (f64::from(y) - exact).abs() / exact.abs().max(1e-30)
            });
            let worst = worst.fold(0.0, |most: f64, off| if off.is_nan() { f64::INFINITY } else { most.max(off) });
            assert!(worst < 3e-7, "{isa:?}: relative error {worst:e}");
        }
    }

    fn silu64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    fn gelu64(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    }

    proptest! {
        #[test]
        fn agrees_with_f64(len in 0usize..70, gelu: bool, seed: u64) {
            let (f, exact64) =
                if gelu { (Pointwise::GeluTanh, gelu64 as fn(f64) -> f64) } else { (Pointwise::Silu, silu64 as _) };
            let x: Vec<f32> = random(len, seed).iter().map(|v| v * 10.0).collect();
            let dy = random(len, seed ^ 1);
            let exact: Vec<f64> = x.iter().map(|&v| exact64(v.into())).collect();
            // Central differences in f64 are accurate to 1e-9 here.
            let exact_dx: Vec<f64> = x.iter().zip(&dy).map(|(&v, &d)| {
                let h = 1e-5;
                (exact64(f64::from(v) + h) - exact64(f64::from(v) - h)) / (2.0 * h) * f64::from(d)
            }).collect();
            for isa in Isa::all() {
                let (mut y, mut dx) = (vec![9.0; len], vec![9.0; len]);
                forward_with(isa, f, &x, &mut y);
                backward_with(isa, f, &x, &dy, &mut dx);
                assert_close(&y, &exact, 5e-7);
                assert_close(&dx, &exact_dx, 1e-6);
            }
        }
    }

    #[test]
    fn special_values_come_out_as_such() {
        let x = [f32::NAN, f32::INFINITY, -1e30, 1e30, 0.0];
        for (isa, f) in Isa::all().into_iter().flat_map(|isa| [(isa, Pointwise::Silu), (isa, Pointwise::GeluTanh)]) {
            let (mut y, mut dx) = ([0.0; 5], [0.0; 5]);
            forward_with(isa, f, &x, &mut y);
            backward_with(isa, f, &x, &[1.0; 5], &mut dx);
            assert!(y[0].is_nan() && dx[0].is_nan());
            assert_eq!(y[1..], [f32::INFINITY, 0.0, 1e30, 0.0]);
            assert!(dx[2].abs() < 1e-25, "{f:?}: {}", dx[2]);
            assert_eq!(dx[3..], [1.0, 0.5]);
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let x = random(100_003, 1);
        one_and_two_threads_agree(|| {
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            pointwise_forward(Pointwise::Silu, &x, &mut y);
            pointwise_backward(Pointwise::GeluTanh, &x, &y, &mut dx);
            [y, dx].concat()
        });
    }
}
