//! Names that both languages share: people, German streets and towns.
//!
//! The lists are multiplied (first by last names, street stems by kinds of street), so that a model has
//! to copy a name from its context: there are too many to learn by heart.

use crate::city_trees::town::STREETS;
use crate::dice::Dice;

/// First names of girls and women. None ends in s, x or z, so that the German genitive is always `-s`.
pub const WOMEN: &str = "Anna Lena Mia Emma Clara Ida Paula Lina Marie Johanna Frieda Greta Martha Helga \
    Ingrid Renate Sabine Petra Katrin Julia Laura Sarah Leonie Amelie Charlotte Sophie Luise Mathilda Rosa \
    Elif Ayse Fatma Zeynep Leyla Yasemin Amira Samira Olga Irina Natalia Agnieszka Kasia Milena Jana Nadja \
    Vera Carla Elena Lucia Chiara Nora Maja Finja Merle Antje Wiebke Heike Birgit Ursula Gerda Hanna Eva \
    Linda Nina Svenja Tamara Theresa Veronika Magda Lotte Ella Tilda Romy Ronja";
/// First names of boys and men.
pub const MEN: &str = "Paul Ben Leon Finn Noah Emil Anton Karl Otto Oskar Theo Jakob Johann Peter \
    Michael Stefan Martin Bernd Dieter Werner Heinrich Friedrich Georg Walter Ralf Uwe Jan Tim Tom \
    Erik Sven Lasse Henri Mehmet Emre Can Murat Ali Yusuf Omar Karim Ivan Oleg Dmitri Pavel Milan Piotr \
    Tomek Marek Luca Marco Antonio Pablo Diego David Simon Daniel Julian Fabian Florian Sebastian Dominik \
    Philipp Robert Richard Arthur Konrad Gustav Ludwig Rolf Holger Thorsten";
/// Last names.
pub const LAST: &str = "Weber Becker Wagner Hoffmann Koch Richter Klein Wolf Neumann Zimmermann Braun \
    Hofmann Hartmann Lange Werner Krause Lehmann Maier Huber Mayer Herrmann Walter Schulze Kaiser Keller \
    Vogel Winkler Baumann Albrecht Schuster Simon Böhm Winter Schumacher Krämer Stein Jäger \
    Otto Sommer Seidel Heinrich Brandt Schreiber Graf Dietrich Kuhn Kühn Pohl Engel Horn Busch Bergmann \
    Voigt Sauer Arnold Wolff Pfeiffer Yilmaz Kaya Demir Aydin Kowalski Nowak Novak Petrov Rossi Costa \
    Moreau Nilsen Berger Lindner Ahrens Behrens Petersen Hansen Jansen Thomsen";

/// First halves of German street names.
const STREET_STEMS: &str = "Linden Eichen Ahorn Birken Kastanien Eschen Ulmen Buchen Kirsch Pappel Weiden \
    Tannen Kiefern Erlen Rosen Flieder Tulpen Nelken Veilchen Garten Wiesen Wald Feld Berg Tal Bach Brunnen \
    Quellen See Ufer Brücken Mühlen Markt Rathaus Kirch Kloster Schul Bahnhof Post Schloss Burg Turm Tor \
    Mauer Graben Damm Hafen Fischer Bäcker Schmiede Weber Gerber Töpfer Müller Schäfer Jäger Goethe Schiller \
    Lessing Heine Herder Mozart Beethoven Bach Schubert Brahms Dürer Humboldt Kepler Kant Fontane Uhland \
    Stifter Ring Nord Süd Ost West Neu Alt Ober Unter Mittel Lang Breit Sonnen Mond Stern Winter Sommer \
    Amsel Drossel Finken Lerchen Meisen Schwalben Storchen Falken Adler Hasen Fuchs Hirsch Reh Bienen Honig \
    Korn Hopfen Wein Salz Silber Kupfer Kohlen Ziegel Kalk Sand Stein Moor Heide Anger Linde Holz Apfel Birn \
    Nuss Haupt Kant König Kaiser Bischofs Martins Peters Johannes Georgen Marien Annen Friedens Freiheits";
/// Full first halves with hyphens, for streets named after people.
const STREET_PEOPLE: &str = "Clara-Schumann Anne-Frank Albert-Einstein Käthe-Kollwitz Robert-Koch \
    Rosa-Luxemburg Heinrich-Heine Theodor-Storm Gottfried-Keller Marie-Curie Lise-Meitner Otto-Hahn \
    Max-Planck Carl-Benz Sophie-Scholl Bertha-von-Suttner Astrid-Lindgren Adolph-Kolping Wilhelm-Busch";
/// Kinds of street with gender, and the preposition of rest (dative) and of direction (accusative).
const STREET_KINDS: [StreetKind; 11] = [
    StreetKind::new("straße", 'f', 40),
    StreetKind::new("weg", 'm', 22),
    StreetKind::new("allee", 'f', 9),
    StreetKind::new("gasse", 'f', 9),
    StreetKind::new("platz", 'm', 8),
    StreetKind::new("ring", 'm', 4),
    StreetKind::new("steig", 'm', 2),
    StreetKind::new("ufer", 'n', 2),
    StreetKind::new("hof", 'm', 2),
    StreetKind::new("damm", 'm', 1),
    StreetKind::new("promenade", 'f', 1),
];

#[derive(Debug)]
struct StreetKind {
    suffix: &'static str,
    gender: char,
    share: usize,
}

