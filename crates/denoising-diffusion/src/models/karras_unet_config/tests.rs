//! The blocks that options define, and which options of a magnitude-preserving U-Net are refused.

use super::super::karras_unet_blocks::BlockDims;
use super::*;

fn images(side: usize) -> KarrasUnetConfig {
    let extent = Extent { layout: DataLayout::Images, depth: 1, height: side, width: side };
    KarrasUnetConfig { extent: Some(extent), ..KarrasUnetConfig::default() }
}

#[test]
fn every_encoder_has_its_decoder() {
    let blocks = images(64).blocks().unwrap();
    let skips = blocks.ups.iter().filter(|block| block.resized.is_none()).count();
    assert_eq!((blocks.downs.len() + 1, blocks.downs.len()), (skips, 4 + 3 * 5));
    assert_eq!(blocks.downs.iter().filter(|block| block.attention).count(), 2 * 5);
    assert_eq!(blocks.mids[0], BlockDims { dim_in: 768, dim_out: 768, attention: true, resized: None });
    // The last doubling goes from 32 to 64, the one before from 16 to 32, at which there is no attention.
    let resized: Vec<bool> = blocks.ups.iter().filter(|b| b.resized.is_some()).map(|b| b.attention).collect();
    assert_eq!(resized, [true, false, false]);
}

#[test]
fn volumes_are_halved_by_type_and_sizes_are_checked() {
    let extent = Extent { layout: DataLayout::Volumes, depth: 2, height: 8, width: 8 };
    let types = PerStage::Each(vec![DownsampleType::Image, DownsampleType::Frame, DownsampleType::Image]);
    let config = KarrasUnetConfig { extent: Some(extent), downsample_types: types, ..KarrasUnetConfig::default() };
    let blocks = config.blocks().unwrap();
    let resized: Vec<[bool; 3]> = blocks.downs.iter().filter_map(|block| block.resized).collect();
    assert_eq!(resized, [[false, true, true], [true, false, false], [false, true, true]]);
    config.check_size(2 * 12, 4).unwrap();
    let all = KarrasUnetConfig { downsample_types: PerStage::All(DownsampleType::All), ..config.clone() };
    assert!(all.blocks().unwrap_err().to_string().contains("`depth` is halved 3 times"));
    let error = KarrasUnetConfig { extent: images(64).extent, ..config }.blocks().unwrap_err();
    assert_eq!(error, KarrasUnetConfigError::DownsampleTypes(DataLayout::Images));
    let apart = KarrasUnetConfig { space_time_attn: SpaceTimeAttention::Factorized, ..images(64) };
    assert_eq!(apart.blocks().unwrap_err(), KarrasUnetConfigError::SpaceTime(DataLayout::Images));
    assert!(images(36).blocks().unwrap_err().to_string().contains("multiple of 8, got 36"));
}

#[test]
fn wrong_options_are_named() {
    let ok = KarrasUnetConfig::default;
    for (key, config) in [
        ("dim", KarrasUnetConfig { dim: 0, ..ok() }),
        ("fourier_dim", KarrasUnetConfig { fourier_dim: 5, ..ok() }),
        ("extent.depth", KarrasUnetConfig { extent: Some(Extent { depth: 0, ..Extent::ONE }), ..ok() }),
        ("mp_cat_t", KarrasUnetConfig { mp_cat_t: 1.0, ..ok() }),
        ("dropout", KarrasUnetConfig { dropout: f64::NAN, ..ok() }),
        ("num_blocks_per_stage", KarrasUnetConfig { num_blocks_per_stage: PerStage::Each(vec![1, 2]), ..ok() }),
        ("num_blocks_per_stage", KarrasUnetConfig { num_blocks_per_stage: PerStage::All(0), ..ok() }),
    ] {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    }
    assert_eq!(ok().blocks().unwrap_err(), KarrasUnetConfigError::NoExtent);
}

#[test]
fn sizes_that_do_not_fit_are_named_as_what_they_are_with_the_nearest_that_do() {
    let said = |extent: Extent, height, width| {
        let config = KarrasUnetConfig { extent: Some(extent), ..KarrasUnetConfig::default() };
        config.check_size(height, width).unwrap_err().to_string()
    };
    let sequences = Extent { layout: DataLayout::Sequences, depth: 1, height: 1, width: 64 };
    assert_eq!(said(sequences, 5, 64), "the network is for sequences, whose height is 1, got 5");
    let error = said(sequences, 1, 60);
    assert!(
        error.contains("`width`") && error.contains("multiple of 8, got 60") && error.contains("56 and 64"),
        "{error}"
    );
    let volumes = Extent { layout: DataLayout::Volumes, depth: 8, height: 16, width: 16 };
    let error = said(volumes, 100, 16);
    assert!(error.contains("8 slices") && error.contains("height") && error.contains("got 100"), "{error}");
    assert!(error.contains("96 and 104") && !error.contains("halved"), "{error}");
    assert!(said(volumes, 8 * 20, 16).contains("`height` is halved 3 times"));
    assert!(said(images(64).extent.unwrap(), 64, 0).contains("got 0: the nearest that work are 8"));
}

/// A library user's options are not checked before they are asked for something.
#[test]
fn invalid_options_are_refused_wherever_they_are_used() {
    let deep = KarrasUnetConfig { num_downsamples: 64, ..images(64) };
    let shape = ImageShape { channels: 4, height: 64, width: 64 };
    let is_named = |error: String| assert!(error.contains("`num_downsamples`"), "{error}");
    is_named(deep.check_extent(deep.extent.unwrap()).unwrap_err().to_string());
    is_named(deep.check_size(64, 64).unwrap_err().to_string());
    is_named(deep.kept(shape, false).unwrap_err().to_string());
    assert!(deep.in_words().starts_with("magnitude-preserving"));
    let flat = KarrasUnetConfig { extent: Some(Extent { depth: 0, ..Extent::ONE }), ..images(64) };
    assert!(flat.check_size(64, 64).unwrap_err().to_string().contains("`extent.depth`"));
}
