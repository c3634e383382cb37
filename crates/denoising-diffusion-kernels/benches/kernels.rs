//! Throughput of the kernels at the sizes of a U-Net of width 64 on 32 x 32 images, batch 16.
//!
//! `cargo bench -p denoising-diffusion-kernels` reports items per second, where an item is a floating-point operation (convolution,
//! attention), and bytes per second of inputs and outputs (normalisation, optimizer). Winograd convolutions are counted as if
//! computed directly, so they may exceed the machine's peak.

use denoising_diffusion_kernels::activation::{Activation, silu_backward, silu_forward};
use denoising_diffusion_kernels::attention::{
    AttentionShape, attention_backward, attention_forward, linear_attention_backward, linear_attention_forward,
};
use denoising_diffusion_kernels::conv::{
    Conv2dShape, ConvAlgorithm, conv2d_forward, conv2d_input_grad, conv2d_weight_grad,
};
use denoising_diffusion_kernels::norm::{
    GroupNormAffine, GroupNormGrads, GroupNormShape, RmsNormGrads, RmsNormShape, group_norm_backward,
    group_norm_forward, rms_norm_backward, rms_norm_forward,
};
use denoising_diffusion_kernels::optim::{AdamStep, adam_step, squared_norm};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Channels and side of the 3 x 3 convolutions of the four stages.
const STAGES: [(usize, usize); 4] = [(64, 32), (128, 16), (256, 8), (512, 4)];
const ALGORITHMS: [ConvAlgorithm; 2] = [ConvAlgorithm::Auto, ConvAlgorithm::Direct];

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 1013) as f32 / 1013.0 - 0.5).collect()
}

fn conv_shape((channels, side): (usize, usize), kernel: usize) -> Conv2dShape {
    Conv2dShape {
        batch: 16,
        height: side,
        width: side,
        upsample: 1,
        in_channels: channels,
        out_channels: channels,
        kernel: [kernel; 2],
        stride: 1,
        padding: kernel / 2,
    }
}

fn cases() -> impl Iterator<Item = (ConvAlgorithm, usize, (usize, usize))> {
    let three = ALGORITHMS.into_iter().flat_map(|a| STAGES.map(|stage| (a, 3, stage)));
    three.chain(STAGES.map(|stage| (ConvAlgorithm::Direct, 1, stage)))
}

#[divan::bench(args = cases().map(Case))]
fn conv_forward(bencher: Bencher, &Case((algorithm, kernel, stage)): &Case) {
    let shape = conv_shape(stage, kernel);
    let (x, weight) = (values(shape.input_len()), values(shape.weight_len()));
    let mut y = values(shape.output_len());
    let run = || conv2d_forward(&shape, algorithm, black_box(&[&x]), &weight, None, None, &mut y);
    bencher.counter(ItemsCount::new(shape.flops())).bench_local(run);
}

#[divan::bench(args = cases().map(Case))]
fn conv_input_grad(bencher: Bencher, &Case((algorithm, kernel, stage)): &Case) {
    let shape = conv_shape(stage, kernel);
    let (dy, weight) = (values(shape.output_len()), values(shape.weight_len()));
    let mut dx = values(shape.input_len());
    let run = || conv2d_input_grad(&shape, algorithm, black_box(&dy), &weight, &mut [&mut dx]);
    bencher.counter(ItemsCount::new(shape.flops())).bench_local(run);
}

#[divan::bench(args = cases().map(Case))]
fn conv_weight_grad(bencher: Bencher, &Case((algorithm, kernel, stage)): &Case) {
    let shape = conv_shape(stage, kernel);
    let (x, dy) = (values(shape.input_len()), values(shape.output_len()));
    let mut dweight = values(shape.weight_len());
    let run = || conv2d_weight_grad(&shape, algorithm, black_box(&[&x]), &dy, &mut dweight);
    bencher.counter(ItemsCount::new(shape.flops())).bench_local(run);
}

