//! PyTorch files (`.pt`, `.pth`), read as data: pickle is parsed, never executed, and only those calls in it that rebuild tensors and dictionaries
//! have a meaning. Zip files (PyTorch 1.6 and later) and the older formats are supported.
//!
//! The pickle machine is the crate `pytorch-reader`; this module adds conversion to `f32` and a bound on memory. Not here: what the tensors are for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, PickleValue, PytorchError, PytorchReader, Tensor};

use super::dtype::ElementType;
use super::error::InteropError;
use crate::weights::{HostTensor, StateDict};

const FORMAT: &str = "PyTorch";

/// An opened PyTorch file with a dictionary at its root. Tensors of nested dictionaries have dotted names (`ema.step`). Values are not read until
/// they are requested.
#[derive(Debug)]
pub struct PtFile {
    path: PathBuf,
    file_len: u64,
    reader: PytorchReader,
    root: PickleValue,
}

impl PtFile {
    /// Parses the structure of the file.
    ///
    /// # Errors
    /// The file is truncated, damaged, of another kind or of another byte order, or holds no dictionary.
    pub fn open(path: &Path) -> Result<Self, InteropError> {
        let file_len = fs::metadata(path).map_err(InteropError::io("read", path))?.len();
        if file_len == 0 {
            return Err(InteropError::damaged(path, FORMAT, "it is empty"));
        }
        let reader = PytorchReader::new(path).map_err(|error| unreadable(path, error))?;
        let root = PytorchReader::read_pickle_data(path, None).map_err(|error| unreadable(path, error))?;
        Ok(Self { path: path.to_path_buf(), file_len, reader, root })
    }

    /// Keys of the root dictionary, sorted.
    pub fn top_level_keys(&self) -> Vec<&str> {
        let PickleValue::Dict(root) = &self.root else { return Vec::new() };
        let mut keys: Vec<&str> = root.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// The integer under a key of the root dictionary.
    pub fn int(&self, key: &str) -> Option<i64> {
        match self.top_level(key)? {
            PickleValue::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The text under a key of the root dictionary.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.top_level(key)? {
            PickleValue::String(value) => Some(value),
            _ => None,
        }
    }

    fn top_level(&self, key: &str) -> Option<&PickleValue> {
        match &self.root {
            PickleValue::Dict(root) => root.get(key),
            _ => None,
        }
    }

    /// Dotted names of all tensors, sorted.
    pub fn tensor_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.reader.tensors().keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Reads, as contiguous `f32`, the tensors for whose dotted name `rename` returns a name, and gives them that name.
    ///
    /// # Errors
    /// Damaged contents, an element type without `f32` values, integers that `f32` cannot represent, or tensors that together declare far more bytes
    /// than the file has.
    pub fn read<'a>(&'a self, rename: impl Fn(&'a str) -> Option<&'a str>) -> Result<StateDict, InteropError> {
        let named = |(name, tensor): (&'a String, &'a Tensor)| Some((rename(name)?.to_string(), tensor.clone()));
        let wanted: Vec<(String, Tensor)> = self.reader.tensors().iter().filter_map(named).collect();
        self.check_size(wanted.iter().map(|(_, tensor)| tensor.byte_len() as u64))?;
        wanted.into_iter().map(|(name, tensor)| Ok((name, self.read_tensor(&tensor)?))).collect()
    }

    /// A view can repeat a few stored elements endlessly, so the declared size of tensors must be compared with the file's. The slack is for archives
    /// that were compressed again.
    fn check_size(&self, mut sizes: impl Iterator<Item = u64>) -> Result<(), InteropError> {
        const SLACK: u64 = 16;
        const ALWAYS_ALLOWED: u64 = 64 << 20;
        let limit = self.file_len.saturating_mul(SLACK).max(ALWAYS_ALLOWED);
        let bytes = sizes.try_fold(0u64, u64::checked_add).unwrap_or(u64::MAX);
        if bytes > limit {
            return Err(InteropError::TooLarge { path: self.path.clone(), bytes, limit });
        }
        Ok(())
    }

    fn read_tensor(&self, tensor: &Tensor) -> Result<HostTensor, InteropError> {
        let bytes = tensor.read().map_err(|error| self.unreadable_tensor(error))?;
        let values = element_type(tensor.dtype()).to_f32(&bytes).map_err(|value| InteropError::Integer {
            path: self.path.clone(),
            name: tensor.name.clone(),
            value,
        })?;
        Ok(HostTensor::new(tensor.shape(), values)?)
    }

    fn unreadable_tensor(&self, error: io::Error) -> InteropError {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                InteropError::damaged(&self.path, FORMAT, error.to_string())
            }
            _ => InteropError::io("read", &self.path)(error),
        }
    }
}

fn unreadable(path: &Path, error: PytorchError) -> InteropError {
    match error {
        PytorchError::Io(error) if error.raw_os_error().is_some() => InteropError::io("read", path)(error),
        error => InteropError::damaged(path, FORMAT, error.to_string()),
    }
}

fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::Bf16,
        DType::F32 => ElementType::F32,
        DType::F64 => ElementType::F64,
        DType::Bool => ElementType::Bool,
        DType::U8 => ElementType::U8,
        DType::U16 => ElementType::U16,
        DType::U32 => ElementType::U32,
        DType::U64 => ElementType::U64,
        DType::I8 => ElementType::I8,
        DType::I16 => ElementType::I16,
        DType::I32 => ElementType::I32,
        DType::I64 => ElementType::I64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `testdata/make.py`.
    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/interop/testdata").join(name)
    }

    /// x = 0, 1/8, ..., 11/8 as [3, 4], saved in many forms.
    fn check_types(name: &str) {
        let file = PtFile::open(&file(name)).unwrap();
        assert_eq!(file.top_level_keys(), ["model", "opt", "scaler", "step", "version"]);
        assert_eq!((file.int("step"), file.text("version")), (Some(7), Some("2.3.4")));
        assert_eq!((file.int("version"), file.text("model"), file.int("nothing")), (None, None, None));
        assert!(file.tensor_names().contains(&"opt.state.0.exp_avg"));

        let state = file.read(|name| name.strip_prefix("model.")).unwrap();
        let x: Vec<f32> = (0..12u8).map(|i| f32::from(i) / 8.0).collect();
        for name in ["f32", "f64", "f16", "bf16"] {
            assert_eq!(state.require(name, &[3, 4]).unwrap().values, x, "{name}");
        }
        let transposed: Vec<f32> = (0..12).map(|i| x[i % 3 * 4 + i / 3]).collect();
        assert_eq!(state.require("transposed", &[4, 3]).unwrap().values, transposed);
        assert_eq!(state.require("slice", &[2, 2]).unwrap().values, [x[4], x[6], x[8], x[10]]);
        assert_eq!(state.require("count", &[]).unwrap().values, [123.0]);
        assert_eq!(state.require("flag", &[2]).unwrap().values, [1.0, 0.0]);
        assert_eq!(state.require("parameter", &[4]).unwrap().values, x[..4]);
        assert!(state.require("empty", &[0, 3]).unwrap().values.is_empty());
        assert_eq!(state.len(), 10);
    }

    #[test]
    fn all_element_types_and_layouts() {
        check_types("types.pt");
    }

    #[test]
    fn the_format_before_zip() {
        check_types("types_legacy.pt");
    }

    #[test]
    fn calls_are_data() {
        let file = PtFile::open(&file("call.pt")).unwrap();
        assert_eq!(file.int("step"), None);
        assert_eq!(file.read(Some).unwrap().len(), 1);
        assert!(!Path::new("executed").exists());
    }

    #[test]
    fn what_is_no_dictionary_is_refused() {
        for name in ["list.pt", "call.pkl", "make.py"] {
            let error = PtFile::open(&file(name)).unwrap_err();
            assert!(matches!(error, InteropError::Damaged { .. }), "{name}: {error}");
        }
        assert!(PtFile::open(&file("list.pt")).unwrap_err().to_string().contains("found list"));
        assert!(matches!(PtFile::open(&file("absent.pt")), Err(InteropError::Io { .. })));
        assert!(matches!(PtFile::open(&file("")), Err(InteropError::Io { .. })));
    }

    #[test]
    fn a_view_that_repeats_one_element_into_a_gigabyte_is_refused() {
        let file = PtFile::open(&file("expanded.pt")).unwrap();
        let error = file.read(Some).unwrap_err();
        assert!(matches!(error, InteropError::TooLarge { bytes: 1_073_741_824, .. }), "{error}");
    }

    /// Reads everything in a file; true if that worked.
    fn read_all(bytes: &[u8], path: &Path) -> bool {
        fs::write(path, bytes).unwrap();
        PtFile::open(path).and_then(|file| file.read(Some)).is_ok()
    }

    #[test]
    fn truncations_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        for name in ["types.pt", "types_legacy.pt"] {
            let bytes = fs::read(file(name)).unwrap();
            assert!(read_all(&bytes, &path));
            for len in 0..bytes.len() {
                assert!(!read_all(&bytes[..len], &path), "{name} cut at {len}");
            }
        }
    }

    #[test]
    fn altered_bytes_never_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        for name in ["types.pt", "types_legacy.pt", "call.pt"] {
            let bytes = fs::read(file(name)).unwrap();
            let mut refused = 0;
            for i in 0..bytes.len() {
                let mut altered = bytes.clone();
                // One bit, or the largest value, which turns lengths huge.
                altered[i] = if i % 2 == 0 { bytes[i] ^ (1 << (i / 2 % 8)) } else { 0xff };
                refused += usize::from(!read_all(&altered, &path));
            }
            assert!(refused > bytes.len() / 8, "{name}: only {refused} refused");
        }
    }
}
