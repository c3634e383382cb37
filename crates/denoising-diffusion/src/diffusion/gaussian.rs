//! Gaussian diffusion in discrete time (Ho et al. 2020): `x_t = sqrt(alphas_cumprod_t) x_start + sqrt(1 - alphas_cumprod_t) eps`,
//! t = 0..T.

use burn::tensor::{Device, Tensor, TensorData};

use super::config::{GaussianConfig, GaussianConfigError, Objective};
use super::denoiser::{Denoiser, Estimate, NoiseLevel};
use super::immiscible::least_distance_assignment;
use super::schedule::Tables;
use crate::models::{Network, NetworkInput};
use crate::nn::params::host_values;
use crate::nn::{Eval, TrainNoGrad};
use crate::noise::{Purpose, Stream, normal_batch};

/// The formulation: schedule, prediction target and loss weight. Equations at each method.
#[derive(Clone, Debug)]
pub struct GaussianDiffusion {
    config: GaussianConfig,
    tables: Tables,
}

/// All that chance decides about one batch of training.
#[derive(Clone, Debug)]
pub struct Draws<const D: usize> {
    /// `[b]`, each in 0..T.
    pub t: Vec<usize>,
    /// `[b, c, ...]`, standard normal.
    pub noise: Tensor<D>,
    /// `[b, c, 1, ...]`, standard normal; used if `offset_noise_strength` is above 0.
    pub offset_noise: Option<Tensor<D>>,
    /// Whether a network that takes an earlier estimate is given one for this batch.
    pub self_condition: bool,
}

impl GaussianDiffusion {
    pub fn new(config: &GaussianConfig) -> Result<Self, GaussianConfigError> {
        config.validate()?;
        Ok(Self { tables: Tables::new(config), config: config.clone() })
    }

    /// The same with explicit betas, for checkpoints whose schedule has no name. `config.timesteps` must be their number.
    pub fn with_betas(config: &GaussianConfig, betas: Vec<f64>) -> Result<Self, GaussianConfigError> {
        config.validate()?;
        if betas.len() != config.timesteps {
            return Err(GaussianConfigError::Timesteps(betas.len()));
        }
        Ok(Self { tables: Tables::from_betas(betas, config), config: config.clone() })
    }

    pub fn config(&self) -> &GaussianConfig {
        &self.config
    }

