//! Compares each kernel on the test device with plain tensor operations on the CPU: output and every gradient. Without `DDPM_TEST_DEVICE` there is no
//! such device, and nothing is compared.

mod attention;
pub(crate) mod conv;
mod magnitude;

use burn::tensor::{DType, Device, FloatDType, Gradients, Tensor, TensorData};
use proptest::prelude::*;

use super::super::{Pointwise, plain};
use super::{Then, multiplies_in_tf32};
use crate::device::open;
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream};
use crate::testing::largest_difference;

/// The device of `DDPM_TEST_DEVICE`.
pub(crate) fn test_device() -> Option<Device> {
    let name = std::env::var("DDPM_TEST_DEVICE").ok()?;
    Some(open(name.parse().unwrap()).unwrap().device).filter(|device| !crate::device::is_cpu(device))
}

/// The tolerance is relative to the largest value.
pub(crate) fn assert_within(tolerance: f32, what: &str, got: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1e-3, |most, v| f64::from(v.abs()).max(most));
    let worst = largest_difference(got, expected);
    assert!(worst <= f64::from(tolerance) * scale, "{what}: differs by {worst:e}, values up to {scale}");
}

/// Values drawn from a seed, the same for each device.
pub(crate) fn drawn(seed: u64, part: u64, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream::new(seed, Purpose::Init, part, 0).fill_normal(&mut values);
    values
}

/// The layout in memory of an image before an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Dense,
    /// Rows with gaps between them, as on CUDA.
    Padded,
    /// Channels first.
    Permuted,
}

/// `[b, h, w, c]` of these values, with this layout in memory.
fn image(values: Vec<f32>, [b, h, w, c]: [usize; 4], layout: Layout, device: &Device) -> Tensor<4> {
    let dense = Tensor::<4>::from_data(TensorData::new(values, [b, h, w, c]), device);
    match layout {
        Layout::Dense => dense,
        Layout::Padded => {
            let room = c.next_power_of_two().max(4) * 2 - c;
            Tensor::cat(vec![dense, Tensor::full([b, h, w, room], f32::NAN, device)], 3).narrow(3, 0, c)
        }
        Layout::Permuted => {
            let first = Tensor::<4>::from_data(dense.permute([0, 3, 1, 2]).to_data(), device);
            first.permute([0, 2, 3, 1])
        }
    }
}

/// An operation of an image, other images and other tensors.
struct Case<'a> {
    dims: [usize; 4],
    layout: Layout,
    /// Number of images besides the first.
    images: usize,
    /// Shapes of the other inputs, each `[1, n]` or `[b, n]`.
    others: &'a [[usize; 2]],
    /// The factor of the first image.
    scale: f32,
}

type Operation<'a> = &'a dyn Fn(Vec<Tensor<4>>, Vec<Tensor<2>>) -> Tensor<4>;

impl Case<'_> {
    /// The output, and the gradients of all inputs.
    fn outcome(&self, seed: u64, operation: Operation<'_>, device: &Device) -> Vec<Vec<f32>> {
        let device = device.clone().autodiff();
        let count = self.dims.iter().product();
        let mut part = 0;
        let mut next = |count| {
            part += 1;
            drawn(seed, part, count)
        };
        let images: Vec<Tensor<4>> = (0..=self.images)
            .map(|i| {
                let factor = if i == 0 { self.scale } else { 1.0 };
                let values = next(count).into_iter().map(|value| value * factor).collect();
                image(values, self.dims, self.layout, &device).require_grad()
            })
            .collect();
        let others: Vec<Tensor<2>> = self
            .others
            .iter()
            .map(|shape| Tensor::from_data(TensorData::new(next(shape[0] * shape[1]), *shape), &device).require_grad())
            .collect();
        let y = operation(images.clone(), others.clone());
        // Its gradient has the layout of the input, too.
        let cotangent = image(next(y.dims().iter().product()), y.dims(), self.layout, &device);
        let mut all = vec![host_values(y.clone())];
        let gradients: Gradients = (y * cotangent).sum().backward();
        all.extend(images.iter().map(|x| host_values(x.grad(&gradients).expect("a gradient"))));
        all.extend(others.iter().map(|x| host_values(x.grad(&gradients).expect("a gradient"))));
        all
    }

    fn compare(&self, what: &str, seed: u64, ours: Operation<'_>, plain: Operation<'_>) {
        self.compare_within(1e-5, what, seed, ours, plain);
    }

    fn compare_within(&self, tolerance: f32, what: &str, seed: u64, ours: Operation<'_>, plain: Operation<'_>) {
        let Some(device) = test_device() else { return eprintln!("{what}: no device to compare with") };
        let expected = self.outcome(seed, plain, &Device::flex());
        for (i, (ours, expected)) in self.outcome(seed, ours, &device).iter().zip(&expected).enumerate() {
            let (dims, layout) = (self.dims, self.layout);
            assert_within(tolerance, &format!("{what} of {dims:?}, {layout:?}, result {i}"), ours, expected);
        }
    }
}

