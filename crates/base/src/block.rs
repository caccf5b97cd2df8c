//! The decoder block: attention and a gated unit, each behind a norm and beside the residual stream, or
//! with a norm after it, or both.
//!
//! [`Block::forward`] and [`Block::backward`] stand beside each other and do the same steps in opposite
//! order; [`Block::forward_cached`] does the forward steps for the next tokens of a generation. Norm outputs and
//! the gated product are cheap to compute and large to keep, so the backward pass computes them again
//! from what is kept. A family is a configuration of this one block.

use candle_core::{DType, Device, Result, Tensor};
use sparsam_kernels::activation::{Activation, gated};
use sparsam_kernels::attention::{
    AttentionShape, Cache, attention, attention_backward, attention_next,
};
use sparsam_kernels::host::to_bf16;
use sparsam_kernels::linear::add_in_place;
use sparsam_kernels::norm::{rms_norm, rms_norm_backward, rms_norm_to_bf16};
use sparsam_kernels::rope::{
    Positions, RopeTable, rope, rope_backward, rope_backward_to_bf16, rope_to_bf16,
};
use sparsam_kernels::{Documents, Weight};

use crate::projection::{Group, Hook, HookKept};
use crate::stack::Extent;

/// A named norm weight, `[width]` in f32.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Name of the parameter, `model.layers.3.input_layernorm.weight`.
    pub name: String,
    /// The factors, `[width]`: what is stored plus the family's offset.
    pub weight: Tensor,
}

/// One decoder block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention.
    pub input_norm: Option<Norm>,
    /// q, k, v; or one projection whose outputs are theirs side by side.
    pub qkv: Group,
    /// Norms of q and k, as many numbers at a time as they have weights: a head, or all heads.
    pub qk_norm: Option<(Norm, Norm)>,
    /// o.
    pub o: Group,
    /// After attention, before its output joins the residual stream.
    pub attention_norm: Option<Norm>,
    /// Before the gated unit.
    pub post_norm: Option<Norm>,
    /// gate, up; or one projection whose outputs are theirs side by side.
    pub gate_up: Group,
    /// What the gate passes through.
    pub activation: Activation,
    /// down.
    pub down: Group,
    /// After the gated unit, before its output joins the residual stream.
    pub unit_norm: Option<Norm>,
    /// Factor on what joins the residual stream.
    pub residual_scale: f64,
    /// Heads, scale, window and cap.
    pub shape: AttentionShape,
    /// Whether positions are turned in this block.
    pub rope: bool,
    /// Whether they are turned by the frequencies of local layers.
    pub local: bool,
    /// Added to the mean square in every norm.
    pub epsilon: f64,
}

/// What all blocks share in one pass over a batch.
pub struct Pass<'a> {
    /// Where the documents begin and end.
    pub documents: &'a Documents,
    /// Position of each token in its document.
    pub positions: &'a Positions,
    /// Sines and cosines.
    pub table: &'a RopeTable,
    /// Those of local layers, where they are others.
    pub local_table: Option<&'a RopeTable>,
}

/// What the backward pass of a block needs of its forward pass.
pub struct Kept {
    x: Tensor,
    input_roots: Option<Tensor>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qk: Option<QkKept>,
    attended: Tensor,
    log_sums: Tensor,
    attention_out: Option<Normed>,
    middle: Tensor,
    hooks: [HookKept; 2],
    /// Of the unit, where it is not to be computed again from `middle`.
    unit: Option<UnitKept>,
}

/// What the backward pass of a unit needs of its forward pass, besides its input.
struct UnitKept {
    roots: Option<Tensor>,
    gate: Tensor,
    up: Tensor,
    out: Option<Normed>,
    hooks: [HookKept; 2],
}

/// What went into a norm, with the inverse roots.
struct Normed {
    x: Tensor,
    roots: Tensor,
}

/// q and k before their norms, with the inverse roots.
struct QkKept {
    q: Tensor,
    k: Tensor,
    q_roots: Tensor,
    k_roots: Tensor,
}

/// What stands between a block's input and its attention.
struct Projected {
    input_roots: Option<Tensor>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qk: Option<QkKept>,
    hook: HookKept,
}

