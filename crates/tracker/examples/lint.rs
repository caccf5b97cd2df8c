//! Checks what model cards say of their emissions.
//!
//! `cargo run -p sparsam-tracker --example lint -- README.md…`
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::process::ExitCode;

use sparsam_tracker::card::lint::{Severity, lint, render, worst};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut code = ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        let findings = lint(&std::fs::read(&path)?);
        for line in render(&path, &findings) {
            println!("{line}");
        }
        if worst(&findings) >= Some(Severity::Warning) {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
