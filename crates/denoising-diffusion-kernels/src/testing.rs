//! Functions shared by the tests of several modules.

/// Uniform values in -1..1, from a seed (splitmix64).
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x1234_5678_9abc_def1;
    (0..len)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            ((z >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect()
}

/// Panics unless every value is within `tolerance` of the exact one, relative to the larger of 1 and the largest exact value.
#[track_caller]
pub(crate) fn assert_close(values: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(values.len(), exact.len());
    let scale = exact.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (&value, &want)) in values.iter().zip(exact).enumerate() {
        let error = (f64::from(value) - want).abs() / scale;
        assert!(error <= tolerance, "value {i}: {value} instead of {want}, error {error:e} of scale {scale}");
    }
}

/// Panics unless `f` gives the same bits in pools of one, two and three threads.
#[track_caller]
pub(crate) fn one_and_two_threads_agree(f: impl Fn() -> Vec<f32> + Sync) {
    let bits = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| f().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    let one = bits(1);
    assert!(!one.is_empty());
    assert!(one == bits(2), "two threads differ from one");
    assert!(one == bits(3), "three threads differ from one");
}

/// The same values as f64.
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// About a dozen indices below `len`, spread out.
pub(crate) fn some_indices(len: usize) -> Vec<usize> {
    (0..len).step_by(len.div_ceil(12).max(1) | 1).collect()
}

/// A derivative of a sum, and the magnitude of the terms of that sum: rounding every term changes the sum by about that much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slope {
    pub(crate) value: f64,
    /// The root of the sum of the squared terms.
    pub(crate) terms: f64,
}

/// d(sum of dy y) / d(values) at `indices`, where `f` gives y, by central differences in f64.
pub(crate) fn numeric(values: &[f64], dy: &[f32], indices: &[usize], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<Slope> {
    let h = 3e-5;
    let mut moved = values.to_vec();
    let mut at = |i: usize, x: f64| {
        moved[i] = x;
        let y = f(&moved);
        moved[i] = values[i];
        y
    };
    let mut slope = |i: usize| {
        let (above, below) = (at(i, values[i] + h), at(i, values[i] - h));
        let terms = || above.iter().zip(&below).zip(dy).map(|((a, b), &d)| (a - b) / (2.0 * h) * f64::from(d));
        Slope { value: terms().sum(), terms: terms().map(|t| t * t).sum::<f64>().sqrt() }
    };
    indices.iter().map(|&i| slope(i)).collect()
}

/// Panics unless the values at `indices` are within `tolerance` of the exact ones, relative to the largest of 1, the exact values and
/// their terms.
#[track_caller]
pub(crate) fn assert_some_close(values: &[f32], indices: &[usize], exact: &[Slope], tolerance: f64) {
    assert_eq!(indices.len(), exact.len());
    let scale = exact.iter().fold(1.0f64, |m, slope| m.max(slope.value.abs()).max(slope.terms));
    for (&i, slope) in indices.iter().zip(exact) {
        let error = (f64::from(values[i]) - slope.value).abs() / scale;
        assert!(error <= tolerance, "value {i}: {} instead of {slope:?}, error {error:e} of scale {scale}", values[i]);
    }
}
