//! Pooling over windows, channels-last, and its gradients: y`[b, i, j, c]` is the largest, or the mean, of the values of x in a window.
//!
//! Positions of a window that lie in the padding are ignored: they are never the largest, and the mean is taken over the others (PyTorch's
//! `count_include_pad=False`).

use crate::par::{Shared, for_each_task};

/// Sizes of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Images.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Rows and columns of the window.
    pub window: usize,
    /// Step between windows, vertically and horizontally.
    pub stride: usize,
    /// Number of padding positions on each side; less than `window`.
    pub padding: usize,
}

/// What is computed from the values in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The largest; NaN if a value is NaN.
    Max,
    /// Their mean.
    Mean,
}

impl PoolShape {
    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        self.out_size(self.height)
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        self.out_size(self.width)
    }

    fn out_size(&self, size: usize) -> usize {
        let padded = size + 2 * self.padding;
        assert!(padded >= self.window && self.stride > 0, "no window of {self:?}");
        (padded - self.window) / self.stride + 1
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_height() * self.out_width() * self.channels
    }

    /// The positions below `size` that window `at` covers along an axis; at least one, because the padding is less than the window.
    fn covered(&self, at: usize, size: usize) -> std::ops::Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(self.padding)..(start + self.window).saturating_sub(self.padding).min(size)
    }

    /// Start indices in x of the pixels of an image that the window in row i and column j covers.
    fn pixels(&self, i: usize, j: usize) -> impl Iterator<Item = usize> {
        let columns = self.covered(j, self.width);
        let (width, channels) = (self.width, self.channels);
        self.covered(i, self.height).flat_map(move |row| columns.clone().map(move |c| (row * width + c) * channels))
    }

    fn check(&self, x: usize, y: usize) {
        assert!(self.padding < self.window && self.stride > 0 && self.channels > 0, "{self:?}");
        assert!(self.height > 0 && self.width > 0, "no pixels in {self:?}");
        assert_eq!(x, self.input_len(), "length of the input of {self:?}");
        assert_eq!(y, self.output_len(), "length of the output of {self:?}");
    }
}

/// y from x; lengths `output_len`, `input_len`.
pub fn pool_forward(shape: &PoolShape, pooling: Pooling, x: &[f32], y: &mut [f32]) {
    shape.check(x.len(), y.len());
    let (rows, columns, channels) = (shape.out_height(), shape.out_width(), shape.channels);
    let out = Shared::new(y);
    for_each_task(shape.batch * rows, |task| {
        let (image, i) = (task / rows, task % rows);
        let x = &x[image * shape.height * shape.width * channels..];
        // SAFETY: every task has its own row of y.
        let line = unsafe { out.part(task * columns * channels..(task + 1) * columns * channels) };
        for (j, y) in line.chunks_exact_mut(channels).enumerate() {
            let mut count = 0;
            for at in shape.pixels(i, j) {
                let x = &x[at..at + channels];
                match (count, pooling) {
                    (0, _) => y.copy_from_slice(x),
                    // A NaN compares as false both ways; it must be taken and stay.
                    (_, Pooling::Max) => each(y, x, |y, x| if y >= x || y.is_nan() { y } else { x }),
                    (_, Pooling::Mean) => each(y, x, |y, x| y + x),
                }
                count += 1;
            }
            if pooling == Pooling::Mean {
                y.iter_mut().for_each(|y| *y /= count as f32);
            }
        }
    });
}

/// dx from x and dy; lengths `input_len`, `input_len`, `output_len`. The gradient of a maximum goes to the first of equal values.
pub fn pool_backward(shape: &PoolShape, pooling: Pooling, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    shape.check(x.len(), dy.len());
    assert_eq!(dx.len(), x.len(), "length of dx");
    let (rows, columns, channels) = (shape.out_height(), shape.out_width(), shape.channels);
    let image_len = shape.height * shape.width * channels;
    let out = Shared::new(dx);
    // Windows overlap, so a task is a whole image.
    for_each_task(shape.batch, |image| {
        let x = &x[image * image_len..][..image_len];
        // SAFETY: every task has its own image.
        let dx = unsafe { out.part(image * image_len..(image + 1) * image_len) };
        dx.fill(0.0);
        for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            let dy = &dy[((image * rows + i) * columns + j) * channels..][..channels];
            match pooling {
                Pooling::Max => {
                    for (c, &dy) in dy.iter().enumerate() {
                        let winner = shape.pixels(i, j).map(|at| at + c).reduce(|best, at| {
                            let keep = x[best] >= x[at] || x[best].is_nan();
                            if keep { best } else { at }
                        });
                        dx[winner.expect("a window covers at least one pixel")] += dy;
                    }
                }
                Pooling::Mean => {
                    let share = 1.0 / shape.pixels(i, j).count() as f32;
                    for at in shape.pixels(i, j) {
                        each(&mut dx[at..at + channels], dy, |dx, dy| dx + share * dy);
                    }
                }
            }
        }
    });
}

