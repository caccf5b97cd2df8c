//! Rows as examples: rendered, tokenised, masked, cut to length, counted.
//!
//! - **Chat rows** go through the model's chat template, which writes BOS itself where the model
//!   wants one.
//! - **`prompt` and `completion` strings**: TRL puts them one after the other as they are. A model
//!   with a chat template of its own has never been asked that way, so by default the two become a
//!   user and an assistant turn there, and are put together plainly on a model without one;
//!   [`PromptFormat`] fixes either. In the plain form no space is added between them.
//! - **`text`** is a document: what the tokenizer puts before a text (usually BOS), the text, EOS; all
//!   of it trained.
//!
//! **EOS is trained wherever a document ends.** An answer whose template closes it with a token of its
//! own (`<|im_end|>`) ends with that; else EOS is added. Nothing is padded, so a padding token that
//! equals EOS cannot mask it.
//!
//! Documents longer than `max_length` are cut on the right, and counted; one that has nothing left to
//! train is dropped, and counted. Text files are split instead, see [`Overlong`].

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparsam_base::chat_template::{ChatTemplate, Message, TemplateSource};
use sparsam_base::tokenizer::{Encoded, Tokenizer};

use super::Example;
use super::error::{DataError, Place};
use super::formats::{Container, Dataset, Row};
use super::mask::{self, MaskError, TrainOn};

/// What `prompt` and `completion` strings become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptFormat {
    /// A chat where the model has a chat template of its own, else plain.
    #[default]
    Auto,
    /// A user and an assistant turn.
    Chat,
    /// One text, the completion right after the prompt.
    Plain,
}

impl PromptFormat {
    /// What [`Auto`](Self::Auto) comes down to with a template.
    #[must_use]
    pub fn resolve(self, template: &ChatTemplate) -> Self {
        match (self, template.origin()) {
            (Self::Auto, TemplateSource::Model) => Self::Chat,
            (Self::Auto, TemplateSource::Default(_)) => Self::Plain,
            (chosen, _) => chosen,
        }
    }
}

/// What becomes of a document longer than `max_length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// `.txt` files are split, everything else is cut.
    #[default]
    Auto,
    /// The right end is cut off.
    Truncate,
    /// Plain text is split into documents of `max_length`; each begins with the last token of the one
    /// before, so that every token is a target exactly once. Chats are cut all the same.
    Split,
}

/// How rows become examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Most tokens of a document, at least 2.
    pub max_length: usize,
    /// What is trained.
    pub train_on: TrainOn,
    /// What `prompt` and `completion` strings become.
    pub prompt_format: PromptFormat,
    /// What becomes of long documents.
    pub overlong: Overlong,
}

impl PrepareOptions {
    /// The defaults for a length.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            train_on: TrainOn::default(),
            prompt_format: PromptFormat::default(),
            overlong: Overlong::default(),
        }
    }
}