/// The direct convolutions that are not 3 x 3: 1 x 1 of attention and skip connections, 7 x 7 of the first layer, 2 x 2 of
/// downsampling. Batch, side, channels in and out, kernel.
const OTHERS: [[usize; 5]; 13] = [
    [16, 32, 64, 384, 1],
    [16, 32, 128, 64, 1],
    [16, 16, 128, 384, 1],
    [16, 16, 192, 128, 1],
    [16, 8, 256, 384, 1],
    [16, 4, 512, 384, 1],
    [16, 4, 768, 512, 1],
    [32, 28, 32, 384, 1],
    [16, 32, 3, 64, 7],
    [32, 28, 1, 32, 7],
    [16, 32, 64, 64, 2],
    [16, 8, 128, 256, 2],
    [32, 28, 32, 32, 2],
];

fn other_shape([batch, side, in_channels, out_channels, kernel]: [usize; 5]) -> Conv2dShape {
    let (stride, padding) = if kernel == 2 { (2, 0) } else { (1, kernel / 2) };
    let kernel = [kernel; 2];
    Conv2dShape { batch, height: side, width: side, upsample: 1, in_channels, out_channels, kernel, stride, padding }
}

/// A convolution of [`OTHERS`].
struct Other([usize; 5]);

impl std::fmt::Display for Other {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [batch, side, from, to, kernel] = self.0;
        write!(f, "{kernel} x {kernel}, {from} to {to} channels, {batch} of {side} x {side}")
    }
}

#[divan::bench(args = OTHERS.map(Other))]
fn direct_forward(bencher: Bencher, &Other(other): &Other) {
    let shape = other_shape(other);
    let (x, weight) = (values(shape.input_len()), values(shape.weight_len()));
    let mut y = values(shape.output_len());
    let run = || conv2d_forward(&shape, ConvAlgorithm::Direct, black_box(&[&x]), &weight, None, None, &mut y);
    bencher.counter(ItemsCount::new(shape.flops())).bench_local(run);
}

#[divan::bench(args = OTHERS.map(Other))]
fn direct_input_grad(bencher: Bencher, &Other(other): &Other) {
    let shape = other_shape(other);
    let (dy, weight) = (values(shape.output_len()), values(shape.weight_len()));
    let mut dx = values(shape.input_len());
    let run = || conv2d_input_grad(&shape, ConvAlgorithm::Direct, black_box(&dy), &weight, &mut [&mut dx]);
    bencher.counter(ItemsCount::new(shape.flops())).bench_local(run);
}

#[divan::bench(args = OTHERS.map(Other))]
fn direct_weight_grad(bencher: Bencher, &Other(other): &Other) {
    let shape = other_shape(other);
    let (x, dy) = (values(shape.input_len()), values(shape.output_len()));
    let mut dweight = values(shape.weight_len());
    let run = || conv2d_weight_grad(&shape, ConvAlgorithm::Direct, black_box(&[&x]), &dy, &mut dweight);
    bencher.counter(ItemsCount::new(shape.flops())).bench_local(run);
}

/// A convolution's algorithm, kernel size, and (channels, side).
struct Case((ConvAlgorithm, usize, (usize, usize)));

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (algorithm, kernel, (channels, side)) = self.0;
        write!(f, "{kernel} x {kernel}, {channels} channels, {side} x {side}, {algorithm:?}")
    }
}

/// Channels of normalised activations; always 2^20 values.
const CHANNELS: [usize; 5] = [32, 64, 128, 256, 512];

fn norm_shape(channels: usize) -> RmsNormShape {
    RmsNormShape { batch: 16, positions: (1 << 16) / channels, channels }
}

/// What the normalisations are to be measured against.
#[divan::bench]
fn copy(bencher: Bencher) {
    let (x, mut y) = (values(1 << 20), values(1 << 20));
    bencher.counter(BytesCount::new(8usize << 20)).bench_local(|| y.copy_from_slice(black_box(&x)));
}

