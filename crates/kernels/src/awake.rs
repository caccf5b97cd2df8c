//! Keeps the threads that compute awake while there is more to come.
//!
//! A step is hundreds of operations that run on all threads, with a little in between that runs on one. A thread of
//! the pool that finds nothing to do goes to sleep within tens of microseconds, and to wake it takes as long as many an
//! operation, most of all on a virtual machine, whose processor is given back meanwhile. So for the time of a step they
//! look for work instead, as the threads of OpenMP do. Where a GPU computes they have nothing to do and may sleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;

/// How long a thread looks for work in vain before it may sleep all the same, for the rest of the step.
const PATIENCE: Duration = Duration::from_millis(2);

/// Rounds between two looks at the clock, at which the processor is offered to other programs too.
const ROUNDS: u32 = 64;

/// Runs `work`, which computes on a device, while the other threads of this thread's pool stay awake if that is the
/// processor.
pub fn awake<R>(device: &Device, work: impl FnOnce() -> R) -> R {
    let Some(here) = rayon::current_thread_index().filter(|_| device.is_cpu()) else {
        return work();
    };
    if rayon::current_num_threads() < 2 {
        return work();
    }
    let over = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, thread| {
            if thread.index() != here {
                attend(&over);
            }
        });
        // The scope waits for all threads, also where `work` panics.
        let _ends = Ends(&over);
        work()
    })
}

/// Says that it is over when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Does what there is to do until it is over.
fn attend(over: &AtomicBool) {
    let mut since = Instant::now();
    let mut rounds = 0;
    while !over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            (since, rounds) = (Instant::now(), 0);
            continue;
        }
        rounds += 1;
        std::hint::spin_loop();
        if rounds % ROUNDS == 0 {
            if since.elapsed() > PATIENCE {
                return;
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn within<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().expect("a pool").install(work)
    }

    /// Sums in parallel, with pauses in between that are shorter and longer than the threads' patience.
    fn sums() -> Vec<u64> {
        let pauses = [0, 100, 5_000, 0];
        let sum = |micros| {
            std::thread::sleep(Duration::from_micros(micros));
            (0..10_000u32)
                .into_par_iter()
                .with_max_len(7)
                .map(u64::from)
                .sum()
        };
        pauses.into_iter().map(sum).collect()
    }

    #[test]
    fn parallel_work_comes_out_the_same() {
        for threads in [1, 2, 3] {
            assert_eq!(
                within(threads, || awake(&Device::Cpu, sums)),
                [49_995_000; 4]
            );
        }
        assert_eq!(
            awake(&Device::Cpu, sums),
            [49_995_000; 4],
            "outside of a pool"
        );
    }

    #[test]
    fn within_itself_it_ends() {
        let awake = |work: fn() -> Vec<u64>| awake(&Device::Cpu, work);
        let twice = || super::awake(&Device::Cpu, || (awake(sums), sums()));
        assert_eq!(within(2, twice), (vec![49_995_000; 4], vec![49_995_000; 4]));
    }

    #[test]
    fn a_panic_leaves_the_threads_for_others() {
        let panics = || awake(&Device::Cpu, || -> Vec<u64> { panic!("on purpose") });
        let after = within(2, || {
            let caught = std::panic::catch_unwind(panics);
            (caught.is_err(), sums())
        });
        assert_eq!(after, (true, vec![49_995_000; 4]));
    }
}
