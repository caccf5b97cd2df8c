//! What can be wrong with a data set, said so that it can be found and mended.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use sparsam_base::chat_template::TemplateError;
use sparsam_base::tokenizer::TokenizerError;

/// Where in a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line, row or nothing.
    pub spot: Spot,
}

/// A spot in a file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// The file as a whole.
    Whole,
    /// A line of a text file.
    Line(u64),
    /// A row of a file that has no lines, or whose rows span several.
    Row(u64),
}

impl Place {
    pub(super) fn whole(path: &Path) -> Self {
        Self {
            path: path.into(),
            spot: Spot::Whole,
        }
    }

    pub(super) fn line(path: &Path, line: u64) -> Self {
        Self {
            path: path.into(),
            spot: Spot::Line(line),
        }
    }

    pub(super) fn row(path: &Path, row: u64) -> Self {
        Self {
            path: path.into(),
            spot: Spot::Row(row),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.path.display())?;
        match self.spot {
            Spot::Whole => Ok(()),
            Spot::Line(line) => write!(f, ", line {line}"),
            Spot::Row(row) => write!(f, ", row {row}"),
        }
    }
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's name ends in nothing known.
    #[error("`{}` is not a kind of data file that can be read", path.display())]
    UnknownContainer {
        /// The file or folder.
        path: PathBuf,
    },
    /// There is not a single row.
    #[error("{place} holds no data")]
    Empty {
        /// The file or folder.
        place: Place,
    },
    /// Bytes that are not UTF-8.
    #[error("{place}: the text is not UTF-8")]
    NotUtf8 {
        /// Where.
        place: Place,
    },
    /// The file is not what its name says.
    #[error("{place}: {reason}")]
    Malformed {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// The columns are those of no known form.
    #[error("{place}: the columns {} are not those of a known form", list(found))]
    UnknownFormat {
        /// The first row.
        place: Place,
        /// Its columns.
        found: Vec<String>,
    },
    /// A row lacks a column that the first row has.
    #[error("{place}: column `{column}` is missing or empty")]
    MissingColumn {
        /// The row.
        place: Place,
        /// The column.
        column: String,
        /// The columns it has.
        found: Vec<String>,
    },
    /// A column holds another kind of value.
    #[error("{place}: column `{column}` is {found}, not {expected}")]
    WrongType {
        /// The row.
        place: Place,
        /// The column, or a field in it.
        column: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A conversation has a speaker that is not known.
    #[error("{place}: `{role}` is not a known speaker")]
    UnknownRole {
        /// The row.
        place: Place,
        /// What `from` says.
        role: String,
    },
    /// A column mapping names a column of no form.
    #[error("`{column}` is not a column that can be mapped")]
    UnknownColumn {
        /// The name on the left of the mapping.
        column: String,
    },
    /// The chat template cannot take a conversation.
    #[error("{place}: {source}")]
    Template {
        /// The row.
        place: Place,
        /// What the template says.
        source: TemplateError,
    },
    /// The tokenizer cannot take a text.
    #[error("{place}: {source}")]
    Tokenizer {
        /// The row.
        place: Place,
        /// What the tokenizer says.
        source: TokenizerError,
    },
    /// The template's output does not show where an answer begins and ends.
    #[error(
        "{place}: the chat template does not show where answer {answer} begins and ends (it leaves the answer out, or writes the turns before it differently once it is there)"
    )]
    NoAnswerBorder {
        /// The row.
        place: Place,
        /// Which message of the conversation, from 1.
        answer: usize,
    },
    /// No token of any example is a target.
    #[error(
        "{place}: nothing would be trained: all targets of all {examples} examples are masked ({cause})"
    )]
    NothingTrained {
        /// The data set.
        place: Place,
        /// How many examples there are.
        examples: usize,
        /// The likely cause.
        cause: &'static str,
    },
    /// A label column lacks the field that is the class.
    #[error("{place}: column `{column}` has no field `{field}`")]
    NoField {
        /// The row.
        place: Place,
        /// The column.
        column: String,
        /// The field.
        field: String,
    },
    /// A row has a class that the training data does not have.
    #[error(
        "{place}: the label `{label}` is not one of the training data's: {}",
        some(known)
    )]
    UnknownLabel {
        /// The row.
        place: Place,
        /// Its class.
        label: String,
        /// Those of the training data.
        known: Vec<String>,
    },
    /// All rows are of one class.
    #[error("{place}: every row has the label `{label}`, so there is nothing to tell apart")]
    OneLabel {
        /// The data set.
        place: Place,
        /// The class.
        label: String,
    },
    /// A text without a single token.
    #[error("{place}: the text is empty")]
    EmptyText {
        /// The row.
        place: Place,
    },
    /// An option is impossible.
    #[error("{0}")]
    Option(String),
}

/// Forms of rows, for hints.
pub(super) const FORMS: &str = "accepted are `messages`, `prompt` and `completion`, `instruction` and `output` (alpaca), `conversations` (ShareGPT), or `text`";

impl DataError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "paths in a recipe are relative to the folder the command runs in".into()
            }
            Self::UnknownContainer { .. } => {
                "accepted are `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` and `.txt` files, and a folder of `.txt` files; unpack compressed files first".into()
            }
            Self::Empty { .. } => "check that the path is right and the file was written to its end".into(),
            Self::NotUtf8 { .. } => {
                "convert the file, for instance with `iconv -f ISO-8859-1 -t UTF-8`".into()
            }
            Self::UnknownFormat { .. } => format!("{FORMS}; `columns` maps other names to these"),
            Self::MissingColumn { found, .. } if found.is_empty() => {
                "every row needs the columns of the first one".into()
            }
            Self::MissingColumn { found, .. } => {
                format!("the row has {}; every row needs the columns of the first one", list(found))
            }
            Self::WrongType { found: "an object" | "a list", .. } => {
                "write structured answers as a string of JSON".into()
            }
            Self::UnknownRole { .. } => {
                "known are `human`, `user`, `gpt`, `assistant`, `chatgpt`, `model`, `bot`, `system`, `tool`, `observation` and `function_response`".into()
            }
            Self::UnknownColumn { .. } => {
                "mapped can be `messages`, `conversations`, `prompt`, `completion`, `instruction`, `input`, `output`, `system`, `text` and `label`".into()
            }
            Self::Template { source, .. } => return source.hint(),
            Self::Tokenizer { source, .. } => return source.hint(),
            Self::NoAnswerBorder { .. } => {
                "put `{% generation %}` and `{% endgeneration %}` around the answer in the template, or train on everything with `train_on: all`".into()
            }
            Self::NoField { .. } => {
                "the column must hold lines such as `Urgency: low`, or an object; `data.label_field` names the field".into()
            }
            Self::UnknownLabel { .. } => {
                "spell it as the training data does, or add rows of this class to the training data".into()
            }
            Self::OneLabel { .. } => {
                "check `data.columns.label`; a classifier needs rows of at least two classes".into()
            }
            Self::EmptyText { .. } => "leave the row out".into(),
            Self::Malformed { .. } => {
                "mend the row, or write the file again; it may have been cut short".into()
            }
            Self::Read { .. } | Self::WrongType { .. } | Self::Option(_) => return None,
            Self::NothingTrained { .. } => {
                "raise `max_length`, look at the rows, or train on everything with `train_on: all`".into()
            }
        })
    }
}

/// The first of many names.
fn some(names: &[String]) -> String {
    const MOST: usize = 12;
    let more = match names.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", list(&names[..names.len().min(MOST)]))
}

/// "`a`, `b`", or "nothing".
fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "(none)".into();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
