//! NumPy's `.npy` format: reading arrays of numbers, writing float32.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. Versions 1 to 3, both byte
//! orders, C and Fortran order (converted to C order). Structured, complex, text and object arrays are
//! refused; nothing is ever unpickled. Not here: opening archives (`.npz`), which `array` does.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use half::f16;

use super::DataError;
use super::decode::read_limited;
use crate::atomic_file::write_atomically;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Longest header accepted, in bytes; NumPy's own default limit.
const MAX_HEADER: u64 = 10_000;

/// Kind and width of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unsigned,
    Signed,
    Float,
    /// One byte, zero or nonzero.
    Bool,
}

/// An array's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) descr: String,
    kind: Kind,
    /// Bytes per element.
    pub(super) width: usize,
    big_endian: bool,
    pub(super) fortran: bool,
    pub(super) shape: Vec<usize>,
}

/// Values of an array, in C order. Integers are as wide as in the file: an array that just fits into memory must not be widened on the way.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    /// uint8, or bool as 0 and 1.
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    /// int64 or uint64.
    Int(Vec<i64>),
    /// float32, float16, or float64 rounded to float32.
    F32(Vec<f32>),
}

impl Values {
    /// Integers of any type; `None` for floats.
    pub(super) fn integers(&self) -> Option<Box<dyn Iterator<Item = i64> + '_>> {
        Some(match self {
            Self::U8(v) => Box::new(v.iter().map(|&v| v.into())),
            Self::I8(v) => Box::new(v.iter().map(|&v| v.into())),
            Self::U16(v) => Box::new(v.iter().map(|&v| v.into())),
            Self::I16(v) => Box::new(v.iter().map(|&v| v.into())),
            Self::U32(v) => Box::new(v.iter().map(|&v| v.into())),
            Self::I32(v) => Box::new(v.iter().map(|&v| v.into())),
            Self::Int(v) => Box::new(v.iter().copied()),
            Self::F32(_) => return None,
        })
    }
}

/// An array in C order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NpyArray {
    pub(super) shape: Vec<usize>,
    /// NumPy's name of the element type, such as `<f4`.
    pub(super) descr: String,
    pub(super) values: Values,
}

/// Reads a float32 array: its shape and its values in C order.
///
/// # Errors
/// There is no such file, it is not a `.npy` file, its element type is not float32, or it has fewer values than its header says.
pub fn read_npy_f32(path: &Path) -> Result<(Vec<usize>, Vec<f32>), DataError> {
    let file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
    let mut reader = BufReader::new(file);
    let header = read_header(&mut reader, path)?;
    if (header.kind, header.width) != (Kind::Float, 4) {
        return Err(DataError::format(
            path,
            "float32 values (numpy: `array.astype(np.float32)`)",
            format!("dtype `{}`", header.descr),
        ));
    }
    let array = read_values(header, reader, path)?;
    match array.values {
        Values::F32(values) => Ok((array.shape, values)),
        _ => Err(DataError::format(path, "float32 values", array.descr)),
    }
}

/// Writes `values` (C order) as a float32 `.npy` file, replacing an existing one.
///
/// # Errors
/// `shape` and `values` disagree, or the file cannot be written.
pub fn write_npy_f32(path: &Path, shape: &[usize], values: &[f32]) -> Result<(), DataError> {
    let count: usize = shape.iter().product();
    if count != values.len() {
        return Err(DataError::format(
            path,
            format!("{count} values for shape {shape:?}"),
            format!("{} values", values.len()),
        ));
    }
    write_atomically(path, |out| {
        out.write_all(&header_of("<f4", shape))?;
        values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    })
    .map_err(|e| DataError::io("write", path, e))
}

/// Reads an array of floats without loss: its shape and its values in C order. `path` is only used in messages.
pub(crate) fn read_npy_f64(mut reader: impl Read, path: &Path) -> Result<(Vec<usize>, Vec<f64>), DataError> {
    let header = read_header(&mut reader, path)?;
    if header.kind != Kind::Float {
        return Err(DataError::format(path, "float64 or float32 values", format!("dtype `{}`", header.descr)));
    }
    read_floats(header, reader, path)
}

fn read_floats(header: Header, reader: impl Read, path: &Path) -> Result<(Vec<usize>, Vec<f64>), DataError> {
    let bytes = read_bytes(&header, reader, path)?;
    let values = elements(&bytes, &header, |bits| float(bits, header.width));
    let values = c_order(values, &header.shape, header.fortran);
    Ok((header.shape, values))
}