fn any_layout() -> impl Strategy<Value = Layout> {
    prop::sample::select(vec![Layout::Dense, Layout::Padded, Layout::Permuted])
}

fn gain(others: &[Tensor<2>]) -> Tensor<1> {
    others[0].clone().reshape([-1])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn rms_norms(
        seed: u64, b in 1_usize..6, h in 1_usize..8, w in 1_usize..8, c in 2_usize..71, layout in any_layout(), added: bool,
    ) {
        let case = Case { dims: [b, h, w, c], layout, images: usize::from(added), others: &[[1, c]], scale: 3.0 };
        let residual = |mut images: Vec<Tensor<4>>| {
            let residual = added.then(|| images.remove(1));
            (images.remove(0), residual)
        };
        type Norm = fn(Tensor<4>, Tensor<1>, Option<Tensor<4>>) -> Tensor<4>;
        for (what, ours, plain) in [
            ("rms_norm", super::rms_norm as Norm, plain::rms_norm as Norm),
            ("rms_norm_silu", super::rms_norm_silu as Norm, plain::rms_norm_silu as Norm),
        ] {
            let run = |norm: Norm| move |images: Vec<Tensor<4>>, others: Vec<Tensor<2>>| {
                let (x, residual) = residual(images);
                norm(x, gain(&others), residual)
            };
            case.compare(what, seed, &run(ours), &run(plain));
        }
        let case = Case { images: 1, others: &[[1, c], [1, c]], ..case };
        let bias = |others: &[Tensor<2>]| others[1].clone().reshape([c]);
        for (what, then, norm) in [
            ("biased_rms_norm", Then::Nothing, plain::rms_norm as Norm),
            ("biased_rms_norm with silu", Then::Silu, plain::rms_norm_silu as Norm),
        ] {
            let ours = |mut images: Vec<Tensor<4>>, others: Vec<Tensor<2>>| {
                let residual = images.remove(1);
                super::biased_rms_norm(images.remove(0), bias(&others), gain(&others), residual, then)
            };
            let expected = |mut images: Vec<Tensor<4>>, others: Vec<Tensor<2>>| {
                let residual = Some(images.remove(1));
                norm(images.remove(0) + bias(&others).unsqueeze(), gain(&others), residual)
            };
            case.compare(what, seed, &ours, &expected);
        }
        compare_scaled_norm(seed, [b, h, w, c], layout);
    }
}

