//! `classifier_free_guidance` with its variations, CFG++, classifier guidance and dynamic thresholding, on given outputs of a network.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use denoising_diffusion::diffusion::{
    BetaSchedule, Denoiser, Diffusion, Estimate, GaussianConfig, GuidanceConfig, NetworkDenoiser, NoiseLevel,
    Objective, ScheduleConfig, Threshold, projection,
};
use denoising_diffusion::models::{Network, NetworkInput};
use denoising_diffusion::nn::{Eval, EvalMode};
use denoising_diffusion::sampler::{PosteriorVariance, ddim, ddpm, ignore};

use crate::golden::{Golden, assert_close, test_device, values};

fn options(guidance: f64, rescale_phi: f64, keep_parallel: f64) -> GuidanceConfig {
    GuidanceConfig { guidance, rescale_phi, keep_parallel, ..Default::default() }
}

#[test]
fn combinations() {
    let golden = Golden::open("guidance");
    let tensor = |name: &str| golden.tensor::<4>(name, &test_device());
    let [strong, weak] = ["logits", "null_logits"].map(|name| tensor(&format!("combine.{name}")));
    let parallel = projection(strong.clone() - weak.clone(), strong.clone());
    assert_close("parallel", &values(parallel.clone()), golden.values("project.parallel"), 1e-5);
    let orthogonal = strong.clone() - weak.clone() - parallel;
    assert_close("orthogonal", &values(orthogonal), golden.values("project.orthogonal"), 1e-5);

    for w in [0.0, 0.5, 1.0, 3.0, 6.0] {
        for phi in [0.0, 0.7] {
            for (keep, name) in [(1.0, "plain"), (0.0, "keep0"), (0.4, "keep0.4")] {
                let name = format!("combine.w{w}.phi{phi}.{name}");
                let got = values(options(w, phi, keep).combine(strong.clone(), weak.clone(), w, |strong| strong));
                // At 0 ours is the unconditional prediction whatever else is asked for; the reference's only without other options.
                if w == 0.0 {
                    assert_eq!(got, values(weak.clone()), "{name}");
                }
                if w != 0.0 || (phi, keep) == (0.0, 1.0) {
                    assert_close(&name, &got, golden.values(&name), 1e-5);
                }
            }
        }
    }
}

/// What the reference's class-conditional U-Net gives at a scale of 3 by its defaults, from its outputs with and without the class.
#[test]
fn outputs_of_a_class_conditional_network() {
    let golden = Golden::open("cfg_unet");
    let [strong, weak] = ["output.drop0", "output.drop1"].map(|name| golden.tensor::<4>(name, &test_device()));
    let got = options(3.0, 0.7, 0.0).combine(strong, weak, 3.0, |strong| strong);
    assert_close("output.w3", &values(got), golden.values("output.w3"), 1e-5);
}

/// A network of one class whose outputs are given.
#[derive(Module, Debug)]
struct Outputs {
    with_class: Param<Tensor<4>>,
    without: Param<Tensor<4>>,
}

impl Outputs {
    fn new(with_class: Tensor<4>, without: Tensor<4>) -> Eval<Self> {
        Self { with_class: Param::from_tensor(with_class), without: Param::from_tensor(without) }.eval()
    }
}

impl Network for Outputs {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        let none = input.classes.expect("it is conditioned").float().reshape([-1, 1, 1, 1]);
        let [with_class, without] = [&self.with_class, &self.without].map(|output| output.val());
        with_class * (1.0 - none.clone()) + without * none
    }

    fn channels(&self) -> usize {
        1
    }

    fn num_classes(&self) -> usize {
        1
    }
}

fn gaussian(objective: Objective) -> Diffusion {
    let schedule = ScheduleConfig { timesteps: 50, beta_schedule: BetaSchedule::Linear, ..Default::default() };
    Diffusion::new(&GaussianConfig { schedule, objective, ..Default::default() }.into()).unwrap()
}

