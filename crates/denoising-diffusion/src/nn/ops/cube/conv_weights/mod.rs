//! Gradients of the weights of convolutions: of `x [b, h, w, c_in]` and `dy [b, h, w, c_out]`, with stride 1 and "same" padding,
//!
//!     dw[o, i, ky, kx] = sum over positions p of dy[p, o] x[p + (ky, kx) - center, i]
//!
//! A matrix product whose result is small and whose sum is over all positions. Burn's kernels give each cube all of it, so that a few cubes work, or
//! write the shifted images side by side first: nine times their memory, in a launch each. Ours ([`products`]) shares the positions out. With a tuner,
//! both are tried and the faster one is taken; without one ours is, where the device has matrix units.

mod products;

use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use super::super::plain::same_padding;
#[cfg(not(feature = "autotune"))]
use products::ours as faster;
use products::takes;
#[cfg(feature = "autotune")]
use tuned::faster;

/// The gradient of `weight [c_out, c_in, kh, kw]`, of its type.
pub(super) fn backward(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let [_, _, kh, kw] = dims(&weight);
    // Of 1x1, Burn's kernels share positions out, too.
    let shares = kh * kw > 1 && takes(&x);
    if shares { faster(x, weight, dy) } else { burns(x, weight, dy) }
}

fn dims(tensor: &CubeTensor) -> [usize; 4] {
    tensor.meta.shape()[..].try_into().expect("four axes")
}

/// By Burn's kernels.
fn burns(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
    let [_, _, kh, kw] = dims(&weight);
    let to_nchw = |tensor| CubeBackend::float_permute(tensor, &[0, 3, 1, 2]);
    CubeBackend::conv2d_weight_backward(to_nchw(x), weight, to_nchw(dy), same_padding([kh, kw]))
}

#[cfg(feature = "autotune")]
mod tuned {
    use burn::tensor::DType;
    use burn_cubecl::CubeTuneId;
    use burn_cubecl::cubecl::tune::{LocalTuner, Tunable, TunableSet, local_tuner};
    use burn_cubecl::cubecl::{self, AutotuneKey};
    use serde::{Deserialize, Serialize};

    use super::products::ours;
    use super::{CubeTensor, burns, dims};

    /// What decides which is the fastest.
    #[derive(Hash, Eq, PartialEq, Debug, Clone, Serialize, Deserialize, AutotuneKey)]
    struct Key {
        weight: [usize; 4],
        #[autotune(anchor)]
        batch: usize,
        #[autotune(anchor)]
        height: usize,
        #[autotune(anchor)]
        width: usize,
        dtype: DType,
    }

    type Inputs = (CubeTensor, CubeTensor, CubeTensor);

    /// By whichever was found to be the fastest for such images on this device.
    pub(super) fn faster(x: CubeTensor, weight: CubeTensor, dy: CubeTensor) -> CubeTensor {
        static TUNER: LocalTuner<Key, CubeTuneId> = local_tuner!();
        let (client, id) = (x.client.clone(), CubeTuneId::new(&x.client, &x.device));
        let tunables = TUNER.init(&id, || {
            TunableSet::new(key, |_: &Key, inputs: &Inputs| inputs.clone())
                .with(Tunable::new("ours", |(x, weight, dy)| Ok::<_, String>(ours(x, weight, dy))))
                .with(Tunable::new("burns", |(x, weight, dy)| Ok::<_, String>(burns(x, weight, dy))))
        });
        TUNER.execute(&id, &client, tunables, (x, weight, dy))
    }

    fn key((x, weight, _): &Inputs) -> Key {
        let [batch, height, width, _] = dims(x);
        Key::new(dims(weight), batch, height, width, x.dtype)
    }
}
