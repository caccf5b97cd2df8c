//! What a run is made of: model and data as the recipe names them, read and checked before the first
//! step, and what is trained on the model.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sparsam_adapter::data::labelled::prepare_labelled;
use sparsam_adapter::data::pack::{pack, unpacked};
use sparsam_adapter::data::questions::{Question, questions};
use sparsam_adapter::data::{Batches, Dataset, Labels, Order, Row, Statistics, prepare};
use sparsam_adapter::error::Error;
use sparsam_adapter::evaluate::{Answer, answers};
use sparsam_adapter::peft::{self, AdapterConfig};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::chat_template::ChatTemplate;
use sparsam_base::network::Network as _;
use sparsam_base::tokenizer::Tokenizer;
use sparsam_hub::Split;
use sparsam_tracker::Tracker;

use super::learned::Learned;
use super::settings;
use crate::classifier;
use crate::device::Place;
use crate::error::Failure;
use crate::from_hub;
use crate::interrupt;
use crate::opened::{Opened, Wanted, open};
use crate::progress::Progress;
use crate::recipe::{EvalGeneration, Method, Recipe, Task};
use crate::run_record::{DataRecord, RunRecord};

/// Name of the phase in which answers are written.
const GENERATE: &str = "generate";

/// Which revisions of the Hub are meant.
#[derive(Clone, Copy)]
pub(super) struct Revisions<'a> {
    model: Option<&'a str>,
    train: Option<&'a str>,
    eval: Option<&'a str>,
}

impl<'a> Revisions<'a> {
    /// Those of the recipe, or the very commits a run that is continued began with: a branch may have moved.
    pub(super) fn of(recipe: &'a Recipe, begun: Option<&'a RunRecord>) -> Self {
        let data = recipe.data.revision.as_deref();
        match begun {
            None => Self {
                model: recipe.revision.as_deref(),
                train: data,
                eval: data,
            },
            Some(record) => Self {
                model: record.base.revision.as_deref(),
                train: record.train_data.revision.as_deref(),
                eval: record
                    .eval_data
                    .as_ref()
                    .and_then(|data| data.revision.as_deref()),
            },
        }
    }
}

/// What is read before anything is trained.
pub(super) struct Material {
    pub(super) opened: Opened<Learned>,
    pub(super) data: Data,
}

/// The data of a run.
pub(super) struct Data {
    pub(super) train: Batches,
    pub(super) train_record: DataRecord,
    pub(super) eval: Option<Batches>,
    pub(super) eval_record: Option<DataRecord>,
    /// Held-out questions to be answered; none unless the recipe asks for answers.
    pub(super) questions: Vec<Question>,
    /// What was found, a line for each file.
    pub(super) found: Vec<String>,
    /// The classes, where texts are classified.
    pub(super) labels: Option<Labels>,
    /// A held-out text that is classified, for the card.
    pub(super) example: Option<String>,
}

impl Material {
    /// Some templates write the date into a conversation; it is that on which the run `started`, so that
    /// one resumed after midnight sees the same data.
    pub(super) fn read(
        recipe: &Recipe,
        place: &Place,
        revisions: Revisions,
        started: Timestamp,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        if recipe.task == Task::Classification {
            return Self::read_classes(recipe, place, revisions, quiet);
        }
        let new_tokens = recipe
            .eval_generation
            .as_ref()
            .map_or(0, |g| g.max_new_tokens);
        let mut opened = open(&Wanted {
            name: &recipe.model,
            quantize: settings::quantize(recipe),
            dtype: settings::dtype(recipe, &place.device),
            device: &place.device,
            max_length: recipe.max_length + new_tokens,
            chat_template: recipe.chat_template.as_deref(),
            revision: revisions.model,
            quiet,
        })?;
        opened.template = opened.template.with_clock(started.as_second());
        let data = Data::read(
            recipe,
            revisions,
            &opened.tokenizer,
            &opened.template,
            None,
            quiet,
        )?;
        let opened = opened.map(|model| Learned::Language(Box::new(model)));
        Ok(Self { opened, data })
    }

