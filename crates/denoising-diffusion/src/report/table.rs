//! An evaluation as aligned text, for a terminal.
//!
//! It contains what is needed to interpret the numbers. Not here: provenance and pictures (the page), and all digits (JSON).

use super::figures::{Figure, adding_up, decimals_for, percent, significant, thousands};
use crate::eval::result::{Better, BitsPerDim, Evaluation, LossByTime, Measurement, NegativeLogLikelihood, Neighbours};

/// The largest width of a table.
const WIDEST: usize = 110;
/// For a smaller width, lines are longer than requested.
const NARROWEST: usize = 78;
/// Longer names of measurements are cut.
const LONGEST_NAME: usize = 14;
/// Space between columns.
const GAP: &str = "  ";
/// Indentation of a note under its row; lines that continue it are indented by two more.
const INDENT: usize = 4;

/// Measurements as a table with notes under their rows, then loss, variational bound, likelihood and neighbours. At most 110 columns wide; without a newline at
/// the end.
pub fn table(evaluation: &Evaluation) -> String {
    table_within(evaluation, WIDEST)
}

/// The same for a terminal with this many columns; the width is clamped to 78 to 110.
pub fn table_within(evaluation: &Evaluation, columns: usize) -> String {
    let columns = columns.clamp(NARROWEST, WIDEST);
    let mut lines = measurements(&evaluation.measurements, columns);
    let facts = [
        evaluation.loss.as_ref().map(loss),
        evaluation.bits_per_dim.as_ref().map(bits_per_dim),
        evaluation.nll.as_ref().map(nll),
        evaluation.neighbours.as_ref().map(neighbours),
    ];
    for fact in facts.into_iter().flatten() {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(
            fact.iter()
                .enumerate()
                .flat_map(|(index, text)| wrapped(text, if index == 0 { 0 } else { INDENT }, columns)),
        );
    }
    lines.join("\n")
}

/// The cells of one measurement.
struct Row {
    name: String,
    value: String,
    error: String,
    better: &'static str,
    generated: String,
    real: String,
}

impl Row {
    fn new(measurement: &Measurement) -> Self {
        let Figure { value, error } = Figure::new(measurement.value, measurement.standard_error);
        Self {
            name: shortened(&measurement.name),
            value,
            error: error.map(|error| format!(" ± {error}")).unwrap_or_default(),
            better: match measurement.better {
                Better::Lower => "lower",
                Better::Higher => "higher",
                Better::Neither => "-",
            },
            generated: count(measurement.n_generated),
            real: count(measurement.n_real),
        }
    }

    /// One aligned line, with `±` in the same column in all of them.
    fn line(&self, [name, value, error, generated, real]: [usize; 5]) -> String {
        let Self { name: n, value: v, error: e, better, generated: g, real: r } = self;
        format!("{n:name$}{GAP}{v:>value$}{e:error$}{GAP}{better:6}{GAP}{g:>generated$}{GAP}{r:>real$}")
    }
}

fn measurements(measurements: &[Measurement], columns: usize) -> Vec<String> {
    if measurements.is_empty() {
        return Vec::new();
    }
    let head = Row {
        name: "metric".to_owned(),
        value: "value".to_owned(),
        error: if measurements.iter().any(|one| one.standard_error.is_some()) { " ± std. error" } else { "" }
            .to_owned(),
        better: "better",
        generated: "generated".to_owned(),
        real: "real".to_owned(),
    };
    let rows: Vec<Row> = std::iter::once(head).chain(measurements.iter().map(Row::new)).collect();
    let widest = |cell: fn(&Row) -> &str| rows.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0);
    let widths = [
        widest(|row| &row.name),
        widest(|row| &row.value),
        widest(|row| &row.error),
        widest(|row| &row.generated),
        widest(|row| &row.real),
    ];
    let mut lines = vec![rows[0].line(widths)];
    for (row, measurement) in rows[1..].iter().zip(measurements) {
        let mut line = row.line(widths);
        let mut notes = &measurement.notes[..];
        // FID is often quoted alone, so its caveats must stand on the same line to be copied along.
        while let Some((note, rest)) = notes.split_first().filter(|_| measurement.name == "fid") {
            if line.chars().count() + GAP.len() + note.chars().count() > columns || note.contains('\n') {
                break;
            }
            line = format!("{line}{GAP}{note}");
            notes = rest;
        }
        lines.push(line);
        lines.extend(notes.iter().flat_map(|note| wrapped(&format!("- {note}"), INDENT, columns)));
    }
    lines
}

