//! The allocator of the program: tensors lie in one arena, which each step uses again, and small blocks in
//! one that is several times faster than the system's.

use mimalloc::MiMalloc;
use sparsam_kernels::arena::Arena;

#[global_allocator]
static ALLOCATOR: Arena<MiMalloc> = Arena::around(MiMalloc);

/// Number of `mi_option_purge_delay` (mimalloc 3, `mimalloc.h`), for which the bindings have no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed memory for the next step instead of giving it back to the system, which would have to
/// clear it again: a step allocates what the step before it freed.
#[expect(
    unsafe_code,
    reason = "the allocator's options are set through its C interface"
)]
pub(crate) fn keep_freed_memory() {
    // SAFETY: an option is a number; it is set before there is a second thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        unsafe_code,
        reason = "the allocator's options are read through its C interface"
    )]
    fn the_option_is_the_delay() {
        // SAFETY: an option is a number, and no test sets this one.
        let delay = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        // Milliseconds, as mimalloc 3 begins; the options beside it are 0, 1 or -1.
        assert_eq!(delay, 1000);
    }
}
