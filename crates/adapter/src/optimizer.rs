//! The optimiser: AdamW over everything that is trained, with its state, and clipping before it.
//!
//! The state is two moments of each trained tensor, in f32 or in eight bits. Of eight bits there are exceptions, those
//! of bitsandbytes and of transformers' trainer: tensors of fewer than 4096 numbers keep their moments in f32, since
//! there is little to save, and so do embeddings, most rows of which are without a gradient in a step (see
//! [`eight_bit`]).

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use sparsam_kernels::adamw::AdamW;
use sparsam_kernels::adamw::all::{self, GradNorm, Update, adamw_all};
use sparsam_kernels::adamw::eight_bit::{self, EightBit, Map};

use crate::error::{Error, Result};
use crate::trainable::Trainable;

/// Numbers from which on a tensor has moments in eight bits, where those are wanted: bitsandbytes' `min_8bit_size`.
pub const MIN_EIGHT_BIT: usize = 4096;

/// Bytes of both moments of a number in f32.
pub const BYTES_F32: f64 = 8.0;

/// The same in eight bits: two codes, and two magnitudes of four bytes for each block.
pub const BYTES_EIGHT_BIT: f64 = 2.0 + 8.0 / eight_bit::BLOCK as f64;

/// How the optimiser keeps its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateType {
    /// In f32.
    #[default]
    F32,
    /// In eight bits, but for small tensors and embeddings.
    EightBit,
}

impl StateType {
    /// Whether a trained tensor has its moments in eight bits.
    fn is_eight_bit(self, name: &str, value: &Tensor) -> bool {
        self == Self::EightBit && value.elem_count() >= MIN_EIGHT_BIT && !is_embedding(name)
    }
}

/// Whether a parameter is a table of which a step reads some rows: `embed_tokens`, and encoders' `…_embeddings`.
fn is_embedding(name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let leaf = module.rsplit('.').next().unwrap_or(module);
    leaf == "embed_tokens" || leaf.ends_with("_embeddings")
}

/// First and second moment of a trained tensor.
#[derive(Clone, Debug)]
pub enum Moments {
    /// In f32, of the tensor's shape.
    F32(Tensor, Tensor),
    /// In eight bits.
    EightBit(EightBit, EightBit),
}

impl Moments {
    fn zeros(value: &Tensor, eight_bit: bool) -> Result<Self> {
        Ok(if eight_bit {
            Self::EightBit(
                EightBit::zeros(value, Map::Signed)?,
                EightBit::zeros(value, Map::Unsigned)?,
            )
        } else {
            Self::F32(value.zeros_like()?, value.zeros_like()?)
        })
    }

    /// The shape of what is trained.
    fn dims(&self) -> &[usize] {
        match self {
            Self::F32(first, _) => first.dims(),
            Self::EightBit(first, _) => first.codes().dims(),
        }
    }

    fn device(&self) -> &Device {
        match self {
            Self::F32(first, _) => first.device(),
            Self::EightBit(first, _) => first.codes().device(),
        }
    }

    fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::F32(first, second) => {
                Self::F32(first.to_device(device)?, second.to_device(device)?)
            }
            Self::EightBit(first, second) => {
                Self::EightBit(first.to_device(device)?, second.to_device(device)?)
            }
        })
    }

    /// Whether other moments have the same shape and are kept the same way.
    fn fit(&self, other: &Self) -> bool {
        let alike = matches!(
            (self, other),
            (Self::F32(..), Self::F32(..)) | (Self::EightBit(..), Self::EightBit(..))
        );
        let second = |moments: &Self| match moments {
            Self::F32(_, second) => second.dims().to_vec(),
            Self::EightBit(_, second) => second.codes().dims().to_vec(),
        };
        alike && self.dims() == other.dims() && second(self) == second(other)
    }

    /// Bytes of both.
    fn bytes(&self) -> usize {
        let of = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        match self {
            Self::F32(first, second) => of(first) + of(second),
            Self::EightBit(first, second) => [first, second]
                .into_iter()
                .map(|moment| of(moment.codes()) + of(moment.absmax()))
                .sum(),
        }
    }
}

/// AdamW and its moments.
pub struct Optimizer {
    /// Constants; the learning rate is set step by step.
    pub settings: AdamW,
    /// Gradients with a norm above this are scaled down to it.
    pub max_grad_norm: Option<f64>,
    /// How many times as fast as all else the second halves of branches learn (LoRA+: Hayou, Ghosh and Yu 2024),
    /// and with them what has one dimension, as in PEFT's `create_loraplus_optimizer`.
    pub b_ratio: f64,
    /// Updates made so far.
    pub steps: usize,
    /// Of each trained tensor.
    moments: BTreeMap<String, Moments>,
}

