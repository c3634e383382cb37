//! Event files: bytes, tags, images.

use super::super::raster::PNG_BEGINNING;
use super::*;
use serde_json::json;

const TIME: f64 = 1_700_000_000.25;

/// The messages of a file, whose checksums must be right.
fn messages(mut file: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = file.split_first_chunk::<8>() {
        let (of_length, rest) = rest.split_first_chunk().unwrap();
        let (data, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let (of_data, rest) = rest.split_first_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*of_length), masked(crc32c(length)));
        assert_eq!(u32::from_le_bytes(*of_data), masked(crc32c(data)));
        messages.push(data);
        file = rest;
    }
    assert!(file.is_empty());
    messages
}

fn read_varint(bytes: &mut &[u8]) -> u64 {
    let end = bytes.iter().position(|byte| *byte < 0x80).unwrap() + 1;
    let (varint, rest) = bytes.split_at(end);
    *bytes = rest;
    varint.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// Number and content of each field of a message; an integer as its eight bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = read_varint(&mut message);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, read_varint(&mut message).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => read_varint(&mut message) as usize,
        };
        let (content, rest) = message.split_at(length);
        fields.push((key >> 3, content.to_vec()));
        message = rest;
    }
    fields
}

/// Step, tag and value of all scalars of a file.
fn read_scalars(file: &[u8]) -> Vec<(u64, String, f32)> {
    let mut scalars = Vec::new();
    for event in messages(file).into_iter().map(fields) {
        let [_, (2, step), (5, summary)] = &event[..] else { continue };
        for (_, value) in fields(summary) {
            let [(1, tag), (2, value)] = &fields(&value)[..] else { continue };
            let step = u64::from_le_bytes(step[..].try_into().unwrap());
            let value = f32::from_le_bytes(value[..].try_into().unwrap());
            scalars.push((step, String::from_utf8(tag.clone()).unwrap(), value));
        }
    }
    scalars
}

#[test]
fn checksums_of_rfc_3720() {
    let ascending: Vec<u8> = (0..32).collect();
    let known: [(&[u8], u32); 5] = [
        (b"", 0),
        (b"123456789", 0xe306_9283),
        (&[0; 32], 0x8a91_36aa),
        (&[0xff; 32], 0x62a8_ab43),
        (&ascending, 0x46dd_794e),
    ];
    for (bytes, crc) in known {
        assert_eq!(crc32c(bytes), crc);
    }
}

#[test]
fn integers_are_as_short_as_can_be() {
    for (value, length) in [(0, 1), (1, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (1 << 63, 10), (u64::MAX, 10)]
    {
        let Message(bytes) = Message::default().varint(value);
        assert_eq!((bytes.len(), read_varint(&mut &bytes[..])), (length, value));
    }
    assert_eq!(Message::default().varint(300).0, [0xac, 0x02]);
}

/// What `tensorboard.summary.writer.record_writer.RecordWriter` (tensorboard 2.21.0) writes for the same events.
#[test]
fn bytes_are_those_of_tensorboard() {
    let version = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9";
    let start = "100000000000000095fbfe180900001040fc54d94110ac023a0208016b3b88f1";
    let scalar = "2100000000000000017becf60900001040fc54d94110ac022a130a110a0a747261696e2f6c6f737315cdcccc3d5f7626ba";
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(beginning(300, TIME)), [version, start].concat());
    assert_eq!(hex(event(&json!({"kind": "step", "step": 300, "loss": 0.1}), TIME, None)), scalar);
}

#[test]
fn tags_of_each_kind() {
    let records = [
        json!({"kind": "start", "step": 0, "version": "0.1.0", "seed": 7}),
        json!({"kind": "step", "step": 5, "loss": 0.5, "lr": "inf"}),
        json!({"kind": "skipped", "step": 6, "skipped": 1, "tensor": "downs.0.weight", "reason": "non_finite_loss"}),
        json!({"kind": "held_out", "step": 6, "held_out_loss": 1, "held_out_loss_by_quarter": [2, 3, "-inf", 5]}),
        json!({"kind": "evaluation", "step": 6, "samples": 9, "values": {"fid": 1.5}, "standard_errors": {"fid": 0.5}}),
        json!({"kind": "samples", "step": 6, "file": "gone.png", "mean": [0.25, 0.75]}),
        json!({"kind": "own", "step": 7, "a": -1, "b": null, "c": "text", "d": [1]}),
        json!({"kind": "own", "a": 1}),
        json!(3),
    ];
    let expected = [
        (5, "train/loss", 0.5),
        (5, "train/lr", f32::INFINITY),
        (6, "train/skipped", 1.0),
        (6, "held_out/loss", 1.0),
        (6, "held_out/loss_quarter_1", 2.0),
        (6, "held_out/loss_quarter_2", 3.0),
        (6, "held_out/loss_quarter_3", f32::NEG_INFINITY),
        (6, "held_out/loss_quarter_4", 5.0),
        (6, "eval/fid", 1.5),
        (6, "samples/mean_1", 0.25),
        (6, "samples/mean_2", 0.75),
        (7, "own/a", -1.0),
    ];
    let file = events(&records, TIME, &mut |_| None);
    assert_eq!(read_scalars(&file), expected.map(|(step, tag, value)| (step, tag.to_string(), value)));
    assert!(read_scalars(&event(&json!({"kind": "step", "step": 1, "loss": "NaN"}), TIME, None))[0].2.is_nan());
}

#[test]
fn a_png_comes_with_its_size() {
    let png = [PNG_BEGINNING, &[0, 0, 1, 2, 0, 0, 0, 9, 8, 6, 0, 0, 0]].concat();
    let record = json!({"kind": "samples", "step": 1, "file": "samples/1.png"});
    let file = events(&[record], TIME, &mut |path| (path == "samples/1.png").then(|| png.clone()));
    let value = fields(&fields(&fields(messages(&file)[2])[2].1)[0].1);
    assert_eq!(value[0], (1, b"samples".to_vec()));
    let integer = |value: u64| value.to_le_bytes().to_vec();
    assert_eq!(fields(&value[1].1), [(1, integer(9)), (2, integer(258)), (3, integer(4)), (4, png.clone())]);
    assert!(image(b"GIF89a").is_none() && image(&png[..png.len() - 4]).is_none() && image(&png[..20]).is_none());
}

#[test]
fn a_process_has_a_file_of_its_own_and_the_first_has_all_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let step = |step: u64| json!({"kind": "step", "step": step, "loss": step as f32});
    let named = |n: u32| std::fs::read(dir.path().join(format!("events.out.tfevents.{n:010}.ddpm"))).unwrap();
    let mut first = EventFile::create(dir.path(), Some(2), &[step(1), step(2)]).unwrap();
    first.append(&step(3)).unwrap();
    first.append(&json!({"kind": "checkpoint", "step": 3, "folder": "x"})).unwrap();
    let loss = |step: u64| (step, "train/loss".to_string(), step as f32);
    assert_eq!(read_scalars(&named(0)), [loss(1), loss(2), loss(3)]);
    let mut second = EventFile::create(dir.path(), Some(2), &[step(1), step(2)]).unwrap();
    second.append(&step(3)).unwrap();
    assert_eq!(read_scalars(&named(1)), [loss(3)]);
    let start = fields(messages(&named(1))[1]);
    assert_eq!(start[1], (2, 3_u64.to_le_bytes().to_vec()), "what follows step 2 is new");
    assert_eq!(read_scalars(&named(0)).len(), 3, "files are never changed");
}