/// Outputs of a group: as many as `widths`, or one that holds them side by side.
pub(crate) fn parts<const N: usize>(
    outputs: Vec<Tensor>,
    widths: [usize; N],
) -> Result<[Tensor; N]> {
    let outputs = match outputs.as_slice() {
        [together] if N > 1 => {
            let mut start = 0;
            let cut = |width: usize| {
                // A storage of their own, also where there is one row, so that each may be written to.
                let part = together.narrow(1, start, width)?.force_contiguous();
                start += width;
                part
            };
            widths.into_iter().map(cut).collect::<Result<Vec<_>>>()?
        }
        _ => outputs,
    };
    let found = outputs.len();
    outputs
        .try_into()
        .or_else(|_| candle_core::bail!("a group gave {found} outputs where {N} were expected"))
}

/// Gradients of a group's outputs, put side by side where the group has one output.
pub(crate) fn together(group: &Group, gradients: &[Tensor]) -> Result<Vec<Tensor>> {
    if group.projections.len() == 1 && gradients.len() > 1 {
        return Ok(vec![Tensor::cat(gradients, 1)?]);
    }
    Ok(gradients.to_vec())
}

pub(crate) fn one(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    match tensors.pop() {
        Some(tensor) => Ok(tensor),
        None => candle_core::bail!("a projection gave no output"),
    }
}

/// A way to turn so many heads.
type Turn<R> = fn(&Tensor, usize, &Positions, &RopeTable) -> Result<R>;

