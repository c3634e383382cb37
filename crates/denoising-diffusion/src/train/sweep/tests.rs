//! Sweeps against plain tensor operations.

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
        let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.3, step, grad_scale };
        let ours = adam_one(&step, [w.clone(), m.clone(), v.clone()], g.clone());
        let plain = adam_plain(&step, [w.clone(), m, v], g.clone());
        for (ours, plain) in ours.into_iter().zip(plain) {
            prop_assert!(close(ours, plain));
        }
        prop_assert!(close(lerp_one(w.clone(), g.clone(), weight), lerp_plain(w.clone(), g.clone(), weight)));
        prop_assert_eq!(host_values(lerp_one(w.clone(), g.clone(), 1.0)), host_values(g.clone()));
        prop_assert_eq!(host_values(lerp_plain(w, g.clone(), 1.0)), host_values(g.clone()));
        let (ours, plain) = (squared_norms(std::slice::from_ref(&g))[0], squared_norms_plain(std::slice::from_ref(&g))[0]);
        prop_assert!((ours - plain).abs() <= 1e-4 * plain.max(1.0));
    }
}

/// On the test device of the kernels, against plain operations on the CPU.
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
                let [w, g, m, v] = values.each_ref().map(|values| Tensor::<1>::from_floats(values.as_slice(), device));
                [w, g, m, v.square() + 0.01]
            };
            values.iter().map(tensors).collect()
        };
        let near = |ours: &[f32], plain: &[f32]| {
            ours.len() == plain.len() && ours.iter().zip(plain).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0))
        };
        let step =
            AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.3, step: 7, grad_scale: 0.3 };
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
        // Tensors that have another owner keep their values.
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
        let losses = |device: &Device| [0.5_f32, 0.25, 3.0].map(|loss| Tensor::from_floats([loss], device)).to_vec();
        let found = |device: &Device, max_norm: f64| {
            let gradients = tensors(device);
            let finding = ask(&gradients, losses(device), max_norm).read();
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

    /// A U-Net's attention without memory has a parameter without values. NaN are left in freed memory, which a sum that nobody writes would show.
    #[cfg(not(feature = "fusion"))]
    #[test]
    fn tensors_without_values_are_swept_with_the_others() {
        let Some(device) = test_device() else { return };
        let empty = || Tensor::<1>::zeros([0], &device);
        let tensor = || Tensor::<1>::from_floats([3.0, 4.0], &device);
        for gradients in [vec![empty(), tensor(), empty()], vec![empty()]] {
            let expected = if gradients.len() == 1 { vec![0.0] } else { vec![0.0, 25.0, 0.0] };
            for _ in 0..4 {
                let left = (1..64).map(|count| Tensor::<1>::full([count], f32::NAN, &device)).collect::<Vec<_>>();
                assert!(left.into_iter().all(|left| host_values(left).iter().all(|value| value.is_nan())));
                let found = ask(&gradients, vec![Tensor::from_floats([0.5], &device)], 1e6).read().wait();
                assert_eq!((found.squared_norms, found.grad_scale), (expected.clone(), Some(1.0)));
            }
        }
        let clip = Clip::Known(1.0);
        let step =
            AdamStep { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
        let swept = adam(
            &step,
            &clip,
            vec![([empty(), empty(), empty()], empty()), ([tensor(), tensor(), tensor()], tensor())],
        );
        assert_eq!(swept.iter().map(|swept| swept[0].dims()).collect::<Vec<_>>(), [[0], [2]]);
        let swept = lerp(vec![[empty(), empty()], [tensor(), tensor()]], 0.5, &clip);
        assert_eq!(host_values(swept[1].clone()), [3.0, 4.0]);
        assert_eq!(swept[0].dims(), [0]);
    }

    /// Memory after a loss must not be read as one: CUDA's allocations have room there, and so has this tensor.
    #[cfg(not(feature = "fusion"))]
    #[test]
    fn only_losses_are_read() {
        let Some(device) = test_device() else { return };
        let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
        let primitive = |values: &[f32]| tensor(values).try_into_primitive::<Cube>().unwrap();
        let mut longer = primitive(&[0.25, 3.0, 7.0, f32::NAN]);
        longer.meta = primitive(&[0.0]).meta;
        let found = ask(&[tensor(&[1.0, 2.0])], vec![Tensor::from_primitive::<Cube>(longer)], 1.0).read().wait();
        assert_eq!(found.losses, [0.25]);
    }

    /// Nothing changes if a gradient, a loss, or the norm of all gradients is not finite; otherwise the device's result is used in the step.
    #[test]
    fn the_device_decides_by_itself() {
        let Some(device) = test_device() else { return };
        let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
        let step =
            AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.3, step: 7, grad_scale: f64::NAN };
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
            let finding = ask(&[g.clone(), tensor(&[0.0; 40])], vec![tensor(&[1.0]), tensor(&[loss])], 2.0).read();
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

    /// More tensors than a launch takes, with rows of all vector widths, some longer than a cube has units; in place, and not if the step is skipped.
    #[test]
    fn forced_norms_agree_with_plain_operations() {
        let Some(device) = test_device() else { return };
        let shapes = [(3, 2308), (128, 9), (1, 1), (70, 6)].into_iter().chain((16..36).map(|len| (2, len)));
        let values: Vec<(Vec<f32>, usize)> =
            shapes.zip(0..).map(|((rows, len), part)| (drawn(part, rows * len), rows)).collect();
        let weights = |device: &Device| -> Vec<(Tensor<1>, usize)> {
            values.iter().map(|(values, rows)| (Tensor::from_floats(values.as_slice(), device), *rows)).collect()
        };
        for loss in [0.5, f32::NAN] {
            let of = |values: [f32; 1]| Tensor::<1>::from_floats(values, &device);
            let finding = ask(&[of([1.0])], vec![of([loss])], 1.0).read();
            let (ours, before) = (weights(&device), moves());
            let ours = unit_rows(ours, 1e-4, &finding.clip().unwrap());
            assert_eq!(moves(), before);
            let plain = match loss.is_nan() {
                true => weights(&Device::flex()).into_iter().map(|(tensor, _)| tensor).collect(),
                false => unit_rows(weights(&Device::flex()), 1e-4, &Clip::Known(1.0)),
            };
            for (ours, plain) in ours.into_iter().zip(plain) {
                assert!(close(ours.to_device(&Device::flex()), plain), "{loss}");
            }
        }
    }

    /// A part of a tensor, and rows with gaps between them.
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
fn norms_are_forced_in_place() {
    let values: Vec<f32> = (0..42).map(|i| (i as f32).sin()).collect();
    let place = |tensor: &Tensor<1>| flex(tensor.clone()).storage::<f32>().as_ptr();
    let (weight, held) = (tensor(&values), tensor(&values));
    let before = place(&weight);
    let forced = unit_rows(vec![(weight, 6), (held.clone(), 6)], 1e-4, &Clip::Known(1.0));
    assert_eq!(place(&forced[0]), before);
    let expected = host_values(ops::unit_rows(tensor(&values).reshape([6, 7]), 7.0_f64.sqrt(), 1e-4));
    for forced in forced {
        assert_eq!(host_values(forced), expected);
    }
    // Somebody else holds it.
    assert_eq!(host_values(held), values);
}

#[test]
fn a_part_of_a_tensor_is_swept_alone() {
    let whole = tensor(&[1.0, 2.0, 3.0, 4.0]);
    let pair = [whole.clone().narrow(0, 1, 2), tensor(&[0.0, 0.0])];
    let part = lerp(vec![pair], 0.5, &Clip::Known(1.0));
    assert_eq!(host_values(part[0].clone()), [1.0, 1.5]);
    assert_eq!(host_values(whole), [1.0, 2.0, 3.0, 4.0]);
}
