//! Products of bf16 matrices, with sums in f32, on a processor's matrix unit (Intel's AMX, on Linux).
//!
//! The unit has eight registers of 16 rows of 64 bytes. [`Session::multiply`] uses four for sums and four for factors. The left factor is read in
//! place, its rows any distance apart; the right one is packed, one kilobyte per register ([`pair`]). A plain version of the same products exists
//! for tests on machines without a matrix unit.
//!
//! Not here: what is multiplied, and threads.

use std::marker::PhantomData;

use crate::par::Scratch;
use crate::simd::simd_fn;

/// Rows of a tile of the left factor, and columns of one of the right factor.
pub(crate) const SIDE: usize = 16;
/// Terms of a sum that a tile holds: values in a row of the left factor.
pub(crate) const TERMS: usize = 32;
/// bf16 values of a packed tile of the right factor, `[TERMS / 2, SIDE, 2]`.
pub(crate) const TILE: usize = TERMS * SIDE;
/// Sums of two tiles of rows with two of columns: four tiles of `[SIDE, SIDE]`, the columns' index running faster.
pub(crate) type Sums = [f32; 4 * SIDE * SIDE];

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Loops in Rust.
    #[cfg(test)]
    Plain,
    /// Intel's Advanced Matrix Extensions. Only constructed if processor and operating system allow their use.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

impl Unit {
    /// The unit of this machine, if it has one that multiplies bf16.
    pub(crate) fn detect() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return amx::allowed().then_some(Unit::Amx);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        None
    }

    /// All that can be tested here.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        std::iter::once(Unit::Plain).chain(Unit::detect()).collect()
    }
}

/// A left factor: two tiles of rows, each of which reads its terms in `runs`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    /// The first row's first value.
    pub(crate) first: *const u16,
    /// Values from one row to the next.
    pub(crate) stride: usize,
    /// Values from the first tile to the second; `None` if there is only one.
    pub(crate) second: Option<usize>,
    /// Where each run of terms begins, in values after the first.
    pub(crate) runs: &'a [usize],
    /// Number of [`TERMS`] in a run.
    pub(crate) steps: usize,
}

/// A right factor: two tiles of columns, each `runs x steps` packed tiles one after another.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub(crate) first: *const u16,
    /// Values from the first tile of columns to the second; `None` if there is only one.
    pub(crate) second: Option<usize>,
}

/// The use of a unit by the current thread, which sets it up and ends by clearing it.
pub(crate) struct Session {
    unit: Unit,
    /// The unit's registers are those of one thread.
    not_send: PhantomData<*const ()>,
}

