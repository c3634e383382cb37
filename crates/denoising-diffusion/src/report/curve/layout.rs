//! From series to shapes: margins, axes, grid lines, legend, points and lines.

use super::super::ReportError;
use super::axis::{Axis, Tick, drawable};
use super::scene::{Anchor, Colour, Direction, Label, Scene, Shape};
use super::smooth::{smoothed, thinned};
use super::{CurveOptions, MAX_SIDE, MIN_SIZE, Series, YScale, text};

/// Okabe and Ito's colours, which stay apart for colour-blind readers.
const COLOURS: [Colour; 6] = [
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
];
const INK: Colour = [0x33, 0x33, 0x33];
const FRAME: Colour = [0x8c, 0x8c, 0x8c];
const GRID: Colour = [0xe6, 0xe6, 0xe6];

const TITLE_SIZE: f64 = 17.0;
const LABEL_SIZE: f64 = 14.0;
const TICK_SIZE: f64 = 13.0;
const EDGE: f64 = 16.0;
/// Between an axis and its tick labels.
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
    /// Whether the line differs from the points.
    smoothed: bool,
}

/// Lays out the whole picture.
pub(super) fn scene(series: &[Series], options: &CurveOptions) -> Result<Scene, ReportError> {
    let [width, height] = options.size;
    if width < MIN_SIZE[0] || height < MIN_SIZE[1] || width.max(height) > MAX_SIDE {
        return Err(size_error(options.size));
    }
    let traces: Vec<Trace> =
        series.iter().zip(COLOURS.iter().cycle()).filter_map(|(s, &c)| trace(s, c, options)).collect();
    let Some([x_range, y_range]) = ranges(&traces) else {
        let given = series.iter().map(|series| series.points.len()).sum();
        let scale = match options.y_scale {
            YScale::Linear => "linear",
            YScale::Log => "logarithmic",
        };
        return Err(ReportError::NoPoints { given, scale });
    };
    let x_axis = Axis::new(x_range.0, x_range.1, YScale::Linear, 0.0);
    let y_axis = Axis::new(y_range.0, y_range.1, options.y_scale, 0.05);

    let mut scene = Scene { width, height, shapes: Vec::new() };
    let top = header(&mut scene, &traces, &options.title);
    let plot = Plot::new(options, top, x_axis, y_axis);
    plot.axes(&mut scene, options);
    for trace in &traces {
        plot.trace(&mut scene, trace);
    }
    Ok(scene)
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

/// Ranges of x and y: all of x; of y the lines and the middle 99 % of the points.
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

/// Title and legend; returns where the plot may begin.
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

fn label(text: &str, at: [f64; 2], size: f64, anchor: Anchor) -> Shape {
    Shape::Text(Label { text: text.to_owned(), at, size, colour: INK, anchor, direction: Direction::Right })
}

/// The area in which data is drawn, with its axes.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_axis: Axis,
    y_axis: Axis,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
}

impl Plot {
    fn new(options: &CurveOptions, top: f64, x_axis: Axis, y_axis: Axis) -> Self {
        let [width, height] = options.size.map(f64::from);
        let widest = |ticks: &[Tick]| ticks.iter().map(|tick| text::width(&tick.label, TICK_SIZE)).fold(0.0, f64::max);
        let bottom = height - EDGE - LABEL_SIZE - GAP - TICK_SIZE - GAP;
        // A header that leaves no room (hundreds of series) is overdrawn rather than the plot turned inside out.
        let top = top.min(bottom - 100.0);
        let y_ticks = y_axis.ticks((((bottom - top) / 48.0) as usize).clamp(3, 12));
        let left = EDGE + LABEL_SIZE + GAP + widest(&y_ticks) + GAP;
        let mut most = 10;
        let mut x_ticks = x_axis.ticks(most);
        // Half of the last label may stand beyond the axis.
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
        Self { left, right, top, bottom, x_axis, y_axis, x_ticks, y_ticks }
    }

    fn x(&self, value: f64) -> f64 {
        self.left + self.x_axis.position(value) * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - self.y_axis.position(value) * (self.bottom - self.top)
    }

    fn axes(&self, scene: &mut Scene, options: &CurveOptions) {
        let Self { left, right, top, bottom, .. } = *self;
        let mut rule = |from: [f64; 2], to: [f64; 2], colour| {
            scene.shapes.push(Shape::Line { points: vec![from, to], colour, width: 1.0 });
        };
        for tick in &self.y_ticks {
            let y = self.y(tick.value);
            rule([left, y], [right, y], GRID);
        }
        for tick in &self.x_ticks {
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
        scene.shapes.push(label(&options.x_label, x_label_at, LABEL_SIZE, Anchor::Middle));
        scene.shapes.push(Shape::Text(Label {
            text: options.y_label.clone(),
            at: [EDGE + 0.8 * LABEL_SIZE, (top + bottom) / 2.0],
            size: LABEL_SIZE,
            colour: INK,
            anchor: Anchor::Middle,
            direction: Direction::Up,
        }));
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

    /// Left, top, right, bottom of the ink that a label may have.
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
