//! Vectors of f32 in four versions, and the run-time choice between them.
//!
//! A kernel is written once, with [`simd_fn!`], over a type parameter `S: Simd`; the macro compiles it for AVX-512 (sixteen lanes), for AVX2 + FMA
//! (eight), for NEON (eight) and as plain Rust (eight), and chooses by [`Isa`]. The plain version rounds products before adding them, the others do
//! not, and sums over lanes depend on their number, so versions agree up to rounding and not to the bit.
//!
//! This is not a general vector library: it has the operations that the kernels need.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// Number of lanes of the widest vector.
pub(crate) const MAX_LANES: usize = 16;
/// Rows and columns of the squares that [`EightLanes::transpose`] transposes.
pub(crate) const SQUARE: usize = 8;

/// The instruction set that a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust, any machine.
    Portable,
    /// x86-64 with AVX2 and FMA. Only constructed if the CPU has both.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512 F and DQ, as well as AVX2 and FMA. Only constructed if the CPU has them.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// aarch64 with NEON. Only constructed if the CPU has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The fastest version that this CPU can run.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
            return if wide { Isa::Avx512 } else { Isa::Avx2 };
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Isa::Neon;
        }
        Isa::Portable
    }

    /// Every version that this CPU can run.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        match Isa::detect() {
            Isa::Portable => vec![Isa::Portable],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => vec![Isa::Portable, Isa::Avx2],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => vec![Isa::Portable, Isa::Avx2, Isa::Avx512],
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => vec![Isa::Portable, Isa::Neon],
        }
    }
}

/// Vector operations on [`Simd::LANES`] f32 values.
///
/// # Safety
/// The CPU must have the instructions of the implementation; pointers must be valid for that many (or `n`) values. `min(a, b)` is `a < b ? a : b`,
/// and `max` likewise, so a NaN in the second argument is returned.
pub(crate) trait Simd: Copy {
    /// 8 or 16.
    const LANES: usize;
    type V: Copy;
    /// The version with eight lanes.
    type Eight: EightLanes;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// 2^a for integers a in -126..=127; 0 for -127, infinity for 128.
    unsafe fn exp2_int(a: Self::V) -> Self::V;

    /// Lanes `8 i..8 i + 8`.
    unsafe fn eight(v: Self::V, i: usize) -> <Self::Eight as Simd>::V;
    /// The vector whose [`Simd::eight`]s are the first of these, as many as it has.
    unsafe fn from_eights(eights: [<Self::Eight as Simd>::V; 2]) -> Self::V;

    /// The first `n` (at least 1) values, followed by zeros; all of them if `n` is at least [`Simd::LANES`].
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        if n >= Self::LANES {
            return unsafe { Self::load(p) };
        }
        let mut lanes = [0.0f32; MAX_LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `n` (at least 1) values; all of them if `n` is at least [`Simd::LANES`].
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        if n >= Self::LANES {
            return unsafe { Self::store(p, v) };
        }
        let mut lanes = [0.0f32; MAX_LANES];
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }

    /// Sum of the lanes, in a fixed order.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe { Self::fold(v, |a, b| a + b) }
    }

    /// The largest lane that is not NaN.
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        unsafe { Self::fold(v, f32::max) }
    }

    /// Combines both halves of the lanes, then both halves of the result, until one value is left.
    #[inline(always)]
    unsafe fn fold(v: Self::V, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0f32; MAX_LANES];
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] = f(lanes[i], lanes[i + width]);
            }
        }
        lanes[0]
    }
}

/// A [`Simd`] of eight lanes.
///
/// # Safety
/// As [`Simd`].
pub(crate) trait EightLanes: Simd {
    /// Rows become columns.
    unsafe fn transpose(rows: [Self::V; SQUARE]) -> [Self::V; SQUARE];
}

