use burn::backend::Cube;
use burn::tensor::{FloatDType, Tensor, TensorData};
use burn_cubecl::cubecl::ir::FloatKind;

use super::super::super::super::client;
use super::super::super::super::tests::conv::whole_numbers;
use super::super::super::super::tests::test_device;
use super::*;
use crate::nn::params::host_values;

#[test]
fn blocks_are_large_unless_they_would_be_empty() {
    for (c_out, columns, expected) in
        [(64, 576, [64, 192]), (128, 1152, [128, 128]), (512, 4608, [128, 128]), (64, 64, [64, 64])]
    {
        let block = fastest_block(c_out, columns);
        assert_eq!([block.rows, block.columns], expected, "{c_out} output channels, {columns} columns");
    }
}

#[test]
fn parts_fill_the_device() {
    let values = Values { elem: ElemType::Float(FloatKind::BF16), width: 8 };
    // The levels of a U-Net with 128 images of 32x32: 64, 128, 256 and 512 channels. Then one image.
    for (blocks, positions, expected) in
        [(3, 131_072, 83), (9, 32_768, 28), (36, 8192, 7), (144, 2048, 2), (144, 64, 1)]
    {
        assert_eq!(parts(blocks, positions, values), expected, "{blocks} blocks, {positions} positions");
    }
}

/// Blocks of all sizes, for images and weights that fill none of them. Sums of whole numbers are exact.
#[test]
fn blocks_of_all_sizes_give_the_same_sums() {
    let Some(device) = test_device() else { return };
    let weight @ [c_out, c_in, kh, kw] = [136, 24, 3, 5];
    let [b, h, w] = [2, 13, 11];
    for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
        let values = client(&device).and_then(|client| values(&client, dtype.into(), [kh, kw]));
        let Some(values) = values else { continue };
        let tensor = |part, channels| {
            let data = TensorData::new(whole_numbers(part, b * h * w * channels), [b, h, w, channels]);
            Tensor::<4>::from_data(data, &device).cast(dtype).try_into_primitive::<Cube>().expect("on this device")
        };
        let results = BLOCKS.map(|block| {
            let result = product_in(block, values, tensor(1, c_in), weight, tensor(2, c_out), DType::F32);
            host_values(Tensor::<1>::from_primitive::<Cube>(result))
        });
        for (block, result) in BLOCKS.iter().zip(&results) {
            assert!(result == &results[0], "{block:?}, {dtype:?}");
        }
    }
}
