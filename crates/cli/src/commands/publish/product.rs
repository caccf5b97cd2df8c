//! What of a run is published: its adapter or its model, or what was made of the adapter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sparsam_base::builtin;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_hub::Need;
use sparsam_hub::publish::Content;
use sparsam_tracker::EnergyRecord;

use crate::args::hub::PublishArgs;
use crate::cards::{self, Made};
use crate::classifier;
use crate::error::{Failure, io_reason};
use crate::from_hub;
use crate::made_of;
use crate::opened::find_builtin;
use crate::probe_file;
use crate::recipe::Method;
use crate::run_record::RunRecord;

/// The files of an adapter.
const ADAPTER: &[&str] = &["adapter_config.json", "adapter_model.safetensors"];
/// The configuration of a whole model.
const MODEL: &[&str] = &["config.json", "generation_config.json"];
/// The files of a tokenizer.
const TOKENIZER: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];
/// The list of a model's shards.
const INDEX: &str = "model.safetensors.index.json";

/// What is published.
#[derive(Debug, Clone, Copy)]
pub(super) enum Product<'a> {
    /// What the run itself wrote.
    Own,
    /// The folder that `sparsam merge` wrote.
    Merged(&'a Path),
    /// Files in GGUF.
    Gguf(&'a [PathBuf]),
}

type Files = Vec<(String, Content)>;

impl<'a> Product<'a> {
    pub(super) fn of(args: &'a PublishArgs) -> Self {
        match &args.merged {
            Some(folder) => Self::Merged(folder),
            None if args.gguf.is_empty() => Self::Own,
            None => Self::Gguf(&args.gguf),
        }
    }

    /// What it is, in a word.
    pub(super) fn name(self, record: &RunRecord) -> &'static str {
        match (self, record.recipe.method) {
            (Self::Own, Method::Lora) => "adapter",
            (Self::Own, Method::Full) => "model",
            (Self::Merged(_), _) => "merged model",
            (Self::Gguf(_), _) => "GGUF model",
        }
    }

    /// Refuses files that were not made of the run's adapter: the card's figures would be another model's.
    pub(super) fn check(self, run: &Path, record: &RunRecord) -> anyhow::Result<()> {
        let models: Vec<&Path> = match self {
            Self::Own => return Ok(()),
            Self::Merged(folder) => vec![folder],
            Self::Gguf(files) => files.iter().map(PathBuf::as_path).collect(),
        };
        let shown = run.display();
        if record.recipe.method == Method::Full {
            return Err(Failure::usage(format!(
                "the run in `{shown}` trained a whole model, so that there was nothing to merge"
            ))
            .hint("leave `--merged` and `--gguf` out: the model is published as it is")
            .into());
        }
        let adapter = made_of::adapter(run)?;
        for model in models {
            let path = model.display();
            let why = match made_of::noted(model)? {
                Some(noted) if noted == adapter => continue,
                Some(_) => "was made of another adapter",
                None => "does not say which adapter it was made of",
            };
            return Err(Failure::usage(format!(
                "`{path}` {why}, so that the energy of the run in `{shown}` is not known to be its own"
            ))
            .hint(format!(
                "make it of this run: `sparsam merge {shown} -o DIR`, `sparsam export {shown} --format gguf -o FILE`"
            ))
            .into());
        }
        Ok(())
    }

    /// Its card: the run's own, or one for what was made of it under the name it will have.
    pub(super) fn card(
        self,
        run: &Path,
        record: &RunRecord,
        energy: &EnergyRecord,
        name: &str,
    ) -> anyhow::Result<Vec<u8>> {
        let made = match self {
            Self::Own => return Ok(read(&run.join(cards::FILE_NAME))?),
            Self::Merged(_) => Made::Merged,
            Self::Gguf(files) => Made::Gguf(file_name(&files[0])?),
        };
        Ok(cards::of_made(run, record, energy, (made, name)).into_bytes())
    }

    /// Its files beside the card and the record, each with its bytes or where they are.
    pub(super) fn files(
        self,
        run: &Path,
        record: &RunRecord,
        quiet: bool,
    ) -> anyhow::Result<Files> {
        match (self, record.recipe.method) {
            (Self::Own, Method::Lora) => adapter(run, record, quiet),
            (Self::Own, Method::Full) => whole(run),
            (Self::Merged(folder), _) => whole(folder),
            (Self::Gguf(files), _) => {
                let mut names = BTreeSet::new();
                let mut found = Files::new();
                for path in files {
                    let name = file_name(path)?;
                    if !names.insert(name) {
                        return Err(Failure::usage(format!("two files are called `{name}`"))
                            .hint("they would lie in one folder: rename one of them")
                            .into());
                    }
                    found.push((name.to_owned(), Content::File(path.clone())));
                }
                Ok(found)
            }
        }
    }
}