    /// Every table of the schedule, indexed by t.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Data `[0, 1]` to the network's `[-1, 1]`, unless `auto_normalize` is off.
    pub fn normalize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if self.config.auto_normalize { x * 2.0 - 1.0 } else { x }
    }

    /// The way back.
    pub fn unnormalize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if self.config.auto_normalize { (x + 1.0) * 0.5 } else { x }
    }

    /// The noise level of t.
    pub fn level(&self, t: usize) -> NoiseLevel {
        NoiseLevel {
            alpha: self.tables.sqrt_alphas_cumprod[t],
            sigma: self.tables.sqrt_one_minus_alphas_cumprod[t],
            time: t as f64,
        }
    }

    /// The level of a log signal-to-noise ratio. Between two of the T levels, t is a fraction, linear in the logarithm; outside of them
    /// it is that of the outermost one.
    pub fn level_of(&self, log_snr: f64) -> NoiseLevel {
        let at = |t: usize| self.level(t).log_snr();
        // log_snr falls with t.
        let above = (0..self.config.timesteps).collect::<Vec<_>>().partition_point(|&t| at(t) >= log_snr);
        let time = match above {
            0 => 0.0,
            t if t == self.config.timesteps => (t - 1) as f64,
            t => (t - 1) as f64 + (at(t - 1) - log_snr) / (at(t - 1) - at(t)),
        };
        let squared = 1.0 / (1.0 + (-log_snr).exp());
        NoiseLevel { alpha: squared.sqrt(), sigma: (1.0 - squared).sqrt(), time }
    }

    /// Draws for the training examples numbered `first..first + b` since the start of training, in batch number `batch`.
    pub fn draw<const D: usize>(
        &self,
        seed: u64,
        first: u64,
        batch: u64,
        dims: [usize; D],
        device: &Device,
    ) -> Draws<D> {
        let t = (0..dims[0] as u64)
            .map(|i| Stream::new(seed, Purpose::TrainTime, first + i, 0).below(self.config.timesteps))
            .collect();
        let offset_noise = (self.config.offset_noise_strength > 0.0).then(|| {
            let per_channel = std::array::from_fn(|k| if k < 2 { dims[k] } else { 1 });
            normal_batch(seed, Purpose::OffsetNoise, first, 0, per_channel, device)
        });
        Draws {
            t,
            noise: normal_batch(seed, Purpose::TrainNoise, first, 0, dims, device),
            offset_noise,
            self_condition: Stream::new(seed, Purpose::SelfCondition, batch, 0).uniform() < 0.5,
        }
    }

    /// `x_t = sqrt(alphas_cumprod_t) x_start + sqrt(1 - alphas_cumprod_t) noise`, t per example.
    pub fn q_sample<const D: usize>(&self, x_start: Tensor<D>, t: &[usize], noise: Tensor<D>) -> Tensor<D> {
        let device = x_start.device();
        x_start * per_example(&self.tables.sqrt_alphas_cumprod, t, &device)
            + noise * per_example(&self.tables.sqrt_one_minus_alphas_cumprod, t, &device)
    }

    /// The weighted squared error of each example, `[b]`. `images` is `[b, c, ...]` as the data gives it, in [0, 1] with
    /// `auto_normalize`; everything must lie on the network's device.
    pub fn loss<const D: usize, M: Network<D>>(&self, model: &M, images: Tensor<D>, draws: &Draws<D>) -> Tensor<1> {
        let device = images.device();
        let (b, t) = (images.dims()[0], &draws.t);
        let x_start = self.normalize(images);
        let noise = self.noise(&x_start, draws);
        let x = self.q_sample(x_start.clone(), t, noise.clone());

        let time = time_tensor(t, &device);
        let x_self_cond = (model.self_condition() && draws.self_condition).then(|| {
            let input = NetworkInput { x: x.clone(), time: time.clone(), x_self_cond: None, classes: None };
            let output = TrainNoGrad::of(model).forward(input);
            self.x_start(output, &x, t).detach()
        });
        let output = model.forward(NetworkInput { x, time, x_self_cond, classes: None });

        let target = self.target(x_start, t, noise);
        let weight = per_example::<1>(&self.tables.loss_weight, t, &device);
        (output - target).square().reshape([b as i32, -1]).mean_dim(1).reshape([b]) * weight
    }

    /// The noise that x_t and the target share: offset added, then handed out within the batch if immiscible.
    fn noise<const D: usize>(&self, x_start: &Tensor<D>, draws: &Draws<D>) -> Tensor<D> {
        let noise = match &draws.offset_noise {
            Some(offset) => draws.noise.clone() + offset.clone() * self.config.offset_noise_strength,
            None => draws.noise.clone(),
        };
        if !self.config.immiscible {
            return noise;
        }
        let size = noise.dims()[1..].iter().product();
        let order = least_distance_assignment(&host_values(x_start.clone()), &host_values(noise.clone()), size);
        let order: Vec<i64> = order.into_iter().map(|i| i as i64).collect();
        let b = order.len();
        let order = Tensor::from_data(TensorData::new(order, [b]), &noise.device());
        noise.select(0, order)
    }

    fn target<const D: usize>(&self, x_start: Tensor<D>, t: &[usize], noise: Tensor<D>) -> Tensor<D> {
        match self.config.objective {
            Objective::PredNoise => noise,
            Objective::PredX0 => x_start,
            Objective::PredV => {
                let device = x_start.device();
                noise * per_example(&self.tables.sqrt_alphas_cumprod, t, &device)
                    - x_start * per_example(&self.tables.sqrt_one_minus_alphas_cumprod, t, &device)
            }
        }
    }

    /// The estimate of x_start in a network's output at x_t.
    fn x_start<const D: usize>(&self, output: Tensor<D>, x: &Tensor<D>, t: &[usize]) -> Tensor<D> {
        let device = x.device();
        let table = |values: &[f64]| per_example::<D>(values, t, &device);
        match self.config.objective {
            Objective::PredX0 => output,
            Objective::PredNoise => {
                x.clone() * table(&self.tables.sqrt_recip_alphas_cumprod)
                    - output * table(&self.tables.sqrt_recipm1_alphas_cumprod)
            }
            Objective::PredV => {
                x.clone() * table(&self.tables.sqrt_alphas_cumprod)
                    - output * table(&self.tables.sqrt_one_minus_alphas_cumprod)
            }
        }
    }

    /// The denoiser of a trained network.
    pub fn denoiser<'a, M>(&'a self, model: &'a Eval<M>) -> GaussianDenoiser<'a, M> {
        GaussianDenoiser { diffusion: self, model }
    }

    /// All T noise levels from the noisiest to clean data, for ancestral sampling as trained.
    pub fn all_levels(&self) -> Vec<NoiseLevel> {
        (0..self.config.timesteps).rev().map(|t| self.level(t)).chain([NoiseLevel::CLEAN]).collect()
    }

    /// `steps + 1` noise levels spaced as the reference spaces them for DDIM: `steps + 1` points from -1 to T - 1, cut to integers,
    /// -1 being clean data. `steps` in 1..=T.
    pub fn spaced_levels(&self, steps: usize) -> Vec<NoiseLevel> {
        spaced_times(self.config.timesteps, steps)
            .into_iter()
            .map(|t| usize::try_from(t).map_or(NoiseLevel::CLEAN, |t| self.level(t)))
            .collect()
    }
}

