//! Spelling as people type it on a telephone.
//!
//! Each kind of carelessness strikes a message or spares it as a whole: a keyboard without umlauts, no
//! capitals, `str.` for `straße`, no full stops. Typing errors strike single long words; short ones and
//! numbers are left alone, since a letter less would make an *Eiche* of an *Esche*.

use crate::dice::Dice;

/// Words shorter than this are never mistyped.
const SHORTEST_MISTYPED: usize = 7;

/// The message as it might have been typed.
pub fn scribble(text: &str, dice: &mut Dice) -> String {
    let mut text = text.to_owned();
    if dice.chance(28) {
        let short = *dice.pick(&["str.", "str", "str."]);
        let tall = short.replacen('s', "S", 1);
        text = text.replace("straße", short).replace("Straße", &tall);
    }
    if dice.chance(15) {
        for (full, short) in [
            ("platz", "pl."),
            ("Hausnummer", "Hnr."),
            ("Nummer", "Nr."),
            ("number", "no."),
        ] {
            text = text.replace(full, short);
        }
    }
    // An abbreviation at the end of a sentence does not double its full stop.
    text = text.replace("..", ".");
    if dice.chance(35) {
        text = mistype(&text, dice);
    }
    match dice.below(100) {
        0..20 => text = spell_out(&text),
        20..27 => text = drop_dots(&text),
        27..35 => text = text.replace('ß', "ss"),
        _ => {}
    }
    if dice.chance(18) {
        text = text.to_lowercase();
    } else if dice.chance(2) {
        text = text.to_uppercase();
    }
    match dice.below(100) {
        0..6 => text = text.replace([',', '!'], ""),
        6..10 => text = text.replace(". ", " "),
        10..15 => text = text.replace(". ", "! "),
        15..19 => text = text.replace(". ", "... "),
        19..25 => text = text.replace(", ", ",\n"),
        25..29 => text = text.trim_end_matches('.').to_owned(),
        _ => {}
    }
    text
}

/// Umlauts as two letters.
fn spell_out(text: &str) -> String {
    let pairs = [
        ("ä", "ae"),
        ("ö", "oe"),
        ("ü", "ue"),
        ("Ä", "Ae"),
        ("Ö", "Oe"),
        ("Ü", "Ue"),
        ("ß", "ss"),
    ];
    pairs
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Umlauts without their dots.
fn drop_dots(text: &str) -> String {
    let pairs = [
        ("ä", "a"),
        ("ö", "o"),
        ("ü", "u"),
        ("Ä", "A"),
        ("Ö", "O"),
        ("Ü", "U"),
        ("ß", "s"),
    ];
    pairs
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// One to three words with a letter swapped, lost or doubled.
fn mistype(text: &str, dice: &mut Dice) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let long: Vec<usize> = (0..words.len())
        .filter(|&index| {
            words[index].chars().filter(|c| c.is_alphabetic()).count() >= SHORTEST_MISTYPED
        })
        .collect();
    if long.is_empty() {
        return text.to_owned();
    }
    let mut struck = Vec::new();
    for _ in 0..dice.between(1, 3) {
        let index = *dice.pick(&long);
        if struck.contains(&index) {
            continue;
        }
        struck.push(index);
        let mut letters: Vec<char> = words[index].chars().collect();
        // Neither the first letter nor the last: those are what a reader holds on to.
        let at = dice.between(1, letters.len() - 3);
        if !(letters[at].is_alphabetic() && letters[at + 1].is_alphabetic()) {
            continue;
        }
        match dice.below(3) {
            0 => letters.swap(at, at + 1),
            1 => drop(letters.remove(at)),
            _ => letters.insert(at, letters[at]),
        }
        words[index] = letters.into_iter().collect();
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{drop_dots, mistype, spell_out};
    use crate::dice::Dice;

    #[test]
    fn umlauts_are_spelt_out_or_dropped() {
        assert_eq!(spell_out("Mühlenstraße Öl"), "Muehlenstrasse Oel");
        assert_eq!(drop_dots("Mühlenstraße"), "Muhlenstrase");
    }

    #[test]
    fn short_words_and_numbers_are_never_mistyped() {
        let mut dice = Dice::new(1, "noise");
        for _ in 0..200 {
            assert_eq!(
                mistype("die Esche 12345678 ist tot", &mut dice),
                "die Esche 12345678 ist tot"
            );
        }
        assert!((0..20).any(|_| mistype("Rosskastanie", &mut dice) != "Rosskastanie"));
    }
}
