//! `sparsam plan`: what a recipe will need. Each arm's steps are made by this program, started again, so
//! that the memory of one arm is not that of another.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use sparsam_tracker::estimate::{self, EstimateError};
use sparsam_tracker::meter::system;
use sparsam_tracker::{EnergyRecord, Roots, StatedIntensity, format};

use crate::args::energy::refused;
use crate::args::plan::{CalibrateArgs, PlanArgs};
use crate::columns;
use crate::error::Failure;
use crate::figures::bytes;
use crate::plan::memory::Shape;
use crate::plan::{self, Arm, BESIDE, Grid, Plan, cache, hardware, is_arm, knobs, words};
use crate::recipe::{Recipe, RecipeFile};
use crate::run::{Calibration, Work, calibrate, count, settled};
use crate::speaker::notes;
use crate::terminal::paint_stdout;
use crate::threads::within;

/// An arm of a plan before its figures are known: name, keys that make it, recipe.
type Way = (String, Vec<String>, RecipeFile);

pub(super) fn run_calibrate(args: &CalibrateArgs) -> anyhow::Result<()> {
    let file = settled(
        &RecipeFile::load(&args.recipe, &args.overrides)?,
        None,
        true,
    )?;
    let calibration = within(file.recipe.threads, || calibrate(&file, args.seconds))?;
    writeln!(
        io::stdout().lock(),
        "{}",
        serde_json::to_string(&calibration)?
    )?;
    Ok(())
}

pub(super) fn run(args: &PlanArgs, quiet: bool) -> anyhow::Result<()> {
    let file = settled(
        &RecipeFile::load(&args.recipe, &args.overrides)?,
        None,
        quiet,
    )?;
    let (shape, work) = count(&file, quiet)?;
    let ways = ways(args, file, quiet)?;
    let plan = match &args.hardware {
        Some(name) => elsewhere(args, name, &shape, work, &ways)?,
        None => here(args, &shape, work, &ways, quiet)?,
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
    } else {
        out.write_all(columns::fit(&words::lines(&plan), paint_stdout()).as_bytes())?;
    }
    Ok(())
}

/// The recipe, and beside it those arms that it is not itself.
fn ways(args: &PlanArgs, file: RecipeFile, quiet: bool) -> anyhow::Result<Vec<Way>> {
    let mut beside: Vec<Way> = Vec::new();
    for (name, keys) in BESIDE {
        if is_arm(&file.recipe, name) {
            continue;
        }
        // A recipe that goes on with an adapter keeps it; full training has none.
        let mut overrides = args.overrides.clone();
        overrides.extend(keys.iter().map(|key| (*key).to_owned()));
        if name == "full" && file.recipe.adapter.is_some() {
            overrides.push("adapter=null".to_owned());
        }
        let other = settled(&RecipeFile::load(&args.recipe, &overrides)?, None, quiet)?;
        beside.push((name.to_owned(), overrides, other));
    }
    let itself = BESIDE.iter().find(|(name, _)| is_arm(&file.recipe, name));
    let name = itself.map_or_else(
        || "this recipe".to_owned(),
        |(name, _)| format!("{name} (this)"),
    );
    let mut ways = vec![(name, args.overrides.clone(), file)];
    ways.extend(beside);
    Ok(ways)
}

fn elsewhere(
    args: &PlanArgs,
    name: &str,
    shape: &Shape,
    work: Work,
    ways: &[Way],
) -> anyhow::Result<Plan> {
    let device = hardware::find(name)?;
    let shape = &shape.elsewhere();
    let available = Some(args.memory.unwrap_or(device.memory));
    let recipe = &ways[0].2.recipe;
    let (grid, emissions) = grid(args, recipe)?;
    let arms: Vec<Arm> = ways
        .iter()
        .map(|(name, _, file)| {
            plan::computed(name, shape, &file.recipe, &work, &device, &grid, available)
        })
        .collect();
    Ok(Plan {
        machine: format!(
            "{}: {} TFLOP/s ({}), {}, {} W by its data sheet",
            device.name,
            device.tflops,
            device.source,
            bytes(device.memory as u64),
            device.watts
        ),
        available_bytes: available,
        knobs: knobs_of(shape, recipe, &work, &arms[0]),
        work,
        arms,
        emissions,
        notes: vec![
            "nothing was run: the time is the arithmetic at 12 to 60 % of the rated speed, central 35 %, \
             and the energy is the device's alone, without the computer around it"
                .to_owned(),
        ],
    })
}

