//! From a recipe to a run: its trainer, its setup, and the settings that must not change on resume. Not here: opening data, and building networks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::Device;
use toml::{Table, Value};

use super::{Model, Recipe, RecipeError};
use crate::data::Subset;
use crate::diffusion::Diffusion;
use crate::model_file::ModelCard;
use crate::models::{Network, NetworkConfig};
use crate::train::{RunSetup, TrainConfigError, Trainer};

/// What may change on resume: whole sections, or certain keys of a section. Changing anything else would make it a different run. Paths of data are
/// included, because the data themselves are compared.
const FREE: &[(&str, Option<&[&str]>)] = &[
    ("data", Some(&["path", "labels", "condition", "vectors", "cache", "cache_mib", "workers", "verify"])),
    // A resumed run has its own weights.
    ("network", Some(&["init_from"])),
    (
        "train",
        Some(&[
            "steps",
            "checkpoint_activations",
            "device_graph",
            "tensorboard",
            "save_every",
            "sample_every",
            "held_out_every",
            "log_every",
            "keep",
            "keep_every",
            "max_skipped",
        ]),
    ),
    ("post_hoc", Some(&["post_hoc_every"])),
    ("sample", None),
    ("guidance", None),
    ("evaluate", None),
];

/// Whether a key of a section may change on resume.
pub fn may_change(section: &str, key: &str) -> bool {
    FREE.iter().any(|(free, keys)| *free == section && keys.is_none_or(|keys| keys.contains(&key)))
}

impl Recipe {
    /// A trainer of `model` configured by the recipe, before its first step. `model` must be on an autodiff device. The recipe's arithmetic is a
    /// setting of the process: [`ArithmeticConfig::set_on`](super::ArithmeticConfig::set_on).
    ///
    /// # Errors
    /// Invalid options, or a network that does not fit the formulation.
    pub fn trainer<M: Network>(&self, model: M, device: &Device) -> Result<Trainer<M>, RecipeError> {
        let diffusion = Diffusion::new(&self.diffusion)?;
        let trainer = Trainer::new(model, diffusion, self.train.clone(), self.ema, device)?;
        let profiles = self.post_hoc.profiles().map_err(TrainConfigError::from)?;
        Ok(trainer.with_power_emas(&profiles)?)
    }

    /// What [`Run`](crate::train::Run) needs in addition to the trainer, without evaluations. `network` describes the network to readers of the
    /// weights; use [`NetworkConfig::Custom`] for your own.
    ///
    /// # Errors
    /// A recipe that TOML cannot represent.
    pub fn setup(
        &self,
        dir: impl Into<PathBuf>,
        network: NetworkConfig,
        train: Subset,
        held_out: Subset,
    ) -> Result<RunSetup, RecipeError> {
        Ok(RunSetup {
            dir: dir.into(),
            config_toml: self.to_toml()?,
            settings: self.fixed_settings()?,
            card: ModelCard::for_data(network, self.diffusion.clone(), train.dataset()),
            sample: self.sample.clone(),
            guidance: self.guidance.clone(),
            snapshot_every: self.snapshot_every(),
            evaluate: None,
            train,
            held_out,
            flip: self.data.flip,
            augment: self.data.augment,
            workers: self.data.workers,
            device_name: String::new(),
        })
    }

    /// Steps between snapshots of the post-hoc averages.
    pub fn snapshot_every(&self) -> u64 {
        self.post_hoc.post_hoc_every.unwrap_or(self.train.save_every)
    }

    /// The settings that must not change on resume: each such key that has a value, in the section of the chosen network and the other sections.
    ///
    /// # Errors
    /// A recipe that TOML cannot represent.
    pub fn fixed_settings(&self) -> Result<BTreeMap<String, String>, RecipeError> {
        let is_other =
            |section: &str| Model::ALL.into_iter().any(|model| model != self.network.model && model.name() == section);
        let mut settings = BTreeMap::new();
        for (section, keys) in Table::try_from(self)?.into_iter().filter(|(section, _)| !is_other(section)) {
            let Value::Table(keys) = keys else { continue };
            let is_network = Model::ALL.into_iter().any(|model| model.name() == section);
            // Channels are set by the data and are not a key of a recipe.
            let is_key = |key: &str| !(is_network && key == "channels");
            let fixed = keys.into_iter().filter(|(key, _)| is_key(key) && !may_change(&section, key));
            settings.extend(fixed.map(|(key, value)| (format!("{section}.{key}"), plain(&value))));
        }
        Ok(settings)
    }
}

