//! How clean the electricity grid is at this moment, for a run's account and for one that waits for a better
//! grid. Two public services, an own address, or a file that another program keeps.
//!
//! | source | asked | answer |
//! |---|---|---|
//! | `uk-grid` | the Carbon Intensity API of Great Britain's system operator, `/intensity`; no key | `data[0].intensity.actual`, or `.forecast` while the half-hour goes on |
//! | `electricity-maps:ZONE` | Electricity Maps, `/v3/carbon-intensity/latest?zone=ZONE`; key in the header `auth-token` | `carbonIntensity` |
//! | an address or a file | that | any of the two, or a number |
//!
//! The units are gCO2e/kWh in all of them. What they count differs, so each says it by its name: Great Britain's
//! is of burning the fuel, with imports and the losses of the network
//! (<https://www.carbonintensity.org.uk/>), Electricity Maps' of the plants' whole lives unless asked otherwise
//! (<https://app.electricitymaps.com/docs>).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

/// Where Electricity Maps' key is looked for.
pub const TOKEN_VARIABLE: &str = "ELECTRICITY_MAPS_TOKEN";

const UK_GRID: &str = "https://api.carbonintensity.org.uk/intensity";
const ELECTRICITY_MAPS: &str = "https://api.electricitymaps.com/v3/carbon-intensity/latest";
/// Nobody waits longer for one figure; it is asked for again anyway.
const PATIENCE: Duration = Duration::from_secs(20);
/// No answer is longer.
const LONGEST: u64 = 1 << 20;
/// More than any grid emits: a number above is something else.
const HIGHEST: f64 = 3000.0;

/// Something that knows the grid's intensity now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grid {
    /// Great Britain's system operator.
    Uk,
    /// Electricity Maps, with the zone.
    ElectricityMaps(String),
    /// An address of one's own.
    Address(String),
    /// A file of one's own.
    File(PathBuf),
}

/// Why the intensity is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GridError {
    /// There was no answer, or none that may be used.
    #[error("{0} gives no answer: {1}")]
    NoAnswer(String, String),
    /// The answer holds no intensity.
    #[error("{0} answers without an intensity")]
    NoFigure(String),
    /// Electricity Maps wants a key.
    #[error("Electricity Maps needs a key in {TOKEN_VARIABLE}")]
    NoToken,
}

