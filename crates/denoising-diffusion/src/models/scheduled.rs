//! A noise schedule that is trained with the network: log-SNR as a monotone function of t (Kingma et al. 2021, "Variational diffusion
//! models", appendix H). A module while training, plain numbers for sampling.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use super::{Network, NetworkInput, SizeError};
use crate::nn::params::host_values;
use crate::nn::{Init, Linear};

/// Options of a learned schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnedScheduleOptions {
    /// Hidden units of the monotone network.
    pub hidden_dim: usize,
    /// Share of the gradient that reaches the schedule.
    pub frac_gradient: f64,
    /// log-SNR at times 0 and 1.
    pub log_snr: [f64; 2],
}

/// `y = l1(t)`, `f = y + l3(sigmoid(l2(y)))` with the absolute values of all weights, so that f never decreases; log-SNR is f shifted and scaled to
/// the given values at the two ends.
#[derive(Module, Debug)]
pub struct LearnedSchedule {
    pub first: Linear,
    pub hidden: Linear,
    pub last: Linear,
    log_snr_at_0: f64,
    log_snr_at_1: f64,
    frac_gradient: f64,
}

impl LearnedSchedule {
    pub fn new(init: &mut Init, options: LearnedScheduleOptions) -> Self {
        let [log_snr_at_0, log_snr_at_1] = options.log_snr;
        Self {
            first: Linear::new(init, 1, 1),
            hidden: Linear::new(init, 1, options.hidden_dim),
            last: Linear::new(init, options.hidden_dim, 1),
            log_snr_at_0,
            log_snr_at_1,
            frac_gradient: options.frac_gradient,
        }
    }

    /// log-SNR at times in [0, 1]: `[b] -> [b]`. Only a share of the gradient reaches the schedule.
    pub fn forward(&self, t: Tensor<1>) -> Tensor<1> {
        let b = t.dims()[0];
        let (zero, one) = (Tensor::zeros([1], &t.device()), Tensor::ones([1], &t.device()));
        let f = self.rising(Tensor::cat(vec![t, zero, one], 0));
        let [zero, one] = [b, b + 1].map(|at| f.clone().narrow(0, at, 1));
        let share = (f.narrow(0, 0, b) - zero.clone()) / (one - zero);
        let log_snr = share * (self.log_snr_at_1 - self.log_snr_at_0) + self.log_snr_at_0;
        if self.frac_gradient == 1.0 {
            return log_snr;
        }
        log_snr.clone() * self.frac_gradient + log_snr.detach() * (1.0 - self.frac_gradient)
    }

    fn rising(&self, t: Tensor<1>) -> Tensor<1> {
        let linear = |layer: &Linear, x: Tensor<2>| {
            x.matmul(layer.weight.val().abs().transpose()) + layer.bias.val().abs().unsqueeze()
        };
        let y = linear(&self.first, t.unsqueeze_dim(1));
        (y.clone() + linear(&self.last, sigmoid(linear(&self.hidden, y)))).squeeze_dim(1)
    }

    /// The current values as plain numbers.
    pub fn weights(&self) -> ScheduleWeights {
        let layer = |layer: &Linear| [layer.weight.val(), layer.bias.val().unsqueeze()].map(absolute);
        let ([first, hidden, last], log_snr) =
            ([&self.first, &self.hidden, &self.last].map(layer), [self.log_snr_at_0, self.log_snr_at_1]);
        ScheduleWeights { first, hidden, last, log_snr }
    }
}

fn absolute(values: Tensor<2>) -> Vec<f64> {
    host_values(values).into_iter().map(|value| f64::from(value).abs()).collect()
}

/// A learned schedule as plain numbers: weight and bias of each layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleWeights {
    first: [Vec<f64>; 2],
    hidden: [Vec<f64>; 2],
    last: [Vec<f64>; 2],
    log_snr: [f64; 2],
}

impl ScheduleWeights {
    /// log-SNR at t in [0, 1].
    pub fn log_snr(&self, t: f64) -> f64 {
        let [zero, one, f] = [0.0, 1.0, t].map(|t| self.rising(t));
        let [at_0, at_1] = self.log_snr;
        at_0 + (at_1 - at_0) * (f - zero) / (one - zero)
    }

    fn rising(&self, t: f64) -> f64 {
        let y = self.first[0][0] * t + self.first[1][0];
        let [weights, biases] = &self.hidden;
        let unit = |((w, b), last): ((&f64, &f64), &f64)| last / (1.0 + (-(w * y + b)).exp());
        y + self.last[1][0] + weights.iter().zip(biases).zip(&self.last[0]).map(unit).sum::<f64>()
    }
}

/// A network with the schedule that is trained with it.
#[derive(Module, Debug)]
pub struct Scheduled<M> {
    pub network: M,
    pub noise_schedule: LearnedSchedule,
}

impl<M: Network + ModuleDisplay> Network for Scheduled<M> {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        self.network.forward(input)
    }

    fn takes_bf16(&self) -> bool {
        self.network.takes_bf16()
    }

    fn channels(&self) -> usize {
        self.network.channels()
    }

    fn out_channels(&self) -> usize {
        self.network.out_channels()
    }

    fn self_condition(&self) -> bool {
        self.network.self_condition()
    }

    fn num_classes(&self) -> usize {
        self.network.num_classes()
    }

    fn condition_channels(&self) -> usize {
        self.network.condition_channels()
    }

    fn vector_dim(&self) -> usize {
        self.network.vector_dim()
    }

    fn augment_labels(&self) -> bool {
        self.network.augment_labels()
    }

    fn class_drop_prob(&self) -> f64 {
        self.network.class_drop_prob()
    }

    fn forces_norm_of(&self, name: &str) -> bool {
        name.strip_prefix("network.").is_some_and(|name| self.network.forces_norm_of(name))
    }

    fn noise_schedule(&self) -> Option<&LearnedSchedule> {
        Some(&self.noise_schedule)
    }

    fn resolves_large_times(&self) -> bool {
        self.network.resolves_large_times()
    }

    fn check_size(&self, height: usize, width: usize) -> Result<(), SizeError> {
        self.network.check_size(height, width)
    }
}
