//! Magnitude-preserving layers (Karras et al. 2023, "Analyzing and improving the training dynamics of diffusion models", arXiv:2312.02696, "EDM2"):
//! inputs of unit variance give outputs of unit variance, and the magnitude of a weight has no effect. Data are volumes, channels last:
//! `[b, d, h, w, c]`; images have depth 1, sequences also height 1.
//!
//! Weights are normalised in two places. The forward pass divides them by their norm (eq. 47), in every mode, and does not change the stored ones.
//! *Forced* normalisation (algorithm 1) replaces the stored weights, so that the step size remains what the learning rate says. Only training does
//! that, after each step of the optimizer, to the tensors named by [`Network::forces_norm_of`](crate::models::Network::forces_norm_of).

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use super::embedding::sin_cos;
use super::ops::in_f32;
use super::{Init, ops};

/// Lower bound of norms of pixels and weights, before dividing by them.
pub const MP_EPS: f64 = 1e-4;

/// The factor of SiLU that preserves magnitude: one over the root mean square of SiLU of a standard normal variable (section B.3).
pub const MP_SILU: f64 = 1.0 / 0.596;

/// `silu(x) / 0.596` (eq. 81). Before a convolution, it is better to multiply the convolution's weights by the factor: [`MpConv::forward_times`].
pub fn mp_silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    ops::silu(x) * MP_SILU
}

/// `((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)` (eq. 88).
pub fn mp_sum<const D: usize>(a: Tensor<D>, b: Tensor<D>, t: f64) -> Tensor<D> {
    let [of_a, of_b] = shares(t);
    ops::add_scaled(a * of_a, b, of_b)
}

/// The factors of two branches of unit variance whose sum then has unit variance: `1 - t` and `t` over `sqrt((1 - t)^2 + t^2)`.
fn shares(t: f64) -> [f64; 2] {
    let scale = ((1.0 - t).powi(2) + t.powi(2)).sqrt().recip();
    [(1.0 - t) * scale, t * scale]
}

/// `sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) / sqrt(Na) a, t / sqrt(Nb) b]` along the last dimension, with `Na` and `Nb` channels (eq. 103): the
/// two contribute `1 - t` and `t`, whatever their numbers of channels. `[b, d, h, w, Na or Nb]`.
pub fn mp_cat(a: Tensor<5>, b: Tensor<5>, t: f64) -> Tensor<5> {
    let [batch, d, h, w, na] = a.dims();
    let nb = b.dims()[4];
    let ([of_a, of_b], all) = (shares(t), (na + nb) as f64);
    let factors = [of_a * (all / na as f64).sqrt(), of_b * (all / nb as f64).sqrt()];
    let image = |x: Tensor<5>, c: usize| x.reshape([batch, d * h, w, c]);
    ops::join_scaled(image(a, na), image(b, nb), factors).reshape([batch, d, h, w, na + nb])
}

/// `x / max(|x|, 1e-4) sqrt(c)` over the last dimension, which has `c` channels (eq. 30).
pub fn pixel_norm<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let channels = x.dims()[D - 1] as f64;
    ops::unit_rows(x, channels.sqrt(), MP_EPS)
}

/// Scales the weights of each output to the root mean square `scale`.
fn normalized<const D: usize>(weight: Tensor<D>, scale: f64) -> Tensor<D> {
    let dims = weight.dims();
    let n = dims[1..].iter().product::<usize>();
    ops::unit_rows(weight.reshape([dims[0], n]), scale * (n as f64).sqrt(), MP_EPS).reshape(dims)
}

/// Standard normal weights, normalised as after a training step.
fn normal<const D: usize>(init: &mut Init, shape: [usize; D]) -> Param<Tensor<D>> {
    let drawn = init.normal(shape);
    if drawn.val().dims().contains(&0) {
        return drawn; // counted, not drawn
    }
    let trainable = drawn.val().is_require_grad();
    let (id, tensor, mapper) = drawn.consume();
    let tensor = normalized(tensor.detach(), 1.0).detach();
    Param::from_mapped_value(id, if trainable { tensor.require_grad() } else { tensor }, mapper)
}

/// The input of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MpInput {
    Data,
    /// The data, preceded by a channel of ones that replaces all biases of a network (EDM2, section B.3).
    OnesAndData,
}

