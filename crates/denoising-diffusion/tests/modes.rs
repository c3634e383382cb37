//! Train and eval behaviour, with and without gradients; and that nothing which evaluates can disturb training.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use denoising_diffusion::diffusion::{Diffusion, GaussianConfig, ScheduleConfig};
use denoising_diffusion::eval::held_out::held_out_loss;
use denoising_diffusion::generate::{BatchStep, GenerateError, Generator, Request};
use denoising_diffusion::models::{Network, NetworkInput};
use denoising_diffusion::nn::params::{host_values, to_state_dict};
use denoising_diffusion::nn::{Eval, EvalMode, TrainNoGrad};
use denoising_diffusion::sampler::SampleConfig;
use denoising_diffusion::train::{EmaConfig, NamedGradients, TrainConfig, Trainer};
use denoising_diffusion::weights::StateDict;

/// Dropout is the one thing that draws from Burn's process-global generator; tests that compare draws take turns.
static GENERATOR: Mutex<()> = Mutex::new(());

#[derive(Module, Debug)]
struct Net {
    first: Conv2d,
    norm: BatchNorm,
    dropout: Dropout,
    last: Conv2d,
}

impl Net {
    fn new(device: &Device) -> Self {
        device.seed(7);
        let conv = |from, to| Conv2dConfig::new([from, to], [3, 3]).with_padding(PaddingConfig2d::Same).init(device);
        Self {
            first: conv(1, 8),
            norm: BatchNormConfig::new(8).init(device),
            dropout: DropoutConfig::new(0.5).init(),
            last: conv(8, 1),
        }
    }
}

impl Network for Net {
    fn forward(&self, input: NetworkInput) -> Tensor<4> {
        self.last.forward(self.dropout.forward(self.norm.forward(self.first.forward(input.x))))
    }

    fn channels(&self) -> usize {
        1
    }
}

fn images(device: &Device, value: f32) -> Tensor<4> {
    let values: Vec<f32> = (0..4 * 64).map(|i| ((i as f32 * value).sin() + 1.0) / 2.0).collect();
    Tensor::<1>::from_floats(values.as_slice(), device).reshape([4, 1, 8, 8])
}

fn input(x: Tensor<4>) -> NetworkInput {
    let time = Tensor::zeros([x.dims()[0]], &x.device());
    NetworkInput::new(x, time)
}

fn bits(state: &StateDict) -> Vec<(String, Vec<u32>)> {
    state.iter().map(|(name, tensor)| (name.to_string(), tensor.values.iter().map(|v| v.to_bits()).collect())).collect()
}

fn trainer(steps: usize) -> Trainer<Net> {
    let device = Device::flex();
    let config = TrainConfig { batch_size: 4, lr: 1e-2, ..TrainConfig::default() };
    let schedule = ScheduleConfig { timesteps: 20, ..Default::default() };
    let diffusion = Diffusion::new(&GaussianConfig { schedule, ..Default::default() }.into()).unwrap();
    let model = Net::new(&device.clone().autodiff());
    let mut trainer = Trainer::new(model, diffusion, config, EmaConfig::default(), &device).unwrap();
    for step in 0..steps {
        trainer.step(vec![images(&device, 0.1 + step as f32)]);
    }
    trainer
}

fn sample(
    model: &Eval<Net>,
    diffusion: &Diffusion,
    on_step: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<Vec<f32>, GenerateError> {
    let sample = SampleConfig { sampling_timesteps: Some(5), ..SampleConfig::default() };
    let request = Request::new(&sample, 3, 2, [1, 8, 8]);
    let mut progress = |_: &BatchStep<'_>| on_step();
    Generator::new(model, diffusion, &Device::flex())
        .generate_watched(&request, &mut progress)
        .map(|images| images.data)
}

fn go_on() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// | | no gradient | gradient |
/// |---|---|---|
/// | train behaviour | first cell | second |
/// | eval behaviour | third | fourth |
#[test]
fn all_four_modes() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let device = Device::flex();
    let train_device = device.clone().autodiff();
    let model = Net::new(&train_device);
    let drops = |a: &Tensor<4>, b: &Tensor<4>| host_values(a.clone()) != host_values(b.clone());

    // Train behaviour without gradients: dropout draws anew, no parameter is recorded.
    let frozen = TrainNoGrad::of(&model);
    let x = || images(&train_device, 0.3);
    let (a, b) = (frozen.forward(input(x())), frozen.forward(input(x())));
    assert!(drops(&a, &b), "dropout draws");
    assert!(!a.is_tracked(), "nothing is recorded");

    // Train behaviour with gradients.
    let (a, b) = (model.forward(input(x())), model.forward(input(x())));
    assert!(drops(&a, &b) && a.is_tracked());
    let gradients = NamedGradients::take(&model, &mut a.sum().backward());
    assert_eq!(gradients.iter().count(), 6);

    // Eval behaviour without gradients: the same every time.
    let eval = model.eval();
    let (a, b) = (eval.forward(input(images(&device, 0.3))), eval.forward(input(images(&device, 0.3))));
    assert!(!drops(&a, &b) && !a.is_tracked());

    // Eval behaviour with gradients of the input: dropout stays off although a tape is recorded.
    let x = images(&device, 0.3).autodiff().require_grad();
    let y = eval.forward(input(x.clone()));
    assert_eq!(host_values(y.clone()), host_values(a));
    let gradients = y.sum().backward();
    assert!(host_values(x.grad(&gradients).unwrap()).iter().any(|v| *v != 0.0));
}

