//! A scene as SVG text.

use std::fmt::Write;

use super::scene::{Anchor, Colour, Direction, Label, Scene, Shape};

/// The whole file.
pub(super) fn write(scene: &Scene) -> String {
    let Scene { width, height, shapes } = scene;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for shape in shapes {
        match shape {
            Shape::Line { points, colour, width } => {
                let points: Vec<String> = points.iter().map(|&[x, y]| format!("{},{}", unit(x), unit(y))).collect();
                let (points, colour, width) = (points.join(" "), hex(*colour), unit(*width));
                push(
                    &mut svg,
                    format_args!(
                        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
                     stroke-linejoin=\"round\"/>\n"
                    ),
                );
            }
            Shape::Dots { points, colour, radius, opacity } => {
                push(&mut svg, format_args!("<g fill=\"{}\" fill-opacity=\"{}\">\n", hex(*colour), unit(*opacity)));
                for &[x, y] in points {
                    let (x, y, radius) = (unit(x), unit(y), unit(*radius));
                    push(&mut svg, format_args!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"/>\n"));
                }
                svg.push_str("</g>\n");
            }
            Shape::Text(label) => text(&mut svg, label),
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, label: &Label) {
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
    let (size, colour, text) = (unit(label.size), hex(label.colour), escape(&label.text));
    push(
        svg,
        format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\"{turn}>{text}</text>\n"
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

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// XML text; characters that XML 1.0 does not allow become U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
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
                "<text x=\"3\" y=\"4\" font-size=\"12\" fill=\"#000000\" text-anchor=\"middle\" transform=\"rotate(-90 3 4)\">a&lt;b &amp; c\u{fffd}</text>",
                "</svg>",
            ]
        );
    }
}
