//! Recipes of runs that start from weights: what they take over from the card of the weights. Not here: the weights (`models::start_from`).

use super::{Model, Recipe, RecipeError};
use crate::data::{ChannelPolicy, DataLayout, ValueRange};
use crate::model_file::ModelCard;
use crate::sampler::SamplerKind;

impl Recipe {
    /// The recipe of a run that starts from weights with this card: the network and its formulation, and images as the network was trained on. All
    /// else is the default.
    ///
    /// # Errors
    /// A custom network; a schedule that no option of a recipe names.
    pub fn starting_from(card: &ModelCard) -> Result<Self, RecipeError> {
        if card.betas.is_some() {
            return Err(RecipeError::UnnamedSchedule);
        }
        let mut recipe = Self { diffusion: card.diffusion.clone(), ..Self::default() };
        recipe.set_network(card.network.own_options())?;
        let data = &mut recipe.data;
        data.layout = card.network.layout();
        data.class_condition = card.network.num_classes() > 0;
        // Arrays of sequences and volumes have their own size, and cannot be resized.
        if data.layout == DataLayout::Images {
            data.image_size = Some(card.image.size());
            data.channels = ChannelPolicy::Exact(card.image.channels);
            data.resize = card.resize;
        }
        // Units of the data. The values of images tell [0, 1] from [-1, 1]; those of other data may lie anywhere.
        let told = |range: &[f64; 2]| data.layout == DataLayout::Images && matches!(range, [-1.0 | 0.0, 1.0]);
        let range = card.value_range.filter(|range| !told(range));
        data.value_range = range.map(ValueRange::Declared);
        recipe.take_what_is_usual(|_, _| false);
        Ok(recipe)
    }

    /// [`from_toml`](Self::from_toml) for a run that starts from weights. Where the text says nothing of networks or nothing of diffusion, and nothing
    /// of how images are fitted, `start` has the word.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml).
    pub fn from_toml_over(text: &str, start: &Self) -> Result<Self, RecipeError> {
        let mut recipe = Self::from_toml(text)?;
        let table: toml::Table = toml::from_str(text)?;
        let says = |section: &str, key: &str| table.get(section).and_then(|section| section.get(key)).is_some();
        if !says("network", "model") && !Model::ALL.into_iter().any(|model| table.contains_key(model.name())) {
            recipe.set_network(start.bare_network())?;
        }
        if !table.contains_key("diffusion") {
            recipe.diffusion = start.diffusion.clone();
        }
        let (own, data) = (&mut recipe.data, &start.data);
        macro_rules! unless_said {
            ($($key:ident),*) => { $(if !says("data", stringify!($key)) { own.$key = data.$key.clone(); })* };
        }
        unless_said!(layout, class_condition, image_size, channels, resize, value_range);
        recipe.take_what_is_usual(says);
        Ok(recipe)
    }

    /// The sampler that is usual for the formulation, and the learning rate that is usual for the network, unless something else is said.
    pub(super) fn take_what_is_usual(&mut self, says: impl Fn(&str, &str) -> bool) {
        if !says("sample", "sampler") {
            self.sample.sampler = SamplerKind::usual(&self.diffusion.formulation, &self.guidance);
        }
        if !says("train", "lr") {
            self.train.lr = self.network.model.usual_lr();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ImageShape, ResizePolicy};
    use crate::diffusion::{DiffusionConfig, FormulationConfig, RectifiedFlowConfig};
    use crate::models::{NetworkConfig, Unet1dConfig, UnetConfig};
    use crate::recipe::DataFacts;

    fn card() -> ModelCard {
        let unet = UnetConfig { dim: 16, channels: 1, num_classes: 3, condition_channels: 2, ..UnetConfig::default() };
        let diffusion: DiffusionConfig = FormulationConfig::RectifiedFlow(RectifiedFlowConfig::default()).into();
        let image = ImageShape { channels: 1, height: 24, width: 32 };
        ModelCard {
            resize: ResizePolicy::Pad,
            value_range: Some([-5.0, 5.0]),
            ..ModelCard::new(NetworkConfig::Unet(unet), diffusion, image)
        }
    }

    #[test]
    fn network_formulation_and_images_are_those_of_the_card() {
        let card = card();
        let recipe = Recipe::starting_from(&card).unwrap();
        recipe.validate().unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml().unwrap()).unwrap(), recipe);
        assert_eq!((recipe.sample.sampler, recipe.data.resize), (SamplerKind::Euler, ResizePolicy::Pad));
        assert_eq!(recipe.data.value_range, Some(ValueRange::Declared([-5.0, 5.0])));
        let facts = DataFacts {
            shape: card.image,
            layout: DataLayout::Images,
            depth: 1,
            num_classes: 3,
            condition_channels: 2,
            vector_dim: 0,
        };
        assert_eq!(recipe.network_for(facts).unwrap(), card.network);
    }

    /// Images tell [0, 1] from [-1, 1] by their values; new sequences may leave the range that the weights know.
    #[test]
    fn ranges_that_values_do_not_tell_are_declared() {
        let unit = |network| {
            let card = ModelCard { network, value_range: Some([0.0, 1.0]), ..card() };
            Recipe::starting_from(&card).unwrap().data.value_range
        };
        assert_eq!(unit(card().network), None);
        let declared = Some(ValueRange::Declared([0.0, 1.0]));
        assert_eq!(unit(NetworkConfig::Unet1d(Unet1dConfig::default())), declared);
    }

    #[test]
    fn a_recipe_has_the_last_word_where_it_says_one() {
        let start = Recipe::starting_from(&card()).unwrap();
        let silent = Recipe::from_toml_over("[train]\nsteps = 7", &start).unwrap();
        assert_eq!(silent.train.steps, 7);
        assert_eq!((&silent.unet, &silent.diffusion, &silent.data), (&start.unet, &start.diffusion, &start.data));
        assert_eq!(silent.sample.sampler, SamplerKind::Euler);
        let said = Recipe::from_toml_over(
            "[data]\nimage_size = 8\n[diffusion]\n[network]\nmodel = 'karras_unet'\n[train]\nlr = 1e-3",
            &start,
        )
        .unwrap();
        assert_eq!((said.network.model, &said.unet), (Model::KarrasUnet, &UnetConfig::default()));
        assert_eq!((&said.diffusion, said.train.lr), (&DiffusionConfig::default(), 1e-3));
        assert_eq!((said.data.image_size.unwrap().width, said.data.resize), (8, ResizePolicy::Pad));
        assert_eq!(said.sample.sampler, SamplerKind::DpmppSde2m);
    }

    #[test]
    fn what_no_recipe_says_is_refused() {
        let custom = ModelCard { network: NetworkConfig::Custom { name: "mine".into() }, ..card() };
        assert!(matches!(Recipe::starting_from(&custom), Err(RecipeError::Network(_))));
        let unnamed = ModelCard { betas: Some(vec![0.1; 10]), ..card() };
        assert!(matches!(Recipe::starting_from(&unnamed), Err(RecipeError::UnnamedSchedule)));
    }
}
