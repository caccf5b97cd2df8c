//! The header of a GGUF file: key-value pairs and the list of tensors.
//!
//! The file may come from anyone. Every length is checked against the file's own before anything is
//! reserved for it, arrays stay as the bytes they are, and the whole header is bounded, so a hostile
//! file costs no more memory than its own header. Tensors must lie inside the file and apart from each
//! other.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sparsam_kernels::ggml::GgmlType;

use crate::error::{Error, Result};

/// A header longer than this is not believed.
const LONGEST_HEADER: u64 = 100_000_000;
/// More keys or tensors than this are not believed.
const MOST_ENTRIES: u64 = 100_000;
/// Longest key or name of a tensor.
const LONGEST_NAME: u64 = 65_535;
/// `GGML_MAX_DIMS`
const MOST_DIMENSIONS: u32 = 4;
/// Read at least this much at a time.
const CHUNK: u64 = 1 << 18;

/// What a file says about itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Flag(bool),
    Text(String),
    List(List),
}

/// A list, as its bytes lie in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct List {
    kind: Kind,
    bytes: Vec<u8>,
}

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Flag,
    Text,
    List,
}

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    F32,
    F16,
    Bf16,
    Blocks(GgmlType),
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    pub(super) stored: Stored,
    /// Slowest first, as in the rest of the program; the file has them the other way round.
    pub(super) dims: Vec<usize>,
    /// From the beginning of the file.
    pub(super) start: u64,
    pub(super) bytes: usize,
}

impl Value {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&List> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// For messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("`{}`", text.chars().take(60).collect::<String>()),
            Self::List(list) => format!("a list of {} values", list.len()),
        }
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        match self.kind.width() {
            Some(width) => self.bytes.len() / width,
            None => self.texts().map_or(0, Iterator::count),
        }
    }

    /// The texts, if it is a list of them.
    pub(super) fn texts(&self) -> Option<impl Iterator<Item = &str>> {
        let mut rest = self.bytes.as_slice();
        (self.kind == Kind::Text).then(|| {
            std::iter::from_fn(move || {
                let (length, after) = rest.split_first_chunk::<8>()?;
                let length = u64::from_le_bytes(*length) as usize;
                let text = after.get(..length)?;
                rest = &after[length..];
                // Checked when the list was read.
                std::str::from_utf8(text).ok()
            })
        })
    }

    /// The numbers, if it is a list of them.
    pub(super) fn numbers(&self) -> Option<impl Iterator<Item = f64>> {
        let numeric = !matches!(self.kind, Kind::Flag | Kind::Text | Kind::List);
        let width = self.kind.width().filter(|_| numeric)?;
        let numbers = self.bytes.chunks_exact(width);
        Some(numbers.map(|bytes| match self.kind.value(bytes) {
            Value::Float(number) => number,
            Value::Integer(number) => number as f64,
            _ => f64::NAN,
        }))
    }
}

impl Kind {
    /// `gguf_type` of llama.cpp's `gguf.h`.
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Flag,
            8 => Self::Text,
            9 => Self::List,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => return None,
        })
    }

    /// Bytes of a value, where all are of one length.
    fn width(self) -> Option<usize> {
        match self {
            Self::Unsigned(width) | Self::Signed(width) | Self::Float(width) => Some(width),
            Self::Flag => Some(1),
            Self::Text | Self::List => None,
        }
    }

    /// The number in `bytes`, which are as many as its width.
    fn value(self, bytes: &[u8]) -> Value {
        let mut wide = [0u8; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        match self {
            Self::Flag => Value::Flag(bits != 0),
            Self::Float(4) => Value::Float(f64::from(f32::from_bits(bits as u32))),
            Self::Float(_) => Value::Float(f64::from_bits(bits)),
            Self::Signed(width) => {
                let spare = 64 - 8 * width as u32;
                Value::Integer(i128::from(bits.cast_signed() << spare >> spare))
            }
            _ => Value::Integer(i128::from(bits)),
        }
    }
}

