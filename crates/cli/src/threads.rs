//! The processor's threads that compute.

/// Stack of a thread, as a main thread has it on Linux: all of a command runs on one.
const STACK: usize = 8 << 20;

/// Runs `work` on one of `count` threads, or of as many as this process may use; what it computes in
/// parallel runs on all of them. Entered once, the threads need not be woken from outside for every
/// operation, which costs more than a small one takes.
pub(crate) fn within<T: Send>(
    count: Option<usize>,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    // As many as `RAYON_NUM_THREADS` says, or as the process may use, where it is 0.
    rayon::ThreadPoolBuilder::new()
        .num_threads(count.unwrap_or(0))
        .stack_size(STACK)
        .build()?
        .install(work)
}
