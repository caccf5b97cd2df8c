//! `sparsam verify`: an adapter held against its base, and what other programs make of it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use candle_core::DType;
use serde::Serialize;
use sparsam_adapter::merge::{Drift, drift};
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_adapter::verify::{Against, Answer, Gravity, Report, Verdict, programs, verify};
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_kernels::Documents;

use super::merge::base_name;
use crate::args::formats::VerifyArgs;
use crate::base_files::BaseFiles;
use crate::error::Failure;
use crate::figures::{significant, thousands};
use crate::probe_file::{PROMPT, ProbeFile};
use crate::recipe::Dtype;
use crate::run::quantize_of;
use crate::run_record::RunRecord;
use crate::terminal::{Paint, paint_stdout};

/// Everything that is said.
#[derive(Serialize)]
struct Verification {
    adapter: String,
    base: String,
    /// Whether the adapter does on its base what its settings say.
    sound: bool,
    /// Hash of the base's weights, and the one the adapter was trained on where its run has noted it.
    base_blake3: String,
    trained_on_blake3: Option<String>,
    /// What the adapter does to the logits of a probe prompt.
    effect: Option<Effect>,
    /// How the logits that were stored with the adapter compare with those it gives on this base.
    probe: Option<Probed>,
    #[serde(flatten)]
    report: Report,
    verdicts: Vec<Verdict>,
}

#[derive(Serialize)]
struct Probed {
    /// Logits that were compared.
    logits: usize,
    /// The largest difference; none where the base reads the prompt otherwise.
    largest_difference: Option<f64>,
    /// What is within rounding, for the type and the quantisation that the adapter was trained with.
    allowed: f64,
}

#[derive(Serialize)]
struct Effect {
    tokens: usize,
    largest: f64,
    mean: f64,
    same_first_choice: usize,
}

impl From<Drift> for Effect {
    fn from(drift: Drift) -> Self {
        Self {
            tokens: drift.tokens,
            largest: drift.largest,
            mean: drift.mean,
            same_first_choice: drift.same_choice,
        }
    }
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    if !args.adapter.is_dir() {
        return Err(
            Failure::usage(format!("there is no folder `{}`", args.adapter.display()))
                .hint("an adapter folder holds adapter_config.json and adapter_model.safetensors")
                .into(),
        );
    }
    let name = match &args.base {
        Some(base) => base.clone(),
        None => base_name(None, &peft::read_config(&args.adapter)?, &args.adapter)?,
    };
    let base = BaseFiles::open(&name)?;
    let names = base.names();
    let against = Against {
        config: &base.config,
        weights: base.weights(),
        names: &names,
    };
    let (mut report, parts) = verify(&args.adapter, &against)?;

