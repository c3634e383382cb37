//! Safetensors files (<https://huggingface.co/docs/safetensors>): read into `f32`, written as `f32`, complete and reproducible. Not here: what the
//! tensors are for.
//!
//! The format has no checksum, so our files have one in the metadata entry `content_sha256`. It covers names, types, shapes, values and the other
//! metadata, but not their position in the file. Files without the entry are not checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata as Header, TensorInfo};
use serde::Serialize;

use super::checksum::{Checksum, for_bytes};
use super::dtype::ElementType;
use super::error::InteropError;
use crate::atomic_file::write_atomically;
use crate::weights::{HostTensor, StateDict, TensorView};

/// Text entries in the header of a safetensors file.
pub type Metadata = BTreeMap<String, String>;

const FORMAT: &str = "safetensors";
const CHECKSUM: &str = "content_sha256";
const METADATA: &str = "__metadata__";
/// The format's own limit on the header, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// Whether a file is meant to be a safetensors file, by its name or its first bytes: the length of the header, then the header, which is JSON and so
/// begins with a brace. (A `.pt` file is a zip archive.)
///
/// # Errors
/// The file cannot be read.
pub fn is_safetensors(path: &Path) -> Result<bool, InteropError> {
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(9).read_to_end(&mut start)).map_err(InteropError::io("read", path))?;
    let named = path.extension().is_some_and(|extension| extension == FORMAT);
    Ok(named || (start.get(8) == Some(&b'{') && !start.starts_with(b"PK")))
}

/// Reads all tensors of a file, converted to `f32`, and its metadata.
///
/// Float16, bfloat16 and float64 are rounded to `f32`; integers must be exactly representable. Values that are not finite are read
/// as they are: see [`StateDict::non_finite`].
///
/// # Errors
/// The file is truncated, altered (if it has our checksum) or not a safetensors file, or has an element type without `f32` values.
pub fn read_safetensors(path: &Path) -> Result<(StateDict, Metadata), InteropError> {
    let mut file = File::open(path).map_err(InteropError::io("read", path))?;
    let (header, data_start) = read_header(&mut file, path)?;
    let mut metadata = metadata_of(&header);
    let expected = metadata.remove(CHECKSUM);

    let mut checksum = Checksum::new(&metadata);
    let mut state = StateDict::new();
    for (name, info) in header.tensors().into_iter().collect::<BTreeMap<_, _>>() {
        let bytes = read_data(&mut file, data_start, info).map_err(InteropError::io("read", path))?;
        if expected.is_some() {
            checksum.tensor(&name, &info.dtype.to_string(), &info.shape, |sink| sink(&bytes));
        }
        let tensor = to_tensor(path, &name, info, &bytes)?;
        state.insert(name, tensor);
    }
    match expected {
        Some(expected) if expected != checksum.finish() => Err(InteropError::damaged(
            path,
            FORMAT,
            format!(
                "its contents do not match the checksum in its metadata: it was changed after it was written (if on purpose, remove \
                 `{CHECKSUM}` from the metadata)"
            ),
        )),
        _ => Ok((state, metadata)),
    }
}

/// The metadata of a file, without reading its tensors.
///
/// # Errors
/// The file is not a safetensors file, or its tensors do not fit into it.
pub fn read_metadata(path: &Path) -> Result<Metadata, InteropError> {
    let mut file = File::open(path).map_err(InteropError::io("read", path))?;
    let mut metadata = metadata_of(&read_header(&mut file, path)?.0);
    metadata.remove(CHECKSUM);
    Ok(metadata)
}

fn metadata_of(header: &Header) -> Metadata {
    header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Writes tensors (as `f32`) and metadata, with a checksum. Equal contents give equal bytes. `path` always holds either the complete new file or what
/// it held before.
///
/// # Errors
/// The folder is missing or not writable, the disk is full, a tensor's values do not fill its shape, or a tensor or metadata entry
/// has a name that the format reserves.
pub fn write_safetensors(path: &Path, state: &StateDict, metadata: &Metadata) -> Result<(), InteropError> {
    write_tensor_views(path, &state.iter().map(|(name, tensor)| (name, tensor.view())).collect(), metadata)
}

/// Like [`write_safetensors`], for borrowed tensors: the same bytes, without a copy.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_tensor_views(
    path: &Path,
    tensors: &BTreeMap<&str, TensorView<'_>>,
    metadata: &Metadata,
) -> Result<(), InteropError> {
    let header = header_bytes(path, tensors, metadata)?;
    let written = write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut result = Ok(());
        for tensor in tensors.values() {
            for_bytes(tensor.values, |bytes| {
                if result.is_ok() {
                    result = out.write_all(bytes);
                }
            });
        }
        result
    });
    written.map_err(InteropError::io("write", path))
}

