//! `ddpm info`: all that a file of weights states, or that its tensors reveal.

use std::path::{Path, PathBuf};

use clap::Args;
use denoising_diffusion::classifier_file::ClassifierFile;
use denoising_diffusion::data::{DataLayout, ImageShape, ImageSize};
use denoising_diffusion::diffusion::DiffusionConfig;
use denoising_diffusion::eval::accuracy::HeldOutAccuracy;
use denoising_diffusion::interop::ReferenceKind;
use denoising_diffusion::model_file::{ModelFile, ModelFileError};
use denoising_diffusion::models::{KarrasUnetConfig, NetworkConfig, UnetConfig};
use denoising_diffusion::train::Snapshots;
use denoising_diffusion::weights::{StateDict, WeightsKind};
use serde_json::{Value, json};

use crate::failure::Result;
use crate::formulations;
use crate::output::{self, Rows, plural, thousands, word};
use crate::weights::{Found, Reference, Source, weights_kind};

/// Show what a file of weights contains: network, diffusion, training.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// Run folder (its latest intact checkpoint), RUN/best (its best), checkpoint folder, .safetensors file, or .pt file of the reference
    target: PathBuf,
    /// Which weights to look at [default: ema]
    #[arg(long, value_parser = weights_kind())]
    weights: Option<WeightsKind>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &InfoArgs) -> Result {
    if args.target.is_file() && matches!(ModelFile::read_card(&args.target), Err(ModelFileError::Classifier { .. })) {
        let (rows, json) = classifier(&args.target, &ClassifierFile::read(&args.target)?);
        return if args.json { output::json(&json) } else { output::result(rows.aligned()) };
    }
    let found = Found::open(&args.target, args.weights)?;
    let (mut rows, json) = match &found.source {
        Source::Ours(file) => ours(&found.path, file),
        Source::Reference(reference) => of_reference(&found.path, reference),
    };
    let snapshots = if args.target.is_dir() { Snapshots::of_run(&args.target).steps()? } else { Vec::new() };
    if let (Some(first), Some(last)) = (snapshots.first(), snapshots.last()) {
        let (first, last) = (thousands(*first), thousands(*last));
        rows.row("snapshots", format!("{} of steps {first} to {last} (for `ddpm average`)", snapshots.len()));
    }
    if args.json { output::json(&json) } else { output::result(rows.aligned()) }
}

fn ours(path: &Path, file: &ModelFile) -> (Rows, Value) {
    let (card, state) = (&file.card, &file.state);
    let mut rows = Rows::default();
    rows.row("file", path.display()).row("format", format!("ours, written by version {}", card.version));
    rows.row("weights", word(&card.weights)).row("step", thousands(card.step));
    if let Some(decay) = card.ema_decay {
        rows.row("EMA decay", decay);
    }
    if let Some(sigma_rel) = card.ema_sigma_rel {
        rows.row("EMA sigma_rel", sigma_rel);
    }
    let layout = card.network.layout();
    rows.row(plural(layout.noun()), layout.shape_in_words(card.image, card.network.depth()));
    match &card.network {
        NetworkConfig::Unet(unet) => network_rows(&mut rows, unet),
        NetworkConfig::Unet1d(unet) => network_rows(&mut rows, &unet.unet()),
        other => rows.row("network", other.in_words()),
    };
    if card.network.num_classes() > 0 {
        let dropped = card.network.class_drop_prob();
        rows.row("classes", format!("{}, dropped with probability {dropped} in training", card.network.num_classes()));
    }
    if card.network.vector_dim() > 0 {
        rows.row("vectors", format!("of {} numbers", card.network.vector_dim()));
    }
    if card.network.condition_channels() > 0 {
        let shape = ImageShape { channels: card.network.condition_channels(), ..card.image };
        rows.row("condition", format!("{shape} (channels x height x width)"));
    }
    rows.row("diffusion", described(&card.diffusion, card.betas.is_some()));
    tensor_rows(&mut rows, state);
    let json = json!({
        "file": output::path(path),
        "format": "denoising-diffusion",
        "card": card,
        "parameters": state.value_count(),
        "tensors": state.len(),
        "non_finite": state.non_finite(),
    });
    (rows, json)
}

fn classifier(path: &Path, file: &ClassifierFile) -> (Rows, Value) {
    let (card, state) = (&file.card, &file.state);
    let mut rows = Rows::default();
    rows.row("file", path.display())
        .row("format", format!("ours, a classifier of noisy images, written by version {}", card.version))
        .row("step", thousands(card.step))
        .row("images", DataLayout::Images.shape_in_words(card.image, 1))
        .row("classes", format!("{}: {}", card.class_names.len(), card.class_names.join(", ")))
        .row("network", format!("{}, dim {}", card.classifier.in_words(), card.classifier.dim))
        .row("diffusion", described(&card.diffusion, card.betas.is_some()));
    if let Some(HeldOutAccuracy { accuracy, images, .. }) = card.held_out {
        rows.row("accuracy", format!("{:.1} % of {images} held-out images, over all noise levels", 100.0 * accuracy));
    }
    tensor_rows(&mut rows, state);
    let json = json!({
        "file": output::path(path),
        "format": "denoising-diffusion classifier",
        "card": card,
        "parameters": state.value_count(),
        "tensors": state.len(),
        "non_finite": state.non_finite(),
    });
    (rows, json)
}

