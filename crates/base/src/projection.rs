//! Projections: the named linear layers of a block, and the hook by which they are adapted or trained.
//!
//! Projections that read the same input form a [`Group`], since they are best computed together. What
//! happens in a group is the [`Hook`]'s business: [`Frozen`] multiplies by the weights, an adapter adds
//! its branches, full fine-tuning collects the weights' gradients. A block calls the hook and knows
//! none of them.

use std::any::Any;

use candle_core::{DType, Device, Result, Tensor};
use sparsam_kernels::Weight;
use sparsam_kernels::activation::{Activation, gated, gated_backward_in_place, gated_to_bf16};
use sparsam_kernels::dropout::DropoutKey;
use sparsam_kernels::linear::{add_bias, linear};
use sparsam_kernels::lora::{Projection as Product, lora_linear, lora_linear_backward};

use crate::block::parts;
use crate::prefix::SharedPrefix;

/// One named linear layer.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Path of the module, `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// `[out, in]`
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Tensor>,
}

/// Projections that read the same input.
#[derive(Clone, Debug)]
pub struct Group {
    /// In the order of their outputs.
    pub projections: Vec<Projection>,
}

impl Group {
    /// Puts its weights and biases into the memory of `device`; quantised weights stay so.
    pub(crate) fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        for projection in &mut self.projections {
            projection.weight = projection.weight.to_device(device, compute)?;
            if let Some(bias) = &mut projection.bias {
                *bias = bias.to_device(device)?;
            }
        }
        Ok(())
    }
}

/// What a hook keeps of its forward pass for its backward pass.
pub type HookKept = Option<Box<dyn Any + Send>>;

/// What happens in the projections, and where gradients of the base's own parameters go.
pub trait Hook {
    /// Outputs of the group for `x` `[tokens, in]`; and, if `keep`, what its backward pass needs.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn forward(&mut self, group: &Group, x: &Tensor, keep: bool)
    -> Result<(Vec<Tensor>, HookKept)>;

    /// The gated product of a group of gate and up, with both, and what [`Hook::forward`] keeps; all three of bf16 if
    /// they are to be `narrow`.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn gated(
        &mut self,
        group: &Group,
        activation: Activation,
        x: &Tensor,
        narrow: bool,
        keep: bool,
    ) -> Result<([Tensor; 3], HookKept)> {
        let (outputs, kept) = self.forward(group, x, keep)?;
        Ok((group.gated(activation, outputs, narrow)?, kept))
    }

    /// What [`Hook::forward`] keeps, in a pass that is computed again and whose outputs nobody needs.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn again(&mut self, group: &Group, x: &Tensor) -> Result<HookKept> {
        Ok(self.forward(group, x, true)?.1)
    }

    /// Gradient of `x`, from those of the outputs; collects the gradients of what is trained here.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn backward(
        &mut self,
        group: &Group,
        x: &Tensor,
        dys: &[Tensor],
        kept: HookKept,
    ) -> Result<Tensor>;

    /// Gradients of gate and up, from that of the outputs of the group that reads their product `x`; they may take the
    /// places of gate and up.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn gated_backward(
        &mut self,
        group: &Group,
        activation: Activation,
        x: Tensor,
        dy: Tensor,
        [gate, up]: [Tensor; 2],
        kept: HookKept,
    ) -> Result<(Tensor, Tensor)> {
        let dx = self.backward(group, &x, &[dy], kept)?;
        drop(x);
        gated_backward_in_place(activation, &dx, gate, up)
    }

    /// Where the gradient of a parameter outside the projections (`model.norm.weight`, say) is added
    /// up, if it is trained.
    fn accumulator(&self, _parameter: &str) -> Option<Tensor> {
        None
    }

    /// The key of what is dropped in the base itself in this pass, if anything is: encoders drop hidden numbers
    /// while they are trained. The site is the base's business.
    fn dropout(&self) -> Option<DropoutKey> {
        None
    }

    /// Whether the input of a group may be of bf16, and the gradients of its outputs: where its products round
    /// them so and nothing else reads them.
    fn takes_bf16(&self, _group: &Group) -> bool {
        false
    }

    /// What is kept of the blocks below the lowest trained one, if anything is.
    fn prefix(&self) -> Option<SharedPrefix> {
        None
    }
}

/// The base as it is: nothing is trained.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frozen;

impl Hook for Frozen {
    fn forward(
        &mut self,
        group: &Group,
        x: &Tensor,
        _keep: bool,
    ) -> Result<(Vec<Tensor>, HookKept)> {
        let mut outputs = Vec::with_capacity(group.projections.len());
        for projection in &group.projections {
            outputs.push(linear(x, &projection.weight)?);
        }
        group.add_biases(&outputs)?;
        Ok((outputs, None))
    }

    fn backward(
        &mut self,
        group: &Group,
        x: &Tensor,
        dys: &[Tensor],
        _kept: HookKept,
    ) -> Result<Tensor> {
        let products: Vec<_> = group
            .projections
            .iter()
            .map(|p| Product {
                weight: &p.weight,
                branch: None,
            })
            .collect();
        let none: Vec<_> = products.iter().map(|_| None).collect();
        let empty = x.narrow(0, 0, 0)?.contiguous()?;
        let (_, kept) = lora_linear(&empty, None, &products)?;
        Ok(lora_linear_backward(dys, x, None, &products, &kept, &none)?.x)
    }
}

impl Group {
    /// The gated product of its outputs, which are gate and up or both side by side, with the two; all three of bf16
    /// if they are to be `narrow`.
    ///
    /// # Errors
    /// Outputs of other shapes.
    pub fn gated(
        &self,
        activation: Activation,
        outputs: Vec<Tensor>,
        narrow: bool,
    ) -> Result<[Tensor; 3]> {
        let wide = match outputs.as_slice() {
            [both] => both.dim(1)? / 2,
            _ => 0,
        };
        let [gate, up] = parts(outputs, [wide, wide])?;
        if narrow {
            return gated_to_bf16(activation, &gate, &up);
        }
        Ok([gated(activation, &gate, &up)?, gate, up])
    }

    /// Adds each projection's bias to its output, in place.
    ///
    /// # Errors
    /// A bias that does not fit.
    pub fn add_biases(&self, outputs: &[Tensor]) -> Result<()> {
        for (projection, output) in self.projections.iter().zip(outputs) {
            if let Some(bias) = &projection.bias {
                add_bias(output, bias)?;
            }
        }
        Ok(())
    }
}
