use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use super::super::super::super::plain;
use super::super::super::tests::{assert_within, drawn, test_device};
use super::super::super::{attention, client};
use super::values;
use crate::nn::params::host_values;

/// `[images, positions]`, heads, channels per head, rows of the memory.
type Sizes = ([usize; 2], usize, usize, usize);

/// The result and the gradients of queries, keys and values and of the memory, for values that this type has.
fn outcome(
    operation: fn(Tensor<4>, Tensor<4>) -> Tensor<4>,
    ([b, n], heads, d, m): Sizes,
    [dtype, to]: [FloatDType; 2],
    device: &Device,
) -> [Vec<f32>; 3] {
    let device = device.clone().autodiff();
    let tensor = |part, shape: [usize; 4], scale: f32| {
        let values = drawn(5, part, shape.iter().product()).into_iter().map(|value| scale * value).collect::<Vec<_>>();
        Tensor::<4>::from_data(TensorData::new(values, shape), &device).cast(dtype).cast(to).detach()
    };
    let qkv = tensor(1, [b, n, 1, 3 * heads * d], 1.5).require_grad();
    // Networks keep it in f32.
    let memory = tensor(2, [2, heads, m, d], 1.0).cast(FloatDType::F32).detach().require_grad();
    let dy = tensor(3, [b, n, 1, heads * d], 1.0);
    let y = operation(qkv.clone(), memory.clone());
    let mut gradients = (y.clone() * dy).cast(FloatDType::F32).sum().backward();
    let d_memory = if m == 0 { Vec::new() } else { host_values(memory.grad_remove(&mut gradients).unwrap()) };
    [host_values(y), host_values(qkv.grad_remove(&mut gradients).unwrap()), d_memory]
}

/// Heads of all widths, rows that fill no block, several blocks, more memory than a block, and a single position.
#[test]
fn products_on_tensor_cores_attend_as_plain_operations() {
    let Some(device) = test_device() else { return };
    for dtype in [FloatDType::BF16, FloatDType::F16] {
        if client(&device).and_then(|client| values(&client, dtype.into(), 32)).is_none() {
            continue;
        }
        for sizes in [([2, 150], 2, 32, 4), ([1, 64], 1, 64, 0), ([2, 33], 3, 16, 70), ([1, 1], 1, 48, 1)] {
            let got = outcome(attention, sizes, [dtype, dtype], &device);
            let expected = outcome(plain::attention, sizes, [dtype, FloatDType::F32], &Device::flex());
            for ((what, got), expected) in ["y", "dqkv", "dmemory"].iter().zip(&got).zip(&expected) {
                let tolerance = if dtype == FloatDType::BF16 { 2e-2 } else { 3e-3 };
                assert_within(tolerance, &format!("{what} of {sizes:?} in {dtype:?}"), got, expected);
            }
        }
    }
}
