//! Numbers as people read them: with as many digits as are known, and no more.
//!
//! Not here: axis labels, which choose their digits by the step of the axis (`curve::axis`), and files, which hold numbers with all their digits.

/// Significant digits of a number whose standard error is unknown.
pub(super) const DIGITS: i32 = 4;
/// A smaller number is rounding noise around zero.
const NOISE: f64 = 1e-12;
/// Numbers whose leading digit is outside these powers of ten are written with an exponent.
const PLAIN: std::ops::RangeInclusive<i32> = -4..=8;

/// A value and its standard error as text, with the same number of decimals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Figure {
    pub value: String,
    pub error: Option<String>,
}

impl Figure {
    /// The error is written with two digits, and the value down to the place of the second. Without an error, or if the error is only rounding noise,
    /// the value has [`DIGITS`] digits.
    pub fn new(value: f64, error: Option<f64>) -> Self {
        let noise = NOISE.max(1e-9 * value.abs());
        let Some(error) = error else { return Self { value: significant(value, DIGITS), error: None } };
        if !value.is_finite() || !error.is_finite() || error.abs() <= noise {
            let error = if error.abs() <= noise { "0".to_owned() } else { significant(error, 2) };
            return Self { value: significant(value, DIGITS), error: Some(error) };
        }
        let place = leading_place(error, 2) - 1;
        // A value less than half of the error's second digit has no digits of its own.
        let largest = leading_place(error, 2).max(if value == 0.0 { i32::MIN } else { leading_place(value, DIGITS) });
        let exponent = if PLAIN.contains(&largest) { None } else { Some(largest) };
        let [value, error] = [value, error].map(|number| rounded(number, place, exponent));
        Self { value, error: Some(error) }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{} ± {error}", self.value),
            None => f.write_str(&self.value),
        }
    }
}

/// `value` with this many significant digits.
pub(super) fn significant(value: f64, digits: i32) -> String {
    if !value.is_finite() {
        // In the spelling of the run log.
        return value.to_string();
    }
    if value.abs() < NOISE {
        return "0".to_owned();
    }
    let leading = leading_place(value, digits);
    rounded(value, leading - digits + 1, if PLAIN.contains(&leading) { None } else { Some(leading) })
}

