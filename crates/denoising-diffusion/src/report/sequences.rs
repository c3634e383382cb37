//! Sequences as curves: small panels in an SVG, one sequence each, a colour per channel. Not here: loss curves (`curve`).

use std::fmt::Write;
use std::path::Path;

use super::curve::scene::COLOURS;
use super::curve::{escape, hex};
use super::files;
use super::{ReportError, grid::columns_for};
use crate::data::ImageBatch;

/// Width and height of a panel, pixels.
const PANEL: [f64; 2] = [220.0, 80.0];
const GAP: f64 = 10.0;
/// Height of a line of text.
const TEXT: f64 = 18.0;
/// The largest number of panels drawn per set.
pub const MOST_SEQUENCES: usize = 100;

/// Sequences with a title.
#[derive(Clone, Copy, Debug)]
pub struct SequenceSet<'a> {
    pub title: &'a str,
    /// `[n, c, 1, l]`, values in [0, 1].
    pub batch: &'a ImageBatch,
}

/// Draws sequences as an SVG: one set in a grid, several sets side by side, one column each; of each set the first [`MOST_SEQUENCES`]. `range` gives
/// the values that 0 and 1 stand for, for all panels.
///
/// # Errors
/// A malformed batch, a batch that does not hold sequences, or a value that is not finite.
pub fn sequences_svg(sets: &[SequenceSet<'_>], range: [f64; 2]) -> Result<String, ReportError> {
    for set in sets {
        check(set.batch)?;
    }
    let columns = |set: &SequenceSet<'_>| if sets.len() > 1 { 1 } else { columns_for(shown(set)) };
    let rows = sets.iter().map(|set| shown(set).div_ceil(columns(set))).max().unwrap_or(0);
    let width = GAP + sets.iter().map(columns).sum::<usize>() as f64 * (PANEL[0] + GAP);
    let height = GAP + 2.0 * TEXT + rows as f64 * (PANEL[1] + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut left = GAP;
    for set in sets {
        let across = columns(set);
        let _ =
            writeln!(svg, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>", GAP + 8.0, escape(set.title));
        for index in 0..shown(set) {
            let x = left + (index % across) as f64 * (PANEL[0] + GAP);
            let y = GAP + TEXT + (index / across) as f64 * (PANEL[1] + GAP);
            panel(&mut svg, set.batch, index, [x, y], range);
        }
        left += across as f64 * (PANEL[0] + GAP);
    }
    let length = sets.first().map_or(0, |set| set.batch.shape[3]);
    let [low, high] = range;
    let caption = format!("{length} positions; each panel from {low:.4} (bottom) to {high:.4} (top)");
    let _ = writeln!(svg, "<text x=\"{GAP}\" y=\"{}\" fill=\"#555555\">{caption}</text>\n</svg>", height - GAP);
    Ok(svg)
}

/// Writes one set of sequences as an SVG, the first [`MOST_SEQUENCES`] of it. The file is either complete or absent; parent folders are created.
///
/// # Errors
/// As [`sequences_svg`]; also a file that cannot be written.
pub fn save_sequences(path: impl AsRef<Path>, batch: &ImageBatch, range: [f64; 2]) -> Result<(), ReportError> {
    let title = match batch.shape[0] {
        n if n > MOST_SEQUENCES => format!("the first {MOST_SEQUENCES} of {n} samples"),
        n => format!("{n} samples"),
    };
    files::write(path.as_ref(), sequences_svg(&[SequenceSet { title: &title, batch }], range)?.as_bytes())
}

fn shown(set: &SequenceSet<'_>) -> usize {
    set.batch.shape[0].min(MOST_SEQUENCES)
}

fn check(batch: &ImageBatch) -> Result<(), ReportError> {
    batch.validate()?;
    let [_, channels, height, length] = batch.shape;
    if height != 1 {
        return Err(ReportError::NotSequences { shape: batch.shape });
    }
    match batch.data.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(ReportError::NonFinitePixel {
            image: at / (channels * length),
            channel: at / length % channels,
            row: 0,
            column: at % length,
            value: batch.data[at],
        }),
    }
}

fn panel(svg: &mut String, batch: &ImageBatch, index: usize, [x, y]: [f64; 2], [low, high]: [f64; 2]) {
    let [_, channels, _, length] = batch.shape;
    let _ = write!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"#f7f7f7\" stroke=\"#cccccc\"/>",
        PANEL[0], PANEL[1]
    );
    let down = |value: f64| y + PANEL[1] * (1.0 - value);
    if low < 0.0 && high > 0.0 {
        let zero = down(-low / (high - low));
        let _ = write!(svg, "<path d=\"M{x} {zero:.1}h{}\" stroke=\"#dddddd\"/>", PANEL[0]);
    }
    // In turn, if there are more channels; the last one is black.
    let colours = COLOURS.into_iter().chain([[0; 3]]).map(hex);
    for (channel, colour) in (0..channels).zip(colours.cycle()) {
        let values = &batch.data[(index * channels + channel) * length..][..length];
        let step = PANEL[0] / (length.max(2) - 1) as f64;
        let mut path = String::new();
        for (at, value) in values.iter().enumerate() {
            let command = if at == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x + at as f64 * step, down(f64::from(*value).clamp(0.0, 1.0)));
        }
        let _ = write!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\"/>");
    }
    svg.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(shape: [usize; 4]) -> ImageBatch {
        ImageBatch::new(shape, (0..shape.iter().product()).map(|i| (i % 7) as f32 / 6.0).collect()).unwrap()
    }

    #[test]
    fn a_curve_per_channel_and_a_panel_per_sequence() {
        let (real, generated) = (batch([3, 2, 1, 5]), batch([4, 2, 1, 5]));
        let one = sequences_svg(&[SequenceSet { title: "a & b", batch: &real }], [-1.0, 1.0]).unwrap();
        assert_eq!((one.matches("fill=\"none\"").count(), one.matches("#f7f7f7").count()), (6, 3));
        assert!(one.contains("a &amp; b") && one.contains("5 positions") && one.contains("-1.0000 (bottom)"));
        let sets = [("real", &real), ("generated", &generated)].map(|(title, batch)| SequenceSet { title, batch });
        let both = sequences_svg(&sets, [0.0, 1.0]).unwrap();
        assert_eq!(both.matches("#f7f7f7").count(), 7);
        // Two columns of panels.
        assert!(both.contains(&format!("viewBox=\"0 0 {} ", 3.0 * GAP + 2.0 * PANEL[0])), "{both}");
    }

    #[test]
    fn a_picture_of_many_says_that_it_shows_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.svg");
        for (n, panels, title) in [(100, 100, ">100 samples<"), (101, 100, ">the first 100 of 101 samples<")] {
            save_sequences(&path, &batch([n, 1, 1, 2]), [0.0, 1.0]).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            assert_eq!(svg.matches("#f7f7f7").count(), panels);
            assert!(svg.contains(title), "{title}");
        }
    }

    #[test]
    fn what_is_no_sequence_is_refused() {
        let of = |batch: &ImageBatch| {
            sequences_svg(&[SequenceSet { title: "", batch }], [0.0, 1.0]).unwrap_err().to_string()
        };
        assert!(of(&batch([1, 1, 2, 3])).contains("[1, 1, 2, 3]"));
        let mut broken = batch([2, 1, 1, 3]);
        broken.data[4] = f32::NAN;
        assert!(of(&broken).contains("image 1"), "{}", of(&broken));
    }
}
