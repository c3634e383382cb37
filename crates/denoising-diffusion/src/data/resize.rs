//! Antialiased resizing, equal to torchvision's `Resize` and `CenterCrop` on PIL images.
//!
//! The filter is Pillow's bilinear (triangle) one, whose support is widened by the scale when shrinking. 8-bit images go through Pillow's fixed-point
//! arithmetic (weights of 22 fractional bits, horizontal pass first, rounded to 8 bits between the passes) and agree bit for bit with Pillow before
//! version 13, which sometimes takes the vertical pass first. 16-bit and float images use the same weights in floating point. With transparency,
//! colours are averaged weighted by alpha, as in Pillow. Only pixels inside the crop are computed.

use super::raster::{Alpha, Raster, Samples};
use super::resample::{Sample, Taps, horizontal, vertical};
use super::{ImageShape, ImageSize, ResizePolicy};

/// Scaled size of the whole image, and the window of it that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    scaled: ImageSize,
    top: usize,
    left: usize,
    window: ImageSize,
}

/// Half of `excess`, rounded as by Python's `round`: halves go to the even neighbour.
fn half_to_even(excess: usize) -> usize {
    match excess % 4 {
        3 => excess / 2 + 1,
        _ => excess / 2,
    }
}

/// The smallest scaled size that covers `target` with the aspect ratio of `from`; the longer side is rounded down, as in torchvision.
fn covering(from: ImageSize, target: ImageSize) -> ImageSize {
    if target.width * from.height >= target.height * from.width {
        ImageSize { height: target.width * from.height / from.width, width: target.width }
    } else {
        ImageSize { height: target.height, width: target.height * from.width / from.height }
    }
}

/// The largest scaled size inside `target` with the aspect ratio of `from`, at least one pixel.
fn inside(from: ImageSize, target: ImageSize) -> ImageSize {
    if target.width * from.height <= target.height * from.width {
        ImageSize { height: (target.width * from.height / from.width).max(1), width: target.width }
    } else {
        ImageSize { height: target.height, width: (target.height * from.width / from.height).max(1) }
    }
}

fn plan(from: ImageSize, target: ImageSize, policy: ResizePolicy) -> Plan {
    match policy {
        ResizePolicy::Crop => {
            let scaled = covering(from, target);
            Plan {
                scaled,
                top: half_to_even(scaled.height - target.height),
                left: half_to_even(scaled.width - target.width),
                window: target,
            }
        }
        ResizePolicy::Stretch | ResizePolicy::Pad => {
            let scaled = match policy {
                ResizePolicy::Pad => inside(from, target),
                _ => target,
            };
            Plan { scaled, top: 0, left: 0, window: scaled }
        }
    }
}

/// Brings `image` to the size `target`.
pub(super) fn fit(image: Raster, target: ImageSize, policy: ResizePolicy) -> Raster {
    let (from, alpha) = (image.shape, image.alpha);
    if from.size() == target {
        return image;
    }
    let plan = plan(from.size(), target, policy);
    let samples = match image.samples {
        Samples::U8(v) => Samples::U8(resample(v, from, alpha, plan, target)),
        Samples::U16(v) => Samples::U16(resample(v, from, alpha, plan, target)),
        Samples::F32(v) => Samples::F32(resample(v, from, alpha, plan, target)),
    };
    Raster { shape: resized(from, target), samples, alpha }
}

/// Brings every image of an array to the size `target`: `[n, h, w, c]` in and out. No channel is treated as transparency.
pub(super) fn fit_array(
    samples: Samples,
    from: ImageShape,
    target: ImageSize,
    policy: ResizePolicy,
) -> (Samples, ImageShape) {
    fn all<T: Sample>(values: &[T], from: ImageShape, plan: Plan, target: ImageSize) -> Vec<T> {
        values
            .chunks_exact(from.len())
            .flat_map(|image| resample(image.to_vec(), from, Alpha::None, plan, target))
            .collect()
    }
    if from.size() == target {
        return (samples, from);
    }
    let plan = plan(from.size(), target, policy);
    let samples = match samples {
        Samples::U8(v) => Samples::U8(all(&v, from, plan, target)),
        Samples::U16(v) => Samples::U16(all(&v, from, plan, target)),
        Samples::F32(v) => Samples::F32(all(&v, from, plan, target)),
    };
    (samples, resized(from, target))
}

fn resized(from: ImageShape, target: ImageSize) -> ImageShape {
    ImageShape { channels: from.channels, height: target.height, width: target.width }
}

fn resample<T: Sample>(mut pixels: Vec<T>, shape: ImageShape, alpha: Alpha, plan: Plan, target: ImageSize) -> Vec<T> {
    let scales = plan.scaled != shape.size();
    let weighted = scales && alpha == Alpha::Last;
    if weighted {
        for pixel in pixels.chunks_exact_mut(shape.channels) {
            if let [colours @ .., a] = pixel {
                colours.iter_mut().for_each(|v| *v = v.premultiplied(*a));
            }
        }
    }
    let rows = Taps::new(shape.height, plan.scaled.height, plan.top, plan.window.height);
    let columns = Taps::new(shape.width, plan.scaled.width, plan.left, plan.window.width);
    // Only the source rows that some output row reads.
    let (first, last) = rows.source_range();
    let row_len = shape.width * shape.channels;
    let narrow = horizontal(&pixels[first * row_len..last * row_len], shape.width, shape.channels, &columns);
    let mut out = vertical(&narrow, plan.window.width * shape.channels, first, &rows);
    if weighted {
        for pixel in out.chunks_exact_mut(shape.channels) {
            if let [colours @ .., a] = pixel {
                colours.iter_mut().for_each(|v| *v = v.straight(*a));
            }
        }
    }
    if plan.window == target {
        return out;
    }
    pad(&out, plan.window, target, shape.channels)
}

