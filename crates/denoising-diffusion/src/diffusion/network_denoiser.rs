//! A trained network as a [`Denoiser`]: its output is read as the formulation defines it, conditioned, guided, and kept within the data's range.

use burn::tensor::{Device, Int, Tensor};

use super::denoiser::{Denoiser, Estimate, NoiseLevel};
use super::formulation::Output;
use super::guidance::GuidanceConfig;
use super::loss::{classes_tensor, per_example};
use super::prediction::Coefficients;
use super::process::Diffusion;
use super::spacing::NoiseLevels;
use super::weighted_objective;
use crate::device::in_pool;
use crate::models::{Calls, Network, NetworkInput};
use crate::nn::Vectors;

/// Gives `scale grad_x ln p(y | x)` for x at a level: a classifier's push towards its class.
pub type Push<'a> = Box<dyn Fn(Tensor<4>, NoiseLevel) -> Tensor<4> + 'a>;

/// What guidance guides towards: the inputs that a network can also do without.
#[derive(Clone)]
struct Labels {
    classes: Option<Tensor<1, Int>>,
    vectors: Option<Vectors>,
}

impl Labels {
    fn are_absent(&self) -> bool {
        self.classes.is_none() && self.vectors.is_none()
    }

    /// Labels of the same kinds, but unknown.
    fn unknown<M: Network>(&self, model: &M, b: usize, device: &Device) -> Self {
        let no_class = |_: &Tensor<1, Int>| Tensor::full([b], model.num_classes() as i64, device);
        Self {
            classes: self.classes.as_ref().map(no_class),
            vectors: self.vectors.as_ref().map(|_| Vectors::unknown(b, model.vector_dim(), device)),
        }
    }

    /// These labels followed by others of the same kinds.
    fn then(self, other: Self) -> Self {
        Self {
            classes: self.classes.zip(other.classes).map(|(one, other)| Tensor::cat(vec![one, other], 0)),
            vectors: self.vectors.zip(other.vectors).map(|(one, other)| one.then(other)),
        }
    }
}

/// The outputs that guidance needs for a batch at a level: of the network itself, of what it is guided away from, or of both.
enum Outputs<T> {
    Strong(T),
    Weak(T),
    Both { strong: T, weak: T },
}

impl<T> Outputs<T> {
    fn map<U>(self, of: impl Fn(T) -> U) -> Outputs<U> {
        match self {
            Self::Strong(strong) => Outputs::Strong(of(strong)),
            Self::Weak(weak) => Outputs::Weak(of(weak)),
            Self::Both { strong, weak } => Outputs::Both { strong: of(strong), weak: of(weak) },
        }
    }

    /// The strong output if there is one, else the weak one.
    fn first(&self) -> &T {
        match self {
            Self::Strong(one) | Self::Weak(one) | Self::Both { strong: one, .. } => one,
        }
    }

    /// The output that the network is guided away from.
    fn weak(&self) -> Option<&T> {
        match self {
            Self::Strong(_) => None,
            Self::Weak(weak) | Self::Both { weak, .. } => Some(weak),
        }
    }
}

/// A network under a formulation, ready to denoise.
pub struct NetworkDenoiser<'a, M> {
    diffusion: Diffusion,
    model: Calls<'a, M>,
    guidance: GuidanceConfig,
    classes: Option<Vec<u32>>,
    condition: Option<Tensor<4>>,
    vectors: Option<Vec<f32>>,
    weak: Option<Calls<'a, M>>,
    push: Option<Push<'a>>,
}

impl<'a, M: Network> NetworkDenoiser<'a, M> {
    pub(super) fn new(diffusion: Diffusion, model: Calls<'a, M>) -> Self {
        Self {
            diffusion,
            model,
            guidance: GuidanceConfig::default(),
            classes: None,
            condition: None,
            vectors: None,
            weak: None,
            push: None,
        }
    }

    /// With options of guidance, which must be valid.
    pub fn guided(self, guidance: &GuidanceConfig) -> Self {
        Self { guidance: guidance.clone(), ..self }
    }

    /// Conditioned on the class of each example of the batch.
    pub fn with_classes(self, classes: Vec<u32>) -> Self {
        Self { classes: Some(classes), ..self }
    }

