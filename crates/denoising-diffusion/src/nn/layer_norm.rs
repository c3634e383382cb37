//! Layer normalisation without weights, as transformers with adaptive normalisation use it.

use burn::tensor::Tensor;

/// `(x - mean) / sqrt(variance + 1e-6)` over the last dimension (Ba et al. 2016), `[b, h, w, c]`.
pub fn layer_norm(x: Tensor<4>) -> Tensor<4> {
    let x = x.clone() - x.mean_dim(3);
    let variance = x.clone().square().mean_dim(3);
    x / (variance + 1e-6).sqrt()
}
