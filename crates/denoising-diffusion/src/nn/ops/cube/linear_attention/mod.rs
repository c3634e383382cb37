//! `linear_attention`, forward and backward. Per head, over memory and positions j, for queries q, keys k and values v of d channels:
//!
//! ```text
//! k'[j, c] = softmax of k over j        context[c, e] = sum_j k'[j, c] v[j, e]
//! q'[i, c] = softmax of q over c / √d   y[i, e] = sum_c q'[i, c] context[c, e]
//! ```
//!
//! and backward, with `dcontext[c, e] = sum_i q'[i, c] dy[i, e]`, `dq'[i, c] = sum_e dy[i, e] context[c, e]` and
//! `dk'[j, c] = sum_e v[j, e] dcontext[c, e]`:
//!
//! ```text
//! dq[i, c] = q'[i, c] (dq'[i, c] - √d sum_c q'[i, c] dq'[i, c])
//! dk[j, c] = k'[j, c] (dk'[j, c] - sum_e context[c, e] dcontext[c, e])
//! dv[j, e] = sum_c k'[j, c] dcontext[c, e]
//! ```
//!
//! d² + 2 d values per head are kept between the passes. Each pass reads queries, keys and values from memory once: cubes take blocks of rows of one
//! head, sum their contributions to a context, and leave that to a smaller kernel, which adds contributions in a fixed order.

mod backward;
mod forward;
mod tile;

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::columns::Chunks;
use super::rows::{Rows, widest_vector};
use tile::{MOST_VECTORS, Tile, UNITS};

pub(super) use backward::backward;
pub(super) use forward::forward;

/// Whether a device can run the kernels for heads with this number of channels.
pub(super) fn takes(client: &Client, dim: usize) -> bool {
    if dim == 0 || dim > UNITS || dim / widest_vector(client, dim) > MOST_VECTORS {
        return false;
    }
    let hardware = &client.properties().hardware;
    UNITS <= hardware.max_units_per_cube as usize
        && Tile::new(client, dim).shared_memory() <= hardware.max_shared_memory_size
}

/// Number of rows in which the context of a head is kept: context, its transpose, maxima of the keys, 1 / sums of e^(key - maximum).
pub(super) fn state_rows(dim: usize) -> usize {
    2 * dim + 2
}

/// Distances and counts; pitches in vectors.
#[derive(CubeLaunch, CubeType)]
struct Sizes {
    positions: u32,
    heads: u32,
    /// Cubes per head, and the largest number of blocks of rows per cube.
    cubes_per_head: u32,
    blocks: u32,
    cubes: u32,
    qkv: u32,
    /// Pitch of the result or its gradient.
    y: u32,
    /// The sum of the weights of a query.
    factor: f32,
}

/// The work of a cube.
#[derive(CubeType)]
struct Task {
    /// Index over the heads of all images.
    head: usize,
    /// Its positions; a surplus cube has none.
    first: usize,
    end: usize,
    /// Where the head's queries begin in the first row of the image, in vectors; keys and values follow at distances of `parts`.
    qkv: usize,
    parts: usize,
    y: usize,
}

#[cube]
fn task(sizes: &Sizes, #[comptime] tile: Tile) -> Task {
    let positions = sizes.positions as usize;
    let heads = sizes.heads as usize;
    let head = CUBE_POS / sizes.cubes_per_head as usize;
    let per_cube = sizes.blocks as usize * comptime!(tile.rows());
    let first = CUBE_POS % sizes.cubes_per_head as usize * per_cube;
    let end = select(CUBE_POS < sizes.cubes as usize, min(first + per_cube, positions), 0);
    let image = head / heads * positions;
    let column = head % heads * tile.vectors;
    Task {
        head,
        first,
        end,
        qkv: image * sizes.qkv as usize + column,
        parts: heads * tile.vectors,
        y: image * sizes.y as usize + column,
    }
}

/// The parameters of the launches.
struct Plan {
    client: Client,
    images: usize,
    heads: usize,
    /// Channels per head.
    dim: usize,
    /// Number of rows of the memory.
    memory: usize,
    tile: Tile,
    chunks: Chunks,
}

impl Plan {
    /// `qkv [b, h, w, 3 heads d]`, `mem_kv [2, heads, d, m]`.
    fn new(qkv: &CubeTensor, mem_kv: &CubeTensor) -> Self {
        let client = qkv.client.clone();
        let (shape, memory) = (qkv.meta.shape(), mem_kv.meta.shape());
        let (images, positions) = (shape[0], shape[1] * shape[2]);
        let (heads, dim) = (memory[1], memory[2]);
        let tile = Tile::new(&client, dim);
        let chunks = Chunks::new(images * heads, positions, tile.rows());
        Self { client, images, heads, dim, memory: memory[3], tile, chunks }
    }

    fn sizes(&self, qkv: &Rows, y: &Rows) -> SizesLaunch {
        SizesLaunch::new(
            self.chunks.rows as u32,
            self.heads as u32,
            self.chunks.per_image as u32,
            self.chunks.rows_per_group as u32,
            self.chunks.cubes() as u32,
            qkv.pitch(self.tile.width),
            y.pitch(self.tile.width),
            (self.dim as f32).powf(-0.5),
        )
    }

    /// The memory. If it has no rows, something else, because an empty tensor cannot be passed; it is not read.
    fn memory_rows(&self, mem_kv: CubeTensor, other: &Rows) -> Rows {
        if self.memory == 0 { other.clone() } else { Rows::of(mem_kv) }
    }

    /// Number of heads of all images.
    fn all_heads(&self) -> usize {
        self.images * self.heads
    }

    /// A dense row for each head of each image, not yet filled.
    fn per_head(&self, like: &Rows, values: usize) -> Rows {
        Rows::dense(like, [self.all_heads(), values])
    }
}