impl Stored {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            30 => Self::Bf16,
            code => Self::Blocks(GgmlType::from_code(code)?),
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Blocks(kind) => kind.name(),
        }
    }

    /// Bytes of a row of `columns` numbers.
    pub(super) fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Self::F32 => columns.checked_mul(4),
            Self::F16 | Self::Bf16 => columns.checked_mul(2),
            Self::Blocks(kind) => kind.row_bytes(columns),
        }
    }
}

/// Types that exist and cannot be read here, for the message.
fn foreign_type(code: u32) -> String {
    let name = match code {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "whole numbers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        code => return format!("the unknown type {code}"),
    };
    name.to_owned()
}

impl Header {
    /// Reads and checks the header of a file.
    pub(super) fn read(path: &Path, file: &File) -> Result<Self> {
        let length = file
            .metadata()
            .map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?
            .len();
        let mut reader = Reader {
            path,
            file,
            length,
            bytes: Vec::new(),
            at: 0,
        };
        reader.header()
    }
}

/// The beginning of a file, read as far as it is asked for.
struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
    bytes: Vec<u8>,
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::file(self.path, what)
    }

    /// The next `count` bytes.
    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let end = (self.at as u64).saturating_add(count);
        if end > self.length {
            let what = format!(
                "is cut short or damaged: its header reaches past its {} bytes",
                self.length
            );
            return Err(self.wrong(what));
        }
        if end > LONGEST_HEADER {
            return Err(self.wrong("is not a model: its header would be over 100 MB"));
        }
        let have = self.bytes.len() as u64;
        if end > have {
            let upto = end.max(have + CHUNK).min(self.length).min(LONGEST_HEADER);
            self.bytes.resize(upto as usize, 0);
            self.file
                .read_exact_at(&mut self.bytes[have as usize..], have)
                .map_err(|source| Error::Read {
                    path: self.path.to_owned(),
                    source,
                })?;
        }
        let start = self.at;
        self.at = end as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self, longest: u64, of: &str) -> Result<String> {
        let length = self.u64()?;
        if length > longest {
            return Err(self.wrong(format!("is damaged: {of} would be {length} bytes long")));
        }
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.wrong(format!("is damaged: {of} is not UTF-8")))
    }

    fn header(&mut self) -> Result<Header> {
        if self.length < 4 || self.take(4)? != b"GGUF" {
            return Err(self.wrong("is not a GGUF file: it does not begin with `GGUF`"));
        }
        match self.u32()? {
            2 | 3 => {}
            1 => return Err(self.wrong("is a GGUF file of version 1, which is no longer read")),
            version if version.swap_bytes() <= 3 => {
                return Err(self.wrong("is a big-endian GGUF file, which cannot be read here"));
            }
            version => {
                let what = format!("is a GGUF file of version {version}, 2 and 3 are known");
                return Err(self.wrong(what));
            }
        }
        let (tensors, keys) = (self.u64()?, self.u64()?);
        if tensors > MOST_ENTRIES || keys > MOST_ENTRIES {
            let what = format!("is damaged: it would hold {tensors} tensors and {keys} keys");
            return Err(self.wrong(what));
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = self.text(LONGEST_NAME, "a key")?;
            let value = self.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.wrong(format!("is damaged: it has the key `{key}` twice")));
            }
        }
        let mut infos = BTreeMap::new();
        for _ in 0..tensors {
            let name = self.text(LONGEST_NAME, "the name of a tensor")?;
            let info = self.tensor(&name)?;
            if infos.insert(name.clone(), info).is_some() {
                return Err(self.wrong(format!("is damaged: it has the tensor `{name}` twice")));
            }
        }
        let alignment = self.alignment(metadata.get("general.alignment"))?;
        self.place(&mut infos, alignment)?;
        Ok(Header {
            metadata,
            tensors: infos,
        })
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let kind = self.kind(key)?;
        match kind {
            Kind::Text => Ok(Value::Text(self.text(LONGEST_HEADER, &format!("`{key}`"))?)),
            Kind::List => self.list(key).map(Value::List),
            _ => {
                let width = kind.width().unwrap_or_default() as u64;
                Ok(kind.value(self.take(width)?))
            }
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let code = self.u32()?;
        Kind::from_code(code)
            .ok_or_else(|| self.wrong(format!("is damaged: `{key}` is of the unknown type {code}")))
    }

    fn list(&mut self, key: &str) -> Result<List> {
        let kind = self.kind(key)?;
        let count = self.u64()?;
        let bytes = match (kind, kind.width()) {
            (_, Some(width)) => self.take(count.saturating_mul(width as u64))?.to_vec(),
            (Kind::Text, None) => {
                let start = self.at;
                // A text has at least its length, so that a false count ends with the file.
                for _ in 0..count {
                    let length = self.u64()?;
                    if std::str::from_utf8(self.take(length)?).is_err() {
                        return Err(self.wrong(format!("is damaged: `{key}` is not UTF-8")));
                    }
                }
                self.bytes[start..self.at].to_vec()
            }
            (_, None) => {
                return Err(self.wrong(format!(
                    "holds lists of lists under `{key}`, which no model has"
                )));
            }
        };
        Ok(List { kind, bytes })
    }

    /// A tensor whose `start` is still counted from the beginning of the data.
    fn tensor(&mut self, name: &str) -> Result<TensorInfo> {
        let damaged =
            |this: &Self, what: String| this.wrong(format!("is damaged: tensor `{name}` {what}"));
        let count = self.u32()?;
        if count == 0 || count > MOST_DIMENSIONS {
            return Err(damaged(self, format!("has {count} dimensions")));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            dims.push(self.u64()?);
        }
        dims.reverse();
        let code = self.u32()?;
        let start = self.u64()?;
        let Some(stored) = Stored::from_code(code) else {
            return Err(Error::Unfit {
                path: self.path.to_owned(),
                what: format!(
                    "stores tensor `{name}` as {}, which this version cannot read",
                    foreign_type(code)
                ),
                hint: "choose a file of type Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16",
            });
        };
        let size = |dims: &[u64]| -> Option<(Vec<usize>, usize)> {
            let dims: Vec<usize> = dims
                .iter()
                .map(|dim| usize::try_from(*dim).ok().filter(|dim| *dim > 0))
                .collect::<Option<_>>()?;
            let (columns, outer) = dims.split_last()?;
            let rows = outer
                .iter()
                .try_fold(1usize, |rows, dim| rows.checked_mul(*dim))?;
            let bytes = rows.checked_mul(stored.row_bytes(*columns)?)?;
            Some((dims, bytes))
        };
        let Some((dims, bytes)) = size(&dims) else {
            let what = format!("cannot have shape {dims:?} as {}", stored.name());
            return Err(damaged(self, what));
        };
        Ok(TensorInfo {
            stored,
            dims,
            start,
            bytes,
        })
    }

    fn alignment(&self, value: Option<&Value>) -> Result<u64> {
        match value {
            None => Ok(32),
            Some(Value::Integer(n)) if *n > 0 && *n <= 1 << 20 && n.count_ones() == 1 => {
                Ok(*n as u64)
            }
            Some(value) => Err(self.wrong(format!(
                "is damaged: `general.alignment` is {}",
                value.describe()
            ))),
        }
    }

    /// Counts the places of the tensors from the beginning of the file, and checks them.
    fn place(&self, tensors: &mut BTreeMap<String, TensorInfo>, alignment: u64) -> Result<()> {
        let data = (self.at as u64).next_multiple_of(alignment);
        let mut places = Vec::with_capacity(tensors.len());
        for (name, info) in tensors.iter_mut() {
            let end = data
                .checked_add(info.start)
                .and_then(|start| start.checked_add(info.bytes as u64));
            let Some(end) = end.filter(|end| *end <= self.length) else {
                let what = format!(
                    "is cut short or damaged: tensor `{name}` reaches past its {} bytes",
                    self.length
                );
                return Err(self.wrong(what));
            };
            info.start += data;
            places.push((info.start, end, name));
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            if pair[1].0 < pair[0].1 {
                let what = format!(
                    "is damaged: tensors `{}` and `{}` lie upon each other",
                    pair[0].2, pair[1].2
                );
                return Err(self.wrong(what));
            }
        }
        Ok(())
    }
}
