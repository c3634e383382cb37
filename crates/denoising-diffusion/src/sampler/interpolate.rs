//! Points between two batches: of noised data (Ho et al. 2020, section 4.4), and of noise (Song et al. 2020, arXiv:2010.02502, section 5.3). Not
//! here: the way back to data, for which any solver will do.

use burn::tensor::{Tensor, TensorData};

use crate::diffusion::NoiseLevel;
use crate::nn::params::host_values;

/// Both batches (in the network's range), noised to a level and mixed as `(1 - lambda) x1 + lambda x2`. The mixture stays at that level: denoising
/// starts at the level of noising, whereas the reference starts one below it.
pub fn noised_mixture<const D: usize>(
    [x1, x2]: [Tensor<D>; 2],
    lambda: f64,
    level: NoiseLevel,
    [noise1, noise2]: [Tensor<D>; 2],
) -> Tensor<D> {
    let noised = |x: Tensor<D>, noise: Tensor<D>| x * level.alpha + noise * level.sigma;
    noised(x1, noise1) * (1.0 - lambda) + noised(x2, noise2) * lambda
}

/// From `x1` (lambda 0) to `x2` (lambda 1) along the arc between them, separately for each example, `[b, ...]`:
/// `(sin((1 - lambda) theta) x1 + sin(lambda theta) x2) / sin(theta)`, theta being the angle between the two (Shoemake 1985; Song et al. 2020,
/// appendix D.5). Between two x_T of equal length the length is kept; a straight mixture would have too small a variance. A straight line is used
/// only where the two are nearly parallel or opposite, sin(theta) below 0.01, or one is zero.
pub fn slerp<const D: usize>(x1: Tensor<D>, x2: Tensor<D>, lambda: f64) -> Tensor<D> {
    let dot = |a: &Tensor<D>, b: &Tensor<D>| {
        let products = (a.clone() * b.clone()).reshape([a.dims()[0] as i32, -1]);
        host_values::<2>(products.sum_dim(1)).into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let squares = dot(&x1, &x1).into_iter().zip(dot(&x2, &x2));
    let cosines = dot(&x1, &x2).into_iter().zip(squares).map(|(dot, (a, b))| dot / (a * b).sqrt());
    let weights: Vec<[f64; 2]> = cosines.map(|cosine| arc_weights(cosine, lambda)).collect();
    let [first, second] = [0, 1].map(|k| {
        let values: Vec<f32> = weights.iter().map(|pair| pair[k] as f32).collect();
        let shape: [usize; D] = std::array::from_fn(|axis| if axis == 0 { values.len() } else { 1 });
        Tensor::<D>::from_data(TensorData::new(values, shape), &x1.device())
    });
    x1 * first + x2 * second
}

fn arc_weights(cosine: f64, lambda: f64) -> [f64; 2] {
    let theta = cosine.clamp(-1.0, 1.0).acos();
    // Also false for the NaN of a zero vector.
    if theta.sin() >= 0.01 {
        [(1.0 - lambda) * theta, lambda * theta].map(|part| part.sin() / theta.sin())
    } else {
        [1.0 - lambda, lambda]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::{Purpose, normal_batch};

    fn batch<const D: usize>(values: &[f32], dims: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), &Device::flex())
    }

    #[test]
    fn the_ends_of_an_arc_are_exact_and_lengths_stay() {
        let noise = |seed| normal_batch::<4>(seed, Purpose::SampleInit, 0, 0, [3, 2, 8, 8], &Device::flex());
        let (x1, x2) = (noise(1), noise(2));
        assert_eq!(host_values(slerp(x1.clone(), x2.clone(), 0.0)), host_values(x1.clone()));
        assert_eq!(host_values(slerp(x1.clone(), x2.clone(), 1.0)), host_values(x2.clone()));
        let unit = |x: Tensor<4>| {
            let norms = x.clone().square().sum_dim(1).sum_dim(2).sum_dim(3).sqrt();
            (x / norms.clone(), host_values(norms))
        };
        let (x1, x2) = (unit(x1).0, unit(x2).0);
        for lambda in [0.1, 0.5, 0.7] {
            for norm in unit(slerp(x1.clone(), x2.clone(), lambda)).1 {
                assert!((norm - 1.0).abs() < 1e-5, "{lambda} {norm}");
            }
        }
    }

    /// A third of a right angle, for one example; the other has its own angle.
    #[test]
    fn each_example_has_its_own_arc() {
        let (x1, x2) = (batch(&[1.0, 0.0, 0.0, 2.0], [2, 2]), batch(&[0.0, 1.0, 0.0, 2.0], [2, 2]));
        let got = host_values(slerp(x1, x2, 1.0 / 3.0));
        let angle = std::f32::consts::FRAC_PI_6;
        for (got, expected) in got.iter().zip([angle.cos(), angle.sin(), 0.0, 2.0]) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn without_an_arc_the_way_is_straight() {
        // Parallel, nearly parallel, opposite, zero.
        let x1 = batch(&[1.0, 2.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [4, 2]);
        let x2 = batch(&[2.0, 4.0, 1.0, 1e-4, -1.0, -1.0, 1.0, 3.0], [4, 2]);
        let got = host_values(slerp(x1.clone(), x2.clone(), 0.25));
        for (got, expected) in got.iter().zip(host_values(x1 * 0.75 + x2 * 0.25)) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }
}
