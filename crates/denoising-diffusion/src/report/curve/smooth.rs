//! The line over noisy points, and thinning where a picture cannot show all points.

use super::Smoothing;

/// The largest number of points drawn per series, for the faint points and for the line.
const MOST_POINTS: usize = 2000;
/// [`Smoothing::Auto`] averages over this fraction of all points ...
const PART_OF_ALL: f64 = 0.02;
/// ... but at most over this fraction of the points so far, so that it does not lag behind a steep beginning.
const PART_SO_FAR: f64 = 0.2;

/// The smoothed line; `None` if the points should be joined.
pub(super) fn smoothed(points: &[(f64, f64)], smoothing: Smoothing) -> Option<Vec<(f64, f64)>> {
    match smoothing {
        Smoothing::None => None,
        Smoothing::Ema(beta) => {
            let beta = if beta.is_nan() { 0.0 } else { beta.clamp(0.0, 0.999_999) };
            Some(moving_average(points, |_| beta))
        }
        Smoothing::Auto => {
            let most = points.len() as f64 * PART_OF_ALL;
            // An average with decay beta has the same variance as one over (1 + beta) / (1 - beta) points.
            let beta = |index: usize| {
                let window = ((index + 1) as f64 * PART_SO_FAR).clamp(1.0, most);
                (window - 1.0) / (window + 1.0)
            };
            (most >= 2.0).then(|| moving_average(points, beta))
        }
    }
}

/// Exponential moving average of y with decay `beta(index)`, with bias correction.
fn moving_average(points: &[(f64, f64)], beta: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = |(index, &(x, y)): (usize, &(f64, f64))| {
        let beta = beta(index);
        sum = beta * sum + (1.0 - beta) * y;
        weight = beta * weight + (1.0 - beta);
        (x, sum / weight)
    };
    points.iter().enumerate().map(average).collect()
}

/// Evenly selected points, including the first and the last.
pub(super) fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let chosen = |i: usize| points[i * (points.len() - 1) / (MOST_POINTS - 1)];
    (0..MOST_POINTS).map(chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_is_corrected_for_its_start() {
        let points = [(0.0, 4.0), (1.0, 4.0), (2.0, 0.0)];
        let line = smoothed(&points, Smoothing::Ema(0.5)).unwrap();
        assert_eq!(line[..2], points[..2]);
        // (0.25 x 4 x 0.5 + 0.5 x 4 x 0.5 + 0.5 x 0) / 0.875
        assert!((line[2].1 - 1.5 / 0.875).abs() < 1e-12);
        for beta in [f64::NAN, 2.0, -1.0] {
            let line = smoothed(&points, Smoothing::Ema(beta)).unwrap();
            assert!(line.iter().all(|point| (0.0..=4.0).contains(&point.1)), "{beta}");
        }
    }

    #[test]
    fn auto_calms_noise_and_keeps_up_with_a_steep_start() {
        let truth = |i: usize| 0.02 + (-(i as f64) / 60.0).exp();
        let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        let points: Vec<(f64, f64)> = (0..20_000).map(|i| (i as f64, truth(i) * (1.0 + 0.3 * sign(i)))).collect();
        let line = smoothed(&points, Smoothing::Auto).unwrap();
        for i in [20, 60, 120, 19_999] {
            let ratio = line[i].1 / truth(i);
            assert!((0.85..1.3).contains(&ratio), "{ratio} at {i}");
        }
        assert_eq!(smoothed(&points[..99], Smoothing::Auto), None);
    }

    #[test]
    fn long_series_are_thinned_to_both_ends() {
        let points: Vec<(f64, f64)> = (0..10_001).map(|i| (f64::from(i), 1.0)).collect();
        let thin = thinned(&points);
        let ends = (thin[0].0, thin[MOST_POINTS - 1].0);
        assert_eq!((thin.len(), ends), (MOST_POINTS, (0.0, 10_000.0)));
    }
}
