//! An evaluation as one HTML file, which can be kept, mailed and printed.
//!
//! The file is self-contained: no script, and no font or picture from outside, which a policy in its head forbids. It follows the reader's choice of
//! light or dark. Sections without data are left out. Not here: measuring, drawing at random, writing to disk, and the same content for a terminal
//! (`table`).

mod measurements;
mod parts;
mod pictures;
mod plots;
mod provenance;

#[cfg(test)]
pub(super) mod example;

use super::curve::escape;
use crate::eval::result::Evaluation;

const STYLE: &str = include_str!("page/style.css");
/// Nothing may be loaded, whatever a name or a note contains.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/// The contents of a page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Its first heading.
    pub title: &'a str,
    pub evaluation: &'a Evaluation,
    /// Metrics of earlier steps, with a plot for each; may be empty.
    pub history: &'a [History],
    /// A PNG of samples ([`grid_png`](super::grid_png)).
    pub samples: Option<&'a [u8]>,
    /// A PNG of the closest pairs ([`pairs_picture`](super::pairs_picture)), shown at half its size.
    pub neighbours: Option<&'a [u8]>,
    /// The command that repeats this evaluation.
    pub command: Option<&'a str>,
}

/// A metric over training steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// As in [`Measurement::name`](crate::eval::result::Measurement::name).
    pub name: String,
    /// Step, value and standard error, by ascending step.
    pub points: Vec<(u64, f64, Option<f64>)>,
}

impl Page<'_> {
    /// The complete file.
    pub fn html(&self) -> String {
        let title = escape(self.title);
        let version = escape(&self.evaluation.version);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta name=\"generator\" content=\"denoising-diffusion {version}\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        );
        for part in self.parts() {
            html.push_str(&part);
        }
        html.push_str("</main>\n</body>\n</html>\n");
        html
    }

    /// From top to bottom; a part without data is empty.
    fn parts(&self) -> [String; 8] {
        let Self { evaluation, samples, neighbours, command, .. } = *self;
        [
            provenance::header(self.title, evaluation),
            measurements::section(&evaluation.measurements),
            provenance::section(evaluation),
            plots::history(self.history),
            plots::cards(evaluation),
            pictures::samples(samples, evaluation),
            pictures::pairs(neighbours, evaluation.neighbours.as_ref()),
            provenance::command(command),
        ]
    }
}

#[cfg(test)]
mod tests;
