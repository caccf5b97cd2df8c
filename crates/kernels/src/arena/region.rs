//! One piece of addresses, made usable from its beginning.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Addresses are made usable in steps of so many bytes.
const STEP: usize = 1 << 26;

/// Addresses set aside from the system, of which the first are usable memory, zero until written.
#[derive(Debug)]
pub(super) struct Region {
    base: usize,
    length: usize,
    usable: AtomicUsize,
}

impl Region {
    pub(super) fn address(&self, offset: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.base + offset)
    }

    /// The offset of an address, if it is one of these.
    pub(super) fn offset(&self, address: *mut u8) -> Option<usize> {
        let offset = address.addr().checked_sub(self.base)?;
        (offset < self.length).then_some(offset)
    }

    /// No region: the other allocator does all.
    #[cfg(not(unix))]
    pub(super) fn reserve() -> Option<Self> {
        None
    }

    #[cfg(not(unix))]
    pub(super) fn make_usable(&self, end: usize) -> bool {
        end <= self.usable.load(Ordering::Relaxed)
    }

    /// As many addresses as the machine has memory; none where the process may have only so many.
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "addresses come from the system's C interface")]
    pub(super) fn reserve() -> Option<Self> {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the structure is ours, and written by the call.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
        if !known || limit.rlim_cur != libc::RLIM_INFINITY {
            return None;
        }
        // SAFETY: both only ask for a number.
        let (pages, page) = unsafe {
            (
                libc::sysconf(libc::_SC_PHYS_PAGES),
                libc::sysconf(libc::_SC_PAGESIZE),
            )
        };
        let length = usize::try_from(pages)
            .ok()?
            .checked_mul(usize::try_from(page).ok()?)?;
        // SAFETY: new addresses of the system's choice, which nothing may touch yet.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        // Pages of 2 MiB, where the system has them: a 512th of the faults until all has been touched once. The
        // blocks lie side by side, so no more than the last page is wasted. It is advice; refused, nothing changes.
        #[cfg(target_os = "linux")]
        // SAFETY: these addresses are the region's, and nothing lies there yet.
        unsafe {
            libc::madvise(base, length, libc::MADV_HUGEPAGE)
        };
        Some(Self {
            base: base.expose_provenance(),
            length,
            usable: AtomicUsize::new(0),
        })
    }

    /// Makes at least the first `end` bytes usable. One thread at a time.
    ///
    /// Returns whether they are.
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "addresses come from the system's C interface")]
    pub(super) fn make_usable(&self, end: usize) -> bool {
        let usable = self.usable.load(Ordering::Relaxed);
        if end <= usable {
            return true;
        }
        if end > self.length {
            return false;
        }
        let new = end.next_multiple_of(STEP).min(self.length);
        // SAFETY: these addresses are the region's, and nothing lies there yet.
        let done = unsafe {
            libc::mprotect(
                self.address(usable).cast(),
                new - usable,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        } == 0;
        if done {
            self.usable.store(new, Ordering::Relaxed);
        }
        done
    }
}
