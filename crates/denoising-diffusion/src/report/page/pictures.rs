//! Samples and the closest pairs, embedded in the page as encoded pictures.

use data_encoding::BASE64;

use super::super::curve::escape;
use super::super::curve::raster::DENSITY;
use super::super::figures::{significant, thousands};
use super::super::raster::PngHeader;
use super::parts;
use crate::eval::result::{Evaluation, Neighbours, Pair};

pub(super) fn samples(png: Option<&[u8]>, evaluation: &Evaluation) -> String {
    let Some(png) = png else { return String::new() };
    let provenance = &evaluation.provenance;
    let mut caption = format!("Samples of {}, seed {}", provenance.generated, provenance.seed);
    if let Some(sampling) = &provenance.sampling {
        let step = thousands(sampling.step);
        caption.push_str(&format!(", after {step} training steps, {} in {} steps", sampling.sampler, sampling.steps));
    }
    caption.push('.');
    parts::section("samples", "Samples", &figure(png, 1, "A grid of samples", &caption))
}

pub(super) fn pairs(png: Option<&[u8]>, near: Option<&Neighbours>) -> String {
    let closest = near.map(|near| &near.closest[..]).unwrap_or_default();
    let table = if closest.is_empty() { String::new() } else { table(closest) };
    let Some(png) = png else { return parts::section("pairs", "Closest pairs", &table) };
    let caption = "Above: samples. Below each: the training image nearest to it, and the distance between the two, which is \
                   the root mean squared difference of values in [0, 1]. Closest first.";
    let alt = match closest {
        [] => "Samples above the training images nearest to them".to_owned(),
        [first, ..] => {
            let (least, most) = (significant(first.distance, 3), significant(closest[closest.len() - 1].distance, 3));
            format!("Samples above the training images nearest to them, at distances from {least} to {most}")
        }
    };
    let numbers = if table.is_empty() { table } else { parts::details("Which samples and training images", &table) };
    let html = format!("{}{numbers}", figure(png, DENSITY, &alt, caption));
    parts::section("pairs", "Closest pairs", &html)
}

fn table(closest: &[Pair]) -> String {
    let row = |pair: &Pair| vec![pair.generated.to_string(), pair.training.to_string(), significant(pair.distance, 3)];
    let rows: Vec<Vec<String>> = closest.iter().map(row).collect();
    parts::table("Closest pairs", &["sample", "training image", "distance"], &rows)
}

/// A picture with `density` pixels per pixel of the page.
fn figure(png: &[u8], density: u32, alt: &str, caption: &str) -> String {
    let class = if density == 1 { "pixels" } else { "dense" };
    // With the size given, the page does not jump while it loads.
    let size = PngHeader::read(png).map(|PngHeader { width, height, .. }| {
        format!(" width=\"{}\" height=\"{}\"", width / density, height / density)
    });
    let (size, alt, caption) = (size.unwrap_or_default(), escape(alt), escape(caption));
    let data = BASE64.encode(png);
    format!(
        "<figure class=\"picture\"><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{alt}\">\
         <img class=\"{class}\"{size} alt=\"{alt}\" src=\"data:image/png;base64,{data}\"></div>\n\
         <figcaption>{caption}</figcaption></figure>\n"
    )
}
