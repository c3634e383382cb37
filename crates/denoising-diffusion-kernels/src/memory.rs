//! A global allocator for programs that train. Large blocks are kept when they are freed and reused, so that a training step works in the memory of
//! the previous step instead of requesting pages from the system, which has to clear them.
//!
//! ```
//! use denoising_diffusion_kernels::memory::CachingAllocator;
//!
//! #[global_allocator]
//! static ALLOCATOR: CachingAllocator = CachingAllocator::new();
//! ```
//!
//! Small blocks go to the system's allocator unchanged. Before fresh memory is requested, kept blocks of 2 MiB and more are returned to the system if
//! the peak of memory use would rise otherwise. This is not a general-purpose allocator: smaller kept blocks are never returned.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks of at least this size are kept.
const MIN_KEPT: usize = 1 << MIN_KEPT_BITS;
const MIN_KEPT_BITS: u32 = 14;
/// Number of sizes per doubling; a block is at most a ninth larger than requested.
const STEPS: usize = 8;
const CLASSES: usize = (usize::BITS - MIN_KEPT_BITS) as usize * STEPS;
/// Smaller blocks are cut from regions of [`REGION`] bytes, which are never returned.
const OWN_REGION: usize = 2 << 20;
const REGION: usize = 16 << 20;
/// Size and alignment of the requested pages.
const HUGE_PAGE: usize = 2 << 20;
/// Alignment of blocks that are cut from a region.
const ALIGN: usize = 4096;

/// See the module's documentation.
#[derive(Debug)]
pub struct CachingAllocator {
    free: Mutex<Free>,
    /// Bytes of large blocks in use, and the peak.
    live: AtomicUsize,
    most_live: AtomicUsize,
}

#[derive(Debug)]
struct Free {
    /// For each size, the first free block; a free block begins with the address of the next.
    lists: [usize; CLASSES],
    /// Bytes in these lists.
    kept: usize,
    /// What is left of the region from which small blocks are cut.
    region: (usize, usize),
}

/// The index of the class to which a size is rounded up, and the size of its blocks, which is `(STEPS + step) << shift`.
fn class_of(size: usize) -> (usize, usize) {
    // Bits below the four most significant ones are rounded away.
    let shift = (usize::BITS - 1 - size.leading_zeros()) - STEPS.trailing_zeros();
    let rounded = size.div_ceil(1 << shift);
    let class = (shift + STEPS.trailing_zeros() - MIN_KEPT_BITS) as usize * STEPS + (rounded - STEPS);
    (class, rounded << shift)
}

/// The size of the blocks of a class.
fn size_of_class(class: usize) -> usize {
    let shift = (class / STEPS) as u32 + MIN_KEPT_BITS - STEPS.trailing_zeros();
    (STEPS + class % STEPS) << shift
}

fn is_kept(layout: &Layout) -> bool {
    layout.size() >= MIN_KEPT && layout.align() <= ALIGN && layout.size() <= isize::MAX as usize / 4
}

