//! Each kernel against its plain-tensor version: output and every gradient.

use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion_kernels::dropout::Mask;
use proptest::prelude::*;

use super::{AxisResize, ConvWeights, DropoutKey, Pointwise, Pool, Pooling, Resampling, ResidualBlock, Window, plain};
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream};
use crate::testing::largest_difference;

/// Inputs drawn from a seed, on an autodiff device, requiring gradients.
struct Draw {
    seed: u64,
    drawn: u64,
}

impl Draw {
    fn tensor<const D: usize>(&mut self, dims: [usize; D]) -> Tensor<D> {
        let mut values = vec![0.0; dims.iter().product()];
        self.drawn += 1;
        Stream::new(self.seed, Purpose::Init, self.drawn, 0).fill_normal(&mut values);
        let device = Device::flex().autodiff();
        Tensor::from_data(TensorData::new(values, dims), &device).require_grad()
    }
}

/// The tolerance is relative to the largest value.
fn assert_close(what: &str, got: Vec<f32>, expected: Vec<f32>) {
    let scale = expected.iter().fold(1.0, |most, v| f64::from(v.abs()).max(most));
    let worst = largest_difference(&got, &expected);
    assert!(worst <= 2e-5 * scale, "{what}: differs by {worst:e}, values up to {scale}");
}

/// Reads one tensor's gradient.
type GradientOf<'a> = dyn Fn(&burn::tensor::Gradients) -> Vec<f32> + 'a;

/// Output, and gradients of `sum(output * cotangent)` with respect to tensors of any rank, given as closures over them.
fn outcome<const D: usize>(output: Tensor<D>, cotangent: &Tensor<D>, gradient_of: &[&GradientOf<'_>]) -> Vec<Vec<f32>> {
    let values = host_values(output.clone());
    let gradients = (output * cotangent.clone().detach()).sum().backward();
    std::iter::once(values).chain(gradient_of.iter().map(|of| of(&gradients))).collect()
}

fn of<const D: usize>(tensor: &Tensor<D>) -> impl Fn(&burn::tensor::Gradients) -> Vec<f32> + '_ {
    |gradients| host_values(tensor.grad(gradients).expect("a gradient"))
}

/// [`compare`] for norms. Their first gradient, that of `x`, is a difference of terms that grow as the norm of a pixel falls (for one channel it is
/// 0), so a value may be off by 2e-5 of its pixel's terms, `most / |x|`.
fn compare_norms(what: &str, x: &Tensor<4>, most: f32, fused: Vec<Vec<f32>>, plain: Vec<Vec<f32>>) {
    let c = x.dims()[3];
    let [fused, plain] = [fused, plain].map(|mut outcome| (outcome.remove(1), outcome));
    let pixels = host_values(x.clone());
    assert_eq!(fused.0.len(), plain.0.len(), "{what}, gradient of x");
    for ((got, expected), pixel) in fused.0.chunks(c).zip(plain.0.chunks(c)).zip(pixels.chunks(c)) {
        let terms = most / pixel.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (got, expected) in got.iter().zip(expected) {
            let off = (got - expected).abs();
            assert!(off <= 2e-5 * terms.max(1.0), "{what}, gradient of x: {got}, {expected}, terms of size {terms}");
        }
    }
    compare(what, fused.1, plain.1);
}

/// The largest magnitude.
fn largest<const D: usize>(tensor: &Tensor<D>) -> f32 {
    host_values(tensor.clone()).into_iter().fold(0.0, |most, v| most.max(v.abs()))
}

