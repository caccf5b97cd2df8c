//! sparsam: fine-tunes language models on the machine you have, and says what it cost.
//!
//! The binary joins the libraries: it reads arguments and recipes, shows progress, writes the
//! record of a run, and turns every error into one sentence and an exit code. What training,
//! models and energy are is not known here.

use std::process::ExitCode;

use error::Failure;
use sparsam_kernels::cpu::{Level, VARIABLE};

mod adapters;
mod allocator;
mod args;
mod base_files;
mod cards;
mod classifier;
mod columns;
mod commands;
mod compare;
mod dashboard;
mod device;
mod error;
mod figures;
mod from_hub;
mod grid;
mod interrupt;
mod machine;
mod made_of;
mod opened;
mod plan;
mod probe_file;
mod progress;
mod recipe;
mod report;
mod run;
mod run_record;
mod speaker;
mod summary;
mod tensorboard;
mod terminal;
mod threads;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    error::install_panic_hook();
    // The hook has told the user; the process still ends with the exit code of a failed run.
    std::panic::catch_unwind(run).unwrap_or(ExitCode::FAILURE)
}

fn run() -> ExitCode {
    let cli = match args::Cli::from_arguments() {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                // Help piped into a reader that has seen enough.
                Err(_) => ExitCode::SUCCESS,
            };
        }
    };
    match check_environment().and_then(|()| commands::run(cli)) {
        Ok(code) => code,
        Err(error) => error::report(&error),
    }
}

/// Refuses a variable that asks for what there is not, before anything is measured with something else.
fn check_environment() -> anyhow::Result<()> {
    let Err(name) = Level::of_environment() else {
        return Ok(());
    };
    let names: Vec<String> = Level::ALL.iter().map(|level| level.name()).collect();
    let failure = Failure::usage(format!(
        "`{VARIABLE}` is `{name}`, which is no level of this architecture"
    ));
    Err(failure
        .hint(format!("it may be {}", names.join(", ")))
        .into())
}
