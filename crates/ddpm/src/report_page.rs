//! The page of `ddpm eval --report`: pictures, history and command put beside the numbers. Not here: how a page looks.

use std::path::Path;

use denoising_diffusion::atomic_file::write_atomically;
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::result::Evaluation;
use denoising_diffusion::report::log::{self, Record};
use denoising_diffusion::report::{GridOptions, History, ImageBatch, Page, PairsOptions, grid_png, pairs_picture};

use crate::failure::{FailureExt, Result};

/// Samples in the grid.
const SHOWN: usize = 64;

/// What a page is made of.
pub struct Shown<'a> {
    pub evaluation: &'a Evaluation,
    pub samples: Option<&'a ImageBatch>,
    /// Where the nearest neighbours lie.
    pub training: Option<&'a Images>,
    /// The run's log.
    pub log: Option<&'a Path>,
}

/// Writes the page.
pub fn write_page(path: &Path, shown: &Shown<'_>) -> Result {
    let samples = shown.samples.map(|samples| grid_png(&first(samples, SHOWN), GridOptions::default())).transpose()?;
    let pairs = pairs(shown)?;
    let history = shown.log.map(history).transpose()?.unwrap_or_default();
    let command: Vec<String> = std::env::args().collect();
    let page = Page {
        title: &shown.evaluation.provenance.generated,
        evaluation: shown.evaluation,
        history: &history,
        samples: samples.as_deref(),
        neighbours: pairs.as_deref(),
        command: Some(&quoted(&command)),
    };
    let html = page.html();
    write_atomically(path, |out| out.write_all(html.as_bytes())).context(format!("cannot write {}", path.display()))
}

fn first(images: &ImageBatch, most: usize) -> ImageBatch {
    let [n, c, h, w] = images.shape;
    let n = n.min(most);
    ImageBatch { shape: [n, c, h, w], data: images.data[..n * c * h * w].to_vec() }
}

/// The picture of the closest pairs.
fn pairs(shown: &Shown<'_>) -> Result<Option<Vec<u8>>> {
    let (Some(found), Some(samples), Some(training)) = (&shown.evaluation.neighbours, shown.samples, shown.training)
    else {
        return Ok(None);
    };
    if found.closest.is_empty() {
        return Ok(None);
    }
    let places = |of: fn(&denoising_diffusion::eval::result::Pair) -> usize| {
        found.closest.iter().map(of).collect::<Vec<usize>>()
    };
    let upper = Images::of_samples(samples).pick(&places(|pair| pair.generated))?;
    let lower = training.pick(&places(|pair| pair.training))?;
    let distances: Vec<f64> = found.closest.iter().map(|pair| pair.distance).collect();
    Ok(Some(pairs_picture(&upper, &lower, &distances, PairsOptions::default())?))
}

/// The evaluations of a run, a series per number.
fn history(path: &Path) -> Result<Vec<History>> {
    let mut series: Vec<History> = Vec::new();
    for value in log::read(path)? {
        let Ok(Record::Evaluation(record)) = serde_json::from_value(value) else { continue };
        for (name, value) in record.values.iter().filter(|(_, value)| value.is_finite()) {
            let point = (record.step, *value, record.standard_errors.get(name).copied());
            match series.iter_mut().find(|series| series.name == *name) {
                Some(series) => series.points.push(point),
                None => series.push(History { name: name.clone(), points: vec![point] }),
            }
        }
    }
    // One point is in the table already.
    series.retain(|series| series.points.len() > 1);
    Ok(series)
}

/// As it would be typed, with what a shell would split in quotes.
fn quoted(args: &[String]) -> String {
    let quote = |arg: &String| {
        let plain = !arg.is_empty() && arg.chars().all(|c| c.is_alphanumeric() || "-_./=,:+".contains(c));
        if plain { arg.clone() } else { format!("'{}'", arg.replace('\'', "'\\''")) }
    };
    let program = args.first().map(|_| "ddpm".to_string());
    program.into_iter().chain(args.iter().skip(1).map(quote)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_shell_reads_the_command_as_it_was() {
        let args = ["/usr/bin/ddpm", "eval", "my run", "it's", "--n=3"].map(String::from);
        assert_eq!(quoted(&args), "ddpm eval 'my run' 'it'\\''s' --n=3");
    }
}
