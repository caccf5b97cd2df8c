//! Rows as questions: what a model is asked, and the answer that is expected.
//!
//! The same rows, template and prompt format as in [`super::prepare`], cut before the last answer. Rows
//! of plain text ask nothing and are left out.

use sparsam_base::chat_template::{ChatTemplate, Message};
use sparsam_base::tokenizer::Tokenizer;

use super::error::DataError;
use super::formats::{Dataset, Row};
use super::prepare::PromptFormat;

/// A prompt and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What the user says last, for people to read.
    pub asked: String,
    /// Ids of the whole prompt, up to where the answer begins.
    pub prompt: Vec<u32>,
    /// The answer in the data.
    pub expected: String,
}

/// Up to `most` questions, from the first row on. One whose prompt has more than `longest` tokens is
/// left out.
///
/// # Errors
/// A conversation the template refuses, or a text the tokenizer cannot take, with its place.
pub fn questions(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    prompt_format: PromptFormat,
    most: Option<usize>,
    longest: usize,
) -> Result<Vec<Question>, DataError> {
    let chat = prompt_format.resolve(template) == PromptFormat::Chat;
    let mut questions = Vec::new();
    for (place, row) in &dataset.rows {
        if most.is_some_and(|most| questions.len() >= most) {
            break;
        }
        let rendered = |messages: &[Message], variables| {
            let rendered = template.render_with(messages, true, variables);
            rendered.map_err(|source| DataError::Template {
                place: place.clone(),
                source,
            })
        };
        let none = serde_json::Map::new();
        let (asked, text, expected, plain) = match row {
            Row::Chat {
                messages,
                variables,
            } => {
                let last = messages.iter().rposition(|m| m.role == "assistant");
                let Some(last) = last.filter(|&last| last > 0) else {
                    continue;
                };
                let text = rendered(&messages[..last], variables)?.text;
                (
                    said(&messages[..last]),
                    text,
                    messages[last].content.clone(),
                    false,
                )
            }
            Row::ChatCompletion {
                messages,
                answer,
                variables,
            } => {
                let Some(expected) = messages.get(*answer) else {
                    continue;
                };
                let text = rendered(&messages[..*answer], variables)?.text;
                (
                    said(&messages[..*answer]),
                    text,
                    expected.content.clone(),
                    false,
                )
            }
            Row::Completion { prompt, completion } if chat => {
                let text = rendered(&[Message::new("user", prompt)], &none)?.text;
                (prompt.clone(), text, completion.clone(), false)
            }
            Row::Completion { prompt, completion } => {
                (prompt.clone(), prompt.clone(), completion.clone(), true)
            }
            Row::Text(_) | Row::Labelled { .. } => continue,
        };
        let ids = tokenizer
            .encode(&text, false)
            .map_err(|source| DataError::Tokenizer {
                place: place.clone(),
                source,
            })?;
        let prefix = if plain { tokenizer.prefix() } else { &[] };
        let prompt = [prefix, &ids].concat();
        if prompt.len() <= longest {
            questions.push(Question {
                asked,
                prompt,
                expected,
            });
        }
    }
    Ok(questions)
}

/// What the last of some messages says.
fn said(messages: &[Message]) -> String {
    messages
        .last()
        .map_or_else(String::new, |message| message.content.clone())
}