/// What was read and what became of it, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Rows read.
    pub rows: usize,
    /// Examples made of them.
    pub examples: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Targets among them.
    pub trained_tokens: usize,
    /// Rows cut at `max_length`.
    pub truncated: usize,
    /// Rows split into several examples.
    pub split: usize,
    /// Rows left out, as nothing in them is trained.
    pub dropped: usize,
    /// Tokens of the longest row before it was cut or split.
    pub longest: usize,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rows,
            examples,
            tokens,
            trained_tokens,
            longest,
            ..
        } = self;
        write!(
            f,
            "{rows} rows, {examples} examples, {tokens} tokens, {trained_tokens} trained, longest {longest}"
        )?;
        for (count, what) in [
            (self.truncated, "cut at `max_length`"),
            (self.split, "split at `max_length`"),
            (self.dropped, "dropped with nothing to train"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Examples and how they came about.
#[derive(Clone, Debug)]
pub struct Examples {
    /// In the order of the rows.
    pub examples: Vec<Example>,
    /// Counts.
    pub statistics: Statistics,
}

impl Examples {
    /// Length of each example in tokens.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples
            .iter()
            .map(|example| example.ids.len())
            .collect()
    }
}

/// Turns every row into examples.
///
/// # Errors
/// A conversation the template refuses or whose answers cannot be found, a text the tokenizer cannot
/// take, each with its place; [`DataError::NothingTrained`] when no row has a target; a `max_length`
/// below 2.
pub fn prepare(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    options: &PrepareOptions,
) -> Result<Examples, DataError> {
    if options.max_length < 2 {
        return Err(DataError::Option(
            "`max_length` must be at least 2: a token and the one before it".into(),
        ));
    }
    let context = Context {
        tokenizer,
        template,
        stops: template
            .end_ids(tokenizer)
            .map_err(|source| DataError::Template {
                place: Place::whole(&dataset.path),
                source,
            })?,
        prompt_format: options.prompt_format.resolve(template),
        train_on: options.train_on,
    };
    let split = match options.overlong {
        Overlong::Auto => matches!(
            dataset.container,
            Container::TextFile | Container::TextFolder
        ),
        Overlong::Truncate => false,
        Overlong::Split => true,
    };
    let whole: Vec<Result<Example, DataError>> = dataset
        .rows
        .par_iter()
        .map(|(place, row)| context.example(place, row))
        .collect();

    let mut examples = Vec::with_capacity(whole.len());
    let mut statistics = Statistics {
        rows: dataset.rows.len(),
        ..Statistics::default()
    };
    let mut never_trained = 0;
    for (whole, (_, row)) in whole.into_iter().zip(&dataset.rows) {
        let mut whole = whole?;
        let length = whole.ids.len();
        statistics.longest = statistics.longest.max(length);
        never_trained += usize::from(whole.trained_tokens() == 0);
        let parts = if length > options.max_length && split && matches!(row, Row::Text(_)) {
            statistics.split += 1;
            parts(&whole, options.max_length)
        } else {
            if length > options.max_length {
                statistics.truncated += 1;
                whole.ids.truncate(options.max_length);
                whole.trained.truncate(options.max_length);
            }
            vec![whole]
        };
        let kept = parts.into_iter().filter(|part| part.trained_tokens() > 0);
        let before = examples.len();
        examples.extend(kept);
        statistics.dropped += usize::from(examples.len() == before);
    }
    statistics.examples = examples.len();
    statistics.tokens = examples.iter().map(|example| example.ids.len()).sum();
    statistics.trained_tokens = examples.iter().map(Example::trained_tokens).sum();
    if examples.is_empty() {
        return Err(DataError::NothingTrained {
            place: Place::whole(&dataset.path),
            examples: statistics.rows,
            cause: match never_trained {
                0 => "every answer begins after `max_length` tokens",
                all if all == statistics.rows => "no row has an answer that the mask can see",
                _ => "some rows have no answer, in the others it begins after `max_length` tokens",
            },
        });
    }
    Ok(Examples {
        examples,
        statistics,
    })
}

/// Pieces of `length` tokens; each starts with the last token of the one before as context.
fn parts(whole: &Example, length: usize) -> Vec<Example> {
    let mut parts = Vec::new();
    let mut start = 0;
    loop {
        let end = (start + length).min(whole.ids.len());
        let mut trained = whole.trained[start..end].to_vec();
        trained[0] = false;
        parts.push(Example {
            ids: whole.ids[start..end].to_vec(),
            trained,
            label: None,
        });
        if end == whole.ids.len() {
            return parts;
        }
        start = end - 1;
    }
}

/// What all rows have in common.
struct Context<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    stops: Vec<u32>,
    prompt_format: PromptFormat,
    train_on: TrainOn,
}