/// Compares [`super::biased_rms_norm_scaled_silu`].
fn compare_scaled_norm(seed: u64, [b, h, w, c]: [usize; 4], layout: Layout) {
    let others = [[1, c], [b, 2 * c], [1, c]];
    let case = Case { dims: [b, h, w, c], layout, images: 0, others: &others, scale: 3.0 };
    let parts = |others: Vec<Tensor<2>>| (gain(&others), others[1].clone(), others[2].clone().reshape([c]));
    let ours = |mut x: Vec<Tensor<4>>, others: Vec<Tensor<2>>| {
        let (g, scale_shift, bias) = parts(others);
        super::biased_rms_norm_scaled_silu(x.remove(0), bias, g, scale_shift)
    };
    let expected = |mut x: Vec<Tensor<4>>, others: Vec<Tensor<2>>| {
        let (g, scale_shift, bias) = parts(others);
        plain::rms_norm_scaled_silu(x.remove(0) + bias.unsqueeze(), g, scale_shift)
    };
    case.compare("biased_rms_norm_scaled_silu", seed, &ours, &expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn what_transformers_do_around_their_layers(
        seed: u64, b in 1_usize..6, h in 1_usize..8, w in 1_usize..8, c in 3_usize..71, layout in any_layout(),
    ) {
        let dims = [b, h, w, c];
        // For rows of nearly equal values, the gradient is the larger the smaller their deviation.
        let spread = |x: Tensor<4>| {
            let ends = Tensor::<1>::from_floats([8.0, -8.0], &x.device()).reshape([1, 1, 1, 2]);
            let rest = Tensor::zeros([1, 1, 1, c - 2], &x.device());
            x + Tensor::cat(vec![ends, rest], 3)
        };
        let case = Case { dims, layout, images: 0, others: &[[b, 2 * c]], scale: 1.0 };
        case.compare(
            "layer_norm_scaled",
            seed,
            &|mut x, others| super::layer_norm_scaled(spread(x.remove(0)), others[0].clone()),
            &|mut x, others| plain::layer_norm_scaled(spread(x.remove(0)), others[0].clone()),
        );
        let case = Case { images: 1, others: &[[b, c]], ..case };
        case.compare(
            "gated_add",
            seed,
            &|mut x, others| super::gated_add(x.remove(0), others[0].clone(), x.remove(0)),
            &|mut x, others| plain::gated_add(x.remove(0), others[0].clone(), x.remove(0)),
        );
        let case = Case { images: 0, others: &[], scale: 3.0, ..case };
        for f in [Pointwise::Silu, Pointwise::GeluTanh] {
            let what = format!("{f:?}");
            case.compare(&what, seed, &|mut x, _| super::pointwise(f, x.remove(0)), &|mut x, _| plain::pointwise(f, x.remove(0)));
        }
    }
}

/// Parts with all vector widths.
#[test]
fn joined_images() {
    for (channels, layout) in [(8, Layout::Dense), (6, Layout::Padded), (5, Layout::Dense), (4, Layout::Permuted)] {
        for narrowed in [channels, channels - 2] {
            let case = Case { dims: [2, 3, 5, channels], layout, images: 1, others: &[], scale: 1.0 };
            let run = |join: fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
                move |mut images: Vec<Tensor<4>>, _: Vec<Tensor<2>>| {
                    let skip = images.remove(1).narrow(3, 0, narrowed);
                    join(images.remove(0), skip)
                }
            };
            case.compare("join", 1, &run(super::join), &run(|x, skip| Tensor::cat(vec![x, skip], 3)));
        }
    }
}

/// More layers than fit into a launch, with all vector widths, one of them unused.
#[cfg(not(feature = "fusion"))]
#[test]
fn linear_layers_of_one_input() {
    let Some(device) = test_device() else { return eprintln!("no device to compare with") };
    for (b, width, sizes) in [(3, 8, vec![8; 20]), (2, 5, vec![3, 4, 130, 1, 64]), (4, 64, vec![128, 256, 64])] {
        let run = |device: &Device, together: bool| -> Vec<Vec<f32>> {
            let device = device.clone().autodiff();
            let tensor = |part: usize, shape: [usize; 2]| {
                let values = drawn(1, part as u64, shape[0] * shape[1]);
                Tensor::<2>::from_data(TensorData::new(values, shape), &device)
            };
            let x = tensor(0, [b, width]).require_grad();
            let layer = |(i, &size): (usize, &usize)| {
                let bias = tensor(3 * i + 2, [1, size]).reshape([size]).detach();
                (tensor(3 * i + 1, [size, width]).require_grad(), bias.require_grad())
            };
            let layers: Vec<(Tensor<2>, Tensor<1>)> = sizes.iter().enumerate().map(layer).collect();
            let each = || layers.iter().map(|(w, b)| x.clone().matmul(w.clone().transpose()) + b.clone().unsqueeze());
            let results = if together { super::linears(&x, &layers).unwrap() } else { each().collect() };
            let sums = results.iter().enumerate().skip(1);
            let sums = sums.map(|(i, y)| (y.clone() * tensor(3 * i + 3, y.dims())).sum());
            let gradients = sums.reduce(|a, b| a + b).unwrap().backward();
            let mut all = vec![host_values(x.grad(&gradients).unwrap())];
            all.extend(results.into_iter().map(host_values));
            for (weight, bias) in &layers[1..] {
                all.push(host_values(weight.grad(&gradients).unwrap()));
                all.push(host_values(bias.grad(&gradients).unwrap()));
            }
            all
        };
        let tolerance = if multiplies_in_tf32(&device) { 2e-3 } else { 1e-5 };
        let (ours, expected) = (run(&device, true), run(&Device::flex(), false));
        for (i, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
            assert_within(tolerance, &format!("layers of {width} channels, result {i}"), ours, expected);
        }
    }
}

