//! Files of training data, whatever their type, as rows of one of five forms.
//!
//! The type of a file comes from its name, the form from the columns of its first row; both are said
//! ([`Dataset::describe`]) rather than guessed in silence. Every further row must have the same form,
//! and is checked when it is read, so that an error names its line before any training begins.
//!
//! | columns | form |
//! |---|---|
//! | `messages` | chat: a list of `{role, content}`; `tools` and `chat_template_kwargs` are passed on |
//! | `conversations` | ShareGPT: a list of `{from, value}`, `system` beside it where present |
//! | `prompt`, `completion` | strings, or lists of messages as in TRL |
//! | `instruction`, `output` | alpaca; `input` follows the instruction after an empty line |
//! | `text` | plain text |
//!
//! In alpaca rows instruction and input become a user turn and the output an assistant turn, in the
//! model's own chat template. The wording of the original Alpaca prompt ("Below is an instruction …")
//! is not used: it would train a second form of prompt beside the one the model is later asked in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sparsam_base::chat_template::Message;

pub use super::columns::Columns;
use super::columns::Record;
use super::error::{DataError, Place};
use super::{csv_file, json_file, parquet_file};

/// How the rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// One JSON object a line.
    JsonLines,
    /// A JSON list of objects, or an object with one list.
    Json,
    /// Separated values with a header line.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// A `.txt` file, one document.
    TextFile,
    /// A folder of `.txt` files, each a document.
    TextFolder,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JsonLines => "JSON Lines",
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Parquet => "Parquet",
            Self::TextFile => "a text file",
            Self::TextFolder => "a folder of text files",
        })
    }
}

/// The form of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `messages`.
    Messages,
    /// `conversations`.
    ShareGpt,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// `text`.
    Text,
    /// `text` and `label`: classes, read only where they are asked for.
    Labelled,
}

impl Format {
    /// The name of the form in recipes and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::PromptCompletion => "prompt_completion",
            Self::Alpaca => "alpaca",
            Self::Text => "text",
            Self::Labelled => "labelled",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "chat (`messages`)",
            Self::ShareGpt => "ShareGPT (`conversations`)",
            Self::PromptCompletion => "`prompt` and `completion`",
            Self::Alpaca => "alpaca (`instruction`, `output`)",
            Self::Text => "plain text (`text`)",
            Self::Labelled => "texts and their classes (`text`, `label`)",
        })
    }
}

/// Forms in the order they are looked for, with the columns that make them out.
const FORMATS: [(Format, &[&str]); 5] = [
    (Format::Messages, &["messages"]),
    (Format::ShareGpt, &["conversations"]),
    (Format::PromptCompletion, &["prompt", "completion"]),
    (Format::Alpaca, &["instruction", "output"]),
    (Format::Text, &["text"]),
];

/// One row, in what all forms come down to.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A conversation, with further variables for the chat template (`tools`, …).
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Variables besides the messages.
        variables: Map<String, Value>,
    },
    /// A conversation of which the messages from `answer` on are the completion.
    ChatCompletion {
        /// The turns of the prompt and of the completion.
        messages: Vec<Message>,
        /// Index of the first message of the completion.
        answer: usize,
        /// Variables besides the messages.
        variables: Map<String, Value>,
    },
    /// A question and its answer as strings.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
    /// A document.
    Text(String),
    /// A text and the name of its class.
    Labelled {
        /// The text.
        text: String,
        /// The class, as the file spells it.
        label: String,
    },
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Where it was read from.
    pub path: PathBuf,
    /// How it is stored.
    pub container: Container,
    /// The form of its rows.
    pub format: Format,
    /// The rows, each with where it stands.
    pub rows: Vec<(Place, Row)>,
    /// BLAKE3 hash of the bytes of the file, in hexadecimal; of a folder, over the name and hash of each file
    /// in the order of their names.
    pub hash: String,
}

impl Dataset {
    /// Reads a file or a folder, checking every row.
    ///
    /// # Errors
    /// A file that cannot be read or is not what its name says, no rows, columns of no known form, a
    /// row unlike the first one: each with file and line.
    pub fn load(path: &Path, columns: &Columns) -> Result<Self, DataError> {
        Self::load_as(path, columns, None)
    }

