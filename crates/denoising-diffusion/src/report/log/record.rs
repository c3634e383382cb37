//! The records of a log, and how numbers that are not finite are written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A line of the log: an object whose `kind` names the variant in snake case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The run begins.
    Start(StartRecord),
    /// A training step.
    Step(StepRecord),
    /// The loss on held-out data.
    HeldOut(HeldOutRecord),
    /// A step that changed nothing, because something was not finite.
    Skipped(SkipRecord),
    /// Samples were drawn.
    Samples(SamplesRecord),
    /// Samples drawn with the averaged weights were measured.
    Evaluation(EvaluationRecord),
    /// A checkpoint is about to be written.
    Checkpoint(CheckpointRecord),
}

/// The beginning of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Always 0.
    pub step: u64,
    /// Version of this library.
    pub version: String,
    /// Seed of all random streams.
    pub seed: u64,
    /// Number of trained parameters of the network.
    pub parameters: u64,
    /// Number of training images.
    pub images: u64,
    /// The device, in words.
    pub device: String,
}

/// A training step that changed the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of steps so far, including this one.
    pub step: u64,
    /// Training loss, averaged over the step's images.
    #[serde(with = "number")]
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    #[serde(with = "number")]
    pub grad_norm: f64,
    /// Learning rate of this step.
    #[serde(with = "number")]
    pub lr: f64,
    /// Decay of the moving average in this step.
    #[serde(with = "number")]
    pub ema_decay: f64,
    /// Images trained on per second of wall-clock time; differs between runs.
    #[serde(with = "number")]
    pub images_per_s: f64,
}

/// The loss on held-out data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutRecord {
    /// Steps done.
    pub step: u64,
    /// Mean loss.
    #[serde(with = "number")]
    pub held_out_loss: f64,
    /// Mean loss for t in each quarter of the noise levels, least noise first.
    #[serde(with = "number::quarters")]
    pub held_out_loss_by_quarter: [f64; 4],
}

/// A step that changed neither weights nor optimizer nor average.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkipRecord {
    /// Number of the skipped step.
    pub step: u64,
    /// Number of steps skipped in this run so far, including this one.
    pub skipped: u64,
    /// Name of the first tensor with a value that is not finite.
    pub tensor: String,
    /// What was not finite.
    pub reason: SkipReason,
}

/// What was not finite in a skipped step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The loss.
    NonFiniteLoss,
    /// A gradient, while the loss was finite.
    NonFiniteGradient,
}

/// Samples drawn during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplesRecord {
    /// Steps done.
    pub step: u64,
    /// Number of images.
    pub count: u64,
    /// Path of the grid, relative to the run folder.
    pub file: String,
    /// Mean and standard deviation of each channel of the samples, in [0, 1]. If they drift away from those of the data, colours do, too.
    #[serde(default)]
    pub mean: Vec<f64>,
    #[serde(default)]
    pub deviation: Vec<f64>,
    /// The same of the training images.
    #[serde(default)]
    pub data_mean: Vec<f64>,
    #[serde(default)]
    pub data_deviation: Vec<f64>,
}

/// Measurements of the averaged weights and their samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Steps done.
    pub step: u64,
    /// Number of samples drawn for it.
    pub samples: u64,
    /// Number of samples in the configuration.
    #[serde(default)]
    pub asked: u64,
    /// The configuration's time budget, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_s: Option<f64>,
    /// Measured values by name.
    #[serde(with = "number::by_name")]
    pub values: BTreeMap<String, f64>,
    /// Standard errors, of the values that have one.
    #[serde(with = "number::by_name")]
    pub standard_errors: BTreeMap<String, f64>,
    /// Time taken; differs between runs.
    pub seconds: f64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Steps done.
    pub step: u64,
    /// Path of its folder, relative to the run folder.
    pub folder: String,
}

/// `#[serde(with = "number")]`: an `f64` as a JSON number, or as `"NaN"`, `"inf"` or `"-inf"`.
pub mod number {
    use std::collections::BTreeMap;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Number {
        Finite(f64),
        Named(String),
    }

    impl Number {
        fn write(value: f64) -> Self {
            if value.is_finite() { Self::Finite(value) } else { Self::Named(value.to_string()) }
        }

