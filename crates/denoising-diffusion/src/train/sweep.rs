//! Passes over parameters that live for the whole run: Adam, forced norms, the moving average, the norms of gradients. On the CPU and on GPUs they
//! run in place through our kernels; elsewhere, and in tests, as plain tensor operations. On GPUs the host can submit all of them without waiting
//! for any.

#[cfg(all(feature = "cube", not(feature = "fusion")))]
use burn::backend::Cube;
use burn::backend::Flex;
use burn::tensor::{FloatDType, Tensor};
use burn_flex::FlexTensor;
use denoising_diffusion_kernels::norm::{UnitRows, unit_rows_in_place};
use denoising_diffusion_kernels::optim::{self, AdamStep};

use crate::nn::ops;
#[cfg(all(feature = "cube", not(feature = "fusion")))]
use crate::nn::ops::cube;
use crate::nn::params::host_values;

/// The clipping factor of a step's gradients.
#[cfg_attr(feature = "cube", allow(clippy::large_enum_variant, reason = "one per step, never in a list"))]
#[derive(Clone, Debug)]
pub enum Clip {
    /// The factor. All gradients are finite.
    Known(f64),
    /// The device holds the factor, and whether the step must change nothing because gradients or loss are not finite.
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    OnDevice(cube::Clip),
}

/// The losses and gradient norms of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub losses: Vec<f64>,
    /// For each gradient, the sum of its squares; infinite or NaN if one of its values is.
    pub squared_norms: Vec<f64>,
    /// The clipping factor; `None` if something is not finite, so that the step must change nothing.
    pub grad_scale: Option<f64>,
}

/// A pending query for losses and gradient norms.
#[cfg_attr(feature = "cube", allow(clippy::large_enum_variant, reason = "one per step, never in a list"))]
#[derive(Clone, Debug)]
pub enum Question {
    Answered(Found),
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    OnDevice(cube::Clipping),
}

impl Question {
    /// Starts reading the device's result.
    pub fn read(&self) -> Finding {
        match self {
            Self::Answered(found) => Finding::Done(found.clone()),
            #[cfg(all(feature = "cube", not(feature = "fusion")))]
            Self::OnDevice(clipping) => Finding::OnDevice(clipping.clip(), clipping.read()),
        }
    }
}

/// [`Found`], or its pending computation.
#[cfg_attr(feature = "cube", allow(clippy::large_enum_variant, reason = "one per step, never in a list"))]
#[derive(Debug)]
pub enum Finding {
    Done(Found),
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    OnDevice(cube::Clip, cube::Reading),
}

impl Finding {
    /// The clipping factor on the device, if it is computed there.
    pub fn clip(&self) -> Option<Clip> {
        match self {
            Self::Done(_) => None,
            #[cfg(all(feature = "cube", not(feature = "fusion")))]
            Self::OnDevice(clip, _) => Some(Clip::OnDevice(clip.clone())),
        }
    }

    /// Waits for the result.
    pub fn wait(self) -> Found {
        match self {
            Self::Done(found) => found,
            #[cfg(all(feature = "cube", not(feature = "fusion")))]
            Self::OnDevice(_, reading) => {
                let (losses, squared_norms, grad_scale) = reading.wait();
                Found { losses, squared_norms, grad_scale }
            }
        }
    }
}

/// Added to the norm before dividing by it, as in PyTorch's `clip_grad_norm_`.
const EPS: f64 = 1e-6;

/// The factor that clips gradients of this norm: `max_norm / (norm + 1e-6)`, at most 1.
pub fn grad_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + EPS)).min(1.0)
}

/// Requests the losses (one value each), the norm of all gradients, and the factor that clips it to `max_norm`.
pub fn ask(gradients: &[Tensor<1>], losses: Vec<Tensor<1>>, max_norm: f64) -> Question {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if gradients.iter().chain(&losses).all(on_cube)
        && let Some(clipping) = cube::clip(gradients, &losses, max_norm, EPS)
    {
        return Question::OnDevice(clipping);
    }
    let squared_norms = squared_norms(gradients);
    let losses: Vec<f64> = losses.into_iter().map(|loss| f64::from(loss.into_scalar::<f32>())).collect();
    let finite = losses.iter().chain(&squared_norms).all(|value| value.is_finite());
    let grad_scale = finite.then(|| grad_scale(squared_norms.iter().sum::<f64>().sqrt(), max_norm));
    Question::Answered(Found { losses, squared_norms, grad_scale })
}

/// One Adam step on parameters, each given as weights, both moments and gradient, flat and of equal length; returns the first three after the step,
/// or unchanged if the device finds that the step must change nothing. `clip` overrides the factor in `step`.
pub fn adam(step: &AdamStep, clip: &Clip, all: Vec<([Tensor<1>; 3], Tensor<1>)>) -> Vec<[Tensor<1>; 3]> {
    let step = match clip {
        Clip::Known(grad_scale) => &AdamStep { grad_scale: *grad_scale, ..*step },
        #[cfg(all(feature = "cube", not(feature = "fusion")))]
        Clip::OnDevice(clip) => return cube::adam(step, Some(clip), all),
    };
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if all.iter().all(|(_, gradient)| on_cube(gradient)) {
        return cube::adam(step, None, all);
    }
    all.into_iter().map(|(tensors, gradient)| adam_one(step, tensors, gradient)).collect()
}

fn adam_one(step: &AdamStep, tensors: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    if !on_cpu(&gradient) {
        return adam_plain(step, tensors, gradient);
    }
    let ([mut w, mut m, mut v], gradient) = (tensors.map(flex), flex(gradient.cast(FloatDType::F32)));
    optim::adam_step(step, w.storage_mut(), gradient.storage(), m.storage_mut(), v.storage_mut());
    [w, m, v].map(Tensor::from_primitive::<Flex>)
}

