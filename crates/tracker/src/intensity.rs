//! How much CO2e a kilowatt-hour carries, by country. The table is compiled in, so the tracker never
//! asks the network, and each figure keeps its year. The place is always asked for: an unknown place
//! gives the range over all countries of the table, with its ends named, and never a world average
//! that would look like a measurement.
//!
//! The figures are yearly averages over a whole lifecycle (plant construction and fuel supply
//! included), location-based. They say nothing of the hour of the day or of green tariffs. What the grid emits
//! in the very hour is told from outside: see [`crate::live`].

use std::fmt::Write as _;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::format;
use crate::range::Span;

/// The table, with its attribution in the first lines.
const TABLE: &str = include_str!("../data/grid-intensity.csv");

/// Where the compiled-in figures come from (CC BY 4.0).
pub const TABLE_SOURCE: &str =
    "Ember and Energy Institute, processed by Our World in Data (CC BY 4.0)";

/// One country's electricity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Country {
    /// ISO 3166-1 alpha-2, such as `NO`.
    pub alpha2: &'static str,
    /// ISO 3166-1 alpha-3, such as `NOR`.
    pub alpha3: &'static str,
    /// English name.
    pub name: &'static str,
    /// The year of the figure.
    pub year: u16,
    /// Lifecycle carbon intensity, gCO2e/kWh.
    pub g_per_kwh: f64,
}

/// A country that is not in the table.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("unknown country `{given}`")]
pub struct UnknownCountry {
    /// What was asked for.
    pub given: String,
    /// The nearest name in the table, where one is near.
    pub nearest: Option<String>,
}

impl UnknownCountry {
    /// What to write instead.
    pub fn hint(&self) -> String {
        match &self.nearest {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => {
                "use an ISO 3166 code such as `DEU` or `DE`, or an English name; where a country \
                     has no figure, give your own in gCO2e/kWh with its source"
                    .to_owned()
            }
        }
    }
}

/// Carbon intensity as the record carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CarbonIntensity {
    /// gCO2e/kWh. Without a central value where the place is unknown.
    pub g_per_kwh: Span,
    /// The year of the figure, where there is one.
    pub year: Option<u16>,
    /// Where the figure comes from, in words.
    pub source: String,
    /// The readings of which the figure is the mean, where the grid was asked while the run went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LiveReadings>,
}

/// Readings of the grid during a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveReadings {
    /// How many.
    pub count: u32,
    /// How many times there was no answer.
    pub missed: u32,
    /// The lowest, gCO2e/kWh.
    pub lowest: f64,
    /// The highest, gCO2e/kWh.
    pub highest: f64,
    /// When the first came, RFC 3339 in UTC.
    pub first: String,
    /// When the last came.
    pub last: String,
}

impl LiveReadings {
    /// A single reading.
    pub(crate) fn one(g_per_kwh: f64, at: &str) -> Self {
        Self {
            count: 1,
            missed: 0,
            lowest: g_per_kwh,
            highest: g_per_kwh,
            first: at.to_owned(),
            last: at.to_owned(),
        }
    }

    /// Takes in the readings of another time.
    pub(crate) fn and(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.missed = self.missed.saturating_add(other.missed);
        self.lowest = self.lowest.min(other.lowest);
        self.highest = self.highest.max(other.highest);
        // Times of one format and zone are ordered as their texts are.
        if other.first < self.first {
            self.first.clone_from(&other.first);
        }
        if other.last > self.last {
            self.last.clone_from(&other.last);
        }
    }

    /// `3 readings of 212 to 260 g/kWh, 2026-01-15T10:00:00Z to 2026-01-15T11:00:00Z`.
    pub fn words(&self) -> String {
        let digits = |grams: f64| format::plain_decimal(grams, 4);
        let mut words = if self.count == 1 {
            format!("1 reading, {}", self.first)
        } else if self.lowest < self.highest {
            format!(
                "{} readings of {} to {} g/kWh, {} to {}",
                self.count,
                digits(self.lowest),
                digits(self.highest),
                self.first,
                self.last
            )
        } else {
            format!("{} readings, {} to {}", self.count, self.first, self.last)
        };
        if self.missed > 0 {
            let _ = write!(words, ", {} without an answer", self.missed);
        }
        words
    }
}

/// No grid emits more: the highest figure a user may state.
pub(crate) const HIGHEST_G_PER_KWH: f64 = 5000.0;

/// Whether this can be an intensity in gCO2e/kWh.
pub(crate) fn is_believable(g_per_kwh: f64) -> bool {
    (0.0..=HIGHEST_G_PER_KWH).contains(&g_per_kwh)
}

impl CarbonIntensity {
    /// The yearly figure of a country.
    pub fn of(country: &Country) -> Self {
        Self {
            g_per_kwh: Span {
                low: country.g_per_kwh,
                central: Some(country.g_per_kwh),
                high: country.g_per_kwh,
            },
            year: Some(country.year),
            source: TABLE_SOURCE.to_owned(),
            live: None,
        }
    }

    /// A figure the user states, with the source the user states.
    pub fn given(g_per_kwh: f64, source: &str) -> Self {
        Self {
            g_per_kwh: Span {
                low: g_per_kwh,
                central: Some(g_per_kwh),
                high: g_per_kwh,
            },
            year: None,
            source: source.to_owned(),
            live: None,
        }
    }

