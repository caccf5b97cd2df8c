//! Ctrl-C: the first one asks the run to stop after its step and write a checkpoint, the second
//! ends the process at once.
//!
//! The handler only sets a flag the first time. The second time it gives the terminal back, where the
//! dashboard has it, and lets the system do what it does by default. `SIGTERM`, which Slurm and systemd
//! send before they kill, is treated the same.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether the user has asked the run to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Begins to listen.
#[cfg(unix)]
#[expect(unsafe_code, reason = "signal handlers are installed through libc")]
pub(crate) fn listen() -> std::io::Result<()> {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    static TERMINATED: AtomicBool = AtomicBool::new(false);

    extern "C" fn stop(signal: libc::c_int) {
        let seen = if signal == libc::SIGINT {
            &INTERRUPTED
        } else {
            &TERMINATED
        };
        if !seen.swap(true, Ordering::Relaxed) {
            REQUESTED.store(true, Ordering::Relaxed);
            return;
        }
        crate::dashboard::screen::leave();
        // SAFETY: both calls are async-signal-safe. The signal is blocked until this handler is done, and
        // then ends the process.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }

    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the structure is plain data for which all zeros are valid, `sigemptyset` fills
        // the mask, and the handler does nothing that is not async-signal-safe.
        let outcome = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = stop as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if outcome != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Elsewhere Ctrl-C ends the process at once; the last checkpoint remains.
#[cfg(not(unix))]
pub(crate) fn listen() -> std::io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    #[expect(unsafe_code, reason = "raises a signal in this process")]
    fn the_first_signal_only_sets_the_flag() {
        super::listen().expect("handlers can be installed");
        assert!(!super::requested());
        // SAFETY: raises a signal whose handler was installed above.
        unsafe { libc::raise(libc::SIGTERM) };
        assert!(super::requested());
    }
}
