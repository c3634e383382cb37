//! Weights as tiles of a right factor, `[columns / 16, kernel positions, terms / 32, 16, 16, 2]`, rounded up with zeros.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::matrix_unit::{NarrowScratch, SIDE, TERMS, TILE, Unit, pair_lines, transpose_rows};
use crate::par::{Scratch, Shared, for_each_task};

/// Values of the tiles of one panel.
pub(super) fn panel_len(taps: usize, terms: usize) -> usize {
    taps * terms.div_ceil(TERMS) * TILE
}

/// Panels `range` of output channels, of weights `[outputs, inputs, taps]`, for sums over inputs.
pub(super) fn by_outputs(
    unit: Unit,
    weight: &[f32],
    outputs: usize,
    taps: usize,
    range: Range<usize>,
) -> NarrowScratch {
    let depth = weight.len() / outputs;
    panels(unit, taps, depth / taps, range, |panel, terms, lines| {
        let rows = &weight[panel * PANEL * depth..];
        let (from, to) = (terms.start * taps, terms.end * taps);
        for k in (from..to).step_by(SIDE) {
            // SAFETY: the rows of this panel exist, and hold `depth` values; `lines` has a line for each of `from..to`.
            unsafe {
                let lines = lines.as_mut_ptr().add((k - from) * PANEL);
                let count = PANEL.min(outputs - panel * PANEL);
                transpose_rows(unit, rows.as_ptr().add(k), depth, count, SIDE.min(to - k), lines);
            }
        }
        // The line of input i and kernel position t.
        |i, t| i * taps + t
    })
}

/// Panels `range` of input channels, for sums over outputs, with the kernel reversed.
pub(super) fn by_inputs(unit: Unit, weight: &[f32], outputs: usize, taps: usize, range: Range<usize>) -> NarrowScratch {
    let depth = weight.len() / outputs;
    let inputs = depth / taps;
    panels(unit, taps, outputs, range, |panel, terms, lines| {
        let count = PANEL.min(inputs - panel * PANEL);
        for (i, output) in terms.enumerate() {
            let rows = &weight[output * depth + panel * PANEL * taps..][..count * taps];
            for k in (0..taps).step_by(SIDE) {
                // SAFETY: `rows` holds `taps` values of each input, `lines` a line for each output and kernel position.
                unsafe {
                    let lines = lines.as_mut_ptr().add((i * taps + k) * PANEL);
                    transpose_rows(unit, rows.as_ptr().add(k), taps, count, SIDE.min(taps - k), lines);
                }
            }
        }
        |i, t| i * taps + taps - 1 - t
    })
}

/// Panels made of [`TERMS`] terms at a time: `fill(panel, terms, lines)` writes their lines of sixteen columns, `[terms taps, 16]`, and returns which
/// of them is that of a term (counted from the first of these) and kernel position.
fn panels<L: Fn(usize, usize) -> usize>(
    unit: Unit,
    taps: usize,
    terms: usize,
    range: Range<usize>,
    fill: impl Fn(usize, Range<usize>, &mut [f32]) -> L + Sync + Send,
) -> NarrowScratch {
    const { assert!(PANEL == SIDE) };
    let steps = terms.div_ceil(TERMS);
    let panel_len = panel_len(taps, terms);
    let mut tiles = NarrowScratch::new(range.len() * panel_len);
    let out = Shared::new(tiles.pairs());
    for_each_task(range.len(), |i| {
        // SAFETY: every task has its own panel.
        let tiles = unsafe { out.part(i * panel_len / 2..(i + 1) * panel_len / 2) };
        let mut lines = Scratch::new(TERMS * taps * PANEL);
        let zeros = [0.0f32; PANEL];
        for step in 0..steps {
            let of_step = step * TERMS..terms.min((step + 1) * TERMS);
            let count = of_step.len();
            let line_of = fill(range.start + i, of_step, &mut lines);
            for t in 0..taps {
                let of_tap: [*const f32; TERMS] = std::array::from_fn(|k| {
                    if k < count { lines[line_of(k, t) * PANEL..].as_ptr() } else { zeros.as_ptr() }
                });
                let tile = &mut tiles[(t * steps + step) * TILE / 2..][..TILE / 2];
                // SAFETY: lines have sixteen values, a tile 32 of them.
                unsafe { pair_lines(unit, &of_tap, PANEL, tile.as_mut_ptr()) };
            }
        }
    });
    tiles
}
