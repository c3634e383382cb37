//! The random choices for a batch, drawn while a GPU is busy with the batch before it: drawing is done by the host, and otherwise the GPU would wait
//! for it between two steps.

use crate::diffusion::Draws;

/// [`Draws`] for an upcoming batch.
#[derive(Debug)]
pub struct Ahead {
    batch: u64,
    dims: [usize; 4],
    draws: Draws,
}

impl Ahead {
    /// `draws` for batch number `batch` with shape `dims`.
    pub fn new(batch: u64, dims: [usize; 4], draws: Draws) -> Self {
        Self { batch, dims, draws }
    }

    /// The draws, if they are for this batch.
    pub fn of(self, batch: u64, dims: [usize; 4]) -> Option<Draws> {
        (self.batch == batch && self.dims == dims).then_some(self.draws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_batch_that_was_drawn_for_gets_them() {
        let draws = Draws {
            times: vec![0.5],
            noise: vec![],
            offset_noise: None,
            self_condition: false,
            keep_condition: vec![1.0],
        };
        let ahead = || Ahead::new(3, [1, 2, 4, 4], draws.clone());
        assert_eq!(ahead().of(3, [1, 2, 4, 4]).unwrap().times, [0.5]);
        assert!(ahead().of(4, [1, 2, 4, 4]).is_none());
        assert!(ahead().of(3, [1, 2, 4, 5]).is_none());
    }
}
