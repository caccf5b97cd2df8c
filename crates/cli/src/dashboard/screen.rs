//! The terminal while the dashboard has it, and how it is given back.
//!
//! The dashboard draws on the terminal's second screen with the cursor hidden, and what is typed is not
//! echoed. It reads no keys, so Ctrl-C stays the signal it always is. Whatever ends the process gives the
//! terminal back first: [`leave`] is called when the dashboard is dropped, before a panic is told, and by
//! the signals that end or stop the process; it does only what a signal handler may do.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the dashboard has the terminal.
static HELD: AtomicBool = AtomicBool::new(false);
/// Whether the terminal was given away in between, so that all of it must be drawn again.
static STALE: AtomicBool = AtomicBool::new(false);

/// Second screen on, cursor off.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
/// Colours as they were, cursor on, first screen.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

/// Takes the terminal.
pub(crate) fn enter() {
    system::remember();
    system::listen();
    hold();
}

fn hold() {
    if !HELD.swap(true, Ordering::SeqCst) {
        system::write(ENTER);
        system::quiet();
    }
}

/// Gives the terminal back, if the dashboard has it.
pub(crate) fn leave() {
    if HELD.swap(false, Ordering::SeqCst) {
        system::write(LEAVE);
        system::restore();
    }
}

/// Whether everything must be drawn again; asked once for each time.
pub(super) fn is_stale() -> bool {
    STALE.swap(false, Ordering::SeqCst)
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "terminals and signals are libc's")]
mod system {
    use std::sync::OnceLock;
    use std::sync::atomic::Ordering;

    use super::{HELD, STALE, hold, leave};

    /// How the terminal was.
    static BEFORE: OnceLock<libc::termios> = OnceLock::new();

    pub(super) fn write(bytes: &[u8]) {
        // SAFETY: the pointer and the length are those of a slice; `write` is async-signal-safe.
        unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// Keeps the settings of the terminal on standard input, if there is one.
    pub(super) fn remember() {
        // SAFETY: all zeros are a valid termios, and `tcgetattr` fills it or fails.
        let settings = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(libc::STDIN_FILENO, &raw mut settings) == 0).then_some(settings)
        };
        if let Some(settings) = settings {
            BEFORE.get_or_init(|| settings);
        }
    }

    fn set(settings: &libc::termios) {
        // SAFETY: the settings came from `tcgetattr`; `tcsetattr` is async-signal-safe.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
    }

    /// No echo. Signals stay: Ctrl-C reaches the process as ever.
    pub(super) fn quiet() {
        if let Some(before) = BEFORE.get() {
            let mut settings = *before;
            settings.c_lflag &= !(libc::ECHO | libc::ICANON);
            set(&settings);
        }
    }

    pub(super) fn restore() {
        if let Some(before) = BEFORE.get() {
            set(before);
        }
    }

    extern "C" fn end(signal: libc::c_int) {
        leave();
        // SAFETY: both calls are async-signal-safe. The signal is blocked until this handler is done, and
        // then does what it does by default.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }

    extern "C" fn stop(_signal: libc::c_int) {
        leave();
        // SAFETY: async-signal-safe; returns when the process is continued.
        unsafe { libc::raise(libc::SIGSTOP) };
        hold();
        STALE.store(true, Ordering::SeqCst);
    }

    /// Ctrl-\, a terminal that goes away, Ctrl-Z. Ctrl-C is [`crate::interrupt`]'s.
    pub(super) fn listen() {
        type Handler = extern "C" fn(libc::c_int);
        let handlers: [(libc::c_int, Handler); 3] = [
            (libc::SIGQUIT, end),
            (libc::SIGHUP, end),
            (libc::SIGTSTP, stop),
        ];
        for (signal, handler) in handlers {
            // SAFETY: the structure is plain data for which all zeros are valid, and the handlers do only
            // what is async-signal-safe. A signal that cannot be handled keeps its default.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as libc::sighandler_t;
                action.sa_flags = libc::SA_RESTART;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        debug_assert!(!HELD.load(Ordering::SeqCst));
    }
}

#[cfg(not(unix))]
mod system {
    use std::io::Write;

    pub(super) fn write(bytes: &[u8]) {
        let _ = std::io::stderr().write_all(bytes);
    }

    pub(super) fn remember() {}
    pub(super) fn quiet() {}
    pub(super) fn restore() {}
    pub(super) fn listen() {}
}
