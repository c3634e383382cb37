//! Squared Euclidean distances between the rows of two tables, a tile at a time, and nearest rows.
//!
//! A tile comes from a matrix product, `|a|^2 + |b|^2 - 2 a.b`, which loses the digits of distances that are small relative to the norms. A tile
//! therefore gives bounds, not values. Where the bounds do not decide a comparison, the distance is computed directly, in f64 and from the
//! differences. Results are thus always those of direct distances: they depend neither on the tiles, nor on the number of threads, nor on the
//! rounding of the product.
//!
//! The product is in f64. In f32 it takes half the time (45 against 22 GFlop/s on a core with AVX2), but for bounds that always hold, features would
//! have to be centred and scaled: f32 overflows and underflows in products of values that are themselves in range, and its error is 5e8 times as
//! large relative to the norms. Memory: about 6 MB per thread, whatever the size of the tables.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::features::Features;

/// Rows per tile.
const ROWS: usize = 128;
/// Columns per tile.
const COLUMNS: usize = 512;
/// Dimensions multiplied at a time.
const DEPTH: usize = 1024;

/// The squared distance of two rows, from their differences, in f64; the same bits for (a, b) and (b, a).
pub(super) fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let square = |x: f32, y: f32| {
        let difference = f64::from(x) - f64::from(y);
        difference * difference
    };
    let (wide_a, wide_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = wide_a.remainder().iter().zip(wide_b.remainder()).map(|(&x, &y)| square(x, y)).sum();
    let mut sums = [0.0; LANES];
    for (x, y) in wide_a.zip(wide_b) {
        for lane in 0..LANES {
            sums[lane] += square(x[lane], y[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Two tables of equal dimensions, whose rows are compared.
pub(super) struct Pair<'a> {
    a: Features<'a>,
    b: Features<'a>,
    norms_a: Vec<f64>,
    norms_b: Vec<f64>,
    relative_error: f64,
}

/// Bounds of a squared distance: [`squared_distance`] lies within.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub lower: f64,
    pub upper: f64,
}

/// Distances between some rows of the first table and some rows of the second.
pub(super) struct Tile<'a> {
    /// Rows of the first table.
    pub rows: Range<usize>,
    /// Rows of the second table.
    pub columns: Range<usize>,
    pair: &'a Pair<'a>,
    products: &'a [f64],
}

impl<'a> Pair<'a> {
    /// The caller must have checked that the dimensions are equal.
    pub fn new(a: Features<'a>, b: Features<'a>) -> Self {
        let origin = vec![0.0; a.dims()];
        let norms = |table: Features| -> Vec<f64> {
            (0..table.n()).into_par_iter().map(|i| squared_distance(table.row(i), &origin)).collect()
        };
        // Sums of d terms are off by at most d u (1 + ...) times the sum of their magnitudes, u = EPSILON / 2. The magnitudes in the three sums of
        // |a|^2 + |b|^2 - 2 a.b add up to at most 2 (|a|^2 + |b|^2), and those of the direct sum to no more than that.
        let relative_error = 2.0 * (a.dims() + 8) as f64 * f64::EPSILON;
        Self { a, b, norms_a: norms(a), norms_b: norms(b), relative_error }
    }

    /// Visits all pairs of rows. Each block of rows of the first table starts with its own `start` and visits the columns in ascending order; the
    /// final states are returned in the order of the rows.
    pub fn visit<S: Send>(
        &self,
        start: impl Fn(Range<usize>) -> S + Sync,
        tile: impl Fn(&mut S, &Tile) + Sync,
    ) -> Vec<S> {
        (0..self.a.n().div_ceil(ROWS))
            .into_par_iter()
            .map(|block| {
                let rows = block * ROWS..((block + 1) * ROWS).min(self.a.n());
                let mut state = start(rows.clone());
                let mut buffers = Buffers::default();
                for from in (0..self.b.n()).step_by(COLUMNS) {
                    let columns = from..(from + COLUMNS).min(self.b.n());
                    let products = buffers.multiply(self, rows.clone(), columns.clone());
                    tile(&mut state, &Tile { rows: rows.clone(), columns, pair: self, products });
                }
                state
            })
            .collect()
    }
}

impl Tile<'_> {
    /// Bounds of the squared distance between row `i` of the first table and row `j` of the second.
    pub fn bounds(&self, i: usize, j: usize) -> Bounds {
        let at = (i - self.rows.start) * self.columns.len() + (j - self.columns.start);
        let norms = self.pair.norms_a[i] + self.pair.norms_b[j];
        let middle = norms - 2.0 * self.products[at];
        let error = norms * self.pair.relative_error;
        Bounds { lower: middle - error, upper: middle + error }
    }

    /// The squared distance itself.
    pub fn exact(&self, i: usize, j: usize) -> f64 {
        squared_distance(self.pair.a.row(i), self.pair.b.row(j))
    }

    /// Whether the squared distance, which lies within `bounds`, is below `limit`.
    pub fn is_below(&self, i: usize, j: usize, bounds: Bounds, limit: f64) -> bool {
        bounds.upper < limit || (bounds.lower < limit && self.exact(i, j) < limit)
    }
}

/// Memory for one tile's factors and product.
#[derive(Default)]
struct Buffers {
    a: Vec<f64>,
    b: Vec<f64>,
    products: Vec<f64>,
}

impl Buffers {
    fn multiply(&mut self, pair: &Pair, rows: Range<usize>, columns: Range<usize>) -> &[f64] {
        let (n, m) = (rows.len(), columns.len());
        self.products.clear();
        self.products.resize(n * m, 0.0);
        for from in (0..pair.a.dims()).step_by(DEPTH) {
            let dims = from..(from + DEPTH).min(pair.a.dims());
            widen(pair.a, rows.clone(), dims.clone(), &mut self.a);
            widen(pair.b, columns.clone(), dims.clone(), &mut self.b);
            let a = MatRef::from_row_major_slice(&self.a, n, dims.len());
            let b = MatRef::from_row_major_slice(&self.b, m, dims.len());
            let products = MatMut::from_row_major_slice_mut(&mut self.products, n, m);
            matmul(products, Accum::Add, a, b.transpose(), 1.0, Par::Seq);
        }
        &self.products
    }
}

/// Some dimensions of some rows, converted to f64, `[rows, dims]`.
pub(super) fn widen(table: Features, rows: Range<usize>, dims: Range<usize>, out: &mut Vec<f64>) {
    out.clear();
    for i in rows {
        out.extend(table.row(i)[dims.clone()].iter().map(|&v| f64::from(v)));
    }
}

/// A row near another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Near {
    /// Its index in its table.
    pub index: usize,
    /// The squared distance.
    pub squared: f64,
}

