//! `sparsam bench`: trains on prepared batches and prints how fast, for `tests/peers`.
//!
//! A hidden command. It makes the steps that `tests/peers/peft_peer.py` makes, from the same files, so
//! that both programs do the same arithmetic and their losses can be compared: AdamW without decay,
//! schedule or clipping, every row a document, the mean loss over all of its next tokens.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use candle_core::DType;
use sparsam_adapter::error::Error;
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::{Input, differentiate};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::weights::Weights;
use sparsam_kernels::Documents;
use sparsam_kernels::adamw::AdamW;
use sparsam_kernels::cross_entropy::IGNORE;

use crate::args::{BenchArgs, BenchMethod};
use crate::device;
use crate::machine::peak_memory;

/// As the peer has them.
const RANK: usize = 16;
const ALPHA: f64 = 32.0;
const LEARNING_RATE: f64 = 2e-4;
/// Steps that are not counted.
const WARM_UP: usize = 2;

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let options = LoadOptions {
        quantize: args.quantize,
        dtype: args.dtype,
        max_length: args.seq,
    };
    let place = device::open(args.device)?;
    let mut model = Model::from_folder(&args.model, options)?;
    let name = args.model.display().to_string();
    device::put(&mut model, &name, &place.device, args.dtype)?;
    let mut trainable = match args.method {
        BenchMethod::Full => Trainable::full(&mut model)?,
        BenchMethod::Lora => lora(&mut model, &args.lora_init)?,
    };
    let settings = AdamW {
        lr: LEARNING_RATE,
        ..AdamW::default()
    };
    let mut optimizer = Optimizer::new(&trainable, settings, None)?;
    let batches = Prepared::read(&args.batches)?;
    let documents = Documents::from_lengths(&vec![args.seq; args.batch]);
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in 0..args.steps {
        let (ids, targets) = batches.step(step, args.batch, args.seq);
        let input = Input {
            ids: &ids,
            targets: &targets,
            documents: &documents,
        };
        let started = Instant::now();
        let count = (args.batch * (args.seq - 1)) as f64;
        trainable.set_training(Some(step as u64));
        let checkpointing = args.gradient_checkpointing;
        let loss = differentiate(&model, &mut trainable, input, 1.0 / count, checkpointing)?;
        optimizer.step(&trainable, LEARNING_RATE)?;
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(loss.sum / count);
    }
    let mut counted = seconds.split_off(WARM_UP.min(seconds.len() - 1));
    counted.sort_by(f64::total_cmp);
    let median = counted[counted.len() / 2];
    let figures = serde_json::json!({
        "tokens_per_second": (args.batch * args.seq) as f64 / median,
        "step_seconds": median,
        "peak_rss_mib": peak_memory().map(|bytes| bytes as f64 / (1024.0 * 1024.0)),
        "peak_device_mib": device::peak_mib(&place.device),
        "losses": losses,
    });
    writeln!(std::io::stdout().lock(), "{figures}")?;
    Ok(())
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

/// `ids` `[steps, rows, length]` of a safetensors file.
struct Prepared {
    ids: Vec<u32>,
    dims: (usize, usize, usize),
}

impl Prepared {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let files = SafetensorsFiles::open(&[path.to_owned()])?;
        let ids = files.tensor("ids")?;
        let dims = ids.dims3().map_err(Error::from)?;
        let ids = ids.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?;
        Ok(Self { ids, dims })
    }

    /// Ids and targets of a step's first rows and tokens.
    fn step(&self, step: usize, batch: usize, seq: usize) -> (Vec<u32>, Vec<u32>) {
        let (steps, rows, length) = self.dims;
        let first = step % steps * rows * length;
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        for row in self.ids[first..].chunks(length).take(batch.min(rows)) {
            let row = &row[..seq.min(length)];
            ids.extend_from_slice(row);
            targets.extend_from_slice(&row[1..]);
            targets.push(IGNORE);
        }
        (ids, targets)
    }
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

/// The type of a base, by the recipe's words.
pub(crate) fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32 or bf16".to_owned()),
    }
}
