//! `attention`, forward and backward. Per head, over memory and positions j, for queries q, keys k and values v of d channels:
//!
//! ```text
//! s[i, j] = sum_c q[i, c] k[j, c] / √d    p[i, j] = e^(s[i, j] - most[i]) / sum[i]    y[i, c] = sum_j p[i, j] v[j, c]
//! ```
//!
//! where most[i] is the largest score of row i and sum[i] the sum of e^(s - most), found in one pass over the keys (Milakov & Gimelshein 2018; Dao et
//! al. 2022). Backward, with `delta[i] = sum_c dy[i, c] y[i, c]`:
//!
//! ```text
//! ds[i, j] = p[i, j] (sum_c dy[i, c] v[j, c] - delta[i])
//! dq[i, c] = sum_j ds[i, j] k[j, c] / √d    dk[j, c] = sum_i ds[i, j] q[i, c] / √d    dv[j, c] = sum_i p[i, j] dy[i, c]
//! ```
//!
//! The matrix of all pairs of positions is never stored: most, 1 / sum and delta are kept, three numbers per query, as `state [b heads, 2 positions]`
//! and `deltas [b heads, positions]`. [`cuda`] multiplies bf16 and f16 on CUDA's tensor cores; [`units`] runs on every device, for short rows.

mod cuda;
mod units;

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

use super::columns::sum_columns;
use super::rows::Rows;

/// Whether a device can run the kernels for this type and number of positions and of channels per head, and is faster with them.
pub(super) fn takes(client: &Client, dtype: DType, positions: usize, dim: usize) -> bool {
    cuda::values(client, dtype, dim).is_some() || units::takes(client, positions, dim)
}

/// `qkv [b, h, w, 3 heads d]` and `mem_kv [2, heads, m, d]` to `[b, h, w, heads d]`, and to the state for the backward pass.
pub(super) fn forward(qkv: CubeTensor, mem_kv: CubeTensor) -> (CubeTensor, CubeTensor) {
    let shape = Shape::new(&qkv, &mem_kv);
    match cuda::values(&qkv.client, qkv.dtype, shape.dim) {
        Some(values) => cuda::forward(values, shape, qkv, mem_kv),
        None => units::forward(shape, qkv, mem_kv),
    }
}

/// The gradients of `qkv` and `mem_kv` for a [`forward`] pass that gave `y` and kept `state`.
pub(super) fn backward(
    qkv: CubeTensor,
    mem_kv: CubeTensor,
    y: CubeTensor,
    state: CubeTensor,
    dy: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let shape = Shape::new(&qkv, &mem_kv);
    match cuda::values(&qkv.client, qkv.dtype, shape.dim) {
        Some(values) => cuda::backward(values, shape, qkv, mem_kv, y, state, dy),
        None => units::backward(shape, qkv, mem_kv, y, state, dy),
    }
}

/// The sizes of queries, keys, values and memory.
#[derive(Clone, Copy, Debug)]
struct Shape {
    images: usize,
    heads: usize,
    positions: usize,
    /// Channels per head.
    dim: usize,
    /// Number of rows of the memory.
    memory: usize,
}

impl Shape {
    /// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, m, d]`.
    fn new(qkv: &CubeTensor, mem_kv: &CubeTensor) -> Self {
        let (shape, memory) = (qkv.meta.shape(), mem_kv.meta.shape());
        let (images, positions) = (shape[0], shape[1] * shape[2]);
        Self { images, heads: memory[1], positions, dim: memory[3], memory: memory[2] }
    }

    /// Number of heads of all images.
    fn all_heads(self) -> usize {
        self.images * self.heads
    }

    /// For cubes that share `rows` rows of each head, and have `rows_of_cube` each, in vectors of this width.
    fn sizes(self, rows: usize, rows_of_cube: usize, qkv: &Rows, memory: &Rows, width: usize) -> SizesLaunch {
        SizesLaunch::new(
            self.all_heads() as u32,
            self.heads as u32,
            self.positions as u32,
            self.memory as u32,
            rows.div_ceil(rows_of_cube) as u32,
            qkv.pitch(width),
            memory.pitch(width),
            (self.dim as f32).powf(-0.5),
        )
    }

    /// The memory in rows whose vectors have this width. If it has no rows, something else, because an empty tensor cannot be passed; it is not read.
    fn memory_rows(self, mem_kv: CubeTensor, width: usize, other: &Rows) -> Rows {
        if self.memory == 0 { other.clone() } else { Rows::of_vectors(mem_kv, width) }
    }

    /// Room for each image's contribution to the gradient of the memory: `[b, 2 heads m d]`. Something must be passed, even if there is no memory.
    fn empty_parts(self, like: &Rows, width: usize) -> Rows {
        Rows::dense(like, [self.images, (2 * self.heads * self.memory * self.dim).max(width)])
    }

    /// The sum of these contributions, in the form of the memory.
    fn summed(self, parts: &Rows, mem_kv: CubeTensor) -> CubeTensor {
        if self.memory == 0 {
            return mem_kv;
        }
        let shape = mem_kv.meta.shape().clone();
        let flat = Rows::of(reshape(mem_kv, [shape.num_elements()].into()));
        reshape(sum_columns(parts, 0, 1, &flat), shape)
    }
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    /// Over all images.
    all_heads: u32,
    /// Per image.
    heads: u32,
    positions: u32,
    /// Rows of the memory, which come before the positions.
    memory: u32,
    /// Cubes per head.
    cubes_per_head: u32,
    qkv: u32,
    memory_pitch: u32,
    /// 1 / √d.
    factor: f32,
}
