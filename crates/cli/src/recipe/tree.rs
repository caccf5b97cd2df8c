//! YAML as a tree that remembers where everything stood.
//!
//! Scalars keep the text they were written as. What `NO`, `1e-4` or `012` mean is decided later,
//! by the type a key asks for, so that `country: NO` stays Norway. `key=value` arguments become
//! nodes of the same tree with an origin of their own, and go through the same checks.
//!
//! Anchors, tags and several documents in one file are refused: a recipe has no use for them.

use std::path::Path;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::suggest;
use crate::error::Failure;

/// Where a node was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A line of the recipe, counted from 1.
    Line(usize),
    /// A `key=value` argument.
    Argument(String),
    /// The recipe as a whole: something is missing.
    Whole,
}

impl Origin {
    /// `recipe.yaml:7`, ``argument `lora.r=0` `` or `recipe.yaml`.
    pub(super) fn describe(&self, path: &Path) -> String {
        match self {
            Self::Line(line) => format!("{}:{line}", path.display()),
            Self::Argument(argument) => format!("argument `{argument}`"),
            Self::Whole => path.display().to_string(),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A single value as written; `plain` if without quotes.
    Scalar { text: String, plain: bool },
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values in their order.
    Mapping(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) value: Node,
}

/// Something wrong with a recipe: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) origin: Origin,
    pub(super) message: String,
    pub(super) hints: Vec<String>,
}

impl Problem {
    pub(super) fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self {
            origin,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The failure shown to the user, with the place in front.
    pub(super) fn located(self, path: &Path) -> Failure {
        let message = format!("{}: {}", self.origin.describe(path), self.message);
        self.hints
            .into_iter()
            .fold(Failure::usage(message), Failure::hint)
    }
}

impl Node {
    /// Whether this is YAML's null: nothing, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The node under a dotted key. `None` where it is missing or null.
    pub(super) fn find(&self, key: &str) -> Option<&Node> {
        let mut node = self;
        for part in key.split('.') {
            let Value::Mapping(entries) = &node.value else {
                return None;
            };
            node = &entries.iter().find(|entry| entry.key == part)?.value;
        }
        (!node.is_null()).then_some(node)
    }

    /// What a message calls this value.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, plain: true } => format!("`{}`", shorten(text)),
            Value::Scalar { text, plain: false } => format!("the text `\"{}\"`", shorten(text)),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "keys and values".to_owned(),
        }
    }

    /// Lays one `key=value` argument over the tree.
    ///
    /// The value is read as YAML. Setting one of two keys that exclude each other takes the other
    /// away, so that `max_steps=10` shortens a recipe written in `epochs`.
    pub(super) fn set(&mut self, argument: &str) -> Result<(), Problem> {
        let origin = Origin::Argument(argument.to_owned());
        let Some((key, value)) = argument.split_once('=') else {
            return Err(Problem::new(origin, "an override has the form `key=value`")
                .hint("for example `lora.r=32` or `data.train=messages.jsonl`"));
        };
        let parts: Vec<&str> = key.split('.').map(str::trim).collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(Problem::new(origin, "an override begins with a key")
                .hint("for example `lora.r=32` or `data.train=messages.jsonl`"));
        }
        let mut value = parse_nodes(value, Some(&origin)).map_err(|problem| Problem {
            origin: origin.clone(),
            ..problem
        })?;
        if let Value::Scalar { text, plain: true } = &mut value.value {
            *text = text.trim().to_owned();
        }
        if !value.is_null()
            && let Some(other) = suggest::excluded_by(key)
            && let Value::Mapping(entries) = &mut self.value
        {
            entries.retain(|entry| {
                entry.key != other || matches!(entry.key_origin, Origin::Argument(_))
            });
        }
        self.place(&parts, value, &origin)
    }

    fn place(&mut self, parts: &[&str], value: Node, origin: &Origin) -> Result<(), Problem> {
        let [first, rest @ ..] = parts else {
            *self = value;
            return Ok(());
        };
        if self.is_null() {
            self.value = Value::Mapping(Vec::new());
        }
        let found = self.describe();
        let Value::Mapping(entries) = &mut self.value else {
            return Err(Problem::new(
                origin.clone(),
                format!("the recipe has {found} where `{first}` is to be set"),
            ));
        };
        let index = entries
            .iter()
            .position(|entry| entry.key == *first)
            .unwrap_or_else(|| {
                entries.push(Entry {
                    key: (*first).to_owned(),
                    key_origin: origin.clone(),
                    value: Node {
                        value: Value::Mapping(Vec::new()),
                        origin: origin.clone(),
                    },
                });
                entries.len() - 1
            });
        if rest.is_empty() {
            entries[index].key_origin = origin.clone();
        }
        entries[index].value.place(rest, value, origin)
    }
}

