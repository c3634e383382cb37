//! A flag for every key of a recipe, from one table: what `--help` says, how values are read, and which keys a resumed run may change.
//! Not here: what the values mean, which is the library's to say and to check.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use denoising_diffusion::data::{self, ChannelPolicy, ImageSize};
use denoising_diffusion::diffusion::{DiffusionConfig, FormulationConfig, SharedConfig};
use denoising_diffusion::recipe::{Model, Recipe};
use denoising_diffusion::sampler::SamplerKind;
use toml::{Table, Value};

mod table;

use table::Kind::{
    Channels, ImageSize as Size, Number, Range, Switch, SwitchPerStage, ValueRange, Whole, WholePerStage, Wholes, Word,
    WordPerStage, Words,
};
use table::{FLAGS, Flag, Kind, Resume};

impl Flag {
    /// `--key`, as it is typed.
    pub fn name(&self) -> String {
        format!("--{}", self.long())
    }

    fn long(&self) -> String {
        self.key.replace('_', "-")
    }

    fn is_of(&self, section: &str) -> bool {
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
            ["guidance"] => "Guidance [guidance]",
            ["evaluate"] => "Evaluation [evaluate]",
            ["sample"] => "Samples [sample]",
            _ => "Several networks, each in its own section",
        }
    }

    /// The help of a flag whose key has the defaults that `defaults` names.
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
        let kind = self.kind;
        let arg = Arg::new(self.key)
            .long(self.long())
            .help(match kind {
                Kind::Word(words) | Kind::Words(words) | WordPerStage(words) => format!("{help} [{}]", words.join("|")),
                _ => help,
            })
            .help_heading(heading)
            .value_name(kind.value_name())
            .allow_negative_numbers(true)
            .action(ArgAction::Set)
            .value_parser(move |text: &str| kind.parse(text));
        match kind {
            Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => arg,
        }
    }
}

impl Kind {
    fn value_name(self) -> &'static str {
        match self {
            Whole => "N",
            Number => "X",
            Switch => "true|false",
            Word(_) => "WORD",
            Words(_) => "WORD,...",
            WordPerStage(_) => "WORD[,WORD...]",
            Wholes => "N,N,...",
            WholePerStage => "N[,N...]",
            SwitchPerStage => "BOOL[,BOOL...]",
            Size => "SIZE",
            Channels => "CHANNELS",
            Range => "LOW,HIGH",
            ValueRange => "LOW,HIGH|measured",
        }
    }

    /// The value as a recipe holds it, or what was expected.
    fn parse(self, text: &str) -> Result<Value, String> {
        let expected = |what: &str| format!("expected {what}");
        match self {
            Whole => whole(text).ok_or_else(|| expected("a whole number of at least 0")),
            Number => text.parse().map(Value::Float).map_err(|_| expected("a number such as 0.001 or 1e-3")),
            Switch => switch(text).ok_or_else(|| expected("true or false")),
            Word(words) if words.contains(&text) => Ok(Value::String(text.to_string())),
            Word(words) => Err(expected(&words.join(", "))),
            Words(words) => {
                let all: Option<Vec<Value>> = text
                    .split(',')
                    .map(|word| words.contains(&word).then(|| Value::String(word.to_string())))
                    .collect();
                all.map(Value::Array).ok_or_else(|| expected(&format!("words out of {}", words.join(", "))))
            }
            WordPerStage(words) => {
                let one = |text: &str| words.contains(&text).then(|| Value::String(text.to_string()));
                let each =
                    || text.split(',').map(|part| one(part.trim())).collect::<Option<Vec<_>>>().map(Value::Array);
                one(text).or_else(each).ok_or_else(|| expected(&format!("{}, or one per stage", words.join(", "))))
            }
            Wholes => list(text, whole).ok_or_else(|| expected("whole numbers such as 1,2,4")),
            WholePerStage => {
                one_or_list(text, whole).ok_or_else(|| expected("a whole number, or one per stage such as 4,8"))
            }
            SwitchPerStage => {
                one_or_list(text, switch).ok_or_else(|| expected("true or false, or one per stage such as false,true"))
            }
            Range => {
                let numbers: Option<Vec<Value>> =
                    text.split(',').map(|part| part.trim().parse().ok().map(Value::Float)).collect();
                numbers
                    .filter(|numbers| numbers.len() == 2)
                    .map(Value::Array)
                    .ok_or_else(|| expected("two numbers such as 0.2,5"))
            }
            Size => text.parse::<ImageSize>().map(|size| Value::String(size.to_string())).map_err(|e| e.to_string()),
            ValueRange => {
                let range = text.parse::<data::ValueRange>().map_err(|e| e.to_string())?;
                Ok(Value::String(range.to_string()))
            }
            Channels => {
                text.parse::<ChannelPolicy>().map(|policy| Value::String(policy.to_string())).map_err(|e| e.to_string())
            }
        }
    }
}

