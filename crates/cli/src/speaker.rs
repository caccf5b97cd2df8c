//! A model that answers: the base, its adapter, its chat template and the choice of words.
//!
//! `generate` and `chat` differ in where messages come from and what becomes of the answers; how a
//! conversation becomes tokens and tokens become text on a stream is the same and stands here.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::chat_template::Message;
use sparsam_base::generate::{Sampling, generate};
use sparsam_base::model::Quantize;

use crate::adapters::Adapter;
use crate::args::ModelArgs;
use crate::device;
use crate::error::Failure;
use crate::from_hub;
use crate::opened::{Opened, Wanted, open};

/// Beside the adapter, the template it was trained with where that is not the base's own.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// A model that answers.
pub(crate) struct Speaker {
    opened: Opened,
    hook: Trainable,
    end_ids: Vec<u32>,
    sampling: Sampling,
}

/// An answer.
pub(crate) struct Answer {
    /// What was written.
    pub(crate) text: String,
    /// Why it ends.
    pub(crate) end: End,
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The model ended it.
    Said,
    /// At the longest answer asked for.
    Longest,
    /// At the end of the model's context.
    Full,
}

impl Speaker {
    /// Opens the model and the adapter; what is worth knowing about them goes to `notes`.
    ///
    /// # Errors
    /// A model or an adapter that cannot be opened, or that do not fit each other.
    pub(crate) fn open(
        args: &ModelArgs,
        notes: &mut dyn Write,
        quiet: bool,
    ) -> anyhow::Result<Self> {
        let adapter = Adapter::of(&args.base, quiet)?;
        let adapter = adapter.as_ref().map(Adapter::folder);
        let template = adapter.map(|folder| folder.join(TEMPLATE_FILE));
        let template = template.filter(|path| path.exists());
        // How long texts get is known when the prompt is; until then there is room for nothing.
        let place = device::open(args.device)?;
        if let Some(note) = &place.note {
            writeln!(notes, "note: {note}")?;
        }
        let mut opened = open(&Wanted {
            name: &args.base.model,
            quantize: Quantize::None,
            dtype: None,
            device: &place.device,
            max_length: 0,
            chat_template: template.as_deref().and_then(Path::to_str),
            revision: args.base.revision.as_deref(),
            quiet,
        })?;
        for key in &opened.model.config.unrecognised {
            writeln!(
                notes,
                "note: `{key}` in config.json is not known here and has no effect"
            )?;
        }
        let hook = match adapter {
            None => Trainable::none(&opened.model),
            Some(folder) => {
                if peft::read_config(folder)?.task == peft::Task::SequenceClassification {
                    return Err(Failure::usage(format!(
                        "`{}` is the adapter of a classifier, which does not write texts",
                        folder.display()
                    ))
                    .hint("`sparsam classify` says of which class a text is")
                    .into());
                }
                let (mut hook, config) = peft::load(folder, &mut opened.model, 0)?;
                hook.set_training(None);
                if let Some(base) = config.base_model_name_or_path
                    && !is_same_model(&base, &args.base.model)
                {
                    writeln!(
                        notes,
                        "note: the adapter was trained on `{base}`, the model here is `{}`",
                        args.base.model
                    )?;
                }
                hook
            }
        };
        Ok(Self {
            end_ids: opened.template.end_ids(&opened.tokenizer)?,
            opened,
            hook,
            sampling: Sampling {
                max_new_tokens: args.max_new_tokens,
                temperature: args.temperature,
                top_p: args.top_p,
                seed: args.seed,
            },
        })
    }

    /// The longest text the model reads, in tokens.
    pub(crate) fn context(&self) -> usize {
        self.opened.model.config.max_position_embeddings
    }

    /// Makes room for a prompt and an answer of `tokens` together, or as many as the model reads.
    ///
    /// # Errors
    /// A length that the model's positions cannot reach.
    pub(crate) fn make_room(&mut self, tokens: usize) -> anyhow::Result<()> {
        let tokens = tokens.min(self.context());
        Ok(self.opened.model.set_max_length(tokens)?)
    }

    /// The longest answer asked for, in tokens.
    pub(crate) fn longest_answer(&self) -> usize {
        self.sampling.max_new_tokens
    }

    /// Tokens of a conversation up to where the next answer begins.
    ///
    /// # Errors
    /// A conversation that the template refuses.
    pub(crate) fn conversation(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let rendered = self.opened.template.render(messages, true)?;
        Ok(self.opened.tokenizer.encode(&rendered.text, false)?)
    }

    /// Tokens of a text that is to be continued.
    ///
    /// # Errors
    /// A text that the tokenizer cannot take.
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let tokenizer = &self.opened.tokenizer;
        let mut ids = tokenizer.prefix().to_vec();
        ids.extend(tokenizer.encode(text, false)?);
        Ok(ids)
    }

    /// Answers; what is said goes to `out` as it comes.
    ///
    /// # Errors
    /// A prompt for which there is no room, a model that puts out no numbers, an `out` that cannot be
    /// written.
    pub(crate) fn answer(
        &mut self,
        prompt: Vec<u32>,
        out: &mut dyn Write,
    ) -> anyhow::Result<Answer> {
        let Opened {
            model, tokenizer, ..
        } = &self.opened;
        let room = model.table.positions();
        let told = prompt.len();
        let mut stream = tokenizer.stream_after(&prompt);
        let mut text = String::new();
        let mut outcome: anyhow::Result<()> = Ok(());
        let mut say = |piece: Option<String>| -> io::Result<()> {
            let Some(piece) = piece else { return Ok(()) };
            text.push_str(&piece);
            out.write_all(piece.as_bytes())?;
            out.flush()
        };
        let answers = generate(
            model,
            &mut self.hook,
            &[prompt],
            &self.end_ids,
            &self.sampling,
            &mut |_, id| {
                let piece = stream.push(id).map_err(anyhow::Error::new);
                outcome = piece.and_then(|piece| Ok(say(piece)?));
                match outcome {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            },
        )?;
        outcome?;
        say(stream.finish()?)?;
        let length = answers.first().map_or(0, Vec::len);
        let end = if told + length >= room {
            End::Full
        } else if length >= self.sampling.max_new_tokens {
            End::Longest
        } else {
            End::Said
        };
        Ok(Answer { text, end })
    }
}

/// Refuses a prompt that fills the model's context.
///
/// # Errors
/// A prompt of `tokens` tokens that leaves no room for an answer.
pub(crate) fn check_prompt(tokens: usize, context: usize) -> anyhow::Result<()> {
    if tokens < context {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the prompt has {tokens} tokens, the model reads at most {context} with its answer"
    ))
    .hint("shorten the prompt")
    .into())
}

/// Whether two names mean the same model: the same words, or the same folder.
fn is_same_model(one: &str, other: &str) -> bool {
    let folder = |name: &str| -> Option<PathBuf> { std::fs::canonicalize(name).ok() };
    from_hub::plain(one) == from_hub::plain(other)
        || folder(one).is_some_and(|one| folder(other) == Some(one))
}

/// Where notes go: standard error, or nowhere if the user wants quiet.
pub(crate) fn notes(quiet: bool) -> Box<dyn Write> {
    if quiet {
        Box::new(io::sink())
    } else {
        Box::new(io::stderr())
    }
}
