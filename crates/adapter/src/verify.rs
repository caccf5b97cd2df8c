//! An adapter examined: does it belong to its base, does it do anything, and which programs can use it.
//!
//! That a program loads an adapter proves nothing. PEFT takes a file whose names lack its prefix, warns,
//! and answers as the base does; a wrong `lora_alpha` loads and computes something else. Everything that
//! can be seen in the files is looked at here, and all of it reported rather than the first fault found.
//! What can only be seen in logits is left to whoever has the model in memory.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::Serialize;
use sparsam_base::config::ModelConfig;
use sparsam_base::weights::Weights;

use crate::error::{Error, Result};
use crate::export::gguf_lora;
use crate::parts::Parts;
use crate::peft::{WEIGHTS_FILE, open_weights, read_config, registry_name};

pub mod programs;

pub use programs::{Answer, Program, Verdict};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gravity {
    /// Worth knowing.
    Note,
    /// Works, and is probably not what was meant.
    Warning,
    /// The adapter does not do what its settings say on this base.
    Fault,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub gravity: Gravity,
    /// One sentence.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What an adapter is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inventory {
    /// Low-rank branches.
    pub branches: usize,
    /// Number of branches by rank.
    pub ranks: BTreeMap<usize, usize>,
    /// Number of branches by scale.
    pub scales: Vec<(f64, usize)>,
    /// Parameters that replace the base's.
    pub whole: Vec<String>,
    /// Trained numbers.
    pub parameters: usize,
}

/// What an examination found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What there is, as far as the files could be read.
    pub inventory: Option<Inventory>,
    /// Tensors without any effect.
    pub without_effect: Vec<String>,
    /// Gravest first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether the adapter does on its base what its settings say.
    pub fn sound(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.gravity != Gravity::Fault)
    }

    /// Adds a finding.
    pub fn add(&mut self, gravity: Gravity, what: impl Into<String>, hint: Option<&str>) {
        self.findings.push(Finding {
            gravity,
            what: what.into(),
            hint: hint.map(str::to_owned),
        });
        self.findings
            .sort_by_key(|finding| std::cmp::Reverse(finding.gravity));
    }

    fn fault(&mut self, error: &Error) {
        self.add(Gravity::Fault, error.to_string(), error.hint().as_deref());
    }
}

/// The base that an adapter is held against.
pub struct Against<'a> {
    /// Its shape.
    pub config: &'a ModelConfig,
    /// Its tensors.
    pub weights: &'a dyn Weights,
    /// Their names.
    pub names: &'a [String],
}

/// Examines an adapter folder, against a base. The parts are given back where they could be read.
///
/// # Errors
/// A base that cannot be read; faults of the adapter are findings.
pub fn verify(folder: &Path, base: &Against) -> Result<(Report, Option<Parts>)> {
    let mut report = Report {
        inventory: None,
        without_effect: Vec::new(),
        findings: Vec::new(),
    };
    names(folder, &mut report);
    let parts = match Parts::read(folder) {
        Ok(parts) => parts,
        Err(error) => {
            // The same fault was found by its name already.
            if report.sound() {
                report.fault(&error);
            }
            return Ok((report, None));
        }
    };
    report.inventory = Some(inventory(&parts));
    numbers(&parts, &mut report)?;
    against(&parts, base, &mut report)?;
    Ok((report, Some(parts)))
}

/// Settings that cannot be read, and every tensor whose name PEFT would not apply.
fn names(folder: &Path, report: &mut Report) {
    if let Err(error) = read_config(folder) {
        report.fault(&error);
    }
    let path = folder.join(WEIGHTS_FILE);
    let files = match open_weights(&path) {
        Ok(files) => files,
        Err(error) => return report.fault(&error),
    };
    let mut wrong: BTreeMap<String, (usize, Error)> = BTreeMap::new();
    for name in files.names() {
        if let Err(error) = registry_name(&path, name) {
            let kind = error.hint().unwrap_or_default();
            wrong.entry(kind).or_insert((0, error)).0 += 1;
        }
    }
    for (count, error) in wrong.values() {
        let more = match count - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let hint = error.hint();
        report.add(Gravity::Fault, format!("{error}{more}"), hint.as_deref());
    }
}

fn inventory(parts: &Parts) -> Inventory {
    let mut ranks = BTreeMap::new();
    let mut scales: Vec<(f64, usize)> = Vec::new();
    let mut parameters = 0;
    for branch in parts.branches.values() {
        *ranks.entry(branch.rank()).or_default() += 1;
        match scales.iter_mut().find(|(scale, _)| *scale == branch.scale) {
            Some((_, count)) => *count += 1,
            None => scales.push((branch.scale, 1)),
        }
        let magnitude = branch.magnitude.as_ref().map_or(0, Tensor::elem_count);
        parameters += branch.a.elem_count() + branch.b.elem_count() + magnitude;
    }
    parameters += parts.whole.values().map(Tensor::elem_count).sum::<usize>();
    Inventory {
        branches: parts.branches.len(),
        ranks,
        scales,
        whole: parts.whole.keys().cloned().collect(),
        parameters,
    }
}