fn loss(loss: &LossByTime) -> Vec<String> {
    let mean = Figure::new(loss.mean, Some(loss.standard_error));
    let quarters = loss.quarters.map(|quarter| significant(quarter, 3)).join(", ");
    vec![
        format!("{} {mean} ({} images)", loss.on.loss(), thousands(loss.n as u64)),
        format!("by quarter of t, least noise first: {quarters}"),
    ]
}

fn bits_per_dim(bound: &BitsPerDim) -> Vec<String> {
    let total = Figure::new(bound.total, Some(bound.standard_error));
    let parts = [bound.prior, bound.diffusion, bound.reconstruction];
    let ([prior, diffusion, reconstruction], sum) = adding_up(parts, bound.total, decimals_for(bound.standard_error));
    vec![
        format!("variational bound {total} bits per dimension ({} {})", thousands(bound.n as u64), bound.on.images()),
        format!("prior {prior} + diffusion {diffusion} + reconstruction {reconstruction} = {sum}"),
    ]
}

fn nll(nll: &NegativeLogLikelihood) -> Vec<String> {
    let total = Figure::new(nll.total, Some(nll.standard_error));
    let parts = [nll.prior, nll.volume, nll.interval];
    let ([prior, volume, interval], sum) = adding_up(parts, nll.total, decimals_for(nll.standard_error));
    let on = nll.on.images();
    vec![
        format!("negative log-likelihood {total} bits per dimension ({} {on})", thousands(nll.n as u64)),
        format!("density of the noise {prior} + volume {volume} + width of 8-bit values {interval} = {sum}"),
    ]
}

fn neighbours(near: &Neighbours) -> Vec<String> {
    let [samples, training, held_out] =
        [near.n_generated, near.n_training, near.n_held_out].map(|n| thousands(n as u64));
    let median = |quantiles: &[f64; 7]| significant(quantiles[3], 3);
    let mut lines = vec![
        format!("neighbours of {samples} samples and {held_out} held-out images in {training} training images"),
        format!(
            "median distance: samples {}, held-out {}",
            median(&near.generated_quantiles),
            median(&near.held_out_quantiles)
        ),
        format!("nearer than the nearest 5 % of held-out images: {} of samples", percent(near.share_below_held_out)),
        format!("Mann-Whitney z {} (far below 0: copying)", super::figures::decimals(near.z, 1)),
        format!("exact copies: {}", thousands(near.exact_copies as u64)),
    ];
    if let Some(pair) = near.closest.first() {
        let (distance, sample, image) = (significant(pair.distance, 3), pair.generated, pair.training);
        lines.push(format!("closest pair: {distance} between sample {sample} and training image {image}"));
    }
    lines
}

/// A number of images; a dash for a metric that uses none.
fn count(images: Option<usize>) -> String {
    images.map_or_else(|| "-".to_owned(), |n| thousands(n as u64))
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}

/// Wraps `text` into lines of at most `columns`; the first is indented by `indent`, the others by two more.
fn wrapped(text: &str, indent: usize, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = " ".repeat(indent);
    let mut empty = true;
    for word in text.split_whitespace().flat_map(|word| pieces(word, columns - INDENT - 2)) {
        if !empty && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent + 2)));
            empty = true;
        }
        line.push_str(if empty { "" } else { " " });
        line.push_str(&word);
        empty = false;
    }
    if !empty {
        lines.push(line);
    }
    lines
}

