//! Arrays in `.npy` files, which are never read whole: those too large for memory stay in their file, and their examples are read at an offset when
//! they are needed; the values of others are converted a part at a time, so that nothing but the result has to fit. Compared with memory mapping, this
//! needs no `unsafe`, truncation of the file during a run is an error instead of a signal, and the system's page cache still keeps what fits. Opening
//! reads the whole file once or twice, for its digest and, unless the type determines it, its range.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::array::{ArraySource, Axes, Held, samples_last};
use super::npy::{self, Header, Values};
use super::raster::Samples;
use super::value_map::{Described, Rule};
use super::{DataConfig, DataError};

/// Number of values read at a time in passes over all of them.
const CHUNK: usize = 1 << 20;

/// An array in its file.
#[derive(Debug)]
pub(super) struct PagedArray {
    file: File,
    path: PathBuf,
    header: Header,
    /// Offset of the first value in the file.
    start: u64,
    axes: Axes,
    rule: Rule,
    /// Its length and the time when it was last written to, at the start.
    state: (u64, Option<SystemTime>),
}

impl PagedArray {
    /// Opens a `.npy` file: in memory if its values, as they are kept there, do not exceed the limit. `None` for an array without values, and for files
    /// in Fortran order, in which examples are not contiguous.
    ///
    /// # Errors
    /// The file is not an array or is truncated, or its values cannot be examples.
    pub(super) fn open(path: &Path, config: &DataConfig) -> Result<Option<ArraySource>, DataError> {
        let io = |e| DataError::io("read", path, e);
        let mut file = File::open(path).map_err(|e| DataError::io("open", path, e))?;
        let header = npy::read_header(&mut file, path)?;
        let start = file.stream_position().map_err(io)?;
        let bytes = header.shape.iter().try_fold(header.width as u64, |n, &side| n.checked_mul(side as u64));
        let Some(expected) = bytes.filter(|_| !header.fortran) else { return Ok(None) };
        let state = state_of(&file).map_err(io)?;
        let found = state.0.saturating_sub(start);
        if found < expected {
            return Err(DataError::Truncated { path: path.to_path_buf(), expected, found });
        }
        let axes = Axes::read(&header.shape, path, config)?;
        if axes.count == 0 || axes.shape.is_empty() {
            return Ok(None);
        }
        let described = Described { descr: &header.descr.clone(), path, size: axes.shape.len(), layout: axes.layout };
        // The rule is not needed for reading values.
        let mut array = Self { file, path: path.to_path_buf(), header, start, axes, rule: Rule::U8, state };
        array.rule = described.rule(config, &mut |see| array.each_chunk(|values| see(&values)))?;
        let (values, range) = (array.rule.words(), array.rule.range_for(axes.layout));
        let kept = (axes.count as u64).saturating_mul(axes.shape.len() as u64 * u64::from(array.rule.bits() / 8));
        let samples = match kept > config.memory_limit() {
            true => Held::Paged(Box::new(array)),
            false => Held::Memory(array.all()?),
        };
        Ok(Some(ArraySource {
            path: path.to_path_buf(),
            kind: "NumPy array",
            count: axes.count,
            shape: axes.shape,
            classes: None,
            ignored_labels: None,
            values,
            range,
            layout: axes.layout,
            depth: axes.depth,
            samples,
        }))
    }

    /// How its values are read.
    pub(super) fn rule(&self) -> Rule {
        self.rule
    }

    /// One example, `[h, w, c]`.
    ///
    /// # Errors
    /// The file has changed since it was opened.
    pub(super) fn example(&self, index: usize) -> Result<Samples, DataError> {
        let size = self.axes.shape.len();
        Ok(self.kept(self.values(index * size, size)?))
    }

    /// Calls `f` with all samples, a number of whole examples at a time.
    ///
    /// # Errors
    /// As reading the file.
    pub(super) fn each_samples(&self, mut f: impl FnMut(Samples)) -> Result<(), DataError> {
        self.each_chunk(|values| {
            f(self.kept(values));
            Ok(())
        })
    }

    fn all(&self) -> Result<Samples, DataError> {
        let mut all = self.rule.room(self.axes.count * self.axes.shape.len());
        self.each_samples(|samples| all.append(samples))?;
        Ok(all)
    }

    fn kept(&self, values: Values) -> Samples {
        samples_last(self.rule.apply(values), self.axes.shape, self.axes.channels)
    }

    fn each_chunk(&self, mut f: impl FnMut(Values) -> Result<(), DataError>) -> Result<(), DataError> {
        let (size, count) = (self.axes.shape.len(), self.axes.count);
        let at_a_time = (CHUNK / size).max(1);
        (0..count)
            .step_by(at_a_time)
            .try_for_each(|first| f(self.values(first * size, at_a_time.min(count - first) * size)?))
    }

    fn values(&self, first: usize, count: usize) -> Result<Values, DataError> {
        let width = self.header.width;
        let mut bytes = vec![0; count * width];
        let read = read_at(&self.file, &mut bytes, self.start + (first * width) as u64);
        // Asked after reading, so that what was read is of the file that was opened.
        if state_of(&self.file).is_ok_and(|state| state != self.state) {
            return Err(DataError::Written { path: self.path.clone() });
        }
        read.map_err(|e| DataError::io("read", &self.path, e))?;
        npy::values_of(&self.header, &bytes, &self.path)
    }
}

fn state_of(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, offset) = (&mut bytes[n..], offset + n as u64);
    }
    Ok(())
}
