//! A model with a head over classes: what a text is, rather than how it goes on.
//!
//! The body is an [`Encoder`] or a language [`Model`], the [`head`] that of transformers'
//! `…ForSequenceClassification`. [`Classifier::forward`] and [`Classifier::backward`] stand beside each other; the
//! loss between them is whoever trains' business. All texts of a batch are one run of tokens, as everywhere.

pub mod head;
mod load;

use candle_core::{DType, Device, Tensor};
use sparsam_kernels::norm::{rms_norm, rms_norm_backward};
use sparsam_kernels::{Documents, Weight};

use crate::block;
use crate::encoder::{Encoder, EncoderKept};
use crate::model::{EMBEDDING, Model};
use crate::network::Network;
use crate::projection::{Group, Hook, Projection};
use crate::stack::{Keep, StackKept};
use head::{Head, HeadKept};
pub use load::{Init, Start};

/// What makes vectors of a text.
pub enum Body {
    /// Reads in both directions.
    Encoder(Box<Encoder>),
    /// Reads from left to right; its head over the vocabulary is not used.
    Decoder(Box<Model>),
}

/// A model with a head over classes.
pub struct Classifier {
    /// What makes vectors of a text.
    pub body: Body,
    /// What makes logits of them.
    pub head: Head,
    /// Names of the classes, by number.
    pub labels: Vec<String>,
    /// Paths of the head's modules that its files did not hold, and which begin at random.
    pub fresh: Vec<String>,
}

enum BodyKept {
    Encoder(EncoderKept),
    Decoder {
        blocks: StackKept<block::Kept>,
        last: Tensor,
        roots: Tensor,
    },
}

/// What the backward pass needs of the forward pass.
pub struct Kept {
    body: BodyKept,
    head: HeadKept,
}

impl Classifier {
    /// Logits of every text, `[texts, classes]`, and with `keep` what the backward pass needs.
    ///
    /// # Errors
    /// A token or a length beyond the model's tables, or an operation on tensors failed.
    pub fn forward(
        &self,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
        keep: Option<Keep>,
    ) -> crate::error::Result<(Tensor, Option<Kept>)> {
        let (x, body) = match &self.body {
            Body::Encoder(encoder) => {
                let (x, kept) = encoder.forward(ids, documents, hook, keep)?;
                (x, kept.map(BodyKept::Encoder))
            }
            Body::Decoder(model) => {
                let (last, blocks) = model.forward(ids, documents, hook, keep)?;
                let epsilon = model.config.rms_norm_eps;
                let (x, roots) = rms_norm(&last, &model.norm.weight, epsilon)?;
                let kept = BodyKept::Decoder {
                    blocks,
                    last,
                    roots,
                };
                (x, keep.map(|_| kept))
            }
        };
        let (logits, head) = self.head.forward(&x, documents, hook, keep.is_some())?;
        let kept = body.zip(head).map(|(body, head)| Kept { body, head });
        Ok((logits, kept))
    }

    /// Adds the gradients of what is trained, from that of the logits.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn backward(
        &self,
        dlogits: &Tensor,
        kept: Kept,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
    ) -> crate::error::Result<()> {
        let dx = self.head.backward(dlogits, kept.head, documents, hook)?;
        match (&self.body, kept.body) {
            (Body::Encoder(encoder), BodyKept::Encoder(kept)) => {
                encoder.backward(dx, kept, ids, documents, hook)
            }
            (
                Body::Decoder(model),
                BodyKept::Decoder {
                    blocks,
                    last,
                    roots,
                },
            ) => {
                let norm = &model.norm;
                let into = hook.accumulator(&norm.name);
                let dx = rms_norm_backward(&dx, &last, &norm.weight, &roots, None, into.as_ref())?;
                drop(last);
                model.backward(dx, blocks, ids, documents, hook)
            }
            _ => Err(candle_core::Error::Msg("what was kept is another body's".to_owned()).into()),
        }
    }

    /// `model_type` of its configuration.
    pub fn family(&self) -> &str {
        match &self.body {
            Body::Encoder(encoder) => &encoder.config.family,
            Body::Decoder(model) => &model.config.family,
        }
    }

    /// The longest text, in tokens.
    pub fn max_length(&self) -> usize {
        match &self.body {
            Body::Encoder(encoder) => encoder.config.max_length,
            Body::Decoder(model) => model.config.max_position_embeddings,
        }
    }

    /// Keys of its configuration that are not known.
    pub fn unrecognised(&self) -> &[String] {
        match &self.body {
            Body::Encoder(encoder) => &encoder.config.unrecognised,
            Body::Decoder(model) => &model.config.unrecognised,
        }
    }

    /// Memory of all weights as stored, in bytes.
    pub fn bytes(&self) -> usize {
        let head = self.head.groups();
        let head = head.into_iter().flat_map(|group| &group.projections);
        let head = head.map(|p| p.weight.bytes()).sum::<usize>();
        head + match &self.body {
            Body::Encoder(encoder) => encoder.bytes(),
            Body::Decoder(model) => model.bytes(),
        }
    }

    /// Numbers in all parameters.
    pub fn parameters(&self) -> u64 {
        let matrix = |weight: &Weight| weight.dims().map_or(0, |(rows, columns)| rows * columns);
        let projection =
            |p: &Projection| matrix(&p.weight) + p.bias.as_ref().map_or(0, Tensor::elem_count);
        let groups = self.groups();
        let projections = groups.iter().flat_map(|(_, group)| &group.projections);
        let vectors = self
            .vectors()
            .iter()
            .map(|(_, t)| t.elem_count())
            .sum::<usize>();
        let tables = self
            .tables()
            .iter()
            .map(|(_, table)| matrix(table))
            .sum::<usize>();
        (projections.map(projection).sum::<usize>() + vectors + tables) as u64
    }

    /// A parameter's value as its file has it: norms without the family's offset.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn as_stored(&self, name: &str, value: &Tensor) -> crate::error::Result<Tensor> {
        match &self.body {
            Body::Encoder(_) => Ok(value.clone()),
            Body::Decoder(model) => model.as_stored(name, value),
        }
    }

    /// Puts the weights into the memory of `device`; see [`Model::move_to`].
    ///
    /// # Errors
    /// Too little memory.
    pub fn move_to(&mut self, device: &Device, compute: DType) -> crate::error::Result<()> {
        match &mut self.body {
            Body::Decoder(model) => model.move_to(device, compute)?,
            Body::Encoder(encoder) => encoder.move_to(device, compute)?,
        }
        for group in self.head.groups_mut() {
            group.move_to(device, DType::F32)?;
        }
        if let Some(norm) = &mut self.head.norm {
            norm.move_to(device)?;
        }
        Ok(())
    }
}

