//! The page as a reader's browser sees it: well-formed, complete, harmless.

use super::super::{PairsOptions, grid_png, pairs_picture};
use super::*;
use crate::data::ImageBatch;
use crate::diffusion::{GuidanceConfig, NoiseLevels};
use crate::eval::result::JudgedOn;
use crate::sampler::SampleConfig;

fn page(evaluation: &Evaluation) -> Page<'_> {
    Page { title: "Digits", evaluation, history: &[], samples: None, neighbours: None, command: None }
}

fn history(name: &str) -> History {
    let point = |step: u64| (1000 * step, 80.0 / step as f64, Some(0.4));
    History { name: name.to_owned(), points: (1..=20).map(point).collect() }
}

/// Whether every element is closed by the tag that it needs, in order.
fn balance(html: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let (_, body) = html.split_once("<!doctype html>").ok_or("no doctype")?;
    let mut rest = body;
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, then) = after.split_once('>').ok_or("a tag without end")?;
        if tag.matches('"').count() % 2 != 0 || tag.contains('<') {
            return Err(format!("a broken tag: {tag}"));
        }
        rest = then;
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or_default();
        if tag.starts_with('/') {
            let opened = open.pop();
            if opened != Some(name) {
                return Err(format!("{opened:?} closed by {name}"));
            }
        } else if !tag.ends_with('/') && !["meta", "img", "br"].contains(&name) {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("never closed: {open:?}")) }
}

fn full_html(evaluation: &Evaluation) -> String {
    let images = ImageBatch::new([10, 1, 8, 8], vec![0.5; 640]).unwrap();
    let samples = grid_png(&images, Default::default()).unwrap();
    let neighbours = pairs_picture(&images, &images, &[0.1; 10], PairsOptions::default()).unwrap();
    let history = [history("fid"), history("kid")];
    let command = Some("ddpm eval runs/digits --metrics fid,kid --seed 7");
    let page =
        Page { history: &history, samples: Some(&samples), neighbours: Some(&neighbours), command, ..page(evaluation) };
    page.html()
}

