//! The operations on the tape: which passes each consists of, and what it keeps between them.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, TensorMetadata};
use denoising_diffusion_kernels::dropout::Mask;

use super::super::tape::{Device, Kernel};
use super::super::{AxisResize, Pointwise};
use super::gate::Gated;
use super::passes::CubeKernels;
use super::rms_norm::Then;
use super::unit_rows::Length;

type Primitive = FloatTensor<Cube>;

impl Device for Cube {
    /// Kernels handle strides themselves.
    fn ready(tensor: Primitive) -> Primitive {
        tensor
    }
}

/// `x [b, h, w, c]`, `g [c]`.
#[derive(Clone, Debug)]
pub(super) struct RmsNorm(pub(super) Then);

/// The same of `x + bias`, with `bias [c]` of the type of `x`, plus a residual like `x`.
#[derive(Clone, Debug)]
pub(super) struct RmsNormAdd(pub(super) Then);

/// `x [b, h, w, c]`, `bias [c]` of its type, `g [c]`, `scale_shift [b, 2 c]`; with SiLU.
#[derive(Clone, Debug)]
pub(super) struct RmsNormScaled;

/// `x [b, h, w, c]`, `scale_shift [b, 2 c]`.
#[derive(Clone, Debug)]
pub(super) struct LayerNormScaled;

/// `x` and `residual` `[b, h, w, c]`, `gate [b, c]`.
#[derive(Clone, Debug)]
pub(super) struct GatedAdd;

/// `x [b, h, w, c]`, `gate [b, c]`.
#[derive(Clone, Debug)]
pub(super) struct GatedSilu;

/// `x` of any rank.
#[derive(Clone, Debug)]
pub(super) struct UnitRows(pub(super) Length);

/// `a` and `b` of one shape and type; `b` is multiplied.
#[derive(Clone, Debug)]
pub(super) struct AddScaled(pub(super) f32);

/// `x [outer, n, middle, c]`.
#[derive(Clone, Debug)]
pub(super) struct Resize(pub(super) AxisResize);

/// `x [b, h, w, c]`, `skip [b, h, w, d]`, of one type; each multiplied if there are factors.
#[derive(Clone, Debug)]
pub(super) struct Join(pub(super) Option<[f32; 2]>);

/// `x [b, h, w, c_in]`, `weight [c_out, c_in, kh, kw]`.
#[derive(Clone, Debug)]
pub(super) struct Conv;

/// The same and `bias [c_out]`. For its gradient, Burn would copy that of the result to channels first, and sum the resulting long rows, a few at a
/// time.
#[derive(Clone, Debug)]
pub(super) struct BiasedConv;

/// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, m, d]`.
#[derive(Clone, Debug)]
pub(super) struct Attention;

/// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, d, m]`.
#[derive(Clone, Debug)]
pub(super) struct LinearAttention;

/// `x` of any rank, and the key `[4]`.
#[derive(Clone, Debug)]
pub(super) struct Dropout(pub(super) Mask);

/// `x` of any rank.
#[derive(Clone, Debug)]
pub(super) struct Each(pub(super) Pointwise);

impl Kernel<2, Cube> for RmsNorm {
    type Saved = [Primitive; 3];

    fn forward(&self, [x, g]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        let (y, norms) = Cube::rms_forward(x.clone(), g.clone(), self.0);
        (y, [x, g, norms])
    }

    fn backward(&self, [x, g, norms]: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        let (dx, dg) = Cube::rms_backward(x, g, norms, dy, self.0);
        [Some(dx), Some(dg)]
    }
}

impl Kernel<4, Cube> for RmsNormAdd {
    type Saved = [Primitive; 4];

    fn forward(&self, [x, bias, g, residual]: [Primitive; 4]) -> (Primitive, Self::Saved) {
        let (y, norms) = Cube::rms_add_forward(x.clone(), bias.clone(), g.clone(), residual, self.0);
        (y, [x, bias, g, norms])
    }

