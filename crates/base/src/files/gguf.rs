//! GGUF, the single-file format of llama.cpp: weights, configuration and tokenizer in one.
//!
//! Matrices stay in the blocks they are stored in ([`sparsam_kernels::ggml`]), plain ones in their type.
//! The tensors answer to the names of Hugging Face's checkpoints. llama.cpp turns positions of the
//! `llama` architecture in neighbouring pairs, so its converter reorders the rows of q and k; rows are
//! whole blocks, so they are put back into Hugging Face's order as the bytes they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sparsam_kernels::Weight;
use sparsam_kernels::ggml::Ggml;

use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::model::{self, LoadOptions, Model};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::Weights;

mod config;
mod header;
mod tokenizer;

use header::{Header, Stored, TensorInfo};

/// Parts of a block's tensors, here and in a checkpoint of Hugging Face.
const PARTS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// An open GGUF file with a model in it.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    header: Header,
    config: ModelConfig,
    dtype: Option<DType>,
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A missing, cut short or damaged file; a model that this version cannot compute.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let header = Header::read(path, &file)?;
        let config = config::read(path, &header)?;
        let mut this = Self {
            path: path.to_owned(),
            file,
            header,
            config,
            dtype: None,
        };
        this.check_names()?;
        this.read_divisors()?;
        Ok(this)
    }

    /// Converts matrices that are stored as plain numbers to a type, where they otherwise stay in
    /// their own.
    #[must_use]
    pub fn with_dtype(self, dtype: Option<DType>) -> Self {
        Self { dtype, ..self }
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A text of the metadata.
    pub fn note(&self, key: &str) -> Option<&str> {
        self.header.metadata.get(key)?.text()
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(&self, options: LoadOptions) -> Result<Model> {
        Model::load(self.config.clone(), self, options)
    }

    /// Loads the model into the memory of a device.
    ///
    /// # Errors
    /// As [`Model::load_to`].
    pub fn load_to(&self, options: LoadOptions, device: &Device, compute: DType) -> Result<Model> {
        Model::load_to(self.config.clone(), self, options, device, compute)
    }

    /// The tokenizer, with its chat template.
    ///
    /// # Errors
    /// Keys that are missing, or a tokenizer of a kind that is not known.
    pub fn tokenizer(&self) -> std::result::Result<Tokenizer, TokenizerError> {
        tokenizer::read(&self.path, &self.header)
    }

    /// Every tensor must have its place in the model: one left out would change what it computes.
    fn check_names(&self) -> Result<()> {
        let layers = self.config.num_hidden_layers;
        for name in self.header.tensors.keys() {
            let known = match name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'))
            {
                Some((layer, part)) => {
                    let part = part
                        .strip_suffix(".weight")
                        .or_else(|| part.strip_suffix(".bias"));
                    let part = part.filter(|part| PARTS.iter().any(|(ours, _)| ours == part));
                    let qk_norm = matches!(part, Some("attn_q_norm" | "attn_k_norm"));
                    layer.parse().is_ok_and(|layer: usize| layer < layers)
                        && part.is_some()
                        && (!qk_norm || self.config.qk_norm)
                        && !name.ends_with("_norm.bias")
                }
                None => [
                    config::EMBEDDING,
                    config::HEAD,
                    config::DIVISORS,
                    "output_norm.weight",
                ]
                .contains(&name.as_str()),
            };
            if !known {
                let what = "has no place in a model of this architecture as this version knows it";
                return Err(Error::weight(name, what));
            }
        }
        Ok(())
    }

    /// `rope_freqs.weight`, with which the rotary frequencies are stretched.
    fn read_divisors(&mut self) -> Result<()> {
        if !self.header.tensors.contains_key(config::DIVISORS) {
            return Ok(());
        }
        let (name, half) = (config::DIVISORS, self.config.head_dim / 2);
        let divisors = self.read_tensor(name)?.to_dtype(DType::F64)?;
        if divisors.dims() != [half] {
            let what = format!("has shape {:?}, expected [{half}]", divisors.dims());
            return Err(Error::weight(name, what));
        }
        let divisors: Vec<f64> = divisors.to_vec1()?;
        if divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
            return Err(Error::weight(name, "holds a number that is no divisor"));
        }
        if self.config.rope.scaling != RopeScaling::None {
            return Err(Error::weight(
                name,
                "stretches positions that the metadata stretches too",
            ));
        }
        self.config.rope.scaling = RopeScaling::Divisors(divisors);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<(String, &TensorInfo)> {
        let inner = name_in_file(name).unwrap_or_else(|| name.to_owned());
        match self.header.tensors.get(&inner) {
            Some(info) => Ok((inner, info)),
            None => Err(Error::weight(
                name,
                format!("is not in the file, where it would be `{inner}`"),
            )),
        }
    }

    /// The bytes of a tensor, its rows in Hugging Face's order.
    fn bytes(&self, inner: &str, info: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; info.bytes];
        self.file
            .read_exact_at(&mut bytes, info.start)
            .map_err(|source| Error::Read {
                path: self.path.clone(),
                source,
            })?;
        if let Some(heads) = self.interleaved(inner) {
            let rows = match info.dims.as_slice() {
                [rows] | [rows, _] => *rows,
                _ => 0,
            };
            if heads * self.config.head_dim != rows {
                let what = format!("has shape {:?}, expected {heads} heads", info.dims);
                return Err(Error::weight(inner, what));
            }
            straighten(&mut bytes, rows, self.config.head_dim);
        }
        Ok(bytes)
    }

    /// Heads of a tensor whose rows lie in llama.cpp's order, if it is one.
    fn interleaved(&self, inner: &str) -> Option<usize> {
        if self.config.family != "llama" {
            return None;
        }
        let (part, _) = inner
            .strip_prefix("blk.")?
            .split_once('.')?
            .1
            .rsplit_once('.')?;
        match part {
            "attn_q" => Some(self.config.num_attention_heads),
            "attn_k" => Some(self.config.num_key_value_heads),
            _ => None,
        }
    }

    fn read_tensor(&self, name: &str) -> Result<Tensor> {
        let (inner, info) = self.find(name)?;
        let bytes = self.bytes(&inner, info)?;
        let dtype = match info.stored {
            Stored::F32 => DType::F32,
            Stored::F16 => DType::F16,
            Stored::Bf16 => DType::BF16,
            Stored::Blocks(kind) => {
                let (rows, columns) = matrix(&info.dims);
                let weight = Weight::Ggml(Ggml::from_bytes(kind, bytes, rows, columns)?);
                return Ok(weight.dequantize()?.reshape(info.dims.as_slice())?);
            }
        };
        Ok(Tensor::from_raw_buffer(
            &bytes,
            dtype,
            &info.dims,
            &Device::Cpu,
        )?)
    }
}

