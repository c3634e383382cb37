//! The result of an evaluation: numbers, how far they can be trusted, and everything needed to reproduce them. `--json` prints it, the table shows
//! it, and the page is made from it.

use serde::{Deserialize, Serialize};

use super::metric::better;
use crate::diffusion::GuidanceConfig;
use crate::sampler::SampleConfig;

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of the library that produced it.
    pub version: String,
    pub provenance: Provenance,
    pub measurements: Vec<Measurement>,
    /// Loss of the network, if a network was evaluated and it was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossByTime>,
    /// The variational bound, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_dim: Option<BitsPerDim>,
    /// The likelihood by the probability flow, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll: Option<NegativeLogLikelihood>,
    /// Distances of samples to training images, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Neighbours>,
    /// Total time.
    pub seconds: f64,
}

/// Where the numbers come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The images or the weights that were evaluated.
    pub generated: String,
    /// What they were compared with.
    pub real: String,
    /// SHA-256 of the real data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_digest: Option<String>,
    /// Seed of samples and of the metrics' own draws.
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<Extractor>,
}

/// How samples were drawn, and from which weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The sampler, for example `ddim`.
    pub sampler: String,
    /// Steps from noise to data.
    pub steps: usize,
    /// Evaluations of the network per sample, where both predictions of guidance count as one: `heun` and `dpmpp_2s` take two in each step but the
    /// last. Absent in results of versions that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<usize>,
    /// `ema` or `model`.
    pub weights: String,
    /// Number of optimizer steps of the weights.
    pub step: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// The average's length relative to the training, if it has a power-function profile ([`crate::post_hoc`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_sigma_rel: Option<f64>,
    /// All options of the sampler. This and the next are absent in results of versions that did not write them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<SampleConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<GuidanceConfig>,
    /// The weaker network that samples were guided away from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weak: Option<String>,
    /// The classifier that samples were guided by, and how strongly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<(String, f64)>,
    /// The classes of the samples in turn, and where their conditions and vectors come from, where they are not those of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<String>,
}

/// What computed features from images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extractor {
    pub name: String,
    pub dims: usize,
    /// SHA-256 of the weights.
    pub digest: String,
    /// How images were preprocessed.
    pub preprocessing: String,
}

/// The direction in which a number is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
    /// Neither: the number must be compared with another one.
    Neither,
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// `fid`, `kid`, `precision`, ...
    pub name: String,
    pub value: f64,
    /// Standard error, by resampling or by formula.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
    pub better: Better,
    /// Number of generated and real images that it is based on; none if it needs none, or only their statistics were given.
    pub n_generated: Option<usize>,
    pub n_real: Option<usize>,
    /// What a reader needs to know, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Which images a network was judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgedOn {
    /// Images of its data that it was not trained on.
    HeldOut,
    /// Training images, because fewer than two were held out: numbers on them do not distinguish learning from memorising.
    Training,
    /// Images given by the user; whether it was trained on them is unknown.
    Given,
}

impl JudgedOn {
    /// `held-out images`.
    pub fn images(self) -> &'static str {
        match self {
            Self::HeldOut => "held-out images",
            Self::Training => "training images",
            Self::Given => "images of the data given",
        }
    }

    /// `held-out loss`.
    pub fn loss(self) -> &'static str {
        match self {
            Self::HeldOut => "held-out loss",
            Self::Training => "loss on training images",
            Self::Given => "loss on the data given",
        }
    }
}

/// Loss by noise level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossByTime {
    /// Which images, and how many.
    pub on: JudgedOn,
    pub n: usize,
    /// Mean over all noise levels, and its standard error over images.
    pub mean: f64,
    pub standard_error: f64,
    /// Means over the four quarters of t, least noise first.
    pub quarters: [f64; 4],
}