/// Each example has a time of its own, ours takes one per batch.
struct Rows {
    golden: Golden,
    prefix: &'static str,
    row: usize,
}

impl Rows {
    fn tensor(&self, name: &str) -> Tensor<4> {
        self.golden.tensor::<4>(&format!("{}.{name}", self.prefix), &test_device()).narrow(0, self.row, 1)
    }

    /// From the time of the row to the next.
    fn levels(&self, diffusion: &Diffusion) -> [NoiseLevel; 2] {
        ["times", "times_next"].map(|name| {
            let times = self.golden.indices(&format!("{}.{name}", self.prefix));
            diffusion.level(times[self.row] as f64)
        })
    }

    fn check(&self, name: &str, got: Tensor<4>) {
        let what = format!("{}.{name}, row {}", self.prefix, self.row);
        assert_close(&what, &values(got), &values(self.tensor(name)), 1e-4);
    }
}

fn step(denoiser: &impl Denoiser<4>, rows: &Rows, levels: [NoiseLevel; 2], eta: f64, noise: Tensor<4>) -> Tensor<4> {
    ddim(denoiser, rows.tensor("x"), &levels, eta, &mut [noise].as_slice(), &mut ignore).unwrap()
}

/// The guided output comes out of a scale of 2 on outputs made for it.
#[test]
fn guided_predictions_and_cfg_plus_plus() {
    for row in 0..4 {
        let rows = Rows { golden: Golden::open("guidance"), prefix: "predict", row };
        let (guided, null) = (rows.tensor("guided"), rows.tensor("null"));
        let network = Outputs::new((guided.clone() + null.clone()) / 2.0, null.clone());
        for (name, objective) in
            [("pred_noise", Objective::PredNoise), ("pred_x0", Objective::PredX0), ("pred_v", Objective::PredV)]
        {
            let diffusion = gaussian(objective);
            let levels = rows.levels(&diffusion);
            for (case, cfg_plus_plus) in [("cfg", false), ("cfg_plus_plus", true)] {
                for (clip, threshold) in [("plain", Threshold::None), ("clipped", Threshold::Static)] {
                    let config = GuidanceConfig { cfg_plus_plus, threshold, ..options(2.0, 0.0, 1.0) };
                    let denoiser = diffusion.denoiser(&network).with_classes(vec![0]).guided(&config);
                    let estimate = denoiser.denoise(rows.tensor("x"), levels[0], None);
                    let key = |what: &str| format!("{name}.{case}.{clip}.{what}");
                    rows.check(&key("x_start"), estimate.x_start.clone());
                    // Here the reference keeps the predicted noise although it clamps x_start; ours is that of the clamped estimate, as the
                    // reference's own plain diffusion has it.
                    if (objective, threshold) == (Objective::PredNoise, Threshold::Static) {
                        check_clipped(&rows, &estimate, levels[0], if cfg_plus_plus { &null } else { &guided });
                        continue;
                    }
                    rows.check(&key("pred_noise"), estimate.eps(rows.tensor("x"), levels[0]));
                    for eta in [0.0, 0.5] {
                        let out = step(&denoiser, &rows, levels, eta, rows.tensor("noise"));
                        rows.check(&key(&format!("ddim_eta{eta}")), out);
                    }
                }
            }
        }
    }
}

/// The noise in x by the x_start of a predicted noise, cut to the data's range.
fn check_clipped(rows: &Rows, estimate: &Estimate<4>, level: NoiseLevel, predicted: &Tensor<4>) {
    let x = rows.tensor("x");
    let x_start = ((x.clone() - predicted.clone() * level.sigma) / level.alpha).clamp(-1.0, 1.0);
    let expected = (x.clone() - x_start * level.alpha) / level.sigma;
    assert_close("noise of a clamped estimate", &values(estimate.eps(x, level)), &values(expected), 1e-5);
}

