//! What must be known of a network before it is made: its options answer it, in the file that defines them. Not here: what is asked of the network
//! itself (`Network`), and the list of networks (`network_config`).

use super::{ImageNetwork, NetworkConfig, NetworkConfigError, NetworkFit};
use crate::data::{DataLayout, ImageShape};
use crate::nn::Init;

/// What holds for a network whatever its options are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkKind {
    /// Its name in files, and the section of its options in a recipe.
    pub name: &'static str,
    /// One line for the user.
    pub about: &'static str,
    /// The kind of data that it is for; [`DataLayout::Auto`] stands for all kinds.
    pub layout: DataLayout,
    /// The learning rate to begin with; `None`: that of the reference.
    pub usual_lr: Option<f64>,
    /// The options that count blocks in sequence.
    pub depths: &'static [&'static str],
    /// Whether it can be told how training images were augmented.
    pub augment_labels: bool,
}

/// The values of the options that all networks have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedOptions {
    pub channels: usize,
    pub out_channels: usize,
    pub num_classes: usize,
    pub condition_channels: usize,
    pub vector_dim: usize,
    pub class_drop_prob: f64,
}

/// What an input of a layer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A constant in place of biases.
    Ones,
    /// The earlier estimate of self-conditioning.
    Estimate,
    Data,
    Condition,
    Level,
    Class,
}

impl SharedOptions {
    /// What [`NetworkInput::stacked`](super::NetworkInput::stacked) joins, with `each` inputs of the first layer for each channel.
    pub fn stacked(&self, self_condition: bool, each: usize) -> Vec<(Input, usize)> {
        let estimate = if self_condition { self.channels } else { 0 };
        let parts =
            [(Input::Estimate, estimate), (Input::Data, self.channels), (Input::Condition, self.condition_channels)];
        parts.into_iter().filter(|part| part.1 > 0).map(|(input, channels)| (input, channels * each)).collect()
    }

    /// The embedding of the noise level, followed by that of the class.
    pub fn level_and_class(&self, time_dim: usize) -> Vec<(Input, usize)> {
        let class = (self.num_classes > 0).then_some((Input::Class, time_dim));
        [(Input::Level, time_dim)].into_iter().chain(class).collect()
    }
}

/// The options of a network.
pub(crate) trait NetworkOptions {
    fn kind(&self) -> NetworkKind;

    /// The network that they describe, in one line.
    fn in_words(&self) -> String;

    fn shared(&self) -> SharedOptions;

    /// The kind of data that the network is for.
    fn layout(&self) -> DataLayout {
        self.kind().layout
    }

    /// Slices of the volumes that the network is built for; 1 for other data.
    fn depth(&self) -> usize {
        1
    }

    /// As of the [network](super::Network::resolves_large_times).
    fn resolves_large_times(&self) -> bool;

    /// What the inputs of the layer with these weights are about, and their numbers, in order: for layers that something new to the network (a
    /// condition, classes, self-conditioning) gives more of them. Empty for all others.
    fn inputs_of(&self, weights: &str) -> Vec<(Input, usize)>;

    /// Refuses options that describe no network.
    fn check_options(&self) -> Result<(), NetworkConfigError>;

    /// Refuses sizes of data, as they are stored, that the network cannot handle.
    fn check_data(&self, height: usize, width: usize) -> Result<(), NetworkConfigError>;

    /// The network, with initial weights.
    fn build(&self, init: &mut Init) -> Result<ImageNetwork, NetworkConfigError>;

    /// The options of the same network for other data and another formulation.
    fn fitted(&self, fit: NetworkFit) -> NetworkConfig;

    /// The option, if any, that gives the network its number of output channels whatever [`fitted`](Self::fitted) is asked for.
    fn insists_on_outputs(&self) -> Option<&'static str> {
        None
    }

    /// The same options with defaults for all that [`fitted`](Self::fitted) sets, as a recipe has them.
    fn own_options(&self) -> NetworkConfig;

    /// Number of values that the forward pass keeps of one example for the backward pass, in which all blocks may be `recomputed`. The constants of
    /// the networks fit measured peaks of small ones, on the CPU, within a fifth.
    fn kept(&self, shape: ImageShape, recomputed: bool) -> Result<u64, NetworkConfigError>;
}

/// Refuses a length that is no multiple of `factor`, which is at least 1, with the nearest lengths that are.
pub(crate) fn check_multiple(factor: usize, length: usize) -> Result<(), Vec<String>> {
    if length > 0 && length.is_multiple_of(factor) {
        return Ok(());
    }
    let mut nearest = nearest_multiples(factor, length).map(|length| length.to_string()).to_vec();
    nearest.dedup();
    Err(nearest)
}

/// The same for the sides of images.
pub(crate) fn check_multiples(factor: usize, height: usize, width: usize) -> Result<(), Vec<String>> {
    if check_multiple(factor, height).and_then(|()| check_multiple(factor, width)).is_ok() {
        return Ok(());
    }
    let [heights, widths] = [height, width].map(|side| nearest_multiples(factor, side));
    let mut nearest = [0, 1].map(|at| format!("{}x{}", heights[at], widths[at])).to_vec();
    nearest.dedup();
    Err(nearest)
}

/// The multiples of `factor` on both sides of `length`, both positive.
fn nearest_multiples(factor: usize, length: usize) -> [usize; 2] {
    [length / factor, length.div_ceil(factor)].map(|times| times.max(1).saturating_mul(factor))
}
