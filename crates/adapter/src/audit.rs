//! An audit of what a run trains: everything that should learn gets a gradient, all else stays as it is.
//!
//! [`audit`] takes one batch forward and back, without an update, and looks at both sides. A trained
//! tensor without a gradient would stay where it began and no loss curve would tell; a frozen tensor that
//! changed would leave an adapter that fits no base. The matrices `A` of a fresh adapter are the one
//! lawful exception: while `B` is zero nothing reaches them, and the gradient of `B` speaks for both.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use sparsam_base::model::{EMBEDDING, HEAD, Model};
use sparsam_base::projection::Hook as _;
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::Weight;
use sparsam_kernels::cross_entropy::IGNORE;
use sparsam_kernels::host::{fetch, view};

use crate::error::{Error, Result};
use crate::pass::{Input, differentiate};
use crate::trainable::Trainable;

/// What an audit found.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Mean loss of the batch, in nats.
    pub loss: f64,
    /// Norm of the gradient of every trained tensor, by its name.
    pub gradients: BTreeMap<String, f64>,
    /// Number of the base's tensors that are not trained.
    pub frozen: usize,
    /// Memory of those, as stored, in bytes.
    pub frozen_bytes: usize,
    /// Matrices `A` without a gradient because their `B`, which has one, is zero.
    pub waiting: Vec<String>,
    /// Trained tensors without a gradient and without that excuse.
    pub silent: Vec<String>,
    /// Tensors, frozen or trained, whose numbers the pass changed.
    pub changed: Vec<String>,
}

impl Audit {
    /// Whether nothing is amiss.
    ///
    /// # Errors
    /// What is amiss, with the first tensor it concerns.
    pub fn verdict(&self) -> Result<()> {
        if let Some(name) = self.silent.first() {
            return Err(Error::training(
                format!(
                    "`{name}` is to be trained but gets no gradient ({} such tensors)",
                    self.silent.len()
                ),
                "a batch in which all targets are masked gives none; otherwise this is a defect of \
                 the program",
            ));
        }
        if let Some(name) = self.changed.first() {
            return Err(Error::training(
                format!("`{name}` was changed by a pass that updates nothing"),
                "this is a defect of the program",
            ));
        }
        Ok(())
    }
}

/// Takes a batch forward and back without dropout and reports on every tensor. Gradients are cleared
/// before and after.
///
/// # Errors
/// An operation on tensors failed, or the loss is not a number.
pub fn audit(model: &Model, trainable: &mut Trainable, input: Input) -> Result<Audit> {
    let frozen: Vec<(String, Parameter)> = parameters(model, trainable)
        .into_iter()
        .filter(|(name, _)| trainable.accumulator(name).is_none())
        .collect();
    let before = hashes(&frozen, trainable)?;
    trainable.set_training(None);
    trainable.clear_gradients()?;
    let targets = input.targets.iter().filter(|target| **target != IGNORE);
    let targets = targets.count().max(1) as f64;
    let loss = differentiate(
        model,
        trainable,
        input,
        1.0 / targets,
        Checkpointing::Blocks,
    )?;
    let mut gradients = BTreeMap::new();
    for (name, trained) in trainable.registry() {
        gradients.insert(name.clone(), norm(&trained.grad)?);
    }
    trainable.clear_gradients()?;
    let after = hashes(&frozen, trainable)?;

    let (mut waiting, mut silent) = (Vec::new(), Vec::new());
    for (name, gradient) in &gradients {
        if *gradient > 0.0 {
            continue;
        }
        if waits(name, trainable, &gradients)? {
            waiting.push(name.clone());
        } else {
            silent.push(name.clone());
        }
    }
    let same = |(name, hash): &(&String, &blake3::Hash)| after.get(*name) == Some(*hash);
    let changed = before.iter().filter(|entry| !same(entry));
    Ok(Audit {
        loss: loss.sum / targets,
        changed: changed.map(|(name, _)| name.clone()).collect(),
        frozen: frozen.len(),
        frozen_bytes: frozen.iter().map(|(_, p)| p.bytes()).sum(),
        gradients,
        waiting,
        silent,
    })
}

