//! A tensor that waits in the host's memory until it is needed again.
//!
//! On a GPU what a pass keeps for the way back can be longer than its memory. A parked tensor is copied to pinned memory
//! of the host beside the GPU's work, and back the same way; its numbers are the same bits. One on the processor is
//! there already, and nothing is moved.

use candle_core::{Result, Tensor};

/// A tensor on its way to the host's memory, there, or on its way back.
pub struct Parked(Place);

enum Place {
    /// Where it is computed with.
    Here(Tensor),
    #[cfg(feature = "cuda")]
    Beside(crate::cuda::Parked),
}

impl Parked {
    /// Begins to copy a contiguous tensor, as the work enqueued so far leaves it. Nothing may write to it later.
    ///
    /// # Errors
    /// No more memory that can be pinned, or a tensor that is not contiguous.
    pub fn new(tensor: Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            return Ok(Self(Place::Beside(crate::cuda::Parked::new(tensor)?)));
        }
        Ok(Self::here(tensor))
    }

    /// One that stays where it is.
    pub fn here(tensor: Tensor) -> Self {
        Self(Place::Here(tensor))
    }

    /// Gives the tensor's memory on the GPU back, for work that is enqueued from now on and waits until the copy is
    /// done.
    ///
    /// # Errors
    /// A driver that failed.
    pub fn leave(&mut self) -> Result<()> {
        match &mut self.0 {
            Place::Here(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Beside(parked) => parked.leave(),
        }
    }

    /// Begins to copy it back, beside what is enqueued from now on.
    ///
    /// # Errors
    /// No memory on the GPU.
    pub fn fetch(&mut self) -> Result<()> {
        match &mut self.0 {
            Place::Here(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Beside(parked) => parked.fetch(),
        }
    }

    /// The tensor, for work that is enqueued from now on and waits until it is back.
    ///
    /// # Errors
    /// As [`Parked::fetch`].
    pub fn into_tensor(self) -> Result<Tensor> {
        match self.0 {
            Place::Here(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Place::Beside(parked) => parked.into_tensor(),
        }
    }
}
