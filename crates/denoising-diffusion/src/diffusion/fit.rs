//! Whether a network fits a formulation and the data. Without these checks a wrong number of channels would broadcast, and the network would train
//! on nonsense. Not here: whether options describe a network at all (`models`).

use thiserror::Error;

use super::process::Diffusion;
use crate::models::{Network, SizeError};

/// Why a network cannot be trained or sampled from.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Misfit {
    #[error("the network gives {got} channels of output for data of {channels}, but the formulation reads {expected}")]
    OutChannels { channels: usize, expected: usize, got: usize },
    #[error("the network takes data of {expected} channels, got {got}")]
    Channels { expected: usize, got: usize },
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(
        "the network embeds time by Fourier features, which are made for noise levels between about -15 and 15, but the \
         formulation numbers them up to a thousand"
    )]
    FourierTime,
    #[error("the formulation learns its noise schedule: train `Scheduled {{ network, noise_schedule }}`")]
    NoSchedule,
}

impl Diffusion {
    /// Checks that the network's output is what the formulation reads.
    ///
    /// # Errors
    /// [`Misfit::OutChannels`].
    pub fn check_output(&self, model: &impl Network) -> Result<(), Misfit> {
        let channels = model.channels();
        let (expected, got) = (self.formulation.output().channels(channels), model.out_channels());
        if got == expected { Ok(()) } else { Err(Misfit::OutChannels { channels, expected, got }) }
    }

    /// Checks that the network can be trained under the formulation.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn check_training(&self, model: &impl Network) -> Result<(), Misfit> {
        self.check_output(model)?;
        if self.formulation.tells_large_times() && !model.resolves_large_times() {
            return Err(Misfit::FourierTime);
        }
        if self.formulation.learned_schedule().is_some() && model.noise_schedule().is_none() {
            return Err(Misfit::NoSchedule);
        }
        Ok(())
    }

    /// Checks that the network can draw images of a shape, `[c, h, w]`.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn check_sampling(&self, model: &impl Network, [c, h, w]: [usize; 3]) -> Result<(), Misfit> {
        self.check_output(model)?;
        if model.channels() != c {
            return Err(Misfit::Channels { expected: model.channels(), got: c });
        }
        Ok(model.check_size(h, w)?)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::diffusion::{
        ContinuousTimeConfig, DiffusionConfig, ElucidatedConfig, FormulationConfig, LearnedVarianceConfig,
        NoiseSchedule,
    };
    use crate::models::{LearnedSchedule, Scheduled, Unet, UnetConfig};
    use crate::nn::Init;

    fn unet(change: impl FnOnce(&mut UnetConfig)) -> Unet {
        let mut config = UnetConfig { dim: 4, dim_mults: vec![1, 2], channels: 1, ..UnetConfig::default() };
        change(&mut config);
        Unet::new(&config, &mut Init::new(0, &Device::flex())).unwrap()
    }

    fn diffusion(formulation: FormulationConfig) -> Diffusion {
        Diffusion::new(&DiffusionConfig::from(formulation)).unwrap()
    }

    #[test]
    fn outputs_are_those_that_the_formulation_reads() {
        let (one, two) = (unet(|_| ()), unet(|config| config.out_dim = Some(2)));
        let gaussian = diffusion(FormulationConfig::default());
        let learned = diffusion(FormulationConfig::LearnedVariance(LearnedVarianceConfig::default()));
        assert_eq!((gaussian.check_training(&one), learned.check_training(&two)), (Ok(()), Ok(())));
        let misfit = |expected, got| Err(Misfit::OutChannels { channels: 1, expected, got });
        assert_eq!((gaussian.check_output(&two), learned.check_output(&one)), (misfit(1, 2), misfit(2, 1)));
    }

    #[test]
    fn shapes_are_those_that_the_network_works_on() {
        let (unet, gaussian) = (unet(|_| ()), diffusion(FormulationConfig::default()));
        assert_eq!(gaussian.check_sampling(&unet, [1, 8, 6]), Ok(()));
        assert_eq!(gaussian.check_sampling(&unet, [3, 8, 8]), Err(Misfit::Channels { expected: 1, got: 3 }));
        assert!(matches!(gaussian.check_sampling(&unet, [1, 8, 7]), Err(Misfit::Size(_))));
    }

    #[test]
    fn times_and_schedules_are_those_that_the_network_can_train() {
        let fourier = unet(|config| config.learned_sinusoidal_cond = true);
        assert_eq!(diffusion(FormulationConfig::default()).check_training(&fourier), Err(Misfit::FourierTime));
        let elucidated = diffusion(FormulationConfig::Elucidated(ElucidatedConfig::default()));
        assert_eq!(elucidated.check_training(&fourier), Ok(()));

        let noise_schedule = NoiseSchedule::Learned;
        let learned = FormulationConfig::ContinuousTime(ContinuousTimeConfig { noise_schedule, ..Default::default() });
        let learned = diffusion(learned);
        assert_eq!(learned.check_training(&fourier), Err(Misfit::NoSchedule));
        let options = learned.formulation().learned_schedule().unwrap();
        let noise_schedule = LearnedSchedule::new(&mut Init::new(0, &Device::flex()), options);
        assert_eq!(learned.check_training(&Scheduled { network: fourier, noise_schedule }), Ok(()));
    }
}
