//! Which adapter a merged model was made of: a note in the header of its files, so that it is never
//! published with the figures of another run.

use std::path::Path;

use sparsam_adapter::peft::WEIGHTS_FILE;
use sparsam_base::files::gguf::GgufFile;
use sparsam_base::files::safetensors::SafetensorsFiles;

use crate::opened::hash;

/// The key of the note, in the metadata of safetensors and of GGUF.
pub(crate) const NOTE: &str = "sparsam.adapter_blake3";

/// The note on an adapter: BLAKE3 of its file in hexadecimal.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn adapter(folder: &Path) -> anyhow::Result<String> {
    let file = folder.join(WEIGHTS_FILE);
    Ok(hash([file.as_path()].into_iter())?.to_hex().to_string())
}

/// What a model's folder or GGUF file says; none where it says nothing.
///
/// # Errors
/// Files that are missing or damaged.
pub(crate) fn noted(model: &Path) -> anyhow::Result<Option<String>> {
    let note = if model.is_dir() {
        let files = SafetensorsFiles::in_folder(model)?;
        files.note(NOTE).map(str::to_owned)
    } else {
        let file = GgufFile::open(model)?;
        file.note(NOTE).map(str::to_owned)
    };
    Ok(note)
}
