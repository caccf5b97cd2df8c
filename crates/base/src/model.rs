//! A base model: embedding, blocks, last norm and head, loaded from its files.
//!
//! The model is a list of parts; which pass runs over them (training, evaluation, generation) is its
//! user's business. Names are those of Hugging Face's checkpoints.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sparsam_kernels::Weight;
use sparsam_kernels::attention::AttentionShape;
use sparsam_kernels::embedding::add_rows;
use sparsam_kernels::int8::Int8;
use sparsam_kernels::linear::linear;
use sparsam_kernels::nf4::Nf4;
use sparsam_kernels::norm::rms_norm;
use sparsam_kernels::rope::{Positions, RopeTable};
use sparsam_kernels::{Documents, host};

use crate::block::{Block, Kept, Norm, Pass};
use crate::config::{ModelConfig, Norms};
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFiles;
use crate::projection::{Group, Hook, Projection};
use crate::stack::{self, Keep, StackKept};
use crate::weights::Weights;

/// How the projections of the blocks are kept in memory. Embedding, head and norms stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// As plain numbers.
    #[default]
    None,
    /// Eight bits, a scale for each row.
    Int8,
    /// Four bits, blocks of 64.
    Nf4,
    /// Four bits with doubly quantised scales.
    Nf4Double,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// How the projections are kept.
    pub quantize: Quantize,
    /// Type of the weights that are kept as plain numbers: f32 or bf16.
    pub dtype: DType,
    /// Longest document that will be seen.
    pub max_length: usize,
}

/// A decoder-only language model.
pub struct Model {
    /// Its shape.
    pub config: ModelConfig,
    /// `[vocabulary, hidden]`
    pub embedding: Weight,
    /// In order.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: Norm,
    /// `[vocabulary, hidden]`; shares the embedding's storage where they are tied.
    pub head: Weight,
    /// Sines and cosines of all positions.
    pub table: RopeTable,
    /// Those of local layers, where they are others.
    pub local_table: Option<RopeTable>,
}

/// Name of the embedding's parameter.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the head's parameter.
pub const HEAD: &str = "lm_head.weight";

impl Model {
    /// Loads a folder in Hugging Face's layout.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit the configuration.
    pub fn from_folder(folder: &Path, options: LoadOptions) -> Result<Self> {
        Self::load(
            read_config(folder)?,
            &SafetensorsFiles::in_folder(folder)?,
            options,
        )
    }

    /// The same in the memory of a device, see [`Model::load_to`].
    ///
    /// # Errors
    /// As there, or files that are missing or damaged.
    pub fn from_folder_to(
        folder: &Path,
        options: LoadOptions,
        device: &Device,
        compute: DType,
    ) -> Result<Self> {
        let files = SafetensorsFiles::in_folder(folder)?;
        Self::load_to(read_config(folder)?, &files, options, device, compute)
    }

    /// Makes a model of a configuration and its tensors.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit the configuration.
    pub fn load(config: ModelConfig, weights: &dyn Weights, options: LoadOptions) -> Result<Self> {
        Self::load_each(config, weights, options, &mut |_| Ok(()))
    }

    /// Makes a model of a configuration and its tensors in the memory of `device`, as [`Model::move_to`] puts it there,
    /// block by block: the host's memory holds one at a time.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit the configuration, or as [`Model::move_to`]; then
    /// [`Error::Placed`].
    pub fn load_to(
        config: ModelConfig,
        weights: &dyn Weights,
        options: LoadOptions,
        device: &Device,
        compute: DType,
    ) -> Result<Self> {
        let mut bytes = 0;
        Self::load_each(config, weights, options, &mut |mut part| {
            let size = part.bytes();
            let placed = part.move_to(device, compute);
            let placed = placed.map_err(|source| Error::Placed { bytes, source });
            bytes += size;
            placed
        })
    }

