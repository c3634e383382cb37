//! Random numbers as functions of a key and a counter: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), and normal
//! numbers from it by Box and Muller's method, many at a time.
//!
//! Normal numbers are computed in f64 with additions, multiplications, divisions and roots only, which are rounded in the same way everywhere, and
//! are rounded to f32 at the end. They have the same bits on every machine, for any vector width, whatever its mathematical library.
//!
//! Not here: the meaning of keys and counters ([`dropout`](crate::dropout) has its own counters). No state is kept.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_PI_2, LN_2};

use crate::simd::{Isa, simd_fn};

/// Number of random words per counter.
pub(crate) const WORDS: usize = 4;
/// Number of counters at a time: enough for the compiler to vectorise.
pub(crate) const COUNTERS: usize = 16;

/// The words of several counters, word by word.
pub(crate) type Words<const N: usize> = [[u32; N]; WORDS];

/// The random words of one counter.
pub fn philox4x32_10(counter: [u32; WORDS], key: [u32; 2]) -> [u32; WORDS] {
    philox(counter.map(|word| [word]), key).map(|[word]| word)
}

/// The two normal numbers for two random words: sqrt(-2 ln u) times cosine and sine of 2 pi v, where u = (`words[0]` + 1/2) / 2^32 and v is computed
/// likewise from `words[1]`.
#[inline(always)]
pub fn normal_pair(words: [u32; 2]) -> [f32; 2] {
    let radius = (-2.0 * ln(words[0])).sqrt();
    let [cos, sin] = cos_sin(words[1]);
    [(radius * cos) as f32, (radius * sin) as f32]
}

/// Fills `out`, whose length must be a multiple of 4, with the normal numbers for `counter` and for the counters after it, whose first word is
/// greater by 1, 2, ...: for each, the [pair](normal_pair) for its first two words, then that for the last two.
pub fn normals(counter: [u32; WORDS], key: [u32; 2], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(WORDS), "each counter gives {WORDS} numbers, {} were asked for", out.len());
    // SAFETY: the CPU has been checked.
    unsafe { normals_on(Isa::detect(), counter, key, out) };
}

simd_fn! {
    unsafe fn normals_on<S>(counter: [u32; WORDS], key: [u32; 2], out: &mut [f32]) {
        for (n, chunk) in out.chunks_mut(WORDS * COUNTERS).enumerate() {
            let mut counters = counter.map(|word| [word; COUNTERS]);
            for (i, first) in counters[0].iter_mut().enumerate() {
                *first = counter[0].wrapping_add((n * COUNTERS + i) as u32);
            }
            let words = philox(counters, key);
            let (first, second) = (normal_pairs(words[0], words[1]), normal_pairs(words[2], words[3]));
            for (i, numbers) in chunk.chunks_exact_mut(WORDS).enumerate() {
                numbers.copy_from_slice(&[first[0][i], first[1][i], second[0][i], second[1][i]]);
            }
        }
    }
}