/// The value of a float of `width` bytes.
fn float(bits: u64, width: usize) -> f64 {
    match width {
        2 => f16::from_bits(bits as u16).into(),
        4 => f32::from_bits(bits as u32).into(),
        _ => f64::from_bits(bits),
    }
}

/// Reads an array of any numeric type: its shape and its values in C order. `path` is only used in messages.
pub(super) fn read_numbers(mut reader: impl Read, path: &Path) -> Result<(Vec<usize>, Vec<f64>), DataError> {
    let header = read_header(&mut reader, path)?;
    if header.kind == Kind::Float {
        // Measurements of time, for example, have more digits than float32.
        return read_floats(header, reader, path);
    }
    let array = read_values(header, reader, path)?;
    let values = array.values.integers().into_iter().flatten().map(|value| value as f64).collect();
    Ok((array.shape, values))
}

/// Writes a float64 array.
pub(crate) fn write_npy_f64(out: &mut impl Write, shape: &[usize], values: &[f64]) -> std::io::Result<()> {
    out.write_all(&header_of("<f8", shape))?;
    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
}

/// A header of version 1.0, padded so that the values start at a multiple of 64 bytes.
fn header_of(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
    let prefix = MAGIC.len() + 4;
    let padded = (prefix + dict.len() + 1).next_multiple_of(64);
    dict.push_str(&" ".repeat(padded - prefix - dict.len() - 1));
    dict.push('\n');
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend((dict.len() as u16).to_le_bytes());
    header.extend(dict.as_bytes());
    header
}

/// Reads an array of any accepted type. `path` is only used in messages.
pub(super) fn read_npy(mut reader: impl Read, path: &Path) -> Result<NpyArray, DataError> {
    let header = read_header(&mut reader, path)?;
    read_values(header, reader, path)
}

pub(super) fn read_header(reader: &mut impl Read, path: &Path) -> Result<Header, DataError> {
    let found = |text: &str| DataError::format(path, "a .npy header", text);
    let io = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => found("the end of the file"),
        _ => DataError::io("read", path, e),
    };
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(io)?;
    if &start[..6] != MAGIC {
        return Err(found("other first bytes than \\x93NUMPY"));
    }
    let length = match start[6] {
        1 => {
            let mut bytes = [0; 2];
            reader.read_exact(&mut bytes).map_err(io)?;
            u64::from(u16::from_le_bytes(bytes))
        }
        2 | 3 => {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes).map_err(io)?;
            u64::from(u32::from_le_bytes(bytes))
        }
        version => return Err(found(&format!("format version {version}"))),
    };
    if length > MAX_HEADER {
        return Err(found(&format!("a header of {length} bytes")));
    }
    let mut text = vec![0; length as usize];
    reader.read_exact(&mut text).map_err(io)?;
    parse_header(&String::from_utf8_lossy(&text)).map_err(|reason| found(&reason))
}

/// Reads the three keys of the header's dict; NumPy writes nothing else.
fn parse_header(text: &str) -> Result<Header, String> {
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}'")).ok_or(format!("no key `{key}`"))?;
        let (_, rest) = rest.split_once(':').ok_or(format!("no value of `{key}`"))?;
        Ok::<_, String>(rest.trim_start())
    };
    let descr = value("descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(descr, _)| descr.to_owned())
        .ok_or("a structured dtype")?;
    let fortran = match value("fortran_order")? {
        v if v.starts_with("True") => true,
        v if v.starts_with("False") => false,
        _ => return Err("`fortran_order` neither True nor False".into()),
    };
    let shape = value("shape")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(sides, _)| sides.split(',').map(str::trim).filter(|s| !s.is_empty()))
        .ok_or("no tuple in `shape`")?
        .map(|side| side.parse().map_err(|_| format!("`{side}` in `shape`")))
        .collect::<Result<Vec<usize>, _>>()?;
    let unsupported = || format!("dtype `{descr}` (accepted: integers, bool, float16, float32, float64)");
    let (order, rest) = descr.split_at_checked(1).ok_or_else(unsupported)?;
    let (kind, width) = match rest {
        "u1" | "u2" | "u4" | "u8" => (Kind::Unsigned, &rest[1..]),
        "i1" | "i2" | "i4" | "i8" => (Kind::Signed, &rest[1..]),
        "f2" | "f4" | "f8" => (Kind::Float, &rest[1..]),
        "b1" => (Kind::Bool, &rest[1..]),
        _ => return Err(unsupported()),
    };
    let width = width.parse().map_err(|_| unsupported())?;
    let big_endian = match order {
        ">" => true,
        "<" | "|" | "=" => false,
        _ => return Err(unsupported()),
    };
    Ok(Header { descr, kind, width, big_endian, fortran, shape })
}

