//! Multiplies the channels of an image by factors for that image, with the operation that follows, in one pass; and the gradients.
//!
//! For every position: y = residual + x gate (the end of a branch in adaptive layer normalisation, Peebles & Xie 2022), or y = silu(x gate) (the
//! middle of a block of EDM2, Karras et al. 2023, figure 21). The backward pass only reads inputs: nothing is saved.

use super::RmsNormShape as RowShape;
use super::parts::{each_row, each_vector, for_each_part, sum_tasks, tasks};
use super::rows::{load, store};
use super::sums::sum_rows;
use crate::activation::{Activation, silu, silu_slope};
use crate::par::{Scratch, Shared};
use crate::simd::{Isa, Simd, simd_fn};

/// y = residual + x gate: `[batch, positions, channels]`, `gate` `[batch, channels]`.
pub fn gated_add_forward(shape: &RowShape, x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
    add_with(Isa::detect(), shape, x, gate, residual, y);
}

/// The gradients of x and gate of [`gated_add_forward`]; the residual's is `dy`.
pub fn gated_add_backward(shape: &RowShape, x: &[f32], gate: &[f32], dy: &[f32], dx: &mut [f32], dgate: &mut [f32]) {
    grad_with(Isa::detect(), shape, x, gate, Activation::Identity, dy, dx, dgate);
}

/// y = silu(x gate): `[batch, positions, channels]`, `gate` `[batch, channels]`.
pub fn gated_silu_forward(shape: &RowShape, x: &[f32], gate: &[f32], y: &mut [f32]) {
    silu_with(Isa::detect(), shape, x, gate, y);
}

/// The gradients of x and gate of [`gated_silu_forward`].
pub fn gated_silu_backward(shape: &RowShape, x: &[f32], gate: &[f32], dy: &[f32], dx: &mut [f32], dgate: &mut [f32]) {
    grad_with(Isa::detect(), shape, x, gate, Activation::Silu, dy, dx, dgate);
}

pub(super) fn add_with(isa: Isa, shape: &RowShape, x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
    assert_eq!(residual.len(), x.len(), "length of the residual of {shape:?}");
    check(shape, x, gate, y);
    let (c, out) = (shape.channels, Shared::new(y));
    for_each_part(shape, |image, range, _| {
        let gate = &gate[image * c..][..c];
        // SAFETY: ranges of different tasks are disjoint and hold whole rows.
        unsafe { add_rows(isa, &x[range.clone()], gate, &residual[range.clone()], out.part(range)) }
    });
}

pub(super) fn silu_with(isa: Isa, shape: &RowShape, x: &[f32], gate: &[f32], y: &mut [f32]) {
    check(shape, x, gate, y);
    let (c, out) = (shape.channels, Shared::new(y));
    for_each_part(shape, |image, range, _| {
        let gate = &gate[image * c..][..c];
        // SAFETY: as in `add_with`.
        unsafe { silu_rows(isa, &x[range.clone()], gate, out.part(range)) }
    });
}

#[allow(clippy::too_many_arguments, reason = "the public functions', and the instruction set")]
pub(super) fn grad_with(
    isa: Isa,
    shape: &RowShape,
    x: &[f32],
    gate: &[f32],
    activation: Activation,
    dy: &[f32],
    dx: &mut [f32],
    dgate: &mut [f32],
) {
    check(shape, x, gate, dx);
    assert_eq!((dy.len(), dgate.len()), (x.len(), gate.len()), "lengths of dy and dgate of {shape:?}");
    if shape.is_empty() {
        return dgate.fill(0.0);
    }
    let c = shape.channels;
    let mut sums = Scratch::zeroed(tasks(shape) * c);
    let (dx, out) = (Shared::new(dx), Shared::new(&mut sums));
    for_each_part(shape, |image, range, task| {
        let gate = &gate[image * c..][..c];
        // SAFETY: as in `add_with`; each task has sums of its own.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * c..(task + 1) * c));
            let (x, dy) = (&x[range.clone()], &dy[range]);
            sum_rows(x.len(), c, sums, |part, sums| {
                grad_rows(isa, &x[part.clone()], &dy[part.clone()], gate, activation, &mut dx[part], sums);
            });
        }
    });
    sum_tasks(shape, &sums, dgate);
}

