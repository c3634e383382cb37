//! Each pass of the kernels by itself, as the backend runs it (and as `fusion` puts it among the operations that it delays), as a Burn backend
//! extension. Not here: what layers call, with gradients ([`extension`](super::extension)).

use burn::backend::backend_extension;
use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use denoising_diffusion_kernels::dropout::Mask;

use super::super::{AxisResize, Pointwise};
use super::gate::{self, Gated};
use super::rms_norm::{self, Then};
use super::unit_rows::{self, Length};
use super::{add_scaled, attention, columns, conv, dropout, join, layer_norm, linear_attention, pointwise, resize};

/// The shapes of the kernels' outputs, for `fusion`.
#[cfg(feature = "fusion")]
mod shapes {
    use burn::backend::fusion::custom::TensorSpec;
    use burn::tensor::DType;

    use super::linear_attention::state_rows;

    /// A result like `x`, and a number for each of its rows.
    pub(super) fn with_norms(x: &TensorSpec) -> (TensorSpec, TensorSpec) {
        let rows: usize = x.shape.iter().rev().skip(1).product();
        (x.clone(), TensorSpec::new([rows].into(), DType::F32))
    }

    /// With length `n` along the second of four axes.
    pub(super) fn resized(x: &TensorSpec, n: usize) -> TensorSpec {
        let mut shape = x.shape.clone();
        shape[1] = n;
        TensorSpec::new(shape, x.dtype)
    }

    /// With the channels of a convolution's result.
    pub(super) fn convolved(x: &TensorSpec, weight: &TensorSpec) -> TensorSpec {
        let mut shape = x.shape.clone();
        shape[3] = weight.shape[0];
        TensorSpec::new(shape, x.dtype)
    }

    /// Concatenated.
    pub(super) fn joined(first: &TensorSpec, second: &TensorSpec) -> TensorSpec {
        let mut shape = first.shape.clone();
        shape[3] += second.shape[3];
        TensorSpec::new(shape, first.dtype)
    }

    /// The parts of that, of which the first has `c` channels.
    pub(super) fn parts(whole: &TensorSpec, c: usize) -> (TensorSpec, TensorSpec) {
        let part = |channels: usize| {
            let mut shape = whole.shape.clone();
            shape[3] = channels;
            TensorSpec::new(shape, whole.dtype)
        };
        (part(c), part(whole.shape[3] - c))
    }

    /// The result of attention, and what is kept.
    pub(super) fn attended(qkv: &TensorSpec, mem_kv: &TensorSpec) -> (TensorSpec, TensorSpec) {
        let (heads, dim) = (mem_kv.shape[1], mem_kv.shape[3]);
        let mut shape = qkv.shape.clone();
        let state = [shape[0] * heads, 2 * shape[1] * shape[2]].into();
        shape[3] = heads * dim;
        (TensorSpec::new(shape, qkv.dtype), TensorSpec::new(state, DType::F32))
    }

    /// The result of linear attention, and what is kept.
    pub(super) fn linearly_attended(qkv: &TensorSpec, mem_kv: &TensorSpec) -> (TensorSpec, TensorSpec) {
        let (heads, dim) = (mem_kv.shape[1], mem_kv.shape[2]);
        let mut shape = qkv.shape.clone();
        let state = [shape[0] * heads, state_rows(dim) * dim].into();
        shape[3] = heads * dim;
        (TensorSpec::new(shape, qkv.dtype), TensorSpec::new(state, DType::F32))
    }
}

