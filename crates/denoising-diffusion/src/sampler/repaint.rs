//! Inpainting: filling in the unknown part of an image (Lugmayr et al. 2022, "RePaint", arXiv:2201.09865, algorithm 1), over any levels of noise.

use burn::tensor::Tensor;
use serde::Serialize;

use super::config::{SampleConfig, SampleConfigError};
use super::ddim::ddim_step;
use super::ddpm::{PosteriorVariance, WithinBounds, ddpm_step};
use super::kind::SamplerKind;
use super::noise_source::NoiseSource;
use super::step::{Callback, Interrupted, Step};
use crate::diffusion::{Denoiser, NoiseLevel};

/// How often and how far back sampling jumps. The defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Jumps {
    /// Number of levels that a jump goes back.
    pub jump_length: usize,
    /// How many times each stretch of `jump_length` levels is walked down: 1 is without jumps.
    pub jump_n_sample: usize,
}

/// Of either number: what is larger is a mistake, and so many levels would not fit into a list.
const MOST_JUMPS: usize = 1000;

impl Jumps {
    /// Refuses numbers that describe no walk, or one without end.
    ///
    /// # Errors
    /// [`SampleConfigError::Value`] naming the option.
    pub fn validate(&self) -> Result<(), SampleConfigError> {
        for (key, got) in [("jump_length", self.jump_length), ("jump_n_sample", self.jump_n_sample)] {
            if !(1..=MOST_JUMPS).contains(&got) {
                return Err(SampleConfigError::Value { key, expected: "from 1 to 1000", got: got as f64 });
            }
        }
        Ok(())
    }
}

impl Default for Jumps {
    fn default() -> Self {
        Self { jump_length: 10, jump_n_sample: 10 }
    }
}

/// The jumps, and the kind of steps between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RePaint {
    #[serde(flatten)]
    pub jumps: Jumps,
    pub step: RePaintStep,
}

/// How a step to the next level is made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RePaintStep {
    /// As in [`ddpm`](super::ddpm()); if no variance is named, the learned one, clamped to its bounds.
    Ddpm { posterior_variance: Option<PosteriorVariance> },
    /// As in [`ddim`](super::ddim()).
    Ddim { eta: f64 },
}

impl RePaintStep {
    /// The step of a configured sampler; `None` for samplers that RePaint cannot use.
    pub fn of(sample: &SampleConfig) -> Option<Self> {
        match sample.sampler {
            SamplerKind::Ddpm => Some(Self::Ddpm { posterior_variance: sample.posterior_variance }),
            SamplerKind::Ddim => Some(Self::Ddim { eta: sample.eta() }),
            _ => None,
        }
    }
}

impl Default for RePaintStep {
    fn default() -> Self {
        Self::Ddpm { posterior_variance: None }
    }
}

/// The known part of the data.
#[derive(Clone, Debug)]
pub struct Known<const D: usize> {
    /// The data, on the network's scale, `[b, c, ...]`; any finite value where unknown.
    pub x_start: Tensor<D>,
    /// How much of it is known, from 0 (nothing) to 1, `[b, c, ...]` or `[b, 1, ...]`.
    pub mask: Tensor<D>,
}

/// From `x` at `levels[0]` to the last level, keeping the known part. After each step down to level s:
/// `x_s = mask alpha_s known + (1 - mask) x_s + sigma_s sqrt(1 - (1 - mask)^2) z`, which has the noise of the level for masks between 0 and 1, too
/// (the paper's `mask (alpha_s known + sigma_s z)` has less noise there, and is the same where the mask is 0 or 1). To make both parts agree,
/// sampling jumps back and repeats steps: `x_t = (alpha_t / alpha_s) x_s + sqrt(variance of x_t given x_s) z`, following [`repaint_schedule`]. If
/// the last level is clean data, the result equals the known data where the mask is 1. Each draw uses the next index of the noise source, from 0.
/// The callback counts steps down, including repeated ones.
pub fn inpaint<const D: usize>(
    denoiser: &impl Denoiser<D>,
    mut x: Tensor<D>,
    levels: &[NoiseLevel],
    known: &Known<D>,
    options: &RePaint,
    noise: &mut impl NoiseSource<D>,
    callback: &mut Callback<'_, D>,
) -> Result<Tensor<D>, Interrupted> {
    let visits = repaint_schedule(levels.len().saturating_sub(1), &options.jumps);
    let total = visits.windows(2).filter(|pair| pair[0] < pair[1]).count();
    let dims = x.dims();
    let mut numbers = 0..;
    let mut draw = || noise.step(numbers.next().unwrap_or_default(), dims);
    let (mut x_self_cond, mut done) = (None, 0);
    for pair in visits.windows(2) {
        let [t, s] = [levels[pair[0]], levels[pair[1]]];
        if pair[1] < pair[0] {
            x = x * (s.alpha / t.alpha) + draw() * s.variance_given(&t).sqrt();
            continue;
        }
        let before = x_self_cond.take();
        let estimate = match options.step {
            RePaintStep::Ddpm { posterior_variance: None } => WithinBounds(denoiser).denoise(x.clone(), t, before),
            _ => denoiser.denoise(x.clone(), t, before),
        };
        x = match options.step {
            RePaintStep::Ddpm { posterior_variance } => {
                let variance = posterior_variance.unwrap_or(PosteriorVariance::Learned);
                ddpm_step(x, &estimate, [t, s], variance, &mut draw)
            }
            RePaintStep::Ddim { eta } => ddim_step(x, &estimate, [t, s], eta, &mut draw),
        };
        x = known.put_into(x, s, &mut draw);
        done += 1;
        if callback(&Step { index: done - 1, total, x: &x, x_start: &estimate.x_start }).is_break() {
            return Err(Interrupted { done, total });
        }
        x_self_cond = Some(estimate.x_start);
    }
    Ok(x)
}

impl<const D: usize> Known<D> {
    fn put_into(&self, x: Tensor<D>, level: NoiseLevel, draw: impl FnOnce() -> Tensor<D>) -> Tensor<D> {
        let mask = self.mask.clone();
        let unknown: Tensor<D> = 1.0 - mask.clone();
        if level.is_clean() {
            return self.x_start.clone() * mask + x * unknown;
        }
        let variance: Tensor<D> = 1.0 - unknown.clone().square();
        let known = self.x_start.clone() * level.alpha * mask + draw() * level.sigma * variance.sqrt();
        known + x * unknown
    }
}

/// The levels that [`inpaint`] visits, as indices into `steps + 1` levels: 0 first, `steps` last. An index greater than its predecessor, always by
/// one, is a step down; a smaller one, by `jump_length`, a jump back to more noise.
///
/// Jumps as in the authors' code (`get_schedule_jump`): counted from `steps - 1`, the last level with noise, sampling jumps back `jump_n_sample - 1`
/// times from every `jump_length`-th level, unless the jump would go beyond `levels[0]`. There are no jumps from clean data. `jumps` must be
/// [valid](Jumps::validate).
pub fn repaint_schedule(steps: usize, jumps: &Jumps) -> Vec<usize> {
    let &Jumps { jump_length, jump_n_sample } = jumps;
    let mut visits = vec![0];
    let mut jumped = vec![0; steps + 1];
    let mut at = 0;
    while at < steps {
        at += 1;
        visits.push(at);
        let jumps_from_here =
            at < steps && jump_length > 0 && (steps - 1 - at).is_multiple_of(jump_length) && at >= jump_length;
        if jumps_from_here && jumped[at] + 1 < jump_n_sample {
            jumped[at] += 1;
            at -= jump_length;
            visits.push(at);
        }
    }
    visits
}
