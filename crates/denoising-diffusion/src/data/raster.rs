//! One image in memory between decoding and batching, and its conversions.
//!
//! Samples keep the bit depth of the source (8 bit, 16 bit or float) until they are written into a batch, so a cached 8-bit image takes one byte per
//! value. Not here: resampling (`resize`).

use super::ImageShape;
use super::order::Mirror;

/// Values of one or more images, channels last.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Samples {
    /// 0 to 255.
    U8(Vec<u8>),
    /// 0 to 65,535.
    U16(Vec<u16>),
    /// 0 to 1.
    F32(Vec<f32>),
}

impl Samples {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => 2 * v.len(),
            Self::F32(v) => 4 * v.len(),
        }
    }

    /// Appends samples of the same depth.
    pub(super) fn append(&mut self, more: Self) {
        match (self, more) {
            (Self::U8(v), Self::U8(more)) => v.extend(more),
            (Self::U16(v), Self::U16(more)) => v.extend(more),
            (Self::F32(v), Self::F32(more)) => v.extend(more),
            (these, more) => debug_assert!(false, "{more:?} appended to {these:?}"),
        }
    }

    /// Writes the image of `shape` that starts at value `start` as `[c, h, w]` in [0, 1].
    pub(super) fn write_unit(&self, start: usize, shape: ImageShape, mirror: Mirror, out: &mut [f32]) {
        let range = start..start + shape.len();
        match self {
            Self::U8(v) => planes(&v[range], shape, mirror, out, |x| f32::from(x) / 255.0),
            Self::U16(v) => planes(&v[range], shape, mirror, out, |x| f32::from(x) / 65_535.0),
            Self::F32(v) => planes(&v[range], shape, mirror, out, |x| x),
        }
    }
}

/// `[h, w, c]` to `[c, h, w]`, converted by `unit`.
fn planes<T: Copy>(source: &[T], shape: ImageShape, mirror: Mirror, out: &mut [f32], unit: impl Fn(T) -> f32) {
    let ImageShape { channels, height, width } = shape;
    for c in 0..channels {
        for y in 0..height {
            let row = &source[y * width * channels..][..width * channels];
            let out = &mut out[(c * height + y) * width..][..width];
            for (x, out) in out.iter_mut().enumerate() {
                let from = match mirror {
                    Mirror::Keep => x,
                    Mirror::LeftRight => width - 1 - x,
                };
                *out = unit(row[from * channels + c]);
            }
        }
    }
}

/// Whether the last channel is transparency, by which the others are weighted when pixels are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpha {
    None,
    Last,
}

/// One image, channels last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raster {
    pub(super) shape: ImageShape,
    pub(super) samples: Samples,
    pub(super) alpha: Alpha,
}

impl Raster {
    /// Converts between grey, grey with alpha, RGB and RGBA. Grey is ITU-R 601 luma with Pillow's integer weights; dropped transparency is composited
    /// on white; added transparency is opaque. Floats come from arrays, whose channels have no such meaning; they are left as they are.
    pub(super) fn with_channels(self, channels: usize) -> Self {
        if channels == self.shape.channels {
            return self;
        }
        let from = self.shape.channels;
        let samples = match &self.samples {
            Samples::U8(v) => Samples::U8(convert(v, from, channels)),
            Samples::U16(v) => Samples::U16(convert(v, from, channels)),
            Samples::F32(_) => return self,
        };
        Self { shape: ImageShape { channels, ..self.shape }, samples, alpha: alpha_of(channels) }
    }
}

/// Whether image files with this number of channels have transparency.
pub(super) fn alpha_of(channels: usize) -> Alpha {
    if channels == 2 || channels == 4 { Alpha::Last } else { Alpha::None }
}

/// Integer samples of image files.
trait Level: Copy + Into<u64> + TryFrom<u64> {
    const MAX: Self;

    /// `value` is within range by construction; otherwise it saturates.
    fn level(value: u64) -> Self {
        Self::try_from(value).unwrap_or(Self::MAX)
    }
}

impl Level for u8 {
    const MAX: Self = u8::MAX;
}

impl Level for u16 {
    const MAX: Self = u16::MAX;
}

/// `v` over white with opacity `a`, rounded to nearest.
fn over_white<T: Level>(v: T, a: T) -> T {
    let (v, a, max) = (v.into(), a.into(), T::MAX.into());
    T::level((v * a + max * (max - a) + max / 2) / max)
}

fn luma<T: Level>([r, g, b]: [T; 3]) -> T {
    T::level((r.into() * 19_595 + g.into() * 38_470 + b.into() * 7_471 + 0x8000) >> 16)
}

fn convert<T: Level>(pixels: &[T], from: usize, to: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(pixels.len() / from * to);
    for pixel in pixels.chunks_exact(from) {
        let (mut rgb, alpha) = match *pixel {
            [l] => ([l; 3], T::MAX),
            [l, a] => ([l; 3], a),
            [r, g, b, a] => ([r, g, b], a),
            _ => ([pixel[0], pixel[1], pixel[2]], T::MAX),
        };
        if to == 1 || to == 3 {
            rgb = rgb.map(|v| over_white(v, alpha));
        }
        match to {
            1 => out.push(luma(rgb)),
            2 => out.extend([luma(rgb), alpha]),
            3 => out.extend(rgb),
            _ => out.extend([rgb[0], rgb[1], rgb[2], alpha]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raster(channels: usize, samples: Vec<u8>) -> Raster {
        Raster {
            shape: ImageShape { channels, height: 1, width: samples.len() / channels },
            samples: Samples::U8(samples),
            alpha: alpha_of(channels),
        }
    }

    #[test]
    fn channels_convert() {
        let cases: [(usize, &[u8], usize, &[u8]); 8] = [
            (1, &[7], 3, &[7, 7, 7]),
            (1, &[7], 4, &[7, 7, 7, 255]),
            (2, &[7, 0], 1, &[255]),
            (3, &[255, 0, 0], 1, &[76]),
            (3, &[9, 9, 9], 2, &[9, 255]),
            (4, &[10, 20, 30, 0], 3, &[255, 255, 255]),
            (4, &[10, 20, 30, 255], 3, &[10, 20, 30]),
            (4, &[0, 100, 200, 128], 3, &[127, 177, 227]),
        ];
        for (from, pixel, to, expected) in cases {
            let converted = raster(from, pixel.to_vec()).with_channels(to);
            assert_eq!(converted.samples, Samples::U8(expected.to_vec()), "{from} to {to}");
            assert_eq!(converted.shape.channels, to);
        }
    }

    #[test]
    fn sixteen_bits_convert_like_eight() {
        let deep = Samples::U16(vec![0, 100 * 257, 200 * 257, 128 * 257]);
        let mut image = raster(4, vec![0; 4]);
        image.samples = deep;
        let Samples::U16(v) = image.with_channels(3).samples else { panic!("depth changed") };
        for (deep, eight) in v.into_iter().zip([127u16, 177, 227]) {
            assert!((i32::from(deep) - i32::from(eight) * 257).abs() <= 129);
        }
    }

    #[test]
    fn planes_transpose_and_mirror() {
        let image = raster(3, vec![0, 51, 102, 153, 204, 255]);
        let mut out = [0.0; 6];
        image.samples.write_unit(0, image.shape, Mirror::Keep, &mut out);
        let expected = [0.0f32, 0.6, 0.2, 0.8, 0.4, 1.0];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
        image.samples.write_unit(0, image.shape, Mirror::LeftRight, &mut out);
        let expected = [0.6f32, 0.0, 0.8, 0.2, 1.0, 0.4];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
