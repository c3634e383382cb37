//! A global allocator for programs that train. Freed memory is kept and reused, so that a training step works in the memory of the previous step
//! instead of requesting pages from the system, which has to clear them.
//!
//! ```
//! use denoising_diffusion_kernels::memory::CachingAllocator;
//!
//! #[global_allocator]
//! static ALLOCATOR: CachingAllocator = CachingAllocator::new();
//! ```
//!
//! Large blocks are cut from regions of 64 MiB, each from the smallest free stretch that holds it, and joined with the free stretches beside them when
//! they are freed. The blocks of a step come and go in the same order as those of the step before, so that regions are requested in the first step or
//! two only, and were measured to hold a tenth more than is in use at most. Regions without blocks are returned to the system when another one would
//! make the total larger than the most that was in use so far; otherwise they stay. Small blocks go to the system's allocator unchanged. This is not a
//! general-purpose allocator: each block takes a search in an ordered map.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks of at least this size are cut from regions.
const LARGE: usize = 16 << 10;
/// Size of a region, but for blocks that are larger.
const REGION: usize = 64 << 20;
/// Alignment of regions, and unit of their sizes.
const HUGE_PAGE: usize = 2 << 20;
/// Alignment of large blocks, and unit of their sizes: a cache line, the widest vector.
const ALIGN: usize = 64;

/// See the module's documentation.
pub struct CachingAllocator {
    // The maps' own nodes are small blocks: requesting them does not lead back here.
    pool: Mutex<Pool>,
}

struct Pool {
    /// Sizes of all regions, by address.
    regions: BTreeMap<usize, usize>,
    /// Sizes of the free stretches, by address.
    free: BTreeMap<usize, usize>,
    /// The same as (size, address).
    by_size: BTreeSet<(usize, usize)>,
    /// Bytes of all regions.
    held: usize,
    /// Bytes of blocks in use, now and at most.
    used: usize,
    most_used: usize,
}

fn is_large(layout: &Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= ALIGN && layout.size() <= isize::MAX as usize / 4
}

/// The size of the block for a layout.
fn block_size(layout: &Layout) -> usize {
    // A block with a region of its own is all of it: a block in the rest could keep the region from being returned.
    let unit = if layout.size() > REGION { HUGE_PAGE } else { ALIGN };
    layout.size().next_multiple_of(unit)
}

impl CachingAllocator {
    /// An allocator that holds nothing yet.
    pub const fn new() -> Self {
        Self {
            pool: Mutex::new(Pool {
                regions: BTreeMap::new(),
                free: BTreeMap::new(),
                by_size: BTreeSet::new(),
                held: 0,
                used: 0,
                most_used: 0,
            }),
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for CachingAllocator {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        // The text may need memory, so it is not written while the lock is held.
        let [held, used, most_used] = {
            let pool = self.pool();
            [pool.held, pool.used, pool.most_used]
        };
        let mut shown = f.debug_struct("CachingAllocator");
        shown.field("held", &held).field("used", &used).field("most_used", &most_used).finish_non_exhaustive()
    }
}

impl Default for CachingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

fn region_layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, HUGE_PAGE).ok()
}

/// A new region, in huge pages if the system has them. Null if there is no memory.
fn new_region(size: usize) -> *mut u8 {
    let Some(layout) = region_layout(size) else { return std::ptr::null_mut() };
    // SAFETY: the size is not zero.
    let region = unsafe { System.alloc(layout) };
    #[cfg(target_os = "linux")]
    if !region.is_null() {
        // SAFETY: advice on whole pages of the region; a refusal changes nothing.
        unsafe { libc::madvise(region.cast(), size, libc::MADV_HUGEPAGE) };
    }
    region
}

impl Pool {
    /// A block, cut from the smallest free stretch that holds it. Null if there is no memory.
    fn take(&mut self, size: usize) -> *mut u8 {
        let smallest = |pool: &Self| pool.by_size.range((size, 0)..).next().copied();
        let mut found = smallest(self);
        if found.is_none() && self.add_region(size) {
            found = smallest(self);
        }
        let Some((length, start)) = found else { return std::ptr::null_mut() };
        self.remove(start, length);
        if length > size {
            self.insert(start + size, length - size);
        }
        self.used += size;
        self.most_used = self.most_used.max(self.used);
        start as *mut u8
    }

    /// Takes a block back, and joins it with its free neighbours in the same region.
    fn put(&mut self, start: usize, size: usize) {
        self.used -= size;
        let (mut start, mut end) = (start, start + size);
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
            && !self.regions.contains_key(&start)
        {
            self.remove(before, length);
            start = before;
        }
        if let Some(&length) = self.free.get(&end)
            && !self.regions.contains_key(&end)
        {
            self.remove(end, length);
            end += length;
        }
        self.insert(start, end - start);
    }

    fn insert(&mut self, start: usize, length: usize) {
        self.free.insert(start, length);
        self.by_size.insert((length, start));
    }

    fn remove(&mut self, start: usize, length: usize) {
        self.free.remove(&start);
        self.by_size.remove(&(length, start));
    }