/// A convolution without bias that is independent of its weights' norm: `conv(x, w / |w|)` (eq. 47), stride 1, "same" zero padding:
/// `[b, d, h, w, c_in] -> [b, d, h, w, c_out]`.
#[derive(Module, Debug)]
pub struct MpConv {
    /// `[c_out, c_in, kd, kh, kw]`, all kernel sizes odd; `c_in + 1` with a constant channel.
    pub weight: Param<Tensor<5>>,
    #[module(skip)]
    input: MpInput,
    fan_in: usize,
}

impl MpConv {
    /// `dim_in` is the number of the data's channels. With [`MpInput::OnesAndData`], the scale is that for `dim_in` channels, as in the reference
    /// (the paper also counts the ones), so that the reference's weights have the same meaning here.
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, kernel: [usize; 3], input: MpInput) -> Self {
        let channels = dim_in + usize::from(input == MpInput::OnesAndData);
        let [kd, kh, kw] = kernel;
        Self { weight: normal(init, [dim_out, channels, kd, kh, kw]), input, fan_in: dim_in * kd * kh * kw }
    }

    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.forward_times(x, 1.0)
    }

    /// [`MpConv::forward`] of `factor x`. The weights are multiplied, because there are fewer of them than values of `x`.
    pub fn forward_times(&self, x: Tensor<5>, factor: f64) -> Tensor<5> {
        let x = match self.input {
            MpInput::Data => x,
            MpInput::OnesAndData => {
                let ones = x.clone().narrow(4, 0, 1).ones_like();
                Tensor::cat(vec![ones, x], 4)
            }
        };
        conv3d(x, normalized(self.weight.val(), factor * (self.fan_in as f64).sqrt().recip()))
    }

    /// [`mp_sum`] of the convolution of `factor x` and a residual.
    pub fn forward_mp_sum(&self, x: Tensor<5>, factor: f64, residual: Tensor<5>, t: f64) -> Tensor<5> {
        let [of_x, of_residual] = shares(t);
        ops::add_scaled(self.forward_times(x, factor * of_x), residual, of_residual)
    }
}

/// The sum over the kernel's depth of convolutions of images: `y[z] = sum_k conv2d(x[z + k - K / 2], weight[k])`. Every slice of the volume is an
/// image of the batch, so the kernels for images can be used.
fn conv3d(x: Tensor<5>, weight: Tensor<5>) -> Tensor<5> {
    let ([b, d, h, w, c], [o, i, depth, kh, kw]) = (x.dims(), weight.dims());
    // The gradient of a slice is allocated at the size of the whole, which a kernel of depth 1, as images have it, can do without.
    let kernel = |k: usize| match depth {
        1 => weight.clone().reshape([o, i, kh, kw]),
        _ => weight.clone().narrow(2, k, 1).reshape([o, i, kh, kw]),
    };
    let half = depth / 2;
    let mut y = ops::conv2d(x.clone().reshape([b * d, h, w, c]), kernel(half), None);
    // With few slices, the outer parts of the kernel only meet padding.
    let seen = (0..depth).filter(|&k| k != half && k.abs_diff(half) < d).collect::<Vec<_>>();
    if !seen.is_empty() {
        let padding = Tensor::<5>::zeros([b, half, h, w, c], &x.device()).cast(x.dtype());
        let padded = Tensor::cat(vec![padding.clone(), x, padding], 1);
        for k in seen {
            let slices = padded.clone().narrow(1, k, d).reshape([b * d, h, w, c]);
            y = ops::conv2d_add(slices, kernel(k), None, y);
        }
    }
    y.reshape([b, d, h, w, o])
}

/// A linear layer without bias that is independent of its weights' norm (eq. 47): `[b, c_in] -> [b, c_out]`.
#[derive(Module, Debug)]
pub struct MpLinear {
    /// `[c_out, c_in]`
    pub weight: Param<Tensor<2>>,
}

