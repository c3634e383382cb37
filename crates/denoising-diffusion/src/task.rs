//! Parts of long work by name, for whoever does them and whoever shows how far they are.

/// What a job's steps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Steps of training.
    Train,
    /// Steps of a sampler.
    Sample,
    /// Images through the network that metrics rest on.
    Features,
    /// Training images that samples are compared with.
    Compare,
    /// Evaluations of a network's loss.
    Loss,
    /// Mebibytes of a file.
    Fetch,
    /// Snapshots of averages that another one is made of.
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
            Self::Loss => "loss",
            Self::Fetch => "fetch",
            Self::Average => "average",
        }
    }
}