/// The gradient of the bias is ours: few and many positions, channels of all vector widths, more than a group has units.
#[test]
fn biased_convolutions() {
    let Some(device) = test_device() else { return };
    for (dims, c_out, [kh, kw]) in [
        ([2, 5, 4, 3], 8, [3, 3]),
        ([1, 1, 1, 4], 3, [1, 1]),
        ([3, 1, 33, 6], 10, [1, 3]),
        ([2, 64, 64, 4], 6, [1, 1]),
        ([1, 2, 2, 8], 520, [1, 1]),
    ] {
        for layout in [Layout::Dense, Layout::Padded, Layout::Permuted] {
            let others = [[1, c_out * dims[3] * kh * kw], [1, c_out]];
            let case = Case { dims, layout, images: 0, others: &others, scale: 1.0 };
            let run = |conv: fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>| {
                move |mut images: Vec<Tensor<4>>, others: Vec<Tensor<2>>| {
                    let weight = others[0].clone().reshape([c_out, dims[3], kh, kw]);
                    conv(images.remove(0), weight, others[1].clone().reshape([c_out]))
                }
            };
            let expected = run(|x, weight, bias| plain::conv2d(x, weight, Some(bias)));
            let ours = run(|x, weight, bias| super::conv2d(x, weight, Some(bias)));
            let tolerance = if multiplies_in_tf32(&device) { 1e-2 } else { 1e-5 };
            case.compare_within(tolerance, &format!("conv2d of {dims:?}"), 1, &ours, &expected);
        }
    }
}

/// More rows than there are cubes, and more channels than units hold in registers: every loop is taken more than once.
#[test]
fn large_norms() {
    for dims in [[2, 64, 48, 8], [3, 5, 3, 700]] {
        compare_scaled_norm(1, dims, Layout::Dense);
        let others = [[dims[0], 2 * dims[3]]];
        let case = Case { dims, layout: Layout::Dense, images: 0, others: &others, scale: 3.0 };
        case.compare(
            "layer_norm_scaled",
            1,
            &|mut x, others| super::layer_norm_scaled(x.remove(0), others[0].clone()),
            &|mut x, others| plain::layer_norm_scaled(x.remove(0), others[0].clone()),
        );
        let case = Case { others: &[], ..case };
        case.compare("unit_rows", 1, &|mut x, _| super::unit_rows(x.remove(0), 3.0, 1e-4), &|mut x, _| {
            plain::unit_rows(x.remove(0), 3.0, 1e-4)
        });
        let case = Case { images: 1, others: &[[dims[0], dims[3]]], ..case };
        case.compare(
            "gated_add",
            1,
            &|mut x, others| super::gated_add(x.remove(0), others[0].clone(), x.remove(0)),
            &|mut x, others| plain::gated_add(x.remove(0), others[0].clone(), x.remove(0)),
        );
    }
}

