//! Passes over parameters that live for the whole run: Adam, the moving average, the norms of gradients. On the CPU and on GPUs they run in place
//! through our kernels; elsewhere, and in tests, as plain tensor operations. On GPUs the host can ask for all of them without waiting for any.

#[cfg(all(feature = "cube", not(feature = "fusion")))]
use burn::backend::Cube;
use burn::backend::Flex;
use burn::tensor::{FloatDType, Tensor};
use burn_flex::FlexTensor;
use denoising_diffusion_kernels::optim::{self, AdamStep};

#[cfg(all(feature = "cube", not(feature = "fusion")))]
use crate::nn::ops::cube;
use crate::nn::params::host_values;

/// What has been found of a step's gradients, for those who work with them.
#[cfg_attr(feature = "cube", allow(clippy::large_enum_variant, reason = "one per step, never in a list"))]
#[derive(Clone, Debug)]
pub enum Clip {
    /// Their factor. They are finite.
    Known(f64),
    /// The device knows their factor, and whether it must change nothing because they, or the loss, are not finite.
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    OnDevice(cube::Clip),
}

/// What has been found of a step's losses and gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub losses: Vec<f64>,
    /// Of each gradient, the sum of its squares; infinite or NaN if a value is.
    pub squared_norms: Vec<f64>,
    /// What clips gradients; `None` if something is not finite, so that nothing is to change.
    pub grad_scale: Option<f64>,
}

/// What was asked about a step's losses and gradients, to be found on the device.
#[cfg_attr(feature = "cube", allow(clippy::large_enum_variant, reason = "one per step, never in a list"))]
#[derive(Clone, Debug)]
pub enum Question {
    Answered(Found),
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    OnDevice(cube::Clipping),
}

impl Question {
    /// Sends for what the device finds.
    pub fn read(&self) -> Finding {
        match self {
            Self::Answered(found) => Finding::Done(found.clone()),
            #[cfg(all(feature = "cube", not(feature = "fusion")))]
            Self::OnDevice(clipping) => Finding::OnDevice(clipping.clip(), clipping.read()),
        }
    }
}

/// [`Found`], perhaps still to be computed.
#[cfg_attr(feature = "cube", allow(clippy::large_enum_variant, reason = "one per step, never in a list"))]
#[derive(Debug)]
pub enum Finding {
    Done(Found),
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    OnDevice(cube::Clip, cube::Reading),
}

impl Finding {
    /// What the device makes of it by itself, if it does.
    pub fn clip(&self) -> Option<Clip> {
        match self {
            Self::Done(_) => None,
            #[cfg(all(feature = "cube", not(feature = "fusion")))]
            Self::OnDevice(clip, _) => Some(Clip::OnDevice(clip.clone())),
        }
    }

    /// Waits for it.
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

/// What is added to the norm that gradients are divided by, as in PyTorch's `clip_grad_norm_`.
const EPS: f64 = 1e-6;

/// The factor that clips gradients of this norm: `max_norm / (norm + 1e-6)`, at most 1.
pub fn grad_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + EPS)).min(1.0)
}

/// Asks for losses (one value each) and for the norm of all gradients, and what clips it to `max_norm`.
pub fn ask(gradients: &[&Tensor<1>], losses: Vec<Tensor<1>>, max_norm: f64) -> Question {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    if gradients.iter().copied().chain(&losses).all(on_cube)
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

/// One Adam step on parameters: of each, weights, both moments and gradient, flat and of one length, to the first three after the step; as they
/// were, where the device finds that nothing is to change. `clip` stands in for the factor that `step` names.
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
    let w = w - m.clone() * (step.lr / c1) / ((v.clone() / c2).sqrt() + step.eps);
    [w, m, v]
}

/// `average + weight (w - average)` of each `[average, w]`, flat and of one length, `w` itself with a weight of 1; `average`, where the device
/// finds that nothing is to change.
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
        // Of its own storage.
        1.0 => average.slice_assign(0..w.dims()[0], w),
        _ => average.clone() + (w - average) * weight,
    }
}

/// The sum of squares of each gradient.
fn squared_norms(gradients: &[&Tensor<1>]) -> Vec<f64> {
    if !gradients.iter().all(|gradient| on_cpu(gradient)) {
        return squared_norms_plain(gradients);
    }
    let values = |gradient: &&Tensor<1>| flex((*gradient).clone().cast(FloatDType::F32));
    gradients.iter().map(|gradient| optim::squared_norm(values(gradient).storage())).collect()
}

