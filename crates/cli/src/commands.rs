//! One file for each command.

use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::threads::within;

pub(crate) mod bench;
mod bench_generate;
mod card;
mod chat;
mod classify;
mod combine;
mod compare;
mod data;
mod doctor;
mod estimate;
mod export;
mod fetch;
mod generate;
mod ledger;
mod merge;
mod plan;
mod probe;
mod publish;
mod quantize;
mod recipe;
mod report;
mod track;
mod train;
mod unpack;
mod verify;

/// Runs the command that was asked for, and says with what exit code it is done.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Recipe(args) => recipe::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Generate(args) => within(None, || generate::run(&args, cli.quiet)),
        Command::Chat(args) => within(None, || chat::run(&args, cli.quiet)),
        Command::Classify(args) => within(None, || classify::run(&args, cli.quiet)),
        Command::Fetch(args) => fetch::run(&args, cli.quiet),
        Command::Publish(args) => publish::run(&args, cli.quiet),
        Command::Export(args) => export::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Combine(args) => combine::run(&args, cli.quiet),
        Command::Merge(args) => merge::run(&args, cli.quiet),
        Command::Unpack(args) => unpack::run(&args, cli.quiet),
        Command::PackBuiltin(args) => unpack::pack_builtin(&args),
        Command::Train(args) => train::run(&args, cli.quiet),
        Command::BenchGenerate(args) => within(None, || bench_generate::run(&args, cli.quiet)),
        Command::Bench(args) => within(None, || bench::run(&args)),
        Command::Probe(args) => probe::run(&args),
        Command::Estimate(args) => estimate::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Ledger(args) => ledger::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args, cli.quiet),
        Command::Plan(args) => plan::run(&args, cli.quiet),
        Command::Calibrate(args) => plan::run_calibrate(&args),
        // These have exit codes of their own.
        Command::Verify(args) => return verify::run(&args),
        Command::Track(args) => return track::run(args, cli.quiet),
        Command::Card(args) => return card::run(&args, cli.quiet),
    }?;
    Ok(ExitCode::SUCCESS)
}
