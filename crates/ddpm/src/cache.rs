//! The folder of what is kept between runs of the program: weights of Inception, features, indices of large folders, tuned kernels of GPUs.

use std::path::PathBuf;

/// Environment variable that sets the folder.
pub const VARIABLE: &str = "DDPM_CACHE_DIR";

/// `$DDPM_CACHE_DIR`, otherwise `ddpm` in the system's cache folder.
pub fn folder() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE) {
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("ddpm")),
    }
}

/// Stores what is found out about GPU kernels in the folder, see [`denoising_diffusion::device::keep_kernels_in`].
pub fn keep_kernels() -> Option<PathBuf> {
    denoising_diffusion::device::keep_kernels_in(&folder()?.join("kernels"))
}
