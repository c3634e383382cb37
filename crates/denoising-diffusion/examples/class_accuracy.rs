//! Are samples of the class that they were asked for? A small classifier, built from the library's own layers, learns the classes from
//! real images, is tested on held-out ones, and then judges samples.
//!
//!     ddpm sample RUN -n 1000 --guidance 2 --out samples.npy
//!     cargo run --release -p denoising-diffusion --example class_accuracy -- IMAGES samples.npy
//!
//! IMAGES are the data that RUN was trained on, with classes. `ddpm sample` draws the classes in turn, so sample `i` is of class
//! `i mod number of classes`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::activation::{log_softmax, silu};
use burn::tensor::{Device, Tensor, TensorData};
use denoising_diffusion::data::npy::read_npy_f32;
use denoising_diffusion::data::{DataConfig, Dataset, Flip, Loader, LoaderConfig};
use denoising_diffusion::nn::params::host_values;
use denoising_diffusion::nn::{Conv2d, Eval, EvalMode, Init, Linear, Resample, Resampling, RmsNorm, ops};
use denoising_diffusion::train::{Adam, AdamConfig, GradNorm, NamedGradients};

const WIDTH: usize = 32;
const STEPS: u64 = 1500;
const BATCH: usize = 64;
const LR: f64 = 1e-3;

/// Two halvings, then the mean over all positions.
#[derive(Module, Debug)]
struct Classifier {
    first: Conv2d,
    halve1: Resample,
    norm1: RmsNorm,
    conv1: Conv2d,
    halve2: Resample,
    norm2: RmsNorm,
    conv2: Conv2d,
    last: Linear,
}

impl Classifier {
    fn new(channels: usize, classes: usize, init: &mut Init) -> Self {
        Self {
            first: Conv2d::new(init, channels, WIDTH, 3),
            halve1: Resample::new(init, WIDTH, 2 * WIDTH, Resampling::Halve),
            norm1: RmsNorm::new(init, 2 * WIDTH),
            conv1: Conv2d::new(init, 2 * WIDTH, 2 * WIDTH, 3),
            halve2: Resample::new(init, 2 * WIDTH, 4 * WIDTH, Resampling::Halve),
            norm2: RmsNorm::new(init, 4 * WIDTH),
            conv2: Conv2d::new(init, 4 * WIDTH, 4 * WIDTH, 3),
            last: Linear::new(init, 4 * WIDTH, classes),
        }
    }

    /// `[b, c, h, w]`, both sides multiples of 4, to the logarithm of each class's probability, `[b, classes]`.
    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = silu(self.first.forward(ops::to_nhwc(x)));
        let x = self.norm1.forward(self.halve1.forward(x));
        let x = silu(self.conv1.forward(x));
        let x = self.norm2.forward(self.halve2.forward(x));
        let x = silu(self.conv2.forward(x));
        let x = x.mean_dim(1).mean_dim(2).flatten::<2>(1, 3);
        log_softmax(self.last.forward(x), 1)
    }
}

fn images(values: Vec<f32>, [c, h, w]: [usize; 3], device: &Device) -> Tensor<4> {
    let b = values.len() / (c * h * w);
    Tensor::from_data(TensorData::new(values, [b, c, h, w]), device)
}

/// How many of the images the classifier gives their class.
fn right(model: &Eval<Classifier>, x: Tensor<4>, classes: &[u32]) -> usize {
    let most_likely = model.forward(x).argmax(1).float().flatten::<1>(0, 1);
    host_values(most_likely).into_iter().zip(classes).filter(|(got, class)| *got as u32 == **class).count()
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, samples] = &arguments[..] else { return Err("usage: class_accuracy IMAGES samples.npy".into()) };
    let device = Device::flex();
    let data = Arc::new(Dataset::open(&DataConfig { path: Some(data.into()), ..DataConfig::default() })?);
    let classes = data.num_classes();
    if classes == 0 {
        return Err("the images have no classes".into());
    }
    let shape = [data.shape().channels, data.shape().height, data.shape().width];
    let (train, held_out) = data.split_held_out(0.05, 0);

    let training = device.clone().autodiff();
    let mut model = Classifier::new(shape[0], classes, &mut Init::new(0, &training));
    let mut adam = Adam::new(AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 });
    let mut loader =
        Loader::new(train, LoaderConfig { batch_size: BATCH, seed: 0, flip: Flip::Off, augment: 0.0, workers: 0 })?;
    for step in 1..=STEPS {
        let batch = loader.next_batch()?;
        let labels: Vec<i64> = batch.classes.into_iter().flatten().map(i64::from).collect();
        let labels = Tensor::from_data(TensorData::new(labels, [BATCH, 1]), &training);
        let loss = model.forward(images(batch.images.data, shape, &training)).gather(1, labels).mean().neg();
        if step % 250 == 0 {
            println!("step {step} loss {:.3}", loss.clone().into_scalar::<f32>());
        }
        let gradients = NamedGradients::take(&model, &mut loss.backward());
        let GradNorm::Finite(norm) = gradients.norm() else { return Err("a gradient is not finite".into()) };
        let lr = LR * (1.0 - step as f64 / STEPS as f64).max(0.01);
        model = adam.step(model, gradients, norm, lr);
    }

    let model = model.eval();
    let (mut good, total) = (0, held_out.len());
    for batch in held_out.batches(250)? {
        let batch = batch?;
        good += right(&model, images(batch.images.data, shape, &device), &batch.classes.unwrap_or_default());
    }
    println!("held-out images: {good} of {total} right, {:.1} %", 100.0 * good as f64 / total as f64);

    let (got, values) = read_npy_f32(Path::new(samples))?;
    if got.len() != 4 || got[1..] != shape {
        return Err(
            format!("{samples} has shape {got:?}; expected [n, {}, {}, {}]", shape[0], shape[1], shape[2]).into()
        );
    }
    let (mut good, size) = (vec![0; classes], shape.iter().product::<usize>());
    for (i, sample) in values.chunks(size).enumerate() {
        let class = i % classes;
        good[class] += right(&model, images(sample.to_vec(), shape, &device), &[class as u32]);
    }
    for (class, good) in good.iter().enumerate() {
        println!("class {class}: {good} of {}", (got[0] + classes - 1 - class) / classes);
    }
    let all: usize = good.iter().sum();
    println!(
        "samples: {all} of {} have the class that was asked for, {:.1} %",
        got[0],
        100.0 * all as f64 / got[0] as f64
    );
    Ok(())
}