    /// A classifier: its data first, which says what classes its head is over.
    fn read_classes(
        recipe: &Recipe,
        place: &Place,
        revisions: Revisions,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        let (texts, data) = Data::read_classes(recipe, revisions, quiet)?;
        let named = named(recipe, revisions);
        let labels = data.labels.as_ref().map_or(&[][..], Labels::names);
        let options = classifier::Options {
            quantize: settings::quantize(recipe),
            dtype: settings::dtype(recipe, &place.device),
            device: &place.device,
            seed: recipe.seed,
        };
        let opened = classifier::open(&named, texts, labels.to_vec(), &options)?;
        let opened = opened.map(|model| Learned::Classes(Box::new(model)));
        Ok(Self { opened, data })
    }
}

/// The base of a classifier.
fn named<'a>(recipe: &'a Recipe, revisions: Revisions<'a>) -> classifier::Named<'a> {
    classifier::Named {
        model: &recipe.model,
        revision: revisions.model,
        max_length: recipe.max_length,
    }
}

impl Data {
    /// The data of a classifier, and what lies between texts and tokens.
    pub(super) fn read_classes(
        recipe: &Recipe,
        revisions: Revisions,
        quiet: bool,
    ) -> anyhow::Result<(classifier::Texts, Self)> {
        let texts = classifier::open_texts(&named(recipe, revisions), quiet)?;
        // An adapter that is trained further keeps its classes, and their numbers.
        let known = match &recipe.adapter {
            Some(folder) => classifier::read_labels(&from_hub::adapter(folder, quiet)?)?,
            None => None,
        };
        let (tokenizer, template) = (&texts.tokenizer, &texts.template);
        let known = known.map(Labels::from_names);
        let data = Data::read(recipe, revisions, tokenizer, template, known, quiet)?;
        Ok((texts, data))
    }

    pub(super) fn read(
        recipe: &Recipe,
        revisions: Revisions,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        // The classes of an adapter that is trained further; else they are the data's.
        known: Option<Labels>,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        let classifies = recipe.task == Task::Classification;
        let mut labels = known;
        let columns = settings::columns(recipe)?;
        let mut found = Vec::new();
        check_splits(recipe)?;
        let mut read =
            |path: &Path, part: (&str, Option<&str>), order: Order| -> anyhow::Result<_> {
                let (split, revision) = part;
                let (files, hub) = files(path, split, revision, recipe, quiet)?;
                let dataset = Dataset::load_all(&files, &columns, settings::format(recipe))?;
                let prepared = if classifies {
                    let labels = match &mut labels {
                        Some(labels) => labels,
                        none => none.insert(Labels::of(&dataset)?),
                    };
                    prepare_labelled(&dataset, tokenizer, labels, recipe.max_length)?
                } else {
                    prepare(&dataset, tokenizer, template, &settings::prepare(recipe))?
                };
                let record = DataRecord {
                    split: hub.as_ref().map(|_| split.to_owned()),
                    revision: hub,
                    ..data_record(path, &dataset, &prepared.statistics)
                };
                found.push(format!(
                    "{}: {}; {}",
                    path.display(),
                    dataset.describe(),
                    if classifies {
                        counted(&prepared.statistics)
                    } else {
                        prepared.statistics.to_string()
                    }
                ));
                let rows = if recipe.packing {
                    pack(&prepared.lengths(), recipe.max_length)
                } else {
                    unpacked(prepared.examples.len())
                };
                let batches = Batches::new(prepared.examples, rows, recipe.batch_size, order);
                Ok((dataset, batches, record))
            };
        let train_split = recipe.data.split.as_deref().unwrap_or("train");
        let eval_split = recipe.data.eval_split.as_deref().unwrap_or("test");
        let train_part = (train_split, revisions.train);
        let eval_part = (eval_split, revisions.eval);
        let shuffled = Order::Shuffled { seed: recipe.seed };
        let (_, train, train_record) = read(&recipe.data.train, train_part, shuffled)?;
        let mut data = Self {
            train,
            train_record,
            eval: None,
            eval_record: None,
            questions: Vec::new(),
            found: Vec::new(),
            labels: None,
            example: None,
        };
        if let Some(path) = &recipe.data.eval {
            let (dataset, batches, record) = read(path, eval_part, Order::AsRead)?;
            (data.eval, data.eval_record) = (Some(batches), Some(record));
            if classifies {
                data.example = shown_text(&dataset);
            }
            if let Some(generation) = &recipe.eval_generation {
                data.questions = questions(
                    &dataset,
                    tokenizer,
                    template,
                    settings::prompt_format(recipe),
                    generation.samples,
                    recipe.max_length,
                )?;
                if data.questions.is_empty() {
                    return Err(Failure::usage(format!(
                        "`eval_generation` has nothing to answer: `{}` holds no question",
                        path.display()
                    ))
                    .hint("leave `eval_generation` out for plain text")
                    .into());
                }
            }
        }
        data.found = found;
        data.labels = labels;
        Ok(data)
    }
}

