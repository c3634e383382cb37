//! The size of images and their channels, as settings and as facts. Each type reads the same text from a recipe and from a command-line flag. Not
//! here: the settings that have them (`config.rs`).

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest accepted image side, in pixels.
const MAX_SIDE: usize = 65_535;

/// Shape of one image: `[channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Number of channels, at least 1.
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl ImageShape {
    /// Number of values of one image: channels x height x width.
    pub fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// True if an image of this shape has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Height and width without the channels.
    pub fn size(&self) -> ImageSize {
        ImageSize { height: self.height, width: self.width }
    }
}

/// Writes `3x64x48`: channels x height x width.
impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.channels, self.size().full())
    }
}

/// Height and width in pixels. Text form: `28` (square) or `28x20` (height x width).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageSize {
    /// Height in pixels, 1 to 65,535.
    pub height: usize,
    /// Width in pixels, 1 to 65,535.
    pub width: usize,
}

impl ImageSize {
    const EXPECTED: &'static str =
        "an image size: a number such as 28, or height x width such as \"28x20\" (1 to 65535)";

    /// A size with equal sides.
    pub fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    /// Always `height x width`, also for squares: for messages and tables.
    pub(crate) fn full(&self) -> String {
        format!("{}x{}", self.height, self.width)
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.height == self.width {
            write!(f, "{}", self.height)
        } else {
            write!(f, "{}x{}", self.height, self.width)
        }
    }
}

/// A setting's text that could not be parsed: what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not {expected}")]
pub struct ParseSettingError {
    /// The text that was found.
    pub found: String,
    /// What the setting accepts, in words.
    pub expected: &'static str,
}

impl FromStr for ImageSize {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let side = |part: &str| part.parse().ok().filter(|s| (1..=MAX_SIDE).contains(s));
        let size = match text.split_once('x') {
            None => side(text).map(Self::square),
            Some((height, width)) => side(height).zip(side(width)).map(|(height, width)| Self { height, width }),
        };
        size.ok_or_else(|| ParseSettingError { found: text.to_owned(), expected: Self::EXPECTED })
    }
}

impl Serialize for ImageSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.height == self.width {
            serializer.serialize_u64(self.height as u64)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for ImageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IntOrText::new(Self::EXPECTED))
    }
}

/// How many channels the images have. Text form: `auto` or the number.
///
/// For image files 1 is grey, 2 grey with alpha, 3 RGB, 4 RGBA. Colour is converted to grey as ITU-R 601 luma; transparency that is not kept is
/// composited on white. An array must already have the requested number of channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelPolicy {
    /// As in the data, where all images must have the same number.
    #[default]
    Auto,
    /// Exactly this many.
    Exact(usize),
}

impl ChannelPolicy {
    const EXPECTED: &'static str = "a number of channels: auto, 1, 2, 3, ...";
}

impl fmt::Display for ChannelPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Exact(channels) => write!(f, "{channels}"),
        }
    }
}

impl FromStr for ChannelPolicy {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(channels @ 1..=MAX_SIDE)) => Ok(Self::Exact(channels)),
            _ => Err(ParseSettingError { found: text.to_owned(), expected: Self::EXPECTED }),
        }
    }
}

impl Serialize for ChannelPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exact(channels) => serializer.serialize_u64(*channels as u64),
        }
    }
}

impl<'de> Deserialize<'de> for ChannelPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IntOrText::new(Self::EXPECTED))
    }
}

/// Reads a value that is an integer or text in a recipe, through its `FromStr`.
struct IntOrText<T> {
    expected: &'static str,
    value: PhantomData<T>,
}

impl<T> IntOrText<T> {
    fn new(expected: &'static str) -> Self {
        Self { expected, value: PhantomData }
    }
}

impl<T: FromStr<Err = ParseSettingError>> Visitor<'_> for IntOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        value.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, height, width) in [("28", 28, 28), ("28x20", 28, 20), ("7x7", 7, 7)] {
            let size: ImageSize = text.parse().unwrap();
            assert_eq!((size.height, size.width), (height, width));
            assert_eq!(size.to_string().parse::<ImageSize>().unwrap(), size);
        }
        for text in ["", "0", "28x", "x20", "-3", "28x0", "1.5", "70000", "2x3x4"] {
            let error = text.parse::<ImageSize>().unwrap_err();
            assert!(error.to_string().contains("28x20"), "{text}: {error}");
        }
    }
}
