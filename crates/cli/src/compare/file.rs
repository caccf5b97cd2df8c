//! The file of a comparison: one recipe, and in each arm what is changed of it.
//!
//! What would give the arms different work (data, order, tokens, batch, evaluation) may be changed for all
//! of them together and never in one.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, io_reason};
use crate::recipe::{Recipe, RecipeFile};

/// Keys of a recipe that are the same in all arms.
pub(crate) const SAME: [&str; 18] = [
    "model",
    "revision",
    "adapter",
    "data",
    "chat_template",
    "max_length",
    "packing",
    "epochs",
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "eval_steps",
    "eval_generation",
    "save_steps",
    "threads",
    "country",
    "energy",
    "training_type",
];

/// Keys that would end an arm at a moment of its own.
const NONE: [&str; 2] = ["early_stopping", "budget"];

/// A comparison as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    /// The recipe that all arms begin with, a file.
    pub(crate) recipe: PathBuf,
    /// Changes for all arms, as `key=value`.
    #[serde(default)]
    pub(crate) set: Vec<String>,
    /// What each arm changes, as `key=value`. The first is what the others are measured against.
    pub(crate) arms: IndexMap<String, Vec<String>>,
    /// Runs of each arm, each with another seed.
    #[serde(default = "three")]
    pub(crate) repeats: usize,
    /// Seconds of rest before each run, in which the machine cools.
    #[serde(default = "five")]
    pub(crate) pause_seconds: f64,
    /// Seconds of steps before the first run, in which the machine warms up.
    #[serde(default = "ten")]
    pub(crate) warm_up_seconds: f64,
    /// The folder for all runs and the result.
    pub(crate) output_dir: PathBuf,
}

fn three() -> usize {
    3
}

fn five() -> f64 {
    5.0
}

fn ten() -> f64 {
    10.0
}

/// A run of a comparison.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) arm: String,
    pub(crate) repeat: usize,
    /// Where it goes.
    pub(crate) folder: PathBuf,
    /// The keys that make it of the recipe.
    pub(crate) overrides: Vec<String>,
    pub(crate) recipe: Recipe,
}

impl Comparison {
    /// Reads and checks a comparison.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let text = fs_err::read_to_string(path).map_err(|error| {
            Failure::usage(format!(
                "cannot read the comparison `{}`: {}",
                path.display(),
                io_reason(&error)
            ))
            .hint("`configs/compare-city-trees.yaml` is one to start from")
        })?;
        let comparison: Self = serde_saphyr::from_str(&text).map_err(|error| {
            let said = error.to_string();
            let first = said.lines().next().unwrap_or_default().to_owned();
            Failure::usage(format!("`{}` is not a comparison: {first}", path.display())).hint(
                "its keys are recipe, set, arms, repeats, pause_seconds, warm_up_seconds, output_dir",
            )
        })?;
        comparison
            .check()
            .map_err(|what| Failure::usage(format!("`{}`: {what}", path.display())))?;
        Ok(comparison)
    }

    fn check(&self) -> Result<(), String> {
        if self.arms.len() < 2 {
            return Err("`arms` names fewer than two arms".to_owned());
        }
        if self.repeats == 0 {
            return Err("`repeats` must be 1 or more".to_owned());
        }
        for (key, seconds) in [
            ("pause_seconds", self.pause_seconds),
            ("warm_up_seconds", self.warm_up_seconds),
        ] {
            if !(0.0..=3600.0).contains(&seconds) {
                return Err(format!("`{key}` must be from 0 to 3600"));
            }
        }
        let mut folders: Vec<String> = self.arms.keys().map(|name| slug(name)).collect();
        if folders.iter().any(String::is_empty) {
            return Err("the name of an arm needs a letter or a digit".to_owned());
        }
        folders.sort();
        if folders.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two arms have names of the same letters and digits".to_owned());
        }
        Ok(())
    }

    /// The runs in the order in which they are made: repeat by repeat, in each beginning with another arm,
    /// so that what drifts (heat, other work) falls on all alike.
    pub(crate) fn runs(&self) -> Result<Vec<Planned>, Failure> {
        let base = RecipeFile::load(&self.recipe, &self.set)?;
        let seed = base.recipe.seed;
        let names: Vec<&String> = self.arms.keys().collect();
        let mut runs = Vec::new();
        for repeat in 0..self.repeats {
            for place in 0..names.len() {
                let arm = names[(place + repeat) % names.len()];
                let folder = self
                    .output_dir
                    .join("arms")
                    .join(slug(arm))
                    .join((repeat + 1).to_string());
                // Most of them are not what will be used; `set` can say otherwise.
                let mut overrides = vec!["stage=search".to_owned()];
                overrides.extend(self.set.iter().cloned());
                overrides.extend(self.arms[arm].iter().cloned());
                overrides.push(format!("seed={}", seed + repeat as u64));
                overrides.push(format!("output_dir={}", yaml(&folder)));
                let recipe = RecipeFile::load(&self.recipe, &overrides)?.recipe;
                same_work(&base.recipe, arm, &recipe)?;
                runs.push(Planned {
                    arm: arm.clone(),
                    repeat,
                    folder,
                    overrides,
                    recipe,
                });
            }
        }
        Ok(runs)
    }
}

