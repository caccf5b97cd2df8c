//! The English lexicon: nouns with articles and plurals, people, streets, times, activities.
//!
//! Forms of a noun: `a`, `the`, `n` (bare), `pl`, `thepl`; `j` after one of these puts the noun's
//! adjective in between, and the article follows the word it stands before (`an old dog`). `your`, `my`
//! and the like are written in the template before `n`.

use std::collections::HashMap;

use crate::dice::Dice;
use crate::grammar::Lexicon;
use crate::names::{self, LAST, MEN, Street, WOMEN, word};

/// Nouns: category, then singular and plural (`_` for a space), and for trees the genus.
const NOUNS: &str = include_str!("lexicon_en_nouns.txt");
/// Verb phrases: base, third person, past, participle, -ing | objects.
const ACTS: &str = include_str!("lexicon_en_acts.txt");

/// A noun as listed.
#[derive(Debug, Clone)]
pub struct Noun {
    singular: String,
    plural: String,
    latin: String,
    adjective: String,
}

/// A named person.
#[derive(Debug, Clone)]
pub struct Person {
    first: &'static str,
    last: &'static str,
    full: String,
    female: bool,
    job: &'static str,
}

/// A verb phrase: *waters the flowers*.
#[derive(Debug, Clone)]
pub struct Act {
    /// Base, third person, past, participle, -ing.
    verb: [String; 5],
    rest: String,
}

/// Anything a slot can stand for.
#[derive(Debug, Clone)]
pub enum Value {
    /// A noun with the adjective it keeps.
    Noun(Noun),
    /// A person.
    Person(Person),
    /// A street with an English or a German name.
    Street(Street),
    /// A verb phrase.
    Act(Act),
    /// A word without forms.
    Plain(String),
}

/// The English lexicon.
#[derive(Debug)]
pub struct English {
    nouns: HashMap<String, Vec<Noun>>,
    adjectives: HashMap<String, Vec<String>>,
    acts: HashMap<String, Vec<Act>>,
}

const ENGLISH_WOMEN: &str = "Alice Amy Beth Daisy Ellie Emily Grace Holly Isla Ivy Jane Kate Lucy Mary \
    Molly Nancy Olive Poppy Rachel Rose Ruby Ruth Sally Susan Violet Zoe Priya Aisha Fiona Megan Joan Dora";
const ENGLISH_MEN: &str = "Adam Alfie Arthur Charlie Dan Edward Frank Freddie George Harry Henry Jack Jim \
    Joe John Leo Luke Mark Max Nathan Oliver Patrick Peter Ralph Ravi Sam Toby Tom Victor William Hassan Ken";
const ENGLISH_LAST: &str = "Baker Bell Bennett Brown Carter Clark Cole Cooper Davies Evans Fisher Foster \
    Gray Green Hall Harris Hill Hughes Hunter Jackson Johnson Jones Kelly King Lee Lewis Marsh Mason Miller \
    Moore Morgan Murphy Palmer Parker Patel Phillips Reed Roberts Scott Shaw Singh Smith Stone Taylor Turner \
    Walker Ward Watson White Wilson Wood Wright Young Khan";
const STEMS: &str = "Mill Station Church Chestnut Oak Maple Elm Ash Birch Cherry Willow Lime Poplar Hazel \
    Rose Garden Orchard Meadow Field Hill River Bridge Brook Spring Well Market School College Castle Abbey \
    Priory Park Queen's King's Prince Victoria Albert George North South East West High Low Long Broad New \
    Old Upper Lower Green Blue Red Silver Gold Stone Brick Chapel Bell Tower Gate Wall Ferry Harbour Lake \
    Pond Fox Hare Deer Swan Robin Heron Raven Falcon Badger Bee Honey Barley Wheat Apple Pear Plum Walnut \
    Holly Ivy Fern Heather Clover Sunny Windmill Forge Weaver Potter Carter Baker Fisher Shepherd Miller";
const KINDS: &str = "Street Street Street Road Road Road Lane Lane Avenue Avenue Close Square Hill Way \
    Gardens Row Terrace Drive Crescent Court";
const JOBS: &str = "teacher gardener beekeeper baker librarian nurse musician engineer painter electrician \
    student pharmacist journalist tailor carpenter cook caretaker optician architect artist farmer florist";
const WEEKDAYS: &str = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday";
const MONTHS: &str =
    "January February March April May June July August September October November December";
const NUMBERS: &str = "two three four five six seven eight nine ten eleven twelve";
const ORDINALS: &str = "first second third fourth fifth sixth seventh eighth ninth tenth";

