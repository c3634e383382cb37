//! Plots in the page, each with the numbers that it shows.

use super::super::curve::{
    Bar, CurveOptions, Interval, Quantiles, Series, Smoothing, YScale, escape, inline_bars, inline_boxes, inline_curve,
};
use super::super::figures::{Figure, adding_up, decimals, decimals_for, percent, significant, thousands};
use super::{History, parts};
use crate::eval::result::{BitsPerDim, Evaluation, LossByTime, NegativeLogLikelihood, Neighbours};

/// Small enough that text is legible on a phone.
const SIZE: [u32; 2] = [420, 280];
/// Values that differ by more than this factor are drawn on a logarithmic axis.
const LOGARITHMIC_FROM: f64 = 20.0;
/// A Mann-Whitney z below this is flagged.
const SUSPICIOUS_Z: f64 = -3.0;

/// Metrics over training steps, in a plot each because their units differ.
pub(super) fn history(history: &[History]) -> String {
    let figures: String = history.iter().filter_map(one_history).collect();
    if figures.is_empty() {
        return String::new();
    }
    let with_errors = history.iter().any(|one| one.points.iter().any(|point| point.2.is_some()));
    let aside = parts::aside("Vertical bars: ± one standard error, where it is known and larger than the dot.");
    let aside = if with_errors { aside } else { String::new() };
    parts::section("history", "Metrics over training", &format!("<div class=\"cards\">\n{figures}</div>\n{aside}"))
}

fn one_history(history: &History) -> Option<String> {
    let History { name, points } = history;
    let metric = parts::metric(name);
    let interval = |&(step, value, error): &(u64, f64, Option<f64>)| {
        error.map(|error| Interval { x: step as f64, low: value - error, high: value + error })
    };
    let intervals: Vec<Interval> = points.iter().filter_map(interval).collect();
    let series = Series { name: String::new(), points: points.iter().map(|&(step, y, _)| (step as f64, y)).collect() };
    // Fractions are compared by difference, distances by ratio.
    let share = matches!(name.as_str(), "precision" | "recall" | "density" | "coverage");
    let lows = intervals.iter().map(|interval| interval.low);
    let y_scale = if share { YScale::Linear } else { scale_for(series.points.iter().map(|point| point.1).chain(lows)) };
    let options = options("training step", "", y_scale);
    let (first, last) = (points.first()?, points.last()?);
    let at =
        |point: &(u64, f64, Option<f64>)| format!("{} at step {}", Figure::new(point.1, point.2), thousands(point.0));
    let description = format!("{metric} over training: {}, {}", at(first), at(last));
    let svg = inline_curve(series, &intervals, &options, &description).ok()?;
    let row = |point: &(u64, f64, Option<f64>)| vec![thousands(point.0), Figure::new(point.1, point.2).to_string()];
    let rows: Vec<Vec<String>> = points.iter().map(row).collect();
    let numbers = parts::details("Numbers", &parts::table(metric, &["step", metric], &rows));
    Some(format!("<div class=\"card\">\n<h3>{}</h3>\n{svg}{numbers}</div>\n", escape(metric)))
}

/// Loss, variational bound, likelihood and neighbours, side by side.
pub(super) fn cards(evaluation: &Evaluation) -> String {
    let cards = [
        evaluation.loss.as_ref().map(loss),
        evaluation.bits_per_dim.as_ref().map(bits_per_dim),
        evaluation.nll.as_ref().map(nll),
        evaluation.neighbours.as_ref().map(neighbours),
    ];
    let cards: String = cards.into_iter().flatten().collect();
    if cards.is_empty() { cards } else { format!("<div class=\"cards\">\n{cards}</div>\n") }
}

fn card(id: &str, heading: &str, html: &str) -> String {
    let section = parts::section(id, heading, html);
    section.replacen("<section ", "<section class=\"card\" ", 1)
}

fn loss(loss: &LossByTime) -> String {
    let mean = Figure::new(loss.mean, Some(loss.standard_error));
    let names = ["0–25 %", "25–50 %", "50–75 %", "75–100 %"];
    let texts = loss.quarters.map(|quarter| significant(quarter, 3));
    let bar = |index: usize| Bar { name: names[index], value: loss.quarters[index], text: texts[index].clone() };
    let bars = [0, 1, 2, 3].map(bar);
    let description = format!("Mean loss by quarter of t, least noise first: {}", texts.join(", "));
    let svg = inline_bars(&bars, &options("part of t, least noise first", "mean loss", YScale::Linear), &description);
    let summary = format!("Mean over all t: {mean} ({} {}).", thousands(loss.n as u64), loss.on.images());
    card(
        "loss",
        &parts::capitalised(loss.on.loss()),
        &format!("{}{}", svg.unwrap_or_default(), parts::paragraph(&summary)),
    )
}

fn bits_per_dim(bound: &BitsPerDim) -> String {
    let BitsPerDim { on, n, total, standard_error, prior, diffusion, reconstruction, terms } = bound;
    let figure = Figure::new(*total, Some(*standard_error));
    let points: Vec<(f64, f64)> = terms.iter().map(|&(t, bits)| (t as f64, bits)).collect();
    let y_scale = scale_for(points.iter().map(|point| point.1));
    let description = format!("Variational bound by t, {} values of t", terms.len());
    let options = options("t", "bits per dimension and step", y_scale);
    let svg = inline_curve(Series { name: String::new(), points }, &[], &options, &description).unwrap_or_default();
    let (parts, sum) = adding_up([*prior, *diffusion, *reconstruction], *total, decimals_for(*standard_error));
    let [prior, diffusion, reconstruction] = parts.map(|part| part.to_string());
    let rows =
        [("prior", prior), ("+ diffusion, t > 1", diffusion), ("+ reconstruction", reconstruction), ("= total", sum)];
    let table = bits_table("Terms of the variational bound", rows);
    let summary = format!("At most {figure} bits per dimension ({} {}).", thousands(*n as u64), on.images());
    card("bound", "Variational bound", &format!("{svg}{}{table}", parts::paragraph(&summary)))
}

