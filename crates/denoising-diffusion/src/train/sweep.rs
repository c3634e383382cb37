//! Elementwise passes over parameters that live for the whole run: Adam, the moving average, the norm of a gradient. On the CPU they
//! run in place through our kernels; elsewhere, and in tests, as plain tensor operations.

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use denoising_diffusion_kernels::optim::{self, AdamStep};

/// One Adam step on a parameter and its two moments, all flat and of one length.
pub fn adam(step: &AdamStep, tensors: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    let [w, m, v] = tensors;
    match (flex(w), flex(m), flex(v), flex(gradient)) {
        (Ok(mut w), Ok(mut m), Ok(mut v), Ok(g)) => {
            let g = g.to_contiguous();
            optim::adam_step(step, w.storage_mut(), g.storage(), m.storage_mut(), v.storage_mut());
            [w, m, v].map(Tensor::from_primitive::<Flex>)
        }
        (w, m, v, g) => adam_plain(step, [w, m, v].map(unflex), unflex(g)),
    }
}

/// [`adam`] in plain tensor operations.
pub fn adam_plain(step: &AdamStep, [w, m, v]: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    let g = gradient * step.grad_scale;
    let m = m * step.beta1 + g.clone() * (1.0 - step.beta1);
    let v = v * step.beta2 + g.square() * (1.0 - step.beta2);
    let (c1, c2) = (1.0 - step.beta1.powi(step.step as i32), 1.0 - step.beta2.powi(step.step as i32));
    let w = w - m.clone() * (step.lr / c1) / ((v.clone() / c2).sqrt() + step.eps);
    [w, m, v]
}

/// `average + weight (w - average)`, flat tensors of one length.
pub fn lerp(average: Tensor<1>, w: Tensor<1>, weight: f64) -> Tensor<1> {
    match (flex(average), flex(w)) {
        (Ok(mut average), Ok(w)) => {
            let w = w.to_contiguous();
            optim::lerp(average.storage_mut(), w.storage(), weight);
            Tensor::from_primitive::<Flex>(average)
        }
        (average, w) => {
            let average = unflex(average);
            average.clone() + (unflex(w) - average) * weight
        }
    }
}

/// The sum of squares; infinite or NaN if, and only if, a value is or the sum in f64 overflows.
pub fn squared_norm(gradient: &Tensor<1>) -> f64 {
    match flex(gradient.clone()) {
        Ok(g) => optim::squared_norm(g.to_contiguous().storage()),
        Err(g) => f64::from(g.square().sum().into_scalar::<f32>()),
    }
}

/// The tensor as the CPU backend's own, contiguous and starting at its storage's beginning; or back unchanged.
fn flex(tensor: Tensor<1>) -> Result<FlexTensor, Tensor<1>> {
    match tensor.clone().try_into_primitive::<Flex>() {
        Ok(primitive) => {
            drop(tensor); // the only other owner, so that a write happens in place
            let whole =
                primitive.is_contiguous() && primitive.storage::<f32>().len() == primitive.layout().num_elements();
            Ok(if whole { primitive } else { primitive.to_contiguous() })
        }
        Err(_) => Err(tensor),
    }
}

fn unflex(tensor: Result<FlexTensor, Tensor<1>>) -> Tensor<1> {
    tensor.map_or_else(|tensor| tensor, Tensor::from_primitive::<Flex>)
}
