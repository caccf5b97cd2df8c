//! The data set *city-trees*: residents' messages about street trees, and the record each should become.
//!
//! A message is composed backwards: first the record is drawn (species, street, problem, urgency), then a
//! grammar says it in German or English, then [`noise`] misspells it the way people in a hurry do. So the
//! label is known, and what the grammar says must be enough for a careful reader to find it again.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::dice::Dice;
use crate::error::Error;
use crate::grammar::{Given, Grammar, capitalise};
use crate::names::Street;
use crate::rows;
use crate::{lexicon_de, lexicon_en};

pub mod card;
pub mod noise;
pub mod town;

use town::{SPECIES, STREETS, Species};

/// Rows of `train.jsonl`.
pub const TRAIN_ROWS: usize = 2400;
/// Rows of `eval.jsonl`.
pub const EVAL_ROWS: usize = 320;

/// What is wrong with the tree.
#[derive(Debug, Clone, Copy)]
pub struct Problem {
    /// The label in the answer.
    pub label: &'static str,
    /// The name of its rules in the grammars.
    rule: &'static str,
    /// The urgency when no danger is told of.
    pub calm_urgency: &'static str,
    /// Whether messages tell of danger.
    dangerous: bool,
}

const fn problem(label: &'static str, rule: &'static str, calm_urgency: &'static str) -> Problem {
    Problem {
        label,
        rule,
        calm_urgency,
        dangerous: true,
    }
}

/// The ten problems.
pub const PROBLEMS: [Problem; 10] = [
    problem("broken branch", "branch", "medium"),
    problem("fallen tree", "fallen", "medium"),
    problem("dead tree", "dead", "medium"),
    problem("fungus", "fungus", "medium"),
    problem("lifted pavement", "roots", "medium"),
    problem("damaged bark", "bark", "low"),
    problem("blocked view", "view", "low"),
    problem("pests", "pests", "low"),
    Problem {
        dangerous: false,
        ..problem("needs water", "water", "low")
    },
    problem("empty pit", "pit", "low"),
];

/// The language of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// German.
    German,
    /// English, about streets with German names.
    English,
}

/// One row, with what is known of its making.
#[derive(Debug, Clone)]
pub struct Row {
    /// The resident's message.
    pub prompt: String,
    /// The record, four lines.
    pub completion: String,
    /// Which alternative of which rule the message is made of; names, numbers and spelling left out.
    pub template: String,
    /// The language.
    pub language: Language,
    /// The genus, or `unknown`.
    pub species: &'static str,
    /// The street as on its sign.
    pub street: &'static str,
    /// The label of the problem.
    pub problem: &'static str,
    /// `low`, `medium` or `high`.
    pub urgency: &'static str,
}

/// Writes messages.
#[derive(Debug)]
pub struct Office {
    german: Grammar,
    english: Grammar,
    german_words: lexicon_de::German,
    english_words: lexicon_en::English,
}

impl Office {
    /// Parses the grammars.
    pub fn new() -> Result<Self, Error> {
        let office = Self {
            german: Grammar::parse(&[("city_trees/de.txt", include_str!("de.txt"))])?,
            english: Grammar::parse(&[("city_trees/en.txt", include_str!("en.txt"))])?,
            german_words: lexicon_de::German::new(),
            english_words: lexicon_en::English::new(),
        };
        office.german.check_slots(&office.german_words)?;
        office.english.check_slots(&office.english_words)?;
        Ok(office)
    }