/// Which rows count as neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// All rows of the second table.
    All,
    /// All but the row with the same index, because both tables are the same.
    Others,
}

/// The `k` nearest points of every query, `[queries, k]`, nearest first; ties go to the smaller index. The caller must have checked that there are
/// `k` of them and that the dimensions are equal.
pub(super) fn nearest(queries: Features, points: Features, k: usize, among: Among) -> Vec<Near> {
    let found = Pair::new(queries, points).visit(
        |rows| vec![Candidates::new(k); rows.len()],
        |candidates, tile| {
            for (i, candidates) in tile.rows.clone().zip(candidates) {
                let exact = |j: usize| tile.exact(i, j);
                for j in tile.columns.clone() {
                    let bounds = tile.bounds(i, j);
                    if bounds.lower <= candidates.limit && !(among == Among::Others && i == j) {
                        candidates.offer(j, bounds, exact);
                    }
                }
                if tile.columns.end == points.n() {
                    candidates.settle(exact);
                    candidates.found.shrink_to_fit();
                }
            }
        },
    );
    let near = |(index, bounds): (usize, Bounds)| Near { index, squared: bounds.upper };
    found.into_iter().flatten().flat_map(|candidates| candidates.found.into_iter().map(near)).collect()
}

/// Candidates for the `k` nearest of one row, in bounded memory.
#[derive(Clone)]
struct Candidates {
    k: usize,
    /// `k` of those found are no farther than this, so anything farther is not among the nearest.
    limit: f64,
    /// Lower and upper bound are equal if the distance has been computed.
    found: Vec<(usize, Bounds)>,
}

impl Candidates {
    fn new(k: usize) -> Self {
        Self { k, limit: f64::INFINITY, found: Vec::new() }
    }

    fn room(&self) -> usize {
        2 * self.k + 32
    }

    fn offer(&mut self, index: usize, bounds: Bounds, exact: impl Fn(usize) -> f64) {
        // Indices ascend: after k copies, no later row can be nearer or come before them.
        if self.limit <= 0.0 {
            return;
        }
        self.found.push((index, bounds));
        if self.found.len() < self.room() {
            return;
        }
        self.found.sort_unstable_by(|a, b| a.1.upper.total_cmp(&b.1.upper));
        self.limit = self.found[self.k - 1].1.upper;
        self.found.retain(|(_, bounds)| bounds.lower <= self.limit);
        if self.found.len() > self.room() / 2 {
            self.settle(exact);
        }
    }

