//! One axis of an activation halved or doubled, and the gradients. Data are `[outer, n, inner]`: before the axis, along it and after it.
//!
//! Halving takes the mean of each pair of neighbours. Doubling interpolates linearly between centres (PyTorch's `align_corners = False`): new values
//! lie at one quarter and three quarters between neighbours, and the ends are repeated. Both are linear, and their gradients are the transposes:
//!
//! - halved: `y[i] = (x[2 i] + x[2 i + 1]) / 2`
//! - doubled: `y[2 i] = 3/4 x[i] + 1/4 x[max(i - 1, 0)]`, `y[2 i + 1] = 3/4 x[i] + 1/4 x[min(i + 1, n - 1)]`

use crate::par::{ELEMENTS_PER_TASK, Shared, for_each_task, task_range};
use crate::simd::{Isa, simd_fn};

/// How an axis is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AxisResize {
    /// The mean of each pair; the axis must have even length.
    HalveByMean,
    /// Linear interpolation.
    DoubleLinearly,
}

impl AxisResize {
    /// The new length of an axis of length `n`.
    pub fn length(self, n: usize) -> usize {
        match self {
            AxisResize::HalveByMean => n / 2,
            AxisResize::DoubleLinearly => 2 * n,
        }
    }
}

/// Sizes before resizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisShape {
    /// Product of the dimensions before the axis.
    pub outer: usize,
    /// Length of the axis, at least 1, and even if it is to be halved.
    pub n: usize,
    /// Product of the dimensions after the axis.
    pub inner: usize,
}

impl AxisShape {
    /// Values before resizing.
    pub fn len(&self) -> usize {
        self.outer * self.n * self.inner
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values after resizing.
    fn resized(&self, resize: AxisResize) -> usize {
        let divided = resize != AxisResize::HalveByMean || self.n.is_multiple_of(2);
        assert!(divided, "the axis of {self:?} cannot be halved");
        self.outer * resize.length(self.n) * self.inner
    }
}

/// `x [outer, n, inner]` to `y [outer, n / 2 or 2 n, inner]`.
pub fn resize_axis(shape: &AxisShape, resize: AxisResize, x: &[f32], y: &mut [f32]) {
    forward_with(Isa::detect(), shape, resize, x, y);
}

/// The gradient of [`resize_axis`]: `dy` like `y` to `dx` like `x`.
pub fn resize_axis_backward(shape: &AxisShape, resize: AxisResize, dy: &[f32], dx: &mut [f32]) {
    backward_with(Isa::detect(), shape, resize, dy, dx);
}

fn forward_with(isa: Isa, shape: &AxisShape, resize: AxisResize, x: &[f32], y: &mut [f32]) {
    assert_eq!((x.len(), y.len()), (shape.len(), shape.resized(resize)), "lengths of x and y of {shape:?}");
    match resize {
        AxisResize::HalveByMean => for_each_row(shape, shape.n / 2, y, |first, i, y| {
            // SAFETY: rows of `inner` values.
            unsafe { sum(isa, [row(shape, x, first, 2 * i), row(shape, x, first, 2 * i + 1)], 0.5, y) }
        }),
        AxisResize::DoubleLinearly => for_each_row(shape, 2 * shape.n, y, |first, i, y| {
            let near = i / 2;
            let far = if i % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(shape.n - 1) };
            // SAFETY: as above.
            unsafe { between(isa, row(shape, x, first, near), row(shape, x, first, far), y) }
        }),
    }
}

fn backward_with(isa: Isa, shape: &AxisShape, resize: AxisResize, dy: &[f32], dx: &mut [f32]) {
    assert_eq!((dx.len(), dy.len()), (shape.len(), shape.resized(resize)), "lengths of dx and dy of {shape:?}");
    match resize {
        AxisResize::HalveByMean => {
            let halved = AxisShape { n: shape.n / 2, ..*shape };
            for_each_row(shape, shape.n, dx, |first, i, dx| {
                // SAFETY: as in `forward_with`.
                unsafe { half(isa, row(&halved, dy, first, i / 2), dx) }
            });
        }
        AxisResize::DoubleLinearly => {
            let doubled = AxisShape { n: 2 * shape.n, ..*shape };
            for_each_row(shape, shape.n, dx, |first, i, dx| {
                let at = |i: usize| row(&doubled, dy, first, i);
                let (before, behind) = ((2 * i).saturating_sub(1), (2 * i + 2).min(doubled.n - 1));
                // SAFETY: as in `forward_with`.
                unsafe { gathered(isa, [at(2 * i), at(2 * i + 1)], [at(before), at(behind)], dx) }
            });
        }
    }
}

/// Row `i` along the axis of the `outer`-th part.
fn row<'a>(shape: &AxisShape, values: &'a [f32], outer: usize, i: usize) -> &'a [f32] {
    &values[(outer * shape.n + i) * shape.inner..][..shape.inner]
}

/// Runs `f(outer, i, row)` for the rows of `out [outer, n, inner]`, in tasks.
fn for_each_row(shape: &AxisShape, n: usize, out: &mut [f32], f: impl Fn(usize, usize, &mut [f32]) + Sync + Send) {
    if out.is_empty() {
        return;
    }
    let (rows, inner) = (shape.outer * n, shape.inner);
    let size = (ELEMENTS_PER_TASK / inner).max(1);
    let out = Shared::new(out);
    for_each_task(rows.div_ceil(size), |task| {
        for at in task_range(task, size, rows) {
            // SAFETY: rows are disjoint.
            f(at / n, at % n, unsafe { out.part(at * inner..(at + 1) * inner) });
        }
    });
}