/// Centres `pixels` on a canvas of zeros.
fn pad<T: Sample>(pixels: &[T], from: ImageSize, to: ImageSize, channels: usize) -> Vec<T> {
    let mut canvas = vec![T::default(); to.height * to.width * channels];
    let (top, left) = ((to.height - from.height) / 2, (to.width - from.width) / 2);
    for (y, row) in pixels.chunks_exact(from.width * channels).enumerate() {
        let start = ((top + y) * to.width + left) * channels;
        canvas[start..start + row.len()].copy_from_slice(row);
    }
    canvas
}

#[cfg(test)]
mod tests {
    use super::super::raster::alpha_of;
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        policy: ResizePolicy,
        height: usize,
        width: usize,
        channels: usize,
        target: [usize; 2],
        pixels: Vec<u8>,
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    /// The test image of `golden_resize.py`.
    fn pattern(height: usize, width: usize, channels: usize) -> Raster {
        let mut samples = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..channels {
                    let v = 7 * x * x + 13 * x * y + 29 * y + 101 * c + 5 * c * x;
                    samples.push((v % 256) as u8);
                }
            }
        }
        Raster {
            shape: ImageShape { channels, height, width },
            samples: Samples::U8(samples),
            alpha: alpha_of(channels),
        }
    }

    #[test]
    fn eight_bit_results_equal_pillow_bit_for_bit() {
        let golden: Golden = serde_json::from_str(include_str!("../../tests/golden/resize.json")).unwrap();
        assert!(golden.cases.len() >= 8);
        for case in golden.cases {
            let [height, width] = case.target;
            let image = pattern(case.height, case.width, case.channels);
            let fitted = fit(image, ImageSize { height, width }, case.policy);
            assert_eq!(fitted.samples, Samples::U8(case.pixels), "{}", case.name);
        }
    }

    #[test]
    fn deeper_samples_agree_with_eight_bits() {
        let target = ImageSize { height: 9, width: 14 };
        for channels in [1, 2, 3, 4, 5] {
            let mut eight = pattern(31, 40, channels);
            eight.alpha = Alpha::None;
            let Samples::U8(levels) = eight.samples.clone() else { panic!("not 8 bit") };
            let mut sixteen = eight.clone();
            sixteen.samples = Samples::U16(levels.iter().map(|&v| u16::from(v) * 257).collect());
            let mut float = eight.clone();
            float.samples = Samples::F32(levels.iter().map(|&v| f32::from(v) / 255.0).collect());
            let unit = |image: Raster| {
                let image = fit(image, target, ResizePolicy::Crop);
                let mut out = vec![0.0; image.shape.len()];
                image.samples.write_unit(0, image.shape, super::super::order::Mirror::Keep, &mut out);
                out
            };
            let (eight, sixteen, float) = (unit(eight), unit(sixteen), unit(float));
            for ((a, b), c) in eight.iter().zip(&sixteen).zip(&float) {
                assert!((a - c).abs() < 1.1 / 255.0, "8 bit {a}, float {c}");
                assert!((b - c).abs() < 1.1 / 65_535.0, "16 bit {b}, float {c}");
            }
        }
    }

    #[test]
    fn transparent_pixels_do_not_bleed() {
        // Left half opaque black, right half transparent white: no grey fringe may appear.
        let mut image = pattern(4, 8, 4);
        image.samples =
            Samples::U8((0..32).flat_map(|i| if i % 8 < 4 { [0, 0, 0, 255] } else { [255, 255, 255, 0] }).collect());
        let Samples::U8(v) = fit(image, ImageSize { height: 2, width: 3 }, ResizePolicy::Stretch).samples else {
            panic!("depth changed")
        };
        assert_eq!(&v[4..7], [0, 0, 0]);
        assert!((1..255).contains(&v[7]), "edge alpha {}", v[7]);
    }

    #[test]
    fn halves_round_to_even() {
        let halves: Vec<usize> = (0..8).map(half_to_even).collect();
        assert_eq!(halves, [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn padding_centres_on_zeros() {
        let mut image = pattern(2, 4, 1);
        image.samples = Samples::U8(vec![200; 8]);
        let padded = fit(image, ImageSize::square(4), ResizePolicy::Pad);
        let (empty, full) = ([0; 4], [200; 4]);
        assert_eq!(padded.samples, Samples::U8([empty, full, full, empty].concat()));
    }

    proptest! {
        #[test]
        fn any_image_fits_any_size(
            h in 1usize..70, w in 1usize..70, th in 1usize..40, tw in 1usize..40, c in 1usize..6,
            policy in prop::sample::select(vec![ResizePolicy::Crop, ResizePolicy::Stretch, ResizePolicy::Pad]),
        ) {
            let mut image = pattern(h, w, c);
            image.samples = Samples::U8(vec![113; h * w * c]);
            image.alpha = Alpha::None;
            let target = ImageSize { height: th, width: tw };
            let fitted = fit(image, target, policy);
            prop_assert_eq!(fitted.shape.size(), target);
            let Samples::U8(v) = fitted.samples else { panic!("depth changed") };
            prop_assert_eq!(v.len(), th * tw * c);
            // A flat image stays flat; padding adds zeros only.
            prop_assert!(v.iter().all(|&v| v == 113 || (v == 0 && policy == ResizePolicy::Pad)));
            prop_assert!(v.contains(&113));
        }
    }
}
