//! A guiding classifier: from its file to what sampling needs. Not here: training one (`commands::train_classifier`).

use std::path::Path;

use burn::tensor::Device;
use denoising_diffusion::classifier_file::{ClassifierFile, ClassifierFileError};
use denoising_diffusion::data::ImageShape;
use denoising_diffusion::diffusion::Diffusion;
use denoising_diffusion::generate::ClassifierGradient;

use crate::failure::{Failure, FailureExt, Result};

/// A classifier ready to guide.
pub struct GuidingClassifier {
    /// The gradient for `Generator::classifier`, which takes it by reference.
    pub gradient: Box<ClassifierGradient<'static>>,
    /// Name of each class; their number is the number of classes.
    pub class_names: Vec<String>,
}

impl GuidingClassifier {
    /// Opens the classifier in `path`, to guide with this `scale` a network that draws images of a shape under a formulation. A classifier for other
    /// images or another formulation is a usage error.
    pub fn open(path: &Path, scale: f64, diffusion: &Diffusion, image: ImageShape, device: &Device) -> Result<Self> {
        if !scale.is_finite() {
            return Err(Failure::usage(format!("--classifier-scale must be a finite number, got {scale}")));
        }
        let file = ClassifierFile::read(path).map_err(|error| how_to_make_one(error, path))?;
        let guidance = file
            .guidance(diffusion, image, scale, device)
            .context(format!("the classifier {} cannot guide this network", path.display()))
            .or_usage()
            .map_err(|failure| {
                failure.hint("train one that can: `ddpm train-classifier DATA --like RUN --out FILE`")
            })?;
        Ok(Self {
            gradient: Box::new(move |x, level, classes| guidance.gradient(x, level, classes)),
            class_names: file.card.class_names,
        })
    }
}

fn how_to_make_one(error: ClassifierFileError, path: &Path) -> Failure {
    let other = matches!(error, ClassifierFileError::Denoiser { .. } | ClassifierFileError::NoCard { .. });
    let failure = Failure::from(error).context(format!("{} cannot be used as a classifier", path.display()));
    match other {
        true => failure.into_usage().hint("train a classifier with `ddpm train-classifier`"),
        false => failure,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use denoising_diffusion::classifier_file::ClassifierCard;
    use denoising_diffusion::diffusion::{DiffusionConfig, ElucidatedConfig, FormulationConfig};
    use denoising_diffusion::models::{Classifier, ClassifierConfig};
    use denoising_diffusion::nn::Init;
    use denoising_diffusion::nn::params::to_state_dict;

    use super::*;

    #[test]
    fn a_classifier_guides_the_networks_that_it_was_trained_for_and_no_others() {
        let (device, image) = (Device::flex(), ImageShape { channels: 1, height: 2, width: 2 });
        let config = ClassifierConfig { dim: 4, dim_mults: vec![1], channels: 1, num_classes: 2, ..Default::default() };
        let classifier = Classifier::new(&config, &mut Init::new(0, &device)).unwrap();
        let card = ClassifierCard {
            version: "0".to_string(),
            classifier: config,
            diffusion: DiffusionConfig::default(),
            betas: None,
            image,
            class_names: vec!["cat".to_string(), "dog".to_string()],
            step: 0,
            held_out: None,
        };
        let folder = std::env::temp_dir().join(format!("ddpm-classifier-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("c.safetensors");
        ClassifierFile { card, state: to_state_dict(&classifier) }.write(&path).unwrap();
        let open = |scale, diffusion: &DiffusionConfig, image| {
            let diffusion = Diffusion::new(diffusion).unwrap();
            let opened = GuidingClassifier::open(&path, scale, &diffusion, image, &device);
            opened.map(|opened| (opened, diffusion)).map_err(|failure| failure.to_text())
        };
        let (opened, diffusion) = open(2.0, &DiffusionConfig::default(), image).ok().unwrap();
        let push = (opened.gradient)(Tensor::ones([3, 1, 2, 2], &device), diffusion.level(10.0), &[0, 1, 1]);
        assert_eq!((push.dims(), opened.class_names.len()), ([3, 1, 2, 2], 2));
        let refused = |scale, diffusion: &DiffusionConfig, image| open(scale, diffusion, image).err().unwrap();
        let edm = FormulationConfig::Elucidated(ElucidatedConfig::default()).into();
        let text = refused(2.0, &edm, image);
        assert!(text.contains("elucidated") && text.contains("hint: "), "{text}");
        let wide = ImageShape { width: 4, ..image };
        assert!(refused(2.0, &DiffusionConfig::default(), wide).contains("1x2x4"));
        assert!(refused(f64::NAN, &DiffusionConfig::default(), image).contains("scale"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
