//! Estimate of the memory that a training will take, from the options of its network, before anything is made. Not here: what the networks
//! keep for the backward pass, which they know (`models::network_options`), and measuring it.

use super::config::TrainConfig;
use crate::data::ImageShape;
use crate::models::{NetworkConfig, NetworkConfigError};

/// Memory of the process besides tensors: program, stacks, buffers.
const BASE_BYTES: u64 = 55 << 20;

/// Peak memory of training in bytes, including additional averages: that of a step or, if larger, that of writing a checkpoint, which holds weights,
/// moments and averages twice. `parameters` is the network's number of weights, `shape` that of an example. [`u64::MAX`] if it is
/// more.
///
/// # Errors
/// Options that describe no network.
pub fn memory_estimate(
    network: &NetworkConfig,
    parameters: u64,
    shape: ImageShape,
    train: &TrainConfig,
    averages: u64,
) -> Result<u64, NetworkConfigError> {
    let of_weights = |times: u64| values(parameters.saturating_mul(times));
    let step = step_estimate(network, parameters, shape, train)?.saturating_add(of_weights(averages));
    Ok(step.max(of_weights(8 + 2 * averages).saturating_add(BASE_BYTES)))
}

/// Peak memory of a step in bytes: weights, two moments, average, and either what the forward pass keeps for the backward pass or gradients, which take
/// its place. It fits measured peaks of small networks of each kind, on the CPU, within a fifth. For a custom network only the weights are known.
///
/// # Errors
/// Options that describe no network.
pub fn step_estimate(
    network: &NetworkConfig,
    parameters: u64,
    shape: ImageShape,
    train: &TrainConfig,
) -> Result<u64, NetworkConfigError> {
    let kept = network.kept(shape, train.checkpoint_activations)?;
    let kept = kept.saturating_mul(train.batch_size as u64);
    // The sum of the gradients of the batches so far stays.
    let summed = if train.accumulate > 1 { parameters } else { 0 };
    let count = parameters.saturating_mul(4).saturating_add(summed).saturating_add(kept.max(parameters));
    Ok(values(count).saturating_add(BASE_BYTES))
}

/// Bytes of `count` values: a tenth more for gaps between them.
fn values(count: u64) -> u64 {
    count.saturating_add(count / 10).saturating_mul(4)
}
