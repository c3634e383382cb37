//! `denoising_diffusion_pytorch_1d.Unet1D(...)` and `classifier_free_guidance.Unet(...)`, imported as their checkpoints are: the options told
//! from the tensors, outputs, gradients, and the way back.

use burn::tensor::{Device, Int, Tensor};
use denoising_diffusion::interop::{Inferred, ReferenceWeights, to_ours, to_reference};
use denoising_diffusion::models::{ImageNetwork, Network, NetworkConfig, NetworkInput, Unet1dConfig, UnetConfig};
use denoising_diffusion::nn::{EvalMode, Init, params};
use denoising_diffusion::train::NamedGradients;

use crate::golden::{Golden, assert_close, test_device, values};
use crate::unets::{check_gradients, check_gradients_among};

/// What the tensors tell, and the heads of the middle block, which they do not.
fn inferred(golden: &Golden) -> Inferred {
    let heads = ["unet1d", "unet"].iter().find_map(|key| golden.config[key]["attn_heads"].as_u64()).unwrap();
    let weights = ReferenceWeights { state: golden.under("state."), ..ReferenceWeights::default() };
    let inferred = weights.infer().unwrap();
    assert!(inferred.assumed.contains(&"mid_attn_heads"));
    inferred.with_mid_attn_heads(heads as usize).unwrap()
}

/// The network as a model card says it.
fn told(inferred: &Inferred) -> NetworkConfig {
    NetworkConfig::of_unet(inferred.unet().unwrap().clone())
}

/// The network of a file, its options told from the tensors.
fn network(golden: &Golden, device: &Device) -> ImageNetwork {
    let network = told(&inferred(golden)).build(&mut Init::new(0, device)).unwrap();
    params::load_state_dict(network, &to_ours(&golden.under("state.")).unwrap()).unwrap()
}

/// Sequences are carried as images of height 1.
fn sequence(golden: &Golden, name: &str, device: &Device) -> Tensor<4> {
    golden.tensor::<3>(name, device).unsqueeze_dim(2)
}

fn check(name: &str) {
    let golden = Golden::open(name);
    let inferred = inferred(&golden);
    let options: Unet1dConfig = serde_json::from_value(golden.config["unet1d"].clone()).unwrap();
    let NetworkConfig::Unet1d(told) = told(&inferred) else { panic!("{inferred:?}") };
    // No tensor tells how features are shared out to heads, and fixed frequencies from learned ones.
    let expected = Unet1dConfig {
        learned_sinusoidal_cond: options.random_fourier_features,
        random_fourier_features: false,
        ..options.clone()
    };
    assert_eq!(told, expected);

    let device = test_device();
    let x_self_cond = golden.has("x_self_cond").then(|| sequence(&golden, "x_self_cond", &device));
    let input = NetworkInput::new(sequence(&golden, "x", &device), golden.tensor("time", &device));
    let output = network(&golden, &device).eval().forward(NetworkInput { x_self_cond, ..input });
    assert_close(name, &values(output), golden.values("output"), 1e-4);

    let ours = to_ours(&golden.under("state.")).unwrap();
    assert_eq!(to_reference(&ours, inferred.unet().unwrap()).unwrap(), golden.under("state."));
}

#[test]
fn sequences() {
    check("unet1d_base");
}

#[test]
fn self_conditioned_sequences() {
    check("unet1d_selfcond");
}

#[test]
fn sequences_with_fourier_time_and_learned_variance() {
    check("unet1d_fourier");
}

#[test]
fn every_gradient_of_a_network_for_sequences() {
    let golden = Golden::open("unet1d_base");
    let device = test_device().autodiff();
    let unet = network(&golden, &device);
    let x = sequence(&golden, "x", &device).require_grad();
    let output = unet.forward(NetworkInput::new(x.clone(), golden.tensor("time", &device)));
    let mut gradients = (output * sequence(&golden, "cotangent", &device)).sum().backward();
    check_gradients(NamedGradients::take(&unet, &mut gradients), &to_ours(&golden.under("grad_state.")).unwrap());
    assert_close("x", &values(x.grad(&gradients).unwrap()), golden.values("grad_input.x"), 1e-4);
}

