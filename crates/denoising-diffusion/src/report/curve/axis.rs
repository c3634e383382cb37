//! Axes: which range they cover, where a value lies on them, and which values are labelled.

use super::YScale;

/// Larger values are not drawn: their differences would exceed the range of f64.
const LARGEST: f64 = 1e100;
/// On a logarithmic axis, values below this are not drawn.
const SMALLEST_POSITIVE: f64 = 1e-100;

/// Whether an axis can show `value`.
pub(super) fn drawable(value: f64, scale: YScale) -> bool {
    let above = match scale {
        YScale::Linear => -LARGEST,
        YScale::Log => SMALLEST_POSITIVE,
    };
    (above..=LARGEST).contains(&value)
}

/// A labelled value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub value: f64,
    pub label: String,
}

/// The range of an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    scale: YScale,
}

impl Axis {
    /// An axis for the values `low..=high` (both [drawable]), with a margin of `margin` times the range around them.
    ///
    /// A linear axis that begins near zero begins at zero.
    pub fn new(low: f64, high: f64, scale: YScale, margin: f64) -> Self {
        match scale {
            YScale::Linear => {
                let largest = low.abs().max(high.abs());
                let flat = high - low <= 1e-9 * largest;
                let room = if largest < SMALLEST_POSITIVE {
                    1.0
                } else if flat {
                    0.05 * largest
                } else {
                    margin * (high - low)
                };
                let from_zero = low >= 0.0 && low <= 0.15 * high && !flat;
                Self { low: if from_zero { 0.0 } else { low - room }, high: high + room, scale }
            }
            YScale::Log => {
                // At least a tenth of a decade: on less, the labels would all be the same.
                let room = (margin * (high / low).log10()).max((0.1 - (high / low).log10()) / 2.0);
                Self { low: low / 10_f64.powf(room), high: high * 10_f64.powf(room), scale }
            }
        }
    }

