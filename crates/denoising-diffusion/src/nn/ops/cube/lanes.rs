//! How the units of a cube (CUDA: the threads of a block) share rows: each group of units takes a row, and each of its units takes every n-th vector;
//! and sums and maxima over a group and over all groups, in an order that depends only on the shape and the kind of device.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::features::Plane;
use burn_cubecl::cubecl::prelude::*;

/// Units per cube, if the device allows that many.
const UNITS: usize = 256;
/// For planes (CUDA: warps) smaller than this, a special way of adding does not pay.
const SMALLEST_PLANE: u32 = 16;

/// Compile-time parameters of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lanes {
    /// Units per group, a power of two.
    pub(super) units: usize,
    /// Groups per cube, a power of two.
    pub(super) groups: usize,
    /// The largest number of vectors per unit, which keeps them in registers.
    pub(super) vectors: usize,
    /// Whether a group lies within a plane, whose units can read each other's registers. Otherwise sums go through shared memory.
    pub(super) in_plane: bool,
}

impl Lanes {
    /// For rows of `vectors` vectors.
    pub(super) fn new(client: &Client, vectors: usize) -> Self {
        let most = most_units(client);
        let plane = plane(client);
        let units = vectors.next_power_of_two().min(plane.unwrap_or(most));
        Self { units, groups: most / units, vectors: vectors.div_ceil(units), in_plane: plane.is_some() }
    }

    /// For rows of `vectors` vectors, one per unit, and cubes of `units` units, a power of two.
    pub(super) fn one_each(client: &Client, vectors: usize, units: usize) -> Self {
        let group = vectors.next_power_of_two();
        let in_plane = plane(client).is_some_and(|plane| group <= plane);
        Self { units: group, groups: units / group, vectors: 1, in_plane }
    }

    /// For sums over this number of rows, column by column. With many rows, a group takes up to four vectors of a row: if it took more, there would
    /// be only a handful of cubes for few columns, each reading one row after the other. With few rows it takes more, so that each group has a row.
    pub(super) fn columns(client: &Client, vectors: usize, rows: usize) -> Self {
        let most = most_units(client);
        let groups = rows.next_power_of_two().min(most);
        let units = vectors.next_power_of_two().min((most / groups).max(4)).min(most);
        Self { units, groups: most / units, vectors: 1, in_plane: false }
    }

    /// For one sum per cube.
    #[cfg(not(feature = "fusion"))]
    pub(super) fn whole_cube(client: &Client) -> Self {
        Self { units: most_units(client), groups: 1, vectors: 1, in_plane: false }
    }

    /// The units of a cube.
    pub(super) fn cube_dim(self) -> CubeDim {
        CubeDim::new_1d((self.units * self.groups) as u32)
    }

    /// Whether loops over a unit's vectors are unrolled, so that the vectors stay in registers.
    pub(super) fn unrolled(self) -> bool {
        self.vectors <= 8
    }
}

/// Number of units per plane, if it is fixed and they can read each other's registers.
fn plane(client: &Client) -> Option<usize> {
    let properties = client.properties();
    let (least, most) = (properties.hardware.plane_size_min, properties.hardware.plane_size_max);
    let usable = least == most && most >= SMALLEST_PLANE && most.is_power_of_two();
    (usable && properties.features.plane.contains(Plane::Ops)).then_some(most as usize)
}

/// The largest number of units per cube, a power of two. The CPU runtime takes as many as it has cores.
fn most_units(client: &Client) -> usize {
    1 << UNITS.min(client.properties().hardware.max_units_per_cube as usize).ilog2()
}

/// At least `cubes` cubes, in as many dimensions as the device needs for them; perhaps a few more.
pub(super) fn cube_count(client: &Client, cubes: usize) -> CubeCount {
    cubecl::calculate_cube_count_elemwise(client, cubes, CubeDim::new_single())
}

/// One unit for each of `units` items of work.
pub(super) fn one_unit_each(client: &Client, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, units);
    (cubecl::calculate_cube_count_elemwise(client, units, dim), dim)
}

/// How two values are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fold {
    Sum,
    Max,
}

/// The sum of `value` over the units of this unit's group. All units of the cube must call it; `scratch` has an element for each.
#[cube]
pub(super) fn sum_over_group(value: f32, scratch: &mut [f32], #[comptime] lanes: Lanes) -> f32 {
    over_group(value, scratch, Fold::Sum, lanes)
}

/// The largest `value` in this unit's group; NaN may be ignored. Otherwise like [`sum_over_group`].
#[cube]
pub(super) fn max_over_group(value: f32, scratch: &mut [f32], #[comptime] lanes: Lanes) -> f32 {
    over_group(value, scratch, Fold::Max, lanes)
}

#[cube]
fn folded(a: f32, b: f32, #[comptime] fold: Fold) -> f32 {
    if comptime!(fold == Fold::Sum) { a + b } else { max(a, b) }
}

#[cube]
fn over_group(value: f32, scratch: &mut [f32], #[comptime] fold: Fold, #[comptime] lanes: Lanes) -> f32 {
    if comptime!(lanes.in_plane) {
        // Units that have no vector of the row come from another branch: only this guarantees that all have arrived.
        sync_plane();
        let mut all = value;
        #[unroll]
        for step in 0..comptime!(lanes.units.ilog2()) {
            all = folded(all, plane_shuffle_xor(all, 1u32 << step), fold);
        }
        all
    } else {
        let unit = UNIT_POS as usize;
        let lane = unit % lanes.units;
        sync_cube();
        scratch[unit] = value;
        sync_cube();
        let mut width = comptime!(lanes.units / 2).runtime();
        while width > 0 {
            if lane < width {
                let other = scratch[unit + width];
                scratch[unit] = folded(scratch[unit], other, fold);
            }
            sync_cube();
            width /= 2;
        }
        scratch[unit - lane]
    }
}

/// The sum of the values of units with the same position in their groups, returned in the first group. All units of the cube must call it; `scratch`
/// has an element for each.
#[cube]
pub(super) fn sum_over_groups<N: Size>(
    value: Vector<f32, N>,
    scratch: &mut [Vector<f32, N>],
    #[comptime] lanes: Lanes,
) -> Vector<f32, N> {
    let unit = UNIT_POS as usize;
    sync_cube();
    scratch[unit] = value;
    sync_cube();
    let mut sum = value;
    if unit < lanes.units {
        for group in 1..lanes.groups {
            sum += scratch[unit + group * lanes.units];
        }
    }
    sum
}