/// Reads a recipe. An empty file is an empty mapping.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let root = parse_nodes(text, None)?;
    if root.is_null() {
        return Ok(Node {
            value: Value::Mapping(Vec::new()),
            origin: Origin::Whole,
        });
    }
    match root.value {
        Value::Mapping(_) => Ok(Node {
            origin: Origin::Whole,
            ..root
        }),
        _ => Err(Problem::new(
            root.origin.clone(),
            format!(
                "a recipe is made of `key: value` lines, found {}",
                root.describe()
            ),
        )
        .hint("`sparsam recipe` prints one to start from")),
    }
}

/// Reads YAML; every node gets `origin`, or else its line.
fn parse_nodes(text: &str, origin: Option<&Origin>) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        origin,
    };
    let mut root = None;
    while let Some(next) = reader.events.next() {
        let (event, span) = next.map_err(|error| reader.syntax(&error))?;
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd => {}
            event if root.is_none() => root = Some(reader.node(event, &span)?),
            _ => {
                return Err(Problem::new(
                    reader.origin(&span),
                    "a second YAML document begins here",
                )
                .hint("write each recipe into a file of its own"));
            }
        }
    }
    Ok(root.unwrap_or_else(|| Node {
        value: Value::Scalar {
            text: String::new(),
            plain: true,
        },
        origin: origin.cloned().unwrap_or(Origin::Whole),
    }))
}

struct Reader<'a, Events> {
    events: Events,
    origin: Option<&'a Origin>,
}

impl<'input, Events> Reader<'_, Events>
where
    Events: Iterator<Item = Result<(Event<'input>, Span), ScanError>>,
{
    fn origin(&self, span: &Span) -> Origin {
        self.origin
            .cloned()
            .unwrap_or_else(|| Origin::Line(span.start.line()))
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let origin = self
            .origin
            .cloned()
            .unwrap_or_else(|| Origin::Line(error.marker().line()));
        let reason = error.info();
        Problem::new(origin, format!("this is not valid YAML: {reason}"))
            .hint("check indentation, and put values with `: `, `#`, `*`, `[` or `{` into quotes")
    }

    fn next(&mut self) -> Result<(Event<'input>, Span), Problem> {
        match self.events.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(Problem::new(Origin::Whole, "the YAML ends too early")),
        }
    }

    fn node(&mut self, event: Event<'input>, span: &Span) -> Result<Node, Problem> {
        let origin = self.origin(span);
        let refuse = |what: &str| {
            Problem::new(origin.clone(), format!("{what} have no use in a recipe"))
                .hint("write the value itself, in quotes if it begins with `&`, `*` or `!`")
        };
        let value = match event {
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, _, Some(_))
            | Event::MappingStart(_, _, Some(_)) => return Err(refuse("tags")),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(_, anchor, _)
            | Event::MappingStart(_, anchor, _)
                if anchor != 0 =>
            {
                return Err(refuse("anchors"));
            }
            Event::Scalar(text, style, _, _) => Value::Scalar {
                text: text.into_owned(),
                plain: style == ScalarStyle::Plain,
            },
            Event::SequenceStart(..) => self.sequence()?,
            Event::MappingStart(..) => self.mapping()?,
            _ => return Err(refuse("aliases")),
        };
        Ok(Node { value, origin })
    }

    fn sequence(&mut self) -> Result<Value, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Sequence(items)),
                (event, span) => items.push(self.node(event, &span)?),
            }
        }
    }

    fn mapping(&mut self) -> Result<Value, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Value::Mapping(entries)),
                (event, span) => self.node(event, &span)?,
            };
            let Value::Scalar { text, .. } = key.value else {
                let found = key.describe();
                return Err(Problem::new(
                    key.origin,
                    format!("a key is a word, found {found}"),
                ));
            };
            if entries.iter().any(|entry| entry.key == text) {
                return Err(Problem::new(
                    key.origin,
                    format!("`{}` is given twice", shorten(&text)),
                )
                .hint("keep one of the two lines"));
            }
            let (event, span) = self.next()?;
            let value = self.node(event, &span)?;
            entries.push(Entry {
                key: text,
                key_origin: key.origin,
                value,
            });
        }
    }
}

/// The beginning of a text, on one line, short enough for a message.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = text.replace(['\n', '\r'], " ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    let mut short: String = line.chars().take(LONGEST).collect();
    short.push('…');
    short
}
