//! Models that come inside the program, so that the first run needs no network.
//!
//! A built-in model is a Hugging Face folder made small: every matrix `NAME` is stored as eight-bit
//! codes `[out, in]` with the scale of each row beside it as `NAME.scale` `[out]`, the rest in f32, all
//! in one ordinary safetensors file. [`pack`] makes the assets of a folder, [`Packed`] gives their
//! tensors back as f32 one at a time, and [`Builtin::unpack`] writes them out as a folder again for
//! other programs. How such a model was trained is told by its card, not here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::files::safetensors::SafetensorsFiles;
use crate::files::staged::Staged;
use crate::model::{HEAD, LoadOptions, Model};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::Weights;

/// What a model's name begins with when it is built in.
pub const PREFIX: &str = "builtin:";

const WEIGHTS_FILE: &str = "model.safetensors";
const TOKENIZER_FILE: &str = "tokenizer.json";
/// Files copied as they are.
const TEXT_FILES: [&str; 4] = [
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "README.md",
];

/// A model inside the program.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// Its name behind `builtin:`.
    pub name: &'static str,
    /// `config.json`
    pub config: &'static str,
    /// `tokenizer.json`
    pub tokenizer: &'static [u8],
    /// `tokenizer_config.json`
    pub tokenizer_config: &'static str,
    /// `generation_config.json`
    pub generation_config: &'static str,
    /// `model.safetensors`, in the form of [`Packed`].
    pub weights: &'static [u8],
    /// `README.md`, the model card.
    pub card: &'static str,
}

static MODELS: [Builtin; 1] = [Builtin {
    name: "sprout",
    config: include_str!("../assets/sprout/config.json"),
    tokenizer: include_bytes!("../assets/sprout/tokenizer.json"),
    tokenizer_config: include_str!("../assets/sprout/tokenizer_config.json"),
    generation_config: include_str!("../assets/sprout/generation_config.json"),
    weights: include_bytes!("../assets/sprout/model.safetensors"),
    card: include_str!("../assets/sprout/README.md"),
}];

/// Names of all built-in models, without their prefix.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.name)
}

/// The built-in model of a name, given with or without its prefix.
pub fn find(name: &str) -> Option<Builtin> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    MODELS.iter().find(|model| model.name == name).copied()
}

impl Builtin {
    /// A file of its folder but the weights, by name.
    pub fn companion(&self, name: &str) -> Option<&'static [u8]> {
        match name {
            "config.json" => Some(self.config.as_bytes()),
            "generation_config.json" => Some(self.generation_config.as_bytes()),
            TOKENIZER_FILE => Some(self.tokenizer),
            "tokenizer_config.json" => Some(self.tokenizer_config.as_bytes()),
            _ => None,
        }
    }

    /// Its tensors.
    ///
    /// # Errors
    /// Assets that were damaged before they were built in.
    pub fn tensors(&self) -> Result<Packed<'static>> {
        Packed::new(Cow::Borrowed(self.weights))
    }

    /// Loads it.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(&self, options: LoadOptions) -> Result<Model> {
        Model::load(ModelConfig::parse(self.config)?, &self.tensors()?, options)
    }

    /// Its tokenizer, with its chat template.
    ///
    /// # Errors
    /// As [`Tokenizer::from_parts`].
    pub fn tokenizer(&self) -> std::result::Result<Tokenizer, TokenizerError> {
        Tokenizer::from_parts(
            self.tokenizer,
            Some(self.tokenizer_config.as_bytes()),
            Some(self.generation_config.as_bytes()),
            None,
        )
    }

    /// Writes it as a Hugging Face folder with weights in f32, beside its place first and then
    /// renamed.
    ///
    /// # Errors
    /// A folder that is there and not empty, or that cannot be written.
    pub fn unpack(&self, folder: &Path) -> Result<()> {
        let staged = Staged::begin(folder)?;
        let packed = self.tensors()?;
        let mut tensors = BTreeMap::new();
        for name in packed.names() {
            tensors.insert(name, packed.tensor(name)?);
        }
        let weights = serialize(
            &tensors
                .iter()
                .map(|(name, tensor)| Ok(Stored::f32(name, tensor)?))
                .collect::<Result<Vec<_>>>()?,
        )?;
        let files: [(&str, &[u8]); 6] = [
            ("config.json", self.config.as_bytes()),
            (TOKENIZER_FILE, self.tokenizer),
            ("tokenizer_config.json", self.tokenizer_config.as_bytes()),
            ("generation_config.json", self.generation_config.as_bytes()),
            ("README.md", self.card.as_bytes()),
            (WEIGHTS_FILE, &weights),
        ];
        for (name, bytes) in files {
            staged.write(name, bytes)?;
        }
        staged.commit()
    }
}

/// Suffix of the name of a matrix's row scales.
const SCALE: &str = ".scale";