    /// A linear axis from exactly `low` to exactly `high`.
    pub fn spanning(low: f64, high: f64) -> Self {
        Self { low, high, scale: YScale::Linear }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high end.
    pub fn position(&self, value: f64) -> f64 {
        match self.scale {
            YScale::Linear => (value - self.low) / (self.high - self.low),
            YScale::Log => (value / self.low).log10() / (self.high / self.low).log10(),
        }
    }

    /// At most `most` (at least 2) labelled values within the range, ascending.
    pub fn ticks(&self, most: usize) -> Vec<Tick> {
        match self.scale {
            YScale::Linear => self.linear_ticks(most),
            YScale::Log => self.log_ticks(most),
        }
    }

    /// Multiples of 1, 2 or 5 times a power of ten.
    fn linear_ticks(&self, most: usize) -> Vec<Tick> {
        let step = nice_step((self.high - self.low) / most as f64);
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        let largest = self.low.abs().max(self.high.abs());
        (first..=last)
            .map(|index| index as f64 * step)
            .map(|value| Tick { value, label: linear_label(value, step, largest) })
            .collect()
    }

    /// 1, 2 and 5 times powers of ten; if these are too many, 1 and 3 times or only the powers; if too few, linear ticks.
    fn log_ticks(&self, most: usize) -> Vec<Tick> {
        let inside = |mantissas: &[u8], every: i32| -> Vec<Tick> {
            let exponents = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            exponents
                .filter(|exponent| exponent.rem_euclid(every) == 0)
                .flat_map(|exponent| mantissas.iter().map(move |mantissa| (mantissa, exponent)))
                // Parsing rounds correctly; multiplying by a power would not.
                .filter_map(|(mantissa, exponent)| format!("{mantissa}e{exponent}").parse().ok())
                .filter(|value| (self.low..=self.high).contains(value))
                .map(|value| Tick { value, label: log_label(value) })
                .collect()
        };
        let fine = inside(&[1, 2, 5], 1);
        if fine.len() < 3 {
            return self.linear_ticks(most.min(5));
        }
        [fine, inside(&[1, 3], 1)]
            .into_iter()
            .chain((1..).map(|every| inside(&[1], every)))
            .find(|ticks| ticks.len() <= most)
            .unwrap_or_default()
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let exponent = step.log10().floor() as i32;
    let candidates = [(1, exponent), (2, exponent), (5, exponent), (1, exponent + 1)];
    let parsed = candidates.iter().filter_map(|(mantissa, exponent)| format!("{mantissa}e{exponent}").parse().ok());
    parsed.into_iter().find(|&candidate: &f64| candidate >= step).unwrap_or(step)
}

/// A multiple of `step` with enough digits to distinguish it from its neighbours: 0.25, 1500, 20k, 1.5M, 2e-5.
fn linear_label(value: f64, step: f64, largest: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits_after_point = |of: f64| (-(of.log10() + 1e-9).floor()).max(0.0) as usize;
    let (unit, suffix) = match largest {
        1e-3..1e4 => (1.0, ""),
        1e4..1e6 => (1e3, "k"),
        1e6..1e9 => (1e6, "M"),
        _ => {
            let digits = ((value.abs().log10() + 1e-9).floor() - (step.log10() + 1e-9).floor()).max(0.0) as usize;
            return format!("{value:.digits$e}");
        }
    };
    format!("{:.*}{suffix}", digits_after_point(step / unit), value / unit)
}

/// The shortest form of 1, 2 or 5 times a power of ten.
fn log_label(value: f64) -> String {
    if (1e-4..1e5).contains(&value) { value.to_string() } else { format!("{value:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(low: f64, high: f64, scale: YScale, most: usize) -> Vec<String> {
        Axis::new(low, high, scale, 0.0).ticks(most).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_labels() {
        assert_eq!(labels(0.0, 1.0, YScale::Linear, 6), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(1.0, 2000.0, YScale::Linear, 5), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(labels(1.0, 100_000.0, YScale::Linear, 5), ["0", "20k", "40k", "60k", "80k", "100k"][..]);
        assert_eq!(labels(1.0, 1.2e6, YScale::Linear, 4), ["0", "0.5M", "1.0M"]);
        assert_eq!(labels(-1.0, 1.0, YScale::Linear, 4), ["-1.0", "-0.5", "0", "0.5", "1.0"][..]);
        assert_eq!(labels(1e-5, 3e-5, YScale::Linear, 4), ["1.0e-5", "1.5e-5", "2.0e-5", "2.5e-5", "3.0e-5"][..]);
    }

    #[test]
    fn log_labels() {
        assert_eq!(labels(0.01, 1.0, YScale::Log, 8), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(0.01, 1.0, YScale::Log, 5), ["0.01", "0.03", "0.1", "0.3", "1"]);
        assert_eq!(labels(0.01, 1.0, YScale::Log, 4), ["0.01", "0.1", "1"]);
        assert_eq!(labels(0.021, 0.029, YScale::Log, 6), ["0.022", "0.024", "0.026", "0.028"]);
        assert_eq!(labels(1e-6, 1e6, YScale::Log, 7), ["1e-6", "0.0001", "0.01", "1", "100", "10000", "1e6"]);
    }

    #[test]
    fn a_flat_series_has_an_axis() {
        for (value, scale) in
            [(0.0, YScale::Linear), (5.0, YScale::Linear), (-1e90, YScale::Linear), (1e-80, YScale::Log)]
        {
            let axis = Axis::new(value, value, scale, 0.05);
            assert!((axis.position(value) - 0.5).abs() < 1e-6, "{value}");
            assert!(axis.ticks(6).len() >= 2, "{value}");
        }
    }

    proptest! {
        #[test]
        fn ticks_are_few_distinct_and_inside(
            exponent in -80_i32..80,
            ratio in 0.0_f64..12.0,
            negative in any::<bool>(),
            log in any::<bool>(),
            most in 3_usize..10,
        ) {
            let low = 1.37 * 10_f64.powi(exponent);
            let high = low * 10_f64.powf(ratio);
            let scale = if log { YScale::Log } else { YScale::Linear };
            let low = if negative && !log { -low } else { low };
            let axis = Axis::new(low, high, scale, 0.04);
            let ticks = axis.ticks(most);
            prop_assert!((1..=most + 1).contains(&ticks.len()), "{ticks:?}");
            for pair in ticks.windows(2) {
                prop_assert!(pair[0].value < pair[1].value && pair[0].label != pair[1].label, "{ticks:?}");
            }
            for tick in &ticks {
                prop_assert!((-1e-9..=1.0 + 1e-9).contains(&axis.position(tick.value)), "{ticks:?}");
            }
            prop_assert!(axis.position(low) >= 0.0 && axis.position(high) <= 1.0);
        }
    }
}
