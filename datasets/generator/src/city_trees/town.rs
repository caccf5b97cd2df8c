//! The invented town: its sixty streets and its sixteen kinds of tree.

/// A street of the town.
#[derive(Debug)]
pub struct TownStreet {
    /// The spelling on the sign, which the answer repeats.
    pub name: &'static str,
    /// The grammatical gender: `m`, `f` or `n`.
    pub gender: char,
}

const fn street(name: &'static str, gender: char) -> TownStreet {
    TownStreet { name, gender }
}

/// The streets. Any two differ by at least four letters, so that a typing error does not turn one into
/// another.
pub const STREETS: [TownStreet; 60] = [
    street("Goethestraße", 'f'),
    street("Schillerplatz", 'm'),
    street("Lindenallee", 'f'),
    street("Bahnhofstraße", 'f'),
    street("Mühlenweg", 'm'),
    street("Kastanienring", 'm'),
    street("Marktplatz", 'm'),
    street("Rathausgasse", 'f'),
    street("Uferpromenade", 'f'),
    street("Brunnenstraße", 'f'),
    street("Färbergasse", 'f'),
    street("Töpferweg", 'm'),
    street("Schlossallee", 'f'),
    street("Amselsteig", 'm'),
    street("Hölderlinstraße", 'f'),
    street("Clara-Schumann-Straße", 'f'),
    street("Königsplatz", 'm'),
    street("Ziegeleiweg", 'm'),
    street("Hafendamm", 'm'),
    street("Nordring", 'm'),
    street("Südtangente", 'f'),
    street("Kirchgasse", 'f'),
    street("Wiesengrund", 'm'),
    street("Rosenhof", 'm'),
    street("Dürerstraße", 'f'),
    street("Eichendorffweg", 'm'),
    street("Weinbergstraße", 'f'),
    street("Gerberufer", 'n'),
    street("Klosterstraße", 'f'),
    street("Humboldtallee", 'f'),
    street("Fischmarkt", 'm'),
    street("Sonnenhang", 'm'),
    street("Bürgermeister-Vogt-Straße", 'f'),
    street("Alte Poststraße", 'f'),
    street("Heideweg", 'm'),
    street("Lerchenfeld", 'n'),
    street("Bismarckstraße", 'f'),
    street("Turmgasse", 'f'),
    street("Schwanenweg", 'm'),
    street("Lessingplatz", 'm'),
    street("Käthe-Kollwitz-Ring", 'm'),
    street("Industriestraße", 'f'),
    street("Finkenschlag", 'm'),
    street("Am Mühlbach", 'm'),
    street("Gartenstraße", 'f'),
    street("Pestalozzistraße", 'f'),
    street("Hopfengasse", 'f'),
    street("Europaplatz", 'm'),
    street("Waldschulweg", 'm'),
    street("Friedensallee", 'f'),
    street("Glockengießerstraße", 'f'),
    street("Obere Vorstadt", 'f'),
    street("Jahnstraße", 'f'),
    street("Spitalgasse", 'f'),
    street("Zeppelinstraße", 'f'),
    street("Birkenstieg", 'm'),
    street("Ostwall", 'm'),
    street("Kaiserdamm", 'm'),
    street("Mozartstraße", 'f'),
    street("Sternwartenweg", 'm'),
];

/// A genus and what residents call its trees.
#[derive(Debug)]
pub struct Species {
    /// The botanical genus, which the answer gives.
    pub genus: &'static str,
    /// German names: gender, nominative, genitive, plural.
    pub german: &'static [(&'static str, &'static str, &'static str, &'static str)],
    /// English names.
    pub english: &'static [&'static str],
}

