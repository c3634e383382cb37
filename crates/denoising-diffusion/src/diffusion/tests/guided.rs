//! How often and with which inputs a denoiser calls its network, and how it uses the outputs.

use burn::tensor::{Device, Tensor, TensorData};

use super::{Fake, Traits, batch};
use crate::diffusion::{
    Denoiser, Diffusion, ElucidatedConfig, FormulationConfig, GaussianConfig, GuidanceConfig, LearnedVariance,
    LearnedVarianceConfig, NetworkDenoiser, NoiseLevel, Objective, ObjectiveWeights, Prediction, RectifiedFlowConfig,
    ScheduleConfig, Threshold, VarianceReading, WeightedObjectiveConfig,
};
use crate::nn::params::host_values;
use crate::nn::{Eval, EvalMode};

const CLASSES: usize = 4;

fn gaussian() -> Diffusion {
    let schedule = ScheduleConfig { timesteps: 40, ..Default::default() };
    Diffusion::new(&GaussianConfig { schedule, objective: Objective::PredX0, ..Default::default() }.into()).unwrap()
}

fn fake(gain: f32, traits: Traits) -> Eval<Fake> {
    Fake::new(gain, traits, &Device::flex()).eval()
}

fn conditional() -> Eval<Fake> {
    fake(0.5, Traits { num_classes: CLASSES, ..Default::default() })
}

fn unlimited(guidance: f64) -> GuidanceConfig {
    GuidanceConfig { guidance, threshold: Threshold::None, ..Default::default() }
}

fn x_start<const D: usize>(denoiser: &impl Denoiser<D>, x: &Tensor<D>, level: NoiseLevel) -> Vec<f32> {
    host_values(denoiser.denoise(x.clone(), level, None).x_start)
}

#[test]
fn conditional_and_unconditional_halves_are_one_batch() {
    let (diffusion, network, x) = (gaussian(), conditional(), batch(3, &Device::flex()));
    let level = diffusion.level(20.0);
    let denoiser = diffusion.denoiser(&network).with_classes(vec![2, 0, 3]).guided(&unlimited(3.0));
    let got = x_start(&denoiser, &x, level);

    let calls = network.calls();
    assert_eq!(calls.len(), 1);
    let none = CLASSES as i64;
    assert_eq!(calls[0].classes.as_deref(), Some(&[2, 0, 3, none, none, none][..]));
    assert_eq!(calls[0].time, [20.0; 6]);
    assert_eq!(calls[0].x, [host_values(x.clone()), host_values(x.clone())].concat());
    // weak + 3 (strong - weak), example by example.
    for (i, (got, x)) in got.iter().zip(host_values(x)).enumerate() {
        let [strong, weak] = [[2.0, 0.0, 3.0][i / 6], CLASSES as f32].map(|class| 0.5 * x + class / 10.0);
        assert!((got - (weak + 3.0 * (strong - weak))).abs() < 1e-6, "{i}");
    }
}

#[test]
fn vectors_are_guided_towards_as_classes_are() {
    let (diffusion, x) = (gaussian(), batch(2, &Device::flex()));
    let network = fake(0.5, Traits { vector_dim: 2, ..Default::default() });
    let told = |scale| {
        let denoiser = diffusion.denoiser(&network).with_vectors(vec![1.0, 2.0, 3.0, 4.0]).guided(&unlimited(scale));
        x_start(&denoiser, &x, diffusion.level(20.0));
        let calls = network.calls();
        assert_eq!(calls.len(), 1);
        calls[0].vectors.clone().unwrap()
    };
    assert_eq!(told(1.0), [1.0, 2.0, 3.0, 4.0]);
    assert!(told(0.0).iter().all(|value| value.is_nan()));
    let both = told(3.0);
    assert_eq!(both[..4], [1.0, 2.0, 3.0, 4.0]);
    assert!(both.len() == 8 && both[4..].iter().all(|value| value.is_nan()), "{both:?}");
}

/// Outputs that the scale does not need are not computed.
#[test]
fn scales_of_zero_and_one_take_one_prediction() {
    let (diffusion, network, x) = (gaussian(), conditional(), batch(2, &Device::flex()));
    let level = diffusion.level(20.0);
    for (scale, classes) in [(1.0, [1, 3]), (0.0, [CLASSES as i64; 2])] {
        // Whatever the other options: there is nothing for them to act on.
        let config = GuidanceConfig { rescale_phi: 0.7, keep_parallel: 0.0, ..unlimited(scale) };
        let denoiser = diffusion.denoiser(&network).with_classes(vec![1, 3]).guided(&config);
        let got = x_start(&denoiser, &x, level);
        let calls = network.calls();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].classes.as_deref(), Some(&classes[..]));
        for (i, (got, x)) in got.iter().zip(host_values(x.clone())).enumerate() {
            assert!((got - (0.5 * x + classes[i / 6] as f32 / 10.0)).abs() < 1e-6);
        }
    }
}

