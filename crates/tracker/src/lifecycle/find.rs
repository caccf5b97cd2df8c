//! Where runs are: every folder below some roots that holds an energy journal, a record of one, or what
//! the caller knows to be a run. Links are followed, and no folder is entered twice.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::LedgerError;
use crate::{journal, track};

/// A folder of runs.
#[derive(Debug)]
pub(super) struct RunFolder {
    pub(super) path: PathBuf,
    /// The journals, oldest first; the current one is the last, where there is one.
    pub(super) journals: Vec<PathBuf>,
    /// Whether the last journal is the current one.
    pub(super) has_current: bool,
    /// The record that `track` left.
    pub(super) record: Option<PathBuf>,
}

/// What is at or below the roots: folders in the order of their paths, and single files of the roots.
pub(super) fn below(roots: &[PathBuf]) -> Result<(Vec<RunFolder>, Vec<PathBuf>), LedgerError> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for root in roots {
        let kind = std::fs::metadata(root).map_err(LedgerError::read(root))?;
        if kind.is_dir() {
            walk(root, &mut seen, &mut folders)?;
        } else {
            files.push(root.clone());
        }
    }
    Ok((folders, files))
}

fn walk(
    folder: &Path,
    seen: &mut HashSet<PathBuf>,
    folders: &mut Vec<RunFolder>,
) -> Result<(), LedgerError> {
    let real = folder.canonicalize().map_err(LedgerError::read(folder))?;
    if !seen.insert(real) {
        return Ok(());
    }
    let mut inner = Vec::new();
    let mut journals: Vec<(u32, PathBuf)> = Vec::new();
    let mut record = None;
    for entry in std::fs::read_dir(folder).map_err(LedgerError::read(folder))? {
        let path = entry.map_err(LedgerError::read(folder))?.path();
        // A link that leads nowhere is neither a folder nor a journal.
        let Ok(kind) = std::fs::metadata(&path) else {
            continue;
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if kind.is_dir() {
            inner.push(path);
        } else if let Some(number) = journal_number(&name) {
            journals.push((number, path));
        } else if name == track::RECORD_FILE {
            record = Some(path);
        }
    }
    journals.sort_unstable();
    folders.push(RunFolder {
        path: folder.to_owned(),
        has_current: journals.last().is_some_and(|(n, _)| *n == u32::MAX),
        journals: journals.into_iter().map(|(_, path)| path).collect(),
        record,
    });
    inner.sort_unstable();
    inner.iter().try_for_each(|path| walk(path, seen, folders))
}

/// The number of `energy.3.jsonl`; the current journal comes after all of them.
fn journal_number(name: &str) -> Option<u32> {
    if name == journal::FILE_NAME {
        return Some(u32::MAX);
    }
    let number = name.strip_prefix("energy.")?.strip_suffix(".jsonl")?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_once_and_the_current_journal_last() {
        let desk = tempfile::tempdir().unwrap();
        let at = |name: &str| desk.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        for name in [
            "a/energy.jsonl",
            "a/energy.10.jsonl",
            "a/energy.2.jsonl",
            "a/energy.x.jsonl",
        ] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::write(at("a/b/energy.json"), "").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(at("a"), at("a/b/loop")).unwrap();
        let (folders, files) = below(&[at("a"), at("a/b"), at("a/energy.jsonl")]).unwrap();
        assert_eq!(folders.len(), 2);
        let names: Vec<_> = folders[0]
            .journals
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["energy.2.jsonl", "energy.10.jsonl", "energy.jsonl"]);
        assert!(folders[0].has_current && folders[1].record.is_some());
        assert_eq!(files, [at("a/energy.jsonl")]);
    }
}
