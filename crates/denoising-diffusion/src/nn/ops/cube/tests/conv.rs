//! Convolutions of whole numbers and their gradients: products are exact in every type, and sums in f32. With a tuner, whatever it finds to be
//! fastest must be exact in f32, too.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use super::super::super::{self as ops, plain};
use super::super::{client, conv, has_matrices_that_sum_in_f32};
use super::{Layout, image, test_device};
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream};

/// From -3 to 3.
pub(crate) fn whole_numbers(part: u64, count: usize) -> Vec<f32> {
    let mut stream = Stream::new(1, Purpose::Init, part, 0);
    (0..count).map(|_| (stream.next_u64() % 7) as f32 - 3.0).collect()
}

#[derive(Debug)]
struct Case {
    dims: [usize; 4],
    c_out: usize,
    kernel: [usize; 2],
    layout: Layout,
}

type Conv = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>) -> Tensor<4>;

impl Case {
    /// The output and the gradients of data, weights and bias, computed in this type.
    fn outcome(&self, conv: Conv, dtype: FloatDType, device: &Device) -> [Vec<f32>; 4] {
        let device = device.clone().autodiff();
        let ([b, h, w, c_in], [kh, kw]) = (self.dims, self.kernel);
        let shape = [self.c_out, c_in, kh, kw];
        // A cast does not change the layout.
        let typed = |x: Tensor<4>| x.cast(dtype);
        let laid_out = |part, c| {
            let values = whole_numbers(part, b * h * w * c);
            typed(image(values, [b, h, w, c], self.layout, &device))
        };
        let weight = TensorData::new(whole_numbers(0, shape.iter().product()), shape);
        let weight = typed(Tensor::from_data(weight, &device)).detach().require_grad();
        let (x, dy) = (laid_out(1, c_in).detach().require_grad(), laid_out(2, self.c_out));
        let bias = TensorData::new(whole_numbers(3, self.c_out), [self.c_out]);
        let bias = Tensor::<1>::from_data(bias, &device).cast(dtype).detach().require_grad();
        let y = conv(x.clone(), weight.clone(), Some(bias.clone()));
        let mut gradients = (y.clone() * dy).cast(FloatDType::F32).sum().backward();
        let [dx, dw] = [x, weight].map(|tensor| host_values(tensor.grad_remove(&mut gradients).unwrap()));
        [host_values(y), dx, dw, host_values(bias.grad_remove(&mut gradients).unwrap())]
    }

    fn is_ours(&self, dtype: FloatDType, device: &Device) -> bool {
        client(device).is_some_and(|client| conv::takes(&client, dtype.into(), self.kernel))
    }

    /// Compares the device's results with the exact numbers.
    fn check(&self, exact: &[Vec<f32>; 4], dtype: FloatDType, device: &Device) {
        let rounded = |value: &f32| match dtype {
            FloatDType::BF16 => half::bf16::from_f32(*value).to_f32(),
            FloatDType::F16 => half::f16::from_f32(*value).to_f32(),
            _ => *value,
        };
        let got = self.outcome(ops::conv2d, dtype, device);
        for ((what, got), exact) in ["y", "dx", "dw", "dbias"].iter().zip(&got).zip(exact) {
            let expected: Vec<f32> = exact.iter().map(rounded).collect();
            let scale = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            // Burn's direct kernels sum in the type of their data.
            let is_ours = what.starts_with("d") && *what != "dx" || self.is_ours(dtype, device);
            let slack = if dtype == FloatDType::F32 || is_ours { 0.0 } else { scale / 16.0 };
            let distance = |i: usize| (got[i] - expected[i]).abs();
            let differ: Vec<usize> = (0..got.len()).filter(|&i| distance(i).is_nan() || distance(i) > slack).collect();
            let first = differ.first().map(|&i| (i, got[i], expected[i]));
            assert_eq!(first, None, "{what} of {self:?} in {dtype:?}: {} of {} differ", differ.len(), got.len());
        }
    }
}

/// Fewer channels than a matrix is wide and more than a cube takes; kernels of all shapes; fewer positions than a block, and so many that a cube
/// takes several blocks.
#[test]
fn convolutions_of_whole_numbers() {
    let Some(device) = test_device() else { return };
    let cases = [
        ([2, 9, 7, 24], 40, [3, 3]),
        ([1, 8, 9, 3], 64, [7, 7]),
        ([3, 1, 33, 6], 10, [1, 3]),
        ([1, 2, 2, 72], 130, [3, 3]),
        ([1, 130, 130, 16], 16, [3, 3]),
        ([2, 16, 16, 32], 64, [3, 3]),
        ([2, 5, 4, 32], 8, [1, 1]),
        ([1, 12, 13, 40], 72, [1, 1]),
        ([1, 6, 7, 16], 24, [5, 5]),
        ([1, 9, 8, 8], 64, [7, 7]),
    ];
    for (dims, c_out, kernel) in cases {
        for layout in [Layout::Dense, Layout::Padded, Layout::Permuted] {
            let case = Case { dims, c_out, kernel, layout };
            let exact = case.outcome(plain::conv2d, FloatDType::F32, &Device::flex());
            for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
                if dtype == FloatDType::F32 || has_matrices_that_sum_in_f32(&device, dtype.into()) {
                    case.check(&exact, dtype, &device);
                }
            }
        }
    }
}