fn read_header(file: &mut File, path: &Path) -> Result<(Header, u64), InteropError> {
    let io = |source| InteropError::io("read", path)(source);
    let damaged = |what: String| InteropError::damaged(path, FORMAT, what);
    let file_len = file.metadata().map_err(io)?.len();
    if file_len < 8 {
        return Err(damaged(format!("it has {file_len} bytes, and the length of its header alone takes 8")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(damaged(format!("it announces a header of {length} bytes; at most {LONGEST_HEADER} are allowed")));
    }
    if length > file_len - 8 {
        return Err(damaged(format!("its header should have {length} bytes, but only {} follow", file_len - 8)));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(io)?;
    let header: Header = serde_json::from_slice(&json).map_err(|e| damaged(format!("its header is not valid: {e}")))?;
    let (expected, got) = (header.data_len() as u64, file_len - 8 - length);
    if expected != got {
        return Err(damaged(format!("its tensors should have {expected} bytes, but {got} are there")));
    }
    Ok((header, 8 + length))
}

/// The header's offsets lie within the file, as [`read_header`] has checked.
fn read_data(file: &mut File, data_start: u64, info: &TensorInfo) -> io::Result<Vec<u8>> {
    let (start, end) = info.data_offsets;
    file.seek(SeekFrom::Start(data_start + start as u64))?;
    let mut bytes = vec![0; end - start];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn to_tensor(path: &Path, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<HostTensor, InteropError> {
    let Some(kind) = element_type(info.dtype) else {
        return Err(InteropError::ElementType {
            path: path.to_path_buf(),
            name: name.to_string(),
            found: info.dtype.to_string(),
            expected: ElementType::READABLE,
        });
    };
    let values = kind.to_f32(bytes).map_err(|value| InteropError::Integer {
        path: path.to_path_buf(),
        name: name.to_string(),
        value,
    })?;
    Ok(HostTensor::new(info.shape.clone(), values)?)
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::F32 => ElementType::F32,
        Dtype::F64 => ElementType::F64,
        Dtype::BOOL => ElementType::Bool,
        Dtype::U8 => ElementType::U8,
        Dtype::U16 => ElementType::U16,
        Dtype::U32 => ElementType::U32,
        Dtype::U64 => ElementType::U64,
        Dtype::I8 => ElementType::I8,
        Dtype::I16 => ElementType::I16,
        Dtype::I32 => ElementType::I32,
        Dtype::I64 => ElementType::I64,
        _ => return None,
    })
}

/// An entry of the header, keyed by tensor name or `__metadata__`.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(Metadata),
    Tensor { dtype: &'static str, shape: &'a [usize], data_offsets: [usize; 2] },
}

/// The safetensors crate writes metadata in the order of a hash map, which differs between runs; here they are sorted.
fn header_bytes(
    path: &Path,
    tensors: &BTreeMap<&str, TensorView<'_>>,
    metadata: &Metadata,
) -> Result<Vec<u8>, InteropError> {
    if tensors.contains_key(METADATA) {
        return Err(InteropError::ReservedName(METADATA.to_string()));
    }
    if metadata.contains_key(CHECKSUM) {
        return Err(InteropError::ReservedName(CHECKSUM.to_string()));
    }
    let mut entries = BTreeMap::new();
    let mut checksum = Checksum::new(metadata);
    let mut offset = 0;
    for (&name, tensor) in tensors {
        tensor.check()?;
        let end = offset + 4 * tensor.values.len();
        entries.insert(name, Entry::Tensor { dtype: "F32", shape: tensor.shape, data_offsets: [offset, end] });
        offset = end;
        checksum.tensor(name, "F32", tensor.shape, |sink| for_bytes(tensor.values, sink));
    }
    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM.to_string(), checksum.finish());
    entries.insert(METADATA, Entry::Metadata(metadata));
    let mut json = serde_json::to_vec(&entries).map_err(io::Error::from).map_err(InteropError::io("write", path))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::StateDictError;
    use proptest::prelude::*;

    fn example() -> (StateDict, Metadata) {
        let mut state = StateDict::new();
        state.insert("b.weight", HostTensor::new([2, 3], vec![0.0, -1.5, 2.0, 1e-30, f32::MAX, -0.0]).unwrap());
        state.insert("a", HostTensor::new([], vec![7.0]).unwrap());
        state.insert("empty", HostTensor::new([0, 3], vec![]).unwrap());
        (state, Metadata::from([("zeta".into(), "1".into()), ("config".into(), "{\"dim\": 8}".into())]))
    }

    fn written() -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let (state, metadata) = example();
        write_safetensors(&path, &state, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (folder, path, bytes)
    }

    #[test]
    fn comes_back_and_is_reproducible() {
        let (_folder, path, bytes) = written();
        assert_eq!(read_safetensors(&path).unwrap(), example());
        let (state, metadata) = example();
        write_safetensors(&path, &state, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        // Tensors start at multiples of 8 bytes, as in files of the format's own writer, and its reader accepts the file.
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.tensor("a").unwrap().data(), 7f32.to_le_bytes());
    }

    #[test]
    fn every_truncation_is_refused_with_its_sizes() {
        let (_folder, path, bytes) = written();
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let error = read_safetensors(&path).unwrap_err();
            assert!(matches!(error, InteropError::Damaged { .. }), "{len}: {error}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        let text = read_safetensors(&path).unwrap_err().to_string();
        assert!(text.contains("should have 28 bytes, but 24 are there"), "{text}");
        std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        assert!(read_safetensors(&path).is_err());
    }

    #[test]
    fn no_altered_bit_changes_a_tensor_unnoticed() {
        let (_folder, path, bytes) = written();
        let (state, _) = example();
        let mut noticed = 0;
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &altered).unwrap();
            match read_safetensors(&path) {
                Err(_) => noticed += 1,
                // Only if the key of the checksum itself was altered, which makes it an ordinary text entry.
                Ok((read, metadata)) => assert!(read == state && metadata.len() == 3, "bit {bit}"),
            }
        }
        assert!(noticed > bytes.len() * 8 - CHECKSUM.len() * 8);
    }

    #[test]
    fn an_altered_value_is_called_altered() {
        let (_folder, path, mut bytes) = written();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(read_safetensors(&path).unwrap_err().to_string().contains("changed after it was written"));
    }

    #[test]
    fn half_double_and_integers_become_f32() {
        use safetensors::tensor::TensorView;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let big = 16_777_217i64.to_le_bytes();
        let write = |tensors: &[(&str, Dtype, &[u8])]| {
            let views = tensors.iter().map(|&(name, dtype, bytes)| {
                (name, TensorView::new(dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes).unwrap())
            });
            std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        };
        let double = 0.5f64.to_le_bytes();
        write(&[
            ("f16", Dtype::F16, &[0x00, 0x3e]),
            ("bf16", Dtype::BF16, &[0x80, 0xbf]),
            ("f64", Dtype::F64, &double),
            ("u8", Dtype::U8, &[255]),
        ]);
        let (state, metadata) = read_safetensors(&path).unwrap();
        let value = |name: &str| state.get(name).unwrap().values[0];
        assert_eq!([value("f16"), value("bf16"), value("f64"), value("u8")], [1.5, -1.0, 0.5, 255.0]);
        assert!(metadata.is_empty());
        write(&[("count", Dtype::I64, &big)]);
        assert!(read_safetensors(&path).unwrap_err().to_string().contains("`count`"));
        write(&[("eight", Dtype::F8_E4M3, &[1, 2])]);
        assert!(matches!(read_safetensors(&path).unwrap_err(), InteropError::ElementType { .. }));
    }

    #[test]
    fn announced_sizes_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let with_header = |json: &str| {
            let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
            std::fs::write(&path, bytes).unwrap();
            read_safetensors(&path).unwrap_err().to_string()
        };
        let huge = with_header(r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#);
        assert!(huge.contains("4000000000000 bytes, but 0 are there"), "{huge}");
        let overflow = with_header(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#);
        assert!(overflow.contains("header is not valid"), "{overflow}");
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(read_safetensors(&path).unwrap_err().to_string().contains("at most 100000000"));
    }

    #[test]
    fn reserved_names_and_wrong_counts_are_refused_before_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let one = || HostTensor { shape: vec![2], values: vec![0.0] };
        let state: StateDict = [("a".to_string(), one())].into_iter().collect();
        assert!(matches!(
            write_safetensors(&path, &state, &Metadata::new()),
            Err(InteropError::Tensor(StateDictError::ValueCount { .. }))
        ));
        let reserved = Metadata::from([(CHECKSUM.to_string(), String::new())]);
        assert!(matches!(write_safetensors(&path, &StateDict::new(), &reserved), Err(InteropError::ReservedName(_))));
        assert!(!path.exists());
    }

    fn tensors() -> impl Strategy<Value = Vec<(String, HostTensor)>> {
        let shape = proptest::collection::vec(0usize..4, 0..4);
        let tensor = shape.prop_flat_map(|shape| {
            let count: usize = shape.iter().product();
            proptest::collection::vec(any::<f32>(), count)
                .prop_map(move |values| HostTensor::new(shape.clone(), values).unwrap())
        });
        proptest::collection::vec(("[a-z.\\\\\"\u{e9}]{0,8}", tensor), 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_contents_come_back(tensors in tensors(), key in "[a-z]{0,5}", value in "\\PC{0,20}") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.safetensors");
            let state: StateDict = tensors.into_iter().collect();
            let metadata = Metadata::from([(key, value)]);
            write_safetensors(&path, &state, &metadata).unwrap();
            let (read, read_metadata) = read_safetensors(&path).unwrap();
            prop_assert_eq!(metadata, read_metadata);
            prop_assert!(read.names().eq(state.names()));
            for ((_, a), (_, b)) in read.iter().zip(state.iter()) {
                prop_assert_eq!(&a.shape, &b.shape);
                let bits = |t: &HostTensor| t.values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(a), bits(b));
            }
        }
    }
}
