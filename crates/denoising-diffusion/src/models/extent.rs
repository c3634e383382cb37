//! The kind and the size of data for which a network of several ranks is made.

use serde::{Deserialize, Serialize};

use crate::data::DataLayout;

/// The kind of data, and its size, which decides where attention is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Never [`DataLayout::Auto`].
    pub layout: DataLayout,
    /// 1 unless the data are volumes.
    pub depth: usize,
    /// 1 for sequences.
    pub height: usize,
    pub width: usize,
}

impl Extent {
    /// One pixel.
    pub(crate) const ONE: Self = Self { layout: DataLayout::Images, depth: 1, height: 1, width: 1 };
}
