//! From series to shapes: margins, axes, grid lines, legend, points and lines.

use super::super::ReportError;
use super::axis::{Axis, Tick, drawable};
use super::scene::{Anchor, COLOURS, Colour, Direction, FRAME, GRID, INK, Label, Scene, Shape};
use super::smooth::{smoothed, thinned};
use super::{CurveOptions, MAX_SIDE, MIN_SIZE, Series, YScale, text};

const TITLE_SIZE: f64 = 17.0;
const LABEL_SIZE: f64 = 14.0;
pub(super) const TICK_SIZE: f64 = 13.0;
const EDGE: f64 = 16.0;
/// Distance between an axis and its tick labels.
const GAP: f64 = 8.0;
const LEGEND_ROW: f64 = 22.0;
const LEGEND_MARK: f64 = 24.0;

/// The error for a size that cannot be drawn.
pub(super) fn size_error([width, height]: [u32; 2]) -> ReportError {
    ReportError::CurveSize { width, height, min_width: MIN_SIZE[0], min_height: MIN_SIZE[1] }
}

/// A series ready to be drawn, in data coordinates.
struct Trace<'a> {
    name: &'a str,
    colour: Colour,
    raw: Vec<(f64, f64)>,
    line: Vec<(f64, f64)>,
    /// Whether the line is not simply through the points.
    smoothed: bool,
}

/// Lays out the whole picture.
pub(super) fn scene(series: &[Series], options: &CurveOptions) -> Result<Scene, ReportError> {
    scene_with_intervals(series, &[], options)
}

/// The uncertainty of a point: a vertical line at `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::report) struct Interval {
    pub x: f64,
    pub low: f64,
    pub high: f64,
}

/// Lays out the whole picture, with intervals around points of the first series.
pub(super) fn scene_with_intervals(
    series: &[Series],
    intervals: &[Interval],
    options: &CurveOptions,
) -> Result<Scene, ReportError> {
    let [width, height] = checked_size(options)?;
    let traces: Vec<Trace> =
        series.iter().zip(COLOURS.iter().cycle()).filter_map(|(s, &c)| trace(s, c, options)).collect();
    let Some([x_range, mut y_range]) = ranges(&traces) else {
        let given = series.iter().map(|series| series.points.len()).sum();
        let scale = match options.y_scale {
            YScale::Linear => "linear",
            YScale::Log => "logarithmic",
        };
        return Err(ReportError::NoPoints { given, scale });
    };
    let ends = intervals.iter().flat_map(|interval| [interval.low, interval.high]);
    for end in ends.filter(|&end| drawable(end, options.y_scale)) {
        y_range = (y_range.0.min(end), y_range.1.max(end));
    }
    let x_axis = Axis::new(x_range.0, x_range.1, YScale::Linear, 0.0);
    let y_axis = Axis::new(y_range.0, y_range.1, options.y_scale, 0.05);

    let mut scene = Scene { width, height, shapes: Vec::new() };
    let top = header(&mut scene, &traces, &options.title);
    let plot = Plot::new(options, top, x_axis, y_axis);
    plot.axes(&mut scene, options);
    if let Some(trace) = traces.first() {
        intervals.iter().for_each(|interval| plot.interval(&mut scene, interval, trace.colour));
    }
    for trace in &traces {
        plot.trace(&mut scene, trace);
    }
    Ok(scene)
}

/// The requested size, unless nothing can be drawn at it.
pub(super) fn checked_size(options: &CurveOptions) -> Result<[u32; 2], ReportError> {
    let [width, height] = options.size;
    let possible = width >= MIN_SIZE[0] && height >= MIN_SIZE[1] && width.max(height) <= MAX_SIDE;
    if possible { Ok(options.size) } else { Err(size_error(options.size)) }
}

fn trace<'a>(series: &'a Series, colour: Colour, options: &CurveOptions) -> Option<Trace<'a>> {
    let shown = |&(x, y): &(f64, f64)| drawable(x, YScale::Linear) && drawable(y, options.y_scale);
    let raw: Vec<(f64, f64)> = series.points.iter().copied().filter(shown).collect();
    let smoothed = smoothed(&raw, options.smoothing);
    (!raw.is_empty()).then_some(Trace {
        name: &series.name,
        colour,
        line: thinned(smoothed.as_deref().unwrap_or(&raw)),
        smoothed: smoothed.is_some(),
        raw,
    })
}

