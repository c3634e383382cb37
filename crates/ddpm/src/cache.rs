//! The folder of what is kept between runs of the program: weights of Inception, features, what is known of large folders, kernels of GPUs.

use std::path::PathBuf;

/// Names the folder.
pub const VARIABLE: &str = "DDPM_CACHE_DIR";

/// `$DDPM_CACHE_DIR`, else `ddpm` in the system's folder for such things.
pub fn folder() -> Option<PathBuf> {
    match std::env::var_os(VARIABLE) {
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("ddpm")),
    }
}

/// Has kernels of GPUs kept in the folder, see [`denoising_diffusion::device::keep_kernels_in`].
pub fn keep_kernels() -> Option<PathBuf> {
    denoising_diffusion::device::keep_kernels_in(&folder()?.join("kernels"))
}
