//! The AVX2 + FMA version.

use std::arch::x86_64::*;

use super::{EightLanes, Simd};

/// AVX2 and FMA intrinsics. The functions may only be called if the CPU has both; see [`super::Isa::detect`].
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    type Eight = Self;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2_int(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
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

impl EightLanes for Avx2 {
    #[inline(always)]
    unsafe fn transpose(r: [Self::V; 8]) -> [Self::V; 8] {
        unsafe {
            // Pairs of rows, then fours, then both halves.
            let low = |i: usize| _mm256_unpacklo_ps(r[i], r[i + 1]);
            let high = |i: usize| _mm256_unpackhi_ps(r[i], r[i + 1]);
            let pairs = [low(0), high(0), low(2), high(2), low(4), high(4), low(6), high(6)];
            let first = |i: usize| _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
            let second = |i: usize| _mm256_shuffle_ps::<0xee>(pairs[i], pairs[i + 2]);
            let fours = [first(0), second(0), first(1), second(1), first(4), second(4), first(5), second(5)];
            let left = |i: usize| _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            let right = |i: usize| _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
            [left(0), left(1), left(2), left(3), right(0), right(1), right(2), right(3)]
        }
    }
}
