//! Dropout whose mask is a function of a key, a draw and a value's position, the same on every device. Not here: the numbering of draws
//! (`nn::Dropout`).

use burn::tensor::{Device, Tensor};
use denoising_diffusion_kernels::dropout::Mask;

#[cfg(feature = "cube")]
use super::cube;
use super::{fused, on_cpu, plain};

/// The key that determines, together with a draw's number, which values dropout drops.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful of them exist")]
pub enum DropoutKey {
    /// The key of Philox.
    Words([u32; 2]),
    /// The same in a device's memory, `[4]`: the words in parts of 16 bits, lower part first. Recorded work reads it anew in each replay.
    OnDevice(Tensor<1>),
}

impl DropoutKey {
    /// The same in a device's memory, uploaded if it is not in one yet. A key that is in the memory of another device stays there: its words are not
    /// known any more, as recordings replace them in place.
    pub fn on_device(self, device: &Device) -> Self {
        match self {
            Self::Words(words) => {
                let parts = words.map(|word| [(word & 0xFFFF) as f32, (word >> 16) as f32]);
                Self::OnDevice(Tensor::from_floats(parts.concat().as_slice(), &device.clone().inner()))
            }
            Self::OnDevice(_) => self,
        }
    }
}

/// Sets a fraction `prob`, in [0, 1), of the values to zero and divides the others by `1 - prob`. The key and the number `draw` determine which, in
/// the same way on every device (`denoising_diffusion_kernels::dropout`).
///
/// # Panics
/// If `key` is in the memory of a device and `x` is on one without a kernel that reads it.
pub fn dropout<const D: usize>(x: Tensor<D>, key: &DropoutKey, draw: u64, prob: f64) -> Tensor<D> {
    #[cfg(feature = "cube")]
    if cube::takes(&x) {
        return cube::dropout(x, key.clone(), Mask::new([0; 2], draw, prob));
    }
    let DropoutKey::Words(words) = key else { panic!("the key of dropout is on a device that has no kernel for it") };
    let (dims, mask) = (x.dims(), Mask::new(*words, draw, prob));
    let flat = x.reshape([1, 1, 1, -1]);
    let y = if on_cpu(&flat) { fused::dropout(flat, mask) } else { plain::dropout(flat, mask) };
    y.reshape(dims)
}

/// Whether [`dropout`] of `x` reads its key from the device's memory.
pub(crate) fn reads_key_on_device<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    return cube::takes(x);
    #[cfg(not(feature = "cube"))]
    {
        let _ = x;
        false
    }
}
