//! How the values of an array are mapped to [0, 1], and what 0 and 1 then stand for. Not here: shapes, and the formulation's map to [-1, 1].

use std::path::Path;

use super::npy::{NpyArray, Values};
use super::raster::Samples;
use super::{DataConfig, DataError, DataLayout, ValueRange};

/// Values may exceed their range by this fraction of it, which covers rounding; they are clamped.
const SLACK: f64 = 1e-6;

/// Values of an array, in the array's order.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) samples: Samples,
    /// A description for display.
    pub(super) words: String,
    /// What 0 and 1 stand for; `None` for images stored in 8 or 16 bits.
    pub(super) range: Option<[f64; 2]>,
}

/// What is known about the range before looking at the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Known {
    Nothing,
    /// The range is to be measured.
    Measured,
    Declared([f64; 2]),
    /// The range of the data that a network was trained on.
    Trained([f64; 2]),
}

impl Known {
    /// Pixels of 8 or 16 bits are read by their type if the network was trained on [0, 1] or [-1, 1], which such pixels cannot hold.
    pub(super) fn of(descr: &str, config: &DataConfig) -> Self {
        let pixels = matches!(descr.get(1..), Some("u1" | "u2"));
        match (config.value_range, config.trained_range) {
            (None, Some([-1.0 | 0.0, 1.0])) if pixels => Self::Nothing,
            (None, Some(range)) if type_range(descr) == Some(range) => Self::Nothing,
            (_, Some(range)) => Self::Trained(range),
            (Some(ValueRange::Measured), None) => Self::Measured,
            (Some(ValueRange::Declared(range)), None) => Self::Declared(range),
            (None, None) => Self::Nothing,
        }
    }
}

/// Maps the values of `array`, which has `size` values per example.
///
/// # Errors
/// Values that are not finite or lie outside the range, or a type whose range must be given.
pub(super) fn map(
    array: NpyArray,
    path: &Path,
    size: usize,
    layout: DataLayout,
    config: &DataConfig,
) -> Result<Mapped, DataError> {
    let described = Described { descr: &array.descr, path, size, layout };
    let rule = described.rule(config, &mut |see| see(&array.values))?;
    let range = rule.range_for(layout);
    Ok(Mapped { samples: rule.apply(array.values), words: rule.words(), range })
}

/// What is known of an array besides its values.
pub(super) struct Described<'a> {
    /// NumPy's name of the element type.
    pub(super) descr: &'a str,
    /// For messages.
    pub(super) path: &'a Path,
    /// Number of values of each example.
    pub(super) size: usize,
    pub(super) layout: DataLayout,
}

/// Sees some of an array's values.
pub(super) type See<'a> = &'a mut dyn FnMut(&Values) -> Result<(), DataError>;

impl Described<'_> {
    /// How the values are mapped, wherever they are held: `pass` shows all of them, some at a time, in order. It is called at most once,
    /// and not at all if the type determines the rule.
    ///
    /// # Errors
    /// As [`map`], and those of `pass`.
    pub(super) fn rule(
        &self,
        config: &DataConfig,
        pass: &mut dyn FnMut(See<'_>) -> Result<(), DataError>,
    ) -> Result<Rule, DataError> {
        let Self { descr, path, size, layout } = *self;
        let mut measure = || -> Result<Extremes, DataError> {
            let mut extremes = Extremes::default();
            pass(&mut |values| extremes.see(values, path, size))?;
            Ok(extremes)
        };
        let known = Known::of(descr, config);
        if let (Known::Nothing, None, Some(range @ [-1.0 | 0.0, 1.0])) =
            (known, config.value_range, config.trained_range)
        {
            // Zeros and ones are read as such by a network that was trained on them; as pixels they would all be black.
            let extremes = measure()?;
            if extremes.max == 1.0 {
                return Rule::of_extremes(extremes, path, layout, Known::Trained(range));
            }
        }
        match Rule::of_type(descr, path, layout, known)? {
            Some(rule) => Ok(rule),
            None => Rule::of_extremes(measure()?, path, layout, known),
        }
    }
}

