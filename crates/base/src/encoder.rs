//! Encoders: models that read a text in both directions and give a vector for every token.
//!
//! One structure serves BERT, DistilBERT, RoBERTa, XLM-RoBERTa and ModernBERT; [`config`] says how they differ,
//! [`block`] is their block and [`load`] knows their names. What is made of the vectors is the business of
//! [`classifier`](crate::classifier).

pub mod block;
pub mod config;
mod load;

use candle_core::{DType, Device, Result, Tensor};
use sparsam_kernels::dropout::{DropoutKey, dropout};
use sparsam_kernels::embedding::add_rows;
use sparsam_kernels::layer_norm::{Moments, layer_norm};
use sparsam_kernels::linear::{add_in_place, bias_grad};
use sparsam_kernels::rope::RopeTable;
use sparsam_kernels::{Documents, Weight};

use crate::error::Error;
use crate::projection::Hook;
use crate::stack::{self, Keep, StackKept};
use block::{EncoderBlock, EncoderPass, Kept, LayerNorm};
use config::EncoderConfig;
pub(crate) use load::{Renamed, norm};

/// First of the places at which an encoder drops hidden numbers; adapters count theirs from 0.
pub(crate) const SITES: u32 = 1 << 24;

/// An encoder.
pub struct Encoder {
    /// Its shape.
    pub config: EncoderConfig,
    /// What stands before the blocks.
    pub embeddings: Embeddings,
    /// In order.
    pub blocks: Vec<EncoderBlock>,
    /// After the last block (ModernBERT).
    pub norm: Option<LayerNorm>,
    table: Option<RopeTable>,
    local_table: Option<RopeTable>,
}

/// Vectors of tokens, positions and the kind of the text, added up and normalised.
pub struct Embeddings {
    /// Name and table of the tokens, `[vocabulary, hidden]`.
    pub tokens: (String, Weight),
    /// Name and table of the positions, `[positions, hidden]`, in f32.
    pub positions: Option<(String, Tensor)>,
    /// Name and table of the kinds of text, `[kinds, hidden]`, in f32; all texts here are of the first.
    pub kinds: Option<(String, Tensor)>,
    /// Over the sum.
    pub norm: LayerNorm,
}

/// What the backward pass of an encoder needs of its forward pass.
pub struct EncoderKept {
    /// Sum of the embeddings and the moments of its norm; none where the blocks above them were computed in advance.
    summed: Option<(Tensor, Moments)>,
    last: Option<(Tensor, Moments)>,
    blocks: StackKept<Kept>,
}

/// Numbers of `x` dropped with probability `p`, where a key says that anything is dropped now.
pub(crate) fn dropped(x: Tensor, p: f64, key: Option<DropoutKey>, site: u32) -> Result<Tensor> {
    match key {
        Some(key) if p > 0.0 => dropout(&x, p, DropoutKey { site, ..key }),
        _ => Ok(x),
    }
}

impl Encoder {
    /// Places of the tokens in the table of positions, `[tokens]`.
    fn places(&self, documents: &Documents) -> Vec<u32> {
        let offset = self.config.position_offset as u32;
        documents
            .ranges()
            .flat_map(|range| (0..range.len() as u32).map(move |place| place + offset))
            .collect()
    }

