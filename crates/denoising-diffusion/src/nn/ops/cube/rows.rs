//! The layout of tensors in memory, as the kernels see it: rows of the last dimension's values, evenly spaced. CUDA's allocations pad the rows of
//! every tensor (96 `f32` values take the place of 128), so no tensor may be assumed to be dense. Only what does not consist of rows at all, such as
//! a permutation, is copied.

use burn::tensor::Shape;
use burn_cubecl::CubeDevice;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::ElemType;
use burn_cubecl::cubecl::prelude::BufferArg;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, empty_device_dtype};
use burn_cubecl::tensor::CubeTensor;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;

/// In bytes.
const CACHE_LINE: usize = 128;

/// A tensor whose rows have `len` values each and are `pitch` values apart.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    tensor: CubeTensor,
    pub(super) len: usize,
    pitch: usize,
}

impl Rows {
    /// The rows of a tensor, or of a copy of it if they are not evenly spaced.
    pub(super) fn of(tensor: CubeTensor) -> Self {
        let len = tensor.meta.shape()[tensor.meta.num_dims() - 1];
        match pitch(tensor.meta.shape(), tensor.meta.strides()).filter(|_| !tensor.meta.is_tiled()) {
            Some(pitch) => Self { tensor, len, pitch },
            None => Self { tensor: into_contiguous(tensor), len, pitch: len },
        }
    }

    /// The same, but also of a copy if vectors of `width` values would extend across rows. `width` divides a row's length.
    pub(super) fn of_vectors(tensor: CubeTensor, width: usize) -> Self {
        let rows = Self::of(tensor);
        if rows.pitch.is_multiple_of(width) {
            return rows;
        }
        Self { tensor: into_contiguous(rows.tensor), len: rows.len, pitch: rows.len }
    }

    /// Rows that are not yet filled, on the device of `like`. CUDA's allocations round rows up to a power of two, which would be a third more memory
    /// for 96 or 192 channels; rows of whole cache lines gain nothing by it.
    pub(super) fn empty(like: &Self, shape: Shape, dtype: DType) -> Self {
        let whole_lines = shape.last().is_some_and(|len| (len * dtype.size()).is_multiple_of(CACHE_LINE));
        let empty = if whole_lines { empty_device_contiguous_dtype } else { empty_device_dtype };
        Self::of(empty(like.client(), like.device(), shape, dtype))
    }

    /// Rows of f32 without gaps and not yet filled, on the device of `like`.
    pub(super) fn dense(like: &Self, shape: [usize; 2]) -> Self {
        Self::of(empty_device_contiguous_dtype(like.client(), like.device(), shape.into(), DType::F32))
    }

    pub(super) fn count(&self) -> usize {
        self.shape().num_elements() / self.len
    }

    pub(super) fn shape(&self) -> Shape {
        self.tensor.meta.shape().clone()
    }

    /// Whether nobody else holds it.
    #[cfg(not(feature = "fusion"))]
    pub(super) fn can_mut(&self) -> bool {
        self.tensor.can_mut()
    }

    pub(super) fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    pub(super) fn elem(&self) -> ElemType {
        dtype_to_storage_type(self.tensor.dtype)
    }

    pub(super) fn device(&self) -> CubeDevice {
        self.tensor.device.clone()
    }

    pub(super) fn client(&self) -> Client {
        self.tensor.client.clone()
    }

    /// The distance between two rows in vectors of `width` values; see [`vector_width`]. Kernels count vectors in 32 bits, which is less than fits
    /// into the largest GPUs (64 GiB of f32 in vectors of four): a larger tensor ends the program rather than being read at wrong places.
    pub(super) fn pitch(&self, width: usize) -> u32 {
        let vectors = self.count() * self.pitch / width;
        assert!(
            u32::try_from(vectors).is_ok(),
            "a tensor of {vectors} vectors of {width} values is too large for this device's kernels"
        );
        (self.pitch / width) as u32
    }

    pub(super) fn arg(&self) -> BufferArg {
        self.tensor.clone().into_buffer_arg()
    }

    pub(super) fn tensor(self) -> CubeTensor {
        self.tensor
    }
}

/// The number of values from one row to the next, if it is the same everywhere.
fn pitch(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let (&len, outer) = shape.split_last()?;
    if len > 1 && strides[shape.len() - 1] != 1 {
        return None;
    }
    let mut pitch = None;
    let mut rows = 1;
    for (&size, &stride) in outer.iter().zip(strides).rev().filter(|(size, _)| **size != 1) {
        let pitch = *pitch.get_or_insert(stride);
        if stride != pitch * rows {
            return None;
        }
        rows *= size;
    }
    Some(pitch.unwrap_or(len))
}

/// The number of values per load or store, for kernels that divide these rows into parts of the given lengths and compute in f32.
pub(super) fn vector_width(parts: &[usize], rows: &[&Rows]) -> usize {
    width(size_of::<f32>(), parts, rows)
}

/// The same for kernels that only move values.
pub(super) fn moved_width(parts: &[usize], rows: &[&Rows]) -> usize {
    width(1, parts, rows)
}

/// For values of at least this number of bytes.
fn width(bytes: usize, parts: &[usize], rows: &[&Rows]) -> usize {
    let Some(first) = rows.first() else { return 1 };
    let bytes = rows.iter().map(|rows| rows.dtype().size()).fold(bytes, usize::max);
    let lengths = || parts.iter().copied().chain(rows.iter().map(|rows| rows.pitch));
    let fits = |width: &usize| lengths().all(|length| length.is_multiple_of(*width));
    first.tensor.client.io_optimized_vector_sizes(bytes).filter(fits).max().unwrap_or(1)
}

/// The largest number of values per load or store, for kernels that divide rows into parts of this length (and compute in f32).
pub(super) fn widest_vector(client: &Client, part: usize) -> usize {
    client.io_optimized_vector_sizes(size_of::<f32>()).filter(|width| part.is_multiple_of(*width)).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::pitch;

    #[test]
    fn rows_are_found() {
        assert_eq!(pitch(&[2, 3, 4, 5], &[60, 20, 5, 1]), Some(5));
        assert_eq!(pitch(&[2, 3, 4, 5], &[96, 32, 8, 1]), Some(8));
        assert_eq!(pitch(&[2, 1, 1, 5], &[8, 77, 99, 1]), Some(8));
        assert_eq!(pitch(&[1, 1, 1, 5], &[1, 1, 1, 1]), Some(5));
        assert_eq!(pitch(&[7], &[1]), Some(7));
        // The same row for all.
        assert_eq!(pitch(&[3, 4], &[0, 1]), Some(0));
        // One channel of several.
        assert_eq!(pitch(&[3, 1], &[4, 4]), Some(4));
        // Permuted, or with gaps between images only.
        assert_eq!(pitch(&[2, 4, 5, 3], &[60, 5, 1, 20]), None);
        assert_eq!(pitch(&[2, 3, 4, 5], &[200, 20, 5, 1]), None);
    }
}
