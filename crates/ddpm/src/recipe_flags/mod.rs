//! A flag for every key of a recipe, from one table: its `--help` text, how its value is read, and whether it may change on resume. Not here: the
//! meaning of the values, which the library defines and checks.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use denoising_diffusion::diffusion::{DiffusionConfig, FormulationConfig, SharedConfig};
use denoising_diffusion::recipe::{Model, Recipe, plain};
use denoising_diffusion::sampler::SamplerKind;
use serde::de::Error;
use toml::{Table, Value};

mod kinds;
mod table;
#[cfg(test)]
mod tests;

use table::Kind::{Switch, WordPerStage};
pub use table::PRECISION;
use table::{FLAGS, Flag, Kind};

impl Flag {
    /// `--key`, as typed.
    pub fn name(&self) -> String {
        format!("--{}", self.long())
    }

    fn long(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Whether it sets a key in this section of a recipe.
    pub fn is_of(&self, section: &str) -> bool {
        self.sections.contains(&section)
    }

    fn heading(&self) -> &'static str {
        match self.sections {
            ["data"] => "Data [data]",
            ["network"] => "Network [network]",
            ["unet"] => "U-Net [unet]",
            ["dit"] => "DiT [dit]",
            ["uvit"] => "U-ViT [uvit]",
            ["karras_unet"] => "Magnitude-preserving U-Net [karras_unet]",
            ["diffusion"] => "Diffusion [diffusion]",
            ["train"] => "Training [train]",
            ["ema"] => "Moving average [ema]",
            ["post_hoc"] => "Averages of any length, after training [post_hoc]",
            ["guidance"] => "Guidance [guidance]",
            ["evaluate"] => "Evaluation [evaluate]",
            ["sample"] => "Samples [sample]",
            ["arithmetic"] => "Arithmetic [arithmetic]",
            _ => "Several networks, each in its own section",
        }
    }

    /// The help text, with the default taken from `defaults`.
    fn help(&self, defaults: &Table) -> String {
        let of = match self.sections {
            [_] => String::new(),
            several => format!(" ({})", several.join(", ")),
        };
        let help = format!("{}{of}", self.help.split(" [default: ").next().unwrap_or(self.help));
        if let Some((_, said)) = self.help.split_once(" [default: ") {
            return format!("{help} [default: {said}");
        }
        let known: Vec<(&str, String)> = self
            .sections
            .iter()
            .filter_map(|section| Some((*section, plain(&default_of(defaults, section, self.key)?))))
            .collect();
        let Some((_, first)) = known.first() else { return help };
        let others = known.iter().filter(|(_, value)| value != first);
        let others: String = others.map(|(section, value)| format!("; {section}: {value}")).collect();
        format!("{help} [default: {first}{others}]")
    }

    fn arg(&self, help: String, heading: &'static str) -> Arg {
        let (kind, of_diffusion) = (self.kind, self.is_of("diffusion"));
        let arg = Arg::new(self.key)
            .long(self.long())
            .help(match kind {
                Kind::Word(words) | Kind::Words(words) | WordPerStage(words) => format!("{help} [{}]", words.join("|")),
                _ => help,
            })
            .help_heading(heading)
            .value_name(kind.value_name())
            .allow_negative_numbers(true)
            // clap does not read `-3,5` as a negative number.
            .allow_hyphen_values(matches!(kind, Kind::ValueRange))
            .action(ArgAction::Set)
            .value_parser(move |text: &str| match kind.parse(text)? {
                // The formulation's options are read by way of JSON, which has no infinity.
                Value::Float(number) if of_diffusion && number.is_infinite() => {
                    Err("expected a finite number".to_string())
                }
                value => Ok(value),
            });
        match kind {
            Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => arg,
        }
    }
}

/// The sections of a recipe.
pub fn sections() -> Vec<&'static str> {
    let mut sections = Vec::new();
    for section in FLAGS.iter().flat_map(|flag| flag.sections) {
        if !sections.contains(section) {
            sections.push(*section);
        }
    }
    sections
}

/// Keys that are no flags of the table, but arguments of commands, each with its section.
const ARGUMENTS: &[(&[&str], &str)] = &[
    (&["data"], "path"),
    (&["data"], "labels"),
    (&["data"], "condition"),
    (&["data"], "vectors"),
    (&["network"], "init_from"),
];

/// All keys, each with its sections.
fn keys() -> impl Iterator<Item = (&'static [&'static str], &'static str)> {
    FLAGS.iter().map(|flag| (flag.sections, flag.key)).chain(ARGUMENTS.iter().copied())
}

/// The keys of a section.
pub fn keys_of(section: &str) -> Vec<&'static str> {
    keys().filter(|(sections, _)| sections.contains(&section)).map(|(_, key)| key).collect()
}

