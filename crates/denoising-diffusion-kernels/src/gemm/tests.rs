//! The products against plain f64 loops.

use super::*;
use crate::simd::Isa;
use crate::testing::{assert_close, random};
use proptest::prelude::*;

proptest! {
    #[test]
    fn rows_times_panels_agrees_with_f64(
        rows in 1usize..20, taps in 1usize..4, len in 1usize..20, cols in 1usize..40, seed: u64, add in 0usize..3,
    ) {
        let depth = taps * len;
        let padded = cols.next_multiple_of(PANEL);
        let a = random(rows * depth, seed);
        let b = random(padded * depth, seed ^ 1);
        let start = random(rows * cols, seed ^ 2);
        let bias = random(padded, seed ^ 3);
        let pointers: Vec<RowPointers> = (0..rows.div_ceil(ROWS))
            .flat_map(|tile| (0..taps).map(move |tap| (tile, tap)))
            .map(|(tile, tap)| std::array::from_fn(|r| {
                a[(tile * ROWS + r).min(rows - 1) * depth + tap * len..].as_ptr()
            }))
            .collect();
        let exact: Vec<f64> = (0..rows * cols).map(|at| {
            let (i, j) = (at / cols, at % cols);
            let added = [0.0, bias[j], start[at]][add];
            (0..depth).fold(f64::from(added), |sum, k| {
                let b = b[(j / PANEL * depth + k) * PANEL + j % PANEL];
                sum + f64::from(a[i * depth + k]) * f64::from(b)
            })
        }).collect();
        for isa in Isa::all() {
            let mut dst = start.clone();
            let add_to = [AddTo::Nothing, AddTo::Row(&bias), AddTo::Destination][add];
            // SAFETY: built above as described.
            unsafe {
                rows_times_panels(isa, &pointers, taps, len, rows, &b, cols, add_to, dst.as_mut_ptr(), cols);
            }
            assert_close(&dst, &exact, 2e-6);
        }
    }

    #[test]
    fn tile_heights_cover_without_waste(rows in 1usize..200) {
        let sum: usize = tile_heights(rows).iter().sum();
        prop_assert!(sum >= rows && sum <= rows.max(4) + 1);
    }
}
