//! `ddpm convert`: weights from one format into another.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use denoising_diffusion::diffusion::{BetaSchedule, Diffusion, FormulationConfig, GaussianConfig};
use denoising_diffusion::interop::{Metadata, to_reference, write_safetensors};
use denoising_diffusion::model_file::{ModelCard, ModelFile};
use denoising_diffusion::models::{NetworkConfig, UnetConfig};
use denoising_diffusion::weights::WeightsKind;
use serde_json::{Map, Value, json};

use crate::failure::{Failure, FailureExt, Result};
use crate::output::{self, Rows, create_folder_of, note, refuse_file, word};
use crate::recipe_flags::UntoldFlags;
use crate::weights::{Found, weights_kind};

/// Write weights in our format, or in that of the reference.
#[derive(Args, Debug)]
#[command(
    after_help = "With --to reference, the metadata hold the arguments of its classes as JSON: of the network, and of GaussianDiffusion; for other formulations, our options of the same meaning. `ddpm` reads them, too."
)]
pub struct ConvertArgs {
    /// Run folder (its latest intact checkpoint), RUN/best (its best), checkpoint folder, .safetensors file, or .pt file of the reference
    target: PathBuf,
    /// File to write
    #[arg(long, value_name = "SAFETENSORS")]
    out: PathBuf,
    /// Format to write
    #[arg(long, default_value = "ours")]
    to: Format,
    /// Which weights to write [default: ema]
    #[arg(long, value_parser = weights_kind())]
    weights: Option<WeightsKind>,
    /// Overwrite an existing --out
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    untold: UntoldFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Self-contained: `ddpm sample` reads it.
    Ours,
    /// For `Unet.load_state_dict` of denoising-diffusion-pytorch.
    Reference,
}

pub fn run(args: &ConvertArgs) -> Result {
    if args.out.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Failure::usage(format!("--out {}: the name must end in .safetensors", args.out.display())));
    }
    refuse_file(&args.out, !args.force)?;
    let found = Found::open(&args.target, args.weights)?;
    note(format!("reading {}", found.path.display()));
    let file = found.into_model(&args.untold)?;
    create_folder_of(&args.out)?;
    match args.to {
        Format::Ours => file.write(&args.out)?,
        Format::Reference => write_reference(&file, args)?,
    }
    let (tensors, parameters) = (file.state.len(), file.state.value_count());
    if args.json {
        return output::json(&json!({
            "out": output::path(&args.out),
            "format": match args.to { Format::Ours => "ours", Format::Reference => "reference" },
            "weights": file.card.weights,
            "tensors": tensors,
            "parameters": parameters,
        }));
    }
    let mut rows = Rows::default();
    rows.row("written", args.out.display()).row("tensors", tensors);
    output::result(rows.aligned())
}

fn write_reference(file: &ModelFile, args: &ConvertArgs) -> Result {
    let (unet, keywords) = match &file.card.network {
        NetworkConfig::Unet(unet) if unet.num_classes > 0 => (unet.clone(), class_unet_keywords(unet)?),
        NetworkConfig::Unet(unet) => (unet.clone(), unet_keywords(unet)?),
        NetworkConfig::Unet1d(config) => (config.unet(), without(serde_json::to_value(config)?, OURS)),
        _ => return Err(Failure::failed("only U-Nets can be written for the reference")),
    };
    let state = to_reference(&file.state, &unet)?;
    let metadata = [
        ("unet", keywords.to_string()),
        ("diffusion", diffusion_keywords(&file.card)?.to_string()),
        ("step", file.card.step.to_string()),
        ("weights", word(&file.card.weights)),
    ];
    let metadata: Metadata = metadata.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    Ok(write_safetensors(&args.out, &state, &metadata)?)
}

/// Options of ours that the reference's Unet and Unet1D do not have.
const OURS: &[&str] =
    &["num_classes", "class_drop_prob", "num_mem_kv", "mid_attn_heads", "mid_attn_dim_head", "downsample"];

fn without(mut keywords: Value, keys: &[&str]) -> Value {
    if let Value::Object(keywords) = &mut keywords {
        keywords.retain(|key, _| !keys.contains(&key.as_str()));
    }
    keywords
}

