//! How much the forward pass of a network keeps for the backward pass, added up block by block. Not here: which blocks a network has (its options,
//! `NetworkOptions::kept`), and all other memory of training (`train::memory`).

/// Number of values kept for the backward pass, per pixel of a stage.
struct Kept {
    /// Per channel of its two residual blocks and of its resampling layer.
    blocks: u64,
    /// Per channel of its attention's input.
    attention: u64,
    /// Per channel of its attention heads.
    heads: u64,
}

impl Kept {
    /// Outputs of two convolutions and two normalisations in each block; normalised inputs and outputs; query, key, value, output.
    const ALL: Self = Self { blocks: 9, attention: 3, heads: 4 };
    /// The inputs of each block and of the attention.
    const INPUTS: Self = Self { blocks: 3, attention: 1, heads: 0 };

    fn values(&self, pixels: u64, dim: usize, inner: usize) -> u64 {
        pixels.saturating_mul((self.blocks + self.attention) * dim as u64 + self.heads * inner as u64)
    }
}

/// How a block is recomputed in the backward pass.
#[derive(Clone, Copy)]
pub(crate) enum Again {
    /// By a kernel.
    Kernel,
    /// With its own tape, which holds gradients of some values in addition to what is kept.
    Tape,
}

/// Number of values kept for the backward pass, added up block by block.
#[derive(Default)]
pub(crate) struct Tally {
    kept: u64,
    /// For blocks that are recomputed, one at a time: the peak of the largest one.
    again: u64,
}

impl Tally {
    /// Adds a block that keeps `all` values or, if it is recomputed, its `inputs`.
    pub fn add(&mut self, again: Option<Again>, all: u64, inputs: u64) {
        self.kept = self.kept.saturating_add(if again.is_some() { inputs } else { all });
        self.again = self.again.max(match again {
            None => 0,
            Some(Again::Kernel) => all,
            Some(Again::Tape) => all.saturating_mul(3) / 2,
        });
    }

    /// Adds one side of a stage of a U-Net: two residual blocks, attention with `inner` channels in all heads, and resampling.
    pub fn add_stage(&mut self, recomputed: bool, pixels: u64, dim: usize, inner: usize) {
        let again = recomputed.then_some(Again::Kernel);
        self.add(again, Kept::ALL.values(pixels, dim, inner), Kept::INPUTS.values(pixels, dim, inner));
    }

    pub fn values(&self) -> u64 {
        self.kept.saturating_add(self.again)
    }
}