fn whole(text: &str) -> Option<Value> {
    text.parse::<i64>().ok().filter(|number| *number >= 0).map(Value::Integer)
}

fn switch(text: &str) -> Option<Value> {
    text.parse().ok().map(Value::Boolean)
}

fn list(text: &str, item: fn(&str) -> Option<Value>) -> Option<Value> {
    text.split(',').map(|part| item(part.trim())).collect::<Option<Vec<_>>>().map(Value::Array)
}

fn one_or_list(text: &str, item: fn(&str) -> Option<Value>) -> Option<Value> {
    item(text).or_else(|| list(text, item))
}

/// A value as one types it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// What a key is unless something is said: in a default recipe, or in the first formulation that has the key.
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
    /// The recipe with these flags put over it.
    pub fn apply(&self, recipe: &Recipe) -> Result<Recipe, toml::de::Error> {
        let mut table = Table::try_from(self.with_usual_sampler(recipe)?).unwrap_or_default();
        self.change_formulation(&mut table);
        self.change_model(&mut table);
        let model = table.get("network").and_then(|network| network.get("model")).and_then(Value::as_str);
        let model = self.said_model().or(model).unwrap_or_default().to_string();
        for (flag, value) in &self.given {
            // An option that the chosen network has not goes where validation finds that it belongs to another.
            let section = flag.sections.iter().find(|section| **section == model).unwrap_or(&flag.sections[0]);
            if let Some(Value::Table(section)) = table.get_mut(*section) {
                section.insert(flag.key.to_string(), value.clone());
            }
        }
        table.try_into()
    }

    /// The options of one formulation mean nothing to another: where the flags choose another one, only shared options stay.
    fn change_formulation(&self, table: &mut Table) {
        let chosen = self.given.iter().find(|(flag, _)| flag.key == "diffusion").map(|(_, value)| value);
        let Some(Value::Table(section)) = table.get_mut("diffusion") else { return };
        if chosen.is_some_and(|chosen| Some(chosen) != section.get("diffusion")) {
            let shared = Table::try_from(SharedConfig::default()).unwrap_or_default();
            section.retain(|key, _| shared.contains_key(key));
        }
    }

    /// Where the flags choose another formulation and no sampler, one that is usual for the old formulation becomes the new one's.
    fn with_usual_sampler(&self, recipe: &Recipe) -> Result<Recipe, toml::de::Error> {
        let mut recipe = recipe.clone();
        let said = |key| self.given.iter().find(|(flag, _)| flag.key == key).map(|(_, value)| value.clone());
        if let (Some(chosen), None) = (said("diffusion"), said("sampler")) {
            let chosen: DiffusionConfig = Table::from_iter([("diffusion".to_string(), chosen)]).try_into()?;
            if recipe.sample.sampler == SamplerKind::usual(&recipe.diffusion.formulation) {
                recipe.sample.sampler = SamplerKind::usual(&chosen.formulation);
            }
        }
        Ok(recipe)
    }

    /// The options of one network mean nothing to another: where the flags choose another one, it starts from its defaults.
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

    /// The network that `--model` asks for.
    fn said_model(&self) -> Option<&str> {
        self.given.iter().find(|(flag, _)| flag.key == "model").and_then(|(_, value)| value.as_str())
    }

    /// The first flag that a run which goes on cannot take.
    pub fn fixed(&self) -> Option<&'static Flag> {
        self.given.iter().map(|(flag, _)| *flag).find(|flag| flag.resume == Resume::Fixed)
    }

    /// The given flags and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Flag, &Value)> {
        self.given.iter().map(|(flag, value)| (*flag, value))
    }

    /// One given flag alone.
    pub fn only(&self, key: &str) -> Self {
        Self { given: self.given.iter().filter(|(flag, _)| flag.key == key).cloned().collect() }
    }

    fn read(matches: &ArgMatches, wanted: impl Fn(&Flag) -> bool) -> Self {
        let value = |flag: &'static Flag| Some((flag, matches.get_one::<Value>(flag.key)?.clone()));
        Self { given: FLAGS.iter().filter(|flag| wanted(flag)).filter_map(value).collect() }
    }
}

