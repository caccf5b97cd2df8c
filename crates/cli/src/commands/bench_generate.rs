//! `sparsam bench-generate`: what a model takes to answer, measured.
//!
//! Two stretches: prompts alone, read up to the first token of an answer, and whole answers. Each is long
//! beside the meters' steps, which the phases of one answer are not; what writing takes is the difference.
//! An answer never ends before its length, so that every request is the same work.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::DType;
use jiff::Zoned;
use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::generate::{Sampling, generate};
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_tracker::lifecycle::{BENCH_FILE, BENCH_VERSION, Bench, Cost, Work};
use sparsam_tracker::range::{Range, Span};
use sparsam_tracker::{EnergyRecord, Options, Stage, Tracker, accounting, format, journal};

use crate::adapters::Adapter;
use crate::args::bench_generate::BenchGenerateArgs;
use crate::args::energy::refused;
use crate::base_files::BaseFiles;
use crate::columns;
use crate::device::{self, Place};
use crate::error::{Failure, io_reason};
use crate::figures::significant;
use crate::from_hub::{self, hub_name};
use crate::interrupt;
use crate::opened::{Wanted, open};
use crate::run::gpus_of;
use crate::run_record::write_whole;
use crate::speaker::notes;
use crate::terminal::paint_stdout;

/// The windows of the journal.
const LOAD: &str = "load";
const WARM_UP: &str = "warm-up";
const PREFILL: &str = "prefill";
const ANSWERS: &str = "answers";

/// The part of the time in which prompts are read and nothing is written.
const PREFILL_SHARE: f64 = 0.25;

pub(super) fn run(args: &BenchGenerateArgs, quiet: bool) -> anyhow::Result<()> {
    let folder = match &args.output {
        Some(folder) => folder.clone(),
        None => fresh_folder(),
    };
    refuse_occupied(&folder)?;
    let mut notes = notes(quiet);
    let place = device::open(args.device)?;
    if let Some(note) = &place.note {
        writeln!(notes, "note: {note}")?;
    }
    interrupt::listen()?;
    let existed = folder.exists();
    let tracker = Tracker::start(&options(args, &place, &folder)?).map_err(refused)?;
    let done = measure(args, &place, &tracker, &mut notes);
    let record = tracker.finish();
    let written = done.and_then(|done| {
        let bench = bench(args, &place, &record, &done)?;
        let path = folder.join(BENCH_FILE);
        let text = serde_json::to_string_pretty(&bench)? + "\n";
        write_whole(&path, text.as_bytes()).map_err(|error| {
            Failure::run(format!(
                "cannot write `{}`: {}",
                path.display(),
                io_reason(&error)
            ))
        })?;
        Ok(bench)
    });
    let bench = match written {
        Ok(bench) => bench,
        Err(error) => {
            if !existed {
                // Nothing was measured, so nothing is left; what cannot be removed does no harm.
                let _ = fs_err::remove_file(folder.join(journal::FILE_NAME));
                let _ = fs_err::remove_dir(&folder);
            }
            return Err(error);
        }
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&printed(&bench))?)?;
    } else {
        let lines = lines(&bench, &folder);
        out.write_all(columns::fit(&lines, paint_stdout()).as_bytes())?;
    }
    Ok(())
}

/// `runs/bench-20260131-235959`.
fn fresh_folder() -> PathBuf {
    let time = Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
    PathBuf::from(format!("runs/bench-{time}"))
}

/// A folder holds one measurement, or one run.
fn refuse_occupied(folder: &Path) -> Result<(), Failure> {
    let taken = [BENCH_FILE, journal::FILE_NAME, crate::run_record::FILE_NAME];
    if taken.iter().any(|name| folder.join(name).exists()) {
        return Err(
            Failure::usage(format!("`{}` holds a run already", folder.display()))
                .hint("give another folder with `--output`"),
        );
    }
    Ok(())
}

fn options(args: &BenchGenerateArgs, place: &Place, folder: &Path) -> anyhow::Result<Options> {
    let defaults = Options::in_folder(folder);
    Ok(Options {
        roots: args.roots.roots()?,
        country: args.place.country_or_environment(),
        intensity: args.place.stated()?,
        pue: args.pue,
        cpu_watts: args.cpu_watts,
        ram_watts: args.ram_watts,
        stage: Some(Stage::Inference),
        gpus: gpus_of(&place.device),
        ..defaults
    })
}

/// What a stretch did.
struct Stretch {
    requests: u64,
    seconds: f64,
}

/// Both stretches.
struct Done {
    prefill: Stretch,
    answers: Stretch,
}