/// e^x with a relative error below 2e-7 if the result is a normal number; smaller results become 0, and results above 2^127.5 become infinity. NaN
/// gives NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is the one of degree 6 that is closest to e^r in relative error (3e-9).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    unsafe {
        // n stays in -127..=128, whose exponent bits mean 0 and infinity; the order of arguments lets a NaN through.
        let x = S::max(S::splat(-88.0), S::min(S::splat(89.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        // Three short chains instead of a long one: the processor works on several values at once.
        let square = S::mul(r, r);
        let high = S::fma(r, S::splat(8.379_021e-3), S::splat(4.166_477_7e-2));
        let high = S::fma(square, S::splat(1.406_127_7e-3), high);
        let middle = S::fma(r, S::splat(1.666_636_5e-1), S::splat(0.5));
        let low = S::add(r, S::splat(1.0));
        let p = S::fma(square, S::fma(square, high, middle), low);
        S::mul(p, S::exp2_int(n))
    }
}

/// e^x as [`exp`], with a relative error below 1e-4, for results that are rounded to bf16.
///
/// x log2(e) = n + f with |f| <= 1/2; the polynomial is the one of degree 3 that is closest to 2^f in relative error.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp_roughly<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let t = S::mul(x, S::splat(std::f32::consts::LOG2_E));
        let t = S::max(S::splat(-127.0), S::min(S::splat(128.0), t));
        let n = S::round(t);
        let f = S::sub(t, n);
        let p = S::fma(f, S::splat(5.517_167e-2), S::splat(2.426_111_3e-1));
        let p = S::fma(f, p, S::splat(6.932_61e-1));
        S::mul(S::fma(f, p, S::splat(9.999_281e-1)), S::exp2_int(n))
    }
}

/// Prefetches the cache line at `p`, which need not be valid, into the first-level cache.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching changes nothing and never fails, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above. (The intrinsic is not stable.)
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Like [`prefetch`], into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_far(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `prefetch`.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as in `prefetch`.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Defines `fn name(isa: Isa, args...)`, whose body is compiled once per instruction set, with `S` the chosen [`Simd`].
/// The body is an unsafe context; arguments must be plain names.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident<S>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
        $vis unsafe fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
            unsafe fn body<S: $crate::simd::Simd>($($arg: $ty),*) $(-> $ret)? {
                #[allow(unused_unsafe, reason = "bodies without intrinsics")]
                unsafe { $body }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                unsafe { body::<$crate::simd::Avx2>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512dq")]
            #[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                unsafe { body::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            #[allow(clippy::too_many_arguments, reason = "strides and sizes of plain memory")]
            unsafe fn neon($($arg: $ty),*) $(-> $ret)? {
                unsafe { body::<$crate::simd::Neon>($($arg),*) }
            }
            match isa {
                $crate::simd::Isa::Portable => unsafe { body::<$crate::simd::Portable>($($arg),*) },
                // SAFETY: these are only constructed after the CPU has been checked.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Isa::Neon => unsafe { neon($($arg),*) },
            }
        }
    };
}
pub(crate) use simd_fn;

#[cfg(test)]
mod tests {
    use super::*;

    simd_fn! {
        unsafe fn exp_lanes<S>(x: &[f32; MAX_LANES], y: &mut [f32; MAX_LANES]) {
            S::store(y.as_mut_ptr(), exp::<S>(S::load(x.as_ptr())));
        }
    }

    simd_fn! {
        unsafe fn transposed<S>(x: &[f32; 64], y: &mut [f32; 64]) {
            let columns = S::Eight::transpose(std::array::from_fn(|i| S::Eight::load(x.as_ptr().add(i * SQUARE))));
            for (i, column) in columns.into_iter().enumerate() {
                S::Eight::store(y.as_mut_ptr().add(i * SQUARE), column);
            }
        }
    }