    let base_blake3 = base.blake3()?;
    let record = RunRecord::beside(&args.adapter)?;
    let trained_on = record.as_ref().map(|record| record.base.blake3.clone());
    match &trained_on {
        Some(trained_on) if *trained_on != base_blake3 => report.add(
            Gravity::Warning,
            format!("the files of `{name}` are not those that the adapter was trained on"),
            Some("the same weights stored in another way are fine, others are not"),
        ),
        Some(_) => {}
        None => report.add(
            Gravity::Note,
            "nothing says which weights the adapter was trained on, there is no run.json beside it",
            None,
        ),
    }
    let mut effect = None;
    let mut probe = None;
    if report.sound() {
        if let Some(probed) = probed(args, &base, record.as_ref())? {
            let same_base = trained_on.as_ref() == Some(&base_blake3);
            judge(&probed, same_base, &mut report);
            probe = Some(probed);
        }
        effect = measured(args, &base)?;
        if effect.as_ref().is_some_and(|effect| effect.largest == 0.0) {
            report.add(Gravity::Fault, "the adapter changes no logit", None);
        }
    }
    let verdicts = match &parts {
        Some(parts) if report.sound() => programs::verdicts(parts, &base.config),
        _ => programs::none("the adapter has a fault, see above"),
    };
    let verification = Verification {
        adapter: args.adapter.display().to_string(),
        base: name,
        sound: report.sound(),
        base_blake3,
        trained_on_blake3: trained_on,
        effect,
        probe,
        report,
        verdicts,
    };
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&verification)?)
    } else {
        screen(&verification, paint_stdout())
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(if verification.sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Rounding of logits in f32, on another processor or with another number of threads.
const ROUNDING: f64 = 2e-3;
/// The same where numbers are bf16 or quantised.
const COARSE_ROUNDING: f64 = 0.2;

/// Computes the stored logits again, on the base as the adapter was trained on it; nothing where none are stored.
fn probed(
    args: &VerifyArgs,
    base: &BaseFiles,
    record: Option<&RunRecord>,
) -> anyhow::Result<Option<Probed>> {
    let Some((probe, tokenizer)) = ProbeFile::read(&args.adapter)?.zip(base.tokenizer()?) else {
        return Ok(None);
    };
    let quantize = record.map_or(Quantize::None, |record| quantize_of(&record.recipe));
    let bf16 = record.is_some_and(|record| record.recipe.dtype == Dtype::Bf16);
    let options = LoadOptions {
        quantize,
        dtype: if bf16 { DType::BF16 } else { DType::F32 },
        max_length: probe.ids.len(),
    };
    let mut model = Model::load(base.config.clone(), base.weights(), options)?;
    let (mut hook, _) = peft::load(&args.adapter, &mut model, 0)?;
    let coarse = bf16 || quantize != Quantize::None;
    Ok(Some(Probed {
        logits: probe.positions.iter().map(|at| at.logits.len()).sum(),
        largest_difference: probe.differs(&model, &mut hook, &tokenizer)?,
        allowed: if coarse { COARSE_ROUNDING } else { ROUNDING },
    }))
}

/// What follows from the stored logits.
fn judge(probed: &Probed, same_base: bool, report: &mut Report) {
    match probed.largest_difference {
        Some(largest) if largest <= probed.allowed => {}
        Some(largest) => report.add(
            if same_base {
                Gravity::Fault
            } else {
                Gravity::Warning
            },
            format!(
                "the logits stored when it was trained are not reproduced: they differ by up to {}",
                significant(largest, 2)
            ),
            Some(if same_base {
                "one of the adapter's files was changed or damaged; copy it again from where it was trained"
            } else {
                "name the base that it was trained on with `--base`"
            }),
        ),
        None => report.add(
            Gravity::Warning,
            "the base's tokenizer reads the probe prompt otherwise than when the adapter was trained",
            Some("name the base that it was trained on with `--base`"),
        ),
    }
}

/// What the adapter does to the logits of the probe prompt; nothing where the base has no tokenizer.
fn measured(args: &VerifyArgs, base: &BaseFiles) -> anyhow::Result<Option<Effect>> {
    let Some(tokenizer) = base.tokenizer()? else {
        return Ok(None);
    };
    let mut ids = tokenizer.encode(PROMPT, true)?;
    ids.truncate(base.config.max_position_embeddings);
    let norm = base.weights().tensor("model.norm.weight")?;
    let options = LoadOptions {
        quantize: Quantize::None,
        dtype: match norm.dtype() {
            DType::BF16 => DType::BF16,
            _ => DType::F32,
        },
        max_length: ids.len(),
    };
    let mut model = Model::load(base.config.clone(), base.weights(), options)?;
    let documents = Documents::single(ids.len());
    let plain = model.logits(&ids, &documents, &mut Trainable::none(&model))?;
    let (mut hook, _) = peft::load(&args.adapter, &mut model, 0)?;
    hook.set_training(None);
    let adapted = model.logits(&ids, &documents, &mut hook)?;
    Ok(Some(drift(&plain, &adapted)?.into()))
}

fn screen(verification: &Verification, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |label: &str, rest: &str| {
        let _ = writeln!(text, "{}{rest}", paint.bold(&format!("{label:<11}")));
    };
    let Verification { report, .. } = verification;
    line("adapter", &verification.adapter);
    let known = match &verification.trained_on_blake3 {
        Some(hash) if *hash == verification.base_blake3 => ", the weights it was trained on",
        _ => "",
    };
    line("base", &format!("{}{known}", verification.base));
    if let Some(inventory) = &report.inventory {
        let mut parts = vec![format!("{} branches", inventory.branches)];
        let list = |values: Vec<String>| values.join(", ");
        parts.push(format!(
            "rank {}",
            list(inventory.ranks.keys().map(usize::to_string).collect())
        ));
        let scales = inventory
            .scales
            .iter()
            .map(|(scale, _)| ((scale * 1e4).round() / 1e4).to_string());
        parts.push(format!("scale {}", list(scales.collect())));
        if !inventory.whole.is_empty() {
            parts.push(format!("{} whole tensors", inventory.whole.len()));
        }
        parts.push(format!(
            "{} numbers",
            thousands(inventory.parameters as u64)
        ));
        line("holds", &parts.join(", "));
    }
    if let Some(effect) = &verification.effect {
        let moved = effect.tokens - effect.same_first_choice;
        line(
            "effect",
            &format!(
                "moves logits by {} at most, {} on average, and the first choice at {moved} of {} tokens",
                significant(effect.largest, 2),
                significant(effect.mean, 2),
                effect.tokens
            ),
        );
    }
    if let Some(probe) = &verification.probe
        && let Some(largest) = probe.largest_difference
    {
        line(
            "probe",
            &format!(
                "{} logits stored when it was trained are within {} of those computed now",
                probe.logits,
                significant(largest, 2)
            ),
        );
    }
    for finding in &report.findings {
        let (label, what) = match finding.gravity {
            Gravity::Fault => ("fault", paint.red(&finding.what)),
            Gravity::Warning => ("warning", finding.what.clone()),
            Gravity::Note => ("note", paint.dim(&finding.what)),
        };
        line(label, &what);
        if let Some(hint) = &finding.hint {
            line("", &format!("{} {hint}", paint.cyan("hint:")));
        }
    }
    for verdict in &verification.verdicts {
        let answer = match verdict.answer {
            Answer::Yes | Answer::Exported => paint.green("yes"),
            Answer::No => paint.red("no"),
        };
        line(
            verdict.program.name(),
            &format!("{answer}: {}", verdict.reason),
        );
    }
    text
}
