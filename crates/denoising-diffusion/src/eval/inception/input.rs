//! Images in the form that Inception takes: `[b, 299, 299, 3]` in [-1, 1]. Resizing is bilinear between pixel centres without antialiasing (PyTorch's
//! `interpolate` with `align_corners=False`), as in pytorch-fid.

use rayon::prelude::*;
use thiserror::Error;

/// Rows and columns.
pub const SIDE: usize = 299;

/// How images are converted to three channels: grey is repeated, colours are kept, and transparent pixels are composited on `background`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageInput {
    /// Channels, rows, columns of the images.
    shape: [usize; 3],
    /// Red, green and blue in [0, 1].
    background: [f32; 3],
}

/// Why Inception cannot take images.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InputError {
    #[error(
        "images of {0} channels cannot be shown to Inception, which takes 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha)"
    )]
    Channels(usize),
    #[error("images of {0} x {1} pixels cannot be shown to Inception")]
    Size(usize, usize),
}

impl ImageInput {
    /// For images `[c, h, w]`.
    ///
    /// # Errors
    /// The number of channels is not 1 to 4, or images have no pixels.
    pub fn new([c, h, w]: [usize; 3], background: [f32; 3]) -> Result<Self, InputError> {
        match c {
            _ if h == 0 || w == 0 => Err(InputError::Size(h, w)),
            1..=4 => Ok(Self { shape: [c, h, w], background }),
            other => Err(InputError::Channels(other)),
        }
    }

    /// How images are prepared, in one line, for reports.
    pub fn describe(&self) -> String {
        let [c, h, w] = self.shape;
        let [r, g, b] = self.background;
        let channels = match c {
            1 => "grey repeated three times, ".to_string(),
            2 => format!("grey over ({r}, {g}, {b}) by alpha, repeated three times, "),
            4 => format!("composited over ({r}, {g}, {b}) by alpha, "),
            _ => String::new(),
        };
        format!(
            "8-bit, {channels}{h} x {w} resized to {SIDE} x {SIDE} (bilinear, half-pixel centres, no antialiasing), 2 x - 1"
        )
    }

    /// Converts `images [b, c, h, w]` in [0, 1] to `[b, 299, 299, 3]` in [-1, 1]. Values are first rounded to 8 bits, as they would be in a file.
    pub fn prepare(&self, images: &[f32]) -> Vec<f32> {
        let [c, h, w] = self.shape;
        let len = c * h * w;
        assert!(
            images.len().is_multiple_of(len),
            "{} values are not a whole number of images of {len} values",
            images.len()
        );
        let rows: Vec<Tap> = taps(h);
        let columns: Vec<Tap> = taps(w);
        let mut out = vec![0.0; images.len() / len * SIDE * SIDE * 3];
        out.par_chunks_exact_mut(SIDE * SIDE * 3).zip(images.par_chunks_exact(len)).for_each(|(out, image)| {
            let colour = self.colours(image);
            for (line, row) in out.chunks_exact_mut(SIDE * 3).zip(&rows) {
                let pixel = |row: usize, column: usize, k: usize| colour[(row * w + column) * 3 + k];
                for (to, column) in line.chunks_exact_mut(3).zip(&columns) {
                    for (k, to) in to.iter_mut().enumerate() {
                        let across = |r: usize| {
                            (1.0 - column.weight) * pixel(r, column.low, k) + column.weight * pixel(r, column.high, k)
                        };
                        let value = (1.0 - row.weight) * across(row.low) + row.weight * across(row.high);
                        *to = 2.0 * value - 1.0;
                    }
                }
            }
        });
        out
    }

    /// `[c, h, w]` to `[h, w, 3]`, rounded to 8 bits.
    fn colours(&self, image: &[f32]) -> Vec<f32> {
        let [c, h, w] = self.shape;
        let plane = h * w;
        let rounded = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() / 255.0;
        let mut out = Vec::with_capacity(plane * 3);
        for at in 0..plane {
            for k in 0..3 {
                let colour = image[if c < 3 { 0 } else { k } * plane + at];
                out.push(rounded(if c == 2 || c == 4 {
                    let alpha = image[(c - 1) * plane + at];
                    colour * alpha + self.background[k] * (1.0 - alpha)
                } else {
                    colour
                }));
            }
        }
        out
    }
}

/// The two source positions around a target position, and the weight of the second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

fn taps(size: usize) -> Vec<Tap> {
    let scale = size as f32 / SIDE as f32;
    let tap = |at: usize| {
        let centre = (scale * (at as f32 + 0.5) - 0.5).max(0.0);
        let low = (centre as usize).min(size - 1);
        Tap { low, high: (low + 1).min(size - 1), weight: centre - low as f32 }
    };
    (0..SIDE).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_repeated_and_constants_stay() {
        let input = ImageInput::new([1, 5, 7], [0.0; 3]).unwrap();
        let out = input.prepare(&[51.0 / 255.0; 70]);
        assert_eq!(out.len(), 2 * SIDE * SIDE * 3);
        assert!(out.iter().all(|v| (v - (2.0 * 0.2 - 1.0)).abs() < 1e-6));
    }

    #[test]
    fn alpha_is_composited_on_the_background() {
        // Red at alpha 0.6 over blue.
        let image: Vec<f32> = [1.0, 0.0, 0.0, 0.6].iter().flat_map(|&v| [v; 4]).collect();
        let out = ImageInput::new([4, 2, 2], [0.0, 0.0, 1.0]).unwrap().prepare(&image);
        for (value, expected) in out.iter().zip([0.2, -1.0, -0.2].iter().cycle()) {
            assert!((value - expected).abs() < 1e-6, "{value} instead of {expected}");
        }
    }

    #[test]
    fn an_image_of_the_right_size_is_left_alone() {
        let image: Vec<f32> = (0..3 * SIDE * SIDE).map(|i| (i % 256) as f32 / 255.0).collect();
        let out = ImageInput::new([3, SIDE, SIDE], [0.0; 3]).unwrap().prepare(&image);
        for (i, value) in out.iter().enumerate() {
            let expected = 2.0 * image[i % 3 * SIDE * SIDE + i / 3] - 1.0;
            assert!((value - expected).abs() < 1e-4, "{i}: {value}, {expected}");
        }
    }

    #[test]
    fn other_channels_are_refused() {
        assert_eq!(ImageInput::new([5, 8, 8], [0.0; 3]), Err(InputError::Channels(5)));
        assert_eq!(ImageInput::new([3, 0, 8], [0.0; 3]), Err(InputError::Size(0, 8)));
    }
}