/// The random words for several counters, vectorised where it is inlined into a kernel.
#[inline(always)]
pub(crate) fn philox<const N: usize>(counters: Words<N>, mut key: [u32; 2]) -> Words<N> {
    let [mut a, mut b, mut c, mut d] = counters;
    for _ in 0..10 {
        for i in 0..N {
            let (of_a, of_c) = (u64::from(a[i]) * 0xD251_1F53, u64::from(c[i]) * 0xCD9E_8D57);
            a[i] = (of_c >> 32) as u32 ^ b[i] ^ key[0];
            b[i] = of_c as u32;
            c[i] = (of_a >> 32) as u32 ^ d[i] ^ key[1];
            d[i] = of_a as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    [a, b, c, d]
}

/// [`normal_pair`] for each of several pairs of words. Written as loops over arrays, which the compiler vectorises; with closures it does not.
#[inline(always)]
fn normal_pairs(these: [u32; COUNTERS], those: [u32; COUNTERS]) -> [[f32; COUNTERS]; 2] {
    let mut pairs = [[0.0; COUNTERS]; 2];
    for i in 0..COUNTERS {
        [pairs[0][i], pairs[1][i]] = normal_pair([these[i], those[i]]);
    }
    pairs
}

/// ln((k + 1/2) / 2^32) to a relative error of some 3e-16.
///
/// The argument is m 2^e with m between sqrt(1/2) and sqrt(2), and ln m = 2 artanh((m - 1) / (m + 1)), whose series is taken to the last significant
/// term.
#[inline(always)]
fn ln(k: u32) -> f64 {
    const LEAST: u64 = FRAC_1_SQRT_2.to_bits();
    const TO_ONE: u64 = 1.0_f64.to_bits() - LEAST;
    const MANTISSA_BITS: u32 = 52;
    const MANTISSA: u64 = (1 << MANTISSA_BITS) - 1;
    const TWO_TO_52: f64 = (1_u64 << MANTISSA_BITS) as f64;
    // Through i32, for which there are vector conversions.
    let u = (f64::from((k ^ 1 << 31) as i32) + 2_147_483_648.5) * (1.0 / 4_294_967_296.0);
    let bits = u.to_bits() + TO_ONE;
    // With the exponent of 2^52, the exponent's bits are read as a number.
    let e = f64::from_bits(bits >> MANTISSA_BITS | TWO_TO_52.to_bits()) - (TWO_TO_52 + 1023.0);
    let m_minus_1 = f64::from_bits((bits & MANTISSA) + LEAST) - 1.0;
    let s = m_minus_1 / (2.0 + m_minus_1);
    let z = s * s;
    let mut series = 1.0 / 19.0;
    for n in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * z + 1.0 / n;
    }
    e * LN_2 + (2.0 * s + 2.0 * s * z * series)
}

/// Cosine and sine of 2 pi (k + 1/2) / 2^32, to an error of some 7e-16.
///
/// The angle is a number of quarter turns plus at most an eighth of a turn, whose series are taken to the last significant term.
#[inline(always)]
fn cos_sin(k: u32) -> [f64; 2] {
    let quarters = k.wrapping_add(1 << 29) >> 30;
    let rest = (f64::from(k.wrapping_sub(quarters << 30) as i32) + 0.5) * (1.0 / 1_073_741_824.0);
    let x = rest * FRAC_PI_2;
    let z = x * x;
    let (mut cos, mut sin) = (1.0, 1.0);
    for n in [16.0, 14.0, 12.0, 10.0, 8.0, 6.0, 4.0, 2.0] {
        cos = 1.0 - cos * z * (1.0 / (n * (n - 1.0)));
        sin = 1.0 - sin * z * (1.0 / (n * (n + 1.0)));
    }
    sin *= x;
    let negative = |x: f64, bit: u32| f64::from_bits(x.to_bits() ^ u64::from(bit & 2) << 62);
    let [cos, sin] = if quarters & 1 == 1 { [sin, cos] } else { [cos, sin] };
    [negative(cos, quarters.wrapping_add(1)), negative(sin, quarters)]
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    /// Known answers of Random123's kat_vectors, philox4x32 10.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox4x32_10([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    /// Words at all edges, and many in between.
    fn words() -> impl Iterator<Item = u32> {
        let edges = (0..=8).flat_map(|eighth| (-3_i64..3).map(move |off| ((eighth << 29) + off) as u32));
        edges.chain((0..200_000_u32).map(|i| i.wrapping_mul(2_654_435_761)))
    }

    #[test]
    fn logarithms_cosines_and_sines_are_those_of_the_mathematical_library() {
        for k in words() {
            let u = (f64::from(k) + 0.5) / 4_294_967_296.0;
            let (got, expected) = (ln(k), u.ln());
            assert!((got - expected).abs() <= 1e-15 * expected.abs(), "ln {u}: {got}, expected {expected}");
            let ([cos, sin], (expected_sin, expected_cos)) = (cos_sin(k), (TAU * u).sin_cos());
            assert!((cos - expected_cos).abs() < 2e-15, "cos 2 pi {u}: {cos}, expected {expected_cos}");
            assert!((sin - expected_sin).abs() < 2e-15, "sin 2 pi {u}: {sin}, expected {expected_sin}");
        }
    }

    #[test]
    fn many_numbers_are_those_of_each_counter_on_every_instruction_set() {
        let (counter, key) = ([u32::MAX - 20, 1, 2, 3], [4, 5]);
        for counters in [0, 1, 15, 16, 17, 70] {
            let expected: Vec<f32> = (0..counters)
                .flat_map(|i| {
                    let words = philox4x32_10([counter[0].wrapping_add(i), 1, 2, 3], key);
                    [normal_pair([words[0], words[1]]), normal_pair([words[2], words[3]])].concat()
                })
                .collect();
            for isa in Isa::all() {
                let mut numbers = vec![0.0; WORDS * counters as usize];
                // SAFETY: `isa` is one that this machine runs.
                unsafe { normals_on(isa, counter, key, &mut numbers) };
                assert_eq!(numbers, expected, "{isa:?}, {counters}");
            }
        }
    }
}
