//! A scene as pixels, anti-aliased.

use tiny_skia::{Color, FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, Stroke, Transform};

use super::super::ReportError;
use super::super::raster::Raster;
use super::scene::{Colour, Scene, Shape};
use super::text;

/// Pixels per SVG unit: sharp on dense screens.
pub(in crate::report) const DENSITY: u32 = 2;

/// Draws `scene` on white, as RGB.
pub(in crate::report) fn draw(scene: &Scene) -> Result<Raster, ReportError> {
    let (width, height) = (scene.width * DENSITY, scene.height * DENSITY);
    let mut pixmap =
        Pixmap::new(width, height).ok_or_else(|| super::layout::size_error([scene.width, scene.height]))?;
    pixmap.fill(Color::WHITE);
    let dense = Transform::from_scale(DENSITY as f32, DENSITY as f32);
    for shape in &scene.shapes {
        match shape {
            Shape::Line { points, colour, width } => {
                let mut path = PathBuilder::new();
                for (index, &[x, y]) in points.iter().enumerate() {
                    if index == 0 {
                        path.move_to(x as f32, y as f32);
                    } else {
                        path.line_to(x as f32, y as f32);
                    }
                }
                let stroke = Stroke {
                    width: *width as f32,
                    line_cap: LineCap::Butt,
                    line_join: LineJoin::Round,
                    ..Stroke::default()
                };
                if let Some(path) = path.finish() {
                    pixmap.stroke_path(&path, &paint(*colour, 1.0), &stroke, dense, None);
                }
            }
            // One by one, so that overlapping dots are darker.
            Shape::Dots { points, colour, radius, opacity } => {
                for &[x, y] in points {
                    if let Some(disc) = PathBuilder::from_circle(x as f32, y as f32, *radius as f32) {
                        pixmap.fill_path(&disc, &paint(*colour, *opacity), FillRule::Winding, dense, None);
                    }
                }
            }
            Shape::Bar { from, to, colour, opacity } => {
                let [left, top, right, bottom] = [from[0], from[1], to[0], to[1]].map(|side| side as f32);
                if let Some(bar) = Rect::from_ltrb(left, top, right, bottom) {
                    pixmap.fill_rect(bar, &paint(*colour, *opacity), dense, None);
                }
            }
            Shape::Text(label) => {
                if let Some(path) = text::outline(label) {
                    pixmap.fill_path(&path, &paint(label.colour, 1.0), FillRule::Winding, dense, None);
                }
            }
        }
    }
    // The background is opaque, so premultiplied colours equal the colours.
    let pixels = pixmap.data().chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect();
    Ok(Raster { width: width as usize, height: height as usize, channels: 3, pixels })
}

fn paint([red, green, blue]: Colour, opacity: f64) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(red, green, blue, (opacity * 255.0).round() as u8);
    paint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_where_they_should_be() {
        let scene = Scene {
            width: 20,
            height: 10,
            shapes: vec![
                Shape::Line { points: vec![[0.0, 2.0], [20.0, 2.0]], colour: [255, 0, 0], width: 2.0 },
                Shape::Dots { points: vec![[5.0, 7.0]], colour: [0, 0, 255], radius: 2.0, opacity: 0.5 },
                Shape::Bar { from: [14.0, 5.0], to: [17.0, 9.0], colour: [0, 255, 0], opacity: 1.0 },
            ],
        };
        let raster = draw(&scene).unwrap();
        assert_eq!((raster.width, raster.height), (40, 20));
        let pixel = |x: usize, y: usize| &raster.pixels[(y * 40 + x) * 3..][..3];
        assert_eq!(pixel(20, 1), [255, 255, 255]);
        assert_eq!(pixel(20, 3), [255, 0, 0]);
        assert_eq!(pixel(20, 7), [255, 255, 255]);
        assert!(pixel(10, 14)[0].abs_diff(127) <= 1 && pixel(10, 14)[2] == 255);
        assert_eq!(pixel(16, 14), [255, 255, 255]);
        assert_eq!([pixel(28, 10), pixel(33, 17), pixel(34, 17)], [[0, 255, 0], [0, 255, 0], [255, 255, 255]]);
    }
}
