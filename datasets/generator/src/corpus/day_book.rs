//! A page of a clerk's day book: what residents wrote, spelt as they typed it, and the street as on its sign.
//!
//! From these pages a small model learns which streets there are, and to know one again behind `goethestr.`
//! and swapped letters. It is the skill that filling in a record needs, without the record.

use super::{CHAT, FEWEST_WORDS};
use crate::city_trees::noise::scribble;
use crate::dice::Dice;
use crate::error::Error;
use crate::grammar::{Grammar, Lexicon, capitalise};

/// Between what is written and what is answered.
const ANSWER: &str = "</s>\n<|assistant|>";

/// One page: entries until it has [`FEWEST_WORDS`] words.
pub(super) fn draw<L: Lexicon>(
    grammar: &Grammar,
    lexicon: &L,
    quotes: (char, char),
    dice: &mut Dice,
) -> Result<String, Error> {
    let mut page = String::new();
    while page.split_whitespace().count() < FEWEST_WORDS {
        let entry = grammar.expand("filed", lexicon, dice)?.text;
        let entry = capitalise(entry.trim_start(), quotes.0, quotes.1);
        let message = entry.strip_prefix(CHAT).map(str::trim_start);
        match message.and_then(|rest| rest.split_once(ANSWER)) {
            Some((message, answer)) => {
                page.push_str(&format!(
                    "{CHAT}\n{}{ANSWER}{answer}",
                    scribble(message, dice)
                ));
            }
            None => page.push_str(&entry),
        }
    }
    Ok(page)
}