impl English {
    /// Reads the word lists.
    pub fn new() -> Self {
        let mut nouns: HashMap<String, Vec<Noun>> = HashMap::new();
        let mut adjectives: HashMap<String, Vec<String>> = HashMap::new();
        let mut category = "";
        for line in NOUNS
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            if let Some(head) = line.strip_prefix("== ") {
                let (name, list) = head.split_once(':').unwrap_or((head, ""));
                category = name.trim();
                adjectives.insert(
                    category.to_owned(),
                    list.split_whitespace().map(str::to_owned).collect(),
                );
                continue;
            }
            let mut words = line.split_whitespace().map(|word| word.replace('_', " "));
            let mut next = || words.next().unwrap_or_default();
            nouns.entry(category.to_owned()).or_default().push(Noun {
                singular: next(),
                plural: next(),
                latin: next(),
                adjective: String::new(),
            });
        }
        let mut acts: HashMap<String, Vec<Act>> = HashMap::new();
        for line in ACTS
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            if let Some(head) = line.strip_prefix("== ") {
                category = head.trim();
                continue;
            }
            let (verb, rests) = line.split_once('|').unwrap_or((line, ""));
            let mut forms = verb.split_whitespace().map(str::to_owned);
            let verb: [String; 5] = std::array::from_fn(|_| forms.next().unwrap_or_default());
            for rest in rests.split('/') {
                acts.entry(category.to_owned()).or_default().push(Act {
                    verb: verb.clone(),
                    rest: rest.trim().to_owned(),
                });
            }
        }
        Self {
            nouns,
            adjectives,
            acts,
        }
    }
}

impl Default for English {
    fn default() -> Self {
        Self::new()
    }
}

fn street(dice: &mut Dice) -> Street {
    if dice.chance(70) {
        return Street::draw(dice);
    }
    let kind = word(KINDS, dice);
    let stem = word(STEMS, dice);
    let mut street = Street::named(format!("{stem} {kind}"), 'f');
    street.at = false;
    street
}

impl Lexicon for English {
    type Value = Value;

    fn draw(&self, category: &str, dice: &mut Dice) -> Option<Value> {
        if let Some(list) = self.nouns.get(category) {
            let mut noun = dice.pick(list).clone();
            if let Some(adjectives) = self
                .adjectives
                .get(category)
                .filter(|list| !list.is_empty())
            {
                noun.adjective.clone_from(dice.pick(adjectives));
            }
            return Some(Value::Noun(noun));
        }
        if let Some(list) = self.acts.get(category) {
            return Some(Value::Act(dice.pick(list).clone()));
        }
        let plain = |text: String| Some(Value::Plain(text));
        match category {
            "p" => {
                let female = dice.chance(50);
                let english = dice.chance(65);
                let first = match (english, female) {
                    (true, true) => word(ENGLISH_WOMEN, dice),
                    (true, false) => word(ENGLISH_MEN, dice),
                    (false, true) => word(WOMEN, dice),
                    (false, false) => word(MEN, dice),
                };
                let last = word(if english { ENGLISH_LAST } else { LAST }, dice);
                let full = format!("{first} {last}");
                Some(Value::Person(Person {
                    first,
                    last,
                    full,
                    female,
                    job: word(JOBS, dice),
                }))
            }
            "street" => Some(Value::Street(street(dice))),
            "town" => plain(if dice.chance(40) {
                names::town(dice)
            } else {
                english_town(dice)
            }),
            "day" => plain(word(WEEKDAYS, dice).to_owned()),
            "month" => plain(word(MONTHS, dice).to_owned()),
            "date" => plain(format!("{} {}", dice.between(1, 28), word(MONTHS, dice))),
            "num" => plain(word(NUMBERS, dice).to_owned()),
            "ord" => plain(word(ORDINALS, dice).to_owned()),
            "nr" => plain(dice.between(1, 140).to_string()),
            "line" => plain(dice.between(1, 60).to_string()),
            "small" | "cool" => plain(dice.between(2, 9).to_string()),
            "gram" => plain((dice.between(2, 20) * 25).to_string()),
            "age" => plain(dice.between(24, 88).to_string()),
            "kidage" => plain(word("six seven eight nine ten eleven twelve", dice).to_owned()),
            "year" => plain(dice.between(1890, 2019).to_string()),
            "people" => plain(format!("{},000", dice.between(3, 90))),
            "temp" => plain(dice.between(10, 33).to_string()),
            "percent" => plain((dice.between(1, 9) * 10).to_string()),
            "metre" => plain(dice.between(4, 30).to_string()),
            "price" => plain(format!(
                "{}.{}0 euros",
                dice.between(1, 19),
                dice.between(1, 9)
            )),
            "clock" => plain(
                dice.pick(&[
                    "eight o'clock",
                    "half past eight",
                    "nine o'clock",
                    "quarter past nine",
                    "ten o'clock",
                    "half past ten",
                    "eleven o'clock",
                    "noon",
                    "one o'clock",
                    "two o'clock",
                    "half past two",
                    "three o'clock",
                    "quarter to four",
                    "four o'clock",
                    "five o'clock",
                    "half past five",
                    "six o'clock",
                    "seven o'clock",
                    "half past seven",
                    "9.15",
                    "10.30",
                    "14.45",
                    "16.20",
                ])
                .to_string(),
            ),
            "am" => plain(format!("{} a.m.", dice.between(7, 11))),
            "pm" => plain(format!("{} p.m.", dice.between(1, 8))),
            _ => None,
        }
    }