/// In f32, from both ends, as `torch.linspace` does it: the cut to integers shows the difference.
fn spaced_times(timesteps: usize, steps: usize) -> Vec<i64> {
    let (first, last) = (-1.0_f32, timesteps as f32 - 1.0);
    let step = (last - first) / steps as f32;
    let point = |k: usize| {
        if k < steps.div_ceil(2) { first + step * k as f32 } else { last - step * (steps - k) as f32 }
    };
    (0..=steps).rev().map(|k| point(k) as i64).collect()
}

/// A network under Gaussian diffusion, ready to denoise. The estimate is cut to [-1, 1] where that is the data's range, that
/// is with `auto_normalize`.
#[derive(Debug)]
pub struct GaussianDenoiser<'a, M> {
    diffusion: &'a GaussianDiffusion,
    model: &'a Eval<M>,
}

impl<const D: usize, M: Network<D>> Denoiser<D> for GaussianDenoiser<'_, M> {
    fn denoise(&self, x: Tensor<D>, level: NoiseLevel, x_self_cond: Option<Tensor<D>>) -> Estimate<D> {
        let t = vec![level.time as usize; x.dims()[0]];
        let x_self_cond = x_self_cond.filter(|_| self.model.self_condition());
        let input = NetworkInput { x: x.clone(), time: time_tensor(&t, &x.device()), x_self_cond, classes: None };
        // On a thread of the pool, so that none of the network's parallel loops has to wake one up.
        let output = rayon::scope(|_| self.model.forward(input));
        let x_start = self.diffusion.x_start(output, &x, &t);
        Estimate::of(if self.diffusion.config.auto_normalize { x_start.clamp(-1.0, 1.0) } else { x_start })
    }

    fn level(&self, log_snr: f64) -> NoiseLevel {
        self.diffusion.level_of(log_snr)
    }
}

/// `table[t]` per example, shaped to multiply a batch of rank `D`.
fn per_example<const D: usize>(table: &[f64], t: &[usize], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = t.iter().map(|&t| table[t] as f32).collect();
    let shape = std::array::from_fn(|k| if k == 0 { t.len() } else { 1 });
    Tensor::from_data(TensorData::new::<f32, [usize; D]>(values, shape), device)
}

fn time_tensor(t: &[usize], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = t.iter().map(|&t| t as f32).collect();
    Tensor::from_data(TensorData::new(values, [t.len()]), device)
}
