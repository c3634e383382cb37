//! [`Diffusion`]: a formulation and the options that all formulations share, ready to train networks and to make denoisers of them.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::config::{DiffusionConfig, SharedConfig};
use super::denoiser::NoiseLevel;
use super::error::DiffusionConfigError;
use super::formulation::{Formulation, check_consistent};
use super::network_denoiser::NetworkDenoiser;
use super::prediction::Prediction;
use super::schedule::Tables;
use crate::models::{Calls, Network};
use crate::noise::{Purpose, Stream, normal_batch};

/// A formulation with the shared options: how data is noised, what networks predict, how their loss is weighted.
#[derive(Clone, Debug)]
pub struct Diffusion {
    pub(super) formulation: Arc<dyn Formulation>,
    pub(super) shared: SharedConfig,
    /// The gamma of `min(SNR, gamma)` if the loss is weighted by it.
    pub(super) min_snr: Option<f64>,
    /// The options that it was built from; `None` for custom formulations.
    config: Option<DiffusionConfig>,
}

/// All random choices for one training batch.
#[derive(Clone, Debug)]
pub struct Draws {
    /// `[b]`, the formulation's time of each example.
    pub times: Vec<f64>,
    /// `[b, c, h, w]`, standard normal, one for each candidate (`xm_candidates`).
    pub noise: Vec<Tensor<4>>,
    /// `[b, c, 1, 1]`, standard normal; used if `offset_noise_strength` is above 0.
    pub offset_noise: Option<Tensor<4>>,
    /// Whether a network that takes an earlier estimate gets one for this batch.
    pub self_condition: bool,
    /// `[b]`, in (0, 1): an example whose draw is below the drop probability loses its class and vector. The same for all candidates.
    pub keep_condition: Vec<f64>,
}

impl Draws {
    /// Whether [`Diffusion::prepare`] runs the network: for an earlier estimate, or to choose among candidates.
    pub(crate) fn need_network<M: Network>(&self, model: &M) -> bool {
        self.noise.len() > 1 || (self.self_condition && model.self_condition())
    }
}

impl Diffusion {
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn new(config: &DiffusionConfig) -> Result<Self, DiffusionConfigError> {
        Self::with_betas(config, None)
    }

    /// With explicit betas, for checkpoints whose schedule has no name. `timesteps` must be their number.
    ///
    /// # Errors
    /// [`DiffusionConfigError`].
    pub fn with_betas(config: &DiffusionConfig, betas: Option<Vec<f64>>) -> Result<Self, DiffusionConfigError> {
        config.validate()?;
        let formulation = config.formulation.build(betas)?.into();
        let (shared, min_snr) = (config.shared.clone(), config.min_snr());
        Ok(Self { formulation, shared, min_snr, config: Some(config.clone()) })
    }

    /// A custom formulation; without min-SNR weighting unless `shared` asks for it.
    ///
    /// # Errors
    /// Options that are meaningless, or that contradict each other or the formulation's [output](Formulation::output); a formulation that contradicts
    /// itself.
    pub fn of(formulation: impl Formulation + 'static, shared: SharedConfig) -> Result<Self, DiffusionConfigError> {
        check_consistent(&formulation)?;
        shared.validate(formulation.output())?;
        let min_snr = shared.min_snr(false);
        Ok(Self { formulation: Arc::new(formulation), shared, min_snr, config: None })
    }

    /// The options that it was built from; `None` for a custom formulation.
    pub fn config(&self) -> Option<&DiffusionConfig> {
        self.config.as_ref()
    }

    /// The options that all formulations share.
    pub fn shared(&self) -> &SharedConfig {
        &self.shared
    }

    pub fn formulation(&self) -> &dyn Formulation {
        &*self.formulation
    }

    /// Every table of the schedule, in discrete time.
    pub fn tables(&self) -> Option<&Tables> {
        self.formulation.tables()
    }

