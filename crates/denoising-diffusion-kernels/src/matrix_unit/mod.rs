//! Products of bf16 matrices, with sums in f32, on a processor's matrix unit (Intel's AMX, on Linux).
//!
//! The unit has eight registers of 16 rows of 64 bytes. [`Session::multiply`] uses four for sums and four for factors. The left factor is read in
//! place, its rows any distance apart; the right one is packed, one kilobyte per register ([`pair_lines`]). A plain version of the same products
//! exists for tests on machines without a matrix unit.
//!
//! Not here: what is multiplied, and threads.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod layout;
mod matrix;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

#[cfg(test)]
pub(crate) use layout::narrow;
pub(crate) use layout::{NarrowScratch, narrow_rows, pair_lines, transpose_lines, transpose_rows};
pub(crate) use matrix::{LONGEST_LINE, ROWS, Rows, Terms, Tiles};

/// Rows of a tile of the left factor, and columns of one of the right factor.
pub(crate) const SIDE: usize = 16;
/// Terms of a sum that a tile holds: values in a row of the left factor.
pub(crate) const TERMS: usize = 32;
/// bf16 values of a packed tile of the right factor, `[TERMS / 2, SIDE, 2]`.
pub(crate) const TILE: usize = TERMS * SIDE;
/// Sums of two tiles of rows with two of columns: four tiles of `[SIDE, SIDE]`, the columns' index running faster.
pub(crate) type Sums = [f32; 4 * SIDE * SIDE];

/// Where sums are: two tiles of rows by two of columns, each of [`SIDE`] rows `stride` values apart.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) first: *mut f32,
    pub(crate) stride: usize,
    /// Values from a tile to that of the next rows.
    pub(crate) below: usize,
    /// Values from a tile to that of the next columns.
    pub(crate) beside: usize,
}

impl Target {
    pub(crate) fn of(sums: &mut Sums) -> Self {
        Self { first: sums.as_mut_ptr(), stride: SIDE, below: 2 * SIDE * SIDE, beside: SIDE * SIDE }
    }

    /// A part of a matrix whose rows are `stride` values apart.
    pub(crate) fn within(first: *mut f32, stride: usize) -> Self {
        Self { first, stride, below: SIDE * stride, beside: SIDE }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Loops in Rust, for tests.
    #[cfg_attr(not(test), allow(dead_code, reason = "never chosen outside of tests"))]
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

/// Whether this machine multiplies matrices of bf16 on a unit for that (Intel's AMX, on Linux).
pub fn multiplies_bf16() -> bool {
    Unit::detect().is_some()
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
    /// The factors must be readable as described, whole tiles of them, and the sums writable by nobody else.
    pub(crate) unsafe fn multiply(&self, left: Left<'_>, right: Right, add: bool, sums: Target) {
        debug_assert!(left.steps > 0);
        match self.unit {
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

mod plain {
    use super::{Left, Right, SIDE, TERMS, TILE, Target};

    fn wide(value: u16) -> f32 {
        f32::from_bits(u32::from(value) << 16)
    }

    /// # Safety
    /// As [`super::Session::multiply`].
    pub(super) unsafe fn multiply(left: Left<'_>, right: Right, add: bool, sums: Target) {
        for (i, below) in [Some(0), left.second].into_iter().enumerate() {
            for (j, beside) in [Some(0), right.second].into_iter().enumerate() {
                let (Some(below), Some(beside)) = (below, beside) else { continue };
                let tile = sums.first.wrapping_add(i * sums.below + j * sums.beside);
                for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
                    let at = tile.wrapping_add(row * sums.stride + column);
                    // SAFETY: the caller's contract.
                    let mut sum = if add { unsafe { *at } } else { 0.0 };
                    for (run, &from) in left.runs.iter().enumerate() {
                        for k in 0..left.steps * TERMS {
                            let tile = (run * left.steps + k / TERMS) * TILE;
                            let cell = tile + k % TERMS / 2 * 2 * SIDE + 2 * column + k % 2;
                            // SAFETY: the caller's contract.
                            let (a, b) = unsafe {
                                let a = left.first.wrapping_add(below + row * left.stride + from + k);
                                (*a, *right.first.wrapping_add(beside + cell))
                            };
                            sum += wide(a) * wide(b);
                        }
                    }
                    // SAFETY: the caller's contract.
                    unsafe { *at = sum };
                }
            }
        }
    }
}
