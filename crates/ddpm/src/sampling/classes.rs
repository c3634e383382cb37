//! The class of each sample.

use std::ops::Range;

use denoising_diffusion::diffusion::GuidanceConfig;
use denoising_diffusion::models::Network;

use super::{Drawable, SamplingArgs};
use crate::failure::{Failure, Result};
use crate::output::note;

/// Classes as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes(Vec<u32>);

impl Classes {
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.0.clone()
    }
}

pub(super) fn parse_classes(text: &str) -> std::result::Result<Classes, String> {
    let expected = || "expected classes such as 3, 0-9 or 0,2,5".to_string();
    let part = |part: &str| -> Option<Vec<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < 1_000_000).then(|| (first..=last).collect())
    };
    let parts: Option<Vec<Vec<u32>>> = text.split(',').map(part).collect();
    parts.map(|parts| Classes(parts.concat())).ok_or_else(expected)
}

impl SamplingArgs {
    /// The class of each of a network's samples with these numbers: the given classes in turn, else all of them in turn.
    pub fn classes_of(
        &self,
        from: &Drawable,
        numbers: Range<usize>,
        guidance: &GuidanceConfig,
    ) -> Result<Option<Vec<u32>>> {
        let in_use = self.classes_in_use(from, guidance)?;
        Ok(in_use.map(|classes| numbers.map(|i| classes[i % classes.len()]).collect()))
    }

    /// The class of each of `count` images made from others: the given classes, spread over the images in order; if none are given, no class.
    pub fn classes_by_image(
        &self,
        from: &Drawable,
        count: usize,
        guidance: &GuidanceConfig,
    ) -> Result<Option<Vec<u32>>> {
        let in_use = self.classes_in_use(from, guidance)?;
        if self.classes.is_none() {
            if self.classifier.is_some() {
                return Err(Failure::usage("--classifier guides towards classes, but none is given")
                    .hint("give --classes: one class for all images, or several, spread over the images in order"));
            }
            if in_use.is_some()
                && guidance.guidance != 1.0
                && from.own.weak.is_none()
                && from.own.model.vector_dim() == 0
            {
                note("warning: --guidance has no effect without --classes");
            }
            return Ok(None);
        }
        let spread = |classes: Vec<u32>| (0..count).map(|i| classes[i * classes.len() / count]).collect();
        Ok(in_use.map(spread))
    }

    /// The given classes, else all; `None` if neither the network nor a classifier has any.
    fn classes_in_use(&self, from: &Drawable, guidance: &GuidanceConfig) -> Result<Option<Vec<u32>>> {
        let by_network = from.own.model.num_classes() as u32;
        let by_classifier = from.own.classifier.as_ref().map(|classifier| classifier.class_names.len() as u32);
        if let Some(count) = by_classifier.filter(|&count| by_network > 0 && count != by_network) {
            return Err(Failure::usage(format!(
                "the network has {by_network} classes, but the classifier has {count}: they were trained on different data"
            )));
        }
        let names = from.own.classifier.as_ref().map(|classifier| &classifier.class_names);
        if let (Some(of_network), Some(of_classifier)) = (&from.file.card.class_names, names)
            && of_network != of_classifier
        {
            return Err(Failure::usage(format!(
                "the classes of the network are {}, but those of the classifier are {}: they were trained on different data",
                of_network.join(", "),
                of_classifier.join(", ")
            )));
        }
        let known = by_network.max(by_classifier.unwrap_or(0));
        let learned = from.own.model.class_drop_prob() > 0.0;
        if guidance.guidance != 1.0 && by_network > 0 && from.own.weak.is_none() && !learned {
            note(
                "warning: --guidance: the network was trained without ever dropping its classes, so it has not learned what it is guided away from",
            );
        }
        if known == 0 {
            let guides_nowhere =
                guidance.guidance != 1.0 && from.own.weak.is_none() && from.own.model.vector_dim() == 0;
            return match &self.classes {
                Some(_) => Err(Failure::usage("--classes is given, but the network was trained without classes")
                    .hint("train with --class-condition, or guide with --classifier")),
                None if guides_nowhere && !self.say("guidance") => Err(Failure::usage(format!(
                    "the run's own guidance is {}, but its network was trained without classes or vectors: nothing to guide towards",
                    guidance.guidance
                ))
                .hint("give --guidance 1")),
                None if guides_nowhere => Err(Failure::usage(
                    "--guidance is given, but the network was trained without classes or vectors: nothing to guide towards",
                )
                .hint("give --weak to guide away from a weaker network")),
                None => Ok(None),
            };
        }
        let classes = self.classes.as_ref().map_or_else(|| (0..known).collect(), |classes| classes.0.clone());
        if let Some(unknown) = classes.iter().find(|&&class| class >= known) {
            return Err(Failure::usage(format!(
                "--classes: there is no class {unknown}; the classes are 0 to {}",
                known - 1
            )));
        }
        Ok(Some(classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_lists_and_ranges() {
        for (text, classes) in [("3", vec![3]), ("0-3", vec![0, 1, 2, 3]), ("5,1-2", vec![5, 1, 2])] {
            assert_eq!(parse_classes(text), Ok(Classes(classes)));
        }
        for text in ["", "3-1", "a", "1,", "-2"] {
            assert!(parse_classes(text).is_err(), "{text}");
        }
    }
}
