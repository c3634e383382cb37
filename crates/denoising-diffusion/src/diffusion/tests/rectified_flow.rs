//! The loss and the velocity of rectified flow against their equations (Liu et al. 2022, eq. 1), by hand.

use burn::tensor::{Device, Tensor};

use super::{Fake, Traits, batch};
use crate::diffusion::{
    Denoiser, Diffusion, DiffusionConfig, Draws, FormulationConfig, GuidanceConfig, RectifiedFlowConfig, Threshold,
};
use crate::nn::EvalMode;
use crate::nn::params::host_values;

const GAIN: f32 = 0.5;

fn rectified_flow(flow_shift: f64) -> Diffusion {
    let config = RectifiedFlowConfig { flow_shift, ..Default::default() };
    Diffusion::new(&FormulationConfig::RectifiedFlow(config).into()).unwrap()
}

/// t after the shift.
fn sigma(t: f64, shift: f64) -> f64 {
    shift * t / (1.0 + (shift - 1.0) * t)
}

fn host(x: Tensor<4>) -> Vec<f64> {
    host_values(x).into_iter().map(f64::from).collect()
}

/// `|F((1 - t) x_start + t eps, 1000 t) - (eps - x_start)|^2`, whatever the shift.
#[test]
fn loss() {
    let device = Device::flex().autodiff();
    let times = vec![0.1, 0.5, 0.9];
    let (data, noise) = (batch(3, &device).abs(), batch(6, &device).narrow(0, 3, 3) * 1.5);
    for shift in [1.0, 3.0] {
        let network = Fake::new(GAIN, Traits::default(), &device);
        let draws = Draws {
            times: times.clone(),
            noise: vec![noise.clone()],
            offset_noise: None,
            self_condition: false,
            keep_condition: Vec::new(),
        };
        let losses = host_values(rectified_flow(shift).loss(&network, data.clone(), &draws));
        let (data, noise) = (host(data.clone()), host(noise.clone()));
        let call = &network.calls()[0];
        for (b, &t) in times.iter().enumerate() {
            let t = sigma(t, shift);
            assert!((f64::from(call.time[b]) - 1000.0 * t).abs() < 1e-3);
            let error = |i: usize| {
                let (x_start, eps) = (2.0 * data[i] - 1.0, noise[i]);
                let x = (1.0 - t) * x_start + t * eps;
                assert!((f64::from(call.x[i]) - x).abs() < 1e-6);
                (f64::from(GAIN) * x - (eps - x_start)).powi(2)
            };
            let expected = (b * 6..b * 6 + 6).map(error).sum::<f64>() / 6.0;
            assert!((f64::from(losses[b]) - expected).abs() < 1e-5, "{} {expected}", losses[b]);
        }
    }
}

/// `x_start = x - t F`, `eps = x + (1 - t) F`: the velocity between the two is F; at t = 1, pure noise, too.
#[test]
fn velocity() {
    let device = Device::flex();
    let (network, x) = (Fake::new(GAIN, Traits::default(), &device).eval(), batch(2, &device));
    let plain = GuidanceConfig { threshold: Threshold::None, ..Default::default() };
    for shift in [1.0, 3.0] {
        let diffusion = rectified_flow(shift);
        for t in [0.05, 0.6, 1.0] {
            let level = diffusion.level(t);
            let estimate = diffusion.denoiser(&network).guided(&plain).denoise(x.clone(), level, None);
            let (x_start, eps) = (host(estimate.x_start.clone()), host(estimate.eps(x.clone(), level)));
            for (i, x) in host(x.clone()).into_iter().enumerate() {
                let velocity = f64::from(GAIN) * x;
                assert!((eps[i] - x_start[i] - velocity).abs() < 1e-5);
                assert!((x_start[i] - (x - sigma(t, shift) * velocity)).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn by_default_half_of_the_examples_lie_on_each_side_of_the_middle() {
    let diffusion =
        Diffusion::new(&DiffusionConfig::from(FormulationConfig::RectifiedFlow(Default::default()))).unwrap();
    assert!((diffusion.formulation().time(0.5) - 0.5).abs() < 1e-12);
    let deviation = 1.0 / (1.0 + (-1.0_f64).exp());
    assert!((diffusion.formulation().time(0.841_344_746_068_543) - deviation).abs() < 1e-9);
}

/// The time input goes up to 1000 for sinusoids and up to 1 for Fourier features; nothing else depends on it.
#[test]
fn the_scale_of_what_is_told() {
    let told = |config: RectifiedFlowConfig| Diffusion::new(&FormulationConfig::RectifiedFlow(config).into()).unwrap();
    let config = RectifiedFlowConfig { flow_shift: 3.0, ..Default::default() };
    let (large, small) = (told(config), told(config.for_fourier_time()));
    assert!(large.formulation().tells_large_times() && !small.formulation().tells_large_times());
    for t in [0.2, 0.7, 1.0] {
        let [a, b] = [&large, &small].map(|diffusion| diffusion.level(t));
        assert_eq!((a.alpha, a.sigma, a.time), (b.alpha, b.sigma, 1000.0 * b.time));
        assert_eq!(b.time, sigma(t, 3.0));
    }
    let said = RectifiedFlowConfig { time_scale: Some(1000.0), ..config };
    assert_eq!(said.for_fourier_time(), said);
    let zero = RectifiedFlowConfig { time_scale: Some(0.0), ..config };
    assert!(Diffusion::new(&FormulationConfig::RectifiedFlow(zero).into()).is_err());
}
