//! How well a classifier of noisy images predicts the classes of held-out images, by quarter of the noise levels.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::device::in_pool;
use crate::diffusion::{Diffusion, Draws};
use crate::models::Classifier;
use crate::nn::Eval;
use crate::nn::params::host_values;
use crate::noise::{Purpose, Stream, normal_batch};

/// Cross-entropy and accuracy. Each image counts once in every quarter of the noise levels used in training, cleanest quarter first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutAccuracy {
    /// Mean of `-ln p(y | x)`, in nats.
    pub loss: f64,
    /// Share of images whose class has the highest probability, in [0, 1].
    pub accuracy: f64,
    pub loss_by_quarter: [f64; 4],
    pub accuracy_by_quarter: [f64; 4],
    /// Number of images measured.
    pub images: usize,
}

/// Measures batches of images `[b, c, h, w]` and their classes. Level and noise depend only on (seed, image, quarter), so that two measurements
/// differ only by the classifier. `None` without any image, or if the loss is not finite.
pub fn held_out_accuracy(
    classifier: &Eval<Classifier>,
    diffusion: &Diffusion,
    batches: impl Iterator<Item = (Tensor<4>, Vec<u32>)>,
    seed: u64,
    device: &Device,
) -> Option<HeldOutAccuracy> {
    let (mut losses, mut right, mut images) = ([0.0; 4], [0.0; 4], 0_usize);
    for (data, classes) in batches {
        for quarter in 0..4 {
            let draws = draws(diffusion, seed, quarter, images as u64, data.dims(), device);
            let input = diffusion.noised_input(data.clone(), &draws);
            let logits = in_pool(|| classifier.forward(input.x, input.time));
            let log_p = host_values(log_softmax(logits, 1));
            let rows = log_p.chunks_exact(classifier.config().num_classes);
            for (row, &class) in rows.zip(&classes) {
                let own = row[class as usize];
                losses[quarter as usize] -= f64::from(own);
                right[quarter as usize] += f64::from(u8::from(row.iter().all(|&other| other <= own)));
            }
        }
        images += classes.len();
    }
    let mean = |sums: [f64; 4]| sums.map(|sum| sum / images as f64);
    let (loss_by_quarter, accuracy_by_quarter) = (mean(losses), mean(right));
    let [loss, accuracy] = [loss_by_quarter, accuracy_by_quarter].map(|of| of.iter().sum::<f64>() / 4.0);
    (images > 0 && loss.is_finite()).then_some(HeldOutAccuracy {
        loss,
        accuracy,
        loss_by_quarter,
        accuracy_by_quarter,
        images,
    })
}

/// For images numbered from `first`; uses parts `2 quarter` and `2 quarter + 1` of an image's stream.
fn draws(diffusion: &Diffusion, seed: u64, quarter: u32, first: u64, dims: [usize; 4], device: &Device) -> Draws {
    let share = |i: u64| {
        let within = Stream::new(seed, Purpose::Evaluation, i, 2 * quarter).uniform();
        (f64::from(quarter) + within) / 4.0
    };
    Draws {
        times: (first..first + dims[0] as u64).map(|i| diffusion.formulation().time(share(i))).collect(),
        noise: vec![normal_batch(seed, Purpose::Evaluation, first, 2 * quarter + 1, dims, device)],
        offset_noise: None,
        self_condition: false,
        keep_condition: Vec::new(),
    }
}
