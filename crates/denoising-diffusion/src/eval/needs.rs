//! What metrics need of samples and data, so that it is known beforehand which of them can be measured. Not here: measuring.

use thiserror::Error;

use super::inception::{ImageInput, InputError};
use super::likelihood::{LikelihoodError, is_defined};
use super::metric::Metric;
use super::metrics::prdc::PRDC_NEIGHBOURS;
use super::result::JudgedOn;
use crate::data::DataLayout;
use crate::diffusion::DiffusionConfig;

/// What is known about an evaluation before its samples are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The kind of the examples.
    pub layout: DataLayout,
    /// Shape of each example: `[c, h, w]`.
    pub shape: [usize; 3],
    /// Number of samples that will be drawn.
    pub samples: usize,
    /// Number of real images that they are compared with.
    pub real: usize,
    /// Number of held-out images; `None` if it is not known which images were trained on.
    pub held_out: Option<usize>,
    /// The images that the network is judged on, and their number.
    pub judged: (JudgedOn, usize),
    /// Whether the network needs conditions that the images it is judged on do not have.
    pub judged_lack_conditions: bool,
    pub diffusion: &'a DiffusionConfig,
}

/// Why a metric cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unmeasurable {
    #[error("at least {least} {what} are needed, but there are {n}")]
    TooFew { what: &'static str, least: usize, n: usize },
    #[error("Inception takes images, but the data are {0}")]
    NoImages(DataLayout),
    #[error("Inception takes images, but the data are {height} high and {width} wide")]
    Thin { height: usize, width: usize },
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("there is no spectrum along a width of {0}")]
    NoSpectrum(usize),
    #[error("it is not known which images were trained on and which were held out")]
    NoSplit,
    #[error("{}", LikelihoodError::Undefined)]
    Bits,
    #[error("the network takes a condition with each image, but the {0} have none")]
    NoConditions(&'static str),
}

impl Unmeasurable {
    fn unless(enough: usize, what: &'static str, n: usize) -> Result<(), Self> {
        if n < enough { Err(Self::TooFew { what, least: enough, n }) } else { Ok(()) }
    }
}

impl Metric {
    /// Minimum number of samples and of real images for this metric.
    pub fn fewest_images(self) -> usize {
        if self == Self::Prdc { PRDC_NEIGHBOURS + 1 } else { 2 }
    }

    /// Checks that it can be measured, as far as that is known beforehand.
    ///
    /// # Errors
    /// [`Unmeasurable`].
    pub fn check(self, facts: &Facts<'_>) -> Result<(), Unmeasurable> {
        if self.needs_inception() {
            check_images(facts.layout, facts.shape)?;
        }
        if self.needs_samples() {
            Unmeasurable::unless(self.fewest_images(), "samples", facts.samples)?;
            Unmeasurable::unless(self.fewest_images(), "real images", facts.real)?;
        } else {
            let (on, n) = facts.judged;
            Unmeasurable::unless(2, on.images(), n)?;
            if facts.judged_lack_conditions {
                return Err(Unmeasurable::NoConditions(on.images()));
            }
        }
        let [_, _, width] = facts.shape;
        match (self, facts.held_out) {
            (Self::Spectrum, _) if width < 2 => Err(Unmeasurable::NoSpectrum(width)),
            (Self::Neighbours, None) => Err(Unmeasurable::NoSplit),
            (Self::Neighbours, Some(n)) => Unmeasurable::unless(2, JudgedOn::HeldOut.images(), n),
            (Self::Bpd | Self::Nll, _) if !is_defined(&facts.diffusion.shared) => Err(Unmeasurable::Bits),
            _ => Ok(()),
        }
    }
}

/// Checks that examples of this kind and shape, `[c, h, w]`, can be shown to Inception, which is only used on data that people would view as images.
///
/// # Errors
/// [`Unmeasurable`].
pub fn check_images(layout: DataLayout, shape: [usize; 3]) -> Result<(), Unmeasurable> {
    let [_, height, width] = shape;
    if matches!(layout, DataLayout::Sequences | DataLayout::Volumes) {
        return Err(Unmeasurable::NoImages(layout));
    }
    if height.min(width) < 2 {
        return Err(Unmeasurable::Thin { height, width });
    }
    Ok(ImageInput::new(shape, [0.0; 3]).map(|_| ())?)
}