    fn key<'v>(&self, value: &'v Value) -> &'v str {
        match value {
            Value::Noun(noun) => &noun.singular,
            Value::Person(person) => person.first,
            Value::Street(street) => &street.name,
            Value::Act(act) => &act.rest,
            Value::Plain(text) => text,
        }
    }

    fn render(&self, value: &Value, forms: &[String], dice: &mut Dice) -> Option<String> {
        let form = forms.first().map_or("", String::as_str);
        match value {
            Value::Noun(noun) => noun.render(form, forms.get(1).is_some_and(|form| form == "j")),
            Value::Person(person) => person.render(form),
            Value::Street(street) if form == "kurz" => Some(street.scribbled(dice)),
            Value::Street(street) => street.english(if form.is_empty() { "n" } else { form }),
            Value::Act(act) => act.render(form),
            Value::Plain(text) => forms.is_empty().then(|| text.clone()),
        }
    }
}

fn english_town(dice: &mut Dice) -> String {
    const HEADS: &str = "Ash Oak Elm Birch Hazel Thorn Fern Brook Mill Stone Bridge Marl Win Har Nor Wes Kings \
        Bishop Fair Green Red White Black Ravens Fox Swan Otter Clay Sand Rose Apple Long";
    const TAILS: &str =
        "ford ton ham bury field wick worth dale stead bridge mouth combe ley minster well";
    format!("{}{}", word(HEADS, dice), word(TAILS, dice))
}

/// *a* or *an*, by the sound that follows.
fn article(next: &str) -> &'static str {
    let silent = next.starts_with("hour") || next.starts_with("honest");
    let you = ["uni", "use", "eu", "one"]
        .iter()
        .any(|start| next.starts_with(start));
    if silent || (next.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']) && !you) {
        "an"
    } else {
        "a"
    }
}

impl Noun {
    /// A noun that makes its plural with `s`, with its adjective.
    pub fn listed(singular: &str, adjective: &str) -> Self {
        Self {
            singular: singular.to_owned(),
            plural: format!("{singular}s"),
            latin: String::new(),
            adjective: adjective.to_owned(),
        }
    }

    fn render(&self, form: &str, with_adjective: bool) -> Option<String> {
        let (word, determiner) = match form {
            "" | "n" => (&self.singular, ""),
            "a" => (&self.singular, "a"),
            "the" => (&self.singular, "the"),
            "pl" => (&self.plural, ""),
            "thepl" => (&self.plural, "the"),
            "latin" => return (!self.latin.is_empty()).then(|| self.latin.clone()),
            _ => return None,
        };
        let phrase = if with_adjective && !self.adjective.is_empty() {
            format!("{} {word}", self.adjective)
        } else {
            word.clone()
        };
        Some(match determiner {
            "" => phrase,
            "a" => format!("{} {phrase}", article(&phrase)),
            _ => format!("the {phrase}"),
        })
    }
}

impl Person {
    fn render(&self, form: &str) -> Option<String> {
        let by = |man: &str, woman: &str| Some(if self.female { woman } else { man }.to_owned());
        match form {
            "" => Some(self.first.to_owned()),
            "gen" => Some(format!("{}'s", self.first)),
            "full" => Some(self.full.clone()),
            "last" => Some(self.last.to_owned()),
            "mr" => by(&format!("Mr {}", self.last), &format!("Mrs {}", self.last)),
            "he" => by("he", "she"),
            "him" => by("him", "her"),
            "his" => by("his", "her"),
            "job" => Some(self.job.to_owned()),
            "ajob" => Some(format!("{} {}", article(self.job), self.job)),
            _ => None,
        }
    }
}

impl Act {
    fn render(&self, form: &str) -> Option<String> {
        let index = ["base", "s", "past", "part", "ing"]
            .iter()
            .position(|&name| name == form)?;
        Some(
            format!("{} {}", self.verb[index], self.rest)
                .trim_end()
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Noun, article};

    #[test]
    fn articles_follow_the_next_word() {
        assert_eq!(article("oak"), "an");
        assert_eq!(article("old dog"), "an");
        assert_eq!(article("hour"), "an");
        assert_eq!(article("uniform"), "a");
        assert_eq!(article("beech"), "a");
        let owl = Noun::listed("owl", "big");
        assert_eq!(owl.render("a", true).as_deref(), Some("a big owl"));
        assert_eq!(owl.render("a", false).as_deref(), Some("an owl"));
        assert_eq!(owl.render("thepl", true).as_deref(), Some("the big owls"));
        assert_eq!(owl.render("latin", false), None);
    }
}
