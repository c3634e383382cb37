//! Noise levels of every formulation: order, ends, and the conversion back from log-SNR.

use burn::tensor::Device;

use crate::diffusion::{
    BetaSchedule, ContinuousTimeConfig, Diffusion, DiffusionConfig, FormulationConfig, GaussianConfig, NoiseLevel,
    NoiseLevels, NoiseSchedule, Objective, RectifiedFlowConfig, ScheduleConfig, SharedConfig, SimpleConfig,
    TimeDistribution,
};

/// Every formulation with its defaults, and with options that change its levels.
fn formulations() -> Vec<FormulationConfig> {
    let mut all = FormulationConfig::all().to_vec();
    for beta_schedule in [BetaSchedule::Linear, BetaSchedule::Cosine, BetaSchedule::Sigmoid] {
        for (timesteps, zero_terminal_snr) in [(1000, false), (1000, true), (7, true)] {
            let schedule = ScheduleConfig { timesteps, beta_schedule, zero_terminal_snr, ..Default::default() };
            all.push(FormulationConfig::Gaussian(GaussianConfig {
                schedule,
                objective: Objective::PredV,
                ..Default::default()
            }));
        }
    }
    for noise_schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine, NoiseSchedule::Learned] {
        all.push(FormulationConfig::ContinuousTime(ContinuousTimeConfig { noise_schedule, ..Default::default() }));
    }
    let [image_d, noise_d, noise_d_low, noise_d_high] = [64.0, 32.0, 16.0, 32.0].map(Some);
    all.push(FormulationConfig::Simple(SimpleConfig { noise_d, image_d, ..Default::default() }));
    all.push(FormulationConfig::Simple(SimpleConfig { noise_d_low, noise_d_high, image_d, ..Default::default() }));
    for (time_distribution, mode_scale) in [
        (TimeDistribution::Uniform, None),
        (TimeDistribution::Mode, Some(-1.0)),
        (TimeDistribution::Mode, None),
        (TimeDistribution::Mode, Some(1.75)),
        (TimeDistribution::Cosmap, None),
    ] {
        let config = RectifiedFlowConfig { time_distribution, mode_scale, flow_shift: 3.0, ..Default::default() };
        all.push(FormulationConfig::RectifiedFlow(config));
    }
    all
}

fn build(config: &FormulationConfig) -> Diffusion {
    Diffusion::new(&config.clone().into()).unwrap()
}

#[test]
fn levels_fall_from_the_noisiest_to_clean_data() {
    for config in formulations() {
        let diffusion = build(&config);
        let formulation = diffusion.formulation();
        let [noisiest, cleanest] = formulation.range();
        for kind in NoiseLevels::ALL {
            for steps in [1, 2, 3, 5, 50, 999, 1000] {
                let whole = matches!(kind, NoiseLevels::Trained | NoiseLevels::Trailing);
                if whole && formulation.timesteps().is_some_and(|timesteps| steps > timesteps) {
                    continue;
                }
                let case = format!("{} {steps} of {config:?}", kind.name());
                let levels = kind.of(formulation, steps, 7.0);
                assert_eq!(levels.len(), steps + 1, "{case}");
                assert_eq!(levels[steps], NoiseLevel::CLEAN, "{case}");
                // To log-SNR and back.
                let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1e-3);
                let first = levels[0];
                assert!(close(first.alpha, noisiest.alpha) && close(first.sigma, noisiest.sigma), "{case}: {first:?}");
                assert!(close(first.time, noisiest.time), "{case}: {first:?}, {noisiest:?}");
                for pair in levels.windows(2) {
                    assert!(pair[0].log_snr() < pair[1].log_snr(), "{case}: {pair:?}");
                    assert!(pair[0].sigma > 0.0 && pair[0].time.is_finite(), "{case}: {pair:?}");
                    let ordered =
                        if rises(&config) { pair[1].time > pair[0].time } else { pair[1].time < pair[0].time };
                    assert!(pair[1].is_clean() || ordered, "{case}: {pair:?}");
                }
                // Levels spread over a range reach its other end.
                if !whole && steps >= 3 {
                    let last = levels[steps - 1];
                    assert!((last.log_snr() - cleanest.log_snr()).abs() < 1e-6, "{case}: {last:?}, {cleanest:?}");
                }
            }
        }
    }
}

