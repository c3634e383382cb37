//! How the values of flags are parsed, by kind. Not here: which flag has which kind.

use denoising_diffusion::data::{self, ChannelPolicy, ImageSize};
use denoising_diffusion::nn::ops;
use toml::Value;

use super::table::Kind::{
    self, Channels, ImageSize as Size, Number, Numbers, Precision, Range, Switch, SwitchPerStage, ValueRange, Whole,
    WholePerStage, Wholes, Word, WordPerStage, Words,
};

impl Kind {
    pub(super) fn value_name(self) -> &'static str {
        match self {
            Whole => "N",
            Number => "X",
            Switch => "true|false",
            Word(_) => "WORD",
            Words(_) => "WORD,...",
            WordPerStage(_) => "WORD[,WORD...]",
            Wholes => "N,N,...",
            Numbers => "X,X,...",
            WholePerStage => "N[,N...]",
            SwitchPerStage => "BOOL[,BOOL...]",
            Size => "SIZE",
            Channels => "CHANNELS",
            Range => "LOW,HIGH",
            ValueRange => "LOW,HIGH|measured",
            Precision => "PRECISION",
        }
    }

    /// The value for a recipe, or a description of what was expected.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        let expected = |what: &str| format!("expected {what}");
        match self {
            Whole if is_too_large(text) => Err("the number is too large".to_string()),
            Whole => whole(text).ok_or_else(|| expected("a whole number of at least 0")),
            Number => number(text).ok_or_else(|| expected("a number such as 0.001 or 1e-3")),
            Switch => switch(text).ok_or_else(|| expected("true or false")),
            Word(words) if words.contains(&text) => Ok(Value::String(text.to_string())),
            Word(words) => Err(expected(&words.join(", "))),
            Words(words) => {
                let all: Option<Vec<Value>> = text
                    .split(',')
                    .map(|word| words.contains(&word).then(|| Value::String(word.to_string())))
                    .collect();
                all.map(Value::Array)
                    .ok_or_else(|| expected(&format!("some of {}, separated by commas", words.join(", "))))
            }
            WordPerStage(words) => {
                let one = |text: &str| words.contains(&text).then(|| Value::String(text.to_string()));
                let each =
                    || text.split(',').map(|part| one(part.trim())).collect::<Option<Vec<_>>>().map(Value::Array);
                one(text).or_else(each).ok_or_else(|| expected(&format!("{}, or one per stage", words.join(", "))))
            }
            Numbers => list(text, number).ok_or_else(|| expected("numbers such as 0.05,0.1")),
            Wholes => list(text, whole).ok_or_else(|| expected("whole numbers such as 1,2,4")),
            WholePerStage => {
                one_or_list(text, whole).ok_or_else(|| expected("a whole number, or one per stage such as 4,8"))
            }
            SwitchPerStage => {
                one_or_list(text, switch).ok_or_else(|| expected("true or false, or one per stage such as false,true"))
            }
            Range => {
                let pair = list(text, number).filter(|numbers| numbers.as_array().is_some_and(|all| all.len() == 2));
                pair.ok_or_else(|| expected("two numbers such as 0.2,5"))
            }
            // Kept as typed: 16x16 is not a length of sequences, but 16 is.
            Size => text.parse::<ImageSize>().map(|_| Value::String(text.to_string())).map_err(|e| e.to_string()),
            ValueRange => {
                let range = text.parse::<data::ValueRange>().map_err(|e| e.to_string())?;
                Ok(Value::String(range.to_string()))
            }
            Precision => {
                let precision = text.parse::<ops::Precision>().map_err(|e| e.to_string())?;
                Ok(Value::String(precision.to_string()))
            }
            Channels => {
                text.parse::<ChannelPolicy>().map(|policy| Value::String(policy.to_string())).map_err(|e| e.to_string())
            }
        }
    }
}

fn whole(text: &str) -> Option<Value> {
    text.parse::<i64>().ok().filter(|number| *number >= 0).map(Value::Integer)
}

/// Whether it is a whole number, but beyond those of recipes.
fn is_too_large(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && whole(text).is_none()
}

fn number(text: &str) -> Option<Value> {
    text.parse().ok().filter(|number: &f64| !number.is_nan()).map(Value::Float)
}

fn switch(text: &str) -> Option<Value> {
    text.parse().ok().map(Value::Boolean)
}

fn list(text: &str, item: fn(&str) -> Option<Value>) -> Option<Value> {
    text.split(',').map(|part| item(part.trim())).collect::<Option<Vec<_>>>().map(Value::Array)
}

fn one_or_list(text: &str, item: fn(&str) -> Option<Value>) -> Option<Value> {
    item(text).or_else(|| list(text, item))
}
