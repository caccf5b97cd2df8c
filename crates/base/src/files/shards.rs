//! Checkpoints written as transformers writes them: one `model.safetensors`, or shards with an index.
//!
//! Tensors arrive one at a time and in the order of the model. A shard is written as soon as the next
//! tensor would make it larger than asked, so that no more than one shard is ever in memory. A tensor
//! larger than that has a shard of its own (transformers' `split_torch_state_dict_into_shards`).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Size at which transformers begins a new shard unless told otherwise, in bytes.
pub const MAX_SHARD_SIZE: u64 = 5_000_000_000;

/// A tensor as it will lie in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, row by row, little-endian.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// A tensor of plain numbers in the type it has.
    ///
    /// # Errors
    /// A type that safetensors does not know, or a tensor that cannot be read.
    pub fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let dtype = match tensor.dtype() {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::U8 => Dtype::U8,
            DType::U32 => Dtype::U32,
            DType::I64 => Dtype::I64,
            other => {
                return Err(Error::weight(
                    name,
                    format!("is of type {other:?}, which cannot be stored"),
                ));
            }
        };
        let mut bytes = Vec::with_capacity(tensor.elem_count() * tensor.dtype().size_in_bytes());
        tensor.contiguous()?.write_bytes(&mut bytes)?;
        Ok(Self {
            name: name.to_owned(),
            dtype,
            shape: tensor.dims().to_vec(),
            bytes,
        })
    }

    /// A list of f32.
    pub fn f32(name: String, values: &[f32]) -> Self {
        Self {
            name,
            dtype: Dtype::F32,
            shape: vec![values.len()],
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// Bytes of a shape.
    pub fn u8(name: String, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self {
            name,
            dtype: Dtype::U8,
            shape,
            bytes,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Names of the files, the index last where there is one.
    pub files: Vec<String>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
}

/// Writes tensors into a folder, shard by shard.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    limit: u64,
    held: Vec<Stored>,
    held_bytes: u64,
    /// Names of the tensors in each shard written.
    shards: Vec<Vec<String>>,
    total: u64,
    /// What each shard says of itself.
    metadata: HashMap<String, String>,
}

impl ShardWriter {
    /// Shards of at most `limit` bytes in an existing folder.
    pub fn new(folder: &Path, limit: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            limit,
            held: Vec::new(),
            held_bytes: 0,
            shards: Vec::new(),
            total: 0,
            // transformers refuses a file that does not say that it is of PyTorch.
            metadata: HashMap::from([("format".to_owned(), "pt".to_owned())]),
        }
    }

    /// Writes a note into the header of every shard.
    #[must_use]
    pub fn noting(mut self, key: &str, note: &str) -> Self {
        self.metadata.insert(key.to_owned(), note.to_owned());
        self
    }

    /// Adds tensors that belong together and stay in one shard.
    ///
    /// # Errors
    /// A shard that cannot be written.
    pub fn push(&mut self, tensors: Vec<Stored>) -> Result<()> {
        let size: u64 = tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
        if self.held_bytes > 0 && self.held_bytes + size > self.limit {
            self.flush()?;
        }
        self.held.extend(tensors);
        self.held_bytes += size;
        self.total += size;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let path = self.numbered(self.shards.len());
        let mut views = BTreeMap::new();
        for tensor in &self.held {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            let view = view.map_err(|e| Error::weight(&tensor.name, e.to_string()))?;
            if views.insert(tensor.name.as_str(), view).is_some() {
                return Err(Error::weight(&tensor.name, "would be written twice"));
            }
        }
        let metadata = Some(self.metadata.clone());
        safetensors::serialize_to_file(views, metadata, &path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => Error::write(&path)(source),
            other => Error::file(&path, format!("cannot be made: {other}")),
        })?;
        let file = fs::File::open(&path).map_err(Error::write(&path))?;
        file.sync_all().map_err(Error::write(&path))?;
        let held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        self.shards
            .push(held.into_iter().map(|tensor| tensor.name).collect());
        Ok(())
    }

    /// Name of a shard while it is not known how many there will be.
    fn numbered(&self, shard: usize) -> PathBuf {
        self.folder.join(format!(".shard-{shard}.safetensors"))
    }

    /// Writes what is left, gives the shards their names and writes the index if there are several.
    /// `parameters` is the number of parameters of the model, for the index.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn finish(mut self, parameters: u64) -> Result<Written> {
        if !self.held.is_empty() || self.shards.is_empty() {
            self.flush()?;
        }
        let count = self.shards.len();
        let mut files = Vec::new();
        let mut map = BTreeMap::new();
        for (shard, names) in self.shards.iter().enumerate() {
            let file = if count == 1 {
                "model.safetensors".to_owned()
            } else {
                format!("model-{:05}-of-{count:05}.safetensors", shard + 1)
            };
            let to = self.folder.join(&file);
            fs::rename(self.numbered(shard), &to).map_err(Error::write(&to))?;
            for name in names {
                if map
                    .insert(name.clone(), Value::from(file.as_str()))
                    .is_some()
                {
                    return Err(Error::weight(name, "would be written twice"));
                }
            }
            files.push(file);
        }
        let tensors = map.len();
        if count > 1 {
            let map: Map<String, Value> = map.into_iter().collect();
            let index = json!({
                "metadata": { "total_parameters": parameters, "total_size": self.total },
                "weight_map": map,
            });
            let file = "model.safetensors.index.json".to_owned();
            let path = self.folder.join(&file);
            fs::write(&path, format!("{index:#}\n")).map_err(Error::write(&path))?;
            files.push(file);
        }
        Ok(Written {
            files,
            bytes: self.total,
            tensors,
        })
    }
}

