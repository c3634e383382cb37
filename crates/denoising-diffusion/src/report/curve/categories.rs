//! Bars and boxes: values side by side, with names instead of numbers on the x axis.
//!
//! Axes, margins and shapes are those of curves. Not here: how many categories are sensible (the caller).

use super::super::ReportError;
use super::axis::{Axis, drawable};
use super::layout::{Plot, TICK_SIZE, checked_size, label};
use super::scene::{Anchor, COLOURS, Colour, FRAME, INK, Scene, Shape};
use super::{CurveOptions, YScale};

/// Fraction of a category's width that its bar or box takes.
const FILLED: f64 = 0.56;

/// A value drawn as a bar.
pub(in crate::report) struct Bar<'a> {
    /// Written below the bar.
    pub name: &'a str,
    pub value: f64,
    /// Written above the bar.
    pub text: String,
}

/// A distribution drawn as a box.
pub(in crate::report) struct Quantiles<'a> {
    /// Written below the box.
    pub name: &'a str,
    /// At 0, .05, .25, .5, .75, .95 and 1. The box is the middle half; whiskers are at 5 % and 95 %, dots at the ends.
    pub at: [f64; 7],
}

/// Bars from zero, with their values above them; the place of a value that cannot be drawn stays empty.
pub(super) fn bars(bars: &[Bar], options: &CurveOptions) -> Result<Scene, ReportError> {
    let [width, height] = checked_size(options)?;
    let values = bars.iter().map(|bar| bar.value);
    let (low, high) = extent(values.chain([0.0]), bars.len())?;
    // Room for the text above the highest bar.
    let y_axis = Axis::new(low, if high > low { high + 0.05 * (high - low) } else { high }, YScale::Linear, 0.05);
    let names: Vec<&str> = bars.iter().map(|bar| bar.name).collect();
    let plot = Plot::of_categories(options, &names, y_axis);
    let mut scene = Scene { width, height, shapes: Vec::new() };
    plot.axes(&mut scene, options);
    for (index, bar) in bars.iter().enumerate().filter(|(_, bar)| drawable(bar.value, YScale::Linear)) {
        let [left, right] = sides(&plot, index);
        let (zero, end) = (plot.y(0.0), plot.y(bar.value));
        let (from, to) = ([left, end.min(zero)], [right, end.max(zero)]);
        scene.shapes.push(Shape::Bar { from, to, colour: COLOURS[0], opacity: 1.0 });
        let at = [plot.x(index as f64), from[1] - 0.4 * TICK_SIZE];
        scene.shapes.push(label(&bar.text, at, TICK_SIZE, Anchor::Middle));
    }
    Ok(scene)
}

/// Boxes side by side, with a thin line across at `mark`.
pub(super) fn boxes(boxes: &[Quantiles], mark: Option<f64>, options: &CurveOptions) -> Result<Scene, ReportError> {
    let [width, height] = checked_size(options)?;
    let values = boxes.iter().flat_map(|one| one.at).chain(mark);
    let (low, high) = extent(values, boxes.len() * 7)?;
    let names: Vec<&str> = boxes.iter().map(|one| one.name).collect();
    let plot = Plot::of_categories(options, &names, Axis::new(low, high, YScale::Linear, 0.05));
    let mut scene = Scene { width, height, shapes: Vec::new() };
    plot.axes(&mut scene, options);
    if let Some(mark) = mark.filter(|&mark| drawable(mark, YScale::Linear)) {
        let y = plot.y(mark);
        scene.shapes.push(line([[plot.left, y], [plot.right, y]], FRAME, 1.0));
    }
    let whole = |one: &Quantiles| one.at.iter().all(|&value| drawable(value, YScale::Linear));
    for (index, one) in boxes.iter().enumerate().filter(|(_, one)| whole(one)) {
        distribution(&mut scene, &plot, index, &one.at);
    }
    Ok(scene)
}

