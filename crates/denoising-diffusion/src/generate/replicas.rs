//! Samples drawn on several devices at once: each takes the next batch that none has taken. The noise of a sample is keyed by its number, so that
//! the images are those of one device, whoever drew them. Not here: how a batch is drawn.
//!
//! Each device has a thread that asks it for work: the host's part of a step would otherwise be that of all devices together.

use std::collections::BTreeMap;
use std::iter::once;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use burn::tensor::{Device, Tensor};

use super::{Generator, Progress, Replica, Request, Watch};
use crate::models::Network;
use crate::nn::params::host_values;
use crate::sampler::Interrupted;

/// A step that a device's thread tells the one that watches, see [`Progress`].
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

impl<'a, M: Network<4>> Generator<'a, M> {
    /// The values of all samples, drawn on `device` and those of the replicas. A thread's panic is handed on.
    pub(super) fn on_all_devices(
        &self,
        request: &Request<'_>,
        device: &Device,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<f32>, Interrupted> {
        let own = Replica {
            device: device.clone(),
            model: self.model.clone(),
            weak: self.weak.clone(),
            classifier: self.classifier,
        };
        let places: Vec<_> = once(&own).chain(&self.replicas).map(|at| (self.at(at), &at.device)).collect();
        let shared = &Shared::default();
        thread::scope(|scope| {
            let (tell, told) = sync_channel(places.len());
            let threads: Vec<_> = places
                .into_iter()
                .map(|(generator, device)| {
                    let tell = tell.clone();
                    scope.spawn(move || generator.draw_shares(request, device, shared, &tell))
                })
                .collect();
            drop(tell);
            let mut interrupted = Interrupted { done: 0, total: 0 };
            for Seen { first, step, steps, x } in told {
                if !shared.is_stopped() && watch(&Progress { first, step, steps, x: &x }).is_break() {
                    shared.stop();
                    interrupted = Interrupted { done: step, total: steps };
                }
            }
            let drawn =
                threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            let batches: BTreeMap<usize, Vec<f32>> = drawn.collect();
            if batches.len() < request.batches() {
                return Err(interrupted);
            }
            let mut all = Vec::with_capacity(batches.values().map(Vec::len).sum());
            batches.into_values().for_each(|values| all.extend(values));
            Ok(all)
        })
    }

    /// The same on one of the devices, alone.
    fn at(&self, replica: &Replica<'a, M>) -> Self {
        Self {
            model: replica.model.clone(),
            diffusion: self.diffusion,
            guidance: self.guidance.clone(),
            weak: replica.weak.clone(),
            classifier: replica.classifier,
            replicas: Vec::new(),
        }
    }

    /// Draws batches until none is left, or nobody listens: their numbers and values in the data's range.
    fn draw_shares(
        &self,
        request: &Request<'_>,
        device: &Device,
        shared: &Shared,
        tell: &SyncSender<Seen>,
    ) -> Vec<(usize, Vec<f32>)> {
        let _stop_on_panic = StopOnPanic(shared);
        let mut drawn = Vec::new();
        while let Some(k) = shared.take(request.batches()) {
            let mut watch = |&Progress { first, step, steps, x }: &Progress<'_>| {
                let heard = tell.send(Seen { first, step, steps, x: x.clone() }).is_ok();
                if heard && !shared.is_stopped() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let batch = self.batch(request, request.batch(k), device);
            let Ok(x) = self.solve(batch, request, &mut watch) else { break };
            drawn.push((k, host_values(self.diffusion.unnormalize(x))));
        }
        drawn
    }
}
