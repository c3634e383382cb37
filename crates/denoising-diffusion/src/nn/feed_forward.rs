//! The hidden layer of a transformer's block, scaled and shifted inside by what the network is conditioned on.

use burn::module::Module;
use burn::tensor::Tensor;

use super::ops::in_f32;
use super::{Conv2d, Dropout, Init, Linear, ops};

/// `proj_out(dropout(silu(proj_in(x / rms(x))) (scale + 1) + shift))`, scale and shift linear in `cond` and 0 to begin with.
#[derive(Module, Debug)]
pub struct ScaledFeedForward {
    /// To scale and shift, `[2 hidden, cond_dim]`.
    pub to_scale_shift: Linear,
    pub proj_in: Conv2d,
    pub dropout: Dropout,
    pub proj_out: Conv2d,
}

impl ScaledFeedForward {
    /// A hidden layer of `dim * mult`; `dropout` in [0, 1).
    pub fn new(init: &mut Init, dim: usize, mult: usize, cond_dim: usize, dropout: f64) -> Self {
        let hidden = dim * mult;
        Self {
            to_scale_shift: Linear::zeros(init, cond_dim, 2 * hidden),
            proj_in: Conv2d::without_bias(init, dim, hidden, 1),
            dropout: Dropout::new(dropout),
            proj_out: Conv2d::without_bias(init, hidden, dim, 1),
        }
    }

    /// The layer plus `x`: `x [b, h, w, c]` to `[b, h, w, c]`, where `scale_shift` `[b, 2 hidden]` is what `to_scale_shift` makes of SiLU of what
    /// the network is conditioned on.
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