fn each(to: &mut [f32], from: &[f32], f: impl Fn(f32, f32) -> f32) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = f(*to, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    /// By definition: calls `f(index of the window in y, index of the position in x)` for every position of every window.
    fn each_position(s: &PoolShape, mut f: impl FnMut(usize, usize)) {
        for (b, i, j) in
            (0..s.batch).flat_map(|b| (0..s.out_height()).flat_map(move |i| (0..s.out_width()).map(move |j| (b, i, j))))
        {
            for (u, v, c) in
                (0..s.window).flat_map(|u| (0..s.window).flat_map(move |v| (0..s.channels).map(move |c| (u, v, c))))
            {
                let (row, column) = (i * s.stride + u, j * s.stride + v);
                let inside = |at: usize, size: usize| at >= s.padding && at - s.padding < size;
                if inside(row, s.height) && inside(column, s.width) {
                    f(
                        ((b * s.out_height() + i) * s.out_width() + j) * s.channels + c,
                        ((b * s.height + row - s.padding) * s.width + column - s.padding) * s.channels + c,
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn pools_as_defined(
            batch in 1usize..4, height in 1usize..9, width in 1usize..9, channels in 1usize..20,
            window in 1usize..4, stride in 1usize..4, padding in 0usize..3, seed: u64,
        ) {
            prop_assume!(padding < window && height.min(width) + 2 * padding >= window);
            let s = PoolShape { batch, height, width, channels, window, stride, padding };
            let (x, dy) = (random(s.input_len(), seed), random(s.output_len(), seed ^ 1));
            let mut largest = vec![f64::NEG_INFINITY; dy.len()];
            let (mut sum, mut count, mut winner) = (vec![0.0; dy.len()], vec![0.0; dy.len()], vec![0; dy.len()]);
            each_position(&s, |at, from| {
                if f64::from(x[from]) > largest[at] {
                    (largest[at], winner[at]) = (x[from].into(), from);
                }
                sum[at] += f64::from(x[from]);
                count[at] += 1.0;
            });
            let mean: Vec<f64> = sum.iter().zip(&count).map(|(sum, count)| sum / count).collect();
            let (mut dmax, mut dmean) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            each_position(&s, |at, from| dmean[from] += f64::from(dy[at]) / count[at]);
            winner.iter().zip(&dy).for_each(|(&from, &dy)| dmax[from] += f64::from(dy));
            for (pooling, y64, dx64) in [(Pooling::Max, &largest, &dmax), (Pooling::Mean, &mean, &dmean)] {
                let (mut y, mut dx) = (vec![7.0; dy.len()], vec![7.0; x.len()]);
                pool_forward(&s, pooling, &x, &mut y);
                pool_backward(&s, pooling, &x, &dy, &mut dx);
                assert_close(&y, y64, 1e-6);
                assert_close(&dx, dx64, 1e-6);
            }
        }
    }

    #[test]
    fn nan_comes_out() {
        let s = PoolShape { batch: 1, height: 3, width: 3, channels: 1, window: 3, stride: 1, padding: 1 };
        for at in 0..9 {
            let mut x = vec![0.5; 9];
            x[at] = f32::NAN;
            for pooling in [Pooling::Max, Pooling::Mean] {
                let mut y = vec![0.0; 9];
                pool_forward(&s, pooling, &x, &mut y);
                let (row, column) = (at / 3, at % 3);
                for (i, y) in y.iter().enumerate() {
                    let near = (i / 3).abs_diff(row) <= 1 && (i % 3).abs_diff(column) <= 1;
                    assert_eq!(y.is_nan(), near, "{pooling:?} at {i}, NaN at {at}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "no pixels")]
    fn no_pixels_are_not_pooled() {
        let shape = PoolShape { batch: 1, height: 0, width: 5, channels: 2, window: 2, stride: 1, padding: 1 };
        pool_forward(&shape, Pooling::Max, &[], &mut vec![0.0; shape.output_len()]);
    }
}
