//! Colour, and when to use it.
//!
//! Colour only ever repeats what the words say. It is off where the stream is not a terminal,
//! where `NO_COLOR` is set (<https://no-color.org>), and where `TERM` is `dumb`.

use std::io::IsTerminal;

/// Paints words, or leaves them alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// With ANSI colours.
    Colour,
    /// As they are.
    Plain,
}

impl Paint {
    pub(crate) fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.wrap("36", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Colour => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::Plain => text.to_owned(),
        }
    }
}

/// How to paint on standard error.
pub(crate) fn paint_stderr() -> Paint {
    paint(std::io::stderr().is_terminal())
}

/// How to paint on standard output.
pub(crate) fn paint_stdout() -> Paint {
    paint(std::io::stdout().is_terminal())
}

fn paint(terminal: bool) -> Paint {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    if terminal && !refused {
        Paint::Colour
    } else {
        Paint::Plain
    }
}