/// The sections that have this key.
pub fn sections_of(key: &str) -> &'static [&'static str] {
    keys().find(|(_, other)| *other == key).map_or(&[], |(sections, _)| sections)
}

/// The default of a key: that of a default recipe, else of the first formulation that has the key.
fn default_of(defaults: &Table, section: &str, key: &str) -> Option<Value> {
    let found = defaults.get(section).and_then(|section| section.get(key)).cloned();
    let of_formulation =
        |formulation| Table::try_from(DiffusionConfig::from(formulation)).unwrap_or_default().get(key).cloned();
    found.or_else(|| FormulationConfig::all().into_iter().filter(|_| section == "diffusion").find_map(of_formulation))
}

/// The flags that were given, each with its value.
#[derive(Clone, Debug, Default)]
pub struct RecipeFlags {
    given: Vec<(&'static Flag, Value)>,
}

impl RecipeFlags {
    /// The recipe, overridden by these flags.
    pub fn apply(&self, recipe: &Recipe) -> Result<Recipe, toml::de::Error> {
        let mut table = Table::try_from(self.with_what_is_usual(recipe)?).map_err(toml::de::Error::custom)?;
        self.change_formulation(&mut table);
        self.change_model(&mut table);
        let model = table.get("network").and_then(|network| network.get("model")).and_then(Value::as_str);
        let model = self.said_model().or(model).unwrap_or_default().to_string();
        for (flag, value) in &self.given {
            // An option that the chosen network lacks is stored with a network that has it, so that validation reports it.
            let section = flag.sections.iter().find(|section| **section == model).unwrap_or(&flag.sections[0]);
            if let Some(Value::Table(section)) = table.get_mut(*section) {
                section.insert(flag.key.to_string(), value.clone());
            }
        }
        table.try_into()
    }

    /// Options of one formulation have no meaning for another: if the flags choose another one, only shared options are kept.
    fn change_formulation(&self, table: &mut Table) {
        let chosen = self.given.iter().find(|(flag, _)| flag.key == "diffusion").map(|(_, value)| value);
        let Some(Value::Table(section)) = table.get_mut("diffusion") else { return };
        if chosen.is_some_and(|chosen| Some(chosen) != section.get("diffusion")) {
            section.retain(|key, _| SharedConfig::KEYS.contains(&key));
        }
    }

    /// If the flags choose another formulation or CFG++ but no sampler, or another network but no learning rate, the default for the old choice is
    /// replaced by the default for the new one.
    fn with_what_is_usual(&self, recipe: &Recipe) -> Result<Recipe, toml::de::Error> {
        let mut recipe = recipe.clone();
        let said = |key| self.given.iter().find(|(flag, _)| flag.key == key).map(|(_, value)| value.clone());
        if said("sampler").is_none() {
            let usual = |recipe: &Recipe| SamplerKind::usual(&recipe.diffusion.formulation, &recipe.guidance);
            let (before, mut chosen) = (usual(&recipe), recipe.clone());
            if let Some(formulation) = said("diffusion") {
                chosen.diffusion = Table::from_iter([("diffusion".to_string(), formulation)]).try_into()?;
            }
            if let Some(cfg_plus_plus) = said("cfg_plus_plus") {
                chosen.guidance.cfg_plus_plus = cfg_plus_plus.try_into()?;
            }
            if recipe.sample.sampler == before {
                recipe.sample.sampler = usual(&chosen);
            }
        }
        if let (Some(chosen), None) = (said("model"), said("lr")) {
            let chosen: Model = chosen.try_into()?;
            if recipe.train.lr == recipe.network.model.usual_lr() {
                recipe.train.lr = chosen.usual_lr();
            }
        }
        Ok(recipe)
    }

    /// Options of one network have no meaning for another: if the flags choose another one, it starts from its defaults.
    fn change_model(&self, table: &mut Table) {
        let Some(chosen) = self.said_model() else { return };
        let Some(Value::Table(section)) = table.get("network") else { return };
        if section.get("model").and_then(Value::as_str) != Some(chosen) {
            let defaults = Table::try_from(Recipe::default()).unwrap_or_default();
            for model in Model::ALL.map(Model::name) {
                table.extend(defaults.get(model).map(|options| (model.to_string(), options.clone())));
            }
        }
    }

    /// The network given by `--model`.
    fn said_model(&self) -> Option<&str> {
        self.given.iter().find(|(flag, _)| flag.key == "model").and_then(|(_, value)| value.as_str())
    }

    /// The first given flag that cannot change on resume.
    pub fn fixed(&self) -> Option<&'static Flag> {
        self.given.iter().map(|(flag, _)| *flag).find(|flag| !flag.may_change())
    }

