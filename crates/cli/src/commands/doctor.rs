//! `sparsam doctor`: what can be measured here, and how to make the rest measurable.

use std::io::{self, Write};

use sparsam_tracker::{Options, doctor};

use crate::args::energy::{DoctorArgs, refused};
use crate::columns;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let report = doctor::examine(&Options {
        roots: args.roots.roots()?,
        country: args.place.country_or_environment(),
        intensity: args.place.stated()?,
        ..Options::default()
    })
    .map_err(refused)?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        columns::fit(&doctor::lines(&report), paint_stdout())
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
