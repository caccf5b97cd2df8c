//! An allocator that keeps all large blocks of a program side by side.
//!
//! A training step allocates what the step before it freed, block for block. A general allocator spreads
//! such blocks over pages and size classes of its own: the same recipe then needs a different amount of
//! memory each time, up to half as much again as it holds. Here each block goes into the smallest gap that
//! holds it, at the lowest address, and neighbouring gaps become one. The second step finds the gaps of the
//! first, so that nothing is asked of the system after it, and the peak is close to what is held and the
//! same in each run. What is kept from step to step, but is not there before the first, would split those gaps:
//! it is allocated [`lasting`], in a second piece.
//!
//! [`Arena`] is meant as a program's `#[global_allocator]`, around another for small blocks:
//!
//! ```
//! use std::alloc::System;
//!
//! use sparsam_kernels::arena::Arena;
//!
//! #[global_allocator]
//! static ALLOCATOR: Arena<System> = Arena::around(System);
//!
//! let values = vec![1f32; 1 << 20];
//! assert!(ALLOCATOR.held() >= 4 << 20);
//! # drop(values);
//! ```
//!
//! Addresses for as much as the machine has memory are set aside at the first large block, and made usable
//! as they are needed. Where that cannot be done (a limit on addresses, a system without `mmap`), and when
//! all of it is used, large blocks come from the other allocator too.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

mod gaps;
mod region;

use gaps::Gaps;
use region::Region;

/// Blocks of fewer bytes are the other allocator's.
const LARGE: usize = 1 << 14;

/// Blocks begin at multiples of so many bytes: a line of the cache, and the widest vector.
const ALIGNMENT: usize = 64;

thread_local! {
    /// Whether what this thread allocates is to last.
    static LASTING: Cell<bool> = const { Cell::new(false) };
}

/// Allocates what is kept from step to step: apart from what a step frees, which would otherwise have to find
/// its gaps between such blocks.
pub fn lasting<T>(allocate: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            LASTING.set(self.0);
        }
    }
    let _before = Before(LASTING.replace(true));
    allocate()
}

/// An allocator that keeps large blocks side by side, around one for small blocks.
#[derive(Debug)]
pub struct Arena<A> {
    small: A,
    passing: Piece,
    /// A second piece, for what is made within [`lasting`].
    lasting: Piece,
}

/// Addresses and the gaps in them.
#[derive(Debug)]
struct Piece {
    region: OnceLock<Option<Region>>,
    gaps: Mutex<Gaps>,
    held: AtomicUsize,
}

impl Piece {
    const fn new() -> Self {
        Self {
            region: OnceLock::new(),
            gaps: Mutex::new(Gaps::new()),
            held: AtomicUsize::new(0),
        }
    }

    /// The offset of `address`, where it lies in this piece.
    fn offset(&self, address: *mut u8) -> Option<usize> {
        self.region.get()?.as_ref()?.offset(address)
    }

    fn gaps(&self) -> MutexGuard<'_, Gaps> {
        // Nothing panics while it is held.
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block, and how many of its first bytes have been in use before; the others are zero.
    fn take(&self, length: usize) -> Option<(*mut u8, usize)> {
        let region = self.region.get_or_init(Region::reserve).as_ref()?;
        let mut gaps = self.gaps();
        let end = gaps.end();
        let offset = gaps.take(length, |end| region.make_usable(end))?;
        drop(gaps);
        self.held.fetch_add(length, Ordering::Relaxed);
        let used = end.saturating_sub(offset).min(length);
        Some((region.address(offset), used))
    }

    fn give(&self, offset: usize, length: usize) {
        self.gaps().give(offset, length);
        self.held.fetch_sub(length, Ordering::Relaxed);
    }
}

impl<A> Arena<A> {
    /// An arena that has nothing yet, around `small`.
    pub const fn around(small: A) -> Self {
        Self {
            small,
            passing: Piece::new(),
            lasting: Piece::new(),
        }
    }

    /// Bytes of the large blocks that are in use.
    pub fn held(&self) -> usize {
        let held = |piece: &Piece| piece.held.load(Ordering::Relaxed);
        held(&self.passing) + held(&self.lasting)
    }

    /// Bytes that the arena occupies: up to the ends of the farthest blocks that ever were.
    pub fn occupied(&self) -> usize {
        self.passing.gaps().end() + self.lasting.gaps().end()
    }

    /// The piece in which `address` lies, and its offset there.
    fn within(&self, address: *mut u8) -> Option<(&Piece, usize)> {
        let mut pieces = [&self.passing, &self.lasting].into_iter();
        pieces.find_map(|piece| Some((piece, piece.offset(address)?)))
    }

    /// A block, and how many of its first bytes have been in use before; the others are zero.
    fn take(&self, layout: Layout) -> Option<(*mut u8, usize)> {
        if layout.size() < LARGE || layout.align() > ALIGNMENT {
            return None;
        }
        let piece = if LASTING.get() {
            &self.lasting
        } else {
            &self.passing
        };
        piece.take(rounded(layout.size())?)
    }
}

/// The next multiple of [`ALIGNMENT`].
fn rounded(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGNMENT)
}

// SAFETY: a block of the arena is `layout.size()` bytes between two offsets that `Gaps` gives to no other
// until they are given back, in memory that `Region` made usable, and begins at a multiple of `ALIGNMENT`.
// All other calls go to an allocator that keeps the contract itself: an address is the arena's if and only
// if it lies in one of the regions, in which the other allocator has nothing.
#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Arena<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((address, _)) => address,
            // SAFETY: the caller's promise.
            None => unsafe { self.small.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((address, used)) => {
                // SAFETY: the first `used` bytes are within the block.
                unsafe { address.write_bytes(0, used) };
                address
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.small.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        match (self.within(address), rounded(layout.size())) {
            (Some((piece, offset)), Some(length)) => piece.give(offset, length),
            // SAFETY: the caller's promise, and the block is not the arena's.
            _ => unsafe { self.small.dealloc(address, layout) },
        }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let within = self.within(address);
        if within.is_none() && size < LARGE {
            // SAFETY: the caller's promise, and the block is not the arena's.
            return unsafe { self.small.realloc(address, layout, size) };
        }
        if let (Some((piece, offset)), Some(before), Some(after)) =
            (within, rounded(layout.size()), rounded(size))
            && size >= LARGE
            && after <= before
        {
            if after < before {
                piece.give(offset + after, before - after);
            }
            return address;
        }
        // SAFETY: the caller promises that `size` rounded up to the alignment is a valid size.
        let moved = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the caller promises a `size` that is not zero.
        let to = unsafe { self.alloc(moved) };
        if !to.is_null() {
            // SAFETY: both blocks have so many bytes, and the new one is no part of the old.
            unsafe { to.copy_from_nonoverlapping(address, layout.size().min(size)) };
            // SAFETY: the caller's promise.
            unsafe { self.dealloc(address, layout) };
        }
        to
    }
}

#[cfg(test)]
mod tests;
