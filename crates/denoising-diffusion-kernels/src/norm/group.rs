//! Group normalisation (Wu & He 2018) over positions and the channels of a group, fused as RMS normalisation is, and its gradient.
//!
//! For every image and group, with mean and biased variance over the group's values:
//!
//! z = (x - mean) / sqrt(variance + eps) g + b, u = z (1 + scale) + shift, y = activation(u) + residual
//!
//! Statistics are computed again in the backward pass: nothing is saved. They come from two passes over a part of the rows in
//! the cache and are put together in f64 (Chan, Golub & LeVeque 1983), so that a large mean costs no accuracy.

use super::group_rows;
use super::sums::sum_rows;
use crate::activation::Activation;
use crate::par::{ELEMENTS_PER_TASK, Scratch, Shared, for_each_task, task_range};
use crate::simd::Isa;
use std::ops::Range;

/// Most positions of a task.
const ROWS_PER_TASK: usize = 512;

/// Rows of a task's statistics: centres near the means of its columns, and the sums of x - centre and of its square.
const STATS: usize = 3;

/// Sizes of a normalised activation `[batch, positions, channels]`, its groups, and what is added to variances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormShape {
    /// Images.
    pub batch: usize,
    /// Height times width.
    pub positions: usize,
    /// All channels.
    pub channels: usize,
    /// Groups of equally many neighbouring channels.
    pub groups: usize,
    /// Added to variances, inside the root.
    pub eps: f32,
}

impl GroupNormShape {
    /// Values of the activation.
    pub fn len(&self) -> usize {
        self.batch * self.positions * self.channels
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions that a task covers, always of one image.
    fn rows_per_task(&self) -> usize {
        (ELEMENTS_PER_TASK / self.channels.max(1)).clamp(1, ROWS_PER_TASK).min(self.positions.max(1))
    }

    /// Tasks of an image.
    fn blocks(&self) -> usize {
        self.positions.div_ceil(self.rows_per_task())
    }

    /// Image and positions of a task.
    fn task(&self, task: usize) -> (usize, Range<usize>) {
        (task / self.blocks(), task_range(task % self.blocks(), self.rows_per_task(), self.positions))
    }

    /// Where a task's values are.
    fn range(&self, task: usize) -> Range<usize> {
        let (image, rows) = self.task(task);
        let first = image * self.positions;
        (first + rows.start) * self.channels..(first + rows.end) * self.channels
    }

    fn check(&self, x: usize, [g, b]: [usize; 2], scale_shift: Option<usize>, y: usize) {
        let divided = self.groups > 0 && self.channels.is_multiple_of(self.groups);
        assert!(divided, "channels must be whole groups: {self:?}");
        assert_eq!(x, self.len(), "length of x of {self:?}");
        assert_eq!(y, self.len(), "length of y of {self:?}");
        assert_eq!([g, b], [self.channels; 2], "lengths of g and b of {self:?}");
        if let Some(len) = scale_shift {
            assert_eq!(len, self.batch * 2 * self.channels, "length of scale_shift of {self:?}");
        }
    }
}

/// What multiplies and what is added, per channel.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormAffine<'a> {
    /// `[channels]`
    pub g: &'a [f32],
    /// `[channels]`
    pub b: &'a [f32],
    /// `[batch, 2 channels]`, each row scale before shift; without it, both are 0.
    pub scale_shift: Option<&'a [f32]>,
}

/// Gradients that [`group_norm_backward`] fills; lengths as in the forward pass.
#[derive(Debug)]
pub struct GroupNormGrads<'a> {
    /// `[batch, positions, channels]`
    pub x: &'a mut [f32],
    /// `[channels]`
    pub g: &'a mut [f32],
    /// `[channels]`
    pub b: &'a mut [f32],
    /// `[batch, 2 channels]`, present exactly when the forward pass had scale and shift.
    pub scale_shift: Option<&'a mut [f32]>,
}

/// y = activation(norm(x) (1 + scale) + shift) + residual, where norm includes g and b.
///
/// `x`, `residual` and `y` are `[batch, positions, channels]`. Without a residual nothing is added.
pub fn group_norm_forward(
    shape: &GroupNormShape,
    x: &[f32],
    affine: GroupNormAffine<'_>,
    activation: Activation,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    forward_with(Isa::detect(), shape, x, affine, activation, residual, y);
}

/// The gradients of [`group_norm_forward`] from `dy` (`[batch, positions, channels]`) and its inputs; the residual's is `dy`.
pub fn group_norm_backward(
    shape: &GroupNormShape,
    x: &[f32],
    affine: GroupNormAffine<'_>,
    activation: Activation,
    dy: &[f32],
    grads: GroupNormGrads<'_>,
) {
    backward_with(Isa::detect(), shape, x, affine, activation, dy, grads);
}

