//! UniPC: a predictor and a corrector of any order, by the same formula.

use burn::tensor::Tensor;

use super::exponential::lambda;
use super::lagrange::{lagrange, lagrange_integrals};
use super::step::{Callback, Interrupted, walk};
use crate::diffusion::{Denoiser, NoiseLevel};

/// Number of estimates that a prediction uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnipcOrder {
    /// Recommended for guided sampling.
    #[default]
    Second,
    /// Recommended for sampling without guidance.
    Third,
}

/// From `x` at `levels[0]` to the last level (Zhao et al. 2023, arXiv:2302.04867: multistep, data prediction, `B(h) = e^-h - 1`, which is "bh2").
/// The last p estimates predict x_s; the estimate there, which the next step needs anyway, and those p then correct it. So the next step starts from
/// a better x_s than the one that the callback saw. One estimate per step; the corrector raises the order of the predictor by one.
///
/// Fewer estimates are used in the first steps and, if the last level is clean data, in the last ones, down to one in the very last. Ignores
/// [`Estimate::renoise`](crate::diffusion::Estimate::renoise).
pub fn unipc<const D: usize>(
    denoiser: &impl Denoiser<D>,
    x: Tensor<D>,
    levels: &[NoiseLevel],
    order: UnipcOrder,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let order = match order {
        UnipcOrder::Second => 2,
        UnipcOrder::Third => 3,
    };
    let to_clean = levels.last().is_some_and(NoiseLevel::is_clean);
    // Newest first. After a prediction from p of them: its x_t, p, and t.
    let mut points: Vec<Point<D>> = Vec::new();
    let mut predicted: Option<(Tensor<D>, usize, NoiseLevel)> = None;
    walk(x, levels, callback, |index, x, x_self_cond, [t, s]| {
        let x_start = denoiser.denoise(x.clone(), t, x_self_cond).x_start;
        points.insert(0, Point { lambda: lambda(t), x_start: x_start.clone() });
        let x = match predicted.take() {
            Some((x, p, r)) => multistep(x, &points[..=p], [r, t]),
            None => x,
        };
        let steps_left = if to_clean { levels.len() - 1 - index } else { order };
        let p = points.len().min(order).min(steps_left);
        let next = multistep(x.clone(), &points[..p], [t, s]);
        if t.is_pure_noise() {
            points.clear();
        } else {
            points.truncate(order);
            predicted = Some((x, p, t));
        }
        (next, x_start)
    })
}

/// An estimate and where it was made.
struct Point<const D: usize> {
    lambda: f64,
    x_start: Tensor<D>,
}

/// `x_s = (sigma_s / sigma_t) x_t + alpha_s sum_j weight_j x_start_j`.
fn multistep<const D: usize>(x: Tensor<D>, points: &[Point<D>], [t, s]: [NoiseLevel; 2]) -> Tensor<D> {
    // A step from pure noise or to clean data has one point and an infinite h.
    let h = lambda(s) - lambda(t);
    let nodes: Vec<f64> = match points {
        [_] => vec![0.0],
        _ => points.iter().map(|point| (point.lambda - lambda(t)) / h).collect(),
    };
    let parts = points.iter().zip(weights(&nodes, h)).map(|(point, weight)| point.x_start.clone() * (weight * s.alpha));
    parts.fold(x * (s.sigma / t.sigma), |x, part| x + part)
}

/// The weight of each estimate in `integral of h e^(-h (1 - u)) x_start(u)` over the step, u = 0..1, x_start(u) being the polynomial through all of
/// them. This is equivalent to the paper's linear system for rho, and B(h) cancels, except where the paper sets rho to 1/2 instead of solving: for
/// two estimates. There `B(h) / 2` amounts to the line's value at the middle of the step.
fn weights(nodes: &[f64], h: f64) -> Vec<f64> {
    match nodes.len() {
        1 | 2 => (0..nodes.len()).map(|j| -(-h).exp_m1() * lagrange(nodes, j, 0.5)).collect(),
        _ => lagrange_integrals(nodes, [0.0, 1.0], |u| h * (-h * (1.0 - u)).exp()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's way for three estimates, the middle one at u = 0: rho solves `sum_j rho_j r_j^(k - 1) = b_k`, and
    /// `D_0 - B sum_j rho_j (D_j - D_0) / r_j` (times alpha, B = e^-h - 1) is added to the exact part of D_0.
    #[test]
    fn three_weights_are_those_of_the_linear_system() {
        for (h, r) in [(0.3, [1.0, -0.7]), (1.4, [1.0, -2.0]), (0.05, [-1.0, -1.8])] {
            let hh = -h;
            let big_b = f64::exp_m1(hh);
            let phi_2 = big_b / hh - 1.0;
            let b = [phi_2 / big_b, (phi_2 / hh - 0.5) * 2.0 / big_b];
            let determinant = r[1] - r[0];
            let rho = [(b[0] * r[1] - b[1]) / determinant, (b[1] - b[0] * r[0]) / determinant];
            let outer = [-big_b * rho[0] / r[0], -big_b * rho[1] / r[1]];
            let expected = [outer[0], -big_b - outer[0] - outer[1], outer[1]];
            for (got, expected) in weights(&[r[0], 0.0, r[1]], h).iter().zip(expected) {
                assert!((got - expected).abs() < 1e-11, "{h} {got} {expected}");
            }
        }
    }
}