#[test]
fn a_network_with_classes_guided_and_not() {
    let golden = Golden::open("cfg_unet");
    let inferred = inferred(&golden);
    let NetworkConfig::Unet(UnetConfig { num_classes, .. }) = told(&inferred) else { panic!("{inferred:?}") };
    assert_eq!(num_classes as u64, golden.config["unet"]["num_classes"].as_u64().unwrap());
    let device = test_device();
    let unet = network(&golden, &device).eval();
    let classes: Vec<i64> = golden.indices("classes").into_iter().map(|class| class as i64).collect();
    for (drop, classes) in [(0, classes.clone()), (1, vec![num_classes as i64; classes.len()])] {
        let classes = Some(Tensor::<1, Int>::from_ints(classes.as_slice(), &device));
        let input = NetworkInput::new(golden.tensor("x", &device), golden.tensor("time", &device));
        let output = unet.forward(NetworkInput { classes, ..input });
        let name = format!("output.drop{drop}");
        assert_close(&name, &values(output), golden.values(&name), 1e-4);
    }
    let ours = to_ours(&golden.under("state.")).unwrap();
    assert_eq!(to_reference(&ours, inferred.unet().unwrap()).unwrap(), golden.under("state."));
}

/// The gradients of the class embeddings, of the mean squared error of predicted noise.
#[test]
fn gradients_of_class_embeddings() {
    let golden = Golden::open("cfg_unet");
    let device = test_device().autodiff();
    let unet = network(&golden, &device);
    let NetworkConfig::Unet(UnetConfig { num_classes, .. }) = told(&inferred(&golden)) else { panic!() };
    let (keep, times) = (golden.indices("loss.keep"), golden.indices("loss.times"));
    let classes = golden.indices("classes").into_iter().zip(&keep);
    let classes: Vec<i64> = classes.map(|(class, &keep)| if keep == 1 { class } else { num_classes } as i64).collect();
    let alphas = cosine_alphas_cumprod(golden.config["timesteps"].as_u64().unwrap() as usize);
    let of = |f: &dyn Fn(f64) -> f64| {
        let values: Vec<f32> = times.iter().map(|&t| f(alphas[t]) as f32).collect();
        Tensor::<1>::from_floats(values.as_slice(), &device).reshape([-1, 1, 1, 1])
    };
    let noise = golden.tensor::<4>("loss.noise", &device);
    let x_start = golden.tensor::<4>("loss.image", &device) * 2.0 - 1.0;
    let x = x_start * of(&f64::sqrt) + noise.clone() * of(&|alpha| (1.0 - alpha).sqrt());
    let input = NetworkInput {
        classes: Some(Tensor::<1, Int>::from_ints(classes.as_slice(), &device)),
        ..NetworkInput::new(x, golden.tensor("loss.times", &device))
    };
    let loss = (unet.forward(input) - noise).square().mean();
    assert_close("loss", &values(loss.clone()), golden.values("loss.mean"), 1e-4);
    let expected = to_ours(&golden.under("loss.grad_state.")).unwrap();
    check_gradients_among(NamedGradients::take(&unet, &mut loss.backward()), &expected);
}

/// Nichol and Dhariwal 2021, eq. 17, betas at most 0.999.
fn cosine_alphas_cumprod(timesteps: usize) -> Vec<f64> {
    let f = |t: usize| ((t as f64 / timesteps as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let mut product = 1.0;
    let mut next = |t: usize| {
        product *= 1.0 - (1.0 - f(t + 1) / f(t)).min(0.999);
        product
    };
    (0..timesteps).map(&mut next).collect()
}
