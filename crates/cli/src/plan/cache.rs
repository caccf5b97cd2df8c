//! Calibrations that were made before. One file each, named after everything that decides it: the recipe,
//! the files it names, the machine and this program. A change of any of them is another name.

use std::path::{Path, PathBuf};

use crate::machine::Platform;
use crate::recipe::Recipe;
use crate::run::Calibration;

/// The folder: `SPARSAM_CACHE`, else `sparsam` in the system's folder for such files. None where the
/// system names none.
fn folder() -> Option<PathBuf> {
    let named = |name: &str| {
        let value = std::env::var_os(name)?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    };
    named("SPARSAM_CACHE")
        .or_else(|| Some(named("XDG_CACHE_HOME")?.join("sparsam")))
        .or_else(|| Some(named("HOME")?.join(".cache/sparsam")))
        .map(|folder| folder.join("plan"))
}

/// Where the calibration of a recipe lies, or would.
pub(crate) fn place(recipe: &Recipe, cpu: Option<&str>) -> Option<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    let mut decisive = recipe.clone();
    // What is written elsewhere or said on a card takes no time.
    let plain = Recipe::default();
    decisive.output_dir = plain.output_dir;
    decisive.description = None;
    decisive.license = None;
    decisive.budget = None;
    decisive.stage = plain.stage;
    decisive.energy.start_when = None;
    decisive.energy.live_intensity = None;
    hasher.update(&serde_json::to_vec(&decisive).ok()?);
    hasher.update(&serde_json::to_vec(&Platform::here(&recipe.device)).ok()?);
    hasher.update(cpu.unwrap_or_default().as_bytes());
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
    let named = [
        Some(Path::new(&recipe.model)),
        Some(&recipe.data.train),
        recipe.data.eval.as_deref(),
        recipe.adapter.as_deref(),
    ];
    for path in named.into_iter().flatten() {
        stamp(path, &mut hasher);
    }
    Some(folder()?.join(format!("{}.json", &hasher.finalize().to_hex()[..32])))
}

/// Sizes and times of a file, or of the files in a folder.
fn stamp(path: &Path, hasher: &mut blake3::Hasher) {
    let Ok(metadata) = path.metadata() else {
        return; // A built-in model, which this program's version stands for.
    };
    if metadata.is_dir() {
        let mut inner: Vec<PathBuf> = path
            .read_dir()
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        inner.sort();
        for path in inner {
            stamp(&path, hasher);
        }
        return;
    }
    hasher.update(path.as_os_str().as_encoded_bytes());
    hasher.update(&metadata.len().to_le_bytes());
    if let Some(time) = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
    {
        hasher.update(&time.as_nanos().to_le_bytes());
    }
}

/// What lies there, if it can be read.
pub(crate) fn read(place: &Path) -> Option<Calibration> {
    serde_json::from_slice(&fs_err::read(place).ok()?).ok()
}

/// Keeps a calibration. One that cannot be kept is made again.
pub(crate) fn write(place: &Path, calibration: &Calibration) {
    let Some(folder) = place.parent() else {
        return;
    };
    let Ok(text) = serde_json::to_vec(calibration) else {
        return;
    };
    if fs_err::create_dir_all(folder).is_ok() {
        // Nothing depends on it.
        let _ = crate::run_record::write_whole(place, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_a_calibration_decides_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a.jsonl");
        std::fs::write(&data, "1").unwrap();
        let mut recipe = Recipe {
            model: "builtin:sprout".to_owned(),
            ..Recipe::default()
        };
        recipe.data.train.clone_from(&data);
        let Some(first) = place(&recipe, None) else {
            return; // Neither a home nor a folder is named where this runs.
        };
        let mut elsewhere = recipe.clone();
        elsewhere.output_dir = "other".into();
        assert_eq!(place(&elsewhere, None).unwrap(), first);
        let mut other = recipe.clone();
        other.lora.r += 1;
        assert_ne!(place(&other, None).unwrap(), first);
        assert_ne!(place(&recipe, Some("CPU")).unwrap(), first);
        std::fs::write(&data, "12").unwrap();
        assert_ne!(place(&recipe, None).unwrap(), first);
    }
}
