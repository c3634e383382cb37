//! A scene as SVG text.

use std::fmt::Write;

use super::scene::{Anchor, COLOURS, Colour, Direction, FRAME, GRID, INK, Label, Scene, Shape};

/// The complete file.
pub(super) fn write(scene: &Scene) -> String {
    let Scene { width, height, shapes } = scene;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    draw(&mut svg, shapes, Palette::Fixed);
    svg.push_str("</svg>\n");
    svg
}

/// An element for an HTML page: as wide as its container, transparent, in the colours of the page's variables `--ink`, `--frame`, `--grid` and
/// `--series-1` to `--series-6`. `description` is for readers who cannot see it.
pub(super) fn inline(scene: &Scene, description: &str) -> String {
    let Scene { width, height, shapes } = scene;
    let description = escape(description);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{description}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\">\n"
    );
    draw(&mut svg, shapes, Palette::OfPage);
    svg.push_str("</svg>\n");
    svg
}

/// How colours are written.
#[derive(Clone, Copy)]
enum Palette {
    /// Literally: the file stands alone.
    Fixed,
    /// As variables of the surrounding page, which differ between light and dark.
    OfPage,
}

impl Palette {
    /// An attribute that sets `property` (`fill`, `stroke`) to this colour.
    fn attribute(self, property: &str, colour: Colour) -> String {
        let variable = match colour {
            INK => Some("ink".to_owned()),
            FRAME => Some("frame".to_owned()),
            GRID => Some("grid".to_owned()),
            _ => COLOURS.iter().position(|&c| c == colour).map(|index| format!("series-{}", index + 1)),
        };
        match (self, variable) {
            // Variables are valid in styles; not every viewer resolves them in attributes.
            (Self::OfPage, Some(name)) => format!("style=\"{property}:var(--{name})\""),
            _ => format!("{property}=\"{}\"", hex(colour)),
        }
    }
}

fn draw(svg: &mut String, shapes: &[Shape], palette: Palette) {
    for shape in shapes {
        match shape {
            Shape::Line { points, colour, width } => {
                let points: Vec<String> = points.iter().map(|&[x, y]| format!("{},{}", unit(x), unit(y))).collect();
                let (points, stroke, width) = (points.join(" "), palette.attribute("stroke", *colour), unit(*width));
                push(
                    svg,
                    format_args!(
                        "<polyline points=\"{points}\" fill=\"none\" {stroke} stroke-width=\"{width}\" \
                     stroke-linejoin=\"round\"/>\n"
                    ),
                );
            }
            Shape::Dots { points, colour, radius, opacity } => {
                let fill = palette.attribute("fill", *colour);
                push(svg, format_args!("<g {fill} fill-opacity=\"{}\">\n", unit(*opacity)));
                for &[x, y] in points {
                    let (x, y, radius) = (unit(x), unit(y), unit(*radius));
                    push(svg, format_args!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"/>\n"));
                }
                svg.push_str("</g>\n");
            }
            Shape::Bar { from, to, colour, opacity } => {
                let ([x, y], [width, height]) = (from.map(unit), [to[0] - from[0], to[1] - from[1]].map(unit));
                let (fill, opacity) = (palette.attribute("fill", *colour), unit(*opacity));
                push(
                    svg,
                    format_args!(
                        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" {fill} fill-opacity=\"{opacity}\"/>\n"
                    ),
                );
            }
            Shape::Text(label) => text(svg, label, palette),
        }
    }
}

fn text(svg: &mut String, label: &Label, palette: Palette) {
    let [x, y] = label.at.map(unit);
    let anchor = match label.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let turn = match label.direction {
        Direction::Right => String::new(),
        Direction::Up => format!(" transform=\"rotate(-90 {x} {y})\""),
    };
    let (size, fill, text) = (unit(label.size), palette.attribute("fill", label.colour), escape(&label.text));
    push(
        svg,
        format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" {fill} text-anchor=\"{anchor}\"{turn}>{text}</text>\n"
        ),
    );
}

fn push(svg: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = svg.write_fmt(arguments);
}

/// Hundredths of a unit are finer than any screen.
fn unit(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

pub(in crate::report) fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Escapes text for XML and HTML, in elements and in quoted attributes; characters that XML 1.0 does not allow become U+FFFD.
pub(in crate::report) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(character),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_become_elements() {
        let scene = Scene {
            width: 20,
            height: 10,
            shapes: vec![
                Shape::Line { points: vec![[0.0, 1.0 / 3.0], [20.0, 2.0]], colour: [255, 0, 10], width: 2.0 },
                Shape::Dots { points: vec![[5.0, 7.0]], colour: [0, 0, 255], radius: 1.5, opacity: 0.25 },
                Shape::Bar { from: [1.0, 2.0], to: [4.0, 7.5], colour: GRID, opacity: 0.5 },
                Shape::Text(Label {
                    text: "a<b & c\u{1}".into(),
                    at: [3.0, 4.0],
                    size: 12.0,
                    colour: [0; 3],
                    anchor: Anchor::Middle,
                    direction: Direction::Up,
                }),
            ],
        };
        let svg = write(&scene);
        let lines: Vec<&str> = svg.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "<polyline points=\"0,0.33 20,2\" fill=\"none\" stroke=\"#ff000a\" stroke-width=\"2\" stroke-linejoin=\"round\"/>",
                "<g fill=\"#0000ff\" fill-opacity=\"0.25\">",
                "<circle cx=\"5\" cy=\"7\" r=\"1.5\"/>",
                "</g>",
                "<rect x=\"1\" y=\"2\" width=\"3\" height=\"5.5\" fill=\"#e6e6e6\" fill-opacity=\"0.5\"/>",
                "<text x=\"3\" y=\"4\" font-size=\"12\" fill=\"#000000\" text-anchor=\"middle\" transform=\"rotate(-90 3 4)\">a&lt;b &amp; c\u{fffd}</text>",
                "</svg>",
            ]
        );
    }

    #[test]
    fn an_inline_picture_has_the_pages_colours() {
        let line = |colour| Shape::Line { points: vec![[0.0, 1.0], [2.0, 2.0]], colour, width: 1.0 };
        let shapes = vec![line(INK), line(COLOURS[1]), line([1, 2, 3])];
        let svg = inline(&Scene { width: 20, height: 10, shapes }, "a \"curve\"");
        assert!(svg.starts_with("<svg viewBox=\"0 0 20 10\" role=\"img\" aria-label=\"a &quot;curve&quot;\""), "{svg}");
        for colour in ["style=\"stroke:var(--ink)\"", "style=\"stroke:var(--series-2)\"", "stroke=\"#010203\""] {
            assert!(svg.contains(colour), "{svg}");
        }
        assert!(!svg.contains("<rect"), "{svg}");
    }
}
