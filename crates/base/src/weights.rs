//! Tensors by name, wherever they are stored.
//!
//! A model asks for `model.layers.3.self_attn.q_proj.weight`; a [`Weights`] gives it, one tensor at a
//! time, so that loading needs the stored model plus one tensor and never two models.

use candle_core::Tensor;
use sparsam_kernels::Weight;

use crate::error::Result;

/// Tensors by name.
pub trait Weights {
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;
    /// The tensor, in its stored type, on the CPU.
    ///
    /// # Errors
    /// No such tensor, or it cannot be read.
    fn tensor(&self, name: &str) -> Result<Tensor>;
    /// Its shape.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.tensor(name)?.dims().to_vec())
    }
    /// The matrix in the form in which it is to be kept, where the files themselves decide that:
    /// quantised ones do. Otherwise the one who loads does.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    fn kept(&self, _name: &str) -> Result<Option<Weight>> {
        Ok(None)
    }
}
