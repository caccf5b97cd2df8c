//! One file for each command.

use crate::args::{Cli, Command};

mod recipe;

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Recipe(args) => recipe::run(&args),
        _ => Err(
            crate::error::Failure::run("this command is not joined to the libraries yet").into(),
        ),
    }
}
