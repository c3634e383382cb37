//! Elementwise passes over parameters that live for the whole run: Adam, the moving average, the norms of gradients. On the CPU and on GPUs they
//! run in place through our kernels; elsewhere, and in tests, as plain tensor operations.

#[cfg(feature = "cube")]
use burn::backend::Cube;
use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use denoising_diffusion_kernels::optim::{self, AdamStep};

#[cfg(feature = "cube")]
use crate::nn::ops::cube;

/// One Adam step on a parameter and its two moments, all flat and of one length.
pub fn adam(step: &AdamStep, tensors: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    #[cfg(feature = "cube")]
    if on_cube(&gradient) {
        return cube::adam(step, tensors, gradient);
    }
    if !on_cpu(&gradient) {
        return adam_plain(step, tensors, gradient);
    }
    let ([mut w, mut m, mut v], gradient) = (tensors.map(flex), flex(gradient));
    optim::adam_step(step, w.storage_mut(), gradient.storage(), m.storage_mut(), v.storage_mut());
    [w, m, v].map(Tensor::from_primitive::<Flex>)
}

/// [`adam`] in plain tensor operations.
fn adam_plain(step: &AdamStep, [w, m, v]: [Tensor<1>; 3], gradient: Tensor<1>) -> [Tensor<1>; 3] {
    let g = gradient * step.grad_scale;
    let m = m * step.beta1 + g.clone() * (1.0 - step.beta1);
    let v = v * step.beta2 + g.square() * (1.0 - step.beta2);
    let (c1, c2) = (1.0 - step.beta1.powf(step.step as f64), 1.0 - step.beta2.powf(step.step as f64));
    let w = w - m.clone() * (step.lr / c1) / ((v.clone() / c2).sqrt() + step.eps);
    [w, m, v]
}

/// `average + weight (w - average)`, flat tensors of one length.
pub fn lerp(average: Tensor<1>, w: Tensor<1>, weight: f64) -> Tensor<1> {
    #[cfg(feature = "cube")]
    if on_cube(&average) {
        return cube::lerp(average, w, weight);
    }
    if !on_cpu(&average) {
        return lerp_plain(average, w, weight);
    }
    let (mut average, w) = (flex(average), flex(w));
    optim::lerp(average.storage_mut(), w.storage(), weight);
    Tensor::from_primitive::<Flex>(average)
}

/// [`lerp`] in plain tensor operations.
fn lerp_plain(average: Tensor<1>, w: Tensor<1>, weight: f64) -> Tensor<1> {
    average.clone() + (w - average) * weight
}

/// The sum of squares of each gradient; infinite or NaN if a value is.
pub fn squared_norms(gradients: &[&Tensor<1>]) -> Vec<f64> {
    #[cfg(feature = "cube")]
    if gradients.iter().all(|gradient| on_cube(gradient)) {
        return cube::squared_norms(gradients);
    }
    gradients.iter().map(|gradient| squared_norm(gradient)).collect()
}

fn squared_norm(gradient: &Tensor<1>) -> f64 {
    if on_cpu(gradient) { optim::squared_norm(flex(gradient.clone()).storage()) } else { squared_norm_plain(gradient) }
}

/// [`squared_norm`] in plain tensor operations.
fn squared_norm_plain(gradient: &Tensor<1>) -> f64 {
    f64::from(gradient.clone().square().sum().into_scalar::<f32>())
}