/// A value of a recipe as a user would type it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data::Dataset;
    use crate::models::{Unet, UnetConfig};
    use crate::nn::Init;
    use crate::train::{Outcome, Run, RunError, StopSignal};

    #[test]
    fn what_a_run_goes_on_with_is_of_the_chosen_network() {
        let mut recipe = Recipe::default();
        recipe.network.model = Model::Dit;
        (recipe.train.lr, recipe.train.max_grad_norm) = (0.5, f64::INFINITY);
        let settings = recipe.fixed_settings().unwrap();
        let of = |key: &str| settings.get(key).map(String::as_str);
        assert_eq!((of("train.lr"), of("train.max_grad_norm")), (Some("0.5"), Some("inf")));
        assert_eq!((of("network.model"), of("data.image_size")), (Some("dit"), None));
        assert_eq!((of("dit.patch_size"), of("uvit.patch_size")), (Some("2"), None));
        assert_eq!((of("train.steps"), of("sample.sampler"), of("data.cache")), (None, None, None), "what may change");
    }

    #[test]
    fn free_keys_are_keys_of_a_recipe() {
        let (mut recipe, path, number) = (Recipe::default(), || Some(PathBuf::from("x")), Some(1));
        // A key without a value, as these are by default, is none of the table.
        (recipe.data.path, recipe.data.labels) = (path(), path());
        (recipe.data.condition, recipe.data.vectors) = (path(), path());
        recipe.network.init_from = path();
        (recipe.train.sample_every, recipe.train.held_out_every, recipe.train.keep_every) = (number, number, number);
        recipe.post_hoc.post_hoc_every = number;
        let recipe = Table::try_from(recipe).unwrap();
        for (section, keys) in FREE {
            let known = recipe.get(*section).and_then(Value::as_table).unwrap();
            for key in keys.iter().copied().flatten() {
                assert!(known.contains_key(*key), "{section}.{key}");
            }
        }
    }

    /// A custom network trains in a run folder in the same way as the built-in ones.
    #[test]
    fn a_recipe_makes_a_run_that_goes_on_as_it_began() {
        let place = tempfile::tempdir().unwrap();
        let text = "[train]\nsteps = 2\nbatch_size = 2\nsave_every = 1\nlr = 1e-3\n[sample]\nnum_samples = 1\nsampling_timesteps = 1";
        let recipe = Recipe::from_toml(text).unwrap().resolved();
        recipe.validate().unwrap();
        let dataset = Arc::new(Dataset::open(&recipe.data).unwrap());
        let recipe = recipe.for_data(&dataset);
        let device = Device::flex();
        let run = |recipe: &Recipe, resume: bool| {
            let unet = UnetConfig { dim: 4, dim_mults: vec![1], channels: 1, ..UnetConfig::default() };
            let model = Unet::new(&unet, &mut Init::new(0, &device.clone().autodiff())).unwrap();
            let (train, held_out) = dataset.split_held_out(recipe.data.held_out, recipe.train.seed);
            let network = NetworkConfig::Custom { name: "mine".into() };
            let setup = recipe.setup(place.path().join("run"), network, train, held_out).unwrap();
            let trainer = recipe.trainer(model, &device).unwrap();
            if resume { Run::resume(trainer, setup).map(|(run, _)| run) } else { Run::create(trainer, setup) }
        };
        let outcome = run(&recipe, false).unwrap().train(&StopSignal::default(), &mut |_| {}).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        let mut longer = recipe.clone();
        longer.train.steps = 3;
        assert_eq!(run(&longer, true).unwrap().trainer().step_count(), 2);
        let mut other = longer.clone();
        other.train.lr = 2e-3;
        assert!(matches!(run(&other, true), Err(RunError::OtherSetting { key, .. }) if key == "train.lr"));
        // A setting that had no value and has one now has changed, too.
        let mut sized = longer;
        sized.data.image_size = Some(crate::data::ImageSize { height: 8, width: 8 });
        assert!(matches!(run(&sized, true), Err(RunError::OtherSetting { key, .. }) if key == "data.image_size"));
    }
}