    /// Requests a region that holds a block of this size. Whether there is one.
    fn add_region(&mut self, size: usize) -> bool {
        let least = size.next_multiple_of(HUGE_PAGE);
        self.return_regions(least.max(REGION), self.most_used.max(self.used + size));
        let mut region = least.max(REGION);
        let mut start = new_region(region) as usize;
        if start == 0 {
            // Where memory is short, a smaller one may do, and what is not in use can be returned.
            region = least;
            self.return_regions(least, 0);
            start = new_region(region) as usize;
        }
        if start == 0 {
            return false;
        }
        self.regions.insert(start, region);
        self.held += region;
        self.insert(start, region);
        true
    }

    /// Returns regions without blocks, the largest first, until there is room for another one below `most` bytes.
    fn return_regions(&mut self, another: usize, most: usize) {
        while self.held + another > most {
            let is_free = |&(start, size): &(&usize, &usize)| self.free.get(start) == Some(size);
            let Some((&start, &size)) = self.regions.iter().filter(is_free).max_by_key(|(_, size)| **size) else {
                return;
            };
            self.regions.remove(&start);
            self.remove(start, size);
            self.held -= size;
            if let Some(layout) = region_layout(size) {
                // SAFETY: the region came from `new_region` with this layout, and no block is in it.
                unsafe { System.dealloc(start as *mut u8, layout) };
            }
        }
    }
}

// SAFETY: a stretch of a region is either free or one block, owned by one caller; a block's size follows from its layout, which is the same at
// allocation and deallocation.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(&layout) {
            return self.pool().take(block_size(&layout));
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(&layout) {
            return self.pool().put(block as usize, block_size(&layout));
        }
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract: the alignment is valid, and the size does not overflow with it.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (is_large(&layout), is_large(&new)) {
            // SAFETY: the caller's contract.
            (false, false) => unsafe { System.realloc(block, layout, new_size) },
            (true, true) if block_size(&layout) == block_size(&new) => block,
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

    /// What must hold between calls.
    fn check(pool: &Pool) {
        let free: BTreeSet<(usize, usize)> = pool.free.iter().map(|(&start, &length)| (length, start)).collect();
        assert_eq!(free, pool.by_size);
        assert_eq!(pool.regions.values().sum::<usize>(), pool.held);
        assert_eq!(pool.free.values().sum::<usize>() + pool.used, pool.held);
        for (&start, &length) in &pool.free {
            let (&region, &size) = pool.regions.range(..=start).next_back().unwrap();
            assert!(start + length <= region + size, "a stretch ends in its region");
            let next = start + length;
            assert!(!pool.free.contains_key(&next) || pool.regions.contains_key(&next), "neighbours are joined");
        }
    }

    proptest! {
        // Few cases, because these allocators never return the regions that they hold in the end.
        #![proptest_config(ProptestConfig::with_cases(12))]
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
                check(&allocator.pool());
            }
            for (block, layout, mark) in held {
                // SAFETY: as above.
                unsafe {
                    prop_assert!((0..layout.size()).step_by(1009).all(|i| *block.add(i) == mark));
                    allocator.dealloc(block, layout);
                }
            }
            check(&allocator.pool());
            prop_assert_eq!(allocator.pool().used, 0);
        }
    }

    #[test]
    fn a_step_works_in_the_memory_of_the_step_before() {
        let allocator = CachingAllocator::new();
        let step = || {
            // SAFETY: the blocks are freed with their layouts and not used.
            unsafe {
                let layouts = [5 << 20, 90 << 20, LARGE, 31 << 20, 3 << 20, 200 << 20, 1 << 20].map(layout);
                let blocks = layouts.map(|layout| allocator.alloc(layout));
                for i in [1, 4, 0, 6, 2, 5, 3] {
                    allocator.dealloc(blocks[i], layouts[i]);
                }
                blocks
            }
        };
        let first = step();
        let held = allocator.pool().held;
        assert_eq!((step(), allocator.pool().held), (first, held));
        check(&allocator.pool());
    }

    #[test]
    fn growing_blocks_do_not_leave_their_former_regions_behind() {
        let allocator = CachingAllocator::new();
        for size in (70..400).step_by(2).map(|size| (size << 20) + 1000) {
            // SAFETY: as above; the small block is never freed.
            unsafe {
                let block = allocator.alloc(layout(size));
                allocator.alloc(layout(LARGE));
                allocator.dealloc(block, layout(size));
            }
            check(&allocator.pool());
            assert!(allocator.pool().held <= size + HUGE_PAGE + REGION, "{size}: {}", allocator.pool().held);
        }
    }

    #[test]
    fn memory_that_does_not_exist_is_null_and_changes_nothing() {
        let allocator = CachingAllocator::new();
        // SAFETY: nothing is used.
        let block = unsafe { allocator.alloc(layout(isize::MAX as usize / 4)) };
        assert!(block.is_null());
        check(&allocator.pool());
        assert_eq!(allocator.pool().held, 0);
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }
}