/// The variational bound on the negative log-likelihood per value, in bits (Ho et al. 2020, arXiv:2006.11239, eq. 5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BitsPerDim {
    /// Which images, and how many.
    pub on: JudgedOn,
    pub n: usize,
    /// The sum of the three terms, and its standard error over images.
    pub total: f64,
    pub standard_error: f64,
    /// `KL(q(x_T | x_0) || p(x_T))`.
    pub prior: f64,
    /// The sum of `KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))` over t > 1.
    pub diffusion: f64,
    /// `-log p(x_0 | x_1)`, of 8-bit values.
    pub reconstruction: f64,
    /// The terms by t: (t, bits per dimension of that single step) at the evaluated t, ascending.
    pub terms: Vec<(usize, f64)>,
}

/// The negative log-likelihood per value, in bits, by the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, appendix D.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NegativeLogLikelihood {
    /// Which images, and how many.
    pub on: JudgedOn,
    pub n: usize,
    /// The sum of the three parts, and its standard error over images.
    pub total: f64,
    pub standard_error: f64,
    /// `-log2` of the normal density where the paths from the images end in noise.
    pub prior: f64,
    /// How much larger volumes are there, as a logarithm to base 2.
    pub volume: f64,
    /// The width of the interval for which an 8-bit value stands: `log2(255 / 2)`.
    pub interval: f64,
    /// Where the volume changes: (log-SNR, bits per dimension and unit of log-SNR), least noise first.
    pub terms: Vec<(f64, f64)>,
}

/// Distances of samples to training images, compared with those of held-out images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbours {
    pub n_generated: usize,
    pub n_training: usize,
    pub n_held_out: usize,
    /// Quantiles 0, .05, .25, .5, .75, .95 and 1 of the distance of samples to their nearest training image.
    pub generated_quantiles: [f64; 7],
    /// The same quantiles for held-out images.
    pub held_out_quantiles: [f64; 7],
    /// Share of samples that are nearer to the training set than all but the nearest 5 % of held-out images.
    pub share_below_held_out: f64,
    /// Mann-Whitney z of the distances (Meehan et al. 2020, arXiv:2004.05675); far below 0 means copying.
    pub z: f64,
    /// Number of samples identical to a training image.
    pub exact_copies: usize,
    /// The closest pairs, closest first.
    pub closest: Vec<Pair>,
}

impl LossByTime {
    /// The mean as a measurement.
    pub fn measurement(&self) -> Measurement {
        of_network("loss", self.mean, self.standard_error, self.n)
    }
}

impl BitsPerDim {
    /// The total as a measurement.
    pub fn measurement(&self) -> Measurement {
        of_network("bpd", self.total, self.standard_error, self.n)
    }
}

impl NegativeLogLikelihood {
    /// The total as a measurement.
    pub fn measurement(&self) -> Measurement {
        of_network("nll", self.total, self.standard_error, self.n)
    }
}

impl Neighbours {
    /// The z of the distances as a measurement.
    pub fn measurement(&self) -> Measurement {
        Measurement {
            name: "neighbours".to_string(),
            value: self.z,
            standard_error: None,
            better: better("neighbours"),
            n_generated: Some(self.n_generated),
            n_real: Some(self.n_training),
            notes: Vec::new(),
        }
    }
}

fn of_network(name: &str, value: f64, standard_error: f64, n: usize) -> Measurement {
    Measurement {
        name: name.to_string(),
        value,
        standard_error: Some(standard_error),
        better: better(name),
        n_generated: None,
        n_real: Some(n),
        notes: Vec::new(),
    }
}

/// A sample and the training image nearest to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The sample's number.
    pub generated: usize,
    /// The training image's position in the data.
    pub training: usize,
    /// Root mean square difference of values in [0, 1].
    pub distance: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_without_a_number_of_evaluations_are_read() {
        let old = r#"{"sampler": "heun", "steps": 50, "weights": "ema", "step": 20000, "ema_decay": 0.995}"#;
        let read: Sampling = serde_json::from_str(old).unwrap();
        assert_eq!((read.steps, read.evaluations), (50, None));
        let told = Sampling { evaluations: Some(99), ..read };
        assert_eq!(serde_json::from_value::<Sampling>(serde_json::to_value(&told).unwrap()).unwrap(), told);
    }
}
