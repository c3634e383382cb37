//! What tests of the library share: differences in which neither NaN nor a missing value is overlooked.

/// The largest of these numbers, or 0; NaN, for which no comparison holds, if there is one among them.
pub(crate) fn largest(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let larger = |most: f64, number: f64| if most.is_nan() || number.is_nan() { f64::NAN } else { most.max(number) };
    numbers.into_iter().fold(0.0, larger)
}

/// The [`largest`] difference of two values.
///
/// # Panics
/// If there are not as many of one as of the other.
pub(crate) fn largest_difference<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "numbers of values");
    let difference = |(&a, &b): (&T, &T)| {
        let [a, b]: [f64; 2] = [a.into(), b.into()];
        (a - b).abs()
    };
    largest(a.iter().zip(b).map(difference))
}

#[test]
fn what_is_not_a_number_is_not_close() {
    for at in 0..3 {
        let mut values = [1.0_f32, 2.0, 3.0];
        values[at] = f32::NAN;
        assert!(largest_difference(&values, &[1.0, 2.0, 3.0]).is_nan());
        assert!(largest_difference(&values, &values).is_nan());
    }
    assert_eq!(largest_difference(&[1.0, 2.5], &[1.0, 2.0]), 0.5);
}

#[test]
#[should_panic(expected = "numbers of values")]
fn values_that_are_missing_are_not_close() {
    largest_difference(&[1.0_f32], &[1.0, 1.0]);
}
