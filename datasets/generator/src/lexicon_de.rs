//! The German lexicon: nouns that bend by gender, case and number, people, streets, times, activities.
//!
//! Forms of a noun are named after the masculine article, whatever the gender: `{tree1.den}` is *den
//! Ahorn* or *die Linde*. A determiner may be `der`, `dieser`, `jeder`, `ein`, `kein`, `mein`, `dein`,
//! `sein`, `ihr`, `unser` with the masculine ending of the case (`einem` is dative); `-`, `-es`, `-em`,
//! `-en` give the ending alone, for a possessive written before the slot. `nom`, `gen`, `dat`, `acc` take
//! no article. `pl` before one of these gives the plural, `a` after it puts the noun's adjective in
//! between. `er`, `ihn`, `ihm` are its pronouns, `rel`, `reln`, `relm` its relative pronouns.

use std::collections::HashMap;

use crate::dice::Dice;
use crate::grammar::Lexicon;
use crate::names::{self, LAST, MEN, Street, WOMEN, word};

/// Nouns: category, then gender, nominative, genitive, plural (`-` for none), and for trees the genus.
const NOUNS: &str = include_str!("lexicon_de_nouns.txt");
/// Verb phrases: category, infinitive, present, past, participle, auxiliary | objects | prefix.
const ACTS: &str = include_str!("lexicon_de_acts.txt");

/// A noun as listed.
#[derive(Debug, Clone)]
pub struct Noun {
    gender: char,
    nominative: String,
    genitive: String,
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
    job: (&'static str, &'static str),
}

/// A verb phrase: *gießt … die Blumen*.
#[derive(Debug, Clone)]
pub struct Act {
    infinitive: String,
    present: String,
    past: String,
    participle: String,
    auxiliary: String,
    rest: String,
    prefix: String,
}

/// Anything a slot can stand for.
#[derive(Debug, Clone)]
pub enum Value {
    /// A noun with the adjective it keeps.
    Noun(Noun),
    /// A person.
    Person(Person),
    /// A street.
    Street(Street),
    /// A verb phrase.
    Act(Act),
    /// A word without forms.
    Plain(String),
}

/// The German lexicon.
#[derive(Debug)]
pub struct German {
    nouns: HashMap<String, Vec<Noun>>,
    adjectives: HashMap<String, Vec<String>>,
    acts: HashMap<String, Vec<Act>>,
}

const JOBS: [(&str, &str); 24] = [
    ("Lehrer", "Lehrerin"),
    ("Gärtner", "Gärtnerin"),
    ("Imker", "Imkerin"),
    ("Bäcker", "Bäckerin"),
    ("Busfahrer", "Busfahrerin"),
    ("Bibliothekar", "Bibliothekarin"),
    ("Verkäufer", "Verkäuferin"),
    ("Tischler", "Tischlerin"),
    ("Pfleger", "Pflegerin"),
    ("Musiker", "Musikerin"),
    ("Postbote", "Postbotin"),
    ("Ingenieur", "Ingenieurin"),
    ("Maler", "Malerin"),
    ("Elektriker", "Elektrikerin"),
    ("Förster", "Försterin"),
    ("Student", "Studentin"),
    ("Rentner", "Rentnerin"),
    ("Apotheker", "Apothekerin"),
    ("Journalist", "Journalistin"),
    ("Schneider", "Schneiderin"),
    ("Polizist", "Polizistin"),
    ("Baumpfleger", "Baumpflegerin"),
    ("Köchin", "Köchin"),
    ("Hausmeister", "Hausmeisterin"),
];
const WEEKDAYS: &str = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag";
const MONTHS: &str =
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember";
const NUMBERS: &str = "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf";
const ORDINALS: &str = "erste zweite dritte vierte fünfte sechste siebte achte neunte zehnte";
const CLOCK: &str = "acht_Uhr halb_acht neun_Uhr halb_neun Viertel_nach_neun zehn_Uhr halb_zehn elf_Uhr \
    halb_elf zwölf_Uhr ein_Uhr zwei_Uhr halb_drei drei_Uhr halb_vier vier_Uhr Viertel_vor_vier fünf_Uhr \
    halb_sechs sechs_Uhr sieben_Uhr halb_sieben 9:15_Uhr 10:30_Uhr 14:45_Uhr 16:20_Uhr 17:10_Uhr";

