//! The work of a case: its operations and bytes, its sizes as JSON, and the call itself.

use denoising_diffusion_kernels::activation::{Activation, Pointwise, pointwise_backward, pointwise_forward};
use denoising_diffusion_kernels::attention::{
    AttentionShape, Factors, attention_backward, attention_forward, linear_attention_backward, linear_attention_forward,
};
use denoising_diffusion_kernels::conv::{
    Conv2dShape, ConvAlgorithm, Epilogue, conv2d_forward, conv2d_input_grad, conv2d_weight_grad,
};
use denoising_diffusion_kernels::norm::{RmsNormGrads, RmsNormShape, rms_norm_backward, rms_norm_forward};
use denoising_diffusion_kernels::optim::{AdamStep, adam_step, lerp, squared_norm};

#[derive(Clone, Copy, PartialEq)]
pub enum Pass {
    Forward,
    InputGrad,
    WeightGrad,
    /// All gradients.
    Backward,
    /// A step of the optimizer.
    Step,
}

impl Pass {
    pub fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::InputGrad => "input_grad",
            Pass::WeightGrad => "weight_grad",
            Pass::Backward => "backward",
            Pass::Step => "step",
        }
    }
}

/// A call of a kernel.
#[derive(Clone, Copy)]
pub enum Work {
    Conv {
        shape: Conv2dShape,
        algorithm: ConvAlgorithm,
        pass: Pass,
    },
    /// With scale, shift and SiLU if `scaled`.
    RmsNorm {
        shape: RmsNormShape,
        scaled: bool,
        pass: Pass,
    },
    Attention {
        shape: AttentionShape,
        linear: bool,
        factors: Factors,
        pass: Pass,
    },
    /// Clipping of the gradient's norm, a step of Adam, the moving average.
    Optimizer {
        len: usize,
    },
    Silu {
        len: usize,
        pass: Pass,
    },
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 1013) as f32 / 1013.0 - 0.5).collect()
}

impl Work {
    /// Floating-point operations of matrix products and convolutions, with a multiplication and an addition counted as two and convolutions computed
    /// directly; 0 for elementwise kernels. For backward passes of attention, products that are computed again are included.
    pub fn flops(&self) -> usize {
        match *self {
            Work::Conv { shape, .. } => shape.flops(),
            Work::Attention { shape: s, linear, pass, .. } => {
                let keys = s.positions + s.memory;
                let (forward, backward) = if linear {
                    (s.head_dim * (keys + s.positions), s.head_dim * (2 * keys + 2 * s.positions))
                } else {
                    (2 * s.positions * keys, 5 * s.positions * keys)
                };
                2 * s.batch * s.heads * s.head_dim * if pass == Pass::Forward { forward } else { backward }
            }
            _ => 0,
        }
    }

    /// Operations of the products in Winograd's F(4 x 4, 3 x 3), if the convolution is computed with it: 36 products per tile of 4 x 4 output pixels,
    /// without the transforms.
    pub fn winograd_flops(&self) -> Option<usize> {
        match *self {
            Work::Conv { shape: s, algorithm: ConvAlgorithm::Auto, .. } if s.kernel == [3, 3] && s.stride == 1 => {
                let tiles = s.batch * s.out_height().div_ceil(4) * s.out_width().div_ceil(4);
                Some(2 * 36 * tiles * s.in_channels * s.out_channels)
            }
            _ => None,
        }
    }

    /// Bytes of all inputs and outputs, each counted once.
    pub fn bytes(&self) -> usize {
        let values = match *self {
            Work::Conv { shape: s, .. } => s.input_len() + s.weight_len() + s.output_len(),
            Work::RmsNorm { shape: s, scaled, pass } => {
                let parameters = s.channels + if scaled { s.batch * 2 * s.channels } else { 0 };
                norm_values(s.len(), parameters, pass)
            }
            Work::Attention { shape: s, linear, pass, .. } => {
                let inputs = s.qkv_len() + s.memory_len();
                let state = if linear { s.linear_state_len() } else { s.lse_len() };
                let outputs = s.output_len() + state;
                match pass {
                    Pass::Forward => inputs + outputs,
                    // Linear attention does not read its results again.
                    _ => 2 * inputs + outputs + if linear { 0 } else { s.output_len() },
                }
            }
            // Weights, both moments and the average in and out, the gradient in.
            Work::Optimizer { len } => 9 * len,
            Work::Silu { len, pass } => norm_values(len, 0, pass),
        };
        4 * values
    }

    /// The members of a JSON object that say what is computed, and at which sizes.
    pub fn json(&self) -> String {
        let (op, pass, sizes): (_, _, Vec<(&str, usize)>) = match *self {
            Work::Conv { shape: s, algorithm, pass } => {
                let sizes = vec![
                    ("batch", s.batch),
                    ("height", s.height),
                    ("width", s.width),
                    ("upsample", s.upsample),
                    ("in_channels", s.in_channels),
                    ("out_channels", s.out_channels),
                    ("kernel_size", s.kernel[0]),
                    ("stride", s.stride),
                    ("padding", s.padding[0]),
                    ("direct", usize::from(algorithm == ConvAlgorithm::Direct)),
                ];
                ("conv", pass, sizes)
            }
            Work::RmsNorm { shape: s, scaled, pass } => {
                let sizes = vec![
                    ("batch", s.batch),
                    ("positions", s.positions),
                    ("channels", s.channels),
                    ("scaled", usize::from(scaled)),
                ];
                ("rms_norm", pass, sizes)
            }
            Work::Attention { shape: s, linear, pass, .. } => {
                let sizes = vec![
                    ("batch", s.batch),
                    ("positions", s.positions),
                    ("heads", s.heads),
                    ("head_dim", s.head_dim),
                    ("memory", s.memory),
                ];
                (if linear { "linear_attention" } else { "attention" }, pass, sizes)
            }
            Work::Optimizer { len } => ("optimizer", Pass::Step, vec![("len", len)]),
            Work::Silu { len, pass } => ("silu", pass, vec![("len", len)]),
        };
        let sizes: String = sizes.iter().map(|(name, size)| format!(", \"{name}\": {size}")).collect();
        format!("\"op\": \"{op}\", \"pass\": \"{}\"{sizes}", pass.name())
    }