    #[test]
    fn rows_become_columns() {
        let x = std::array::from_fn(|i| i as f32);
        for isa in Isa::all() {
            let mut y = [0.0; 64];
            // SAFETY: `isa` is one that this machine runs.
            unsafe { transposed(isa, &x, &mut y) };
            assert!((0..64).all(|i| y[i] == x[i % 8 * 8 + i / 8]), "{isa:?}");
        }
    }

    simd_fn! {
        unsafe fn parts<S>(x: &[f32; MAX_LANES], n: usize, y: &mut [f32; MAX_LANES]) -> [f32; 2] {
            let v = S::load_n(x.as_ptr(), n);
            let v = S::from_eights([S::eight(v, 0), S::eight(v, 1)]);
            S::store_n(y.as_mut_ptr(), v, n);
            [S::sum(v), S::max_lane(v)]
        }
    }

    #[test]
    fn parts_of_vectors_are_loaded_stored_taken_apart_and_added_up() {
        let x = std::array::from_fn(|i| 1.0 + i as f32);
        for isa in Isa::all() {
            let lanes = match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => 16,
                _ => 8,
            };
            for n in 1..=lanes {
                let mut y = [-1.0; MAX_LANES];
                // SAFETY: `isa` is one that this machine runs.
                let [sum, max] = unsafe { parts(isa, &x, n, &mut y) };
                assert_eq!(y, std::array::from_fn(|i| if i < n { x[i] } else { -1.0 }), "{isa:?}, {n}");
                assert_eq!([sum, max], [(n * (n + 1) / 2) as f32, n as f32], "{isa:?}, {n}");
            }
        }
    }

    simd_fn! {
        unsafe fn rough_lanes<S>(x: &[f32; MAX_LANES], y: &mut [f32; MAX_LANES]) {
            S::store(y.as_mut_ptr(), exp_roughly::<S>(S::load(x.as_ptr())));
        }
    }

    #[test]
    fn the_rough_exponential_is_good_enough_for_bf16_and_has_the_same_edges() {
        for isa in Isa::all() {
            let rough = |x: f32| {
                let mut y = [0.0; MAX_LANES];
                // SAFETY: `isa` is one that this machine runs.
                unsafe { rough_lanes(isa, &[x; MAX_LANES], &mut y) };
                y[0]
            };
            for i in 0..20_000 {
                let x = -87.0 + i as f32 * (175.0 / 20_000.0);
                let exact = f64::from(x).exp();
                assert!((f64::from(rough(x)) - exact).abs() < 1e-4 * exact, "{isa:?}: {x}");
            }
            assert_eq!(
                [f32::NEG_INFINITY, -200.0, 100.0, f32::INFINITY].map(rough),
                [0.0, 0.0, f32::INFINITY, f32::INFINITY]
            );
            assert!(rough(f32::NAN).is_nan());
        }
    }

    fn exp_all(isa: Isa, x: f32) -> f32 {
        let mut y = [0.0; MAX_LANES];
        // SAFETY: `isa` is one that this machine runs.
        unsafe { exp_lanes(isa, &[x; MAX_LANES], &mut y) };
        y[0]
    }

    #[test]
    fn the_exponential_is_accurate_and_has_the_promised_edges() {
        for isa in Isa::all() {
            let mut worst = 0.0f64;
            for i in 0..200_000 {
                let x = -87.3 + i as f32 * (175.6 / 200_000.0);
                let exact = f64::from(x).exp();
                worst = worst.max((f64::from(exp_all(isa, x)) - exact).abs() / exact);
            }
            assert!(worst < 2e-7, "{isa:?}: relative error {worst:e}");
            assert_eq!(exp_all(isa, 0.0), 1.0);
            for large in [88.5, 1000.0, f32::INFINITY] {
                assert_eq!(exp_all(isa, large), f32::INFINITY);
            }
            for small in [-88.0, -1000.0, f32::NEG_INFINITY] {
                assert_eq!(exp_all(isa, small), 0.0);
            }
            assert!(exp_all(isa, f32::NAN).is_nan());
        }
    }
}
