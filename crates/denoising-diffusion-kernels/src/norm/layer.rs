//! Layer normalisation (Ba et al. 2016) with scale and shift, and what gates a branch before it is added: the two halves of adaptive
//! layer normalisation (Peebles & Xie 2022, adaLN-Zero). And their gradients.
//!
//! For every position, with c channels and m and v the mean and variance of x over them:
//!
//! y = (x - m) / sqrt(v + eps) (1 + scale) + shift; and y = residual + x gate
//!
//! Scale, shift and gate belong to images. The backward pass computes m and v again: nothing is saved.

use super::RmsNormShape as RowShape;
use super::rows::{load, store};
use crate::par::{Scratch, Shared, for_each_task, task_range};
use crate::simd::{Isa, LANES, Simd, simd_fn};

/// y = layer_norm(x) (1 + scale) + shift: `x` and `y` `[batch, positions, channels]`, `scale_shift` `[batch, 2 channels]`, each row scale before
/// shift.
pub fn layer_norm_forward(shape: &RowShape, x: &[f32], scale_shift: &[f32], eps: f32, y: &mut [f32]) {
    norm_with(Isa::detect(), shape, x, scale_shift, eps, y);
}

/// The gradients of [`layer_norm_forward`] from `dy` and its inputs.
pub fn layer_norm_backward(
    shape: &RowShape,
    x: &[f32],
    scale_shift: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dscale_shift: &mut [f32],
) {
    norm_grad_with(Isa::detect(), shape, x, scale_shift, eps, dy, dx, dscale_shift);
}

/// y = residual + x gate: `[batch, positions, channels]`, `gate` `[batch, channels]`.
pub fn gated_add_forward(shape: &RowShape, x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
    gate_with(Isa::detect(), shape, x, gate, residual, y);
}

/// The gradients of x and gate of [`gated_add_forward`]; the residual's is `dy`.
pub fn gated_add_backward(shape: &RowShape, x: &[f32], gate: &[f32], dy: &[f32], dx: &mut [f32], dgate: &mut [f32]) {
    gate_grad_with(Isa::detect(), shape, x, gate, dy, dx, dgate);
}

/// Runs `f(image, range of values, task)` for tasks that cover the activation.
fn for_each_part(shape: &RowShape, f: impl Fn(usize, std::ops::Range<usize>, usize) + Sync + Send) {
    let (c, size) = (shape.channels, shape.rows_per_task());
    let blocks = shape.positions.div_ceil(size);
    for_each_task(shape.batch * blocks, |task| {
        let (image, rows) = (task / blocks, task_range(task % blocks, size, shape.positions));
        let first = image * shape.positions;
        f(image, (first + rows.start) * c..(first + rows.end) * c, task);
    });
}

/// The sums of tasks, `[batch, tasks of an image, width]`, over the tasks of each image, in f64.
fn sum_tasks(shape: &RowShape, sums: &[f32], out: &mut [f32]) {
    let width = out.len() / shape.batch;
    for (image, out) in sums.chunks_exact(sums.len() / shape.batch).zip(out.chunks_exact_mut(width)) {
        for (k, out) in out.iter_mut().enumerate() {
            *out = image.iter().skip(k).step_by(width).map(|&part| f64::from(part)).sum::<f64>() as f32;
        }
    }
}

fn tasks(shape: &RowShape) -> usize {
    shape.batch * shape.positions.div_ceil(shape.rows_per_task())
}

fn norm_with(isa: Isa, shape: &RowShape, x: &[f32], scale_shift: &[f32], eps: f32, y: &mut [f32]) {
    let c = shape.channels;
    shape.check(x.len(), c, Some(scale_shift.len()), y.len());
    let out = Shared::new(y);
    for_each_part(shape, |image, range, _| {
        let (scale, shift) = scale_shift[image * 2 * c..][..2 * c].split_at(c);
        // SAFETY: ranges of different tasks are disjoint and hold whole rows.
        unsafe { norm_rows(isa, &x[range.clone()], scale, shift, eps, out.part(range)) }
    });
}

#[allow(clippy::too_many_arguments, reason = "the public function's, and the instruction set")]
fn norm_grad_with(
    isa: Isa,
    shape: &RowShape,
    x: &[f32],
    scale_shift: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dscale_shift: &mut [f32],
) {
    let c = shape.channels;
    shape.check(x.len(), c, Some(scale_shift.len()), dx.len());
    shape.check(dy.len(), c, Some(dscale_shift.len()), dx.len());
    if shape.is_empty() {
        return dscale_shift.fill(0.0);
    }
    let mut sums = Scratch::zeroed(tasks(shape) * 2 * c);
    let (dx, out) = (Shared::new(dx), Shared::new(&mut sums));
    for_each_part(shape, |image, range, task| {
        let scale = &scale_shift[image * 2 * c..][..c];
        // SAFETY: as in `norm_with`; each task has sums of its own.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * 2 * c..(task + 1) * 2 * c));
            norm_grad_rows(isa, &x[range.clone()], &dy[range], scale, eps, dx, sums);
        }
    });
    sum_tasks(shape, &sums, dscale_shift);
}

