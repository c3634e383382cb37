//! Element types of tensors in files, and their conversion to `f32`. Not here: how formats name their types.

use half::{bf16, f16};

/// An element type that can be converted to `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    F16,
    Bf16,
    F32,
    F64,
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
}

impl ElementType {
    /// The types above, for messages.
    pub(super) const READABLE: &'static str = "float16, bfloat16, float32, float64, bool and integers";

    /// Converts little-endian bytes. Floats are rounded to the nearest `f32`; an integer that `f32` cannot represent is returned as the error. Bytes
    /// after the last complete element are ignored.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Result<Vec<f32>, i128> {
        match self {
            Self::F16 => Ok(map(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => Ok(map(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Self::F32 => Ok(map(bytes, f32::from_le_bytes)),
            Self::F64 => Ok(map(bytes, |b| f64::from_le_bytes(b) as f32)),
            Self::Bool => Ok(map(bytes, |[b]| if b == 0 { 0.0 } else { 1.0 })),
            Self::U8 => exact(bytes, |b| u8::from_le_bytes(b).into()),
            Self::U16 => exact(bytes, |b| u16::from_le_bytes(b).into()),
            Self::U32 => exact(bytes, |b| u32::from_le_bytes(b).into()),
            Self::U64 => exact(bytes, |b| u64::from_le_bytes(b).into()),
            Self::I8 => exact(bytes, |b| i8::from_le_bytes(b).into()),
            Self::I16 => exact(bytes, |b| i16::from_le_bytes(b).into()),
            Self::I32 => exact(bytes, |b| i32::from_le_bytes(b).into()),
            Self::I64 => exact(bytes, |b| i64::from_le_bytes(b).into()),
        }
    }
}

fn map<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (elements, _) = bytes.as_chunks::<N>();
    elements.iter().map(|&element| convert(element)).collect()
}

fn exact<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> i128) -> Result<Vec<f32>, i128> {
    let (elements, _) = bytes.as_chunks::<N>();
    let checked = |&element: &[u8; N]| {
        let value = convert(element);
        if value as f32 as i128 == value { Ok(value as f32) } else { Err(value) }
    };
    elements.iter().map(checked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_all_widths() {
        let check = |kind: ElementType, bytes: &[u8]| kind.to_f32(bytes).unwrap();
        assert_eq!(check(ElementType::F32, &(-1.5f32).to_le_bytes()), [-1.5]);
        assert_eq!(check(ElementType::F64, &0.1f64.to_le_bytes()), [0.1f32]);
        // 0x3c01 is 1 + 2^-10 in half precision; 0x3f81 is 1 + 2^-7 in bfloat16; 0x7c00 is infinity.
        assert_eq!(check(ElementType::F16, &[0x01, 0x3c, 0x00, 0x7c]), [1.0 + 0.0009765625, f32::INFINITY]);
        assert_eq!(check(ElementType::Bf16, &[0x81, 0x3f]), [1.0078125]);
    }

    #[test]
    fn integers_are_exact_or_refused() {
        let count = |value: i64| ElementType::I64.to_f32(&value.to_le_bytes());
        assert_eq!(count(16_777_216), Ok(vec![16_777_216.0]));
        assert_eq!(count(-3), Ok(vec![-3.0]));
        assert_eq!(count(16_777_217), Err(16_777_217));
        assert_eq!(ElementType::U64.to_f32(&u64::MAX.to_le_bytes()), Err(u64::MAX.into()));
        assert_eq!(ElementType::Bool.to_f32(&[0, 1, 7]), Ok(vec![0.0, 1.0, 1.0]));
        assert_eq!(ElementType::I8.to_f32(&[0xff]), Ok(vec![-1.0]));
    }
}