impl MpLinear {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize) -> Self {
        Self { weight: normal(init, [dim_out, dim_in]) }
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.scaled().transpose())
    }

    /// The output for `sqrt(c_in)` times the one-hot vector of each `index` in `0..c_in`, and for zeros if the index is `c_in`: `[b] -> [b, c_out]`.
    /// The caller must ensure that no index is larger.
    pub fn forward_class(&self, index: Tensor<1, Int>) -> Tensor<2> {
        let [dim_out, classes] = self.weight.dims();
        let rows = self.scaled().transpose() * (classes as f64).sqrt(); // [classes, c_out]
        let none = Tensor::zeros([1, dim_out], &rows.device());
        Tensor::cat(vec![rows, none], 0).select(0, index)
    }

    /// The normalised weights, as they are used.
    fn scaled(&self) -> Tensor<2> {
        let fan_in = self.weight.dims()[1] as f64;
        normalized(self.weight.val(), fan_in.sqrt().recip())
    }
}

/// A learned factor, initially 0 (eq. 65).
#[derive(Module, Debug)]
pub struct Gain {
    /// `[1]`
    pub gain: Param<Tensor<1>>,
}

impl Gain {
    pub fn new(init: &mut Init) -> Self {
        Self { gain: init.zeros([1]) }
    }

    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        in_f32(x, |x| x * self.gain.val().reshape([1; D]))
    }
}

/// `sqrt(2)` times sines and cosines of `2 pi time weights`, with standard normal weights that are never trained: `[b] -> [b, dim]`. EDM2 (eq. 76)
/// also draws random phases; the reference has a sine and a cosine of each frequency instead.
#[derive(Module, Debug)]
pub struct MpFourierEmbedding {
    /// `[dim / 2]`
    pub weights: Param<Tensor<1>>,
}

impl MpFourierEmbedding {
    /// `dim` even.
    pub fn new(init: &mut Init, dim: usize) -> Self {
        Self { weights: init.normal([dim / 2]).set_require_grad(false) }
    }

    pub fn forward(&self, time: Tensor<1>) -> Tensor<2> {
        let angles = time.unsqueeze_dim::<2>(1) * self.weights.val().unsqueeze::<2>() * std::f64::consts::TAU;
        sin_cos(angles) * std::f64::consts::SQRT_2
    }
}

/// Softmax attention between all positions, with queries, keys and values normalised feature by feature (EDM2, section B.3), and additional learned
/// keys and values as in the reference.
#[derive(Module, Debug)]
pub struct MpAttention {
    /// `[2, heads, memory, d]`: keys, then values.
    pub mem_kv: Param<Tensor<4>>,
    pub to_qkv: MpConv,
    pub to_out: MpConv,
    residual_t: f64,
}

/// Which positions of `[b, d, h, w, c]` attend to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    All,
    /// Those in the same slice.
    Slice,
    /// Those at the same place in all slices.
    Place,
}

/// Number of learned pairs of key and value.
const MEMORY: usize = 4;

impl MpAttention {
    /// `residual_t`: the weight of the input in the sum.
    pub fn new(init: &mut Init, dim: usize, heads: usize, dim_head: usize, residual_t: f64) -> Self {
        let hidden = heads * dim_head;
        Self {
            mem_kv: init.normal([2, heads, MEMORY, dim_head]),
            to_qkv: MpConv::new(init, dim, 3 * hidden, [1; 3], MpInput::Data),
            to_out: MpConv::new(init, hidden, dim, [1; 3], MpInput::Data),
            residual_t,
        }
    }

