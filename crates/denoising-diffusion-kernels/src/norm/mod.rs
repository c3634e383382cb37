//! RMS normalisation over channels (here) and layer normalisation ([`layer_norm_forward`]), each fused with the operations that follow: scale and
//! shift, SiLU, a residual. Also normalisation without learned parameters ([`UnitRows`]), and gates of branches ([`gated_add_forward`],
//! [`gated_silu_forward`]). All with their gradients.
//!
//! For every position, with c channels:
//!
//! z = x / max(|x|_2, 1e-12) sqrt(c) g, u = z (1 + scale) + shift, y = activation(u) + residual
//!
//! (Zhang & Sennrich 2019, with the norm clamped instead of an epsilon under the root; scale and shift as in the adaptive group normalisation of
//! Dhariwal & Nichol 2021). Nothing is saved: the backward pass computes z and u again from x. The gradient of the residual is dy itself and is not
//! computed. A sum of squares beyond f32 (|x| above 1e19) is not treated specially.

mod gate;
mod layer;
#[cfg(test)]
mod layer_tests;
mod parts;
mod rows;
mod sums;
#[cfg(test)]
mod tests;
mod unit;

pub use gate::{gated_add_backward, gated_add_forward, gated_silu_backward, gated_silu_forward};
pub use layer::{layer_norm_backward, layer_norm_forward};
pub use unit::{UnitRows, unit_rows_backward, unit_rows_forward, unit_rows_in_place};

use crate::activation::Activation;
use crate::par::{ELEMENTS_PER_TASK, Scratch, Shared};
use crate::simd::Isa;
use parts::{for_each_part, tasks};
use sums::sum_rows;

/// Sizes of a normalised activation `[batch, positions, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RmsNormShape {
    /// Images.
    pub batch: usize,
    /// Height times width.
    pub positions: usize,
    /// The size of the dimension that is normalised over.
    pub channels: usize,
}

impl RmsNormShape {
    /// Values of the activation.
    pub fn len(&self) -> usize {
        self.batch * self.positions * self.channels
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of positions per task, which are always of one image.
    fn rows_per_task(&self) -> usize {
        (ELEMENTS_PER_TASK / self.channels.max(1)).clamp(1, self.positions.max(1))
    }

    fn check(&self, x: usize, g: usize, scale_shift: Option<usize>, y: usize) {
        assert_eq!(x, self.len(), "length of x of {self:?}");
        assert_eq!(y, self.len(), "length of y of {self:?}");
        assert_eq!(g, self.channels, "length of g of {self:?}");
        if let Some(len) = scale_shift {
            assert_eq!(len, self.batch * 2 * self.channels, "length of scale_shift of {self:?}");
        }
    }
}

/// Gradients that [`rms_norm_backward`] fills; lengths as in the forward pass.
#[derive(Debug)]
pub struct RmsNormGrads<'a> {
    /// `[batch, positions, channels]`
    pub x: &'a mut [f32],
    /// `[channels]`
    pub g: &'a mut [f32],
    /// `[batch, 2 channels]`, present if and only if the forward pass had scale and shift.
    pub scale_shift: Option<&'a mut [f32]>,
}

/// y = activation(norm(x) g (1 + scale) + shift) + residual.
///
/// `x`, `residual` and `y` are `[batch, positions, channels]`, `g` is `[channels]`, `scale_shift` is `[batch, 2 channels]`, each row scale before
/// shift; without it, scale and shift are 0. Without a residual, nothing is added.
pub fn rms_norm_forward(
    shape: &RmsNormShape,
    x: &[f32],
    g: &[f32],
    scale_shift: Option<&[f32]>,
    activation: Activation,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    forward_with(Isa::detect(), shape, x, g, scale_shift, activation, residual, y);
}

/// The gradients of [`rms_norm_forward`] from `dy` (`[batch, positions, channels]`) and its inputs.
pub fn rms_norm_backward(
    shape: &RmsNormShape,
    x: &[f32],
    g: &[f32],
    scale_shift: Option<&[f32]>,
    activation: Activation,
    dy: &[f32],
    grads: RmsNormGrads<'_>,
) {
    backward_with(Isa::detect(), shape, x, g, scale_shift, activation, dy, grads);
}

#[allow(clippy::too_many_arguments, reason = "the public function's, and the instruction set")]
fn forward_with(
    isa: Isa,
    shape: &RmsNormShape,
    x: &[f32],
    g: &[f32],
    scale_shift: Option<&[f32]>,
    activation: Activation,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    shape.check(x.len(), g.len(), scale_shift.map(<[f32]>::len), y.len());
    assert!(residual.is_none_or(|r| r.len() == x.len()), "length of the residual of {shape:?}");
    if shape.is_empty() {
        return;
    }
    let affine = Affine::new(shape, g, scale_shift);
    let out = Shared::new(y);
    for_each_part(shape, |image, range, _| {
        let (gain, shift) = affine.of(image);
        // SAFETY: ranges of different tasks are disjoint.
        unsafe {
            let residual = residual.map(|r| &r[range.clone()]);
            rows::forward(isa, &x[range.clone()], gain, shift, activation, residual, out.part(range));
        }
    });
}

