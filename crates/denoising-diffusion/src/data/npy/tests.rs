//! Files as NumPy writes them, whole and wrong.

use super::*;
use proptest::prelude::*;

/// A file as NumPy writes it.
fn file(descr: &str, fortran: &str, shape: &str, values: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.extend(values);
    bytes
}

fn read(bytes: &[u8]) -> Result<NpyArray, DataError> {
    read_npy(bytes, Path::new("x.npy"))
}

#[test]
fn element_types_are_read() {
    let array = read(&file("'|u1'", "False", "(3,)", &[0, 128, 255])).unwrap();
    assert_eq!(array.values, Values::U8(vec![0, 128, 255]));
    let array = read(&file("'>i2'", "False", "(2,)", &[0xff, 0xfe, 1, 0])).unwrap();
    assert_eq!(array.values, Values::I16(vec![-2, 256]));
    let array = read(&file("'<u4'", "False", "(1,)", &[255; 4])).unwrap();
    assert_eq!(array.values, Values::U32(vec![u32::MAX]));
    let array = read(&file("'<f8'", "False", "(1, 1)", &0.25f64.to_le_bytes())).unwrap();
    assert_eq!(array.values, Values::F32(vec![0.25]));
    let array = read(&file("'>f4'", "False", "()", &(-3.5f32).to_be_bytes())).unwrap();
    assert_eq!((array.shape, array.values), (vec![], Values::F32(vec![-3.5])));
}

#[test]
fn integers_are_as_wide_as_in_the_file() {
    let values = |descr: &str, bytes: &[u8]| {
        let shape = format!("({},)", bytes.len() / descr[2..].parse::<usize>().unwrap());
        read(&file(&format!("'{descr}'"), "False", &shape, bytes)).unwrap().values
    };
    assert_eq!(values("|i1", &[0x80, 0xff, 0x7f]), Values::I8(vec![-128, -1, 127]));
    assert_eq!(values("<u2", &[0, 0x80, 0xff, 0xff]), Values::U16(vec![32_768, 65_535]));
    assert_eq!(values(">i4", &[0xff, 0xff, 0xff, 0xfe]), Values::I32(vec![-2]));
    assert_eq!(values("<i8", &i64::MIN.to_le_bytes()), Values::Int(vec![i64::MIN]));
    assert_eq!(values("<u8", &u64::MAX.to_le_bytes()), Values::Int(vec![i64::MAX]));
    let all = [("|i1", 1), ("<i2", 2), ("<i4", 4), ("<i8", 8), ("<u2", 2), ("<u4", 4), ("<u8", 8), ("|u1", 1)];
    for (descr, width) in all {
        let bytes: Vec<u8> = [5, 7].iter().flat_map(|&value: &u64| value.to_le_bytes()[..width].to_vec()).collect();
        let found = values(descr, &bytes);
        assert_eq!(found.integers().unwrap().collect::<Vec<_>>(), [5, 7], "{descr}");
    }
    assert!(values("<f4", &[0; 4]).integers().is_none());
}

#[test]
fn halves_and_bools_are_widened() {
    // numpy: np.array([0.5, -2, 65504], "f2")
    let halves = file("'<f2'", "False", "(3,)", &[0x00, 0x38, 0x00, 0xc0, 0xff, 0x7b]);
    assert_eq!(read(&halves).unwrap().values, Values::F32(vec![0.5, -2.0, 65504.0]));
    assert_eq!(read_npy_f64(&halves[..], Path::new("x.npy")).unwrap().1, [0.5, -2.0, 65504.0]);
    let bools = read(&file("'|b1'", "False", "(3,)", &[0, 1, 7])).unwrap();
    assert_eq!(bools.values, Values::U8(vec![0, 1, 1]));
}

#[test]
fn numbers_keep_their_digits() {
    let times: Vec<u8> = [1.7e9, 1.7e9 + 1.0, 1e300].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
    let (_, values) = read_numbers(&file("'<f8'", "False", "(3,)", &times)[..], Path::new("x.npy")).unwrap();
    assert_eq!(values, [1.7e9, 1.7e9 + 1.0, 1e300]);
}

#[test]
fn fortran_order_becomes_c_order() {
    // numpy: np.asfortranarray(np.arange(6, dtype="u1").reshape(1, 2, 3)).tobytes("A")
    let array = read(&file("'|u1'", "True", "(1, 2, 3)", &[0, 3, 1, 4, 2, 5])).unwrap();
    assert_eq!(array.values, Values::U8(vec![0, 1, 2, 3, 4, 5]));
}

#[test]
fn bad_files_say_what_is_wrong() {
    let huge = format!("({0}, {0}, {0})", u32::MAX);
    let cases = [
        (file("'<f4'", "False", "(2, 3)", &[0; 20]), "promises 24 bytes of values, found 20"),
        (file("'<f4'", "False", &huge, &[]), "memory can hold"),
        (file("'<f4'", "False", "(1000000000000,)", &[]), "truncated"),
        (file("'<c8'", "False", "(1,)", &[0; 8]), "dtype `<c8`"),
        (file("'|O'", "False", "(1,)", &[0; 8]), "dtype `|O`"),
        (file("''", "False", "(1,)", &[]), "dtype ``"),
        (file("[('a', '<f4')]", "False", "(1,)", &[0; 4]), "structured"),
        (file("'<f4'", "Maybe", "(1,)", &[0; 4]), "fortran_order"),
        (file("'<f4'", "False", "(-1,)", &[0; 4]), "`-1` in `shape`"),
        (b"\x93NUMPY\x09\x00".to_vec(), "version 9"),
        (b"\x93NUM".to_vec(), "end of the file"),
        (b"P5 8 8 255 not an array".to_vec(), "NUMPY"),
    ];
    for (bytes, expected) in cases {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "`{expected}` not in `{error}`");
    }
}

#[test]
fn float32_is_demanded_where_it_matters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    std::fs::write(&path, file("'<f8'", "False", "(1,)", &[0; 8])).unwrap();
    let error = read_npy_f32(&path).unwrap_err().to_string();
    assert!(error.contains("float32") && error.contains("`<f8`"), "{error}");
    let error = read_npy_f32(&folder.path().join("none.npy")).unwrap_err();
    assert!(matches!(error, DataError::NotFound { .. }));
    let error = write_npy_f32(&path, &[2, 2], &[0.0; 3]).unwrap_err().to_string();
    assert!(error.contains("4 values"), "{error}");
}

proptest! {
    #[test]
    fn written_arrays_read_back_bit_for_bit(
        shape in prop::collection::vec(0usize..5, 0..5), seed: u32,
    ) {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count as u32)
            .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761).wrapping_add(seed)))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        write_npy_f32(&path, &shape, &values).unwrap();
        let (read_shape, read) = read_npy_f32(&path).unwrap();
        prop_assert_eq!(read_shape, shape);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&read), bits(&values));
        let header = std::fs::metadata(&path).unwrap().len() as usize - 4 * count;
        prop_assert_eq!(header % 64, 0);
    }
}