    /// `[b, d, h, w, c] -> [b, d, h, w, c]`
    pub fn forward_residual(&self, x: Tensor<5>, among: Among) -> Tensor<5> {
        let [b, d, h, w, _] = x.dims();
        let [groups, positions] = match among {
            Among::All => [b, d * h * w],
            Among::Slice => [b * d, h * w],
            Among::Place => [b * h * w, d],
        };
        let [_, heads, _, dim_head] = self.mem_kv.dims();
        let hidden = heads * dim_head;
        let qkv = self.to_qkv.forward(x.clone()).reshape([b * d * h * w, 3 * heads, dim_head]);
        let mut qkv = pixel_norm(qkv).reshape([b, d, h * w, 3 * hidden]);
        if among == Among::Place {
            qkv = qkv.swap_dims(1, 2);
        }
        let out = ops::attention(qkv.reshape([groups, 1, positions, 3 * hidden]), pixel_norm(self.mem_kv.val()));
        let out = match among {
            Among::Place => out.reshape([b, h * w, d, hidden]).swap_dims(1, 2),
            _ => out.reshape([b, d, h * w, hidden]),
        };
        self.to_out.forward_mp_sum(out.reshape([b, d, h, w, hidden]), 1.0, x, self.residual_t)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn::tensor::module::conv3d as conv3d_nchw;
    use burn::tensor::ops::ConvOptions;

    use super::*;
    use crate::nn::params::host_values;
    use crate::testing::largest_difference;

    fn init() -> Init {
        Init::new(5, &Device::flex())
    }

    /// The root mean square.
    fn magnitude<const D: usize>(x: Tensor<D>) -> f64 {
        let values = host_values(x);
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn unit_variance_stays() {
        let init = &mut init();
        let mut drawn = |c: usize| init.normal([4, 2, 8, 8, c]).val();
        let (a, b, x) = (drawn(24), drawn(40), drawn(32));
        let near = |what: &str, got: f64| assert!((got - 1.0).abs() < 0.05, "{what}: {got}");
        near("mp_silu", magnitude(mp_silu(a.clone())));
        near("mp_sum", magnitude(mp_sum(a.clone(), drawn(24), 0.3)));
        near("mp_cat", magnitude(mp_cat(a.clone(), b.clone(), 0.5)));
        near("pixel_norm", magnitude(pixel_norm(a.clone() * 7.0)));
        // Both parts contribute the same, although one has more channels.
        let both = mp_cat(a, b, 0.5);
        let energy = |first: usize, n: usize| magnitude(both.clone().narrow(4, first, n)).powi(2) * n as f64;
        assert!((energy(0, 24) / energy(24, 40) - 1.0).abs() < 0.1);
        let conv = MpConv::new(&mut Init::new(1, &Device::flex()), 32, 48, [1, 1, 1], MpInput::Data);
        near("MpConv", magnitude(conv.forward(x)));
        let linear = MpLinear::new(&mut Init::new(1, &Device::flex()), 64, 512);
        near("MpLinear", magnitude(linear.forward(Init::new(2, &Device::flex()).normal([16, 64]).val())));
    }

    #[test]
    fn the_size_of_a_weight_means_nothing() {
        let device = Device::flex().autodiff();
        let conv = MpConv::new(&mut Init::new(5, &device), 6, 4, [1, 3, 3], MpInput::OnesAndData);
        let x = Init::new(6, &device).normal([2, 1, 5, 5, 6]).val();
        let before = host_values(conv.forward(x.clone()));
        let larger = MpConv { weight: conv.weight.clone().map(|w| (w * 3.0).detach().require_grad()), ..conv };
        assert!(largest_difference(&before, &host_values(larger.forward(x.clone()))) < 1e-5);
    }

    #[test]
    fn volumes_are_convolved_as_by_a_convolution_of_volumes() {
        for (size, kernel) in
            [([4, 4, 6], [3, 3, 3]), ([1, 4, 4], [3, 3, 3]), ([2, 3, 1], [1, 1, 5]), ([3, 2, 2], [1, 1, 1])]
        {
            let init = &mut init();
            let x = init.normal([2, size[0], size[1], size[2], 3]).val();
            let weight = init.normal([5, 3, kernel[0], kernel[1], kernel[2]]).val();
            let options = ConvOptions::new([1; 3], kernel.map(|k| k / 2), [1; 3], 1);
            let reference = conv3d_nchw(x.clone().permute([0, 4, 1, 2, 3]), weight.clone(), None, options);
            let reference = host_values(reference.permute([0, 2, 3, 4, 1]));
            let ours = host_values(conv3d(x, weight));
            let scale = reference.iter().fold(1.0, |most, v| f64::from(v.abs()).max(most));
            let worst = largest_difference(&ours, &reference);
            assert!(worst < 2e-5 * scale, "{worst} {size:?} {kernel:?}");
        }
    }

    #[test]
    fn no_class_is_no_embedding() {
        let linear = MpLinear::new(&mut init(), 3, 4);
        let rows = linear.forward_class(Tensor::from_ints([3, 1], &Device::flex()));
        let values = host_values(rows);
        assert!(values[..4].iter().all(|v| *v == 0.0) && values[4..].iter().any(|v| *v != 0.0));
        let one_hot = Tensor::<2>::from_floats([[0.0, 3.0_f32.sqrt(), 0.0]], &Device::flex());
        let direct = host_values(linear.forward(one_hot));
        assert!(direct.iter().zip(&values[4..]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
