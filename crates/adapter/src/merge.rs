//! An adapter merged into its base: `W + s B A` for every adapted weight, trained parameters in the
//! place of the base's own.
//!
//! [`Merged`] is a base seen through an adapter. It gives one tensor at a time, merged when it is asked
//! for, so that a model in memory ([`sparsam_base::model::Model::load`]) and a checkpoint on the disk
//! ([`write`]) are made of the same numbers and neither needs the whole model beside it.
//!
//! **Which base.** An adapter trained on a quantised base has learned to correct what quantisation did
//! to the weights. Merged into the weights as they were before, it corrects an error that is not there;
//! merged into the dequantised ones it reproduces what was trained. Either can serve better, and
//! [`drift`] says by how much they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use sparsam_base::error::Error as BaseError;
use sparsam_base::files::shards::{ShardWriter, Stored, Written, in_order};
use sparsam_base::model::{EMBEDDING, HEAD, Quantize};
use sparsam_base::network::Network;
use sparsam_base::quantize::{is_quantized, quantized};
use sparsam_base::weights::Weights;

use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::targets::ends_in;
use crate::trainable::Trainable;

/// A base with an adapter in it.
pub struct Merged<'a> {
    base: &'a dyn Weights,
    parts: &'a Parts,
    /// The base's tensors that are part of the merged model, in the order of the model, and a head
    /// where the adapter unties it.
    names: Vec<String>,
    /// The quantisation whose loss is put into the base's projections first.
    through: Quantize,
    /// Type of all tensors; that of the base's own where it is not given.
    dtype: Option<DType>,
    /// Whether the base's head is its embedding.
    tied: bool,
}

impl<'a> Merged<'a> {
    /// Joins an adapter to the tensors of a base. `names` are those of all its tensors, `tied` says
    /// whether its head is its embedding; projections go `through` a quantisation first, for the base
    /// that a quantised run has trained on.
    ///
    /// # Errors
    /// Modules that the base does not have, or that the adapter's settings name and its file lacks.
    pub fn new(
        base: &'a dyn Weights,
        names: impl IntoIterator<Item = String>,
        tied: bool,
        parts: &'a Parts,
        through: Quantize,
        dtype: Option<DType>,
    ) -> Result<Self> {
        // transformers ignores a head stored beside an embedding that is tied to it.
        let mut names: BTreeSet<String> = names
            .into_iter()
            .filter(|name| !(tied && name == HEAD))
            .collect();
        let adapted = parts
            .branches
            .keys()
            .map(|module| format!("{module}.weight"));
        for name in adapted.chain(parts.whole.keys().cloned()) {
            if !(names.contains(&name) || tied && name == HEAD) {
                let name = name.trim_end_matches(".weight");
                return Err(Error::weight(name, "is not in the base model"));
            }
        }
        check_whole(&names, parts)?;
        if tied && parts.unties() {
            names.insert(HEAD.to_owned());
        }
        let mut names: Vec<String> = names.into_iter().collect();
        in_order(&mut names);
        Ok(Self {
            base,
            parts,
            names,
            through,
            dtype,
            tied,
        })
    }