fn on_cpu(tensor: &Tensor<1>) -> bool {
    tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// Whether the tensor is where our kernels for GPUs are.
#[cfg(feature = "cube")]
fn on_cube(tensor: &Tensor<1>) -> bool {
    tensor.clone().try_into_primitive::<Cube>().is_ok()
}

/// The tensor as the CPU backend's own, its storage being its values and nothing else. The tensor's last owner gets it without a copy, so
/// that what is written to it is written in place.
fn flex(tensor: Tensor<1>) -> FlexTensor {
    let primitive = tensor.try_into_primitive::<Flex>().expect("asked before whether it is on the CPU");
    let whole = primitive.is_contiguous() && primitive.storage::<f32>().len() == primitive.layout().num_elements();
    if whole { primitive } else { primitive.to_contiguous() }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::nn::params::host_values;

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    fn close(a: Tensor<1>, b: Tensor<1>) -> bool {
        host_values(a).iter().zip(host_values(b)).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0))
    }

    proptest! {
        #[test]
        fn kernels_agree_with_plain_operations(
            values in prop::collection::vec((-2.0_f32..2.0, -2.0_f32..2.0, -1.0_f32..1.0, 0.0_f32..1.0), 1..300),
            step in 1_u64..2000, grad_scale in 0.01_f64..1.0, weight in 0.0_f64..1.0,
        ) {
            let part = |f: fn(&(f32, f32, f32, f32)) -> f32| tensor(&values.iter().map(f).collect::<Vec<_>>());
            let (w, g, m, v) = (part(|p| p.0), part(|p| p.1), part(|p| p.2), part(|p| p.3 + 0.01));
            let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, step, grad_scale };
            let ours = adam(&step, [w.clone(), m.clone(), v.clone()], g.clone());
            let plain = adam_plain(&step, [w.clone(), m, v], g.clone());
            for (ours, plain) in ours.into_iter().zip(plain) {
                prop_assert!(close(ours, plain));
            }
            prop_assert!(close(lerp(w.clone(), g.clone(), weight), lerp_plain(w, g.clone(), weight)));
            let (ours, plain) = (squared_norms(&[&g])[0], squared_norm_plain(&g));
            prop_assert!((ours - plain).abs() <= 1e-4 * plain.max(1.0));
        }
    }

    /// On the device of the kernels' tests, against plain operations on the CPU.
    #[cfg(feature = "cube")]
    mod on_gpus {
        use burn::tensor::TensorData;

        use super::*;
        use crate::nn::ops::cube::tests::test_device;
        use crate::noise::{Purpose, Stream};

        fn drawn(part: u64, count: usize) -> Vec<f32> {
            let mut values = vec![0.0; count];
            Stream::new(5, Purpose::Init, part, 0).fill_normal(&mut values);
            values
        }

        #[test]
        fn sweeps_agree_with_plain_operations() {
            let Some(device) = test_device() else { return };
            for count in [1, 3, 64, 1000, 70_001] {
                let values = [0, 1, 2, 3].map(|part| drawn(part, count));
                let all = |device: &Device| {
                    let [w, g, m, v] = [0, 1, 2, 3].map(|i| Tensor::<1>::from_floats(values[i].as_slice(), device));
                    (w, g, m, v.square() + 0.01)
                };
                let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 7, grad_scale: 0.3 };
                let (w, g, m, v) = all(&device);
                let ours = adam(&step, [w.clone(), m, v], g.clone()).map(host_values);
                let (wp, gp, mp, vp) = all(&Device::flex());
                for (ours, plain) in ours.into_iter().zip(adam_plain(&step, [wp.clone(), mp, vp], gp.clone())) {
                    let near = |(a, b): (&f32, f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                    assert!(ours.iter().zip(host_values(plain)).all(near), "{count}");
                }
                // What somebody else holds stays as it was.
                assert_eq!(host_values(w.clone()), values[0]);
                let averaged = lerp(w.clone(), g.clone(), 0.25);
                assert_eq!(host_values(w.clone()), values[0]);
                assert!(close(averaged, lerp_plain(wp, gp, 0.25)), "{count}");
                let sums = squared_norms(&[&w, &g]);
                for (sum, values) in sums.into_iter().zip(&values) {
                    let expected: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
                    assert!((sum - expected).abs() <= 1e-6 * expected, "{count}: {sum}, {expected}");
                }
            }
            assert_eq!(squared_norms(&[]), Vec::<f64>::new());
            let spoiled = Tensor::<1>::from_floats([1.0, f32::INFINITY], &device);
            assert!(squared_norms(&[&Tensor::ones([3], &device), &spoiled])[1].is_infinite());
        }

        /// A part of a tensor, and rows with room between them.
        #[test]
        fn views_are_swept_alone() {
            let Some(device) = test_device() else { return };
            let whole = Tensor::<2>::from_data(TensorData::new(drawn(0, 64 * 32), [64, 32]), &device);
            let before = host_values(whole.clone());
            let part = whole.clone().narrow(0, 16, 16).reshape([512]);
            let zeroed = lerp(part, Tensor::zeros([512], &device), 1.0);
            assert_eq!(host_values(zeroed), [0.0; 512]);
            assert_eq!(host_values(whole), before);
        }
    }

    #[test]
    fn a_part_of_a_tensor_is_swept_alone() {
        let whole = tensor(&[1.0, 2.0, 3.0, 4.0]);
        let part = lerp(whole.clone().narrow(0, 1, 2), tensor(&[0.0, 0.0]), 1.0);
        assert_eq!(host_values(part), [0.0, 0.0]);
        assert_eq!(host_values(whole), [1.0, 2.0, 3.0, 4.0]);
    }
}