fn of_reference(path: &Path, reference: &Reference) -> (Rows, Value) {
    let Reference { checkpoint, weights, inferred, kind } = reference;
    let what = match checkpoint.kind() {
        ReferenceKind::Trainer => "a checkpoint of its Trainer",
        ReferenceKind::Diffusion => "a state dict of a diffusion class",
        ReferenceKind::Network => "a state dict of a network",
    };
    let available: Vec<&str> = checkpoint.available().into_iter().map(WeightsKind::name).collect();
    let mut rows = Rows::default();
    rows.row("file", path.display())
        .row("format", format!("denoising-diffusion-pytorch: {what} ({})", weights.kind().name()));
    if let Some(version) = checkpoint.version() {
        rows.row("version", version);
    }
    rows.row("weights", format!("{} (available: {})", word(kind), available.join(", ")));
    if let Some(step) = checkpoint.step() {
        rows.row("step", thousands(step));
    }
    let channels = inferred.network.channels().unwrap_or(0);
    let layout = inferred.layout();
    let size = match checkpoint.image_size() {
        Some(ImageSize { width, .. }) if layout == DataLayout::Sequences => format!("length {width}"),
        Some(ImageSize { height, width }) => format!("{height}x{width}"),
        None => "the size is not in the file (give --image-size)".to_string(),
    };
    rows.row(plural(layout.noun()), format!("{channels} channels, {size}"));
    match &inferred.network {
        NetworkConfig::Unet(unet) => network_rows(&mut rows, unet),
        other => rows.row("network", other.in_words()),
    };
    let mut network = json!(inferred.network);
    if let NetworkConfig::KarrasUnet(karras) = &inferred.network {
        let shares = attention_shares(karras);
        if shares.is_empty() {
            rows.row("attention", "none");
        } else {
            let width = karras.attn_dim_head;
            rows.row("attention", format!("at {} of the size of the data, width {width}", shares.join(", ")));
        }
        without_size(&mut network, &shares);
    }
    match &inferred.diffusion {
        Some(diffusion) => rows.row("diffusion", described(diffusion, inferred.betas.is_some())),
        None if inferred.network.fourier_time() => rows.row("diffusion", "not in the file (give --diffusion)"),
        None => rows.row("diffusion", "not in the file (give --timesteps, --beta-schedule and --objective)"),
    };
    tensor_rows(&mut rows, &weights.state);
    for note in &inferred.notes {
        rows.row("inferred", note);
    }
    let json = json!({
        "file": output::path(path),
        "format": "denoising-diffusion-pytorch",
        "kind": format!("{:?}", checkpoint.kind()).to_lowercase(),
        "version": checkpoint.version(),
        "weights": kind,
        "available": available,
        "step": checkpoint.step(),
        "network": network,
        "diffusion": inferred.diffusion,
        "betas": inferred.betas,
        "assumed": inferred.assumed,
        "notes": inferred.notes,
        "parameters": weights.state.value_count(),
        "tensors": weights.state.len(),
        "non_finite": weights.state.non_finite(),
    });
    (rows, json)
}

/// For a network of unknown size: where it has attention, as fractions of that size.
fn attention_shares(karras: &KarrasUnetConfig) -> Vec<String> {
    let side = karras.extent.map_or(1, |extent| extent.width);
    karras.attn_res.iter().filter(|&&size| size > 0).map(|size| format!("1/{}", side / size)).collect()
}

/// Removes the size of the network, which is unknown: the smallest possible one stands in for it and has no meaning.
fn without_size(network: &mut Value, shares: &[String]) {
    if let Value::Object(options) = network {
        options.remove("attn_res");
        options.remove("extent");
        options.insert("attn_shares".to_string(), json!(shares));
    }
}

fn network_rows<'a>(rows: &'a mut Rows, unet: &UnetConfig) -> &'a mut Rows {
    let plain =
        |value: &dyn Fn() -> serde_json::Result<Value>| value().map(|value| value.to_string()).unwrap_or_default();
    let network = NetworkConfig::of_unet(unet.clone()).in_words();
    rows.row("network", format!("{network}, dim {}", unet.dim)).row(
        "attention",
        format!(
            "heads {}, width {}, full {}",
            plain(&|| serde_json::to_value(&unet.attn_heads)),
            plain(&|| serde_json::to_value(&unet.attn_dim_head)),
            match &unet.full_attn {
                None => "in the innermost stage".to_string(),
                Some(full) => plain(&|| serde_json::to_value(full)),
            }
        ),
    );
    let options = [
        ("self_condition", unet.self_condition),
        ("learned_variance", unet.learned_variance),
        ("learned_sinusoidal_cond", unet.learned_sinusoidal_cond),
        ("random_fourier_features", unet.random_fourier_features),
    ];
    let on: Vec<&str> = options.into_iter().filter_map(|(name, on)| on.then_some(name)).collect();
    if !on.is_empty() {
        rows.row("options", on.join(", "));
    }
    rows
}

fn described(diffusion: &DiffusionConfig, own_betas: bool) -> String {
    let own = if own_betas { ", but with a schedule of its own" } else { "" };
    format!("{}{own}", formulations::in_words(diffusion))
}

fn tensor_rows(rows: &mut Rows, state: &StateDict) {
    rows.row("parameters", format!("{} in {} tensors", thousands(state.value_count() as u64), state.len()));
    let bad = state.non_finite();
    if !bad.is_empty() {
        rows.row("warning", format!("not finite: {}", bad.join(", ")));
    }
}