impl Session {
    pub(crate) fn new(unit: Unit) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if unit == Unit::Amx {
            // SAFETY: a unit is only constructed where it can be used.
            unsafe { amx::configure() };
        }
        Self { unit, not_send: PhantomData }
    }

    /// Sums of products of rows of `left` and columns of `right`, added to `sums` or in place of them. Tiles that do not exist are not written.
    ///
    /// # Safety
    /// The factors must be readable as described, whole tiles of them.
    pub(crate) unsafe fn multiply(&self, left: Left<'_>, right: Right, add: bool, sums: &mut Sums) {
        debug_assert!(left.steps > 0);
        match self.unit {
            #[cfg(test)]
            Unit::Plain => unsafe { plain::multiply(left, right, add, sums) },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Amx => unsafe { amx::multiply(left, right, add, sums) },
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.unit == Unit::Amx {
            // SAFETY: as in `new`.
            unsafe { amx::release() };
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::sync::LazyLock;

    use super::{Left, Right, SIDE, Sums};

    /// Linux gives a process the registers' state only if it asks (`arch_prctl(2)`).
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    /// Whether this process may use the unit.
    pub(super) fn allowed() -> bool {
        static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
            // Leaf 7: bit 24 of EDX is AMX-TILE, bit 22 AMX-BF16.
            let leaf = if __cpuid_count(0, 0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
            // What surrounds the products is compiled for AVX-512, which every processor with AMX has.
            let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
            let has_it = vectors && leaf >> 24 & 1 == 1 && leaf >> 22 & 1 == 1;
            // SAFETY: this system call changes nothing but the permission.
            has_it && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
        });
        *ALLOWED
    }

    /// Bytes from one row of a packed tile, or of a tile of sums, to the next.
    const LINE: usize = 64;

    /// The operand of LDTILECFG: palette 1, eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Config([u8; 64]);

    static CONFIG: Config = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = SIDE as u8;
            tile += 1;
        }
        Config(bytes)
    };

    /// # Safety
    /// The unit must be [`allowed`].
    pub(super) unsafe fn configure() {
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags)) };
    }

    /// # Safety
    /// As [`configure`].
    pub(super) unsafe fn release() {
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }

    /// # Safety
    /// As [`super::Session::multiply`], after [`configure`].
    pub(super) unsafe fn multiply(left: Left<'_>, right: Right, add: bool, sums: &mut Sums) {
        let sums = sums.as_mut_ptr();
        unsafe {
            match (left.second, right.second) {
                (Some(below), Some(beside)) => four_tiles(left, below, right.first, beside, add, sums),
                (None, None) => one_tile(left, 0, right.first, add, sums),
                (Some(below), None) => {
                    one_tile(left, 0, right.first, add, sums);
                    one_tile(left, below, right.first, add, sums.add(2 * SIDE * SIDE));
                }
                (None, Some(beside)) => {
                    one_tile(left, 0, right.first, add, sums);
                    one_tile(left, 0, right.first.add(beside), add, sums.add(SIDE * SIDE));
                }
            }
        }
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn four_tiles(left: Left<'_>, below: usize, right: *const u16, beside: usize, add: bool, sums: *mut f32) {
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{sums} + {line}]",
                    "tileloadd tmm1, [{sums} + {line} + 1024]",
                    "tileloadd tmm2, [{sums} + {line} + 2048]",
                    "tileloadd tmm3, [{sums} + {line} + 3072]",
                    sums = in(reg) sums, line = in(reg) LINE,
                    options(nostack, readonly, preserves_flags),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags)
                );
            }
            let mut right = [right, right.add(beside)];
            for &run in left.runs {
                let above = left.first.wrapping_add(run);
                asm!(
                    "2:",
                    "tileloadd tmm4, [{above} + {stride}]",
                    "tileloadd tmm6, [{right} + {line}]",
                    "tileloadd tmm7, [{beside} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{below} + {stride}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {above}, 64",
                    "add {below}, 64",
                    "add {right}, 1024",
                    "add {beside}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    above = inout(reg) above => _,
                    below = inout(reg) above.wrapping_add(below) => _,
                    stride = in(reg) 2 * left.stride,
                    right = inout(reg) right[0],
                    beside = inout(reg) right[1],
                    line = in(reg) LINE,
                    steps = inout(reg) left.steps => _,
                    options(nostack, readonly),
                );
            }
            asm!(
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 3072], tmm3",
                sums = in(reg) sums, line = in(reg) LINE,
                options(nostack, preserves_flags),
            );
        }
    }

    /// # Safety
    /// As [`multiply`].
    unsafe fn one_tile(left: Left<'_>, below: usize, right: *const u16, add: bool, sums: *mut f32) {
        unsafe {
            if add {
                asm!("tileloadd tmm0, [{} + {}]", in(reg) sums, in(reg) LINE, options(nostack, readonly, preserves_flags));
            } else {
                asm!("tilezero tmm0", options(nostack, nomem, preserves_flags));
            }
            let mut right = right;
            for &run in left.runs {
                asm!(
                    "2:",
                    "tileloadd tmm4, [{left} + {stride}]",
                    "tileloadd tmm6, [{right} + {line}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "add {left}, 64",
                    "add {right}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    left = inout(reg) left.first.wrapping_add(below + run) => _,
                    stride = in(reg) 2 * left.stride,
                    right = inout(reg) right,
                    line = in(reg) LINE,
                    steps = inout(reg) left.steps => _,
                    options(nostack, readonly),
                );
            }
            asm!("tilestored [{} + {}], tmm0", in(reg) sums, in(reg) LINE, options(nostack, preserves_flags));
        }
    }
}

#[cfg(test)]
mod plain {
    use super::{Left, Right, SIDE, Sums, TERMS, TILE};

    fn wide(value: u16) -> f32 {
        f32::from_bits(u32::from(value) << 16)
    }

    /// # Safety
    /// As [`super::Session::multiply`].
    pub(super) unsafe fn multiply(left: Left<'_>, right: Right, add: bool, sums: &mut Sums) {
        for (i, below) in [Some(0), left.second].into_iter().enumerate() {
            for (j, beside) in [Some(0), right.second].into_iter().enumerate() {
                let (Some(below), Some(beside)) = (below, beside) else { continue };
                let sums = &mut sums[(2 * i + j) * SIDE * SIDE..][..SIDE * SIDE];
                if !add {
                    sums.fill(0.0);
                }
                for (at, sum) in sums.iter_mut().enumerate() {
                    let (row, column) = (at / SIDE, at % SIDE);
                    for (run, &from) in left.runs.iter().enumerate() {
                        for k in 0..left.steps * TERMS {
                            let tile = (run * left.steps + k / TERMS) * TILE;
                            let cell = tile + k % TERMS / 2 * 2 * SIDE + 2 * column + k % 2;
                            // SAFETY: the caller's contract.
                            let (a, b) = unsafe {
                                let a = left.first.wrapping_add(below + row * left.stride + from + k);
                                (*a, *right.first.wrapping_add(beside + cell))
                            };
                            *sum += wide(a) * wide(b);
                        }
                    }
                }
            }
        }
    }
}