    /// Rows of a table, `[ids, hidden]` in f32.
    fn rows(name: &str, table: &Weight, ids: &[u32]) -> crate::error::Result<Tensor> {
        let (rows, _) = table.dims()?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            let what = format!("has {rows} rows, {id} is beyond them");
            return Err(Error::weight(name, what));
        }
        Ok(table.select(ids)?)
    }

    /// Sum of the embeddings of tokens, `[tokens, hidden]`, before the norm.
    fn summed(&self, ids: &[u32], documents: &Documents) -> crate::error::Result<Tensor> {
        let (name, table) = &self.embeddings.tokens;
        let x = Self::rows(name, table, ids)?;
        if let Some((name, table)) = &self.embeddings.positions {
            let table = Weight::Dense(table.clone());
            add_in_place(&x, &Self::rows(name, &table, &self.places(documents))?)?;
        }
        if let Some((_, table)) = &self.embeddings.kinds {
            let first = table.narrow(0, 0, 1)?.contiguous()?.flatten_all()?;
            sparsam_kernels::linear::add_bias(&x, &first)?;
        }
        Ok(x)
    }

    /// Vectors of every token, `[tokens, hidden]`, and with `keep` what the backward pass needs.
    ///
    /// # Errors
    /// A token or a position beyond the tables, or an operation on tensors failed.
    pub fn forward(
        &self,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
        keep: Option<Keep>,
    ) -> crate::error::Result<(Tensor, Option<EncoderKept>)> {
        let key = hook.dropout();
        let positions = documents.positions();
        let pass = self.pass(documents, &positions, key);
        // What is dropped below is dropped anew in every pass.
        let drops = key.is_some() && self.config.dropout > 0.0;
        let (first, x, summed) = if let Some(prefix) = hook.prefix().filter(|_| !drops) {
            let device = self.embeddings.norm.weight.device();
            let (first, x) = prefix.input(ids, documents, device, |first, ids, documents| {
                let positions = documents.positions();
                let pass = self.pass(documents, &positions, None);
                let (x, _) = self.embed(ids, documents, None)?;
                Ok(stack::forward(&self.blocks[..first], 0, x, &pass, hook, None)?.0)
            })?;
            (first, x, None)
        } else {
            let (x, summed) = self.embed(ids, documents, key)?;
            (0, x, Some(summed))
        };
        let (mut x, blocks) = stack::forward(&self.blocks, first, x, &pass, hook, keep)?;
        let mut last = None;
        if let Some(norm) = &self.norm {
            let (y, moments) = norm.forward(&x)?;
            last = Some((x, moments));
            x = y;
        }
        let kept = keep.map(|_| EncoderKept {
            summed,
            last,
            blocks,
        });
        Ok((x, kept))
    }

    /// What the first block reads, `[tokens, hidden]`, with the sum of the embeddings and the moments of its norm.
    fn embed(
        &self,
        ids: &[u32],
        documents: &Documents,
        key: Option<DropoutKey>,
    ) -> crate::error::Result<(Tensor, (Tensor, Moments))> {
        let summed = self.summed(ids, documents)?;
        let (x, moments) = self.embeddings.norm.forward(&summed)?;
        let x = dropped(x, self.config.dropout, key, SITES)?;
        Ok((x, (summed, moments)))
    }

    /// Adds the gradients of what is trained, from that of the vectors.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn backward(
        &self,
        dy: Tensor,
        kept: EncoderKept,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
    ) -> crate::error::Result<()> {
        let EncoderKept {
            summed,
            last,
            blocks,
        } = kept;
        let key = hook.dropout();
        let positions = documents.positions();
        let pass = self.pass(documents, &positions, key);
        let dx = match (&self.norm, last) {
            (Some(norm), Some((x, moments))) => norm.backward(&dy, &x, &moments, None, hook)?,
            _ => dy,
        };
        let dx = stack::backward(&self.blocks, dx, blocks, &pass, hook)?;
        if let Some((summed, moments)) = summed.filter(|_| self.is_trained(hook)) {
            let dx = dropped(dx, self.config.dropout, key, SITES)?;
            let norm = &self.embeddings.norm;
            let dx = norm.backward(&dx, &summed, &moments, None, hook)?;
            if let Some(into) = hook.accumulator(&self.embeddings.tokens.0) {
                add_rows(&dx, ids, &into)?;
            }
            if let Some((name, _)) = &self.embeddings.positions
                && let Some(into) = hook.accumulator(name)
            {
                add_rows(&dx, &self.places(documents), &into)?;
            }
            if let Some((name, _)) = &self.embeddings.kinds
                && let Some(into) = hook.accumulator(name)
            {
                let first = Tensor::zeros(dx.dim(1)?, DType::F32, dx.device())?;
                bias_grad(&dx, &first)?;
                add_rows(&first.unsqueeze(0)?, &[0], &into)?;
            }
        }
        Ok(())
    }

    /// Puts its weights into the memory of `device`; see [`Model::move_to`](crate::model::Model::move_to).
    ///
    /// # Errors
    /// Too little memory.
    pub(crate) fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        let embeddings = &mut self.embeddings;
        embeddings.tokens.1 = embeddings.tokens.1.to_device(device, compute)?;
        let tables = [&mut embeddings.positions, &mut embeddings.kinds];
        for (_, table) in tables.into_iter().flatten() {
            *table = table.to_device(device)?;
        }
        embeddings.norm.move_to(device)?;
        for block in &mut self.blocks {
            for group in block.groups_mut() {
                group.move_to(device, compute)?;
            }
            for norm in block.norms_mut() {
                norm.move_to(device)?;
            }
        }
        match &mut self.norm {
            Some(norm) => norm.move_to(device),
            None => Ok(()),
        }
    }

    /// Whether any of the embeddings is trained.
    fn is_trained(&self, hook: &dyn Hook) -> bool {
        hook.accumulator(&self.embeddings.tokens.0).is_some()
    }

    fn pass<'a>(
        &'a self,
        documents: &'a Documents,
        positions: &'a sparsam_kernels::rope::Positions,
        dropout: Option<DropoutKey>,
    ) -> EncoderPass<'a> {
        EncoderPass {
            documents,
            positions,
            table: self.table.as_ref(),
            local_table: self.local_table.as_ref(),
            dropout,
        }
    }

    /// All norms, from the first on.
    pub fn norms(&self) -> impl Iterator<Item = &LayerNorm> {
        let of_blocks = self.blocks.iter().flat_map(EncoderBlock::norms);
        std::iter::once(&self.embeddings.norm)
            .chain(of_blocks)
            .chain(&self.norm)
    }

    /// Memory of all weights as stored, in bytes.
    pub fn bytes(&self) -> usize {
        let projections = self.blocks.iter().flat_map(EncoderBlock::groups);
        let projections = projections.flat_map(|group| &group.projections);
        let tables = [&self.embeddings.positions, &self.embeddings.kinds];
        let tables = tables.into_iter().flatten();
        projections.map(|p| p.weight.bytes()).sum::<usize>()
            + self.embeddings.tokens.1.bytes()
            + tables.map(|(_, t)| t.elem_count() * 4).sum::<usize>()
    }
}

impl LayerNorm {
    /// `(y, moments)`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, Moments)> {
        layer_norm(x, &self.weight, self.bias.as_ref(), self.epsilon)
    }
}
