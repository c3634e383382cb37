//! The NEON version: eight lanes in two registers. The twelve accumulators of the largest register tile, three loaded vectors and the compiler's
//! temporaries fit into the 32 registers of aarch64.

use std::arch::aarch64::*;

use super::{EightLanes, Simd};

/// NEON intrinsics. Every aarch64 target of Rust with floating point has them; [`super::Isa::detect`] checks nevertheless.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Lanes 0 to 3 and 4 to 7.
#[derive(Clone, Copy)]
pub(crate) struct Pair(float32x4_t, float32x4_t);

impl Simd for Neon {
    const LANES: usize = 8;
    type V = Pair;
    type Eight = Self;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { Pair(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { Pair(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Pair(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Pair(vsubq_f32(a.0, b.0), vsubq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Pair(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Pair(vdivq_f32(a.0, b.0), vdivq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { Pair(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }
    // NEON's minimum and maximum return a NaN in either argument; the kernels rely only on the second.
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Pair(vbslq_f32(vcltq_f32(a.0, b.0), a.0, b.0), vbslq_f32(vcltq_f32(a.1, b.1), a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { Pair(vbslq_f32(vcgtq_f32(a.0, b.0), a.0, b.0), vbslq_f32(vcgtq_f32(a.1, b.1), a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { Pair(vsqrtq_f32(a.0), vsqrtq_f32(a.1)) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe { Pair(vrndnq_f32(a.0), vrndnq_f32(a.1)) }
    }
    #[inline(always)]
    unsafe fn exp2_int(a: Self::V) -> Self::V {
        // A NaN becomes 1 here; the polynomial that is multiplied by this still has it.
        unsafe {
            let four = |a| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(127))));
            Pair(four(a.0), four(a.1))
        }
    }
    #[inline(always)]
    unsafe fn eight(v: Self::V, _: usize) -> Self::V {
        v
    }
    #[inline(always)]
    unsafe fn from_eights([v, _]: [Self::V; 2]) -> Self::V {
        v
    }
}

impl EightLanes for Neon {
    #[inline(always)]
    unsafe fn transpose(r: [Self::V; 8]) -> [Self::V; 8] {
        // Four squares of four, with the two off the diagonal swapped.
        unsafe {
            let low = |i: usize| square([r[i].0, r[i + 1].0, r[i + 2].0, r[i + 3].0]);
            let high = |i: usize| square([r[i].1, r[i + 1].1, r[i + 2].1, r[i + 3].1]);
            let (top_left, top_right, bottom_left, bottom_right) = (low(0), high(0), low(4), high(4));
            std::array::from_fn(|i| {
                if i < 4 { Pair(top_left[i], bottom_left[i]) } else { Pair(top_right[i - 4], bottom_right[i - 4]) }
            })
        }
    }
}

/// Transposes a square of four.
#[inline(always)]
unsafe fn square(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    unsafe {
        let even = |a, b| vreinterpretq_f64_f32(vtrn1q_f32(a, b));
        let odd = |a, b| vreinterpretq_f64_f32(vtrn2q_f32(a, b));
        let (e0, o0, e1, o1) = (even(r[0], r[1]), odd(r[0], r[1]), even(r[2], r[3]), odd(r[2], r[3]));
        [vtrn1q_f64(e0, e1), vtrn1q_f64(o0, o1), vtrn2q_f64(e0, e1), vtrn2q_f64(o0, o1)]
            .map(|v| vreinterpretq_f32_f64(v))
    }
}