/// Whether the time input is the log-SNR, which falls with noise.
fn rises(config: &FormulationConfig) -> bool {
    matches!(config, FormulationConfig::ContinuousTime(_) | FormulationConfig::Simple(_))
}

#[test]
fn a_level_is_found_by_its_log_snr() {
    for config in formulations() {
        let diffusion = build(&config);
        let formulation = diffusion.formulation();
        for k in 1..400 {
            let level = formulation.level(formulation.time(f64::from(k) / 400.0));
            let found = formulation.level_at_log_snr(level.log_snr());
            for (a, b) in [(found.alpha, level.alpha), (found.sigma, level.sigma), (found.time, level.time)] {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{level:?} {found:?} of {config:?}");
            }
        }
        let [noisiest, cleanest] = formulation.range();
        for level in [noisiest, cleanest] {
            let found = formulation.level_at_log_snr(level.log_snr());
            assert!((found.time - level.time).abs() < 1e-6, "{level:?} {found:?} of {config:?}");
        }
    }
}

/// So that quarters of the draws are quarters of the noise levels, and a fraction of them is a quantile.
#[test]
fn times_rise_with_the_share_of_examples() {
    for config in formulations() {
        let diffusion = build(&config);
        let formulation = diffusion.formulation();
        let shares = [1e-6].into_iter().chain((1..2000).map(|k| f64::from(k) / 2000.0)).chain([1.0 - 1e-6]);
        let at = |u: f64| {
            let time = formulation.time(u);
            (time, formulation.level(time))
        };
        let levels: Vec<(f64, NoiseLevel)> = shares.map(at).collect();
        let discrete = formulation.timesteps().is_some();
        for pair in levels.windows(2) {
            let [(before, clean), (after, noisy)] = [pair[0], pair[1]];
            assert!(before < after || (discrete && before == after), "{pair:?} of {config:?}");
            assert!(clean.log_snr() >= noisy.log_snr(), "{pair:?} of {config:?}");
            assert!(noisy.sigma > 0.0 && noisy.alpha.is_finite() && noisy.time.is_finite(), "{pair:?} of {config:?}");
        }
        // As close to 0 and 1 as any draw comes.
        let ends = [1e-16, 1.0 - 1.2e-16].map(at);
        for (time, NoiseLevel { alpha, sigma, time: told }) in ends {
            assert!([time, alpha, sigma, told].iter().all(|number| number.is_finite()), "{ends:?} of {config:?}");
        }
        if let Some(timesteps) = formulation.timesteps() {
            assert_eq!(ends.map(|(time, _)| time), [0.0, timesteps as f64 - 1.0]);
        }
    }
}

/// A cosine in f64 would continue to -75 there.
#[test]
fn a_cosine_ends_where_it_does_in_f32() {
    let noise_schedule = NoiseSchedule::Cosine;
    let config = ContinuousTimeConfig { noise_schedule, ..Default::default() };
    let cosine = build(&FormulationConfig::ContinuousTime(config));
    let last = cosine.level(1.0);
    assert!((last.time + 33.8913).abs() < 1e-3 && last.log_snr() < -33.8, "{last:?}");
    assert!(cosine.level(1.0 - 1e-6).time > last.time);
}

#[test]
fn stratified_times_are_spread_evenly_over_a_batch() {
    let flow = RectifiedFlowConfig { time_distribution: TimeDistribution::Uniform, ..Default::default() };
    let config = |stratified_times| DiffusionConfig {
        shared: SharedConfig { stratified_times, ..Default::default() },
        ..FormulationConfig::RectifiedFlow(flow).into()
    };
    let times = |stratified, batch: u64| {
        let diffusion = Diffusion::new(&config(stratified)).unwrap();
        diffusion.draw(3, 8 * batch, batch, [8, 1, 1, 1], &Device::flex()).times
    };
    let mut all = Vec::new();
    for batch in 0..200 {
        let mut strata: Vec<usize> = times(true, batch).into_iter().map(|t| (8.0 * t) as usize).collect();
        strata.sort_unstable();
        assert_eq!(strata, [0, 1, 2, 3, 4, 5, 6, 7]);
        all.push(8.0 * times(true, batch).into_iter().fold(1.0, f64::min));
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert!((mean - 0.5).abs() < 0.08, "the start is uniform: {mean}");
    assert!((0..20).any(|batch| times(false, batch).iter().all(|t| *t > 0.125)), "each by itself");
}