impl Block {
    /// All its norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let around = [
            &self.input_norm,
            &self.attention_norm,
            &self.post_norm,
            &self.unit_norm,
        ];
        let of_heads = self.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        around.into_iter().flatten().chain(of_heads)
    }

    /// All its groups of projections.
    pub fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    /// Memory of its matrices as they are stored, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let projections = self.groups().into_iter().flat_map(|g| &g.projections);
        projections.map(|p| p.weight.bytes()).sum()
    }

    /// Puts its weights into the memory of `device`; see [`Model::move_to`](crate::model::Model::move_to).
    pub(crate) fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        let around = [
            &mut self.input_norm,
            &mut self.attention_norm,
            &mut self.post_norm,
            &mut self.unit_norm,
        ];
        let of_heads = self.qk_norm.iter_mut().flat_map(|(q, k)| [q, k]);
        for norm in around.into_iter().flatten().chain(of_heads) {
            norm.weight = norm.weight.to_device(device)?;
        }
        for group in [
            &mut self.qkv,
            &mut self.o,
            &mut self.gate_up,
            &mut self.down,
        ] {
            group.move_to(device, compute)?;
        }
        Ok(())
    }

    /// `x` through a norm, where there is one, and the inverse roots.
    fn norm(&self, norm: Option<&Norm>, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        match norm {
            Some(norm) => {
                let (y, roots) = rms_norm(x, &norm.weight, self.epsilon)?;
                Ok((y, Some(roots)))
            }
            None => Ok((x.clone(), None)),
        }
    }

    /// `x` through the norm before a group, in the type that the group takes.
    fn norm_before(
        &self,
        group: &Group,
        norm: Option<&Norm>,
        x: &Tensor,
        hook: &dyn Hook,
    ) -> Result<(Tensor, Option<Tensor>)> {
        match norm {
            Some(norm) if hook.takes_bf16(group) => {
                let (y, roots) = rms_norm_to_bf16(x, &norm.weight, self.epsilon)?;
                Ok((y, Some(roots)))
            }
            _ => self.norm(norm, x),
        }
    }

    /// Gradient of a norm's input from that of its output, with what reaches the input past it.
    fn norm_backward(
        norm: Option<&Norm>,
        dy: Tensor,
        x: &Tensor,
        roots: Option<&Tensor>,
        past: Option<&Tensor>,
        hook: &dyn Hook,
    ) -> Result<Tensor> {
        let (Some(norm), Some(roots)) = (norm, roots) else {
            if let Some(past) = past {
                add_in_place(&dy, past)?;
            }
            return Ok(dy);
        };
        let into = hook.accumulator(&norm.name);
        rms_norm_backward(&dy, x, &norm.weight, roots, past, into.as_ref())
    }

    /// What an output adds to the residual stream: normed, scaled.
    fn outgoing(&self, norm: Option<&Norm>, x: Tensor) -> Result<(Tensor, Option<Normed>)> {
        let (y, roots) = self.norm(norm, &x)?;
        let y = self.scaled(y)?;
        Ok((y, roots.map(|roots| Normed { x, roots })))
    }

    /// Gradient of an output, from that of the residual stream it joined.
    fn outgoing_backward(
        &self,
        norm: Option<&Norm>,
        dy: &Tensor,
        kept: Option<&Normed>,
        hook: &dyn Hook,
    ) -> Result<Tensor> {
        let dy = self.scaled(dy.clone())?;
        match kept {
            Some(kept) => Self::norm_backward(norm, dy, &kept.x, Some(&kept.roots), None, hook),
            None => Ok(dy),
        }
    }

    fn scaled(&self, x: Tensor) -> Result<Tensor> {
        if self.residual_scale == 1.0 {
            return Ok(x);
        }
        x.affine(self.residual_scale, 0.0)
    }

    fn table<'a>(&self, pass: &Pass<'a>) -> &'a RopeTable {
        match pass.local_table {
            Some(table) if self.local => table,
            _ => pass.table,
        }
    }

    /// The block's output for `x` `[tokens, hidden]`, and what its backward pass needs, as far as it is to be kept.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        hook: &mut dyn Hook,
        extent: Extent,
    ) -> Result<(Tensor, Option<Kept>)> {
        let (middle, mut kept) = self.to_unit(x, pass, hook, extent != Extent::Nothing)?;
        let keep = extent == Extent::All;
        let (product, mut unit) = self.unit(&middle, hook, keep)?;
        let (y, out, down_kept) = self.leave(&product, &middle, hook, keep)?;
        if let Some(kept) = kept.as_mut().filter(|_| keep) {
            unit.out = out;
            unit.hooks[1] = down_kept;
            kept.unit = Some(unit);
        }
        Ok((y, kept))
    }

    /// What [`Block::forward`] keeps up to the unit, of an input whose output is known already.
    ///
    /// # Errors
    /// As there.
    pub fn again(&self, x: &Tensor, pass: &Pass, hook: &mut dyn Hook) -> Result<Option<Kept>> {
        Ok(self.to_unit(x, pass, hook, true)?.1)
    }

    /// What the unit keeps, of an input whose output is known already: its last product is left out where nothing
    /// that is kept comes after it.
    fn unit_again(&self, middle: &Tensor, hook: &mut dyn Hook) -> Result<UnitKept> {
        let (product, mut unit) = self.unit(middle, hook, true)?;
        if self.unit_norm.is_some() {
            let (_, out, down_kept) = self.leave(&product, middle, hook, true)?;
            unit.out = out;
            unit.hooks[1] = down_kept;
        } else {
            unit.hooks[1] = hook.again(&self.down, &product)?;
        }
        Ok(unit)
    }

    /// The residual stream behind attention, and what is kept of the way there.
    fn to_unit(
        &self,
        x: &Tensor,
        pass: &Pass,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Kept>)> {
        let shape = self.attention_shape();
        let narrow = shape.rounded && shape.takes_bf16(x.device());
        let p = self.project(x, pass, hook, narrow, keep)?;
        let (mut attended, log_sums) = attention(&p.q, &p.k, &p.v, pass.documents, &shape)?;
        if attended.dtype() == DType::BF16 && !hook.takes_bf16(&self.o) {
            attended = attended.to_dtype(DType::F32)?;
        }
        let (middle, attention_out, o_kept) = self.attend(&attended, x, hook, keep)?;
        let kept = keep.then(|| Kept {
            x: x.clone(),
            input_roots: p.input_roots,
            q: p.q,
            k: p.k,
            v: p.v,
            qk: p.qk,
            attended,
            log_sums,
            attention_out,
            middle: middle.clone(),
            hooks: [p.hook, o_kept],
            unit: None,
        });
        Ok((middle, kept))
    }

    /// The block's output for the next tokens of several sequences, `x` `[tokens, hidden]`, of which
    /// the earlier ones are in `caches`, one for each document of the pass; adds the new ones there.
    ///
    /// The pass's positions count on from the length of each cache.
    ///
    /// # Errors
    /// Another number of caches than documents, or an operation on tensors failed.
    pub fn forward_cached(
        &self,
        x: &Tensor,
        pass: &Pass,
        hook: &mut dyn Hook,
        caches: &mut [&mut Cache],
    ) -> Result<Tensor> {
        let p = self.project(x, pass, hook, false, false)?;
        let shape = self.attention_shape();
        let attended = attention_next(&p.q, &p.k, &p.v, caches, pass.documents, &shape)?;
        let (middle, ..) = self.attend(&attended, x, hook, false)?;
        let (product, _) = self.unit(&middle, hook, false)?;
        Ok(self.leave(&product, &middle, hook, false)?.0)
    }

    /// Queries, keys and values, normalised and turned: the way from the input to attention. `narrow`: in bf16.
    fn project(
        &self,
        x: &Tensor,
        pass: &Pass,
        hook: &mut dyn Hook,
        narrow: bool,
        keep: bool,
    ) -> Result<Projected> {
        let norm = self.input_norm.as_ref();
        let (normed, input_roots) = self.norm_before(&self.qkv, norm, x, hook)?;
        let (outputs, hook) = hook.forward(&self.qkv, &normed, keep)?;
        drop(normed);
        let width = self.shape.heads * self.shape.head_dim;
        let kv_width = self.shape.kv_heads * self.shape.head_dim;
        let [mut q, mut k, v] = parts(outputs, [width, kv_width, kv_width])?;
        let mut qk = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_normed, q_roots) = self.head_norm(&q, q_norm)?;
            let (k_normed, k_roots) = self.head_norm(&k, k_norm)?;
            qk = Some(QkKept {
                q,
                k,
                q_roots,
                k_roots,
            });
            (q, k) = (q_normed, k_normed);
        }
        let [q, k, v] = self.turned([q, k, v], pass, narrow, (rope as _, rope_to_bf16 as _))?;
        Ok(Projected {
            input_roots,
            q,
            k,
            v,
            qk,
            hook,
        })
    }

    /// The shape of attention, whose products are rounded where those that made its operands are.
    fn attention_shape(&self) -> AttentionShape {
        let mut weights = self.qkv.projections.iter().map(|p| &p.weight);
        AttentionShape {
            rounded: weights.all(Weight::multiplies_in_bf16),
            ..self.shape
        }
    }

    /// The residual stream with the output of a group that reads `x`, and what went into the norm on that output, if
    /// there is one.
    fn join(
        &self,
        (group, norm): (&Group, Option<&Norm>),
        x: &Tensor,
        stream: &Tensor,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Normed>, HookKept)> {
        let (outputs, kept) = hook.forward(group, x, keep)?;
        let (y, out) = self.outgoing(norm, one(outputs)?)?;
        add_in_place(&y, stream)?;
        Ok((y, out, kept))
    }

    /// [`Block::join`] of attention's output.
    fn attend(
        &self,
        attended: &Tensor,
        x: &Tensor,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Normed>, HookKept)> {
        let way = (&self.o, self.attention_norm.as_ref());
        self.join(way, attended, x, hook, keep)
    }

    /// The gated product, and what is kept of the way there.
    fn unit(&self, middle: &Tensor, hook: &mut dyn Hook, keep: bool) -> Result<(Tensor, UnitKept)> {
        let norm = self.post_norm.as_ref();
        let (normed, roots) = self.norm_before(&self.gate_up, norm, middle, hook)?;
        // Gate and up are kept as they would be if the whole base computed in bf16.
        let narrow = hook.takes_bf16(&self.gate_up) && hook.takes_bf16(&self.down);
        let ([product, gate, up], gate_up_kept) =
            hook.gated(&self.gate_up, self.activation, &normed, narrow, keep)?;
        let kept = UnitKept {
            roots,
            gate,
            up,
            out: None,
            hooks: [gate_up_kept, None],
        };
        Ok((product, kept))
    }

    /// [`Block::join`] of the unit's output, which gives the block's.
    fn leave(
        &self,
        product: &Tensor,
        middle: &Tensor,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Normed>, HookKept)> {
        let way = (&self.down, self.unit_norm.as_ref());
        self.join(way, product, middle, hook, keep)
    }

    /// Gradient of the block's input, from that of its output.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn backward(
        &self,
        dy: &Tensor,
        kept: Kept,
        pass: &Pass,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        let [qkv_kept, o_kept] = kept.hooks;
        let unit = match kept.unit {
            Some(unit) => unit,
            None => self.unit_again(&kept.middle, hook)?,
        };
        let [gate_up_kept, down_kept] = unit.hooks;
        let product = gated(self.activation, &unit.gate, &unit.up)?;
        let norm = self.unit_norm.as_ref();
        let dunit = self.outgoing_backward(norm, dy, unit.out.as_ref(), hook)?;
        let of_unit = [unit.gate, unit.up];
        let (dgate, dup) = hook.gated_backward(
            &self.down,
            self.activation,
            product,
            dunit,
            of_unit,
            down_kept,
        )?;
        let norm = self.post_norm.as_ref();
        let (normed, _) = self.norm_before(&self.gate_up, norm, &kept.middle, hook)?;
        let dgate_up = together(&self.gate_up, &[dgate, dup])?;
        let dnormed = hook.backward(&self.gate_up, &normed, &dgate_up, gate_up_kept)?;
        drop((normed, dgate_up));
        let roots = unit.roots.as_ref();
        let dmiddle = Self::norm_backward(norm, dnormed, &kept.middle, roots, Some(dy), hook)?;

        let norm = self.attention_norm.as_ref();
        let dout = self.outgoing_backward(norm, &dmiddle, kept.attention_out.as_ref(), hook)?;
        let dattended = hook.backward(&self.o, &kept.attended, &[dout], o_kept)?;
        let (dq, dk, dv) = attention_backward(
            &dattended,
            &kept.q,
            &kept.k,
            &kept.v,
            &kept.attended,
            &kept.log_sums,
            pass.documents,
            &self.attention_shape(),
        )?;
        // A GPU's products read them in bf16, and rotating writes them so in one pass.
        let narrow = dq.device().is_cuda() && self.qk_norm.is_none() && hook.takes_bf16(&self.qkv);
        let back = (rope_backward as _, rope_backward_to_bf16 as _);
        let [mut dq, mut dk, dv] = self.turned([dq, dk, dv], pass, narrow, back)?;
        if let (Some((q_norm, k_norm)), Some(qk)) = (&self.qk_norm, &kept.qk) {
            dq = Self::head_norm_backward(&dq, &qk.q, &qk.q_roots, q_norm, hook)?;
            dk = Self::head_norm_backward(&dk, &qk.k, &qk.k_roots, k_norm, hook)?;
        }
        let norm = self.input_norm.as_ref();
        let (normed, _) = self.norm_before(&self.qkv, norm, &kept.x, hook)?;
        let dqkv = together(&self.qkv, &[dq, dk, dv])?;
        let dnormed = hook.backward(&self.qkv, &normed, &dqkv, qkv_kept)?;
        let roots = kept.input_roots.as_ref();
        Self::norm_backward(norm, dnormed, &kept.x, roots, Some(&dmiddle), hook)
    }

    /// Queries, keys and values, or their gradients, with the first two turned in the block's positions, all in bf16 if
    /// they are to be `narrow`; by one of two ways to turn, in place and to bf16.
    fn turned(
        &self,
        [mut q, mut k, v]: [Tensor; 3],
        pass: &Pass,
        narrow: bool,
        (in_place, to_narrow): (Turn<()>, Turn<Tensor>),
    ) -> Result<[Tensor; 3]> {
        if self.rope {
            let table = self.table(pass);
            for (of, heads) in [(&mut q, self.shape.heads), (&mut k, self.shape.kv_heads)] {
                if narrow {
                    *of = to_narrow(of, heads, pass.positions, table)?;
                } else {
                    in_place(of, heads, pass.positions, table)?;
                }
            }
        }
        if narrow {
            return Ok([to_bf16(&q)?, to_bf16(&k)?, to_bf16(&v)?]);
        }
        Ok([q, k, v])
    }

    fn head_norm(&self, x: &Tensor, norm: &Norm) -> Result<(Tensor, Tensor)> {
        let (tokens, width) = x.dims2()?;
        let at_a_time = norm.weight.dims1()?;
        let rows = (tokens * width / at_a_time.max(1), at_a_time);
        let (y, roots) = rms_norm(&x.reshape(rows)?, &norm.weight, self.epsilon)?;
        Ok((y.reshape((tokens, width))?, roots))
    }

    fn head_norm_backward(
        dy: &Tensor,
        x: &Tensor,
        roots: &Tensor,
        norm: &Norm,
        hook: &dyn Hook,
    ) -> Result<Tensor> {
        let rows = (roots.dims1()?, norm.weight.dims1()?);
        let shape = dy.dims2()?;
        let into = hook.accumulator(&norm.name);
        let (dy, x) = (dy.reshape(rows)?, x.reshape(rows)?);
        rms_norm_backward(&dy, &x, &norm.weight, roots, None, into.as_ref())?.reshape(shape)
    }
}