    /// The same with the form of the rows given, where more than one would do.
    ///
    /// # Errors
    /// As [`Dataset::load`]; text files with another form than text.
    pub fn load_as(
        path: &Path,
        columns: &Columns,
        format: Option<Format>,
    ) -> Result<Self, DataError> {
        let container = container(path)?;
        let is_text = matches!(container, Container::TextFile | Container::TextFolder);
        if let Some(format) = format.filter(|format| is_text && *format != Format::Text) {
            return Err(DataError::Option(format!(
                "`{}` holds plain text and cannot be read as {format}",
                path.display()
            )));
        }
        let mut reader = RowReader {
            columns,
            format,
            rows: Vec::new(),
        };
        let hash = match container {
            Container::TextFolder => folder(path, &mut reader)?,
            Container::TextFile => {
                let (text, hash) = text(path)?;
                reader.document(path, text);
                hash
            }
            Container::JsonLines => {
                let mut file = Hashing::open(path)?;
                json_file::lines(path, &mut file, |fields, place| reader.push(fields, &place))?;
                file.finish()?
            }
            Container::Json => {
                let (text, hash) = text(path)?;
                let text = text.trim_start_matches('\u{FEFF}');
                // Many files of JSON lines are called `.json`.
                if text.trim().is_empty() {
                } else if json_file::is_single(text) {
                    json_file::single(path, text, |fields, place| reader.push(fields, &place))?;
                } else {
                    json_file::lines(path, text.as_bytes(), |fields, place| {
                        reader.push(fields, &place)
                    })?;
                }
                hash
            }
            Container::Csv => {
                let mut file = Hashing::open(path)?;
                csv_file::records(path, &mut file, |fields, place| reader.push(fields, &place))?;
                file.finish()?
            }
            Container::Parquet => {
                let hash = Hashing::open(path)?.finish()?;
                let file = File::open(path).map_err(|source| read_error(path, source))?;
                parquet_file::records(path, file, |fields, place| reader.push(fields, &place))?;
                hash
            }
        };
        let RowReader { format, rows, .. } = reader;
        match format {
            Some(format) if !rows.is_empty() => Ok(Self {
                path: path.into(),
                container,
                format,
                rows,
                hash,
            }),
            _ => Err(DataError::Empty {
                place: Place::whole(path),
            }),
        }
    }

    /// Reads several files as one data set, in the order given: the shards of a split. The form is found in
    /// the first; the hash is that of one file alone, or over the name and hash of each.
    ///
    /// # Errors
    /// As [`Dataset::load_as`], for any of them; no file at all.
    pub fn load_all(
        paths: &[PathBuf],
        columns: &Columns,
        format: Option<Format>,
    ) -> Result<Self, DataError> {
        let Some((first, rest)) = paths.split_first() else {
            return Err(DataError::Option("no data file is given".to_owned()));
        };
        let mut all = Self::load_as(first, columns, format)?;
        if rest.is_empty() {
            return Ok(all);
        }
        let mut hasher = blake3::Hasher::new();
        let mut add = |path: &Path, hash: &str| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{hash}  {name}\n").as_bytes());
        };
        add(first, &all.hash);
        for path in rest {
            let more = Self::load_as(path, columns, Some(all.format))?;
            add(path, &more.hash);
            all.rows.extend(more.rows);
        }
        all.hash = hasher.finalize().to_hex().to_string();
        Ok(all)
    }

    /// What was found, for the log: "1200 rows of chat (`messages`) in JSON Lines".
    pub fn describe(&self) -> String {
        let (count, plural) = (self.rows.len(), if self.rows.len() == 1 { "" } else { "s" });
        format!(
            "{count} row{plural} of {} in {}",
            self.format, self.container
        )
    }
}

/// Type of a file by its name.
fn container(path: &Path) -> Result<Container, DataError> {
    let metadata = path.metadata().map_err(|source| read_error(path, source))?;
    if metadata.is_dir() {
        return Ok(Container::TextFolder);
    }
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    Ok(match extension.to_str() {
        Some("jsonl" | "ndjson" | "jsonlines") => Container::JsonLines,
        Some("json") => Container::Json,
        Some("csv" | "tsv") => Container::Csv,
        Some("parquet") => Container::Parquet,
        Some("txt") => Container::TextFile,
        _ => return Err(DataError::UnknownContainer { path: path.into() }),
    })
}

/// Every `.txt` file of a folder, by name.
fn folder(path: &Path, reader: &mut RowReader<'_>) -> Result<String, DataError> {
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(|source| read_error(path, source))? {
        let file = entry.map_err(|source| read_error(path, source))?.path();
        if file
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("txt"))
        {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(DataError::UnknownContainer { path: path.into() });
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let (text, hash) = text(&file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(format!("{hash}  {name}\n").as_bytes());
        reader.document(&file, text);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn text(path: &Path) -> Result<(String, String), DataError> {
    let bytes = std::fs::read(path).map_err(|source| read_error(path, source))?;
    let hash = blake3::hash(&bytes).to_hex().to_string();
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, hash)),
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.split(|&byte| byte == b'\n').count() as u64;
            Err(DataError::NotUtf8 {
                place: Place::line(path, line),
            })
        }
    }
}