/// Splits a word that is too long for a line (a path) into pieces that fit.
fn pieces(word: &str, most: usize) -> Vec<String> {
    let characters: Vec<char> = word.chars().collect();
    characters.chunks(most).map(|piece| piece.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::page::example;
    use super::*;
    use crate::eval::extract::Extracted;
    use crate::eval::metric::{self, FidInput};
    use crate::eval::result::JudgedOn;
    use proptest::prelude::*;

    fn line_of<'a>(text: &'a str, name: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }

    #[test]
    fn the_bias_of_fid_stands_on_its_line_where_it_fits() {
        let mut evaluation = example::evaluation();
        evaluation.measurements[0].notes = vec!["FID at n = 2,000 is biased by about +3.1".to_owned()];
        assert!(line_of(&table(&evaluation), "fid").ends_with("  FID at n = 2,000 is biased by about +3.1"));
        let narrow = table_within(&evaluation, 80);
        let below = narrow.lines().skip_while(|line| !line.starts_with("fid")).nth(1);
        assert_eq!(below, Some("    - FID at n = 2,000 is biased by about +3.1"));
    }

    /// Samples in hundreds, more real images than ImageNet has, and numbers with many digits: the bias stays on the line.
    #[test]
    fn what_eval_says_of_the_bias_fits_beside_the_fid() {
        let set = |n: usize, shift: f32| {
            let features = (0..3 * n).map(|i| shift + (i * i * 7 % 31) as f32 * 0.4).collect();
            Extracted { n, dims: 3, features, logits: None }
        };
        let (real, generated) = (set(40, 0.0), set(12, 9.0));
        let fid = metric::fid(FidInput::Features(&real), FidInput::Features(&generated), 0).unwrap();
        assert!(fid.value > 200.0 && fid.standard_error.is_some(), "{fid:?}");
        let mut evaluation = example::evaluation();
        evaluation.measurements[0] = Measurement { n_real: Some(1_281_167), ..fid };
        let kid = &mut evaluation.measurements[1];
        (kid.value, kid.standard_error) = (0.000_521_34, Some(0.000_011_4));
        let text = table(&evaluation);
        let line = line_of(&text, "fid");
        assert!(line.contains("n < 10000: bias about ") && line.contains(" (limit "), "{text}");
    }

    #[test]
    fn columns_align() {
        let text = table(&example::evaluation());
        let head = line_of(&text, "metric");
        let place =
            |line: &str, what: &str| line.chars().collect::<String>().split(what).next().unwrap().chars().count();
        let with_error: Vec<&str> =
            text.lines().skip(1).take_while(|line| !line.is_empty()).filter(|line| line.contains(" ± ")).collect();
        assert!(with_error.len() > 2, "{text}");
        for line in with_error {
            assert_eq!(place(line, " ± "), place(head, " ± "), "{text}");
        }
    }

    #[test]
    fn what_is_absent_has_no_lines() {
        let mut evaluation = example::bare();
        assert_eq!(table(&evaluation), "");
        evaluation.loss = example::evaluation().loss;
        let text = table(&evaluation);
        assert!(text.starts_with("held-out loss 0.0") && text.lines().count() == 2, "{text}");
    }

    #[test]
    fn a_loss_on_training_images_is_called_that() {
        for on in [JudgedOn::Training, JudgedOn::Given] {
            let mut evaluation = example::evaluation();
            evaluation.neighbours = None;
            (evaluation.loss, evaluation.bits_per_dim, evaluation.nll) = (
                evaluation.loss.map(|of| LossByTime { on, ..of }),
                evaluation.bits_per_dim.map(|of| BitsPerDim { on, ..of }),
                evaluation.nll.map(|of| NegativeLogLikelihood { on, ..of }),
            );
            let text = table(&evaluation);
            assert!(text.contains(on.loss()) && text.contains(on.images()) && !text.contains("held-out"), "{text}");
        }
    }

    /// The longest figures beside the longest name.
    #[test]
    fn figures_of_any_size_fit_the_narrowest_table() {
        let mut evaluation = example::evaluation();
        let measurement = &mut evaluation.measurements[0];
        (measurement.value, measurement.standard_error) = (-5.1631007845206103e284, Some(-1.943e276));
        evaluation.measurements[1].name = "a".repeat(60);
        let text = table_within(&evaluation, NARROWEST);
        assert!(text.lines().all(|line| line.chars().count() <= NARROWEST), "{text}");
    }

    proptest! {
        #[test]
        fn no_line_is_too_long(
            notes in prop::collection::vec("[a-z ]{0,90}[a-z/]{0,150}", 0..4),
            name in "[a-zä_]{1,60}",
            value in any::<f64>(),
            error in any::<f64>(),
            columns in 78_usize..120,
        ) {
            let mut evaluation = example::evaluation();
            let measurement = &mut evaluation.measurements[0];
            (measurement.value, measurement.standard_error) = (value, Some(error));
            measurement.notes = notes.clone();
            evaluation.measurements[1].name = name;
            evaluation.measurements[1].notes = notes.clone();
            let text = table_within(&evaluation, columns);
            for line in text.lines() {
                prop_assert!(line.chars().count() <= columns.min(110), "{line:?}");
                prop_assert!(line.trim_end() == line || line.contains("  "), "{line:?}");
            }
            let unbroken = |text: &str| text.split_whitespace().collect::<String>();
            for note in notes {
                prop_assert_eq!(unbroken(&text).matches(&unbroken(&note)).count() >= 2, true);
            }
        }
    }
}
