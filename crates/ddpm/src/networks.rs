//! Networks described in words. Not here: the networks.

use denoising_diffusion::models::{DitConfig, NetworkConfig};

/// A network in one line.
pub fn in_words(network: &NetworkConfig) -> String {
    match network {
        NetworkConfig::Unet(unet) => format!("U-Net, stages {}", stages(unet.dim, &unet.dim_mults)),
        NetworkConfig::Unet1d(unet) => format!("U-Net for sequences, stages {}", stages(unet.dim, &unet.dim_mults)),
        NetworkConfig::Dit(dit) => transformer(dit),
        NetworkConfig::Uvit(uvit) => {
            let (blocks, heads) = (uvit.vit_depth, uvit.attn_heads);
            format!("U-ViT, stages {}, {blocks} blocks with {heads} heads", stages(uvit.dim, &uvit.dim_mults))
        }
        NetworkConfig::KarrasUnet(karras) => {
            let dims = (0..=karras.num_downsamples).map(|i| (karras.dim << i).min(karras.dim_max).to_string());
            let of = karras.extent.map_or(String::new(), |extent| format!(" for {}", extent.layout));
            format!("magnitude-preserving U-Net{of}, stages {}", dims.collect::<Vec<_>>().join(", "))
        }
        NetworkConfig::Custom { name } => format!("custom: {name}"),
    }
}

/// `DiT, 12 blocks of width 384 with 6 heads, patches of 2x2`.
fn transformer(dit: &DitConfig) -> String {
    let (p, heads) = (dit.patch_size, dit.num_heads());
    format!("DiT, {} blocks of width {} with {heads} heads, patches of {p}x{p}", dit.depth(), dit.hidden_size())
}

/// `32, 64, 128`: the widths of the stages.
pub fn stages(dim: usize, dim_mults: &[usize]) -> String {
    dim_mults.iter().map(|mult| (dim * mult).to_string()).collect::<Vec<_>>().join(", ")
}
