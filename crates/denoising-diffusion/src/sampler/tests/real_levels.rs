//! Solvers on the levels that formulations really begin at, where data are hardly visible, or not at all.

use std::cell::Cell;

use burn::tensor::{Device, Tensor};

use super::{DEVIATION, Gaussian};
use crate::diffusion::{
    BetaSchedule, Denoiser, Diffusion, DiffusionConfig, Estimate, FormulationConfig, GaussianConfig, NoiseLevel,
    NoiseLevels, ScheduleConfig, SimpleConfig,
};
use crate::nn::params::host_values;
use crate::sampler::*;

/// The exact denoiser of a Gaussian under a formulation, counting its calls.
struct Exact(Diffusion, Cell<usize>);

impl Exact {
    fn new(config: &DiffusionConfig) -> Self {
        Self(Diffusion::new(config).unwrap(), Cell::new(0))
    }
}

impl Denoiser<2> for Exact {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
        self.1.set(self.1.get() + 1);
        Gaussian.denoise(x, level, x_self_cond)
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.0.formulation().level_at_log_snr(log_snr)
    }
}

fn discrete(beta_schedule: BetaSchedule, zero_terminal_snr: bool) -> DiffusionConfig {
    let schedule = ScheduleConfig { beta_schedule, zero_terminal_snr, ..ScheduleConfig::default() };
    GaussianConfig { schedule, ..GaussianConfig::default() }.into()
}

fn sampled(exact: &Exact, sample: &SampleConfig, x: &[f32]) -> Vec<f64> {
    let formulation = exact.0.formulation();
    let levels = sample.levels_for(formulation).of(formulation, sample.steps(formulation), sample.karras_rho);
    let x = Tensor::<1>::from_floats(x, &Device::flex()).reshape([x.len(), 1]) * formulation.init_deviation();
    let mut noise = SeededNoise::new(1, 0, &Device::flex());
    let out = sample.run(exact, x, &levels, &mut noise, &mut ignore).unwrap();
    host_values(out).into_iter().map(f64::from).collect()
}

/// The deviation of samples relative to that of the data. Every step is linear in x, so two points determine it.
fn width(config: &DiffusionConfig, sampler: SamplerKind, steps: usize, noise_levels: Option<NoiseLevels>) -> f64 {
    let sample = SampleConfig { sampler, sampling_timesteps: Some(steps), noise_levels, ..SampleConfig::default() };
    let out = sampled(&Exact::new(config), &sample, &[-1.0, 1.0]);
    (out[1] - out[0]) / (2.0 * DEVIATION)
}

/// The first step of these goes from a sigma / alpha of thousands to less than ten.
#[test]
fn few_steps_from_levels_without_signal_keep_samples_as_wide_as_data() {
    let simple = FormulationConfig::Simple(SimpleConfig::default()).into();
    let [sigmoid, cosine] = [BetaSchedule::Sigmoid, BetaSchedule::Cosine].map(|schedule| discrete(schedule, false));
    for (name, config) in [("sigmoid", sigmoid), ("cosine", cosine), ("simple", simple)] {
        for sampler in
            [SamplerKind::Heun, SamplerKind::Dpmpp2m, SamplerKind::Dpmpp2s, SamplerKind::Unipc, SamplerKind::Lms]
        {
            let widths = |levels| [5, 10, 50].map(|steps| width(&config, sampler, steps, levels));
            let [five, ten, fifty] = widths(Some(NoiseLevels::Trained));
            println!("{name}, {}: {five:.3}, {ten:.3}, {fifty:.3}", sampler.name());
            assert!((0.74..1.0).contains(&five), "{name}, {}: {five}", sampler.name());
            assert!((0.9..1.0).contains(&ten), "{name}, {}: {ten}", sampler.name());
            assert!((0.97..1.01).contains(&fifty), "{name}, {}: {fifty}", sampler.name());
            // The levels that are taken by default.
            let [five, ten, fifty] = widths(None);
            println!("{name}, {}, by default: {five:.3}, {ten:.3}, {fifty:.3}", sampler.name());
            assert!((0.74..1.0).contains(&five), "{name}, {}: {five}", sampler.name());
            assert!((0.88..1.06).contains(&ten), "{name}, {}: {ten}", sampler.name());
            assert!((0.985..1.01).contains(&fifty), "{name}, {}: {fifty}", sampler.name());
        }
        // A first-order method with as many evaluations gets less far.
        assert!(width(&config, SamplerKind::Heun, 10, None) > width(&config, SamplerKind::Ddim, 19, None), "{name}");
    }
}

#[test]
fn evaluations_are_counted_as_they_are_made() {
    let mut configs = FormulationConfig::all().map(DiffusionConfig::from).to_vec();
    configs.push(discrete(BetaSchedule::Cosine, false));
    configs.push(discrete(BetaSchedule::Linear, true));
    for config in configs {
        for sampler in SamplerKind::ALL {
            for noise_levels in NoiseLevels::ALL {
                let sample = SampleConfig {
                    sampler,
                    noise_levels: Some(noise_levels),
                    sampling_timesteps: Some(7),
                    s_churn: if sampler.churns() { 10.0 } else { 0.0 },
                    ..SampleConfig::default()
                };
                let exact = Exact::new(&config);
                sampled(&exact, &sample, &[0.5]);
                let what = format!("{}, {}, {noise_levels:?}", config.formulation.name(), sampler.name());
                assert_eq!(sample.evaluations(exact.0.formulation()), exact.1.get(), "{what}");
            }
        }
    }
}

#[test]
fn few_steps_and_solvers_of_first_order_keep_the_levels_of_training() {
    let levels = |config: &DiffusionConfig, sampler, steps, noise_levels| {
        let sample = SampleConfig { sampler, sampling_timesteps: Some(steps), noise_levels, ..SampleConfig::default() };
        sample.levels_for(Exact::new(config).0.formulation())
    };
    let config = discrete(BetaSchedule::Sigmoid, false);
    for sampler in SamplerKind::ALL {
        let expected = if sampler.prefers_log_snr() { NoiseLevels::LogSnr } else { NoiseLevels::Trained };
        assert_eq!(levels(&config, sampler, 10, None), expected, "{sampler:?}");
        assert_eq!(levels(&config, sampler, 9, None), NoiseLevels::Trained, "{sampler:?}");
        assert_eq!(levels(&config, sampler, 10, Some(NoiseLevels::Karras)), NoiseLevels::Karras, "{sampler:?}");
    }
    assert!(SamplerKind::default().prefers_log_snr() && !SamplerKind::Ddim.prefers_log_snr());
    let flow = FormulationConfig::RectifiedFlow(Default::default()).into();
    for other in [discrete(BetaSchedule::Linear, true), flow] {
        assert_eq!(levels(&other, SamplerKind::DpmppSde2m, 50, None), NoiseLevels::Trained);
    }
}