fn gate_with(isa: Isa, shape: &RowShape, x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
    let c = shape.channels;
    shape.check(x.len(), c, None, y.len());
    assert_eq!((residual.len(), gate.len()), (x.len(), shape.batch * c), "lengths of residual and gate of {shape:?}");
    let out = Shared::new(y);
    for_each_part(shape, |image, range, _| {
        let gate = &gate[image * c..][..c];
        // SAFETY: as in `norm_with`.
        unsafe { gate_rows(isa, &x[range.clone()], gate, &residual[range.clone()], out.part(range)) }
    });
}

fn gate_grad_with(isa: Isa, shape: &RowShape, x: &[f32], gate: &[f32], dy: &[f32], dx: &mut [f32], dgate: &mut [f32]) {
    let c = shape.channels;
    shape.check(x.len(), c, None, dx.len());
    assert_eq!((dy.len(), gate.len(), dgate.len()), (x.len(), shape.batch * c, shape.batch * c), "{shape:?}");
    if shape.is_empty() {
        return dgate.fill(0.0);
    }
    let mut sums = Scratch::zeroed(tasks(shape) * c);
    let (dx, out) = (Shared::new(dx), Shared::new(&mut sums));
    for_each_part(shape, |image, range, task| {
        let gate = &gate[image * c..][..c];
        // SAFETY: as in `norm_grad_with`.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * c..(task + 1) * c));
            gate_grad_rows(isa, &x[range.clone()], &dy[range], gate, dx, sums);
        }
    });
    sum_tasks(shape, &sums, dgate);
}

/// Calls `$body` for every row, with whole vectors if channels fill them.
macro_rules! for_rows {
    ($len:expr, $c:expr, $body:ident::<$s:ident>, |$at:ident| ($($arg:expr),*)) => {
        let mut $at = 0;
        while $at < $len {
            if $c % LANES == 0 {
                $body::<$s, true>($($arg),*);
            } else {
                $body::<$s, false>($($arg),*);
            }
            $at += $c;
        }
    };
}

/// Calls `$one` for every vector of a row, the last of which may have fewer than all values.
macro_rules! for_vectors {
    ($c:expr, |$k:ident, $n:ident| $one:block) => {
        let mut $k = 0;
        while $k < $c {
            let $n = $c - $k;
            $one
            $k += LANES;
        }
    };
}

simd_fn! {
    unsafe fn norm_rows<S>(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, y: &mut [f32]) {
        let (len, c) = (x.len(), scale.len());
        let (x, y, affine) = (x.as_ptr(), y.as_mut_ptr(), [scale.as_ptr(), shift.as_ptr()]);
        for_rows!(len, c, norm_row::<S>, |at| (x.add(at), affine, c, eps, y.add(at)));
    }
}

simd_fn! {
    /// `sums` gains the sum of dy unit, then that of dy.
    unsafe fn norm_grad_rows<S>(x: &[f32], dy: &[f32], scale: &[f32], eps: f32, dx: &mut [f32], sums: &mut [f32]) {
        let (len, c) = (x.len(), scale.len());
        let (x, dy, scale, dx, sums) = (x.as_ptr(), dy.as_ptr(), scale.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        for_rows!(len, c, norm_grad_row::<S>, |at| (x.add(at), dy.add(at), scale, c, eps, dx.add(at), sums));
    }
}

simd_fn! {
    unsafe fn gate_rows<S>(x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, gate, residual, y) = (x.as_ptr(), gate.as_ptr(), residual.as_ptr(), y.as_mut_ptr());
        for_rows!(len, c, gate_row::<S>, |at| (x.add(at), gate, residual.add(at), c, y.add(at)));
    }
}

simd_fn! {
    /// `sums` gains the sum of dy x.
    unsafe fn gate_grad_rows<S>(x: &[f32], dy: &[f32], gate: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, dy, gate, dx, sums) = (x.as_ptr(), dy.as_ptr(), gate.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        for_rows!(len, c, gate_grad_row::<S>, |at| (x.add(at), dy.add(at), gate, c, dx.add(at), sums));
    }
}

