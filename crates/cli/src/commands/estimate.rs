//! `sparsam estimate`: the arithmetic after the fact, for runs that nobody measured.

use std::io::{self, Write};

use sparsam_tracker::StatedIntensity;
use sparsam_tracker::estimate::{self, EstimateError, Power, Request};

use crate::args::energy::{EstimateArgs, out_of_range, refused};
use crate::columns;
use crate::error::Failure;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &EstimateArgs) -> anyhow::Result<()> {
    let power = match (&args.hardware, args.watts) {
        (_, Some(watts)) => Power::Watts(watts),
        (Some(name), None) => Power::Hardware(name.clone()),
        (None, None) => {
            return Err(Failure::usage("neither hardware nor watts were given")
                .hint("add `--hardware NAME` or `--watts WATTS`")
                .into());
        }
    };
    let request = Request {
        count: args.count,
        pue: args.pue,
        country: args.place.country.clone(),
        // An estimate says that its figures are the user's; a source is welcome and not asked for.
        intensity: args.place.intensity.map(|g_per_kwh| StatedIntensity {
            g_per_kwh,
            source: args
                .place
                .intensity_source
                .clone()
                .unwrap_or_else(|| "as stated".to_owned()),
        }),
        embodied: args.embodied,
        water_site_l_per_kwh: args.water_site,
        water_grid_l_per_kwh: args.water_grid,
        ..Request::new(power, args.hours)
    };
    let estimate = estimate::estimate(&request).map_err(worded)?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&estimate)?)
    } else {
        columns::fit(&estimate::lines(&estimate), paint_stdout())
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// The library's error with the flags' names.
fn worded(error: EstimateError) -> anyhow::Error {
    match error {
        EstimateError::OutOfRange {
            option,
            given,
            wanted,
        } => out_of_range(option, given, wanted).into(),
        EstimateError::Accounting(error) => refused(error),
        error => error.into(),
    }
}