pub(super) fn forward_with(
    isa: Isa,
    shape: &GroupNormShape,
    x: &[f32],
    affine: GroupNormAffine<'_>,
    activation: Activation,
    residual: Option<&[f32]>,
    y: &mut [f32],
) {
    let (c, given) = (shape.channels, affine.scale_shift.map(<[f32]>::len));
    shape.check(x.len(), [affine.g.len(), affine.b.len()], given, y.len());
    assert!(residual.is_none_or(|r| r.len() == x.len()), "length of the residual of {shape:?}");
    if shape.is_empty() {
        return;
    }
    let maps = maps(isa, shape, x, affine);
    let out = Shared::new(y);
    for_each_task(shape.batch * shape.blocks(), |task| {
        let range = shape.range(task);
        let map = &maps[shape.task(task).0 * MAP * c..][..MAP * c];
        // SAFETY: ranges of different tasks are disjoint.
        unsafe {
            let residual = residual.map(|r| &r[range.clone()]);
            group_rows::forward(isa, &x[range.clone()], c, map, activation, residual, out.part(range));
        }
    });
}

pub(super) fn backward_with(
    isa: Isa,
    shape: &GroupNormShape,
    x: &[f32],
    affine: GroupNormAffine<'_>,
    activation: Activation,
    dy: &[f32],
    grads: GroupNormGrads<'_>,
) {
    let (c, given) = (shape.channels, affine.scale_shift.map(<[f32]>::len));
    shape.check(x.len(), [affine.g.len(), affine.b.len()], given, grads.x.len());
    let given_grads = grads.scale_shift.as_ref().map(|d| d.len());
    shape.check(dy.len(), [grads.g.len(), grads.b.len()], given_grads, grads.x.len());
    assert_eq!(given.is_some(), given_grads.is_some(), "scale_shift and its gradient go together");
    if shape.is_empty() {
        grads.g.fill(0.0);
        grads.b.fill(0.0);
        grads.scale_shift.into_iter().for_each(|d| d.fill(0.0));
        return;
    }
    let maps = maps(isa, shape, x, affine);
    let tasks = shape.batch * shape.blocks();
    // [batch, blocks, 2, channels]: per task, the sums over its positions of du and of du (x - mean).
    let mut sums = Scratch::zeroed(tasks * 2 * c);
    let (dx, out) = (Shared::new(grads.x), Shared::new(&mut sums));
    for_each_task(tasks, |task| {
        let range = shape.range(task);
        let map = &maps[shape.task(task).0 * MAP * c..][..MAP * c];
        // SAFETY: ranges of different tasks are disjoint.
        unsafe {
            let (dx, sums) = (dx.part(range.clone()), out.part(task * 2 * c..(task + 1) * 2 * c));
            let (x, dy) = (&x[range.clone()], &dy[range]);
            sum_rows(x.len(), c, sums, |part, sums| {
                group_rows::outer_grad(
                    isa,
                    &x[part.clone()],
                    &dy[part.clone()],
                    c,
                    map,
                    activation,
                    &mut dx[part],
                    sums,
                );
            });
        }
    });
    let corrections = reduce(shape, affine, &maps, &sums, grads.g, grads.b, grads.scale_shift);
    for_each_task(tasks, |task| {
        let (range, image) = (shape.range(task), shape.task(task).0);
        let map = &maps[image * MAP * c..][..MAP * c];
        // SAFETY: ranges of different tasks are disjoint.
        unsafe {
            let correction = &corrections[image * 2 * c..][..2 * c];
            group_rows::inner_grad(isa, &x[range.clone()], c, map, correction, dx.part(range));
        }
    });
}

/// Rows of an image's map from x to u: mean, gain and shift with u = (x - mean) gain + shift, then 1 / sqrt(variance + eps), and
/// what rounding added to the mean times that.
pub(super) const MAP: usize = 5;

/// Every image's map, `[batch, MAP, channels]`.
fn maps(isa: Isa, shape: &GroupNormShape, x: &[f32], affine: GroupNormAffine<'_>) -> Scratch {
    let (c, blocks) = (shape.channels, shape.blocks());
    let mut parts = Scratch::new(shape.batch * blocks * STATS * c);
    let all = Shared::new(&mut parts);
    for_each_task(shape.batch * blocks, |task| {
        // SAFETY: every task has its own part.
        unsafe {
            let part = all.part(task * STATS * c..(task + 1) * STATS * c);
            let (x, (centre, sums)) = (&x[shape.range(task)], part.split_at_mut(c));
            group_rows::centres(isa, x, centre);
            sum_rows(x.len(), c, sums, |part, sums| group_rows::moments(isa, &x[part], centre, sums));
        }
    });
    let mut maps = Scratch::new(shape.batch * MAP * c);
    for (image, map) in maps.chunks_exact_mut(MAP * c).enumerate() {
        let parts = &parts[image * blocks * STATS * c..][..blocks * STATS * c];
        for group in 0..shape.groups {
            let channels = task_range(group, c / shape.groups, c);
            let (mean, variance) = group_statistics(shape, parts, channels.clone());
            let inverse = 1.0 / (variance + f64::from(shape.eps)).sqrt();
            for k in channels {
                let at = image * 2 * c + k;
                let (scale, shift) = affine.scale_shift.map_or((0.0, 0.0), |m| (m[at].into(), m[at + c].into()));
                let (g, b) = (f64::from(affine.g[k]), f64::from(affine.b[k]));
                // What rounding takes from the mean is given back by the shift.
                let rounded = mean as f32;
                let gain = inverse * g * (1.0 + scale);
                map[k] = rounded;
                map[c + k] = gain as f32;
                map[2 * c + k] = ((f64::from(rounded) - mean) * gain + b * (1.0 + scale) + shift) as f32;
                map[3 * c + k] = inverse as f32;
                map[4 * c + k] = ((f64::from(rounded) - mean) * inverse) as f32;
            }
        }
    }
    maps
}