/// Ranges of x and y: all of x; for y, the lines and the middle 99 % of the points.
fn ranges(traces: &[Trace]) -> Option<[(f64, f64); 2]> {
    let extent = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(None, |range: Option<(f64, f64)>, v| {
            Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
        })
    };
    let quantiles = |trace: &Trace| {
        let mut ys: Vec<f64> = trace.raw.iter().map(|point| point.1).collect();
        ys.sort_by(f64::total_cmp);
        let beyond = ys.len() / 200;
        [ys[beyond], ys[ys.len() - 1 - beyond]]
    };
    let lines = traces.iter().flat_map(|trace| trace.line.iter().map(|point| point.1));
    let x = extent(&mut traces.iter().flat_map(|trace| trace.raw.iter().map(|point| point.0)))?;
    let y = extent(&mut lines.chain(traces.iter().flat_map(quantiles)))?;
    Some([x, y])
}

/// Draws title and legend; returns the y at which the plot may begin.
fn header(scene: &mut Scene, traces: &[Trace], title: &str) -> f64 {
    let mut y = EDGE;
    if !title.is_empty() {
        y += TITLE_SIZE;
        scene.shapes.push(label(title, [EDGE, y - 2.0], TITLE_SIZE, Anchor::Start));
        y += GAP;
    }
    let mut x = EDGE;
    let right = f64::from(scene.width) - EDGE;
    for trace in traces.iter().filter(|trace| !trace.name.is_empty()) {
        let width = LEGEND_MARK + GAP + text::width(trace.name, TICK_SIZE);
        if x > EDGE && x + width > right {
            x = EDGE;
            y += LEGEND_ROW;
        }
        let middle = y + LEGEND_ROW / 2.0;
        let points = vec![[x, middle], [x + LEGEND_MARK, middle]];
        scene.shapes.push(Shape::Line { points, colour: trace.colour, width: 3.0 });
        let at = [x + LEGEND_MARK + GAP, middle + 0.36 * TICK_SIZE];
        scene.shapes.push(label(trace.name, at, TICK_SIZE, Anchor::Start));
        x += width + 2.5 * GAP;
    }
    if x > EDGE { y + LEGEND_ROW + GAP } else { y + GAP }
}

pub(super) fn label(text: &str, at: [f64; 2], size: f64, anchor: Anchor) -> Shape {
    Shape::Text(Label { text: text.to_owned(), at, size, colour: INK, anchor, direction: Direction::Right })
}

/// The area in which data are drawn, with its axes.
pub(super) struct Plot {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    x_axis: Axis,
    y_axis: Axis,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    /// Whether the ticks of the x axis have grid lines.
    x_rules: bool,
}

impl Plot {
    fn new(options: &CurveOptions, top: f64, x_axis: Axis, y_axis: Axis) -> Self {
        let [width, height] = options.size.map(f64::from);
        let widest = |ticks: &[Tick]| ticks.iter().map(|tick| text::width(&tick.label, TICK_SIZE)).fold(0.0, f64::max);
        let room_for = |label: &str| if label.is_empty() { 0.0 } else { LABEL_SIZE + GAP };
        let bottom = height - EDGE - room_for(&options.x_label) - TICK_SIZE - GAP;
        // If a header leaves no room (hundreds of series), the plot is drawn over it; otherwise it would be upside down.
        let top = top.min(bottom - 100.0);
        let y_ticks = y_axis.ticks((((bottom - top) / 48.0) as usize).clamp(3, 12));
        let left = EDGE + room_for(&options.y_label) + widest(&y_ticks) + GAP;
        let mut most = 10;
        let mut x_ticks = x_axis.ticks(most);
        // Half of the last label may extend beyond the axis.
        let mut right = width - EDGE - widest(&x_ticks) / 2.0;
        let spacing = |ticks: &[Tick], right: f64| match ticks {
            [first, second, ..] => (x_axis.position(second.value) - x_axis.position(first.value)) * (right - left),
            _ => f64::INFINITY,
        };
        while most > 2 && spacing(&x_ticks, right) < widest(&x_ticks) + 2.5 * GAP {
            most -= 1;
            x_ticks = x_axis.ticks(most);
            right = width - EDGE - widest(&x_ticks) / 2.0;
        }
        Self { left, right, top, bottom, x_axis, y_axis, x_ticks, y_ticks, x_rules: true }
    }

    /// With names instead of numbers below the x axis; name i is at x = i.
    pub fn of_categories(options: &CurveOptions, names: &[&str], y_axis: Axis) -> Self {
        let x_axis = Axis::spanning(-0.5, names.len() as f64 - 0.5);
        let tick = |(index, name): (usize, &&str)| Tick { value: index as f64, label: (*name).to_owned() };
        let x_ticks = names.iter().enumerate().map(tick).collect();
        let right = f64::from(options.size[0]) - EDGE;
        Self { right, x_ticks, x_rules: false, ..Self::new(options, EDGE, x_axis, y_axis) }
    }

