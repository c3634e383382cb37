//! Two trainings that came to the same.

use denoising_diffusion::train::TrainerState;
use denoising_diffusion::weights::StateDict;

pub fn bits(state: &StateDict) -> Vec<(String, Vec<u32>)> {
    state.iter().map(|(name, tensor)| (name.to_string(), tensor.values.iter().map(|v| v.to_bits()).collect())).collect()
}

/// Counts, weights, average and moments, to the bit.
pub fn assert_same(a: &TrainerState, b: &TrainerState) {
    let counts =
        |state: &TrainerState| [state.step, state.skipped, state.skipped_in_a_row, state.adam_steps, state.ema_calls];
    assert_eq!(counts(a), counts(b));
    for (a, b) in [(&a.model, &b.model), (&a.ema, &b.ema), (&a.adam, &b.adam)] {
        assert!(bits(a) == bits(b), "the trainings differ");
    }
}
