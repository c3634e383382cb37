//! Convolution with a kernel of one position, step 1 and no padding: one matrix product over all pixels, read in place.
//!
//! The input may come in parts, each `[pixels, channels of the part]`, which count as concatenated along the channels, so that skip connections need
//! no copy. The weight is `[outputs, channels of all parts]`.

use crate::gemm::{AddTo, PANEL, matrix_times_panels};
use crate::simd::Isa;

use super::Epilogue;
use super::output::Output;
use super::pack::{input_panels, output_panels};
use super::patch_grad::{Panel, sum_over_pixels};

/// y = epilogue of x * weight, where x consists of `parts` (values and number of channels of each).
pub(super) fn forward(
    isa: Isa,
    parts: &[(&[f32], usize)],
    weight: &[f32],
    epilogue: Epilogue<'_>,
    outputs: usize,
    y: &mut [f32],
) {
    let inputs = check(parts.iter().map(|part| (part.0.len(), part.1)), y.len(), outputs, weight.len());
    let pack = |panels| output_panels(isa, weight, outputs, 1, panels, |t| t);
    Output::new(y, outputs, epilogue).for_each_block(pack, |block, packed| {
        let mut add_to = block.add_to;
        let mut first = 0;
        for &(x, channels) in parts.iter().filter(|(_, channels)| *channels > 0) {
            let a = x[block.pixels.start * channels..].as_ptr();
            let (b, panel_len, count) = (&packed[first * PANEL..], inputs * PANEL, block.pixels.len());
            // SAFETY: rows and panels are as many as the block has; blocks are disjoint.
            unsafe {
                let (dst, stride) = (block.dst, block.stride);
                matrix_times_panels(isa, a, channels, channels, count, b, panel_len, block.cols, add_to, dst, stride);
            }
            add_to = AddTo::Destination;
            first += channels;
        }
    });
}

/// The gradients of a loss with respect to the parts of the input (values and number of channels of each), from dy.
pub(super) fn input_grads(isa: Isa, dy: &[f32], weight: &[f32], outputs: usize, parts: &mut [(&mut [f32], usize)]) {
    check(parts.iter().map(|part| (part.0.len(), part.1)), dy.len(), outputs, weight.len());
    let mut first = 0;
    for (dx, channels) in parts.iter_mut().filter(|(_, channels)| *channels > 0) {
        let columns = first..first + *channels;
        first = columns.end;
        input_grad(isa, dy, weight, outputs, columns, &Output::new(dx, *channels, Epilogue::default()));
    }
}

/// The gradient with respect to the input channels `columns`, added to what `output` specifies.
pub(super) fn input_grad(
    isa: Isa,
    dy: &[f32],
    weight: &[f32],
    outputs: usize,
    columns: std::ops::Range<usize>,
    output: &Output<'_>,
) {
    let pack = |panels| input_panels(isa, weight, outputs, 1, columns.clone(), panels, |t| t);
    output.for_each_block(pack, |block, packed| {
        let a = dy[block.pixels.start * outputs..].as_ptr();
        let (panel_len, count) = (outputs * PANEL, block.pixels.len());
        let (dst, stride) = (block.dst, block.stride);
        // SAFETY: as in `forward`.
        unsafe {
            matrix_times_panels(
                isa,
                a,
                outputs,
                outputs,
                count,
                packed,
                panel_len,
                block.cols,
                block.add_to,
                dst,
                stride,
            );
        }
    });
}

/// The gradient with respect to the weight, `[outputs, channels of all parts]`, from the parts of the input and dy.
pub(super) fn weight_grad(isa: Isa, parts: &[(&[f32], usize)], dy: &[f32], outputs: usize, dweight: &mut [f32]) {
    let inputs = check(parts.iter().map(|part| (part.0.len(), part.1)), dy.len(), outputs, dweight.len());
    let mut panels = Vec::new();
    let mut first = 0;
    for (part, &(_, channels)) in parts.iter().enumerate() {
        panels.extend(Panel::cover(part, 0, channels, first));
        first += channels;
    }
    let sources: Vec<&[f32]> = parts.iter().map(|part| part.0).collect();
    let offsets = |part: usize, pixels: std::ops::Range<usize>, offsets: &mut [usize]| {
        for (offset, pixel) in offsets.iter_mut().zip(pixels) {
            *offset = pixel * parts[part].1;
        }
    };
    sum_over_pixels(isa, &sources, &panels, offsets, dy, outputs, inputs, dweight);
}

/// Checks that the lengths of the parts, of y and of the weight agree. Returns the number of channels of all parts.
fn check(parts: impl Iterator<Item = (usize, usize)>, y: usize, outputs: usize, weight: usize) -> usize {
    let pixels = y / outputs;
    assert_eq!(y, pixels * outputs, "y has no rows of {outputs}");
    let mut inputs = 0;
    for (part, (len, channels)) in parts.enumerate() {
        assert_eq!(len, pixels * channels, "length of part {part}, of {channels} channels");
        inputs += channels;
    }
    assert_eq!(weight, outputs * inputs, "length of the weight, {outputs} x {inputs}");
    inputs
}