/// The keywords of the reference's Unet. Its `full_attn` takes one value per stage, in a tuple, or null for full attention in the innermost stage
/// alone; it ignores a single `False`, and takes a list for a single true value.
fn unet_keywords(unet: &UnetConfig) -> Result<Value> {
    let full: Vec<bool> = unet.stages()?.iter().map(|stage| stage.full_attn).collect();
    let mut keywords = serde_json::to_value(unet)?;
    let innermost_alone = full.split_last().is_some_and(|(last, outer)| *last && !outer.contains(&true));
    keywords["full_attn"] = if innermost_alone { Value::Null } else { json!(full) };
    if ["full_attn", "attn_heads", "attn_dim_head"].iter().any(|key| keywords[*key].is_array()) {
        note(
            "note: the reference takes one value per stage as a tuple: convert the lists of the metadata with tuple(...)",
        );
    }
    Ok(without(keywords, OURS))
}

/// The keywords of `classifier_free_guidance.Unet`, whose attention options are those of the middle block.
fn class_unet_keywords(unet: &UnetConfig) -> Result<Value> {
    let mut keywords = serde_json::to_value(unet)?;
    keywords["cond_drop_prob"] = json!(unet.class_drop_prob);
    let stages = unet.stages()?;
    let (heads, dim_head) = stages.last().map(|innermost| unet.mid_attention(innermost)).unzip();
    keywords["attn_heads"] = json!(heads);
    keywords["attn_dim_head"] = json!(dim_head);
    let unknown = ["full_attn", "dropout", "self_condition", "sinusoidal_pos_emb_theta"];
    let keywords = unknown
        .iter()
        .chain(OURS)
        .filter(|key| **key != "num_classes")
        .fold(keywords, |keywords, key| without(keywords, &[key]));
    Ok(keywords)
}

/// The keywords of the reference's class for this network: GaussianDiffusion, GaussianDiffusion1D, or the GaussianDiffusion of
/// `classifier_free_guidance`; for other formulations, our own options. A schedule without a name there is written as its `betas`.
fn diffusion_keywords(card: &ModelCard) -> Result<Value> {
    let FormulationConfig::Gaussian(GaussianConfig { schedule: s, objective, .. }) = &card.diffusion.formulation else {
        return Ok(json!(card.diffusion));
    };
    let shared = &card.diffusion.shared;
    let parameters = [("s", s.cosine_s), ("start", s.sigmoid_start), ("end", s.sigmoid_end), ("tau", s.sigmoid_tau)];
    let parameters: Map<String, Value> =
        parameters.into_iter().filter_map(|(name, value)| Some((name.to_string(), json!(value?)))).collect();
    let of_sequences = matches!(card.network, NetworkConfig::Unet1d(_));
    let of_classes = card.network.num_classes() > 0;
    let has_name = card.betas.is_none() && !s.zero_terminal_snr;
    // The other two classes only have two schedules, without options.
    let plain = parameters.is_empty() && s.beta_schedule != BetaSchedule::Sigmoid;
    let known = has_name && (plain || !of_sequences && !of_classes);
    let mut keywords = Map::from_iter([
        ("timesteps".to_string(), json!(s.timesteps)),
        ("objective".to_string(), json!(objective)),
        ("beta_schedule".to_string(), if known { json!(s.beta_schedule) } else { Value::Null }),
    ]);
    if !known {
        let diffusion = Diffusion::with_betas(&card.diffusion, card.betas.clone()).or_usage()?;
        keywords.insert("betas".to_string(), json!(diffusion.tables().map(|tables| &tables.betas)));
        note("warning: the reference has no name for this schedule; the metadata hold its betas instead");
    }
    let mut add = |own: Value| keywords.extend(own.as_object().cloned().unwrap_or_default());
    let image_size = [card.image.height, card.image.width];
    if of_sequences {
        add(json!({ "seq_length": card.image.width, "auto_normalize": shared.auto_normalize }));
        return Ok(keywords.into());
    }
    add(json!({
        "image_size": image_size,
        "offset_noise_strength": shared.offset_noise_strength,
        "min_snr_loss_weight": card.diffusion.min_snr().is_some(),
        "min_snr_gamma": shared.min_snr_gamma,
    }));
    if of_classes {
        // That class takes a single number.
        add(json!({ "image_size": card.image.width }));
    } else {
        add(json!({
            "schedule_fn_kwargs": parameters,
            "auto_normalize": shared.auto_normalize,
            "immiscible": shared.immiscible,
        }));
    }
    Ok(keywords.into())
}