fn bench_norm_forward(bencher: Bencher, channels: usize, activation: Activation) {
    let s = norm_shape(channels);
    let (x, g, m) = (values(s.len()), values(channels), values(16 * 2 * channels));
    let mut y = values(s.len());
    let run = || rms_norm_forward(&s, black_box(&x), &g, Some(&m), activation, None, &mut y);
    bencher.counter(BytesCount::new(8 * s.len())).bench_local(run);
}

fn bench_norm_backward(bencher: Bencher, channels: usize, activation: Activation) {
    let s = norm_shape(channels);
    let (x, dy, g, m) = (values(s.len()), values(s.len()), values(channels), values(16 * 2 * channels));
    let (mut dx, mut dg, mut dm) = (values(s.len()), values(channels), values(16 * 2 * channels));
    let run = || {
        let grads = RmsNormGrads { x: &mut dx, g: &mut dg, scale_shift: Some(&mut dm) };
        rms_norm_backward(&s, black_box(&x), &g, Some(&m), activation, &dy, grads);
    };
    bencher.counter(BytesCount::new(12 * s.len())).bench_local(run);
}

#[divan::bench(args = CHANNELS)]
fn rms_norm_silu_forward(bencher: Bencher, channels: usize) {
    bench_norm_forward(bencher, channels, Activation::Silu);
}

#[divan::bench(args = CHANNELS)]
fn rms_norm_silu_backward(bencher: Bencher, channels: usize) {
    bench_norm_backward(bencher, channels, Activation::Silu);
}

#[divan::bench(args = CHANNELS)]
fn rms_norm_plain_forward(bencher: Bencher, channels: usize) {
    bench_norm_forward(bencher, channels, Activation::Identity);
}

#[divan::bench(args = CHANNELS)]
fn rms_norm_plain_backward(bencher: Bencher, channels: usize) {
    bench_norm_backward(bencher, channels, Activation::Identity);
}

fn group_norm_shape(channels: usize) -> GroupNormShape {
    GroupNormShape { batch: 16, positions: (1 << 16) / channels, channels, groups: 8, eps: 1e-5 }
}

#[divan::bench(args = CHANNELS)]
fn group_norm_silu_forward(bencher: Bencher, channels: usize) {
    let s = group_norm_shape(channels);
    let (x, g, m) = (values(s.len()), values(channels), values(16 * 2 * channels));
    let mut y = values(s.len());
    let affine = GroupNormAffine { g: &g, b: &g, scale_shift: Some(&m) };
    let run = || group_norm_forward(&s, black_box(&x), affine, Activation::Silu, None, &mut y);
    bencher.counter(BytesCount::new(8 * s.len())).bench_local(run);
}

#[divan::bench(args = CHANNELS)]
fn group_norm_silu_backward(bencher: Bencher, channels: usize) {
    let s = group_norm_shape(channels);
    let (x, dy, g, m) = (values(s.len()), values(s.len()), values(channels), values(16 * 2 * channels));
    let (mut dx, mut dg, mut db, mut dm) = (values(s.len()), values(channels), values(channels), m.clone());
    let affine = GroupNormAffine { g: &g, b: &g, scale_shift: Some(&m) };
    let run = || {
        let grads = GroupNormGrads { x: &mut dx, g: &mut dg, b: &mut db, scale_shift: Some(&mut dm) };
        group_norm_backward(&s, black_box(&x), affine, Activation::Silu, &dy, grads);
    };
    bencher.counter(BytesCount::new(12 * s.len())).bench_local(run);
}

#[divan::bench]
fn silu(bencher: Bencher) {
    let x = values(1 << 20);
    let mut y = values(1 << 20);
    bencher.counter(BytesCount::new(8usize << 20)).bench_local(|| silu_forward(black_box(&x), &mut y));
}

#[divan::bench]
fn silu_grad(bencher: Bencher) {
    let (x, dy, mut dx) = (values(1 << 20), values(1 << 20), values(1 << 20));
    bencher.counter(BytesCount::new(12usize << 20)).bench_local(|| silu_backward(black_box(&x), &dy, &mut dx));
}