    fn backward(&self, [x, bias, g, norms]: Self::Saved, dy: Primitive, _: [bool; 4]) -> [Option<Primitive>; 4] {
        let (dx, d_bias, dg) = Cube::rms_biased_backward(x, bias, g, norms, dy.clone(), self.0);
        [Some(dx), Some(d_bias), Some(dg), Some(dy)]
    }
}

impl Kernel<4, Cube> for RmsNormScaled {
    type Saved = [Primitive; 5];

    fn forward(&self, [x, bias, g, scale_shift]: [Primitive; 4]) -> (Primitive, Self::Saved) {
        let (y, norms) = Cube::rms_scaled_forward(x.clone(), bias.clone(), g.clone(), scale_shift.clone());
        (y, [x, bias, g, scale_shift, norms])
    }

    fn backward(&self, saved: Self::Saved, dy: Primitive, _: [bool; 4]) -> [Option<Primitive>; 4] {
        let [x, bias, g, scale_shift, norms] = saved;
        let (dx, d_bias, dg, d_scale_shift) = Cube::rms_scaled_backward(x, bias, g, scale_shift, norms, dy);
        [Some(dx), Some(d_bias), Some(dg), Some(d_scale_shift)]
    }
}

impl Kernel<2, Cube> for LayerNormScaled {
    type Saved = [Primitive; 2];

    fn forward(&self, [x, scale_shift]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        (Cube::layer_norm_forward(x.clone(), scale_shift.clone()), [x, scale_shift])
    }

    fn backward(&self, [x, scale_shift]: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        let (dx, d_scale_shift) = Cube::layer_norm_backward(x, scale_shift, dy);
        [Some(dx), Some(d_scale_shift)]
    }
}

impl Kernel<3, Cube> for GatedAdd {
    type Saved = [Primitive; 2];

    fn forward(&self, [x, gate, residual]: [Primitive; 3]) -> (Primitive, Self::Saved) {
        (Cube::gated_add_forward(x.clone(), gate.clone(), residual), [x, gate])
    }

    fn backward(&self, [x, gate]: Self::Saved, dy: Primitive, _: [bool; 3]) -> [Option<Primitive>; 3] {
        let (dx, d_gate) = Cube::gated_backward(x, gate, dy.clone(), Gated::Add);
        [Some(dx), Some(d_gate), Some(dy)]
    }
}

impl Kernel<2, Cube> for GatedSilu {
    type Saved = [Primitive; 2];

    fn forward(&self, [x, gate]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        (Cube::gated_silu_forward(x.clone(), gate.clone()), [x, gate])
    }

    fn backward(&self, [x, gate]: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        let (dx, d_gate) = Cube::gated_backward(x, gate, dy, Gated::Silu);
        [Some(dx), Some(d_gate)]
    }
}

impl Kernel<1, Cube> for UnitRows {
    type Saved = [Primitive; 2];

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, Self::Saved) {
        let (y, norms) = Cube::unit_rows_forward(x.clone(), self.0);
        (y, [x, norms])
    }

    fn backward(&self, [x, norms]: Self::Saved, dy: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        [Some(Cube::unit_rows_backward(x, norms, dy, self.0))]
    }
}

impl Kernel<2, Cube> for AddScaled {
    type Saved = ();

    fn forward(&self, [a, b]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        (Cube::add_scaled_forward(a, b, self.0), ())
    }

    fn backward(&self, (): Self::Saved, dy: Primitive, wanted: [bool; 2]) -> [Option<Primitive>; 2] {
        let db = wanted[1].then(|| Cube::float_mul_scalar(dy.clone(), self.0.into()));
        [Some(dy), db]
    }
}

impl Kernel<1, Cube> for Resize {
    /// The length of the axis of `x`.
    type Saved = usize;

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, Self::Saved) {
        let n = x.shape()[1];
        (Cube::resize_forward(x, self.0), n)
    }

    fn backward(&self, n: Self::Saved, dy: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        [Some(Cube::resize_backward(dy, n, self.0))]
    }
}

impl Kernel<2, Cube> for Join {
    /// Number of channels of the first.
    type Saved = usize;

