//! Where samples go and how they are written: a grid, a folder of images, an array, curves. Not here: drawing them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

use denoising_diffusion::atomic_file::write_atomically;
use denoising_diffusion::data::npy::write_npy_f32;
use denoising_diffusion::data::{DataLayout, ImageBatch, ImageShape};
use denoising_diffusion::generate::{Conditions, room_for};
use denoising_diffusion::model_file::ModelCard;
use denoising_diffusion::models::NetworkConfig;
use denoising_diffusion::report::{
    GridOptions, MOST_SEQUENCES, SequenceSet, check_grid, save_grid, save_images, sequences_svg,
};

use crate::failure::{Failure, FailureExt, Result};
use crate::output::{check_writable, create_folder_of, exists, refuse_file};

/// The destination of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    Grid(PathBuf),
    Folder(PathBuf),
    Array(PathBuf),
    Curves(PathBuf),
}

/// How samples are written.
#[derive(Clone, Copy)]
pub struct Writing<'a> {
    pub grid: GridOptions,
    pub card: &'a ModelCard,
    /// Data drawn next to the samples.
    pub real: Option<&'a ImageBatch>,
    /// The condition of each sample, drawn before it in grids.
    pub conditions: Option<&'a dyn Conditions>,
}

/// The shape of a network's samples, which are stored as images: channels, then the sides.
pub fn shape_of(network: &NetworkConfig, [channels, height, width]: [usize; 3]) -> Vec<usize> {
    network.layout().shape_of(ImageShape { channels, height, width }, network.depth())
}

impl Writing<'_> {
    /// The shape of the images in a grid for samples of a shape, and the grid's layout.
    pub fn in_grid(&self, shape: [usize; 4]) -> ([usize; 4], GridOptions) {
        // Slices are stacked vertically: one column per volume.
        if self.card.network.layout() == DataLayout::Volumes {
            return (shape, GridOptions { columns: NonZeroUsize::new(shape[0]), ..GridOptions::default() });
        }
        match self.conditions.and_then(|conditions| ImageBatch::shape_beside(shape, conditions.shape())) {
            Some(pairs) => (pairs, GridOptions::of_pairs(shape[0])),
            None => (shape, self.grid),
        }
    }
}

impl Out {
    /// The destination given by `--out`, or the default, for a network's samples.
    pub fn for_card(path: Option<&Path>, card: &ModelCard) -> Result<Self> {
        let sequences = card.network.layout() == DataLayout::Sequences;
        match path.map(Self::of).transpose()? {
            None if sequences => Ok(Self::Curves("samples.svg".into())),
            None => Ok(Self::Grid("samples.png".into())),
            Some(Self::Grid(path) | Self::Folder(path)) if sequences => {
                Err(Failure::usage(format!("--out {}: the network draws sequences, not images", path.display()))
                    .hint("give FILE.svg for curves, or FILE.npy for an array"))
            }
            Some(Self::Curves(path)) if !sequences => {
                Err(Failure::usage(format!("--out {}: only sequences can be drawn as curves", path.display()))
                    .hint("give FILE.png for a grid, DIR/ for a folder of images, or FILE.npy for an array"))
            }
            Some(out) => Ok(out),
        }
    }

