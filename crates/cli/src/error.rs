//! What a user sees when something is wrong: one sentence, what to do about it, an exit code.
//!
//! Libraries return their own errors with a `hint()`; commands pass them on with `?`. [`report`]
//! prints the chain as one sentence and the hints below it. Exit codes: 2 when the invocation or
//! the recipe is at fault, 1 when the run failed.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::device;
use crate::terminal::{Paint, paint_stderr};

/// A failure with advice, as commands make them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    message: String,
    hints: Vec<String>,
    cause: Cause,
}

/// Whose fault it is, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The command line or the recipe.
    Usage,
    /// The run.
    Run,
}

impl Failure {
    /// The command line or the recipe cannot be meant: exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hints: Vec::new(),
            cause: Cause::Usage,
        }
    }

    /// The run failed: exit code 1.
    pub(crate) fn run(message: impl Into<String>) -> Self {
        Self {
            cause: Cause::Run,
            ..Self::usage(message)
        }
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Hints of the errors of our libraries, found anywhere in the chain.
fn library_hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    /// The first of the given types the error is.
    macro_rules! first_of {
        ($($library:ty),+ $(,)?) => {
            $(if let Some(error) = error.downcast_ref::<$library>() {
                return error.hint();
            })+
        };
    }
    first_of!(
        sparsam_adapter::data::DataError,
        sparsam_adapter::error::Error,
        sparsam_base::chat_template::TemplateError,
        sparsam_base::error::Error,
        sparsam_base::tokenizer::TokenizerError,
        sparsam_hub::HubError,
        sparsam_tracker::JournalError,
        sparsam_tracker::StartError,
        sparsam_tracker::card::edit::EditError,
        sparsam_tracker::estimate::EstimateError,
        sparsam_tracker::lifecycle::LedgerError,
        sparsam_tracker::track::TrackError,
    );
    None
}

/// Prints `error` to standard error and returns the exit code it asks for. A closed pipe is the
/// reader's wish and neither printed nor a failure.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    // Nothing can be said about a standard error that cannot be written to.
    let _ = stderr.write_all(render(error, paint_stderr()).as_bytes());
    ExitCode::from(exit_code(error))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Failure>() {
        Some(failure) if failure.cause == Cause::Usage => 2,
        Some(_) => 1,
        None => error.chain().find_map(library_exit_code).unwrap_or(1),
    }
}

/// The exit code of the tracker's errors: an option that makes no sense is the invocation's fault, and a
/// program that cannot be started has a shell's codes.
fn library_exit_code(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    use sparsam_tracker::card::edit::EditError;
    use sparsam_tracker::{JournalError, StartError, estimate, lifecycle, track};

    if let Some(error) = error.downcast_ref::<track::TrackError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = error.downcast_ref::<EditError>() {
        return Some(match error {
            EditError::Card(_) => 1,
            EditError::File { action, .. } if *action != "read" => 1,
            _ => 2,
        });
    }
    if let Some(error) = error.downcast_ref::<JournalError>() {
        return Some(match error {
            JournalError::Read { .. } => 2,
            _ => 1,
        });
    }
    if let Some(error) = error.downcast_ref::<sparsam_hub::HubError>() {
        return Some(if error.is_usage() { 2 } else { 1 });
    }
    let typed = error.is::<StartError>()
        || error.is::<estimate::EstimateError>()
        || error.is::<lifecycle::LedgerError>();
    typed.then_some(2)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// `error: …` with the causes behind it, then `hint: …` lines.
fn render(error: &anyhow::Error, paint: Paint) -> String {
    let mut sentence = String::new();
    let mut hints: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = cause.to_string();
        let part = without_backtrace(&part).to_owned();
        // Anything may fail with a GPU's code, at any step.
        let explained = match cause.downcast_ref::<Failure>() {
            Some(_) => None,
            None => device::explain(&part),
        };
        let part = explained.map_or(part, |explanation| explanation.sentence.to_owned());
        // Many errors repeat their source in their own text.
        if !sentence.contains(&part) {
            if !sentence.is_empty() {
                sentence.push_str(": ");
            }
            sentence.push_str(&part);
        }
        let given = match cause.downcast_ref::<Failure>() {
            Some(failure) => failure.hints.clone(),
            None => explained
                .map(|explanation| explanation.hint.to_owned())
                .or_else(|| library_hint(cause))
                .into_iter()
                .collect(),
        };
        // An error that passes on another's hint stands in the chain beside it.
        for hint in given {
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
    }
    let sentence = without_numbers(&sentence);
    let mut text = format!("{} {sentence}\n", paint.red("error:"));
    for hint in hints {
        text.push_str(&paint.cyan("hint:"));
        text.push(' ');
        text.push_str(&hint);
        text.push('\n');
    }
    text
}

/// The text of an error of candle without the backtrace that follows it where `RUST_BACKTRACE` is set.
fn without_backtrace(text: &str) -> &str {
    let frames = text.match_indices('\n').find(|(at, _)| {
        let line = &text[at + 1..];
        let frame = line.trim_start_matches(' ');
        frame.len() < line.len() && frame.starts_with("0: ")
    });
    frames.map_or(text, |(at, _)| text[..at].trim_end())
}

/// The sentence without the operating system's ` (os error 2)`.
fn without_numbers(sentence: &str) -> String {
    let mut text = String::with_capacity(sentence.len());
    let mut rest = sentence;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        text.push_str(before);
        match after.split_once(')') {
            Some((number, after)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                rest = after;
            }
            _ => {
                text.push_str(" (os error ");
                rest = after;
            }
        }
    }
    text + rest
}

