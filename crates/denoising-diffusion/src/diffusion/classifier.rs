//! Classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233, section 4): the input that a classifier of noisy images gets under a
//! formulation, and the gradient that guides by it. Not here: the classifier itself, its training, and how the gradient changes an estimate
//! (`network_denoiser`).

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};

use super::denoiser::NoiseLevel;
use super::loss::per_example;
use super::prepared::{Prepared, Told};
use super::process::{Diffusion, Draws};
use crate::device::in_pool;
use crate::models::{Classifier, NetworkInput};
use crate::nn::Eval;

/// Number of noise levels at which two formulations are compared.
const COMPARED: u32 = 64;

impl Diffusion {
    /// Data `[b, c, h, w]` noised according to `draws`, as a network sees them: `c_in (alpha x_start + sigma eps)` and the time. If there are
    /// several noise candidates, the first is used.
    pub fn noised_input(&self, data: Tensor<4>, draws: &Draws) -> NetworkInput {
        let noise = self.with_offset(&draws.noise[0], draws);
        let batch = Prepared::new(self.normalize(data), noise, Told::default(), self.levels_at(&draws.times));
        self.noised_at(&batch, None).network_input(None)
    }

    /// Whether networks of the two formulations can guide each other: they [see the same input](Self::shows_the_same_as) and predict the same
    /// quantity.
    pub fn reads_the_same_as(&self, other: &Self) -> bool {
        let same_at = |u: f64| {
            let level = self.level(self.formulation.time(u));
            self.formulation.prediction().coefficients(&level) == other.formulation.prediction().coefficients(&level)
        };
        self.formulation.output().reads_the_same_as(other.formulation.output())
            && (0..COMPARED).all(|k| same_at((f64::from(k) + 0.5) / f64::from(COMPARED)))
            && self.shows_the_same_as(other)
    }

    /// Whether both formulations show networks the same noisy data at all noise levels that this one trains on: data on the same scale and, at equal
    /// signal-to-noise ratio, the same alpha, sigma, time and input scale. A classifier trained under `other` can then guide a network of this one,
    /// whatever each network predicts.
    pub fn shows_the_same_as(&self, other: &Self) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * (1.0 + a.abs());
        let same_at = |u: f64| {
            let level = self.level(self.formulation.time(u));
            let theirs = other.formulation.level_at_log_snr(level.log_snr());
            let c_in = |of: &Self, level: &NoiseLevel| of.formulation.prediction().coefficients(level).c_in;
            close(level.alpha, theirs.alpha)
                && close(level.sigma, theirs.sigma)
                && close(level.time, theirs.time)
                && close(c_in(self, &level), c_in(other, &theirs))
        };
        self.shared.auto_normalize == other.shared.auto_normalize
            && (0..COMPARED).all(|k| same_at((f64::from(k) + 0.5) / f64::from(COMPARED)))
    }
}

/// A classifier of noisy images that guides a network of a formulation.
#[derive(Clone, Debug)]
pub struct ClassifierGuidance {
    pub classifier: Eval<Classifier>,
    pub diffusion: Diffusion,
    /// s in the paper: 1 is Bayes' rule; larger values make samples more typical of their class and less varied.
    pub scale: f64,
}

impl ClassifierGuidance {
    /// `ln p(y | x)` of every class y, `[b, num_classes]`, for noisy images `[b, c, h, w]` at one level.
    pub fn log_probabilities(&self, x: Tensor<4>, level: NoiseLevel) -> Tensor<2> {
        let time = per_example(&vec![level.time; x.dims()[0]], &x.device());
        let c_in = self.diffusion.formulation.prediction().coefficients(&level).c_in;
        let x = if c_in == 1.0 { x } else { x * c_in };
        log_softmax(self.classifier.forward(x, time), 1)
    }

    /// `scale grad_x ln p(y | x)`, `[b, c, h, w]`, for noisy images at one level and the class wanted for each. A class that the classifier does not
    /// have ("no class") gives a zero gradient. Meant for [`Generator::classifier`](crate::generate::Generator):
    ///
    /// ```ignore
    /// let gradient = |x, level, classes: &[u32]| guidance.gradient(x, level, classes);
    /// let generator = Generator { classifier: Some(&gradient), ..Generator::new(&model, &diffusion, &device) };
    /// ```
    pub fn gradient(&self, x: Tensor<4>, level: NoiseLevel, classes: &[u32]) -> Tensor<4> {
        let (b, known) = (x.dims()[0], self.classifier.config().num_classes);
        let wanted = classes.iter().flat_map(|&class| (0..known).map(move |of| f32::from(class as usize == of)));
        let wanted = Tensor::from_data(TensorData::new(wanted.collect::<Vec<f32>>(), [b, known]), &x.device());
        let x = x.autodiff().require_grad();
        let gradient = in_pool(|| {
            let log_p = self.log_probabilities(x.clone(), level) * wanted;
            x.grad(&log_p.sum().backward())
        });
        match gradient {
            Some(gradient) => gradient * self.scale,
            None => x.inner().zeros_like(),
        }
    }
}
