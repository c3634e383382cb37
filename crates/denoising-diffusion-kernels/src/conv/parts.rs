//! Activations that are concatenated along the channels without being copied together, as with a skip connection before a convolution.

use crate::gemm::PANEL;
use crate::par::{ELEMENTS_PER_TASK, Scratch, Shared, for_each_task, task_range};

/// One activation `[pixels, channels]` of several.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) values: &'a [f32],
    /// Index of its first channel among those of all parts.
    pub(super) first: usize,
    pub(super) channels: usize,
}

/// Activations to read.
#[derive(Clone)]
pub(super) struct Parts<'a>(Vec<Part<'a>>);

impl<'a> Parts<'a> {
    /// The parts of `pixels` pixels; their numbers of channels follow from their lengths.
    pub(super) fn new(pixels: usize, parts: &[&'a [f32]]) -> Self {
        let mut first = 0;
        let part = |values: &&'a [f32]| {
            assert!(values.len().is_multiple_of(pixels), "{} values are not {pixels} pixels", values.len());
            let part = Part { values, first, channels: values.len() / pixels };
            first += part.channels;
            part
        };
        Self(parts.iter().map(part).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Part<'a>> {
        self.0.iter()
    }

    /// Values and number of channels of each part.
    pub(super) fn pairs(&self) -> Vec<(&'a [f32], usize)> {
        self.0.iter().map(|part| (part.values, part.channels)).collect()
    }

    /// Number of channels of all parts.
    pub(super) fn channels(&self) -> usize {
        self.0.iter().map(|part| part.channels).sum()
    }

    /// The only part, if there is only one.
    pub(super) fn single(&self) -> Option<&'a [f32]> {
        if let [part] = &self.0[..] { Some(part.values) } else { None }
    }

    /// Calls `f` with parts that begin at panels of channels: these, or else all of them copied together.
    pub(super) fn in_panels<R>(&self, pixels: usize, f: impl FnOnce(&Parts<'_>) -> R) -> R {
        if self.iter().all(|part| part.first.is_multiple_of(PANEL)) {
            return f(self);
        }
        let mut joined = Scratch::new(pixels * self.channels());
        self.join(&mut joined);
        f(&Parts::new(pixels, &[&joined]))
    }

    /// All parts copied together, `[pixels, channels]`.
    pub(super) fn join(&self, joined: &mut [f32]) {
        let channels = self.channels();
        let pixels = joined.len() / channels;
        let size = (ELEMENTS_PER_TASK / channels).max(1);
        let out = Shared::new(joined);
        for_each_task(pixels.div_ceil(size), |task| {
            let pixels = task_range(task, size, pixels);
            // SAFETY: ranges of different tasks are disjoint.
            let to = unsafe { out.part(pixels.start * channels..pixels.end * channels) };
            for part in self.iter().filter(|part| part.channels > 0) {
                let from = &part.values[pixels.start * part.channels..pixels.end * part.channels];
                for (to, from) in to.chunks_exact_mut(channels).zip(from.chunks_exact(part.channels)) {
                    to[part.first..][..part.channels].copy_from_slice(from);
                }
            }
        });
    }
}

/// One activation to write.
pub(super) struct PartMut<'a> {
    pub(super) values: Shared<'a>,
    pub(super) first: usize,
    pub(super) channels: usize,
}

/// Activations to write.
pub(super) struct PartsMut<'a>(Vec<PartMut<'a>>);

impl<'a> PartsMut<'a> {
    /// As [`Parts::new`].
    pub(super) fn new(pixels: usize, parts: &'a mut [&mut [f32]]) -> Self {
        let mut first = 0;
        let part = |values: &'a mut &mut [f32]| {
            assert!(values.len().is_multiple_of(pixels), "{} values are not {pixels} pixels", values.len());
            let channels = values.len() / pixels;
            first += channels;
            PartMut { values: Shared::new(values), first: first - channels, channels }
        };
        Self(parts.iter_mut().map(part).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PartMut<'a>> {
        self.0.iter()
    }
}

/// The inverse of [`Parts::join`].
pub(super) fn split(joined: &[f32], pixels: usize, parts: &mut [&mut [f32]]) {
    let channels = joined.len() / pixels;
    let mut first = 0;
    for part in parts {
        assert!(part.len().is_multiple_of(pixels), "{} values are not {pixels} pixels", part.len());
        let own = part.len() / pixels;
        for (to, from) in part.chunks_exact_mut(own.max(1)).zip(joined.chunks_exact(channels)) {
            to.copy_from_slice(&from[first..][..own]);
        }
        first += own;
    }
}
