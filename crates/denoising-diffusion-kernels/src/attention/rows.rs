//! Attention's loops over the rows of one head, apart from its products.
//!
//! A block of rows is first copied to scratch memory, where everything else happens. The copying loop is short enough for the processor to have many
//! reads in flight at once, which rows far apart in memory need. Scratch rows have `padded` values, a multiple of sixteen; those after `dim` are
//! never written.

use crate::simd::{Simd, exp, prefetch_far, simd_fn};

/// Runs `$body` with the number of values per row if it is known at compile time, else with 0.
macro_rules! with_width {
    ($dim:expr, $body:ident::<$s:ident>($($arg:expr),* $(,)?)) => {
        match $dim {
            16 => $body::<$s, 16>($($arg),*),
            32 => $body::<$s, 32>($($arg),*),
            64 => $body::<$s, 64>($($arg),*),
            _ => $body::<$s, 0>($($arg),*),
        }
    };
}

/// Number of vectors in a row of `dim` values, which the compiler knows if `W` is not 0.
#[inline(always)]
fn vectors<S: Simd, const W: usize>(dim: usize) -> usize {
    if W > 0 { W / S::LANES } else { dim.div_ceil(S::LANES) }
}

/// Vector `w` of a row of `dim` values, with zeros after its end.
#[inline(always)]
unsafe fn load<S: Simd, const W: usize>(row: *const f32, w: usize, dim: usize) -> S::V {
    let at = row.wrapping_add(w * S::LANES);
    unsafe { if W > 0 { S::load(at) } else { S::load_n(at, dim - w * S::LANES) } }
}

#[inline(always)]
unsafe fn store<S: Simd, const W: usize>(row: *mut f32, w: usize, dim: usize, v: S::V) {
    let at = row.wrapping_add(w * S::LANES);
    unsafe { if W > 0 { S::store(at, v) } else { S::store_n(at, v, dim - w * S::LANES) } }
}

/// The largest lane; if one is NaN, any lane.
#[inline(always)]
unsafe fn largest_lane<S: Simd>(v: S::V) -> f32 {
    unsafe { S::fold(v, |a, b| if a > b { a } else { b }) }
}

/// Prefetches a row of `dim` values that is about to be read.
#[inline(always)]
fn will_read(row: *const f32, dim: usize) {
    for k in (0..dim).step_by(16).chain([dim - 1]) {
        prefetch_far(row.wrapping_add(k));
    }
}

simd_fn! {
    /// Copies `count` rows of `dim` values to rows that are `target_stride` values apart; those of the source are `stride` values apart. Prefetches
    /// the same number of rows after them, which are likely to be needed next.
    ///
    /// # Safety
    /// Source and target must have these rows, and nobody else may access the target.
    pub(super) unsafe fn copy<S>(
        source: *const f32,
        stride: usize,
        dim: usize,
        count: usize,
        target: *mut f32,
        target_stride: usize,
    ) {
        with_width!(dim, copy_body::<S>(source, stride, dim, count, target, target_stride));
    }
}

#[inline(always)]
unsafe fn copy_body<S: Simd, const W: usize>(
    source: *const f32,
    stride: usize,
    dim: usize,
    count: usize,
    target: *mut f32,
    target_stride: usize,
) {
    unsafe {
        for i in 0..count {
            will_read(source.wrapping_add((i + count) * stride), dim);
            for w in 0..vectors::<S, W>(dim) {
                let v = load::<S, W>(source.add(i * stride), w, dim);
                store::<S, W>(target.add(i * target_stride), w, dim, v);
            }
        }
    }
}

simd_fn! {
    /// Replaces every row by `factor` times its softmax.
    ///
    /// # Safety
    /// As [`Simd`]; `dim` is at most `padded`.
    pub(super) unsafe fn query_weights<S>(rows: &mut [f32], dim: usize, padded: usize, factor: f32) {
        with_width!(dim, query_weights_body::<S>(rows, dim, padded, factor));
    }
}

#[inline(always)]
unsafe fn query_weights_body<S: Simd, const W: usize>(rows: &mut [f32], dim: usize, padded: usize, factor: f32) {
    for row in rows.chunks_exact_mut(padded) {
        unsafe {
            let p = row.as_mut_ptr();
            let mut largest = *p;
            if W > 0 {
                let mut lanes = S::load(p);
                for w in 1..W / S::LANES {
                    lanes = S::max(S::load(p.add(w * S::LANES)), lanes);
                }
                largest = largest_lane::<S>(lanes);
            } else {
                for &value in &row[1..dim] {
                    largest = largest.max(value);
                }
            }
            let mut sum = S::splat(0.0);
            for w in 0..vectors::<S, W>(dim) {
                let e = exp::<S>(S::sub(load::<S, W>(p, w, dim), S::splat(largest)));
                store::<S, W>(p, w, dim, e);
                // Lanes beyond the end are zero when read back.
                sum = S::add(sum, load::<S, W>(p, w, dim));
            }
            let factor = S::splat(factor / S::sum(sum));
            for w in 0..vectors::<S, W>(dim) {
                store::<S, W>(p, w, dim, S::mul(load::<S, W>(p, w, dim), factor));
            }
        }
    }
}

