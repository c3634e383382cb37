//! The network of a reference checkpoint, completed by values that the user gives for what its tensors leave open. Not here: what the tensors reveal
//! (`infer.rs`), and the formulation (`said.rs`).

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::InteropError;
use super::inferred::Inferred;
use crate::models::{ImageTransform, NetworkConfig, UvitConfig};

impl Inferred {
    /// The same with given options of the network (`sinusoidal_pos_emb_theta`, `mid_attn_heads`, `mp_cat_t`, `image_transform`, ...). They replace
    /// what is [`assumed`](Self::assumed).
    ///
    /// # Errors
    /// An option that is not open, or a value that does not give a network.
    pub fn with_network(mut self, said: &Map<String, Value>) -> Result<Self, InteropError> {
        for (key, value) in said {
            if key == "mid_attn_heads" {
                self = self.with_mid_attn_heads(read(key, value)?)?;
                continue;
            }
            let is_open = self.assumed.contains(&key.as_str());
            match (&mut self.network, key.as_str()) {
                (NetworkConfig::Unet(unet), "dropout") if is_open => unet.dropout = read(key, value)?,
                (NetworkConfig::KarrasUnet(karras), "dropout") if is_open => karras.dropout = read(key, value)?,
                (NetworkConfig::KarrasUnet(karras), "downsample_types") if is_open => {
                    karras.downsample_types = read(key, value)?;
                }
                (NetworkConfig::Uvit(uvit), "vit_dropout") if is_open => uvit.vit_dropout = read(key, value)?,
                (NetworkConfig::Unet(unet), "sinusoidal_pos_emb_theta") if is_open => {
                    unet.sinusoidal_pos_emb_theta = read(key, value)?;
                }
                (NetworkConfig::KarrasUnet(karras), "mp_cat_t") if is_open => karras.mp_cat_t = read(key, value)?,
                (NetworkConfig::KarrasUnet(karras), "mp_add_emb_t") if is_open => {
                    karras.mp_add_emb_t = read(key, value)?
                }
                (NetworkConfig::KarrasUnet(karras), "attn_res_mp_add_t") if is_open => {
                    karras.attn_res_mp_add_t = read(key, value)?;
                }
                (NetworkConfig::Uvit(uvit), "image_transform") if is_open => *uvit = behind(uvit, read(key, value)?)?,
                _ => return Err(InteropError::NotOpen { key: key.clone() }),
            }
        }
        self.network.validate()?;
        Ok(self)
    }

    /// The same with another number of heads in the middle block, if no tensor reveals it.
    ///
    /// # Errors
    /// The tensors reveal it, or their channels cannot be divided into this number of heads.
    pub fn with_mid_attn_heads(mut self, heads: usize) -> Result<Self, InteropError> {
        let told = || InteropError::Contradicted {
            key: "mid_attn_heads".to_string(),
            told: "the heads of every attention".to_string(),
            said: heads.to_string(),
        };
        let NetworkConfig::Unet(unet) = &mut self.network else { return Err(told()) };
        let (Some(assumed), Some(dim_head)) = (unet.mid_attn_heads, unet.mid_attn_dim_head) else {
            return Err(told());
        };
        let features = assumed * dim_head;
        if heads == 0 || !features.is_multiple_of(heads) {
            return Err(InteropError::NoConfiguration(format!(
                "the middle block's attention has {features} features, which is not a multiple of {heads} heads"
            )));
        }
        (unet.mid_attn_heads, unet.mid_attn_dim_head) = (Some(heads), Some(features / heads));
        Ok(self)
    }
}

/// The same tensors behind a transform: their inputs and outputs are transformed channels.
fn behind(uvit: &UvitConfig, image_transform: ImageTransform) -> Result<UvitConfig, InteropError> {
    let transformed = |channels: usize| uvit.transformed(channels);
    let bare = |channels: usize| {
        let area = image_transform.factor() * image_transform.factor();
        match channels.is_multiple_of(area) {
            true => Ok(channels / area),
            false => Err(InteropError::NoConfiguration(format!(
                "with this transform, the number of channels must be a multiple of {area}, but the network has {channels}"
            ))),
        }
    };
    Ok(UvitConfig {
        image_transform,
        channels: bare(transformed(uvit.channels))?,
        out_dim: uvit.out_dim.map(|out_dim| bare(transformed(out_dim))).transpose()?,
        ..uvit.clone()
    })
}