/// CUDA's grids are wide enough for anything; those of others have 65,535 cubes per side, and further cubes go into the next row, some of them
/// surplus.
#[test]
fn more_cubes_than_a_side_of_the_grid_has() {
    if std::env::var("DDPM_TEST_DEVICE").is_ok_and(|name| !name.starts_with("cuda")) {
        compare_scaled_norm(1, [70_001, 1, 1, 4], Layout::Dense);
    }
}

/// A row of zeros has no direction, but it has a result and gradients.
#[test]
fn norms_of_zeros() {
    let Some(device) = test_device() else { return };
    let device = device.autodiff();
    let x = Tensor::<4>::zeros([1, 1, 2, 5], &device).require_grad();
    let g = Tensor::<1>::ones([5], &device).require_grad();
    let y = super::rms_norm_silu(x.clone(), g.clone(), None);
    assert_eq!(host_values(y.clone()), [0.0; 10]);
    let gradients = y.sum().backward();
    assert!(host_values(x.grad(&gradients).unwrap()).iter().all(|v| v.is_finite() && *v > 1e11));
    assert_eq!(host_values(g.grad(&gradients).unwrap()), [0.0; 5]);
}

/// Values that are not finite must not disappear.
#[test]
fn nan_is_not_swallowed() {
    let Some(device) = test_device() else { return };
    let x = Tensor::<4>::ones([1, 2, 1, 4], &device).slice_fill([0..1, 1..2, 0..1, 2..3], f32::NAN);
    let y = host_values(super::rms_norm(x, Tensor::ones([4], &device), None));
    assert!(y[..4].iter().all(|v| v.is_finite()) && y[4..].iter().all(|v| v.is_nan()));
}

/// Images of 16 bits, weights of 32: computed in f32, rounded once. CubeCL's CPU runtime 0.11 lacks the rounding function.
#[test]
fn bf16_images() {
    let Some(device) = test_device() else { return };
    if !device.supports_dtype(DType::BF16) {
        return eprintln!("no bf16 on this device");
    }
    let dims = [2, 3, 5, 24];
    let rounded = |part| -> Vec<f32> {
        let values = drawn(9, part, dims.iter().product());
        values.into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect()
    };
    let run = |device: &Device, bf16: bool, operation: fn(Tensor<4>, Tensor<1>, Tensor<2>) -> Tensor<4>| {
        let device = device.clone().autodiff();
        let x = Tensor::<4>::from_data(TensorData::new(rounded(0), dims), &device).require_grad();
        let g = Tensor::<1>::from_floats(drawn(9, 1, 24).as_slice(), &device).require_grad();
        let scale_shift = Tensor::<2>::from_data(TensorData::new(drawn(9, 2, 96), [2, 48]), &device).require_grad();
        let input = if bf16 { x.clone().cast(FloatDType::BF16) } else { x.clone() };
        let y = operation(input, g.clone(), scale_shift.clone());
        assert_eq!(y.dtype() == DType::BF16, bf16);
        let cotangent = Tensor::<4>::from_data(TensorData::new(rounded(3), dims), &device);
        let gradients = (y.clone().cast(FloatDType::F32) * cotangent).sum().backward();
        [
            host_values(y),
            host_values(x.grad(&gradients).unwrap()),
            host_values(g.grad(&gradients).unwrap()),
            host_values(scale_shift.grad(&gradients).unwrap()),
        ]
    };
    let ours = run(&device, true, |x, g, scale_shift| {
        let bias = Tensor::zeros([24], &x.device());
        super::biased_rms_norm_scaled_silu(x, bias, g, scale_shift)
    });
    let plain = run(&Device::flex(), false, plain::rms_norm_scaled_silu);
    // Images have eight bits of mantissa; results summed in f32 have the precision of f32.
    for ((ours, plain), allowed) in ours.iter().zip(&plain).zip([5e-3, 5e-3, 1e-5, 1e-5]) {
        let scale = plain.iter().fold(0.0, |most, v| f64::from(v.abs()).max(most));
        let worst = largest_difference(ours, plain);
        assert!(worst <= allowed * scale, "{worst:e} of {scale}");
    }
}
