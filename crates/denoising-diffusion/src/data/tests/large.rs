//! Data larger than the memory limit, and folders that are scanned again.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::npy::write_npy_f32;
use super::super::*;
use super::{config, folder, rgb, save};

fn off(path: &Path) -> DataConfig {
    DataConfig { cache: CachePolicy::Off, ..config(path) }
}

/// A `.npy` file of any type.
fn write(path: &Path, descr: &str, shape: &str, bytes: &[u8]) {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((dict.len() as u16).to_le_bytes());
    file.extend(dict.as_bytes());
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn an_array_read_from_its_file_is_the_one_read_into_memory() {
    let root = folder();
    let path = root.path().join("x.npy");
    let bytes: Vec<u8> = (0..7 * 4 * 4 * 3 * 4).map(|i| (i * 37 % 251) as u8).collect();
    let floats: Vec<f32> = (0..7 * 48).map(|i| (i as f32 * 0.37).sin() * 4.0 - 1.0).collect();
    let unit: Vec<f32> = floats.iter().map(|v| (v + 5.0) / 10.0).collect();
    let write_floats = |values: &[f32]| write_npy_f32(&path, &[7, 3, 4, 4], values).unwrap();
    let sequences = |config| DataConfig { layout: DataLayout::Sequences, ..config };
    let smaller = |config| DataConfig { image_size: Some(ImageSize::square(2)), ..config };
    let plain = |config: DataConfig| config;
    let declared = |config| DataConfig { value_range: Some(ValueRange::Declared([-10.0, 300.0])), ..config };
    type Change<'a> = &'a dyn Fn(DataConfig) -> DataConfig;
    let trained = |low| move |config| DataConfig { trained_range: Some([low, 1.0]), ..config };
    let ones: Vec<u8> = bytes.iter().map(|byte| byte % 2).collect();
    let signed: Vec<u8> = bytes[..336].iter().map(|byte| byte / 2).collect();
    let cases: [(&str, &dyn Fn(), Change<'_>); 11] = [
        ("channels last", &|| write(&path, "|u1", "(7, 4, 4, 3)", &bytes[..336]), &plain),
        ("channels first", &|| write(&path, "|u1", "(7, 3, 4, 4)", &bytes[..336]), &plain),
        ("resized", &|| write(&path, "|u1", "(7, 3, 4, 4)", &bytes[..336]), &smaller),
        ("16 bits, big-endian", &|| write(&path, ">u2", "(7, 3, 4, 4)", &bytes[..672]), &plain),
        ("floats", &|| write_floats(&unit), &plain),
        ("declared", &|| write(&path, "<i2", "(7, 12, 2, 1)", &[7, 0].repeat(168)), &declared),
        ("one byte with a sign", &|| write(&path, "|i1", "(7, 3, 4, 4)", &signed), &declared),
        ("a network's zeros and ones", &|| write(&path, "|u1", "(7, 3, 4, 4)", &ones[..336]), &trained(-1.0)),
        ("pixels for a network", &|| write(&path, "|u1", "(7, 3, 4, 4)", &bytes[..336]), &trained(-1.0)),
        (
            "its zeros and ones in 16 bits",
            &|| write(&path, "<u2", "(7, 3, 4, 4)", &ones[..336].iter().flat_map(|&one| [one, 0]).collect::<Vec<_>>()),
            &trained(0.0),
        ),
        ("sequences", &|| write_npy_f32(&path, &[7, 12, 4], &floats).unwrap(), &sequences),
    ];
    for (name, write, change) in cases {
        write();
        let (memory, paged) =
            (Dataset::open(&change(config(&path))).unwrap(), Dataset::open(&change(off(&path))).unwrap());
        assert!(memory.is_in_memory() && !paged.is_in_memory(), "{name}");
        assert_eq!(paged.bytes_in_memory(), 0);
        assert_eq!((memory.shape(), memory.digest()), (paged.shape(), paged.digest()), "{name}");
        assert_eq!((memory.value_range(), memory.layout()), (paged.value_range(), paged.layout()), "{name}");
        assert_eq!(memory.summary().to_string(), paged.summary().to_string(), "{name}");
        for i in 0..7 {
            assert_eq!(memory.get(i).unwrap(), paged.get(i).unwrap(), "{name}, {i}");
        }
    }
}

#[test]
fn an_array_that_is_written_to_while_in_use_is_an_error() {
    let root = folder();
    let path = root.path().join("x.npy");
    write(&path, "|u1", "(2, 3, 4, 4)", &[7; 96]);
    let paged = Dataset::open(&off(&path)).unwrap();
    assert!(paged.get(0).is_ok());
    write(&path, "|u1", "(2, 3, 4, 4)", &[9; 96]);
    // The clock of a file system may not have gone on.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    assert!(matches!(paged.get(0), Err(DataError::Written { .. })));
}

#[test]
fn an_array_is_kept_if_its_values_fit_not_its_file() {
    let root = folder();
    let path = root.path().join("x.npy");
    let declared = Some(ValueRange::Declared([-200.0, 300.0]));
    // Files of n x 1024 values; one MiB may be kept.
    let cases = [
        ("|u1", 1024, None, true),
        ("|u1", 1025, None, false),
        ("<u2", 512, None, true),
        ("<u2", 513, None, false),
        ("|i1", 256, declared, true),
        ("|i1", 257, declared, false),
        ("|u1", 257, declared, false),
        ("|b1", 257, None, false),
        ("<f2", 257, None, false),
        ("<f8", 256, None, true),
        ("<f8", 257, None, false),
    ];
    for (descr, n, value_range, kept) in cases {
        let width: usize = descr[2..].parse().unwrap();
        write(&path, descr, &format!("({n}, 32, 32)"), &vec![0; n * 1024 * width]);
        let dataset = Dataset::open(&DataConfig { cache_mib: 1, value_range, ..config(&path) }).unwrap();
        assert_eq!(dataset.is_in_memory(), kept, "{descr} {n}");
        assert!(dataset.bytes_in_memory() <= 1 << 20);
    }
    // Read as numbers, not as pixels, and so of four times the size.
    let trained = |byte: u8| {
        write(&path, "|u1", "(257, 32, 32)", &[vec![0; 257 * 1024 - 1], vec![byte]].concat());
        let trained_range = Some([-1.0, 1.0]);
        Dataset::open(&DataConfig { cache_mib: 1, trained_range, ..config(&path) }).unwrap().is_in_memory()
    };
    assert!(!trained(1) && trained(2));
}

/// Read in parts, unlike an archive, which is read whole.
#[test]
fn an_array_is_read_alike_from_a_file_and_from_an_archive() {
    let root = folder();
    let (file, archive) = (root.path().join("x.npy"), root.path().join("x.npz"));
    // More than a part has values.
    let bytes: Vec<u8> = (0..3 * 700 * 1000).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let declared = Some(ValueRange::Declared([-200.0, 300.0]));
    for (descr, n, value_range) in [("|u1", 3, None), ("|u1", 3, declared), ("|i1", 3, declared), ("<f2", 1, declared)]
    {
        let side = 700 * 1000 / descr[2..].parse::<usize>().unwrap();
        let values = match descr {
            // Not all are finite as floats.
            "<f2" => vec![0x3c; 700 * 1000],
            _ => bytes.clone(),
        };
        write(&file, descr, &format!("({n}, {}, 700)", side / 700), &values);
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&archive).unwrap());
        zip.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, &std::fs::read(&file).unwrap()).unwrap();
        zip.finish().unwrap();
        let open = |path: &Path| Dataset::open(&DataConfig { value_range, ..config(path) }).unwrap();
        let (alone, archived) = (open(&file), open(&archive));
        assert_eq!(alone.digest(), archived.digest(), "{descr}");
        assert_eq!((alone.shape(), alone.value_range()), (archived.shape(), archived.value_range()));
        (0..n).for_each(|i| assert_eq!(alone.get(i).unwrap(), archived.get(i).unwrap(), "{descr}"));
    }
}