fn file_name(path: &Path) -> Result<&str, Failure> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| {
        Failure::usage(format!(
            "`{}` has no name that the Hub takes",
            path.display()
        ))
        .hint("name a file")
    })
}

/// Those of `names` that are in a folder.
fn there(folder: &Path, names: &[&str]) -> Files {
    let paths = names.iter().map(|name| (*name, folder.join(name)));
    paths
        .filter(|(_, path)| path.is_file())
        .map(|(name, path)| (name.to_owned(), Content::File(path)))
        .collect()
}

fn needed(folder: &Path, name: &str) -> Result<(String, Content), Failure> {
    let path = folder.join(name);
    if path.is_file() {
        return Ok((name.to_owned(), Content::File(path)));
    }
    Err(Failure::run(format!(
        "`{}` is missing, so there is nothing to publish",
        path.display()
    ))
    .hint("give the `output_dir` of a finished run"))
}

/// An adapter with its base's tokenizer.
fn adapter(run: &Path, record: &RunRecord, quiet: bool) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for name in ADAPTER {
        files.push(needed(run, name)?);
    }
    files.extend(there(run, &[probe_file::FILE_NAME]));
    files.extend(tokenizer(run, record, quiet)?);
    if !record.labels.is_empty() {
        files.extend(there(run, &[classifier::LABELS]));
    }
    Ok(files)
}

/// A whole model in one file or several.
fn whole(folder: &Path) -> anyhow::Result<Files> {
    let mut files = there(folder, MODEL);
    files.extend(there(folder, TOKENIZER));
    let index = folder.join(INDEX);
    if !index.is_file() {
        files.push(needed(folder, "model.safetensors")?);
        return Ok(files);
    }
    files.extend(there(folder, &[INDEX]));
    let shards = SafetensorsFiles::in_folder(folder)?;
    for path in shards.paths() {
        files.push(needed(folder, file_name(path)?)?);
    }
    Ok(files)
}

/// The tokenizer's files: those of the base, and the chat template the adapter was trained with.
fn tokenizer(folder: &Path, record: &RunRecord, quiet: bool) -> anyhow::Result<Files> {
    let mut files = Vec::new();
    let base = &record.base;
    let trained_with = folder.join("chat_template.jinja");
    let own = trained_with.is_file();
    if own {
        files.push((
            "chat_template.jinja".to_owned(),
            Content::File(trained_with),
        ));
    }
    if base.model.starts_with(builtin::PREFIX) {
        let builtin = find_builtin(&base.model)?;
        files.extend([
            (
                "tokenizer.json".to_owned(),
                Content::Bytes(builtin.tokenizer.to_vec()),
            ),
            (
                "tokenizer_config.json".to_owned(),
                Content::Bytes(builtin.tokenizer_config.as_bytes().to_vec()),
            ),
        ]);
        return Ok(files);
    }
    let commit = base.revision.as_deref();
    let name = from_hub::plain(&base.model);
    let fetched = from_hub::model(name, commit, &Need::Tokenizer, quiet)?;
    for &name in TOKENIZER {
        let path = fetched.folder.join(name);
        if path.is_file() && !(own && name.starts_with("chat_template")) {
            files.push((name.to_owned(), Content::File(path)));
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the card `{}`: {}",
            path.display(),
            io_reason(&error)
        ))
        .hint("`sparsam card RUN` writes it again")
    })
}