impl German {
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
            let mut words = line.split_whitespace().map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            nouns.entry(category.to_owned()).or_default().push(Noun {
                gender: next().chars().next().unwrap_or('m'),
                nominative: next(),
                genitive: next(),
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
            let mut parts = line.split('|').map(str::trim);
            let mut verb = parts
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned);
            let mut next = || verb.next().unwrap_or_default();
            let base = Act {
                infinitive: next(),
                present: next(),
                past: next(),
                participle: next(),
                auxiliary: next(),
                rest: String::new(),
                prefix: String::new(),
            };
            let rests = parts.next().unwrap_or_default();
            let prefix = parts.next().unwrap_or_default();
            for rest in rests.split('/') {
                acts.entry(category.to_owned()).or_default().push(Act {
                    rest: rest.trim().to_owned(),
                    prefix: prefix.to_owned(),
                    ..base.clone()
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

impl Default for German {
    fn default() -> Self {
        Self::new()
    }
}

impl Lexicon for German {
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
            "p" | "woman" | "man" => {
                let female = match category {
                    "woman" => true,
                    "man" => false,
                    _ => dice.chance(50),
                };
                let first = word(if female { WOMEN } else { MEN }, dice);
                let last = word(LAST, dice);
                let mut job = *dice.pick(&JOBS);
                if job.0 == "Köchin" {
                    job.0 = "Koch";
                }
                let full = format!("{first} {last}");
                Some(Value::Person(Person {
                    first,
                    last,
                    full,
                    female,
                    job,
                }))
            }
            "street" => Some(Value::Street(Street::draw(dice))),
            "town" => plain(names::town(dice)),
            "day" => plain(word(WEEKDAYS, dice).to_owned()),
            "month" => plain(word(MONTHS, dice).to_owned()),
            "date" => plain(format!("{}. {}", dice.between(1, 28), word(MONTHS, dice))),
            "num" => plain(word(NUMBERS, dice).to_owned()),
            "ord" => plain(word(ORDINALS, dice).to_owned()),
            "nr" => plain(dice.between(1, 140).to_string()),
            "line" => plain(dice.between(1, 60).to_string()),
            "small" | "cool" => plain(dice.between(2, 9).to_string()),
            "gram" => plain((dice.between(2, 20) * 25).to_string()),
            "age" => plain(dice.between(24, 88).to_string()),
            "kidage" => plain(word("sechs sieben acht neun zehn elf zwölf", dice).to_owned()),
            "year" => plain(dice.between(1890, 2019).to_string()),
            "people" => plain((dice.between(3, 90) * 1000).to_string()),
            "temp" => plain(dice.between(10, 33).to_string()),
            "percent" => plain((dice.between(1, 9) * 10).to_string()),
            "metre" => plain(dice.between(4, 30).to_string()),
            "price" => plain(format!(
                "{},{}0 Euro",
                dice.between(1, 19),
                dice.between(1, 9)
            )),
            "clock" => plain(word(CLOCK, dice).replace('_', " ")),
            "am" => plain(dice.between(7, 11).to_string()),
            "pm" => plain(dice.between(13, 19).to_string()),
            _ => None,
        }
    }

    fn key<'v>(&self, value: &'v Value) -> &'v str {
        match value {
            Value::Noun(noun) => &noun.nominative,
            Value::Person(person) => person.first,
            Value::Street(street) => &street.name,
            Value::Act(act) => &act.rest,
            Value::Plain(text) => text,
        }
    }

    fn render(&self, value: &Value, forms: &[String], dice: &mut Dice) -> Option<String> {
        let form = forms.first().map_or("", String::as_str);
        match value {
            Value::Noun(noun) => noun.render(forms),
            Value::Person(person) => person.render(form),
            Value::Street(street) if form == "kurz" => Some(street.scribbled(dice)),
            Value::Street(street) => street.german(if form.is_empty() { "n" } else { form }),
            Value::Act(act) => act.render(form),
            Value::Plain(text) => forms.is_empty().then(|| text.clone()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Nominative,
    Genitive,
    Dative,
    Accusative,
}

/// How much of the ending the determiner already shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strength {
    Weak,
    Mixed,
    Strong,
}

impl Noun {
    /// A noun from gender, nominative, genitive and plural, with the stem of its adjective.
    pub fn listed(forms: (&str, &str, &str, &str), adjective: &str) -> Self {
        let (gender, nominative, genitive, plural) = forms;
        Self {
            gender: gender.chars().next().unwrap_or('m'),
            nominative: nominative.to_owned(),
            genitive: genitive.to_owned(),
            plural: plural.to_owned(),
            latin: String::new(),
            adjective: adjective.to_owned(),
        }
    }

    fn render(&self, forms: &[String]) -> Option<String> {
        let plural = forms.first().is_some_and(|form| form == "pl");
        let mut rest = forms[usize::from(plural)..].iter().map(String::as_str);
        let form = rest.next().unwrap_or("nom");
        let (form, with_adjective) = match (form, rest.next()) {
            ("a", None) => ("nom", true),
            (form, Some("a")) => (form, true),
            (form, None) => (form, false),
            _ => return None,
        };
        let index = match self.gender {
            'm' => 0,
            'f' => 1,
            _ => 2,
        };
        let single = match form {
            "er" => Some(["er", "sie", "es"]),
            "ihn" => Some(["ihn", "sie", "es"]),
            "ihm" => Some(["ihm", "ihr", "ihm"]),
            "rel" => Some(["der", "die", "das"]),
            "reln" => Some(["den", "die", "das"]),
            "relm" => Some(["dem", "der", "dem"]),
            "poss" => Some(["sein", "ihr", "sein"]),
            "latin" => return (!self.latin.is_empty()).then(|| self.latin.clone()),
            _ => None,
        };
        if let Some(words) = single {
            return Some(words[index].to_owned());
        }
        let (determiner, case, strength) = Self::determiner(form, plural, index)?;
        let mut out = determiner;
        if with_adjective && !self.adjective.is_empty() {
            if !out.is_empty() || form.starts_with('-') {
                out.push(' ');
            }
            out.push_str(&self.adjective);
            out.push_str(adjective_ending(strength, case, plural, index));
        }
        // A bare ending still needs its space: `ihr` + `e Katze`, `sein` + ` Hund`.
        if !out.is_empty() || form.starts_with('-') {
            out.push(' ');
        }
        out.push_str(&self.bent(case, plural));
        Some(out)
    }

    /// The noun in case and number.
    fn bent(&self, case: Case, plural: bool) -> String {
        if plural {
            let dative_n = case == Case::Dative && !self.plural.ends_with(['n', 's']);
            return format!("{}{}", self.plural, if dative_n { "n" } else { "" });
        }
        // Nouns of the n-declension (des Nachbarn, dem Nachbarn) show it in the genitive.
        let weak =
            self.gender == 'm' && self.genitive.ends_with('n') && self.genitive != self.nominative;
        match case {
            Case::Genitive => self.genitive.clone(),
            Case::Dative | Case::Accusative if weak => self.genitive.clone(),
            _ => self.nominative.clone(),
        }
    }

    fn determiner(form: &str, plural: bool, gender: usize) -> Option<(String, Case, Strength)> {
        use Case::{Accusative, Dative, Genitive, Nominative};
        let column = if plural { 3 } else { gender };
        let bare = match form {
            "nom" => Some(Nominative),
            "gen" => Some(Genitive),
            "dat" => Some(Dative),
            "acc" => Some(Accusative),
            _ => None,
        };
        if let Some(case) = bare {
            return Some((String::new(), case, Strength::Strong));
        }
        let definite = |case: Case| -> &'static str {
            match case {
                Nominative => ["er", "ie", "as", "ie"][column],
                Genitive => ["es", "er", "es", "er"][column],
                Dative => ["em", "er", "em", "en"][column],
                Accusative => ["en", "ie", "as", "ie"][column],
            }
        };
        let case_of = |ending: &str| match ending {
            "er" | "" => Some(Nominative),
            "es" => Some(Genitive),
            "em" => Some(Dative),
            "en" => Some(Accusative),
            _ => None,
        };
        if let Some(ending) = form.strip_prefix('d').filter(|rest| rest.len() == 2) {
            let case = case_of(ending)?;
            return Some((format!("d{}", definite(case)), case, Strength::Weak));
        }
        for stem in ["dies", "jed", "jen"] {
            if let Some(ending) = form.strip_prefix(stem) {
                let case = case_of(ending)?;
                let ending = match definite(case) {
                    "ie" => "e",
                    "as" => "es",
                    other => other,
                };
                return Some((format!("{stem}{ending}"), case, Strength::Weak));
            }
        }
        for stem in ["kein", "mein", "dein", "sein", "ein", "ihr", "unser", "-"] {
            if let Some(ending) = form.strip_prefix(stem) {
                let case = case_of(ending)?;
                if plural && stem == "ein" {
                    return Some((String::new(), case, Strength::Strong));
                }
                let ending = match case {
                    Nominative => ["", "e", "", "e"][column],
                    Genitive => ["es", "er", "es", "er"][column],
                    Dative => ["em", "er", "em", "en"][column],
                    Accusative => ["en", "e", "", "e"][column],
                };
                let stem = if stem == "-" { "" } else { stem };
                return Some((format!("{stem}{ending}"), case, Strength::Mixed));
            }
        }
        None
    }
}

/// The ending of an adjective; `gender` 0, 1, 2 for m, f, n.
fn adjective_ending(strength: Strength, case: Case, plural: bool, gender: usize) -> &'static str {
    use Case::{Accusative, Dative, Genitive, Nominative};
    let column = if plural { 3 } else { gender };
    match (strength, case) {
        (Strength::Weak, Nominative) => ["e", "e", "e", "en"][column],
        (Strength::Weak, Accusative) => ["en", "e", "e", "en"][column],
        (Strength::Mixed, Nominative) => ["er", "e", "es", "en"][column],
        (Strength::Mixed, Accusative) => ["en", "e", "es", "en"][column],
        (Strength::Weak | Strength::Mixed, Genitive | Dative) => "en",
        (Strength::Strong, Nominative) => ["er", "e", "es", "e"][column],
        (Strength::Strong, Accusative) => ["en", "e", "es", "e"][column],
        (Strength::Strong, Dative) => ["em", "er", "em", "en"][column],
        (Strength::Strong, Genitive) => ["en", "er", "en", "er"][column],
    }
}

impl Person {
    fn render(&self, form: &str) -> Option<String> {
        let by = |man: &str, woman: &str| Some(if self.female { woman } else { man }.to_owned());
        match form {
            "" => Some(self.first.to_owned()),
            "gen" => Some(format!("{}s", self.first)),
            "full" => Some(self.full.clone()),
            "last" => Some(self.last.to_owned()),
            "herr" => by(
                &format!("Herr {}", self.last),
                &format!("Frau {}", self.last),
            ),
            "herrn" => by(
                &format!("Herrn {}", self.last),
                &format!("Frau {}", self.last),
            ),
            "lieber" => by(
                &format!("Lieber {}", self.first),
                &format!("Liebe {}", self.first),
            ),
            "geehrter" => by(
                &format!("Sehr geehrter Herr {}", self.last),
                &format!("Sehr geehrte Frau {}", self.last),
            ),
            "er" => by("er", "sie"),
            "ihn" => by("ihn", "sie"),
            "ihm" => by("ihm", "ihr"),
            "job" => by(self.job.0, self.job.1),
            "einjob" => by(
                &format!("ein {}", self.job.0),
                &format!("eine {}", self.job.1),
            ),
            "derjob" => by(
                &format!("der {}", self.job.0),
                &format!("die {}", self.job.1),
            ),
            "rel" => by("der", "die"),
            "nachbar" => by("Nachbar", "Nachbarin"),
            "kind" => by("Junge", "Mädchen"),
            "derkind" => by("der Junge", "das Mädchen"),
            "schueler" => by("Schüler", "Schülerin"),
            "freund" => by("Freund", "Freundin"),
            "opa" => by("Opa", "Oma"),
            "vater" => by("Vater", "Mutter"),
            "eine" => by("einer", "eine"),
            "jeder" => by("jeder", "jede"),
            _ => {
                // sein, seine, seinen … of this person: ihr, ihre, ihren …; and mein, dein for roles.
                let ending = form.strip_prefix("sein")?;
                by(&format!("sein{ending}"), &format!("ihr{ending}"))
            }
        }
    }
}

impl Act {
    fn render(&self, form: &str) -> Option<String> {
        let Self {
            infinitive,
            present,
            past,
            participle,
            auxiliary,
            rest,
            prefix,
        } = self;
        let join = |parts: &[&str]| {
            parts
                .iter()
                .filter(|part| !part.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let glued = |word: &str| format!("{prefix}{word}");
        Some(match form {
            // Main clauses: `{act.pres}` subject `{act.rest}`, or the two at once.
            "pres" => present.clone(),
            "past" => past.clone(),
            "rest" => join(&[rest, prefix]),
            "main" => join(&[present, rest, prefix]),
            "mainpast" => join(&[past, rest, prefix]),
            // Clauses with the verb at the end.
            "sub" => join(&[rest, &glued(present)]),
            "subpast" => join(&[rest, &glued(past)]),
            "inf" => join(&[rest, &glued(infinitive)]),
            "zu" if prefix.is_empty() => join(&[rest, "zu", infinitive]),
            "zu" => join(&[rest, &format!("{prefix}zu{infinitive}")]),
            "part" => join(&[rest, &glued(participle)]),
            "aux" => auxiliary.clone(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{German, Noun, Value};
    use crate::dice::Dice;
    use crate::grammar::Lexicon as _;

    fn noun(gender: &str, [nominative, genitive, plural]: [&str; 3]) -> Value {
        Value::Noun(Noun::listed((gender, nominative, genitive, plural), "alt"))
    }

    #[test]
    fn nouns_bend() {
        let german = German::new();
        let dog = noun("m", ["Hund", "Hundes", "Hunde"]);
        let cat = noun("f", ["Katze", "Katze", "Katzen"]);
        let house = noun("n", ["Haus", "Hauses", "Häuser"]);
        let neighbour = noun("m", ["Nachbar", "Nachbarn", "Nachbarn"]);
        let cases = [
            (&dog, "den.a", "den alten Hund"),
            (&dog, "ein.a", "ein alter Hund"),
            (&dog, "des", "des Hundes"),
            (&dog, "pl.dem.a", "den alten Hunden"),
            (&cat, "einem.a", "einer alten Katze"),
            (&cat, "-en", "e Katze"),
            (&cat, "er", "sie"),
            (&house, "ein.a", "ein altes Haus"),
            (&house, "acc.a", "altes Haus"),
            (&house, "pl.dem", "den Häusern"),
            (&house, "pl.a", "alte Häuser"),
            (&house, "dieser", "dieses Haus"),
            (&house, "-", " Haus"),
            (&neighbour, "dem", "dem Nachbarn"),
            (&neighbour, "unseren", "unseren Nachbarn"),
        ];
        let mut dice = Dice::new(1, "test");
        for (value, form, expected) in cases {
            let forms: Vec<String> = form.split('.').map(str::to_owned).collect();
            assert_eq!(
                german.render(value, &forms, &mut dice).as_deref(),
                Some(expected),
                "{form}"
            );
        }
    }
}