    /// A repeatable call with memory of its own.
    pub fn prepare(&self) -> Box<dyn FnMut()> {
        match *self {
            Work::Conv { shape, algorithm, pass } => convolution(shape, algorithm, pass),
            Work::RmsNorm { shape, scaled, pass } => rms_norm(shape, scaled, pass),
            Work::Attention { shape, linear: true, pass, .. } => linear_attention(shape, pass),
            Work::Attention { shape, linear: false, factors, pass } => attention(shape, factors, pass),
            Work::Optimizer { len } => optimizer(len),
            Work::Silu { len, pass } => silu(len, pass),
        }
    }
}

/// Number of values of an elementwise kernel's inputs and outputs: x and y, or x, dy and dx; and its parameters, in the backward pass with their
/// gradients.
fn norm_values(len: usize, parameters: usize, pass: Pass) -> usize {
    if pass == Pass::Forward { 2 * len + parameters } else { 3 * len + 2 * parameters }
}

fn convolution(s: Conv2dShape, algorithm: ConvAlgorithm, pass: Pass) -> Box<dyn FnMut()> {
    let (mut x, mut weight, mut y) = (values(s.input_len()), values(s.weight_len()), values(s.output_len()));
    match pass {
        Pass::Forward => Box::new(move || conv2d_forward(&s, algorithm, &[&x], &weight, Epilogue::default(), &mut y)),
        Pass::InputGrad => Box::new(move || conv2d_input_grad(&s, algorithm, &y, &weight, &mut [&mut x])),
        _ => Box::new(move || conv2d_weight_grad(&s, algorithm, &[&x], &y, &mut weight)),
    }
}

fn rms_norm(s: RmsNormShape, scaled: bool, pass: Pass) -> Box<dyn FnMut()> {
    let (x, mut y, g) = (values(s.len()), values(s.len()), values(s.channels));
    let scale_shift = scaled.then(|| values(s.batch * 2 * s.channels));
    let activation = if scaled { Activation::Silu } else { Activation::Identity };
    if pass == Pass::Forward {
        return Box::new(move || rms_norm_forward(&s, &x, &g, scale_shift.as_deref(), activation, None, &mut y));
    }
    let (mut dx, mut dg, mut dscale_shift) = (values(s.len()), g.clone(), scale_shift.clone());
    Box::new(move || {
        let grads = RmsNormGrads { x: &mut dx, g: &mut dg, scale_shift: dscale_shift.as_deref_mut() };
        rms_norm_backward(&s, &x, &g, scale_shift.as_deref(), activation, &y, grads);
    })
}

fn linear_attention(s: AttentionShape, pass: Pass) -> Box<dyn FnMut()> {
    let (qkv, memory) = (values(s.qkv_len()), values(s.memory_len()));
    let (mut out, mut state) = (values(s.output_len()), values(s.linear_state_len()));
    if pass == Pass::Forward {
        return Box::new(move || linear_attention_forward(&s, &qkv, &memory, &mut out, &mut state));
    }
    linear_attention_forward(&s, &qkv, &memory, &mut out, &mut state);
    let (dout, mut dqkv, mut dmemory) = (values(s.output_len()), qkv.clone(), memory.clone());
    Box::new(move || linear_attention_backward(&s, &qkv, &memory, &state, &dout, &mut dqkv, &mut dmemory))
}

fn attention(s: AttentionShape, factors: Factors, pass: Pass) -> Box<dyn FnMut()> {
    let (qkv, memory) = (values(s.qkv_len()), values(s.memory_len()));
    let (mut out, mut lse) = (values(s.output_len()), values(s.lse_len()));
    if pass == Pass::Forward {
        return Box::new(move || attention_forward(&s, factors, &qkv, &memory, &mut out, &mut lse));
    }
    attention_forward(&s, factors, &qkv, &memory, &mut out, &mut lse);
    let (dout, mut dqkv, mut dmemory) = (values(s.output_len()), qkv.clone(), memory.clone());
    Box::new(move || attention_backward(&s, factors, &qkv, &memory, &out, &lse, &dout, &mut dqkv, &mut dmemory))
}

fn optimizer(len: usize) -> Box<dyn FnMut()> {
    let (mut w, g, mut m, mut v, mut average) = (values(len), values(len), values(len), vec![0.1; len], values(len));
    Box::new(move || {
        let grad_scale = 1.0 / squared_norm(&g).sqrt().max(1.0);
        let step = AdamStep { lr: 1e-4, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0, step: 10, grad_scale };
        adam_step(&step, &mut w, &g, &mut m, &mut v);
        lerp(&mut average, &w, 0.005);
    })
}

fn silu(len: usize, pass: Pass) -> Box<dyn FnMut()> {
    let (x, mut y) = (values(len), values(len));
    if pass == Pass::Forward {
        return Box::new(move || pointwise_forward(Pointwise::Silu, &x, &mut y));
    }
    let mut dx = values(len);
    Box::new(move || pointwise_backward(Pointwise::Silu, &x, &y, &mut dx))
}