/// How the values of an array are mapped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// The full range of uint8.
    U8,
    /// The full range of uint16.
    U16,
    /// Numbers between `extremes`; `low` and `high` become 0 and 1.
    Range { low: f64, high: f64, extremes: Extremes },
}

impl Rule {
    /// The rule for an element type; `None` if the values must be examined.
    ///
    /// # Errors
    /// A type whose range must be given.
    pub(super) fn of_type(
        descr: &str,
        path: &Path,
        layout: DataLayout,
        known: Known,
    ) -> Result<Option<Self>, DataError> {
        match descr.get(1..).unwrap_or_default() {
            _ if known != Known::Nothing => Ok(None),
            "u1" => Ok(Some(Self::U8)),
            "u2" => Ok(Some(Self::U16)),
            kind if kind.starts_with(['u', 'i']) && layout == DataLayout::Images => {
                let expected = "uint8, uint16, float32 or float64 images, or --value-range LOW,HIGH or measured";
                Err(DataError::format(path, expected, format!("dtype `{descr}`")))
            }
            _ => Ok(None),
        }
    }

    /// The rule for numbers whose extremes are known.
    ///
    /// # Errors
    /// Values outside the range.
    pub(super) fn of_extremes(
        extremes: Extremes,
        path: &Path,
        layout: DataLayout,
        known: Known,
    ) -> Result<Self, DataError> {
        let Extremes { min, max, .. } = extremes;
        let outside = |declared| DataError::ValueRange { path: path.to_path_buf(), min, max, declared };
        let [low, high] = match (known, usual(min, max)) {
            (Known::Declared(range) | Known::Trained(range), _) => range,
            (Known::Measured, _) => measured(min, max),
            (Known::Nothing, Some(range)) => range,
            (Known::Nothing, None) if layout == DataLayout::Images => return Err(outside(None)),
            (Known::Nothing, None) => measured(min, max),
        };
        let rule = Self::Range { low, high, extremes };
        match known {
            _ if rule.holds_all() => Ok(rule),
            Known::Trained(range) if extremes.leave_by(range) <= spare(range) => Ok(rule),
            Known::Trained(trained) => Err(DataError::OtherUnits { path: path.to_path_buf(), min, max, trained }),
            _ => Err(outside(Some([low, high]))),
        }
    }

    /// Whether all values lie in the range, up to rounding.
    fn holds_all(self) -> bool {
        match self {
            Self::U8 | Self::U16 => true,
            Self::Range { low, high, extremes } => extremes.leave_by([low, high]) <= SLACK,
        }
    }

    /// The values as they are kept in memory.
    pub(super) fn apply(self, values: Values) -> Samples {
        match (self, values) {
            (Self::U8, Values::U8(v)) => Samples::U8(v),
            (Self::U16, Values::U16(v)) => Samples::U16(v),
            (rule, values) => {
                let [low, high] = rule.range().unwrap_or([0.0, 1.0]);
                let unit = |value: f32| (f64::from(value) - low) / (high - low);
                // Values outside a trained range by more than rounding are not clamped.
                let all = rule.holds_all();
                let kept = |value| if all { unit(value).clamp(0.0, 1.0) as f32 } else { unit(value) as f32 };
                Samples::F32(match values {
                    // In place.
                    Values::F32(v) => v.into_iter().map(kept).collect(),
                    values => numbers(&values).map(kept).collect(),
                })
            }
        }
    }

    /// No samples yet, with room for this many values.
    pub(super) fn room(self, count: usize) -> Samples {
        match self {
            Self::U8 => Samples::U8(Vec::with_capacity(count)),
            Self::U16 => Samples::U16(Vec::with_capacity(count)),
            Self::Range { .. } => Samples::F32(Vec::with_capacity(count)),
        }
    }