    /// One row.
    pub fn row(&self, dice: &mut Dice) -> Result<Row, Error> {
        let language = if dice.chance(60) {
            Language::German
        } else {
            Language::English
        };
        let problem = *dice.pick(&PROBLEMS);
        let danger = problem.dangerous && dice.chance(35);
        let species = (!dice.chance(12)).then(|| dice.pick(&SPECIES));
        let street = dice.pick(&STREETS);
        let rule = problem.rule;
        let aliases = HashMap::from([
            ("problem".to_owned(), rule.to_owned()),
            ("fused".to_owned(), format!("{rule}_fused")),
            ("short".to_owned(), format!("{rule}_short")),
            (
                "cue".to_owned(),
                if danger {
                    format!("{rule}_high")
                } else {
                    "calm".to_owned()
                },
            ),
        ]);
        let sign = Street::named(street.name.to_owned(), street.gender);
        let (text, template) = match language {
            Language::German => {
                let tree = german_tree(species, dice);
                let bindings = HashMap::from([
                    ("tree1".to_owned(), tree),
                    ("street1".to_owned(), lexicon_de::Value::Street(sign)),
                ]);
                let given = Given { bindings, aliases };
                let out = self
                    .german
                    .expand_with("message", &self.german_words, given, dice)?;
                (capitalise(&out.text, '„', '“'), out.path)
            }
            Language::English => {
                let tree = english_tree(species, dice);
                let bindings = HashMap::from([
                    ("tree1".to_owned(), tree),
                    ("street1".to_owned(), lexicon_en::Value::Street(sign)),
                ]);
                let given = Given { bindings, aliases };
                let out = self
                    .english
                    .expand_with("message", &self.english_words, given, dice)?;
                (capitalise(&out.text, '“', '”'), out.path)
            }
        };
        let urgency = if danger { "high" } else { problem.calm_urgency };
        let species = species.map_or("unknown", |species| species.genus);
        let completion = format!(
            "Species: {species}\nStreet: {}\nProblem: {}\nUrgency: {urgency}",
            street.name, problem.label
        );
        Ok(Row {
            prompt: noise::scribble(text.trim(), dice),
            completion,
            template: format!("{language:?} {template}"),
            language,
            species,
            street: street.name,
            problem: problem.label,
            urgency,
        })
    }
}

fn german_tree(species: Option<&Species>, dice: &mut Dice) -> lexicon_de::Value {
    let adjective = *dice.pick(&[
        "alt", "groß", "jung", "hoh", "schön", "klein", "mächtig", "krumm",
    ]);
    let noun = species.map_or(("m", "Baum", "Baumes", "Bäume"), |species| {
        *dice.pick(species.german)
    });
    lexicon_de::Value::Noun(lexicon_de::Noun::listed(noun, adjective))
}

fn english_tree(species: Option<&Species>, dice: &mut Dice) -> lexicon_en::Value {
    let adjective = *dice.pick(&[
        "old",
        "big",
        "young",
        "tall",
        "beautiful",
        "small",
        "mighty",
        "crooked",
    ]);
    let noun = species.map_or("tree", |species| *dice.pick(species.english));
    lexicon_en::Value::Noun(lexicon_en::Noun::listed(noun, adjective))
}

/// The rows of both files: `(train, eval)`. The two come from different streams; no message is in both
/// and none twice, not even with other spelling of the same letters.
pub fn rows(seed: u64, train: usize, eval: usize) -> Result<(Vec<Row>, Vec<Row>), Error> {
    let office = Office::new()?;
    let mut seen = HashSet::new();
    let mut draw = |stream, wanted: usize| {
        let mut dice = Dice::new(seed, stream);
        let mut kept = Vec::with_capacity(wanted);
        for tries in 0.. {
            if kept.len() == wanted {
                break;
            }
            if tries > 10 * wanted {
                return Err(Error::TooFew {
                    tries,
                    found: kept.len(),
                    wanted,
                });
            }
            let row = office.row(&mut dice)?;
            let letters: String = row
                .prompt
                .chars()
                .filter(|c| c.is_alphabetic())
                .flat_map(char::to_lowercase)
                .collect();
            if seen.insert(letters) {
                kept.push(row);
            }
        }
        Ok(kept)
    };
    let eval = draw("city-trees/eval", eval)?;
    let train = draw("city-trees/train", train)?;
    Ok((train, eval))
}

