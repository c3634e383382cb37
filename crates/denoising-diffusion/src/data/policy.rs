//! The keyword values of data settings. Not here: the settings (`config.rs`), and the effect of the keywords.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shape::{ImageShape, ParseSettingError};

/// An enum whose variants are written as one lower-case word in recipes and on the command line.
macro_rules! keyword_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $expected:literal { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant),*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }

        impl FromStr for $name {
            type Err = ParseSettingError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(ParseSettingError { found: text.to_owned(), expected: $expected }),
                }
            }
        }
    };
}

keyword_enum! {
    /// How an image of another size is brought to the training size.
    pub enum ResizePolicy: "a resize policy: crop, stretch or pad" {
        /// Scale until the image just covers the size, keep the centre.
        #[default]
        Crop = "crop",
        /// Scale each axis independently; the aspect ratio changes.
        Stretch = "stretch",
        /// Scale until the image just fits, centre it, fill the rest with zeros (black or transparent).
        Pad = "pad",
    }
}

keyword_enum! {
    /// Whether half of the training images are mirrored left to right.
    pub enum Flip: "a flip policy: auto, on or off" {
        /// On, except for the embedded digits, which become unreadable, and for sequences and volumes.
        #[default]
        Auto = "auto",
        /// Mirror with probability one half.
        On = "on",
        /// Never mirror.
        Off = "off",
    }
}

keyword_enum! {
    /// Whether decoded images of a folder are kept in memory. Arrays always are, except `.npy` files in C order whose values do not fit under this
    /// policy (a byte for each of uint8, two of uint16, else four): those are read at an offset when they are needed. IDX files, `.npz` files and
    /// arrays in Fortran order, in which examples are not contiguous, are read whole.
    pub enum CachePolicy: "a cache policy: auto, on or off" {
        /// Keep them if all of them fit into `cache_mib`.
        #[default]
        Auto = "auto",
        /// Keep them whatever their size.
        On = "on",
        /// Decode again in every epoch.
        Off = "off",
    }
}

keyword_enum! {
    /// How thoroughly the files of a folder are checked before training.
    pub enum Verify: "a check of the files: full or header" {
        /// Decode every file once, so that no broken file can stop a run later.
        #[default]
        Full = "full",
        /// Read only headers: quick for very large folders, but a damaged body is then an error during the run.
        Header = "header",
    }
}

keyword_enum! {
    /// What an array holds. Sequences `[n, c, l]` are carried as images of height 1, volumes `[n, c, d, h, w]` as images of height `d h`, slice
    /// below slice.
    pub enum DataLayout: "a layout: auto, images, sequences or volumes" {
        /// Volumes if the array has five dimensions, images otherwise.
        #[default]
        Auto = "auto",
        /// `[n, c, h, w]`, `[n, h, w, c]` or `[n, h, w]`.
        Images = "images",
        /// `[n, c, l]`, or `[n, l]` with one channel.
        Sequences = "sequences",
        /// `[n, c, d, h, w]`, or `[n, d, h, w]` with one channel.
        Volumes = "volumes",
    }
}

impl DataLayout {
    /// What an example is called.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Auto | Self::Images => "image",
            Self::Sequences => "sequence",
            Self::Volumes => "volume",
        }
    }

    /// The shape of an example, channels first, that is stored as an image: a sequence with height 1, the `depth` slices of a volume stacked
    /// vertically.
    pub fn shape_of(self, image: ImageShape, depth: usize) -> Vec<usize> {
        let ImageShape { channels, height, width } = image;
        match self {
            Self::Auto | Self::Images => vec![channels, height, width],
            Self::Sequences => vec![channels, width],
            Self::Volumes => vec![channels, depth, height / depth, width],
        }
    }

    /// The same in words: `2x64 (channels x length)`.
    pub fn shape_in_words(self, image: ImageShape, depth: usize) -> String {
        let axes = match self {
            Self::Auto | Self::Images => "channels x height x width",
            Self::Sequences => "channels x length",
            Self::Volumes => "channels x depth x height x width",
        };
        let sides = self.shape_of(image, depth).iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        format!("{sides} ({axes})")
    }
}

/// Which values of an array become 0 and 1. Text form: `measured`, or the two numbers: `-5,5`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRange {
    /// The smallest and the largest value that occur.
    Measured,
    /// These two; a value outside is an error.
    Declared([f64; 2]),
}

impl ValueRange {
    const EXPECTED: &'static str = "a range of values: measured, or two numbers such as -5,5";
}

impl fmt::Display for ValueRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured => f.write_str("measured"),
            Self::Declared([low, high]) => write!(f, "{low},{high}"),
        }
    }
}

impl FromStr for ValueRange {
    type Err = ParseSettingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| part.trim().parse().ok();
        let declared = || {
            let (low, high) = text.split_once(',')?;
            Some(Self::Declared([number(low)?, number(high)?]))
        };
        let read = if text == "measured" { Some(Self::Measured) } else { declared() };
        read.ok_or_else(|| ParseSettingError { found: text.to_owned(), expected: Self::EXPECTED })
    }
}

impl Serialize for ValueRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ValueRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// In recipes, the two numbers may also be a list.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Numbers([f64; 2]),
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Form::Numbers(range) => Ok(Self::Declared(range)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_the_data() {
        let image = ImageShape { channels: 2, height: 12, width: 5 };
        let words = |layout: DataLayout, depth| layout.shape_in_words(image, depth);
        assert_eq!(words(DataLayout::Images, 1), "2x12x5 (channels x height x width)");
        assert_eq!(words(DataLayout::Volumes, 3), "2x3x4x5 (channels x depth x height x width)");
        let sequence = ImageShape { height: 1, ..image };
        assert_eq!(DataLayout::Sequences.shape_in_words(sequence, 1), "2x5 (channels x length)");
    }

    #[test]
    fn ranges_are_read_from_text_and_from_lists() {
        for (json, expected) in [
            (r#""measured""#, ValueRange::Measured),
            (r#""-5,2.5""#, ValueRange::Declared([-5.0, 2.5])),
            ("[0, 4095]", ValueRange::Declared([0.0, 4095.0])),
        ] {
            let read: ValueRange = serde_json::from_str(json).unwrap();
            assert_eq!(read, expected);
            assert_eq!(serde_json::from_str::<ValueRange>(&serde_json::to_string(&read).unwrap()).unwrap(), expected);
        }
        assert!("1".parse::<ValueRange>().unwrap_err().to_string().contains("measured"));
    }
}
