//! The embedded set: 1,797 handwritten digits of 8 x 8 pixels (`assets/digits/README.md` has the source and licence).

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::array::{ArraySource, Held};
use super::classes::Classes;
use super::raster::Samples;
use super::{DataError, DataLayout, ImageShape};

const FILE: &[u8] = include_bytes!("../../assets/digits/digits.csv.gz");

/// The name by which the set is requested and reported.
pub(super) const NAME: &str = "digits";

const SIDE: usize = 8;
/// Largest value of the 17 grey levels.
const MAX_LEVEL: u16 = 16;

/// Decompresses the set; levels 0 to 16 become 0 to 255, rounded to nearest.
///
/// # Errors
/// Only if the embedded file is not the expected one.
pub(super) fn load() -> Result<ArraySource, DataError> {
    let path = Path::new(NAME);
    let wrong = |found: &str| DataError::format(path, "64 levels from 0 to 16 and a digit", found);
    let mut text = String::new();
    GzDecoder::new(FILE).read_to_string(&mut text).map_err(|e| DataError::io("unpack", path, e))?;
    let (mut levels, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let values = line
            .split(',')
            .map(|field| field.parse::<u16>().ok().filter(|v| *v <= MAX_LEVEL))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong(line))?;
        match values.split_last() {
            Some((&digit, pixels)) if pixels.len() == SIDE * SIDE && digit < 10 => {
                levels.extend(pixels.iter().map(|v| ((v * 255 + 8) / MAX_LEVEL) as u8));
                labels.push(digit);
            }
            _ => return Err(wrong(line)),
        }
    }
    Ok(ArraySource {
        path: path.to_path_buf(),
        kind: "embedded UCI optical digits",
        count: labels.len(),
        shape: ImageShape { channels: 1, height: SIDE, width: SIDE },
        samples: Held::Memory(Samples::U8(levels)),
        classes: Some(Classes::number(&labels)),
        values: "levels 0 to 16 -> [0, 1]".into(),
        range: None,
        ignored_labels: None,
        layout: DataLayout::Images,
        depth: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_set_is_complete() {
        let digits = load().unwrap();
        assert_eq!(digits.count, 1797);
        let Held::Memory(Samples::U8(levels)) = digits.samples else { panic!("not 8 bit") };
        assert_eq!(levels.len(), 1797 * 64);
        // The first digit is a zero; its first row is 0 0 5 13 9 1 0 0.
        assert_eq!(levels[..8], [0, 0, 80, 207, 143, 16, 0, 0]);
        let mut distinct = levels.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 17);
        let Classes { of_image: labels, names } = digits.classes.unwrap();
        assert_eq!(names, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        // Class sizes as published with the set.
        let counts: Vec<usize> = (0..10).map(|digit| labels.iter().filter(|&&label| label == digit).count()).collect();
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }
}
