//! Named parts of long work, for the code that does them and the code that shows progress.

/// The unit that a task's steps are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Steps of training.
    Train,
    /// Steps of a sampler.
    Sample,
    /// Images through the network that metrics are based on.
    Features,
    /// Training images compared with samples.
    Compare,
    /// Images whose pixels are read or compared, once for each of these.
    Pixels,
    /// Evaluations of a network's loss.
    Loss,
    /// Mebibytes of a file.
    Fetch,
    /// Snapshots of averages, combined into an average of another length.
    Average,
}

impl Task {
    /// In one word.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Sample => "sample",
            Self::Features => "features",
            Self::Compare => "compare",
            Self::Pixels => "pixels",
            Self::Loss => "loss",
            Self::Fetch => "fetch",
            Self::Average => "average",
        }
    }
}
