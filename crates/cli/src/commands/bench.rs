//! `sparsam bench`: trains on prepared batches and prints how fast, for `tests/peers`.
//!
//! A hidden command. It makes the steps that `tests/peers/peft_peer.py` makes, from the same files, so
//! that both programs do the same arithmetic and their losses can be compared: AdamW without decay,
//! schedule or clipping, every row a document, the mean loss over all of its next tokens, or with `--rows` over
//! those of its answer.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::optimizer::{Optimizer, StateType, checked_norm};
use sparsam_adapter::pass::{Input, begin, checked_loss};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::weights::Weights;
use sparsam_kernels::Documents;
use sparsam_kernels::adamw::AdamW;
use sparsam_kernels::awake::awake;
use sparsam_kernels::cross_entropy::IGNORE;
use sparsam_tracker::meter::nvml::{GpuMeter, Library};
use sparsam_tracker::meter::{EnergyMeter as _, Roots};

use crate::args::{BenchArgs, BenchMethod};
use crate::device;
use crate::error::Failure;
use crate::machine::peak_memory;

/// As the peer has them.
const RANK: usize = 16;
const ALPHA: f64 = 32.0;
const LEARNING_RATE: f64 = 2e-4;
/// Steps that are not counted.
const WARM_UP: usize = 2;

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let batches = match &args.rows {
        Some(rows) => Prepared::rows(rows)?,
        None => Prepared::read(&args.batches)?,
    };
    let options = LoadOptions {
        quantize: args.quantize,
        dtype: args.dtype,
        max_length: batches.longest(args.seq),
    };
    let place = device::open(args.device)?;
    let began = Instant::now();
    let loaded = Model::from_folder_to(&args.model, options, &place.device, args.dtype);
    let mut model = device::placed(loaded, &args.model.display().to_string(), &place.device)?;
    place.device.synchronize()?;
    let (load_seconds, load_rss) = (began.elapsed().as_secs_f64(), peak_memory());
    if let Some(note) = device::attention_note(&model) {
        writeln!(std::io::stderr().lock(), "note: {note}")?;
    }
    let mut trainable = match args.method {
        BenchMethod::Full => Trainable::full(&mut model)?,
        BenchMethod::Lora => lora(&mut model, &args.lora_init)?,
    };
    let settings = AdamW {
        lr: LEARNING_RATE,
        ..AdamW::default()
    };
    let mut optimizer = Optimizer::with_state(&trainable, settings, None, args.optim)?;
    let (mut losses, mut seconds, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    let warm_up = WARM_UP.min(args.steps.saturating_sub(1));
    let origin = Instant::now();
    let mut meter = gpu_meter(&place.device);
    let mut joules = || -> Option<f64> {
        let reading = meter.as_mut()?.read(origin.elapsed()).ok()?;
        Some(reading.joules.iter().map(|of_gpu| of_gpu.central).sum())
    };
    let mut before = None;
    for step in 0..args.steps {
        if step == warm_up {
            before = joules();
        }
        let (ids, targets, lengths) = batches.step(step, args.batch, args.seq);
        let documents = Documents::from_lengths(&lengths);
        let input = Input {
            ids: &ids,
            targets: &targets,
            documents: &documents,
        };
        let started = Instant::now();
        let count = targets.iter().filter(|target| **target != IGNORE).count() as f64;
        trainable.set_training(Some(step as u64));
        let checkpointing = args.gradient_checkpointing.way();
        let loss = awake(&place.device, || -> anyhow::Result<_> {
            let loss = begin(&model, &mut trainable, input, 1.0 / count, checkpointing)?;
            let norm = optimizer.begin_step(&trainable, LEARNING_RATE)?;
            let loss = checked_loss(loss)?;
            checked_norm(&norm)?;
            Ok(loss)
        })?;
        place.device.synchronize()?;
        seconds.push(started.elapsed().as_secs_f64());
        tokens.push(ids.len());
        losses.push(loss.sum / count);
    }
    let first_step = seconds.first().copied();
    let drawn = before.zip(joules()).map(|(before, after)| after - before);
    let (mut counted, tokens) = (seconds.split_off(warm_up), tokens.split_off(warm_up));
    let sum: f64 = counted.iter().sum();
    counted.sort_by(f64::total_cmp);
    let median = counted[counted.len() / 2];
    // Steps of one size are as fast as the median one; others have to be added up.
    let rate = match args.rows {
        Some(_) => tokens.iter().sum::<usize>() as f64 / sum,
        None => tokens[0] as f64 / median,
    };
    let figures = serde_json::json!({
        "tokens_per_second": rate,
        "step_seconds": median,
        "load_seconds": load_seconds,
        "load_peak_rss_mib": load_rss.map(|bytes| bytes as f64 / (1024.0 * 1024.0)),
        "first_step_seconds": first_step,
        "peak_rss_mib": peak_memory().map(|bytes| bytes as f64 / (1024.0 * 1024.0)),
        "peak_device_mib": device::peak_gpu_memory().map(|bytes| bytes as f64 / (1024.0 * 1024.0)),
        "joules_per_token": drawn.map(|drawn| drawn / tokens.iter().sum::<usize>() as f64),
        "losses": losses,
    });
    writeln!(std::io::stdout().lock(), "{figures}")?;
    Ok(())
}

/// A meter of all GPUs of the machine, where the work is on one and its driver counts what they draw.
fn gpu_meter(device: &Device) -> Option<GpuMeter> {
    if device.is_cpu() {
        return None;
    }
    let library = Library::load(&Roots::from_env()).ok()?;
    Some(library.meter(&library.gpus().ok()?, Duration::ZERO))
}