fn measure(
    args: &BenchGenerateArgs,
    place: &Place,
    tracker: &Tracker,
    notes: &mut dyn Write,
) -> anyhow::Result<Done> {
    tracker.enter(LOAD);
    let (model, mut hook) = load(args, place)?;
    tracker.leave(LOAD);
    let prompts = prompts(&model, args);
    let mut answer = |tokens: usize| -> anyhow::Result<()> {
        let sampling = Sampling {
            max_new_tokens: tokens,
            temperature: 0.0,
            top_p: None,
            seed: 0,
        };
        let answers = generate(&model, &mut hook, &prompts, &[], &sampling, &mut |_, _| {
            ControlFlow::Continue(())
        })?;
        if interrupt::requested() {
            return Err(Failure::run("interrupted before the measurement was done").into());
        }
        debug_assert!(answers.iter().all(|answer| answer.len() == tokens));
        Ok(())
    };
    // The first answer touches memory for the first time, and the clock of the processor rises.
    tracker.enter(WARM_UP);
    answer(args.tokens)?;
    tracker.leave(WARM_UP);
    writeln!(
        notes,
        "measuring for {}",
        format::duration(args.seconds.max(1.0))
    )?;
    let mut stretch = |name: &'static str, tokens: usize, share: f64| -> anyhow::Result<Stretch> {
        let least = Duration::from_secs_f64(args.seconds * share);
        tracker.enter(name);
        let (began, mut rounds) = (Instant::now(), 0u64);
        while rounds == 0 || began.elapsed() < least {
            answer(tokens)?;
            rounds += 1;
        }
        let seconds = began.elapsed().as_secs_f64();
        tracker.leave(name);
        Ok(Stretch {
            requests: rounds * args.batch as u64,
            seconds,
        })
    };
    Ok(Done {
        prefill: stretch(PREFILL, 1, PREFILL_SHARE)?,
        answers: stretch(ANSWERS, args.tokens, 1.0 - PREFILL_SHARE)?,
    })
}

/// The model as it will answer, with room for a request.
fn load(args: &BenchGenerateArgs, place: &Place) -> anyhow::Result<(Model, Trainable)> {
    let adapter = Adapter::of(&args.base, true)?;
    let adapter = adapter.as_ref().map(Adapter::folder);
    let max_length = args.prompt_tokens + args.tokens;
    let (model, hook) = match adapter {
        Some(adapter) if args.merged => {
            let model = merged(args, place, adapter, max_length)?;
            let hook = Trainable::none(&model);
            (model, hook)
        }
        adapter => {
            let mut model = open(&Wanted {
                name: &args.base.model,
                quantize: args.quantize,
                dtype: None,
                device: &place.device,
                max_length,
                chat_template: None,
                revision: args.base.revision.as_deref(),
                quiet: true,
            })?
            .model;
            let mut hook = match adapter {
                Some(folder) => peft::load(folder, &mut model, 0)?.0,
                None => Trainable::none(&model),
            };
            hook.set_training(None);
            (model, hook)
        }
    };
    Ok((model, hook))
}

/// The adapter in its base, in memory.
fn merged(
    args: &BenchGenerateArgs,
    place: &Place,
    adapter: &Path,
    max_length: usize,
) -> anyhow::Result<Model> {
    let fetched = hub_name(&args.base.model)
        .map(|name| {
            let need = sparsam_hub::Need::Model;
            from_hub::model(name, args.base.revision.as_deref(), &need, true)
        })
        .transpose()?;
    let name = match &fetched {
        Some(fetched) => fetched
            .folder
            .to_str()
            .context("the path of the cache is not UTF-8")?,
        None => &args.base.model,
    };
    let base = BaseFiles::open(name)?;
    if max_length > base.config.max_position_embeddings {
        return Err(too_long(max_length, base.config.max_position_embeddings).into());
    }
    let parts = Parts::read(adapter)?;
    let weights = base.merged(&parts, Quantize::None, None)?;
    let config = base.merged_config(&parts);
    let options = LoadOptions {
        quantize: args.quantize,
        dtype: DType::F32,
        max_length,
    };
    let loaded = Model::load_to(config, &weights, options, &place.device, DType::BF16);
    device::placed(loaded, &args.base.model, &place.device)
}

fn too_long(wanted: usize, most: usize) -> Failure {
    Failure::usage(format!(
        "a request and its answer have {wanted} tokens, the model reads at most {most}"
    ))
    .hint("lower `--prompt-tokens` or `--tokens`")
}

