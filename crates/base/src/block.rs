//! The decoder block: attention and a gated unit, each behind a norm and beside the residual stream.
//!
//! [`Block::forward`] and [`Block::backward`] stand beside each other and do the same steps in opposite
//! order; [`Block::forward_cached`] does the forward steps for the next tokens of a generation. Norm outputs and the gated product are cheap to compute and large to keep, so the backward
//! pass computes them again from what is kept. A family is a configuration of this one block.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use sparsam_kernels::activation::{Activation, gated, gated_backward};
use sparsam_kernels::attention::{AttentionShape, attention, attention_backward, attention_cached};
use sparsam_kernels::host::{fetch, tensor, view};
use sparsam_kernels::linear::add_in_place;
use sparsam_kernels::norm::{rms_norm, rms_norm_backward};
use sparsam_kernels::rope::{Positions, RopeTable, rope, rope_backward};
use sparsam_kernels::{Documents, Weight};

use crate::projection::{Group, Hook, HookKept};

/// A named norm weight, `[width]` in f32.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Name of the parameter, `model.layers.3.input_layernorm.weight`.
    pub name: String,
    /// `[width]`
    pub weight: Tensor,
}

/// One decoder block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention.
    pub input_norm: Norm,
    /// q, k, v.
    pub qkv: Group,
    /// Norms of q and k, head by head (Qwen3).
    pub qk_norm: Option<(Norm, Norm)>,
    /// o.
    pub o: Group,
    /// Before the gated unit.
    pub post_norm: Norm,
    /// gate, up.
    pub gate_up: Group,
    /// down.
    pub down: Group,
    /// Heads, scale and window.
    pub shape: AttentionShape,
    /// Whether positions are turned in this block.
    pub rope: bool,
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
}

/// What the backward pass of a block needs of its forward pass.
pub struct Kept {
    x: Tensor,
    input_roots: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qk: Option<QkKept>,
    attended: Tensor,
    log_sums: Tensor,
    middle: Tensor,
    post_roots: Tensor,
    gate: Tensor,
    up: Tensor,
    hooks: [HookKept; 4],
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
    input_roots: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qk: Option<QkKept>,
    hook: HookKept,
}

/// What stands between a block's attention and its output.
struct Finished {
    middle: Tensor,
    post_roots: Tensor,
    gate: Tensor,
    up: Tensor,
    hooks: [HookKept; 3],
}

/// Keys and values of one sequence in one block, for generation; in the host's memory, also where the model is
/// on a GPU.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// `[length, kv_heads · head_dim]`
    keys: Vec<f32>,
    /// As `keys`.
    values: Vec<f32>,
}

fn three(mut tensors: Vec<Tensor>) -> Result<(Tensor, Tensor, Tensor)> {
    match (tensors.pop(), tensors.pop(), tensors.pop()) {
        (Some(third), Some(second), Some(first)) => Ok((first, second, third)),
        _ => candle_core::bail!("a group of three projections gave fewer outputs"),
    }
}

fn two(mut tensors: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    match (tensors.pop(), tensors.pop()) {
        (Some(second), Some(first)) => Ok((first, second)),
        _ => candle_core::bail!("a group of two projections gave fewer outputs"),
    }
}

fn one(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    match tensors.pop() {
        Some(tensor) => Ok(tensor),
        None => candle_core::bail!("a projection gave no output"),
    }
}

