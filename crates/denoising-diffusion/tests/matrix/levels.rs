//! The noise levels of every formulation, over every spacing and for any number of steps.

use denoising_diffusion::diffusion::{Diffusion, NoiseLevel, NoiseLevels};
use denoising_diffusion::sampler::SampleConfig;

use crate::variants::{self, Variant};

/// Options at the edge of what is allowed, where levels come to lie close to each other.
fn extreme() -> Vec<Variant> {
    let options = [
        "timesteps = 2",
        "timesteps = 2; zero_terminal_snr = true",
        "timesteps = 3; zero_terminal_snr = true; beta_schedule = 'linear'",
        "diffusion = 'rectified_flow'; flow_shift = 1e-4",
        "diffusion = 'rectified_flow'; flow_shift = 1e4",
        "diffusion = 'elucidated'; sigma_min = 79.9",
        "diffusion = 'simple'; noise_d = 1; image_d = 1e4",
        "diffusion = 'simple'; noise_d = 1e4; image_d = 1",
    ];
    let variant = |options: &str| Variant { name: options.to_string(), config: variants::read(options).unwrap() };
    options.into_iter().map(variant).collect()
}

fn check(name: &str, diffusion: &Diffusion, levels: &[NoiseLevel], steps: usize) {
    let [noisiest, _] = diffusion.formulation().range();
    assert_eq!(levels.len(), steps + 1, "{name}");
    assert_eq!(levels[steps], NoiseLevel::CLEAN, "{name}");
    let finite = |level: &NoiseLevel| level.alpha.is_finite() && level.sigma.is_finite() && level.time.is_finite();
    assert!(levels.iter().all(finite), "{name}: {levels:?}");
    let falls = levels.windows(2).all(|pair| pair[0].log_snr() < pair[1].log_snr());
    assert!(falls, "{name}: {levels:?}");
    // None is noisier than what was trained, and the network is told the same of a level however it was found.
    assert!(levels[0].log_snr() >= noisiest.log_snr() - 1e-9, "{name}: {levels:?}");
    for level in levels[..steps].iter().filter(|level| level.log_snr().is_finite()) {
        let found = diffusion.formulation().level_at_log_snr(level.log_snr());
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(1.0);
        assert!(near(found.alpha, level.alpha) && near(found.sigma, level.sigma), "{name}: {level:?} {found:?}");
        assert!(near(found.time, level.time), "{name}: {level:?} {found:?}");
    }
}

#[test]
fn levels_fall_strictly_and_lie_within_what_was_trained() {
    for Variant { name, config } in variants::own(12).into_iter().chain(extreme()) {
        let diffusion = Diffusion::new(&config).unwrap();
        for noise_levels in NoiseLevels::ALL {
            for steps in [1, 2, 3, 4, 5, 7, 11, 12, 13, 40] {
                let sample = SampleConfig {
                    noise_levels: Some(noise_levels),
                    sampling_timesteps: Some(steps),
                    ..SampleConfig::default()
                };
                if sample.validate(diffusion.formulation()).is_err() {
                    continue;
                }
                let levels = noise_levels.of(diffusion.formulation(), steps, sample.karras_rho);
                check(&format!("{name}, {}, {steps} steps", noise_levels.name()), &diffusion, &levels, steps);
            }
        }
    }
}

/// Sampling begins at pure noise, or at the noisiest level there is: except where the formulation's own spacing says otherwise, which
/// for few steps in discrete time it does not.
#[test]
fn the_first_level_is_the_noisiest() {
    for Variant { name, config } in variants::own(12) {
        let diffusion = Diffusion::new(&config).unwrap();
        let [noisiest, _] = diffusion.formulation().range();
        for noise_levels in NoiseLevels::ALL {
            for steps in [1, 2, 5] {
                let first = noise_levels.of(diffusion.formulation(), steps, 7.0)[0];
                let near = (first.log_snr() - noisiest.log_snr()).abs() < 1e-9 || first.alpha == noisiest.alpha;
                assert!(near, "{name}, {}, {steps} steps: {first:?}, {noisiest:?}", noise_levels.name());
            }
        }
    }
}

/// Whatever is drawn, to the ends of what can be.
#[test]
fn weights_of_the_loss_are_numbers_at_every_level() {
    for Variant { name, config } in variants::own(12).into_iter().chain(variants::shared(12)).chain(extreme()) {
        let diffusion = Diffusion::new(&config).unwrap();
        let near_0 = (0..16).map(|k| 0.5 * 0.1_f64.powi(k));
        for u in near_0.clone().chain(near_0.map(|u| 1.0 - u)) {
            let level = diffusion.level(diffusion.formulation().time(u));
            let weight = diffusion.loss_weight(&level);
            assert!(weight.is_finite() && weight >= 0.0, "{name}, {u}: {level:?} {weight}");
        }
    }
}

/// What a solver asks for between two levels is between them, in noise and in what the network is told.
#[test]
fn a_level_between_two_is_told_between_them() {
    for Variant { name, config } in variants::own(12) {
        let diffusion = Diffusion::new(&config).unwrap();
        let formulation = diffusion.formulation();
        let levels = formulation.levels(8);
        for pair in levels[..8].windows(2).filter(|pair| pair[0].alpha > 0.0) {
            let middle = formulation.level_at_log_snr(0.5 * (pair[0].log_snr() + pair[1].log_snr()));
            let between = |pick: fn(&NoiseLevel) -> f64| {
                let ends = [pick(&pair[0]), pick(&pair[1])];
                (ends[0].min(ends[1])..=ends[0].max(ends[1])).contains(&pick(&middle))
            };
            let all = between(|l| l.alpha) && between(|l| l.sigma) && between(|l| l.time) && between(|l| l.log_snr());
            assert!(all, "{name}: {middle:?} {pair:?}");
        }
    }
}