/// Terms and their sum.
fn bits_table(caption: &str, rows: [(&str, String); 4]) -> String {
    let rows = rows.map(|(name, number)| vec![name.to_owned(), number]);
    let table = parts::table(caption, &["term", "bits per dimension"], &rows);
    table.replacen("class=\"numbers\"", "class=\"numbers sum\"", 1)
}

fn nll(nll: &NegativeLogLikelihood) -> String {
    let NegativeLogLikelihood { on, n, total, standard_error, prior, volume, interval, terms } = nll;
    let figure = Figure::new(*total, Some(*standard_error));
    let description = format!("Change of volume by log-SNR, {} values of log-SNR", terms.len());
    let options = options("log-SNR", "bits per dimension and unit", YScale::Linear);
    let series = Series { name: String::new(), points: terms.clone() };
    let svg = inline_curve(series, &[], &options, &description).unwrap_or_default();
    let (parts, sum) = adding_up([*prior, *volume, *interval], *total, decimals_for(*standard_error));
    let [prior, volume, interval] = parts.map(|part| part.to_string());
    let rows = [
        ("density of the noise", prior),
        ("+ volume", volume),
        ("+ width of 8-bit values", interval),
        ("= total", sum),
    ];
    let table = bits_table("Parts of the negative log-likelihood", rows);
    let summary = format!("{figure} bits per dimension ({} {}).", thousands(*n as u64), on.images());
    card("nll", "Negative log-likelihood", &format!("{svg}{}{table}", parts::paragraph(&summary)))
}

fn neighbours(near: &Neighbours) -> String {
    let [generated, training, held_out] =
        [near.n_generated, near.n_training, near.n_held_out].map(|n| thousands(n as u64));
    let boxes = [
        Quantiles { name: "samples", at: near.generated_quantiles },
        Quantiles { name: "held-out images", at: near.held_out_quantiles },
    ];
    let [samples_median, held_out_median] = boxes.each_ref().map(|one| significant(one.at[3], 3));
    let description = format!(
        "Distance to the nearest training image: median {samples_median} of samples, {held_out_median} of held-out images"
    );
    let options = options("", "distance to training images", YScale::Linear);
    let svg = inline_boxes(&boxes, Some(near.held_out_quantiles[1]), &options, &description).unwrap_or_default();
    let share = percent(near.share_below_held_out);
    let z = decimals(near.z, 1);
    let mut html = svg;
    html.push_str(&parts::aside(
        "Distance to the nearest training image. Box: the middle half, with the median. Whiskers: 5 % and 95 %. Dots: least and \
         largest. Line across: 5 % of held-out images are nearer.",
    ));
    if near.exact_copies > 0 {
        let copies = thousands(near.exact_copies as u64);
        html.push_str(&parts::warning(&format!(
            "{copies} of {generated} samples are exact copies of training images."
        )));
    }
    if near.z < SUSPICIOUS_Z {
        let text =
            format!("Samples lie nearer to training images than held-out images do (z = {z}): a sign of copying.");
        html.push_str(&parts::warning(&text));
    }
    html.push_str(&parts::paragraph(&format!(
        "{share} of samples are nearer to a training image than the nearest 5 % of held-out images. Without copying, 5 % are expected."
    )));
    let copies = if near.exact_copies == 0 { " No sample is an exact copy." } else { "" };
    html.push_str(&parts::paragraph(&format!("Mann-Whitney z = {z}; far below 0 means copying.{copies}")));
    html.push_str(&parts::aside(&format!(
        "{generated} samples and {held_out} held-out images, compared with {training} training images."
    )));
    html.push_str(&parts::details("Quantiles", &quantiles(near)));
    card("neighbours", "Nearest neighbours", &html)
}

fn quantiles(near: &Neighbours) -> String {
    let names = ["least", "5 %", "25 %", "median", "75 %", "95 %", "largest"];
    let row = |(index, name): (usize, &&str)| {
        let [samples, held_out] =
            [near.generated_quantiles, near.held_out_quantiles].map(|quantiles| significant(quantiles[index], 3));
        vec![(*name).to_owned(), samples, held_out]
    };
    let rows: Vec<Vec<String>> = names.iter().enumerate().map(row).collect();
    parts::table("Quantiles of the distance", &["part", "samples", "held-out images"], &rows)
}

fn options(x_label: &str, y_label: &str, y_scale: YScale) -> CurveOptions {
    CurveOptions {
        title: String::new(),
        x_label: x_label.to_owned(),
        y_label: y_label.to_owned(),
        y_scale,
        smoothing: Smoothing::None,
        size: SIZE,
    }
}

/// Logarithmic if all values are above zero and the small ones would otherwise lie on the axis.
fn scale_for(values: impl Iterator<Item = f64>) -> YScale {
    let range = values.filter(|value| value.is_finite()).map(|value| (value, value));
    match range.reduce(|(low, high), (value, _)| (low.min(value), high.max(value))) {
        Some((low, high)) if low > 0.0 && high > LOGARITHMIC_FROM * low => YScale::Log,
        _ => YScale::Linear,
    }
}
