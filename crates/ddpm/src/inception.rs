//! Sources of the weights of Inception: a given file, the cache folder, or a download. Not here: their contents.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::Args;
use denoising_diffusion::atomic_file::write_atomically;
use denoising_diffusion::digest;
use denoising_diffusion::eval::extract::{Extractor, FeatureStore};
use denoising_diffusion::eval::inception::{FeatureBlock, InceptionWeights, OFFICIAL_DIGEST, Verification};
use denoising_diffusion::report::{Progress, Status, StderrProgress};
use denoising_diffusion::task::Task;

use crate::cache;
use crate::failure::{Failure, FailureExt, Result};
use crate::output::note;

/// The published file.
const FILE: &str = "pt_inception-2015-12-05-6726825d.pth";
const URL: &str =
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth";
/// Environment variable with another URL for the file.
const URL_VARIABLE: &str = "DDPM_INCEPTION_URL";
/// More than the size of the file; a larger download is something else.
const MOST_BYTES: u64 = 200 << 20;

/// Flags of every command that shows images to Inception.
#[derive(Args, Clone, Debug)]
pub struct InceptionArgs {
    /// Weights of Inception, .pth or .safetensors [default: those in the cache folder, downloaded at first use]
    #[arg(long, value_name = "FILE", help_heading = "Inception")]
    inception: Option<PathBuf>,
    /// Accept weights that are not the published ones; the results are not comparable with others
    #[arg(long, requires = "inception", help_heading = "Inception")]
    unverified_inception: bool,
    /// Colour behind transparent pixels, as rrggbb
    #[arg(long, value_name = "COLOUR", default_value = "ffffff", value_parser = parse_colour, help_heading = "Inception")]
    background: Colour,
    /// Neither read nor write features in the cache folder
    #[arg(long, help_heading = "Inception")]
    no_cache: bool,
}

/// Red, green and blue in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Colour([f32; 3]);

fn parse_colour(text: &str) -> std::result::Result<Colour, String> {
    let digits = text.trim_start_matches('#');
    let part = |k: usize| digits.get(2 * k..2 * k + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    match (digits.len(), part(0), part(1), part(2)) {
        (6, Some(r), Some(g), Some(b)) => Ok(Colour([r, g, b].map(|v| f32::from(v) / 255.0))),
        _ => Err("expected six hexadecimal digits, such as ffffff".to_string()),
    }
}

impl InceptionArgs {
    /// The network, ready to use.
    pub fn extractor(&self, block: FeatureBlock, device: &Device) -> Result<Extractor> {
        let (path, verification) = match &self.inception {
            Some(path) if self.unverified_inception => (path.clone(), Verification::Any),
            Some(path) => (path.clone(), Verification::Published),
            None => (cached_or_fetched()?, Verification::Published),
        };
        let weights = InceptionWeights::read(&path, verification)?;
        let network =
            weights.network(device).context(format!("cannot use the Inception weights in {}", path.display()))?;
        note(format!("Inception: {} (SHA-256 {})", path.display(), weights.digest));
        if verification == Verification::Any && !weights.digest.starts_with(OFFICIAL_DIGEST) {
            note("warning: these are not the published weights; the results are not comparable with others");
        }
        Ok(Extractor { network, block, digest: weights.digest, background: self.background.0 })
    }

    /// Whether a file is given.
    pub fn is_named(&self) -> bool {
        self.inception.is_some()
    }

    /// Where features are stored.
    pub fn store(&self) -> Option<FeatureStore> {
        if self.no_cache { None } else { cache::folder().map(|folder| FeatureStore::new(folder.join("features"))) }
    }
}

fn cached_or_fetched() -> Result<PathBuf> {
    let folder = cache::folder().ok_or_else(|| {
        Failure::failed("there is no cache folder for the Inception weights")
            .hint(format!("give the file with --inception FILE, or set {} to a folder", cache::VARIABLE))
    })?;
    let path = folder.join(FILE);
    if !path.is_file() {
        let url = std::env::var(URL_VARIABLE).unwrap_or_else(|_| URL.to_string());
        fetch(&url, &path).map_err(|failure| {
            failure.context("cannot download the Inception weights").hint(format!(
                "download {URL} (91 MiB) and put it at {}, or give it with --inception FILE",
                path.display()
            ))
        })?;
    }
    Ok(path)
}

/// Downloads a file and verifies it before it gets its name.
fn fetch(url: &str, path: &Path) -> Result {
    note(format!("downloading {url}"));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context(format!("cannot create {}", folder.display()))?;
    }
    let mut response = ureq::get(url).call()?;
    let length = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = response.body_mut().with_config().limit(MOST_BYTES).reader();
    let mut progress = StderrProgress::new(Task::Fetch, 0, length.unwrap_or(MOST_BYTES) >> 20);
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut shown = 0;
    loop {
        match body.read(&mut buffer)? {
            0 => break,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
        if bytes.len() >> 20 > shown {
            shown = bytes.len() >> 20;
            progress.update(Status { step: shown as u64, ..Status::default() });
        }
    }
    progress.finish();
    let digest = digest::of_bytes(&bytes);
    if !digest.starts_with(OFFICIAL_DIGEST) {
        return Err(Failure::failed(format!(
            "{url} is not the published file: its SHA-256 is {digest}, expected one that begins with {OFFICIAL_DIGEST}"
        )));
    }
    write_atomically(path, |out: &mut dyn Write| out.write_all(&bytes))
        .context(format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours() {
        assert_eq!(parse_colour("ff0033"), Ok(Colour([1.0, 0.0, 0.2])));
        assert_eq!(parse_colour("#000000"), Ok(Colour([0.0; 3])));
        for wrong in ["", "fff", "gggggg", "ffffff00", "ffff\u{e9}"] {
            assert!(parse_colour(wrong).is_err(), "{wrong}");
        }
    }
}
