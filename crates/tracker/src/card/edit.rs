//! Editing a card that somebody else wrote: bytes in, bytes out. The `co2_eq_emissions` block of the
//! front matter and the Environmental Impact section of the body are written or replaced; every other
//! byte stays, with its comments, order of keys, quotes, line endings, byte order mark and missing final
//! newline. The section stands between two HTML comments, by which the next edit finds it; front matter
//! that was added carries a YAML comment that says so.
//!
//! Lines are moved and YAML is never written anew. What came out is read back: where any other key
//! would have changed, the edit is refused and nothing is written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use super::source::CardError;
use super::source::{Source, headings, key_lines, line_number, parse};
use super::{CardInputs, TrainingKind, body, front_matter};
use crate::combine;
use crate::record::EnergyRecord;

/// The key in the front matter.
const KEY: &str = "co2_eq_emissions";

/// A section of the body that is ours.
struct Section {
    /// Its heading in small letters.
    heading: &'static str,
    /// The line that opens it.
    start: &'static str,
    /// The line that closes it.
    end: &'static str,
}

/// What some runs cost.
const IMPACT: Section = Section {
    heading: "environmental impact",
    start: "<!-- sparsam: start of Environmental Impact, written by `sparsam card update` -->",
    end: "<!-- sparsam: end of Environmental Impact -->",
};

/// What the whole project cost.
const LIFECYCLE: Section = Section {
    heading: "lifecycle",
    start: "<!-- sparsam: start of Lifecycle, written by `sparsam card update` -->",
    end: "<!-- sparsam: end of Lifecycle -->",
};

/// In front matter that did not exist before.
const ADDED: &str = "# This front matter was added by `sparsam card update`.";

/// What is said beside the records.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    /// Fine-tuning or pre-training. None keeps what the card says, and is fine-tuning where it says
    /// nothing.
    pub training: Option<TrainingKind>,
    /// The provider's name, for rented machines.
    pub cloud_provider: Option<String>,
    /// The provider's region.
    pub compute_region: Option<String>,
}

/// Why a card was not edited. It stands as before.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The card cannot be edited.
    #[error(transparent)]
    Card(#[from] CardError),
    /// No record was given.
    #[error("no run was given")]
    NoRun,
    /// The place of a run is unknown, so that there is no single figure for the front matter.
    #[error("the run `{run}` has no single figure: its place was not given")]
    NoPlace {
        /// The run's name.
        run: String,
    },
    /// The same record twice.
    #[error("the run `{run}`, started {started}, is given twice")]
    Twice {
        /// The run's name.
        run: String,
        /// Its start.
        started: String,
    },
    /// The file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl EditError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Card(CardError::NotUtf8 { .. }) => {
                Some("save the card as UTF-8, as the Hub requires".to_owned())
            }
            Self::Card(CardError::OpenFence { .. }) => {
                Some("close it by a line of the same marks".to_owned())
            }
            Self::Card(CardError::Unclosed { .. }) => {
                Some("add a line `---` after the last key".to_owned())
            }
            Self::Card(_) => Some("the file is untouched; correct it by hand first".to_owned()),
            Self::NoRun => Some("give the folder of a run".to_owned()),
            Self::NoPlace { .. } => {
                Some("give the place now, as `--country DEU` or as an own intensity".to_owned())
            }
            Self::Twice { .. } => Some("each run counts once".to_owned()),
            Self::File { .. } => None,
        }
    }
}

/// What an edit of a file did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The card was written.
    Written,
    /// It already said the same.
    Unchanged,
}

/// The card with the block and the section of these runs, which are added up.
///
/// # Errors
/// The card cannot be edited, or the runs have no single figure.
pub fn update(
    card: &[u8],
    records: &[EnergyRecord],
    details: &Details,
) -> Result<Vec<u8>, EditError> {
    let total = checked_sum(records)?;
    twice(card, |card| edit(card, &total, records, details))
}

/// The card with this section on the whole project, `## Lifecycle` and its text.
///
/// # Errors
/// The card cannot be edited.
pub fn update_lifecycle(card: &[u8], section: &str) -> Result<Vec<u8>, EditError> {
    twice(card, |card| {
        let source = Source::read(card)?;
        let before = source.parse()?;
        let edited = put_section(&source, &LIFECYCLE, section.trim_end())?;
        verify(&edited, &before, front_block(&source))?;
        Ok(edited.into_bytes())
    })
}

/// The lines of our key as they stand in the front matter.
fn front_block<'a>(source: &Source<'a>) -> Option<&'a str> {
    let yaml = &source.text[source.front.as_ref()?.content.clone()];
    key_lines(yaml, KEY).map(|lines| &yaml[lines.start..lines.end])
}

/// The outcome of an edit that changes nothing when it is made again: a section that a second update
/// would not find would be written twice.
fn twice(
    card: &[u8],
    edit: impl Fn(&[u8]) -> Result<Vec<u8>, EditError>,
) -> Result<Vec<u8>, EditError> {
    let edited = edit(card)?;
    match edit(&edited) {
        Ok(again) if again == edited => Ok(edited),
        _ => Err(EditError::Card(CardError::Unsupported {
            line: Source::read(card).map_or(1, |source| line_number(source.text, source.body)),
            reason: "the body that starts here is written in a way in which the section cannot be \
                     placed with certainty; is there an HTML comment that is not closed?"
                .to_owned(),
        })),
    }
}

