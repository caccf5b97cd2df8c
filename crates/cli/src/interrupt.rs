//! Ctrl-C: the first one asks the run to stop after its step and write a checkpoint, the second
//! ends the process at once.
//!
//! The handler only sets a flag, and is installed so that it is removed when it has been called
//! once (`SA_RESETHAND`); what follows the second signal is the system's own default. `SIGTERM`,
//! which Slurm and systemd send before they kill, is treated the same.

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
    extern "C" fn stop(_signal: libc::c_int) {
        REQUESTED.store(true, Ordering::Relaxed);
    }

    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the structure is plain data for which all zeros are valid, `sigemptyset` fills
        // the mask, and the handler does nothing but store to an atomic, which is
        // async-signal-safe.
        let outcome = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = stop as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
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