    pub fn of(path: &Path) -> Result<Self> {
        let owned = path.to_path_buf();
        if path.is_dir() || path.to_string_lossy().ends_with(['/', '\\']) {
            return Ok(Self::Folder(owned));
        }
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("png") => Ok(Self::Grid(owned)),
            Some("npy") => Ok(Self::Array(owned)),
            Some("svg") => Ok(Self::Curves(owned)),
            _ => Err(Failure::usage(format!("--out {}: the name does not say what to write", path.display()))
                .hint("give FILE.png for a grid, DIR/ for a folder of images, or FILE.npy for an array")),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Grid(path) | Self::Folder(path) | Self::Array(path) | Self::Curves(path) => path,
        }
    }

    /// Refuses an existing file. A folder may contain earlier images if numbering starts at `first` above 0; then only images of [the same
    /// numbers](Self::refuse_numbered) are refused.
    pub fn refuse_existing(&self, first: usize, refuse: bool) -> Result {
        match self {
            Self::Grid(path) | Self::Array(path) | Self::Curves(path) => refuse_file(path, refuse),
            Self::Folder(path) => {
                let taken = path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
                if taken && refuse && first == 0 {
                    return Err(exists(path));
                }
                check_writable(&path.join(numbered(first))).context(format!("cannot write into {}", path.display()))
            }
        }
    }

    /// Refuses if images of these numbers are in the folder already.
    pub fn refuse_numbered(&self, mut numbers: Range<usize>, refuse: bool) -> Result {
        let Self::Folder(folder) = self else { return Ok(()) };
        match numbers.find(|number| refuse && folder.join(numbered(*number)).exists()) {
            Some(number) => Err(exists(&folder.join(numbered(number)))),
            None => Ok(()),
        }
    }

    /// The numbers of `count` images of a shape, `[c, h, w]`, if there is memory for them: all are kept until they are drawn, except those that go
    /// into a folder.
    pub fn check_room(&self, first: usize, count: usize, shape: [usize; 3]) -> Result<Range<usize>> {
        let each = if matches!(self, Self::Folder(_)) { [1; 3] } else { shape };
        room_for(count, each).or_usage()?;
        match first.checked_add(count) {
            Some(end) => Ok(first..end),
            None => Err(Failure::usage(format!("--first {first} is too large to number {count} images from there"))),
        }
    }

    /// Refuses images of a shape, `[n, c, h, w]`, that the file cannot hold, before any are drawn.
    pub fn check_size(&self, shape: [usize; 4], writing: &Writing<'_>) -> Result {
        match self {
            Self::Grid(path) => {
                let (shape, options) = writing.in_grid(shape);
                check_grid(shape, options).or_usage().context(format!("--out {}", path.display()))
            }
            Self::Curves(path) if shape[0] > MOST_SEQUENCES => Err(Failure::usage(format!(
                "--out {}: at most {MOST_SEQUENCES} sequences are drawn as curves, not {}",
                path.display(),
                shape[0]
            ))
            .hint("draw fewer, or give FILE.npy for an array")),
            _ => Ok(()),
        }
    }

    pub fn write(&self, images: &ImageBatch, writing: &Writing<'_>) -> Result {
        let card = writing.card;
        let range @ [low, high] = card.value_range.unwrap_or([0.0, 1.0]);
        match self {
            Self::Grid(path) => {
                let (shape, options) = writing.in_grid(images.shape);
                let conditions = writing.conditions.filter(|_| shape != images.shape);
                let conditions = conditions.map(|of| of.of(0..images.shape[0])).transpose()?;
                let pairs = conditions.and_then(|of| images.beside(&of));
                save_grid(path, pairs.as_ref().unwrap_or(images), options)?;
            }
            Self::Folder(path) => {
                save_images(path, images, 0)?;
                remove_numbered(path, images.shape[0])?;
            }
            Self::Array(path) => {
                create_folder_of(path)?;
                let values: Vec<f32> =
                    images.data.iter().map(|v| (low + (high - low) * f64::from(*v)) as f32).collect();
                let [n, c, h, w] = images.shape;
                write_npy_f32(path, &[&[n], &shape_of(&card.network, [c, h, w])[..]].concat(), &values)?;
            }
            Self::Curves(path) => {
                let (samples, data) = (format!("{} samples", images.shape[0]), "the data");
                let generated = SequenceSet { title: &samples, batch: images };
                let svg = match writing.real {
                    Some(batch) => sequences_svg(&[SequenceSet { title: data, batch }, generated], range)?,
                    None => sequences_svg(&[generated], range)?,
                };
                create_folder_of(path)?;
                write_atomically(path, |out| out.write_all(svg.as_bytes()))
                    .context(format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// File name of an image in a folder.
fn numbered(number: usize) -> String {
    format!("{number:06}.png")
}

/// Removes images that earlier samples left in a folder, numbered from `first` on.
pub fn remove_numbered(folder: &Path, first: usize) -> Result {
    let number_of = |name: &str| name.strip_suffix(".png").and_then(|number| number.parse::<usize>().ok());
    let is_left = |name: &str| number_of(name).is_some_and(|number| number >= first && name == numbered(number));
    let in_words = || format!("cannot remove earlier images from {}", folder.display());
    if !folder.exists() {
        return Ok(());
    }
    for entry in folder.read_dir().context(in_words())? {
        let entry = entry.context(in_words())?;
        if entry.file_name().to_str().is_some_and(is_left) {
            std::fs::remove_file(entry.path()).context(in_words())?;
        }
    }
    Ok(())
}
