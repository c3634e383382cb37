//! Multi-head attention over positions with memory keys and values, full and linear, and the gradients.
//!
//! `qkv` is `[batch, positions, 3, heads, head_dim]`: queries, keys, values. Memory keys and values come before the keys and values of the positions.
//! Not here: the projections before and after, which are convolutions.

mod bf16;
#[cfg(test)]
mod bf16_tests;
#[cfg(test)]
mod exact;
mod full;
mod full_grad;
mod linear;
mod linear_grad;
mod pack;
mod rows;
#[cfg(test)]
mod tests;

pub use full::attention_forward;
pub use full_grad::attention_backward;
pub use linear::{linear_attention_forward, linear_attention_state};
pub use linear_grad::linear_attention_backward;

use crate::gemm::PANEL;
use crate::matrix_unit::Unit;

/// The factors of full attention's products; sums and the softmax are in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Factors {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, where the machine [multiplies those fast](crate::multiplies_bf16) and the shape suits it (128 positions and more, heads of
    /// 16 to 256 channels).
    Bf16,
}

impl Factors {
    fn unit(self, shape: &AttentionShape) -> Option<Unit> {
        (self == Factors::Bf16).then(|| bf16::unit_for(shape)).flatten()
    }
}

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Images.
    pub batch: usize,
    /// Height times width.
    pub positions: usize,
    /// Heads.
    pub heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Memory keys and values per head.
    pub memory: usize,
}

/// Index of queries, keys and values in a row of `qkv`.
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

impl AttentionShape {
    /// Values of `qkv`.
    pub fn qkv_len(&self) -> usize {
        3 * self.output_len()
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.positions * self.heads * self.head_dim
    }

    /// Values of the memory, keys and values together.
    pub fn memory_len(&self) -> usize {
        2 * self.heads * self.memory * self.head_dim
    }

    /// Values of the log-sum-exp that full attention saves.
    pub fn lse_len(&self) -> usize {
        self.batch * self.heads * self.positions
    }

    /// Values of the state of keys and values that linear attention saves.
    pub fn linear_state_len(&self) -> usize {
        self.batch * self.heads * self.head_state_len()
    }

    /// The same for one head: a matrix, and a maximum and a factor for each of its rows.
    fn head_state_len(&self) -> usize {
        self.padded_dim() * (self.padded_dim() + 2)
    }

    /// Keys of a head: memory and positions.
    fn keys(&self) -> usize {
        self.memory + self.positions
    }

    /// Head width in scratch memory.
    fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    /// Where queries, keys or values (`part`) of a position and head begin in `qkv`.
    fn qkv_at(&self, image: usize, position: usize, part: usize, head: usize) -> usize {
        (((image * self.positions + position) * 3 + part) * self.heads + head) * self.head_dim
    }

    /// Where a position and head begin in the output.
    fn output_at(&self, image: usize, position: usize, head: usize) -> usize {
        ((image * self.positions + position) * self.heads + head) * self.head_dim
    }

    fn check(&self, qkv: usize, memory: usize, output: usize) {
        let sizes = [self.batch, self.positions, self.heads, self.head_dim];
        assert!(sizes.iter().all(|&size| size > 0), "a size of {self:?} is 0");
        assert_eq!(qkv, self.qkv_len(), "length of qkv of {self:?}");
        assert_eq!(memory, self.memory_len(), "length of the memory of {self:?}");
        assert_eq!(output, self.output_len(), "length of the output of {self:?}");
    }
}

/// dst = sum over the batch of the rows of `parts`, in order.
fn sum_batch(parts: &[f32], dst: &mut [f32]) {
    dst.fill(0.0);
    if dst.is_empty() {
        return;
    }
    for part in parts.chunks_exact(dst.len()) {
        for (sum, &value) in dst.iter_mut().zip(part) {
            *sum += value;
        }
    }
}