#[allow(clippy::too_many_arguments, reason = "the public function's, and the instruction set")]
fn backward_with(
    isa: Isa,
    shape: &RmsNormShape,
    x: &[f32],
    g: &[f32],
    scale_shift: Option<&[f32]>,
    activation: Activation,
    dy: &[f32],
    grads: RmsNormGrads<'_>,
) {
    shape.check(x.len(), g.len(), scale_shift.map(<[f32]>::len), grads.x.len());
    shape.check(dy.len(), grads.g.len(), grads.scale_shift.as_ref().map(|d| d.len()), grads.x.len());
    assert_eq!(scale_shift.is_some(), grads.scale_shift.is_some(), "scale_shift and its gradient go together");
    if shape.is_empty() {
        grads.g.fill(0.0);
        grads.scale_shift.into_iter().for_each(|d| d.fill(0.0));
        return;
    }
    let affine = Affine::new(shape, g, scale_shift);
    let c = shape.channels;
    // [batch, tasks per image, 2, channels]: per task, the sums over its positions of du and of du x / |x|.
    let mut sums = Scratch::zeroed(tasks(shape) * 2 * c);
    let (dx, out) = (Shared::new(grads.x), Shared::new(&mut sums));
    for_each_part(shape, |image, range, task| {
        let (gain, shift) = affine.of(image);
        // SAFETY: ranges of different tasks are disjoint.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * 2 * c..(task + 1) * 2 * c));
            let (x, dy) = (&x[range.clone()], &dy[range]);
            sum_rows(x.len(), c, sums, |part, sums| {
                rows::backward(isa, &x[part.clone()], &dy[part.clone()], gain, shift, activation, &mut dx[part], sums);
            });
        }
    });
    reduce(shape, &sums, g, scale_shift, grads.g, grads.scale_shift);
}

/// From the tasks' sums, with A the sum of du and B that of du x / |x| over an image's positions: dshift = A,
/// dscale = B g sqrt(c), dg = sum over the batch of B (1 + scale) sqrt(c).
fn reduce(
    shape: &RmsNormShape,
    sums: &[f32],
    g: &[f32],
    scale_shift: Option<&[f32]>,
    dg: &mut [f32],
    mut dscale_shift: Option<&mut [f32]>,
) {
    let c = shape.channels;
    let root = (c as f64).sqrt();
    let mut total = vec![0.0f64; c];
    for (image, sums) in sums.chunks_exact(sums.len() / shape.batch).enumerate() {
        let mut image_sums = vec![0.0f64; 2 * c];
        for task in sums.chunks_exact(2 * c) {
            for (sum, &part) in image_sums.iter_mut().zip(task) {
                *sum += f64::from(part);
            }
        }
        let (a, b) = image_sums.split_at(c);
        let row = image * 2 * c;
        for k in 0..c {
            let scale = scale_shift.map_or(0.0, |s| f64::from(s[row + k]));
            total[k] += b[k] * (1.0 + scale);
        }
        if let Some(d) = dscale_shift.as_deref_mut() {
            for k in 0..c {
                d[row + k] = (b[k] * root * f64::from(g[k])) as f32;
                d[row + c + k] = a[k] as f32;
            }
        }
    }
    for (dg, total) in dg.iter_mut().zip(total) {
        *dg = (total * root) as f32;
    }
}

/// u = x / |x| gain + shift, with gain = sqrt(c) g (1 + scale), for every image, or for all images if there is no scale and shift.
struct Affine {
    /// `[images, 2, channels]`: gain, shift.
    values: Scratch,
    channels: usize,
}

impl Affine {
    fn new(shape: &RmsNormShape, g: &[f32], scale_shift: Option<&[f32]>) -> Self {
        let c = shape.channels;
        let root = (c as f32).sqrt();
        let images = if scale_shift.is_some() { shape.batch } else { 1 };
        let mut values = Scratch::zeroed(images * 2 * c);
        for (image, row) in values.chunks_exact_mut(2 * c).enumerate() {
            let (gain, shift) = row.split_at_mut(c);
            for k in 0..c {
                gain[k] = root * g[k];
            }
            if let Some(scale_shift) = scale_shift {
                let (scale, given) = scale_shift[image * 2 * c..][..2 * c].split_at(c);
                for k in 0..c {
                    gain[k] *= 1.0 + scale[k];
                }
                shift.copy_from_slice(given);
            }
        }
        Self { values, channels: c }
    }

    fn of(&self, image: usize) -> (&[f32], &[f32]) {
        let c = self.channels;
        let image = if self.values.len() == 2 * c { 0 } else { image };
        self.values[image * 2 * c..][..2 * c].split_at(c)
    }
}