/// `value` with this many decimals; the digits before the point in groups of three.
pub(super) fn decimals(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (sign, digits) = text.strip_prefix('-').map_or(("", &*text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    // A value that is rounded to zero has no sign.
    let sign = if digits.contains(|digit| ('1'..='9').contains(&digit)) { sign } else { "" };
    format!("{sign}{}{fraction}", grouped(whole))
}

/// The number of decimals that shows an error's second digit.
pub(super) fn decimals_for(error: f64) -> usize {
    let sensible = error.is_finite() && error.abs() > NOISE;
    if sensible { usize::try_from(1 - leading_place(error, 2)).unwrap_or(0) } else { DIGITS as usize }
}

/// `2607681` as `2,607,681`.
pub fn thousands(number: u64) -> String {
    grouped(&number.to_string())
}

/// A fraction as percent, with one decimal.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", decimals(100.0 * share, 1))
}

/// Numbers that add up as they are printed: `parts` and `total` with `places` decimals. If the rounded parts do not add up to the rounded total,
/// those that rounding changed most are rounded the other way; each stays within one unit of its last digit. Parts that do not add up to `total`
/// before rounding are only rounded.
pub(super) fn adding_up<const N: usize>(parts: [f64; N], total: f64, places: usize) -> ([String; N], String) {
    let unit = 10_f64.powi(-(places as i32));
    let whole = (total / unit).round();
    let mut rounded = parts.map(|part| (part / unit).round());
    let sums = (parts.iter().sum::<f64>() - total).abs() < 0.5 * unit;
    for _ in 0..N {
        let missing = whole - rounded.iter().sum::<f64>();
        if !sums || missing == 0.0 {
            break;
        }
        // How much rounding changed each of them, counted in the direction that is needed now.
        let lost = |index: usize| missing.signum() * (parts[index] / unit - rounded[index]);
        if let Some(most) = (0..N).max_by(|&a, &b| lost(a).total_cmp(&lost(b))) {
            rounded[most] += missing.signum();
        }
    }
    (rounded.map(|part| decimals(part * unit, places)), decimals(whole * unit, places))
}

/// The power of ten of the first digit of `value` after rounding to this many digits; `value` is finite and not zero.
fn leading_place(value: f64, digits: i32) -> i32 {
    let text = format!("{:.*e}", (digits - 1).max(0) as usize, value);
    text.rsplit('e').next().and_then(|exponent| exponent.parse().ok()).unwrap_or(0)
}

/// `value` rounded to the power of ten `place`; in units of the power of ten `exponent` if one is given.
fn rounded(value: f64, place: i32, exponent: Option<i32>) -> String {
    if let Some(exponent) = exponent {
        // Through text: a power of ten far below 1 is not exact, and dividing by the smallest ones overflows.
        let mantissa = format!("{value}e{}", -exponent).parse().unwrap_or(value);
        return format!("{}e{exponent}", decimals(mantissa, usize::try_from(exponent - place).unwrap_or(0)));
    }
    match usize::try_from(-place) {
        Ok(places) => decimals(value, places),
        Err(_) => {
            let unit = 10_f64.powi(place);
            decimals((value / unit).round() * unit, 0)
        }
    }
}

fn grouped(digits: &str) -> String {
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(value: f64, error: f64) -> String {
        Figure::new(value, Some(error)).to_string()
    }

    #[test]
    fn the_error_chooses_the_digits() {
        assert_eq!(shown(12.345678, 0.1234), "12.35 ± 0.12");
        assert_eq!(shown(12.345678, 0.0996), "12.35 ± 0.10");
        assert_eq!(shown(0.000_52, 0.000_114), "0.00052 ± 0.00011");
        assert_eq!(shown(1.01e-5, 2e-6), "1.01e-5 ± 0.20e-5");
        assert_eq!(shown(123_456.0, 2345.0), "123,500 ± 2,300");
        assert_eq!(shown(-0.000_01, 0.003), "0.0000 ± 0.0030");
        assert_eq!(shown(1.0, 25.0), "1 ± 25");
        assert_eq!(shown(12_345.678, 0.5), "12,345.68 ± 0.50");
        assert_eq!(shown(3e12, 2e11), "3.00e12 ± 0.20e12");
    }

    #[test]
    fn noise_and_what_is_no_number() {
        assert_eq!(shown(3.5, 1e-17), "3.500 ± 0");
        assert_eq!(shown(1e-17, 0.0), "0 ± 0");
        assert_eq!(shown(f64::NAN, 0.5), "NaN ± 0.50");
        assert_eq!(shown(2.0, f64::INFINITY), "2.000 ± inf");
        assert_eq!(significant(-1e-17, 4), "0");
        assert_eq!(significant(0.999_96, 4), "1.000");
        assert_eq!(significant(8.9123, 4), "8.912");
        assert_eq!(significant(0.000_012_34, 3), "1.23e-5");
        assert_eq!(significant(1_234_567.0, 4), "1,235,000");
    }

    #[test]
    fn groups_and_shares() {
        let groups = [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (2_607_681, "2,607,681")];
        for (number, text) in groups {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(percent(0.0625), "6.2 %");
        assert_eq!([decimals_for(0.012), decimals_for(30.0), decimals_for(0.0)], [3, 0, 4]);
    }

    #[test]
    fn parts_add_up_as_printed() {
        let (parts, total) = adding_up([0.0004, 1.2344, 2.1654], 3.4002, 3);
        assert_eq!((parts.map(|part| part.parse::<f64>().unwrap()).iter().sum::<f64>(), &*total), (3.4, "3.400"));
        let (parts, total) = adding_up([1.0, 1.0], 3.0, 1);
        assert_eq!((parts, &*total), (["1.0".to_owned(), "1.0".to_owned()], "3.0"), "not ours to mend");
        let (parts, total) = adding_up([f64::NAN, 1.0], f64::NAN, 1);
        assert_eq!((&*parts[0], &*total), ("NaN", "NaN"));
    }

    fn parsed(text: &str) -> f64 {
        text.replace(',', "").parse().unwrap()
    }

    proptest! {
        #[test]
        fn printed_numbers_are_the_numbers(
            mantissa in -1.0_f64..1.0,
            exponent in -9_i32..9,
            error in 1.0_f64..9.99,
            below in -2_i32..8,
        ) {
            let value = mantissa * 10_f64.powi(exponent);
            let error = error * 10_f64.powi(exponent - below);
            prop_assume!(error > NOISE && error > 1e-8 * value.abs());
            let figure = Figure::new(value, Some(error));
            let (printed, printed_error) = (parsed(&figure.value), parsed(figure.error.as_ref().unwrap()));
            // Two digits of the error, and the value to the same place.
            let place = 10_f64.powi(error.log10().floor() as i32 - 1);
            prop_assert!((printed_error - error).abs() <= 0.501 * 10.0 * place, "{figure}");
            prop_assert!((printed - value).abs() <= 0.501 * 10.0 * place, "{figure}");
            let digits = figure.error.as_ref().unwrap();
            let digits = digits.split('e').next().unwrap().replace(['.', ','], "");
            let digits = digits.trim_start_matches('0').trim_end_matches('0');
            prop_assert!((1..=2).contains(&digits.len()), "{figure}");
            prop_assert!(figure.value.len() <= 16, "{figure}");
            prop_assert!(!figure.value.starts_with("-0") || printed != 0.0, "{figure}");
        }

        #[test]
        fn any_number_can_be_printed(value in any::<f64>(), error in any::<f64>()) {
            let figure = Figure::new(value, Some(error));
            prop_assert!(figure.value.len() <= 24, "{figure}");
            prop_assert!(significant(value, 4).len() <= 12);
        }

        #[test]
        fn sums_are_sums(parts in prop::array::uniform3(0.0_f64..5.0), places in 0_usize..6) {
            let total: f64 = parts.iter().sum();
            let (printed, printed_total) = adding_up(parts, total, places);
            let unit = 10_f64.powi(-(places as i32));
            let sum: f64 = printed.iter().map(|part| parsed(part)).sum();
            prop_assert!((sum - parsed(&printed_total)).abs() < 1e-9, "{printed:?} {printed_total}");
            for (part, text) in parts.iter().zip(&printed) {
                prop_assert!((part - parsed(text)).abs() < unit * 1.001);
            }
        }
    }
}
