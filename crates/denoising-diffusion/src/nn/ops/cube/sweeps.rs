//! The kernels of `optim` and `clip` on Burn's tensors.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::Cube;
use burn::tensor::{Bytes, DType, Tensor, TensorData};
use burn_cubecl::CubeDevice;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::future::{DynFut, block_on};
use burn_cubecl::cubecl::server::ServerError;
use burn_cubecl::tensor::CubeTensor;
use denoising_diffusion_kernels::optim::AdamStep;

use super::clip::{self, Squares};
use super::optim;

/// On the device: the factor of a step's gradients, and whether the step must change nothing. `[1, 2]`.
#[derive(Clone, Debug)]
pub struct Clip(Tensor<2>);

impl Clip {
    /// From the host: the step is made.
    fn of(grad_scale: f64, like: &Tensor<1>) -> Self {
        Self(Tensor::from_data(TensorData::new(vec![grad_scale as f32, 0.0], [1, 2]), &like.device()))
    }
}

/// One Adam step on parameters: from weights, both moments and gradient of each to the first three after the step. All tensors are flat and not on a
/// tape. `clip` replaces the factor in `step`, and may say that nothing is to change.
pub fn adam(step: &AdamStep, clip: Option<&Clip>, all: Vec<([Tensor<1>; 3], Tensor<1>)>) -> Vec<[Tensor<1>; 3]> {
    let Some((_, first)) = all.first() else { return Vec::new() };
    let clip = clip.cloned().unwrap_or_else(|| Clip::of(step.grad_scale, first));
    let all = all.into_iter().map(|([w, m, v], gradient)| [w, m, v, gradient].map(primitive)).collect();
    optim::adam(step, primitive(clip.0), all).into_iter().map(|swept| swept.map(tensor::<1>)).collect()
}

/// `average + weight (w - average)` for each pair of flat tensors, and `w` itself with a weight of 1; `average` if `clip` says that nothing is to
/// change.
pub fn lerp(all: Vec<[Tensor<1>; 2]>, weight: f64, clip: Option<&Clip>) -> Vec<Tensor<1>> {
    let all = all.into_iter().map(|pair| pair.map(primitive)).collect();
    let clip = clip.map(|clip| primitive(clip.0.clone()));
    optim::lerp(all, weight, clip).into_iter().map(tensor::<1>).collect()
}

/// Brings each row of weights, with the given numbers of rows, to the root mean square 1; unchanged if `clip` says that nothing is to change.
pub fn force_unit_rows(all: Vec<(Tensor<1>, usize)>, floor: f64, clip: &Clip) -> Vec<Tensor<1>> {
    let sizes: Vec<usize> = all.iter().map(|(tensor, _)| tensor.dims()[0]).collect();
    let rows = all.into_iter().zip(&sizes).map(|((tensor, rows), size)| primitive(tensor.reshape([rows, size / rows])));
    let forced = optim::force_unit_rows(rows.collect(), floor, primitive(clip.0.clone()));
    forced.into_iter().zip(sizes).map(|(rows, size)| tensor::<2>(rows).reshape([size])).collect()
}

/// Changes whenever a sweep could not write in place, so that a tensor is now elsewhere in memory.
pub fn moves() -> u64 {
    optim::moves()
}

/// Converts flat tensors to another type; those that already have it are returned as they are.
pub fn cast(all: Vec<Tensor<1>>, dtype: DType) -> Vec<Tensor<1>> {
    optim::cast(all.into_iter().map(primitive).collect(), dtype).into_iter().map(tensor::<1>).collect()
}

/// The same values in memory of their own.
pub fn copied(all: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    optim::copied(all.into_iter().map(primitive).collect()).into_iter().map(tensor::<1>).collect()
}

