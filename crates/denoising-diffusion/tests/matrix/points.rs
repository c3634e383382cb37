//! The data: points of the plane around two places of unlike weight, as images of one row and two columns.

use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::diffusion::Diffusion;
use denoising_diffusion::noise::{Purpose, Stream};

use crate::mlp::SHAPE;

/// In the data's range.
pub const PLACES: [[f64; 2]; 2] = [[0.75, 0.25], [0.25, 0.75]];
pub const WEIGHTS: [f64; 2] = [0.65, 0.35];
/// Around each place, of each coordinate.
pub const DEVIATION: f64 = 0.04;
/// A point is near a place if neither coordinate is farther off.
const NEAR: f64 = 0.2;

/// Point number `i` and the number of its place.
fn point(i: u64) -> ([f32; 2], u32) {
    let mut stream = Stream::new(0, Purpose::Evaluation, i, 0);
    let place = usize::from(stream.uniform() > WEIGHTS[0]);
    let mut normal = [0.0; 2];
    stream.fill_normal(&mut normal);
    ([0, 1].map(|k| (PLACES[place][k] + DEVIATION * f64::from(normal[k])) as f32), place as u32)
}

/// Points number `first` to `first + b`, in [0, 1].
pub fn values(first: u64, b: usize) -> Vec<f32> {
    (first..first + b as u64).flat_map(|i| point(i).0).collect()
}

/// Their places.
pub fn classes(first: u64, b: usize) -> Vec<u32> {
    (first..first + b as u64).map(|i| point(i).1).collect()
}

/// The same points as a batch `[b, 1, 1, 2]`, in the range that the formulation takes data in.
pub fn batch(diffusion: &Diffusion, first: u64, b: usize, device: &Device) -> Tensor<4> {
    let [c, h, w] = SHAPE;
    let data = Tensor::from_data(TensorData::new(values(first, b), [b, c, h, w]), device);
    if diffusion.shared().auto_normalize { data } else { data * 2.0 - 1.0 }
}

/// Which share of points lies near each place.
pub fn shares(diffusion: &Diffusion, points: &[f32]) -> [f64; 2] {
    let normalised = diffusion.shared().auto_normalize;
    let coordinate = |v: f32| if normalised { f64::from(v) } else { (f64::from(v) + 1.0) / 2.0 };
    PLACES.map(|place| {
        let near = |point: &&[f32]| (0..2).all(|k| (coordinate(point[k]) - place[k]).abs() < NEAR);
        points.chunks(2).filter(near).count() as f64 / (points.len() / 2) as f64
    })
}