/// Scratch memory for bf16 values.
pub(crate) struct NarrowScratch(Scratch);

impl NarrowScratch {
    /// Its contents are whatever was there before.
    pub(crate) fn new(len: usize) -> Self {
        Self(Scratch::new(len.div_ceil(2)))
    }

    pub(crate) fn as_ptr(&self) -> *const u16 {
        self.0.as_ptr().cast()
    }

    /// Address for writes.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u16 {
        self.0.as_mut_ptr().cast()
    }

    /// Pairs of values, as tiles of a right factor hold them.
    pub(crate) fn pairs(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

/// The bf16 closest to `value`, of two the even one; a NaN stays one.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

simd_fn! {
    /// `count` rows of `len` values, rounded; they follow each other in the source, and begin `stride` values apart in the target.
    ///
    /// # Safety
    /// All must be valid.
    pub(crate) unsafe fn narrow_rows<S>(from: *const f32, len: usize, count: usize, to: *mut u16, stride: usize) {
        let (len, count) = if stride == len { (len * count, 1) } else { (len, count) };
        for row in 0..count {
            let from = std::slice::from_raw_parts(from.add(row * len), len);
            let to = std::slice::from_raw_parts_mut(to.add(row * stride), len);
            for (to, from) in to.iter_mut().zip(from) {
                *to = narrow(*from);
            }
        }
    }
}

/// Two terms of a sum, rounded, as a cell of a packed tile.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(u32::from(narrow(first)) | u32::from(narrow(second)) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn rounding_is_to_the_nearest_and_keeps_nan() {
        let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        assert_eq!(wide(narrow(1.0)), 1.0);
        assert_eq!(wide(narrow(f32::INFINITY)), f32::INFINITY);
        assert_eq!(wide(narrow(f32::MAX)), f32::INFINITY);
        assert!(wide(narrow(f32::NAN)).is_nan() && wide(narrow(f32::from_bits(0x7f80_0001))).is_nan());
        // Halfway between two values: the even one.
        assert_eq!(wide(narrow(1.0 + 1.0 / 256.0)), 1.0);
        assert_eq!(wide(narrow(1.0 + 3.0 / 256.0)), 1.0 + 4.0 / 256.0);
        for value in random(10_000, 1) {
            assert!((wide(narrow(value)) - value).abs() <= value.abs() / 256.0, "{value}");
        }
    }

    #[test]
    fn every_unit_multiplies_what_the_plain_loops_multiply() {
        let (runs, steps, stride) = ([0, 7, 100], 3, 112);
        let mut left = NarrowScratch::new(2 * SIDE * stride + 100 + steps * TERMS);
        let mut right = NarrowScratch::new(2 * runs.len() * steps * TILE);
        let len = right.0.len();
        for (i, value) in random(2 * left.0.len(), 1).into_iter().enumerate() {
            // SAFETY: within the scratch memory.
            unsafe { *left.as_mut_ptr().add(i) = narrow(value) };
        }
        for (i, cell) in right.pairs().iter_mut().enumerate() {
            *cell = pair(random(1, i as u64)[0], random(1, (i + len) as u64)[0]);
        }
        for (below, beside) in [(true, true), (true, false), (false, true), (false, false)] {
            let left =
                Left { first: left.as_ptr(), stride, second: below.then_some(SIDE * stride), runs: &runs, steps };
            let right = Right { first: right.as_ptr(), second: beside.then_some(runs.len() * steps * TILE) };
            let products = |unit, add| {
                let mut sums = [1.0; 4 * SIDE * SIDE];
                // SAFETY: the scratch memory holds all rows and tiles.
                unsafe { Session::new(unit).multiply(left, right, add, &mut sums) };
                sums
            };
            for unit in Unit::all() {
                for add in [false, true] {
                    let (got, want) = (products(unit, add), products(Unit::Plain, add));
                    assert!(want.iter().any(|&sum| sum != 1.0));
                    let furthest = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(got.iter().all(|sum| sum.is_finite()) && furthest < 1e-4, "{unit:?}: {furthest}");
                }
            }
        }
    }
}
