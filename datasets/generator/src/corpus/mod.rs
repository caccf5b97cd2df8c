//! The text that the base model *sprout* learns to write from.
//!
//! A document is one expansion of a grammar: a small story, a description, a town hall's notice, a letter,
//! a weather report, a beekeeper's diary, a recipe, a dialogue, a passage with questions, or a chat. The
//! grammars are the text files beside this one; half of the documents are German, half English. About a
//! quarter ask for something that stands in the passage, since a small model has to be taught to copy; and
//! some are a list that is read out twice ([`roll_call`]), where nothing but copying helps, or a clerk's day
//! book ([`day_book`]), where a misspelt street has to be given its right name. The town is the one of
//! city-trees, so its sixty streets are words this model knows; none of that data set's messages is in here.

use std::collections::HashSet;
use std::path::Path;

use crate::dice::Dice;
use crate::error::Error;
use crate::grammar::{Grammar, Lexicon, capitalise};
use crate::lexicon_de::German;
use crate::lexicon_en::English;
use crate::rows;

mod day_book;
mod roll_call;

const GERMAN: [(&str, &str); 5] = [
    ("de_common.txt", include_str!("de_common.txt")),
    ("de_stories.txt", include_str!("de_stories.txt")),
    ("de_nature.txt", include_str!("de_nature.txt")),
    ("de_town.txt", include_str!("de_town.txt")),
    ("de_questions.txt", include_str!("de_questions.txt")),
];
const ENGLISH: [(&str, &str); 5] = [
    ("en_common.txt", include_str!("en_common.txt")),
    ("en_stories.txt", include_str!("en_stories.txt")),
    ("en_nature.txt", include_str!("en_nature.txt")),
    ("en_town.txt", include_str!("en_town.txt")),
    ("en_questions.txt", include_str!("en_questions.txt")),
];

/// A document is joined from expansions until it has this many words.
const FEWEST_WORDS: usize = 40;
/// Documents of a hundred that are a list read out twice.
const ROLL_CALLS: usize = 10;
/// Documents of a hundred that are a page of the day book.
const DAY_BOOKS: usize = 25;
/// What a chat begins with.
const CHAT: &str = "<|user|>";
/// Longer documents are thrown away.
const MOST_WORDS: usize = 400;

/// Writes documents in both languages.
#[derive(Debug)]
pub struct Writer {
    german: Grammar,
    english: Grammar,
    german_words: German,
    english_words: English,
}

impl Writer {
    /// Parses the grammars and word lists.
    pub fn new() -> Result<Self, Error> {
        let writer = Self {
            german: Grammar::parse(&GERMAN)?,
            english: Grammar::parse(&ENGLISH)?,
            german_words: German::new(),
            english_words: English::new(),
        };
        writer.german.check_slots(&writer.german_words)?;
        writer.english.check_slots(&writer.english_words)?;
        Ok(writer)
    }

    /// One document, German or English with even chances.
    pub fn document(&self, dice: &mut Dice) -> Result<String, Error> {
        if dice.chance(ROLL_CALLS) {
            return Ok(roll_call::draw(dice));
        }
        if dice.chance(DAY_BOOKS) {
            return if dice.chance(50) {
                day_book::draw(&self.german, &self.german_words, ('„', '“'), dice)
            } else {
                day_book::draw(&self.english, &self.english_words, ('“', '”'), dice)
            };
        }
        loop {
            let text = if dice.chance(50) {
                one(&self.german, &self.german_words, ('„', '“'), dice)?
            } else {
                one(&self.english, &self.english_words, ('“', '”'), dice)?
            };
            if text.split_whitespace().count() <= MOST_WORDS {
                return Ok(text);
            }
        }
    }
}

/// One document of one language; a short one is followed by others until it is long enough.
fn one<L: Lexicon>(
    grammar: &Grammar,
    lexicon: &L,
    quotes: (char, char),
    dice: &mut Dice,
) -> Result<String, Error> {
    let mut text = String::new();
    while text.split_whitespace().count() < FEWEST_WORDS {
        // A chat goes on as a chat; other documents stand apart by a blank line.
        let chat = text.starts_with(CHAT);
        let raw = grammar
            .expand(if chat { "chat" } else { "doc" }, lexicon, dice)?
            .text;
        if !text.is_empty() && !chat {
            if raw.starts_with(CHAT) {
                continue;
            }
            text.push_str("\n\n");
        }
        text.push_str(&capitalise(raw.trim_start(), quotes.0, quotes.1));
    }
    Ok(text)
}

