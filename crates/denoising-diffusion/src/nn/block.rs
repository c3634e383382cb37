//! The residual block of a U-Net.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Axes, Conv2d, Dropout, Init, Linear, Linears, RmsNorm, ops, recompute};

/// Convolution (kernel size 3 along each axis), normalisation, scale and shift, SiLU.
#[derive(Module, Debug)]
pub struct Block {
    pub proj: Conv2d,
    pub norm: RmsNorm,
}

impl Block {
    pub fn new(init: &mut Init, axes: Axes, dim_in: usize, dim_out: usize) -> Self {
        Self { proj: Conv2d::along(init, axes, dim_in, dim_out, 3), norm: RmsNorm::new(init, dim_out) }
    }

    /// `[b, h, w, c_in] -> [b, h, w, c_out]`, scaled and shifted by `scale_shift` `[b, 2 c_out]`. `skip` is concatenated to `x` along the channels.
    pub fn forward_scaled(&self, x: Tensor<4>, skip: Option<Tensor<4>>, scale_shift: Tensor<2>) -> Tensor<4> {
        let g = self.norm.g.val();
        match skip {
            Some(_) => ops::rms_norm_scaled_silu(self.proj.forward_skip(x, skip), g, scale_shift),
            None => ops::conv2d_rms_norm_scaled_silu(x, self.proj.weights(), g, scale_shift),
        }
    }

    /// `[b, h, w, c_in] -> [b, h, w, c_out]`, plus `residual` `[b, h, w, c_out]`.
    pub fn forward(&self, x: Tensor<4>, residual: Tensor<4>) -> Tensor<4> {
        ops::conv2d_rms_norm_silu(x, self.proj.weights(), self.norm.g.val(), residual)
    }
}

/// Two blocks with a dropout between them, plus the input. The first block is scaled and shifted by the condition (the time embedding, concatenated
/// with a class embedding if there is one).
#[derive(Module, Debug)]
pub struct ResnetBlock {
    pub mlp: Linear,
    pub block1: Block,
    pub dropout: Dropout,
    pub block2: Block,
    /// Present if the number of channels changes.
    pub res_conv: Option<Conv2d>,
}

impl ResnetBlock {
    /// For images; `dropout` in [0, 1).
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, cond_dim: usize, dropout: f64) -> Self {
        Self::along(init, Axes::Both, dim_in, dim_out, cond_dim, dropout)
    }

    /// The same along the given axes.
    pub fn along(init: &mut Init, axes: Axes, dim_in: usize, dim_out: usize, cond_dim: usize, dropout: f64) -> Self {
        Self {
            mlp: Linear::new(init, cond_dim, 2 * dim_out),
            block1: Block::new(init, axes, dim_in, dim_out),
            dropout: Dropout::new(dropout),
            block2: Block::new(init, axes, dim_out, dim_out),
            res_conv: (dim_in != dim_out).then(|| Conv2d::new(init, dim_in, dim_out, 1)),
        }
    }

    /// Maps `x` `[b, h, w, c]`, concatenated with `skip` `[b, h, w, c_in - c]` if given, to `[b, h, w, c_out]`. `cond` is computed from SiLU of the
    /// condition, `[b, cond_dim]`, once for all blocks of the network.
    pub fn forward(&self, x: Tensor<4>, skip: Option<Tensor<4>>, cond: &Linears) -> Tensor<4> {
        let scale_shift = cond.of(&self.mlp);
        if ops::recomputes(&x) && !self.dropout.drops(&x) {
            return self.forward_recomputed(x, skip, scale_shift);
        }
        match skip {
            None => recompute::block(self, [x], [scale_shift], |block, [x], [scale_shift]| {
                block.forward_kept(x, None, scale_shift)
            }),
            Some(skip) => recompute::block(self, [x, skip], [scale_shift], |block, [x, skip], [scale_shift]| {
                block.forward_kept(x, Some(skip), scale_shift)
            }),
        }
    }

    fn residual(&self, x: &Tensor<4>, skip: &Option<Tensor<4>>) -> Tensor<4> {
        match (&self.res_conv, skip) {
            (Some(conv), skip) => conv.forward_skip(x.clone(), skip.clone()),
            (None, Some(skip)) => ops::join(x.clone(), skip.clone()),
            (None, None) => x.clone(),
        }
    }

    fn forward_kept(&self, x: Tensor<4>, skip: Option<Tensor<4>>, scale_shift: Tensor<2>) -> Tensor<4> {
        let (x, skip) = match skip {
            Some(skip) if !ops::takes_in_parts(&x) => (ops::join(x, skip), None),
            skip => (x, skip),
        };
        let residual = self.residual(&x, &skip);
        let h = self.block1.forward_scaled(x, skip, scale_shift);
        self.block2.forward(self.dropout.forward(h), residual)
    }

    fn forward_recomputed(&self, x: Tensor<4>, skip: Option<Tensor<4>>, scale_shift: Tensor<2>) -> Tensor<4> {
        let residual = self.residual(&x, &skip);
        ops::ResidualBlock {
            conv1: self.block1.proj.weights(),
            g1: self.block1.norm.g.val(),
            scale_shift,
            conv2: self.block2.proj.weights(),
            g2: self.block2.norm.g.val(),
            residual,
        }
        .forward_recomputed(x, skip)
    }
}