/// The values of a piece of an array, in C order.
pub(super) fn values_of(header: &Header, bytes: &[u8], path: &Path) -> Result<Values, DataError> {
    let header = Header { shape: vec![bytes.len() / header.width], fortran: false, ..header.clone() };
    Ok(read_values(header, bytes, path)?.values)
}

/// Reads the bytes of all values.
fn read_bytes(header: &Header, reader: impl Read, path: &Path) -> Result<Vec<u8>, DataError> {
    let count = header
        .shape
        .iter()
        .try_fold(header.width, |n, &side| n.checked_mul(side))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| DataError::format(path, "an array that memory can hold", format!("shape {:?}", header.shape)))?;
    let (bytes, _) = read_limited(reader, count as u64).map_err(|e| DataError::io("read", path, e))?;
    if bytes.len() < count {
        return Err(DataError::Truncated {
            path: path.to_path_buf(),
            expected: count as u64,
            found: bytes.len() as u64,
        });
    }
    Ok(bytes)
}

fn read_values(header: Header, reader: impl Read, path: &Path) -> Result<NpyArray, DataError> {
    let bytes = read_bytes(&header, reader, path)?;
    let values = match (header.kind, header.width) {
        (Kind::Bool, _) => in_c_order(bytes.iter().map(|&byte| u8::from(byte != 0)).collect(), &header, Values::U8),
        (Kind::Unsigned, 1) => in_c_order(bytes, &header, Values::U8),
        (Kind::Signed, 1) => in_c_order(elements(&bytes, &header, |bits| bits as i8), &header, Values::I8),
        (Kind::Unsigned, 2) => in_c_order(elements(&bytes, &header, |bits| bits as u16), &header, Values::U16),
        (Kind::Signed, 2) => in_c_order(elements(&bytes, &header, |bits| bits as i16), &header, Values::I16),
        (Kind::Unsigned, 4) => in_c_order(elements(&bytes, &header, |bits| bits as u32), &header, Values::U32),
        (Kind::Signed, 4) => in_c_order(elements(&bytes, &header, |bits| bits as i32), &header, Values::I32),
        (Kind::Unsigned, _) => {
            let saturated = |bits| i64::try_from(bits).unwrap_or(i64::MAX);
            in_c_order(elements(&bytes, &header, saturated), &header, Values::Int)
        }
        (Kind::Signed, _) => in_c_order(elements(&bytes, &header, |bits| bits as i64), &header, Values::Int),
        (Kind::Float, width) => {
            let rounded = |bits| match width {
                // Converting a NaN through f64 could lose bits.
                4 => f32::from_bits(bits as u32),
                width => float(bits, width) as f32,
            };
            in_c_order(elements(&bytes, &header, rounded), &header, Values::F32)
        }
    };
    Ok(NpyArray { shape: header.shape, descr: header.descr, values })
}

fn in_c_order<T: Copy>(values: Vec<T>, header: &Header, of: impl FnOnce(Vec<T>) -> Values) -> Values {
    of(c_order(values, &header.shape, header.fortran))
}

/// Converts each element from its bits, which are in the low end of a `u64`.
fn elements<T>(bytes: &[u8], header: &Header, convert: impl Fn(u64) -> T) -> Vec<T> {
    bytes
        .chunks_exact(header.width)
        .map(|element| {
            let push = |bits: u64, byte: &u8| bits << 8 | u64::from(*byte);
            convert(if header.big_endian { element.iter().fold(0, push) } else { element.iter().rev().fold(0, push) })
        })
        .collect()
}

/// Reorders values whose first axis varies fastest such that the last one does.
fn c_order<T: Copy>(values: Vec<T>, shape: &[usize], fortran: bool) -> Vec<T> {
    if !fortran {
        return values;
    }
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for &side in shape {
        strides.push(stride);
        stride *= side;
    }
    let mut index = vec![0; shape.len()];
    let mut out = Vec::with_capacity(values.len());
    while out.len() < values.len() {
        out.push(values[index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>()]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}