/// The same guided estimate, whatever the network predicts.
#[test]
fn the_parallel_part_is_that_of_the_estimate() {
    let device = Device::flex();
    let (x, level) = (batch(2, &device), gaussian().level(20.0));
    let (strong, weak) = (batch(3, &device).narrow(0, 1, 2) * 0.5, batch(4, &device).narrow(0, 2, 2) * 0.3);
    let config = GuidanceConfig { keep_parallel: 0.0, ..unlimited(4.0) };
    let [noise, data, v] = [Prediction::Noise, Prediction::XStart, Prediction::V].map(|prediction| {
        let at = prediction.coefficients(&level);
        let output = |x_start: &Tensor<4>| (x_start.clone() - x.clone() * at.c_skip) / at.c_out;
        let read = |output: Tensor<4>| x.clone() * at.c_skip + output * at.c_out;
        host_values(read(config.combine(output(&strong), output(&weak), 4.0, read)))
    });
    for (data, others) in data.iter().zip(noise.iter().zip(&v)) {
        assert!((data - others.0).abs() < 1e-4 && (data - others.1).abs() < 1e-4, "{data} {others:?}");
    }
    // What is added is orthogonal to the estimate.
    let strong = host_values(strong);
    for (guided, strong) in data.chunks(data.len() / 2).zip(strong.chunks(strong.len() / 2)) {
        let along: f32 = guided.iter().zip(strong).map(|(guided, strong)| (guided - strong) * strong).sum();
        assert!(along.abs() < 1e-4, "{along}");
    }
}

/// CFG++ uses both predictions at a scale of 1, as at nearby scales; outside its interval it uses one.
#[test]
fn cfg_plus_plus_does_not_jump_at_a_scale_of_one() {
    let (diffusion, network, x) = (gaussian(), conditional(), batch(2, &Device::flex()));
    let level = diffusion.level(20.0);
    let at = |scale: f64, guidance_interval| {
        let config = GuidanceConfig { cfg_plus_plus: true, guidance_interval, ..unlimited(scale) };
        let denoiser = diffusion.denoiser(&network).with_classes(vec![1, 3]).guided(&config);
        let estimate = denoiser.denoise(x.clone(), level, None);
        (host_values(estimate.x_start), estimate.renoise.map(host_values), network.calls()[0].time.len())
    };
    let (x_start, renoise, examples) = at(1.0, None);
    assert_eq!(examples, 4);
    for (near, one) in [(at(0.999, None), &x_start), (at(1.001, None), &x_start)] {
        assert!(near.0.iter().zip(one).all(|(a, b)| (a - b).abs() < 1e-3));
        assert_eq!(near.1, renoise);
    }
    for (i, x) in host_values(x.clone()).into_iter().enumerate() {
        assert!((x_start[i] - (0.5 * x + [1.0, 3.0][i / 6] / 10.0)).abs() < 1e-6);
        assert!((renoise.as_ref().unwrap()[i] - (0.5 * x + CLASSES as f32 / 10.0)).abs() < 1e-6);
    }
    let (outside, renoise, examples) = at(1.0, Some([1e6, 1e7]));
    assert_eq!((outside, renoise, examples), (x_start, None, 2));
}

#[test]
fn without_a_condition_there_is_nothing_to_guide() {
    let (diffusion, x) = (gaussian(), batch(2, &Device::flex()));
    for (network, classes) in [(conditional(), None), (fake(0.5, Traits::default()), Some(vec![0, 1]))] {
        let mut denoiser = diffusion.denoiser(&network).guided(&unlimited(3.0));
        if let Some(classes) = classes {
            denoiser = denoiser.with_classes(classes);
        }
        x_start(&denoiser, &x, diffusion.level(20.0));
        let calls = network.calls();
        assert_eq!((calls.len(), calls[0].classes.clone(), calls[0].time.len()), (1, None, 2));
    }
}

