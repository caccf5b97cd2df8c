//! A list that is read out twice.
//!
//! The second time every entry stands in the text already, and nothing else says which comes next. From
//! such documents even a small model learns to find a word again and to go on from there, long before the
//! few names in stories would teach it that (Olsson et al., In-context Learning and Induction Heads,
//! 2022).

use crate::dice::Dice;
use crate::names::{self, LAST, MEN, Street, WOMEN};

/// Before the first reading, before the second.
const GERMAN: [(&str, &str); 6] = [
    ("Auf der Liste stehen", "Zur Kontrolle noch einmal"),
    ("Anwesend sind", "Im Protokoll steht"),
    ("Zu prüfen sind", "Geprüft wurden"),
    ("Frau Lange liest vor", "Herr Kuhn schreibt mit"),
    ("Bestellt waren", "Geliefert wurden"),
    ("Die Runde beginnt so", "Auch am nächsten Tag"),
];
const ENGLISH: [(&str, &str); 6] = [
    ("The list says", "To be sure, once more"),
    ("Present are", "The minutes say"),
    ("To be checked", "Checked so far"),
    ("Mrs Wood reads out", "Mr Reed writes down"),
    ("Ordered were", "Delivered were"),
    ("The round begins like this", "The next day it is the same"),
];

/// One such document.
pub(super) fn draw(dice: &mut Dice) -> String {
    let german = dice.chance(50);
    let (first, second) = *dice.pick(if german { &GERMAN } else { &ENGLISH });
    let kind = dice.below(5);
    let count = dice.between(12, 24);
    let entries: Vec<String> = (0..count).map(|_| entry(kind, dice)).collect();
    let list = entries.join(", ");
    format!("{first}: {list}.\n{second}: {list}.")
}

/// A street, a person, a town with a number, the number of a tree, or any of them.
fn entry(kind: usize, dice: &mut Dice) -> String {
    match kind {
        0 => Street::draw(dice).name,
        1 => {
            let first = if dice.chance(50) { WOMEN } else { MEN };
            format!("{} {}", names::word(first, dice), names::word(LAST, dice))
        }
        2 => format!("{} {}", names::town(dice), dice.between(1, 99)),
        3 => {
            let letters = ["A", "B", "C", "D", "E", "K", "L", "M", "R", "S", "T", "W"];
            format!("{}{}", dice.pick(&letters), dice.between(100, 999))
        }
        _ => {
            let kind = dice.below(4);
            entry(kind, dice)
        }
    }
}