    /// Makes a model and shows each of its parts as soon as it is there.
    fn load_each(
        config: ModelConfig,
        weights: &dyn Weights,
        options: LoadOptions,
        each: &mut dyn FnMut(Part) -> Result<()>,
    ) -> Result<Self> {
        let loader = Loader {
            weights,
            options,
            norm_offset: config.norm_offset,
        };
        let mut embedding = loader.table(EMBEDDING, config.vocab_size, config.hidden_size)?;
        each(Part::Table(&mut embedding))?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut block = loader.block(&config, layer)?;
            each(Part::Block(&mut block))?;
            blocks.push(block);
        }
        let mut norm = loader.norm("model.norm.weight", config.hidden_size)?;
        each(Part::Norm(&mut norm))?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            let mut head = loader.table(HEAD, config.vocab_size, config.hidden_size)?;
            each(Part::Table(&mut head))?;
            head
        };
        let (table, local_table) = tables(&config, options.max_length)?;
        Ok(Self {
            config,
            embedding,
            blocks,
            norm,
            head,
            table,
            local_table,
        })
    }

    /// Embeddings of the tokens, `[tokens, hidden]` in f32.
    ///
    /// # Errors
    /// A token beyond the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let vocabulary = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::weight(
                EMBEDDING,
                format!("has {vocabulary} rows, token {id} is beyond them"),
            ));
        }
        let x = self.embedding.select(ids)?;
        let multiplier = self.config.embedding_multiplier;
        Ok(if multiplier == 1.0 {
            x
        } else {
            x.affine(multiplier, 0.0)?
        })
    }

    /// What the blocks share in a pass over documents whose tokens have these positions.
    pub fn pass<'a>(&'a self, documents: &'a Documents, positions: &'a Positions) -> Pass<'a> {
        Pass {
            documents,
            positions,
            table: &self.table,
            local_table: self.local_table.as_ref(),
        }
    }

    /// What the head reads, of the last hidden states `[tokens, hidden]`; and the inverse roots of the
    /// last norm.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn head_input(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (x, roots) = rms_norm(x, &self.norm.weight, self.config.rms_norm_eps)?;
        let divisor = self.config.logits_divisor;
        if divisor == 1.0 {
            return Ok((x, roots));
        }
        Ok((x.affine(1.0 / divisor, 0.0)?, roots))
    }

    /// Gradient of the last norm's output, from that of what the head reads.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn head_input_backward(&self, dy: Tensor) -> Result<Tensor> {
        let divisor = self.config.logits_divisor;
        if divisor == 1.0 {
            return Ok(dy);
        }
        Ok(dy.affine(1.0 / divisor, 0.0)?)
    }

    /// Logits of what the head reads, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn head_output(&self, x: &Tensor) -> Result<Tensor> {
        let logits = linear(x, &self.head)?;
        Ok(match self.config.final_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }

    /// Last hidden states of a batch, before the last norm: `[tokens, hidden]`.
    ///
    /// # Errors
    /// A document longer than `max_length`, or an operation on tensors failed.
    pub fn hidden(
        &self,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        Ok(self.forward(ids, documents, hook, None)?.0)
    }

    /// [`Model::hidden`], and with `keep` what [`Model::backward`] needs.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    pub fn forward(
        &self,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
        keep: Option<Keep>,
    ) -> Result<(Tensor, StackKept<Kept>)> {
        let positions = documents.positions();
        let pass = self.pass(documents, &positions);
        let (first, x) = match hook.prefix() {
            Some(prefix) => {
                prefix.input(ids, documents, self.device(), |first, ids, documents| {
                    let positions = documents.positions();
                    let pass = self.pass(documents, &positions);
                    let x = self.embed(ids)?;
                    Ok(stack::forward(&self.blocks[..first], 0, x, &pass, hook, None)?.0)
                })?
            }
            None => (0, self.embed(ids)?),
        };
        Ok(stack::forward(&self.blocks, first, x, &pass, hook, keep)?)
    }

    /// Adds the gradients of what is trained in the blocks and below, from that of their output.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn backward(
        &self,
        dx: Tensor,
        kept: StackKept<Kept>,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
    ) -> Result<()> {
        let positions = documents.positions();
        let pass = self.pass(documents, &positions);
        let mut dx = stack::backward(&self.blocks, dx, kept, &pass, hook)?;
        if let Some(into) = hook.accumulator(EMBEDDING) {
            let multiplier = self.config.embedding_multiplier;
            if multiplier != 1.0 {
                dx = dx.affine(multiplier, 0.0)?;
            }
            add_rows(&dx, ids, &into)?;
        }
        Ok(())
    }

    /// Logits of every token, `[tokens, vocabulary]`; for tests and probes.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    pub fn logits(
        &self,
        ids: &[u32],
        documents: &Documents,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        let x = self.hidden(ids, documents, hook)?;
        self.head_output(&self.head_input(&x)?.0)
    }

    /// A parameter's value as its file has it: norms without the family's offset.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn as_stored(&self, name: &str, value: &Tensor) -> Result<Tensor> {
        let offset = self.config.norm_offset;
        if offset == 0.0 || !name.ends_with("norm.weight") {
            return Ok(value.clone());
        }
        Ok((value - offset)?)
    }

    /// Numbers in all parameters, however they are stored; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        let matrix = |weight: &Weight| weight.dims().map_or(0, |(rows, columns)| rows * columns);
        let projections = |group: &Group| {
            let parts = group.projections.iter();
            parts
                .map(|p| matrix(&p.weight) + p.bias.as_ref().map_or(0, Tensor::elem_count))
                .sum::<usize>()
        };
        let norm = |norm: &Norm| norm.weight.elem_count();
        let block = |b: &Block| {
            b.groups().map(projections).iter().sum::<usize>() + b.norms().map(norm).sum::<usize>()
        };
        let head = if self.config.tie_word_embeddings {
            0
        } else {
            matrix(&self.head)
        };
        let blocks = self.blocks.iter().map(block).sum::<usize>();
        (matrix(&self.embedding) + blocks + norm(&self.norm) + head) as u64
    }

    /// Makes room for documents of `max_length` tokens, where the length was not known at loading.
    ///
    /// # Errors
    /// A length that the model's positions cannot reach.
    pub fn set_max_length(&mut self, max_length: usize) -> Result<()> {
        (self.table, self.local_table) = tables(&self.config, max_length)?;
        Ok(())
    }

    /// Puts all weights into the memory of `device`. Quantised ones stay so and are expanded to `compute` (f32 or
    /// bf16) for each product there; on the processor bf16 is taken only where it is the faster of the two.
    ///
    /// # Errors
    /// Too little memory, or a form of weight that is not computed with there.
    pub fn move_to(&mut self, device: &Device, compute: DType) -> Result<()> {
        Part::Table(&mut self.embedding).move_to(device, compute)?;
        for block in &mut self.blocks {
            Part::Block(block).move_to(device, compute)?;
        }
        Part::Norm(&mut self.norm).move_to(device, compute)?;
        if self.config.tie_word_embeddings {
            self.head = self.embedding.clone();
        } else {
            Part::Table(&mut self.head).move_to(device, compute)?;
        }
        Ok(())
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        self.norm.weight.device()
    }

    /// Memory of all weights as stored, in bytes; a tied head counts once.
    pub fn bytes(&self) -> usize {
        let head = if self.config.tie_word_embeddings {
            0
        } else {
            self.head.bytes()
        };
        let blocks = self.blocks.iter().map(Block::bytes).sum::<usize>();
        self.embedding.bytes() + head + blocks
    }
}