    fn forward(&self, [x, skip]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        let c = x.shape()[3];
        (Cube::join(x, skip, self.0), c)
    }

    fn backward(&self, c: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        let (dx, d_skip) = Cube::split(dy, c, self.0);
        [Some(dx), Some(d_skip)]
    }
}

impl Kernel<2, Cube> for Conv {
    type Saved = [Primitive; 2];

    fn forward(&self, [x, weight]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        (Cube::conv_forward(x.clone(), weight.clone()), [x, weight])
    }

    fn backward(&self, [x, weight]: Self::Saved, dy: Primitive, wanted: [bool; 2]) -> [Option<Primitive>; 2] {
        convolved_backward(x, weight, dy, wanted)
    }
}

impl Kernel<3, Cube> for BiasedConv {
    type Saved = [Primitive; 3];

    fn forward(&self, [x, weight, bias]: [Primitive; 3]) -> (Primitive, Self::Saved) {
        (Cube::conv_biased_forward(x.clone(), weight.clone(), bias.clone()), [x, weight, bias])
    }

    fn backward(&self, [x, weight, bias]: Self::Saved, dy: Primitive, wanted: [bool; 3]) -> [Option<Primitive>; 3] {
        let [wants_x, wants_weight, wants_bias] = wanted;
        let [dx, dw] = convolved_backward(x, weight, dy.clone(), [wants_x, wants_weight]);
        [dx, dw, wants_bias.then(|| Cube::sum_rows(dy, bias))]
    }
}

/// The gradients of data and weights.
fn convolved_backward(x: Primitive, weight: Primitive, dy: Primitive, wanted: [bool; 2]) -> [Option<Primitive>; 2] {
    let dx = || Cube::conv_x_backward(x.clone(), weight.clone(), dy.clone());
    let dw = || Cube::conv_weight_backward(x.clone(), weight.clone(), dy.clone());
    [wanted[0].then(dx), wanted[1].then(dw)]
}

impl Kernel<2, Cube> for Attention {
    type Saved = [Primitive; 4];

    fn forward(&self, [qkv, mem_kv]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        let (y, state) = Cube::attention_forward(qkv.clone(), mem_kv.clone());
        (y.clone(), [qkv, mem_kv, y, state])
    }

    fn backward(&self, [qkv, mem_kv, y, state]: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        let (dqkv, d_memory) = Cube::attention_backward(qkv, mem_kv, y, state, dy);
        [Some(dqkv), Some(d_memory)]
    }
}

impl Kernel<2, Cube> for LinearAttention {
    type Saved = [Primitive; 3];

    fn forward(&self, [qkv, mem_kv]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        let (y, state) = Cube::linear_attention_forward(qkv.clone(), mem_kv.clone());
        (y, [qkv, mem_kv, state])
    }

    fn backward(&self, [qkv, mem_kv, state]: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        let (dqkv, d_memory) = Cube::linear_attention_backward(qkv, mem_kv, state, dy);
        [Some(dqkv), Some(d_memory)]
    }
}

impl Kernel<2, Cube> for Dropout {
    /// The key.
    type Saved = Primitive;

    fn forward(&self, [x, key]: [Primitive; 2]) -> (Primitive, Self::Saved) {
        (Cube::dropout_pass(x, key.clone(), self.0), key)
    }

    fn backward(&self, key: Self::Saved, dy: Primitive, _: [bool; 2]) -> [Option<Primitive>; 2] {
        [Some(Cube::dropout_pass(dy, key, self.0)), None]
    }
}

impl Kernel<1, Cube> for Each {
    type Saved = Primitive;

    fn forward(&self, [x]: [Primitive; 1]) -> (Primitive, Self::Saved) {
        (Cube::pointwise_forward(x.clone(), self.0), x)
    }

    fn backward(&self, x: Self::Saved, dy: Primitive, _: [bool; 1]) -> [Option<Primitive>; 1] {
        [Some(Cube::pointwise_backward(x, dy, self.0))]
    }
}
