use burn::backend::Cube;
use burn::tensor::{FloatDType, Tensor, TensorData};

use super::super::super::client;
use super::super::super::tests::{drawn, test_device};
use super::*;
use crate::nn::params::host_values;

/// Blocks of all sizes, for images and weights that fill none of them.
#[test]
fn blocks_of_all_sizes_give_the_same_bits() {
    let Some(device) = test_device() else { return };
    let [c_out, c_in, kh, kw] = [136, 72, 3, 3];
    let [b, h, w] = [2, 13, 11];
    for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
        let values = client(&device).and_then(|client| values(&client, dtype.into(), [kh, kw]));
        let Some(values) = values else { continue };
        let tensor = |part, shape: [usize; 4]| {
            let data = TensorData::new(drawn(3, part, shape.iter().product()), shape);
            Tensor::<4>::from_data(data, &device).cast(dtype)
        };
        let primitive = |tensor: Tensor<4>| tensor.try_into_primitive::<Cube>().expect("on this device");
        for (of, channels) in [(Of::X, c_in), (Of::Dy, c_out)] {
            let (images, weight) = (tensor(1, [b, h, w, channels]), tensor(2, [c_out, c_in, kh, kw]));
            let results = Block::ALL.map(|block| {
                let result = product_in(block, of, values, primitive(images.clone()), primitive(weight.clone()), None);
                host_values(Tensor::<4>::from_primitive::<Cube>(result))
            });
            for (block, result) in Block::ALL.iter().zip(&results) {
                assert!(result == &results[0], "{block:?}, {of:?}, {dtype:?}");
            }
        }
    }
}
