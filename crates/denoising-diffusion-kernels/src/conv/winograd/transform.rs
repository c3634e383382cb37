//! The transforms of F(4 x 4, 3 x 3) with interpolation points 0, 1, -1, 2, -2, infinity; vectors are along channels.

use super::gather::OUTSIDE;
use crate::gemm::PANEL;
use crate::simd::{EightLanes, MAX_LANES, SQUARE, Simd, simd_fn};

/// Number of positions of a transformed tile.
pub(super) const FREQUENCIES: usize = 36;

/// A linear map from IN to OUT values, applied to the columns and then to the rows of a square.
trait Transform<const IN: usize, const OUT: usize> {
    /// # Safety
    /// As [`Simd`].
    unsafe fn apply<S: Simd>(x: [S::V; IN]) -> [S::V; OUT];

    /// Transforms the square with the values `x(i, j)`, and passes the results to `out(i, j, value)`.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn square<S: Simd>(x: impl Fn(usize, usize) -> S::V, mut out: impl FnMut(usize, usize, S::V)) {
        unsafe {
            let mut columns = [[S::splat(0.0); IN]; OUT];
            for j in 0..IN {
                let column = Self::apply::<S>(std::array::from_fn(|i| x(i, j)));
                for (row, value) in columns.iter_mut().zip(column) {
                    row[j] = value;
                }
            }
            for (i, row) in columns.into_iter().enumerate() {
                for (j, value) in Self::apply::<S>(row).into_iter().enumerate() {
                    out(i, j, value);
                }
            }
        }
    }
}

/// B', for input tiles.
struct Input;
/// G, for kernels.
struct Filter;
/// A', for output tiles.
struct Output;
/// A, the transpose of [`Output`], for gradients of output tiles.
struct OutputGrad;
/// G', the transpose of [`Filter`], for gradients of kernels.
struct FilterGrad;

impl Transform<6, 6> for Input {
    #[inline(always)]
    unsafe fn apply<S: Simd>([x0, x1, x2, x3, x4, x5]: [S::V; 6]) -> [S::V; 6] {
        unsafe {
            let (minus_four, two, four, minus_five) = (S::splat(-4.0), S::splat(2.0), S::splat(4.0), S::splat(-5.0));
            let (even, odd) = (S::fma(minus_four, x2, x4), S::fma(minus_four, x1, x3));
            let (near, far) = (S::sub(x4, x2), S::mul(two, S::sub(x3, x1)));
            [
                S::fma(four, x0, S::fma(minus_five, x2, x4)),
                S::add(even, odd),
                S::sub(even, odd),
                S::add(near, far),
                S::sub(near, far),
                S::fma(four, x1, S::fma(minus_five, x3, x5)),
            ]
        }
    }
}

impl Transform<3, 6> for Filter {
    #[inline(always)]
    unsafe fn apply<S: Simd>([x0, x1, x2]: [S::V; 3]) -> [S::V; 6] {
        unsafe {
            let outer = S::mul(S::splat(-1.0 / 6.0), S::add(x0, x2));
            let inner = S::mul(S::splat(-1.0 / 6.0), x1);
            let far = S::fma(S::splat(1.0 / 24.0), x0, S::mul(S::splat(1.0 / 6.0), x2));
            let odd = S::mul(S::splat(1.0 / 12.0), x1);
            [
                S::mul(S::splat(0.25), x0),
                S::add(outer, inner),
                S::sub(outer, inner),
                S::add(far, odd),
                S::sub(far, odd),
                x2,
            ]
        }
    }
}

impl Transform<6, 3> for FilterGrad {
    #[inline(always)]
    unsafe fn apply<S: Simd>([x0, x1, x2, x3, x4, x5]: [S::V; 6]) -> [S::V; 3] {
        unsafe {
            let near = S::mul(S::splat(-1.0 / 6.0), S::add(x1, x2));
            let far = S::add(x3, x4);
            [
                S::fma(S::splat(0.25), x0, S::fma(S::splat(1.0 / 24.0), far, near)),
                S::fma(S::splat(1.0 / 6.0), S::sub(x2, x1), S::mul(S::splat(1.0 / 12.0), S::sub(x3, x4))),
                S::add(S::fma(S::splat(1.0 / 6.0), far, near), x5),
            ]
        }
    }
}

impl Transform<6, 4> for Output {
    #[inline(always)]
    unsafe fn apply<S: Simd>([x0, x1, x2, x3, x4, x5]: [S::V; 6]) -> [S::V; 4] {
        unsafe {
            let (near, far) = (S::add(x1, x2), S::add(x3, x4));
            let (near_odd, far_odd) = (S::sub(x1, x2), S::sub(x3, x4));
            [
                S::add(x0, S::add(near, far)),
                S::fma(S::splat(2.0), far_odd, near_odd),
                S::fma(S::splat(4.0), far, near),
                S::add(S::fma(S::splat(8.0), far_odd, near_odd), x5),
            ]
        }
    }
}