    /// Computes the distances that are not known exactly, and keeps the `k` nearest, in order.
    fn settle(&mut self, exact: impl Fn(usize) -> f64) {
        for (index, bounds) in &mut self.found {
            if bounds.lower < bounds.upper {
                let squared = exact(*index);
                *bounds = Bounds { lower: squared, upper: squared };
            }
        }
        self.found.sort_unstable_by(|a, b| a.1.upper.total_cmp(&b.1.upper).then(a.0.cmp(&b.0)));
        self.found.truncate(self.k);
        if let Some((_, last)) = self.found.get(self.k - 1) {
            self.limit = last.upper;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::{Purpose, Stream};

    fn normal(n: usize, dims: usize, index: u64) -> Vec<f32> {
        let mut values = vec![0.0; n * dims];
        Stream::new(5, Purpose::Evaluation, index, 0).fill_normal(&mut values);
        values
    }

    fn brute_force(queries: Features, points: Features, k: usize, among: Among) -> Vec<Near> {
        let row = |i: usize| {
            let others = (0..points.n()).filter(|&j| among == Among::All || i != j);
            let mut all: Vec<Near> = others
                .map(|index| Near { index, squared: squared_distance(queries.row(i), points.row(index)) })
                .collect();
            all.sort_by(|a, b| a.squared.total_cmp(&b.squared));
            all.truncate(k);
            all
        };
        (0..queries.n()).flat_map(row).collect()
    }

    #[test]
    fn bounds_hold_and_are_tight() {
        // Several tiles in each direction, several depths; far from the origin, where a product loses digits.
        let (n, m, dims) = (2 * ROWS + 3, COLUMNS + 5, DEPTH + 7);
        let shift = |values: Vec<f32>| values.into_iter().map(|v| v + 100.0).collect::<Vec<f32>>();
        let (a, b) = (shift(normal(n, dims, 0)), shift(normal(m, dims, 1)));
        let (a, b) = (Features::new(&a, dims).unwrap(), Features::new(&b, dims).unwrap());
        let checked = Pair::new(a, b).visit(
            |_| 0,
            |checked, tile| {
                for (i, j) in tile.rows.clone().flat_map(|i| tile.columns.clone().map(move |j| (i, j))) {
                    let (bounds, exact) = (tile.bounds(i, j), tile.exact(i, j));
                    assert!(bounds.lower <= exact && exact <= bounds.upper, "{i}, {j}: {exact} not in {bounds:?}");
                    assert!(bounds.upper - bounds.lower < 1e-4 * exact, "{i}, {j}: {bounds:?}");
                    *checked += 1;
                }
            },
        );
        assert_eq!(checked.iter().sum::<usize>(), n * m);
        assert_eq!(checked.len(), 3);
    }

    #[test]
    fn nearly_equal_rows_are_told_apart() {
        // Values around 1e9, whose neighbours in f32 are 64 away: the product rounds to about 1e6, distances begin at 64^2.
        let dims = 1000;
        let query: Vec<f32> = normal(1, dims, 0).iter().map(|v| 1e9 + (1e6 * v).round() * 64.0).collect();
        let step = |j: usize| (100 - j) as f32 * 64.0;
        let points: Vec<f32> = (0..100)
            .flat_map(|j| query.iter().enumerate().map(move |(at, v)| v + if at == 7 * j { step(j) } else { 0.0 }))
            .collect();
        let (query, points) = (Features::new(&query, dims).unwrap(), Features::new(&points, dims).unwrap());
        let expected = [99, 98, 97].map(|index| Near { index, squared: f64::from(step(index)).powi(2) });
        assert_eq!(nearest(query, points, 3, Among::All), expected);
    }

    #[test]
    fn the_same_for_any_number_of_threads() {
        let values = normal(700, 9, 0);
        let table = Features::new(&values, 9).unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| nearest(table, table, 4, Among::Others))
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn equal_rows_fill_no_memory_and_the_first_of_them_are_taken() {
        let values = vec![0.1; 3000 * 3];
        let table = Features::new(&values, 3).unwrap();
        let found = nearest(table, table, 2, Among::Others);
        assert_eq!(found[..2], [Near { index: 1, squared: 0.0 }, Near { index: 2, squared: 0.0 }]);
        assert_eq!(found[2 * 2999..], [Near { index: 0, squared: 0.0 }, Near { index: 1, squared: 0.0 }]);
    }

    #[test]
    fn no_rows_have_no_neighbours() {
        let none = Features::new(&[], 3).unwrap();
        let one = [1.0, 2.0, 3.0];
        assert!(nearest(none, Features::new(&one, 3).unwrap(), 1, Among::All).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Few distinct values, so that many distances are equal.
        #[test]
        fn neighbours_are_those_of_brute_force(
            n in 1_usize..300, m in 80_usize..700, dims in 1_usize..40, k in 1_usize..70, levels in 2_u8..200, seed in 0_u64..1000,
        ) {
            let mut stream = Stream::new(seed, Purpose::Evaluation, 0, 0);
            let mut draw = |n: usize| (0..n * dims).map(|_| stream.below(levels.into()) as f32 / 7.0).collect::<Vec<f32>>();
            let (a, b) = (draw(n), draw(m));
            let (a, b) = (Features::new(&a, dims).unwrap(), Features::new(&b, dims).unwrap());
            prop_assert_eq!(nearest(a, b, k, Among::All), brute_force(a, b, k, Among::All));
            prop_assert_eq!(nearest(b, b, k, Among::Others), brute_force(b, b, k, Among::Others));
        }
    }
}
