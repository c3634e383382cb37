//! Opening data, with progress on a terminal and the index of large folders in the cache. Not here: which data.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use denoising_diffusion::data::{DataConfig, DataError, Dataset, Opening};

use crate::cache;
use crate::failure::{Failure, Result};

/// Opens data, showing on a terminal how many files have been checked.
pub fn open_data(config: &DataConfig) -> Result<Dataset> {
    opening(|opening| Dataset::open_with(config, opening)).map_err(|error| match error {
        // That of a flag or of the network, not a fault of the data.
        DataError::Layout { .. } => Failure::from(error).into_usage(),
        error => error.into(),
    })
}

/// The same for callers that handle the library's error.
pub fn opening<T>(open: impl FnOnce(&Opening<'_>) -> T) -> T {
    let terminal = std::io::stderr().is_terminal();
    let shown = AtomicUsize::new(0);
    let progress = |done: usize, total: usize| {
        let percent = 100 * done / total.max(1);
        if terminal && shown.fetch_max(percent, Ordering::Relaxed) < percent {
            let end = if done == total { "\r\x1b[K" } else { "" };
            let _ = write!(std::io::stderr(), "\rchecking images: {percent} %{end}");
        }
    };
    let index_folder = cache::folder().map(|folder| folder.join("folders"));
    open(&Opening { progress: &progress, index_folder: index_folder.as_deref() })
}