/// Outside it, the conditional prediction is used, with one forward pass of b examples.
#[test]
fn guidance_within_an_interval_of_noise() {
    let (diffusion, network, x) = (gaussian(), conditional(), batch(2, &Device::flex()));
    let sigma = |t: f64| {
        let level = diffusion.level(t);
        level.sigma / level.alpha
    };
    let config = GuidanceConfig { guidance_interval: Some([sigma(10.0), sigma(25.0)]), ..unlimited(3.0) };
    let denoiser = diffusion.denoiser(&network).with_classes(vec![1, 3]).guided(&config);
    for (t, examples) in [(0, 2), (9, 2), (10, 4), (17, 4), (25, 4), (26, 2), (39, 2)] {
        x_start(&denoiser, &x, diffusion.level(f64::from(t)));
        assert_eq!(network.calls().iter().map(|call| call.time.len()).collect::<Vec<_>>(), [examples], "t = {t}");
    }
    // Pure noise lies outside any interval.
    let flow = Diffusion::new(&FormulationConfig::RectifiedFlow(RectifiedFlowConfig::default()).into()).unwrap();
    x_start(&flow.denoiser(&network).with_classes(vec![1, 3]).guided(&config), &x, flow.level(1.0));
    assert_eq!(network.calls()[0].time.len(), 2);
}

/// Both get the class; each is called once.
#[test]
fn away_from_a_weaker_network() {
    let (diffusion, strong, x) = (gaussian(), conditional(), batch(2, &Device::flex()));
    let weak = fake(0.2, Traits { num_classes: CLASSES, self_condition: true, ..Default::default() });
    let denoiser = diffusion.denoiser(&strong).with_classes(vec![1, 3]).with_weak(&weak).guided(&unlimited(2.0));
    let estimate = denoiser.denoise(x.clone(), diffusion.level(20.0), Some(x.clone()));
    for (network, self_conditioned) in [(&strong, false), (&weak, true)] {
        let calls = network.calls();
        assert_eq!(calls.len(), 1);
        assert_eq!((calls[0].classes.as_deref(), calls[0].self_conditioned), (Some(&[1, 3][..]), self_conditioned));
    }
    for (i, (got, x)) in host_values(estimate.x_start).iter().zip(host_values(x.clone())).enumerate() {
        let [strong, weak] = [0.5, 0.2].map(|gain| gain * x + [1.0, 3.0][i / 6] / 10.0);
        assert!((got - (weak + 2.0 * (strong - weak))).abs() < 1e-6);
    }
    // A scale of 1 is the network itself, 0 the weaker one.
    for (scale, gain) in [(1.0, 0.5), (0.0, 0.2)] {
        let denoiser = diffusion.denoiser(&strong).with_classes(vec![1, 3]).with_weak(&weak).guided(&unlimited(scale));
        let got = x_start(&denoiser, &x, diffusion.level(20.0));
        assert!((got[0] - (gain * host_values(x.clone())[0] + 0.1)).abs() < 1e-6);
        assert_eq!((strong.calls().is_empty(), weak.calls().is_empty()), (scale == 0.0, scale == 1.0));
    }
    // Guidance by a weaker network needs no classes.
    let denoiser: NetworkDenoiser<'_, Fake> = diffusion.denoiser(&strong).with_weak(&weak).guided(&unlimited(2.0));
    x_start(&denoiser, &x, diffusion.level(20.0));
    assert_eq!((strong.calls().len(), weak.calls().len()), (1, 1));
}

/// Classes that the network does not take are a classifier's, which may have others than the weaker network.
#[test]
fn a_weaker_network_is_not_told_what_the_network_is_not() {
    let (diffusion, strong, x) = (gaussian(), fake(0.5, Traits::default()), batch(2, &Device::flex()));
    let weak = fake(0.2, Traits { num_classes: CLASSES, vector_dim: 2, ..Default::default() });
    for scale in [0.0, 2.0] {
        let denoiser = diffusion.denoiser(&strong).with_classes(vec![CLASSES as u32 + 5, 1]).with_vectors(Vec::new());
        x_start(&denoiser.with_weak(&weak).guided(&unlimited(scale)), &x, diffusion.level(20.0));
        let call = weak.calls().remove(0);
        assert_eq!((call.classes, call.vectors), (None, None));
    }
}

/// Weights of the loss say nothing about how an output is read.
#[test]
fn networks_trained_with_other_weights_can_guide_each_other() {
    let reads_the_same = |one: FormulationConfig, other: FormulationConfig| {
        let [one, other] = [one, other].map(|config| Diffusion::new(&config.into()).unwrap());
        one.reads_the_same_as(&other)
    };
    let variance = |vb_loss_weight, variance_reading| {
        let variance = LearnedVariance { vb_loss_weight, variance_reading };
        FormulationConfig::LearnedVariance(LearnedVarianceConfig { variance, ..Default::default() })
    };
    let (range, direct) = (VarianceReading::Range, VarianceReading::Direct);
    assert!(reads_the_same(variance(0.001, range), variance(0.01, range)));
    assert!(!reads_the_same(variance(0.001, range), variance(0.001, direct)));
    let weighted = |pred_noise_loss_weight| {
        let weights = ObjectiveWeights { pred_noise_loss_weight, ..Default::default() };
        FormulationConfig::WeightedObjective(WeightedObjectiveConfig { weights, ..Default::default() })
    };
    assert!(reads_the_same(weighted(0.1), weighted(0.5)));
    let noise = GaussianConfig { objective: Objective::PredNoise, ..Default::default() };
    assert!(!reads_the_same(variance(0.001, range), FormulationConfig::Gaussian(noise.clone())));
    assert!(!reads_the_same(weighted(0.1), FormulationConfig::Gaussian(noise)));
}