fn read<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, InteropError> {
    serde_json::from_value(value.clone()).map_err(|error| InteropError::NoConfiguration(format!("`{key}`: {error}")))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use serde_json::json;

    use super::*;
    use crate::data::DataLayout;
    use crate::models::{DownsampleType, Extent, KarrasUnetConfig, PerStage, UnetConfig};

    fn with(network: NetworkConfig, assumed: &[&'static str], said: Value) -> Result<NetworkConfig, String> {
        let (diffusion, betas, notes) = (None, None, Vec::new());
        let inferred = Inferred { network, diffusion, betas, assumed: assumed.to_vec(), notes };
        let said = inferred.with_network(said.as_object().unwrap());
        let with_cause = |error: InteropError| match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        said.map(|inferred| inferred.network).map_err(with_cause)
    }

    #[test]
    fn what_is_assumed_is_replaced() {
        let unet = UnetConfig { sinusoidal_pos_emb_theta: 500.0, ..UnetConfig::default() };
        let said = json!({"sinusoidal_pos_emb_theta": 500.0});
        let found = with(NetworkConfig::Unet(UnetConfig::default()), &["sinusoidal_pos_emb_theta"], said);
        assert_eq!(found, Ok(NetworkConfig::Unet(unet)));

        let karras = || NetworkConfig::KarrasUnet(KarrasUnetConfig::default());
        let shares = ["mp_cat_t", "mp_add_emb_t", "attn_res_mp_add_t"];
        let expected = KarrasUnetConfig {
            mp_cat_t: 0.4,
            mp_add_emb_t: 0.6,
            attn_res_mp_add_t: 0.2,
            ..KarrasUnetConfig::default()
        };
        let said = json!({"mp_cat_t": 0.4, "mp_add_emb_t": 0.6, "attn_res_mp_add_t": 0.2});
        assert_eq!(with(karras(), &shares, said), Ok(NetworkConfig::KarrasUnet(expected)));
        assert!(with(karras(), &shares, json!({"mp_cat_t": 1.0})).unwrap_err().contains("in (0, 1)"));
    }

    #[test]
    fn what_only_training_uses_can_be_given_too() {
        let with = |network, key: &'static str| with(network, &[key], json!({key: 0.5}));
        let unet = UnetConfig { dropout: 0.5, ..UnetConfig::default() };
        assert_eq!(with(NetworkConfig::Unet(UnetConfig::default()), "dropout"), Ok(NetworkConfig::Unet(unet)));
        let karras = KarrasUnetConfig { dropout: 0.5, ..KarrasUnetConfig::default() };
        let expected = Ok(NetworkConfig::KarrasUnet(karras));
        assert_eq!(with(NetworkConfig::KarrasUnet(KarrasUnetConfig::default()), "dropout"), expected);
        let uvit = UvitConfig { vit_dropout: 0.5, ..UvitConfig::default() };
        assert_eq!(with(NetworkConfig::Uvit(UvitConfig::default()), "vit_dropout"), Ok(NetworkConfig::Uvit(uvit)));
    }

    #[test]
    fn which_axes_of_volumes_are_halved_can_be_given() {
        let extent = Some(Extent { layout: DataLayout::Volumes, depth: 4, height: 8, width: 8 });
        let config = KarrasUnetConfig { num_downsamples: 2, extent, ..KarrasUnetConfig::default() };
        let types = PerStage::Each(vec![DownsampleType::Image, DownsampleType::Frame]);
        let expected = KarrasUnetConfig { downsample_types: types, ..config.clone() };
        let said = json!({"downsample_types": ["image", "frame"]});
        let found = with(NetworkConfig::KarrasUnet(config), &["downsample_types"], said);
        assert_eq!(found, Ok(NetworkConfig::KarrasUnet(expected)));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let unet = NetworkConfig::Unet(UnetConfig { learned_sinusoidal_cond: true, ..UnetConfig::default() });
        for key in ["sinusoidal_pos_emb_theta", "mp_cat_t", "image_transform", "mid_attn_heads"] {
            let error = with(unet.clone(), &["dropout"], json!({key: 2})).unwrap_err();
            assert!(error.contains(&format!("`{key}")), "{error}");
        }
    }

    #[test]
    fn a_transform_has_four_channels_for_each_of_an_image() {
        let uvit = |channels| NetworkConfig::Uvit(UvitConfig { channels, ..UvitConfig::default() });
        let haar = |network| with(network, &["image_transform"], json!({"image_transform": "haar"}));
        let expected = UvitConfig { channels: 3, image_transform: ImageTransform::Haar, ..UvitConfig::default() };
        assert_eq!(haar(uvit(12)), Ok(NetworkConfig::Uvit(expected.clone())));
        assert_eq!(haar(NetworkConfig::Uvit(expected.clone())), Ok(NetworkConfig::Uvit(expected)));
        assert!(haar(uvit(3)).unwrap_err().contains("multiple of 4"));
    }
}