simd_fn! {
    /// Adds more rows to a running softmax over rows: with m the new `maxima` of the columns, rows = e^(rows - m), `carry` = e^(old maxima - m), and
    /// `sums` are rescaled to the new maxima before the rows are added.
    ///
    /// # Safety
    /// As [`Simd`]; `dim` is at most `padded`.
    pub(super) unsafe fn key_weights<S>(
        rows: &mut [f32],
        dim: usize,
        padded: usize,
        maxima: &mut [f32],
        sums: &mut [f32],
        carry: &mut [f32],
    ) {
        assert!([maxima.len(), sums.len(), carry.len()] == [padded; 3]);
        let state = [maxima.as_mut_ptr(), sums.as_mut_ptr(), carry.as_mut_ptr()];
        let (first, count) = (rows.as_mut_ptr(), rows.len() / padded);
        // Four or two vectors of columns at a time, with independent sums and exponentials, all in registers.
        let mut column = 0;
        while column + 4 * S::LANES <= dim {
            key_columns::<S, 4>(first.add(column), count, 0, padded, state.map(|p| p.add(column)));
            column += 4 * S::LANES;
        }
        while column + 2 * S::LANES <= dim {
            key_columns::<S, 2>(first.add(column), count, 0, padded, state.map(|p| p.add(column)));
            column += 2 * S::LANES;
        }
        while column < dim {
            let n = (dim - column).min(S::LANES);
            key_columns::<S, 1>(first.add(column), count, n, padded, state.map(|p| p.add(column)));
            column += S::LANES;
        }
    }
}

/// `W` whole vectors of columns of [`key_weights`]; or, if `W` is 1, one of `n` lanes.
#[inline(always)]
unsafe fn key_columns<S: Simd, const W: usize>(
    first: *mut f32,
    count: usize,
    n: usize,
    padded: usize,
    [maxima, sums, carry]: [*mut f32; 3],
) {
    unsafe {
        let at = |i: usize, w: usize| {
            let p = first.add(i * padded + w * S::LANES);
            if W == 1 { S::load_n(p, n) } else { S::load(p) }
        };
        let mut largest = [S::splat(0.0); W];
        for (w, largest) in largest.iter_mut().enumerate() {
            *largest = S::load(maxima.add(w * S::LANES));
        }
        for i in 0..count {
            for (w, largest) in largest.iter_mut().enumerate() {
                *largest = S::max(at(i, w), *largest);
            }
        }
        let mut total = [S::splat(0.0); W];
        for w in 0..W {
            let c = exp::<S>(S::sub(S::load(maxima.add(w * S::LANES)), largest[w]));
            S::store(carry.add(w * S::LANES), c);
            S::store(maxima.add(w * S::LANES), largest[w]);
            total[w] = S::mul(S::load(sums.add(w * S::LANES)), c);
        }
        for i in 0..count {
            for w in 0..W {
                let e = exp::<S>(S::sub(at(i, w), largest[w]));
                let p = first.add(i * padded + w * S::LANES);
                if W == 1 {
                    S::store_n(p, e, n)
                } else {
                    S::store(p, e)
                }
                total[w] = S::add(total[w], e);
            }
        }
        for (w, total) in total.iter().enumerate() {
            S::store(sums.add(w * S::LANES), *total);
        }
    }
}

simd_fn! {
    /// rows = e^(rows - maxima) factors, column by column.
    ///
    /// # Safety
    /// As [`Simd`]; `dim` is at most `padded`.
    pub(super) unsafe fn key_softmax<S>(
        rows: &mut [f32],
        dim: usize,
        padded: usize,
        maxima: &[f32],
        factors: &[f32],
    ) {
        assert!([maxima.len(), factors.len()] == [padded; 2]);
        with_width!(dim, key_softmax_body::<S>(rows, dim, padded, maxima.as_ptr(), factors.as_ptr()));
    }
}