fn read_error(path: &Path, source: io::Error) -> DataError {
    DataError::Read {
        path: path.into(),
        source,
    }
}

/// A file whose bytes are hashed as they pass.
struct Hashing<'a> {
    path: &'a Path,
    file: File,
    hasher: blake3::Hasher,
}

impl<'a> Hashing<'a> {
    fn open(path: &'a Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| read_error(path, source))?;
        Ok(Self {
            path,
            file,
            hasher: blake3::Hasher::new(),
        })
    }

    /// Reads what is left and returns the hash of the whole file.
    fn finish(mut self) -> Result<String, DataError> {
        let path = self.path;
        io::copy(&mut self, &mut io::sink()).map_err(|source| read_error(path, source))?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// Turns records into rows; the first one decides the form.
struct RowReader<'a> {
    columns: &'a Columns,
    format: Option<Format>,
    rows: Vec<(Place, Row)>,
}

impl RowReader<'_> {
    fn document(&mut self, path: &Path, text: String) {
        self.format = Some(Format::Text);
        if !text.trim().is_empty() {
            self.rows.push((Place::whole(path), Row::Text(text)));
        }
    }

    fn push(&mut self, fields: Map<String, Value>, place: &Place) -> Result<(), DataError> {
        let record = self.columns.apply(fields, place)?;
        let format = match self.format {
            Some(format) => format,
            None => detect(&record)?,
        };
        self.format = Some(format);
        let row = match format {
            Format::Messages => messages_row(&record, self.columns)?,
            Format::ShareGpt => sharegpt_row(&record, self.columns)?,
            Format::PromptCompletion => completion_row(&record, self.columns)?,
            Format::Alpaca => alpaca_row(&record, self.columns)?,
            Format::Text => Row::Text(record.text("text", self.columns)?),
            Format::Labelled => Row::Labelled {
                text: record.text("text", self.columns)?,
                label: record.label(self.columns)?,
            },
        };
        self.rows.push((record.place, row));
        Ok(())
    }
}

fn detect(record: &Record) -> Result<Format, DataError> {
    let fits = |columns: &[&str]| columns.iter().all(|column| record.has(column));
    match FORMATS.iter().find(|(_, columns)| fits(columns)) {
        Some(&(format, _)) => Ok(format),
        None => Err(DataError::UnknownFormat {
            place: record.place.clone(),
            found: record.fields.keys().cloned().collect(),
        }),
    }
}

fn messages_row(record: &Record, columns: &Columns) -> Result<Row, DataError> {
    let messages = messages(record, "messages", columns)?;
    Ok(Row::Chat {
        messages,
        variables: variables(record)?,
    })
}

fn completion_row(record: &Record, columns: &Columns) -> Result<Row, DataError> {
    if record.value("prompt", columns)?.is_string() {
        return Ok(Row::Completion {
            prompt: record.text("prompt", columns)?,
            completion: record.text("completion", columns)?,
        });
    }
    let mut turns = messages(record, "prompt", columns)?;
    let answer = turns.len();
    turns.extend(messages(record, "completion", columns)?);
    Ok(Row::ChatCompletion {
        messages: turns,
        answer,
        variables: variables(record)?,
    })
}

fn alpaca_row(record: &Record, columns: &Columns) -> Result<Row, DataError> {
    let mut messages = Vec::with_capacity(3);
    let system = record.optional_text("system", columns)?;
    if !system.is_empty() {
        messages.push(Message::new("system", system));
    }
    let mut question = record.text("instruction", columns)?;
    let input = record.optional_text("input", columns)?;
    if !input.is_empty() {
        question.push_str("\n\n");
        question.push_str(&input);
    }
    messages.push(Message::new("user", question));
    messages.push(Message::new("assistant", record.text("output", columns)?));
    Ok(Row::Chat {
        messages,
        variables: Map::new(),
    })
}