impl Context<'_> {
    fn example(&self, place: &Place, row: &Row) -> Result<Example, DataError> {
        let mut example = match row {
            Row::Chat {
                messages,
                variables,
            } => self.chat(place, messages, variables, 0)?,
            Row::ChatCompletion {
                messages,
                answer,
                variables,
            } => self.chat(place, messages, variables, *answer)?,
            Row::Completion { prompt, completion } if self.prompt_format == PromptFormat::Chat => {
                let turns = [
                    Message::new("user", prompt),
                    Message::new("assistant", completion),
                ];
                self.chat(place, &turns, &Map::new(), 0)?
            }
            Row::Completion { prompt, completion } => {
                self.document(place, &format!("{prompt}{completion}"), prompt.len())?
            }
            Row::Text(text) | Row::Labelled { text, .. } => self.document(place, text, 0)?,
        };
        if self.train_on == TrainOn::All {
            example.trained.fill(true);
        }
        if let Some(first) = example.trained.first_mut() {
            *first = false;
        }
        Ok(example)
    }

    /// A text of which the bytes from `answer` on are trained, with EOS.
    fn document(&self, place: &Place, text: &str, answer: usize) -> Result<Example, DataError> {
        let (ids, offsets) = self.encode(place, text)?;
        let (prefix, suffix) = (self.tokenizer.prefix(), self.tokenizer.suffix());
        let mut example = Example {
            ids: [prefix, &ids, suffix].concat(),
            trained: [
                vec![false; prefix.len()],
                mask::from_byte(&offsets, answer),
                vec![true; suffix.len()],
            ]
            .concat(),
            label: None,
        };
        if let Some((eos, _)) = self.tokenizer.eos()
            && suffix.last() != Some(&eos)
        {
            example.ids.push(eos);
            example.trained.push(true);
        }
        Ok(example)
    }

    /// A conversation whose answers from message `from` on are trained.
    fn chat(
        &self,
        place: &Place,
        messages: &[Message],
        variables: &Map<String, Value>,
        from: usize,
    ) -> Result<Example, DataError> {
        let template = |source| DataError::Template {
            place: place.clone(),
            source,
        };
        let (text, answers) = match self.train_on {
            TrainOn::Assistant => mask::answers(self.template, messages, variables, from).map_err(
                |error| match error {
                    MaskError::Template(source) => template(source),
                    MaskError::NoBorder(i) => DataError::NoAnswerBorder {
                        place: place.clone(),
                        answer: i + 1,
                    },
                },
            )?,
            TrainOn::All => {
                let rendered = self.template.render_with(messages, false, variables);
                (rendered.map_err(template)?.text, Vec::new())
            }
        };
        let (mut ids, offsets) = self.encode(place, &text)?;
        let mut trained = mask::tokens(
            self.tokenizer,
            &self.stops,
            &text,
            (&ids, &offsets),
            &answers,
        );
        let answered = messages
            .last()
            .is_some_and(|message| message.role == "assistant");
        if let Some((eos, _)) = self.tokenizer.eos()
            && answered
        {
            // The last token said: everything under `All`, where white space may follow it.
            let last = match self.train_on {
                TrainOn::Assistant => trained.iter().rposition(|&trained| trained),
                TrainOn::All => ids
                    .iter()
                    .rposition(|&id| self.tokenizer.is_special(id))
                    .filter(|&last| {
                        text.get(offsets[last].1..)
                            .is_some_and(|rest| rest.trim().is_empty())
                    }),
            };
            let closed = last.is_some_and(|last| self.tokenizer.is_special(ids[last]));
            if !closed {
                if let Some(last) = last {
                    trained[last..].fill(true);
                }
                ids.push(eos);
                trained.push(!answers.is_empty() || self.train_on == TrainOn::All);
            }
        }
        Ok(Example {
            ids,
            trained,
            label: None,
        })
    }

    fn encode(&self, place: &Place, text: &str) -> Result<Encoded, DataError> {
        self.tokenizer
            .encode_with_offsets(text)
            .map_err(|source| DataError::Tokenizer {
                place: place.clone(),
                source,
            })
    }
}

#[cfg(test)]
mod tests;