impl StreetKind {
    const fn new(suffix: &'static str, gender: char, share: usize) -> Self {
        Self {
            suffix,
            gender,
            share,
        }
    }
}

/// A German street: its name, its gender (`m`, `f` or `n`) and whether one is *at* it, as at a square,
/// and not *in* it.
#[derive(Debug, Clone)]
pub struct Street {
    /// The spelling on the sign.
    pub name: String,
    /// The grammatical gender.
    pub gender: char,
    /// Squares, rings, banks: `am Marktplatz`, not `im Marktplatz`.
    pub at: bool,
}

impl Street {
    /// Draws one of the town's own streets, as often as not, or else one of some 1,300 names.
    pub fn draw(dice: &mut Dice) -> Self {
        if dice.chance(50) {
            return Self::of_the_town(dice);
        }
        let mut ticket = dice.below(STREET_KINDS.iter().map(|kind| kind.share).sum());
        let mut kind = &STREET_KINDS[0];
        for each in &STREET_KINDS {
            kind = each;
            if ticket < each.share {
                break;
            }
            ticket -= each.share;
        }
        let name = if dice.chance(8) {
            let mut suffix = kind.suffix.to_owned();
            suffix[..1].make_ascii_uppercase();
            format!("{}-{suffix}", word(STREET_PEOPLE, dice))
        } else {
            format!("{}{}", word(STREET_STEMS, dice), kind.suffix)
        };
        Self::named(name, kind.gender)
    }

    /// Draws one of the sixty streets of the town of city-trees.
    pub fn of_the_town(dice: &mut Dice) -> Self {
        let street = dice.pick(&STREETS);
        Self::named(street.name.to_owned(), street.gender)
    }

    /// A street of a known name and gender.
    pub fn named(name: String, gender: char) -> Self {
        let low = name.to_lowercase();
        let at = ["platz", "ring", "ufer", "hof", "damm", "markt"]
            .iter()
            .any(|end| low.ends_with(end));
        Self { name, gender, at }
    }

    /// The name in a German phrase: `in` (where), `into` (whither), `from`, `nom`, `dat`, `acc`, `gen`,
    /// each with its article; `n` the bare name; `of` for German names in English text.
    pub fn german(&self, form: &str) -> Option<String> {
        let name = &self.name;
        let (der, dem, den) = match self.gender {
            'm' => ("der", "dem", "den"),
            'f' => ("die", "der", "die"),
            _ => ("das", "dem", "das"),
        };
        Some(match form {
            "n" => name.clone(),
            "in" if self.at => format!("am {name}"),
            "in" if self.gender == 'f' => format!("in der {name}"),
            "in" => format!("im {name}"),
            "into" if self.at => format!("zum {name}"),
            "into" if self.gender == 'n' => format!("ins {name}"),
            "into" => format!("in {den} {name}"),
            "from" if self.gender == 'f' => format!("aus der {name}"),
            "from" => format!("vom {name}"),
            "to" if self.gender == 'f' => format!("zur {name}"),
            "to" => format!("zum {name}"),
            "nom" => format!("{der} {name}"),
            "dat" => format!("{dem} {name}"),
            "acc" => format!("{den} {name}"),
            "gen" if self.gender == 'f' => format!("der {name}"),
            "gen" => format!("des {name}{}", genitive_ending(name)),
            _ => return None,
        })
    }

    /// The name as people write it in a hurry: abbreviated, in lower case, without its umlauts.
    pub fn scribbled(&self, dice: &mut Dice) -> String {
        let mut name = self.name.clone();
        if dice.chance(60) {
            for (long, short) in [
                ("straße", "str."),
                ("Straße", "Str."),
                ("platz", "pl."),
                (" Street", " St"),
                (" Road", " Rd"),
                (" Avenue", " Ave"),
                (" Lane", " Ln"),
            ] {
                name = name.replace(long, short);
            }
        }
        if dice.chance(50) {
            for (letter, plain) in [("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("ß", "ss")] {
                name = name.replace(letter, plain);
            }
        }
        if dice.chance(50) {
            name.to_lowercase()
        } else {
            name
        }
    }

    /// The name in an English phrase: `in`, `into`, `n`.
    pub fn english(&self, form: &str) -> Option<String> {
        let name = &self.name;
        Some(match form {
            "n" => name.clone(),
            "in" if self.at => format!("at {name}"),
            "in" => format!("in {name}"),
            "into" => format!("to {name}"),
            _ => return None,
        })
    }
}

fn genitive_ending(name: &str) -> &'static str {
    if name.ends_with('z') || name.ends_with("hof") || name.ends_with("weg") {
        "es"
    } else {
        "s"
    }
}

/// A word of a list.
pub fn word(list: &'static str, dice: &mut Dice) -> &'static str {
    let count = list.split_whitespace().count();
    list.split_whitespace()
        .nth(dice.below(count))
        .unwrap_or_default()
}

/// The name of an invented town.
pub fn town(dice: &mut Dice) -> String {
    const HEADS: &str = "Linden Mühl Birken Stein Wald Rosen Eichen Alten Neu Nieder Ober Falken Hirsch \
        Reichen Grün Schön Lauter Wiesen Berg Sonnen Kirch Brunn Heiden Erlen Ahorn Silber Königs";
    const TAILS: &str =
        "au bach berg burg dorf feld hausen heim hofen stedt tal walde brück furt kirchen";
    format!("{}{}", word(HEADS, dice), word(TAILS, dice))
}
