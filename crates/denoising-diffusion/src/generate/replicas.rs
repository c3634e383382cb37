//! Samples drawn on several devices at once: each takes the next batch not yet taken. The noise of a sample is keyed by its number, so that the
//! images are those of a single device, whichever device draws them. Not here: how a batch is drawn.
//!
//! Each device has its own thread: with a single thread the host's work for all devices would add up.

use std::iter::once;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// State shared by the threads.
#[derive(Default)]
struct Shared {
    /// The next batch not yet taken.
    next: AtomicUsize,
    /// Set if no more images are wanted.
    stop: AtomicBool,
}

/// Stops the other threads if this one panics.
struct StopOnPanic<'a>(&'a Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

impl Shared {
    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The next of `batches`, if any is left and still wanted.
    fn take(&self, batches: usize) -> Option<usize> {
        let k = self.next.fetch_add(1, Ordering::Relaxed);
        (k < batches && !self.is_stopped()).then_some(k)
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
        let shared = &Shared::default();
        thread::scope(|scope| {
            let (tell, told) = sync_channel(places.len());
            let threads: Vec<_> = places
                .into_iter()
                .map(|generator| {
                    let tell = tell.clone();
                    scope.spawn(move || generator.draw_shares(request, shared, &tell))
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
                    shared.stop();
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

    /// Draws batches until none is left, or no more are wanted.
    fn draw_shares(&self, request: &Request<'_>, shared: &Shared, tell: &SyncSender<Told>) {
        let _stop_on_panic = StopOnPanic(shared);
        while let Some(k) = shared.take(request.batches()) {
            let mut watch = |&BatchStep { first, step, steps, x }: &BatchStep<'_>| {
                let heard = tell.send(Told::Step(Box::new(Seen { first, step, steps, x: x.clone() }))).is_ok();
                if heard && !shared.is_stopped() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
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
