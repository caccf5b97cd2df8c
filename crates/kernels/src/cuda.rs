//! The same operations on an NVIDIA GPU.
//!
//! Each public operation of this crate asks its tensors where they are and comes here if that is a GPU; the
//! shapes have been checked by then. Elementwise work, norms, attention and losses are our own kernels
//! (`kernels.cu`, compiled to the committed `kernels.ptx`), products are cuBLAS'. Everything is enqueued on the
//! one stream of candle's device, from one thread; nothing waits for the GPU but what reads a number back. A second stream
//! copies what waits in the host's memory.
//!
//! | part | module |
//! |---|---|
//! | addresses of tensors, and one launch | `launch` |
//! | products | `blas` |
//! | norms, rope, gates and other passes over activations | `pointwise` |
//! | attention and its adjoint | `attention` |
//! | linear layers with their branches | `linear` |
//! | head and loss | `loss` |
//! | optimiser and gradients | `update` |
//! | tensors that wait in the host's memory | `parked` |
//!
//! Activations are f32, but bf16 where only products in bf16 read them. A product with a bf16 weight takes its other
//! operand in bf16 and sums in f32.

mod attention;
mod blas;
mod launch;
mod linear;
mod loss;
mod parked;
mod pointwise;
mod update;

use candle_core::{Device, Result};

pub(crate) use attention::{
    DeviceRows, append, attention, attention_backward, attention_cached, try_tensor_cores,
};
pub(crate) use linear::{
    linear, linear_input_grad, linear_weight_grad, lora_gated, lora_linear, lora_linear_backward,
    row_norms,
};
pub(crate) use loss::{Losses, begin_class_loss, begin_cross_entropy, linear_token_losses};
pub(crate) use parked::Parked;
pub(crate) use pointwise::{
    activate, activate_backward, add_bias, add_in_place, add_rows, bias_grad, copy_into, dropout,
    expand, expand_rows, gated, gated_backward, gated_backward_in_place, gated_to_bf16, layer_norm,
    layer_norm_backward, rms_norm, rms_norm_backward, to_bf16, turn, turned_to_bf16,
};
pub(crate) use update::{adamw_all, adamw_step, clear, grad_norm_squared, read_norm};

/// Opens GPU number `ordinal` with a stream of its own, so that the thread does not matter, and lets freed
/// memory stay with the process: by default every synchronisation gives it back to the driver.
///
/// # Errors
/// No driver, no such device, or one that cannot be used.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    launch::prepare(&device)?;
    Ok(device)
}

/// Waits until the GPU has done all that was asked of it.
///
/// # Errors
/// What a kernel did wrong since the last wait.
pub fn synchronize(device: &Device) -> Result<()> {
    device.synchronize()
}

/// Bytes of the GPU's memory in use now, and the most since the process began, by candle's pool.
///
/// # Errors
/// A device that is not a GPU, or a driver that does not tell.
pub fn memory(device: &Device) -> Result<(u64, u64)> {
    launch::memory(device)
}
