//! Where an edit starts: the level of noise that a strength means, and the levels that lead down from it. Not here: the steps.

use crate::diffusion::{Formulation, NoiseLevel};

/// Levels from which the start is chosen in continuous time, where the formulation's own spacing can be as fine as one likes.
const FINE: usize = 1000;

/// The level that is `strength`, in (0, 1], of the way from clean data to noise along the formulation's own levels (in discrete time: t = `strength`
/// T). It does not depend on how samples are drawn: evenly spaced log-SNR, for example, has most of its levels where images are hardly noisy, or
/// hardly to be seen.
pub(super) fn start_level(formulation: &dyn Formulation, strength: f64) -> NoiseLevel {
    let all = formulation.timesteps().unwrap_or(FINE);
    let below = ((strength * all as f64).round() as usize).clamp(1, all);
    formulation.levels(all)[all - below]
}

/// `start`, then those of a sampler's `levels` that are cleaner; at least one step. The start takes the place of the level nearest to it: solvers
/// that extrapolate from their last step would magnify the errors of one that is much shorter than the next.
pub(super) fn levels_from(start: NoiseLevel, levels: &[NoiseLevel]) -> Vec<NoiseLevel> {
    let distance = |level: &NoiseLevel| {
        let (at, from) = (level.log_snr(), start.log_snr());
        // Both may be minus infinity.
        if at == from { 0.0 } else { (at - from).abs() }
    };
    let noisy = &levels[..levels.len().saturating_sub(1)];
    let nearest = (0..noisy.len()).min_by(|&a, &b| distance(&noisy[a]).total_cmp(&distance(&noisy[b])));
    let cleaner = nearest.map_or(levels, |nearest| &levels[nearest + 1..]);
    std::iter::once(start).chain(cleaner.iter().copied()).collect()
}
