//! The page of `ddpm eval --report`: adds pictures, history and command to the numbers. Not here: how a page looks.

use std::path::Path;

use denoising_diffusion::atomic_file::write_atomically;
use denoising_diffusion::data::ImageBatch;
use denoising_diffusion::eval::images::Images;
use denoising_diffusion::eval::result::Evaluation;
use denoising_diffusion::report::log::{self, Record};
use denoising_diffusion::report::{GridOptions, History, Page, PairsOptions, ReportError, grid_png, pairs_picture};

use crate::failure::{FailureExt, Result, chain};
use crate::output::{create_folder_of, note};

/// Number of samples in the grid.
const SHOWN: usize = 64;

/// The contents of a page.
pub struct Shown<'a> {
    pub evaluation: &'a Evaluation,
    pub samples: Option<&'a Images>,
    /// The training images, which contain the nearest neighbours.
    pub training: Option<&'a Images>,
    /// The run's log.
    pub log: Option<&'a Path>,
}

/// Writes the page.
pub fn write_page(path: &Path, shown: &Shown<'_>) -> Result {
    let samples = shown.samples.map(first).transpose()?;
    let samples = samples.map(|samples| grid_png(&samples, GridOptions::default()));
    let samples = samples.and_then(|picture| or_left_out("samples", picture));
    let pairs = pairs(shown)?.and_then(|picture| or_left_out("the nearest training images", picture));
    let history = shown.log.map(history).transpose()?.unwrap_or_default();
    let command: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let page = Page {
        title: &shown.evaluation.provenance.generated,
        evaluation: shown.evaluation,
        history: &history,
        samples: samples.as_deref(),
        neighbours: pairs.as_deref(),
        command: Some(&quoted(&command)),
    };
    let html = page.html();
    create_folder_of(path)?;
    write_atomically(path, |out| out.write_all(html.as_bytes())).context(format!("cannot write {}", path.display()))
}

/// The samples of the grid.
fn first(samples: &Images) -> Result<ImageBatch> {
    Ok(samples.pick(&(0..samples.len().min(SHOWN)).collect::<Vec<_>>())?)
}

/// Reports a picture that cannot be drawn (of very long sequences), and leaves it out of the page.
fn or_left_out(what: &str, picture: std::result::Result<Vec<u8>, ReportError>) -> Option<Vec<u8>> {
    picture.inspect_err(|error| note(format!("warning: the page has no picture of {what}: {}", chain(error)))).ok()
}

/// The picture of the closest pairs.
fn pairs(shown: &Shown<'_>) -> Result<Option<std::result::Result<Vec<u8>, ReportError>>> {
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
    let upper = samples.pick(&places(|pair| pair.generated))?;
    let lower = training.whole_data().pick(&places(|pair| pair.training))?;
    let distances: Vec<f64> = found.closest.iter().map(|pair| pair.distance).collect();
    Ok(Some(pairs_picture(&upper, &lower, &distances, PairsOptions::default())))
}

/// The evaluations of a run, one series per number. Lines of the log that are damaged are left out.
fn history(path: &Path) -> Result<Vec<History>> {
    let mut series: Vec<History> = Vec::new();
    for value in log::readable(path)? {
        let Ok(Record::Evaluation(record)) = serde_json::from_value(value) else { continue };
        for (name, value) in record.values.iter().filter(|(_, value)| value.is_finite()) {
            let point = (record.step, *value, record.standard_errors.get(name).copied());
            match series.iter_mut().find(|series| series.name == *name) {
                Some(series) => series.points.push(point),
                None => series.push(History { name: name.clone(), points: vec![point] }),
            }
        }
    }
    // A single point is in the table already.
    series.retain(|series| series.points.len() > 1);
    Ok(series)
}

/// A command line as it would be typed, with quotes where a shell would split it.
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
    use super::*;
    use denoising_diffusion::eval::result::Provenance;

    #[test]
    fn a_page_does_without_a_picture_that_cannot_be_drawn() {
        let path = std::env::temp_dir().join(format!("ddpm-page-{}.html", std::process::id()));
        let evaluation = Evaluation {
            version: "1".into(),
            provenance: Provenance::default(),
            measurements: Vec::new(),
            loss: None,
            bits_per_dim: None,
            nll: None,
            neighbours: None,
            seconds: 1.0,
        };
        // A row of eight is too wide.
        for (width, pictures) in [(64, 1), (9000, 0)] {
            let samples = ImageBatch { shape: [64, 1, 1, width], data: vec![0.5; 64 * width] };
            let samples = Images::of_samples(&samples);
            write_page(&path, &Shown { evaluation: &evaluation, samples: Some(&samples), training: None, log: None })
                .unwrap();
            let page = std::fs::read_to_string(&path).unwrap();
            assert_eq!(page.matches("data:image/png;base64,").count(), pictures, "{width} wide");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_shell_reads_the_command_as_it_was() {
        let args = ["/usr/bin/ddpm", "eval", "my run", "it's", "--n=3"].map(String::from);
        assert_eq!(quoted(&args), "ddpm eval 'my run' 'it'\\''s' --n=3");
    }
}