/// The metrics that can be measured, and those that cannot, each with the reason.
pub fn measurable(metrics: &[Metric], facts: &Facts<'_>) -> (Vec<Metric>, Vec<(Metric, Unmeasurable)>) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for &metric in metrics {
        match metric.check(facts) {
            Ok(()) => can.push(metric),
            Err(why) => cannot.push((metric, why)),
        }
    }
    (can, cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(diffusion: &DiffusionConfig) -> Facts<'_> {
        Facts {
            layout: DataLayout::Images,
            shape: [3, 8, 8],
            samples: 6,
            real: 6,
            held_out: Some(2),
            judged: (JudgedOn::HeldOut, 2),
            judged_lack_conditions: false,
            diffusion,
        }
    }

    /// The metrics that cannot be measured, by name.
    fn missing(change: impl FnOnce(&mut Facts<'_>)) -> Vec<(&'static str, Unmeasurable)> {
        let diffusion = DiffusionConfig::default();
        let mut facts = facts(&diffusion);
        change(&mut facts);
        let (can, cannot) = measurable(&Metric::ALL, &facts);
        assert_eq!(can.len() + cannot.len(), Metric::ALL.len());
        cannot.into_iter().map(|(metric, why)| (metric.name(), why)).collect()
    }

    fn names(missing: &[(&'static str, Unmeasurable)]) -> Vec<&'static str> {
        missing.iter().map(|(name, _)| *name).collect()
    }

    const OF_INCEPTION: [&str; 4] = ["fid", "kid", "is", "prdc"];

    #[test]
    fn inception_is_shown_images_alone() {
        assert_eq!(missing(|_| {}), []);
        for layout in [DataLayout::Sequences, DataLayout::Volumes] {
            let found = missing(|facts| facts.layout = layout);
            assert_eq!(names(&found), OF_INCEPTION);
            assert!(found.iter().all(|(_, why)| *why == Unmeasurable::NoImages(layout)));
        }
        assert_eq!(names(&missing(|facts| facts.shape = [1, 1, 16])), OF_INCEPTION);
        let found = missing(|facts| facts.shape = [7, 8, 8]);
        assert_eq!(names(&found), OF_INCEPTION);
        assert!(found[0].1.to_string().contains("images of 7 channels"), "{found:?}");
    }

    #[test]
    fn one_column_has_no_spectrum() {
        assert_eq!(names(&missing(|facts| facts.shape = [1, 16, 1])), [&OF_INCEPTION[..], &["spectrum"]].concat());
    }

    #[test]
    fn neighbours_and_regions_need_enough_images() {
        let too_few = |what, least, n| Unmeasurable::TooFew { what, least, n };
        assert_eq!(missing(|facts| facts.samples = 5), [("prdc", too_few("samples", 6, 5))]);
        assert_eq!(missing(|facts| facts.real = 5), [("prdc", too_few("real images", 6, 5))]);
        let of_one = missing(|facts| facts.real = 1);
        assert_eq!(names(&of_one), ["fid", "kid", "is", "prdc", "swd", "spectrum", "neighbours"]);
        assert_eq!(missing(|facts| facts.held_out = Some(1)), [("neighbours", too_few("held-out images", 2, 1))]);
        assert_eq!(missing(|facts| facts.held_out = None), [("neighbours", Unmeasurable::NoSplit)]);
        assert_eq!(names(&missing(|facts| facts.judged = (JudgedOn::Given, 1))), ["loss", "bpd", "nll"]);
        assert_eq!(names(&missing(|facts| facts.judged_lack_conditions = true)), ["loss", "bpd", "nll"]);
    }

    #[test]
    fn bits_per_dimension_are_those_of_normalised_data() {
        let mut diffusion = DiffusionConfig::default();
        diffusion.shared.auto_normalize = false;
        for metric in [Metric::Bpd, Metric::Nll] {
            assert_eq!(metric.check(&facts(&diffusion)), Err(Unmeasurable::Bits));
        }
        assert_eq!(Metric::Loss.check(&facts(&diffusion)), Ok(()));
    }
}
