//! Functions of vectors, in f32.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

/// `1 / (1 + exp(-x))`.
#[cube]
pub(super) fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + (-x).exp())
}

/// `x sigmoid(x)`.
#[cube]
pub(super) fn silu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x * sigmoid::<N>(x)
}

/// The derivative of [`silu`].
#[cube]
pub(super) fn silu_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let sigmoid = sigmoid::<N>(x);
    sigmoid * (one + x * (one - sigmoid))
}

/// The value at an index as f32; zeros if there is nothing to read from.
#[cube]
pub(super) fn value_or_zero<T: Float, N: Size>(from: &ComptimeOption<&[Vector<T, N>]>, at: usize) -> Vector<f32, N> {
    let value: ComptimeOption<Vector<T, N>> = from.as_ref().map(|values| values[at]);
    Vector::cast_from(value.unwrap_or_default())
}

/// `sqrt(2 / pi)`, and the factor of the cube in GELU's approximation.
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `x sigmoid(2 z)` with `z = sqrt(2 / pi) (x + 0.044715 x^3)`, which is `x (tanh(z) + 1) / 2`.
#[cube]
pub(super) fn gelu_tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let inner = x * (Vector::new(1.0f32) + x * x * Vector::new(CUBIC));
    x * sigmoid::<N>(inner * Vector::new(2.0f32 * ROOT))
}

/// The derivative of [`gelu_tanh`].
#[cube]
pub(super) fn gelu_tanh_slope<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let inner = x * (one + x * x * Vector::new(CUBIC));
    let inner_slope = one + x * x * Vector::new(3.0f32 * CUBIC);
    let sigmoid = sigmoid::<N>(inner * Vector::new(2.0f32 * ROOT));
    sigmoid * (one + x * (one - sigmoid) * inner_slope * Vector::new(2.0f32 * ROOT))
}
