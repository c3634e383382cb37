//! The networks that a recipe can train: the values of `model`, and the section of each network's options. Not here: what holds for each of them,
//! which its options say (`models`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Recipe;
use crate::data::DataLayout;
use crate::models::{
    DitConfig, KarrasUnetConfig, NetworkConfig, NetworkConfigError, NetworkKind, NetworkOptions, Unet1dConfig,
    UnetConfig, UvitConfig,
};
use crate::train::TrainConfig;

/// The network that a recipe trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    #[default]
    Unet,
    Unet1d,
    Dit,
    Uvit,
    KarrasUnet,
}

/// All that depends on which network it is: a line for each, with the type of its options and their section.
macro_rules! networks {
    ($($Network:ident: $Options:ident in $section:ident,)*) => {
        impl Model {
            /// All networks.
            pub const ALL: [Self; [$(Self::$Network),*].len()] = [$(Self::$Network),*];

            fn kind(self) -> NetworkKind {
                match self {
                    $(Self::$Network => $Options::default().kind(),)*
                }
            }
        }

        impl Recipe {
            /// The options in the section of a network.
            pub(super) fn options_of(&self, model: Model) -> NetworkConfig {
                match model {
                    $(Model::$Network => NetworkConfig::$Network(self.$section.clone()),)*
                }
            }

            /// Makes the recipe one of this network.
            ///
            /// # Errors
            /// A custom network.
            pub(super) fn set_network(&mut self, network: NetworkConfig) -> Result<(), NetworkConfigError> {
                match network {
                    $(NetworkConfig::$Network(options) => {
                        self.$section = options;
                        self.network.model = Model::$Network;
                    })*
                    NetworkConfig::Custom { name } => return Err(NetworkConfigError::Custom { name }),
                }
                Ok(())
            }
        }
    };
}

networks! {
    Unet: UnetConfig in unet,
    Unet1d: Unet1dConfig in unet1d,
    Dit: DitConfig in dit,
    Uvit: UvitConfig in uvit,
    KarrasUnet: KarrasUnetConfig in karras_unet,
}

impl Model {
    /// The name in configuration files, and the section of its options.
    pub fn name(self) -> &'static str {
        self.kind().name
    }

    /// The kind of data that it is for; [`DataLayout::Auto`] stands for all kinds.
    pub fn layout(self) -> DataLayout {
        self.kind().layout
    }

    /// The default learning rate: that of the reference, unless the network needs another one.
    pub fn usual_lr(self) -> f64 {
        self.kind().usual_lr.unwrap_or(TrainConfig::default().lr)
    }

    /// One-line description for the user.
    pub fn about(self) -> &'static str {
        self.kind().about
    }

    /// Whether it can be told how training images were augmented.
    pub(super) fn can_be_augmented(self) -> bool {
        self.kind().augment_labels
    }

    /// Whether it embeds time by Fourier features even by default.
    pub(super) fn always_fourier_time(self) -> bool {
        Recipe::default().options_of(self).fourier_time()
    }

    /// `unet, dit and uvit`: the names of some networks.
    pub(super) fn names_of(these: impl Fn(Self) -> bool) -> String {
        let names: Vec<&str> = Self::ALL.into_iter().filter(|&model| these(model)).map(Self::name).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }
}

/// The choice of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    pub model: Model,
    /// The weights that training starts from: a run folder, a checkpoint or a file. `None`: initial weights are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value of `model`, a section of a recipe and the kind in a model card.
    #[test]
    fn a_network_has_one_name() {
        let recipe = serde_json::to_value(Recipe::default()).unwrap();
        for model in Model::ALL {
            assert_eq!(serde_json::to_value(model).unwrap(), model.name());
            let network = serde_json::to_value(Recipe::default().options_of(model)).unwrap();
            assert_eq!(network["kind"], model.name());
            let mut section = network.clone();
            section.as_object_mut().unwrap().remove("kind");
            assert_eq!(recipe[model.name()], section);
        }
    }

    #[test]
    fn networks_are_named_in_messages() {
        assert_eq!(Model::names_of(Model::can_be_augmented), "unet, dit and uvit");
        assert_eq!(Model::names_of(Model::always_fourier_time), "uvit and karras_unet");
        assert_eq!(Model::names_of(|model| model == Model::Dit), "dit");
    }
}
