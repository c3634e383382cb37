//! The names of a learned noise schedule's parameters, in the reference's ContinuousTimeGaussianDiffusion and in ours, where it is beside the
//! network. Not here: what they compute ([`LearnedSchedule`](crate::models::LearnedSchedule)).

use super::error::InteropError;
use super::names::refuse_unknown;
use crate::weights::StateDict;

/// Our layers and theirs: a linear function, then the two layers of a residual branch.
const LAYERS: [(&str, &str); 3] = [
    ("noise_schedule.first", "log_snr.net.1.net"),
    ("noise_schedule.hidden", "log_snr.net.2.fn.0.net"),
    ("noise_schedule.last", "log_snr.net.2.fn.2.net"),
];

/// Prefix of the reference's names of a schedule.
pub(super) const REFERENCE: &str = "log_snr.";

/// Prefix of the network's names in [`Scheduled`](crate::models::Scheduled).
const NETWORK: &str = "network.";
const SCHEDULE: &str = "noise_schedule.";

/// The number of hidden units of a schedule with the reference's names.
///
/// # Errors
/// Tensors that are not such a schedule.
pub(super) fn hidden_dim(reference: &StateDict) -> Result<usize, InteropError> {
    to_ours(reference)?;
    Ok(units(reference, LAYERS[1].1))
}

/// From the reference's names to ours.
pub(super) fn to_ours(reference: &StateDict) -> Result<StateDict, InteropError> {
    renamed(reference, LAYERS.map(|(ours, theirs)| [theirs, ours]))
}

/// From our names to the reference's.
pub(super) fn to_reference(ours: &StateDict) -> Result<StateDict, InteropError> {
    renamed(ours, LAYERS.map(|(ours, theirs)| [ours, theirs]))
}

/// Joins a network and its schedule, with our names.
pub(super) fn beside(network: StateDict, schedule: StateDict) -> StateDict {
    let mut both = network.with_prefix(NETWORK);
    both.merge(schedule);
    both
}

/// Separates the network, with its own names, from the rest; `None` if there is no schedule.
pub(super) fn apart(ours: &StateDict) -> Option<[StateDict; 2]> {
    if !ours.names().any(|name| name.starts_with(SCHEDULE)) {
        return None;
    }
    let rest = ours.iter().filter(|(name, _)| !name.starts_with(NETWORK));
    Some([ours.strip_prefix(NETWORK), rest.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()])
}

fn units(state: &StateDict, layer: &str) -> usize {
    state.get(&format!("{layer}.bias")).map_or(1, |bias| bias.values.len())
}

/// Renames exactly the six tensors, with `layers` as `[from, to]`, and checks that their shapes fit together.
fn renamed(state: &StateDict, layers: [[&str; 2]; 3]) -> Result<StateDict, InteropError> {
    let units = units(state, layers[1][0]);
    let (mut rest, mut renamed) = (state.clone(), StateDict::new());
    for ([from, to], [c_in, c_out]) in layers.into_iter().zip([[1, 1], [1, units], [units, 1]]) {
        for (leaf, shape) in [("weight", &[c_out, c_in][..]), ("bias", &[c_out])] {
            let name = format!("{from}.{leaf}");
            renamed.insert(format!("{to}.{leaf}"), state.require(&name, shape)?.clone());
            rest.remove(&name);
        }
    }
    refuse_unknown("learned noise schedule", &rest.names().collect::<Vec<_>>())?;
    Ok(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::HostTensor;

    fn schedule(units: usize) -> StateDict {
        let counted = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            HostTensor::new(shape, (0..count).map(|i| i as f32 + 0.5).collect()).unwrap()
        };
        let shapes = [("1.net", [1, 1]), ("2.fn.0.net", [units, 1]), ("2.fn.2.net", [1, units])];
        let tensors = shapes.into_iter().flat_map(|(layer, [c_out, c_in])| {
            let name = format!("log_snr.net.{layer}");
            [(format!("{name}.weight"), counted(&[c_out, c_in])), (format!("{name}.bias"), counted(&[c_out]))]
        });
        tensors.collect()
    }

    #[test]
    fn there_and_back_changes_nothing() {
        let reference = schedule(5);
        let ours = to_ours(&reference).unwrap();
        assert_eq!(ours.get("noise_schedule.hidden.weight"), reference.get("log_snr.net.2.fn.0.net.weight"));
        assert_eq!(to_reference(&ours).unwrap(), reference);
        assert_eq!(hidden_dim(&reference).unwrap(), 5);
    }

    #[test]
    fn a_network_and_its_schedule_come_apart() {
        let (network, schedule) = (schedule(1), to_ours(&schedule(2)).unwrap());
        let both = beside(network.clone(), schedule.clone());
        assert!(both.contains("network.log_snr.net.1.net.bias") && both.contains("noise_schedule.last.weight"));
        assert_eq!(apart(&both), Some([network.clone(), schedule]));
        assert_eq!(apart(&network), None);
    }

    #[test]
    fn what_is_no_schedule_is_named() {
        let refused = |change: &dyn Fn(&mut StateDict)| {
            let mut state = schedule(3);
            change(&mut state);
            to_ours(&state).unwrap_err().to_string()
        };
        let text = refused(&|state| drop(state.remove("log_snr.net.1.net.bias")));
        assert!(text.contains("`log_snr.net.1.net.bias` (shape [1]) is missing"), "{text}");
        let text = refused(&|state| drop(state.remove("log_snr.net.2.fn.0.net.bias")));
        assert!(text.contains("log_snr.net.2.fn.0.net"), "{text}");
        let one = || HostTensor::new([1, 1], vec![0.0]).unwrap();
        let text = refused(&|state| drop(state.insert("log_snr.net.2.fn.2.net.weight", one())));
        assert!(text.contains("must have shape [1, 3], got [1, 1]"), "{text}");
        let text = refused(&|state| drop(state.insert("log_snr.net.4.weight", one())));
        assert!(text.contains("a learned noise schedule: log_snr.net.4.weight"), "{text}");
    }
}