simd_fn! {
    /// y = (a + b) factor
    unsafe fn sum<S>(rows: [&[f32]; 2], factor: f32, y: &mut [f32]) {
        let (len, a, b, y) = (y.len(), rows[0].as_ptr(), rows[1].as_ptr(), y.as_mut_ptr());
        let mut k = 0;
        while k < len {
            let n = len - k;
            S::store_n(y.add(k), S::mul(S::add(S::load_n(a.add(k), n), S::load_n(b.add(k), n)), S::splat(factor)), n);
            k += S::LANES;
        }
    }
}

simd_fn! {
    /// y = 3/4 near + 1/4 far
    unsafe fn between<S>(near: &[f32], far: &[f32], y: &mut [f32]) {
        let (len, near, far, y) = (y.len(), near.as_ptr(), far.as_ptr(), y.as_mut_ptr());
        let mut k = 0;
        while k < len {
            let n = len - k;
            let quarter = S::mul(S::load_n(far.add(k), n), S::splat(0.25));
            S::store_n(y.add(k), S::fma(S::load_n(near.add(k), n), S::splat(0.75), quarter), n);
            k += S::LANES;
        }
    }
}

simd_fn! {
    /// dx = dy / 2
    unsafe fn half<S>(dy: &[f32], dx: &mut [f32]) {
        let (len, dy, dx) = (dx.len(), dy.as_ptr(), dx.as_mut_ptr());
        let mut k = 0;
        while k < len {
            let n = len - k;
            S::store_n(dx.add(k), S::mul(S::load_n(dy.add(k), n), S::splat(0.5)), n);
            k += S::LANES;
        }
    }
}

simd_fn! {
    /// dx = 3/4 (near[0] + near[1]) + 1/4 (far[0] + far[1])
    unsafe fn gathered<S>(near: [&[f32]; 2], far: [&[f32]; 2], dx: &mut [f32]) {
        let (len, dx) = (dx.len(), dx.as_mut_ptr());
        let (a, b, c, d) = (near[0].as_ptr(), near[1].as_ptr(), far[0].as_ptr(), far[1].as_ptr());
        let mut k = 0;
        while k < len {
            let n = len - k;
            let near = S::add(S::load_n(a.add(k), n), S::load_n(b.add(k), n));
            let far = S::add(S::load_n(c.add(k), n), S::load_n(d.add(k), n));
            S::store_n(dx.add(k), S::fma(near, S::splat(0.75), S::mul(far, S::splat(0.25))), n);
            k += S::LANES;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, one_and_two_threads_agree, random, wide};

    /// Interpolation by definition: source coordinates `(i + 1/2) / 2 - 1/2`, clamped to the ends.
    fn exact(shape: &AxisShape, resize: AxisResize, x: &[f64]) -> Vec<f64> {
        let AxisShape { outer, n, inner } = *shape;
        let m = resize.length(n);
        let at = |o: usize, i: usize, k: usize| x[(o * n + i) * inner + k];
        let value = |o: usize, i: usize, k: usize| {
            let source = ((i as f64 + 0.5) * n as f64 / m as f64 - 0.5).clamp(0.0, (n - 1) as f64);
            let (below, part) = (source.floor() as usize, source.fract());
            at(o, below, k) * (1.0 - part) + at(o, (below + 1).min(n - 1), k) * part
        };
        let all = (0..outer).flat_map(|o| (0..m).flat_map(move |i| (0..inner).map(move |k| (o, i, k))));
        all.map(|(o, i, k)| value(o, i, k)).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_its_definition_and_is_the_transpose_backward(
            outer in 1usize..4, half in 1usize..6, odd: bool, inner in 1usize..40, seed: u64,
        ) {
            for resize in [AxisResize::HalveByMean, AxisResize::DoubleLinearly] {
                let n = if odd && resize == AxisResize::DoubleLinearly { 2 * half - 1 } else { 2 * half };
                let shape = AxisShape { outer, n, inner };
                let (x, dy) = (random(shape.len(), seed), random(shape.resized(resize), seed ^ 1));
                for isa in Isa::all() {
                    let (mut y, mut dx) = (vec![7.0; dy.len()], vec![7.0; x.len()]);
                    forward_with(isa, &shape, resize, &x, &mut y);
                    assert_close(&y, &exact(&shape, resize, &wide(&x)), 2e-7);
                    backward_with(isa, &shape, resize, &dy, &mut dx);
                    // <y, dy> = <x, dx> for every x and dy.
                    let product = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                    };
                    let (left, right) = (product(&y, &dy), product(&x, &dx));
                    prop_assert!((left - right).abs() < 1e-6 * (1.0 + dy.len() as f64), "{left} {right}");
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let shape = AxisShape { outer: 7, n: 40, inner: 300 };
        let x = random(shape.len(), 1);
        one_and_two_threads_agree(|| {
            let (mut y, mut dx) = (vec![0.0; 2 * x.len()], vec![0.0; x.len()]);
            resize_axis(&shape, AxisResize::DoubleLinearly, &x, &mut y);
            resize_axis_backward(&shape, AxisResize::DoubleLinearly, &y, &mut dx);
            let mut z = vec![0.0; x.len() / 2];
            resize_axis(&shape, AxisResize::HalveByMean, &dx, &mut z);
            resize_axis_backward(&shape, AxisResize::HalveByMean, &z, &mut dx);
            [y, dx, z].concat()
        });
    }
}
