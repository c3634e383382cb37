//! Data: where training images come from, how they become numbers, and in which order.
//!
//! A [`Dataset`] is a finite, indexed set of images of one shape, read from a folder of image files, an IDX file (or `.gz`), a `.npy` or `.npz`
//! array, an array in memory, or the embedded `digits`. [`inspect`] describes a source without requiring that it can be trained on. A [`Subset`] is a
//! dataset seen through a list of indices. A [`Loader`] turns a subset into an endless, deterministic sequence of batches, decoded ahead of the
//! consumer by worker threads.
//!
//! Sequences and volumes, from arrays, are carried as images ([`DataLayout`]).
//!
//! Pixels leave this module as `f32` in [0, 1], channels first. Not here: the map to [-1, 1], which belongs to the formulation, noise, which has
//! streams of its own, tensors and devices.

mod array;
pub mod augment;
mod classes;
mod condition;
mod config;
mod dataset;
mod decode;
mod digits;
mod error;
mod folder;
mod folder_index;
mod folder_shape;
mod hint;
mod identity;
mod idx;
mod image_batch;
mod in_memory;
mod jpeg_end;
mod loader;
pub mod npy;
mod order;
mod paged;
mod policy;
mod prefetch;
mod raster;
mod resample;
mod resize;
mod shape;
mod source;
mod store;
mod subset;
mod summary;
#[cfg(test)]
mod tests;
mod tiff_alpha;
mod value_map;
mod vector_table;

pub use config::DataConfig;
pub use dataset::{Dataset, Image, Opening, ScanProgress, files, inspect, inspect_with};
pub use error::{Broken, DataError, shown};
pub use hint::Takes;
pub use image_batch::{ChannelStatistics, ImageBatch, ImageBatchError};
pub use in_memory::ArrayValues;
pub use loader::{Batch, Loader, LoaderConfig};
pub use policy::{CachePolicy, DataLayout, Flip, ResizePolicy, ValueRange, Verify};
pub use shape::{ChannelPolicy, ImageShape, ImageSize, ParseSettingError};
pub(crate) use subset::spread_places;
pub use subset::{Batches, Subset};
pub use summary::{Summary, Tally};
pub use vector_table::{VectorScale, VectorTable};