/// Mean and biased variance of some channels of an image, from its tasks' statistics.
fn group_statistics(shape: &GroupNormShape, parts: &[f32], channels: Range<usize>) -> (f64, f64) {
    let c = shape.channels;
    // Of every task and channel: how many values, their mean, and the sum of squares about it.
    let columns = || {
        parts.chunks_exact(STATS * c).enumerate().flat_map(|(task, part)| {
            let rows = shape.task(task).1.len() as f64;
            channels.clone().map(move |k| {
                let [centre, sum, squares] = [part[k], part[c + k], part[2 * c + k]].map(f64::from);
                (rows, centre + sum / rows, squares - sum * sum / rows)
            })
        })
    };
    let total = (shape.positions * channels.len()) as f64;
    let mean = columns().map(|(rows, mean, _)| rows * mean).sum::<f64>() / total;
    let squares = columns().map(|(rows, its_mean, squares)| squares + rows * (its_mean - mean).powi(2)).sum::<f64>();
    // Rounding may leave less than nothing; a NaN stays.
    let variance = squares / total;
    (mean, if variance < 0.0 { 0.0 } else { variance })
}

/// From the tasks' sums, with P the sum of du and Q that of du (x - mean) / sqrt(variance + eps) over an image's positions:
/// dshift = P, dscale = Q g + P b, and summed over the batch db = P (1 + scale), dg = Q (1 + scale).
///
/// Returns, `[batch, 2, channels]`, what [`group_rows::inner_grad`] subtracts.
fn reduce(
    shape: &GroupNormShape,
    affine: GroupNormAffine<'_>,
    maps: &[f32],
    sums: &[f32],
    dg: &mut [f32],
    db: &mut [f32],
    mut dscale_shift: Option<&mut [f32]>,
) -> Scratch {
    let c = shape.channels;
    let (mut total_g, mut total_b) = (vec![0.0f64; c], vec![0.0f64; c]);
    let mut corrections = Scratch::new(shape.batch * 2 * c);
    for (image, sums) in sums.chunks_exact(shape.blocks() * 2 * c).enumerate() {
        let mut totals = vec![0.0f64; 2 * c];
        for task in sums.chunks_exact(2 * c) {
            totals.iter_mut().zip(task).for_each(|(total, &part)| *total += f64::from(part));
        }
        let map = |row: usize, k: usize| f64::from(maps[(image * MAP + row) * c + k]);
        let (p, q) = totals.split_at_mut(c);
        let row = image * 2 * c;
        for k in 0..c {
            q[k] = q[k] * map(3, k) + p[k] * map(4, k);
            let scale = affine.scale_shift.map_or(0.0, |m| f64::from(m[row + k]));
            total_g[k] += q[k] * (1.0 + scale);
            total_b[k] += p[k] * (1.0 + scale);
            if let Some(d) = dscale_shift.as_deref_mut() {
                d[row + k] = (q[k] * f64::from(affine.g[k]) + p[k] * f64::from(affine.b[k])) as f32;
                d[row + c + k] = p[k] as f32;
            }
        }
        for group in 0..shape.groups {
            let channels = task_range(group, c / shape.groups, c);
            let count = (shape.positions * channels.len()) as f64;
            // The gain is g (1 + scale) times the inverse deviation, which is the factor that dx has, too.
            let mean_of = |sums: &[f64]| channels.clone().map(|k| map(1, k) * sums[k]).sum::<f64>() / count;
            let (of_one, of_x) = (mean_of(p), mean_of(q));
            for k in channels.clone() {
                corrections[row + k] = (of_one + of_x * map(4, k)) as f32;
                corrections[row + c + k] = (of_x * map(3, k)) as f32;
            }
        }
    }
    dg.iter_mut().zip(total_g).for_each(|(d, total)| *d = total as f32);
    db.iter_mut().zip(total_b).for_each(|(d, total)| *d = total as f32);
    corrections
}