/// Tensors stored as [`pack`] stores them, expanded to f32 one at a time.
#[derive(Debug)]
pub struct Packed<'a> {
    bytes: Cow<'a, [u8]>,
    /// Where each tensor lies in `bytes`.
    places: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    codes: bool,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl<'a> Packed<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// Bytes that are not a safetensors file of codes, scales and f32.
    pub fn new(bytes: Cow<'a, [u8]>) -> Result<Self> {
        let damaged = |what: String| Error::weight("(all)", what);
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| damaged(format!("cannot be read, the packed file is damaged: {e}")))?;
        let mut places = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let codes = match info.dtype {
                Dtype::I8 if info.shape.len() == 2 => true,
                Dtype::F32 => false,
                other => {
                    let what = format!("is packed as {other:?} of shape {:?}", info.shape);
                    return Err(Error::weight(&name, what));
                }
            };
            let (start, end) = info.data_offsets;
            let place = Place {
                codes,
                shape: info.shape.clone(),
                start: header + 8 + start,
                end: header + 8 + end,
            };
            places.insert(name, place);
        }
        for (name, place) in places.iter().filter(|(_, place)| place.codes) {
            let scale = places.get(&format!("{name}{SCALE}"));
            if scale.is_none_or(|scale| scale.codes || scale.shape != place.shape[..1]) {
                return Err(Error::weight(name, "has no scale for each of its rows"));
            }
        }
        Ok(Self { bytes, places })
    }

    /// Names of the tensors, sorted, without those of scales.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.places.keys().map(String::as_str);
        names.filter(|name| !self.is_scale(name))
    }

    fn is_scale(&self, name: &str) -> bool {
        name.strip_suffix(SCALE)
            .and_then(|name| self.places.get(name))
            .is_some_and(|place| place.codes)
    }

    fn floats(&self, place: &Place) -> impl Iterator<Item = f32> {
        self.bytes[place.start..place.end]
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

impl Weights for Packed<'_> {
    fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name) && !self.is_scale(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let Some(place) = self.places.get(name).filter(|_| !self.is_scale(name)) else {
            return Err(Error::weight(name, "is not in the packed model"));
        };
        let values: Vec<f32> = match self.places.get(&format!("{name}{SCALE}")) {
            Some(scales) if place.codes => {
                let rows = self.bytes[place.start..place.end].chunks_exact(place.shape[1].max(1));
                rows.zip(self.floats(scales))
                    .flat_map(|(row, scale)| {
                        row.iter()
                            .map(move |code| f32::from(code.cast_signed()) * scale)
                    })
                    .collect()
            }
            _ => self.floats(place).collect(),
        };
        Ok(Tensor::from_vec(
            values,
            place.shape.as_slice(),
            &Device::Cpu,
        )?)
    }
}

/// A tensor on its way into a file.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn f32(name: &str, tensor: &Tensor) -> candle_core::Result<Self> {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: tensor.dims().to_vec(),
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        })
    }

    /// Codes and scales of a matrix: `scale = absmax of the row / 127`, codes rounded to nearest.
    fn codes(name: &str, matrix: &Tensor) -> Result<[Self; 2]> {
        let mut codes = Vec::with_capacity(matrix.elem_count());
        let mut scales = Vec::with_capacity(matrix.dim(0)?);
        for row in matrix.to_vec2::<f32>()? {
            if row.iter().any(|value| !value.is_finite()) {
                return Err(Error::weight(name, "holds a number that is not finite"));
            }
            let largest = row
                .iter()
                .fold(0f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            codes.extend(row.iter().map(|value| {
                let code = (value * inverse).round().clamp(-127.0, 127.0) as i8;
                code.cast_unsigned()
            }));
            scales.push(scale);
        }
        let rows = scales.len();
        Ok([
            Self {
                name: name.to_owned(),
                dtype: Dtype::I8,
                shape: matrix.dims().to_vec(),
                bytes: codes,
            },
            Self::f32(
                &format!("{name}{SCALE}"),
                &Tensor::from_vec(scales, rows, &Device::Cpu)?,
            )?,
        ])
    }
}

fn serialize(tensors: &[Stored]) -> Result<Vec<u8>> {
    let mut views = BTreeMap::new();
    for tensor in tensors {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        let view = view.map_err(|e| Error::weight(&tensor.name, e.to_string()))?;
        views.insert(tensor.name.as_str(), view);
    }
    // PyTorch's tools ask for the format.
    let metadata = [("format".to_owned(), "pt".to_owned())];
    safetensors::serialize(views, Some(metadata.into_iter().collect()))
        .map_err(|e| Error::weight("(all)", format!("cannot be stored: {e}")))
}

/// Makes the assets of a built-in model of a Hugging Face folder with `config.json`,
/// `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, `README.md` and weights.
///
/// Each file is written beside its place first and then renamed. A head that is tied to the embedding
/// is left out.
///
/// # Errors
/// Files that are missing or malformed, or an `out` that cannot be written.
pub fn pack(folder: &Path, out: &Path) -> Result<()> {
    let read = |name: &str| -> Result<Vec<u8>> {
        let path = folder.join(name);
        fs::read(&path).map_err(|source| Error::Read { path, source })
    };
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    for name in TEXT_FILES {
        files.push((name, read(name)?));
    }
    let config = ModelConfig::parse(&String::from_utf8_lossy(&files[0].1))?;

    let path = folder.join(TOKENIZER_FILE);
    let json = |e: serde_json::Error| Error::file(&path, format!("is not JSON: {e}"));
    let tokenizer: serde_json::Value =
        serde_json::from_slice(&read(TOKENIZER_FILE)?).map_err(json)?;
    files.push((
        TOKENIZER_FILE,
        serde_json::to_vec(&tokenizer).map_err(json)?,
    ));

    let weights = SafetensorsFiles::in_folder(folder)?;
    let mut stored = Vec::new();
    for name in weights.names() {
        if name == HEAD && config.tie_word_embeddings {
            continue;
        }
        let tensor = weights.tensor(name)?.to_dtype(DType::F32)?;
        if tensor.rank() == 2 {
            stored.extend(Stored::codes(name, &tensor)?);
        } else {
            stored.push(Stored::f32(name, &tensor)?);
        }
    }
    files.push((WEIGHTS_FILE, serialize(&stored)?));

    fs::create_dir_all(out).map_err(Error::write(out))?;
    for (name, bytes) in files {
        write_beside(&out.join(name), &bytes)?;
    }
    Ok(())
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, bytes).map_err(Error::write(path))?;
    fs::rename(&partial, path).map_err(Error::write(path))
}

#[cfg(test)]
mod tests;
