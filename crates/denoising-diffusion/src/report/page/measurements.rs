//! The table of measurements, with the necessary notes right below each.

use super::super::curve::escape;
use super::super::figures::{Figure, thousands};
use super::parts;
use crate::eval::result::{Better, Measurement};

pub(super) fn section(measurements: &[Measurement]) -> String {
    let rows: String = measurements.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let errors = measurements.iter().any(|measurement| measurement.standard_error.is_some());
    let error = if errors { "± std. error" } else { "" };
    let table = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Measurements\"><table class=\"measurements\">\n\
         <thead><tr><th scope=\"col\">metric</th><th scope=\"col\" class=\"value\">value</th>\
         <td class=\"error\">{error}</td><th scope=\"col\" class=\"better\">better</th>\
         <th scope=\"col\">generated</th><th scope=\"col\">real</th></tr></thead>\n{rows}</table></div>\n"
    );
    parts::section("measurements", "Measurements", &table)
}

/// A table body for each measurement, so that printing does not separate its notes from it.
fn row(measurement: &Measurement) -> String {
    let Measurement { name, value, standard_error, better, n_generated, n_real, notes } = measurement;
    let Figure { value, error } = Figure::new(*value, *standard_error);
    let (arrow, words) = match better {
        Better::Lower => ("↓", "lower"),
        Better::Higher => ("↑", "higher"),
        Better::Neither => ("", "neither"),
    };
    let (shown, name) = (escape(parts::metric(name)), escape(name));
    let error = error.map(|error| format!("± {error}")).unwrap_or_default();
    let [generated, real] = [n_generated, n_real].map(|&n| n.map_or_else(|| "–".to_owned(), |n| thousands(n as u64)));
    let mut html = format!(
        "<tbody>\n<tr><th scope=\"row\" title=\"{name}\">{shown}</th>\
         <td class=\"value\">{value}</td><td class=\"error\">{error}</td>\
         <td class=\"better\"><span aria-hidden=\"true\">{arrow}</span> <span class=\"words\">{words}</span></td><td>{generated}</td><td>{real}</td></tr>\n"
    );
    for note in notes {
        let note = escape(note);
        html.push_str(&format!("<tr class=\"note\"><td colspan=\"6\"><div>{note}</div></td></tr>\n"));
    }
    html.push_str("</tbody>\n");
    html
}