/// Running statistics move in train behaviour and only there; a copy made by `eval` does not follow them.
#[test]
fn statistics_move_in_training_only() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let device = Device::flex().autodiff();
    let model = Net::new(&device);
    let eval = model.eval();
    let before = bits(&to_state_dict(&*eval));
    eval.forward(input(images(&Device::flex(), 0.2)));
    eval.forward(input(images(&Device::flex(), 0.2).autodiff().require_grad()));
    assert_eq!(bits(&to_state_dict(&model)), before);
    model.forward(input(images(&device, 0.2)));
    model.forward(input(images(&device, 0.4)));
    assert_ne!(bits(&to_state_dict(&model)), before);
    assert_eq!(bits(&to_state_dict(&*eval)), before);
}

/// The same samples from a network fresh from training, from its copy, and from a copy of the copy.
#[test]
fn samples_do_not_depend_on_the_state_it_was_in() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let trainer = trainer(3);
    let draw = |eval: &Eval<Net>| sample(eval, trainer.diffusion(), &mut go_on).unwrap();
    let first = draw(&trainer.model().eval());
    trainer.model().clone().train();
    assert_eq!(draw(&trainer.model().eval()), first);
    assert_eq!(draw(&trainer.model().clone().freeze().eval()), first);
    assert_eq!(draw(&trainer.model().eval().eval()), first);
}

/// After sampling, measuring, a panic in a callback and an early return: weights, statistics and optimizer are bit-unchanged, and
/// training goes on exactly as without them.
#[test]
fn evaluation_never_disturbs_training() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let device = Device::flex();
    let (mut disturbed, mut alone) = (trainer(3), trainer(3));
    let before = disturbed.state();

    let eval = disturbed.ema().eval();
    sample(&eval, disturbed.diffusion(), &mut go_on).unwrap();
    held_out_loss(&eval, disturbed.diffusion(), [images(&device, 0.7)].into_iter(), 0, &device).unwrap();
    let interrupted = sample(&disturbed.model().eval(), disturbed.diffusion(), &mut || ControlFlow::Break(()));
    assert!(matches!(interrupted, Err(GenerateError::Interrupted(_))));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        sample(&disturbed.model().eval(), disturbed.diffusion(), &mut || panic!("a callback's own"))
    }));
    assert!(panicked.is_err());

    let after = disturbed.state();
    for (before, after) in [(&before.model, &after.model), (&before.ema, &after.ema), (&before.adam, &after.adam)] {
        assert_eq!(bits(before), bits(after));
    }
    let step = |trainer: &mut Trainer<Net>| trainer.step(vec![images(&device, 0.9)]);
    assert_eq!(step(&mut disturbed), step(&mut alone));
    assert_eq!(bits(&disturbed.state().model), bits(&alone.state().model));
}

/// Training changes the network and, later, the average; what was copied before stays.
#[test]
fn average_and_network_share_no_storage() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let mut trainer = trainer(1); // the average was copied in this step
    let (online, average) = (to_state_dict(trainer.model()), trainer.ema().to_state_dict());
    assert_eq!(bits(&online), bits(&average));
    let pointers = |net: &Net| {
        let plain = |t: Tensor<4>| if t.is_autodiff() { t.inner() } else { t };
        [&net.first, &net.last].map(|conv| {
            let tensor = plain(conv.weight.val()).try_into_primitive::<burn::backend::Flex>().unwrap();
            tensor.storage::<f32>().as_ptr() as usize
        })
    };
    let (network, averaged) = (pointers(trainer.model()), pointers(&trainer.ema().eval()));
    assert!(network.iter().all(|p| !averaged.contains(p)), "{network:?} {averaged:?}");

    trainer.step(vec![images(&Device::flex(), 0.5)]);
    assert_ne!(bits(&to_state_dict(trainer.model())), bits(&online));
    assert_eq!(bits(&trainer.ema().to_state_dict()), bits(&average), "no update is due at the second call");
}

/// A batch that is not finite changes nothing, running statistics included.
#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let device = Device::flex();
    let mut trainer = trainer(2);
    let before = trainer.state();
    let spoiled = images(&device, 0.4).slice_fill([0..1, 0..1, 2..3, 2..3], f32::INFINITY);
    let report = trainer.step(vec![spoiled]);
    assert_eq!(report.skipped.as_ref().unwrap().tensor, "images");
    let after = trainer.state();
    assert_eq!((after.step, after.skipped, after.adam_steps), (3, 1, before.adam_steps));
    for (before, after) in [(&before.model, &after.model), (&before.ema, &after.ema), (&before.adam, &after.adam)] {
        assert_eq!(bits(before), bits(after));
    }
    assert!(trainer.check_progress(&report).is_ok());

    // The statistics that the spoiled batch left pending must not come back with the next one.
    assert!(trainer.step(vec![images(&device, 0.6)]).skipped.is_none());
    assert!(trainer.state().model.non_finite().is_empty());
}

#[test]
fn ten_steps_in_a_row_that_are_not_finite_are_an_error() {
    let _turn = GENERATOR.lock().unwrap_or_else(|e| e.into_inner());
    let mut trainer = trainer(1);
    let spoiled = || images(&Device::flex(), 0.4) * f32::NAN;
    for _ in 0..9 {
        let report = trainer.step(vec![spoiled()]);
        assert!(trainer.check_progress(&report).is_ok());
    }
    let report = trainer.step(vec![spoiled()]);
    let error = trainer.check_progress(&report).unwrap_err().to_string();
    assert!(error.contains("10 steps in a row") && error.contains("`images`"), "{error}");
}