    /// Conditioned on an image per example, `[b, condition channels, h, w]` in the data's range.
    pub fn with_condition(self, condition: Tensor<4>) -> Self {
        let condition = Some(self.diffusion.normalize(condition));
        Self { condition, ..self }
    }

    /// Conditioned on a vector per example, `[b, vector_dim]` in row-major order.
    pub fn with_vectors(self, vectors: Vec<f32>) -> Self {
        Self { vectors: Some(vectors), ..self }
    }

    /// Guided away from a weaker network in place of the unconditional prediction (Karras et al. 2024, arXiv:2406.02507).
    pub fn with_weak(self, weak: impl Into<Calls<'a, M>>) -> Self {
        Self { weak: Some(weak.into()), ..self }
    }

    /// Guided by a classifier (Dhariwal and Nichol 2021, arXiv:2105.05233, algorithm 2): eps becomes `eps - sigma push`, which moves x_start by
    /// `sigma^2 / alpha push`, in every sampler.
    pub fn with_push(self, push: Push<'a>) -> Self {
        Self { push: Some(push), ..self }
    }

    /// The formulation, with the schedule that the network has learned.
    pub fn diffusion(&self) -> &Diffusion {
        &self.diffusion
    }

    /// `steps` noise levels, then clean data.
    pub fn levels(&self, spacing: NoiseLevels, steps: usize, karras_rho: f64) -> Vec<NoiseLevel> {
        spacing.of(self.diffusion.formulation(), steps, karras_rho)
    }

    /// The outputs that guidance at this scale needs.
    fn outputs(
        &self,
        x: Tensor<4>,
        level: NoiseLevel,
        x_self_cond: Option<Tensor<4>>,
        scale: f64,
    ) -> Outputs<Tensor<4>> {
        let (b, device) = (x.dims()[0], x.device());
        let condition = self.condition(b);
        let labels = |calls: &Calls<'a, M>| self.labels(calls.network(), b, &device);
        let run = |calls: &Calls<'a, M>,
                   x: Tensor<4>,
                   x_self_cond: Option<Tensor<4>>,
                   labels: Labels,
                   condition: Option<Tensor<4>>| {
            let Labels { classes, vectors } = labels;
            let time = per_example::<1>(&vec![level.time; x.dims()[0]], &device);
            let none_yet = || x.zeros_like();
            let x_self_cond = calls.network().self_condition().then(|| x_self_cond.unwrap_or_else(none_yet));
            let condition = condition.filter(|_| calls.network().condition_channels() > 0);
            let input = NetworkInput { x_self_cond, classes, condition, vectors, ..NetworkInput::new(x, time) };
            in_pool(|| calls.predict(input))
        };
        let one = |calls, labels| run(calls, x.clone(), x_self_cond.clone(), labels, condition.clone());
        if scale == 1.0 && !self.guidance.renoises_at(&level) {
            return Outputs::Strong(one(&self.model, labels(&self.model)));
        }
        if let Some(weak) = &self.weak {
            if scale == 0.0 {
                return Outputs::Weak(one(weak, labels(weak)));
            }
            return Outputs::Both { strong: one(&self.model, labels(&self.model)), weak: one(weak, labels(weak)) };
        }
        let labels = labels(&self.model);
        if labels.are_absent() {
            return Outputs::Strong(one(&self.model, labels));
        }
        let unknown = labels.unknown::<M>(self.model.network(), b, &device);
        if scale == 0.0 {
            return Outputs::Weak(one(&self.model, unknown));
        }
        // Both halves in one batch.
        let twice = |x: Tensor<4>| Tensor::cat(vec![x.clone(), x], 0);
        let both = run(
            &self.model,
            twice(x.clone()),
            x_self_cond.clone().map(twice),
            labels.then(unknown),
            condition.clone().map(twice),
        );
        Outputs::Both { strong: both.clone().narrow(0, 0, b), weak: both.narrow(0, b, b) }
    }

