//! Output: results to stdout, everything else to stderr (a closed pipe causes no panic in either), and which files may be replaced.

use std::io::{ErrorKind, Write};
use std::path::Path;

pub use denoising_diffusion::report::thousands;
use serde_json::Value;

use crate::failure::{Failure, FailureExt, Result};

/// A path as a JSON value.
pub fn path(path: &Path) -> Value {
    path.to_string_lossy().into()
}

/// Writes a line to stderr.
pub fn note(line: impl AsRef<str>) {
    // If this fails, there is nowhere to report it.
    let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
}

/// `1 image`, `2 images`.
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {}", plural(noun)) }
}

/// `images`, of `image`.
pub fn plural(noun: &str) -> String {
    format!("{noun}s")
}

/// Writes a line of the result.
pub fn result(line: impl AsRef<str>) -> Result {
    match writeln!(std::io::stdout(), "{}", line.as_ref()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::from(error).context("cannot write the result"))
        }
        _ => Ok(()),
    }
}

/// Writes the result as one JSON object.
pub fn json(value: &Value) -> Result {
    result(value.to_string())
}

/// Refuses a file that exists, unless it may be replaced, and one that cannot be written: before the work of which it is the result.
pub fn refuse_file(path: &Path, refuse: bool) -> Result {
    if path.is_dir() {
        return Err(Failure::usage(format!("{} is a folder", path.display())).hint("give the name of a file"));
    }
    if refuse && path.exists() {
        return Err(exists(path));
    }
    check_writable(path).context(format!("cannot write {}", path.display()))
}

/// Tries to write a file in the folder of `path`, or in the nearest one above it that is there.
pub fn check_writable(path: &Path) -> std::io::Result<()> {
    let above =
        path.ancestors().skip(1).map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let Some(folder) = above.into_iter().find(|folder| folder.exists()) else { return Ok(()) };
    let probe = folder.join(format!(".ddpm-probe-{}", std::process::id()));
    std::fs::File::create(&probe)?;
    std::fs::remove_file(&probe)
}

/// Creates the folder that a file will be written into; as late as that, so that a refused command leaves none behind.
pub fn create_folder_of(file: &Path) -> Result {
    let Some(folder) = file.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).context(format!("cannot create the folder {}", folder.display()))
}

/// The error for an existing file.
pub fn exists(path: &Path) -> Failure {
    Failure::usage(format!("{} exists already", path.display()))
        .hint("overwrite it with --force, or choose another name")
}

/// An enum value of a configuration, as spelled in a recipe.
pub fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        other => other.map(|value| value.to_string()).unwrap_or_default(),
    }
}

/// Names and values, one pair per line.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<(String, String)>);

impl Rows {
    /// Adds a row.
    pub fn row(&mut self, name: impl Into<String>, value: impl std::fmt::Display) -> &mut Self {
        self.0.push((name.into(), value.to_string()));
        self
    }

    /// The rows as aligned lines, without a final newline.
    pub fn aligned(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = self.0.iter().map(|(name, value)| format!("{name:width$}  {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_no_file_to_replace() {
        let folder = std::env::temp_dir();
        for refuse in [true, false] {
            let text = refuse_file(&folder, refuse).unwrap_err().to_text();
            assert!(text.contains("is a folder"), "{text}");
        }
    }

    #[test]
    fn rows_align() {
        let mut rows = Rows::default();
        rows.row("a", 1).row("long", "two");
        assert_eq!(rows.aligned(), "a     1\nlong  two");
    }
}
