//! `dropout`: values times a mask that is a function of a key and of a value's position (with the numbers of `denoising_diffusion_kernels::dropout`),
//! so that the backward pass is the same launch. The key is read from the device's memory, so each replay of a recording draws a new mask.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use denoising_diffusion_kernels::dropout::Mask;

use super::lanes::one_unit_each;
use super::rows::{Rows, vector_width};

/// Counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    all: u32,
    /// Vectors per row.
    vectors: u32,
    x: u32,
    out: u32,
    /// The number of the draw, in two words.
    draw_low: u32,
    draw_high: u32,
    /// A value whose word is below this is dropped; the others are multiplied.
    threshold: u32,
    scale: f32,
}

/// The random words for one counter.
#[derive(CubeType)]
struct Words {
    a: u32,
    b: u32,
    c: u32,
    d: u32,
}

/// Philox4x32-10 for the counter `[number, 0, draw]`. `key`: two words in four parts of 16 bits, lower part first.
#[cube]
fn philox(number: u32, draw_low: u32, draw_high: u32, key: &[f32]) -> Words {
    let mut a = number;
    let mut b = 0u32.runtime();
    let mut c = draw_low;
    let mut d = draw_high;
    let mut first = u32::cast_from(key[0]) + (u32::cast_from(key[1]) << 16u32);
    let mut second = u32::cast_from(key[2]) + (u32::cast_from(key[3]) << 16u32);
    #[unroll]
    for _ in 0..10 {
        let of_a = a.mul_hi(0xD251_1F53u32);
        let of_c = c.mul_hi(0xCD9E_8D57u32);
        let low_of_a = a * 0xD251_1F53u32;
        let low_of_c = c * 0xCD9E_8D57u32;
        a = of_c ^ b ^ first;
        b = low_of_c;
        c = of_a ^ d ^ second;
        d = low_of_a;
        first += 0x9E37_79B9u32;
        second += 0xBB67_AE85u32;
    }
    Words { a, b, c, d }
}

/// One unit per vector; all values of a vector belong to one counter.
#[cube(launch)]
fn kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    key: &[f32],
    y: &mut [Vector<F, N>],
    sizes: &Sizes,
    #[comptime] width: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sizes.all as usize {
        let row = ABSOLUTE_POS / sizes.vectors as usize;
        let i = ABSOLUTE_POS % sizes.vectors as usize;
        let per_counter = comptime!(4 / width);
        let words = philox((ABSOLUTE_POS / per_counter) as u32, sizes.draw_low, sizes.draw_high, key);
        let first = ABSOLUTE_POS % per_counter * width;
        let mut factors = Vector::<f32, N>::new(sizes.scale);
        #[unroll]
        for k in 0..width {
            let at = first + k;
            let word = select(at < 2, select(at == 0, words.a, words.b), select(at == 2, words.c, words.d));
            factors.insert(k, select(word < sizes.threshold, 0.0f32, sizes.scale));
        }
        let value = Vector::<f32, N>::cast_from(x[row * sizes.x as usize + i]);
        y[row * sizes.out as usize + i] = Vector::cast_from(value * factors);
    }
}

/// `x` of any rank times the mask; the key is `[4]` on the device, not the one in `mask`.
pub(super) fn dropout(x: CubeTensor, key: CubeTensor, mask: Mask) -> CubeTensor {
    let (x, key) = (Rows::of(x), Rows::of(key));
    let (client, y) = (x.client(), Rows::empty(&x, x.shape(), x.dtype()));
    // At most the number of words of a counter.
    let width = vector_width(&[x.len, 4], &[&x, &y]);
    let vectors = x.len / width;
    let units = x.count() * vectors;
    let (count, dim) = one_unit_each(&client, units);
    kernel::launch(
        &client,
        count,
        dim,
        width,
        x.arg(),
        key.arg(),
        y.arg(),
        SizesLaunch::new(
            units as u32,
            vectors as u32,
            x.pitch(width),
            y.pitch(width),
            mask.draw as u32,
            (mask.draw >> 32) as u32,
            mask.threshold,
            mask.scale,
        ),
        width,
        x.elem(),
    );
    y.tensor()
}
