//! The encoder block: attention in both directions and a feed-forward unit, each beside the residual stream.
//!
//! BERT's kind puts a norm behind each sum, ModernBERT's before attention and unit and has a gated unit. As in
//! the decoder's [`block`](crate::block), [`EncoderBlock::forward`] and [`EncoderBlock::backward`] stand beside
//! each other, and norm outputs and activations are computed again on the way back.

use candle_core::{Device, Result, Tensor};
use sparsam_kernels::Documents;
use sparsam_kernels::activation::{Activation, gated, gated_backward_in_place};
use sparsam_kernels::attention::{Bidirectional, bidirectional, bidirectional_backward};
use sparsam_kernels::dropout::DropoutKey;
use sparsam_kernels::gelu::{activate, activate_backward};
use sparsam_kernels::layer_norm::{Into, Moments, layer_norm_backward};
use sparsam_kernels::linear::add_in_place;
use sparsam_kernels::rope::{Positions, RopeTable, rope, rope_backward};

use super::{SITES, dropped};
use crate::block::{one, parts, together};
use crate::projection::{Group, Hook, HookKept};
use crate::stack::Extent;

/// A named layer norm, its vectors `[width]` in f32.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Path of the module, `bert.encoder.layer.0.output.LayerNorm`.
    pub name: String,
    /// Factors.
    pub weight: Tensor,
    /// Added afterwards.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub epsilon: f64,
}

impl LayerNorm {
    /// Puts its vectors into the memory of `device`.
    pub(crate) fn move_to(&mut self, device: &Device) -> Result<()> {
        self.weight = self.weight.to_device(device)?;
        if let Some(bias) = &mut self.bias {
            *bias = bias.to_device(device)?;
        }
        Ok(())
    }

    /// Gradient of the input from that of the output, with what reaches the input past the norm.
    pub(crate) fn backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        moments: &Moments,
        past: Option<&Tensor>,
        hook: &dyn Hook,
    ) -> Result<Tensor> {
        let weight = hook.accumulator(&format!("{}.weight", self.name));
        let bias = hook.accumulator(&format!("{}.bias", self.name));
        let into = Into {
            weight: weight.as_ref(),
            bias: bias.as_ref(),
        };
        layer_norm_backward(dy, x, &self.weight, moments, past, into)
    }
}

/// Where the norms of a block stand.
#[derive(Clone, Debug)]
pub enum EncoderNorms {
    /// Behind the sums with the residual stream (BERT).
    After {
        /// Behind attention.
        attention: LayerNorm,
        /// Behind the unit.
        unit: LayerNorm,
    },
    /// Before attention and unit (ModernBERT); the first block has none before attention.
    Before {
        /// Before attention.
        attention: Option<LayerNorm>,
        /// Before the unit.
        unit: LayerNorm,
    },
}

/// One encoder block.
#[derive(Clone, Debug)]
pub struct EncoderBlock {
    /// Its number.
    pub layer: usize,
    /// Query, key, value; or one projection whose outputs are theirs side by side.
    pub qkv: Group,
    /// Attention's output.
    pub out: Group,
    /// Into the unit; with `gated`, what is activated and what it is multiplied with side by side.
    pub up: Group,
    /// Out of the unit.
    pub down: Group,
    /// Norms.
    pub norms: EncoderNorms,
    /// Whether the unit is gated.
    pub gated: bool,
    /// What the unit's numbers pass through.
    pub activation: Activation,
    /// Heads, scale and window.
    pub shape: Bidirectional,
    /// Whether positions are turned by the frequencies of local layers, where they are turned.
    pub local: bool,
    /// Share of what joins the residual stream that is dropped in training.
    pub dropout: f64,
}

