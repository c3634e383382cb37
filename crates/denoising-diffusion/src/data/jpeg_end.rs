//! Whether a JPEG is complete. The decoder fills what is missing with grey; PIL calls such a file truncated, and so do we.

/// Start of the entropy-coded data of a scan.
const SCAN: u8 = 0xda;
const END: u8 = 0xd9;

/// Walks the markers of the first image in `bytes` to its end marker. Whatever follows is ignored: phones append films and other pictures. Segments
/// are skipped by their length, so that the end of a thumbnail is not taken for the end of the picture.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some((marker, behind)) = next_marker(bytes, at) else { return false };
        at = match marker {
            END => return true,
            // Restart markers and the like, which have no data.
            0x01 | 0xd0..=0xd8 => behind,
            marker => {
                let Some(&[high, low]) = bytes.get(behind..behind + 2) else { return false };
                let length = usize::from(u16::from_be_bytes([high, low]));
                let after = behind + length.max(2);
                if marker == SCAN { after_scan(bytes, after) } else { after }
            }
        }
    }
}

/// The next marker from a position on, and the position after it; fill bytes are skipped.
fn next_marker(bytes: &[u8], from: usize) -> Option<(u8, usize)> {
    let rest = bytes.get(from..)?;
    let found = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff))?;
    Some((rest[found + 1], from + found + 2))
}

/// Where entropy-coded data that start at a position end: inside them, 0xff is followed by a zero or a restart marker.
fn after_scan(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7 | 0xff);
    rest.windows(2).position(is_marker).map_or(bytes.len(), |found| from + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg() -> Vec<u8> {
        let image = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x, y, x * y].map(|v| (v * 7919 % 251) as u8)));
        let mut bytes = Vec::new();
        image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Jpeg).unwrap();
        bytes
    }

    #[test]
    fn data_behind_the_image_do_not_matter() {
        let whole = jpeg();
        assert!(has_end(&whole));
        for behind in [&[0; 100][..], b"xxxx\xff\xdayyyy", b"\xff\xd8\xff\xda film", b"\xff"] {
            assert!(has_end(&[&whole[..], behind].concat()));
        }
    }

    #[test]
    fn an_end_of_something_else_is_none() {
        let whole = jpeg();
        for length in [0, 1, 2, 3, 30, whole.len() / 2, whole.len() - 2, whole.len() - 1] {
            assert!(!has_end(&whole[..length]), "{length}");
        }
        // A complete thumbnail in a segment of its own.
        let mut within = whole[..2].to_vec();
        within.extend([0xff, 0xe1]);
        within.extend((whole.len() as u16 + 2).to_be_bytes());
        within.extend(&whole);
        within.extend(&whole[2..whole.len() - 2]);
        assert!(!has_end(&within));
        within.extend([0xff, 0xff, 0xd9]);
        assert!(has_end(&within), "markers may have fill bytes");
    }
}
