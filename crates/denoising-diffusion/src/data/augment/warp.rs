//! Resampling of an image under an affine map, as in EDM: onto a grid twice as fine, with the low-pass filter of the symlet-6 wavelet; there
//! bilinearly; and back, with the adjoint of the first step. The filter is orthogonal to its own even shifts, so that without a map the last step
//! undoes the first. Bilinear interpolation blurs most what is near the highest frequency of its grid: of the fine grid, the image has only the lower
//! half. What the output cannot resolve is filtered away instead of folded.
//!
//! On the fine grid, pixel `i` is at `2 i`. The filter's centre of mass is 0.098 fine steps after its centre tap, which cancels unless the map turns:
//! turned by 180 degrees, the image lies 0.098 pixels off in x and y. EDM's does so too, and it is kept.
//!
//! One thing differs from EDM's code: there the image is continued by one reflection at most, and by zeros beyond, which shows in rare draws, and
//! always in images of a few pixels. Here the reflections go on.

/// The symlet-6 low-pass filter (Daubechies 1992, Ten Lectures on Wavelets, table 6.3), of norm 1.
const SYM6: [f32; 12] = [
    0.015404109,
    0.003490712,
    -0.117990114,
    -0.048311744,
    0.49105594,
    0.78764117,
    0.33792943,
    -0.07263752,
    -0.021060292,
    0.0447249,
    0.0017677118,
    -0.0078007085,
];
/// The tap at a sample's own place.
const CENTRE: usize = 5;
/// Pixels before and after `m` on which the fine samples `2 m` and `2 m + 1` depend.
const REACH: usize = 3;
/// The weights in `2 m` and in `2 m + 1` of the pixels from `m - REACH` to `m + REACH`.
const EVEN: [f32; 2 * REACH + 1] = weights(0);
const ODD: [f32; 2 * REACH + 1] = weights(1);

/// Pixel `i` has in fine sample `j` the tap `j - 2 i + CENTRE`.
const fn weights(odd: usize) -> [f32; 2 * REACH + 1] {
    let mut weights = [0.0; 2 * REACH + 1];
    let mut n = 0;
    while n < weights.len() {
        let (first, shift) = (odd + CENTRE + 2 * REACH, 2 * n);
        if shift <= first && first - shift < SYM6.len() {
            weights[n] = SYM6[first - shift];
        }
        n += 1;
    }
    weights
}

/// Which sides are swapped before the affine map.
#[derive(Clone, Copy)]
pub(super) struct Flips {
    pub x: bool,
    pub y: bool,
}

/// `linear (p - shift)` is where the output's point `p` comes from; points `[x, y]` in pixels from the centre of the image.
pub(super) struct Inverse {
    pub linear: [[f64; 2]; 2],
    pub shift: [f64; 2],
}

/// The buffers of resampling, kept between images, of whatever shapes, so that memory is allocated once. Most of it is 16 bytes for each pixel of the
/// upright rectangle that holds all of the reflected image that is shown: about two images for a rotation, four for an image at half the size.
#[derive(Debug, Default)]
pub struct Scratch {
    columns: Vec<usize>,
    rows: Vec<usize>,
    padded: Vec<f32>,
    wide: Vec<f32>,
    fine: Vec<f32>,
    samples: Vec<f32>,
    narrow: Vec<f32>,
}

/// A rectangle of the fine grid: it starts at `2 from` and holds `2 pairs` samples, per axis.
#[derive(Clone, Copy)]
struct Region {
    from: [i64; 2],
    pairs: [usize; 2],
}

/// The fine sample `[x, y]` of the output, counted from the first that is needed, comes from `origin + x step_x + y step_y` within the region.
struct Grid {
    origin: [f64; 2],
    step_x: [f64; 2],
    step_y: [f64; 2],
}

/// Copies the image with its sides swapped.
pub(super) fn flip(flips: Flips, image: &[f32], [h, w]: [usize; 2], out: &mut [f32]) {
    for (image, out) in image.chunks_exact(h * w).zip(out.chunks_exact_mut(h * w)) {
        for (y, out) in out.chunks_exact_mut(w).enumerate() {
            let from = if flips.y { h - 1 - y } else { y };
            out.copy_from_slice(&image[from * w..][..w]);
            if flips.x {
                out.reverse();
            }
        }
    }
}

/// Transforms all channels of an image that is not empty.
pub(super) fn warp(
    inverse: &Inverse,
    flips: Flips,
    image: &[f32],
    [_, h, w]: [usize; 3],
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (grid, region) = plan(inverse, [w, h]);
    reflect(&mut scratch.columns, region.from[0], region.pairs[0], w, flips.x);
    reflect(&mut scratch.rows, region.from[1], region.pairs[1], h, flips.y);
    for (image, out) in image.chunks_exact(h * w).zip(out.chunks_exact_mut(h * w)) {
        scratch.widen(image, w);
        scratch.heighten(2 * region.pairs[0]);
        scratch.sample(&grid, [w, h], 2 * region.pairs[0]);
        scratch.shorten(w, out);
    }
}