/// What all blocks share in one pass over a batch.
pub struct EncoderPass<'a> {
    /// Where the documents begin and end.
    pub documents: &'a Documents,
    /// Position of each token in its document.
    pub positions: &'a Positions,
    /// Sines and cosines, where positions are turned.
    pub table: Option<&'a RopeTable>,
    /// Those of local layers.
    pub local_table: Option<&'a RopeTable>,
    /// The key of what is dropped, if anything is.
    pub dropout: Option<DropoutKey>,
}

/// What the backward pass of a block needs of its forward pass.
pub struct Kept {
    x: Tensor,
    input_moments: Option<Moments>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    log_sums: Tensor,
    /// The residual stream between attention and unit, before the norm there.
    middle: Tensor,
    hooks: [HookKept; 2],
    /// Of the unit, where it is not to be computed again from `middle`.
    unit: Option<UnitKept>,
}

/// What the backward pass of a unit needs of its forward pass, besides its input.
struct UnitKept {
    moments: Moments,
    /// Before the activation.
    inner: Tensor,
    /// What the activated is multiplied with.
    gate: Option<Tensor>,
    /// The last sum, before its norm, if that stands behind.
    last: Option<(Tensor, Moments)>,
    hooks: [HookKept; 2],
}

/// What [`EncoderBlock::inner`] computes.
struct Inner {
    /// The unit's input, `[tokens, hidden]`.
    normed: Tensor,
    /// What the second projection reads.
    product: Tensor,
    kept: UnitKept,
}