/// Name of a tensor in the file.
fn name_in_file(name: &str) -> Option<String> {
    match name {
        model::EMBEDDING => return Some(config::EMBEDDING.to_owned()),
        model::HEAD => return Some(config::HEAD.to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (part, _) = PARTS.iter().find(|(_, theirs)| *theirs == part)?;
    Some(format!("blk.{layer}.{part}.{kind}"))
}

/// A shape as rows and columns; those of a vector are one row.
fn matrix(dims: &[usize]) -> (usize, usize) {
    let columns = dims.last().copied().unwrap_or(0);
    (dims.iter().rev().skip(1).product(), columns)
}

/// Puts rows from llama.cpp's order into Hugging Face's, head by head: there the two numbers that are
/// turned together are neighbours, here they lie half a head apart.
fn straighten(bytes: &mut [u8], rows: usize, head_dim: usize) {
    let row = bytes.len() / rows.max(1);
    let half = head_dim / 2;
    for head in bytes.chunks_exact_mut(row * head_dim) {
        let from = head.to_vec();
        for (i, to) in head.chunks_exact_mut(row).enumerate() {
            let source = if i < half { 2 * i } else { 2 * (i - half) + 1 };
            to.copy_from_slice(&from[source * row..][..row]);
        }
    }
}

impl Weights for GgufFile {
    fn contains(&self, name: &str) -> bool {
        name_in_file(name).is_some_and(|inner| self.header.tensors.contains_key(&inner))
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.read_tensor(name)
    }

    fn kept(&self, name: &str) -> Result<Option<Weight>> {
        let (inner, info) = self.find(name)?;
        let &[rows, columns] = info.dims.as_slice() else {
            let what = format!("has shape {:?}, expected a matrix", info.dims);
            return Err(Error::weight(name, what));
        };
        if let Stored::Blocks(kind) = info.stored {
            let bytes = self.bytes(&inner, info)?;
            let weight = Ggml::from_bytes(kind, bytes, rows, columns)?;
            return Ok(Some(Weight::Ggml(weight)));
        }
        let tensor = self.read_tensor(name)?;
        Ok(Some(Weight::Dense(match self.dtype {
            Some(dtype) => tensor.to_dtype(dtype)?,
            None => tensor,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_back_to_the_order_their_converter_took_them_from() {
        // llama.cpp's converter: [head, 2, half] becomes [head, half, 2].
        let (heads, head_dim) = (3, 6);
        let mut theirs = Vec::new();
        for head in 0..heads {
            for i in 0..head_dim / 2 {
                for part in 0..2 {
                    theirs.push((head * head_dim + part * head_dim / 2 + i) as u8);
                }
            }
        }
        straighten(&mut theirs, heads * head_dim, head_dim);
        assert!(theirs.iter().copied().eq(0..18));
    }
}