#[test]
fn what_is_wrong_with_a_large_array_is_said() {
    let root = folder();
    let path = root.path().join("x.npy");
    write(&path, "|u1", "(7, 4, 4)", &[9; 111]);
    assert!(matches!(Dataset::open(&off(&path)), Err(DataError::Truncated { expected: 112, found: 111, .. })));
    write_npy_f32(&path, &[2, 1, 1, 2], &[0.0, 0.5, f32::NAN, 1.0]).unwrap();
    assert!(matches!(Dataset::open(&off(&path)), Err(DataError::NotFinite { image: 1, .. })));
    write_npy_f32(&path, &[2, 1, 1, 2], &[0.0, 0.5, 2.0, 1.0]).unwrap();
    assert!(matches!(Dataset::open(&off(&path)), Err(DataError::ValueRange { .. })));
    // Truncated while the dataset is open.
    write(&path, "|u1", "(7, 4, 4)", &[9; 112]);
    let dataset = Dataset::open(&off(&path)).unwrap();
    write(&path, "|u1", "(7, 4, 4)", &[9; 30]);
    assert!(matches!(dataset.get(6), Err(DataError::Written { .. })));
}

#[test]
fn a_large_folder_is_decoded_once() {
    let (root, index) = (folder(), folder());
    for i in 0..1000 {
        save(root.path(), &format!("{i:04}.png"), &rgb(1, 1, (i % 200) as u8));
    }
    std::fs::write(root.path().join("0500.png"), "no image").unwrap();
    let checked = AtomicUsize::new(0);
    let open = |verify| {
        checked.store(0, Ordering::Relaxed);
        let progress = |_, _| {
            checked.fetch_add(1, Ordering::Relaxed);
        };
        let opening = Opening { progress: &progress, index_folder: Some(index.path()) };
        let dataset = Dataset::open_with(&DataConfig { verify, ..config(root.path()) }, &opening).unwrap();
        (dataset, checked.load(Ordering::Relaxed))
    };
    // Readable headers do not mean that all files can be decoded.
    assert_eq!(open(Verify::Header).1, 1000);
    let (first, looked) = open(Verify::Full);
    assert_eq!((first.len(), looked), (999, 1000));
    assert!(first.is_in_memory());
    let (again, looked) = open(Verify::Full);
    assert_eq!((again.len(), again.digest(), looked), (999, first.digest(), 0));
    assert_eq!(again.summary().broken, first.summary().broken);
    assert!(!again.is_in_memory(), "nothing has been decoded yet");
    for i in [0, 500, 998] {
        assert_eq!(again.get(i).unwrap(), first.get(i).unwrap());
    }
    assert_eq!(open(Verify::Header).1, 0, "a thorough look is one at headers too");

    save(root.path(), "0007.png", &rgb(1, 2, 3));
    std::fs::remove_file(root.path().join("0500.png")).unwrap();
    let opening = Opening { index_folder: Some(index.path()), ..Opening::default() };
    let error = Dataset::open_with(&config(root.path()), &opening).unwrap_err();
    assert!(error.to_string().contains("0007.png"), "a changed file is looked at again: {error}");
    std::fs::write(index.path().read_dir().unwrap().next().unwrap().unwrap().path(), "no index").unwrap();
    save(root.path(), "0007.png", &rgb(1, 1, 3));
    assert_eq!(open(Verify::Full).1, 999);
}

#[test]
fn images_stay_in_memory_once_they_are_decoded() {
    let root = super::numbered(5);
    let headers = DataConfig { verify: Verify::Header, ..config(root.path()) };
    let dataset = Dataset::open(&headers).unwrap();
    assert_eq!((dataset.is_in_memory(), dataset.bytes_in_memory()), (false, 5 * 48));
    let images: Vec<_> = (0..5).map(|i| dataset.get(i).unwrap()).collect();
    assert!(dataset.is_in_memory());
    (0..5).for_each(|i| std::fs::remove_file(root.path().join(format!("{i:03}.png"))).unwrap());
    assert_eq!((0..5).map(|i| dataset.get(i).unwrap()).collect::<Vec<_>>(), images);
}