    pub fn x(&self, value: f64) -> f64 {
        self.left + self.x_axis.position(value) * (self.right - self.left)
    }

    pub fn y(&self, value: f64) -> f64 {
        self.bottom - self.y_axis.position(value) * (self.bottom - self.top)
    }

    pub fn axes(&self, scene: &mut Scene, options: &CurveOptions) {
        let Self { left, right, top, bottom, .. } = *self;
        let mut rule = |from: [f64; 2], to: [f64; 2], colour| {
            scene.shapes.push(Shape::Line { points: vec![from, to], colour, width: 1.0 });
        };
        for tick in &self.y_ticks {
            let y = self.y(tick.value);
            rule([left, y], [right, y], GRID);
        }
        for tick in self.x_ticks.iter().filter(|_| self.x_rules) {
            let x = self.x(tick.value);
            rule([x, top], [x, bottom], GRID);
        }
        rule([left, top], [left, bottom], FRAME);
        rule([left, bottom], [right, bottom], FRAME);

        for tick in &self.y_ticks {
            let at = [left - GAP, self.y(tick.value) + 0.36 * TICK_SIZE];
            scene.shapes.push(label(&tick.label, at, TICK_SIZE, Anchor::End));
        }
        for tick in &self.x_ticks {
            let at = [self.x(tick.value), bottom + GAP + 0.8 * TICK_SIZE];
            scene.shapes.push(label(&tick.label, at, TICK_SIZE, Anchor::Middle));
        }
        let x_label_at = [(left + right) / 2.0, f64::from(options.size[1]) - EDGE];
        let axis_label = |text: &str, at, direction| {
            Shape::Text(Label {
                text: text.to_owned(),
                at,
                size: LABEL_SIZE,
                colour: INK,
                anchor: Anchor::Middle,
                direction,
            })
        };
        if !options.x_label.is_empty() {
            scene.shapes.push(axis_label(&options.x_label, x_label_at, Direction::Right));
        }
        let y_label_at = [EDGE + 0.8 * LABEL_SIZE, (top + bottom) / 2.0];
        if !options.y_label.is_empty() {
            scene.shapes.push(axis_label(&options.y_label, y_label_at, Direction::Up));
        }
    }

    /// An interval with short bars at its ends; parts outside the plot are cut off.
    fn interval(&self, scene: &mut Scene, interval: &Interval, colour: Colour) {
        let Interval { x, low, high } = *interval;
        let comparable = low < high;
        if !comparable || !drawable(x, YScale::Linear) {
            return;
        }
        let x = self.x(x);
        // A logarithmic axis has no position for values below zero; `min` turns the resulting NaN into the bottom.
        let [low, high] = [low, high].map(|end| self.y(end).min(self.bottom).max(self.top));
        let mut line = |points: [[f64; 2]; 2]| {
            scene.shapes.push(Shape::Line { points: points.to_vec(), colour, width: 1.2 });
        };
        line([[x, low], [x, high]]);
        // On a shorter interval, the end bars would only look like corners of the point.
        for end in [low, high].into_iter().filter(|_| low - high > 9.0) {
            line([[x - 3.0, end], [x + 3.0, end]]);
        }
    }

