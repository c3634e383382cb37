//! What every solver guarantees: the latest estimate goes to the network, CFG++'s second estimate is used correctly, and few levels work.

use std::cell::RefCell;

use burn::tensor::Tensor;

use super::mixture::{FAMILIES, Family, Mixture, distance, flow_from_pure_noise, points, start, to_clean};
use super::solvers::{By, DETERMINISTIC, STOCHASTIC, Solver, seeded};
use crate::diffusion::{Denoiser, Estimate, NoiseLevel};
use crate::nn::params::host_values;
use crate::sampler::*;

fn all() -> impl Iterator<Item = (&'static str, Solver)> {
    let inversion: Solver = |d, x, l| ddim_inversion(&By(d), x, l, &mut ignore);
    let repaint: Solver = |d, x, l| {
        let known = Known { x_start: x.zeros_like(), mask: x.zeros_like() };
        let options = RePaint { jumps: Jumps { jump_length: 2, jump_n_sample: 2 }, ..RePaint::default() };
        inpaint(&By(d), x, l, &known, &options, &mut seeded(), &mut ignore)
    };
    DETERMINISTIC.into_iter().chain(STOCHASTIC).chain([("ddim_inversion", inversion), ("inpaint", repaint)])
}

/// Compares each `x_self_cond` with the previous estimate.
struct Remembering {
    mixture: Mixture,
    last: RefCell<Option<Vec<f32>>>,
}

impl Denoiser<2> for Remembering {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
        assert_eq!(x_self_cond.map(host_values), *self.last.borrow());
        let estimate = self.mixture.denoise(x, level, None);
        *self.last.borrow_mut() = Some(host_values(estimate.x_start.clone()));
        estimate
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.mixture.level_at_log_snr(log_snr)
    }
}

#[test]
fn every_estimate_is_given_the_one_before() {
    for levels in [to_clean(Family::Flow.karras(20.0, 0.02, 6)), to_clean(flow_from_pure_noise(0.1, 6))] {
        for (name, solver) in all() {
            println!("{name}");
            let denoiser = Remembering { mixture: Mixture::three(Family::Flow), last: RefCell::new(None) };
            let x = start(levels[if name == "ddim_inversion" { levels.len() - 1 } else { 0 }], 2);
            solver(&denoiser, x, &levels).unwrap();
            assert!(denoiser.last.borrow().is_some());
        }
    }
}

#[test]
fn estimates_per_step_are_as_documented() {
    let levels = to_clean(Family::Edm.karras(20.0, 0.02, 9));
    for (name, solver) in DETERMINISTIC {
        let mixture = Mixture::three(Family::Edm);
        solver(&mixture, start(levels[0], 1), &levels).unwrap();
        let expected = if matches!(name, "heun" | "dpmpp_2s") { 19 } else { 10 };
        assert_eq!(mixture.calls.get(), expected, "{name}");
    }
}

/// A mixture with a second estimate for the direction back to noise.
struct Renoising(Mixture);

impl Denoiser<2> for Renoising {
    fn denoise(&self, x: Tensor<2>, level: NoiseLevel, x_self_cond: Option<Tensor<2>>) -> Estimate<2> {
        let estimate = self.0.denoise(x, level, x_self_cond);
        Estimate { renoise: Some(estimate.x_start.clone() * 0.5 + 0.1), ..estimate }
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.0.level_at_log_snr(log_snr)
    }
}

#[test]
fn the_second_estimate_of_cfg_plus_plus_is_for_first_order_solvers() {
    let levels = to_clean(Family::VariancePreserving.karras(20.0, 0.02, 9));
    for (name, solver) in all() {
        let mixture = Mixture::three(Family::VariancePreserving);
        let plain = points(solver(&mixture, start(levels[0], 4), &levels).unwrap());
        let renoised = points(solver(&Renoising(mixture), start(levels[0], 4), &levels).unwrap());
        let takes_it = name.starts_with("ddim") || name.starts_with("euler");
        let distance = distance(&plain, &renoised);
        assert!(if takes_it { distance > 1e-2 } else { distance == 0.0 }, "{name} {distance}");
    }
}

#[test]
fn few_levels_are_fine() {
    for family in FAMILIES {
        let mixture = Mixture::three(family);
        for (name, solver) in all() {
            let x = start(family.level(20.0), 2);
            for levels in [vec![], vec![family.level(20.0)]] {
                assert_eq!(points(solver(&mixture, x.clone(), &levels).unwrap()), points(x.clone()), "{name}");
            }
            for steps in 1..6 {
                for levels in [family.karras(20.0, 0.02, steps), to_clean(family.karras(20.0, 0.02, steps))] {
                    let out = host_values(solver(&mixture, x.clone(), &levels).unwrap());
                    assert!(out.iter().all(|v| v.is_finite()), "{name} {steps} {out:?}");
                }
            }
        }
    }
}
