//! What a user can do about an error in data. Not here: the errors (`error.rs`).

use super::DataError;
use super::error::shown;

/// Whether the running command accepts a flag, given with its dashes. Hints must not mention other flags.
pub type Takes<'a> = &'a dyn Fn(&str) -> bool;

impl DataError {
    /// What the user can do about the error, if anything, assuming a command that accepts every flag of `ddpm train`.
    pub fn hint(&self) -> Option<String> {
        self.hint_for(&|_| true)
    }

    /// The same for a command that accepts only some flags.
    pub fn hint_for(&self, takes: Takes<'_>) -> Option<String> {
        let text: String = match self {
            Self::NotFound { .. } => {
                "give a folder of images, an IDX, .npy or .npz file, or `digits` for the embedded set".into()
            }
            Self::NoImages { array: Some(file), .. } => {
                format!("to train on that array, give the file itself: {}", shown(file))
            }
            Self::NoImages { .. } | Self::UnknownFormat { .. } => {
                "give a folder with png, jpg, jpeg, bmp, webp, tif or tiff files, an IDX file (also .gz), or a .npy or .npz file".into()
            }
            Self::TooManyBroken { .. } => {
                let raise = if takes("--max-broken") { ", or raise --max-broken" } else { "" };
                format!("`ddpm inspect` lists every broken file; remove or repair them{raise}")
            }
            Self::MixedSizes { .. } | Self::MixedChannels { .. } | Self::Channels { .. } => self.hint_on_shape(takes)?,
            Self::Layout { .. } if takes("--model") => {
                "to train on images, leave out --layout, or choose a network for images (--model)".into()
            }
            Self::Layout { .. } if takes("--layout") => "leave out --layout".into(),
            Self::Shape { .. } if takes("--layout") => {
                "use --layout to say what the array holds (such as --layout sequences), and --channels N to say which axis is that of the channels".into()
            }
            Self::Decode { .. } if takes("--verify") => {
                "do not change the data during a run; --verify full decodes every file before training starts".into()
            }
            Self::Changed { .. } | Self::Written { .. } => "do not change the data during a run".into(),
            Self::Truncated { .. } => "the file is probably an interrupted copy or download: copy or download it again".into(),
            Self::ValueRange { .. } => self.hint_on_values(takes),
            Self::OtherUnits { .. } => {
                let other = if takes("--value-range") { ", or name another range (--value-range)" } else { "" };
                format!("give the values in the units of the data that the network was trained on{other}")
            }
            Self::LabelCount { .. } => "give one label per image, in the order of the images".into(),
            Self::Conditions { .. } => {
                "give one condition per example: a file of the same name (the extension may differ), or the entry of the same index in an array".into()
            }
            Self::OfConditions(error) => {
                let own = ["--channels", "--value-range"];
                let named = |flag: &str| if own.contains(&flag) { flag.replace("--", "--condition-") } else { flag.into() };
                let takes = |flag: &str| takes(&named(flag));
                let hint = error.hint_for(&takes)?;
                own.iter().fold(hint, |hint, flag| hint.replace(flag, &named(flag)))
            }
            Self::Vectors { .. } => {
                "give one row per example, in the order of the array or of the files as `ddpm inspect DATA --files` prints them (without broken ones)"
                    .into()
            }
            Self::BatchTooLarge { images, .. } => format!("use --batch-size {images} or less"),
            _ => return None,
        };
        Some(text)
    }

    fn hint_on_shape(&self, takes: Takes<'_>) -> Option<String> {
        let hint = match self {
            Self::MixedSizes { .. } if !takes("--image-size") => "give images of one size".into(),
            Self::MixedSizes { common, .. } => {
                let large = common.height.max(common.width) > 256;
                let size = if large { "128".to_string() } else { common.to_string() };
                let how = if takes("--resize") { "; --resize crop, stretch or pad chooses how" } else { "" };
                format!("give the training size, for example --image-size {size}{how}")
            }
            Self::MixedChannels { .. } if !takes("--channels") => {
                "give images of one kind: all grey or RGB, or all with transparency".into()
            }
            Self::MixedChannels { common, .. } => format!(
                "give the number of channels, for example --channels {} (1 grey, 3 RGB; transparency is composited on white)",
                common.max(&3)
            ),
            Self::Channels { files: true, .. } if takes("--channels") => {
                "use --channels 1 (grey), 2 (grey with alpha), 3 (RGB) or 4 (RGBA)".into()
            }
            Self::Channels { files: false, .. } if takes("--channels") => {
                "the channels of an array cannot be changed: leave out --channels, or use other data".into()
            }
            Self::Channels { .. } => "use other data".into(),
            _ => return None,
        };
        Some(hint)
    }

    fn hint_on_values(&self, takes: Takes<'_>) -> String {
        match self {
            _ if !takes("--value-range") => "store the values as uint8, or as floats in [0, 1]".into(),
            Self::ValueRange { declared: Some(_), .. } => {
                "give a range that contains all values, or --value-range measured".into()
            }
            Self::ValueRange { min, max, .. } if *min >= 0.0 && *max > 1.0 && *max <= 255.0 => {
                "give the range with --value-range 0,255, or store the values as uint8".into()
            }
            _ => "give the range with --value-range LOW,HIGH or --value-range measured".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageSize;

    #[test]
    fn hints_name_only_flags_that_the_command_takes() {
        let path = || "x".into();
        let errors = || {
            [
                DataError::TooManyBroken { broken: Vec::new(), total: 1, limit: 0.0 },
                DataError::MixedSizes { path: path(), found: ImageSize::square(2), common: ImageSize::square(3) },
                DataError::MixedChannels { path: path(), found: 1, common: 4 },
                DataError::Channels { path: path(), expected: 5, found: String::new(), files: true },
                DataError::ValueRange { path: path(), min: 0.0, max: 9.0, declared: None },
                DataError::BatchTooLarge { batch_size: 9, images: 3 },
            ]
        };
        for error in errors() {
            assert!(error.hint().unwrap().contains("--"), "{error}");
            let hint = error.hint_for(&|flag| flag == "--batch-size").unwrap();
            assert!(!hint.replace("--batch-size", "").contains("--"), "{hint}");
        }
        for error in errors().into_iter().skip(2).take(3) {
            let hint = DataError::OfConditions(Box::new(error)).hint().unwrap();
            assert!(hint.contains("--condition-"), "{hint}");
            assert!(!hint.contains("--channels") && !hint.contains("--value-range"), "{hint}");
        }
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let error = DataError::NotFound { path: "a\n\u{1b}[2Jb\u{e9}".into() };
        assert!(error.to_string().contains("a\\n\\u{1b}[2Jb\u{e9}"), "{error}");
    }
}
