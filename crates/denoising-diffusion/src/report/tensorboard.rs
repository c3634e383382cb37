//! A run's records as a TensorBoard event file: curves of their numbers, and the grids of samples as images.
//!
//! For those who watch runs in TensorBoard. The log stays the authoritative record: an event file holds less, and its numbers are `f32`. The
//! records become:
//!
//! | record | tags |
//! |---|---|
//! | `step` | `train/loss`, `train/grad_norm`, and so on with every number of the record |
//! | `skipped` | `train/skipped` |
//! | `held_out` | `held_out/loss`, and `held_out/loss_quarter_1` (least noise) to `_4` |
//! | `evaluation` | `eval/` and the name of each value; not the standard errors, which TensorBoard cannot draw as such |
//! | `samples` | the image `samples`, and `samples/mean_1` and on, the means of the channels |
//! | `start`, `checkpoint` | nothing |
//! | any other kind | the kind, `/` and the name of each number |
//!
//! Records carry no time, so the caller says what time an event has. Whoever writes an event when its record is logged passes the present; whoever
//! converts a log later has one time for all, and then TensorBoard's axes of time show a single point. Its default axis is the step.
//!
//! The file is a sequence of frames (TFRecord), each with a protobuf message (`Event`). Both are written by hand, as the libraries that write them
//! are no longer kept up. No metadata of plugins are written: TensorBoard adds them when it reads scalars and images of this older kind.
//!
//! Not here: reading event files, histograms.

use serde_json::Value;

use super::log::number_of;
use super::raster::PngHeader;

mod file;
#[cfg(test)]
mod tests;

pub use file::EventFile;

/// The event file of records that all have one `wall_time`, in seconds since 1970. `png` gives the bytes of a file that a record names by its path
/// relative to the run folder; an image without bytes, or whose bytes are not a PNG, is left out.
pub fn events(records: &[Value], wall_time: f64, png: &mut dyn FnMut(&str) -> Option<Vec<u8>>) -> Vec<u8> {
    let first = records.first().and_then(|record| record["step"].as_u64()).unwrap_or(0);
    let mut file = beginning(first, wall_time);
    for record in records {
        let png = image_file(record).and_then(&mut *png);
        file.extend(event(record, wall_time, png.as_deref()));
    }
    file
}

/// The beginning of an event file: its version, and that what follows starts at `step`. Of the files before it in the same folder, TensorBoard
/// then forgets this step and later ones; so it is one more than the step that a run is resumed at. (Its data server, which is the default, forgets
/// them tag by tag, when the tag's next value comes.)
pub fn beginning(step: u64, wall_time: f64) -> Vec<u8> {
    let version = Message::default().double(1, wall_time).bytes(3, b"brain.Event:2");
    let started = Message::default().integer(1, 1);
    let start = Message::default().double(1, wall_time).integer(2, step).message(7, &started);
    [framed(&version), framed(&start)].concat()
}

/// The event of one record, or nothing if the record has neither number nor image. `png`: the bytes of the record's [`image_file`].
pub fn event(record: &Value, wall_time: f64, png: Option<&[u8]>) -> Vec<u8> {
    let scalar = |(tag, value): (String, f64)| {
        // TensorBoard has room for `f32` only; what is larger becomes infinite.
        Message::default().bytes(1, tag.as_bytes()).float(2, value as f32)
    };
    let picture = |image: Message| Message::default().bytes(1, b"samples").message(4, &image);
    let values = scalars(record).into_iter().map(scalar).chain(png.and_then(image).map(picture));
    let summary = values.fold(Message::default(), |summary, value| summary.message(1, &value));
    match record["step"].as_u64() {
        Some(step) if summary != Message::default() => {
            framed(&Message::default().double(1, wall_time).integer(2, step).message(5, &summary))
        }
        _ => Vec::new(),
    }
}

/// The path, relative to the run folder, of the picture that belongs to a record.
pub fn image_file(record: &Value) -> Option<&str> {
    if record["kind"] == "samples" { record["file"].as_str() } else { None }
}

/// The numbers of a record that make curves, with their tags.
fn scalars(record: &Value) -> Vec<(String, f64)> {
    match record["kind"].as_str() {
        None | Some("start" | "checkpoint") => Vec::new(),
        Some("step" | "skipped") => named("train", record),
        Some("evaluation") => named("eval", &record["values"]),
        Some("samples") => numbered("samples/mean", &record["mean"]),
        Some("held_out") => {
            let loss = number_of(&record["held_out_loss"]).map(|loss| ("held_out/loss".to_string(), loss));
            let quarters = numbered("held_out/loss_quarter", &record["held_out_loss_by_quarter"]);
            loss.into_iter().chain(quarters).collect()
        }
        Some(kind) => named(kind, record),
    }
}

fn named(prefix: &str, object: &Value) -> Vec<(String, f64)> {
    let fields = object.as_object().into_iter().flatten().filter(|(name, _)| *name != "step");
    fields.filter_map(|(name, value)| Some((format!("{prefix}/{name}"), number_of(value)?))).collect()
}

fn numbered(prefix: &str, list: &Value) -> Vec<(String, f64)> {
    let entries = list.as_array().into_iter().flatten().zip(1..);
    entries.filter_map(|(value, place)| Some((format!("{prefix}_{place}"), number_of(value)?))).collect()
}

/// A `Summary.Image`: height, width, number of channels (3 for a palette), and the PNG itself.
fn image(png: &[u8]) -> Option<Message> {
    let PngHeader { width, height, channels } = PngHeader::read(png)?;
    let sizes = Message::default().integer(1, height.into()).integer(2, width.into()).integer(3, channels.into());
    Some(sizes.bytes(4, png))
}

/// A protobuf message; fields are appended.
#[derive(Debug, Default, PartialEq)]
struct Message(Vec<u8>);

impl Message {
    fn integer(self, field: u64, value: u64) -> Self {
        self.key(field, 0).varint(value)
    }

    fn double(self, field: u64, value: f64) -> Self {
        self.key(field, 1).raw(&value.to_le_bytes())
    }

    fn float(self, field: u64, value: f32) -> Self {
        self.key(field, 5).raw(&value.to_le_bytes())
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        self.key(field, 2).varint(value.len() as u64).raw(value)
    }

    fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.varint(field << 3 | wire_type)
    }

    /// Seven bits a byte, the lowest first; a set eighth bit says that more follow.
    fn varint(mut self, mut value: u64) -> Self {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.raw(&[value as u8])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// A frame: length, its checksum, the message, its checksum.
fn framed(Message(data): &Message) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let [of_length, of_data] = [&length[..], data].map(|bytes| masked(crc32c(bytes)).to_le_bytes());
    [&length[..], &of_length, data, &of_data].concat()
}

/// TFRecord stores checksums so, as the checksum of data that contain their own checksum is of little use.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The checksum CRC-32C (Castagnoli), which is not that of PNG and zip.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}
