//! Recipes by name or path, with errors that name the line. Not here: flags that override them.

use std::path::Path;

use denoising_diffusion::recipe::{Recipe, RecipeError};

use crate::failure::{Failure, FailureExt, Result};

mod explain;

/// Recipes that are part of the program.
const EMBEDDED: &[(&str, &str)] = &[
    ("digits", include_str!("../recipes/digits.toml")),
    ("ecg", include_str!("../recipes/ecg.toml")),
    ("emoji", include_str!("../recipes/emoji.toml")),
    ("fashion-mnist", include_str!("../recipes/fashion-mnist.toml")),
    ("fashion-mnist-classes", include_str!("../recipes/fashion-mnist-classes.toml")),
];

/// The recipe of `ddpm train` if neither data nor recipe are given.
pub const DEFAULT: &str = "digits";

/// The text of a recipe, and its name in errors.
pub struct RecipeText {
    text: String,
    source: String,
}

impl RecipeText {
    /// The text of an embedded recipe, by its name, or of a file.
    pub fn load(name_or_path: &str) -> Result<Self> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == name_or_path) {
            return Ok(Self { text: text.to_string(), source: format!("the embedded recipe {name}") });
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path)
            .context(format!("cannot read the recipe {}", path.display()))
            .map_err(|failure| failure.hint(format!("give a TOML file, or one of the embedded recipes: {}", names())))
            .or_usage()?;
        Ok(Self { text, source: path.display().to_string() })
    }

    pub fn parse(&self) -> Result<Recipe> {
        self.explained(Recipe::from_toml(&self.text))
    }

    /// The recipe of a run that starts from weights.
    pub fn parse_over(&self, start: &Recipe) -> Result<Recipe> {
        self.explained(Recipe::from_toml_over(&self.text, start))
    }

    /// Errors name the line.
    fn explained(&self, parsed: std::result::Result<Recipe, RecipeError>) -> Result<Recipe> {
        let Self { text, source } = self;
        parsed.map_err(|error| {
            let RecipeError::Toml(error) = error else {
                return Failure::from(error).context(format!("{source} is not a valid recipe")).into_usage();
            };
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let at = line.map_or_else(|| source.to_string(), |line| format!("{source}, line {line}"));
            let message = error.message().trim_end();
            let message = line.map_or_else(|| message.to_string(), |line| explain::explain(message, text, line));
            match line.and_then(|line| text.lines().nth(line - 1)).map(str::trim) {
                Some(shown) if !shown.is_empty() => Failure::usage(format!("{at}: {message} (in `{shown}`)")),
                _ => Failure::usage(format!("{at}: {message}")),
            }
        })
    }
}

/// A recipe by the name of an embedded one, or from a file.
pub fn load(name_or_path: &str) -> Result<Recipe> {
    RecipeText::load(name_or_path)?.parse()
}

/// The recipe that a run was started with.
pub fn of_run(run: &Path) -> Result<Recipe> {
    let path = run.join("config.toml");
    let text = std::fs::read_to_string(&path)
        .context(format!("{} is not a run folder: cannot read its config.toml", run.display()))
        .map_err(|failure| {
            failure.hint("give the folder that `ddpm train` prints as `run folder`, such as runs/digits-001")
        })?;
    RecipeText { text, source: path.display().to_string() }.parse()
}

/// Name and first sentence of every embedded recipe.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let first_sentence = |text: &'static str| {
        let line = text.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']);
        line.split(". ").next().unwrap_or_default().trim_end_matches('.')
    };
    EMBEDDED.iter().map(move |(name, text)| (*name, first_sentence(text)))
}

/// Names of the embedded recipes.
pub fn names() -> String {
    EMBEDDED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_recipes_are_valid() {
        for (name, _) in EMBEDDED {
            load(name).unwrap().validate().unwrap();
        }
        assert!(EMBEDDED.iter().any(|(name, _)| *name == DEFAULT));
    }
}