fn here(
    args: &PlanArgs,
    shape: &Shape,
    work: Work,
    ways: &[Way],
    quiet: bool,
) -> anyhow::Result<Plan> {
    let roots = Roots::from_env();
    let there = system::usable_memory(&roots).map(|bytes| bytes as f64);
    let available = args.memory.or(there);
    let cpu = system::processor(&roots).and_then(|processor| processor.name);
    let recipe = &ways[0].2.recipe;
    let (grid, emissions) = grid(args, recipe)?;
    let mut notes_made = Vec::new();
    let mut arms: Vec<Option<Arm>> = Vec::new();
    let mut energy: Option<EnergyRecord> = None;
    for (name, overrides, file) in ways {
        let memory = plan::computed_memory(shape, &file.recipe, &work);
        // What would not fit into the machine is not tried out on it, whatever may be used.
        if there.is_some_and(|there| memory.total() > 0.9 * there) {
            arms.push(None);
            continue;
        }
        let calibration = calibration(args, name, overrides, &file.recipe, cpu.as_deref(), quiet)?;
        let arm = plan::calibrated(
            name,
            shape,
            &file.recipe,
            &work,
            &calibration,
            &grid,
            available,
        );
        energy.get_or_insert(calibration.energy);
        arms.push(Some(arm));
    }
    let measured = arms
        .iter()
        .zip(ways)
        .find_map(|(arm, way)| Some((arm.clone()?, &way.2.recipe)));
    let Some((measured, of)) = measured else {
        return Err(Failure::run(format!(
            "no arm of this recipe fits into this machine\\'s {}, so that none could be tried",
            bytes(there.unwrap_or_default() as u64)
        ))
        .hint("plan for another machine with `--hardware`, or begin with `quantize: nf4-dq` and a small batch")
        .into());
    };
    if arms.iter().any(Option::is_none) {
        notes_made.push(
            "arms marked `*` would not fit into this machine and were not tried: their memory is \
             computed, their time taken from another arm"
                .to_owned(),
        );
    }
    let arms: Vec<Arm> = arms
        .into_iter()
        .zip(ways)
        .map(|(arm, (name, _, file))| {
            arm.unwrap_or_else(|| {
                let memory = plan::computed_memory(shape, &file.recipe, &work);
                plan::scaled(
                    name,
                    &file.recipe,
                    memory,
                    (&measured, of),
                    &grid,
                    available,
                )
            })
        })
        .collect();
    let machine = energy.as_ref().map_or_else(String::new, |energy| {
        notes_made.push(format!(
            "energy is {} measured here; not in it: {}",
            format::percent(energy.measured_share),
            energy.not_included.join("; ")
        ));
        energy.hardware.line()
    });
    Ok(Plan {
        machine,
        available_bytes: available,
        knobs: knobs_of(shape, recipe, &work, &arms[0]),
        work,
        arms,
        emissions,
        notes: notes_made,
    })
}

fn knobs_of(shape: &Shape, recipe: &Recipe, work: &Work, arm: &Arm) -> Vec<knobs::Knob> {
    if arm.fits == Some(false) {
        knobs::of(shape, recipe, work, arm.memory.total())
    } else {
        Vec::new()
    }
}

/// The steps of an arm: those that were made before, or new ones in a process of its own.
fn calibration(
    args: &PlanArgs,
    name: &str,
    overrides: &[String],
    recipe: &Recipe,
    cpu: Option<&str>,
    quiet: bool,
) -> anyhow::Result<Calibration> {
    let place = cache::place(recipe, cpu);
    if let Some(kept) = place
        .as_deref()
        .filter(|_| !args.fresh)
        .and_then(cache::read)
    {
        return Ok(kept);
    }
    writeln!(notes(quiet), "trying a few steps: {name}")?;
    let child = Command::new(std::env::current_exe()?)
        .arg("calibrate")
        .arg("--seconds")
        .arg(args.seconds.to_string())
        .arg(&args.recipe)
        .args(overrides)
        .stdin(Stdio::null())
        .output()?;
    if !child.status.success() {
        let said = String::from_utf8_lossy(&child.stderr);
        let mut lines = said.lines();
        let first = lines
            .next()
            .unwrap_or("it was killed")
            .trim_start_matches("error: ");
        let failure = Failure::run(format!("the steps of `{name}` failed: {first}"));
        return Err(match lines.find_map(|line| line.strip_prefix("hint: ")) {
            Some(hint) => failure.hint(hint).into(),
            None => failure.into(),
        });
    }
    let calibration: Calibration = serde_json::from_slice(&child.stdout)?;
    if let Some(place) = place {
        cache::write(&place, &calibration);
    }
    Ok(calibration)
}

/// What electricity emits where the run will be, and the words for it.
fn grid(args: &PlanArgs, recipe: &Recipe) -> anyhow::Result<(Grid, String)> {
    let energy = &recipe.energy;
    let stated = match args.place.stated()? {
        Some(stated) => Some(stated),
        None => energy
            .intensity_g_per_kwh
            .zip(energy.intensity_source.clone())
            .map(|(g_per_kwh, source)| StatedIntensity { g_per_kwh, source }),
    };
    let country = args
        .place
        .typed_country()
        .or_else(|| recipe.country_of_run())
        .or_else(crate::grid::country_of_environment);
    let request = estimate::Request {
        pue: Some(energy.pue),
        country,
        intensity: stated,
        ..estimate::Request::new(estimate::Power::Watts(1.0), 1.0)
    };
    let estimate = estimate::estimate(&request).map_err(|error| match error {
        EstimateError::Accounting(error) => refused(error),
        error => error.into(),
    })?;
    let span = estimate.intensity.g_per_kwh;
    let mut from: Vec<String> = Vec::new();
    from.extend(estimate.place.map(|place| place.name));
    from.extend(estimate.intensity.year.map(|year| year.to_string()));
    from.push(estimate.intensity.source);
    let number = |value: f64| format::plain_decimal(value, 4);
    let intensity = match span.central {
        Some(central) => number(central),
        None => format!("{} to {}", number(span.low), number(span.high)),
    };
    let words = format!(
        "energy x PUE {} x {intensity} g/kWh ({})",
        number(energy.pue),
        from.join(", ")
    );
    let grid = Grid {
        pue: energy.pue,
        g_per_kwh: span,
    };
    Ok((grid, words))
}