    /// The place is unknown: from the lowest to the highest country of the table.
    pub fn unknown_place() -> Self {
        let by_intensity = |a: &&Country, b: &&Country| a.g_per_kwh.total_cmp(&b.g_per_kwh);
        let (lowest, highest) = (
            countries().iter().min_by(by_intensity),
            countries().iter().max_by(by_intensity),
        );
        let end = |country: Option<&Country>| {
            country.map_or((0.0, String::new()), |c| {
                (
                    c.g_per_kwh,
                    format!("{} ({}, {:.0} g/kWh)", c.name, c.year, c.g_per_kwh),
                )
            })
        };
        let ((low, low_name), (high, high_name)) = (end(lowest), end(highest));
        Self {
            g_per_kwh: Span {
                low,
                central: None,
                high,
            },
            year: None,
            source: format!(
                "place not given, so the range over {} countries, from {low_name} to {high_name}; {TABLE_SOURCE}",
                countries().len()
            ),
            live: None,
        }
    }
}

/// All countries with a figure, in the order of their alpha-3 codes.
pub fn countries() -> &'static [Country] {
    static COUNTRIES: OnceLock<Vec<Country>> = OnceLock::new();
    COUNTRIES.get_or_init(|| {
        TABLE
            .lines()
            .filter(|line| !line.starts_with('#'))
            .skip(1)
            .filter_map(parse_row)
            .collect()
    })
}

/// One row of the table: `alpha2,alpha3,country,year,gco2e_per_kwh`. No field holds a comma.
fn parse_row(line: &'static str) -> Option<Country> {
    let mut fields = line.split(',');
    Some(Country {
        alpha2: fields.next()?,
        alpha3: fields.next()?,
        name: fields.next()?,
        year: fields.next()?.parse().ok()?,
        g_per_kwh: fields.next()?.parse().ok()?,
    })
}

/// Other English names in use, as alpha-3 codes.
const ALSO_CALLED: &[(&str, &str)] = &[
    ("america", "USA"),
    ("britain", "GBR"),
    ("burma", "MMR"),
    ("czech republic", "CZE"),
    ("great britain", "GBR"),
    ("holland", "NLD"),
    ("ivory coast", "CIV"),
    ("korea", "KOR"),
    ("macedonia", "MKD"),
    ("republic of korea", "KOR"),
    ("russian federation", "RUS"),
    ("swaziland", "SWZ"),
    ("the netherlands", "NLD"),
    ("timor-leste", "TLS"),
    ("turkiye", "TUR"),
    ("türkiye", "TUR"),
    ("uae", "ARE"),
    ("uk", "GBR"),
    ("united states of america", "USA"),
    ("viet nam", "VNM"),
];

/// The country of an ISO alpha-2 or alpha-3 code or an English name, in any case.
///
/// # Errors
/// The name is not in the table; the error carries the nearest one.
pub fn lookup(given: &str) -> Result<&'static Country, UnknownCountry> {
    let wanted = given.trim().to_lowercase();
    let alias = ALSO_CALLED
        .iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, alpha3)| alpha3.to_lowercase());
    let wanted = alias.unwrap_or(wanted);
    countries()
        .iter()
        .find(|country| {
            country.alpha2.to_lowercase() == wanted
                || country.alpha3.to_lowercase() == wanted
                || country.name.to_lowercase() == wanted
        })
        .ok_or_else(|| UnknownCountry {
            given: given.to_owned(),
            nearest: nearest(&wanted),
        })
}

/// The nearest name within two edits (one for short words), as it should be written.
fn nearest(wanted: &str) -> Option<String> {
    if wanted.chars().count() < 4 {
        return None; // Among codes everything is near everything.
    }
    countries()
        .iter()
        .map(|country| (edit_distance(wanted, &country.name.to_lowercase()), country))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, country)| format!("`{}` ({})", country.alpha3, country.name))
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_read() {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#')).count() - 1;
        assert_eq!(countries().len(), rows);
        assert!(rows > 200);
        for country in countries() {
            assert_eq!(country.alpha2.len(), 2, "{country:?}");
            assert_eq!(country.alpha3.len(), 3, "{country:?}");
            assert!((2005..=2030).contains(&country.year), "{country:?}");
            assert!(
                country.g_per_kwh > 0.0 && country.g_per_kwh < 2000.0,
                "{country:?}"
            );
        }
    }

    #[test]
    fn a_country_is_found_by_code_and_by_name() {
        for name in ["NO", "no", "NOR", "Norway", " norway "] {
            assert_eq!(lookup(name).unwrap().alpha3, "NOR", "{name}");
        }
        assert_eq!(lookup("United States of America").unwrap().alpha3, "USA");
        assert_eq!(lookup("uk").unwrap().alpha2, "GB");
    }

    #[test]
    fn codes_and_names_are_unambiguous_and_aliases_exist() {
        for country in countries() {
            for name in [country.alpha2, country.alpha3, country.name] {
                assert_eq!(lookup(name).unwrap().alpha3, country.alpha3, "{name}");
            }
        }
        for (name, alpha3) in ALSO_CALLED {
            assert_eq!(lookup(name).unwrap().alpha3, *alpha3, "{name}");
        }
    }

    #[test]
    fn an_unknown_country_is_an_error_with_the_nearest_name() {
        let error = lookup("Germny").unwrap_err();
        assert_eq!(error.to_string(), "unknown country `Germny`");
        assert_eq!(error.hint(), "did you mean `DEU` (Germany)?");
        assert!(lookup("Atlantis").unwrap_err().hint().contains("ISO 3166"));
        assert!(lookup("").is_err());
    }

    #[test]
    fn an_unknown_place_names_both_ends_and_claims_no_centre() {
        let intensity = CarbonIntensity::unknown_place();
        assert_eq!(intensity.g_per_kwh.central, None);
        assert!(intensity.g_per_kwh.low < 50.0 && intensity.g_per_kwh.high > 1000.0);
        assert!(intensity.source.contains("Lesotho"), "{}", intensity.source);
        assert!(
            intensity.source.contains("Turkmenistan"),
            "{}",
            intensity.source
        );
    }
}