impl Optimizer {
    /// A fresh optimiser for what is trained, with moments in f32.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn new(trainable: &Trainable, settings: AdamW, max_grad_norm: Option<f64>) -> Result<Self> {
        Self::with_state(trainable, settings, max_grad_norm, StateType::F32)
    }

    /// The same with moments of a type.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn with_state(
        trainable: &Trainable,
        settings: AdamW,
        max_grad_norm: Option<f64>,
        state: StateType,
    ) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, trained) in trainable.registry() {
            let eight_bit = state.is_eight_bit(name, &trained.value);
            moments.insert(name.clone(), Moments::zeros(&trained.value, eight_bit)?);
        }
        Ok(Self {
            settings,
            max_grad_norm,
            b_ratio: 1.0,
            steps: 0,
            moments,
        })
    }

    /// Updates everything at a learning rate, clears the gradients and returns their norm before
    /// clipping.
    ///
    /// # Errors
    /// A gradient that is not a number; nothing is updated then.
    pub fn step(&mut self, trainable: &Trainable, learning_rate: f64) -> Result<f64> {
        let norm = self.begin_step(trainable, learning_rate)?;
        checked_norm(&norm).inspect_err(|_| self.steps -= 1)
    }

    /// [`Self::step`] that does not wait for a GPU; [`checked_norm`] does.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn begin_step(&mut self, trainable: &Trainable, learning_rate: f64) -> Result<GradNorm> {
        let mut updates = Vec::with_capacity(trainable.registry().len());
        for (name, trained) in trainable.registry() {
            let Some(moments) = self.moments.get(name) else {
                return Err(Error::weight(name, "has no state in the optimiser"));
            };
            let faster = name.ends_with(".lora_B.weight") || trained.value.rank() == 1;
            updates.push(Update {
                param: &trained.value,
                grad: &trained.grad,
                moments: match moments {
                    Moments::F32(first, second) => all::Moments::F32(first, second),
                    Moments::EightBit(first, second) => all::Moments::EightBit(first, second),
                },
                lr: learning_rate * if faster { self.b_ratio } else { 1.0 },
                weight_decay: if trained.decays {
                    self.settings.weight_decay
                } else {
                    0.0
                },
                mask: trained.mask(),
                narrow: trained.narrow(),
            });
        }
        self.steps += 1;
        let norm = adamw_all(&updates, &self.settings, self.steps, self.max_grad_norm)?;
        for trained in trainable.registry().values() {
            trained.changed();
        }
        Ok(norm)
    }

    /// The moments by name, for a checkpoint.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Bytes of all moments.
    pub fn state_bytes(&self) -> usize {
        self.moments.values().map(Moments::bytes).sum()
    }

    /// Restores the moments of a checkpoint.
    ///
    /// # Errors
    /// Moments that do not fit.
    pub fn restore(&mut self, steps: usize, moments: BTreeMap<String, Moments>) -> Result<()> {
        for (name, fresh) in &self.moments {
            if !moments.get(name).is_some_and(|moments| fresh.fit(moments)) {
                return Err(Error::weight(
                    name,
                    "has no fitting state in the checkpoint",
                ));
            }
        }
        self.steps = steps;
        for (name, moments) in moments {
            if let Some(place) = self.moments.get_mut(&name) {
                *place = moments.to_device(place.device())?;
            }
        }
        Ok(())
    }
}

/// The norm of the gradients of a step, which it waits for.
///
/// # Errors
/// A norm that is not a number: nothing was updated then.
pub fn checked_norm(norm: &GradNorm) -> Result<f64> {
    let norm = norm.read()?;
    if norm.is_finite() {
        return Ok(norm);
    }
    Err(Error::training(
        "a gradient is not a number",
        "lower `learning_rate` or set `max_grad_norm`; the last checkpoint is kept",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_are_known_by_their_names() {
        for name in [
            "model.embed_tokens.weight",
            "bert.embeddings.word_embeddings.weight",
            "bert.embeddings.position_embeddings.weight",
            "model.embeddings.tok_embeddings.weight",
        ] {
            assert!(is_embedding(name), "{name}");
        }
        for name in [
            "lm_head.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "bert.embeddings.LayerNorm.weight",
            "model.layers.0.mlp.up_proj.lora_A.weight",
        ] {
            assert!(!is_embedding(name), "{name}");
        }
    }
}
