//! Guidance: how a conditional prediction and a weaker one (the unconditional one, or that of a weaker network) are combined, and how far the
//! estimate of clean data may go. On tensors only; [`NetworkDenoiser`](super::NetworkDenoiser) makes the predictions.

use burn::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::denoiser::NoiseLevel;
use super::error::{DiffusionConfigError, check};
use super::loss::number_shape;
use crate::nn::params::{from_host, host_values};

/// What happens to estimates outside the data's range [-1, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    /// They are clamped to it.
    #[default]
    Static,
    /// Each image is clamped to the quantile of its own absolute values, if that is above 1, and divided by it (Saharia et al. 2022,
    /// arXiv:2205.11487, section 2.3).
    Dynamic,
    /// Nothing.
    None,
}

/// Options of guidance; `Default` is no guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuidanceConfig {
    /// The scale w in `weak + w (strong - weak)`: 1 is the conditional (strong) prediction, 0 the unconditional (weak) one.
    pub guidance: f64,
    /// How far the deviation of the guided prediction is moved back to that of the conditional one (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    pub rescale_phi: f64,
    /// How much of the update's component along the conditional estimate of clean data is kept: 1 is plain guidance, 0 removes the component that
    /// oversaturates (Sadat et al. 2024, arXiv:2410.02416). An update of any prediction is a multiple of that of the estimate.
    pub keep_parallel: f64,
    /// The largest norm of the update of an example's estimate of clean data, before it is multiplied by the scale: r of Sadat et al. 2024, algorithm
    /// 1. Larger ones are shortened to it. `None`: no limit. The paper's momentum across steps is not here: an estimate depends on nothing but x.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_norm_threshold: Option<f64>,
    /// Takes the direction back to noise from the unconditional estimate (Chung et al. 2024, arXiv:2406.08070).
    pub cfg_plus_plus: bool,
    /// Guides only where `sigma / alpha` lies between these two values (Kynkaanniemi et al. 2024, arXiv:2404.07724).
    pub guidance_interval: Option<[f64; 2]>,
    pub threshold: Threshold,
    /// The quantile of dynamic thresholding.
    pub threshold_quantile: f64,
}

impl Default for GuidanceConfig {
    fn default() -> Self {
        Self {
            guidance: 1.0,
            rescale_phi: 0.0,
            keep_parallel: 1.0,
            guidance_norm_threshold: None,
            cfg_plus_plus: false,
            guidance_interval: None,
            threshold: Threshold::default(),
            threshold_quantile: 0.995,
        }
    }
}

impl GuidanceConfig {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn validate(&self) -> Result<(), DiffusionConfigError> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        check(self.guidance.is_finite(), "guidance", "a number", self.guidance)?;
        check(share(self.rescale_phi), "rescale_phi", "in [0, 1]", self.rescale_phi)?;
        check(share(self.keep_parallel), "keep_parallel", "in [0, 1]", self.keep_parallel)?;
        let norm = self.guidance_norm_threshold.unwrap_or(1.0);
        check(norm > 0.0 && norm.is_finite(), "guidance_norm_threshold", "a number above 0", norm)?;
        let quantile = self.threshold_quantile;
        check(quantile > 0.0 && quantile <= 1.0, "threshold_quantile", "in (0, 1]", quantile)?;
        if let Some([low, high]) = self.guidance_interval {
            check(
                low >= 0.0 && high > low,
                "guidance_interval",
                "two numbers, the first at least 0 and below the second",
                low,
            )?;
        }
        Ok(())
    }

    /// The scale at a level: 1 outside the interval.
    pub fn scale_at(&self, level: &NoiseLevel) -> f64 {
        if self.acts_at(level) { self.guidance } else { 1.0 }
    }

    /// Whether the direction back to noise at this level is that of the unconditional estimate. This holds at a scale of 1, too: for CFG++, 1 is a
    /// scale like any other.
    pub(super) fn renoises_at(&self, level: &NoiseLevel) -> bool {
        self.cfg_plus_plus && self.acts_at(level)
    }

    fn acts_at(&self, level: &NoiseLevel) -> bool {
        let inside = |[low, high]: [f64; 2]| (low..=high).contains(&(level.sigma / level.alpha));
        self.guidance_interval.is_none_or(inside)
    }

    /// Combines two predictions. A scale of 1 gives the strong one and 0 the weak one, whatever the other options. `x_start` is the estimate of clean
    /// data that a prediction gives: it is what [`keep_parallel`](Self::keep_parallel) and
    /// [`guidance_norm_threshold`](Self::guidance_norm_threshold) mean.
    pub fn combine<const D: usize>(
        &self,
        strong: Tensor<D>,
        weak: Tensor<D>,
        scale: f64,
        x_start: impl Fn(Tensor<D>) -> Tensor<D>,
    ) -> Tensor<D> {
        if scale == 1.0 {
            return strong;
        }
        if scale == 0.0 {
            return weak;
        }
        let mut update = strong.clone() - weak.clone();
        if let Some(most) = self.guidance_norm_threshold {
            let of_estimate = x_start(strong.clone()) - x_start(weak);
            let norm = per_example_sum(of_estimate.square()).sqrt().clamp_min(1e-12);
            update = update * (norm.recip() * most).clamp_max(1.0);
        }
        if self.keep_parallel < 1.0 {
            let along = projection(update.clone(), x_start(strong.clone()));
            update = update - along * (1.0 - self.keep_parallel);
        }
        let guided = strong.clone() + update * (scale - 1.0);
        if self.rescale_phi == 0.0 {
            return guided;
        }
        let ratio = deviation(strong) / deviation(guided.clone()).clamp_min(1e-12);
        guided * (ratio * self.rescale_phi + (1.0 - self.rescale_phi))
    }

    /// The estimate limited to the range of the data, [-1, 1].
    pub fn limit<const D: usize>(&self, x_start: Tensor<D>) -> Tensor<D> {
        match self.threshold {
            Threshold::None => x_start,
            Threshold::Static => x_start.clamp(-1.0, 1.0),
            Threshold::Dynamic => {
                let s = per_example_quantile(x_start.clone().abs(), self.threshold_quantile).clamp_min(1.0);
                // Clamped to [-s, s], divided by s.
                (x_start / s).clamp(-1.0, 1.0)
            }
        }
    }
}

