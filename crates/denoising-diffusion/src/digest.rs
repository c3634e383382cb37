//! SHA-256 in hexadecimal digits, of bytes and of files. Not here: what goes into a digest, which the caller decides.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// An unfinished digest. Callers that add texts or lists must add their lengths too; otherwise two different inputs can have the same digest.
#[derive(Clone, Debug, Default)]
pub struct Digest(Sha256);

impl Digest {
    /// A digest of no bytes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes);
    }

    /// The digest, 64 hexadecimal digits.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The digest of some bytes.
pub fn of_bytes(bytes: impl AsRef<[u8]>) -> String {
    let mut digest = Digest::new();
    digest.update(bytes);
    digest.finish()
}

/// A file's digest and its length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDigest {
    pub sha256: String,
    pub bytes: u64,
}

/// The digest of a file, which is read piece by piece.
///
/// # Errors
/// The file cannot be opened or read.
pub fn of_file(path: &Path) -> io::Result<FileDigest> {
    let mut file = File::open(path)?;
    let (mut digest, mut bytes, mut buffer) = (Digest::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(FileDigest { sha256: digest.finish(), bytes }),
            n => {
                digest.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two examples of FIPS 180-2, appendix B: "abc", and a million times "a".
    #[test]
    fn published_examples() {
        const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        const MILLION: &str = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        assert_eq!(of_bytes("abc"), ABC);
        let mut parts = Digest::new();
        parts.update("a");
        parts.update([b'b', b'c']);
        assert_eq!(parts.finish(), ABC);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![b'a'; 1_000_000]).unwrap();
        assert_eq!(of_file(&path).unwrap(), FileDigest { sha256: MILLION.to_string(), bytes: 1_000_000 });
        std::fs::write(&path, "a".repeat(1 << 21)).unwrap();
        assert_eq!(of_file(&path).unwrap().sha256, of_bytes(vec![b'a'; 1 << 21]), "longer than the buffer");
        assert!(of_file(folder.path().join("none").as_path()).is_err());
    }
}