impl EncoderBlock {
    /// All its groups of projections.
    pub fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.out, &self.up, &self.down]
    }

    pub(crate) fn groups_mut(&mut self) -> [&mut Group; 4] {
        [&mut self.qkv, &mut self.out, &mut self.up, &mut self.down]
    }

    /// All its norms.
    pub fn norms(&self) -> impl Iterator<Item = &LayerNorm> {
        let (attention, unit) = match &self.norms {
            EncoderNorms::After { attention, unit } => (Some(attention), unit),
            EncoderNorms::Before { attention, unit } => (attention.as_ref(), unit),
        };
        attention.into_iter().chain(std::iter::once(unit))
    }

    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = &mut LayerNorm> {
        let (attention, unit) = match &mut self.norms {
            EncoderNorms::After { attention, unit } => (Some(attention), unit),
            EncoderNorms::Before { attention, unit } => (attention.as_mut(), unit),
        };
        attention.into_iter().chain(std::iter::once(unit))
    }

    /// The norm between attention and unit.
    fn middle_norm(&self) -> &LayerNorm {
        match &self.norms {
            EncoderNorms::After { attention, .. } => attention,
            EncoderNorms::Before { unit, .. } => unit,
        }
    }

    /// The norm before attention.
    fn input_norm(&self) -> Option<&LayerNorm> {
        match &self.norms {
            EncoderNorms::After { .. } => None,
            EncoderNorms::Before { attention, .. } => attention.as_ref(),
        }
    }

    fn normed_input(&self, x: &Tensor) -> Result<(Tensor, Option<Moments>)> {
        match self.input_norm() {
            Some(norm) => norm.forward(x).map(|(y, moments)| (y, Some(moments))),
            None => Ok((x.clone(), None)),
        }
    }

    fn table<'a>(&self, pass: &EncoderPass<'a>) -> Option<&'a RopeTable> {
        if self.local {
            pass.local_table
        } else {
            pass.table
        }
    }

    /// What attention or unit adds to the residual stream, dropped where that is due; its own adjoint.
    fn thinned(&self, x: Tensor, pass: &EncoderPass, unit: bool) -> Result<Tensor> {
        let site = SITES + 1 + 2 * self.layer as u32 + u32::from(unit);
        dropped(x, self.dropout, pass.dropout, site)
    }

    /// What the unit's second projection reads.
    fn product(&self, inner: &Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
        match gate {
            Some(gate) => gated(self.activation, inner, gate),
            None => activate(self.activation, inner),
        }
    }

    /// The block's output for `x` `[tokens, hidden]`, and what its backward pass needs, as far as it is to be kept.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &EncoderPass,
        hook: &mut dyn Hook,
        extent: Extent,
    ) -> Result<(Tensor, Option<Kept>)> {
        let (middle, mut kept) = self.to_unit(x, pass, hook, extent != Extent::Nothing)?;
        let keep = extent == Extent::All;
        let mut inner = self.inner(&middle, hook, keep)?;
        let sum = self.last_sum(&middle, &mut inner, pass, hook, keep)?;
        let y = match &self.norms {
            EncoderNorms::After { unit, .. } => {
                let (y, moments) = unit.forward(&sum)?;
                inner.kept.last = Some((sum, moments));
                y
            }
            EncoderNorms::Before { .. } => sum,
        };
        if let Some(kept) = kept.as_mut().filter(|_| keep) {
            kept.unit = Some(inner.kept);
        }
        Ok((y, kept))
    }

    /// What [`EncoderBlock::forward`] keeps up to the unit, of an input whose output is known already.
    ///
    /// # Errors
    /// As there.
    pub fn again(
        &self,
        x: &Tensor,
        pass: &EncoderPass,
        hook: &mut dyn Hook,
    ) -> Result<Option<Kept>> {
        Ok(self.to_unit(x, pass, hook, true)?.1)
    }

    /// What the unit keeps, of an input whose output is known already: its last product is left out where nothing
    /// that is kept comes after it.
    fn unit_again(
        &self,
        middle: &Tensor,
        pass: &EncoderPass,
        hook: &mut dyn Hook,
    ) -> Result<UnitKept> {
        let mut inner = self.inner(middle, hook, true)?;
        match &self.norms {
            EncoderNorms::After { unit, .. } => {
                let sum = self.last_sum(middle, &mut inner, pass, hook, true)?;
                let (_, moments) = unit.forward(&sum)?;
                inner.kept.last = Some((sum, moments));
            }
            EncoderNorms::Before { .. } => {
                inner.kept.hooks[1] = hook.again(&self.down, &inner.product)?;
            }
        }
        Ok(inner.kept)
    }

    /// The residual stream behind attention, before any norm there, and what is kept of the way there.
    fn to_unit(
        &self,
        x: &Tensor,
        pass: &EncoderPass,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Kept>)> {
        let width = self.shape.heads * self.shape.head_dim;
        let (normed, input_moments) = self.normed_input(x)?;
        let (outputs, qkv_kept) = hook.forward(&self.qkv, &normed, keep)?;
        drop(normed);
        let [q, k, v] = parts(outputs, [width; 3])?;
        if let Some(table) = self.table(pass) {
            rope(&q, self.shape.heads, pass.positions, table)?;
            rope(&k, self.shape.heads, pass.positions, table)?;
        }
        let (attended, log_sums) = bidirectional(&q, &k, &v, pass.documents, &self.shape)?;
        let (outputs, out_kept) = hook.forward(&self.out, &attended, keep)?;
        let middle = self.thinned(one(outputs)?, pass, false)?;
        add_in_place(&middle, x)?;
        let kept = keep.then(|| Kept {
            x: x.clone(),
            input_moments,
            q,
            k,
            v,
            attended,
            log_sums,
            middle: middle.clone(),
            hooks: [qkv_kept, out_kept],
            unit: None,
        });
        Ok((middle, kept))
    }

    /// The way from the residual stream behind attention to the unit's second projection.
    fn inner(&self, middle: &Tensor, hook: &mut dyn Hook, keep: bool) -> Result<Inner> {
        let (normed, moments) = self.middle_norm().forward(middle)?;
        let (outputs, up_kept) = hook.forward(&self.up, &normed, keep)?;
        let (inner, gate) = if self.gated {
            let wide = outputs.first().map_or(Ok(0), |both| both.dim(1))? / 2;
            let [inner, gate] = parts(outputs, [wide, wide])?;
            (inner, Some(gate))
        } else {
            (one(outputs)?, None)
        };
        Ok(Inner {
            normed,
            product: self.product(&inner, gate.as_ref())?,
            kept: UnitKept {
                moments,
                inner,
                gate,
                last: None,
                hooks: [up_kept, None],
            },
        })
    }

    /// The unit's output with the residual stream, before any norm behind.
    fn last_sum(
        &self,
        middle: &Tensor,
        inner: &mut Inner,
        pass: &EncoderPass,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<Tensor> {
        let (outputs, down_kept) = hook.forward(&self.down, &inner.product, keep)?;
        inner.kept.hooks[1] = down_kept;
        let sum = self.thinned(one(outputs)?, pass, true)?;
        let stream = match &self.norms {
            EncoderNorms::After { .. } => &inner.normed,
            EncoderNorms::Before { .. } => middle,
        };
        add_in_place(&sum, stream)?;
        Ok(sum)
    }

    /// Gradient of the block's input, from that of its output.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn backward(
        &self,
        dy: &Tensor,
        kept: Kept,
        pass: &EncoderPass,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        let [qkv_kept, out_kept] = kept.hooks;
        let inner = match kept.unit {
            Some(inner) => inner,
            None => self.unit_again(&kept.middle, pass, hook)?,
        };
        let [up_kept, down_kept] = inner.hooks;
        // The gradient of the last sum with the residual stream.
        let dsum = match (&self.norms, &inner.last) {
            (EncoderNorms::After { unit, .. }, Some((sum, moments))) => {
                unit.backward(dy, sum, moments, None, hook)?
            }
            _ => dy.clone(),
        };
        let product = self.product(&inner.inner, inner.gate.as_ref())?;
        let dunit = self.thinned(dsum.clone(), pass, true)?;
        let dproduct = hook.backward(&self.down, &product, &[dunit], down_kept)?;
        drop(product);
        let dup = match inner.gate {
            Some(gate) => {
                let (dinner, dgate) =
                    gated_backward_in_place(self.activation, &dproduct, inner.inner, gate)?;
                together(&self.up, &[dinner, dgate])?
            }
            None => vec![activate_backward(self.activation, &dproduct, &inner.inner)?],
        };
        drop(dproduct);
        let norm = self.middle_norm();
        let (normed, _) = norm.forward(&kept.middle)?;
        let dnormed = hook.backward(&self.up, &normed, &dup, up_kept)?;
        drop((normed, dup));
        let moments = &inner.moments;
        let dmiddle = match &self.norms {
            EncoderNorms::After { .. } => {
                add_in_place(&dnormed, &dsum)?;
                norm.backward(&dnormed, &kept.middle, moments, None, hook)?
            }
            EncoderNorms::Before { .. } => {
                norm.backward(&dnormed, &kept.middle, moments, Some(&dsum), hook)?
            }
        };
        let dout = self.thinned(dmiddle.clone(), pass, false)?;
        let dattended = hook.backward(&self.out, &kept.attended, &[dout], out_kept)?;
        let (dq, dk, dv) = bidirectional_backward(
            &dattended,
            &kept.q,
            &kept.k,
            &kept.v,
            &kept.attended,
            &kept.log_sums,
            pass.documents,
            &self.shape,
        )?;
        if let Some(table) = self.table(pass) {
            rope_backward(&dq, self.shape.heads, pass.positions, table)?;
            rope_backward(&dk, self.shape.heads, pass.positions, table)?;
        }
        let (normed, _) = self.normed_input(&kept.x)?;
        let dqkv = together(&self.qkv, &[dq, dk, dv])?;
        let dx = hook.backward(&self.qkv, &normed, &dqkv, qkv_kept)?;
        if let (Some(norm), Some(moments)) = (self.input_norm(), &kept.input_moments) {
            return norm.backward(&dx, &kept.x, moments, Some(&dmiddle), hook);
        }
        add_in_place(&dx, &dmiddle)?;
        Ok(dx)
    }
}