/// Sums over everything but the batch axis, `[b, 1, ...]`.
fn per_example_sum<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    (1..D).fold(x, |x, dim| x.sum_dim(dim))
}

/// The part of `x` along `y`, per example.
pub fn projection<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    let along = per_example_sum(x * y.clone());
    let square = per_example_sum(y.clone().square()).clamp_min(1e-24);
    y * (along / square)
}

/// Standard deviation per example, with n - 1 like `torch.std`, `[b, 1, ...]`.
fn deviation<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let n = x.dims()[1..].iter().product::<usize>() as f64;
    let mean = per_example_sum(x.clone()) / n;
    (per_example_sum((x - mean).square()) / (n - 1.0).max(1.0)).sqrt()
}

/// Quantile per example, linear between order statistics like `torch.quantile`, `[b, 1, ...]`.
fn per_example_quantile<const D: usize>(x: Tensor<D>, q: f64) -> Tensor<D> {
    let (device, b) = (x.device(), x.dims()[0]);
    let mut values = host_values(x);
    let n = values.len() / b.max(1);
    let at = q * (n - 1) as f64;
    let of_example = |values: &mut [f32]| {
        let (_, &mut low, above) = values.select_nth_unstable_by(at.floor() as usize, f32::total_cmp);
        if at.fract() == 0.0 {
            return low;
        }
        let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(low);
        low + (high - low) * at.fract() as f32
    };
    let quantiles: Vec<f32> = values.par_chunks_mut(n).map(of_example).collect();
    from_host(quantiles, number_shape(b), &device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Purpose, normal_batch};

    #[test]
    fn quantiles_are_those_of_sorted_values() {
        let dims = [5, 3, 7, 11];
        let x: Tensor<4> = normal_batch(3, Purpose::SampleInit, 0, 0, dims, &burn::tensor::Device::flex());
        let mut sorted: Vec<Vec<f32>> = host_values(x.clone()).chunks(231).map(<[f32]>::to_vec).collect();
        sorted.iter_mut().for_each(|values| values.sort_by(f32::total_cmp));
        for (q, low, fraction) in [(1.0, 230, 0.0), (0.5, 115, 0.0), (0.995, 228, 0.85), (0.001, 0, 0.23)] {
            let expected = sorted.iter().map(|values| {
                let next = values[(low + 1).min(230)];
                values[low] + (next - values[low]) * fraction
            });
            for (got, expected) in host_values(per_example_quantile(x.clone(), q)).into_iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5, "{q}: {got}, {expected}");
            }
        }
    }
}
