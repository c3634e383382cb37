//! Each layer alone: output and gradients with respect to inputs and parameters.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation};
use denoising_diffusion::nn::{
    Attention, Axes, Block, Conv2d, FourierPosEmb, FourierWeights, Init, LinearAttention, Linears, Resample,
    Resampling, ResnetBlock, RmsNorm, SinusoidalPosEmb, ops, params,
};
use denoising_diffusion::train::NamedGradients;
use denoising_diffusion::weights::StateDict;

use crate::golden::{Golden, assert_close, test_device, values};

struct Case<'a> {
    golden: &'a Golden,
    layer: &'a str,
    device: Device,
}

impl<'a> Case<'a> {
    fn new(golden: &'a Golden, layer: &'a str) -> Self {
        Self { golden, layer, device: test_device().autodiff() }
    }

    fn key(&self, rest: &str) -> String {
        format!("{}.{rest}", self.layer)
    }

    fn init(&self) -> Init {
        Init::new(0, &self.device)
    }

    fn input<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.golden.tensor(&self.key(&format!("input.{name}")), &self.device).require_grad()
    }

    /// The layer's parameters under our names.
    fn state(&self, kind: &str, rename: impl Fn(&str) -> String) -> StateDict {
        let mut state = StateDict::new();
        for (name, tensor) in self.golden.under(&self.key(kind)).iter() {
            let mut tensor = tensor.clone();
            if name.ends_with('g') && tensor.shape.len() == 4 {
                tensor.shape = vec![tensor.shape[1]];
            }
            state.insert(rename(name), tensor);
        }
        state
    }

    fn load<M: Module>(&self, layer: M, rename: impl Fn(&str) -> String) -> M {
        params::load_state_dict(layer, &self.state("state.", rename)).unwrap()
    }

    /// Compares output `[b, c, h, w]` and, of `sum(output * cotangent)`, all gradients.
    fn check<M: Module, const D: usize, const I: usize>(
        &self,
        layer: &M,
        output: Tensor<D>,
        inputs: &[(&str, &Tensor<I>)],
        rename: impl Fn(&str) -> String,
    ) {
        assert_close(self.layer, &values(output.clone()), self.golden.values(&self.key("output")), 1e-4);
        let loss = (output * self.golden.tensor(&self.key("cotangent"), &self.device)).sum();
        let mut gradients = loss.backward();
        for (name, input) in inputs {
            let key = self.key(&format!("grad_input.{name}"));
            assert_close(&key, &values(input.grad(&gradients).unwrap()), self.golden.values(&key), 1e-4);
        }
        let expected = self.state("grad_state.", rename);
        let mut seen = 0;
        for (name, gradient) in NamedGradients::take(layer, &mut gradients).iter() {
            let expected = expected.get(name).unwrap_or_else(|| panic!("{}: {name}", self.layer));
            assert_close(&self.key(name), &values(gradient.clone()), &expected.values, 1e-4);
            seen += 1;
        }
        assert_eq!(seen, expected.len(), "{}", self.layer);
    }
}

fn same(name: &str) -> String {
    name.to_string()
}

/// Runs a channels-last layer on `[b, c, h, w]`.
fn on_nchw(x: &Tensor<4>, layer: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    ops::to_nchw(layer(ops::to_nhwc(x.clone())))
}

#[test]
fn rms_norm() {
    let golden = Golden::open("layers");
    for name in ["rms_norm", "rms_norm_zero"] {
        let case = Case::new(&golden, name);
        let layer = case.load(RmsNorm::new(&mut case.init(), 6), same);
        let x = case.input("x");
        let output = on_nchw(&x, |x| layer.forward(x));
        if name == "rms_norm" {
            case.check(&layer, output, &[("x", &x)], same);
        } else {
            assert_close(name, &values(output), golden.values("rms_norm_zero.output"), 1e-6);
        }
    }
}

#[test]
fn block_with_and_without_scale_and_shift() {
    let golden = Golden::open("layers");
    for name in ["block", "block_scale_shift"] {
        let case = Case::new(&golden, name);
        let layer = case.load(Block::new(&mut case.init(), Axes::Both, 6, 8), same);
        let x = case.input("x");
        let scale_shift = (name == "block_scale_shift").then(|| {
            let part = |part: &str| case.input::<4>(part).reshape([-1, 8]);
            Tensor::cat(vec![part("scale"), part("shift")], 1)
        });
        let output = on_nchw(&x, |x| match scale_shift {
            Some(scale_shift) => layer.forward_scaled(x, None, scale_shift),
            None => {
                let [b, h, w, _] = x.dims();
                let no_residual = Tensor::zeros([b, h, w, 8], &x.device());
                layer.forward(x, no_residual)
            }
        });
        case.check(&layer, output, &[("x", &x)], same);
    }
}

#[test]
fn residual_block() {
    let golden = Golden::open("layers");
    let rename = |name: &str| name.replace("mlp.1.", "mlp.");
    for (name, dim_in) in [("resnet_equal", 8), ("resnet_different", 6)] {
        let case = Case::new(&golden, name);
        let layer = case.load(ResnetBlock::new(&mut case.init(), dim_in, 8, 12, 0.0), rename);
        let (x, time) = (case.input("x"), case.input::<2>("time_emb"));
        let run = |x| layer.forward(x, None, &Linears::new(activation::silu(time.clone()), [&layer.mlp]));
        let output = on_nchw(&x, run);
        case.check(&layer, output, &[("x", &x)], rename);
        let output = on_nchw(&x, run);
        case.check(&layer, output, &[("time_emb", &time)], rename);
    }
}

