//! Samples drawn on several devices at once: of `n`, each draws every `n`-th batch. The noise of a sample is keyed by its number, so that the images
//! are those of a single device up to rounding, and to the bit where all devices run the same kernels (each has tuned its own). Not here: how a batch
//! is drawn.
//!
//! Which device draws a batch does not depend on how fast each is, so that a machine repeats its images to the bit. Each device has its own thread:
//! with a single thread the host's work for all devices would add up.

use std::iter::once;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use burn::tensor::Tensor;

use super::{BatchStep, GenerateError, Generator, Replica, Request, Take, Watch, finite};
use crate::models::{Calls, Network};
use crate::nn::params::host_values;
use crate::sampler::Interrupted;

/// Messages from a device's thread to the calling thread.
enum Told {
    Step(Box<Seen>),
    /// A batch is done: the position of its first image, and its values in the data's range.
    Done(usize, Vec<f32>),
    Failed(GenerateError),
}

/// A step of a batch, see [`BatchStep`].
struct Seen {
    first: usize,
    step: usize,
    steps: usize,
    x: Tensor<4>,
}

/// Set if no more images are wanted.
#[derive(Default)]
struct Stop(AtomicBool);

/// Stops the other threads if this one panics.
struct StopOnPanic<'a>(&'a Stop);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.set();
        }
    }
}

impl Stop {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<'a, M: Network> Generator<'a, M> {
    /// Draws batches on this generator's device and the replicas, and hands over each one. A thread's panic is propagated.
    pub(super) fn on_all_devices<E: From<GenerateError>>(
        &self,
        request: &Request<'_>,
        watch: &mut Watch<'_>,
        take: &mut Take<'_, E>,
    ) -> Result<(), E> {
        let own = Replica {
            device: self.device.clone(),
            model: self.model.clone(),
            weak: self.weak.clone(),
            classifier: self.classifier,
        };
        let places: Vec<_> = once(&own).chain(&self.replicas).map(|replica| self.at(replica)).collect();
        let (count, stop) = (places.len(), &Stop::default());
        thread::scope(|scope| {
            let (tell, told) = sync_channel(count);
            let threads: Vec<_> = places
                .into_iter()
                .enumerate()
                .map(|(place, generator)| {
                    let (tell, share) = (tell.clone(), (place..request.batches()).step_by(count));
                    scope.spawn(move || generator.draw_share(request, share, stop, &tell))
                })
                .collect();
            drop(tell);
            let mut hear = |told: Told| match told {
                Told::Step(seen) => {
                    let Seen { first, step, steps, ref x } = *seen;
                    match watch(&BatchStep { first, step, steps, x }) {
                        ControlFlow::Continue(()) => Ok(()),
                        ControlFlow::Break(()) => Err(GenerateError::from(Interrupted { done: step, total: steps }))?,
                    }
                }
                Told::Done(first, values) => take(first, finite(values, first, request)?),
                Told::Failed(error) => Err(error.into()),
            };
            let mut failed = None;
            for told in told {
                if failed.is_none()
                    && let Err(error) = hear(told)
                {
                    failed = Some(error);
                    stop.set();
                }
            }
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
            failed.map_or(Ok(()), Err)
        })
    }

    /// A generator for one of the devices alone. Nothing is recorded: while CubeCL records on one CUDA device, no thread may request memory from any
    /// other (it captures in global mode).
    fn at(&self, replica: &Replica<'a, M>) -> Self {
        Self {
            device: replica.device.clone(),
            model: replica.model.launched(),
            diffusion: self.diffusion,
            guidance: self.guidance.clone(),
            weak: replica.weak.as_ref().map(Calls::launched),
            classifier: replica.classifier,
            replicas: Vec::new(),
        }
    }

    /// Draws the batches of its `share` until no more are wanted.
    fn draw_share(
        &self,
        request: &Request<'_>,
        share: impl Iterator<Item = usize>,
        stop: &Stop,
        tell: &SyncSender<Told>,
    ) {
        let _stop_on_panic = StopOnPanic(stop);
        for k in share {
            if stop.is_set() {
                return;
            }
            let mut watch = |&BatchStep { first, step, steps, x }: &BatchStep<'_>| {
                let heard = tell.send(Told::Step(Box::new(Seen { first, step, steps, x: x.clone() }))).is_ok();
                if heard && !stop.is_set() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let numbers = request.batch(k);
            let batch = match self.batch(request, numbers.clone()) {
                Ok(batch) => batch,
                Err(error) => {
                    // Nobody hears it only if the work has ended already.
                    let _ = tell.send(Told::Failed(error));
                    return;
                }
            };
            let Ok(x) = self.solve(batch, request, &mut watch) else { return };
            let values = host_values(self.diffusion.unnormalize(x));
            if tell.send(Told::Done(numbers.start, values)).is_err() {
                return;
            }
        }
    }
}