fn check(shape: &RowShape, x: &[f32], gate: &[f32], y: &[f32]) {
    shape.check(x.len(), shape.channels, None, y.len());
    assert_eq!(gate.len(), shape.batch * shape.channels, "length of the gate of {shape:?}");
}

simd_fn! {
    unsafe fn add_rows<S>(x: &[f32], gate: &[f32], residual: &[f32], y: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, gate, residual, y) = (x.as_ptr(), gate.as_ptr(), residual.as_ptr(), y.as_mut_ptr());
        each_row!(len, c, add_row::<S>, |at| (x.add(at), gate, residual.add(at), c, y.add(at)));
    }
}

simd_fn! {
    unsafe fn silu_rows<S>(x: &[f32], gate: &[f32], y: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, gate, y) = (x.as_ptr(), gate.as_ptr(), y.as_mut_ptr());
        each_row!(len, c, silu_row::<S>, |at| (x.add(at), gate, c, y.add(at)));
    }
}

simd_fn! {
    /// With u = x gate and du = dy activation'(u): `dx` = du gate, and the sum of du x is added to `sums`.
    unsafe fn grad_rows<S>(x: &[f32], dy: &[f32], gate: &[f32], activation: Activation, dx: &mut [f32], sums: &mut [f32]) {
        let (len, c) = (x.len(), gate.len());
        let (x, dy, gate, dx, sums) = (x.as_ptr(), dy.as_ptr(), gate.as_ptr(), dx.as_mut_ptr(), sums.as_mut_ptr());
        match activation {
            Activation::Identity => {
                each_row!(len, c, grad_row::<S, false>, |at| (x.add(at), dy.add(at), gate, c, dx.add(at), sums));
            }
            Activation::Silu => {
                each_row!(len, c, grad_row::<S, true>, |at| (x.add(at), dy.add(at), gate, c, dx.add(at), sums));
            }
        }
    }
}

#[inline(always)]
unsafe fn add_row<S: Simd, const WHOLE: bool>(
    x: *const f32,
    gate: *const f32,
    residual: *const f32,
    c: usize,
    y: *mut f32,
) {
    unsafe {
        each_vector!(S, c, |k, n| {
            let (x, gate) = (load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(gate.add(k), n));
            store::<S, WHOLE>(y.add(k), S::fma(x, gate, load::<S, WHOLE>(residual.add(k), n)), n);
        });
    }
}

#[inline(always)]
unsafe fn silu_row<S: Simd, const WHOLE: bool>(x: *const f32, gate: *const f32, c: usize, y: *mut f32) {
    unsafe {
        each_vector!(S, c, |k, n| {
            let u = S::mul(load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(gate.add(k), n));
            store::<S, WHOLE>(y.add(k), silu::<S>(u), n);
        });
    }
}

#[inline(always)]
unsafe fn grad_row<S: Simd, const WHOLE: bool, const SILU: bool>(
    x: *const f32,
    dy: *const f32,
    gate: *const f32,
    c: usize,
    dx: *mut f32,
    sums: *mut f32,
) {
    unsafe {
        each_vector!(S, c, |k, n| {
            let (x, gate) = (load::<S, WHOLE>(x.add(k), n), load::<S, WHOLE>(gate.add(k), n));
            let mut du = load::<S, WHOLE>(dy.add(k), n);
            if SILU {
                du = S::mul(du, silu_slope::<S>(S::mul(x, gate)));
            }
            let of_gate = sums.add(k);
            store::<S, WHOLE>(of_gate, S::fma(du, x, load::<S, WHOLE>(of_gate, n)), n);
            store::<S, WHOLE>(dx.add(k), S::mul(du, gate), n);
        });
    }
}
