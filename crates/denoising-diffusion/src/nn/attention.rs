//! Attention over all positions of an image, with learned memory keys and values: softmax and linear.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Conv2d, Init, RmsNorm, ops};

/// Learned key/value pairs that every position can attend to.
const MEMORY: usize = 4;

/// Softmax attention (Vaswani et al. 2017) between normalised pixels.
#[derive(Module, Debug)]
pub struct Attention {
    pub norm: RmsNorm,
    /// `[2, heads, memory, d]`: keys, then values.
    pub mem_kv: Param<Tensor<4>>,
    pub to_qkv: Conv2d,
    pub to_out: Conv2d,
}

impl Attention {
    pub fn new(init: &mut Init, dim: usize, heads: usize, dim_head: usize) -> Self {
        let hidden = heads * dim_head;
        Self {
            norm: RmsNorm::new(init, dim),
            mem_kv: init.normal([2, heads, MEMORY, dim_head]),
            to_qkv: Conv2d::without_bias(init, dim, 3 * hidden, 1),
            to_out: Conv2d::new(init, hidden, dim, 1),
        }
    }

    /// `x + attention(x)`, `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward_residual(&self, x: Tensor<4>) -> Tensor<4> {
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        let out = over_positions(qkv, |qkv| ops::attention(qkv, self.mem_kv.val()));
        self.to_out.forward_add(out, x)
    }
}

/// Linear attention (Shen et al. 2021, "Efficient attention"): softmax of queries over features and of keys over positions,
/// so that its cost grows with the number of pixels rather than with its square.
#[derive(Module, Debug)]
pub struct LinearAttention {
    pub norm: RmsNorm,
    /// `[2, heads, d, memory]`: keys, then values.
    pub mem_kv: Param<Tensor<4>>,
    pub to_qkv: Conv2d,
    pub to_out: Conv2d,
    pub out_norm: RmsNorm,
}

impl LinearAttention {
    pub fn new(init: &mut Init, dim: usize, heads: usize, dim_head: usize) -> Self {
        let hidden = heads * dim_head;
        Self {
            norm: RmsNorm::new(init, dim),
            mem_kv: init.normal([2, heads, dim_head, MEMORY]),
            to_qkv: Conv2d::without_bias(init, dim, 3 * hidden, 1),
            to_out: Conv2d::new(init, hidden, dim, 1),
            out_norm: RmsNorm::new(init, dim),
        }
    }

    /// `x + attention(x)`, `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward_residual(&self, x: Tensor<4>) -> Tensor<4> {
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        let out = over_positions(qkv, |qkv| ops::linear_attention(qkv, self.mem_kv.val()));
        self.out_norm.forward_add(self.to_out.forward(out), x)
    }
}

/// Applies a function of `[b, h * w, c]` to `[b, h, w, c]`.
fn over_positions(x: Tensor<4>, f: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let out = f(x.reshape([b, h * w, c]));
    let channels = out.dims()[2];
    out.reshape([b, h, w, channels])
}
