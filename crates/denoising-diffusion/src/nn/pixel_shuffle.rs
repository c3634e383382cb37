//! Blocks of pixels as channels and back, and the resizing layers based on it (Shi et al. 2016, "sub-pixel convolution"). Not here: the halving and
//! doubling of a U-Net (`resample.rs`).

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Conv2d, Init, ops};

/// Each block of `side` by `side` pixels becomes channels: `[b, h, w, c]` to `[b, h / side, w / side, c side side]`, new channel
/// `(c side + row) side + column`. Both sides of the image are multiples of `side`.
pub fn pixel_unshuffle(x: Tensor<4>, side: usize) -> Tensor<4> {
    let [b, h, w, c] = x.dims();
    let x = x.reshape([b, h / side, side, w / side, side, c]).permute([0, 1, 3, 5, 2, 4]);
    x.reshape([b, h / side, w / side, c * side * side])
}

/// The inverse: `[b, h, w, c side side]` to `[b, h side, w side, c]`.
pub fn pixel_shuffle(x: Tensor<4>, side: usize) -> Tensor<4> {
    let [b, h, w, all] = x.dims();
    let c = all / (side * side);
    let x = x.reshape([b, h, w, c, side, side]).permute([0, 1, 4, 2, 5, 3]);
    x.reshape([b, h * side, w * side, c])
}

/// Blocks of pixels as channels, then a 1x1 convolution: this is a convolution whose windows are the blocks.
#[derive(Module, Debug)]
pub struct Downsample {
    /// `[c_out, c_in factor factor, 1, 1]`
    pub conv: Conv2d,
    #[module(skip)]
    factor: usize,
}

impl Downsample {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, factor: usize) -> Self {
        Self { conv: Conv2d::new(init, dim_in * factor * factor, dim_out, 1), factor }
    }

    /// `[b, h, w, c_in] -> [b, h / factor, w / factor, c_out]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self.factor {
            1 => self.conv.forward(x),
            2 => self.conv.forward_resampled(x, ops::Resampling::Halve),
            factor => self.conv.forward(pixel_unshuffle(x, factor)),
        }
    }
}

/// A 1x1 convolution, SiLU, then channels as blocks of pixels. Initially all pixels of a block have the same value, so that no pattern of blocks is
/// visible (Aitken et al. 2017, "ICNR").
#[derive(Module, Debug)]
pub struct Upsample {
    /// `[c_out factor factor, c_in, 1, 1]`
    pub conv: Conv2d,
    #[module(skip)]
    factor: usize,
}

impl Upsample {
    pub fn new(init: &mut Init, dim_in: usize, dim_out: usize, factor: usize) -> Self {
        let (area, bound) = (factor * factor, (6.0 / dim_in as f64).sqrt());
        let weight = init.uniform_repeated([dim_out * area, dim_in, 1, 1], bound, area);
        Self { conv: Conv2d { weight, bias: Some(init.zeros([dim_out * area])) }, factor }
    }

    /// `[b, h, w, c_in] -> [b, h factor, w factor, c_out]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = ops::silu(self.conv.forward(x));
        if self.factor == 1 { x } else { pixel_shuffle(x, self.factor) }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::nn::params::host_values;

    fn counting<const D: usize>(dims: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|i| i as f32).collect();
        Tensor::from_data(TensorData::new(values, dims), &Device::flex())
    }

    #[test]
    fn blocks_and_back() {
        for side in [1, 2, 3] {
            let x = counting([2, 2 * side, 3 * side, 5]);
            let blocks = pixel_unshuffle(x.clone(), side);
            assert_eq!(blocks.dims(), [2, 2, 3, 5 * side * side]);
            assert_eq!(host_values(pixel_shuffle(blocks, side)), host_values(x));
        }
        let one = pixel_unshuffle(counting([1, 2, 2, 2]), 2);
        assert_eq!(host_values(one), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    }

    #[test]
    fn a_new_upsample_gives_a_block_one_value() {
        let device = Device::flex();
        let y = Upsample::new(&mut Init::new(0, &device), 4, 3, 2).forward(counting([1, 2, 2, 4]));
        let blocks = host_values(pixel_unshuffle(y, 2));
        assert!(blocks.chunks(4).all(|block| block.iter().all(|value| *value == block[0])));
        assert!(blocks[0] != blocks[4] && blocks[0] != blocks[12]);
    }
}