fn attention_shape((batch, positions): (usize, usize)) -> AttentionShape {
    AttentionShape { batch, positions, heads: 4, head_dim: 32, memory: 4 }
}

/// Inputs of an attention and room for its results.
struct Attention {
    shape: AttentionShape,
    qkv: Vec<f32>,
    memory: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
    dqkv: Vec<f32>,
    dmemory: Vec<f32>,
}

impl Attention {
    fn new(size: (usize, usize)) -> Self {
        let shape = attention_shape(size);
        Self {
            shape,
            qkv: values(shape.qkv_len()),
            memory: values(shape.memory_len()),
            dout: values(shape.output_len()),
            out: values(shape.output_len()),
            lse: values(shape.lse_len()),
            dqkv: values(shape.qkv_len()),
            dmemory: values(shape.memory_len()),
        }
    }

    /// Floating-point operations of one product of queries and keys.
    fn product(&self) -> usize {
        let s = &self.shape;
        2 * s.batch * s.heads * s.positions * (s.positions + s.memory) * s.head_dim
    }
}

/// Batch and positions.
const ATTENTIONS: [(usize, usize); 5] = [(16, 16), (16, 49), (16, 64), (16, 256), (16, 1024)];
const LINEAR_ATTENTIONS: [(usize, usize); 5] = [(16, 1024), (16, 256), (32, 784), (32, 196), (32, 49)];

#[divan::bench(args = ATTENTIONS.map(Size))]
fn full_attention_forward(bencher: Bencher, size: &Size) {
    let mut a = Attention::new(size.0);
    bencher.counter(ItemsCount::new(2 * a.product())).bench_local(|| {
        attention_forward(&a.shape, black_box(&a.qkv), &a.memory, &mut a.out, &mut a.lse);
    });
}

#[divan::bench(args = ATTENTIONS.map(Size))]
fn full_attention_backward(bencher: Bencher, size: &Size) {
    let mut a = Attention::new(size.0);
    attention_forward(&a.shape, &a.qkv, &a.memory, &mut a.out, &mut a.lse);
    bencher.counter(ItemsCount::new(5 * a.product())).bench_local(|| {
        let (dqkv, dmemory) = (&mut a.dqkv, &mut a.dmemory);
        attention_backward(&a.shape, black_box(&a.qkv), &a.memory, &a.out, &a.lse, &a.dout, dqkv, dmemory);
    });
}

#[divan::bench(args = LINEAR_ATTENTIONS.map(Size))]
fn linear_attention_fwd(bencher: Bencher, size: &Size) {
    let mut a = Attention::new(size.0);
    bencher.counter(BytesCount::new(4 * (a.qkv.len() + a.out.len()))).bench_local(|| {
        linear_attention_forward(&a.shape, black_box(&a.qkv), &a.memory, &mut a.out);
    });
}

#[divan::bench(args = LINEAR_ATTENTIONS.map(Size))]
fn linear_attention_bwd(bencher: Bencher, size: &Size) {
    let mut a = Attention::new(size.0);
    bencher.counter(BytesCount::new(4 * (2 * a.qkv.len() + a.dout.len()))).bench_local(|| {
        linear_attention_backward(&a.shape, black_box(&a.qkv), &a.memory, &a.dout, &mut a.dqkv, &mut a.dmemory);
    });
}

/// Batch and positions of an attention.
struct Size((usize, usize));

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "batch {}, {} positions", self.0.0, self.0.1)
    }
}

#[divan::bench]
fn clip_and_adam(bencher: Bencher) {
    let len = 1 << 22;
    let (mut w, g, mut m, mut v) = (values(len), values(len), values(len), vec![0.1; len]);
    bencher.counter(BytesCount::new(4 * 8 * len)).bench_local(|| {
        let grad_scale = 1.0 / squared_norm(black_box(&g)).sqrt().max(1.0);
        let step = AdamStep { lr: 1e-4, beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 10, grad_scale };
        adam_step(&step, &mut w, &g, &mut m, &mut v);
    });
}
