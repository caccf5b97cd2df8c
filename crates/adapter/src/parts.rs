//! An adapter folder as what it says, without the base it belongs to.
//!
//! [`crate::peft::load`] puts an adapter on a model in memory; merging, exporting and checking need no
//! more than its tensors by module. Names and shapes are checked against the adapter's own settings
//! here, and against a base by whoever has one.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{EMBEDDING, HEAD};
use sparsam_base::weights::Weights;
use sparsam_kernels::Weight;
use sparsam_kernels::dora::row_norms;

use crate::error::{Error, Result};
use crate::lora::LoraConfig;
use crate::peft::{
    AdapterConfig, Task, WEIGHTS_FILE, is_saved_module, open_weights, read_config, registry_name,
};
use crate::targets::Targets;

/// A low-rank branch as stored.
#[derive(Clone, Debug)]
pub struct StoredBranch {
    /// `[rank, in]` in f32.
    pub a: Tensor,
    /// `[out, rank]` in f32.
    pub b: Tensor,
    /// Length of each row of the merged weight (DoRA), `[out]` in f32.
    pub magnitude: Option<Tensor>,
    /// Factor on `B A`: `alpha / r`, or `alpha / √r` with rsLoRA, patterns counted in.
    pub scale: f64,
}

impl StoredBranch {
    /// Rank.
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }

    /// `(out, in)` of the module.
    pub fn dims(&self) -> (usize, usize) {
        (self.b.dims()[0], self.a.dims()[1])
    }

    /// Whether the branch computes nothing: `A` or `B` is zero throughout. With DoRA the magnitudes
    /// may act all the same, so that only [`change`](Self::change) can tell.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn is_zero(&self) -> candle_core::Result<bool> {
        let zero = |tensor: &Tensor| -> candle_core::Result<bool> {
            Ok(tensor.abs()?.max_all()?.to_scalar::<f32>()? == 0.0)
        };
        Ok(zero(&self.a)? || zero(&self.b)?)
    }

    /// `s B A`, `[out, in]`.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn change(&self) -> candle_core::Result<Tensor> {
        // The factor goes onto the smaller of the two.
        let b = (&self.b * self.scale)?;
        b.matmul(&self.a)
    }

    /// The module's weight with the branch in it, `[out, in]` in f32: `W + s B A`, its rows brought to
    /// the trained lengths with DoRA.
    ///
    /// # Errors
    /// A weight of another shape.
    pub fn merge(&self, weight: &Tensor) -> candle_core::Result<Tensor> {
        let weight = weight.to_dtype(DType::F32)?.contiguous()?;
        let sum = (&weight + self.change()?)?;
        let Some(magnitude) = &self.magnitude else {
            return Ok(sum);
        };
        let norms = row_norms(&Weight::Dense(weight), &self.a, &self.b, self.scale)?;
        let (magnitude, norms): (Vec<f32>, Vec<f32>) = (magnitude.to_vec1()?, norms.to_vec1()?);
        // As in training, a row of zeros stays zero.
        let gains: Vec<f32> = magnitude
            .iter()
            .zip(&norms)
            .map(|(m, n)| if *n > 0.0 { m / n } else { 0.0 })
            .collect();
        let rows = gains.len();
        sum.broadcast_mul(&Tensor::from_vec(gains, (rows, 1), sum.device())?)
    }
}

/// An adapter folder.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Its settings.
    pub config: AdapterConfig,
    /// Branches by the path of their module, `model.layers.3.self_attn.q_proj`.
    pub branches: BTreeMap<String, StoredBranch>,
    /// Whole parameters of the base that it replaces, by their names: biases and saved modules.
    pub whole: BTreeMap<String, Tensor>,
}

#[derive(Default)]
struct Pieces {
    a: Option<Tensor>,
    b: Option<Tensor>,
    magnitude: Option<Tensor>,
}

impl Parts {
    /// Reads a folder.
    ///
    /// # Errors
    /// A malformed folder, tensors that belong to nothing, branches that are not whole or not of the
    /// shape that the settings say.
    pub fn read(folder: &Path) -> Result<Self> {
        let parts = Self::of_any(folder)?;
        if parts.config.task == Task::SequenceClassification {
            return Err(Error::Format {
                what: format!(
                    "`{}` is the adapter of a classifier (`task_type: SEQ_CLS`), and a language model's is needed here",
                    folder.display()
                ),
                hint:
                    "`sparsam classify` uses it, and `sparsam merge` makes a whole classifier of it"
                        .to_owned(),
            });
        }
        Ok(parts)
    }

