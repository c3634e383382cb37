//! Immiscible diffusion (Li et al. 2024): the noises of a batch are assigned so that the sum of the distances between data and noise is minimal.

use rayon::prelude::*;

/// For each of the `b` rows of `x` (each `size` long), the row of `noise` assigned to it, so that the sum of Euclidean distances is minimal over all
/// permutations.
pub fn least_distance_assignment(x: &[f32], noise: &[f32], size: usize) -> Vec<usize> {
    let rows = |values: &'_ [f32]| values.len() / size.max(1);
    let b = rows(x);
    let mut cost = vec![0.0_f64; b * b];
    cost.par_chunks_mut(b.max(1)).zip(x.par_chunks(size.max(1))).for_each(|(costs, row)| {
        for (cost, other) in costs.iter_mut().zip(noise.chunks(size)) {
            *cost = distance(row, other);
        }
    });
    assign(&cost, b)
}

/// Values summed in f32 before they are added up in f64.
const BLOCK: usize = 128;
/// Sums of a block side by side, so that the compiler can use vectors; in an order that depends on nothing but the data.
const LANES: usize = 16;

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.chunks(BLOCK).zip(b.chunks(BLOCK)).map(|(a, b)| f64::from(squared_distance(a, b))).sum::<f64>().sqrt()
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_left), (b, b_left)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            let difference = a[lane] - b[lane];
            sums[lane] += difference * difference;
        }
    }
    let left = a_left.iter().zip(b_left).map(|(a, b)| (a - b) * (a - b));
    sums.into_iter().chain(left).sum()
}

/// The linear assignment problem on a square cost matrix (row-major, `n` by `n`), by shortest augmenting paths with
/// potentials: the Hungarian method in the O(n^3) form of Jonker and Volgenant. Returns the column of each row.
fn assign(cost: &[f64], n: usize) -> Vec<usize> {
    const FREE: usize = usize::MAX;
    let (mut row_potential, mut col_potential) = (vec![0.0; n], vec![0.0; n]);
    let mut row_of_col = vec![FREE; n];
    for start in 0..n {
        // Dijkstra over columns from row `start`, on costs reduced by the potentials.
        let mut shortest = vec![f64::INFINITY; n];
        let mut previous = vec![FREE; n]; // the column before each column on its path
        let mut done = vec![false; n];
        let (mut row, mut last_col) = (start, FREE);
        let end = loop {
            let mut nearest = FREE;
            let so_far = if last_col == FREE { 0.0 } else { shortest[last_col] };
            for col in (0..n).filter(|&col| !done[col]) {
                let reduced = so_far + cost[row * n + col] - row_potential[row] - col_potential[col];
                if reduced < shortest[col] {
                    shortest[col] = reduced;
                    previous[col] = last_col;
                }
                if nearest == FREE || shortest[col] < shortest[nearest] {
                    nearest = col;
                }
            }
            done[nearest] = true;
            if row_of_col[nearest] == FREE {
                break nearest;
            }
            (row, last_col) = (row_of_col[nearest], nearest);
        };
        row_potential[start] += shortest[end];
        for col in (0..n).filter(|&col| done[col] && col != end) {
            let slack = shortest[end] - shortest[col];
            col_potential[col] -= slack;
            row_potential[row_of_col[col]] += slack;
        }
        // Along the path, each column takes the row of the preceding column.
        let mut col = end;
        while previous[col] != FREE {
            row_of_col[col] = row_of_col[previous[col]];
            col = previous[col];
        }
        row_of_col[col] = start;
    }
    let mut col_of_row = vec![0; n];
    for (col, &row) in row_of_col.iter().enumerate() {
        col_of_row[row] = col;
    }
    col_of_row
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(cost: &[f64], n: usize, columns: &[usize]) -> f64 {
        columns.iter().enumerate().map(|(row, col)| cost[row * n + col]).sum()
    }

    fn least_by_trying_all(cost: &[f64], n: usize, row: usize, used: &mut Vec<bool>) -> f64 {
        if row == n {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for col in 0..n {
            if !used[col] {
                used[col] = true;
                best = best.min(cost[row * n + col] + least_by_trying_all(cost, n, row + 1, used));
                used[col] = false;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn assignment_is_a_permutation_of_least_cost(
            (n, cost) in (1_usize..7).prop_flat_map(|n| (Just(n), prop::collection::vec(-5.0_f64..5.0, n * n)))
        ) {
            let columns = assign(&cost, n);
            let mut sorted = columns.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let least = least_by_trying_all(&cost, n, 0, &mut vec![false; n]);
            prop_assert!((total(&cost, n, &columns) - least).abs() < 1e-9);
        }
    }

    #[test]
    fn distances_are_those_of_sums_in_f64() {
        for size in [1, 15, 16, 127, 128, 129, 4001] {
            let values = |of: f32| (0..size).map(|i| ((i + 1) as f32 * of).sin() * 3.0).collect::<Vec<f32>>();
            let (a, b) = (values(1.3), values(0.7));
            let squares = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
            let expected = squares.sum::<f64>().sqrt();
            assert!((distance(&a, &b) / expected - 1.0).abs() < 1e-6, "{size}");
        }
    }

    #[test]
    fn each_image_takes_the_noise_next_to_it() {
        let x = [0.0, 0.0, 10.0, 10.0, -10.0, 10.0];
        let noise = [-9.0, 9.0, 1.0, 1.0, 9.0, 9.0];
        assert_eq!(least_distance_assignment(&x, &noise, 2), [1, 2, 0]);
    }
}
