//! `sparsam combine`: several adapters of one base as one.

use std::io::{self, Write};

use sparsam_adapter::peft;

use super::merge::staged;
use crate::adapters::combined;
use crate::args::formats::CombineArgs;
use crate::error::Failure;
use crate::figures::significant;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &CombineArgs, quiet: bool) -> anyhow::Result<()> {
    let weights = weights(args)?;
    let parts = combined(&args.adapters, &weights, quiet)?;
    let staged = staged(&args.output)?;
    peft::save_parts(staged.path(), &parts)?;
    staged.commit()?;
    let paint = paint_stdout();
    let named = args.adapters.iter().zip(&weights);
    let named: Vec<String> = named
        .map(|(folder, weight)| format!("{} x {}", significant(*weight, 3), folder.display()))
        .collect();
    writeln!(
        io::stdout().lock(),
        "{}{}\n{}{}: {} branches of rank {}",
        paint.bold("combined   "),
        named.join(" + "),
        paint.bold("wrote      "),
        args.output.display(),
        parts.branches.len(),
        parts.config.lora.r
    )?;
    Ok(())
}

/// A weight for each adapter.
fn weights(args: &CombineArgs) -> Result<Vec<f64>, Failure> {
    let count = args.adapters.len();
    if args.weights.is_empty() {
        return Ok(vec![1.0; count]);
    }
    if args.weights.len() != count || args.weights.iter().any(|weight| !weight.is_finite()) {
        return Err(Failure::usage(format!(
            "`--weights` has {} numbers for {count} adapters",
            args.weights.len()
        ))
        .hint("give one finite number for each, in their order"));
    }
    Ok(args.weights.clone())
}