#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub trait CubeKernels: burn::backend::Backend {
    /// See [`rms_norm::forward`].
    #[fusion(meta = |x, _g, _then| shapes::with_norms(x))]
    fn rms_forward(x: FloatTensor<Self>, g: FloatTensor<Self>, then: Then) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The same with a bias and a residual.
    #[fusion(meta = |x, _bias, _g, _residual, _then| shapes::with_norms(x))]
    fn rms_add_forward(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        then: Then,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The same with a bias, and with scale and shift followed by SiLU.
    #[fusion(meta = |x, _bias, _g, _scale_shift| shapes::with_norms(x))]
    fn rms_scaled_forward(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`rms_norm::backward`].
    #[fusion(meta = |x, g, _norms, _dy, _then| (x.clone(), g.clone()))]
    fn rms_backward(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        then: Then,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`rms_norm::biased_backward`].
    #[fusion(meta = |x, bias, g, _norms, _dy, _then| (x.clone(), bias.clone(), g.clone()))]
    fn rms_biased_backward(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        then: Then,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`rms_norm::scaled_backward`].
    #[fusion(meta = |x, bias, g, scale_shift, _norms, _dy| (x.clone(), bias.clone(), g.clone(), scale_shift.clone()))]
    fn rms_scaled_backward(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`layer_norm::forward`].
    #[fusion(meta = |x, _scale_shift| x.clone())]
    fn layer_norm_forward(x: FloatTensor<Self>, scale_shift: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`layer_norm::backward`].
    #[fusion(meta = |x, scale_shift, _dy| (x.clone(), scale_shift.clone()))]
    fn layer_norm_backward(
        x: FloatTensor<Self>,
        scale_shift: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`gate::forward`]; with a residual.
    #[fusion(meta = |x, _gate, _residual| x.clone())]
    fn gated_add_forward(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`gate::forward`]; with SiLU.
    #[fusion(meta = |x, _gate| x.clone())]
    fn gated_silu_forward(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`gate::backward`].
    #[fusion(meta = |x, gate, _dy, _gated| (x.clone(), gate.clone()))]
    fn gated_backward(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        gated: Gated,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`unit_rows::forward`].
    #[fusion(meta = |x, _length| shapes::with_norms(x))]
    fn unit_rows_forward(x: FloatTensor<Self>, length: Length) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`unit_rows::backward`].
    #[fusion(meta = |x, _norms, _dy, _length| x.clone())]
    fn unit_rows_backward(
        x: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        length: Length,
    ) -> FloatTensor<Self>;

    /// See [`add_scaled::forward`].
    #[fusion(meta = |a, _b, _factor| a.clone())]
    fn add_scaled_forward(a: FloatTensor<Self>, b: FloatTensor<Self>, factor: f32) -> FloatTensor<Self>;

    /// See [`resize::forward`].
    #[fusion(meta = |x, resize| shapes::resized(x, resize.length(x.shape[1])))]
    fn resize_forward(x: FloatTensor<Self>, resize: AxisResize) -> FloatTensor<Self>;

    /// See [`resize::backward`].
    #[fusion(meta = |dy, n, _resize| shapes::resized(dy, *n))]
    fn resize_backward(dy: FloatTensor<Self>, n: usize, resize: AxisResize) -> FloatTensor<Self>;

    /// See [`attention::forward`].
    #[fusion(meta = |qkv, mem_kv| shapes::attended(qkv, mem_kv))]
    fn attention_forward(qkv: FloatTensor<Self>, mem_kv: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`attention::backward`].
    #[fusion(meta = |qkv, mem_kv, _y, _state, _dy| (qkv.clone(), mem_kv.clone()))]
    fn attention_backward(
        qkv: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
        y: FloatTensor<Self>,
        state: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`linear_attention::forward`].
    #[fusion(meta = |qkv, mem_kv| shapes::linearly_attended(qkv, mem_kv))]
    fn linear_attention_forward(
        qkv: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`linear_attention::backward`].
    #[fusion(meta = |qkv, mem_kv, _state, _dy| (qkv.clone(), mem_kv.clone()))]
    fn linear_attention_backward(
        qkv: FloatTensor<Self>,
        mem_kv: FloatTensor<Self>,
        state: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`join::join`].
    #[fusion(meta = |first, second, _factors| shapes::joined(first, second))]
    fn join(first: FloatTensor<Self>, second: FloatTensor<Self>, factors: Option<[f32; 2]>) -> FloatTensor<Self>;

    /// See [`join::split`].
    #[fusion(meta = |whole, c, _factors| shapes::parts(whole, *c))]
    fn split(whole: FloatTensor<Self>, c: usize, factors: Option<[f32; 2]>) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`conv::forward`].
    #[fusion(meta = |x, weight| shapes::convolved(x, weight))]
    fn conv_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same with a bias.
    #[fusion(meta = |x, weight, _bias| shapes::convolved(x, weight))]
    fn conv_biased_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`conv::x_backward`].
    #[fusion(meta = |x, _weight, _dy| x.clone())]
    fn conv_x_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`conv::weight_backward`].
    #[fusion(meta = |_x, weight, _dy| weight.clone())]
    fn conv_weight_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`columns::sum_rows`].
    #[fusion(meta = |_x, like| like.clone())]
    fn sum_rows(x: FloatTensor<Self>, like: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`dropout::dropout`].
    #[fusion(meta = |x, _key, _mask| x.clone())]
    fn dropout_pass(x: FloatTensor<Self>, key: FloatTensor<Self>, mask: Mask) -> FloatTensor<Self>;

    /// See [`pointwise::forward`].
    #[fusion(meta = |x, _f| x.clone())]
    fn pointwise_forward(x: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self>;

    /// See [`pointwise::backward`].
    #[fusion(meta = |x, _dy, _f| x.clone())]
    fn pointwise_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, f: Pointwise) -> FloatTensor<Self>;
}

impl CubeKernels for CubeBackend {
    fn rms_forward(x: CubeTensor, g: CubeTensor, then: Then) -> (CubeTensor, CubeTensor) {
        rms_norm::forward(x, None, g, None, None, then)
    }

    fn rms_add_forward(
        x: CubeTensor,
        bias: CubeTensor,
        g: CubeTensor,
        residual: CubeTensor,
        then: Then,
    ) -> (CubeTensor, CubeTensor) {
        rms_norm::forward(x, Some(bias), g, None, Some(residual), then)
    }

