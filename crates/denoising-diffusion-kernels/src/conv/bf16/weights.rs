//! Weights as tiles of a right factor, `[columns / 16, kernel positions, inputs / 32, 16, 16, 2]`, rounded up with zeros.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::matrix_unit::{NarrowScratch, SIDE, TERMS, TILE, pair};
use crate::par::{Shared, for_each_task};
use crate::simd::{Isa, simd_fn};

/// Panels of f32, `[columns / 16, taps, inputs, 16]`, as tiles.
pub(super) fn tiles(isa: Isa, panels: &[f32], taps: usize, inputs: usize) -> NarrowScratch {
    const { assert!(PANEL == SIDE) };
    let panel_len = taps * inputs * PANEL;
    let count = panels.len() / panel_len;
    let tiles_len = taps * inputs.div_ceil(TERMS) * TILE;
    let mut tiles = NarrowScratch::new(count * tiles_len);
    let out = Shared::new(tiles.pairs());
    for_each_task(count, |i| {
        // SAFETY: every task has its own panel.
        let tiles = unsafe { out.part(i * tiles_len / 2..(i + 1) * tiles_len / 2) };
        for tap in 0..taps {
            let panel = &panels[i * panel_len + tap * inputs * PANEL..][..inputs * PANEL];
            // SAFETY: the tiles of a kernel position hold all its inputs.
            unsafe { pack(isa, panel, &mut tiles[tap * tiles_len / 2 / taps..][..tiles_len / 2 / taps]) };
        }
    });
    tiles
}

/// Values of the tiles of one panel.
pub(super) fn tiles_len(taps: usize, inputs: usize) -> usize {
    taps * inputs.div_ceil(TERMS) * TILE
}

/// The panels of `range` in a slice of tiles.
pub(super) fn first_of(tiles: &NarrowScratch, range: &Range<usize>, tiles_len: usize) -> *const u16 {
    tiles.as_ptr().wrapping_add(range.start * tiles_len)
}

simd_fn! {
    /// Lines of sixteen columns, as pairs of lines; zeros fill up the last tile.
    ///
    /// # Safety
    /// None beyond the instruction set.
    unsafe fn pack<S>(lines: &[f32], pairs: &mut [f32]) {
        let (of_two, rest) = pairs.split_at_mut(lines.len() / 2 / PANEL * PANEL);
        for (pairs, lines) in of_two.chunks_exact_mut(PANEL).zip(lines.chunks_exact(2 * PANEL)) {
            for (i, cell) in pairs.iter_mut().enumerate() {
                *cell = pair(lines[i], lines[PANEL + i]);
            }
        }
        rest.fill(0.0);
        if lines.len() / PANEL % 2 == 1 {
            for (cell, value) in rest.iter_mut().zip(&lines[lines.len() - PANEL..]) {
                *cell = pair(*value, 0.0);
            }
        }
    }
}