impl Transform<4, 6> for OutputGrad {
    #[inline(always)]
    unsafe fn apply<S: Simd>([x0, x1, x2, x3]: [S::V; 4]) -> [S::V; 6] {
        unsafe {
            let (even, odd) = (S::add(x0, x2), S::add(x1, x3));
            let far = S::fma(S::splat(4.0), x2, x0);
            let far_odd = S::mul(S::splat(2.0), S::fma(S::splat(4.0), x3, x1));
            [x0, S::add(even, odd), S::sub(even, odd), S::add(far, far_odd), S::sub(far, far_odd), x3]
        }
    }
}

/// Up to a vector of values, with zeros for missing ones.
#[inline(always)]
unsafe fn load_up_to<S: Simd>(p: *const f32, n: usize) -> S::V {
    unsafe { if n == 0 { S::splat(0.0) } else { S::load_n(p, n) } }
}

/// The destinations of transformed tiles: channel c of frequency f of the tile at `at` goes to
/// `at + f frequency_stride + c / block_len block_stride + c % block_len`.
#[derive(Clone, Copy)]
pub(super) struct Spread {
    pub(super) at: *mut f32,
    pub(super) frequency_stride: usize,
    /// A multiple of 16.
    pub(super) block_len: usize,
    pub(super) block_stride: usize,
}

/// Transforms an N x N tile of pixels with `channels` channels, which are numbered from `first` (a multiple of 16). The last sixteen channels are
/// filled up with zeros.
#[inline(always)]
unsafe fn spread<S: Simd, T: Transform<N, 6>, const N: usize>(
    pixels: &[*const f32],
    first: usize,
    channels: usize,
    to: Spread,
) {
    unsafe {
        for c in (0..channels.next_multiple_of(PANEL)).step_by(S::LANES) {
            let at = first + c;
            let dst = to.at.add(at / to.block_len * to.block_stride + at % to.block_len);
            let store = |i: usize, j: usize, value| S::store(dst.add((i * 6 + j) * to.frequency_stride), value);
            // Separately, so that whole vectors do not pay for incomplete ones.
            if c + S::LANES <= channels {
                T::square::<S>(|i, j| S::load(pixels[i * N + j].add(c)), store);
            } else {
                let n = channels.saturating_sub(c);
                T::square::<S>(|i, j| load_up_to::<S>(pixels[i * N + j].wrapping_add(c), n), store);
            }
        }
    }
}

simd_fn! {
    /// B' x B of one tile; see [`spread`].
    ///
    /// # Safety
    /// Every pixel must have `channels` values, and the destination room for whole panels of sixteen.
    pub(super) unsafe fn input_tile<S>(pixels: &[*const f32; 36], first: usize, channels: usize, to: Spread) {
        spread::<S, Input, 6>(pixels, first, channels, to);
    }
}

simd_fn! {
    /// A dy A' of one tile; see [`spread`].
    ///
    /// # Safety
    /// As [`input_tile`].
    pub(super) unsafe fn output_grad_tile<S>(pixels: &[*const f32; 16], first: usize, channels: usize, to: Spread) {
        spread::<S, OutputGrad, 4>(pixels, first, channels, to);
    }
}

/// The images to which output tiles are written.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Number of channels of the image.
    pub(super) channels: usize,
    /// The first of the written channels of the first pixel.
    pub(super) target: *mut f32,
}

simd_fn! {
    /// max(A' m A + bias, floor) of one tile: frequency f of `m` begins at `m + f stride`. Pixels are numbered in the image; those that are
    /// [`OUTSIDE`] are not stored.
    ///
    /// # Safety
    /// `m` must have `bias.len()` channels per frequency, rounded up to whole vectors, and every pixel must have that many from its target on. `add`,
    /// if not null, must be an image like the target, whose values are added.
    pub(super) unsafe fn output_tile<S>(
        m: *const f32,
        stride: usize,
        bias: &[f32],
        pixels: &[usize; 16],
        place: Place,
        add: *const f32,
        floor: f32,
    ) {
        for c in (0..bias.len()).step_by(S::LANES) {
            let n = (bias.len() - c).min(S::LANES);
            let bias = S::load_n(bias.as_ptr().add(c), n);
            let store = |i: usize, j: usize, value| {
                let pixel = pixels[i * 4 + j];
                if pixel != OUTSIDE {
                    let at = pixel * place.channels + c;
                    let mut value = S::add(value, bias);
                    if !add.is_null() {
                        value = S::add(value, S::load_n(add.add(at), n));
                    }
                    // The order of arguments lets a NaN through.
                    S::store_n(place.target.add(at), S::max(S::splat(floor), value), n);
                }
            };
            // Rows of `m` are padded to whole vectors.
            Output::square::<S>(|i, j| S::load(m.add((i * 6 + j) * stride + c)), store);
        }
    }
}

