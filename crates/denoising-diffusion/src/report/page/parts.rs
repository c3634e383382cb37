//! HTML parts that several sections use. Arguments called `text` are escaped here; those called `html` are not.

use super::super::curve::escape;

/// A section with a heading, or nothing if `html` is empty.
pub(super) fn section(id: &str, heading: &str, html: &str) -> String {
    if html.is_empty() {
        return String::new();
    }
    let heading = escape(heading);
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{heading}</h2>\n{html}</section>\n")
}

/// A table in a container in which it can be scrolled. The first cell of a row is its heading.
pub(super) fn table(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let heading = |cell: &&str| format!("<th scope=\"col\">{}</th>", escape(cell));
    let head: String = head.iter().map(heading).collect();
    let row = |cells: &Vec<String>| {
        let Some((first, rest)) = cells.split_first() else { return String::new() };
        let rest: String = rest.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        format!("<tr><th scope=\"row\">{}</th>{rest}</tr>\n", escape(first))
    };
    let rows: String = rows.iter().map(row).collect();
    let caption = escape(caption);
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table class=\"numbers\">\n\
         <thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// Something that is collapsed until the reader opens it.
pub(super) fn details(summary: &str, html: &str) -> String {
    format!("<details><summary>{}</summary>\n{html}</details>\n", escape(summary))
}

pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", unbroken(text))
}

/// An explanation of a figure.
pub(super) fn aside(text: &str) -> String {
    format!("<p class=\"aside\">{}</p>\n", unbroken(text))
}

/// Escaped, with no line break between a number and its percent sign.
fn unbroken(text: &str) -> String {
    escape(text).replace(" %", "\u{a0}%")
}

/// A sentence that must not be overlooked.
pub(super) fn warning(text: &str) -> String {
    format!("<p class=\"warning\">{}</p>\n", unbroken(text))
}

/// With a capital first letter, for headings.
pub(super) fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// What a metric is called in sentences and headings; unknown names are returned as they are.
pub(super) fn metric(name: &str) -> &str {
    match name {
        "fid" => "FID",
        "kid" => "KID",
        "precision" => "Precision",
        "recall" => "Recall",
        "density" => "Density",
        "coverage" => "Coverage",
        "swd" => "Sliced Wasserstein distance",
        "spectrum" => "Difference of power spectra",
        "is" => "Inception Score",
        "loss" => "Held-out loss",
        "bpd" => "Bits per dimension",
        "nll" => "Negative log-likelihood, bits per dimension",
        "neighbours" => "Neighbours, z",
        other => other,
    }
}