/// Sines and cosines of all layers, and of the local ones.
fn tables(config: &ModelConfig, positions: usize) -> Result<(RopeTable, Option<RopeTable>)> {
    let table = |rope: &crate::config::Rope| rope.table(config.rotary_dim, positions);
    let local = config.local_rope.as_ref().map(table).transpose()?;
    Ok((table(&config.rope)?, local))
}

/// What a model is put somewhere else by.
enum Part<'a> {
    /// The embedding or the head.
    Table(&'a mut Weight),
    Block(&'a mut Block),
    Norm(&'a mut Norm),
}

impl Part<'_> {
    /// Memory of its matrices as they are stored.
    fn bytes(&self) -> usize {
        match self {
            Self::Table(table) => table.bytes(),
            Self::Block(block) => block.bytes(),
            Self::Norm(_) => 0,
        }
    }

    fn move_to(&mut self, device: &Device, compute: DType) -> candle_core::Result<()> {
        match self {
            Self::Table(table) => **table = table.to_device(device, compute)?,
            Self::Block(block) => block.move_to(device, compute)?,
            Self::Norm(norm) => norm.weight = norm.weight.to_device(device)?,
        }
        Ok(())
    }
}

fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    ModelConfig::parse(&text)
}

/// Reads tensors and checks that they are what the configuration says.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a dyn Weights,
    pub(crate) options: LoadOptions,
    /// Added to the stored weights of norms.
    pub(crate) norm_offset: f64,
}