    fn trace(&self, scene: &mut Scene, trace: &Trace) {
        let place = |&(x, y): &(f64, f64)| [self.x(x), self.y(y)];
        let inside = |[_, y]: &[f64; 2]| (self.top..=self.bottom).contains(y);
        let points: Vec<[f64; 2]> = thinned(&trace.raw).iter().map(place).filter(inside).collect();
        let (radius, opacity) = if trace.smoothed { (1.3, 0.22) } else { (3.0, 1.0) };
        scene.shapes.push(Shape::Dots { points, colour: trace.colour, radius, opacity });
        if trace.line.len() > 1 {
            let points = trace.line.iter().map(place).collect();
            scene.shapes.push(Shape::Line { points, colour: trace.colour, width: 2.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Smoothing;
    use super::*;
    use proptest::prelude::*;

    /// Left, top, right and bottom of the area that a label may draw on.
    fn bounds(label: &Label) -> [f64; 4] {
        let width = text::width(&label.text, label.size);
        let (before, after) = (width * label.anchor.part_before(), width * (1.0 - label.anchor.part_before()));
        let (above, below) = (0.76 * label.size, 0.24 * label.size);
        let [x, y] = label.at;
        match label.direction {
            Direction::Right => [x - before, y - above, x + after, y + below],
            Direction::Up => [x - above, y - after, x + below, y + before],
        }
    }

    #[test]
    fn an_outlier_does_not_flatten_the_rest() {
        let mut points: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(i), 1.0 + f64::from(i % 7) * 0.01)).collect();
        points[200].1 = 1e6;
        let series = [Series { name: String::new(), points }];
        let dots = |smoothing| {
            let options = CurveOptions { smoothing, ..Default::default() };
            let scene = scene(&series, &options).unwrap();
            let dots = |shape: &Shape| match shape {
                Shape::Dots { points, .. } => Some(points.len()),
                _ => None,
            };
            scene.shapes.iter().find_map(dots)
        };
        assert_eq!(dots(Smoothing::None), Some(400), "the line shows it");
        assert_eq!(dots(Smoothing::Ema(0.9)), Some(399));
    }

    #[test]
    fn intervals_have_room_and_stay_inside() {
        let series = [Series { name: String::new(), points: vec![(1.0, 2.0), (2.0, 3.0)] }];
        let interval = |x, low, high| Interval { x, low, high };
        let heights = |intervals: &[Interval], y_scale| -> Vec<f64> {
            let options = CurveOptions { y_scale, size: [400, 260], ..Default::default() };
            let scene = scene_with_intervals(&series, intervals, &options).unwrap();
            let upright = |shape: &Shape| match shape {
                Shape::Line { points, colour, .. } if *colour == COLOURS[0] && points[0][0] == points[1][0] => {
                    assert!(points.iter().all(|[_, y]| (0.0..=260.0).contains(y)), "{points:?}");
                    Some(points[0][1] - points[1][1])
                }
                _ => None,
            };
            scene.shapes.iter().filter_map(upright).collect()
        };
        let linear = heights(&[interval(1.0, 1.0, 3.0), interval(2.0, 2.5, 3.5)], YScale::Linear);
        assert!((linear[0] / linear[1] - 2.0).abs() < 1e-9, "{linear:?}");
        let below_zero = heights(&[interval(1.0, -1.0, 3.0), interval(2.0, f64::NAN, 4.0)], YScale::Log);
        assert!(below_zero.len() == 1 && below_zero[0] > 10.0, "{below_zero:?}");
    }

    proptest! {
        #[test]
        fn nothing_overlaps_or_leaves_the_picture(
            count in 1_usize..600,
            first in 0_u32..2_000_000,
            every in 1_u32..3000,
            level in -6_i32..6,
            decades in 0.0_f64..8.0,
            series in 1_usize..4,
            log in any::<bool>(),
            size in (320_u32..1200, 240_u32..900),
        ) {
            let x = |i: usize| f64::from(first) + i as f64 * f64::from(every);
            let y = |i: usize, k: usize| {
                10_f64.powi(level) * 10_f64.powf(-decades * i as f64 / count as f64) * (1.0 + k as f64)
            };
            let series: Vec<Series> = (0..series)
                .map(|k| Series {
                    name: format!("loss of quarter {k}"),
                    points: (0..count).map(|i| (x(i), y(i, k))).collect(),
                })
                .collect();
            let options = CurveOptions {
                title: "Loss of a run".into(),
                y_scale: if log { YScale::Log } else { YScale::Linear },
                size: [size.0, size.1],
                ..Default::default()
            };
            let scene = scene(&series, &options).unwrap();
            let (width, height) = (f64::from(size.0), f64::from(size.1));
            let labels: Vec<&Label> = scene.shapes.iter().filter_map(|shape| match shape {
                Shape::Text(label) => Some(label),
                _ => None,
            }).collect();
            for (index, label) in labels.iter().enumerate() {
                let [l, t, r, b] = bounds(label);
                prop_assert!(l >= 0.0 && t >= 0.0 && r <= width && b <= height, "{label:?} leaves the picture");
                for other in &labels[..index] {
                    let [ol, ot, or, ob] = bounds(other);
                    prop_assert!(l >= or || r <= ol || t >= ob || b <= ot, "{label:?} overlaps {other:?}");
                }
            }
            for shape in &scene.shapes {
                let (Shape::Line { points, .. } | Shape::Dots { points, .. }) = shape else { continue };
                for [x, y] in points {
                    prop_assert!((0.0..=width).contains(x) && (0.0..=height).contains(y), "{x}, {y}");
                }
            }
        }
    }
}
