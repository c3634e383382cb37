//! From the device's memory to registers, and from there to shared memory: what a step multiplies. A sum's terms are numbered tap by tap, and for each
//! tap channel by channel; a vector has those of one tap.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::super::factors::{Along, VECTORS, in_long_rows, in_short_rows, pitch};
use super::{Corner, Of, Plan, Sizes};

/// Bits of a mask of taps.
const BITS: usize = 32;
/// Masks of a unit's row.
const MASKS: usize = 2;
/// The largest number of taps.
pub(super) const MOST_TAPS: usize = MASKS * BITS;

/// How many masks a row needs.
fn masks(plan: Plan) -> usize {
    plan.taps().div_ceil(BITS)
}

/// For each of a unit's rows, which taps see a pixel, one bit each: first all rows' first masks, then their second.
#[cube]
pub(super) fn seen_by_taps(corner: &Corner, sizes: &Sizes, #[comptime] plan: Plan) -> Array<u32> {
    let count = comptime!(plan.images_per_unit());
    let mut seen = Array::<u32>::new(comptime!(count * masks(plan)));
    let height = sizes.height as usize;
    let width = sizes.width as usize;
    let top = comptime!(plan.kernel_height / 2);
    let left = comptime!(plan.kernel_width / 2);
    #[unroll]
    for i in 0..count {
        let position = corner.position + UNIT_POS as usize / VECTORS + comptime!(i * plan.block.units() / VECTORS);
        let y = position / width % height;
        let x = position % width;
        #[unroll]
        for word in 0..comptime!(masks(plan)) {
            let mut mask = 0u32;
            #[unroll]
            for bit in 0..comptime!(BITS.min(plan.taps() - word * BITS)) {
                let tap = comptime!(word * BITS + bit);
                let (ky, kx) = comptime!((tap / plan.kernel_width, tap % plan.kernel_width));
                // Counted from the first row and column of the padding.
                let is_row = y + ky >= top && y + ky < top + height;
                let is_pixel = is_row && x + kx >= left && x + kx < left + width;
                mask |= u32::cast_from(is_pixel) << comptime!(bit as u32);
            }
            seen[comptime!(word * count + i)] = select(position < sizes.positions as usize, mask, 0u32);
        }
    }
    seen
}

/// The tap and the channel of the term with this number; after the last term, a tap that the kernel does not have.
#[cube]
fn term(number: usize, sizes: &Sizes) -> (usize, usize) {
    let (tap, channel) = sizes.summed.div_mod(number as u32);
    (tap as usize, channel as usize)
}

/// Loads the pixels that terms from `first` on see, some vectors per unit; zeros outside.
#[cube]
pub(super) fn load_images<F: Float, A: Size>(
    images: &[Vector<F, A>],
    block: &mut Array<Vector<F, A>>,
    seen: &Array<u32>,
    corner: &Corner,
    first: usize,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let unit = UNIT_POS as usize;
    let count = comptime!(plan.images_per_unit());
    let (tap, channel) = term(first + unit % VECTORS * comptime!(plan.width()), sizes);
    let shift = tap / plan.kernel_width * sizes.width as usize + tap % plan.kernel_width;
    let center = comptime!(plan.kernel_height / 2) * sizes.width as usize + comptime!(plan.kernel_width / 2);
    // For pixels before the first, that wraps around, and they are not seen.
    let position = corner.position + unit / VECTORS + shift - center;
    let bit = (tap % BITS) as u32;
    #[unroll]
    for i in 0..count {
        let mut mask = seen[i];
        if comptime!(masks(plan) > 1) {
            mask = select(tap >= BITS, seen[comptime!(count + i)], mask);
        }
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if tap < comptime!(plan.taps()) && mask >> bit & 1 == 1 {
            let position = position + comptime!(i * plan.block.units() / VECTORS);
            value = images[position * sizes.images as usize + channel / comptime!(plan.width())];
        }
        block[i] = value;
    }
}

/// Loads the weights of these terms, in rows of a result's terms for [`Of::X`], of the results' channels for [`Of::Dy`].
#[cube]
pub(super) fn load_weights<F: Float, A: Size>(
    weights: &[Vector<F, A>],
    block: &mut Array<Vector<F, A>>,
    corner: &Corner,
    first: usize,
    sizes: &Sizes,
    #[comptime] plan: Plan,
) {
    let taps = comptime!(plan.taps());
    let units = comptime!(plan.block.units());
    let per_row = comptime!(match plan.of {
        Of::X => VECTORS,
        Of::Dy => plan.block.columns / plan.width(),
    });
    #[unroll]
    for i in 0..comptime!(plan.weights_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        let (row, column) = (at / per_row, at % per_row * comptime!(plan.width()));
        // A row of the weight belongs to an output of the convolution and a tap, and has the inputs.
        let (result, tap, output, input) = match comptime!(plan.of) {
            Of::X => {
                let (tap, input) = term(first + column, sizes);
                let output = corner.channel + row;
                (output, tap, output, input)
            }
            Of::Dy => {
                let (tap, output) = term(first + row, sizes);
                let input = corner.channel + column;
                (input, tap, output, input)
            }
        };
        let mut value = Vector::<F, A>::cast_from(0.0f32);
        if result < sizes.channels as usize && tap < taps {
            let of_weight = match comptime!(plan.of) {
                Of::X => tap,
                Of::Dy => taps - 1 - tap,
            };
            value = weights[(output * taps + of_weight) * sizes.weights as usize + input / comptime!(plan.width())];
        }
        block[i] = value;
    }
}

/// Writes a step's vectors to the half of shared memory that begins at `half`.
#[cube]
pub(super) fn share<F: Float, G: Float, A: Size>(
    of_images: &Array<Vector<F, A>>,
    of_weights: &Array<Vector<F, A>>,
    shared: &mut [Vector<G, A>],
    half: usize,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.block.units());
    #[unroll]
    for i in 0..comptime!(plan.images_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        shared[half + in_short_rows(at / VECTORS, at % VECTORS)] = Vector::cast_from(of_images[i]);
    }
    let first = half + comptime!(plan.block.rows * VECTORS);
    #[unroll]
    for i in 0..comptime!(plan.weights_per_unit()) {
        let at = i * units + UNIT_POS as usize;
        let place = match comptime!(plan.weights()) {
            Along::Sum => in_short_rows(at / VECTORS, at % VECTORS),
            Along::Results => {
                let per_row = comptime!(plan.block.columns / plan.width());
                let pitch = comptime!(pitch(plan.values, plan.block.columns));
                in_long_rows(at / per_row, at % per_row, pitch, plan.values)
            }
        };
        shared[first + place] = Vector::cast_from(of_weights[i]);
    }
}
