//! The stages of a U-Net that its options define: widths and attention. Not here: the options (`unet_config.rs`), and the network (`unet.rs`).

use super::unet_config::{MOST_STAGES, UnetConfig, UnetConfigError, at_least_one};
use super::{MOST_OF_ANYTHING, PerStage};

/// The configuration of one stage, all options resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub dim_in: usize,
    pub dim_out: usize,
    pub full_attn: bool,
    pub heads: usize,
    pub dim_head: usize,
    pub is_last: bool,
}

impl UnetConfig {
    /// The stages, outermost first.
    pub fn stages(&self) -> Result<Vec<Stage>, UnetConfigError> {
        self.check_scalars()?;
        let n = self.dim_mults.len();
        if n > MOST_STAGES {
            return Err(UnetConfigError::TooManyStages { got: n });
        }
        let innermost_only = PerStage::Each((0..n).map(|i| i + 1 == n).collect());
        let full_attn = per_stage("full_attn", self.full_attn.as_ref().unwrap_or(&innermost_only), n)?;
        let heads = per_stage("attn_heads", &self.attn_heads, n)?;
        let dim_head = per_stage("attn_dim_head", &self.attn_dim_head, n)?;
        for (key, values) in [("attn_heads", &heads), ("attn_dim_head", &dim_head), ("dim_mults", &self.dim_mults)] {
            at_least_one(key, values.iter().copied().min().unwrap_or(0))?;
        }
        let mut dims = vec![self.first_dim()];
        for &mult in &self.dim_mults {
            dims.push(stage_width(self.dim, mult).ok_or(UnetConfigError::TooWide { dim: self.dim, mult })?);
        }
        Ok((0..n)
            .map(|i| Stage {
                dim_in: dims[i],
                dim_out: dims[i + 1],
                full_attn: full_attn[i],
                heads: heads[i],
                dim_head: dim_head[i],
                is_last: i + 1 == n,
            })
            .collect())
    }
}

/// `None` if it is too wide.
pub(super) fn stage_width(dim: usize, mult: usize) -> Option<usize> {
    dim.checked_mul(mult).filter(|&width| width as u64 <= MOST_OF_ANYTHING)
}

/// `32, 64, 128`: the widths of the stages.
pub(super) fn stage_widths(dim: usize, dim_mults: &[usize]) -> String {
    dim_mults.iter().map(|mult| dim.saturating_mul(*mult).to_string()).collect::<Vec<_>>().join(", ")
}

fn per_stage<T: Clone>(key: &'static str, value: &PerStage<T>, stages: usize) -> Result<Vec<T>, UnetConfigError> {
    value.resolve(stages).ok_or(UnetConfigError::PerStage { key, stages, got: value.given() })
}