/// Whether a tensor is an `A` whose `B` is zero and learns.
fn waits(name: &str, trainable: &Trainable, gradients: &BTreeMap<String, f64>) -> Result<bool> {
    let Some(module) = name.strip_suffix(".lora_A.weight") else {
        return Ok(false);
    };
    let b = format!("{module}.lora_B.weight");
    let Some(trained) = trainable.registry().get(&b) else {
        return Ok(false);
    };
    Ok(norm(&trained.value)? == 0.0 && gradients.get(&b).is_some_and(|gradient| *gradient > 0.0))
}

fn norm(tensor: &Tensor) -> Result<f64> {
    let values = fetch(tensor)?;
    let values = view::<f32>(&values)?;
    let squares = values.iter().map(|value| f64::from(*value).powi(2));
    Ok(squares.sum::<f64>().sqrt())
}

/// A parameter of the base in its stored form.
enum Parameter<'a> {
    Matrix(&'a Weight),
    Vector(&'a Tensor),
}

impl Parameter<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Matrix(weight) => weight.bytes(),
            Self::Vector(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        }
    }

    /// Hash of its numbers, row by row as f32, which every stored form gives exactly.
    fn hash(&self) -> candle_core::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let mut take = |values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            hasher.update(&bytes);
        };
        let weight = match self {
            Self::Vector(tensor) => {
                take(&view::<f32>(&fetch(tensor)?)?);
                return Ok(hasher.finalize());
            }
            Self::Matrix(weight) => weight,
        };
        let there = match weight {
            Weight::Dense(tensor) => !tensor.device().is_cpu(),
            Weight::OnDevice(_) => true,
            _ => false,
        };
        if there {
            take(&view::<f32>(&fetch(&weight.dequantize()?)?)?);
            return Ok(hasher.finalize());
        }
        weight.with_rows::<f32, _>(|rows| {
            let mut row = vec![0f32; rows.columns()];
            for index in 0..rows.rows() {
                rows.fill(index, 0..rows.columns(), &mut row);
                take(&row);
            }
            Ok(())
        })?;
        Ok(hasher.finalize())
    }
}

/// All parameters of a model by name. A tied head is the embedding and not listed beside it, unless the
/// embedding is trained and may have parted from it.
fn parameters<'a>(model: &'a Model, trainable: &Trainable) -> Vec<(String, Parameter<'a>)> {
    let mut list = vec![(EMBEDDING.to_owned(), Parameter::Matrix(&model.embedding))];
    if !model.config.tie_word_embeddings || trainable.accumulator(EMBEDDING).is_some() {
        list.push((HEAD.to_owned(), Parameter::Matrix(&model.head)));
    }
    let mut norms = vec![&model.norm];
    for block in &model.blocks {
        norms.extend(block.norms());
        for projection in [&block.qkv, &block.o, &block.gate_up, &block.down]
            .into_iter()
            .flat_map(|group| &group.projections)
        {
            let name = &projection.name;
            let weight = Parameter::Matrix(&projection.weight);
            list.push((format!("{name}.weight"), weight));
            if let Some(bias) = &projection.bias {
                list.push((format!("{name}.bias"), Parameter::Vector(bias)));
            }
        }
    }
    list.extend(
        norms
            .into_iter()
            .map(|norm| (norm.name.clone(), Parameter::Vector(&norm.weight))),
    );
    list
}

/// Hashes of what is frozen and of what is trained.
fn hashes(
    frozen: &[(String, Parameter)],
    trainable: &Trainable,
) -> Result<BTreeMap<String, blake3::Hash>> {
    let trained = trainable.registry().iter();
    let trained = trained.map(|(name, trained)| (name, Parameter::Vector(&trained.value)));
    let trained: Vec<_> = trained.collect();
    let all = frozen.par_iter().map(|(name, parameter)| (name, parameter));
    let all = all.chain(
        trained
            .par_iter()
            .map(|(name, parameter)| (*name, parameter)),
    );
    let hashes: candle_core::Result<Vec<_>> = all
        .map(|(name, parameter)| Ok((name.clone(), parameter.hash()?)))
        .collect();
    Ok(hashes?.into_iter().collect())
}
