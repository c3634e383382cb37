//! Separable resampling with Pillow's bilinear (triangle) filter, one axis at a time.
//!
//! Each sample type has its own arithmetic: 8-bit values are averaged in Pillow's fixed point and rounded after each pass, deeper ones in floating
//! point. Not here: the choice of sizes and of the part of an image (`resize`).

/// For each output position of one axis: the first source position and the weights from there on.
pub(super) struct Taps {
    outputs: Vec<(usize, Vec<f64>)>,
}

impl Taps {
    /// Weights of outputs `start..start + count` of an axis that is scaled from `from` to `to` positions.
    pub(super) fn new(from: usize, to: usize, start: usize, count: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let outputs = (start..start + count)
            .map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                // Casts of negative values saturate at 0, which is the desired bound.
                let first = (centre - support + 0.5) as usize;
                let last = ((centre + support + 0.5) as usize).min(from);
                let weights: Vec<f64> =
                    (first..last).map(|j| (1.0 - ((j as f64 - centre + 0.5) / support).abs()).max(0.0)).collect();
                let total: f64 = weights.iter().sum();
                (first, weights.into_iter().map(|w| w / total).collect())
            })
            .collect();
        Self { outputs }
    }

    /// Range of source positions that the outputs read: (first, one past the last).
    pub(super) fn source_range(&self) -> (usize, usize) {
        let first = self.outputs.iter().map(|(first, _)| *first).min();
        let last = self.outputs.iter().map(|(first, w)| first + w.len()).max();
        (first.unwrap_or(0), last.unwrap_or(0))
    }

    fn weights<T: Sample>(&self) -> Vec<(usize, Vec<T::Weight>)> {
        self.outputs.iter().map(|(first, w)| (*first, w.iter().map(|&w| T::weight(w)).collect())).collect()
    }
}

/// A sample type and the arithmetic in which it is averaged.
pub(super) trait Sample: Copy + Default {
    type Weight: Copy;
    type Sum: Copy;
    const ZERO: Self::Sum;
    fn weight(w: f64) -> Self::Weight;
    fn add(sum: Self::Sum, value: Self, weight: Self::Weight) -> Self::Sum;
    fn round(sum: Self::Sum) -> Self;
    /// Multiplied by opacity.
    fn premultiplied(self, alpha: Self) -> Self;
    /// Divided by opacity.
    fn straight(self, alpha: Self) -> Self;
}

/// Fractional bits of Pillow's weights: 32, less 8 for the value and 2 for the sum.
const PRECISION: u32 = 22;

impl Sample for u8 {
    type Weight = i32;
    type Sum = i32;
    const ZERO: i32 = 1 << (PRECISION - 1);

    fn weight(w: f64) -> i32 {
        (0.5 + w * f64::from(1u32 << PRECISION)) as i32
    }

    fn add(sum: i32, value: u8, weight: i32) -> i32 {
        sum + i32::from(value) * weight
    }

    fn round(sum: i32) -> u8 {
        (sum >> PRECISION).clamp(0, 255) as u8
    }

    fn premultiplied(self, alpha: u8) -> u8 {
        // Exact rounded division by 255 for 16-bit products.
        let product = u32::from(self) * u32::from(alpha) + 128;
        (((product >> 8) + product) >> 8) as u8
    }

    fn straight(self, alpha: u8) -> u8 {
        match alpha {
            0 | 255 => self,
            _ => (255 * u32::from(self) / u32::from(alpha)).min(255) as u8,
        }
    }
}

impl Sample for u16 {
    type Weight = f32;
    type Sum = f32;
    const ZERO: f32 = 0.5;

    fn weight(w: f64) -> f32 {
        w as f32
    }

    fn add(sum: f32, value: u16, weight: f32) -> f32 {
        sum + f32::from(value) * weight
    }

    fn round(sum: f32) -> u16 {
        sum as u16
    }

    fn premultiplied(self, alpha: u16) -> u16 {
        ((u64::from(self) * u64::from(alpha) + 32_767) / 65_535) as u16
    }

    fn straight(self, alpha: u16) -> u16 {
        match alpha {
            0 | u16::MAX => self,
            _ => (65_535 * u64::from(self) / u64::from(alpha)).min(65_535) as u16,
        }
    }
}

impl Sample for f32 {
    type Weight = f32;
    type Sum = f32;
    const ZERO: f32 = 0.0;

    fn weight(w: f64) -> f32 {
        w as f32
    }

    fn add(sum: f32, value: f32, weight: f32) -> f32 {
        sum + value * weight
    }

    fn round(sum: f32) -> f32 {
        sum
    }

    fn premultiplied(self, alpha: f32) -> f32 {
        self * alpha
    }

    fn straight(self, alpha: f32) -> f32 {
        if alpha > 0.0 { self / alpha } else { self }
    }
}

/// Scales the width: from rows of `width` pixels to rows of as many pixels as `taps` has outputs.
pub(super) fn horizontal<T: Sample>(pixels: &[T], width: usize, channels: usize, taps: &Taps) -> Vec<T> {
    match channels {
        1 => horizontal_n::<T, 1>(pixels, width, taps),
        2 => horizontal_n::<T, 2>(pixels, width, taps),
        3 => horizontal_n::<T, 3>(pixels, width, taps),
        4 => horizontal_n::<T, 4>(pixels, width, taps),
        _ => horizontal_any(pixels, width, channels, taps),
    }
}

fn horizontal_n<T: Sample, const C: usize>(pixels: &[T], width: usize, taps: &Taps) -> Vec<T> {
    let taps = taps.weights::<T>();
    let mut out = Vec::with_capacity(pixels.len() / width * taps.len());
    for row in pixels.chunks_exact(width * C) {
        for (first, weights) in &taps {
            let mut sums = [T::ZERO; C];
            for (pixel, &weight) in row[first * C..].chunks_exact(C).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum = T::add(*sum, value, weight);
                }
            }
            out.extend(sums.map(T::round));
        }
    }
    out
}

fn horizontal_any<T: Sample>(pixels: &[T], width: usize, channels: usize, taps: &Taps) -> Vec<T> {
    let taps = taps.weights::<T>();
    let mut out = Vec::with_capacity(pixels.len() / width * taps.len());
    for row in pixels.chunks_exact(width * channels) {
        for (first, weights) in &taps {
            for c in 0..channels {
                let sum = weights
                    .iter()
                    .enumerate()
                    .fold(T::ZERO, |sum, (i, &w)| T::add(sum, row[(first + i) * channels + c], w));
                out.push(T::round(sum));
            }
        }
    }
    out
}

/// Scales the height. `pixels` begins at source row `offset`; rows have `row_len` values.
pub(super) fn vertical<T: Sample>(pixels: &[T], row_len: usize, offset: usize, taps: &Taps) -> Vec<T> {
    let mut out = Vec::with_capacity(taps.outputs.len() * row_len);
    let mut sums = vec![T::ZERO; row_len];
    for (first, weights) in taps.weights::<T>() {
        sums.fill(T::ZERO);
        let rows = pixels[(first - offset) * row_len..].chunks_exact(row_len);
        for (row, &weight) in rows.zip(&weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = T::add(*sum, value, weight);
            }
        }
        out.extend(sums.iter().map(|&sum| T::round(sum)));
    }
    out
}