/// Writes `train.jsonl`, `eval.jsonl` and the data card `README.md` to `folder`.
pub fn write(folder: &Path, seed: u64) -> Result<(), Error> {
    let (train, eval) = rows(seed, TRAIN_ROWS, EVAL_ROWS)?;
    fs_err::create_dir_all(folder)?;
    for (file, rows) in [("train.jsonl", &train), ("eval.jsonl", &eval)] {
        rows::write_with(&folder.join(file), |out| {
            rows.iter().try_for_each(|row| {
                rows::write_row(
                    out,
                    &[("prompt", &row.prompt), ("completion", &row.completion)],
                )
            })
        })?;
    }
    let card = card::text(seed, &train, &eval);
    rows::write_with(&folder.join("README.md"), |out| {
        Ok(out.write_all(card.as_bytes())?)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::{EVAL_ROWS, PROBLEMS, Row, TRAIN_ROWS, card, rows, town};

    fn shares(rows: &[Row]) -> HashMap<&str, usize> {
        let mut counts = HashMap::new();
        for row in rows {
            *counts.entry(row.template.as_str()).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn no_template_makes_more_than_one_percent() {
        let (train, eval) = rows(7, TRAIN_ROWS, EVAL_ROWS).unwrap();
        for set in [&train, &eval] {
            let counts = shares(set);
            let (template, &most) = counts.iter().max_by_key(|(_, count)| **count).unwrap();
            assert!(
                most * 100 < set.len(),
                "{most} of {} rows are `{template}`",
                set.len()
            );
        }
        let known = shares(&train);
        let fresh = eval
            .iter()
            .filter(|row| !known.contains_key(row.template.as_str()))
            .count();
        assert!(
            fresh * 3 >= eval.len(),
            "only {fresh} of {} eval templates are new",
            eval.len()
        );
    }

    #[test]
    fn messages_are_unique_and_answers_well_formed() {
        let (train, eval) = rows(7, TRAIN_ROWS, EVAL_ROWS).unwrap();
        assert_eq!((train.len(), eval.len()), (TRAIN_ROWS, EVAL_ROWS));
        let all: Vec<&Row> = train.iter().chain(&eval).collect();
        assert_eq!(
            all.iter()
                .map(|row| &row.prompt)
                .collect::<HashSet<_>>()
                .len(),
            all.len()
        );
        let genera: HashSet<&str> = town::SPECIES
            .iter()
            .map(|species| species.genus)
            .chain(["unknown"])
            .collect();
        for row in &all {
            let lines: Vec<(&str, &str)> = row
                .completion
                .lines()
                .map(|line| line.split_once(": ").unwrap())
                .collect();
            let keys: Vec<&str> = lines.iter().map(|(key, _)| *key).collect();
            assert_eq!(keys, ["Species", "Street", "Problem", "Urgency"]);
            assert!(genera.contains(lines[0].1));
            assert!(town::STREETS.iter().any(|street| street.name == lines[1].1));
            let problem = PROBLEMS
                .iter()
                .find(|problem| problem.label == lines[2].1)
                .unwrap();
            assert!(["high", problem.calm_urgency].contains(&lines[3].1));
            assert!(
                !row.prompt.contains(['{', '}', '[', ']', '<', '>', '|']),
                "{}",
                row.prompt
            );
        }
        let labels: HashSet<&str> = all.iter().map(|row| row.problem).collect();
        assert_eq!(labels.len(), PROBLEMS.len());
    }

    /// The committed files are what the generator writes.
    #[test]
    fn the_committed_files_are_current() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../city-trees");
        let (train, eval) = rows(7, TRAIN_ROWS, EVAL_ROWS).unwrap();
        for (file, rows) in [("train.jsonl", &train), ("eval.jsonl", &eval)] {
            let text = fs_err::read_to_string(folder.join(file)).unwrap();
            assert_eq!(text.lines().count(), rows.len(), "{file}");
            for (line, row) in text.lines().zip(rows) {
                let stored: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(stored["prompt"], row.prompt.as_str(), "{file}");
                assert_eq!(stored["completion"], row.completion.as_str(), "{file}");
            }
        }
        let stored = fs_err::read_to_string(folder.join("README.md")).unwrap();
        assert_eq!(stored, card::text(7, &train, &eval));
    }
}
