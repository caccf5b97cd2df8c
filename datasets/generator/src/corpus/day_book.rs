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
                let message = scribble(message, dice);
                page.extend([CHAT, "\n", &message, ANSWER, answer]);
            }
            None => page.push_str(&entry),
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::ANSWER;
    use crate::city_trees::town::STREETS;
    use crate::corpus::Writer;
    use crate::dice::Dice;

    #[test]
    fn pages_answer_with_the_street_on_the_sign() {
        let writer = Writer::new().unwrap();
        let mut dice = Dice::new(5, "day book");
        let (mut entries, mut of_the_town, mut spelt_otherwise) = (0, 0, 0);
        for _ in 0..200 {
            let page = super::draw(&writer.german, &writer.german_words, ('„', '“'), &mut dice);
            for entry in page.unwrap().split("<|user|>\n").skip(1) {
                let (message, answer) = entry.split_once(ANSWER).unwrap();
                let street = answer.trim().trim_end_matches("</s>");
                let street = street.rsplit(": ").next().unwrap();
                entries += 1;
                of_the_town += usize::from(STREETS.iter().any(|known| known.name == street));
                spelt_otherwise += usize::from(!message.contains(street));
            }
        }
        assert!(entries >= 300, "{entries}");
        assert!(of_the_town * 3 > entries, "{of_the_town} of {entries}");
        assert!(
            spelt_otherwise * 4 > entries,
            "{spelt_otherwise} of {entries}"
        );
    }
}