fn sharegpt_row(record: &Record, columns: &Columns) -> Result<Row, DataError> {
    let name = columns.original("conversations");
    let turns = list(record, "conversations", columns)?;
    let mut messages = Vec::with_capacity(turns.len() + 1);
    let system = record.optional_text("system", columns)?;
    if !system.is_empty() {
        messages.push(Message::new("system", system));
    }
    for (i, turn) in turns.iter().enumerate() {
        let field = |key: &str| {
            let column = format!("{name}[{i}].{key}");
            match turn.get(key) {
                Some(Value::String(text)) => Ok(text.as_str()),
                Some(other) => Err(record.wrong(&column, "a string", other)),
                None => Err(DataError::MissingColumn {
                    place: record.place.clone(),
                    column,
                    found: turn
                        .as_object()
                        .map(|o| o.keys().cloned().collect())
                        .unwrap_or_default(),
                }),
            }
        };
        let role = match field("from")? {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "model" | "bot" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            other => {
                let (place, role) = (record.place.clone(), other.into());
                return Err(DataError::UnknownRole { place, role });
            }
        };
        messages.push(Message::new(role, field("value")?));
    }
    Ok(Row::Chat {
        messages,
        variables: variables(record)?,
    })
}

/// A list that is not empty. CSV cells and some Parquet files hold it as a string of JSON.
fn list(record: &Record, column: &str, columns: &Columns) -> Result<Vec<Value>, DataError> {
    let value = record.value(column, columns)?;
    let name = columns.original(column);
    let list = match value {
        Value::Array(list) => list.clone(),
        Value::String(text) => serde_json::from_str(text)
            .map_err(|_| record.wrong(name, "a list of messages", value))?,
        other => return Err(record.wrong(name, "a list of messages", other)),
    };
    if list.is_empty() {
        return Err(DataError::MissingColumn {
            place: record.place.clone(),
            column: name.into(),
            found: Vec::new(),
        });
    }
    Ok(list)
}

/// A list of `{role, content}`. A missing or null content (a turn that only calls tools) is empty; a
/// content of text parts is joined.
fn messages(record: &Record, column: &str, columns: &Columns) -> Result<Vec<Message>, DataError> {
    let name = columns.original(column);
    let mut messages = Vec::new();
    for (i, turn) in list(record, column, columns)?.into_iter().enumerate() {
        let Value::Object(mut fields) = turn else {
            return Err(record.wrong(
                &format!("{name}[{i}]"),
                "an object with `role` and `content`",
                &turn,
            ));
        };
        // Parquet writes every field of the schema; null means the turn has none.
        fields.retain(|_, value| !value.is_null());
        let role = match fields.remove("role") {
            Some(Value::String(role)) => role,
            Some(other) => {
                return Err(record.wrong(&format!("{name}[{i}].role"), "a string", &other));
            }
            None => {
                return Err(DataError::MissingColumn {
                    place: record.place.clone(),
                    column: format!("{name}[{i}].role"),
                    found: fields.keys().cloned().collect(),
                });
            }
        };
        let content = match fields.remove("content") {
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| part.get("text").and_then(Value::as_str))
                .collect::<Option<String>>()
                .ok_or_else(|| {
                    record.wrong(
                        &format!("{name}[{i}].content"),
                        "text or parts of text",
                        &Value::Array(parts),
                    )
                })?,
            None if fields.contains_key("tool_calls") => String::new(),
            None => {
                return Err(DataError::MissingColumn {
                    place: record.place.clone(),
                    column: format!("{name}[{i}].content"),
                    found: fields.keys().cloned().collect(),
                });
            }
            Some(other) => {
                return Err(record.wrong(&format!("{name}[{i}].content"), "a string", &other));
            }
        };
        messages.push(Message {
            role,
            content,
            extra: fields,
        });
    }
    Ok(messages)
}

/// What the chat template gets besides the messages, as in TRL: `tools` and the entries of
/// `chat_template_kwargs`.
fn variables(record: &Record) -> Result<Map<String, Value>, DataError> {
    let mut variables = match record.fields.get("chat_template_kwargs") {
        Some(Value::Object(variables)) => variables.clone(),
        None | Some(Value::Null) => Map::new(),
        Some(other) => return Err(record.wrong("chat_template_kwargs", "an object", other)),
    };
    match record.fields.get("tools") {
        None | Some(Value::Null) => {}
        Some(tools @ Value::Array(_)) => {
            variables.insert("tools".into(), tools.clone());
        }
        Some(Value::String(text)) => {
            let tools: Vec<Value> = serde_json::from_str(text)
                .map_err(|_| record.wrong("tools", "a list", &Value::from(text.as_str())))?;
            variables.insert("tools".into(), Value::Array(tools));
        }
        Some(other) => return Err(record.wrong("tools", "a list", other)),
    }
    Ok(variables)
}

#[cfg(test)]
mod tests;
