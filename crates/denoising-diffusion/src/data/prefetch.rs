//! Numbered items of work that threads do in advance, delivered in order.
//!
//! Item `k` is a pure function of `k`, so neither the number of threads nor their speed affects what is delivered. The number of items in progress or
//! waiting is bounded. A panic in an item becomes its error; dropping the prefetcher joins its threads.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::DataError;

/// Number of items that each thread may be ahead of the consumer.
const AHEAD_PER_WORKER: u64 = 2;

/// The largest number of threads that may be asked for.
pub(super) const MOST_WORKERS: usize = 1024;

/// Refuses more threads than a machine can use.
pub(super) fn check_workers(workers: usize) -> Result<(), DataError> {
    if workers <= MOST_WORKERS {
        return Ok(());
    }
    Err(DataError::Setting {
        key: "workers",
        value: workers.to_string(),
        expected: "at most 1024 threads; 0: automatic",
    })
}

/// Number of threads where none is specified.
pub(super) fn usual_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(8))
}

type Make<T> = dyn Fn(u64) -> Result<T, DataError> + Send + Sync;

struct State<T> {
    /// Next item that no thread has taken.
    next_job: u64,
    /// Next item that the consumer wants.
    next_delivery: u64,
    /// Items done and not yet delivered.
    ready: BTreeMap<u64, Result<T, DataError>>,
    stop: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// An item is ready.
    produced: Condvar,
    /// There is room for more items, or threads have to stop.
    room: Condvar,
    ahead: u64,
    end: u64,
    make: Box<Make<T>>,
}

impl<T> Shared<T> {
    /// Threads never panic while they hold the lock, so a poisoned state is still consistent.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.stop || state.next_job >= self.end {
                return;
            }
            if state.next_job >= state.next_delivery.saturating_add(self.ahead) {
                state = self.room.wait(state).unwrap_or_else(|e| e.into_inner());
                continue;
            }
            let job = state.next_job;
            state.next_job += 1;
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| (self.make)(job)));
            let result =
                result.unwrap_or_else(|panic| Err(DataError::Worker { batch: job, message: panic_message(&*panic) }));
            state = self.lock();
            state.ready.insert(job, result);
            self.produced.notify_all();
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}

/// Delivers the items of a range in order, made in advance by its own threads.
pub(super) struct Prefetcher<T> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetcher<T> {
    /// Starts `workers` threads (at least one) that make the items of `range`. Callers check how many there may be ([`check_workers`]).
    pub(super) fn start(
        workers: usize,
        range: Range<u64>,
        make: impl Fn(u64) -> Result<T, DataError> + Send + Sync + 'static,
    ) -> Result<Self, DataError> {
        let workers = workers.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_job: range.start,
                next_delivery: range.start,
                ready: BTreeMap::new(),
                stop: false,
            }),
            produced: Condvar::new(),
            room: Condvar::new(),
            ahead: AHEAD_PER_WORKER * workers as u64,
            end: range.end,
            make: Box::new(make),
        });
        let mut prefetcher = Self { shared, workers: Vec::with_capacity(workers) };
        for _ in 0..workers {
            let shared = prefetcher.shared.clone();
            let worker = std::thread::Builder::new()
                .name("data".into())
                .spawn(move || shared.work())
                .map_err(DataError::Thread)?;
            prefetcher.workers.push(worker);
        }
        Ok(prefetcher)
    }

    /// The next item; `None` after the last.
    pub(super) fn next(&mut self) -> Option<Result<T, DataError>> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let wanted = state.next_delivery;
        if wanted >= shared.end {
            return None;
        }
        loop {
            if let Some(item) = state.ready.remove(&wanted) {
                state.next_delivery += 1;
                shared.room.notify_all();
                return Some(item);
            }
            state = shared.produced.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }
}

impl<T> Prefetcher<T> {
    /// Number of the next item.
    pub(super) fn position(&self) -> u64 {
        self.shared.lock().next_delivery
    }
}

impl<T> Drop for Prefetcher<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // Panics inside items are caught, so the result holds nothing.
            let _ = worker.join();
        }
    }
}

impl<T> fmt::Debug for Prefetcher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetcher").field("workers", &self.workers.len()).field("position", &self.position()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn items_come_in_order_whatever_their_duration() {
        for workers in [1, 2, 5] {
            let mut items = Prefetcher::start(workers, 3..40, |k| {
                std::thread::sleep(Duration::from_micros(k * 7919 % 500));
                Ok(k)
            })
            .unwrap();
            for expected in 3..40 {
                assert_eq!(items.next().unwrap().unwrap(), expected);
            }
            assert!(items.next().is_none());
            assert!(items.next().is_none());
        }
    }

    #[test]
    fn the_last_numbers_are_delivered_too() {
        let mut items = Prefetcher::start(2, u64::MAX - 2..u64::MAX, Ok).unwrap();
        assert_eq!([items.next(), items.next()].map(|item| item.unwrap().unwrap()), [u64::MAX - 2, u64::MAX - 1]);
        assert!(items.next().is_none());
    }

    #[test]
    fn work_ahead_is_bounded() {
        let made = Arc::new(AtomicU64::new(0));
        let counter = made.clone();
        let mut items = Prefetcher::start(2, 0..u64::MAX, move |k| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(k)
        })
        .unwrap();
        items.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(made.load(Ordering::SeqCst) <= 1 + 2 * AHEAD_PER_WORKER);
    }

    #[test]
    fn a_panic_is_an_error_in_its_place_and_no_hang() {
        let mut items = Prefetcher::start(2, 0..4, |k| {
            assert!(k != 2, "item two is cursed");
            Ok(k)
        })
        .unwrap();
        assert_eq!(items.next().unwrap().unwrap(), 0);
        assert_eq!(items.next().unwrap().unwrap(), 1);
        match items.next().unwrap() {
            Err(DataError::Worker { batch: 2, message }) => assert!(message.contains("cursed")),
            other => panic!("{other:?}"),
        }
        assert_eq!(items.next().unwrap().unwrap(), 3);
    }

    #[test]
    fn dropping_joins_the_threads() {
        let alive = Arc::new(());
        let held = alive.clone();
        let mut items = Prefetcher::start(3, 0..u64::MAX, move |k| {
            let _held = &held;
            Ok(k)
        })
        .unwrap();
        items.next().unwrap().unwrap();
        drop(items);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
