//! The embedded font: widths of texts, and outlines of glyphs. No kerning, no shaping.

use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder, Transform};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use super::scene::{Direction, Label};

static FACE: LazyLock<Face<'static>> = LazyLock::new(|| {
    let bytes = include_bytes!("../../../assets/font/DejaVuSans-subset.ttf");
    Face::parse(bytes, 0).expect("the embedded font is one that every test parses")
});

/// The glyph of a character, or the font's glyph for missing characters.
fn glyph(character: char) -> GlyphId {
    FACE.glyph_index(character).unwrap_or_default()
}

fn advance(glyph: GlyphId) -> f64 {
    f64::from(FACE.glyph_hor_advance(glyph).unwrap_or(0)) / f64::from(FACE.units_per_em())
}

/// Width of `text` at font size `size`, in the unit of `size`.
pub(in crate::report) fn width(text: &str, size: f64) -> f64 {
    text.chars().map(|character| advance(glyph(character))).sum::<f64>() * size
}

/// The outlines of a label at its position; `None` if there is nothing to fill (spaces).
pub(super) fn outline(label: &Label) -> Option<Path> {
    let mut outline = Outline(PathBuilder::new());
    let per_unit = (label.size / f64::from(FACE.units_per_em())) as f32;
    let mut pen = -width(&label.text, label.size) * label.anchor.part_before();
    let [x, y] = label.at;
    let mut text = PathBuilder::new();
    for character in label.text.chars() {
        let glyph = glyph(character);
        outline.0.clear();
        FACE.outline_glyph(glyph, &mut outline);
        // The y axis of fonts points up; that of the picture points down.
        let place = match label.direction {
            Direction::Right => Transform::from_row(per_unit, 0.0, 0.0, -per_unit, (x + pen) as f32, y as f32),
            Direction::Up => Transform::from_row(0.0, -per_unit, -per_unit, 0.0, x as f32, (y - pen) as f32),
        };
        let path = std::mem::take(&mut outline.0).finish().and_then(|path| path.transform(place));
        if let Some(path) = path {
            text.push_path(&path);
        }
        pen += advance(glyph) * label.size;
    }
    text.finish()
}

struct Outline(PathBuilder);

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        self.0.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.0.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.0.cubic_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::Anchor;
    use super::*;

    #[test]
    fn widths_are_the_fonts() {
        // DejaVu Sans has 2048 units per em; digits are 1303 wide, a space 651.
        assert!((width("10", 2048.0) - 2606.0).abs() < 1e-9);
        assert!((width("1 0", 2048.0) - 3257.0).abs() < 1e-9);
    }

    #[test]
    fn the_font_has_what_labels_use() {
        let printable = (' '..='~').chain("µσεαβγδηθλ×−–—…·±²³°≤≥≈".chars());
        let missing: Vec<char> = printable.filter(|&c| FACE.glyph_index(c).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn outlines_stand_at_their_anchor() {
        let label = |anchor, direction| Label {
            text: "HH".into(),
            at: [100.0, 50.0],
            size: 10.0,
            colour: [0; 3],
            anchor,
            direction,
        };
        let bounds = |anchor, direction| outline(&label(anchor, direction)).unwrap().bounds();
        let start = bounds(Anchor::Start, Direction::Right);
        assert!(start.left() > 100.0 && start.bottom() == 50.0 && start.top() < 43.0);
        let end = bounds(Anchor::End, Direction::Right);
        assert!(end.right() < 100.0 && (end.width() - start.width()).abs() < 1e-3);
        let up = bounds(Anchor::Start, Direction::Up);
        assert!(up.bottom() < 50.0 && up.right() == 100.0 && (up.height() - start.width()).abs() < 1e-3);
    }
}
