//! How a command fails: an exit code, an error with its causes, and a hint. Not here: what went wrong in the library, whose errors describe it.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use denoising_diffusion::classifier_file::ClassifierFileError;
use denoising_diffusion::data::DataError;
use denoising_diffusion::eval::inception::WeightsError;
use denoising_diffusion::interop::InteropError;
use denoising_diffusion::model_file::ModelFileError;
use denoising_diffusion::recipe::RecipeError;
use denoising_diffusion::train::{CheckpointError, ClassifierTrainError, RunError, SnapshotsError};

/// The exit codes other than 0 (done).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The work could not be done.
    Failed = 1,
    /// The command line is invalid or makes no sense.
    Usage = 2,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command ended without success.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    /// `None` if the user has been told already.
    error: Option<anyhow::Error>,
    hint: Option<String>,
}

/// What commands return.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: Code::Failed, error: Some(error.into()), hint: None }
    }
}

impl Failure {
    /// The work could not be done.
    pub fn failed(message: impl Display) -> Self {
        Self { code: Code::Failed, error: Some(anyhow::anyhow!("{message}")), hint: None }
    }

    /// The command makes no sense.
    pub fn usage(message: impl Display) -> Self {
        Self { code: Code::Usage, ..Self::failed(message) }
    }

    /// Ctrl-C was pressed, and the user has been told what that means.
    pub fn interrupted() -> Self {
        Self { code: Code::Interrupted, error: None, hint: None }
    }

    /// Adds a hint on what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what was attempted; the error so far becomes the cause.
    pub fn context(mut self, what: impl Display) -> Self {
        self.error = self.error.map(|error| error.context(what.to_string()));
        self
    }

    /// The same, as wrong usage.
    pub fn into_usage(self) -> Self {
        Self { code: Code::Usage, ..self }
    }

    /// Reports to the user on stderr and returns the exit code.
    pub fn report(&self) -> ExitCode {
        if self.error.is_some() {
            crate::output::note(self.to_text().trim_end());
        }
        ExitCode::from(self.code as u8)
    }

    /// The line `error:`, a line for each cause, and the line `hint:` if there is a hint.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let Some(error) = &self.error else { return text };
        for (depth, cause) in error.chain().enumerate() {
            let message = cause.to_string().trim_end().replace('\n', "\n    ");
            text += &if depth == 0 { format!("error: {message}\n") } else { format!("  caused by: {message}\n") };
            for line in details(cause) {
                text += &format!("  {line}\n");
            }
        }
        self.hint_to_give().map(|hint| text.clone() + &format!("hint: {hint}\n")).unwrap_or(text)
    }

    /// The error and its causes in one line, with the hint in brackets if there is one: for warnings.
    pub fn in_one_line(&self) -> String {
        let Some(error) = &self.error else { return String::new() };
        let line = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let hint = self.hint_to_give().map(|hint| format!(" ({})", line(&hint))).unwrap_or_default();
        line(&chain(error.as_ref())) + &hint
    }

    /// The hint that was added, otherwise the library's.
    fn hint_to_give(&self) -> Option<String> {
        self.hint.clone().or_else(|| self.error.as_ref()?.chain().find_map(hint_of))
    }
}

/// For results: the same methods as on [`Failure`].
pub trait FailureExt<T> {
    /// Adds what was attempted.
    fn context(self, what: impl Display) -> Result<T>;
    /// Marks it as wrong usage rather than failed work.
    fn or_usage(self) -> Result<T>;
}

impl<T, E: Into<Failure>> FailureExt<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|error| error.into().context(what))
    }

    fn or_usage(self) -> Result<T> {
        self.map_err(|error| error.into().into_usage())
    }
}

/// Hint for networks that embed time by Fourier features.
pub const SMALL_LEVELS: &str = "choose a formulation with a small range of noise levels: --diffusion elucidated, continuous_time, \
                                simple or rectified_flow";

/// For what a run could not write.
const NOT_WRITTEN: &str = "free disk space or make the folder writable, then continue with `ddpm train --resume RUN`";

