//! A small network for points of the plane, `[b, 1, 1, 2]`, that does all that a network may do: any number of output channels, an earlier
//! estimate, classes.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation};
use denoising_diffusion::diffusion::Diffusion;
use denoising_diffusion::models::{LearnedSchedule, LearnedScheduleOptions, Network, NetworkInput, Scheduled};
use denoising_diffusion::nn::{Init, Linear};

pub const SHAPE: [usize; 3] = [1, 1, 2];
/// Classes of a network that takes some.
pub const CLASSES: usize = 2;
const HIDDEN: usize = 64;
/// Frequencies of the time's embedding.
const FREQUENCIES: usize = 4;

/// What a network takes beside noisy data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Takes {
    Nothing,
    EarlierEstimate,
    Classes,
}

/// Two hidden layers.
#[derive(Module, Debug)]
pub struct Mlp {
    first: Linear,
    hidden: Linear,
    last: Linear,
    #[module(skip)]
    options: MlpOptions,
}

#[derive(Clone, Debug)]
pub struct MlpOptions {
    takes: Takes,
    out_channels: usize,
    /// What the network is told at the cleanest and at the noisiest level: sinusoids are of the place between.
    times: [f64; 2],
}

impl Mlp {
    pub fn new(diffusion: &Diffusion, takes: Takes, seed: u64, device: &Device) -> Self {
        let [noisiest, cleanest] = diffusion.formulation().range();
        let out_channels = diffusion.formulation().output().channels(SHAPE[0]);
        let options = MlpOptions { takes, out_channels, times: [cleanest.time, noisiest.time] };
        let more = match takes {
            Takes::Nothing => 0,
            Takes::EarlierEstimate => 2,
            Takes::Classes => CLASSES + 1,
        };
        let init = &mut Init::new(seed, device);
        Self {
            first: Linear::new(init, 2 + 1 + 2 * FREQUENCIES + more, HIDDEN),
            hidden: Linear::new(init, HIDDEN, HIDDEN),
            last: Linear::new(init, HIDDEN, 2 * out_channels),
            options,
        }
    }

    /// The place of a time in the range and its sinusoids, `[b] -> [b, 1 + 2 FREQUENCIES]`.
    fn embed(&self, time: Tensor<1>) -> Tensor<2> {
        let [from, to] = self.options.times;
        let place = ((time - from) / (to - from)).unsqueeze_dim::<2>(1);
        let angles = (0..FREQUENCIES).map(|k| place.clone() * (std::f64::consts::PI * f64::from(1 << k) / 2.0));
        let waves = angles.flat_map(|angle| [angle.clone().sin(), angle.cos()]);
        Tensor::cat(std::iter::once(place.clone()).chain(waves).collect(), 1)
    }
}

impl Network for Mlp {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let NetworkInput { x, time, x_self_cond, classes, .. } = input;
        let b = x.dims()[0];
        let flat = |x: Tensor<4>| x.reshape([b, 2]);
        let mut parts = vec![flat(x.clone()), self.embed(time)];
        match self.options.takes {
            Takes::Nothing => {}
            Takes::EarlierEstimate => parts.push(x_self_cond.map_or(flat(x.zeros_like()), flat)),
            Takes::Classes => {
                let classes = classes.unwrap_or(Tensor::full([b], CLASSES as i64, &x.device()));
                parts.push(Tensor::<2>::eye(CLASSES + 1, &x.device()).select(0, classes));
            }
        }
        let h = activation::silu(self.first.forward(Tensor::cat(parts, 1)));
        let h = activation::silu(self.hidden.forward(h.clone())) + h;
        self.last.forward(h).reshape([b, self.options.out_channels, 1, 2])
    }

    fn channels(&self) -> usize {
        SHAPE[0]
    }

    fn out_channels(&self) -> usize {
        self.options.out_channels
    }

    fn self_condition(&self) -> bool {
        self.options.takes == Takes::EarlierEstimate
    }

    fn num_classes(&self) -> usize {
        if self.options.takes == Takes::Classes { CLASSES } else { 0 }
    }

    fn class_drop_prob(&self) -> f64 {
        0.2
    }
}

/// The schedule that a formulation learns, where it does.
pub fn learned_schedule(diffusion: &Diffusion) -> Option<LearnedScheduleOptions> {
    diffusion.formulation().learned_schedule()
}

/// A network with the schedule that is trained beside it.
pub fn scheduled<M>(network: M, options: LearnedScheduleOptions, seed: u64, device: &Device) -> Scheduled<M> {
    let noise_schedule = LearnedSchedule::new(&mut Init::new(seed + 1000, device), options);
    Scheduled { network, noise_schedule }
}