    /// Names of all tensors, in the order of the model.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The base's `config.json` as it holds for the merged model.
    ///
    /// # Errors
    /// A text that is not a JSON object.
    pub fn config(&self, base: &str) -> Result<String> {
        let mut config: Value = serde_json::from_str(base)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Error::file(Path::new("config.json"), "is not a JSON object"))?;
        if self.tied && self.parts.unties() {
            config["tie_word_embeddings"] = json!(false);
        }
        if let Some(dtype) = self.dtype {
            let name = match dtype {
                DType::BF16 => "bfloat16",
                DType::F16 => "float16",
                _ => "float32",
            };
            // transformers 5 calls it `dtype`, and reads both.
            let key = if config.get("dtype").is_some() {
                "dtype"
            } else {
                "torch_dtype"
            };
            config[key] = json!(name);
        }
        Ok(format!("{config:#}\n"))
    }

    /// Refuses an adapter whose tensors have other shapes than the base's; reads only those it changes.
    ///
    /// # Errors
    /// A tensor that does not fit.
    pub fn check_shapes(&self) -> Result<()> {
        let branches = self.parts.branches.iter().map(|(module, branch)| {
            let (out, input) = branch.dims();
            (format!("{module}.weight"), vec![out, input])
        });
        let whole = self.parts.whole.iter();
        let whole = whole.map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        for (name, shape) in branches.chain(whole) {
            let base = self.shape(&name)?;
            if shape != base {
                let what = format!("has shape {shape:?}, in the base it is {base:?}");
                return Err(Error::weight(&name, what));
            }
        }
        Ok(())
    }

    /// A tensor of the base, in its stored type.
    fn base_tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.base.tensor(self.stored(name))?)
    }

    /// Its name in the base.
    fn stored<'n>(&self, name: &'n str) -> &'n str {
        if self.tied && name == HEAD {
            EMBEDDING
        } else {
            name
        }
    }

    fn merged(&self, name: &str) -> Result<Tensor> {
        let base = self.base_tensor(name)?;
        let dtype = self.dtype.unwrap_or(base.dtype());
        let misfit = |shape: &[usize]| {
            Error::weight(
                name,
                format!("has shape {shape:?}, in the base it is {:?}", base.dims()),
            )
        };
        if let Some(whole) = self.parts.whole.get(name) {
            if whole.dims() != base.dims() {
                return Err(misfit(whole.dims()));
            }
            return Ok(whole.to_dtype(dtype)?);
        }
        if !base.dtype().is_float() {
            return Ok(base);
        }
        let mut tensor = base.clone();
        if self.through != Quantize::None && is_quantized(name, &tensor) {
            tensor = quantized(name, &tensor, self.through)?.dequantize()?;
        }
        let module = name.strip_suffix(".weight");
        if let Some(branch) = module.and_then(|module| self.parts.branches.get(module)) {
            let (out, input) = branch.dims();
            if tensor.dims() != [out, input] {
                return Err(misfit(&[out, input]));
            }
            tensor = branch.merge(&tensor)?;
        }
        Ok(tensor.to_dtype(dtype)?)
    }
}

impl Weights for Merged<'_> {
    fn contains(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn shape(&self, name: &str) -> sparsam_base::error::Result<Vec<usize>> {
        self.base.shape(self.stored(name))
    }

    fn tensor(&self, name: &str) -> sparsam_base::error::Result<Tensor> {
        self.merged(name).map_err(|error| match error {
            Error::Base(error) => error,
            Error::Tensor(error) => BaseError::Tensor(error),
            Error::Weight { name, what } => BaseError::Weight { name, what },
            other => BaseError::Weight {
                name: name.to_owned(),
                what: other.to_string(),
            },
        })
    }
}

/// Refuses an adapter whose file lacks what its settings name: merged, it would be another model.
fn check_whole(names: &BTreeSet<String>, parts: &Parts) -> Result<()> {
    let lora = &parts.config.lora;
    let lacks = |name: &str| {
        Error::weight(
            name,
            "is not in the adapter's file, though its settings name it",
        )
    };
    for name in names.iter().filter(|name| name.contains("_proj.weight")) {
        let Some(module) = name.strip_suffix(".weight") else {
            continue;
        };
        if lora.branch(module)?.is_some() && !parts.branches.contains_key(module) {
            return Err(lacks(&format!("{module}.lora_A.weight")));
        }
    }
    for module in &lora.modules_to_save {
        let saved = |name: &&str| ends_in(name.trim_end_matches(".weight"), module);
        if let Some(name) = [EMBEDDING, HEAD].iter().find(|name| saved(name))
            && !parts.whole.contains_key(*name)
        {
            return Err(lacks(name));
        }
    }
    Ok(())
}