/// The reason of an I/O error in plain words, without the operating system's number.
pub(crate) fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error")
                .next()
                .map_or(text.clone(), str::to_owned)
        }
    }
}

/// Replaces Rust's panic message by one that a user can act on.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        crate::dashboard::screen::leave();
        let place = panic
            .location()
            .map(|location| format!(" at {}:{}", location.file(), location.line()))
            .unwrap_or_default();
        let reason = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|reason| (*reason).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let paint = paint_stderr();
        let _ = writeln!(
            io::stderr(),
            "{} this is a fault of sparsam itself{place}: {reason}\n{} please report it with the \
             command and the recipe; checkpoints already written are intact",
            paint.red("error:"),
            paint.cyan("hint:"),
        );
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_make_one_sentence_and_hints_follow() {
        let error = anyhow::Error::new(Failure::run("no space left").hint("free some space"))
            .context("cannot write `a`");
        assert_eq!(
            render(&error, Paint::Plain),
            "error: cannot write `a`: no space left\nhint: free some space\n"
        );
        assert_eq!(exit_code(&error), 1);
        assert_eq!(exit_code(&Failure::usage("no").into()), 2);
    }

    #[test]
    fn a_cause_that_its_context_repeats_is_said_once() {
        let error = anyhow::anyhow!("disk full").context("write failed: disk full");
        assert_eq!(
            render(&error, Paint::Plain),
            "error: write failed: disk full\n"
        );
    }

    #[test]
    fn numbers_of_the_operating_system_are_left_out() {
        for (sentence, wanted) in [
            ("cannot read `a`: no (os error 2)", "cannot read `a`: no"),
            (
                "`a (os error b)`: no (os error 13), once",
                "`a (os error b)`: no, once",
            ),
        ] {
            assert_eq!(without_numbers(sentence), wanted);
        }
    }

    #[test]
    fn a_backtrace_is_left_out() {
        let text = "unexpected rank\n   0: bt\n             at error.rs:260:25\n   1: dims3";
        let error = anyhow::anyhow!("{text}").context("cannot read `a`");
        assert_eq!(
            render(&error, Paint::Plain),
            "error: cannot read `a`: unexpected rank\n"
        );
        for whole in ["two\nlines", "a list\n0: none", "", "\n"] {
            assert_eq!(without_backtrace(whole), whole);
        }
    }

    #[test]
    fn hints_of_libraries_are_found_behind_contexts_and_said_once() {
        let base = || sparsam_base::error::Error::Config {
            key: "hidden_act".to_owned(),
            what: "is `gelu`".to_owned(),
        };
        let hint = base().hint().expect("it has a hint");
        let wrapped = sparsam_adapter::error::Error::from(base());
        for error in [anyhow::Error::new(base()), anyhow::Error::new(wrapped)] {
            assert_eq!(
                render(&error.context("cannot open `a`"), Paint::Plain),
                format!(
                    "error: cannot open `a`: config key `hidden_act` is `gelu`\nhint: {hint}\n"
                )
            );
        }
        let tracker = sparsam_tracker::StartError::NoSource;
        let hint = tracker.hint().expect("it has a hint");
        let text = render(&anyhow::Error::new(tracker), Paint::Plain);
        assert!(text.ends_with(&format!("hint: {hint}\n")), "{text}");
    }

    #[test]
    fn a_code_of_a_gpu_is_explained_wherever_it_comes_up() {
        let error = anyhow::anyhow!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
            .context("`big`, 13 GiB of weights, cannot be put on `cuda:0`");
        let text = render(&error, Paint::Plain);
        assert!(
            text.starts_with(
                "error: `big`, 13 GiB of weights, cannot be put on `cuda:0`: the memory of the GPU is full\n\
                 hint: "
            ),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_closed_pipe_is_found_behind_a_context() {
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("x");
        assert!(is_broken_pipe(&error));
    }
}