/// Writes `train.jsonl` of about `megabytes` MB (10^6 bytes of text) and `eval.jsonl` of a hundredth of
/// that to `folder`. No document stands in both, and none twice.
pub fn write(folder: &Path, seed: u64, megabytes: usize) -> Result<(), Error> {
    let writer = Writer::new()?;
    fs_err::create_dir_all(folder)?;
    let mut seen = HashSet::new();
    let parts = [
        ("eval.jsonl", "corpus/eval", megabytes * 10_000),
        ("train.jsonl", "corpus/train", megabytes * 1_000_000),
    ];
    for (file, stream, bytes) in parts {
        let mut dice = Dice::new(seed, stream);
        rows::write_with(&folder.join(file), |out| {
            let mut written = 0;
            let mut tries = 0;
            let mut rows = 0;
            while written < bytes {
                tries += 1;
                let text = writer.document(&mut dice)?;
                if seen.insert(text.clone()) {
                    written += text.len();
                    rows += 1;
                    rows::write_row(out, &[("text", &text)])?;
                } else if tries > 2 * rows + 1000 {
                    return Err(Error::TooFew {
                        tries,
                        found: rows,
                        wanted: rows + 1,
                    });
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{CHAT, FEWEST_WORDS, MOST_WORDS, Writer, write};
    use crate::dice::Dice;
    use crate::rows;

    #[test]
    fn documents_are_whole_and_of_every_kind() {
        let writer = Writer::new().unwrap();
        let mut dice = Dice::new(3, "test");
        let documents: Vec<String> = (0..3000)
            .map(|_| writer.document(&mut dice).unwrap())
            .collect();
        let mut roll_calls = 0;
        for text in &documents {
            let words = text.split_whitespace().count();
            assert!(words <= MOST_WORDS, "{words} words: {text}");
            let list = |line: &str| line.split_once(": ").map(|(_, list)| list.to_owned());
            let twice = text.split_once('\n').is_some_and(|(first, second)| {
                list(first).is_some() && list(first) == list(second)
            });
            if twice {
                roll_calls += 1;
                continue;
            }
            assert!(
                (FEWEST_WORDS..=MOST_WORDS).contains(&words),
                "{words} words: {text}"
            );
            assert!(!text.contains(['{', '}', '[', ']']), "{text}");
            assert!(!text.contains("  ") && !text.contains(" ,"), "{text}");
            let turns = text.matches("<|user|>").count() + text.matches("<|assistant|>").count();
            assert_eq!(turns, text.matches("</s>\n").count(), "{text}");
            assert_eq!(turns > 0, text.starts_with(CHAT), "{text}");
        }
        let share = |what: &dyn Fn(&String) -> bool| {
            documents.iter().filter(|text| what(text)).count() * 100 / documents.len()
        };
        let german =
            share(&|text| text.contains(" und ") || text.contains(" der ") || text.contains("ä"));
        assert!((35..=65).contains(&german), "{german} % German");
        let asking = share(&|text| text.contains("Frage: ") || text.contains("Question: "));
        assert!((12..=32).contains(&asking), "{asking} % with questions");
        assert!((220..=380).contains(&roll_calls), "{roll_calls} roll calls");
        let chats = share(&|text| text.starts_with(CHAT));
        assert!((24..=40).contains(&chats), "{chats} % chats");
        let distinct: HashSet<&String> = documents.iter().collect();
        assert!(distinct.len() * 100 > documents.len() * 99);
    }

    #[test]
    fn held_out_text_is_not_trained_on_and_a_seed_repeats() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write(&one, 1, 1).unwrap();
        write(&two, 1, 1).unwrap();
        let train = rows::read_texts(&one.join("train.jsonl")).unwrap();
        let eval = rows::read_texts(&one.join("eval.jsonl")).unwrap();
        assert!(!eval.is_empty());
        let known: HashSet<&String> = train.iter().collect();
        assert_eq!(known.len(), train.len());
        assert!(eval.iter().all(|text| !known.contains(text)));
        assert_eq!(train, rows::read_texts(&two.join("train.jsonl")).unwrap());
    }
}
