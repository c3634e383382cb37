//! Transparency of TIFF files, whose colours may be stored multiplied by it ("associated alpha"). The decoder returns them as they are stored; here
//! they are divided, as in PIL. Not here: decoding.

use super::raster::Samples;

/// The tag that tells what channels beyond the colours are.
const EXTRA_SAMPLES: u16 = 338;
const ASSOCIATED: u16 = 1;

/// Whether the first image of a TIFF file stores colours multiplied by their alpha.
pub(super) fn is_associated(bytes: &[u8]) -> bool {
    extra_samples(bytes) == Some(ASSOCIATED)
}

/// Divides colours by their alpha, which is the last of `channels`.
pub(super) fn divide(samples: &mut Samples, channels: usize) {
    match samples {
        Samples::U8(v) => straight(v, channels, 255),
        Samples::U16(v) => straight(v, channels, 65_535),
        Samples::F32(_) => {}
    }
}

fn straight<T: Copy + Into<u32> + TryFrom<u32>>(samples: &mut [T], channels: usize, max: u32) {
    for pixel in samples.chunks_exact_mut(channels) {
        let [colours @ .., alpha] = pixel else { continue };
        let alpha: u32 = (*alpha).into();
        for v in colours {
            let stored: u32 = (*v).into();
            // Fully transparent pixels keep the stored colour.
            if let Some(colour) = (max * stored).checked_div(alpha) {
                *v = T::try_from(colour.min(max)).unwrap_or(*v);
            }
        }
    }
}

/// The first value of the tag in the first directory, in either byte order, of TIFF and BigTIFF files.
fn extra_samples(bytes: &[u8]) -> Option<u16> {
    let little = match bytes.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(length)?)?;
        let push = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, push) } else { bytes.iter().fold(0, push) })
    };
    // Sizes in bytes: the directory's offset, its number of entries, an entry, what precedes the value in an entry.
    let (at, count, entry, before) = match number(2, 2)? {
        42 => (number(4, 4)?, 2, 12, 8),
        43 => (number(8, 8)?, 8, 20, 12),
        _ => return None,
    };
    let at = usize::try_from(at).ok()?;
    let entries = usize::try_from(number(at, count)?).ok()?;
    let first = at + count;
    (0..entries)
        .map_while(|i| first.checked_add(i.checked_mul(entry)?))
        .map_while(|at| Some((at, number(at, 2)?)))
        .find(|(_, tag)| *tag == u64::from(EXTRA_SAMPLES))
        .and_then(|(at, _)| number(at + before, 2))
        .map(|value| value as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pixels of RGBA, in either byte order.
    fn rgba(little: bool, extra: u16, pixels: [u8; 8]) -> Vec<u8> {
        let short = |v: u16| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let long = |v: u32| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let mut bytes = if little { b"II".to_vec() } else { b"MM".to_vec() };
        bytes.extend(short(42));
        bytes.extend(long(24));
        bytes.extend(pixels);
        bytes.extend([short(8); 4].concat());
        let one = |v: u16| [short(v), [0; 2]].concat();
        let entries = [
            (256, 1, one(2)),
            (257, 1, one(1)),
            (258, 4, long(16).to_vec()),
            (259, 1, one(1)),
            (262, 1, one(2)),
            (273, 1, one(8)),
            (277, 1, one(4)),
            (278, 1, one(1)),
            (279, 1, one(8)),
            (EXTRA_SAMPLES, 1, one(extra)),
        ];
        bytes.extend(short(entries.len() as u16));
        for (tag, count, value) in entries {
            // 3: the type of 16-bit numbers.
            bytes.extend([short(tag), short(3)].concat());
            bytes.extend(long(count));
            bytes.extend(value);
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn associated_colours_are_divided_by_their_alpha() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tif");
        for little in [true, false] {
            let stored = [100, 128, 0, 128, 7, 8, 9, 0];
            // 100 * 255 / 128, rounded down as PIL does.
            for (extra, expected) in [(ASSOCIATED, [199, 255, 0, 128, 7, 8, 9, 0]), (2, stored)] {
                std::fs::write(&path, rgba(little, extra, stored)).unwrap();
                let raster = super::super::decode::decode(&path).unwrap();
                assert_eq!(raster.samples, Samples::U8(expected.to_vec()), "{little} {extra}");
            }
        }
        let mut deep = Samples::U16(vec![100, 200, 300, 400, 65_535, 0, 65_535, 65_535]);
        divide(&mut deep, 4);
        assert_eq!(deep, Samples::U16(vec![16_383, 32_767, 49_151, 400, 65_535, 0, 65_535, 65_535]));
    }

    #[test]
    fn what_is_no_tiff_says_nothing() {
        for bytes in
            [&b""[..], b"II", b"II*\0\xff\xff\xff\xff", b"MM\0+\0\x08\0\0\xff\xff\xff\xff\xff\xff\xff\xff", b"\x89PNG"]
        {
            assert!(!is_associated(bytes));
        }
    }
}
