//! Attention over all positions of an image, with learned memory keys and values: softmax and linear.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Conv2d, Init, RmsNorm, ops, recompute};

/// Softmax attention (Vaswani et al. 2017) between normalised pixels.
#[derive(Module, Debug)]
pub struct Attention {
    pub norm: RmsNorm,
    /// `[2, heads, memory, d]`: keys, then values. `None` in networks without memory.
    pub mem_kv: Option<Param<Tensor<4>>>,
    pub to_qkv: Conv2d,
    pub to_out: Conv2d,
    #[module(skip)]
    heads: usize,
}

impl Attention {
    /// With `memory` learned pairs of key and value that every position can attend to.
    pub fn new(init: &mut Init, dim: usize, heads: usize, dim_head: usize, memory: usize) -> Self {
        let hidden = heads * dim_head;
        Self {
            norm: RmsNorm::new(init, dim),
            mem_kv: (memory > 0).then(|| init.normal([2, heads, memory, dim_head])),
            to_qkv: Conv2d::without_bias(init, dim, 3 * hidden, 1),
            to_out: Conv2d::new(init, hidden, dim, 1),
            heads,
        }
    }

    /// `x + attention(x)`, `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward_residual(&self, x: Tensor<4>) -> Tensor<4> {
        if ops::recomputes(&x) {
            let (g, memory) = (self.norm.g.val(), self.memory(&x));
            return ops::attention_block_recomputed(x, g, self.to_qkv.weights(), memory, self.to_out.weights());
        }
        recompute::block(self, [x], [], |block, [x], []| block.forward_kept(x))
    }

    fn forward_kept(&self, x: Tensor<4>) -> Tensor<4> {
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        self.to_out.forward_add(ops::attention(qkv, self.memory(&x)), x)
    }

    fn memory(&self, x: &Tensor<4>) -> Tensor<4> {
        match &self.mem_kv {
            Some(memory) => memory.val(),
            None => {
                let hidden = self.to_qkv.weight.dims()[0] / 3;
                Tensor::zeros([2, self.heads, 0, hidden / self.heads], &x.device())
            }
        }
    }
}

/// Linear attention (Shen et al. 2021, "Efficient attention"): softmax of queries over features and of keys over positions, so that the cost is
/// proportional to the number of pixels instead of its square.
#[derive(Module, Debug)]
pub struct LinearAttention {
    pub norm: RmsNorm,
    /// `[2, heads, d, memory]`: keys, then values. `None` in networks without memory.
    pub mem_kv: Option<Param<Tensor<4>>>,
    pub to_qkv: Conv2d,
    pub to_out: Conv2d,
    pub out_norm: RmsNorm,
    #[module(skip)]
    heads: usize,
}

impl LinearAttention {
    /// With `memory` learned pairs of key and value in addition to the positions.
    pub fn new(init: &mut Init, dim: usize, heads: usize, dim_head: usize, memory: usize) -> Self {
        let hidden = heads * dim_head;
        Self {
            norm: RmsNorm::new(init, dim),
            mem_kv: (memory > 0).then(|| init.normal([2, heads, dim_head, memory])),
            to_qkv: Conv2d::without_bias(init, dim, 3 * hidden, 1),
            to_out: Conv2d::new(init, hidden, dim, 1),
            out_norm: RmsNorm::new(init, dim),
            heads,
        }
    }

    /// `x + attention(x)`, `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward_residual(&self, x: Tensor<4>) -> Tensor<4> {
        if ops::recomputes(&x) {
            let (g, memory, out_g) = (self.norm.g.val(), self.memory(&x), self.out_norm.g.val());
            let (to_qkv, to_out) = (self.to_qkv.weights(), self.to_out.weights());
            return ops::linear_attention_block_recomputed(x, g, to_qkv, memory, to_out, out_g);
        }
        recompute::block(self, [x], [], |block, [x], []| block.forward_kept(x))
    }

    fn forward_kept(&self, x: Tensor<4>) -> Tensor<4> {
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        let out = ops::linear_attention(qkv, self.memory(&x));
        ops::conv2d_rms_norm(out, self.to_out.weights(), self.out_norm.g.val(), x)
    }

    fn memory(&self, x: &Tensor<4>) -> Tensor<4> {
        match &self.mem_kv {
            Some(memory) => memory.val(),
            None => {
                let hidden = self.to_qkv.weight.dims()[0] / 3;
                Tensor::zeros([2, self.heads, hidden / self.heads, 0], &x.device())
            }
        }
    }
}