simd_fn! {
    /// A' m A of one tile with `channels` channels, in which each 2 x 2 pixels are summed to one.
    ///
    /// # Safety
    /// As [`output_tile`].
    pub(super) unsafe fn output_tile_halved<S>(
        m: *const f32,
        stride: usize,
        channels: usize,
        pixels: &[usize; 4],
        place: Place,
    ) {
        for c in (0..channels).step_by(S::LANES) {
            let n = (channels - c).min(S::LANES);
            let mut y = [[S::splat(0.0); 2]; 2];
            let sum = |i: usize, j: usize, value| y[i / 2][j / 2] = S::add(y[i / 2][j / 2], value);
            Output::square::<S>(|i, j| S::load(m.add((i * 6 + j) * stride + c)), sum);
            for (&pixel, value) in pixels.iter().zip(y.into_iter().flatten()) {
                if pixel != OUTSIDE {
                    S::store_n(place.target.add(pixel * place.channels + c), value, n);
                }
            }
        }
    }
}

/// The kernels of a weight that form a panel: lane l, l < `lanes` <= 16, of row k is the kernel at `at + l lane_stride + k row_stride`.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) at: *const f32,
    pub(super) lanes: usize,
    pub(super) lane_stride: usize,
    pub(super) row_stride: usize,
}

simd_fn! {
    /// G w G' for `rows` rows of sixteen kernels, each turned by half a turn if `turned`: frequency f of row k goes to `dst + f stride + 16 k`, with
    /// zeros for missing lanes.
    ///
    /// # Safety
    /// There must be nine values at every kernel's address, and room for sixteen at every destination.
    pub(super) unsafe fn filter_rows<S>(kernels: Kernels, rows: usize, turned: bool, dst: *mut f32, stride: usize) {
        for k in 0..rows {
            for lane in (0..PANEL).step_by(S::LANES) {
                let n = kernels.lanes.saturating_sub(lane);
                let mut last = [0.0f32; MAX_LANES];
                let mut eight = |first: usize| {
                    S::Eight::transpose(std::array::from_fn(|i| {
                        let i = first + i;
                        if i >= n {
                            return S::Eight::splat(0.0);
                        }
                        let at = kernels.at.add((lane + i) * kernels.lane_stride + k * kernels.row_stride);
                        last[i] = *at.add(8);
                        S::Eight::load(at)
                    }))
                };
                let low = eight(0);
                let high = if S::LANES > SQUARE { eight(SQUARE) } else { low };
                let [t0, t1, t2, t3, t4, t5, t6, t7] = std::array::from_fn(|i| S::from_eights([low[i], high[i]]));
                let t8 = S::load(last.as_ptr());
                let x = if turned {
                    [[t8, t7, t6], [t5, t4, t3], [t2, t1, t0]]
                } else {
                    [[t0, t1, t2], [t3, t4, t5], [t6, t7, t8]]
                };
                let dst = dst.add(k * PANEL + lane);
                Filter::square::<S>(|i, j| x[i][j], |i, j, value| S::store(dst.add((i * 6 + j) * stride), value));
            }
        }
    }
}

simd_fn! {
    /// G' u G for `lanes` (at most sixteen) transformed kernels: frequency f of `u` begins at `u + f stride`; the results are contiguous from `dst`
    /// on. With `add`, they are added to the contents of `dst`.
    ///
    /// # Safety
    /// `u` must have sixteen values per frequency, `dst` nine per lane.
    pub(super) unsafe fn filter_grad<S>(u: *const f32, stride: usize, lanes: usize, add: bool, dst: *mut f32) {
        for lane in (0..lanes).step_by(S::LANES) {
            let mut taps = [S::splat(0.0); 9];
            let keep = |i: usize, j: usize, value| taps[i * 3 + j] = value;
            FilterGrad::square::<S>(|i, j| S::load(u.add((i * 6 + j) * stride + lane)), keep);
            let mut last = [0.0f32; MAX_LANES];
            S::store(last.as_mut_ptr(), taps[8]);
            for (half, last) in last[..S::LANES].chunks_exact(SQUARE).enumerate() {
                let kernels = S::Eight::transpose(std::array::from_fn(|i| S::eight(taps[i], half)));
                let lane = lane + half * SQUARE;
                for (i, (kernel, &last)) in kernels.into_iter().zip(last).enumerate().take(lanes.saturating_sub(lane)) {
                    let dst = dst.add((lane + i) * 9);
                    let (sum, sum_last) =
                        if add { (S::Eight::add(S::Eight::load(dst), kernel), *dst.add(8) + last) } else { (kernel, last) };
                    S::Eight::store(dst, sum);
                    *dst.add(8) = sum_last;
                }
            }
        }
    }
}
