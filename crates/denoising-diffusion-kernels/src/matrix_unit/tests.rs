//! Units against plain loops.

use super::*;
use crate::testing::random;

#[test]
fn rounding_is_to_the_nearest_and_keeps_nan() {
    let wide = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    assert_eq!(wide(narrow(1.0)), 1.0);
    assert_eq!(wide(narrow(f32::INFINITY)), f32::INFINITY);
    assert_eq!(wide(narrow(f32::MAX)), f32::INFINITY);
    assert!(wide(narrow(f32::NAN)).is_nan() && wide(narrow(f32::from_bits(0x7f80_0001))).is_nan());
    // Halfway between two values: the even one.
    assert_eq!(wide(narrow(1.0 + 1.0 / 256.0)), 1.0);
    assert_eq!(wide(narrow(1.0 + 3.0 / 256.0)), 1.0 + 4.0 / 256.0);
    for value in random(10_000, 1) {
        assert!((wide(narrow(value)) - value).abs() <= value.abs() / 256.0, "{value}");
    }
}

#[test]
fn every_unit_multiplies_what_the_plain_loops_multiply() {
    let (runs, steps, stride) = ([0, 7, 100], 3, 112);
    let mut left = NarrowScratch::new(2 * SIDE * stride + 100 + steps * TERMS);
    let mut right = NarrowScratch::new(2 * runs.len() * steps * TILE);
    for (scratch, seed) in [(&mut left, 1), (&mut right, 2)] {
        for (i, value) in random(2 * scratch.pairs().len(), seed).into_iter().enumerate() {
            // SAFETY: within the scratch memory.
            unsafe { *scratch.pairs().as_mut_ptr().cast::<u16>().add(i) = narrow(value) };
        }
    }
    for (below, beside) in [(true, true), (true, false), (false, true), (false, false)] {
        let left = Left { first: left.as_ptr(), stride, second: below.then_some(SIDE * stride), runs: &runs, steps };
        let right = Right { first: right.as_ptr(), second: beside.then_some(runs.len() * steps * TILE) };
        let products = |unit, add| {
            let mut sums = [1.0; 4 * SIDE * SIDE];
            // SAFETY: the scratch memory holds all rows and tiles.
            unsafe { Session::new(unit).multiply(left, right, add, Target::of(&mut sums)) };
            sums
        };
        for unit in Unit::all() {
            for add in [false, true] {
                let (got, want) = (products(unit, add), products(Unit::Plain, add));
                assert!(want.iter().any(|&sum| sum != 1.0));
                let furthest = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(got.iter().all(|sum| sum.is_finite()) && furthest < 1e-4, "{unit:?}: {furthest}");
            }
        }
    }
}

/// Calls `f` for each unit and checks that all write the same.
fn units_agree(len: usize, f: impl Fn(Unit, *mut u16)) {
    let mut found = Unit::all().into_iter().map(|unit| {
        let mut to = vec![7; len];
        f(unit, to.as_mut_ptr());
        to
    });
    let plain = found.next().unwrap();
    assert!(plain.iter().any(|&value| value != 7));
    found.for_each(|other| assert_eq!(plain, other));
}

#[test]
fn every_unit_rounds_and_arranges_alike() {
    let values = random(40 * 50, 1);
    let lines: [*const f32; TERMS] = std::array::from_fn(|i| values[i * 37..].as_ptr());
    for (len, count, stride) in [(1, 3, 4), (16, 3, 16), (31, 2, 40), (33, 4, 33), (50, 3, 64), (64, 2, 70)] {
        // SAFETY: the slices are large enough.
        units_agree(count * stride, |unit, to| unsafe { narrow_rows(unit, values.as_ptr(), len, count, to, stride) });
    }
    for lanes in [1, 7, 16] {
        // SAFETY: as above.
        units_agree(SIDE * TERMS, |unit, to| unsafe { pair_lines(unit, &lines, lanes, to.cast()) });
        units_agree(SIDE * 40, |unit, to| unsafe { transpose_lines(unit, &lines, lanes, to, 40) });
    }
    for (rows, len) in [(1, 1), (16, 9), (5, 16), (16, 16)] {
        // SAFETY: as above.
        units_agree(2 * SIDE * SIDE, |unit, to| unsafe {
            transpose_rows(unit, values.as_ptr(), 41, rows, len, to.cast());
        });
    }
}
