//! The batches of a run: which one is next, and on which device. Not here: what is in a batch (`data::Loader`).

use super::run::{Run, RunSetup};
use super::trainer::Trainer;
use crate::data::{DataError, Loader, LoaderConfig};
use crate::diffusion::Examples;
use crate::models::Network;

impl<M: Network> Run<M> {
    /// The batches of the next step.
    pub(super) fn next_batches(&mut self) -> Result<Vec<Examples>, DataError> {
        let batches = 0..self.trainer.config().accumulate;
        let on_its_device = |k| {
            let batch = self.loader.next_batch()?;
            Ok(Examples::of(batch, &self.trainer.device_of_batch(k)))
        };
        batches.map(on_its_device).collect()
    }

    /// Goes back to the batches of the next step if some of them were taken for a step that was not made, because another could not be read.
    pub(super) fn rewind(&mut self) -> Result<(), DataError> {
        if self.loader.position() != first_batch(&self.trainer) {
            self.loader = open_loader(&self.trainer, &self.setup)?;
        }
        Ok(())
    }
}

/// The loader of the next step's batches.
pub(super) fn open_loader<M>(trainer: &Trainer<M>, setup: &RunSetup) -> Result<Loader, DataError> {
    let config = trainer.config();
    let loader = LoaderConfig {
        batch_size: config.batch_size,
        seed: config.seed,
        flip: setup.flip,
        augment: setup.augment,
        workers: setup.workers,
    };
    Loader::start_at(setup.train.clone(), loader, first_batch(trainer))
}

fn first_batch<M>(trainer: &Trainer<M>) -> u64 {
    trainer.step_count() * trainer.config().accumulate as u64
}