/// The mean of a row, and 1 / its deviation.
#[inline(always)]
unsafe fn moments<S: Simd, const WHOLE: bool>(x: *const f32, c: usize, eps: f32) -> [f32; 2] {
    unsafe {
        let mut sum = S::splat(0.0);
        for_vectors!(c, |k, n| {
            sum = S::add(sum, load::<S, WHOLE>(x.add(k), n));
        });
        let mean = S::sum(sum) / c as f32;
        let mut squares = S::splat(0.0);
        for_vectors!(c, |k, n| {
            let off = S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean));
            squares = S::fma(off, off, squares);
        });
        // What lies behind the row was taken as 0.
        let behind = if WHOLE { 0 } else { c.next_multiple_of(LANES) - c };
        let variance = (S::sum(squares) - behind as f32 * mean * mean).max(0.0) / c as f32;
        // `max` would hide a NaN, which the mean has, too.
        [mean, (variance + eps + 0.0 * mean).sqrt().recip()]
    }
}

#[inline(always)]
unsafe fn norm_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    [scale, shift]: [*const f32; 2],
    c: usize,
    eps: f32,
    y: *mut f32,
) {
    unsafe {
        let [mean, inverse] = moments::<S, WHOLE>(x, c, eps);
        for_vectors!(c, |k, n| {
            let unit = S::mul(S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean)), S::splat(inverse));
            let gain = S::add(load::<S, WHOLE>(scale.add(k), n), S::splat(1.0));
            store::<S, WHOLE>(y.add(k), S::fma(unit, gain, load::<S, WHOLE>(shift.add(k), n)), n);
        });
    }
}

/// With u = dy (1 + scale): dx = (u - mean(u) - unit mean(u unit)) / deviation.
#[inline(always)]
unsafe fn norm_grad_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    dy: *const f32,
    scale: *const f32,
    c: usize,
    eps: f32,
    dx: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        let [mean, inverse] = moments::<S, WHOLE>(x, c, eps);
        let unit =
            |k: usize, n: usize| S::mul(S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean)), S::splat(inverse));
        let (mut total, mut dot) = (S::splat(0.0), S::splat(0.0));
        for_vectors!(c, |k, n| {
            let (dy, unit) = (load::<S, WHOLE>(dy.add(k), n), unit(k, n));
            let (of_scale, of_shift) = (sums.add(k), sums.add(c + k));
            store::<S, WHOLE>(of_scale, S::fma(dy, unit, load::<S, WHOLE>(of_scale, n)), n);
            store::<S, WHOLE>(of_shift, S::add(dy, load::<S, WHOLE>(of_shift, n)), n);
            let u = S::mul(dy, S::add(load::<S, WHOLE>(scale.add(k), n), S::splat(1.0)));
            total = S::add(total, u);
            dot = S::fma(u, unit, dot);
            // Kept where the result will be.
            store::<S, WHOLE>(dx.add(k), u, n);
        });
        let (total, dot) = (S::splat(S::sum(total) / c as f32), S::splat(S::sum(dot) / c as f32));
        for_vectors!(c, |k, n| {
            let off = S::sub(S::sub(load::<S, WHOLE>(dx.add(k), n), total), S::mul(unit(k, n), dot));
            store::<S, WHOLE>(dx.add(k), S::mul(off, S::splat(inverse)), n);
        });
    }
}

#[inline(always)]
unsafe fn gate_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    gate: *const f32,
    residual: *const f32,
    c: usize,
    y: *mut f32,
) {
    unsafe {
        for_vectors!(c, |k, n| {
            let (x, gate) = (load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(gate.add(k), n));
            store::<S, WHOLE>(y.add(k), S::fma(x, gate, load::<S, WHOLE>(residual.add(k), n)), n);
        });
    }
}