fn distribution(scene: &mut Scene, plot: &Plot, index: usize, quantiles: &[f64; 7]) {
    let colour = COLOURS[(index + 1) % 2];
    let [left, right] = sides(plot, index);
    let middle = plot.x(index as f64);
    let [least, low, lower, median, upper, high, most] = quantiles.map(|value| plot.y(value));
    let cap = 0.25 * (right - left);
    for [end, edge] in [[low, lower], [high, upper]] {
        scene.shapes.push(line([[middle, end], [middle, edge]], colour, 1.5));
        scene.shapes.push(line([[middle - cap, end], [middle + cap, end]], colour, 1.5));
    }
    scene.shapes.push(Shape::Bar { from: [left, upper], to: [right, lower], colour, opacity: 0.45 });
    scene.shapes.push(line([[left, median], [right, median]], INK, 2.0));
    let points = vec![[middle, least], [middle, most]];
    scene.shapes.push(Shape::Dots { points, colour, radius: 2.5, opacity: 1.0 });
}

/// Left and right side of a category's bar.
fn sides(plot: &Plot, index: usize) -> [f64; 2] {
    [-FILLED / 2.0, FILLED / 2.0].map(|offset| plot.x(index as f64 + offset))
}

fn line(points: [[f64; 2]; 2], colour: Colour, width: f64) -> Shape {
    Shape::Line { points: points.to_vec(), colour, width }
}

/// The smallest and the largest of the values that can be drawn.
fn extent(values: impl Iterator<Item = f64>, given: usize) -> Result<(f64, f64), ReportError> {
    values
        .filter(|&value| drawable(value, YScale::Linear))
        .map(|value| (value, value))
        .reduce(|(low, high), (value, _)| (low.min(value), high.max(value)))
        .filter(|_| given > 0)
        .ok_or(ReportError::NoPoints { given, scale: "linear" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(scene: &Scene) -> Vec<([f64; 2], [f64; 2])> {
        let bar = |shape: &Shape| match shape {
            Shape::Bar { from, to, .. } => Some((*from, *to)),
            _ => None,
        };
        scene.shapes.iter().filter_map(bar).collect()
    }

    fn options() -> CurveOptions {
        CurveOptions { size: [400, 260], ..Default::default() }
    }

    #[test]
    fn bars_are_as_high_as_their_values() {
        let bar = |value| Bar { name: "quarter", value, text: String::new() };
        let scene = bars(&[bar(0.25), bar(0.5), bar(f64::NAN), bar(1.0)], &options()).unwrap();
        let heights: Vec<f64> = shapes(&scene).iter().map(|(from, to)| to[1] - from[1]).collect();
        assert_eq!(heights.len(), 3);
        assert!((heights[1] / heights[0] - 2.0).abs() < 1e-9 && (heights[2] / heights[0] - 4.0).abs() < 1e-9);
        assert!(bars(&[], &options()).is_err());
        assert!(bars(&[bar(0.0), bar(0.0)], &options()).is_ok());
    }

    #[test]
    fn boxes_stay_inside() {
        let one =
            |shift: f64| Quantiles { name: "samples", at: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9].map(|q| q + shift) };
        let scene = boxes(&[one(0.0), one(0.1)], Some(0.2), &options()).unwrap();
        let boxes_drawn = shapes(&scene);
        assert_eq!(boxes_drawn.len(), 2);
        for shape in &scene.shapes {
            let (Shape::Line { points, .. } | Shape::Dots { points, .. }) = shape else { continue };
            assert!(points.iter().all(|[x, y]| (0.0..=400.0).contains(x) && (0.0..=260.0).contains(y)), "{shape:?}");
        }
        let same = Quantiles { name: "samples", at: [0.0; 7] };
        assert!(boxes(&[same], None, &options()).is_ok());
        let nothing = Quantiles { name: "samples", at: [f64::NAN; 7] };
        assert!(boxes(&[nothing], None, &options()).is_err());
    }
}