/// A path as a YAML text.
fn yaml(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "''"))
}

/// Refuses an arm whose work is not that of the others.
fn same_work(base: &Recipe, arm: &str, recipe: &Recipe) -> Result<(), Failure> {
    let value = |recipe: &Recipe| serde_json::to_value(recipe).unwrap_or_default();
    let (ours, theirs) = (value(base), value(recipe));
    for key in SAME {
        if ours[key] != theirs[key] {
            return Err(Failure::usage(format!(
                "the arm `{arm}` changes `{key}`, so that its work is not that of the others"
            ))
            .hint(format!("change `{key}` for all arms, under `set`")));
        }
    }
    for key in NONE {
        if !theirs[key].is_null() {
            return Err(Failure::usage(format!(
                "with `{key}` the arm `{arm}` would end at a moment of its own"
            ))
            .hint(format!("add `{key}=null` under `set`")));
        }
    }
    if recipe.data.eval.is_none() {
        return Err(Failure::usage(
            "the recipe has no `data.eval`, so that there is no quality to compare",
        )
        .hint("add held-out data as `data.eval=…` under `set`"));
    }
    Ok(())
}

/// The name as a folder: small letters and digits, joined by hyphens.
pub(crate) fn slug(name: &str) -> String {
    name.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(arms: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("recipe.yaml");
        std::fs::write(
            &recipe,
            "model: builtin:sprout\ndata: {train: a.jsonl, eval: b.jsonl}\nepochs: 1\n",
        )
        .unwrap();
        let path = folder.path().join("compare.yaml");
        let text = format!(
            "recipe: {}\narms:\n{arms}\nrepeats: 2\noutput_dir: out\n",
            recipe.display()
        );
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn arms_take_turns_and_have_seeds_of_their_own() {
        let (_folder, path) = desk("  LoRA r 4: [lora.r=4]\n  full: [method=full]");
        let runs = Comparison::load(&path).unwrap().runs().unwrap();
        let order: Vec<(&str, usize, u64)> = runs
            .iter()
            .map(|run| (run.arm.as_str(), run.repeat, run.recipe.seed))
            .collect();
        assert_eq!(
            order,
            [
                ("LoRA r 4", 0, 42),
                ("full", 0, 42),
                ("full", 1, 43),
                ("LoRA r 4", 1, 43)
            ]
        );
        assert_eq!(runs[3].folder, Path::new("out/arms/lora-r-4/2"));
        assert_eq!(runs[3].recipe.output_dir, runs[3].folder);
    }

    #[test]
    fn an_arm_may_not_have_work_of_its_own() {
        for (arms, word) in [
            ("  a: [lora.r=4]\n  b: [epochs=2]", "`epochs`"),
            ("  a: [lora.r=4]\n  b: [batch_size=1]", "`batch_size`"),
            ("  a: [lora.r=4]\n  b: ['budget={minutes: 1}']", "`budget`"),
        ] {
            let (_folder, path) = desk(arms);
            let failure = Comparison::load(&path).unwrap().runs().unwrap_err();
            assert!(failure.to_string().contains(word), "{failure}");
        }
        for (arms, word) in [
            ("  a: [lora.r=4]", "fewer than two"),
            ("  a 1: []\n  a-1: []", "same letters"),
            ("  a: []\n  b: []\nmore: 1", "more"),
        ] {
            let (_folder, path) = desk(arms);
            let failure = Comparison::load(&path).unwrap_err();
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }
}
