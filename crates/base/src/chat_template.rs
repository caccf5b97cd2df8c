//! Conversations as the text the model was trained on.
//!
//! A chat template is a Jinja program that comes with a model and is written for Python's Jinja2 in
//! the environment transformers gives it. It is run here by minijinja with the differences that
//! templates meet evened out: whitespace control, string methods, how values print, `tojson`,
//! `raise_exception`, `strftime_now` and the `generation` tags. The same template object serves
//! training and generation; that it does is the reason both give the same text.
//!
//! This file knows no token ids: the text goes to the [`Tokenizer`], which finds special tokens in
//! it. A message that contains the text of a special token is therefore read as that token, in
//! transformers and here alike.

mod defaults;
mod generation;
mod python;

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior};
use serde::{Deserialize, Serialize};

use crate::tokenizer::Tokenizer;
pub use defaults::DefaultTemplate;

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said; empty where a turn only calls tools.
    #[serde(default)]
    pub content: String,
    /// Further fields a template may read, such as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: serde_json::Map::new(),
        }
    }
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text, special tokens written out.
    pub text: String,
    /// Byte ranges of [`text`](Self::text) the assistant said, ascending and not empty; `None` where
    /// the template does not mark them with `{% generation %}`.
    pub assistant: Option<Vec<Range<usize>>>,
}

/// Where a template comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateSource {
    /// The model's own files.
    Model,
    /// Built in, as the model has none.
    Default(DefaultTemplate),
}

