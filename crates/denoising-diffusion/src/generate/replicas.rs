//! Samples drawn on several devices at once: each takes the next batch that none has taken. The noise of a sample is keyed by its number, so that
//! the images are those of one device, whoever drew them. Not here: how a batch is drawn.
//!
//! Each device has a thread that asks it for work: the host's part of a step would otherwise be that of all devices together.

use std::iter::once;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use burn::tensor::Tensor;

use super::{GenerateError, Generator, Progress, Replica, Request, Take, Watch, finite};
use crate::models::{Calls, Network};
use crate::nn::params::host_values;
use crate::sampler::Interrupted;

/// What a device's thread tells the one that watches.
enum Told {
    Step(Box<Seen>),
    /// A batch is done: the place of its first image, and its values in the data's range.
    Done(usize, Vec<f32>),
}

/// A step of a batch, see [`Progress`].
struct Seen {
    first: usize,
    step: usize,
    steps: usize,
    x: Tensor<4>,
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    /// The next batch that none has taken.
    next: AtomicUsize,
    /// Nobody wants the images any more.
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

    /// The next of `batches`, if there is one and it is wanted.
    fn take(&self, batches: usize) -> Option<usize> {
        let k = self.next.fetch_add(1, Ordering::Relaxed);
        (k < batches && !self.is_stopped()).then_some(k)
    }
}

impl<'a, M: Network> Generator<'a, M> {
    /// Has batches drawn on its own device and those of the replicas, and hands each over. A thread's panic is handed on.
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
                    match watch(&Progress { first, step, steps, x }) {
                        ControlFlow::Continue(()) => Ok(()),
                        ControlFlow::Break(()) => Err(GenerateError::from(Interrupted { done: step, total: steps }))?,
                    }
                }
                Told::Done(first, values) => take(first, finite(values, first, request)?),
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

    /// The same on one of the devices, alone. Nothing is recorded: while CubeCL records on one device of CUDA, no thread may ask any other for memory
    /// (it captures in the global mode).
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

    /// Draws batches until none is left, or nobody wants them.
    fn draw_shares(&self, request: &Request<'_>, shared: &Shared, tell: &SyncSender<Told>) {
        let _stop_on_panic = StopOnPanic(shared);
        while let Some(k) = shared.take(request.batches()) {
            let mut watch = |&Progress { first, step, steps, x }: &Progress<'_>| {
                let heard = tell.send(Told::Step(Box::new(Seen { first, step, steps, x: x.clone() }))).is_ok();
                if heard && !shared.is_stopped() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let numbers = request.batch(k);
            let batch = self.batch(request, numbers.clone());
            let Ok(x) = self.solve(batch, request, &mut watch) else { return };
            let values = host_values(self.diffusion.unnormalize(x));
            if tell.send(Told::Done(numbers.start, values)).is_err() {
                return;
            }
        }
    }
}