    /// Reads a folder with the adapter of a language model or of a classifier, whose head is among what it
    /// replaces.
    ///
    /// # Errors
    /// As [`Parts::read`].
    pub fn of_any(folder: &Path) -> Result<Self> {
        let config = read_config(folder)?;
        let path = folder.join(WEIGHTS_FILE);
        let files = open_weights(&path)?;
        Self::gather(config, &path, &files)
    }

    fn gather(config: AdapterConfig, path: &Path, files: &SafetensorsFiles) -> Result<Self> {
        let mut pieces: BTreeMap<String, Pieces> = BTreeMap::new();
        let mut whole = BTreeMap::new();
        for stored in files.names() {
            let name = registry_name(path, stored)?;
            let tensor = files.tensor(stored)?;
            if !tensor.dtype().is_float() {
                let what = format!("is stored as {:?}, expected fractions", tensor.dtype());
                return Err(Error::weight(stored, what));
            }
            let tensor = tensor.to_dtype(DType::F32)?;
            if let Some(module) = name.strip_suffix(".lora_A.weight") {
                pieces.entry(module.to_owned()).or_default().a = Some(tensor);
            } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
                pieces.entry(module.to_owned()).or_default().b = Some(tensor);
            } else if let Some(module) = name.strip_suffix(".lora_magnitude_vector") {
                pieces.entry(module.to_owned()).or_default().magnitude = Some(tensor);
            } else if is_saved_module(&name, &config) || name.strip_suffix(".bias").is_some() {
                whole.insert(name, tensor);
            } else {
                return Err(Error::weight(
                    stored,
                    "is neither a branch on a projection, nor a bias, embedding or head",
                ));
            }
        }
        let mut branches = BTreeMap::new();
        for (module, pieces) in pieces {
            let branch = branch(&config, &module, pieces)?;
            branches.insert(module, branch);
        }
        if branches.is_empty() && whole.is_empty() {
            return Err(Error::file(path, "holds no tensors"));
        }
        Ok(Self {
            config,
            branches,
            whole,
        })
    }

    /// Several adapters of one base as one, each times its weight: the sum of what they do, exactly, with the sum of
    /// their ranks (PEFT's `add_weighted_adapter` with `combination_type="cat"`).
    ///
    /// # Errors
    /// Adapters that do not add up: DoRA, whose rows are scaled after the sum, or whole parameters in the place of
    /// the base's; adapters of classifiers; a module of two shapes.
    pub fn combine(adapters: &[(Self, f64)]) -> Result<Self> {
        let Some(((first, _), others)) = adapters.split_first() else {
            return Err(Error::training(
                "there is no adapter to combine",
                "name at least one",
            ));
        };
        let mut joined: BTreeMap<String, Vec<(&StoredBranch, f64)>> = BTreeMap::new();
        for (parts, weight) in adapters {
            let config = &parts.config;
            let plain = !config.lora.use_dora
                && parts.whole.is_empty()
                && config.task == Task::CausalLm
                && parts
                    .branches
                    .values()
                    .all(|branch| branch.magnitude.is_none());
            if !plain {
                return Err(Error::Format {
                    what: "only plain adapters of language models add up: without DoRA, trained biases or \
                           saved modules"
                        .to_owned(),
                    hint: "merge one of them into the base, and use the other on that".to_owned(),
                });
            }
            for (module, branch) in &parts.branches {
                joined
                    .entry(module.clone())
                    .or_default()
                    .push((branch, *weight));
            }
        }
        let base = &first.config.base_model_name_or_path;
        if let Some((other, _)) = others
            .iter()
            .find(|(parts, _)| parts.config.base_model_name_or_path != *base)
        {
            let name = |base: &Option<String>| base.clone().unwrap_or_else(|| "no base".to_owned());
            return Err(Error::Format {
                what: format!(
                    "the adapters were trained on `{}` and `{}`",
                    name(base),
                    name(&other.config.base_model_name_or_path)
                ),
                hint: "adapters add up on one base alone".to_owned(),
            });
        }
        let mut branches = BTreeMap::new();
        for (module, parts) in joined {
            let (out, input) = parts[0].0.dims();
            if let Some((branch, _)) = parts.iter().find(|(b, _)| b.dims() != (out, input)) {
                let what = format!(
                    "is of {out} x {input} in one adapter and of {:?} in another",
                    branch.dims()
                );
                return Err(Error::weight(&module, what));
            }
            let a: Vec<&Tensor> = parts.iter().map(|(branch, _)| &branch.a).collect();
            // The factor of the whole is 1; each part's own is in its `B`.
            let b = parts
                .iter()
                .map(|(branch, weight)| &branch.b * (branch.scale * weight));
            let b = b.collect::<candle_core::Result<Vec<_>>>()?;
            let branch = StoredBranch {
                a: Tensor::cat(&a, 0)?.contiguous()?,
                b: Tensor::cat(&b, 1)?.contiguous()?,
                magnitude: None,
                scale: 1.0,
            };
            branches.insert(module, branch);
        }
        let ranks = branches.iter();
        let ranks = ranks.map(|(module, branch)| (module.clone(), branch.rank()));
        let ranks: BTreeMap<String, usize> = ranks.collect();
        let r = ranks.values().copied().max().unwrap_or(1);
        let apart = ranks.iter().filter(|(_, rank)| **rank != r);
        let apart: BTreeMap<String, usize> = apart.map(|(m, rank)| (m.clone(), *rank)).collect();
        let lora = LoraConfig {
            r,
            lora_alpha: r as f64,
            target_modules: Targets::List(ranks.into_keys().collect()),
            alpha_pattern: apart
                .iter()
                .map(|(m, rank)| (m.clone(), *rank as f64))
                .collect(),
            rank_pattern: apart,
            ..LoraConfig::default()
        };
        Ok(Self {
            config: AdapterConfig {
                lora,
                base_model_name_or_path: base.clone(),
                task: Task::CausalLm,
            },
            branches,
            whole: BTreeMap::new(),
        })
    }

    /// Whether embedding and head, tied in the base, are two after the merge: PEFT's saved copy of one
    /// leaves the other as it was.
    pub fn unties(&self) -> bool {
        self.whole.contains_key(EMBEDDING) || self.whole.contains_key(HEAD)
    }
}