fn compare(what: &str, fused: Vec<Vec<f32>>, plain: Vec<Vec<f32>>) {
    assert_eq!(fused.len(), plain.len(), "{what}");
    for (i, (fused, plain)) in fused.into_iter().zip(plain).enumerate() {
        assert_close(
            &format!("{what}, {}", if i == 0 { "output".into() } else { format!("gradient {i}") }),
            fused,
            plain,
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn convolution(
        seed: u64, b in 1_usize..4, h in 1_usize..12, w in 1_usize..12, c in 1_usize..20, o in 1_usize..20,
        kernel in prop::sample::select(vec![1_usize, 3, 7]),
    ) {
        let mut draw = Draw { seed, drawn: 0 };
        let (x, weight, bias) = (draw.tensor([b, h, w, c]), draw.tensor([o, c, kernel, kernel]), draw.tensor([o]));
        let cotangent = draw.tensor([b, h, w, o]);
        let run = |f: fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>) -> Tensor<4>| {
            let y = f(x.clone(), weight.clone(), Some(bias.clone()));
            outcome(y, &cotangent, &[&of(&x), &of(&weight), &of(&bias)])
        };
        compare("conv2d", run(super::conv2d), run(plain::conv2d));
    }

    #[test]
    fn what_transformers_do_around_their_layers(
        seed: u64, b in 1_usize..4, h in 1_usize..12, w in 1_usize..12, c in 2_usize..40,
    ) {
        let mut draw = Draw { seed, drawn: 0 };
        let (x, r, m) = (draw.tensor([b, h, w, c]), draw.tensor([b, h, w, c]), draw.tensor([b, 2 * c]));
        // For rows of nearly equal values, the gradient grows as their deviation shrinks.
        let away = Tensor::<1>::from_floats([8.0, -8.0], &x.device()).reshape([1, 1, 1, 2]);
        let spread = || {
            let rest = Tensor::zeros([1, 1, 1, c - 2], &x.device());
            x.clone() + if c > 2 { Tensor::cat(vec![away.clone(), rest], 3) } else { away.clone() }
        };
        let (gate, cotangent) = (draw.tensor([b, c]), draw.tensor([b, h, w, c]));
        let norm = |f: fn(Tensor<4>, Tensor<2>) -> Tensor<4>| {
            outcome(f(spread(), m.clone()), &cotangent, &[&of(&x), &of(&m)])
        };
        compare("layer_norm_scaled", norm(super::layer_norm_scaled), norm(plain::layer_norm_scaled));
        let gated = |f: fn(Tensor<4>, Tensor<2>, Tensor<4>) -> Tensor<4>| {
            outcome(f(x.clone(), gate.clone(), r.clone()), &cotangent, &[&of(&x), &of(&gate), &of(&r)])
        };
        compare("gated_add", gated(super::gated_add), gated(plain::gated_add));
        for f in [Pointwise::Silu, Pointwise::GeluTanh] {
            let run = |op: fn(Pointwise, Tensor<4>) -> Tensor<4>| outcome(op(f, x.clone()), &cotangent, &[&of(&x)]);
            compare(&format!("{f:?}"), run(super::pointwise), run(plain::pointwise));
        }
    }

    #[test]
    fn what_keeps_magnitudes(
        seed: u64, b in 1_usize..4, h in 1_usize..12, w in 1_usize..12, c in 1_usize..40, d in 1_usize..20,
    ) {
        let mut draw = Draw { seed, drawn: 0 };
        let (x, other, skip) = (draw.tensor([b, h, w, c]), draw.tensor([b, h, w, c]), draw.tensor([b, h, w, d]));
        let (gate, cotangent) = (draw.tensor([b, c]), draw.tensor([b, h, w, c]));
        let gated = |f: fn(Tensor<4>, Tensor<2>) -> Tensor<4>| {
            outcome(f(x.clone(), gate.clone()), &cotangent, &[&of(&x), &of(&gate)])
        };
        compare("gated_silu", gated(super::gated_silu), gated(plain::gated_silu));
        let summed = |f: fn(Tensor<4>, Tensor<4>, f64) -> Tensor<4>| {
            outcome(f(x.clone(), other.clone(), 0.7), &cotangent, &[&of(&x), &of(&other)])
        };
        compare("add_scaled", summed(super::add_scaled), summed(plain::add_scaled));
        let both = draw.tensor([b, h, w, c + d]);
        let joined = |f: fn(Tensor<4>, Tensor<4>, [f64; 2]) -> Tensor<4>| {
            outcome(f(x.clone(), skip.clone(), [0.7, -1.2]), &both, &[&of(&x), &of(&skip)])
        };
        compare("join_scaled", joined(super::join_scaled), joined(plain::join_scaled));
        // Some rows are shorter than the larger floor, most are longer.
        for floor in [1e-4, 0.5] {
            let unit = |f: fn(Tensor<4>, f64, f64) -> Tensor<4>| outcome(f(x.clone(), 3.0, floor), &cotangent, &[&of(&x)]);
            compare_norms("unit_rows", &x, 3.0 * largest(&cotangent), unit(super::unit_rows), unit(plain::unit_rows));
        }
    }

    #[test]
    fn dropped_values(seed: u64, b in 1_usize..4, h in 1_usize..12, w in 1_usize..12, c in 1_usize..40, draw: u64) {
        let mut tensors = Draw { seed, drawn: 0 };
        let (x, cotangent) = (tensors.tensor([b, h, w, c]), tensors.tensor([b, h, w, c]));
        let words = [seed as u32, (seed >> 32) as u32];
        let fused = outcome(super::dropout(x.clone(), &DropoutKey::Words(words), draw, 0.3), &cotangent, &[&of(&x)]);
        let plain = outcome(plain::dropout(x.clone(), Mask::new(words, draw, 0.3)), &cotangent, &[&of(&x)]);
        prop_assert_eq!(fused, plain);
    }

    #[test]
    fn resized_axes(seed: u64, b in 1_usize..4, n in 1_usize..7, w in 1_usize..6, c in 1_usize..20) {
        for resize in [AxisResize::HalveByMean, AxisResize::DoubleLinearly] {
            let mut draw = Draw { seed, drawn: 0 };
            let n = if resize == AxisResize::HalveByMean { 2 * n } else { n };
            let (x, cotangent) = (draw.tensor([b, n, w, c]), draw.tensor([b, resize.length(n), w, c]));
            let fused = outcome(super::resize_axis(x.clone(), 1, resize), &cotangent, &[&of(&x)]);
            compare("resize_axis", fused, outcome(plain::resize_axis(x.clone(), resize), &cotangent, &[&of(&x)]));
        }
    }

    #[test]
    fn rectified_convolution(
        seed: u64, b in 1_usize..4, size in [3_usize..12, 3_usize..12], c in 1_usize..20, o in 1_usize..20,
        kernel in [1_usize..5, 1_usize..5], stride in 1_usize..3, padding in [0_usize..3, 0_usize..3],
    ) {
        let kernel = [0, 1].map(|axis| kernel[axis].min(size[axis] + 2 * padding[axis]));
        let mut draw = Draw { seed, drawn: 0 };
        let x = draw.tensor([b, size[0], size[1], c]);
        let (weight, bias) = (draw.tensor([o, c, kernel[0], kernel[1]]), draw.tensor([o]));
        let side = |axis: usize| (size[axis] + 2 * padding[axis] - kernel[axis]) / stride + 1;
        let cotangent = draw.tensor([b, side(0), side(1), o]);
        let run = |f: fn(Tensor<4>, Window, Tensor<4>, Tensor<1>) -> Tensor<4>| {
            let y = f(x.clone(), Window { stride, padding }, weight.clone(), bias.clone());
            outcome(y, &cotangent, &[&of(&x), &of(&weight), &of(&bias)])
        };
        compare("conv2d_relu", run(super::conv2d_relu), run(plain::conv2d_relu));
    }

    #[test]
    fn pooling(
        seed: u64, b in 1_usize..4, h in 3_usize..10, w in 3_usize..10, c in 1_usize..20,
        window in 1_usize..4, stride in 1_usize..3, padded: bool,
    ) {
        let padding = if padded { window / 2 } else { 0 };
        let mut draw = Draw { seed, drawn: 0 };
        let x = draw.tensor([b, h, w, c]);
        let side = |size: usize| (size + 2 * padding - window) / stride + 1;
        let cotangent = draw.tensor([b, side(h), side(w), c]);
        for pooling in [Pooling::Max, Pooling::Mean] {
            let run = |f: fn(Tensor<4>, Pool) -> Tensor<4>| {
                let y = f(x.clone(), Pool { pooling, window, stride, padding });
                outcome(y, &cotangent, &[&of(&x)])
            };
            compare("pool2d", run(super::pool2d), run(plain::pool2d));
        }
    }

    #[test]
    fn resampled_convolution(seed: u64, b in 1_usize..4, h in 1_usize..7, w in 1_usize..7, c in 1_usize..20, o in 1_usize..20) {
        for (resampling, kernel, depth, times) in [(Resampling::Double, 3, 1, 4), (Resampling::Halve, 1, 4, 1)] {
            let mut draw = Draw { seed, drawn: 0 };
            let x = draw.tensor([b, 2 * h, 2 * w, c]);
            let (weight, bias) = (draw.tensor([o, depth * c, kernel, kernel]), draw.tensor([o]));
            let cotangent = draw.tensor([b, h * times, w * times, o]);
            let run = |f: fn(Tensor<4>, Resampling, Tensor<4>, Option<Tensor<1>>) -> Tensor<4>| {
                let y = f(x.clone(), resampling, weight.clone(), Some(bias.clone()));
                outcome(y, &cotangent, &[&of(&x), &of(&weight), &of(&bias)])
            };
            compare("conv2d_resampled", run(super::conv2d_resampled), run(plain::conv2d_resampled));
        }
    }

    #[test]
    fn convolution_of_two_inputs_and_with_a_residual(
        seed: u64, b in 1_usize..4, h in 1_usize..10, w in 1_usize..10,
        c in prop::sample::select(vec![3_usize, 16, 32]), skip in 1_usize..20, o in 1_usize..20,
        kernel in prop::sample::select(vec![1_usize, 3]),
    ) {
        let mut draw = Draw { seed, drawn: 0 };
        let (x, skip) = (draw.tensor([b, h, w, c]), draw.tensor([b, h, w, skip]));
        let (weight, bias) = (draw.tensor([o, c + skip.dims()[3], kernel, kernel]), draw.tensor([o]));
        let (residual, cotangent) = (draw.tensor([b, h, w, o]), draw.tensor([b, h, w, o]));
        let run = |f: fn(Tensor<4>, Tensor<4>, Tensor<4>, Option<Tensor<1>>) -> Tensor<4>| {
            let y = f(x.clone(), skip.clone(), weight.clone(), Some(bias.clone()));
            outcome(y, &cotangent, &[&of(&x), &of(&skip), &of(&weight), &of(&bias)])
        };
        compare("conv2d_skip", run(super::conv2d_skip), run(plain::conv2d_skip));
        let weight: Tensor<4> = draw.tensor([o, c, kernel, kernel]);
        let run = |f: fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, Tensor<4>) -> Tensor<4>| {
            let y = f(x.clone(), weight.clone(), Some(bias.clone()), residual.clone());
            outcome(y, &cotangent, &[&of(&x), &of(&weight), &of(&bias), &of(&residual)])
        };
        compare("conv2d_add", run(super::conv2d_add), run(plain::conv2d_add));
    }

    #[test]
    fn normalisation(seed: u64, b in 1_usize..4, h in 1_usize..6, w in 1_usize..6, c in 1_usize..40, added: bool) {
        let mut draw = Draw { seed, drawn: 0 };
        let (x, g, scale_shift) = (draw.tensor([b, h, w, c]), draw.tensor([c]), draw.tensor([b, 2 * c]));
        let (residual, cotangent) = (draw.tensor([b, h, w, c]), draw.tensor([b, h, w, c]));
        let run = |f: fn(Tensor<4>, Tensor<1>, Tensor<2>) -> Tensor<4>| {
            let y = f(x.clone(), g.clone(), scale_shift.clone());
            outcome(y, &cotangent, &[&of(&x), &of(&g), &of(&scale_shift)])
        };
        // SiLU is never steeper than 1.1.
        let most = 1.1 * (c as f32).sqrt() * largest(&g) * largest(&cotangent);
        let scaled = most * (1.0 + largest(&scale_shift));
        let (fused, plain) = (run(super::rms_norm_scaled_silu), run(plain::rms_norm_scaled_silu));
        compare_norms("rms_norm_scaled_silu", &x, scaled, fused, plain);
        let run = |f: fn(Tensor<4>, Tensor<1>, Option<Tensor<4>>) -> Tensor<4>| {
            let y = f(x.clone(), g.clone(), added.then(|| residual.clone()));
            let (x, g, residual) = (of(&x), of(&g), of(&residual));
            let all: [&GradientOf<'_>; 3] = [&x, &g, &residual];
            outcome(y, &cotangent, if added { &all } else { &all[..2] })
        };
        compare_norms("rms_norm_silu", &x, most, run(super::rms_norm_silu), run(plain::rms_norm_silu));
        compare_norms("rms_norm", &x, most, run(super::rms_norm), run(plain::rms_norm));
    }

    #[test]
    fn attention(
        seed: u64, b in 1_usize..3, h in 1_usize..7, w in 1_usize..7, heads in 1_usize..4, d in 1_usize..20, m in 0_usize..5,
    ) {
        let mut draw = Draw { seed, drawn: 0 };
        let (qkv, cotangent) = (draw.tensor([b, h, w, 3 * heads * d]), draw.tensor([b, h, w, heads * d]));
        let (full_memory, linear_memory) = (draw.tensor([2, heads, m, d]), draw.tensor([2, heads, d, m]));
        let run = |f: fn(Tensor<4>, Tensor<4>) -> Tensor<4>, memory: &Tensor<4>| {
            let (of_qkv, of_memory) = (of(&qkv), of(memory));
            let all: [&GradientOf<'_>; 2] = [&of_qkv, &of_memory];
            outcome(f(qkv.clone(), memory.clone()), &cotangent, if m > 0 { &all } else { &all[..1] })
        };
        compare("attention", run(super::attention, &full_memory), run(plain::attention, &full_memory));
        compare(
            "linear attention",
            run(super::linear_attention, &linear_memory),
            run(plain::linear_attention, &linear_memory),
        );
    }
}

fn sequence(values: &[f32]) -> Tensor<3> {
    Tensor::<1>::from_floats(values, &Device::flex()).reshape([1, values.len() as i32, 1])
}

#[test]
fn a_sequence_resized() {
    let halved = |values: &[f32]| host_values(super::resize_axis(sequence(values), 1, AxisResize::HalveByMean));
    let doubled = |values: &[f32]| host_values(super::resize_axis(sequence(values), 1, AxisResize::DoubleLinearly));
    assert_eq!(halved(&[1.0, 3.0, 4.0, 8.0]), [2.0, 6.0]);
    assert_eq!(doubled(&[4.0, 8.0]), [4.0, 5.0, 7.0, 8.0]);
    assert_eq!(doubled(&[4.0]), [4.0, 4.0]);
}

#[test]
fn an_axis_in_the_middle_resized() {
    let x = Tensor::<1>::from_floats([0.0, 1.0, 4.0, 5.0], &Device::flex()).reshape([1, 2, 2, 1]);
    let resized = |axis, resize| host_values(super::resize_axis::<4>(x.clone(), axis, resize));
    assert_eq!(resized(1, AxisResize::HalveByMean), [2.0, 3.0]);
    assert_eq!(resized(2, AxisResize::HalveByMean), [0.5, 4.5]);
    assert_eq!(resized(1, AxisResize::DoubleLinearly), [0.0, 1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 5.0]);
}

/// More positions than the plain version processes in one block.
#[test]
fn long_attention_in_blocks() {
    let mut draw = Draw { seed: 1, drawn: 0 };
    let (qkv, memory) = (draw.tensor([1, 1100, 1, 3 * 8]), draw.tensor([2, 1, 4, 8]));
    let cotangent = draw.tensor([1, 1100, 1, 8]);
    let run = |f: fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
        outcome(f(qkv.clone(), memory.clone()), &cotangent, &[&of(&qkv), &of(&memory)])
    };
    compare("attention in blocks", run(super::attention), run(plain::attention));
}

/// Tensors that are not contiguous (slices, permutations) give the same result as contiguous ones.
#[test]
fn inputs_need_not_be_contiguous() {
    let mut draw = Draw { seed: 2, drawn: 0 };
    let x: Tensor<4> = draw.tensor([2, 6, 5, 4]);
    let weight: Tensor<4> = draw.tensor([3, 6, 3, 3]);
    let permuted = x.clone().permute([0, 2, 3, 1]).narrow(1, 1, 3);
    let contiguous = Tensor::from_data(permuted.to_data(), &permuted.device());
    let run = |x: Tensor<4>| host_values(super::conv2d(x, weight.clone(), None));
    assert_eq!(run(permuted), run(contiguous));
}

/// Values that are not finite must not disappear.
#[test]
fn nan_is_not_swallowed() {
    let mut draw = Draw { seed: 3, drawn: 0 };
    let weight: Tensor<4> = draw.tensor([4, 4, 3, 3]);
    let x = draw.tensor([1, 8, 8, 4]).detach();
    let spoiled = x.slice_fill([0..1, 3..4, 3..4, 0..1], f32::NAN);
    let y = host_values(super::conv2d(spoiled.clone(), weight, None));
    assert!(y.iter().any(|v| v.is_nan()));
    let g = draw.tensor([4]);
    assert!(host_values(super::rms_norm_silu(spoiled, g, None)).iter().any(|v| v.is_nan()));
}

/// Blocks that keep only their inputs give the same bits as blocks that keep everything.
#[test]
fn recomputed_blocks_give_the_same_bits() {
    let mut draw = Draw { seed: 4, drawn: 0 };
    let (x, skip): (Tensor<4>, Tensor<4>) = (draw.tensor([2, 6, 6, 16]), draw.tensor([2, 6, 6, 8]));
    let conv =
        |draw: &mut Draw, o, i, k| ConvWeights { weight: draw.tensor([o, i, k, k]), bias: Some(draw.tensor([o])) };
    let block = |draw: &mut Draw, inputs| ResidualBlock {
        conv1: conv(draw, 12, inputs, 3),
        g1: draw.tensor([12]),
        scale_shift: draw.tensor([2, 24]),
        conv2: conv(draw, 12, 12, 3),
        g2: draw.tensor([12]),
        residual: draw.tensor([2, 6, 6, 12]),
    };
    let cotangent = draw.tensor([2, 6, 6, 12]);
    for skip in [None, Some(skip)] {
        let parts = block(&mut draw, if skip.is_some() { 24 } else { 16 });
        let run = |recompute: bool| {
            let ResidualBlock { conv1, g1, scale_shift, conv2, g2, residual } = parts.clone();
            let y = if recompute {
                parts.clone().forward_recomputed(x.clone(), skip.clone())
            } else {
                let h = match skip.clone() {
                    Some(skip) => super::conv2d_skip(x.clone(), skip, conv1.weight, conv1.bias),
                    None => super::conv2d(x.clone(), conv1.weight, conv1.bias),
                };
                let h = super::conv2d(super::rms_norm_scaled_silu(h, g1, scale_shift), conv2.weight, conv2.bias);
                super::rms_norm_silu(h, g2, Some(residual))
            };
            let p = &parts;
            outcome(
                y,
                &cotangent,
                &[
                    &of(&x),
                    &of(&p.conv1.weight),
                    &of(&p.g1),
                    &of(&p.scale_shift),
                    &of(&p.conv2.weight),
                    &of(&p.g2),
                    &of(&p.residual),
                ],
            )
        };
        assert_eq!(run(true), run(false));
    }
    let (to_qkv, to_out) = (conv(&mut draw, 24, 16, 1), conv(&mut draw, 16, 8, 1));
    let (g, out_g): (Tensor<1>, Tensor<1>) = (draw.tensor([16]), draw.tensor([16]));
    let (full_memory, linear_memory): (Tensor<4>, Tensor<4>) = (draw.tensor([2, 2, 3, 4]), draw.tensor([2, 2, 4, 3]));
    let cotangent = draw.tensor([2, 6, 6, 16]);
    let attend = |recompute: bool, linear: bool| {
        let (x, g, q, o) = (x.clone(), g.clone(), to_qkv.clone(), to_out.clone());
        match (recompute, linear) {
            (true, false) => super::attention_block_recomputed(x, g, q, full_memory.clone(), o),
            (true, true) => super::linear_attention_block_recomputed(x, g, q, linear_memory.clone(), o, out_g.clone()),
            (false, linear) => {
                let qkv = super::conv2d(super::rms_norm(x.clone(), g, None), q.weight, q.bias);
                if linear {
                    let y = super::linear_attention(qkv, linear_memory.clone());
                    super::rms_norm(super::conv2d(y, o.weight, o.bias), out_g.clone(), Some(x))
                } else {
                    super::conv2d_add(super::attention(qkv, full_memory.clone()), o.weight, o.bias, x)
                }
            }
        }
    };
    for (linear, memory) in [(false, &full_memory), (true, &linear_memory)] {
        let run = |recompute| {
            outcome(
                attend(recompute, linear),
                &cotangent,
                &[&of(&x), &of(&g), &of(&to_qkv.weight), &of(memory), &of(&to_out.weight)],
            )
        };
        assert_eq!(run(true), run(false));
    }
}

/// A pixel of zeros is multiplied by a constant, whose gradient is large but a number.
#[test]
fn norms_of_zeros_have_a_gradient() {
    let mut draw = Draw { seed: 5, drawn: 0 };
    let (g, cotangent) = (draw.tensor([3]), draw.tensor([1, 1, 2, 3]));
    let x = Tensor::cat(vec![draw.tensor([1, 1, 1, 3]), Tensor::zeros([1, 1, 1, 3], &g.device())], 2).detach();
    let x = x.require_grad();
    let run = |y: Tensor<4>| outcome(y, &cotangent, &[&of(&x), &of(&g)]);
    let (fused, plain) =
        (run(super::rms_norm(x.clone(), g.clone(), None)), run(plain::rms_norm(x.clone(), g.clone(), None)));
    assert!(plain[1].iter().all(|value| value.is_finite()), "{plain:?}");
    compare("rms_norm of zeros", fused, plain);
}