    /// Maps data from `[0, 1]` to the network's `[-1, 1]`, unless `auto_normalize` is off.
    pub fn normalize(&self, x: Tensor<4>) -> Tensor<4> {
        if self.shared.auto_normalize { x * 2.0 - 1.0 } else { x }
    }

    /// The inverse of [`normalize`](Self::normalize).
    pub fn unnormalize(&self, x: Tensor<4>) -> Tensor<4> {
        if self.shared.auto_normalize { (x + 1.0) * 0.5 } else { x }
    }

    /// The noise level at a time.
    pub fn level(&self, time: f64) -> NoiseLevel {
        self.formulation.level(time)
    }

    /// The weight of the prediction's squared error: the formulation's own, or the one that makes the loss `min(SNR, gamma)` times the error of
    /// `x_start` (Hang et al. 2023, section 3.4).
    pub fn loss_weight(&self, level: &NoiseLevel) -> f64 {
        match self.min_snr {
            None => self.formulation.loss_weight(level),
            Some(gamma) => {
                let (prediction, snr) = (self.formulation.prediction(), (level.alpha / level.sigma).powi(2));
                match prediction {
                    // Holds at pure noise, too: `gamma / 0` is infinite.
                    Prediction::Noise => (gamma / snr).min(1.0),
                    _ => snr.min(gamma) * prediction.coefficients(level).c_out.powi(2),
                }
            }
        }
    }

    /// Draws for the training examples numbered `first..first + b` since the start of training, in batch number `batch`.
    pub fn draw(&self, seed: u64, first: u64, batch: u64, dims: [usize; 4], device: &Device) -> Draws {
        let uniform =
            |purpose| (0..dims[0] as u64).map(move |i| Stream::new(seed, purpose, first + i, 0).uniform_f64());
        let shared = &self.shared;
        let shares: Vec<f64> = if shared.stratified_times {
            let start = Stream::new(seed, Purpose::TrainTime, batch, 1).uniform_f64();
            (0..dims[0]).map(|i| (start + i as f64 / dims[0] as f64).fract()).collect()
        } else {
            uniform(Purpose::TrainTime).collect()
        };
        let offset_noise = (shared.offset_noise_strength > 0.0).then(|| {
            let per_channel = std::array::from_fn(|k| if k < 2 { dims[k] } else { 1 });
            normal_batch(seed, Purpose::OffsetNoise, first, 0, per_channel, device)
        });
        let noise = |candidate| normal_batch(seed, Purpose::TrainNoise, first, candidate, dims, device);
        Draws {
            times: shares.into_iter().map(|u| self.formulation.time(u)).collect(),
            noise: (0..shared.xm_candidates as u32).map(noise).collect(),
            offset_noise,
            self_condition: Stream::new(seed, Purpose::SelfCondition, batch, 0).uniform() < 0.5,
            keep_condition: uniform(Purpose::DropCondition).collect(),
        }
    }

    /// The denoiser of a trained network, with the schedule that it learned, if any.
    pub fn denoiser<'a, M: Network>(&self, model: impl Into<Calls<'a, M>>) -> NetworkDenoiser<'a, M> {
        let model = model.into();
        NetworkDenoiser::new(self.with_schedule_of::<M>(model.network()), model)
    }

    /// For measurements: noise stays with the example that it was drawn for, so that no loss depends on the rest of the batch.
    pub(crate) fn measuring(&self) -> Self {
        let mut measuring = self.clone();
        measuring.shared.immiscible = false;
        measuring
    }

    /// With the schedule that a network learned.
    pub fn with_schedule_of<M: Network>(&self, model: &M) -> Self {
        let learned = model.noise_schedule().and_then(|schedule| self.formulation.with_schedule(schedule.weights()));
        match learned {
            Some(formulation) => Self { formulation: formulation.into(), ..self.clone() },
            None => self.clone(),
        }
    }
}