impl CachingAllocator {
    /// An allocator that holds nothing yet.
    pub const fn new() -> Self {
        let free = Free { lists: [0; CLASSES], kept: 0, region: (0, 0) };
        Self { free: Mutex::new(free), live: AtomicUsize::new(0), most_live: AtomicUsize::new(0) }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CachingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

/// Fresh memory for a block or a region, in huge pages if the system has them. Null if there is none.
fn fresh(size: usize) -> *mut u8 {
    let Ok(layout) = Layout::from_size_align(size, HUGE_PAGE) else { return std::ptr::null_mut() };
    // SAFETY: the size is not zero.
    let block = unsafe { System.alloc(layout) };
    #[cfg(target_os = "linux")]
    if !block.is_null() {
        // SAFETY: advice on whole pages inside the block; a refusal changes nothing.
        unsafe { libc::madvise(block.cast(), size / HUGE_PAGE * HUGE_PAGE, libc::MADV_HUGEPAGE) };
    }
    block
}

impl Free {
    /// A block of the class. `spare` bytes may stay in the free lists; any more are returned before fresh memory is requested.
    fn take(&mut self, class: usize, size: usize, spare: usize) -> *mut u8 {
        let first = self.lists[class];
        if first != 0 {
            let block = first as *mut u8;
            // SAFETY: nobody owns the blocks in a list; they are at least MIN_KEPT long and begin with the address of the next one.
            self.lists[class] = unsafe { block.cast::<usize>().read() };
            self.kept -= size;
            return block;
        }
        self.release_down_to(spare.saturating_sub(size));
        if size >= OWN_REGION {
            return fresh(size);
        }
        let aligned = size.next_multiple_of(ALIGN);
        if self.region.1 < aligned {
            let region = fresh(REGION);
            if region.is_null() {
                return region;
            }
            self.region = (region as usize, REGION);
        }
        let (start, left) = self.region;
        self.region = (start + aligned, left - aligned);
        start as *mut u8
    }

    /// Returns blocks with regions of their own, the largest first, until no more than `most` bytes are kept.
    fn release_down_to(&mut self, most: usize) {
        let smallest = class_of(OWN_REGION).0;
        for class in (smallest..CLASSES).rev() {
            while self.kept > most && self.lists[class] != 0 {
                let size = size_of_class(class);
                let block = self.lists[class] as *mut u8;
                // SAFETY: as in `take`; blocks of this size came from `fresh` with this layout.
                unsafe {
                    self.lists[class] = block.cast::<usize>().read();
                    System.dealloc(block, Layout::from_size_align_unchecked(size, HUGE_PAGE));
                }
                self.kept -= size;
            }
        }
    }

    fn put(&mut self, block: *mut u8, class: usize, size: usize) {
        // SAFETY: as in `take`; blocks are aligned to at least 4096.
        unsafe { block.cast::<usize>().write(self.lists[class]) };
        self.lists[class] = block as usize;
        self.kept += size;
    }
}

// SAFETY: a block is either in exactly one free list or owned by one caller; its size and class follow from the layout, which is the same at
// allocation and deallocation.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_kept(&layout) {
            // SAFETY: the caller's contract.
            return unsafe { System.alloc(layout) };
        }
        let (class, size) = class_of(layout.size());
        // The peak of memory in use minus what is in use now: keeping more would raise the peak.
        let spare = self.most_live.load(Ordering::Relaxed).saturating_sub(self.live.load(Ordering::Relaxed));
        let block = self.free().take(class, size, spare);
        if !block.is_null() {
            let live = self.live.fetch_add(size, Ordering::Relaxed) + size;
            self.most_live.fetch_max(live, Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_kept(&layout) {
            // SAFETY: the caller's contract.
            return unsafe { System.dealloc(block, layout) };
        }
        let (class, size) = class_of(layout.size());
        self.live.fetch_sub(size, Ordering::Relaxed);
        let mut free = self.free();
        if size >= OWN_REGION && free.kept + size > self.most_live.load(Ordering::Relaxed) {
            drop(free);
            // SAFETY: blocks of this size came from `fresh` with this layout.
            return unsafe { System.dealloc(block, Layout::from_size_align_unchecked(size, HUGE_PAGE)) };
        }
        free.put(block, class, size);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract: the alignment is valid, and the size does not overflow with it.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (is_kept(&layout), is_kept(&new)) {
            // SAFETY: the caller's contract.
            (false, false) => unsafe { System.realloc(block, layout, new_size) },
            (true, true) if class_of(layout.size()) == class_of(new_size) => block,
            _ => {
                // SAFETY: the caller's contract; both blocks hold what is copied.
                unsafe {
                    let to = self.alloc(new);
                    if !to.is_null() {
                        std::ptr::copy_nonoverlapping(block, to, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    to
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Few cases, because an allocator never returns its regions.
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn classes_are_ordered_and_waste_little(size in MIN_KEPT..1usize << 40) {
            let (class, rounded) = class_of(size);
            prop_assert!(rounded >= size && rounded - size <= size / STEPS);
            prop_assert!(class < CLASSES);
            prop_assert_eq!(class_of(rounded), (class, rounded));
            prop_assert_eq!(size_of_class(class), rounded);
            prop_assert_eq!(class_of(rounded + 1).0, class + 1);
        }

        #[test]
        fn blocks_never_overlap_and_keep_their_contents(
            steps in prop::collection::vec((0usize..5_000_000, any::<bool>(), 0usize..6), 1..30),
        ) {
            let allocator = CachingAllocator::new();
            let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
            for (i, (size, grows, at)) in steps.into_iter().enumerate() {
                let mark = i as u8;
                // SAFETY: sizes are positive, blocks are used within their layouts and freed with them.
                unsafe {
                    if held.len() > at {
                        let (block, layout, old) = held.swap_remove(at);
                        prop_assert_eq!((*block, *block.add(layout.size() - 1)), (old, old));
                        if grows {
                            let grown = allocator.realloc(block, layout, layout.size() + size);
                            prop_assert_eq!((*grown, *grown.add(layout.size() - 1)), (old, old));
                            let layout = Layout::from_size_align(layout.size() + size, 8).unwrap();
                            grown.write_bytes(mark, layout.size());
                            held.push((grown, layout, mark));
                        } else {
                            allocator.dealloc(block, layout);
                        }
                    }
                    let layout = Layout::from_size_align(size + 1, 8).unwrap();
                    let block = allocator.alloc(layout);
                    block.write_bytes(mark, layout.size());
                    held.push((block, layout, mark));
                }
            }
            for (block, layout, mark) in held {
                // SAFETY: as above.
                unsafe {
                    prop_assert!((0..layout.size()).step_by(1009).all(|i| *block.add(i) == mark));
                    allocator.dealloc(block, layout);
                }
            }
        }
    }

    #[test]
    fn a_freed_block_is_the_next_one_of_its_size() {
        for size in [MIN_KEPT, 1 << 20, 8 << 20] {
            // A new allocator each: blocks kept by the others would count against the limit.
            let allocator = CachingAllocator::new();
            let layout = Layout::from_size_align(size, 64).unwrap();
            // SAFETY: the blocks are freed with their layouts and not used.
            unsafe {
                let first = allocator.alloc(layout);
                allocator.dealloc(first, layout);
                let second = allocator.alloc(layout);
                assert_eq!(first, second);
                allocator.dealloc(second, layout);
            }
        }
    }

    #[test]
    fn what_is_kept_is_never_more_than_was_in_use_at_once() {
        let allocator = CachingAllocator::new();
        for i in 0..40usize {
            let layout = Layout::from_size_align((4 + i) << 20, 64).unwrap();
            // SAFETY: as above.
            unsafe { allocator.dealloc(allocator.alloc(layout), layout) };
            assert!(allocator.free().kept <= allocator.most_live.load(Ordering::Relaxed));
        }
    }
}
