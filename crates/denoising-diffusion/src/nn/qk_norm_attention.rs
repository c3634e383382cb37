//! Softmax attention with normalised queries and keys, without learned memory.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};

use super::ops::in_f32;
use super::{Conv2d, Dropout, Init, RmsNorm, ops};

/// The factor of the cosines of queries and keys, besides the learned scales.
const SCALE: f64 = 8.0;

/// `softmax(8 (q_scale q/|q|) . (k_scale k/|k|)) v` per head, for RMS-normalised pixels (Henry et al. 2020, "Query-key normalization", with a scale
/// per feature as in Dehghani et al. 2023).
#[derive(Module, Debug)]
pub struct QkNormAttention {
    pub norm: RmsNorm,
    pub to_qkv: Conv2d,
    /// `[d]`, like the next.
    pub q_scale: Param<Tensor<1>>,
    pub k_scale: Param<Tensor<1>>,
    /// Dropout of the softmax's weights.
    pub dropout: Dropout,
    pub to_out: Conv2d,
}

impl QkNormAttention {
    /// `dropout` in [0, 1).
    pub fn new(init: &mut Init, dim: usize, heads: usize, dim_head: usize, dropout: f64) -> Self {
        let hidden = heads * dim_head;
        Self {
            norm: RmsNorm::new(init, dim),
            to_qkv: Conv2d::without_bias(init, dim, 3 * hidden, 1),
            q_scale: init.ones([dim_head]),
            k_scale: init.ones([dim_head]),
            dropout: Dropout::new(dropout),
            to_out: Conv2d::without_bias(init, hidden, dim, 1),
        }
    }

    /// `x + attention(x)`, `[b, h, w, c] -> [b, h, w, c]`
    pub fn forward_residual(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, h, w, _] = x.dims();
        let d = self.q_scale.val().dims()[0];
        let qkv = self.to_qkv.forward(self.norm.forward(x.clone()));
        let heads = qkv.dims()[3] / (3 * d);
        let qkv = qkv.reshape([b, h * w, 3 * heads, d]);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.clone().narrow(2, i * heads, heads)); // [b, n, heads, d]
        // The normalisation multiplies by sqrt(d), by which attention divides once.
        let q = ops::rms_norm(q, self.q_scale.val() * SCALE, None);
        let k = ops::rms_norm(k, self.k_scale.val() / (d as f64).sqrt(), None);
        // Dropout of the weights needs all of them at once.
        let out = if self.dropout.drops(&x) {
            self.attend_dropping(q, k, v).reshape([b, h, w, heads * d])
        } else {
            let qkv = Tensor::cat(vec![q, k, v], 2).reshape([b, h, w, 3 * heads * d]);
            ops::attention(qkv, Tensor::zeros([2, heads, 0, d], &x.device()))
        };
        self.to_out.forward_add(out, x)
    }

    /// q, k and v `[b, n, heads, d]` to `[b, n, heads, d]`.
    fn attend_dropping(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let scale = (q.dims()[3] as f64).powf(-0.5);
        let [q, k, v] = [q * scale, k, v].map(|x| x.swap_dims(1, 2)); // [b, heads, n, d]
        let weights = in_f32(q.matmul(k.swap_dims(2, 3)), |scores| activation::softmax(scores, 3));
        self.dropout.forward(weights).matmul(v).swap_dims(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::params::host_values;
    use crate::nn::{EvalMode, TrainNoGrad};
    use crate::noise::{Purpose, normal_batch};
    use crate::testing::largest_difference;

    fn attention(dropout: f64) -> QkNormAttention {
        QkNormAttention::new(&mut Init::new(2, &Device::flex().autodiff()), 6, 2, 5, dropout)
    }

    fn x(device: &Device) -> Tensor<4> {
        normal_batch(0, Purpose::SampleInit, 0, 0, [2, 3, 4, 6], device)
    }

    fn distance(a: Tensor<4>, b: Tensor<4>) -> f64 {
        largest_difference(&host_values(a), &host_values(b))
    }

    #[test]
    fn weights_are_dropped_as_in_training_only() {
        let tracked = Device::flex().autodiff();
        let expected = attention(0.0).forward_residual(x(&tracked)).inner();
        let dropping = attention(0.5);
        assert!(distance(dropping.eval().forward_residual(x(&Device::flex())), expected.clone()) < 1e-6);
        assert!(distance(dropping.eval().forward_residual(x(&tracked)).inner(), expected.clone()) < 1e-6);
        assert!(distance(dropping.forward_residual(x(&tracked)).inner(), expected.clone()) > 1e-3);
        assert!(distance(TrainNoGrad::of(&dropping).forward_residual(x(&tracked)).inner(), expected) > 1e-3);
    }

    /// Compares all weights at once with blocks of them, forward and backward: the probability is so small that nothing is dropped.
    #[test]
    fn both_ways_give_the_same() {
        let device = Device::flex().autodiff();
        let run = |dropout: f64| {
            let (layer, x) = (attention(dropout), x(&device).require_grad());
            let y = layer.forward_residual(x.clone());
            let gradients = y.clone().square().sum().backward();
            let q_scale = layer.q_scale.val().grad(&gradients).unwrap();
            (y.inner(), x.grad(&gradients).unwrap(), q_scale.reshape([1, 1, 1, 5]))
        };
        let (fused, plain) = (run(0.0), run(1e-12));
        assert!(distance(fused.0, plain.0) < 1e-5);
        assert!(distance(fused.1, plain.1) < 1e-4);
        assert!(distance(fused.2, plain.2) < 1e-4);
    }
}