fn branch(config: &AdapterConfig, module: &str, pieces: Pieces) -> Result<StoredBranch> {
    let Some(shape) = config.lora.branch(module)? else {
        return Err(Error::weight(
            module,
            "is in the file, but the adapter's settings do not adapt this module",
        ));
    };
    let missing = |what: &str| Error::weight(&format!("{module}.{what}"), "is not in the file");
    let a = pieces.a.ok_or_else(|| missing("lora_A.weight"))?;
    let b = pieces.b.ok_or_else(|| missing("lora_B.weight"))?;
    let check = |name: &str, tensor: &Tensor, dim: usize| {
        if tensor.rank() == 2 && tensor.dims()[dim] == shape.rank {
            return Ok(());
        }
        let what = format!(
            "has shape {:?}, which does not fit the rank {} of the settings",
            tensor.dims(),
            shape.rank
        );
        Err(Error::weight(&format!("{module}.{name}"), what))
    };
    check("lora_A.weight", &a, 0)?;
    check("lora_B.weight", &b, 1)?;
    let magnitude = match (config.lora.use_dora, pieces.magnitude) {
        (true, None) => return Err(missing("lora_magnitude_vector")),
        (false, Some(_)) => {
            return Err(Error::weight(
                &format!("{module}.lora_magnitude_vector"),
                "is in the file, but the settings do not say `use_dora`",
            ));
        }
        (_, magnitude) => magnitude,
    };
    if let Some(magnitude) = &magnitude
        && magnitude.dims() != [b.dims()[0]]
    {
        let what = format!(
            "has shape {:?}, its module has {} rows",
            magnitude.dims(),
            b.dims()[0]
        );
        return Err(Error::weight(
            &format!("{module}.lora_magnitude_vector"),
            what,
        ));
    }
    Ok(StoredBranch {
        a: a.contiguous()?,
        b: b.contiguous()?,
        magnitude,
        scale: shape.scale,
    })
}
