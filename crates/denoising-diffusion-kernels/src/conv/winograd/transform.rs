//! The transforms of F(4 x 4, 3 x 3) with interpolation points 0, 1, -1, 2, -2, infinity; vectors run over channels.

use crate::gemm::PANEL;
use crate::simd::{LANES, Simd, simd_fn};

/// Positions of a transformed tile.
pub(super) const FREQUENCIES: usize = 36;

/// A linear map from IN to OUT values, applied to the columns and then to the rows of a square.
trait Transform<const IN: usize, const OUT: usize> {
    /// # Safety
    /// As [`Simd`].
    unsafe fn apply<S: Simd>(x: [S::V; IN]) -> [S::V; OUT];

    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn square<S: Simd>(x: &[[S::V; IN]; IN]) -> [[S::V; OUT]; OUT] {
        unsafe {
            let mut columns = [[S::splat(0.0); IN]; OUT];
            for j in 0..IN {
                let column = Self::apply::<S>(std::array::from_fn(|i| x[i][j]));
                for (row, value) in columns.iter_mut().zip(column) {
                    row[j] = value;
                }
            }
            let mut out = [[S::splat(0.0); OUT]; OUT];
            for (out, row) in out.iter_mut().zip(columns) {
                *out = Self::apply::<S>(row);
            }
            out
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

/// Up to eight values, zeros for those that are not there.
#[inline(always)]
unsafe fn load_up_to<S: Simd>(p: *const f32, n: usize) -> S::V {
    unsafe { if n == 0 { S::splat(0.0) } else { S::load_n(p, n) } }
}

/// Transforms an N x N tile of pixels to 36 rows of channels, filled up with zeros to whole panels: frequency f, channel c
/// goes to `dst[f stride + c / 16 panel_stride + c % 16]`.
#[inline(always)]
unsafe fn spread<S: Simd, T: Transform<N, 6>, const N: usize>(
    pixels: &[*const f32],
    channels: usize,
    dst: *mut f32,
    stride: usize,
    panel_stride: usize,
) {
    unsafe {
        for c in (0..channels.next_multiple_of(PANEL)).step_by(LANES) {
            let n = channels.saturating_sub(c).min(LANES);
            let mut x = [[S::splat(0.0); N]; N];
            for (i, row) in x.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = load_up_to::<S>(pixels[i * N + j].wrapping_add(c), n);
                }
            }
            let dst = dst.add(c / PANEL * panel_stride + c % PANEL);
            for (i, row) in T::square::<S>(&x).into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    S::store(dst.add((i * 6 + j) * stride), value);
                }
            }
        }
    }
}

simd_fn! {
    /// B' x B of one tile; see [`spread`] for the layout.
    ///
    /// # Safety
    /// Every pixel has `channels` values; the destination has room for whole panels.
    pub(super) unsafe fn input_tile<S>(
        pixels: &[*const f32; 36],
        channels: usize,
        dst: *mut f32,
        stride: usize,
        panel_stride: usize,
    ) {
        spread::<S, Input, 6>(pixels, channels, dst, stride, panel_stride);
    }
}

simd_fn! {
    /// A dy A' of one tile; see [`spread`] for the layout.
    ///
    /// # Safety
    /// As [`input_tile`].
    pub(super) unsafe fn output_grad_tile<S>(
        pixels: &[*const f32; 16],
        channels: usize,
        dst: *mut f32,
        stride: usize,
        panel_stride: usize,
    ) {
        spread::<S, OutputGrad, 4>(pixels, channels, dst, stride, panel_stride);
    }
}

simd_fn! {
    /// A' m A + bias of one tile: frequency f of `m` begins at `m + f stride`; null pixels are not stored.
    ///
    /// # Safety
    /// `m` has `bias.len()` channels per frequency, and so has every pixel that is not null.
    pub(super) unsafe fn output_tile<S>(m: *const f32, stride: usize, bias: &[f32], pixels: &[*mut f32; 16]) {
        let channels = bias.len();
        for c in (0..channels).step_by(LANES) {
            let n = (channels - c).min(LANES);
            let mut x = [[S::splat(0.0); 6]; 6];
            for (i, row) in x.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = S::load_n(m.add((i * 6 + j) * stride + c), n);
                }
            }
            let add = S::load_n(bias.as_ptr().add(c), n);
            for (i, row) in Output::square::<S>(&x).into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    let pixel = pixels[i * 4 + j];
                    if !pixel.is_null() {
                        S::store_n(pixel.add(c), S::add(value, add), n);
                    }
                }
            }
        }
    }
}

simd_fn! {
    /// G w G' of sixteen kernels; frequency f goes to `dst + f stride`.
    ///
    /// # Safety
    /// The destination has room for sixteen values per frequency.
    pub(super) unsafe fn filter_panel<S>(taps: &[[f32; PANEL]; 9], dst: *mut f32, stride: usize) {
        for lane in [0, LANES] {
            let mut x = [[S::splat(0.0); 3]; 3];
            for (i, row) in x.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = S::load(taps[i * 3 + j].as_ptr().add(lane));
                }
            }
            for (i, row) in Filter::square::<S>(&x).into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    S::store(dst.add((i * 6 + j) * stride + lane), value);
                }
            }
        }
    }
}

simd_fn! {
    /// G' u G of sixteen transformed kernels: frequency f of `u` begins at `u + f stride`.
    ///
    /// # Safety
    /// `u` has sixteen values per frequency.
    pub(super) unsafe fn filter_grad_panel<S>(u: *const f32, stride: usize, taps: &mut [[f32; PANEL]; 9]) {
        for lane in [0, LANES] {
            let mut x = [[S::splat(0.0); 6]; 6];
            for (i, row) in x.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = S::load(u.add((i * 6 + j) * stride + lane));
                }
            }
            for (i, row) in FilterGrad::square::<S>(&x).into_iter().enumerate() {
                for (j, value) in row.into_iter().enumerate() {
                    S::store(taps[i * 3 + j].as_mut_ptr().add(lane), value);
                }
            }
        }
    }
}
