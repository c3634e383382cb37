//! The checksum in the metadata of our safetensors files. Not here: reading and writing the files.

use super::safetensors_file::Metadata;
use crate::digest::Digest;

/// Passes the little-endian bytes of `values` on, piece by piece.
pub(super) fn for_bytes(values: &[f32], mut sink: impl FnMut(&[u8])) {
    let mut buffer = [[0; 4]; 4096];
    for chunk in values.chunks(buffer.len()) {
        for (bytes, value) in buffer.iter_mut().zip(chunk) {
            *bytes = value.to_le_bytes();
        }
        sink(buffer[..chunk.len()].as_flattened());
    }
}

/// SHA-256 over contents in sorted order. Every text is preceded by its length, so that different contents never give the same input.
pub(super) struct Checksum(Digest);

impl Checksum {
    pub(super) fn new(metadata: &Metadata) -> Self {
        let mut checksum = Self(Digest::new());
        checksum.number(metadata.len());
        for (key, value) in metadata {
            checksum.text(key);
            checksum.text(value);
        }
        checksum
    }

    pub(super) fn tensor(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &[usize],
        data: impl FnOnce(&mut dyn FnMut(&[u8])),
    ) {
        self.text(name);
        self.text(dtype);
        self.number(shape.len());
        for &side in shape {
            self.number(side);
        }
        data(&mut |bytes| self.0.update(bytes));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.update(text);
    }

    fn number(&mut self, number: usize) {
        self.0.update((number as u64).to_le_bytes());
    }

    pub(super) fn finish(self) -> String {
        self.0.finish()
    }
}