/// Where the fine samples of the output are, and a part of the fine grid with all their neighbours.
fn plan(inverse: &Inverse, size: [usize; 2]) -> (Grid, Region) {
    let [[a, b], [c, d]] = inverse.linear;
    let centre = size.map(|n| n as f64 - 1.0);
    // Of the first fine sample of the output, relative to the point that the map leaves at the centre.
    let first = [0, 1].map(|axis| -(CENTRE as f64) - centre[axis] - 2.0 * inverse.shift[axis]);
    let origin = [a * first[0] + b * first[1] + centre[0], c * first[0] + d * first[1] + centre[1]];
    let last = size.map(|n| (fine_samples(n) - 1) as f64);
    let (mut from, mut pairs) = ([0; 2], [0; 2]);
    for (axis, [along_x, along_y]) in inverse.linear.into_iter().enumerate() {
        let ends = [0.0, along_x * last[0], along_y * last[1], along_x * last[0] + along_y * last[1]];
        let low = origin[axis] + ends.into_iter().fold(f64::INFINITY, f64::min);
        let high = origin[axis] + ends.into_iter().fold(f64::NEG_INFINITY, f64::max);
        assert!(low.is_finite() && high.is_finite(), "where a pixel comes from is not finite");
        // A pair more on both sides: coordinates are rounded to f32 later, and each needs a right and a lower neighbour.
        from[axis] = (low / 2.0).floor() as i64 - 1;
        pairs[axis] = ((high / 2.0).floor() as i64 + 2 - from[axis]) as usize;
    }
    let origin = [0, 1].map(|axis| origin[axis] - 2.0 * from[axis] as f64);
    (Grid { origin, step_x: [a, c], step_y: [b, d] }, Region { from, pairs })
}

/// Fine samples on which `n` pixels depend.
fn fine_samples(n: usize) -> usize {
    2 * (n - 1) + SYM6.len()
}

/// The pixels that the fine samples depend on, as indices of the image: beyond its borders it is reflected, with the period `2 (n - 1)`.
fn reflect(indices: &mut Vec<usize>, from: i64, pairs: usize, n: usize, flip: bool) {
    let period = (2 * (n as i64 - 1)).max(1);
    indices.clear();
    indices.extend((0..pairs + 2 * REACH).map(|i| {
        let phase = (from - REACH as i64 + i as i64).rem_euclid(period) as usize;
        let index = phase.min(period as usize - phase).min(n - 1);
        if flip { n - 1 - index } else { index }
    }));
}

impl Scratch {
    /// Doubles the resolution along x: each row of the image becomes one of `wide`.
    fn widen(&mut self, image: &[f32], w: usize) {
        let Self { columns, padded, wide, .. } = self;
        wide.clear();
        for row in image.chunks_exact(w) {
            padded.clear();
            padded.extend(columns.iter().map(|&x| row[x]));
            wide.extend(padded.array_windows().flat_map(|near| [dot(&EVEN, near), dot(&ODD, near)]));
        }
    }

    /// Doubles the resolution along y, from `wide`, whose rows `width` samples make up, into `fine`.
    fn heighten(&mut self, width: usize) {
        let Self { rows, wide, fine, .. } = self;
        let pairs = rows.len() - 2 * REACH;
        fine.resize(2 * pairs * width, 0.0);
        for (near, pair) in rows.array_windows::<{ 2 * REACH + 1 }>().zip(fine.chunks_exact_mut(2 * width)) {
            let (even, odd) = pair.split_at_mut(width);
            blend(&EVEN, |n| &wide[near[n] * width..][..width], even);
            blend(&ODD, |n| &wide[near[n] * width..][..width], odd);
        }
    }

    /// Takes the fine samples of the output from `fine`, and halves their resolution along x, into `narrow`.
    fn sample(&mut self, grid: &Grid, size: [usize; 2], width: usize) {
        let Self { fine, samples, narrow, .. } = self;
        samples.resize(fine_samples(size[0]), 0.0);
        narrow.clear();
        for y in 0..fine_samples(size[1]) {
            let start = [0, 1].map(|axis| (grid.origin[axis] + y as f64 * grid.step_y[axis]) as f32);
            interpolate(fine, width, start, grid.step_x.map(|step| step as f32), samples);
            narrow.extend(samples.array_windows().step_by(2).map(|near| dot(&SYM6, near)));
        }
    }

    /// Halves the resolution along y, from `narrow` into a channel of the output.
    fn shorten(&self, w: usize, out: &mut [f32]) {
        for (y, out) in out.chunks_exact_mut(w).enumerate() {
            let near = &self.narrow[2 * y * w..];
            blend(&SYM6, |n| &near[n * w..][..w], out);
        }
    }
}

/// Bilinear interpolation of `fine`, rows of `width` samples, at `start`, `start + step`, and so on, all with neighbours in `fine`.
fn interpolate(fine: &[f32], width: usize, start: [f32; 2], step: [f32; 2], samples: &mut [f32]) {
    for (n, sample) in samples.iter_mut().enumerate() {
        let (x, y) = (start[0] + n as f32 * step[0], start[1] + n as f32 * step[1]);
        // Neither is negative. Through i32, which takes one instruction where usize takes several.
        let (left, top) = (x as i32, y as i32);
        let (right, down) = (x - left as f32, y - top as f32);
        let corner = &fine[top as usize * width + left as usize..][..width + 2];
        let above = corner[0] + right * (corner[1] - corner[0]);
        let below = corner[width] + right * (corner[width + 1] - corner[width]);
        *sample = above + down * (below - above);
    }
}

fn dot<const N: usize>(taps: &[f32; N], values: &[f32; N]) -> f32 {
    taps.iter().zip(values).map(|(tap, value)| tap * value).sum()
}

/// `dot` of rows instead of numbers.
fn blend<'a>(taps: &[f32], row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    out.fill(0.0);
    for (n, tap) in taps.iter().enumerate() {
        for (sum, value) in out.iter_mut().zip(row(n)) {
            *sum += tap * value;
        }
    }
}

#[cfg(test)]
mod tests;