/// An adapter on all projections that begins with the peer's A matrices.
fn lora(model: &mut Model, init: &Path) -> anyhow::Result<Trainable> {
    let config = LoraConfig {
        r: RANK,
        lora_alpha: ALPHA,
        ..LoraConfig::default()
    };
    let mut trainable = Trainable::lora(model, &config, 0)?;
    let files = SafetensorsFiles::open(&[init.to_owned()])?;
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    for stored in names {
        let name = stored
            .trim_start_matches("base_model.model.")
            .replace(".default.weight", ".weight");
        trainable.set(&name, &files.tensor(&stored)?)?;
    }
    Ok(trainable)
}

/// What is trained on.
enum Prepared {
    /// `ids` `[steps, rows, length]` of a safetensors file.
    Even {
        ids: Vec<u32>,
        dims: (usize, usize, usize),
    },
    /// Rows of uneven length, each with the place of the first token that is learned.
    Uneven(Vec<(Vec<u32>, usize)>),
}

impl Prepared {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let files = SafetensorsFiles::open(&[path.to_owned()])?;
        let ids = files.tensor("ids")?;
        let Ok(dims) = ids.dims3() else {
            let what = format!(
                "`ids` of `{}` has the shape {:?}",
                path.display(),
                ids.dims()
            );
            let hint =
                "`--batches` are of steps, rows and tokens; rows of uneven length go to `--rows`";
            return Err(Failure::usage(what).hint(hint).into());
        };
        let ids = numbers(&files, "ids")?;
        Ok(Self::Even { ids, dims })
    }

    /// `ids` `[tokens]`, `lengths` and `begins` `[rows]` of a safetensors file.
    fn rows(path: &Path) -> anyhow::Result<Self> {
        let files = SafetensorsFiles::open(&[path.to_owned()])?;
        let ids = numbers(&files, "ids")?;
        let mut rest = ids.as_slice();
        let mut rows = Vec::new();
        for (length, begin) in numbers(&files, "lengths")?
            .into_iter()
            .zip(numbers(&files, "begins")?)
        {
            let Some((row, others)) = rest.split_at_checked(length as usize) else {
                anyhow::bail!("`{}` has fewer ids than its lengths say", path.display());
            };
            rows.push((row.to_vec(), begin as usize));
            rest = others;
        }
        Ok(Self::Uneven(rows))
    }

    /// Tokens of the longest row; of even ones no more than `seq` are taken.
    fn longest(&self, seq: usize) -> usize {
        match self {
            Self::Even { .. } => seq,
            Self::Uneven(rows) => rows.iter().map(|(row, _)| row.len()).max().unwrap_or(1),
        }
    }

    /// Ids, targets and lengths of a step's rows; of even ones the first, and their first tokens. Where more or longer
    /// ones are asked for than there are, all ids are one long row that is cut anew.
    fn step(&self, step: usize, batch: usize, seq: usize) -> (Vec<u32>, Vec<u32>, Vec<usize>) {
        let rows: Vec<(Cow<[u32]>, usize)> = match self {
            Self::Even {
                ids,
                dims: (_, rows, length),
            } if batch > *rows || seq > *length => {
                let start = step * batch * seq % ids.len();
                let mut all = ids.iter().copied().cycle().skip(start);
                let mut row = || Cow::Owned(all.by_ref().take(seq).collect());
                (0..batch).map(|_| (row(), 0)).collect()
            }
            Self::Even { ids, dims } => {
                let (steps, rows, length) = *dims;
                let rows = ids[step % steps * rows * length..].chunks(length);
                let first = rows.take(batch).map(|row| Cow::Borrowed(&row[..seq]));
                first.map(|row| (row, 0)).collect()
            }
            Self::Uneven(rows) => {
                let rows = rows
                    .iter()
                    .cycle()
                    .skip(step * batch % rows.len())
                    .take(batch);
                rows.map(|(row, begin)| (Cow::Borrowed(row.as_slice()), *begin))
                    .collect()
            }
        };
        let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for (row, begin) in rows {
            ids.extend_from_slice(&row);
            lengths.push(row.len());
            let next = row.iter().enumerate().skip(1);
            targets.extend(next.map(|(place, id)| if place >= begin { *id } else { IGNORE }));
            targets.push(IGNORE);
        }
        (ids, targets, lengths)
    }
}

/// Whole numbers of a file.
fn numbers(files: &SafetensorsFiles, name: &str) -> anyhow::Result<Vec<u32>> {
    let numbers = files.tensor(name)?.to_dtype(DType::U32)?;
    Ok(numbers.flatten_all()?.to_vec1()?)
}

/// The kind of a base in memory, by the recipe's words.
pub(crate) fn quantize(text: &str) -> Result<Quantize, String> {
    match text {
        "none" => Ok(Quantize::None),
        "int8" => Ok(Quantize::Int8),
        "nf4" => Ok(Quantize::Nf4),
        "nf4-dq" => Ok(Quantize::Nf4Double),
        _ => Err("expected none, int8, nf4 or nf4-dq".to_owned()),
    }
}

/// How moments are kept, by the recipe's words.
pub(crate) fn optim(text: &str) -> Result<StateType, String> {
    match text {
        "adamw" => Ok(StateType::F32),
        "adamw_8bit" => Ok(StateType::EightBit),
        _ => Err("expected adamw or adamw_8bit".to_owned()),
    }
}

/// The type of a base, by the recipe's words.
pub(crate) fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32 or bf16".to_owned()),
    }
}
