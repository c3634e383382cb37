//! What is at a path, read but not yet prepared: a folder of files, or one array. Not here: making a dataset of it.

use std::fs::{File, FileType, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::array::{self, ArraySource};
use super::classes;
use super::config::DataConfig;
use super::dataset::Opening;
use super::error::shown;
use super::folder::{self, Scan};
use super::folder_shape::refuse_channels;
use super::{DataError, DataLayout, digits, idx};

/// A source that has been read; whether it can be trained on has not been checked.
pub(super) enum Source {
    Folder(PathBuf, Scan),
    Array(ArraySource),
}

impl Source {
    pub(super) fn read(config: &DataConfig, opening: &Opening<'_>) -> Result<Self, DataError> {
        config.validate()?;
        let path = match &config.path {
            Some(path) if path.as_os_str() != digits::NAME => path.as_path(),
            None | Some(_) => {
                refuse_labels(config, "none: the digits have labels of their own")?;
                refuse_ranges(config)?;
                refuse_layout(Path::new(digits::NAME), config)?;
                return Ok(Self::Array(digits::load()?));
            }
        };
        let meta = look(path)?;
        if meta.is_dir() {
            refuse_channels(path, config.channels)?;
            refuse_labels(config, "none: the classes of a folder are its subfolders")?;
            refuse_ranges(config)?;
            refuse_layout(path, config)?;
            let scan = folder::scan(path, config, opening)?;
            return Ok(Self::Folder(path.to_path_buf(), scan));
        }
        if let (true, Some(folder)) = (folder::is_image_name(path), path.parent()) {
            refuse_channels(path, config.channels)?;
            refuse_labels(config, "none: one image has no classes")?;
            refuse_ranges(config)?;
            refuse_layout(path, config)?;
            return Ok(Self::Folder(folder.to_path_buf(), folder::scan_file(path, config, opening)?));
        }
        let source = match &first_bytes(path)?[..] {
            [0x93, b'N', b'U', b'M', ..] => array::load_npy(path, config),
            [b'P', b'K', ..] => array::load_npz(path, config),
            [0x1f, 0x8b, ..] | [0, 0, _, _] => {
                refuse_ranges(config)?;
                refuse_layout(path, config)?;
                idx::load(path, config)
            }
            other => Err(DataError::UnknownFormat { path: path.to_path_buf(), first_bytes: format!("{other:02x?}") }),
        };
        let mut source = source?;
        if let Some(labels) = &config.labels {
            source.classes = Some(classes::load(labels, source.count)?);
        }
        Ok(Self::Array(source))
    }
}

/// Refuses a separate file of labels, which is for arrays only.
fn refuse_labels(config: &DataConfig, expected: &'static str) -> Result<(), DataError> {
    match &config.labels {
        None => Ok(()),
        Some(path) => Err(DataError::Setting { key: "labels", value: shown(path), expected }),
    }
}

/// Refuses what says how numbers are read, which pixels have no use for. Data for a network that exists is read by what that one was trained on.
fn refuse_ranges(config: &DataConfig) -> Result<(), DataError> {
    match config.value_range.filter(|_| config.trained_range.is_none()) {
        None => Ok(()),
        Some(range) => Err(DataError::Setting {
            key: "value_range",
            value: range.to_string(),
            expected: "none: only .npy and .npz arrays have one, pixels are black to white",
        }),
    }
}

/// Refuses to read images as something else.
fn refuse_layout(path: &Path, config: &DataConfig) -> Result<(), DataError> {
    match config.layout {
        DataLayout::Auto | DataLayout::Images => Ok(()),
        layout => Err(DataError::Layout { path: path.to_path_buf(), layout }),
    }
}

/// The metadata of a file or folder. Anything else is refused, because reading it could block forever.
pub(super) fn look(path: &Path) -> Result<Metadata, DataError> {
    let meta = std::fs::metadata(path).map_err(|e| DataError::io("open", path, e))?;
    match kind(meta.file_type()) {
        None => Ok(meta),
        Some(kind) => Err(DataError::NotAFile { path: path.to_path_buf(), kind }),
    }
}

/// Names what is neither file nor folder.
pub(super) fn kind(file: FileType) -> Option<&'static str> {
    if file.is_file() || file.is_dir() {
        return None;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if file.is_fifo() {
            return Some("a named pipe");
        }
        if file.is_socket() {
            return Some("a socket");
        }
        if file.is_char_device() || file.is_block_device() {
            return Some("a device");
        }
    }
    Some("a special file")
}

/// Opens a path that must be a file.
pub(super) fn open_file(path: &Path) -> Result<File, DataError> {
    look(path)?;
    File::open(path).map_err(|e| DataError::io("open", path, e))
}

pub(super) fn first_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let file = open_file(path)?;
    file.take(4).read_to_end(&mut bytes).map_err(|e| DataError::io("read", path, e))?;
    Ok(bytes)
}
