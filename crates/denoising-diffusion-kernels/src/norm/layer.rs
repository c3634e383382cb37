//! Layer normalisation (Ba et al. 2016) with scale and shift, and its gradient. Together with [`gate`](super::gate), this is adaptive layer
//! normalisation (Peebles & Xie 2022, adaLN-Zero).
//!
//! For every position, with c channels and m and v the mean and variance of x over them:
//!
//! y = (x - m) / sqrt(v + eps) (1 + scale) + shift
//!
//! Scale and shift are per image. Nothing is saved: the backward pass recomputes m and v.

use super::RmsNormShape as RowShape;
use super::parts::{each_row, each_vector, for_each_part, sum_tasks, tasks};
use super::rows::{load, store};
use super::sums::sum_rows;
use crate::par::{Scratch, Shared};
use crate::simd::{Isa, MAX_LANES, Simd, simd_fn};

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

pub(super) fn norm_with(isa: Isa, shape: &RowShape, x: &[f32], scale_shift: &[f32], eps: f32, y: &mut [f32]) {
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
pub(super) fn norm_grad_with(
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
            let (x, dy) = (&x[range.clone()], &dy[range]);
            sum_rows(x.len(), c, sums, |part, sums| {
                norm_grad_rows(isa, &x[part.clone()], &dy[part.clone()], scale, eps, &mut dx[part], sums);
            });
        }
    });
    sum_tasks(shape, &sums, dscale_shift);
}

simd_fn! {
    unsafe fn norm_rows<S>(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, y: &mut [f32]) {
        let (len, c) = (x.len(), scale.len());
        let (x, y, affine) = (x.as_ptr(), y.as_mut_ptr(), [scale.as_ptr(), shift.as_ptr()]);
        each_row!(len, c, norm_row::<S>, |at| (x.add(at), affine, c, eps, y.add(at)));
    }
}

simd_fn! {
    /// Adds the sum of dy unit, then that of dy, to `sums`.
    unsafe fn norm_grad_rows<S>(x: &[f32], dy: &[f32], scale: &[f32], eps: f32, dx: &mut [f32], sums: &mut [f32]) {
        let (len, c) = (x.len(), scale.len());
        let (x, dy, scale, dx, sums) = (x.as_ptr(), dy.as_ptr(), scale.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        each_row!(len, c, norm_grad_row::<S>, |at| (x.add(at), dy.add(at), scale, c, eps, dx.add(at), sums));
    }
}

/// The mean of a row, and 1 / its standard deviation.
#[inline(always)]
unsafe fn moments<S: Simd, const WHOLE: bool>(x: *const f32, c: usize, eps: f32) -> [f32; 2] {
    unsafe {
        let mut sum = S::splat(0.0);
        each_vector!(S, c, |k, n| {
            sum = S::add(sum, load::<S, WHOLE>(x.add(k), n));
        });
        let mean = S::sum(sum) / c as f32;
        let mut squares = S::splat(0.0);
        each_vector!(S, c, |k, n| {
            let mut off = S::sub(load::<S, WHOLE>(x.add(k), n), S::splat(mean));
            if !WHOLE && n < S::LANES {
                // Lanes after the end of the row were taken as 0, which is off by the mean.
                let mut own = [0.0f32; MAX_LANES];
                S::store_n(own.as_mut_ptr(), off, n);
                off = S::load(own.as_ptr());
            }
            squares = S::fma(off, off, squares);
        });
        [mean, (S::sum(squares) / c as f32 + eps).sqrt().recip()]
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
        each_vector!(S, c, |k, n| {
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
        each_vector!(S, c, |k, n| {
            let (dy, unit) = (load::<S, WHOLE>(dy.add(k), n), unit(k, n));
            let (of_scale, of_shift) = (sums.add(k), sums.add(c + k));
            store::<S, WHOLE>(of_scale, S::fma(dy, unit, load::<S, WHOLE>(of_scale, n)), n);
            store::<S, WHOLE>(of_shift, S::add(dy, load::<S, WHOLE>(of_shift, n)), n);
            let u = S::mul(dy, S::add(load::<S, WHOLE>(scale.add(k), n), S::splat(1.0)));
            total = S::add(total, u);
            dot = S::fma(u, unit, dot);
            // Stored where the result will be.
            store::<S, WHOLE>(dx.add(k), u, n);
        });
        let (total, dot) = (S::splat(S::sum(total) / c as f32), S::splat(S::sum(dot) / c as f32));
        each_vector!(S, c, |k, n| {
            let off = S::sub(S::sub(load::<S, WHOLE>(dx.add(k), n), total), S::mul(unit(k, n), dot));
            store::<S, WHOLE>(dx.add(k), S::mul(off, S::splat(inverse)), n);
        });
    }
}