#[inline(always)]
unsafe fn gate_grad_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    dy: *const f32,
    gate: *const f32,
    c: usize,
    dx: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        for_vectors!(c, |k, n| {
            let dy = load::<S, WHOLE>(dy.add(k), n);
            let of_gate = sums.add(k);
            store::<S, WHOLE>(of_gate, S::fma(dy, load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(of_gate, n)), n);
            store::<S, WHOLE>(dx.add(k), S::mul(dy, load::<S, WHOLE>(gate.add(k), n)), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{
        assert_close, assert_some_close, numeric, one_and_two_threads_agree, random, some_indices, wide,
    };

    const EPS: f32 = 1e-6;

    fn norm64(s: &RowShape, x: &[f64], m: &[f64]) -> Vec<f64> {
        let c = s.channels;
        let row = |(row, x): (usize, &[f64])| {
            let mean = x.iter().sum::<f64>() / c as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
            let at = row / s.positions * 2 * c;
            (0..c)
                .map(|k| (x[k] - mean) / (variance + f64::from(EPS)).sqrt() * (1.0 + m[at + k]) + m[at + c + k])
                .collect::<Vec<_>>()
        };
        x.chunks_exact(c).enumerate().flat_map(row).collect()
    }

    fn gate64(s: &RowShape, x: &[f64], gate: &[f64], residual: &[f64]) -> Vec<f64> {
        let image = s.positions * s.channels;
        (0..x.len()).map(|i| residual[i] + x[i] * gate[i / image * s.channels + i % s.channels]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn both_agree_with_f64_and_finite_differences(
            (batch, positions, channels) in (1usize..=5, 1usize..=289, 2usize..=70), seed: u64,
        ) {
            let s = RowShape { batch, positions, channels };
            let (mut x, dy, r) = (random(s.len(), seed), random(s.len(), seed ^ 2), random(s.len(), seed ^ 4));
            // No row is nearly constant: its gradient would be as large as its deviation is small.
            x.chunks_exact_mut(channels).for_each(|row| {
                row[0] = 2.0;
                row[1] = -2.0;
            });
            let m = random(2 * batch * channels, seed ^ 3);
            let gate = &m[..batch * channels];
            let (x64, m64, gate64_, r64) = (wide(&x), wide(&m), wide(gate), wide(&r));
            let (of_x, of_m, of_gate) = (some_indices(x.len()), some_indices(m.len()), some_indices(gate.len()));
            let dx64 = numeric(&x64, &dy, &of_x, |x| norm64(&s, x, &m64));
            let dm64 = numeric(&m64, &dy, &of_m, |m| norm64(&s, &x64, m));
            let gate_dx64 = numeric(&x64, &dy, &of_x, |x| gate64(&s, x, &gate64_, &r64));
            let dgate64 = numeric(&gate64_, &dy, &of_gate, |gate| gate64(&s, &x64, gate, &r64));
            for isa in Isa::all() {
                let (mut y, mut dx) = (vec![7.0; s.len()], vec![7.0; s.len()]);
                let (mut dm, mut dgate) = (vec![7.0; m.len()], vec![7.0; gate.len()]);
                norm_with(isa, &s, &x, &m, EPS, &mut y);
                assert_close(&y, &norm64(&s, &x64, &m64), 2e-6);
                norm_grad_with(isa, &s, &x, &m, EPS, &dy, &mut dx, &mut dm);
                assert_some_close(&dx, &of_x, &dx64, 3e-6);
                assert_some_close(&dm, &of_m, &dm64, 3e-6);
                gate_with(isa, &s, &x, gate, &r, &mut y);
                assert_close(&y, &gate64(&s, &x64, &gate64_, &r64), 1e-6);
                gate_grad_with(isa, &s, &x, gate, &dy, &mut dx, &mut dgate);
                assert_some_close(&dx, &of_x, &gate_dx64, 3e-6);
                assert_some_close(&dgate, &of_gate, &dgate64, 3e-6);
            }
        }
    }

    #[test]
    fn bad_values_stay_in_their_position() {
        for c in [10, 32] {
            let s = RowShape { batch: 1, positions: 3, channels: c };
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let (mut x, m, dy) = (random(s.len(), 1), vec![0.0; 2 * c], vec![1.0; s.len()]);
                x[c + 2] = bad;
                for isa in Isa::all() {
                    let (mut y, mut dx, mut dm) = (vec![0.0; s.len()], vec![0.0; s.len()], vec![0.0; 2 * c]);
                    norm_with(isa, &s, &x, &m, EPS, &mut y);
                    norm_grad_with(isa, &s, &x, &m, EPS, &dy, &mut dx, &mut dm);
                    assert!(y[c + 2].is_nan() && dx[c + 2].is_nan() && dm[2].is_nan(), "{isa:?} {bad}");
                    assert!([&y, &dx].iter().all(|v| v[..c].iter().chain(&v[2 * c..]).all(|v| v.is_finite())));
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let s = RowShape { batch: 3, positions: 1000, channels: 50 };
        let (x, dy, m) = (random(s.len(), 1), random(s.len(), 2), random(300, 4));
        one_and_two_threads_agree(|| {
            let (mut y, mut dx, mut dm, mut dgate) = (x.clone(), x.clone(), m.clone(), m[..150].to_vec());
            layer_norm_forward(&s, &x, &m, EPS, &mut y);
            layer_norm_backward(&s, &x, &m, EPS, &dy, &mut dx, &mut dm);
            let first = [&y[..], &dx, &dm].concat();
            gated_add_forward(&s, &x, &m[..150], &dy, &mut y);
            gated_add_backward(&s, &x, &m[..150], &dy, &mut dx, &mut dgate);
            [first, y, dx, dgate].concat()
        });
    }
}