/// One edit, read back.
fn edit(
    card: &[u8],
    total: &EnergyRecord,
    records: &[EnergyRecord],
    details: &Details,
) -> Result<Vec<u8>, EditError> {
    let source = Source::read(card)?;
    let before = source.parse()?;
    let training = details.training.unwrap_or_else(|| {
        match before.get(KEY).and_then(|b| b.get("training_type")) {
            Some(Value::String(kind)) if kind == TrainingKind::PreTraining.name() => {
                TrainingKind::PreTraining
            }
            _ => TrainingKind::FineTuning,
        }
    });
    let inputs = CardInputs {
        training,
        cloud_provider: details.cloud_provider.clone(),
        compute_region: details.compute_region.clone(),
        ..CardInputs::default()
    };
    let Some(block) = front_matter::emissions(&inputs, total) else {
        return Err(no_place(records));
    };
    let section = body::environmental_impact(
        &inputs,
        total,
        records,
        "The readings are in `energy.jsonl` of each run's folder, joules by component and time",
    );
    let section = section.trim_end().to_owned();
    let with_section = put_section(&source, &IMPACT, &section)?;
    let edited = put_block(&source, &with_section, &block);
    verify(&edited, &before, Some(&block))?;
    Ok(edited.into_bytes())
}

/// The card without the block, and without a section that [`update`] wrote.
///
/// # Errors
/// The card cannot be edited.
pub fn remove(card: &[u8]) -> Result<Vec<u8>, EditError> {
    let source = Source::read(card)?;
    let before = source.parse()?;
    let mut text = source.text.to_owned();
    if let Some((start, end)) = marked(&source, &IMPACT)? {
        let eol = ending_after(source.text, start);
        let (mut from, mut to) = (start, end);
        if source.text[end..].starts_with(eol) {
            // A section among others, or at the end of a text with a final newline: one line ending
            // after it goes, and the blank line before it.
            to += eol.len();
            if let Some(rest) = source.text[..start].strip_suffix(eol)
                && rest.ends_with('\n')
            {
                from = rest.len();
            }
        } else if end == source.text.len() {
            // At the end of a text without one: both line endings that were added before it go.
            for _ in 0..2 {
                from = source.text[..from].strip_suffix(eol).map_or(from, str::len);
            }
        }
        text.replace_range(from..to, "");
    }
    // The section lies behind the front matter, whose bytes are still where they were.
    if let Some(front) = &source.front {
        let yaml = &source.text[front.content.clone()];
        if let Some(lines) = key_lines(yaml, KEY) {
            let rest = format!("{}{}", &yaml[..lines.start], &yaml[lines.end..]);
            if rest.trim() == ADDED && source.text[source.bom..].starts_with("---") {
                // All of it was added, with the blank line after it.
                let mut end = source.body;
                if text[end..].starts_with(source.eol) {
                    end += source.eol.len();
                }
                text.replace_range(source.bom..end, "");
            } else {
                let at = front.content.start;
                text.replace_range(at + lines.start..at + lines.end, "");
            }
        }
    }
    verify(&text, &before, None)?;
    Ok(text.into_bytes())
}

/// Updates a file in place: written beside it, then renamed over it. With `lifecycle` the section on the
/// whole project is written too, or alone where there are no records.
///
/// # Errors
/// As [`update`], or the file cannot be read or written; it is untouched then.
pub fn update_file(
    path: &Path,
    records: &[EnergyRecord],
    details: &Details,
    lifecycle: Option<&str>,
) -> Result<Outcome, EditError> {
    let file_error = |action| {
        move |source| EditError::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let before = fs::read(path).map_err(file_error("read"))?;
    let mut after = before.clone();
    if !records.is_empty() || lifecycle.is_none() {
        after = update(&after, records, details)?;
    }
    if let Some(section) = lifecycle {
        after = update_lifecycle(&after, section)?;
    }
    if after == before {
        return Ok(Outcome::Unchanged);
    }
    replace(path, &after).map_err(file_error("write"))?;
    Ok(Outcome::Written)
}

/// Writes beside a file and renames; a link stays a link, and the permissions stay.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = fs::canonicalize(path)?;
    let name = target
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let beside = target.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = fs::write(&beside, bytes)
        .and_then(|()| fs::set_permissions(&beside, fs::metadata(&target)?.permissions()))
        .and_then(|()| fs::File::open(&beside)?.sync_all())
        .and_then(|()| fs::rename(&beside, &target));
    if written.is_err() {
        drop(fs::remove_file(&beside));
    }
    written
}

fn checked_sum(records: &[EnergyRecord]) -> Result<EnergyRecord, EditError> {
    for (index, record) in records.iter().enumerate() {
        if records[..index].contains(record) {
            return Err(EditError::Twice {
                run: record.name.clone(),
                started: record.started.clone(),
            });
        }
    }
    combine::sum(records).ok_or(EditError::NoRun)
}