/// Numbers that are not finite, scales of zero.
fn numbers(parts: &Parts, report: &mut Report) -> Result<()> {
    let mut all: Vec<(String, &Tensor)> = Vec::new();
    for (module, branch) in &parts.branches {
        all.push((format!("{module}.lora_A.weight"), &branch.a));
        all.push((format!("{module}.lora_B.weight"), &branch.b));
        if let Some(magnitude) = &branch.magnitude {
            all.push((format!("{module}.lora_magnitude_vector"), magnitude));
        }
        if branch.scale == 0.0 {
            let what = format!("the branch on `{module}` has a scale of 0 and no effect");
            report.add(Gravity::Fault, what, Some("look at `lora_alpha`"));
        }
    }
    all.extend(
        parts
            .whole
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor)),
    );
    for (name, tensor) in all {
        // The sum of magnitudes is finite only if they all are.
        let sum = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?;
        if !sum.to_scalar::<f64>()?.is_finite() {
            let what = format!("`{name}` holds numbers that are not finite");
            let hint = "training has diverged, train again with a lower learning rate";
            report.add(Gravity::Fault, what, Some(hint));
        }
    }
    Ok(())
}

/// Modules and shapes of the base, and what changes nothing of it.
fn against(parts: &Parts, base: &Against, report: &mut Report) -> Result<()> {
    let other = Some("the adapter may have been trained on another base model");
    let tied = base.config.tie_word_embeddings;
    let known = |name: &str| {
        use sparsam_base::model::{EMBEDDING, HEAD};
        let stored = if tied && name == HEAD {
            EMBEDDING
        } else {
            name
        };
        base.names
            .iter()
            .any(|n| n == stored)
            .then(|| stored.to_owned())
    };
    let mut silent = Vec::new();
    for (module, branch) in &parts.branches {
        let name = format!("{module}.weight");
        let Some(stored) = known(&name) else {
            report.add(
                Gravity::Fault,
                format!("`{module}` is not in the base model"),
                other,
            );
            continue;
        };
        let weight = base.weights.tensor(&stored)?;
        let (out, input) = branch.dims();
        if weight.dims() != [out, input] {
            let what = format!(
                "the branch on `{module}` is for a weight of [{out}, {input}], in the base it is {:?}",
                weight.dims()
            );
            report.add(Gravity::Fault, what, other);
            continue;
        }
        let silent_branch = match &branch.magnitude {
            None => branch.is_zero()?,
            Some(_) => unchanged(&branch.merge(&weight)?, &weight)?,
        };
        if silent_branch {
            silent.push(module.clone());
        }
    }
    for (name, tensor) in &parts.whole {
        let Some(stored) = known(name) else {
            report.add(
                Gravity::Fault,
                format!("`{name}` is not in the base model"),
                other,
            );
            continue;
        };
        let weight = base.weights.tensor(&stored)?;
        if weight.dims() != tensor.dims() {
            let what = format!(
                "`{name}` has shape {:?}, in the base it is {:?}",
                tensor.dims(),
                weight.dims()
            );
            report.add(Gravity::Fault, what, other);
        } else if unchanged(tensor, &weight)? {
            silent.push(name.clone());
        }
    }
    missing(parts, base.names, report)?;
    let all = parts.branches.len() + parts.whole.len();
    if !silent.is_empty() {
        let (gravity, what) = if silent.len() == all {
            (
                Gravity::Fault,
                "the adapter changes nothing of its base".to_owned(),
            )
        } else {
            let what = format!(
                "{} of {all} tensors change nothing, `{}` for one",
                silent.len(),
                silent[0]
            );
            (Gravity::Warning, what)
        };
        let hint = "it was saved before the first step, or its B matrices were never trained";
        report.add(gravity, what, Some(hint));
    }
    report.without_effect = silent;
    if gguf_lora::alpha(parts) != parts.config.lora.lora_alpha {
        let what = "`lora_alpha` is 0, which llama.cpp would take for a scale of 1";
        report.add(Gravity::Warning, what, None);
    }
    Ok(())
}

/// Equal up to rounding: a norm measured again differs in its last bits.
fn unchanged(one: &Tensor, other: &Tensor) -> candle_core::Result<bool> {
    let other = other.to_dtype(DType::F32)?;
    let largest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let size = largest(&other)?;
    Ok(largest(&(one - other)?)? <= size * 1e-6)
}

/// Modules that the settings adapt and the file does not.
fn missing(parts: &Parts, names: &[String], report: &mut Report) -> Result<()> {
    let lora = &parts.config.lora;
    let mut missing = Vec::new();
    for module in names.iter().filter_map(|name| name.strip_suffix(".weight")) {
        if module.ends_with("_proj")
            && lora.branch(module)?.is_some()
            && !parts.branches.contains_key(module)
        {
            missing.push(module);
        }
    }
    if let Some(first) = missing.first() {
        let what = format!(
            "the settings adapt {} modules of the base that the file has nothing for, `{first}` for one",
            missing.len()
        );
        let hint = "PEFT would leave them without effect; the file may be of another base";
        report.add(Gravity::Fault, what, Some(hint));
    }
    Ok(())
}
