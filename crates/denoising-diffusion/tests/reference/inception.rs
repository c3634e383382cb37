//! Inception against pytorch-fid 0.3.0 (`InceptionV3([0, 1, 2, 3])`) on weights and images from formulas.

use std::ops::ControlFlow;

use burn::tensor::{Tensor, TensorData};
use denoising_diffusion::data::ImageBatch;
use denoising_diffusion::device::multiplies_in_tf32;
use denoising_diffusion::eval::extract::{Extracted, Extractor};
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::inception::{FeatureBlock, ImageInput, InceptionV3, SIDE, drawn_weights};
use denoising_diffusion::eval::metric::{FidInput, fid};

use crate::golden::{Golden, largest_difference, test_device, values};

/// In [0, 1): as `unit` in tools/parity/golden_inception.py.
fn unit(tensor: u64, index: u64) -> f64 {
    let mut z = (tensor << 32 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// `[c, h, w]` in [0, 1]: as `picture` in tools/parity/golden_inception.py.
fn picture(group: usize, number: usize, [c, h, w]: [usize; 3]) -> Vec<f32> {
    let mut image = Vec::with_capacity(c * h * w);
    for (k, y, x) in (0..c).flat_map(|k| (0..h).flat_map(move |y| (0..w).map(move |x| (k, y, x)))) {
        let stripes = (x * (3 + number % 5) + y * (2 + number % 7)) * (group + 1) + 40 * k + 11 * number;
        let noise = (unit((7000 + 100 * group + number) as u64, image.len() as u64) * 64.0) as usize;
        image.push(((stripes + noise) % 256) as f32 / 255.0);
    }
    image
}

fn forward(
    network: &InceptionV3,
    images: &[f32],
    shape: [usize; 3],
    block: FeatureBlock,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let prepared = ImageInput::new(shape, [0.0; 3]).unwrap().prepare(images);
    let b = prepared.len() / (SIDE * SIDE * 3);
    let output =
        network.forward(Tensor::from_data(TensorData::new(prepared, [b, SIDE, SIDE, 3]), network.device()), block);
    (values(output.features), output.logits.map(values))
}

/// Largest difference over the largest expected value.
fn relative(got: &[f32], expected: &[f32]) -> f32 {
    largest_difference(got, expected) / expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()))
}

#[test]
fn features_of_all_blocks() {
    let golden = Golden::open("inception");
    let network = InceptionV3::new(&drawn_weights(), &test_device()).unwrap();
    // Products in TF32 were 2.4e-4 off on the software CUDA.
    let most = if multiplies_in_tf32(&test_device()) { 1e-3 } else { 1e-4 };
    for name in ["grey", "rgb", "large"] {
        let shape: [usize; 3] = serde_json::from_value(golden.config["shapes"][name].clone()).unwrap();
        let images: Vec<f32> = (0..2).flat_map(|number| picture(0, number, shape)).collect();
        for block in FeatureBlock::ALL {
            let (features, logits) = forward(&network, &images, shape, block);
            let error = relative(&features, golden.values(&format!("{name}.{}", block.dims())));
            assert!(error < most, "{name}, {} features: relative error {error:e}", block.dims());
            if let Some(logits) = logits {
                let error = relative(&logits, golden.values(&format!("{name}.logits")));
                assert!(error < most, "{name}, logits: relative error {error:e}");
            }
        }
    }
}

/// Features of `count` images of a group.
fn extracted(network: &InceptionV3, block: FeatureBlock, shape: [usize; 3], group: usize, count: usize) -> Extracted {
    let data: Vec<f32> = (0..count).flat_map(|number| picture(group, number, shape)).collect();
    let images = Images::of_samples(&ImageBatch::new([count, shape[0], shape[1], shape[2]], data).unwrap());
    let extractor = Extractor { network: network.clone(), block, digest: String::new(), background: [1.0; 3] };
    extractor.extract(&images, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// FID of two folders of PNG files by pytorch-fid's own path (files, statistics, scipy).
#[test]
fn fid_of_two_folders() {
    let golden = Golden::open("inception");
    let network = InceptionV3::new(&drawn_weights(), &test_device()).unwrap();
    for (name, count, dims) in [("grey", 90, 64), ("rgb", 90, 64), ("rgb", 8, 2048)] {
        let shape: [usize; 3] = serde_json::from_value(golden.config["shapes"][name].clone()).unwrap();
        let block = FeatureBlock::of_dims(dims).unwrap();
        let [real, generated] = [0, 1].map(|group| extracted(&network, block, shape, group, count));
        let fid = fid(FidInput::Features(&real), FidInput::Features(&generated), 0).unwrap();
        let expected = golden.config["fid"][format!("{name}.{count}.{dims}")].as_f64().unwrap();
        let error = (fid.value - expected).abs() / expected;
        assert!(error < 1e-3, "{name}, {count} images, {dims} features: {} instead of {expected}", fid.value);
        assert!(!fid.notes.is_empty(), "few images come with a warning");
    }
}