/// Requests of tokens from all over the vocabulary.
fn prompts(model: &Model, args: &BenchGenerateArgs) -> Vec<Vec<u32>> {
    let vocabulary = model.config.vocab_size as u64;
    (0..args.batch as u64)
        .map(|row| {
            (0..args.prompt_tokens as u64)
                .map(|place| ((place + 1) * 7919 + row * 104_729).rem_euclid(vocabulary) as u32)
                .collect()
        })
        .collect()
}

fn bench(
    args: &BenchGenerateArgs,
    place: &Place,
    record: &EnergyRecord,
    done: &Done,
) -> anyhow::Result<Bench> {
    let work = |name: &str, stretch: &Stretch| -> anyhow::Result<Work> {
        let window = record.windows.iter().find(|window| window.path == name);
        let energy_kwh = window.map_or(Range::ZERO, |window| window.energy_kwh);
        if energy_kwh.central <= 0.0 {
            return Err(Failure::run("no meter counted anything while the model answered")
                .hint("`sparsam doctor` says what can be measured here; a longer `--seconds` helps slow meters")
                .into());
        }
        Ok(Work {
            requests: stretch.requests,
            seconds: stretch.seconds,
            energy_kwh,
        })
    };
    let grams = record.intensity.g_per_kwh;
    let pue = record.pue.value;
    Ok(Bench {
        sparsam_inference: BENCH_VERSION,
        started: record.started.clone(),
        model: args.base.model.clone(),
        adapter: (!args.base.adapter.is_empty()).then(|| {
            let names = args.base.adapter.iter();
            let names: Vec<String> = names.map(|path| path.display().to_string()).collect();
            names.join(" + ")
        }),
        merged: args.merged,
        quantize: name_of(args.quantize).to_owned(),
        device: place.name(),
        hardware: record.hardware.line(),
        batch: args.batch as u64,
        prompt_tokens: args.prompt_tokens as u64,
        answer_tokens: args.tokens as u64,
        prefill: work(PREFILL, &done.prefill)?,
        answers: work(ANSWERS, &done.answers)?,
        g_per_kwh: Span {
            low: grams.low * pue,
            central: grams.central.map(|grams| grams * pue),
            high: grams.high * pue,
        },
        measured_share: record.measured_share,
    })
}

fn name_of(quantize: Quantize) -> &'static str {
    match quantize {
        Quantize::None => "none",
        Quantize::Int8 => "int8",
        Quantize::Nf4 => "nf4",
        Quantize::Nf4Double => "nf4-dq",
    }
}

/// The measurement and what follows from it for 1,000 tokens.
fn printed(bench: &Bench) -> serde_json::Value {
    let mut value = serde_json::json!(bench);
    let [all, reading, writing] = bench.thousand();
    value["per_1000_tokens"] = serde_json::json!({
        "all": all, "prefill": reading, "decode": writing,
        "emissions_g": accounting::operational_g(all.energy_kwh, 1.0, bench.g_per_kwh),
    });
    value
}

fn lines(bench: &Bench, folder: &Path) -> Vec<String> {
    let [all, reading, writing] = bench.thousand();
    let cost = |cost: Cost| {
        format!(
            "{}, {}",
            format::energy(cost.energy_kwh),
            format::duration(cost.seconds)
        )
    };
    let seconds = |cost: Cost| cost.seconds.max(f64::MIN_POSITIVE);
    let written = bench.batch as f64 / seconds(bench.token());
    let read = (bench.batch * bench.prompt_tokens) as f64 / seconds(bench.prompt());
    // A batch shares its time: what one request took of it is not how long it waited.
    vec![
        format!(
            "model      {}, {}, on {}",
            bench.model,
            bench.way(),
            bench.device
        ),
        format!(
            "requests   {} tokens read and {} written, {} at once; {} in {}",
            bench.prompt_tokens,
            bench.answer_tokens,
            bench.batch,
            bench.answers.requests,
            format::duration(bench.answers.seconds)
        ),
        format!("1,000 tok. {}", cost(all)),
        format!("  reading  {}", cost(reading)),
        format!("  writing  {}", cost(writing)),
        format!(
            "emissions  {} CO2e for 1,000 tokens",
            format::grams(accounting::operational_g(
                all.energy_kwh,
                1.0,
                bench.g_per_kwh
            ))
        ),
        format!(
            "speed      {} tokens/s written, {} tokens/s read",
            significant(written, 3),
            significant(read, 3)
        ),
        format!(
            "measured   {} of the energy, the whole machine, at rest or not",
            format::percent(bench.measured_share)
        ),
        format!(
            "files      {}: {}, {BENCH_FILE}",
            folder.display(),
            journal::FILE_NAME
        ),
    ]
}
