//! Magnitude-preserving operations: rows brought to one length, weighted sums and joins, gates with SiLU; and one axis halved or doubled.

use burn_flex::FlexTensor;
use denoising_diffusion_kernels::mix::{Parts, add_scaled, join_scaled, join_scaled_backward, scale};
use denoising_diffusion_kernels::norm::{
    UnitRows, gated_silu_backward, gated_silu_forward, unit_rows_backward, unit_rows_forward,
};
use denoising_diffusion_kernels::resize::{AxisResize, AxisShape, resize_axis, resize_axis_backward};

use super::norm::shape_of;
use super::{Kernel, dims, slice, tensor};

/// `x [b, h, w, c]`.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) factor: f32,
    pub(super) floor: f32,
}

/// `x [b, h, w, c]`, `gate [b, c]`.
#[derive(Clone, Debug)]
pub(super) struct GatedSilu;

/// `a` and `b` `[b, h, w, c]`; `b` is multiplied.
#[derive(Clone, Debug)]
pub(super) struct AddScaled(pub(super) f32);

/// `[b, h, w, c]` and `[b, h, w, d]`, each multiplied.
#[derive(Clone, Debug)]
pub(super) struct JoinScaled(pub(super) [f32; 2]);

/// `x [outer, n, middle, c]`; resizes the second axis.
#[derive(Clone, Debug)]
pub(super) struct Resize(pub(super) AxisResize);

impl Unit {
    fn rows(&self, x: &FlexTensor) -> UnitRows {
        UnitRows { len: dims::<4>(x)[3], factor: self.factor, floor: self.floor }
    }
}

impl Kernel<1> for Unit {
    type Saved = FlexTensor;

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Self::Saved) {
        (tensor(dims::<4>(&x), |y| unit_rows_forward(&self.rows(&x), slice(&x), y)), x)
    }

    fn saved(&self, [x]: [FlexTensor; 1]) -> Self::Saved {
        x
    }

    fn backward(&self, x: Self::Saved, dy: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(tensor(dims::<4>(&x), |dx| unit_rows_backward(&self.rows(&x), slice(&x), slice(&dy), dx)))]
    }
}

impl Kernel<2> for GatedSilu {
    type Saved = [FlexTensor; 2];

    fn forward(&self, [x, gate]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        (tensor(dims::<4>(&x), |y| gated_silu_forward(&shape_of(&x), slice(&x), slice(&gate), y)), [x, gate])
    }

    fn saved(&self, inputs: [FlexTensor; 2]) -> Self::Saved {
        inputs
    }

    fn backward(&self, [x, gate]: Self::Saved, dy: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let mut dgate = None;
        let dx = tensor(dims::<4>(&x), |dx| {
            dgate = Some(tensor(dims::<2>(&gate), |dgate| {
                gated_silu_backward(&shape_of(&x), slice(&x), slice(&gate), slice(&dy), dx, dgate);
            }));
        });
        [Some(dx), dgate]
    }
}

impl Kernel<2> for AddScaled {
    type Saved = ();

    fn forward(&self, [a, b]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        (tensor(dims::<4>(&a), |y| add_scaled(slice(&a), slice(&b), self.0, y)), ())
    }

    fn backward(&self, (): Self::Saved, dy: FlexTensor, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let db = super::when(wanted[1], || tensor(dims::<4>(&dy), |db| scale(slice(&dy), self.0, db)));
        [Some(dy), db]
    }
}

impl JoinScaled {
    fn parts(&self, [b, h, w, _]: [usize; 4], channels: [usize; 2]) -> Parts {
        Parts { rows: b * h * w, channels, factors: self.0 }
    }
}

impl Kernel<2> for JoinScaled {
    /// Channels of both.
    type Saved = [usize; 2];

    fn forward(&self, [first, second]: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
        let shape @ [b, h, w, c] = dims::<4>(&first);
        let channels = [c, dims::<4>(&second)[3]];
        let whole = tensor([b, h, w, channels[0] + channels[1]], |y| {
            join_scaled(&self.parts(shape, channels), slice(&first), slice(&second), y);
        });
        (whole, channels)
    }

    fn backward(&self, channels: Self::Saved, dy: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let shape @ [b, h, w, _] = dims::<4>(&dy);
        let mut second = None;
        let first = tensor([b, h, w, channels[0]], |first| {
            second = Some(tensor([b, h, w, channels[1]], |second| {
                join_scaled_backward(&self.parts(shape, channels), slice(&dy), first, second);
            }));
        });
        [Some(first), second]
    }
}

impl Kernel<1> for Resize {
    /// The shape of `x`.
    type Saved = [usize; 4];

    fn forward(&self, [x]: [FlexTensor; 1]) -> (FlexTensor, Self::Saved) {
        let from @ [outer, n, middle, c] = dims::<4>(&x);
        let to = [outer, self.0.length(n), middle, c];
        (tensor(to, |y| resize_axis(&along(from), self.0, slice(&x), y)), from)
    }

    fn backward(&self, from: Self::Saved, dy: FlexTensor, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(tensor(from, |dx| resize_axis_backward(&along(from), self.0, slice(&dy), dx)))]
    }
}

fn along([outer, n, middle, c]: [usize; 4]) -> AxisShape {
    AxisShape { outer, n, inner: middle * c }
}
