//! Distribution of work, and scratch memory.
//!
//! Tasks are determined by shape alone, never by the number of threads, and no two tasks write the same value, so results have the same bits on any
//! number of threads.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

/// Number of elements per task of an elementwise kernel.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Runs `f(0)..f(tasks - 1)` on rayon's current pool, in any order. A single task runs on the calling thread.
pub(crate) fn for_each_task(tasks: usize, f: impl Fn(usize) + Sync + Send) {
    match tasks {
        0 => {}
        1 => f(0),
        _ => (0..tasks).into_par_iter().with_max_len(1).for_each(f),
    }
}

/// The items of task `task`, for tasks of `size` items that cover `items`.
pub(crate) fn task_range(task: usize, size: usize, items: usize) -> std::ops::Range<usize> {
    task * size..items.min((task + 1) * size)
}

/// A mutable slice whose disjoint parts are given to tasks.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    ptr: *mut f32,
    len: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: access goes through `part`, whose contract is that concurrent parts are disjoint.
unsafe impl Send for Shared<'_> {}
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The values in `range`.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub(crate) unsafe fn part(&self, range: std::ops::Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }

    /// Address of element `index`, for strided writes.
    pub(crate) fn at(&self, index: usize) -> *mut f32 {
        assert!(index <= self.len);
        // SAFETY: inside the slice or one past its end.
        unsafe { self.ptr.add(index) }
    }
}

/// One cache line, so that vectors in scratch memory never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// Small buffers that this thread has used and nobody holds now. Reusing them avoids clearing fresh pages on every call.
    static SMALL: RefCell<Pool> = const { RefCell::new(Pool(Vec::new())) };
}

/// Large ones, of all threads: a call's buffers would otherwise gather on every thread that ever makes one.
static LARGE: Mutex<Pool> = Mutex::new(Pool(Vec::new()));

/// Lines from which a buffer is large: 4 MiB. What each task needs is smaller.
const LEAST_LARGE: usize = 1 << 16;
/// Number of buffers that a pool keeps; a kernel holds at most a few at once.
const POOL_SIZE: usize = 6;

/// Buffers that nobody holds.
struct Pool(Vec<Vec<Line>>);

impl Pool {
    /// The smallest buffer that is large enough, else the largest.
    fn take(&mut self, wanted: usize) -> Vec<Line> {
        let best = (0..self.0.len()).min_by_key(|&i| {
            let size = self.0[i].len();
            if size >= wanted { (0, size) } else { (1, usize::MAX - size) }
        });
        best.map(|i| self.0.swap_remove(i)).unwrap_or_default()
    }

    /// Keeps the buffer, in place of the smallest if there are too many.
    fn put(&mut self, lines: Vec<Line>) {
        self.0.push(lines);
        if self.0.len() > POOL_SIZE {
            let smallest = (0..self.0.len()).min_by_key(|&i| self.0[i].len());
            smallest.map(|i| self.0.swap_remove(i));
        }
    }
}

fn large() -> MutexGuard<'static, Pool> {
    LARGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Scratch memory from a pool, aligned to 64 bytes. Its contents are whatever was there before.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let wanted = len.div_ceil(16);
        let mut lines =
            if wanted < LEAST_LARGE { SMALL.with_borrow_mut(|pool| pool.take(wanted)) } else { large().take(wanted) };
        if lines.len() < wanted {
            // The smaller one is freed first, and the new one has no room to spare.
            drop(lines);
            lines = vec![Line([0.0; 16]); wanted];
        }
        Self { lines, len }
    }

    /// Scratch memory filled with zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut scratch = Self::new(len);
        scratch.fill(0.0);
        scratch
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` initialised values.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.len() < LEAST_LARGE {
            // While the thread ends, its pool is already gone; the buffer is then simply freed.
            let _ = SMALL.try_with(|pool| pool.borrow_mut().put(lines));
        } else {
            large().put(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_aligned_distinct_and_reused() {
        let first = Scratch::new(100);
        let second = Scratch::zeroed(33);
        assert_eq!(first.len(), 100);
        assert!(second.iter().all(|&x| x == 0.0));
        assert_eq!(first.as_ptr() as usize % 64, 0);
        assert_ne!(first.as_ptr(), second.as_ptr());
        let address = first.as_ptr();
        drop(first);
        assert_eq!(Scratch::new(90).as_ptr(), address);
    }

    #[test]
    fn large_scratch_is_reused_by_other_threads_and_has_no_room_to_spare() {
        // Larger than what other tests use, so that they do not take it.
        let wanted = 1 << 26;
        let use_it = |len| {
            std::thread::spawn(move || {
                let scratch = Scratch::new(len);
                (scratch.as_ptr() as usize, scratch.lines.capacity())
            })
        };
        let (first, lines) = use_it(wanted).join().unwrap();
        assert_eq!(lines, wanted / 16);
        assert_eq!(use_it(wanted - 5).join().unwrap(), (first, lines));
        assert_eq!(use_it(wanted + 16).join().unwrap().1, lines + 1);
    }

    #[test]
    fn tasks_cover_everything_once() {
        let mut hits = vec![0.0; 1001];
        let shared = Shared::new(&mut hits);
        for_each_task(1001usize.div_ceil(10), |task| {
            // SAFETY: ranges of different tasks are disjoint.
            for hit in unsafe { shared.part(task_range(task, 10, 1001)) } {
                *hit += 1.0;
            }
        });
        assert!(hits.iter().all(|&h| h == 1.0));
    }
}
