//! Files written so that one which has its name is whole: beside, flushed to the disk, then renamed.
//!
//! Tensors go out one at a time, so that writing a model takes the memory of its largest tensor and not
//! that of the model again.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, View};
use safetensors::{SafeTensorError, serialize_to_file};
use sparsam_base::error::Error as BaseError;
use sparsam_kernels::host::{fetch, view};
use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// Writes tensors as one safetensors file: codes of u8 as they are, all else in f32.
///
/// # Errors
/// A file that cannot be written, or a tensor that cannot be read.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        // Fails here, and not while the file is written, for a tensor that cannot be read.
        let tensor = if tensor.dtype() == DType::U8 {
            let tensor = fetch(tensor)?;
            drop(view::<u8>(&tensor)?);
            tensor
        } else {
            // Free of cost for what is trained, which is f32 and contiguous.
            let tensor = fetch(&tensor.to_dtype(DType::F32)?)?;
            drop(view::<f32>(&tensor)?);
            tensor
        };
        views.push((name.as_str(), Stored { tensor }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let beside = beside(path).map_err(Error::write(path))?.into_temp_path();
    // Puts a file of its own in the place of the one named, so that is the one to flush.
    serialize_to_file(views, Some(metadata), &beside).map_err(|error| match error {
        SafeTensorError::IoError(source) => Error::write(path)(source),
        other => Error::file(path, format!("cannot be made: {other}")),
    })?;
    place(beside, path).map_err(Error::write(path))
}

/// Writes a text file.
///
/// # Errors
/// A file that cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, text.as_bytes()).map_err(Error::write(path))
}

/// Writes any file.
///
/// # Errors
/// The file cannot be written; the error does not name it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = beside(path)?;
    file.write_all(bytes)?;
    place(file.into_temp_path(), path)
}

/// Writes a file piece by piece.
///
/// # Errors
/// What `write` fails with, or a file that cannot be written.
pub fn write_through(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
) -> Result<()> {
    let file = beside(path).map_err(Error::write(path))?;
    let mut out = BufWriter::new(file.as_file());
    write(&mut out).map_err(|error| match error {
        // The writers of the base know no path.
        Error::Base(BaseError::Tensor(candle_core::Error::Io(source))) => {
            Error::write(path)(source)
        }
        other => other,
    })?;
    out.flush().map_err(Error::write(path))?;
    drop(out);
    place(file.into_temp_path(), path).map_err(Error::write(path))
}

fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(folder)
}

/// Flushes a finished file to the disk and gives it its name.
fn place(beside: TempPath, path: &Path) -> io::Result<()> {
    let file = File::open(&beside)?;
    file.sync_all()?;
    #[cfg(unix)]
    {
        // Temporary files are private; what a run leaves should be readable as any other file.
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(beside.persist(path)?)
}

/// A contiguous tensor of f32 or u8 whose bytes are made when their turn comes.
struct Stored {
    tensor: Tensor,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        match self.tensor.dtype() {
            DType::U8 => Dtype::U8,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // A tensor that cannot be read gives too few bytes, which the check of the file's length finds.
        let flat = self.tensor.flatten_all();
        let bytes = if self.tensor.dtype() == DType::U8 {
            flat.and_then(|t| t.to_vec1::<u8>())
        } else {
            let values = flat.and_then(|t| t.to_vec1::<f32>());
            values.map(|values| {
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect()
            })
        };
        Cow::Owned(bytes.unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.tensor.elem_count() * self.tensor.dtype().size_in_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensor = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap();
        let tensor = tensor.reshape((2, 3)).unwrap().t().unwrap();
        write_tensors(&path, &BTreeMap::from([("x".to_owned(), tensor.clone())])).unwrap();
        let read = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(read["x"].dims(), [3, 2]);
        assert_eq!(values(&read["x"]), values(&tensor.contiguous().unwrap()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn codes_stay_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let codes = Tensor::from_slice(&[7u8, 255, 0, 1], (2, 2), &Device::Cpu).unwrap();
        write_tensors(&path, &BTreeMap::from([("x".to_owned(), codes.clone())])).unwrap();
        let read = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        assert_eq!(read["x"].dtype(), DType::U8);
        assert_eq!(
            read["x"].to_vec2::<u8>().unwrap(),
            codes.to_vec2::<u8>().unwrap()
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = write_text(Path::new("no/such/folder/x.json"), "x").unwrap_err();
        assert!(error.to_string().contains("no/such/folder/x.json"));
    }
}
