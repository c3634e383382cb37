//! The AVX-512 version (F and DQ).

use std::arch::x86_64::*;

use super::{Avx2, Simd};

/// AVX-512 intrinsics. The functions may only be called if the CPU has them; see [`super::Isa::detect`].
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// The mask of the first `n` (1..=16) lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    u16::MAX >> (16 - n)
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    type Eight = Avx2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2_int(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
    }
    #[inline(always)]
    unsafe fn eight(v: Self::V, i: usize) -> __m256 {
        unsafe { if i == 0 { _mm512_castps512_ps256(v) } else { _mm512_extractf32x8_ps::<1>(v) } }
    }
    #[inline(always)]
    unsafe fn from_eights([low, high]: [__m256; 2]) -> Self::V {
        unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        unsafe { if n >= 16 { Self::load(p) } else { _mm512_maskz_loadu_ps(first(n), p) } }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        unsafe { if n >= 16 { Self::store(p, v) } else { _mm512_mask_storeu_ps(p, first(n), v) } }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe { Avx2::sum(_mm256_add_ps(Self::eight(v, 0), Self::eight(v, 1))) }
    }
}