impl std::fmt::Display for TemplateSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Model => f.write_str("the model's own chat template"),
            Self::Default(default) => {
                write!(
                    f,
                    "the built-in {} chat template (the model has none)",
                    default.name()
                )
            }
        }
    }
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template has an error on line {line}: {reason}")]
    Syntax {
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The template called `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed while running.
    #[error("the chat template failed on line {line}: {reason}")]
    Failed {
        /// Line of the template, from 1.
        line: usize,
        /// What went wrong there.
        reason: String,
    },
    /// A message holds one of the two characters that mark the assistant's text internally.
    #[error("a message contains the noncharacter `U+{0:04X}`, which text cannot hold")]
    Noncharacter(u32),
}

impl TemplateError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax { .. } => Some(
                "the template is `chat_template` in `tokenizer_config.json` or the file `chat_template.jinja` of the model".into(),
            ),
            Self::Refused(_) => Some(
                "change the conversation to what the model's template accepts (many want user and assistant in turn, some no system message)".into(),
            ),
            Self::Failed { .. } => Some("a message may lack a field the template reads".into()),
            Self::Noncharacter(_) => Some("remove the character from the data".into()),
        }
    }
}

/// A compiled chat template with the model's special tokens.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    origin: TemplateSource,
    bos: String,
    eos: String,
    marks: bool,
}

/// Name the template has in its environment.
const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the tokens' texts, empty where there are none.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] names the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let rewritten = generation::rewrite(source);
        let marks = rewritten.is_some();
        let mut environment = environment();
        environment
            .add_template_owned(NAME, rewritten.unwrap_or_else(|| source.to_owned()))
            .map_err(|error| TemplateError::Syntax {
                line: error.line().unwrap_or(1),
                reason: reason(&error),
            })?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            origin: TemplateSource::Model,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            marks,
        })
    }

    /// The built-in template for a `model_type`, with `<s>` and `</s>`; see
    /// [`with_tokens`](Self::with_tokens) and [`for_model`](Self::for_model).
    pub fn default_for(family: &str) -> Self {
        Self::built_in(DefaultTemplate::for_family(family), "<s>", "</s>")
    }

    /// A built-in template with the given tokens.
    fn built_in(default: DefaultTemplate, bos: &str, eos: &str) -> Self {
        match Self::new(default.source(), bos, eos) {
            Ok(template) => Self {
                origin: TemplateSource::Default(default),
                ..template
            },
            Err(error) => unreachable!("built-in template does not compile: {error}"),
        }
    }

    /// The template of a model: its own where it has one, else the built-in one of its family.
    ///
    /// ChatML is also taken for a family without a form of its own when the vocabulary has its two
    /// tokens (SmolLM2 is `llama` by `model_type`), and not taken when it lacks them.
    ///
    /// # Errors
    /// When the model's own template does not compile.
    pub fn for_model(tokenizer: &Tokenizer, family: &str) -> Result<Self, TemplateError> {
        let text =
            |token: Option<(u32, &str)>| token.map_or(String::new(), |(_, text)| text.into());
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        if let Some(source) = tokenizer.chat_template() {
            return Self::new(source, &bos, &eos);
        }
        let has = |default: DefaultTemplate| {
            default
                .needs()
                .iter()
                .all(|token| tokenizer.token_id(token).is_some())
        };
        let default = match DefaultTemplate::for_family(family) {
            DefaultTemplate::Plain if has(DefaultTemplate::ChatMl) => DefaultTemplate::ChatMl,
            usual if has(usual) => usual,
            _ => DefaultTemplate::Plain,
        };
        // A tokenizer that knows BOS but puts it before no text was trained without it.
        let bos = if tokenizer.prefix().is_empty() {
            ""
        } else {
            &bos
        };
        Ok(Self::built_in(default, bos, &eos))
    }

    /// The same template with other special tokens.
    #[must_use]
    pub fn with_tokens(mut self, bos: &str, eos: &str) -> Self {
        bos.clone_into(&mut self.bos);
        eos.clone_into(&mut self.eos);
        self
    }

    /// The same template with the clock of `strftime_now` stopped at `seconds` since 1970 (UTC).
    ///
    /// Some templates write today's date into the system message, so that a run resumed after
    /// midnight would see other data than it began with.
    #[must_use]
    pub fn with_clock(mut self, seconds: i64) -> Self {
        self.environment
            .add_function("strftime_now", move |format: &str| {
                strftime(format, seconds)
            });
        self
    }

    /// Where the template comes from.
    pub fn origin(&self) -> TemplateSource {
        self.origin
    }

    /// The Jinja source of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks the assistant's text with `{% generation %}`.
    pub fn marks_assistant(&self) -> bool {
        self.marks
    }

    /// Renders a conversation; with `add_generation_prompt` it ends where the assistant's answer is
    /// to begin.
    ///
    /// # Errors
    /// When the template refuses the conversation or fails on it.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        self.render_with(messages, add_generation_prompt, &serde_json::Map::new())
    }

    /// Like [`render`](Self::render) with further variables for the template, such as `tools` or
    /// `enable_thinking`.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Rendered, TemplateError> {
        if self.marks {
            let mut characters = messages.iter().flat_map(|message| message.content.chars());
            if let Some(c) = characters.find(|&c| c == generation::START || c == generation::END) {
                return Err(TemplateError::Noncharacter(u32::from(c)));
            }
        }
        // transformers passes `tools` and `documents` always, as None.
        let mut context: Vec<(String, Value)> = vec![
            ("messages".into(), Value::from(Serde(messages))),
            ("tools".into(), Value::from(())),
            ("documents".into(), Value::from(())),
            ("add_generation_prompt".into(), add_generation_prompt.into()),
            ("bos_token".into(), self.bos.as_str().into()),
            ("eos_token".into(), self.eos.as_str().into()),
        ];
        context.extend(
            variables
                .iter()
                .map(|(k, v)| (k.clone(), Value::from(Serde(v)))),
        );
        let context = Value::from_pairs(context);
        let text = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| failure(&error))?;
        if !self.marks {
            return Ok(Rendered {
                text,
                assistant: None,
            });
        }
        let (text, ranges) = generation::take_marks(&text);
        Ok(Rendered {
            text,
            assistant: Some(ranges),
        })
    }

    /// The text the template puts after the last answer, for instance `<|im_end|>\n`. Its first
    /// special token is the one that ends a turn, which need not be the tokenizer's EOS.
    ///
    /// # Errors
    /// When the template refuses even a question and an answer.
    pub fn after_answer(&self) -> Result<String, TemplateError> {
        const ANSWER: &str = "sparsam-answer";
        let messages = [
            Message::new("user", "question"),
            Message::new("assistant", ANSWER),
        ];
        let Rendered { text, .. } = self.render(&messages, false)?;
        Ok(text
            .rsplit_once(ANSWER)
            .map_or(String::new(), |(_, after)| after.to_owned()))
    }

    /// All ids at which an answer ends: those of the tokenizer, and the first special token the
    /// template puts after an answer.
    ///
    /// # Errors
    /// As [`after_answer`](Self::after_answer); a template that refuses a system-less conversation
    /// is no error and adds nothing.
    pub fn end_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, TemplateError> {
        let mut ids = tokenizer.end_ids().to_vec();
        let after = match self.after_answer() {
            Ok(after) => after,
            Err(TemplateError::Refused(_)) => return Ok(ids),
            Err(error) => return Err(error),
        };
        let tokens = tokenizer.encode(&after, false).unwrap_or_default();
        if let Some(id) = tokens.into_iter().find(|&id| tokenizer.is_special(id))
            && !ids.contains(&id)
        {
            ids.push(id);
        }
        Ok(ids)
    }
}

/// The Jinja environment of `transformers.utils.chat_template_utils`, in minijinja.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    match SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        Ok(syntax) => environment.set_syntax(syntax),
        Err(error) => unreachable!("the usual delimiters are valid: {error}"),
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out: &mut Output, _: &mut State, value: &Value| {
        out.write_str(&python::display(value)).map_err(Error::from)
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::display(value));
    environment.add_filter(generation::FILTER, |text: &str| {
        format!("{}{text}{}", generation::START, generation::END)
    });
    // In Python a string and a mapping are sequences, and both can be iterated over.
    let sequence = |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map
        ) || value.is_undefined()
    };
    environment.add_test("sequence", sequence);
    environment.add_test("iterable", move |value: &Value| {
        sequence(value) || value.kind() == ValueKind::Iterable
    });
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, message.to_owned());
        Err(error.with_source(Raised(message.to_owned())))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format, now()));
    environment
}

/// transformers' `tojson`: `json.dumps(x, ensure_ascii=False, indent=None, separators=None,
/// sort_keys=False)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja hands filters their arguments by value"
)]
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?.or(indent);
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "`separators` takes two strings",
            ));
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let dumps = python::Dumps {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let text = dumps
        .dumps(value)
        .map_err(|why| Error::new(ErrorKind::BadSerialization, why))?;
    Ok(Value::from_safe_string(text))
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| {
            i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
        })
}

/// `datetime.strftime` in UTC. Python takes the machine's zone; a fixed one makes machines agree.
fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    let time = jiff::Timestamp::from_second(seconds)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?
        .to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &time)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Marks an error as one the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn failure(error: &Error) -> TemplateError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TemplateError::Refused(message.clone());
        }
        source = cause.source();
    }
    TemplateError::Failed {
        line: error.line().unwrap_or(1),
        reason: reason(error),
    }
}

fn reason(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests;