/// What became of texts with classes.
pub(super) fn counted(statistics: &Statistics) -> String {
    let Statistics {
        rows,
        tokens,
        longest,
        truncated,
        ..
    } = statistics;
    let cut = match truncated {
        0 => String::new(),
        cut => format!(", {cut} cut at `max_length`"),
    };
    format!("{rows} texts, {tokens} tokens, longest {longest}{cut}")
}

/// The first text, if it is one to show on a line.
fn shown_text(dataset: &Dataset) -> Option<String> {
    const LONGEST: usize = 200;
    dataset.rows.iter().find_map(|(_, row)| match row {
        Row::Labelled { text, .. } if text.chars().count() <= LONGEST && !text.contains('\n') => {
            Some(text.clone())
        }
        _ => None,
    })
}

/// The files of a data set, and the commit they are of where they come from the Hub.
fn files(
    path: &Path,
    split: &str,
    revision: Option<&str>,
    recipe: &Recipe,
    quiet: bool,
) -> anyhow::Result<(Vec<PathBuf>, Option<String>)> {
    let Some(name) = from_hub::hub_path(path) else {
        return Ok((vec![path.to_owned()], None));
    };
    let split = Split {
        name: split.to_owned(),
        subset: recipe.data.subset.clone(),
    };
    let (fetched, files) = from_hub::data(name, revision, split, quiet)?;
    Ok((files, Some(fetched.commit)))
}

/// Refuses keys about data sets of the Hub where no data set of the Hub is named.
fn check_splits(recipe: &Recipe) -> Result<(), Failure> {
    let data = &recipe.data;
    let train = from_hub::hub_path(&data.train).is_some();
    let eval = data
        .eval
        .as_deref()
        .is_some_and(|path| from_hub::hub_path(path).is_some());
    let keys = [
        ("split", data.split.is_some(), train),
        ("eval_split", data.eval_split.is_some(), eval),
        ("subset", data.subset.is_some(), train || eval),
        ("revision", data.revision.is_some(), train || eval),
    ];
    match keys.iter().find(|(_, given, hub)| *given && !hub) {
        None => Ok(()),
        Some((key, ..)) => Err(Failure::usage(format!(
            "`data.{key}` is given, but the data is a file or folder here and not on the Hub"
        ))
        .hint(format!(
            "leave `data.{key}` out, or name a data set of the Hub"
        ))),
    }
}

fn data_record(path: &Path, dataset: &Dataset, statistics: &Statistics) -> DataRecord {
    DataRecord {
        path: path.to_owned(),
        revision: None,
        split: None,
        format: dataset.format.name().to_owned(),
        blake3: dataset.hash.clone(),
        examples: statistics.examples as u64,
        tokens: statistics.tokens as u64,
        trained_tokens: statistics.trained_tokens as u64,
        truncated: statistics.truncated as u64,
        skipped: statistics.dropped as u64,
    }
}

