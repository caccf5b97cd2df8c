//! safetensors, in one file or sharded with an index, read tensor by tensor.
//!
//! Files are read, not mapped: a mapped file's pages would count towards the process beside the
//! tensors made of them. The header is checked against the file's length before anything is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytemuck::{Pod, cast_slice_mut};
use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sparsam_kernels::Weight;

use super::bitsandbytes;
use crate::error::{Error, Result};
use crate::weights::Weights;

/// A header longer than this is not believed (the format's own limit).
const LONGEST_HEADER: u64 = 100_000_000;

/// All safetensors files of a model folder.
#[derive(Debug)]
pub struct SafetensorsFiles {
    files: Vec<Opened>,
    /// Name of each tensor and the file it is in.
    names: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the data begins.
    start: u64,
}

impl SafetensorsFiles {
    /// Opens `model.safetensors` of a folder, or the shards its index names.
    ///
    /// # Errors
    /// A missing, cut short or malformed file.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let index = folder.join("model.safetensors.index.json");
        if !index.exists() {
            return Self::open(&[folder.join("model.safetensors")]);
        }
        let text = std::fs::read_to_string(&index).map_err(|source| Error::Read {
            path: index.clone(),
            source,
        })?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Error::file(&index, format!("is not JSON: {e}")))?;
        let Some(map) = value.get("weight_map").and_then(|map| map.as_object()) else {
            return Err(Error::file(&index, "has no `weight_map`"));
        };
        let mut shards = Vec::new();
        for shard in map.values() {
            let name = shard.as_str().filter(|name| !name.contains(['/', '\\']));
            let Some(name) = name else {
                return Err(Error::file(
                    &index,
                    format!("names a shard `{shard}` outside its folder"),
                ));
            };
            shards.push(folder.join(name));
        }
        shards.sort();
        shards.dedup();
        let files = Self::open(&shards)?;
        match map.keys().find(|name| !files.names.contains_key(*name)) {
            Some(name) => Err(Error::file(
                &index,
                format!("names a tensor `{name}` that no shard holds"),
            )),
            None => Ok(files),
        }
    }

    /// Opens the given files.
    ///
    /// # Errors
    /// A missing, cut short or malformed file, or a tensor that is in two of them.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        let mut names = BTreeMap::new();
        for path in paths {
            let opened = Opened::new(path)?;
            for name in opened.metadata.offset_keys() {
                if names.insert(name.clone(), files.len()).is_some() {
                    return Err(Error::file(
                        path,
                        format!("holds a tensor `{name}` that another shard holds too"),
                    ));
                }
            }
            files.push(opened);
        }
        Ok(Self { files, names })
    }

    /// Whether there is a tensor of this name.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// A tensor's file, and where and what it is there.
    fn place(&self, name: &str) -> Result<(&Opened, &TensorInfo)> {
        let file = self.names.get(name).map(|index| &self.files[*index]);
        let place = file.and_then(|file| Some((file, file.metadata.info(name)?)));
        place.ok_or_else(|| Error::weight(name, "is not in the model's files"))
    }

    /// The bytes of a tensor as they lie in its file.
    pub(super) fn raw(&self, name: &str) -> Result<Raw> {
        let (file, info) = self.place(name)?;
        Ok(Raw {
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: file.numbers(info)?,
        })
    }

    /// A note that all files have in their headers; none where one lacks it or they differ.
    pub fn note(&self, key: &str) -> Option<&str> {
        let of = |file: &'_ Opened| file.metadata.metadata().as_ref()?.get(key).cloned();
        let first = self.files.first()?.metadata.metadata().as_ref()?.get(key)?;
        let all = self
            .files
            .iter()
            .all(|file| of(file).as_ref() == Some(first));
        all.then_some(first)
    }

    /// The files, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }
}

/// A tensor as it lies in its file.
pub(super) struct Raw {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Opened {
    fn new(path: &Path) -> Result<Self> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut first = [0u8; 8];
        let cut = || {
            Error::file(
                path,
                format!("is cut short: {length} bytes hold no safetensors header"),
            )
        };
        file.read_exact_at(&mut first, 0).map_err(|_| cut())?;
        let header = u64::from_le_bytes(first);
        if header > LONGEST_HEADER {
            return Err(Error::file(
                path,
                "is not a safetensors file: its header would be over 100 MB",
            ));
        }
        if 8 + header > length {
            return Err(cut());
        }
        let mut text = vec![0u8; header as usize];
        file.read_exact_at(&mut text, 8).map_err(read)?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|e| Error::file(path, format!("has a malformed safetensors header: {e}")))?;
        let start = 8 + header;
        let data = metadata.data_len() as u64;
        if start + data != length {
            let what = format!(
                "is cut short or damaged: {length} bytes, its header describes {}",
                start + data
            );
            return Err(Error::file(path, what));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            start,
        })
    }

    /// The numbers of a tensor, read to where they stay.
    fn numbers<T: Pod>(&self, info: &TensorInfo) -> Result<Vec<T>> {
        let (start, end) = info.data_offsets;
        let mut numbers = vec![T::zeroed(); (end - start) / size_of::<T>()];
        self.file
            .read_exact_at(cast_slice_mut(&mut numbers), self.start + start as u64)
            .map_err(|source| Error::Read {
                path: self.path.clone(),
                source,
            })?;
        Ok(numbers)
    }

    fn tensor<T: Pod + WithDType>(&self, info: &TensorInfo) -> Result<Tensor> {
        let numbers = self.numbers::<T>(info)?;
        Ok(Tensor::from_vec(
            numbers,
            info.shape.as_slice(),
            &Device::Cpu,
        )?)
    }
}

impl Weights for SafetensorsFiles {
    fn contains(&self, name: &str) -> bool {
        self.holds(name)
    }

    fn kept(&self, name: &str) -> Result<Option<Weight>> {
        bitsandbytes::kept(self, name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let (file, info) = self.place(name)?;
        match info.dtype {
            Dtype::F64 => file.tensor::<f64>(info),
            Dtype::F32 => file.tensor::<f32>(info),
            Dtype::F16 => file.tensor::<f16>(info),
            Dtype::BF16 => file.tensor::<bf16>(info),
            Dtype::U8 => file.tensor::<u8>(info),
            Dtype::U32 => file.tensor::<u32>(info),
            Dtype::I64 => file.tensor::<i64>(info),
            other => {
                let what = format!("is stored as {other:?}, which cannot be read");
                Err(Error::weight(name, what))
            }
        }
    }
}