    /// Number of bits of each value as it is kept.
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::U8 => 8,
            Self::U16 => 16,
            Self::Range { .. } => 32,
        }
    }

    /// A description for display.
    pub(super) fn words(self) -> String {
        match self {
            Self::U8 => "uint8 0 to 255 -> [0, 1]".into(),
            Self::U16 => "uint16 0 to 65535 -> [0, 1]".into(),
            Self::Range { extremes: Extremes { seen: 0, .. }, .. } => "no values".into(),
            Self::Range { low, high, extremes: Extremes { min, max, .. } } => {
                format!("{min} to {max}, read as [{low}, {high}] -> [0, 1]")
            }
        }
    }

    /// What 0 and 1 stand for. Images stored in 8 or 16 bits have no units (`None`); sequences and volumes come back in those of their type.
    pub(super) fn range_for(self, layout: DataLayout) -> Option<[f64; 2]> {
        match self {
            _ if layout == DataLayout::Images => self.range(),
            Self::U8 => Some(U8_RANGE),
            Self::U16 => Some(U16_RANGE),
            Self::Range { .. } => self.range(),
        }
    }

    /// What 0 and 1 stand for; `None` for values stored in 8 or 16 bits.
    fn range(self) -> Option<[f64; 2]> {
        match self {
            Self::U8 | Self::U16 => None,
            Self::Range { low, high, .. } => Some([low, high]),
        }
    }
}

/// The smallest and largest of the numbers seen so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Extremes {
    min: f32,
    max: f32,
    seen: usize,
}

impl Default for Extremes {
    fn default() -> Self {
        Self { min: f32::INFINITY, max: f32::NEG_INFINITY, seen: 0 }
    }
}

impl Extremes {
    /// How far the numbers exceed a range, as a fraction of its width.
    fn leave_by(self, [low, high]: [f64; 2]) -> f64 {
        (low - f64::from(self.min)).max(f64::from(self.max) - high) / (high - low)
    }

    /// Takes in the next values, `size` per example.
    ///
    /// # Errors
    /// A value that is not finite.
    pub(super) fn see(&mut self, values: &Values, path: &Path, size: usize) -> Result<(), DataError> {
        for value in numbers(values) {
            if !value.is_finite() {
                return Err(DataError::NotFinite { path: path.to_path_buf(), image: self.seen / size, value });
            }
            (self.min, self.max) = (self.min.min(value), self.max.max(value));
            self.seen += 1;
        }
        Ok(())
    }
}

const U8_RANGE: [f64; 2] = [0.0, u8::MAX as f64];
const U16_RANGE: [f64; 2] = [0.0, u16::MAX as f64];

/// All that a type of 8 or 16 bits can hold.
fn type_range(descr: &str) -> Option<[f64; 2]> {
    match descr.get(1..) {
        Some("u1") => Some(U8_RANGE),
        Some("u2") => Some(U16_RANGE),
        _ => None,
    }
}

/// Values of any type as numbers.
fn numbers(values: &Values) -> Box<dyn Iterator<Item = f32> + '_> {
    match values {
        Values::U8(v) => Box::new(v.iter().map(|&v| v.into())),
        Values::I8(v) => Box::new(v.iter().map(|&v| v.into())),
        Values::U16(v) => Box::new(v.iter().map(|&v| v.into())),
        Values::I16(v) => Box::new(v.iter().map(|&v| v.into())),
        Values::U32(v) => Box::new(v.iter().map(|&v| v as f32)),
        Values::I32(v) => Box::new(v.iter().map(|&v| v as f32)),
        Values::Int(v) => Box::new(v.iter().map(|&v| v as f32)),
        Values::F32(v) => Box::new(v.iter().copied()),
    }
}

/// [-1, 1] if some values are negative, else [0, 1]; `None` if values lie outside both.
fn usual(min: f32, max: f32) -> Option<[f64; 2]> {
    let slack = SLACK as f32;
    match (min, max) {
        _ if max > 1.0 + slack || min < -1.0 - slack => None,
        _ if min < -slack => Some([-1.0, 1.0]),
        _ => Some([0.0, 1.0]),
    }
}

