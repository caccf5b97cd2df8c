//! A base model as files: its tensors one at a time, and what stands beside them.
//!
//! Commands that make another checkpoint of a base need no model in memory, but every file of the base.
//! [`crate::opened`] is for those that compute with it.

use std::path::PathBuf;

use candle_core::DType;
use sparsam_adapter::merge::Merged;
use sparsam_adapter::parts::Parts;
use sparsam_base::builtin::{Builtin, Packed};
use sparsam_base::config::ModelConfig;
use sparsam_base::error::Error;
use sparsam_base::files::gguf_vocabulary::vocabulary;
use sparsam_base::files::gguf_writer::Meta;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::files::staged::Staged;
use sparsam_base::model::{HEAD, Quantize};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_base::weights::Weights;

use crate::error::Failure;
use crate::opened::{Place, find, hash, read_if_there};

/// What stands beside the weights of a model in Hugging Face's layout, its configuration apart.
pub(crate) const COMPANIONS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
];

/// The configuration, which commands change.
pub(crate) const CONFIG: &str = "config.json";

/// The files of a base model.
pub(crate) struct BaseFiles {
    /// `config.json`, as it stands.
    pub(crate) config_text: String,
    /// The same, understood.
    pub(crate) config: ModelConfig,
    files: Files,
}

enum Files {
    Builtin(Builtin, Packed<'static>),
    Folder(PathBuf, SafetensorsFiles),
}

impl BaseFiles {
    /// Finds a base by the name a recipe or an argument gives it.
    ///
    /// # Errors
    /// A name that means nothing here; files that are missing, damaged, or of a kind that cannot be
    /// computed with.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        match find(name)? {
            Place::Builtin(builtin) => Ok(Self {
                config_text: builtin.config.to_owned(),
                config: ModelConfig::parse(builtin.config)?,
                files: Files::Builtin(builtin, builtin.tensors()?),
            }),
            Place::Folder(folder) => {
                let path = folder.join(CONFIG);
                let config_text = std::fs::read_to_string(&path)
                    .map_err(|source| Error::Read { path, source })?;
                refuse_quantised(name, &config_text)?;
                Ok(Self {
                    config: ModelConfig::parse(&config_text)?,
                    config_text,
                    files: Files::Folder(folder.to_owned(), SafetensorsFiles::in_folder(folder)?),
                })
            }
            Place::Gguf(_) => Err(Failure::usage(format!(
                "`{name}` is a GGUF file, and a folder in Hugging Face's layout is needed here"
            ))
            .hint("name the model that the file was made of")
            .into()),
        }
    }

    /// BLAKE3 of its weights in hexadecimal, as a run notes it.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(crate) fn blake3(&self) -> anyhow::Result<String> {
        let hash = match &self.files {
            Files::Builtin(builtin, _) => blake3::hash(builtin.weights),
            Files::Folder(_, files) => hash(files.paths())?,
        };
        Ok(hash.to_hex().to_string())
    }

    /// Its tensors.
    pub(crate) fn weights(&self) -> &dyn Weights {
        match &self.files {
            Files::Builtin(_, packed) => packed,
            Files::Folder(_, files) => files,
        }
    }

    /// Names of its tensors, without a head stored beside the embedding it is tied to.
    pub(crate) fn names(&self) -> Vec<String> {
        let all: Vec<&str> = match &self.files {
            Files::Builtin(_, packed) => packed.names().collect(),
            Files::Folder(_, files) => files.names().collect(),
        };
        let tied = self.config.tie_word_embeddings;
        let names = all.into_iter().filter(|name| !(tied && *name == HEAD));
        names.map(str::to_owned).collect()
    }

    /// Its tensors as an adapter changes them, projections `through` a quantisation first.
    ///
    /// # Errors
    /// An adapter that does not fit.
    pub(crate) fn merged<'a>(
        &'a self,
        parts: &'a Parts,
        through: Quantize,
        dtype: Option<DType>,
    ) -> anyhow::Result<Merged<'a>> {
        let tied = self.config.tie_word_embeddings;
        let (weights, names) = (self.weights(), self.names());
        Ok(Merged::new(weights, names, tied, parts, through, dtype)?)
    }

    /// The configuration of the model with the adapter merged in.
    pub(crate) fn merged_config(&self, parts: &Parts) -> ModelConfig {
        let mut config = self.config.clone();
        config.tie_word_embeddings &= !parts.unties();
        config
    }

    /// Its tokenizer; `None` where the folder holds none.
    ///
    /// # Errors
    /// A tokenizer that cannot be read or does not fit the model.
    pub(crate) fn tokenizer(&self) -> anyhow::Result<Option<Tokenizer>> {
        let tokenizer = match &self.files {
            Files::Builtin(builtin, _) => builtin.tokenizer()?,
            Files::Folder(folder, _) if !folder.join("tokenizer.json").exists() => return Ok(None),
            Files::Folder(folder, _) => Tokenizer::from_dir(folder)?,
        };
        tokenizer.check_fits(self.config.vocab_size)?;
        Ok(Some(tokenizer))
    }

    /// Its tokenizer as the entries of a GGUF file. `name` is the model's, for messages.
    ///
    /// # Errors
    /// A folder without a tokenizer, or one that GGUF cannot hold.
    pub(crate) fn gguf_entries(&self, name: &str) -> anyhow::Result<Vec<(String, Meta)>> {
        let Some((tokenizer, json)) = self.tokenizer()?.zip(self.companion("tokenizer.json")?)
        else {
            return Err(Failure::run(format!(
                "`{name}` has no tokenizer.json, which is part of a GGUF file"
            ))
            .hint("put the model's tokenizer.json beside its weights")
            .into());
        };
        Ok(vocabulary(&json, &tokenizer, self.config.vocab_size)?)
    }

    /// A file beside the weights, if it is there.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn companion(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match &self.files {
            Files::Builtin(builtin, _) => Ok(builtin.companion(name).map(<[u8]>::to_vec)),
            Files::Folder(folder, _) => read_if_there(&folder.join(name)),
        }
    }

    /// Writes a configuration and all that stands beside the weights into a folder on its way; says
    /// which files those were.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub(crate) fn write_companions(
        &self,
        into: &Staged,
        config: &str,
    ) -> anyhow::Result<Vec<&'static str>> {
        into.write(CONFIG, config.as_bytes())?;
        let mut written = vec![CONFIG];
        for name in COMPANIONS {
            if let Some(bytes) = self.companion(name)? {
                into.write(name, &bytes)?;
                written.push(name);
            }
        }
        Ok(written)
    }
}

/// Refuses a folder whose weights are quantised already.
fn refuse_quantised(name: &str, config: &str) -> anyhow::Result<()> {
    let value: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let method = &value["quantization_config"]["quant_method"];
    if value
        .get("quantization_config")
        .is_none_or(serde_json::Value::is_null)
    {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the weights of `{name}` are quantised already, with {}",
        method.as_str().unwrap_or("a method it does not name")
    ))
    .hint("name the model it was made of, in f32, f16 or bf16")
    .into())
}