    fn rms_scaled_forward(
        x: CubeTensor,
        bias: CubeTensor,
        g: CubeTensor,
        scale_shift: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        rms_norm::forward(x, Some(bias), g, Some(scale_shift), None, Then::Silu)
    }

    fn rms_backward(
        x: CubeTensor,
        g: CubeTensor,
        norms: CubeTensor,
        dy: CubeTensor,
        then: Then,
    ) -> (CubeTensor, CubeTensor) {
        rms_norm::backward(x, g, norms, dy, then)
    }

    fn rms_biased_backward(
        x: CubeTensor,
        bias: CubeTensor,
        g: CubeTensor,
        norms: CubeTensor,
        dy: CubeTensor,
        then: Then,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        rms_norm::biased_backward(x, bias, g, norms, dy, then)
    }

    fn rms_scaled_backward(
        x: CubeTensor,
        bias: CubeTensor,
        g: CubeTensor,
        scale_shift: CubeTensor,
        norms: CubeTensor,
        dy: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        rms_norm::scaled_backward(x, bias, g, scale_shift, norms, dy)
    }

    fn layer_norm_forward(x: CubeTensor, scale_shift: CubeTensor) -> CubeTensor {
        layer_norm::forward(x, scale_shift)
    }

    fn layer_norm_backward(x: CubeTensor, scale_shift: CubeTensor, dy: CubeTensor) -> (CubeTensor, CubeTensor) {
        layer_norm::backward(x, scale_shift, dy)
    }

    fn gated_add_forward(x: CubeTensor, gate: CubeTensor, residual: CubeTensor) -> CubeTensor {
        gate::forward(x, gate, Some(residual), Gated::Add)
    }

    fn gated_silu_forward(x: CubeTensor, gate: CubeTensor) -> CubeTensor {
        gate::forward(x, gate, None, Gated::Silu)
    }

    fn gated_backward(x: CubeTensor, gate: CubeTensor, dy: CubeTensor, gated: Gated) -> (CubeTensor, CubeTensor) {
        gate::backward(x, gate, dy, gated)
    }

    fn unit_rows_forward(x: CubeTensor, length: Length) -> (CubeTensor, CubeTensor) {
        unit_rows::forward(x, length)
    }

    fn unit_rows_backward(x: CubeTensor, norms: CubeTensor, dy: CubeTensor, length: Length) -> CubeTensor {
        unit_rows::backward(x, norms, dy, length)
    }

    fn add_scaled_forward(a: CubeTensor, b: CubeTensor, factor: f32) -> CubeTensor {
        add_scaled::forward(a, b, factor)
    }

    fn resize_forward(x: CubeTensor, resize: AxisResize) -> CubeTensor {
        resize::forward(x, resize)
    }

    fn resize_backward(dy: CubeTensor, n: usize, resize: AxisResize) -> CubeTensor {
        resize::backward(dy, n, resize)
    }

    fn attention_forward(qkv: CubeTensor, mem_kv: CubeTensor) -> (CubeTensor, CubeTensor) {
        attention::forward(qkv, mem_kv)
    }

    fn attention_backward(
        qkv: CubeTensor,
        mem_kv: CubeTensor,
        y: CubeTensor,
        state: CubeTensor,
        dy: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        attention::backward(qkv, mem_kv, y, state, dy)
    }

    fn linear_attention_forward(qkv: CubeTensor, mem_kv: CubeTensor) -> (CubeTensor, CubeTensor) {
        linear_attention::forward(qkv, mem_kv)
    }

    fn linear_attention_backward(
        qkv: CubeTensor,
        mem_kv: CubeTensor,
        state: CubeTensor,
        dy: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        linear_attention::backward(qkv, mem_kv, state, dy)
    }

    fn join(first: CubeTensor, second: CubeTensor, factors: Option<[f32; 2]>) -> CubeTensor {
        join::join(first, second, factors)
    }

    fn split(whole: CubeTensor, c: usize, factors: Option<[f32; 2]>) -> (CubeTensor, CubeTensor) {
        join::split(whole, c, factors)
    }

    fn conv_forward(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        conv::forward(x, weight, None)
    }

    fn conv_biased_forward(x: CubeTensor, weight: CubeTensor, bias: CubeTensor) -> CubeTensor {
        conv::forward(x, weight, Some(bias))
    }

    fn conv_x_backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
        conv::x_backward(x, weight, dy)
    }

    fn conv_weight_backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
        conv::weight_backward(x, weight, dy)
    }

    fn sum_rows(x: CubeTensor, like: CubeTensor) -> CubeTensor {
        columns::sum_rows(x, like)
    }

    fn dropout_pass(x: CubeTensor, key: CubeTensor, mask: Mask) -> CubeTensor {
        dropout::dropout(x, key, mask)
    }

    fn pointwise_forward(x: CubeTensor, f: Pointwise) -> CubeTensor {
        pointwise::forward(x, f)
    }

    fn pointwise_backward(x: CubeTensor, dy: CubeTensor, f: Pointwise) -> CubeTensor {
        pointwise::backward(x, dy, f)
    }
}
