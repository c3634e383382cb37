//! The hidden layer of a transformer block, with scale and shift inside it that depend on the network's condition.

use burn::module::Module;
use burn::tensor::Tensor;

use super::ops::in_f32;
use super::{Conv2d, Dropout, Init, Linear, ops};

/// `proj_out(dropout(silu(proj_in(x / rms(x))) (scale + 1) + shift))`, where scale and shift are linear in `cond` and initially 0.
#[derive(Module, Debug)]
pub struct ScaledFeedForward {
    /// Computes scale and shift, `[2 hidden, cond_dim]`.
    pub to_scale_shift: Linear,
    pub proj_in: Conv2d,
    pub dropout: Dropout,
    pub proj_out: Conv2d,
}

impl ScaledFeedForward {
    /// With a hidden layer of size `dim * mult`; `dropout` in [0, 1).
    pub fn new(init: &mut Init, dim: usize, mult: usize, cond_dim: usize, dropout: f64) -> Self {
        let hidden = dim * mult;
        Self {
            to_scale_shift: Linear::zeros(init, cond_dim, 2 * hidden),
            proj_in: Conv2d::without_bias(init, dim, hidden, 1),
            dropout: Dropout::new(dropout),
            proj_out: Conv2d::without_bias(init, hidden, dim, 1),
        }
    }

    /// The layer plus `x`: `x [b, h, w, c]` to `[b, h, w, c]`. `scale_shift` `[b, 2 hidden]` is the output of `to_scale_shift` for SiLU of the
    /// network's condition.
    pub fn forward_residual(&self, x: Tensor<4>, scale_shift: Tensor<2>) -> Tensor<4> {
        let dim = x.dims()[3];
        let normalised = ops::rms_norm(x.clone(), Tensor::ones([dim], &x.device()), None);
        let hidden = ops::silu(self.proj_in.forward(normalised));
        let ([b, _], width) = (scale_shift.dims(), hidden.dims()[3]);
        let part = |i: usize| scale_shift.clone().narrow(1, i * width, width).reshape([b, 1, 1, width]);
        let hidden = in_f32(hidden, |hidden| hidden * (part(0) + 1.0) + part(1));
        self.proj_out.forward_add(self.dropout.forward(hidden), x)
    }
}