impl Grid {
    /// A source by what a recipe calls it.
    ///
    /// # Errors
    /// What is wrong with the text, to stand behind its name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("is empty".to_owned());
        }
        if text == "uk-grid" {
            return Ok(Self::Uk);
        }
        if let Some(zone) = text.strip_prefix("electricity-maps") {
            let zone = zone.strip_prefix(':').unwrap_or_default();
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if zone.is_empty() || !zone.chars().all(fits) {
                return Err("names no zone of Electricity Maps".to_owned());
            }
            return Ok(Self::ElectricityMaps(zone.to_owned()));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Address(text.to_owned()));
        }
        Ok(Self::File(PathBuf::from(text)))
    }

    /// The intensity now, gCO2e/kWh. `token` is that of Electricity Maps.
    ///
    /// # Errors
    /// The source cannot be reached, or says something else.
    pub fn read(&self, token: Option<&str>) -> Result<f64, GridError> {
        let text = match self {
            Self::Uk => self.get(UK_GRID, None)?,
            Self::ElectricityMaps(zone) => {
                let token = token.filter(|token| !token.trim().is_empty());
                let token = token.ok_or(GridError::NoToken)?;
                self.get(&format!("{ELECTRICITY_MAPS}?zone={zone}"), Some(token))?
            }
            Self::Address(address) => self.get(address, None)?,
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|error| GridError::NoAnswer(self.to_string(), error.to_string()))?,
        };
        figure(&text).ok_or_else(|| GridError::NoFigure(self.to_string()))
    }

    fn get(&self, url: &str, token: Option<&str>) -> Result<String, GridError> {
        let no = |reason: String| GridError::NoAnswer(self.to_string(), reason);
        let agent: Agent = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .user_agent(concat!("sparsam/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let mut request = agent.get(url);
        if let Some(token) = token {
            request = request.header("auth-token", token.trim());
        }
        let mut answer = request.call().map_err(|error| no(error.to_string()))?;
        answer
            .body_mut()
            .with_config()
            .limit(LONGEST)
            .read_to_string()
            .map_err(|error| no(error.to_string()))
    }
}

impl Grid {
    /// Whose figure it is and what it counts, for a card.
    pub fn account(&self) -> String {
        match self {
            Self::Uk => {
                format!("{self}, of generation with imports and losses, without the plants' making")
            }
            Self::ElectricityMaps(_) => format!("{self}, of the plants' whole lives"),
            Self::Address(_) | Self::File(_) => self.to_string(),
        }
    }

    /// The ISO alpha-2 code of the country whose grid it is, where that is known.
    pub fn country(&self) -> Option<&str> {
        match self {
            Self::Uk => Some("GB"),
            // Zones are `DE` and `US-CAL-CISO`.
            Self::ElectricityMaps(zone) => zone
                .split(['-', '_'])
                .next()
                .filter(|country| country.len() == 2),
            Self::Address(_) | Self::File(_) => None,
        }
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uk => f.write_str("the Carbon Intensity API of Great Britain"),
            Self::ElectricityMaps(zone) => write!(f, "Electricity Maps, zone {zone}"),
            Self::Address(address) => f.write_str(&without_secrets(address)),
            Self::File(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// An address without what follows its path and without a user's name, where keys stand: it goes on a card.
pub fn without_secrets(address: &str) -> String {
    let shown = address.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = shown.split_once("://") else {
        return shown.to_owned();
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// The intensity in an answer.
fn figure(text: &str) -> Option<f64> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let now = answer.pointer("/data/0/intensity");
    let of = |key: &str| now.and_then(|now| now.get(key)).and_then(Value::as_f64);
    answer
        .as_f64()
        .or_else(|| of("actual"))
        .or_else(|| of("forecast"))
        .or_else(|| answer.get("carbonIntensity").and_then(Value::as_f64))
        .filter(|grams| (0.0..=HIGHEST).contains(grams))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_by_their_names() {
        let maps = |zone: &str| Ok(Grid::ElectricityMaps(zone.to_owned()));
        assert_eq!(Grid::parse(" uk-grid "), Ok(Grid::Uk));
        assert_eq!(Grid::parse("electricity-maps:DE"), maps("DE"));
        assert_eq!(
            Grid::parse("electricity-maps:US-CAL-CISO"),
            maps("US-CAL-CISO")
        );
        for text in [
            "",
            "electricity-maps",
            "electricity-maps:",
            "electricity-maps:D E",
        ] {
            assert!(Grid::parse(text).is_err(), "{text}");
        }
        assert_eq!(Grid::parse("grid.json"), Ok(Grid::File("grid.json".into())));
        assert!(matches!(
            Grid::parse("http://localhost:1/x"),
            Ok(Grid::Address(_))
        ));
    }

    #[test]
    fn answers_of_both_services_and_plain_numbers_are_read() {
        let uk = |actual: &str| {
            format!(
                r#"{{"data": [{{"from": "2026-01-01T10:00Z", "to": "2026-01-01T10:30Z",
                "intensity": {{"forecast": 156, "actual": {actual}, "index": "moderate"}}}}]}}"#
            )
        };
        assert_eq!(figure(&uk("149")), Some(149.0));
        assert_eq!(figure(&uk("null")), Some(156.0));
        let maps =
            r#"{"zone": "DE", "carbonIntensity": 302, "datetime": "2026-01-01T10:00:00.000Z"}"#;
        assert_eq!(figure(maps), Some(302.0));
        assert_eq!(figure("187.5\n"), Some(187.5));
        for text in ["", "clean", "{}", "-3", "99999", r#"{"data": []}"#] {
            assert_eq!(figure(text), None, "{text}");
        }
    }

    #[test]
    fn a_card_says_whose_figure_it_is_and_no_key() {
        let named = |text: &str| Grid::parse(text).unwrap();
        let address = named("https://me:secret@grid.example:8080/now/a@b?key=secret#secret");
        assert_eq!(address.account(), "https://grid.example:8080/now/a@b");
        assert_eq!(
            named("http://grid.example?k=1").to_string(),
            "http://grid.example"
        );
        assert!(named("uk-grid").account().contains("without the plants"));
        let maps = "Electricity Maps, zone FR, of the plants' whole lives";
        assert_eq!(named("electricity-maps:FR").account(), maps);
        for (text, country) in [
            ("uk-grid", Some("GB")),
            ("electricity-maps:US-CAL-CISO", Some("US")),
            ("electricity-maps:ZONE", None),
            ("http://localhost/FR", None),
            ("FR", None),
        ] {
            assert_eq!(named(text).country(), country, "{text}");
        }
    }

    #[test]
    fn without_a_key_nothing_is_asked() {
        let maps = Grid::ElectricityMaps("DE".to_owned());
        assert_eq!(maps.read(None), Err(GridError::NoToken));
        assert_eq!(maps.read(Some(" ")), Err(GridError::NoToken));
    }
}