/// The sixteen genera.
pub const SPECIES: [Species; 16] = [
    Species {
        genus: "Tilia",
        german: &[
            ("f", "Linde", "Linde", "Linden"),
            ("f", "Linde", "Linde", "Linden"),
            ("f", "Winterlinde", "Winterlinde", "Winterlinden"),
            ("f", "Sommerlinde", "Sommerlinde", "Sommerlinden"),
            ("m", "Lindenbaum", "Lindenbaums", "Lindenbäume"),
        ],
        english: &["lime tree", "linden", "linden tree"],
    },
    Species {
        genus: "Quercus",
        german: &[
            ("f", "Eiche", "Eiche", "Eichen"),
            ("f", "Eiche", "Eiche", "Eichen"),
            ("f", "Stieleiche", "Stieleiche", "Stieleichen"),
            ("f", "Roteiche", "Roteiche", "Roteichen"),
        ],
        english: &["oak", "oak tree", "red oak"],
    },
    Species {
        genus: "Acer",
        german: &[
            ("m", "Ahorn", "Ahorns", "Ahorne"),
            ("m", "Ahornbaum", "Ahornbaums", "Ahornbäume"),
            ("m", "Spitzahorn", "Spitzahorns", "Spitzahorne"),
            ("m", "Bergahorn", "Bergahorns", "Bergahorne"),
        ],
        english: &["maple", "maple tree", "Norway maple"],
    },
    Species {
        genus: "Platanus",
        german: &[("f", "Platane", "Platane", "Platanen")],
        english: &["plane tree", "London plane"],
    },
    Species {
        genus: "Betula",
        german: &[
            ("f", "Birke", "Birke", "Birken"),
            ("f", "Birke", "Birke", "Birken"),
            ("f", "Hängebirke", "Hängebirke", "Hängebirken"),
        ],
        english: &["birch", "birch tree", "silver birch"],
    },
    Species {
        genus: "Aesculus",
        german: &[
            ("f", "Kastanie", "Kastanie", "Kastanien"),
            ("f", "Rosskastanie", "Rosskastanie", "Rosskastanien"),
            ("m", "Kastanienbaum", "Kastanienbaums", "Kastanienbäume"),
        ],
        english: &["horse chestnut", "chestnut tree", "conker tree"],
    },
    Species {
        genus: "Fraxinus",
        german: &[
            ("f", "Esche", "Esche", "Eschen"),
            ("f", "Esche", "Esche", "Eschen"),
        ],
        english: &["ash tree", "ash"],
    },
    Species {
        genus: "Robinia",
        german: &[
            ("f", "Robinie", "Robinie", "Robinien"),
            ("f", "Robinie", "Robinie", "Robinien"),
            ("f", "Scheinakazie", "Scheinakazie", "Scheinakazien"),
        ],
        english: &["robinia", "black locust", "false acacia"],
    },
    Species {
        genus: "Fagus",
        german: &[
            ("f", "Buche", "Buche", "Buchen"),
            ("f", "Rotbuche", "Rotbuche", "Rotbuchen"),
            ("f", "Blutbuche", "Blutbuche", "Blutbuchen"),
        ],
        english: &["beech", "beech tree", "copper beech"],
    },
    Species {
        genus: "Prunus",
        german: &[
            ("f", "Kirsche", "Kirsche", "Kirschen"),
            ("m", "Kirschbaum", "Kirschbaums", "Kirschbäume"),
            ("f", "Zierkirsche", "Zierkirsche", "Zierkirschen"),
            ("m", "Pflaumenbaum", "Pflaumenbaums", "Pflaumenbäume"),
        ],
        english: &["cherry tree", "ornamental cherry", "plum tree"],
    },
    Species {
        genus: "Pinus",
        german: &[
            ("f", "Kiefer", "Kiefer", "Kiefern"),
            ("f", "Kiefer", "Kiefer", "Kiefern"),
            ("f", "Schwarzkiefer", "Schwarzkiefer", "Schwarzkiefern"),
        ],
        english: &["pine", "pine tree", "black pine"],
    },
    Species {
        genus: "Populus",
        german: &[
            ("f", "Pappel", "Pappel", "Pappeln"),
            ("f", "Pappel", "Pappel", "Pappeln"),
            ("f", "Zitterpappel", "Zitterpappel", "Zitterpappeln"),
        ],
        english: &["poplar", "poplar tree"],
    },
    Species {
        genus: "Salix",
        german: &[
            ("f", "Weide", "Weide", "Weiden"),
            ("f", "Trauerweide", "Trauerweide", "Trauerweiden"),
        ],
        english: &["willow", "weeping willow", "willow tree"],
    },
    Species {
        genus: "Corylus",
        german: &[
            ("f", "Baumhasel", "Baumhasel", "Baumhaseln"),
            ("f", "Hasel", "Hasel", "Haseln"),
        ],
        english: &["Turkish hazel", "hazel", "hazel tree"],
    },
    Species {
        genus: "Ginkgo",
        german: &[
            ("m", "Ginkgo", "Ginkgos", "Ginkgos"),
            ("m", "Ginkgobaum", "Ginkgobaums", "Ginkgobäume"),
        ],
        english: &["ginkgo", "ginkgo tree", "maidenhair tree"],
    },
    Species {
        genus: "Carpinus",
        german: &[
            ("f", "Hainbuche", "Hainbuche", "Hainbuchen"),
            ("f", "Hainbuche", "Hainbuche", "Hainbuchen"),
            ("f", "Weißbuche", "Weißbuche", "Weißbuchen"),
        ],
        english: &["hornbeam", "hornbeam tree"],
    },
];

#[cfg(test)]
mod tests {
    use super::STREETS;

    /// Levenshtein's distance.
    fn distance(a: &str, b: &str) -> usize {
        let b: Vec<char> = b.chars().collect();
        let mut row: Vec<usize> = (0..=b.len()).collect();
        for (i, x) in a.chars().enumerate() {
            let mut corner = row[0];
            row[0] = i + 1;
            for j in 0..b.len() {
                let cost = corner + usize::from(x != b[j]);
                corner = row[j + 1];
                row[j + 1] = cost.min(row[j] + 1).min(corner + 1);
            }
        }
        row[b.len()]
    }

    #[test]
    fn a_typing_error_does_not_lead_to_another_street() {
        assert_eq!(distance("Linde", "Birke"), 3);
        for (i, one) in STREETS.iter().enumerate() {
            for two in &STREETS[i + 1..] {
                let apart = distance(one.name, two.name);
                assert!(
                    apart >= 4,
                    "{} and {} are {apart} apart",
                    one.name,
                    two.name
                );
            }
        }
    }
}
