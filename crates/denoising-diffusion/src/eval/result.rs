//! The result of an evaluation: numbers, how far they can be trusted, and all that is needed to get them again. What `--json` prints,
//! what the table shows and what the page is made of.

use serde::{Deserialize, Serialize};

use super::metric::better;

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of the library that made it.
    pub version: String,
    pub provenance: Provenance,
    pub measurements: Vec<Measurement>,
    /// Loss of the network, where a network was evaluated and that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossByTime>,
    /// The variational bound, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_dim: Option<BitsPerDim>,
    /// How near samples come to training images, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Neighbours>,
    /// Time that all of it took.
    pub seconds: f64,
}

/// Where numbers come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The images or the weights that were evaluated.
    pub generated: String,
    /// What they were compared with.
    pub real: String,
    /// SHA-256 of the real data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_digest: Option<String>,
    /// Of samples and of the metrics' own draws.
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extractor: Option<Extractor>,
}

/// How samples were drawn, and from which weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// `ddim`, `ddpm`.
    pub sampler: String,
    /// Steps from noise to data.
    pub steps: usize,
    /// Evaluations of the network per sample, one for both predictions of guidance: `heun` and `dpmpp_2s` take two in each step but the
    /// last. Absent in results of versions that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<usize>,
    /// `ema` or `model`.
    pub weights: String,
    /// Optimizer steps that the weights had.
    pub step: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// The average's length as a share of the training, where it has a power-function profile ([`crate::post_hoc`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_sigma_rel: Option<f64>,
}

/// What turned images into features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extractor {
    pub name: String,
    pub dims: usize,
    /// SHA-256 of the weights.
    pub digest: String,
    /// What was done to images before.
    pub preprocessing: String,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
    /// Neither: it is to be read against another number.
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
    /// Generated and real images that it rests on.
    pub n_generated: usize,
    pub n_real: usize,
    /// What a reader must know, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Which images a network was judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgedOn {
    /// Those of its data that it was not trained on.
    HeldOut,
    /// Those that it was trained on, for want of two others: numbers on them do not tell what was learned from what was learned by heart.
    Training,
    /// Those that a user gave; whether it was trained on them is not known.
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
    /// On which images, and on how many.
    pub on: JudgedOn,
    pub n: usize,
    /// Mean over all noise levels, and its standard error over images.
    pub mean: f64,
    pub standard_error: f64,
    /// Means over the four quarters of t, the least noise first.
    pub quarters: [f64; 4],
}

/// The variational bound on the negative log-likelihood per value, in bits (Ho et al. 2020, arXiv:2006.11239, eq. 5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BitsPerDim {
    /// Of which images, and of how many.
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
    /// The terms by t: (t, bits per dimension of that one step), where t was evaluated, ascending.
    pub terms: Vec<(usize, f64)>,
}

/// How near samples come to training images, measured against how near held-out images come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbours {
    pub n_generated: usize,
    pub n_training: usize,
    pub n_held_out: usize,
    /// At 0, .05, .25, .5, .75, .95 and 1: of the distance of samples to their nearest training image ...
    pub generated_quantiles: [f64; 7],
    /// ... and of held-out images to theirs.
    pub held_out_quantiles: [f64; 7],
    /// Share of samples nearer to the training set than the nearest 5 % of held-out images are.
    pub share_below_held_out: f64,
    /// Mann-Whitney z of the distances (Meehan et al. 2020, arXiv:2004.05675); far below 0 means copying.
    pub z: f64,
    /// Samples that are training images.
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

impl Neighbours {
    /// The z of the distances as a measurement.
    pub fn measurement(&self) -> Measurement {
        Measurement {
            name: "neighbours".to_string(),
            value: self.z,
            standard_error: None,
            better: better("neighbours"),
            n_generated: self.n_generated,
            n_real: self.n_training,
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
        n_generated: 0,
        n_real: n,
        notes: Vec::new(),
    }
}

/// A sample and the training image nearest to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The sample's number.
    pub generated: usize,
    /// The training image's place in the data.
    pub training: usize,
    /// Root mean squared difference of values in [0, 1].
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