#[test]
fn classifier_guidance() {
    for row in 0..4 {
        let rows = Rows { golden: Golden::open("guidance"), prefix: "classifier", row };
        let output = rows.tensor("pred_noise");
        let network = Outputs::new(output.clone(), output);
        let diffusion = gaussian(Objective::PredNoise);
        let levels = rows.levels(&diffusion);
        let nothing = rows.tensor("x").zeros_like();
        let denoiser = |scale: f64, threshold| -> NetworkDenoiser<'_, Outputs> {
            let gradient = rows.tensor("gradient");
            let config = GuidanceConfig { threshold, ..Default::default() };
            let denoiser = diffusion.denoiser(&network).with_classes(vec![0]).guided(&config);
            denoiser.with_push(Box::new(move |_, at| {
                assert_eq!(at, levels[0]);
                gradient.clone() * scale
            }))
        };
        for scale in [1.0, 2.5] {
            let key = |what: &str| format!("s{scale}.{what}");
            let plain = denoiser(scale, Threshold::None);
            let estimate = plain.denoise(rows.tensor("x"), levels[0], None);
            rows.check(&key("x_start"), estimate.x_start.clone());
            rows.check(&key("pred_noise"), estimate.eps(rows.tensor("x"), levels[0]));
            rows.check(&key("ddim"), step(&plain, &rows, levels, 0.0, nothing.clone()));
            let clipped = denoiser(scale, Threshold::Static);
            rows.check(&key("ddim_clipped"), step(&clipped, &rows, levels, 0.0, nothing.clone()));
        }
    }
}

/// Ancestral steps are pushed by `beta / sqrt(1 - beta)` times the gradient, which is what its score adds to the mean; the reference's
/// `condition_mean` by the posterior's variance, which is smaller than beta.
#[test]
fn classifier_guidance_of_ancestral_steps() {
    for row in 0..3 {
        let rows = Rows { golden: Golden::open("guidance"), prefix: "classifier", row };
        let output = rows.tensor("pred_noise");
        let network = Outputs::new(output.clone(), output);
        let diffusion = gaussian(Objective::PredNoise);
        let t = rows.golden.indices("classifier.times")[row];
        let levels = [diffusion.level(t as f64), diffusion.level(t as f64 - 1.0)];
        let plain = GuidanceConfig { threshold: Threshold::None, ..Default::default() };
        let denoiser = || diffusion.denoiser(&network).with_classes(vec![0]).guided(&plain);
        let run = |denoiser: &NetworkDenoiser<'_, Outputs>| {
            let (x, noise) = (rows.tensor("x"), [rows.tensor("x").zeros_like()]);
            ddpm(denoiser, x, &levels, PosteriorVariance::Small, &mut noise.as_slice(), &mut ignore).unwrap()
        };
        let gradient = rows.tensor("gradient");
        let pushed = denoiser().with_push(Box::new({
            let gradient = gradient.clone();
            move |_, _| gradient.clone()
        }));
        let moved = values(run(&pushed) - run(&denoiser()));
        let beta = diffusion.tables().unwrap().betas[t];
        assert!(beta > f64::from(rows.golden.values("classifier.variance")[row]));
        assert_close("moved", &moved, &values(gradient * (beta / (1.0 - beta).sqrt())), 1e-5);
    }
}

#[test]
fn dynamic_thresholding() {
    let golden = crate::spacing::golden();
    let case = &golden["dynamic_thresholding"];
    let floats = |value: &serde_json::Value| serde_json::from_value::<Vec<f32>>(value.clone()).unwrap();
    let shape: [usize; 4] = serde_json::from_value(case["shape"].clone()).unwrap();
    let x = Tensor::<1>::from_floats(floats(&case["x"]).as_slice(), &test_device()).reshape(shape);
    for case in case["cases"].as_array().unwrap() {
        let threshold_quantile = case["percentile"].as_f64().unwrap();
        let config = GuidanceConfig { threshold: Threshold::Dynamic, threshold_quantile, ..Default::default() };
        let got = values(config.limit(x.clone()));
        assert_close(&format!("quantile {threshold_quantile}"), &got, &floats(&case["output"]), 1e-6);
    }
}