        fn read<E: Error>(self) -> Result<f64, E> {
            match self {
                Self::Finite(value) => Ok(value),
                Self::Named(name) => super::named_number(&name).ok_or_else(|| {
                    E::custom(format!("expected a number, \"NaN\", \"inf\" or \"-inf\", got \"{name}\""))
                }),
            }
        }
    }

    /// For serde.
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Number::write(*value).serialize(serializer)
    }

    /// For serde.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Number::deserialize(deserializer)?.read()
    }

    /// `#[serde(with = "number::quarters")]`: the same for `[f64; 4]`.
    pub mod quarters {
        use super::{Deserialize, Deserializer, Number, Serialize, Serializer};

        /// For serde.
        pub fn serialize<S: Serializer>(values: &[f64; 4], serializer: S) -> Result<S::Ok, S::Error> {
            values.map(Number::write).serialize(serializer)
        }

        /// For serde.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 4], D::Error> {
            let [a, b, c, d] = <[Number; 4]>::deserialize(deserializer)?;
            Ok([a.read()?, b.read()?, c.read()?, d.read()?])
        }
    }

    /// `#[serde(with = "number::by_name")]`: the same for named numbers.
    pub mod by_name {
        use super::{BTreeMap, Deserialize, Deserializer, Number, Serialize, Serializer};

        /// For serde.
        pub fn serialize<S: Serializer>(values: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
            let named: BTreeMap<&str, Number> = values.iter().map(|(k, v)| (k.as_str(), Number::write(*v))).collect();
            named.serialize(serializer)
        }

        /// For serde.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
            let named = BTreeMap::<String, Number>::deserialize(deserializer)?;
            named.into_iter().map(|(name, number)| Ok((name, number.read()?))).collect()
        }
    }
}

pub(super) fn named_number(name: &str) -> Option<f64> {
    match name {
        "NaN" => Some(f64::NAN),
        "inf" => Some(f64::INFINITY),
        "-inf" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn numbers_that_are_not_finite_come_back() {
        let record = HeldOutRecord {
            step: 3,
            held_out_loss: f64::NAN,
            held_out_loss_by_quarter: [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1.5],
        };
        let value = serde_json::to_value(Record::HeldOut(record)).unwrap();
        assert_eq!(value["held_out_loss"], "NaN");
        assert_eq!(value["held_out_loss_by_quarter"], json!(["inf", "-inf", "NaN", 1.5]));
        let Record::HeldOut(back) = serde_json::from_value(value).unwrap() else { panic!("another kind") };
        assert!(back.held_out_loss.is_nan() && back.held_out_loss_by_quarter[2].is_nan());
        assert_eq!(back.held_out_loss_by_quarter[..2], [f64::INFINITY, f64::NEG_INFINITY]);
        let wrong = json!({"step": 1, "held_out_loss": "much", "held_out_loss_by_quarter": [0, 0, 0, 0]});
        assert!(serde_json::from_value::<HeldOutRecord>(wrong).is_err());

        let values = BTreeMap::from([("fid".to_string(), f64::NAN), ("swd".to_string(), 0.5)]);
        let standard_errors = BTreeMap::new();
        let evaluation =
            EvaluationRecord { step: 3, samples: 8, asked: 8, budget_s: None, values, standard_errors, seconds: 1.0 };
        let value = serde_json::to_value(Record::Evaluation(evaluation)).unwrap();
        assert_eq!(value["values"], json!({"fid": "NaN", "swd": 0.5}));
        let Record::Evaluation(back) = serde_json::from_value(value).unwrap() else { panic!("another kind") };
        assert!(back.values["fid"].is_nan() && back.values["swd"] == 0.5);
    }

    proptest! {
        #[test]
        fn finite_numbers_come_back_bit_for_bit(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let record =
                StepRecord { step: 1, loss: value, grad_norm: 1.0, lr: 8e-5, ema_decay: 0.0, images_per_s: 1.0 };
            let line = serde_json::to_string(&Record::Step(record)).unwrap();
            let Record::Step(back) = serde_json::from_str(&line).unwrap() else { panic!("another kind") };
            prop_assert_eq!(back.loss.to_bits(), bits);
        }
    }
}
