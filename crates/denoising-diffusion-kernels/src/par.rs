//! Distribution of work, and scratch memory.
//!
//! Tasks are determined by shape alone, never by the number of threads, and no two tasks write the same value, so results have the same bits on any
//! number of threads.

use std::cell::RefCell;
use std::marker::PhantomData;

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
    /// Buffers that this thread has used and nobody holds now. Reusing them avoids clearing fresh pages on every call.
    static POOL: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Number of buffers kept per thread; a kernel holds at most a few at once.
const POOL_SIZE: usize = 6;

/// Scratch memory from this thread's pool, aligned to 64 bytes. Its contents are whatever was there before.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let wanted = len.div_ceil(16);
        let mut lines = POOL.with_borrow_mut(|pool| {
            // The smallest that is large enough, else the largest.
            let best = (0..pool.len()).min_by_key(|&i| {
                let size = pool[i].len();
                if size >= wanted { (0, size) } else { (1, usize::MAX - size) }
            });
            best.map(|i| pool.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < wanted {
            lines.clear();
            lines.resize(wanted, Line([0.0; 16]));
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
        // While the thread ends, the pool is already gone; the buffer is then simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOL_SIZE {
                pool.push(lines);
            }
        });
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
