//! What the TOML reader says of a recipe, in the words of recipes: the section that a misplaced key belongs to, the key that was probably meant, what
//! a value looks like. Not here: reading recipes, and checks of values that fit their type.

use crate::recipe_flags::{keys_of, sections, sections_of};

/// Words at least as similar as this one are suggested (Jaro-Winkler, from 0 to 1).
const SIMILAR: f64 = 0.85;

/// The reader's `message` about the line of `text` that is numbered `line`, from 1. A message that is not recognised is returned as it is.
pub fn explain(message: &str, text: &str, line: usize) -> String {
    if let Some(key) = message.strip_prefix("unknown field ").and_then(quoted) {
        return unknown_key(key, section_at(text, line));
    }
    if let Some((word, allowed)) =
        message.strip_prefix("unknown variant ").and_then(|rest| rest.split_once(", expected "))
    {
        let (word, allowed) = (word.trim_matches('`'), all_quoted(allowed));
        return match closest(word, &allowed) {
            Some(meant) => format!("`{word}` is none of {}; did you mean `{meant}`?", allowed.join(", ")),
            None => format!("`{word}` is none of {}", allowed.join(", ")),
        };
    }
    let mistyped = ["invalid type: ", "invalid value: "].iter().find_map(|start| message.strip_prefix(start));
    match mistyped.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((got, expected)) => format!("{got} is not {}", in_words(expected)),
        None => message.to_string(),
    }
}

/// A key that `section` does not have; `None` stands for the top of a recipe, where only sections are.
fn unknown_key(key: &str, section: Option<&str>) -> String {
    let here = section.map_or("a section of a recipe".to_string(), |section| format!("a key of [{section}]"));
    let own = section.map_or_else(sections, keys_of);
    let elsewhere = sections_of(key);
    if !elsewhere.is_empty() {
        let what = if section.is_none() { "a key of" } else { "of" };
        return format!("`{key}` is not {here}, but {what} [{}]", elsewhere.join("], ["));
    }
    match closest(key, &own) {
        Some(meant) => format!("`{key}` is not {here}; did you mean `{meant}`?"),
        None => format!("`{key}` is not {here}; there are {}", own.join(", ")),
    }
}

/// The section that a line of a recipe belongs to: its own, if it is written as `section.key`, else that of the last heading before it.
fn section_at(text: &str, line: usize) -> Option<&str> {
    let lines: Vec<&str> = text.lines().take(line).map(str::trim).collect();
    let (last, before) = lines.split_last()?;
    // The heading itself is the line of an unknown section.
    if last.starts_with('[') {
        return None;
    }
    let (key, value) = last.split_once('=').unwrap_or((last, ""));
    if value.trim_start().starts_with('{') {
        return Some(key.trim());
    }
    if let Some((section, _)) = key.split_once('.') {
        return Some(section.trim());
    }
    before.iter().rev().find_map(|line| line.strip_prefix('[')?.split(']').next()).map(str::trim)
}

/// The word most similar to this one, if any is.
fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let similar = known.iter().map(|known| (strsim::jaro_winkler(word, known), *known));
    let best = similar.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= SIMILAR).then_some(best.1)
}

/// The first word in backticks.
fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

/// All words in backticks.
fn all_quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What a value must be, by the reader's name for it.
fn in_words(expected: &str) -> String {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number of at least 0".to_string(),
        "i64" | "i32" => "a whole number".to_string(),
        "f64" | "f32" | "floating point number" => "a number".to_string(),
        "a boolean" => "true or false".to_string(),
        "a sequence" => "a list such as [1, 2]".to_string(),
        "a map" => "a section".to_string(),
        other if other.starts_with("struct ") => "a section".to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use denoising_diffusion::recipe::{Recipe, RecipeError};

    use super::*;

    fn explained(text: &str) -> String {
        let RecipeError::Toml(error) = Recipe::from_toml(text).unwrap_err() else {
            panic!("not refused by the reader")
        };
        let line = text[..error.span().unwrap().start].matches('\n').count() + 1;
        explain(error.message(), text, line)
    }

    #[test]
    fn a_misplaced_key_is_told_its_section() {
        assert_eq!(explained("lr = 0.1"), "`lr` is not a section of a recipe, but a key of [train]");
        let said = "`dim` is not a key of [train], but of [unet], [unet1d], [uvit], [karras_unet]";
        assert_eq!(explained("[unet]\ndim = 32\n[train]\ndim = 32"), said);
        assert_eq!(explained("train.dim = 32"), said);
        // Not `sample_every`, which is similar.
        assert_eq!(explained("[train]\nsampler = 'ddim'"), "`sampler` is not a key of [train], but of [sample]");
        assert_eq!(explained("train = { dim = 32 }"), said);
        assert_eq!(explained("vectors = 'v.npy'"), "`vectors` is not a section of a recipe, but a key of [data]");
    }

    #[test]
    fn what_was_probably_meant_is_suggested() {
        assert_eq!(explained("[unet]\ndims = 3"), "`dims` is not a key of [unet]; did you mean `dim`?");
        assert_eq!(
            explained("[data]\nconditions = 'x'"),
            "`conditions` is not a key of [data]; did you mean `condition`?"
        );
        assert_eq!(
            explained("[network]\ninit_form = 'x'"),
            "`init_form` is not a key of [network]; did you mean `init_from`?"
        );
        assert_eq!(explained("[trian]\nsteps = 3"), "`trian` is not a section of a recipe; did you mean `train`?");
        let said = explained("[sample]\nsampler = 'dpm'");
        assert!(said.starts_with("`dpm` is none of ddpm, ddim, euler"), "{said}");
        assert!(said.ends_with("; did you mean `ddpm`?"), "{said}");
        let said = explained("[ema]\ncolour = 3");
        assert!(said.starts_with("`colour` is not a key of [ema]; there are "), "{said}");
        assert!(said.contains("ema_buffers"), "{said}");
    }

    #[test]
    fn types_are_named_as_users_know_them() {
        assert_eq!(explained("[unet]\ndim = 'thirty'"), "string \"thirty\" is not a whole number of at least 0");
        assert_eq!(explained("[train]\nsteps = -3"), "integer `-3` is not a whole number of at least 0");
        assert_eq!(explained("[train]\nlr = 'low'"), "string \"low\" is not a number");
        assert_eq!(explained("[train]\ndevice_graph = 1"), "integer `1` is not true or false");
        assert_eq!(explained("[unet]\ndim_mults = 4"), "integer `4` is not a list such as [1, 2]");
        assert_eq!(explained("unet = 4"), "integer `4` is not a section");
    }

    #[test]
    fn other_messages_stay_as_they_are() {
        assert_eq!(explain("the reader said this", "", 1), "the reader said this");
        let said = explained("[data]\nimage_size = 'big'");
        assert!(said.starts_with("`big` is not an image size"), "{said}");
    }
}