/// [`squared_norms`] in plain tensor operations; the device is waited for once.
fn squared_norms_plain(gradients: &[&Tensor<1>]) -> Vec<f64> {
    let sum = |gradient: &&Tensor<1>| (*gradient).clone().cast(FloatDType::F32).square().sum();
    host_values(Tensor::cat(gradients.iter().map(sum).collect(), 0)).into_iter().map(f64::from).collect()
}

/// Changes whenever a sweep on a GPU could not write in place, so that a tensor lies elsewhere now.
pub fn moves() -> u64 {
    #[cfg(all(feature = "cube", not(feature = "fusion")))]
    return cube::moves();
    #[cfg(not(all(feature = "cube", not(feature = "fusion"))))]
    0
}

fn on_cpu(tensor: &Tensor<1>) -> bool {
    tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// Whether the tensor is where our kernels for GPUs are.
#[cfg(all(feature = "cube", not(feature = "fusion")))]
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
            let ours = adam_one(&step, [w.clone(), m.clone(), v.clone()], g.clone());
            let plain = adam_plain(&step, [w.clone(), m, v], g.clone());
            for (ours, plain) in ours.into_iter().zip(plain) {
                prop_assert!(close(ours, plain));
            }
            prop_assert!(close(lerp_one(w.clone(), g.clone(), weight), lerp_plain(w.clone(), g.clone(), weight)));
            prop_assert_eq!(host_values(lerp_one(w.clone(), g.clone(), 1.0)), host_values(g.clone()));
            prop_assert_eq!(host_values(lerp_plain(w, g.clone(), 1.0)), host_values(g.clone()));
            let (ours, plain) = (squared_norms(&[&g])[0], squared_norms_plain(&[&g])[0]);
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

        /// More tensors than a launch takes, of lengths that make vectors of different widths.
        #[test]
        fn sweeps_agree_with_plain_operations() {
            let Some(device) = test_device() else { return };
            let counts = [70_001, 64, 1, 3, 1000].into_iter().chain(16..56);
            let values: Vec<[Vec<f32>; 4]> =
                counts.zip(0..).map(|(count, i)| [0, 1, 2, 3].map(|part| drawn(4 * i + part, count))).collect();
            let all = |device: &Device| -> Vec<[Tensor<1>; 4]> {
                let tensors = |values: &[Vec<f32>; 4]| {
                    let [w, g, m, v] =
                        values.each_ref().map(|values| Tensor::<1>::from_floats(values.as_slice(), device));
                    [w, g, m, v.square() + 0.01]
                };
                values.iter().map(tensors).collect()
            };
            let near = |ours: &[f32], plain: &[f32]| {
                ours.len() == plain.len()
                    && ours.iter().zip(plain).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0))
            };
            let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 7, grad_scale: 0.3 };
            let (here, there) = (all(&device), all(&Device::flex()));
            let clip = Clip::Known(step.grad_scale);
            let swept = adam(&step, &clip, here.iter().cloned().map(|[w, g, m, v]| ([w, m, v], g)).collect());
            for (ours, [w, g, m, v]) in swept.into_iter().zip(there.clone()) {
                for (ours, plain) in ours.into_iter().zip(adam_plain(&step, [w, m, v], g)) {
                    assert!(near(&host_values(ours), &host_values(plain)));
                }
            }
            let pairs = |all: &[[Tensor<1>; 4]]| all.iter().cloned().map(|[w, g, ..]| [w, g]).collect::<Vec<_>>();
            for (ours, [w, g]) in lerp(pairs(&here), 0.25, &clip).into_iter().zip(pairs(&there)) {
                assert!(near(&host_values(ours), &host_values(lerp_plain(w, g, 0.25))));
            }
            for (ours, [_, g]) in lerp(pairs(&here), 1.0, &clip).into_iter().zip(pairs(&there)) {
                assert_eq!(host_values(ours), host_values(g));
            }
            // What somebody else holds stays as it was.
            for ([w, ..], values) in here.iter().zip(&values) {
                assert_eq!(host_values(w.clone()), values[0]);
            }
        }

        /// More sums than a cube has units, and losses of several batches.
        #[test]
        fn clipping_agrees_with_plain_operations() {
            let Some(device) = test_device() else { return };
            let values: Vec<Vec<f32>> =
                [2_100_001, 64, 1, 3, 1000].into_iter().chain(16..56).map(|count| drawn(0, count)).collect();
            let tensors = |device: &Device| -> Vec<Tensor<1>> {
                values.iter().map(|values| Tensor::from_floats(values.as_slice(), device)).collect()
            };
            let losses =
                |device: &Device| [0.5_f32, 0.25, 3.0].map(|loss| Tensor::from_floats([loss], device)).to_vec();
            let found = |device: &Device, max_norm: f64| {
                let gradients = tensors(device);
                let finding = ask(&gradients.iter().collect::<Vec<_>>(), losses(device), max_norm).read();
                assert_eq!(finding.clip().is_some(), !crate::device::is_cpu(device));
                finding.wait()
            };
            for max_norm in [1.0, 1e6] {
                let (ours, plain) = (found(&device, max_norm), found(&Device::flex(), max_norm));
                assert_eq!(ours.losses, plain.losses);
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b;
                assert!(ours.squared_norms.iter().zip(&plain.squared_norms).all(near), "{ours:?} {plain:?}");
                assert!(near((&ours.grad_scale.unwrap(), &plain.grad_scale.unwrap())), "{ours:?} {plain:?}");
            }
        }

        /// Nothing changes if a gradient, a loss, or the norm of all gradients is not finite; else what the device found goes into the step.
        #[test]
        fn the_device_decides_by_itself() {
            let Some(device) = test_device() else { return };
            let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
            let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 7, grad_scale: f64::NAN };
            let fine = [1.0, -2.0, 3.0];
            for (gradient, loss, skipped) in [
                (fine, 0.5, false),
                ([1.0, f32::INFINITY, 3.0], 0.5, true),
                ([1.0, f32::NAN, 3.0], 0.5, true),
                ([1.5e19, 1.5e19, 1.0], 0.5, true),
                (fine, f32::NAN, true),
                (fine, f32::INFINITY, true),
            ] {
                let (w, g) = (tensor(&[0.5, 0.25, 4.0]), tensor(&gradient));
                let (m, v) = (tensor(&[0.1, 0.2, 0.3]), tensor(&[0.4, 0.5, 0.6]));
                let finding = ask(&[&g, &tensor(&[0.0; 40])], vec![tensor(&[1.0]), tensor(&[loss])], 2.0).read();
                let clip = finding.clip().unwrap();
                let swept = adam(&step, &clip, vec![([w.clone(), m.clone(), v.clone()], g.clone())]);
                let averages = [0.25, 1.0].map(|weight| lerp(vec![[w.clone(), m.clone()]], weight, &clip).remove(0));
                let found = finding.wait();
                assert_eq!(found.grad_scale.is_none(), skipped, "{gradient:?} {loss}");
                let [w, m, v, g] = [w, m, v, g].map(|tensor| tensor.to_device(&Device::flex()));
                let plain = match found.grad_scale {
                    Some(grad_scale) => adam_plain(&AdamStep { grad_scale, ..step }, [w.clone(), m.clone(), v], g),
                    None => [w.clone(), m.clone(), v],
                };
                for (ours, plain) in swept[0].iter().zip(plain) {
                    assert!(close(ours.clone().to_device(&Device::flex()), plain), "{gradient:?} {loss}");
                }
                for (ours, weight) in averages.into_iter().zip([0.25, 1.0]) {
                    let plain = if skipped { w.clone() } else { lerp_plain(w.clone(), m.clone(), weight) };
                    assert!(close(ours.to_device(&Device::flex()), plain), "{gradient:?} {loss}");
                }
            }
        }

        /// A part of a tensor, and rows with room between them.
        #[test]
        fn views_are_swept_alone() {
            let Some(device) = test_device() else { return };
            let whole = Tensor::<2>::from_data(TensorData::new(drawn(0, 64 * 32), [64, 32]), &device);
            let before = host_values(whole.clone());
            let part = whole.clone().narrow(0, 16, 16).reshape([512]);
            let halved: Vec<f32> = before[16 * 32..32 * 32].iter().map(|value| 0.5 * value).collect();
            let swept = lerp(vec![[part, Tensor::zeros([512], &device)]], 0.5, &Clip::Known(1.0));
            assert_eq!(host_values(swept[0].clone()), halved);
            assert_eq!(host_values(whole), before);
        }
    }

    #[test]
    fn a_part_of_a_tensor_is_swept_alone() {
        let whole = tensor(&[1.0, 2.0, 3.0, 4.0]);
        let pair = [whole.clone().narrow(0, 1, 2), tensor(&[0.0, 0.0])];
        let part = lerp(vec![pair], 0.5, &Clip::Known(1.0));
        assert_eq!(host_values(part[0].clone()), [1.0, 1.5]);
        assert_eq!(host_values(whole), [1.0, 2.0, 3.0, 4.0]);
    }
}