impl Network for Classifier {
    fn layers(&self) -> usize {
        match &self.body {
            Body::Encoder(encoder) => encoder.blocks.len(),
            Body::Decoder(model) => model.blocks.len(),
        }
    }

    fn width(&self) -> usize {
        match &self.body {
            Body::Encoder(encoder) => encoder.config.hidden_size,
            Body::Decoder(model) => model.config.hidden_size,
        }
    }

    fn groups(&self) -> Vec<(usize, &Group)> {
        let mut groups: Vec<(usize, &Group)> = match &self.body {
            Body::Encoder(encoder) => {
                let blocks = encoder.blocks.iter();
                blocks
                    .flat_map(|block| block.groups().map(|group| (block.layer, group)))
                    .collect()
            }
            Body::Decoder(model) => model.groups(),
        };
        let above = self.layers();
        groups.extend(self.head.groups().into_iter().map(|group| (above, group)));
        groups
    }

    fn vectors(&self) -> Vec<(String, &Tensor)> {
        let mut vectors = Vec::new();
        let mut norms: Vec<&crate::encoder::block::LayerNorm> = self.head.norm.iter().collect();
        match &self.body {
            Body::Encoder(encoder) => {
                let tables = [&encoder.embeddings.positions, &encoder.embeddings.kinds];
                vectors.extend(tables.into_iter().flatten().map(|(n, t)| (n.clone(), t)));
                norms.extend(encoder.norms());
            }
            Body::Decoder(model) => vectors = model.vectors(),
        }
        for norm in norms {
            vectors.push((format!("{}.weight", norm.name), &norm.weight));
            vectors.extend(
                norm.bias
                    .iter()
                    .map(|bias| (format!("{}.bias", norm.name), bias)),
            );
        }
        vectors
    }

    fn tables(&self) -> Vec<(String, &Weight)> {
        match &self.body {
            Body::Encoder(encoder) => {
                let (name, table) = &encoder.embeddings.tokens;
                vec![(name.clone(), table)]
            }
            Body::Decoder(model) => vec![(EMBEDDING.to_owned(), &model.embedding)],
        }
    }

    fn tied(&self) -> bool {
        false
    }

    fn device(&self) -> &Device {
        match &self.body {
            Body::Encoder(encoder) => encoder.embeddings.norm.weight.device(),
            Body::Decoder(model) => model.device(),
        }
    }

    /// PEFT compares the end of the path as text, so that `classifier` means DistilBERT's `pre_classifier` too, and
    /// all that lies inside such a module.
    fn is_saved(&self, path: &str, saved: &str) -> bool {
        let inside = |(end, _): (usize, &str)| path[..end].ends_with(saved);
        let of_head = self
            .head
            .groups()
            .into_iter()
            .flat_map(|group| &group.projections);
        of_head
            .into_iter()
            .any(|projection| projection.name == path)
            && (path.ends_with(saved) || path.match_indices('.').any(inside))
    }

    fn own(&mut self, saved: &str) -> crate::error::Result<Vec<(String, Tensor)>> {
        let mut owned = Vec::new();
        let paths: Vec<String> = self
            .head
            .groups()
            .into_iter()
            .flat_map(|group| &group.projections)
            .map(|projection| projection.name.clone())
            .filter(|path| self.is_saved(path, saved))
            .collect();
        for group in self.head.groups_mut() {
            for projection in &mut group.projections {
                if !paths.contains(&projection.name) {
                    continue;
                }
                let weight = projection.weight.dequantize()?.copy()?;
                projection.weight = Weight::Dense(weight.clone());
                owned.push((format!("{}.weight", projection.name), weight));
                if let Some(bias) = &mut projection.bias {
                    *bias = bias.copy()?;
                    owned.push((format!("{}.bias", projection.name), bias.clone()));
                }
            }
        }
        Ok(owned)
    }

    fn ownable(&self) -> Vec<&'static str> {
        vec!["classifier", "score"]
    }
}