/// The library's hint. Errors that wrap others transparently hide them from the chain, so they are unwrapped here.
fn hint_of(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<DataError>() {
        return error.hint_for(&crate::takes);
    }
    if let Some(error) = error.downcast_ref::<InteropError>() {
        return error.hint().map(str::to_string);
    }
    if let Some(error) = error.downcast_ref::<WeightsError>() {
        return error.hint().map(str::to_string);
    }
    match error.downcast_ref::<RecipeError>() {
        Some(RecipeError::Data(error)) => return hint_of(error),
        Some(RecipeError::OutChannels { .. }) => return None,
        Some(RecipeError::FourierTime { .. }) => return Some(SMALL_LEVELS.to_string()),
        Some(RecipeError::NothingToGuide { .. }) => {
            return Some("train with --class-condition or --vectors, or leave --guidance at 1".to_string());
        }
        _ => {}
    }
    if let Some(ModelFileError::File(error)) = error.downcast_ref() {
        return hint_of(error);
    }
    if let Some(ClassifierFileError::File(error)) = error.downcast_ref() {
        return hint_of(error);
    }
    match error.downcast_ref::<ClassifierTrainError>() {
        Some(ClassifierTrainError::Data(error)) => return hint_of(error),
        Some(ClassifierTrainError::Training(_)) => {
            return Some("check the images, then try a lower --lr".to_string());
        }
        _ => {}
    }
    match error.downcast_ref::<CheckpointError>() {
        Some(CheckpointError::Weights(error)) => return hint_of(error),
        Some(CheckpointError::Model(error)) => return hint_of(error),
        Some(CheckpointError::NotWritten { .. }) => return Some(NOT_WRITTEN.to_string()),
        Some(CheckpointError::Io { action: "read", .. }) => {
            return Some(
                "try again once it can be read; if it never can, rename the folder of this checkpoint, and the one before it is used"
                    .to_string(),
            );
        }
        _ => {}
    }
    match error.downcast_ref::<SnapshotsError>() {
        Some(SnapshotsError::None { .. }) => {
            return Some(
                "snapshots are stored by training with, for example, --post-hoc-sigma-rels 0.05,0.1".to_string(),
            );
        }
        // A new one; the others are read.
        Some(SnapshotsError::Model(ModelFileError::File(InteropError::Io { action: "write", .. }))) => {
            return Some(NOT_WRITTEN.to_string());
        }
        Some(SnapshotsError::Io { action, .. }) => {
            let read = "make the folder of the snapshots, and what is in it, readable and writable";
            return Some(if matches!(*action, "read" | "remove") { read } else { NOT_WRITTEN }.to_string());
        }
        Some(SnapshotsError::Model(_)) => {
            return Some(
                "move the folder of this snapshot elsewhere; the average is then made from the others".to_string(),
            );
        }
        _ => {}
    }
    match error.downcast_ref::<RunError>()? {
        RunError::Data(error) => hint_of(error),
        RunError::Checkpoint(error) => hint_of(error),
        RunError::Snapshots(error) => hint_of(error),
        RunError::Exists { .. } => {
            Some("continue that run with `ddpm train --resume RUN`, or choose another folder with --out".to_string())
        }
        RunError::InUse { .. } => Some("wait until it ends, or train in another folder (--out)".to_string()),
        RunError::CheckpointsLost { .. } => {
            Some("restore the checkpoints, or start a new run without --resume".to_string())
        }
        RunError::OtherData { .. } => {
            Some("resume with the data the run was started with, or start a new run without --resume".to_string())
        }
        RunError::OtherSetting { .. } => {
            Some("restore the old value in the run's config.toml, or start a new run without --resume".to_string())
        }
        RunError::OtherSeed { .. } => {
            Some("restore the old seed in the run's config.toml, or start a new run without --resume".to_string())
        }
        RunError::Training(_) => Some(
            "look at the images, then try a lower --lr, a longer --warmup-steps or a lower --max-grad-norm".to_string(),
        ),
        _ => None,
    }
}

/// Additional lines for an error, which do not fit into its sentence.
fn details(error: &(dyn Error + 'static)) -> Vec<String> {
    let checkpoint = match error.downcast_ref() {
        Some(RunError::Checkpoint(error)) => Some(error),
        _ => error.downcast_ref::<CheckpointError>(),
    };
    match checkpoint {
        Some(CheckpointError::NoneWhole { rejected, .. }) => {
            rejected.iter().map(|r| format!("damaged: {}: {}", r.path.display(), chain(&r.error))).collect()
        }
        _ => Vec::new(),
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_warning_has_causes_and_hint_in_one_line() {
        let cause = std::io::Error::other("no space left\non device");
        let failure = Failure::from(cause).context("cannot write a.npz").hint("make room");
        assert_eq!(failure.in_one_line(), "cannot write a.npz: no space left on device (make room)");
        assert_eq!(
            failure.to_text(),
            "error: cannot write a.npz\n  caused by: no space left\n    on device\nhint: make room\n"
        );
        assert_eq!(Failure::failed("error: an odd name").in_one_line(), "error: an odd name");
        assert_eq!(Failure::interrupted().in_one_line(), "");
    }

    /// More space on the disk helps only where something is written.
    #[test]
    fn hints_about_snapshots_are_of_what_went_wrong() {
        let (path, source) = (|| PathBuf::from("run/snapshots"), || std::io::Error::other("no"));
        let hint = |error: SnapshotsError| {
            let alone = hint_of(&error);
            assert_eq!(hint_of(&RunError::from(error)), alone);
            alone.unwrap()
        };
        let io = |action| SnapshotsError::Io { action, path: path(), source: source() };
        for action in ["create", "rename", "sync"] {
            assert!(hint(io(action)).contains("disk space"), "{action}");
        }
        for action in ["read", "remove"] {
            assert!(hint(io(action)).contains("readable"), "{action}");
        }
        let file = |action| ModelFileError::File(InteropError::Io { action, path: path(), source: source() });
        assert!(hint(file("write").into()).contains("disk space"));
        assert!(hint(file("read").into()).contains("move the folder of this snapshot"));
    }
}
