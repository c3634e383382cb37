//! What chance decides about a batch, drawn while a GPU is busy with the batch before it: drawing is the host's work, and between two steps the GPU
//! would wait for it.

use std::any::Any;
use std::fmt::Debug;

use crate::diffusion::Draws;

/// [`Draws`] for a batch to come.
#[derive(Debug)]
pub struct Ahead {
    batch: u64,
    dims: Vec<usize>,
    /// Of the rank of `dims`.
    draws: Box<dyn AnyDraws>,
}

trait AnyDraws: Any + Debug + Send + Sync {}

impl<const D: usize> AnyDraws for Draws<D> {}

impl Ahead {
    /// `draws` for batch number `batch` of shape `dims`.
    pub fn new<const D: usize>(batch: u64, dims: [usize; D], draws: Draws<D>) -> Self {
        Self { batch, dims: dims.to_vec(), draws: Box::new(draws) }
    }

    /// The draws, if they are for this batch.
    pub fn of<const D: usize>(self, batch: u64, dims: [usize; D]) -> Option<Draws<D>> {
        let draws: Box<dyn Any> = self.draws;
        draws.downcast().ok().filter(|_| self.batch == batch && self.dims == dims).map(|draws| *draws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws<const D: usize>() -> Draws<D> {
        Draws { times: vec![0.5], noise: vec![], offset_noise: None, self_condition: false, keep_condition: vec![1.0] }
    }

    #[test]
    fn only_the_batch_that_was_drawn_for_gets_them() {
        let ahead = || Ahead::new(3, [1, 2, 4, 4], draws());
        assert_eq!(ahead().of(3, [1, 2, 4, 4]).unwrap().times, [0.5]);
        assert!(ahead().of(4, [1, 2, 4, 4]).is_none());
        assert!(ahead().of(3, [1, 2, 4, 5]).is_none());
        assert!(ahead().of(3, [1, 2, 4]).is_none());
    }
}