#[test]
fn an_earlier_estimate_goes_to_both_halves() {
    let (diffusion, x) = (gaussian(), batch(2, &Device::flex()));
    for self_condition in [false, true] {
        let network = fake(0.5, Traits { num_classes: CLASSES, self_condition, ..Default::default() });
        let denoiser = diffusion.denoiser(&network).with_classes(vec![1, 3]).guided(&unlimited(3.0));
        denoiser.denoise(x.clone(), diffusion.level(20.0), Some(x.clone()));
        assert_eq!(network.calls()[0].self_conditioned, self_condition);
    }
}

/// The network's input: scaled data and `ln(sigma) / 4` for an elucidated one.
#[test]
fn inputs_are_scaled_as_the_formulation_says() {
    let (network, x) = (fake(0.5, Traits::default()), batch(1, &Device::flex()));
    let diffusion = Diffusion::new(&FormulationConfig::Elucidated(ElucidatedConfig::default()).into()).unwrap();
    let sigma = 2.0_f64;
    x_start(&diffusion.denoiser(&network), &x, diffusion.level(sigma));
    let call = &network.calls()[0];
    assert!((f64::from(call.time[0]) - sigma.ln() / 4.0).abs() < 1e-6);
    let c_in = 1.0 / sigma.hypot(0.5) as f32;
    assert!(call.x.iter().zip(host_values(x)).all(|(shown, x)| (shown - c_in * x).abs() < 1e-6));
}

/// Data used as they are have no range to be limited to.
#[test]
fn estimates_are_limited_where_the_range_is_known() {
    let (network, x) = (fake(9.0, Traits::default()), batch(2, &Device::flex()));
    let mut config = gaussian().config().unwrap().clone();
    for (auto_normalize, limited) in [(true, true), (false, false)] {
        config.shared.auto_normalize = auto_normalize;
        let diffusion = Diffusion::new(&config).unwrap();
        let got = x_start(&diffusion.denoiser(&network), &x, diffusion.level(20.0));
        assert_eq!(got.iter().all(|value| value.abs() <= 1.0), limited);
    }
}

/// Two examples, an estimate of (3, 4) guided away from (3, 2) and one of (1, 0) guided away from (-3, 3), by algorithm 1 of the paper with w = 4,
/// r = 2.5 and eta = 0.5, by hand. The first update, (0, 2), is short enough: along the estimate it has 8/5 (3, 4)/5 = (0.96, 1.28), of which half
/// goes. The second, (4, -3), is halved: along the estimate it has (2, 0).
#[test]
fn updates_are_shortened_and_projected_as_in_the_paper() {
    let device = Device::flex();
    let tensor = |values: [f32; 4]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [2, 1, 1, 2]), &device);
    let (strong, weak) = (tensor([3.0, 4.0, 1.0, 0.0]), tensor([3.0, 2.0, -3.0, 3.0]));
    let config = GuidanceConfig { keep_parallel: 0.5, guidance_norm_threshold: Some(2.5), ..unlimited(4.0) };
    let expected = [3.0 - 3.0 * 0.48, 4.0 + 3.0 * (2.0 - 0.64), 1.0 + 3.0 * 1.0, -3.0 * 1.5];
    let (x, level) = (tensor([0.1, -0.2, 0.3, 0.4]), gaussian().level(20.0));
    for prediction in [Prediction::XStart, Prediction::Noise, Prediction::V] {
        let at = prediction.coefficients(&level);
        let output = |x_start: &Tensor<4>| (x_start.clone() - x.clone() * at.c_skip) / at.c_out;
        let read = |output: Tensor<4>| x.clone() * at.c_skip + output * at.c_out;
        let got = host_values(read(config.combine(output(&strong), output(&weak), 4.0, read)));
        assert!(got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-3), "{got:?} {expected:?}");
    }
    assert!(GuidanceConfig { guidance_norm_threshold: Some(0.0), ..unlimited(4.0) }.validate().is_err());
}