/// What clipping by the norm of these flat gradients requires: a factor `max_norm / (norm + eps)`, at most 1, and no step if the norm or one of
/// `losses` (one value each, at least one) is not finite. Does not wait for the device. `None` if there are no gradients.
pub fn clip(gradients: &[Tensor<1>], losses: &[Tensor<1>], max_norm: f64, eps: f64) -> Option<Clipping> {
    let Squares { sums, places } =
        clip::squares(gradients.iter().map(|gradient| primitive(gradient.clone())).collect())?;
    let losses = primitive(match losses {
        [loss] => loss.clone(),
        several => Tensor::cat(several.to_vec(), 0),
    });
    let clip = clip::of(sums.clone(), losses.clone(), max_norm, eps);
    Some(Clipping { losses, sums, clip, places: places.into() })
}

/// The result of [`clip`], on the device.
#[derive(Clone, Debug)]
pub struct Clipping {
    losses: CubeTensor,
    sums: CubeTensor,
    clip: CubeTensor,
    /// Which sums belong to which gradient.
    places: Arc<[Range<usize>]>,
}

impl Clipping {
    pub fn clip(&self) -> Clip {
        Clip(tensor(self.clip.clone()))
    }

    /// Requests the result.
    pub fn read(&self) -> Reading {
        let tensors = [&self.losses, &self.sums, &self.clip];
        let counts = tensors.map(|tensor| tensor.meta.num_elements());
        // Requested here, not where it is waited for.
        let bytes = lasting_client(&self.sums).read_async(tensors.map(|tensor| tensor.handle.clone()).to_vec());
        // CUDA's allocations may be longer than the values.
        let of = move |(bytes, count): (&Bytes, usize)| values(&bytes[..count * size_of::<f32>()]);
        let arrives = async move { Ok(bytes.await?.iter().zip(counts).map(of).collect()) };
        Reading { arrives: Mutex::new(Some(Box::pin(arrives))), places: self.places.clone() }
    }
}

/// The tensor's client, one per device, which lives as long as the process: the type of a read's result borrows it.
fn lasting_client(tensor: &CubeTensor) -> &'static Client {
    static CLIENTS: Mutex<Vec<(CubeDevice, &Client)>> = Mutex::new(Vec::new());
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, client)) = clients.iter().find(|(device, _)| *device == tensor.device) {
        return client;
    }
    let client = Box::leak(Box::new(tensor.client.clone()));
    clients.push((tensor.device.clone(), client));
    client
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
}

type Arrives = DynFut<Result<Vec<Vec<f32>>, ServerError>>;

/// The result of [`clip`], on its way to the host: requested after the work that it depends on, and before anything requested later.
pub struct Reading {
    /// In a mutex, because a future cannot be shared between threads otherwise.
    arrives: Mutex<Option<Arrives>>,
    places: Arc<[Range<usize>]>,
}

impl Reading {
    /// Waits for the result: the losses, the sum of squares of each gradient, and the factor of the gradients, if the step is to change anything.
    ///
    /// # Panics
    /// If the device could not compute it, with the device's message, like every read of a tensor.
    pub fn wait(mut self) -> (Vec<f64>, Vec<f64>, Option<f64>) {
        let arrives = self.arrives.get_mut().unwrap_or_else(PoisonError::into_inner).take().expect("waited for once");
        let values = block_on(arrives).unwrap_or_else(|error| panic!("what a step came to cannot be read: {error}"));
        let [losses, sums, clip] = &values[..] else { panic!("three tensors were asked for") };
        let sum = |places: &Range<usize>| sums[places.clone()].iter().map(|&part| f64::from(part)).sum();
        let grad_scale = (clip[1] == 0.0).then_some(f64::from(clip[0]));
        (losses.iter().copied().map(f64::from).collect(), self.places.iter().map(sum).collect(), grad_scale)
    }
}

impl Drop for Reading {
    /// Until the result has arrived, its memory must not be given to others.
    fn drop(&mut self) {
        if let Some(arrives) = self.arrives.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = block_on(arrives);
        }
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("places", &self.places).finish_non_exhaustive()
    }
}

fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("asked before whether our kernels can take it")
}

fn tensor<const D: usize>(primitive: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(primitive)
}