impl Loader<'_> {
    pub(crate) fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.tensor(name)?;
        if tensor.dims() != dims {
            let what = format!(
                "has shape {:?}, the configuration says {dims:?}",
                tensor.dims()
            );
            return Err(Error::weight(name, what));
        }
        if !tensor.dtype().is_float() {
            let what = format!(
                "is stored as {:?}, expected numbers with a fraction",
                tensor.dtype()
            );
            return Err(Error::weight(name, what));
        }
        Ok(tensor)
    }

    fn dense(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        Ok(self.tensor(name, dims)?.to_dtype(self.options.dtype)?)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let mut weight = self.tensor(name, &[width])?.to_dtype(DType::F32)?;
        if self.norm_offset != 0.0 {
            weight = (weight + self.norm_offset)?;
        }
        Ok(Norm {
            name: name.to_owned(),
            weight,
        })
    }

    /// A matrix as its file keeps it, if it decides that.
    fn kept(&self, name: &str, out: usize, input: usize) -> Result<Option<Weight>> {
        let weight = self.weights.kept(name)?;
        if let Some(weight) = &weight {
            let dims = weight.dims()?;
            if dims != (out, input) {
                let what = format!(
                    "has shape {dims:?}, the configuration says {:?}",
                    (out, input)
                );
                return Err(Error::weight(name, what));
            }
        }
        Ok(weight)
    }

    /// The embedding or the head, which are not quantised here.
    pub(crate) fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Weight> {
        match self.kept(name, rows, columns)? {
            Some(weight) => Ok(weight),
            None => Ok(Weight::Dense(self.dense(name, &[rows, columns])?)),
        }
    }

    pub(crate) fn projection(
        &self,
        name: String,
        out: usize,
        input: usize,
        bias: bool,
    ) -> Result<Projection> {
        let parameter = format!("{name}.weight");
        let asked = self.options.quantize;
        let kept = self.kept(&parameter, out, input)?;
        let weight = if let (Some(kept), true) = (&kept, asked == Quantize::None) {
            kept.clone()
        } else if asked == Quantize::None {
            Weight::Dense(self.dense(&parameter, &[out, input])?)
        } else {
            let tensor = match kept {
                Some(Weight::Dense(tensor)) => tensor,
                Some(_) => {
                    return Err(Error::Quantized { name: parameter });
                }
                None => self.tensor(&parameter, &[out, input])?,
            };
            let tensor = tensor.to_dtype(DType::F32)?;
            let values = host::view::<f32>(&tensor)?;
            let quantized = match self.options.quantize {
                Quantize::Int8 => Int8::quantize(&values, out, input).map(Weight::Int8),
                Quantize::Nf4 => Nf4::quantize(&values, out, input, false).map(Weight::Nf4),
                _ => Nf4::quantize(&values, out, input, true).map(Weight::Nf4),
            };
            quantized.map_err(|e| Error::weight(&parameter, format!("cannot be quantised: {e}")))?
        };
        let bias = if bias {
            Some(
                self.tensor(&format!("{name}.bias"), &[out])?
                    .to_dtype(DType::F32)?,
            )
        } else {
            None
        };
        Ok(Projection { name, weight, bias })
    }

    fn block(&self, config: &ModelConfig, layer: usize) -> Result<Block> {
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        let hidden = config.hidden_size;
        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let group = |parts: &[(&str, usize, usize, bool)]| -> Result<Group> {
            let projections = parts
                .iter()
                .map(|(name, out, input, bias)| self.projection(path(name), *out, *input, *bias))
                .collect::<Result<_>>()?;
            Ok(Group { projections })
        };
        let (qkv_bias, mlp_bias, wide) =
            (config.qkv_bias, config.mlp_bias, config.intermediate_size);
        let norm = |name: &str, width: usize| {
            let name = format!("{name}.weight");
            self.norm(&path(&name), width).map(Some)
        };
        let qk_norm = if config.qk_norm {
            let (q, k) = if config.qk_norm_wide {
                (q_width, kv_width)
            } else {
                (config.head_dim, config.head_dim)
            };
            let (q, k) = (norm("self_attn.q_norm", q)?, norm("self_attn.k_norm", k)?);
            q.zip(k)
        } else {
            None
        };
        let (mut input_norm, mut attention_norm, mut unit_norm) = (None, None, None);
        if config.norms != Norms::After {
            input_norm = norm("input_layernorm", hidden)?;
        }
        // The name of the norm that stands before the unit where there is none after attention.
        let post_norm = match config.norms {
            Norms::Before => norm("post_attention_layernorm", hidden)?,
            Norms::Both => norm("pre_feedforward_layernorm", hidden)?,
            Norms::After => None,
        };
        if config.norms != Norms::Before {
            attention_norm = norm("post_attention_layernorm", hidden)?;
            unit_norm = norm("post_feedforward_layernorm", hidden)?;
        }
        let (qkv, gate_up) = if config.fused {
            let width = q_width + 2 * kv_width;
            (
                group(&[("self_attn.qkv_proj", width, hidden, qkv_bias)])?,
                group(&[("mlp.gate_up_proj", 2 * wide, hidden, mlp_bias)])?,
            )
        } else {
            (
                group(&[
                    ("self_attn.q_proj", q_width, hidden, qkv_bias),
                    ("self_attn.k_proj", kv_width, hidden, qkv_bias),
                    ("self_attn.v_proj", kv_width, hidden, qkv_bias),
                ])?,
                group(&[
                    ("mlp.gate_proj", wide, hidden, mlp_bias),
                    ("mlp.up_proj", wide, hidden, mlp_bias),
                ])?,
            )
        };
        Ok(Block {
            input_norm,
            qkv,
            qk_norm,
            o: group(&[("self_attn.o_proj", hidden, q_width, config.o_bias)])?,
            attention_norm,
            post_norm,
            gate_up,
            activation: config.activation,
            down: group(&[("mlp.down_proj", hidden, wide, mlp_bias)])?,
            unit_norm,
            residual_scale: config.residual_multiplier,
            shape: AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                scale: config.attention_scale,
                window: config.layers[layer].window,
                softcap: config.attention_softcap,
                rounded: false,
            },
            rope: config.layers[layer].rope,
            local: config.layers[layer].local,
            epsilon: config.rms_norm_eps,
        })
    }
}
