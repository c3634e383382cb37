//! How the values of an array become [0, 1], and what 0 and 1 then stand for. Not here: shapes, and the formulation's map to [-1, 1].

use std::path::Path;

use super::npy::{NpyArray, Values};
use super::raster::Samples;
use super::{DataError, DataLayout, ValueRange};

/// Values may leave their range by this share of it, as rounding does; they are clamped.
const SLACK: f64 = 1e-6;

/// Values of an array, in the array's order.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) samples: Samples,
    /// For people.
    pub(super) words: String,
    /// What 0 and 1 stand for: of what is stored in 8 or 16 bits, 0 and 1.
    pub(super) range: [f64; 2],
}

/// Maps the values of `array`, `size` to an example.
///
/// # Errors
/// Values that are not finite, that lie outside of the range, or whose range must be said.
pub(super) fn map(
    array: NpyArray,
    path: &Path,
    size: usize,
    layout: DataLayout,
    range: Option<ValueRange>,
) -> Result<Mapped, DataError> {
    let descr = array.descr;
    let kept = |samples, words: &str| Ok(Mapped { samples, words: words.into(), range: [0.0, 1.0] });
    match (array.values, range) {
        (Values::U8(v), None) => kept(Samples::U8(v), "uint8 0 to 255 -> [0, 1]"),
        (Values::Int(v), None) if descr.ends_with("u2") => {
            // Every value of the type fits.
            let values = v.into_iter().map(|v| u16::try_from(v).unwrap_or(u16::MAX));
            kept(Samples::U16(values.collect()), "uint16 0 to 65535 -> [0, 1]")
        }
        (Values::Int(_), None) if layout == DataLayout::Images => {
            let expected = "uint8, uint16, float32 or float64 images, or --value-range LOW,HIGH or measured";
            Err(DataError::format(path, expected, format!("dtype `{descr}`")))
        }
        (Values::U8(v), range) => unit(v.into_iter().map(f32::from).collect(), path, size, layout, range),
        (Values::Int(v), range) => unit(v.into_iter().map(|v| v as f32).collect(), path, size, layout, range),
        (Values::F32(v), range) => unit(v, path, size, layout, range),
    }
}

/// Checks numbers and maps their range to [0, 1].
fn unit(
    mut values: Vec<f32>,
    path: &Path,
    size: usize,
    layout: DataLayout,
    range: Option<ValueRange>,
) -> Result<Mapped, DataError> {
    let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
    for (i, &value) in values.iter().enumerate() {
        if !value.is_finite() {
            return Err(DataError::NotFinite { path: path.to_path_buf(), image: i / size, value });
        }
        (min, max) = (min.min(value), max.max(value));
    }
    let outside = |declared| DataError::ValueRange { path: path.to_path_buf(), min, max, declared };
    let [low, high] = match (range, usual(min, max)) {
        (Some(ValueRange::Declared(range)), _) => range,
        (Some(ValueRange::Measured), _) => measured(min, max),
        (None, Some(range)) => range,
        (None, None) if layout == DataLayout::Images => return Err(outside(None)),
        (None, None) => measured(min, max),
    };
    let slack = SLACK * (high - low);
    if f64::from(min) < low - slack || f64::from(max) > high + slack {
        return Err(outside(Some([low, high])));
    }
    for value in &mut values {
        *value = ((f64::from(*value) - low) / (high - low)).clamp(0.0, 1.0) as f32;
    }
    let words = format!("{min} to {max}, read as [{low}, {high}] -> [0, 1]");
    Ok(Mapped { samples: Samples::F32(values), words, range: [low, high] })
}

/// [0, 1] or [-1, 1], if that is where the values lie.
fn usual(min: f32, max: f32) -> Option<[f64; 2]> {
    let slack = SLACK as f32;
    match (min, max) {
        _ if max > 1.0 + slack || min < -1.0 - slack => None,
        _ if min < -slack => Some([-1.0, 1.0]),
        _ => Some([0.0, 1.0]),
    }
}

/// The range of what occurs; of a constant, one that has a width.
fn measured(min: f32, max: f32) -> [f64; 2] {
    let [min, max] = [min, max].map(f64::from);
    if min < max { [min, max] } else { [min - 0.5, max + 0.5] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: Values, descr: &str, layout: DataLayout, range: Option<ValueRange>) -> Result<Mapped, DataError> {
        let array = NpyArray { shape: vec![1], descr: descr.into(), values };
        map(array, Path::new("x.npy"), 1, layout, range)
    }

    fn floats(values: &[f32], layout: DataLayout, range: Option<ValueRange>) -> Result<Mapped, DataError> {
        read(Values::F32(values.to_vec()), "<f4", layout, range)
    }

    #[test]
    fn ranges_of_images_are_told_and_checked() {
        let images = |values: &[f32]| floats(values, DataLayout::Images, None);
        assert_eq!(images(&[0.0, 0.25, 1.0]).unwrap().samples, Samples::F32(vec![0.0, 0.25, 1.0]));
        let signed = images(&[-1.0, 0.0, 0.5]).unwrap();
        assert_eq!((signed.samples, signed.range), (Samples::F32(vec![0.0, 0.5, 0.75]), [-1.0, 1.0]));
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
    fn sixteen_bits_stay() {
        let deep = read(Values::Int(vec![0, 65_535, 7]), "<u2", DataLayout::Images, None).unwrap();
        assert_eq!(deep.samples, Samples::U16(vec![0, 65_535, 7]));
    }

    #[test]
    fn other_ranges_are_declared_or_measured() {
        let declared = Some(ValueRange::Declared([-1000.0, 3000.0]));
        let scan = floats(&[-1000.0, 0.0, 3000.0], DataLayout::Images, declared).unwrap();
        assert_eq!((scan.samples, scan.range), (Samples::F32(vec![0.0, 0.25, 1.0]), [-1000.0, 3000.0]));
        let error = floats(&[-1000.0, 3001.0], DataLayout::Volumes, declared).unwrap_err().to_string();
        assert!(error.contains("3001") && error.contains("[-1000, 3000]"), "{error}");
        for range in [None, Some(ValueRange::Measured)] {
            let signal = read(Values::Int(vec![-4, 4, 0]), "<i2", DataLayout::Sequences, range).unwrap();
            assert_eq!((signal.samples, signal.range), (Samples::F32(vec![0.0, 1.0, 0.5]), [-4.0, 4.0]));
        }
        let constant = floats(&[5.0, 5.0], DataLayout::Sequences, None).unwrap();
        assert_eq!((constant.samples, constant.range), (Samples::F32(vec![0.5, 0.5]), [4.5, 5.5]));
    }
}