/// By what fraction of its width data may exceed the range that a network was trained on. A newly measured range of the same kind of data differs
/// somewhat; in other units it differs much. [0, 1] and [-1, 1] are conventions, which are never exceeded.
fn spare(trained: [f64; 2]) -> f64 {
    match trained {
        [-1.0 | 0.0, 1.0] => SLACK,
        _ => 1.0,
    }
}

/// The range of the values that occur; for a constant, a range with a width.
fn measured(min: f32, max: f32) -> [f64; 2] {
    let [min, max] = [min, max].map(f64::from);
    if min < max { [min, max] } else { [min - 0.5, max + 0.5] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: Values, descr: &str, layout: DataLayout, range: Option<ValueRange>) -> Result<Mapped, DataError> {
        let array = NpyArray { shape: vec![1], descr: descr.into(), values };
        map(array, Path::new("x.npy"), 1, layout, &DataConfig { value_range: range, ..DataConfig::default() })
    }

    fn floats(values: &[f32], layout: DataLayout, range: Option<ValueRange>) -> Result<Mapped, DataError> {
        read(Values::F32(values.to_vec()), "<f4", layout, range)
    }

    #[test]
    fn ranges_of_images_are_told_and_checked() {
        let images = |values: &[f32]| floats(values, DataLayout::Images, None);
        assert_eq!(images(&[0.0, 0.25, 1.0]).unwrap().samples, Samples::F32(vec![0.0, 0.25, 1.0]));
        let signed = images(&[-1.0, 0.0, 0.5]).unwrap();
        assert_eq!((signed.samples, signed.range), (Samples::F32(vec![0.0, 0.5, 0.75]), Some([-1.0, 1.0])));
        let error = images(&[0.0, 254.5]).unwrap_err();
        assert!(error.to_string().contains("254.5"), "{error}");
        assert!(error.hint().unwrap().contains("255"));
        for bad in [f32::NAN, f32::INFINITY] {
            let error = images(&[0.0, bad]).unwrap_err();
            assert!(matches!(error, DataError::NotFinite { image: 1, .. }), "{error}");
        }
        let integers = read(Values::Int(vec![0; 4]), "<i4", DataLayout::Images, None).unwrap_err().to_string();
        assert!(integers.contains("uint8") && integers.contains("--value-range"), "{integers}");
    }

    #[test]
    fn zeros_and_ones_are_read_as_what_a_network_was_trained_on() {
        let trained = |values: &[u8], range| {
            let array = NpyArray { shape: vec![1], descr: "|u1".into(), values: Values::U8(values.to_vec()) };
            let config = DataConfig { trained_range: Some(range), ..DataConfig::default() };
            map(array, Path::new("x.npy"), 1, DataLayout::Images, &config).unwrap().samples
        };
        assert_eq!(trained(&[0, 1], [0.0, 1.0]), Samples::F32(vec![0.0, 1.0]));
        assert_eq!(trained(&[0, 1], [-1.0, 1.0]), Samples::F32(vec![0.5, 1.0]));
        assert_eq!(trained(&[0, 255], [0.0, 1.0]), Samples::U8(vec![0, 255]), "pixels");
        assert_eq!(trained(&[0, 0], [0.0, 1.0]), Samples::U8(vec![0, 0]));
    }

    #[test]
    fn what_is_no_picture_has_the_units_of_its_type() {
        for (layout, range) in [(DataLayout::Images, None), (DataLayout::Sequences, Some([0.0, 255.0]))] {
            let bytes = read(Values::U8(vec![0, 7]), "|u1", layout, None).unwrap();
            assert_eq!((bytes.samples, bytes.range), (Samples::U8(vec![0, 7]), range));
            // Read again by what a network was trained on.
            let array = NpyArray { shape: vec![1], descr: "|u1".into(), values: Values::U8(vec![3]) };
            let config = DataConfig { trained_range: range, ..DataConfig::default() };
            assert_eq!(map(array, Path::new("x.npy"), 1, layout, &config).unwrap().samples, Samples::U8(vec![3]));
        }
    }

    #[test]
    fn sixteen_bits_stay() {
        let deep = read(Values::U16(vec![0, 65_535, 7]), "<u2", DataLayout::Images, None).unwrap();
        assert_eq!(deep.samples, Samples::U16(vec![0, 65_535, 7]));
    }

    #[test]
    fn other_ranges_are_declared_or_measured() {
        let declared = Some(ValueRange::Declared([-1000.0, 3000.0]));
        let scan = floats(&[-1000.0, 0.0, 3000.0], DataLayout::Images, declared).unwrap();
        assert_eq!((scan.samples, scan.range), (Samples::F32(vec![0.0, 0.25, 1.0]), Some([-1000.0, 3000.0])));
        let error = floats(&[-1000.0, 3001.0], DataLayout::Volumes, declared).unwrap_err().to_string();
        assert!(error.contains("3001") && error.contains("[-1000, 3000]"), "{error}");
        for range in [None, Some(ValueRange::Measured)] {
            let signal = read(Values::Int(vec![-4, 4, 0]), "<i2", DataLayout::Sequences, range).unwrap();
            assert_eq!((signal.samples, signal.range), (Samples::F32(vec![0.0, 1.0, 0.5]), Some([-4.0, 4.0])));
        }
        let constant = floats(&[5.0, 5.0], DataLayout::Sequences, None).unwrap();
        assert_eq!((constant.samples, constant.range), (Samples::F32(vec![0.5, 0.5]), Some([4.5, 5.5])));
    }

    #[test]
    fn data_of_a_trained_network_are_read_by_its_range() {
        let read = |values: Values, descr: &str, trained, layout| {
            let array = NpyArray { shape: vec![1], descr: descr.into(), values };
            let config = DataConfig { trained_range: Some(trained), ..DataConfig::default() };
            map(array, Path::new("x.npy"), 1, layout, &config)
        };
        let floats =
            |values: &[f32], trained| read(Values::F32(values.to_vec()), "<f4", trained, DataLayout::Sequences);
        // The range is neither measured nor guessed from the values.
        assert_eq!(floats(&[5.0, 6.0], [2.0, 10.0]).unwrap().samples, Samples::F32(vec![0.375, 0.5]));
        assert_eq!(floats(&[0.0, 0.5], [-1.0, 1.0]).unwrap().samples, Samples::F32(vec![0.5, 0.75]));
        // Other data of the same kind exceed the range somewhat; other units exceed it by far.
        assert_eq!(floats(&[1.0, 12.0], [2.0, 10.0]).unwrap().samples, Samples::F32(vec![-0.125, 1.25]));
        let error = floats(&[120.0, 200.0], [2.0, 10.0]).unwrap_err();
        assert!(matches!(error, DataError::OtherUnits { trained: [2.0, 10.0], .. }), "{error}");
        assert!(error.to_string().contains("from 120 to 200"), "{error}");
        assert!(floats(&[-1.0, 1.0], [0.0, 1.0]).is_err());
        // Pixels are read as pixels, unless the network was trained on integers with a range of their own.
        let pixels = |trained| read(Values::U8(vec![0, 255]), "|u1", trained, DataLayout::Images).unwrap().samples;
        assert_eq!(pixels([-1.0, 1.0]), Samples::U8(vec![0, 255]));
        assert_eq!(pixels([-255.0, 255.0]), Samples::F32(vec![0.5, 1.0]));
        let integers = read(Values::Int(vec![0, 1]), "<i8", [-1.0, 1.0], DataLayout::Images).unwrap();
        assert_eq!(integers.samples, Samples::F32(vec![0.5, 1.0]));
    }
}
