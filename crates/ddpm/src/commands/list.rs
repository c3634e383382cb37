//! `ddpm list`: the available formulations, samplers and so on, one line each.

use clap::Args;
use denoising_diffusion::diffusion::{FormulationConfig, NoiseLevels};
use denoising_diffusion::recipe::Model;
use denoising_diffusion::sampler::SamplerKind;
use serde_json::{Value, json};

use crate::failure::Result;
use crate::output::{self, Rows};
use crate::recipes;

/// List formulations, samplers, noise levels, networks and recipes.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Name and description.
type Entry = (&'static str, &'static str);

pub fn run(args: &ListArgs) -> Result {
    let sections: [(&str, &str, Vec<Entry>); 5] = [
        ("formulations", "train --diffusion", FormulationConfig::all().iter().map(|f| (f.name(), f.about())).collect()),
        ("samplers", "--sampler", SamplerKind::ALL.iter().map(|s| (s.name(), s.about())).collect()),
        ("noise levels", "--noise-levels", NoiseLevels::ALL.iter().map(|n| (n.name(), n.about())).collect()),
        ("networks", "train --model", Model::ALL.iter().map(|m| (m.name(), m.about())).collect()),
        ("recipes", "train --config", recipes::all().collect()),
    ];
    if args.json {
        let entries = |entries: &[Entry]| -> Vec<Value> {
            entries.iter().map(|(name, about)| json!({ "name": name, "about": about })).collect()
        };
        let object = sections.iter().map(|(title, _, list)| (title.replace(' ', "_"), json!(entries(list))));
        return output::json(&Value::Object(object.collect()));
    }
    for (index, (title, how, entries)) in sections.iter().enumerate() {
        let blank = if index == 0 { "" } else { "\n" };
        output::result(format!("{blank}{title} ({how})"))?;
        let mut rows = Rows::default();
        for (name, about) in entries {
            rows.row(format!("  {name}"), about);
        }
        output::result(rows.aligned())?;
    }
    Ok(())
}
