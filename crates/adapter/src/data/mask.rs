//! Which tokens are trained.
//!
//! By default only what the assistant says, with the token that ends its turn: that token is how a
//! model learns to stop. Where an answer stands in the rendered conversation is found in three ways,
//! the first that works:
//!
//! 1. the template says so with `{% generation %}`;
//! 2. the conversation up to the answer, rendered with the generation prompt, and the conversation up
//!    to and with the answer are both beginnings of the whole; the answer lies between;
//! 3. the answer's text is exchanged for a mark: what stands before and after the mark must be the
//!    beginning and the end of the whole. Templates that write an earlier turn differently from the
//!    last (Qwen3 drops the thoughts of earlier ones) need this.
//!
//! Ranges are bytes; the tokenizer's offsets make tokens of them. **A token that reaches over the
//! border between prompt and answer is trained if it holds a byte of the answer.** In training the
//! whole is tokenised at once, so that the ids are those the whole text has.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparsam_base::chat_template::{ChatTemplate, Message, TemplateError};
use sparsam_base::tokenizer::Tokenizer;

/// What the loss is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// The assistant's answers, or the completion.
    #[default]
    Assistant,
    /// Every token but the first.
    All,
}

/// An answer within a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Bytes of the text.
    pub(super) bytes: Range<usize>,
    /// How exact the end of the range is.
    pub(super) end: End,
}

/// What the end of an answer's range stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The end of what was said, or past the token that ends the turn: as the template has it.
    Said,
    /// The end of the whole turn, with white space before the next one.
    Turn,
}

/// Why a conversation has no mask.
#[derive(Debug)]
pub(super) enum MaskError {
    Template(TemplateError),
    /// The border of the message with this index cannot be found.
    NoBorder(usize),
}

impl From<TemplateError> for MaskError {
    fn from(error: TemplateError) -> Self {
        Self::Template(error)
    }
}

/// A character no text holds, in the place of an answer.
const MARK: &str = "\u{FDD2}";

/// Renders a conversation and finds the assistant's answers among the messages from `from` on.
pub(super) fn answers(
    template: &ChatTemplate,
    messages: &[Message],
    variables: &Map<String, Value>,
    from: usize,
) -> Result<(String, Vec<Answer>), MaskError> {
    let whole = template.render_with(messages, false, variables)?;
    let spoken = |range: &Range<usize>| {
        messages[range.clone()]
            .iter()
            .filter(|message| message.role == "assistant")
            .count()
    };
    if let Some(ranges) = whole.assistant {
        let before = spoken(&(0..from));
        if before > 0 && ranges.len() != before + spoken(&(from..messages.len())) {
            return Err(MaskError::NoBorder(from));
        }
        let answers = ranges.into_iter().skip(before);
        let answers = answers
            .map(|bytes| Answer {
                bytes,
                end: End::Said,
            })
            .collect();
        return Ok((whole.text, answers));
    }
    let mut answers = Vec::new();
    for i in from..messages.len() {
        if messages[i].role == "assistant" {
            let answer = by_rendering(template, messages, variables, i, &whole.text);
            answers.push(answer.ok_or(MaskError::NoBorder(i))?);
        }
    }
    Ok((whole.text, answers))
}

/// The answer in message `i`, by comparing renderings. Renderings the template refuses (a
/// conversation that ends on a question, an empty one) only rule out their way of finding it.
fn by_rendering(
    template: &ChatTemplate,
    messages: &[Message],
    variables: &Map<String, Value>,
    i: usize,
    whole: &str,
) -> Option<Answer> {
    let render = |messages: &[Message], prompt| {
        template
            .render_with(messages, prompt, variables)
            .ok()
            .map(|rendered| rendered.text)
    };
    let beginning = |text: &String| whole.starts_with(text.as_str());
    let prompt = render(&messages[..i], true)
        .filter(beginning)
        .map(|text| text.len());
    let through = if i + 1 == messages.len() {
        Some(whole.len())
    } else {
        render(&messages[..=i], false)
            .filter(beginning)
            .map(|text| text.len())
    };
    if let (Some(start), Some(end)) = (prompt, through)
        && start < end
    {
        return Some(Answer {
            bytes: start..end,
            end: End::Turn,
        });
    }

    let mut marked = messages.to_vec();
    marked[i].content = MARK.into();
    let marked = render(&marked, false)?;
    let (before, after) = marked
        .split_once(MARK)
        .filter(|(_, after)| !after.contains(MARK))?;
    let end = whole.len().checked_sub(after.len())?;
    if !whole.starts_with(before) || !whole.ends_with(after) || end <= before.len() {
        return None;
    }
    // What the template writes between the generation prompt and the answer is the model's to say.
    let start = prompt
        .filter(|&prompt| prompt <= before.len())
        .unwrap_or(before.len());
    Some(Answer {
        bytes: start..end,
        end: End::Said,
    })
}

/// Tokens of the answers, `[tokens]`, each with the token that ends it.
///
/// `stops` are the ids at which an answer ends; one that follows an answer at once, or after white
/// space, belongs to it.
pub(super) fn tokens(
    tokenizer: &Tokenizer,
    stops: &[u32],
    text: &str,
    (ids, offsets): (&[u32], &[(usize, usize)]),
    answers: &[Answer],
) -> Vec<bool> {
    let mut trained = vec![false; ids.len()];
    let blank = |token: usize| {
        let (start, end) = offsets[token];
        text.get(start..end)
            .is_some_and(|piece| piece.trim().is_empty())
            && !tokenizer.is_special(ids[token])
    };
    for answer in answers {
        let Range { start, end } = answer.bytes;
        let inside = |&token: &usize| offsets[token].1 > start && offsets[token].0 < end;
        let first = (0..ids.len()).find(inside);
        let last = (0..ids.len()).rfind(inside);
        let (Some(first), Some(mut last)) = (first, last) else {
            continue;
        };
        if answer.end == End::Turn {
            // Templates may write on after the end of a turn: line breaks, EOS after the whole, even
            // the next generation prompt.
            let stop = (first..=last).find(|&token| stops.contains(&ids[token]));
            let closing = (first..=last).rfind(|&token| !blank(token));
            let closing = closing.filter(|&token| tokenizer.is_special(ids[token]));
            last = stop.or(closing).unwrap_or(last);
        }
        if !tokenizer.is_special(ids[last]) {
            let next = (last + 1..ids.len()).find(|&token| !blank(token));
            last = next
                .filter(|&token| stops.contains(&ids[token]))
                .unwrap_or(last);
        }
        trained[first..=last].fill(true);
    }
    trained
}

/// Tokens that hold a byte from `start` on, `[tokens]`.
pub(super) fn from_byte(offsets: &[(usize, usize)], start: usize) -> Vec<bool> {
    offsets.iter().map(|&(_, end)| end > start).collect()
}