fn no_place(records: &[EnergyRecord]) -> EditError {
    let run = records.iter().find(|r| r.emissions_g.central.is_none());
    EditError::NoPlace {
        run: run.map(|r| r.name.clone()).unwrap_or_default(),
    }
}

/// The line ending after the line that starts at `at`.
fn ending_after(text: &str, at: usize) -> &'static str {
    match text[at..].find('\n') {
        Some(end) if text[at..at + end].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// The bytes from the first marker to the end of the second, without the line ending after it.
fn marked(source: &Source, of: &Section) -> Result<Option<(usize, usize)>, CardError> {
    let find = |marker: &str, from: usize| {
        super::source::lines(source.text, from)
            .find(|line| line.text == marker)
            .map(|line| line.start)
    };
    let Some(start) = find(of.start, source.body) else {
        return Ok(None);
    };
    let Some(end) = find(of.end, start) else {
        return Err(CardError::Unsupported {
            line: line_number(source.text, start),
            reason: format!("the section that opens here has no line `{}`", of.end),
        });
    };
    Ok(Some((start, end + of.end.len())))
}

/// The whole text with the section put into its body.
fn put_section(source: &Source, of: &Section, section: &str) -> Result<String, CardError> {
    let text = source.text;
    let found = headings(text, source.body)?;
    if let Some((start, end)) = marked(source, of)? {
        let eol = ending_after(text, start);
        let level = found
            .iter()
            .find(|h| h.start > start && h.start < end)
            .map_or(2, |h| h.level);
        return Ok(format!(
            "{}{}{}",
            &text[..start],
            between_markers(of, &with_level(section, level), eol),
            &text[end..]
        ));
    }
    let old = found
        .iter()
        .position(|h| h.text.to_lowercase().trim_end_matches(':') == of.heading);
    if let Some(index) = old {
        let heading = &found[index];
        let next = found[index + 1..]
            .iter()
            .find(|h| h.level <= heading.level)
            .map_or(text.len(), |h| h.start);
        // Blank lines before what follows stay.
        let end = heading.start + text[heading.start..next].trim_end().len();
        let section = with_level(section, heading.level);
        return Ok(format!(
            "{}{}{}",
            &text[..heading.start],
            between_markers(of, &section, source.eol),
            &text[end..]
        ));
    }
    let eol = source.eol;
    let block = between_markers(of, section, eol);
    Ok(if text.ends_with('\n') {
        format!("{text}{eol}{block}{eol}")
    } else {
        format!("{text}{eol}{eol}{block}")
    })
}

/// The section's own heading in the level the card has it.
fn with_level(section: &str, level: usize) -> String {
    format!(
        "{} {}",
        "#".repeat(level),
        section.trim_start_matches('#').trim_start()
    )
}

fn between_markers(of: &Section, section: &str, eol: &str) -> String {
    let mut out = String::new();
    for line in [of.start, ""]
        .into_iter()
        .chain(section.lines())
        .chain(["", of.end])
    {
        if !out.is_empty() {
            out.push_str(eol);
        }
        out.push_str(line);
    }
    out
}

/// `text`, which differs from the source's in its body only, with the block put into its front matter.
fn put_block(source: &Source, text: &str, block: &str) -> String {
    let eol = source.eol;
    let block = block.replace('\n', eol);
    let Some(front) = &source.front else {
        let bom = &text[..source.bom];
        let rest = &text[source.bom..];
        return format!("{bom}---{eol}{ADDED}{eol}{block}---{eol}{eol}{rest}");
    };
    let yaml = &source.text[front.content.clone()];
    let (from, to) = match key_lines(yaml, KEY) {
        Some(lines) => (lines.start, lines.end),
        None => (yaml.len(), yaml.len()),
    };
    let at = front.content.start;
    format!("{}{block}{}", &text[..at + from], &text[at + to..])
}

/// Reads the edited card back: all keys but ours are as before, and ours is as it should be.
fn verify(
    edited: &str,
    before: &serde_json::Map<String, Value>,
    block: Option<&str>,
) -> Result<(), CardError> {
    let refused = |line: usize, reason: &str| CardError::Unsupported {
        line,
        reason: reason.to_owned(),
    };
    let alone = "the front matter is written in a way in which this key cannot be changed alone";
    let source = Source::read(edited.as_bytes()).map_err(|error| refused(error.line(), alone))?;
    let mut after = source
        .parse()
        .map_err(|error| refused(error.line(), alone))?;
    let line = source.front.as_ref().map_or(1, |front| front.first_line);
    let ours = after.shift_remove(KEY);
    let mut before = before.clone();
    before.shift_remove(KEY);
    if after != before {
        return Err(refused(line, alone));
    }
    let wanted = block
        .map(|block| parse(block, line))
        .transpose()?
        .and_then(|mut map| map.shift_remove(KEY));
    if ours != wanted {
        return Err(refused(line, alone));
    }
    Ok(())
}