    /// The given flags and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Flag, &Value)> {
        self.given.iter().map(|(flag, value)| (*flag, value))
    }

    /// The given flags that state what a file of weights does not.
    pub fn untold(&self) -> UntoldFlags {
        UntoldFlags(Self { given: self.given.iter().filter(|(flag, _)| is_untold(flag.key)).cloned().collect() })
    }

    /// All but those with these keys.
    pub fn without(&self, keys: &[&str]) -> Self {
        Self { given: self.given.iter().filter(|(flag, _)| !keys.contains(&flag.key)).cloned().collect() }
    }

    /// Only the flag with this key, if given.
    pub fn only(&self, key: &str) -> Self {
        Self { given: self.given.iter().filter(|(flag, _)| flag.key == key).cloned().collect() }
    }

    fn read(matches: &ArgMatches, wanted: impl Fn(&Flag) -> bool) -> Self {
        let value = |flag: &'static Flag| Some((flag, matches.get_one::<Value>(flag.key)?.clone()));
        Self { given: FLAGS.iter().filter(|flag| wanted(flag)).filter_map(value).collect() }
    }
}

/// All flags: for `train`.
impl Args for RecipeFlags {
    fn augment_args(command: Command) -> Command {
        let defaults = Table::try_from(Recipe::default()).unwrap_or_default();
        FLAGS.iter().fold(command, |command, flag| command.arg(flag.arg(flag.help(&defaults), flag.heading())))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RecipeFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::read(matches, |_| true))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flags that state what a file of weights does not.
#[derive(Clone, Debug, Default)]
pub struct UntoldFlags(pub RecipeFlags);

impl UntoldFlags {
    /// The size of the images alone.
    pub fn image_size(height: usize, width: usize) -> Self {
        Self::default().with_image_size(height, width)
    }

    /// These, and the size of the images.
    pub fn with_image_size(mut self, height: usize, width: usize) -> Self {
        let size = Value::String(format!("{height}x{width}"));
        let flag = FLAGS.iter().find(|flag| flag.key == "image_size");
        self.0.given.extend(flag.map(|flag| (flag, size)));
        self
    }
}

/// Keys that determine what a network's output means and that weights may not reveal.
const UNTOLD: &[&str] = &[
    "image_size",
    "diffusion",
    "timesteps",
    "objective",
    "beta_schedule",
    "zero_terminal_snr",
    "noise_schedule",
    "sigma_data",
    "sigma_min",
    "sigma_max",
    "rho",
    "noise_d",
    "noise_d_low",
    "noise_d_high",
    "image_d",
    "cosine_s",
    "sigmoid_start",
    "sigmoid_end",
    "sigmoid_tau",
    "time_scale",
    "auto_normalize",
    "sinusoidal_pos_emb_theta",
    "mid_attn_heads",
    "mp_cat_t",
    "mp_add_emb_t",
    "attn_res_mp_add_t",
    "image_transform",
];

/// Whether a key may be given for weights that do not reveal it.
pub fn is_untold(key: &str) -> bool {
    UNTOLD.contains(&key)
}

impl Args for UntoldFlags {
    fn augment_args(command: Command) -> Command {
        let heading = "What the file does not contain (see `ddpm info`)";
        FLAGS.iter().filter(|flag| UNTOLD.contains(&flag.key)).fold(command, |command, flag| {
            let help = flag.help.split(" [default").next().unwrap_or(flag.help);
            command.arg(flag.arg(help.to_string(), heading))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for UntoldFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(RecipeFlags::read(matches, |flag| UNTOLD.contains(&flag.key))))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flags that set how samples are drawn: for commands that draw some.
#[derive(Clone, Debug, Default)]
pub struct SamplingFlags(pub RecipeFlags);

/// Shorter names of some of them.
const ALIASES: &[(&str, &str)] = &[
    ("sampling_timesteps", "steps"),
    ("posterior_variance", "variance"),
    ("sample_batch_size", "batch-size"),
    ("eta", "ddim-sampling-eta"),
];

impl SamplingFlags {
    fn wanted(flag: &Flag) -> bool {
        (flag.is_of("sample") || flag.is_of("guidance")) && flag.key != "num_samples"
    }
}

impl Args for SamplingFlags {
    fn augment_args(command: Command) -> Command {
        let defaults = Table::try_from(Recipe::default()).unwrap_or_default();
        FLAGS.iter().filter(|flag| Self::wanted(flag)).fold(command, |command, flag| {
            let heading = match flag.is_of("guidance") {
                true => "Guidance (defaults are the run's own, if it has any)",
                false => "Sampler (defaults are the run's own, if it has any)",
            };
            let arg = flag.arg(flag.help(&defaults), heading);
            let alias = ALIASES.iter().find(|(key, _)| *key == flag.key).map(|(_, alias)| *alias);
            command.arg(alias.into_iter().fold(arg, Arg::visible_alias))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SamplingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(RecipeFlags::read(matches, Self::wanted)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