/// Names in the order of the model: embedding, layers by number, last norm, head.
pub fn in_order(names: &mut [String]) {
    names.sort_by_cached_key(|name| {
        let parts: Vec<(u64, String)> = name
            .split('.')
            .map(|part| match part.parse() {
                Ok(number) => (number, String::new()),
                Err(_) => (0, part.to_owned()),
            })
            .collect();
        (name == crate::model::HEAD, parts)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::safetensors::SafetensorsFiles;
    use crate::weights::Weights;
    use candle_core::Device;

    fn tensor(i: usize, count: usize) -> Tensor {
        let values: Vec<f32> = (0..count).map(|j| (100 * i + j) as f32).collect();
        Tensor::from_vec(values, count, &Device::Cpu).expect("a tensor")
    }

    fn write(folder: &Path, counts: &[usize], limit: u64) -> Written {
        let mut writer = ShardWriter::new(folder, limit);
        for (i, &count) in counts.iter().enumerate() {
            let stored = Stored::of(&format!("t{i}"), &tensor(i, count)).expect("stored");
            writer.push(vec![stored]).expect("pushed");
        }
        writer.finish(7).expect("finished")
    }

    #[test]
    fn shards_are_filled_greedily_and_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        // In bytes 40, 40, 200 (a shard of its own), 40, 60.
        let written = write(folder.path(), &[10, 10, 50, 10, 15], 100);
        assert_eq!(
            written.files,
            [
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
                "model.safetensors.index.json"
            ]
        );
        assert_eq!((written.bytes, written.tensors), (380, 5));
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 4);
        let files = SafetensorsFiles::in_folder(folder.path()).expect("opened");
        for (i, count) in [10, 10, 50, 10, 15].into_iter().enumerate() {
            let read = files.tensor(&format!("t{i}")).expect("a tensor");
            let values: Vec<f32> = read.to_vec1().expect("numbers");
            assert_eq!(values, tensor(i, count).to_vec1::<f32>().expect("numbers"));
        }
        let index = fs::read_to_string(folder.path().join(&written.files[3])).expect("read");
        let index: Value = serde_json::from_str(&index).expect("JSON");
        assert_eq!(index["metadata"]["total_size"], 380);
        assert_eq!(index["weight_map"]["t2"], written.files[1].as_str());
        assert_eq!(index["weight_map"]["t4"], written.files[2].as_str());
    }

    #[test]
    fn what_fits_is_one_file_without_an_index() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(
            write(folder.path(), &[10, 10], 80).files,
            ["model.safetensors"]
        );
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = ShardWriter::new(folder.path(), 1);
        for _ in 0..2 {
            let stored = Stored::of("x", &tensor(0, 3)).expect("stored");
            writer.push(vec![stored]).expect("pushed");
        }
        assert!(writer.finish(0).is_err());
    }

    #[test]
    fn names_are_in_the_order_of_the_model() {
        let wanted = [
            "model.embed_tokens.weight",
            "model.layers.2.mlp.up_proj.weight",
            "model.layers.10.mlp.up_proj.weight",
            "model.norm.weight",
            "lm_head.weight",
        ];
        let mut names: Vec<String> = wanted.iter().map(|n| (*n).to_owned()).collect();
        names.sort();
        in_order(&mut names);
        assert_eq!(names, wanted);
    }
}
