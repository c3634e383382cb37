//! Loss curves as SVG and PNG: faint points as measured, a smoothed line over them, on white.
//!
//! `layout` turns series into a list of shapes with the ticks of `axis`; `svg` and `raster` write that same list, so both files show the same
//! picture. This is our own and not a plotting crate, because it takes fewer dependencies (an anti-aliasing rasteriser and a font parser) and keeps
//! positions to fractions of a pixel, which noisy curves need. `categories` adds the bars and boxes of the report page, made of the same parts. Not
//! here: other kinds of plots.

mod axis;
mod categories;
mod layout;
pub(super) mod raster;
pub(super) mod scene;
mod smooth;
mod svg;
pub(super) mod text;

use std::path::Path;

pub(super) use categories::{Bar, Quantiles};
pub(super) use layout::Interval;
pub(super) use svg::{escape, hex};

use super::{ReportError, files};

/// The smallest curve in pixels: a smaller one has no room for labels.
const MIN_SIZE: [u32; 2] = [320, 240];
/// The largest side in pixels.
const MAX_SIDE: u32 = 8192;

/// A named sequence of points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y) by ascending x. Points that are not finite, or not above zero on a logarithmic axis, are omitted.
    pub points: Vec<(f64, f64)>,
}

/// The scale of the y axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum YScale {
    /// Equal differences take equal space.
    Linear,
    /// Equal ratios take equal space; values that are not above zero are omitted.
    #[default]
    Log,
}

/// The line that is drawn over the points.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Smoothing {
    /// An exponential moving average over about a fiftieth of the series' points, over fewer at the beginning; in series of fewer than 100 points,
    /// the points are joined.
    #[default]
    Auto,
    /// An exponential moving average with this decay, clamped to `[0, 1)`: m_i = (1 - beta) sum_{j <= i} beta^(i - j) y_j / (1 - beta^(i + 1)), with
    /// the bias correction of Adam.
    Ema(f64),
    /// The points are joined.
    None,
}

/// Labels, scale and size of a curve.
#[derive(Clone, Debug, PartialEq)]
pub struct CurveOptions {
    /// Text above the curve; may be empty.
    pub title: String,
    /// Text below the x axis.
    pub x_label: String,
    /// Text beside the y axis.
    pub y_label: String,
    /// Scale of the y axis.
    pub y_scale: YScale,
    /// The line over the points.
    pub smoothing: Smoothing,
    /// Width and height in SVG units. A PNG has twice as many pixels on a side.
    pub size: [u32; 2],
}

impl Default for CurveOptions {
    fn default() -> Self {
        Self {
            title: String::new(),
            x_label: "step".to_owned(),
            y_label: "loss".to_owned(),
            y_scale: YScale::default(),
            smoothing: Smoothing::default(),
            size: [860, 520],
        }
    }
}

/// Draws `series` as an SVG; its text is in DejaVu Sans or the viewer's substitute.
///
/// The file is either complete or absent; parent folders are created. The y axis covers the lines and the middle 99 % of the points, so that a few
/// outliers do not flatten the rest; points outside are not drawn.
///
/// # Errors
/// No point can be drawn, the size is out of range, or the file cannot be written.
pub fn save_curve_svg(path: impl AsRef<Path>, series: &[Series], options: &CurveOptions) -> Result<(), ReportError> {
    let scene = layout::scene(series, options)?;
    files::write(path.as_ref(), svg::write(&scene).as_bytes())
}

/// Draws `series` as a PNG with twice as many pixels per side as `options.size` says; otherwise like [`save_curve_svg`].
///
/// # Errors
/// No point can be drawn, the size is out of range, or the file cannot be written.
pub fn save_curve_png(path: impl AsRef<Path>, series: &[Series], options: &CurveOptions) -> Result<(), ReportError> {
    let scene = layout::scene(series, options)?;
    super::raster::write_png(path.as_ref(), &raster::draw(&scene)?)
}

/// Draws one series as an element for a page, with its points joined and their intervals; see [`svg::inline`] for colours and `description`.
pub(super) fn inline_curve(
    series: Series,
    intervals: &[Interval],
    options: &CurveOptions,
    description: &str,
) -> Result<String, ReportError> {
    let scene = layout::scene_with_intervals(&[series], intervals, options)?;
    Ok(svg::inline(&scene, description))
}

/// Draws bars from zero as an element for a page.
pub(super) fn inline_bars(bars: &[Bar], options: &CurveOptions, description: &str) -> Result<String, ReportError> {
    Ok(svg::inline(&categories::bars(bars, options)?, description))
}

/// Draws the quantiles of distributions side by side as an element for a page, with a line across at `mark`.
pub(super) fn inline_boxes(
    boxes: &[Quantiles],
    mark: Option<f64>,
    options: &CurveOptions,
    description: &str,
) -> Result<String, ReportError> {
    Ok(svg::inline(&categories::boxes(boxes, mark, options)?, description))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descent(count: usize) -> Vec<(f64, f64)> {
        (1..=count).map(|i| (i as f64, 0.02 + (-(i as f64) / 50.0).exp())).collect()
    }

    #[test]
    fn both_files_show_the_curve() {
        let folder = tempfile::tempdir().unwrap();
        let series = [Series { name: "train".into(), points: descent(400) }];
        let options = CurveOptions { title: "Loss".into(), ..Default::default() };
        let (svg, png) = (folder.path().join("a/loss.svg"), folder.path().join("b/loss.png"));
        save_curve_svg(&svg, &series, &options).unwrap();
        save_curve_png(&png, &series, &options).unwrap();
        let svg = std::fs::read_to_string(svg).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains(">train</text>") && svg.contains(">Loss</text>"));
        let png = image::open(png).unwrap().into_rgb8();
        assert_eq!(png.dimensions(), (1720, 1040));
        assert_eq!(png.get_pixel(0, 0).0, [255; 3]);
        let blue = png.pixels().filter(|pixel| pixel.0 == [0x00, 0x72, 0xb2]).count();
        assert!(blue > 3000, "{blue} pixels have the line's colour");
    }

    #[test]
    fn refuses_what_cannot_be_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        let series = [Series { name: "train".into(), points: vec![(1.0, f64::NAN), (2.0, -1.0)] }];
        let error = save_curve_svg(&path, &series, &CurveOptions::default()).unwrap_err();
        assert!(matches!(error, ReportError::NoPoints { given: 2, scale: "logarithmic" }));
        assert!(error.to_string().ends_with("they must be finite and above zero"), "{error}");
        let linear = CurveOptions { y_scale: YScale::Linear, ..Default::default() };
        save_curve_svg(&path, &series, &linear).unwrap();
        let small = CurveOptions { size: [10, 10], ..linear };
        assert!(matches!(save_curve_png(&path, &series, &small), Err(ReportError::CurveSize { .. })));
    }
}