/// All of them: for `train`.
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

/// Those that say what a file of weights does not say.
#[derive(Clone, Debug, Default)]
pub struct UntoldFlags(pub RecipeFlags);

/// Keys that decide what a network's output means and that weights may not tell.
const UNTOLD: &[&str] = &[
    "image_size",
    "diffusion",
    "timesteps",
    "objective",
    "beta_schedule",
    "noise_schedule",
    "sigma_data",
    "cosine_s",
    "sigmoid_start",
    "sigmoid_end",
    "sigmoid_tau",
    "auto_normalize",
    "sinusoidal_pos_emb_theta",
    "mid_attn_heads",
];

impl Args for UntoldFlags {
    fn augment_args(command: Command) -> Command {
        let heading = "What the file does not say (`ddpm info` tells what it says)";
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

/// Those that say how samples are drawn: for commands that draw some.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn parse(args: &[&str]) -> Result<RecipeFlags, clap::Error> {
        let command = RecipeFlags::augment_args(Command::new("t").no_binary_name(true));
        RecipeFlags::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn the_table_covers_the_recipe_exactly() {
        let serde_json::Value::Object(sections) = serde_json::to_value(Recipe::default()).unwrap() else { panic!() };
        let mut keys: BTreeSet<(String, String)> = sections
            .iter()
            .flat_map(|(section, keys)| keys.as_object().unwrap().keys().map(|key| (section.clone(), key.clone())))
            .collect();
        // Absent from a default recipe; the others below are no flags.
        keys.insert(("data".into(), "image_size".into()));
        keys.insert(("data".into(), "value_range".into()));
        // Every formulation's own, and those without a default.
        for formulation in FormulationConfig::all() {
            let serde_json::Value::Object(own) = serde_json::to_value(&formulation).unwrap() else { panic!() };
            keys.extend(own.keys().map(|key| ("diffusion".to_string(), key.clone())));
        }
        keys.insert(("diffusion".into(), "min_snr_loss_weight".into()));
        keys.remove(&("data".into(), "path".into()));
        for model in Model::ALL {
            keys.remove(&(model.name().into(), "channels".into()));
        }
        let pairs =
            || FLAGS.iter().flat_map(|f| f.sections.iter().map(|section| (section.to_string(), f.key.to_string())));
        assert_eq!(pairs().collect::<BTreeSet<_>>(), keys);
        assert_eq!(pairs().count(), keys.len());
    }

    #[test]
    fn every_flag_takes_its_own_default_and_the_help_shows_it() {
        let defaults = Table::try_from(Recipe::default()).unwrap();
        for flag in FLAGS {
            let help = flag.help(&defaults);
            let first = flag.sections[0];
            match defaults[first].get(flag.key).filter(|_| !flag.help.contains("[default: ")) {
                Some(value) => {
                    let text = plain(value);
                    assert!(help.contains(&format!("[default: {text}")), "{help}");
                    let given = parse(&[&format!("{}={text}", flag.name())]).unwrap();
                    assert_eq!(given.apply(&Recipe::default()).unwrap(), Recipe::default(), "{}", flag.key);
                }
                None => assert!(help.contains("[default: ") || flag.key == "keep_every", "{} {help}", flag.key),
            }
        }
    }

    #[test]
    fn words_are_those_that_the_library_takes() {
        for flag in FLAGS {
            let (Word(words) | Words(words) | WordPerStage(words)) = flag.kind else { continue };
            for word in words {
                let given = parse(&[&format!("{}={word}", flag.name())]).unwrap();
                let takes = |formulation: FormulationConfig| {
                    let recipe = Recipe { diffusion: formulation.into(), ..Recipe::default() };
                    given.apply(&recipe).is_ok()
                };
                assert!(FormulationConfig::all().into_iter().any(takes), "{} {word}", flag.key);
            }
        }
    }

    #[test]
    fn values_are_read_by_kind() {
        let given = parse(&[
            "--dim-mults",
            "1,3",
            "--image-size",
            "28x20",
            "--channels",
            "3",
            "--lr",
            "1",
            "--max-grad-norm",
            "inf",
            "--self-condition",
            "--auto-normalize=false",
            "--attn-heads",
            "2,4",
            "--attn-dim-head",
            "8",
            "--full-attn",
            "false",
            "--sigmoid-start",
            "-2.5",
        ])
        .unwrap();
        let recipe = given.apply(&Recipe::default()).unwrap();
        assert_eq!(recipe.unet.dim_mults, [1, 3]);
        assert_eq!(recipe.data.image_size.unwrap().width, 20);
        assert_eq!(recipe.data.channels, ChannelPolicy::Exact(3));
        assert_eq!((recipe.train.lr, recipe.train.max_grad_norm), (1.0, f64::INFINITY));
        assert!(recipe.unet.self_condition && !recipe.diffusion.shared.auto_normalize);
        assert_eq!(recipe.unet.attn_heads.resolve(2).unwrap(), [2, 4]);
        assert_eq!(recipe.unet.full_attn.unwrap().resolve(3).unwrap(), [false; 3]);
        assert_eq!(recipe.diffusion.formulation.schedule().unwrap().sigmoid_start, Some(-2.5));
    }

    #[test]
    fn a_wrong_value_names_the_flag_and_what_was_expected() {
        for (args, flag, expected) in [
            (["--lr", "fast"], "--lr", "a number"),
            (["--steps", "-1"], "--steps", "a whole number"),
            (["--steps", "1.5"], "--steps", "a whole number"),
            (["--dim-mults", "1,x"], "--dim-mults", "1,2,4"),
            (["--objective", "eps2"], "--objective", "pred_noise, pred_x0, pred_v"),
            (["--image-size", "0"], "--image-size", "28x20"),
            (["--channels", "grey"], "--channels", "auto"),
            (["--full-attn", "1"], "--full-attn", "false,true"),
        ] {
            let text = parse(&args).unwrap_err().to_string();
            assert!(text.contains(flag) && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_flag_of_several_networks_goes_to_the_chosen_one() {
        let recipe = parse(&["--model", "uvit", "--dim", "8", "--vit-depth", "2"]).unwrap();
        let recipe = recipe.apply(&Recipe::default()).unwrap();
        assert_eq!((recipe.uvit.dim, recipe.uvit.vit_depth, recipe.unet.dim), (8, 2, 64));
        let wider = parse(&["--dim", "16"]).unwrap().apply(&recipe).unwrap();
        assert_eq!((wider.uvit.dim, wider.unet.dim), (16, 64));
        // The other network's option is found by validation.
        let wrong = parse(&["--model", "dit", "--dim", "16"]).unwrap().apply(&Recipe::default()).unwrap();
        assert!(wrong.validate().unwrap_err().to_string().contains("[unet]"));
        let defaults = Table::try_from(Recipe::default()).unwrap();
        let help = |key: &str| FLAGS.iter().find(|flag| flag.key == key).unwrap().help(&defaults);
        assert!(help("patch_size").ends_with("(dit, uvit) [default: 2; uvit: 1]"), "{}", help("patch_size"));
    }

    #[test]
    fn another_formulation_starts_from_its_own_defaults_and_shared_options_stay() {
        let base = parse(&["--timesteps", "50", "--immiscible"]).unwrap().apply(&Recipe::default()).unwrap();
        let recipe = parse(&["--diffusion", "elucidated", "--sigma-max", "40"]).unwrap().apply(&base).unwrap();
        let FormulationConfig::Elucidated(config) = &recipe.diffusion.formulation else { panic!("{recipe:?}") };
        assert!(config.sigma_max == 40.0 && recipe.diffusion.shared.immiscible);
        assert_eq!(recipe.sample.sampler, SamplerKind::Dpmpp2m);
        let same = parse(&["--diffusion", "gaussian"]).unwrap().apply(&base).unwrap();
        assert_eq!(same, base);
        let error = parse(&["--sigma-max", "40"]).unwrap().apply(&base).unwrap_err().to_string();
        assert!(
            error.contains("`sigma_max` is no option of `diffusion = \"gaussian\"` (but of elucidated)"),
            "{error}"
        );
    }

    #[test]
    fn what_a_resumed_run_may_not_change_is_found() {
        assert_eq!(parse(&["--steps", "9", "--lr", "1"]).unwrap().fixed().unwrap().name(), "--lr");
        assert!(parse(&["--steps", "9", "--sampler", "ddpm"]).unwrap().fixed().is_none());
    }
}