/// Writes the tensors of a merged model into an existing folder, in shards of at most `max_shard`
/// bytes, with `notes` in the header of each; `progress` is told after each how many of them are done.
///
/// # Errors
/// Tensors that do not fit each other, numbers that are not finite, files that cannot be written.
pub fn write(
    merged: &Merged,
    folder: &Path,
    max_shard: u64,
    notes: &[(&str, &str)],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Written> {
    let mut writer = ShardWriter::new(folder, max_shard);
    for (key, note) in notes {
        writer = writer.noting(key, note);
    }
    let mut parameters = 0;
    for (done, name) in merged.names.iter().enumerate() {
        let tensor = merged.merged(name)?;
        if tensor.dtype().is_float() && !is_finite(&tensor)? {
            return Err(not_finite(name));
        }
        parameters += tensor.elem_count() as u64;
        writer.push(vec![Stored::of(name, &tensor)?])?;
        progress(done + 1, merged.names.len());
    }
    Ok(writer.finish(parameters)?)
}

/// All parameters of a model in memory with an adapter merged in, in f32, by their names. Needs the model twice:
/// for small ones, such as classifiers, whose head has no place in the files of their base.
///
/// # Errors
/// A quantised model, modules that it does not have, other shapes, numbers that are not finite.
pub fn whole(model: &mut impl Network, parts: &Parts) -> Result<BTreeMap<String, Tensor>> {
    let mut all = Trainable::full(model)?;
    for (module, branch) in &parts.branches {
        let name = format!("{module}.weight");
        let Some(trained) = all.registry().get(&name) else {
            return Err(Error::weight(module, "is not in the base model"));
        };
        let (out, input) = branch.dims();
        if trained.value.dims() != [out, input] {
            let (shape, base) = ([out, input], trained.value.dims());
            let what = format!("has shape {shape:?}, in the base it is {base:?}");
            return Err(Error::weight(&name, what));
        }
        let merged = branch.merge(&trained.value)?;
        all.set(&name, &merged)?;
    }
    for (name, tensor) in &parts.whole {
        all.set(name, tensor)?;
    }
    let mut merged = BTreeMap::new();
    for (name, trained) in all.registry() {
        if !is_finite(&trained.value)? {
            return Err(not_finite(name));
        }
        merged.insert(name.clone(), trained.value.clone());
    }
    Ok(merged)
}

fn not_finite(name: &str) -> Error {
    Error::weight(
        name,
        "would hold a number that is not finite after the merge",
    )
}

fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    // A sum of magnitudes is finite only if they all are; in f64 it does not overflow.
    let sum = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?;
    Ok(sum.to_scalar::<f64>()?.is_finite())
}

/// How far logits lie from others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// Largest difference of a logit.
    pub largest: f64,
    /// Mean difference of a logit.
    pub mean: f64,
    /// Mean over the tokens of `KL(reference ‖ other)`, in nats.
    pub divergence: f64,
    /// Tokens whose likeliest successor is the same.
    pub same_choice: usize,
    /// Tokens.
    pub tokens: usize,
}

/// How far `other` lies from `reference`, both `[tokens, vocabulary]`.
///
/// # Errors
/// Other shapes.
pub fn drift(reference: &Tensor, other: &Tensor) -> candle_core::Result<Drift> {
    let rows = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_vec2::<f64>();
    let (reference, other) = (rows(reference)?, rows(other)?);
    if reference.len() != other.len() || reference.is_empty() {
        candle_core::bail!(
            "logits of {} and {} tokens cannot be compared",
            reference.len(),
            other.len()
        );
    }
    let mut drift = Drift {
        largest: 0.0,
        mean: 0.0,
        divergence: 0.0,
        same_choice: 0,
        tokens: reference.len(),
    };
    let mut count = 0;
    for (one, two) in reference.iter().zip(&other) {
        for (x, y) in one.iter().zip(two) {
            drift.largest = drift.largest.max((x - y).abs());
            drift.mean += (x - y).abs();
            count += 1;
        }
        let (log_p, log_q) = (log_softmax(one), log_softmax(two));
        let terms = log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q));
        drift.divergence += terms.sum::<f64>() / reference.len() as f64;
        drift.same_choice += usize::from(likeliest(one) == likeliest(two));
    }
    drift.mean /= f64::from(count);
    Ok(drift)
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
    logits.iter().map(|x| x - largest - sum.ln()).collect()
}

fn likeliest(logits: &[f64]) -> Option<usize> {
    let pairs = logits.iter().enumerate();
    pairs.max_by(|x, y| x.1.total_cmp(y.1)).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn drift_is_none_between_equals_and_blind_to_a_shift_in_divergence() {
        let one = Tensor::new(&[[0.0f32, 1.0, 2.0], [3.0, 1.0, 0.0]], &Device::Cpu).expect("made");
        let two = Tensor::new(&[[1.0f32, 2.0, 3.0], [0.0, 1.0, 3.0]], &Device::Cpu).expect("made");
        let same = drift(&one, &one).expect("compared");
        assert_eq!((same.largest, same.mean, same.divergence), (0.0, 0.0, 0.0));
        assert_eq!((same.same_choice, same.tokens), (2, 2));
        let apart = drift(&one, &two).expect("compared");
        assert_eq!(apart.largest, 3.0);
        assert!((apart.mean - 1.5).abs() < 1e-12);
        assert_eq!(apart.same_choice, 1);
        // Row 0 is shifted only; row 1 has p = softmax(3, 1, 0) and q its mirror image:
        // KL = Σ p (x − y) = 3 (p₀ − p₂).
        let p = [3f64, 1.0, 0.0].map(f64::exp);
        let sum: f64 = p.iter().sum();
        let expected = 3.0 * (p[0] - p[2]) / sum / 2.0;
        assert!((apart.divergence - expected).abs() < 1e-12);
    }
}
