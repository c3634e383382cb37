//! Classes in training and in measurements: what is hidden from the network, and when.

use burn::tensor::{Device, Tensor};

use super::{Fake, Traits, batch};
use crate::diffusion::{Diffusion, DiffusionConfig, Draws, Examples, SharedConfig};
use crate::eval::held_out::held_out_loss;
use crate::nn::EvalMode;

const TRAITS: Traits = Traits { num_classes: 3, vector_dim: 2, class_drop_prob: 0.25, self_condition: false };

fn draws(noise: Vec<Tensor<4>>, keep_condition: Vec<f64>) -> Draws {
    Draws { times: vec![100.0; 4], noise, offset_noise: None, self_condition: false, keep_condition }
}

fn examples(device: &Device) -> Examples {
    Examples { classes: Some(vec![0, 1, 2, 1]), ..batch(4, device).into() }
}

#[test]
fn classes_are_hidden_by_draws_below_the_probability() {
    let device = Device::flex().autodiff();
    let network = Fake::new(0.5, TRAITS, &device);
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    for (keep_condition, seen) in [
        (vec![0.3, 0.2, 0.0, 0.25], [0, 3, 3, 1]), // 3 is none
        (vec![0.9; 4], [0, 1, 2, 1]),
        (Vec::new(), [0, 1, 2, 1]), // as measurements draw
    ] {
        diffusion.loss(&network, examples(&device), &draws(vec![batch(4, &device)], keep_condition));
        let calls = network.calls();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].classes.as_deref(), Some(&seen[..]));
    }
}

#[test]
fn vectors_are_hidden_with_their_classes() {
    let device = Device::flex().autodiff();
    let network = Fake::new(0.5, TRAITS, &device);
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let rows: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let examples = Examples { vectors: Some(rows.clone()), ..examples(&device) };
    let told = |keep_condition| {
        diffusion.loss(&network, examples.clone(), &draws(vec![batch(4, &device)], keep_condition));
        network.calls().remove(0).vectors.unwrap()
    };
    assert_eq!(told(Vec::new()), rows);
    let some = told(vec![0.3, 0.2, 0.0, 0.25]);
    assert_eq!((&some[..2], &some[6..]), (&rows[..2], &rows[6..]));
    assert!(some[2..6].iter().all(|value| value.is_nan()), "{some:?}");
    let without = Fake::new(0.5, Traits::default(), &device);
    diffusion.loss(&without, examples, &draws(vec![batch(4, &device)], Vec::new()));
    assert_eq!(without.calls()[0].vectors, None);
}

/// All noise candidates and the training pass get the same classes.
#[test]
fn candidates_of_noise_share_what_is_hidden() {
    let device = Device::flex().autodiff();
    let network = Fake::new(0.5, TRAITS, &device);
    let shared = SharedConfig { xm_candidates: 3, ..Default::default() };
    let diffusion = Diffusion::new(&DiffusionConfig { shared, ..Default::default() }).unwrap();
    let noise = (0..3).map(|k| batch(4, &device) * f64::from(k)).collect();
    diffusion.loss(&network, examples(&device), &draws(noise, vec![0.9, 0.1, 0.9, 0.9]));
    let calls = network.calls();
    assert_eq!(calls.len(), 4);
    assert!(calls.iter().all(|call| call.classes.as_deref() == Some(&[0, 3, 2, 1][..])));
}

/// As many as the network's probability implies, over many examples; each is decided by its own number.
#[test]
fn as_many_classes_are_hidden_as_asked_for() {
    let device = Device::flex().autodiff();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let draws = diffusion.draw(7, 0, 0, [4000, 1, 1, 1], &device);
    let hidden = draws.keep_condition.iter().filter(|draw| **draw < TRAITS.class_drop_prob).count();
    assert!((900..1100).contains(&hidden), "{hidden}");
    let later = diffusion.draw(7, 1000, 0, [3000, 1, 1, 1], &device);
    assert_eq!(draws.keep_condition[1000..], later.keep_condition);
}

/// A network without classes gets none, and one with classes may be trained without.
#[test]
fn classes_go_only_where_they_are_known() {
    let device = Device::flex().autodiff();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let draws = draws(vec![batch(4, &device)], vec![0.1; 4]);
    let without = Fake::new(0.5, Traits::default(), &device);
    diffusion.loss(&without, examples(&device), &draws);
    assert_eq!(without.calls()[0].classes, None);
    let with = Fake::new(0.5, TRAITS, &device);
    diffusion.loss(&with, batch(4, &device), &draws);
    assert_eq!(with.calls()[0].classes, None);
}

#[test]
fn measuring_hides_nothing_and_repeats_itself() {
    let device = Device::flex();
    // Any draw would be below this.
    let network = Fake::new(0.5, Traits { class_drop_prob: 1.0, ..TRAITS }, &device).eval();
    let diffusion = Diffusion::new(&DiffusionConfig::default()).unwrap();
    let measure = || held_out_loss(&network, &diffusion, [batch(4, &device)].into_iter(), 3, &device).unwrap();
    let first = measure();
    assert!(network.calls().iter().all(|call| call.classes.is_none()));
    assert_eq!(first, measure());
}
