//! FID as a [`Measurement`]: of images or of statistics, with what a reader needs to know of its error.

use super::{Metric, MetricError, better};
use crate::eval::extract::Extracted;
use crate::eval::metrics::fid::{Fid, FidNote, FidOptions, LEAST_SAMPLES, Side};
use crate::eval::metrics::frechet::Reference;
use crate::eval::metrics::statistics::Gaussian;
use crate::eval::result::Measurement;

/// One side of a FID: features, or statistics without images.
#[derive(Clone, Copy, Debug)]
pub enum FidInput<'a> {
    Features(&'a Extracted),
    Statistics(&'a Gaussian),
}

/// FID of either kind of input, with its error and its bias if images are available: those of the generated side, or those of the real one if of the
/// generated one there are only statistics.
///
/// # Errors
/// [`MetricError`].
pub fn fid(real: FidInput<'_>, generated: FidInput<'_>, seed: u64) -> Result<Measurement, MetricError> {
    // The distance is the same both ways; only images can be resampled.
    let swapped = matches!((real, generated), (FidInput::Features(_), FidInput::Statistics(_)));
    let (reference, resampled) = if swapped { (generated, real) } else { (real, generated) };
    let statistics = match reference {
        FidInput::Features(extracted) => Gaussian::of(extracted.table()?)?,
        FidInput::Statistics(gaussian) => gaussian.clone(),
    };
    let reference = Reference::new(statistics)?;
    let fid = match resampled {
        FidInput::Features(extracted) => {
            // The extrapolation to infinite n is for small n; at large n each point costs a decomposition of full rank.
            let points = if extracted.n < LEAST_SAMPLES { 8 } else { 0 };
            Fid::new(&reference, extracted.table()?, &FidOptions { seed, points, ..FidOptions::default() })?
        }
        FidInput::Statistics(gaussian) => Fid::of_statistics(&reference, gaussian)?,
    };
    let (n_generated, n_real) = if swapped { (fid.n_real, fid.n_generated) } else { (fid.n_generated, fid.n_real) };
    Ok(Measurement {
        name: Metric::Fid.name().to_string(),
        value: fid.value,
        standard_error: fid.standard_error,
        better: better(Metric::Fid.name()),
        n_generated,
        n_real,
        notes: fid_notes(&fid, swapped),
    })
}

/// First the bias of the resampled side, short enough to fit beside the value in the widest table if that is the generated one, as it is unless
/// `swapped`; the limit is the FID expected for infinitely many samples.
fn fid_notes(fid: &Fid, swapped: bool) -> Vec<String> {
    let whose = |side| if (side == Side::Real) != swapped { "real" } else { "generated" };
    let n = if swapped { "n of the real images" } else { "n" };
    let note = |note: &FidNote| match *note {
        FidNote::FewSamples { side: Side::Generated, least, .. } => match (fid.bias(), fid.extrapolated) {
            // The distance is never negative, and few samples enlarge it.
            (Some(bias), Some(limit)) if bias >= 0.0 && limit >= 0.0 => {
                format!("{n} < {least}: bias about {bias:+.2} (limit {limit:.2})")
            }
            (Some(_), Some(_)) => format!("{n} < {least}: biased upwards, too few to say by how much"),
            _ => format!("{n} < {least}: biased upwards"),
        },
        FidNote::FewSamples { side, n, least } => format!("{n} {} images, fewer than {least}: biased", whose(side)),
        FidNote::FewerSamplesThanDimensions { side, n, dims } => {
            format!("{n} {} images, fewer than {dims} dimensions: the covariance is singular", whose(side))
        }
    };
    let order = |note: &&FidNote| match note {
        FidNote::FewSamples { side, .. } | FidNote::FewerSamplesThanDimensions { side, .. } => *side == Side::Real,
    };
    let mut notes: Vec<&FidNote> = fid.notes.iter().collect();
    notes.sort_by_key(order);
    notes.into_iter().map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the statistics no error can be told, so the other side is resampled, and each number stays with its side.
    #[test]
    fn a_fid_of_images_and_statistics_names_the_side_of_its_numbers() {
        let features = (0..3 * 40).map(|i| (i * i * 7 % 31) as f32 * 0.1).collect();
        let extracted = Extracted { n: 40, dims: 3, features, logits: None };
        let unit = vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let other = Gaussian::new(None, vec![0.0; 3], unit).unwrap();
        let (images, statistics) = (FidInput::Features(&extracted), FidInput::Statistics(&other));
        let [one, two] = [(statistics, images), (images, statistics)].map(|(real, drawn)| fid(real, drawn, 0).unwrap());
        assert_eq!((one.value, one.standard_error), (two.value, two.standard_error));
        assert_eq!((one.n_real, one.n_generated, two.n_real, two.n_generated), (None, Some(40), Some(40), None));
        assert!(one.notes[0].starts_with("n < "), "{:?}", one.notes);
        assert!(two.notes[0].starts_with("n of the real images < "), "{:?}", two.notes);
    }
}