impl Block {
    /// The block's output for `x` `[tokens, hidden]`; and, if `keep`, what its backward pass needs.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<Kept>)> {
        let p = self.narrowed(self.project(x, pass, hook, keep)?)?;
        let (attended, log_sums) = attention(&p.q, &p.k, &p.v, pass.documents, &self.shape)?;
        let (y, f) = self.finish(x, &attended, hook, keep)?;
        let kept = keep.then(|| {
            let [o_kept, gate_up_kept, down_kept] = f.hooks;
            Kept {
                x: x.clone(),
                input_roots: p.input_roots,
                q: p.q,
                k: p.k,
                v: p.v,
                qk: p.qk,
                attended,
                log_sums,
                middle: f.middle,
                post_roots: f.post_roots,
                gate: f.gate,
                up: f.up,
                hooks: [p.hook, o_kept, gate_up_kept, down_kept],
            }
        });
        Ok((y, kept))
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
        if caches.len() != pass.documents.len() {
            candle_core::bail!(
                "{} caches for {} sequences",
                caches.len(),
                pass.documents.len()
            );
        }
        let p = self.project(x, pass, hook, false)?;
        let fresh = caches.iter().all(|cache| cache.keys.is_empty());
        {
            let (k, v) = (fetch(&p.k)?, fetch(&p.v)?);
            let (k, v) = (view::<f32>(&k)?, view::<f32>(&v)?);
            let width = self.shape.kv_heads * self.shape.head_dim;
            for (cache, range) in caches.iter_mut().zip(pass.documents.ranges()) {
                let range = range.start * width..range.end * width;
                cache.keys.extend_from_slice(&k[range.clone()]);
                cache.values.extend_from_slice(&v[range]);
            }
        }
        let attended = if fresh {
            attention(&p.q, &p.k, &p.v, pass.documents, &self.shape)?.0
        } else {
            let q = fetch(&p.q)?;
            let q = view::<f32>(&q)?;
            let width = self.shape.heads * self.shape.head_dim;
            let ranges: Vec<_> = pass.documents.ranges().collect();
            let rows = caches.par_iter().zip(ranges).map(|(cache, range)| {
                let q = &q[range.start * width..range.end * width];
                attention_cached(q, &cache.keys, &cache.values, &self.shape)
            });
            let rows: Vec<Vec<f32>> = rows.collect::<Result<_>>()?;
            tensor(rows.concat(), p.q.dims())?.to_device(x.device())?
        };
        Ok(self.finish(x, &attended, hook, false)?.0)
    }

    /// Queries, keys and values, normalised and turned: the way from the input to attention.
    fn project(
        &self,
        x: &Tensor,
        pass: &Pass,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<Projected> {
        let (normed, input_roots) = rms_norm(x, &self.input_norm.weight, self.epsilon)?;
        let (outputs, hook) = hook.forward(&self.qkv, &normed, keep)?;
        drop(normed);
        let (mut q, mut k, v) = three(outputs)?;
        let mut qk = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_normed, q_roots) = self.head_norm(&q, self.shape.heads, q_norm)?;
            let (k_normed, k_roots) = self.head_norm(&k, self.shape.kv_heads, k_norm)?;
            qk = Some(QkKept {
                q,
                k,
                q_roots,
                k_roots,
            });
            (q, k) = (q_normed, k_normed);
        }
        if self.rope {
            rope(&q, self.shape.heads, pass.positions, pass.table)?;
            rope(&k, self.shape.kv_heads, pass.positions, pass.table)?;
        }
        Ok(Projected {
            input_roots,
            q,
            k,
            v,
            qk,
            hook,
        })
    }

    /// Queries, keys and values in bf16 where the products that made them were.
    fn narrowed(&self, mut projected: Projected) -> Result<Projected> {
        let mut weights = self.qkv.projections.iter().map(|p| &p.weight);
        if self.shape.takes_bf16(projected.q.device()) && weights.all(Weight::multiplies_in_bf16) {
            for tensor in [&mut projected.q, &mut projected.k, &mut projected.v] {
                *tensor = tensor.to_dtype(DType::BF16)?;
            }
        }
        Ok(projected)
    }

    /// The way from attention's output to the block's, through the gated unit.
    fn finish(
        &self,
        x: &Tensor,
        attended: &Tensor,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Finished)> {
        let (outputs, o_kept) = hook.forward(&self.o, attended, keep)?;
        let middle = one(outputs)?;
        add_in_place(&middle, x)?;

        let (normed, post_roots) = rms_norm(&middle, &self.post_norm.weight, self.epsilon)?;
        let (outputs, gate_up_kept) = hook.forward(&self.gate_up, &normed, keep)?;
        drop(normed);
        let (gate, up) = two(outputs)?;
        let product = gated(Activation::Silu, &gate, &up)?;
        let (outputs, down_kept) = hook.forward(&self.down, &product, keep)?;
        let y = one(outputs)?;
        add_in_place(&y, &middle)?;
        let finished = Finished {
            middle,
            post_roots,
            gate,
            up,
            hooks: [o_kept, gate_up_kept, down_kept],
        };
        Ok((y, finished))
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
        let [qkv_kept, o_kept, gate_up_kept, down_kept] = kept.hooks;
        let product = gated(Activation::Silu, &kept.gate, &kept.up)?;
        let dproduct = hook.backward(&self.down, &product, std::slice::from_ref(dy), down_kept)?;
        drop(product);
        let (dgate, dup) = gated_backward(Activation::Silu, &dproduct, &kept.gate, &kept.up)?;
        drop(dproduct);
        let (normed, _) = rms_norm(&kept.middle, &self.post_norm.weight, self.epsilon)?;
        let dnormed = hook.backward(&self.gate_up, &normed, &[dgate, dup], gate_up_kept)?;
        drop(normed);
        let dmiddle = rms_norm_backward(
            &dnormed,
            &kept.middle,
            &self.post_norm.weight,
            &kept.post_roots,
            Some(dy),
            hook.accumulator(&self.post_norm.name).as_ref(),
        )?;
        drop(dnormed);

        let dattended = hook.backward(
            &self.o,
            &kept.attended,
            std::slice::from_ref(&dmiddle),
            o_kept,
        )?;
        let (mut dq, mut dk, dv) = attention_backward(
            &dattended,
            &kept.q,
            &kept.k,
            &kept.v,
            &kept.attended,
            &kept.log_sums,
            pass.documents,
            &self.shape,
        )?;
        if self.rope {
            rope_backward(&dq, self.shape.heads, pass.positions, pass.table)?;
            rope_backward(&dk, self.shape.kv_heads, pass.positions, pass.table)?;
        }
        if let (Some((q_norm, k_norm)), Some(qk)) = (&self.qk_norm, &kept.qk) {
            dq = self.head_norm_backward(&dq, &qk.q, &qk.q_roots, q_norm, hook)?;
            dk = self.head_norm_backward(&dk, &qk.k, &qk.k_roots, k_norm, hook)?;
        }
        let (normed, _) = rms_norm(&kept.x, &self.input_norm.weight, self.epsilon)?;
        let dnormed = hook.backward(&self.qkv, &normed, &[dq, dk, dv], qkv_kept)?;
        rms_norm_backward(
            &dnormed,
            &kept.x,
            &self.input_norm.weight,
            &kept.input_roots,
            Some(&dmiddle),
            hook.accumulator(&self.input_norm.name).as_ref(),
        )
    }

    fn head_norm(&self, x: &Tensor, heads: usize, norm: &Norm) -> Result<(Tensor, Tensor)> {
        let (tokens, width) = x.dims2()?;
        let (y, roots) = rms_norm(
            &x.reshape((tokens * heads, width / heads))?,
            &norm.weight,
            self.epsilon,
        )?;
        Ok((y.reshape((tokens, width))?, roots))
    }

    fn head_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        roots: &Tensor,
        norm: &Norm,
        hook: &dyn Hook,
    ) -> Result<Tensor> {
        let rows = (roots.dims1()?, self.shape.head_dim);
        let shape = dy.dims2()?;
        let into = hook.accumulator(&norm.name);
        let (dy, x) = (dy.reshape(rows)?, x.reshape(rows)?);
        rms_norm_backward(&dy, &x, &norm.weight, roots, None, into.as_ref())?.reshape(shape)
    }
}
