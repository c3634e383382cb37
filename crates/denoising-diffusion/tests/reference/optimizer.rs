//! `torch.optim.Adam` and `AdamW` behind `clip_grad_norm_`, and ema-pytorch's `EMA` and `PostHocEMA`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use denoising_diffusion::post_hoc::{Combination, Profile, Snapshot, combine};
use denoising_diffusion::train::{Adam, AdamConfig, BufferPolicy, Ema, EmaConfig, GradNorm, NamedGradients};
use serde_json::Value;

use crate::golden::{Golden, assert_close, test_device, values};

#[derive(Module, Debug)]
struct Two {
    a: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

#[test]
fn three_steps_of_adam() {
    three_steps("adam", 0.0);
}

#[test]
fn three_steps_of_adamw() {
    three_steps("adamw", 1.0);
}

fn three_steps(file: &str, weight_decay: f64) {
    let golden = Golden::open(file);
    let device = test_device().autodiff();
    let mut model = Two {
        a: Param::from_tensor(golden.tensor("param.a.0", &device)),
        b: Param::from_tensor(golden.tensor("param.b.0", &device)),
    };
    let mut adam = Adam::new(AdamConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay, max_grad_norm: 1.0 });
    for step in 1..=3 {
        // The gradient of sum(parameter * given) is what is given.
        let given = |name: &str| format!("grad.{name}.{step}");
        let loss = (model.a.val() * golden.tensor(&given("a"), &device)).sum()
            + (model.b.val() * golden.tensor(&given("b"), &device)).sum();
        let gradients = NamedGradients::take(&model, &mut loss.backward());
        let GradNorm::Finite(norm) = gradients.norm() else { panic!("not finite") };
        assert_close("norm", &[norm as f32], golden.values(&format!("norm.{step}")), 1e-6);
        model = adam.step(model, gradients, norm, 1e-3);
        assert_close("a", &values(model.a.val()), golden.values(&format!("param.a.{step}")), 1e-6);
        assert_close("b", &values(model.b.val()), golden.values(&format!("param.b.{step}")), 1e-6);
        let state = adam.to_state_dict();
        for name in ["a", "b"] {
            for moment in ["exp_avg", "exp_avg_sq"] {
                let got = &state.get(&format!("{name}.{moment}")).unwrap().values;
                assert_close(moment, got, golden.values(&format!("{moment}.{name}.{step}")), 1e-6);
            }
        }
    }
}

#[derive(Module, Debug)]
struct WithBuffer {
    w: Param<Tensor<1>>,
    floating: Param<Tensor<1>>,
}

fn with_buffer(call: usize, device: &Device) -> WithBuffer {
    let angle = call as f64 * 0.1;
    let scalar = |value: f64| Tensor::<1>::from_floats([value as f32], device);
    WithBuffer {
        w: Param::from_tensor(scalar(angle.sin())),
        floating: Param::from_tensor(scalar(angle.cos())).set_require_grad(false),
    }
}

#[test]
fn moving_average_of_weights_and_buffers() {
    let golden = Golden::open("ema");
    let device = test_device().autodiff();
    for (set, options) in golden.config["sets"].as_object().unwrap() {
        let number = |key: &str, default: f64| options.get(key).and_then(Value::as_f64).unwrap_or(default);
        let config = EmaConfig {
            ema_decay: number("beta", 0.995),
            ema_update_every: number("update_every", 10.0) as u64,
            ema_update_after_step: number("update_after_step", 100.0) as u64,
            ema_inv_gamma: number("inv_gamma", 1.0),
            ema_power: number("power", 2.0 / 3.0),
            ema_min_value: number("min_value", 0.0),
            ema_buffers: BufferPolicy::Lerp,
        };
        let calls = options["calls"].as_u64().unwrap() as usize;
        let mut ema = Ema::new(&with_buffer(0, &device), config);
        let mut copying = Ema::new(&with_buffer(0, &device), EmaConfig { ema_buffers: BufferPolicy::Copy, ..config });
        let (mut w, mut floating) = (Vec::new(), Vec::new());
        for call in 0..calls {
            let model = with_buffer(call, &device);
            ema.update(&model);
            copying.update(&model);
            let decay = golden.values(&format!("{set}.decay"))[call];
            if golden.values(&format!("{set}.action"))[call] == 2.0 {
                assert!((ema.decay() as f32 - decay).abs() < 1e-6, "{set} call {call}");
                assert_eq!(values(copying.eval().floating.val()), values(model.floating.val()));
            }
            w.extend(values(ema.eval().w.val()));
            floating.extend(values(ema.eval().floating.val()));
        }
        assert_close(set, &w, golden.values(&format!("{set}.w")), 1e-5);
        assert_close(set, &floating, golden.values(&format!("{set}.floating")), 1e-5);
    }
}

/// `ema_pytorch.post_hoc_ema.sigma_rel_to_gamma` and `solve_weights`, the weights divided by their sum as EDM2 does.
#[test]
fn averages_made_of_others() {
    let golden = Golden::open("post_hoc");
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let profile = |sigma_rel: f64| Profile::new(sigma_rel).unwrap();
    let exponents = numbers(&golden.config["sigma_rels"]).into_iter().map(|s| profile(s).exponent() as f32);
    assert_close("gamma", &exponents.collect::<Vec<_>>(), golden.values("gamma"), 1e-6);
    for (set, options) in golden.config["sets"].as_object().unwrap() {
        let at = |sigma_rel: f64, steps: f64| Snapshot { profile: profile(sigma_rel), steps: steps as u64 };
        let lengths = numbers(&options["stored_sigma_rels"]);
        let of_step = |steps: f64| lengths.iter().map(move |&sigma_rel| at(sigma_rel, steps));
        let stored: Vec<Snapshot> = numbers(&options["stored_steps"]).into_iter().flat_map(of_step).collect();
        let wanted = at(options["sigma_rel"].as_f64().unwrap(), options["step"].as_f64().unwrap());
        let Combination { coefficients, relative_error } = combine(&stored, &wanted).unwrap();
        let got: Vec<f32> = coefficients.into_iter().map(|c| c as f32).collect();
        assert_close(set, &[relative_error as f32], golden.values(&format!("{set}.relative_error")), 1e-4);
        assert_close(set, &got, golden.values(&format!("{set}.weights")), 1e-5);
    }
}