#[test]
fn softmax_attention() {
    let golden = Golden::open("layers");
    for (name, dim, heads, dim_head) in
        [("attention", 8, 2, 6), ("attention_default", 8, 4, 32), ("attention_long", 4, 1, 8)]
    {
        let case = Case::new(&golden, name);
        let layer = case.load(Attention::new(&mut case.init(), dim, heads, dim_head, 4), same);
        let x = case.input("x");
        case.check(&layer, on_nchw(&x, |x| layer.forward_residual(x.clone()) - x), &[("x", &x)], same);
    }
}

#[test]
fn linear_attention() {
    let golden = Golden::open("layers");
    let rename = |name: &str| name.replace("to_out.0.", "to_out.").replace("to_out.1.", "out_norm.");
    for (name, dim, heads, dim_head) in
        [("linear_attention", 8, 2, 6), ("linear_attention_default", 8, 4, 32), ("linear_attention_long", 4, 1, 8)]
    {
        let case = Case::new(&golden, name);
        let layer = case.load(LinearAttention::new(&mut case.init(), dim, heads, dim_head, 4), rename);
        let x = case.input("x");
        case.check(&layer, on_nchw(&x, |x| layer.forward_residual(x.clone()) - x), &[("x", &x)], rename);
    }
}

#[test]
fn halving_and_doubling() {
    let golden = Golden::open("layers");
    for (name, kind) in [("upsample", Resampling::Double), ("downsample", Resampling::Halve)] {
        let case = Case::new(&golden, name);
        let rename = |name: &str| name.replace("1.", "conv.");
        let args = &golden.config["layers"][name]["args"];
        let dims = [0, 1].map(|i| args[i].as_u64().unwrap_or(args[0].as_u64().unwrap()) as usize);
        let layer = case.load(Resample::new(&mut case.init(), dims[0], dims[1], kind), rename);
        let x = case.input("x");
        case.check(&layer, on_nchw(&x, |x| layer.forward(x)), &[("x", &x)], rename);
    }
}

#[test]
fn embeddings_of_time() {
    let golden = Golden::open("layers");
    let device = test_device();
    for (name, theta) in [("sinusoidal_100", 100.0), ("sinusoidal_10000", 10_000.0)] {
        let time = golden.tensor::<1>(&format!("{name}.input.time"), &device);
        let output = SinusoidalPosEmb::new(16, theta).forward(time);
        // The sine of an angle near 1000 in f32 is only as exact as the angle, 6e-5.
        assert_close(name, &values(output), golden.values(&format!("{name}.output")), 1e-4);
    }
    for (name, kind) in [("fourier_learned", FourierWeights::Learned), ("fourier_random", FourierWeights::Fixed)] {
        let case = Case::new(&golden, name);
        let layer = case.load(FourierPosEmb::new(&mut case.init(), 16, kind), same);
        let time = case.input::<1>("time");
        case.check(&layer, layer.forward(time.clone()), &[("time", &time)], same);
    }
}

/// The convolutions' op against a sum over a window, in f64.
#[test]
fn convolution_is_a_sum_over_a_window() {
    let device = test_device();
    for kernel in [1, 3, 7] {
        let conv = Conv2d::new(&mut Init::new(5, &device), 3, 4, kernel);
        let (h, w) = (5, 4);
        let x = Tensor::<1>::from_floats(
            (0..h * w * 3).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>().as_slice(),
            &device,
        );
        let got = values(conv.forward(x.clone().reshape([1, h, w, 3])));
        let (x, weight, bias) = (values(x), values(conv.weight.val()), values(conv.bias.as_ref().unwrap().val()));
        let half = (kernel / 2) as i64;
        let mut expected = Vec::new();
        for (y, z, o) in (0..h).flat_map(|y| (0..w).flat_map(move |z| (0..4).map(move |o| (y, z, o)))) {
            let mut sum = f64::from(bias[o]);
            for (dy, dz, i) in (0..kernel).flat_map(|a| (0..kernel).flat_map(move |b| (0..3).map(move |i| (a, b, i)))) {
                let (r, c) = (y as i64 + dy as i64 - half, z as i64 + dz as i64 - half);
                if (0..h as i64).contains(&r) && (0..w as i64).contains(&c) {
                    let at = ((o * 3 + i) * kernel + dy) * kernel + dz;
                    sum += f64::from(x[(r as usize * w + c as usize) * 3 + i]) * f64::from(weight[at]);
                }
            }
            expected.push(sum as f32);
        }
        assert_close(&format!("kernel {kernel}"), &got, &expected, 1e-5);
    }
}

#[test]
fn gelu_of_the_time_embedding_is_the_exact_one() {
    let device = test_device();
    let y = values(activation::gelu(Tensor::<1>::from_floats([-2.0, -0.5, 0.0, 1.0, 3.0], &device)));
    // x Phi(x)
    assert_close("gelu", &y, &[-0.045_500_264, -0.154_268_77, 0.0, 0.841_344_7, 2.995_950_3], 1e-6);
}