#[test]
fn a_full_page_is_well_formed_and_complete() {
    let evaluation = example::evaluation();
    let html = full_html(&evaluation);
    balance(&html).unwrap();
    let order = [
        "<h1>Digits</h1>",
        "evaluated against <b>digits</b>",
        ">Measurements</h2>",
        "FID at n = 2,000 is biased by about +3.1",
        ">Provenance</h2>",
        ">Metrics over training</h2>",
        ">Held-out loss</h2>",
        ">Variational bound</h2>",
        ">Negative log-likelihood</h2>",
        ">Nearest neighbours</h2>",
        ">Samples</h2>",
        ">Closest pairs</h2>",
        ">To reproduce this</h2>",
    ];
    let places: Vec<Option<usize>> = order.iter().map(|text| html.find(text)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    let provenance = &evaluation.provenance;
    let extractor = provenance.extractor.as_ref().unwrap();
    let digests = [provenance.real_digest.as_deref().unwrap(), &extractor.digest];
    for digest in digests {
        assert!(html.contains(&format!("title=\"{digest}\">{digest}</code>")), "whole, to be copied");
    }
    for text in [
        "ddim, 50 steps, 50 evaluations of the network",
        "ema, decay 0.995",
        "20,000",
        "2,048 dimensions",
        "20 min 35 s",
        "12.35",
        "± 0.21",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(html.contains("<span>--metrics</span> <span>fid,kid</span>"), "as it is to be typed, but for the tags");
    let ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let distinct: std::collections::HashSet<&&str> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    assert!(html.matches("<svg ").count() == 6 && html.matches("role=\"img\" aria-label=\"").count() == 6);
}

#[test]
fn steps_and_evaluations_of_the_network_are_told_apart() {
    let mut evaluation = example::evaluation();
    let mut told = |steps, evaluations| {
        let sampling = evaluation.provenance.sampling.as_mut().unwrap();
        (sampling.sampler, sampling.steps, sampling.evaluations) = ("heun".to_owned(), steps, evaluations);
        page(&evaluation).html()
    };
    assert!(told(50, Some(99)).contains("heun, 50 steps, 99 evaluations of the network per sample<"));
    assert!(told(1, Some(1)).contains("heun, 1 step, 1 evaluation of the network per sample<"));
    assert!(told(50, None).contains("heun, 50 steps<"), "of a result that does not say it");
}

#[test]
fn options_of_sampling_are_told_where_they_differ_from_the_defaults() {
    let mut evaluation = example::evaluation();
    let mut told = |options: SampleConfig, guidance: GuidanceConfig| {
        let sampling = evaluation.provenance.sampling.as_mut().unwrap();
        (sampling.options, sampling.guidance) = (Some(options), Some(guidance));
        page(&evaluation).html()
    };
    let usual = told(SampleConfig { num_samples: 3, sample_batch_size: 2, ..Default::default() }, Default::default());
    assert!(!usual.contains("options</dt>") && !usual.contains("<dt>guidance"), "nothing to tell");
    let options = SampleConfig { noise_levels: Some(NoiseLevels::Karras), s_churn: 40.0, ..Default::default() };
    let html = told(
        options,
        GuidanceConfig { cfg_plus_plus: true, guidance_interval: Some([0.2, 5.0]), ..Default::default() },
    );
    for row in [
        "<dt>sampler options</dt><dd>noise_levels karras, s_churn 40.0</dd>",
        "<dt>guidance</dt><dd>1</dd>",
        "<dt>guidance options</dt><dd>cfg_plus_plus true, guidance_interval [0.2,5.0]</dd>",
    ] {
        assert!(html.contains(row), "{row}");
    }
}

#[test]
fn nothing_comes_from_outside() {
    let html = full_html(&example::evaluation());
    for forbidden in ["http://", "https://", "<script", "<link", "url(", "@import", "@font-face"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    let sources: Vec<&str> = html.split(" src=\"").skip(1).collect();
    assert_eq!(sources.len(), 2);
    assert!(sources.iter().all(|source| source.starts_with("data:image/png;base64,iVBORw0KGgo")));
}

#[test]
fn what_has_no_data_has_no_section() {
    let html = page(&example::bare()).html();
    balance(&html).unwrap();
    assert_eq!(html.matches("<h2 ").count(), 1, "provenance alone");
    for absent in ["<table", "<svg", "<img", "<figure", "<pre", "class=\"cards\"", "SHA-256"] {
        assert!(!html.contains(absent), "{absent}");
    }
    let unusable = [History { name: "fid".into(), points: vec![(1000, f64::NAN, None)] }, History::default()];
    let html = Page { history: &unusable, ..page(&example::bare()) }.html();
    assert!(!html.contains("Metrics over training"));
}

#[test]
fn whatever_a_user_can_write_is_escaped() {
    let evil = "\"><script>alert('x')</script>&\u{1}";
    let mut evaluation = example::evaluation();
    evaluation.version = evil.to_owned();
    let provenance = &mut evaluation.provenance;
    (provenance.generated, provenance.real, provenance.real_digest) = (evil.into(), evil.into(), Some(evil.into()));
    if let (Some(sampling), Some(extractor)) = (&mut provenance.sampling, &mut provenance.extractor) {
        (sampling.sampler, sampling.weights) = (evil.into(), evil.into());
        (extractor.name, extractor.digest, extractor.preprocessing) = (evil.into(), evil.into(), evil.into());
    }
    for measurement in &mut evaluation.measurements {
        measurement.name = evil.to_owned();
        measurement.notes = vec![evil.to_owned()];
    }
    let (plain, history) = (page(&evaluation), [history(evil)]);
    let html = Page { title: evil, history: &history, samples: Some(b"\""), command: Some(evil), ..plain }.html();
    balance(&html).unwrap();
    assert!(!html.contains("<script") && !html.contains('\u{1}') && !html.contains("\"\""));
    assert!(html.contains("&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;\u{fffd}"));
}

#[test]
fn copies_are_pointed_out() {
    let mut evaluation = example::evaluation();
    let warnings = |evaluation: &Evaluation| page(evaluation).html().matches("class=\"warning\"").count();
    assert_eq!(warnings(&evaluation), 0);
    if let Some(near) = &mut evaluation.neighbours {
        (near.exact_copies, near.z) = (3, -12.5);
    }
    assert_eq!(warnings(&evaluation), 2);
    assert!(page(&evaluation).html().contains("3 of 2,000 samples are exact copies"));
}

#[test]
fn a_loss_on_training_images_is_called_that() {
    let mut evaluation = example::evaluation();
    evaluation.neighbours = None;
    assert!(page(&evaluation).html().contains("Held-out loss</h2>"));
    if let (Some(loss), Some(bound), Some(nll)) =
        (&mut evaluation.loss, &mut evaluation.bits_per_dim, &mut evaluation.nll)
    {
        (loss.on, bound.on, nll.on) = (JudgedOn::Training, JudgedOn::Training, JudgedOn::Training);
    }
    let html = page(&evaluation).html();
    assert!(html.contains("Loss on training images</h2>") && !html.contains("eld-out"), "{html}");
    assert_eq!(html.matches("training images).").count(), 3, "of loss, bound and likelihood");
}

#[test]
fn numbers_that_are_none_do_not_stop_the_page() {
    let mut evaluation = example::evaluation();
    evaluation.seconds = f64::NAN;
    evaluation.measurements[0].value = f64::NAN;
    if let (Some(loss), Some(bound), Some(near)) =
        (&mut evaluation.loss, &mut evaluation.bits_per_dim, &mut evaluation.neighbours)
    {
        (loss.mean, loss.quarters, bound.total, bound.terms) = (f64::NAN, [f64::INFINITY; 4], f64::NAN, vec![]);
        (near.generated_quantiles, near.closest) = ([f64::NAN; 7], vec![]);
    }
    balance(&page(&evaluation).html()).unwrap();
}