    /// Classes and vectors of the first `b` examples, if the network takes them: this one, or the weaker one. What the network itself does not take is
    /// not meant for the weaker one: the classes are the classifier's.
    fn labels(&self, model: &M, b: usize, device: &Device) -> Labels {
        let own = self.model.network();
        let classes = self.classes.as_deref().filter(|_| own.num_classes() > 0);
        let classes = classes.map(|classes| &classes[..b.min(classes.len())]);
        let dim = model.vector_dim();
        let vectors = self.vectors.as_deref().filter(|_| dim > 0 && own.vector_dim() > 0);
        let vectors = vectors.map(|rows| &rows[..(b * dim).min(rows.len())]);
        Labels {
            classes: classes_tensor(model.num_classes(), classes, device),
            vectors: vectors.map(|rows| Vectors::of_rows(rows.to_vec(), dim, |_| true, device)),
        }
    }

    /// The condition of the first `b` examples.
    fn condition(&self, b: usize) -> Option<Tensor<4>> {
        let condition = self.condition.as_ref()?;
        Some(condition.clone().narrow(0, 0, b.min(condition.dims()[0])))
    }

    /// The prediction in an output: the part that guidance combines.
    fn prediction(&self, output: Tensor<4>, x: &Tensor<4>, at: Coefficients) -> Tensor<4> {
        let c = x.dims()[1];
        match self.diffusion.formulation.output() {
            Output::Prediction => output,
            Output::WithVariance(_) => output.narrow(1, 0, c),
            // Mixing both estimates gives clean data.
            Output::Weighted(_) => {
                let filled = |value: f64| per_example(&vec![value; x.dims()[0]], &x.device());
                weighted_objective::x_start(output, x.clone(), filled(at.c_skip), filled(at.c_out))
            }
        }
    }

    /// The clean data that a prediction gives.
    fn read(&self, prediction: Tensor<4>, x: &Tensor<4>, at: Coefficients) -> Tensor<4> {
        match self.diffusion.formulation.output() {
            Output::Weighted(_) => prediction,
            _ => x.clone() * at.c_skip + prediction * at.c_out,
        }
    }

    /// Position of the learned variance between its bounds.
    fn variance(&self, output: &Tensor<4>, level: NoiseLevel, c: usize) -> Option<Tensor<4>> {
        let Output::WithVariance(variance) = self.diffusion.formulation.output() else { return None };
        let times = vec![level.time.round().max(0.0); output.dims()[0]];
        Some(variance.place(output.clone().narrow(1, c, c), self.diffusion.tables()?, &times))
    }

    fn limit(&self, x_start: Tensor<4>) -> Tensor<4> {
        if self.diffusion.shared.auto_normalize { self.guidance.limit(x_start) } else { x_start }
    }
}

impl<M: Network> Denoiser<4> for NetworkDenoiser<'_, M> {
    fn denoise(&self, x: Tensor<4>, level: NoiseLevel, x_self_cond: Option<Tensor<4>>) -> Estimate<4> {
        let at = self.diffusion.formulation.prediction().coefficients(&level);
        let scale = self.guidance.scale_at(&level);
        let input = if at.c_in == 1.0 { x.clone() } else { x.clone() * at.c_in };
        let outputs = self.outputs(input, level, x_self_cond, scale);
        let variance = self.variance(outputs.first(), level, x.dims()[1]);
        let predictions = outputs.map(|output| self.prediction(output, &x, at));
        let renoise = predictions.weak().cloned().filter(|_| self.guidance.cfg_plus_plus);
        let renoise = renoise.map(|weak| self.limit(self.read(weak, &x, at)));
        let prediction = match predictions {
            Outputs::Strong(one) | Outputs::Weak(one) => one,
            Outputs::Both { strong, weak } => self.guidance.combine(strong, weak, scale, |of| self.read(of, &x, at)),
        };
        let mut x_start = self.read(prediction, &x, at);
        if let Some(push) = self.push.as_ref().filter(|_| !level.is_pure_noise()) {
            x_start = x_start + push(x, level) * (level.sigma.powi(2) / level.alpha);
        }
        Estimate { x_start: self.limit(x_start), renoise, variance }
    }

    fn level_at_log_snr(&self, log_snr: f64) -> NoiseLevel {
        self.diffusion.formulation.level_at_log_snr(log_snr)
    }
}
