//! Reading and writing JSON Lines. A file is written beside its place and renamed when it is whole.

use std::io::Write;
use std::path::Path;

use crate::error::Error;

/// Writes the file at `path` by `fill`; nothing is left there when `fill` fails.
pub fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    // A temporary file is its owner's alone; a data set is for everyone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let beside = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
    let mut out = std::io::BufWriter::new(beside.as_file());
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    beside.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Writes one row of string fields, in the order given.
pub fn write_row(out: &mut dyn Write, fields: &[(&str, &str)]) -> Result<(), Error> {
    let object: serde_json::Map<String, serde_json::Value> = fields
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.into()))
        .collect();
    writeln!(out, "{}", serde_json::Value::Object(object))?;
    Ok(())
}

/// The `text` of every row of `path`.
pub fn read_texts(path: &Path) -> Result<Vec<String>, Error> {
    let content = fs_err::read_to_string(path)?;
    content
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let row: Option<serde_json::Value> = serde_json::from_str(line).ok();
            row.as_ref()
                .and_then(|row| row["text"].as_str())
                .map(str::to_owned)
                .ok_or_else(|| Error::Row {
                    path: path.to_owned(),
                    line: index + 1,
                })
        })
        .collect()
}
