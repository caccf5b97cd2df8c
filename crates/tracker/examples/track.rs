//! Runs any program and says what it cost. The folder `tracked` then holds the journal, the record, a
//! table in codecarbon's columns, and a block for a model card.
//!
//! `cargo run -p sparsam-tracker --example track -- DEU sh -c 'sleep 3'`
#![expect(
    clippy::print_stderr,
    reason = "standard output belongs to the program that is run"
)]

use std::process::ExitCode;

use sparsam_tracker::{Options, summary_lines, track};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let request = track::Request {
        options: Options {
            country: arguments.next().map(|c| c.to_string_lossy().into_owned()),
            ..Options::in_folder("tracked")
        },
        command: arguments.collect(),
    };
    match track::run(&request) {
        Ok(tracked) => {
            for line in summary_lines(&tracked.record) {
                eprintln!("{line}");
            }
            ExitCode::from(tracked.exit_code)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