#[inline(always)]
unsafe fn key_softmax_body<S: Simd, const W: usize>(
    rows: &mut [f32],
    dim: usize,
    padded: usize,
    maxima: *const f32,
    factors: *const f32,
) {
    for row in rows.chunks_exact_mut(padded) {
        let p = row.as_mut_ptr();
        for w in 0..vectors::<S, W>(dim) {
            unsafe {
                let shifted = S::sub(load::<S, W>(p, w, dim), S::load(maxima.add(w * S::LANES)));
                let weight = S::mul(exp::<S>(shifted), S::load(factors.add(w * S::LANES)));
                store::<S, W>(p, w, dim, weight);
            }
        }
    }
}

simd_fn! {
    /// For rows y = softmax / `inverse_factor` with gradient dy, the gradient of the softmax's arguments: target = y (dy - inverse_factor sum(y dy)).
    ///
    /// # Safety
    /// `target` has as many rows of `dim` values, `stride` apart, as `y` and `dy` of `padded`, and nobody else accesses them.
    pub(super) unsafe fn query_grads<S>(
        y: &[f32],
        dy: &[f32],
        dim: usize,
        padded: usize,
        inverse_factor: f32,
        target: *mut f32,
        stride: usize,
    ) {
        with_width!(dim, query_grads_body::<S>(y, dy, dim, padded, inverse_factor, target, stride));
    }
}

#[inline(always)]
unsafe fn query_grads_body<S: Simd, const W: usize>(
    y: &[f32],
    dy: &[f32],
    dim: usize,
    padded: usize,
    inverse_factor: f32,
    target: *mut f32,
    stride: usize,
) {
    for (i, (y, dy)) in y.chunks_exact(padded).zip(dy.chunks_exact(padded)).enumerate() {
        let (y, dy) = (y.as_ptr(), dy.as_ptr());
        unsafe {
            let mut dot = S::splat(0.0);
            for w in 0..vectors::<S, W>(dim) {
                dot = S::fma(load::<S, W>(y, w, dim), load::<S, W>(dy, w, dim), dot);
            }
            let dot = S::splat(S::sum(dot) * inverse_factor);
            for w in 0..vectors::<S, W>(dim) {
                let d = S::mul(load::<S, W>(y, w, dim), S::sub(load::<S, W>(dy, w, dim), dot));
                store::<S, W>(target.add(i * stride), w, dim, d);
            }
        }
    }
}

simd_fn! {
    /// For columns y = softmax with gradient dy and their dot products `dots`: target = y (dy - dots).
    ///
    /// # Safety
    /// As [`query_grads`]; `dots` has `padded` values.
    pub(super) unsafe fn key_grads<S>(
        y: &[f32],
        dy: &[f32],
        dim: usize,
        padded: usize,
        dots: &[f32],
        target: *mut f32,
        stride: usize,
    ) {
        assert!(dots.len() == padded);
        with_width!(dim, key_grads_body::<S>(y, dy, dim, padded, dots.as_ptr(), target, stride));
    }
}

#[inline(always)]
unsafe fn key_grads_body<S: Simd, const W: usize>(
    y: &[f32],
    dy: &[f32],
    dim: usize,
    padded: usize,
    dots: *const f32,
    target: *mut f32,
    stride: usize,
) {
    for (i, (y, dy)) in y.chunks_exact(padded).zip(dy.chunks_exact(padded)).enumerate() {
        for w in 0..vectors::<S, W>(dim) {
            unsafe {
                let d = S::sub(load::<S, W>(dy.as_ptr(), w, dim), S::load(dots.add(w * S::LANES)));
                store::<S, W>(target.add(i * stride), w, dim, S::mul(load::<S, W>(y.as_ptr(), w, dim), d));
            }
        }
    }
}

simd_fn! {
    /// dots[i] = a[i, :] . b[i, :] for rows of `padded` values.
    ///
    /// # Safety
    /// As [`Simd`]; `padded` is a multiple of sixteen.
    pub(super) unsafe fn row_dots<S>(a: &[f32], b: &[f32], padded: usize, dots: &mut [f32]) {
        for ((a, b), dot) in a.chunks_exact(padded).zip(b.chunks_exact(padded)).zip(dots) {
            let mut sums = [S::splat(0.0); 2];
            for k in (0..padded).step_by(2 * S::LANES) {
                for (half, sum) in sums.iter_mut().enumerate() {
                    let at = k + half * S::LANES;
                    if at < padded {
                        *sum = S::fma(S::load(a.as_ptr().add(at)), S::load(b.as_ptr().add(at)), *sum);
                    }
                }
            }
            *dot = S::sum(S::add(sums[0], sums[1]));
        }
    }
}
