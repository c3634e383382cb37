//! Mean and covariance of features in a `.npz` file: pytorch-fid's format (`mu`, `sigma`), which is also written, and that of
//! denoising-diffusion-pytorch's cache (`m2`, `s2`). Not here: what they are computed from.

use std::fs::File;
use std::io::{BufReader, Cursor};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::metrics::statistics::{Gaussian, StatisticsError};
use crate::atomic_file::write_atomically;
use crate::data::DataError;
use crate::data::npy::{read_npy_f64, write_npy_f64};

/// Names of mean and covariance in each format.
const NAMES: [[&str; 2]; 2] = [["mu", "sigma"], ["m2", "s2"]];
/// The number of images, which only our files have.
const COUNT: &str = "n";

/// Why statistics could not be read or written.
#[derive(Debug, Error)]
pub enum StatisticsFileError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{} is not a .npz archive", path.display())]
    Archive { path: PathBuf, source: zip::result::ZipError },
    #[error("{} holds no statistics: found the arrays {found:?}; expected mu and sigma, or m2 and s2", path.display())]
    Names { path: PathBuf, found: Vec<String> },
    #[error(transparent)]
    Array(#[from] DataError),
    #[error("{}: a mean of shape {mu:?} and a covariance of shape {sigma:?}; expected [d] and [d, d], d at least 1", path.display())]
    Shapes { path: PathBuf, mu: Vec<usize>, sigma: Vec<usize> },
    #[error("the statistics in {} cannot be used", path.display())]
    Values { path: PathBuf, source: StatisticsError },
}

/// Whether a file is a `.npz` archive that contains statistics, judging by the names of its arrays.
pub fn holds_statistics(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npz"))
        && open(path).is_ok_and(|archive| NAMES.iter().any(|names| names.iter().any(|name| has(&archive, name))))
}

/// Reads statistics of either format.
///
/// # Errors
/// A missing file, no archive, other arrays, inconsistent shapes, values that are not a covariance.
pub fn read_statistics(path: &Path) -> Result<Gaussian, StatisticsFileError> {
    let mut archive = open(path)?;
    let Some([mean, covariance]) = NAMES.into_iter().find(|names| names.iter().all(|name| has(&archive, name))) else {
        let found = archive.file_names().filter_map(Result::ok).map(|name| name.trim_end_matches(".npy").to_string());
        return Err(StatisticsFileError::Names { path: path.to_path_buf(), found: found.collect() });
    };
    let mut read = |name: &str| {
        let entry = archive
            .by_name(&format!("{name}.npy"))
            .map_err(|source| StatisticsFileError::Archive { path: path.to_path_buf(), source })?;
        Ok::<_, StatisticsFileError>(read_npy_f64(entry, &path.join(name))?)
    };
    let ((mu_shape, mu), (sigma_shape, sigma)) = (read(mean)?, read(covariance)?);
    let n = read(COUNT).ok().and_then(|(_, n)| n.first().map(|&n| n as usize));
    if !matches!((&mu_shape[..], &sigma_shape[..]), (&[d], &[rows, columns]) if d > 0 && rows == d && columns == d) {
        return Err(StatisticsFileError::Shapes { path: path.to_path_buf(), mu: mu_shape, sigma: sigma_shape });
    }
    Gaussian::new(n, mu, sigma).map_err(|source| StatisticsFileError::Values { path: path.to_path_buf(), source })
}

/// Writes statistics that pytorch-fid can read, to a temporary file that is then renamed.
///
/// # Errors
/// A file that cannot be written.
pub fn write_statistics(path: &Path, statistics: &Gaussian) -> Result<(), StatisticsFileError> {
    let d = statistics.dims();
    let archive = || -> std::io::Result<Vec<u8>> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let mut add = |name: &str, shape: &[usize], values: &[f64]| {
            zip.start_file(format!("{name}.npy"), options)?;
            write_npy_f64(&mut zip, shape, values)
        };
        add(NAMES[0][0], &[d], statistics.mu())?;
        add(NAMES[0][1], &[d, d], statistics.sigma())?;
        if let Some(n) = statistics.n() {
            add(COUNT, &[], &[n as f64])?;
        }
        Ok(zip.finish()?.into_inner())
    };
    archive()
        .and_then(|bytes| write_atomically(path, |out| out.write_all(&bytes)))
        .map_err(|source| StatisticsFileError::Io { action: "write", path: path.to_path_buf(), source })
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, StatisticsFileError> {
    let file = File::open(path).map_err(|source| StatisticsFileError::Io {
        action: "open",
        path: path.to_path_buf(),
        source,
    })?;
    ZipArchive::new(BufReader::new(file))
        .map_err(|source| StatisticsFileError::Archive { path: path.to_path_buf(), source })
}

fn has(archive: &ZipArchive<BufReader<File>>, name: &str) -> bool {
    archive.index_for_name(&format!("{name}.npy")).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.npz");
        let statistics = Gaussian::new(Some(7), vec![0.1, -2.5], vec![2.0, 0.3, 0.3, 1.0]).unwrap();
        write_statistics(&path, &statistics).unwrap();
        assert!(holds_statistics(&path));
        let read = read_statistics(&path).unwrap();
        assert_eq!((read.n(), read.mu(), read.sigma()), (Some(7), statistics.mu(), statistics.sigma()));
    }

    #[test]
    fn other_archives_are_refused_with_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.npz");
        let write = |arrays: &[(&str, &[usize], &[f64])]| {
            let mut zip = ZipWriter::new(File::create(&path).unwrap());
            for (name, shape, values) in arrays {
                zip.start_file(format!("{name}.npy"), SimpleFileOptions::default()).unwrap();
                write_npy_f64(&mut zip, shape, values).unwrap();
            }
            zip.finish().unwrap();
        };
        write(&[("images", &[1], &[0.0])]);
        assert!(!holds_statistics(&path));
        let error = read_statistics(&path).unwrap_err().to_string();
        assert!(error.contains("images") && error.contains("mu and sigma"), "{error}");

        write(&[("mu", &[2], &[0.0, 0.0]), ("sigma", &[3, 3], &[0.0; 9])]);
        assert!(matches!(read_statistics(&path), Err(StatisticsFileError::Shapes { .. })));
        write(&[("mu", &[0], &[]), ("sigma", &[0, 0], &[])]);
        assert!(matches!(read_statistics(&path), Err(StatisticsFileError::Shapes { .. })));
        write(&[("mu", &[1], &[0.0]), ("sigma", &[1, 1], &[f64::NAN])]);
        assert!(matches!(read_statistics(&path), Err(StatisticsFileError::Values { .. })));

        // The reference's cache.
        write(&[("m2", &[1], &[0.5]), ("s2", &[1, 1], &[2.0])]);
        assert_eq!(read_statistics(&path).unwrap().mu(), [0.5]);

        std::fs::write(&path, b"").unwrap();
        assert!(matches!(read_statistics(&path), Err(StatisticsFileError::Archive { .. })));
    }
}