/// [`adam_one`] in plain tensor operations.
fn adam_plain(step: &AdamStep, [w, m, v]: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    let g = gradient.cast(FloatDType::F32) * step.grad_scale;
    let m = m * step.beta1 + g.clone() * (1.0 - step.beta1);
    let v = v * step.beta2 + g.square() * (1.0 - step.beta2);
    let (c1, c2) = (1.0 - step.beta1.powf(step.step as f64), 1.0 - step.beta2.powf(step.step as f64));
    let w = w * step.kept() - m.clone() * (step.lr / c1) / ((v.clone() / c2).sqrt() + step.eps);
    [w, m, v]
}

/// `average + weight (w - average)` for each `[average, w]`, flat and of equal length; `w` itself at a weight of 1; `average` if the device finds
/// that the step must change nothing.
pub fn lerp(all: Vec<[Tensor<1>; 2]>, weight: f64, clip: &Clip) -> Vec<Tensor<1>> {
    match clip {
        Clip::Known(_) => {}
        #[cfg(all(feature = "cube", not(feature = "fusion")))]
        Clip::OnDevice(clip) => return cube::lerp(all, weight, Some(clip)),
    }
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if all.iter().all(|[average, _]| on_cube(average)) {
        return cube::lerp(all, weight, None);
    }
    all.into_iter().map(|[average, w]| lerp_one(average, w, weight)).collect()
}

/// Flat weights with the given number of rows each, every row scaled to a root mean square of 1 (its norm counting as at least `floor`); unchanged
/// if the device finds that the step must change nothing.
pub fn unit_rows(all: Vec<(Tensor<1>, usize)>, floor: f64, clip: &Clip) -> Vec<Tensor<1>> {
    match clip {
        Clip::Known(_) => {}
        #[cfg(all(feature = "cube", not(feature = "fusion")))]
        Clip::OnDevice(clip) => return cube::force_unit_rows(all, floor, clip),
    }
    all.into_iter().map(|(tensor, rows)| unit_rows_one(tensor, rows, floor)).collect()
}

fn unit_rows_one(tensor: Tensor<1>, rows: usize, floor: f64) -> Tensor<1> {
    let [size] = tensor.dims();
    let len = size / rows;
    let factor = (len as f64).sqrt();
    if !on_cpu(&tensor) {
        return ops::unit_rows(tensor.reshape([rows, len]), factor, floor).reshape([size]);
    }
    let mut tensor = flex(tensor);
    unit_rows_in_place(&UnitRows { len, factor: factor as f32, floor: floor as f32 }, tensor.storage_mut());
    Tensor::from_primitive::<Flex>(tensor)
}

fn lerp_one(average: Tensor<1>, w: Tensor<1>, weight: f64) -> Tensor<1> {
    if !on_cpu(&average) {
        return lerp_plain(average, w, weight);
    }
    let (mut average, w) = (flex(average), flex(w));
    match weight {
        1.0 => average.storage_mut::<f32>().copy_from_slice(w.storage()),
        _ => optim::lerp(average.storage_mut(), w.storage(), weight),
    }
    Tensor::from_primitive::<Flex>(average)
}

/// [`lerp_one`] in plain tensor operations.
fn lerp_plain(average: Tensor<1>, w: Tensor<1>, weight: f64) -> Tensor<1> {
    match weight {
        // In separate storage.
        1.0 => average.slice_assign(0..w.dims()[0], w),
        _ => average.clone() + (w - average) * weight,
    }
}

/// The sum of squares of each gradient.
fn squared_norms(gradients: &[Tensor<1>]) -> Vec<f64> {
    if !gradients.iter().all(on_cpu) {
        return squared_norms_plain(gradients);
    }
    let values = |gradient: &Tensor<1>| flex(gradient.clone().cast(FloatDType::F32));
    gradients.iter().map(|gradient| optim::squared_norm(values(gradient).storage())).collect()
}

/// [`squared_norms`] in plain tensor operations; the device is waited for once.
fn squared_norms_plain(gradients: &[Tensor<1>]) -> Vec<f64> {
    let sum = |gradient: &Tensor<1>| gradient.clone().cast(FloatDType::F32).square().sum();
    host_values(Tensor::cat(gradients.iter().map(sum).collect(), 0)).into_iter().map(f64::from).collect()
}

/// Changes whenever a sweep on a GPU could not write in place, so that a tensor has moved.
pub fn moves() -> u64 {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    return cube::moves();
    #[cfg(not(all(feature = "cube", not(feature = "fusion"))))]
    0
}

fn on_cpu(tensor: &Tensor<1>) -> bool {
    tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// Whether our GPU kernels can use the tensor.
#[cfg(all(feature = "cube", not(feature = "fusion")))]
fn on_cube(tensor: &Tensor<1>) -> bool {
    tensor.clone().try_into_primitive::<Cube>().is_ok()
}

/// The tensor as the CPU backend's own, with storage that holds exactly its values. If this is the only reference, nothing is copied, so that writes
/// happen in place.
fn flex(tensor: Tensor<1>) -> FlexTensor {
    let primitive = tensor.try_into_primitive::<Flex>().expect("asked before whether it is on the CPU");
    let whole = primitive.is_contiguous() && primitive.storage::<f32>().len() == primitive.layout().num_elements();
    if whole { primitive } else { primitive.to_contiguous() }
}

#[cfg(test)]
mod tests;