/// A setting of the adapter that does not fit the model, as the key of the recipe it came from.
fn of_the_recipe(error: Error, model: &Learned) -> anyhow::Error {
    let Error::Config { key, what } = error else {
        return error.into();
    };
    let key = key.trim_start_matches("lora_");
    let failure = Failure::usage(format!("`lora.{key}` {what}"));
    let groups = model.groups();
    let first = groups.iter().filter(|(layer, _)| *layer == 0);
    let names: Vec<String> = first
        .flat_map(|(_, group)| &group.projections)
        .filter_map(|projection| projection.name.rsplit('.').next())
        .map(|name| format!("`{name}`"))
        .collect();
    failure
        .hint(format!(
            "the model has {} blocks with the projections {}",
            model.layers(),
            names.join(", ")
        ))
        .into()
}

/// A model whose weights cannot all be trained, in the words of the recipe.
fn not_whole(error: Error, recipe: &Recipe) -> anyhow::Error {
    if !matches!(error, Error::Config { .. }) {
        return error.into();
    }
    Failure::usage(format!(
        "`method: full` trains every weight, which the quantised ones of `{}` do not allow",
        recipe.model
    ))
    .hint("write `method: lora`, or name a model that is not quantised")
    .into()
}

/// A model with what is trained on it.
pub(super) struct Ready {
    pub(super) opened: Opened<Learned>,
    pub(super) trainable: Trainable,
    /// Settings of the adapter; none where the whole model is trained.
    pub(super) adapter: Option<AdapterConfig>,
}

impl Ready {
    pub(super) fn make(
        recipe: &Recipe,
        mut opened: Opened<Learned>,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        let (trainable, adapter) = match (recipe.method, &recipe.adapter) {
            (Method::Full, _) => {
                let trainable = Trainable::full(&mut opened.model);
                let mut trainable = trainable.map_err(|error| not_whole(error, recipe))?;
                trainable.set_seed(recipe.seed);
                (trainable, None)
            }
            (Method::Lora, Some(folder)) => {
                let folder = from_hub::adapter(folder, quiet)?;
                let (trainable, config) = peft::load(&folder, &mut opened.model, recipe.seed)?;
                (trainable, Some(config))
            }
            (Method::Lora, None) => {
                let mut lora = settings::lora(recipe);
                let task = match &opened.model {
                    Learned::Language(_) => peft::Task::CausalLm,
                    Learned::Classes(model) => {
                        peft::with_classifiers(&mut lora.modules_to_save);
                        // What begins at random must be trained, and be part of the adapter.
                        for path in &model.fresh {
                            let mut saved = lora.modules_to_save.iter();
                            if !saved.any(|saved| model.is_saved(path, saved)) {
                                lora.modules_to_save.push(path.clone());
                            }
                        }
                        peft::Task::SequenceClassification
                    }
                };
                let trainable = Trainable::lora(&mut opened.model, &lora, recipe.seed)
                    .map_err(|error| of_the_recipe(error, &opened.model))?;
                let config = AdapterConfig {
                    lora,
                    base_model_name_or_path: Some(from_hub::plain(&recipe.model).to_owned()),
                    task,
                };
                (trainable, Some(config))
            }
        };
        Ok(Self {
            opened,
            trainable,
            adapter,
        })
    }

    /// Answers to the held-out questions, as a phase of its own.
    pub(super) fn answer(
        &mut self,
        data: &Data,
        generation: &EvalGeneration,
        tracker: &Tracker,
        progress: &Progress,
    ) -> anyhow::Result<Vec<Answer>> {
        let _phase = tracker.window(GENERATE);
        progress.doing("answering held-out questions");
        Ok(answers(
            self.opened.model.language()?,
            &mut self.trainable,
            &self.opened.tokenizer,
            &self.opened.template,
            &data.questions,
            generation.max_new_tokens,
            &interrupt::requested,
        )?)
    }
}
