//! The residual block of a U-Net.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Tensor, activation};

use super::{Conv2d, Init, Linear, RmsNorm};

/// 3x3 convolution, normalisation, scale and shift, SiLU.
#[derive(Module, Debug)]
pub struct Block {
    pub proj: Conv2d,
    pub norm: RmsNorm,
}

impl Block {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        Self { proj: Conv2d::new(init, dim_in, dim_out, 3), norm: RmsNorm::new(init, dim_out) }
    }

    /// `[b, h, w, c_in] -> [b, h, w, c_out]`; `scale_shift` `[b, 2 c_out]`.
    pub fn forward(&self, x: Tensor<4>, scale_shift: Option<Tensor<2>>) -> Tensor<4> {
        self.norm.forward_silu(self.proj.forward(x), scale_shift)
    }
}

/// Two blocks around a dropout, the first one scaled and shifted by the time embedding, plus the input.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    pub mlp: Linear,
    pub block1: Block,
    pub dropout: Dropout,
    pub block2: Block,
    /// Where the number of channels changes.
    pub res_conv: Option<Conv2d>,
}

impl ResnetBlock {
    /// `dropout` in [0, 1).
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, time_dim: usize, dropout: f64) -> Self {
        Self {
            mlp: Linear::new(init, time_dim, 2 * dim_out),
            block1: Block::new(init, dim_in, dim_out),
            dropout: DropoutConfig::new(dropout).init(),
            block2: Block::new(init, dim_out, dim_out),
            res_conv: (dim_in != dim_out).then(|| Conv2d::new(init, dim_in, dim_out, 1)),
        }
    }

    /// `x` `[b, h, w, c_in]`, `time` `[b, time_dim]` to `[b, h, w, c_out]`.
    pub fn forward(&self, x: Tensor<4>, time: Tensor<2>) -> Tensor<4> {
        let scale_shift = self.mlp.forward(activation::silu(time));
        let h = self.block1.forward(x.clone(), Some(scale_shift));
        let h = self.block2.forward(self.dropout.forward(h), None);
        h + match &self.res_conv {
            Some(conv) => conv.forward(x),
            None => x,
        }
    }
}
