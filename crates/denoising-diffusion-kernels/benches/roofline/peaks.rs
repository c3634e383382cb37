//! The limits of the machine, measured with all threads of the pool: multiplications and additions in registers, and copies in memory and in the
//! cache.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

/// Bytes of a copy that no cache can hold, and of one that fits into the last-level cache together with its source.
const LARGE: usize = 256 << 20;
const SMALL: usize = 8 << 20;
/// Number of steps of a measurement of arithmetic: about a millisecond, which is long enough for starting the threads to cost little by comparison,
/// and short enough for some runs on a busy machine to have all cores to themselves.
const STEPS: usize = 1 << 19;
/// Number of independent vectors, enough for two results per cycle with a latency of four cycles.
const VECTORS: usize = 12;
const LANES: usize = 8;
const WIDE_LANES: usize = 16;

/// The highest rates seen so far.
#[derive(Clone, Copy, Default)]
pub struct Peaks {
    /// 10^9 operations per second, a multiplication and an addition counted as two.
    pub gflops: f64,
    /// 10^9 bytes per second, read and written, of a copy of [`LARGE`].
    pub memory: f64,
    /// The same of a copy of [`SMALL`].
    pub cache: f64,
}

/// A lower bound of the time of a kernel.
pub struct Bound {
    /// `compute`, `memory` or, if inputs and outputs are no larger than the small copy, `cache`.
    pub by: &'static str,
    /// The least time, in seconds.
    pub seconds: f64,
}

impl Peaks {
    /// Measures for about a second and keeps rates that are higher than before, because sharing a machine only ever lowers them.
    pub fn measure(&mut self) {
        let lanes = if has_avx512() { WIDE_LANES } else { LANES };
        let flops = 2 * STEPS * VECTORS * lanes * rayon::current_num_threads();
        self.gflops = self.gflops.max(rate(flops, 200, || drop(rayon::broadcast(|_| black_box(arithmetic())))));
        self.memory = self.memory.max(copy(LARGE, 4));
        self.cache = self.cache.max(copy(SMALL, 100));
    }

    /// The larger of the times that the operations and the bytes take at the highest rates.
    pub fn bound(&self, flops: usize, bytes: usize) -> Bound {
        let (by, rate) = if bytes <= 2 * SMALL { ("cache", self.cache) } else { ("memory", self.memory) };
        let (compute, transfer) = (flops as f64 / self.gflops * 1e-9, bytes as f64 / rate * 1e-9);
        if compute > transfer { Bound { by: "compute", seconds: compute } } else { Bound { by, seconds: transfer } }
    }

    /// How arithmetic was measured.
    pub fn arithmetic(&self) -> &'static str {
        if has_avx512() {
            "AVX-512"
        } else if has_avx2_and_fma() {
            "AVX2 and FMA"
        } else if cfg!(target_arch = "aarch64") {
            "NEON"
        } else {
            "portable"
        }
    }
}

/// 10^9 units per second in the fastest of `runs`.
fn rate(units: usize, runs: usize, mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    units as f64 / best * 1e-9
}

/// The rate of copying `bytes`, counted twice, with all threads: by `memcpy`, which may write past the caches, or by a loop, which does not.
fn copy(bytes: usize, runs: usize) -> f64 {
    let (from, mut to) = (vec![1.0f32; bytes / 4], vec![0.0f32; bytes / 4]);
    let piece = from.len().div_ceil(rayon::current_num_threads());
    let one = black_box(1.0f32);
    let mut each = |run: fn(&mut [f32], &[f32], f32)| {
        let mut all = || to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| run(to, from, one));
        rate(2 * bytes, runs, &mut all)
    };
    let direct = each(|to, from, _| to.copy_from_slice(from));
    direct.max(each(|to, from, one| to.iter_mut().zip(from).for_each(|(to, from)| *to = from * one)))
}

#[cfg(target_arch = "x86_64")]
fn has_avx2_and_fma() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2_and_fma() && is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2_and_fma() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

/// [`STEPS`] multiplications and additions of [`VECTORS`] vectors. The values converge to 2.
fn arithmetic() -> f32 {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the machine has the instructions.
        return unsafe { fused_wide() };
    }
    #[cfg(target_arch = "x86_64")]
    if has_avx2_and_fma() {
        // SAFETY: the machine has both instruction sets.
        return unsafe { fused() };
    }
    portable()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused() -> f32 {
    use std::arch::x86_64::*;
    let (half, one) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
    let mut sums = [one; VECTORS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, half, one);
        }
    }
    sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fused_wide() -> f32 {
    use std::arch::x86_64::*;
    let (half, one) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
    let mut sums = [one; VECTORS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, half, one);
        }
    }
    sums.into_iter().map(|sum| _mm512_cvtss_f32(sum)).sum()
}

/// With whatever vectors the target has; fused only if every machine of the target can do that, as in the kernels' portable version.
fn portable() -> f32 {
    let (half, one) = (black_box(0.5f32), black_box(1.0f32));
    let mut sums = [[one; LANES]; VECTORS];
    for _ in 0..STEPS {
        for sum in sums.as_flattened_mut() {
            *sum = if cfg!(target_arch = "aarch64") { sum.mul_add(half, one) } else { *sum * half + one };
        }
    }
    sums.as_flattened().iter().sum()
}
