//! Checking what cards say of their emissions. Numbers that were copied by hand go wrong in a few ways
//! that show: kilograms where the Hub wants grams, a front matter that says something else than the
//! body, more power than the hardware can draw, an intensity that no grid of that country has. Each
//! finding names the line and how it was reckoned.
//!
//! The linter only reads. The bounds it uses are wide: what it finds deserves a second look, and what it
//! does not find is not thereby right.

use serde::Serialize;
use serde_json::{Map, Value};

use super::TrainingKind;
use super::source::{CardError, Source, key_lines, line_number, lines};
use crate::format::plain_decimal;
use crate::meter::processors;
use crate::{hardware, intensity};

/// More watts than this many times the rated power are not believed: a DGX A100 draws 6.5 kW at most
/// (NVIDIA data sheet, 2020), 2.03 times the rating of its eight GPUs; the rest is margin.
const WATTS_HIGH: f64 = 2.5;

/// Fewer watts than this part of a GPU's rated power are not believed: the least of the trainings that
/// Dodge et al. 2022 measured ran at 0.07 kWh a GPU-hour, 0.23 of a V100's 300 W; the rest is margin.
const WATTS_LOW: f64 = 0.1;

/// An implied intensity this many times above or below the country's is not believed. Regions of a
/// country and years differ by less in most places.
const INTENSITY_FACTOR: f64 = 2.0;

/// A factor the body states is that of its figures within this, which is what rounding leaves.
const SAME_FACTOR: f64 = 1.05;

/// Two statements of one figure may differ by rounding, 5 %.
const SAME: f64 = 0.05;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Could be better.
    Note,
    /// Probably wrong.
    Warning,
    /// Wrong, or read wrongly by the Hub.
    Error,
}

impl Severity {
    /// `error`, `warning` or `note`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check found it: `kilograms-for-grams`, `implied-watts`.
    pub code: &'static str,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, in a sentence.
    pub message: String,
    /// How that was reckoned, or what to do.
    pub reason: String,
}

/// `README.md:12: error: … (code)` and, on a line of its own, the reason.
pub fn render(name: &str, findings: &[Finding]) -> Vec<String> {
    findings
        .iter()
        .flat_map(|finding| {
            [
                format!(
                    "{name}:{}: {}: {} [{}]",
                    finding.line,
                    finding.severity.name(),
                    finding.message,
                    finding.code
                ),
                format!("  reason: {}", finding.reason),
            ]
        })
        .collect()
}

/// The worst severity, or none where nothing was found. Warnings and errors make a check in CI fail.
pub fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|finding| finding.severity).max()
}

/// A stated figure and its line.
#[derive(Debug, Clone, PartialEq)]
struct Stated<T> {
    value: T,
    line: usize,
}

/// What a card says of a training.
#[derive(Debug, Default)]
struct Claims {
    /// Grams in the front matter, where the number can be read.
    grams: Option<Stated<f64>>,
    /// Grams in the body.
    body_grams: Option<Stated<f64>>,
    /// kWh in the front matter.
    kwh: Option<Stated<f64>>,
    /// kWh in the body.
    body_kwh: Option<Stated<f64>>,
    /// Hours, from either.
    hours: Option<Stated<f64>>,
    /// Hardware, from the front matter or the body.
    hardware: Option<Stated<String>>,
    /// Place, from the front matter.
    place: Option<Stated<String>>,
    /// Place in brackets behind the body's figure.
    body_place: Option<Stated<String>>,
    /// gCO2e of a kWh of the machine, where the body says by what it was multiplied.
    factor: Option<Stated<f64>>,
}

/// All findings about a card, in the order of their lines.
pub fn lint(card: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let read = Source::read(card).and_then(|source| Ok((source.parse()?, source)));
    match read {
        Ok((front, source)) => check(&source, &front, &mut findings),
        Err(error) => findings.push(unreadable(&error)),
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

fn unreadable(error: &CardError) -> Finding {
    let text = error.to_string();
    let message = text
        .split_once(": ")
        .map_or(text.as_str(), |(_, message)| message);
    Finding {
        severity: Severity::Error,
        code: "unreadable",
        line: error.line(),
        message: message.to_owned(),
        reason: "the Hub refuses such a card, or reads nothing from it".to_owned(),
    }
}

fn check(source: &Source, front: &Map<String, Value>, findings: &mut Vec<Finding>) {
    let mut claims = Claims::default();
    let mut say = |severity, code, line, message: String, reason: &str| {
        findings.push(Finding {
            severity,
            code,
            line,
            message,
            reason: reason.to_owned(),
        });
    };
    let block = front.get("co2_eq_emissions");
    let key_line = |key: &str| line_of(source, key);
    match block {
        None => say(
            Severity::Warning,
            "no-block",
            source.front.as_ref().map_or(1, |f| f.first_line),
            "the front matter has no `co2_eq_emissions`".to_owned(),
            "the Hub shows and searches emissions by this block alone; `sparsam card update` writes it",
        ),
        Some(Value::Object(map)) => {
            check_keys(map, &key_line, &mut say);
            match map.get("emissions") {
                None => say(
                    Severity::Error,
                    "no-emissions",
                    key_line("co2_eq_emissions"),
                    "`co2_eq_emissions` has no `emissions`".to_owned(),
                    "the Hub's client fails on a block without this key",
                ),
                Some(value) => {
                    claims.grams = emissions(source, value, key_line("emissions"), &mut say);
                }
            }
            let text = |key: &str| {
                map.get(key).and_then(Value::as_str).map(|value| Stated {
                    value: value.to_owned(),
                    line: key_line(key),
                })
            };
            claims.place = text("geographical_location");
            claims.hardware = text("hardware_used");
            claims.kwh = figure(map, "energy_consumed", &key_line);
            claims.hours = figure(map, "hours_used", &key_line);
        }
        Some(value) => {
            let line = key_line("co2_eq_emissions");
            claims.grams = emissions(source, value, line, &mut say);
            say(
                Severity::Note,
                "bare-number",
                line,
                "`co2_eq_emissions` says neither source nor place nor hardware".to_owned(),
                "write it as a block with `emissions`, `source`, `training_type`, \
                 `geographical_location` and `hardware_used`",
            );
        }
    }
    read_body(source, &mut claims);
    compare_with_body(&claims, &mut say);
    check_intensity(&claims, &mut say);
    check_watts(&claims, &mut say);
}

/// A finding as the checks report it.
type Say<'a> = dyn FnMut(Severity, &'static str, usize, String, &str) + 'a;

fn figure(
    map: &Map<String, Value>,
    key: &str,
    key_line: &dyn Fn(&str) -> usize,
) -> Option<Stated<f64>> {
    map.get(key)
        .and_then(Value::as_f64)
        .filter(|value| *value > 0.0)
        .map(|value| Stated {
            value,
            line: key_line(key),
        })
}

/// The line of a key: of the block itself, or of a key within it.
fn line_of(source: &Source, key: &str) -> usize {
    let Some(front) = &source.front else { return 1 };
    let yaml = &source.text[front.content.clone()];
    let Some(block) = key_lines(yaml, "co2_eq_emissions") else {
        return front.first_line;
    };
    let at = lines(yaml, block.start)
        .take_while(|line| line.start < block.end)
        .find(|line| line.text.trim_start().starts_with(key))
        .map_or(block.start, |line| line.start);
    front.first_line + line_number(yaml, at) - 1
}

fn check_keys(map: &Map<String, Value>, key_line: &dyn Fn(&str) -> usize, say: &mut Say) {
    for (key, why) in [
        ("source", "a reader cannot tell who counted, or how"),
        (
            "training_type",
            "a fine-tuning and a pre-training cannot be compared",
        ),
        (
            "geographical_location",
            "the electricity's carbon intensity cannot be checked",
        ),
        (
            "hardware_used",
            "the energy cannot be checked against the hardware",
        ),
    ] {
        if !map.contains_key(key) {
            say(
                Severity::Warning,
                "missing-key",
                key_line("co2_eq_emissions"),
                format!("`co2_eq_emissions` has no `{key}`"),
                &format!("without it {why}"),
            );
        }
    }
    if let Some(kind) = map.get("training_type")
        && ![TrainingKind::FineTuning, TrainingKind::PreTraining]
            .iter()
            .any(|known| kind.as_str() == Some(known.name()))
    {
        say(
            Severity::Warning,
            "training-type",
            key_line("training_type"),
            format!("`training_type` is {kind}"),
            "the Hub knows `pre-training` and `fine-tuning`",
        );
    }
}

/// Checks how the number is written, and gives it where it can be relied on.
fn emissions(source: &Source, value: &Value, line: usize, say: &mut Say) -> Option<Stated<f64>> {
    let written = lines(source.text, 0)
        .nth(line - 1)
        .and_then(|line| line.text.split_once(':'))
        .map_or("", |(_, rest)| {
            rest.split(" #").next().unwrap_or(rest).trim()
        });
    let Some(number) = value.as_f64().filter(|_| value.is_number()) else {
        let seen = value.as_str().map(first_number);
        say(
            Severity::Error,
            "not-a-number",
            line,
            format!("`emissions` is {value} and no number"),
            &match seen {
                Some(Some(number)) => format!(
                    "the Hub's client takes the first number it finds, here {number}, for grams; write \
                     a bare decimal number"
                ),
                _ => "write a bare decimal number in grams".to_owned(),
            },
        );
        return None;
    };
    if written.bytes().any(|b| matches!(b, b'e' | b'E')) {
        let seen = first_number(written).unwrap_or_default();
        say(
            Severity::Error,
            "exponent",
            line,
            format!("`emissions: {written}` has an exponent"),
            &format!(
                "the Hub's client stops before it and reads {seen} g; write {}",
                plain_decimal(number, 6)
            ),
        );
    }
    if number <= 0.0 {
        say(
            Severity::Warning,
            "nothing-emitted",
            line,
            format!("`emissions` is {written}"),
            "the Hub takes 0 for missing, and no training emits nothing",
        );
        return None;
    }
    Some(Stated {
        value: number,
        line,
    })
}

/// The first number of a text as `huggingface_hub` finds it: digits with one point, no exponent.
fn first_number(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut point = false;
    let end = text[start..]
        .find(|c: char| {
            let more = c.is_ascii_digit() || (c == '.' && !point);
            point |= c == '.';
            !more
        })
        .map_or(text.len(), |length| start + length);
    Some(text[start..end].trim_end_matches('.').to_owned())
}

/// A number and the word after it: `1.71 KgCO2 (Singapore)` is 1.71 and `kgco2`.
fn number_and_unit(text: &str) -> Option<(f64, String, &str)> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let end = text[start..]
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ',' || c == 'e' || c == '-'))
        .map_or(text.len(), |length| start + length);
    let digits = text[start..end].trim_end_matches(['.', ',', 'e', '-']);
    let rest = &text[start + digits.len()..];
    let number = digits.replace(',', "").parse().ok()?;
    let unit: String = rest
        .trim_start()
        .chars()
        .take_while(|c| !c.is_whitespace() && !matches!(c, '(' | ')' | ';' | ',' | '*' | '|'))
        .collect();
    Some((number, unit.to_lowercase(), rest))
}

/// PUE times gCO2e/kWh of `energy x PUE 1.2 x 35 g/kWh`, as [`crate::summary::formula`] writes it.
fn stated_factor(line: &str) -> Option<f64> {
    let (_, factors) = line.split_once("energy x PUE ")?;
    let (pue, rest) = factors.split_once(" x ")?;
    let (grams, _) = rest.split_once(" g/kWh")?;
    let factor = pue.parse::<f64>().ok()? * grams.parse::<f64>().ok()?;
    (factor > 0.0 && factor.is_finite()).then_some(factor)
}

/// Labelled lines of the body, `- **Label:** value` or `**Label**: value`.
fn read_body(source: &Source, claims: &mut Claims) {
    for line in lines(source.text, source.body) {
        if claims.factor.is_none()
            && let Some(value) = stated_factor(line.text)
        {
            claims.factor = Some(Stated {
                value,
                line: line_number(source.text, line.start),
            });
        }
        let Some((label, value)) = labelled(line.text) else {
            continue;
        };
        let number = line_number(source.text, line.start);
        let parsed = number_and_unit(&value);
        let set = |slot: &mut Option<Stated<f64>>, value: f64| {
            if slot.is_none() && value > 0.0 {
                *slot = Some(Stated {
                    value,
                    line: number,
                });
            }
        };
        if label.contains("emission") || label.contains("carbon emitted") {
            if let Some((figure, unit, rest)) = parsed
                && let Some(grams) = mass_unit(&unit, &label)
            {
                set(&mut claims.body_grams, figure * grams);
                if claims.body_place.is_none()
                    && let Some((_, inside)) = rest.split_once('(')
                    && let Some((place, _)) = inside.split_once(')')
                {
                    claims.body_place = Some(Stated {
                        value: place.trim().to_owned(),
                        line: number,
                    });
                }
            }
        } else if label.contains("energy") {
            if let Some((figure, unit, _)) = parsed {
                let kwh = match unit.as_str() {
                    "kwh" => Some(1.0),
                    "mwh" => Some(1e3),
                    "wh" => Some(1e-3),
                    _ => None,
                };
                if let Some(kwh) = kwh {
                    set(&mut claims.body_kwh, figure * kwh);
                }
            }
        } else if label.contains("hours used") || label.contains("training time") {
            if let Some((figure, unit, _)) = parsed {
                let hours = match unit.as_str() {
                    "" | "h" | "hour" | "hours" | "hrs" => Some(1.0),
                    "min" | "minutes" => Some(1.0 / 60.0),
                    "day" | "days" => Some(24.0),
                    _ => None,
                };
                if let Some(hours) = hours {
                    set(&mut claims.hours, figure * hours);
                }
            }
        } else if (label.contains("hardware") || label == "gpu") && claims.hardware.is_none() {
            claims.hardware = Some(Stated {
                value,
                line: number,
            });
        }
    }
}

/// The bold label of a line in lower case, and what follows.
fn labelled(line: &str) -> Option<(String, String)> {
    let start = line.trim_start().trim_start_matches(['-', '*', ' ']);
    let start = if start.len() < line.trim_start().len() {
        start
    } else {
        return None;
    };
    let (label, value) = start.split_once("**")?;
    let label = label.trim().trim_end_matches(':').trim().to_lowercase();
    let value = value.trim_start().trim_start_matches(':').trim().to_owned();
    (!label.is_empty()).then_some((label, value))
}

/// Grams in a unit of mass. The label may carry it: `Carbon Emitted (kg)`.
fn mass_unit(unit: &str, label: &str) -> Option<f64> {
    let known = |text: &str| {
        let text = text.trim_start_matches("of");
        if text.starts_with("kg") || text.starts_with("kilogram") {
            Some(1e3)
        } else if text.starts_with("mg") {
            Some(1e-3)
        } else if text == "t" || text.starts_with("tco") || text.starts_with("ton") {
            Some(1e6)
        } else if text == "g" || text.starts_with("gco") || text.starts_with("gram") {
            Some(1.0)
        } else {
            None
        }
    };
    known(unit).or_else(|| {
        let (_, inside) = label.split_once('(')?;
        known(inside.trim_start_matches("in "))
    })
}

fn apart(a: f64, b: f64) -> bool {
    (a - b).abs() > SAME * a.abs().max(b.abs())
}

fn compare_with_body(claims: &Claims, say: &mut Say) {
    if let (Some(front), Some(body)) = (&claims.grams, &claims.body_grams)
        && apart(front.value, body.value)
    {
        let (f, b) = (plain_decimal(front.value, 4), plain_decimal(body.value, 4));
        if apart(front.value * 1e3, body.value) {
            say(
                Severity::Error,
                "body-differs",
                front.line,
                format!("`emissions` is {f} g and the body says {b} g"),
                &format!("line {} says so", body.line),
            );
        } else {
            say(
                Severity::Error,
                "kilograms-for-grams",
                front.line,
                format!("`emissions: {f}` are kilograms, and the Hub reads grams"),
                &format!("the body, line {}, says {b} g", body.line),
            );
        }
    }
    if let (Some(front), Some(body)) = (&claims.kwh, &claims.body_kwh)
        && apart(front.value, body.value)
    {
        say(
            Severity::Error,
            "body-differs",
            front.line,
            format!(
                "`energy_consumed` is {} kWh and the body says {} kWh",
                plain_decimal(front.value, 4),
                plain_decimal(body.value, 4)
            ),
            &format!("line {} says so", body.line),
        );
    }
    if let (Some(front), Some(body)) = (&claims.place, &claims.body_place)
        && let (Some(a), Some(b)) = (country(&front.value), country(&body.value))
        && a.alpha3 != b.alpha3
    {
        say(
            Severity::Warning,
            "place-differs",
            front.line,
            format!(
                "`geographical_location` is {} and the body says {}",
                a.name, b.name
            ),
            &format!("line {} says so", body.line),
        );
    }
}

/// The country of a place as people write it: `Quebec, Canada`.
fn country(place: &str) -> Option<&'static intensity::Country> {
    intensity::lookup(place).ok().or_else(|| {
        place
            .rsplit([',', ';', '('])
            .find_map(|part| intensity::lookup(part.trim_end_matches(')')).ok())
    })
}

fn check_intensity(claims: &Claims, say: &mut Say) {
    let (Some(grams), Some(kwh)) = (
        claims.grams.as_ref(),
        claims.kwh.as_ref().or(claims.body_kwh.as_ref()),
    ) else {
        return;
    };
    let Some(place) = claims.place.as_ref().or(claims.body_place.as_ref()) else {
        return;
    };
    let Some(country) = country(&place.value) else {
        say(
            Severity::Note,
            "unknown-place",
            place.line,
            format!("`{}` is no country of the table", place.value),
            "the intensity of its electricity could not be checked",
        );
        return;
    };
    let implied = grams.value / kwh.value;
    let own = claims.factor.as_ref().filter(|factor| {
        let ratio = implied / factor.value;
        ratio.max(1.0 / ratio) < SAME_FACTOR
    });
    let reckoned = format!(
        "{} g / {} kWh; {} had {:.0} g/kWh in {}",
        plain_decimal(grams.value, 4),
        plain_decimal(kwh.value, 4),
        country.name,
        country.g_per_kwh,
        country.year
    );
    let ratio = implied / country.g_per_kwh;
    if (ratio * 1e3).max(1.0 / (ratio * 1e3)) < INTENSITY_FACTOR {
        say(
            Severity::Error,
            "kilograms-for-grams",
            grams.line,
            format!(
                "`emissions: {}` fit the energy as kilograms, and the Hub reads grams",
                plain_decimal(grams.value, 4)
            ),
            &reckoned,
        );
    } else if ratio.max(1.0 / ratio) > INTENSITY_FACTOR
        && let Some(own) = own
    {
        say(
            Severity::Note,
            "own-intensity",
            own.line,
            format!(
                "the body reckons with {} g/kWh, which is not the yearly average of {}",
                plain_decimal(own.value, 3),
                country.name
            ),
            &format!("{reckoned}; its source stands beside it"),
        );
    } else if ratio.max(1.0 / ratio) > INTENSITY_FACTOR {
        say(
            Severity::Warning,
            "implied-intensity",
            grams.line,
            format!(
                "the figures imply {} g/kWh, which is not the electricity of {}",
                plain_decimal(implied, 3),
                country.name
            ),
            &reckoned,
        );
    }
}

/// `8 x A100`, `8 A100 GPUs`, `A100 x 8`: how many. One where it is not said.
fn devices(hardware: &str) -> f64 {
    let words: Vec<&str> = hardware.split_whitespace().collect();
    let count = |word: &str| {
        word.trim_end_matches(['x', '×', 'X'])
            .trim_start_matches(['x', '×', 'X'])
            .parse::<u32>()
            .ok()
            .filter(|count| (1..=100_000).contains(count))
    };
    let before = words.first().and_then(|word| count(word));
    let after = words
        .windows(2)
        .find(|pair| matches!(pair[0], "x" | "×" | "X"))
        .and_then(|pair| count(pair[1]));
    f64::from(before.or(after).unwrap_or(1))
}

fn check_watts(claims: &Claims, say: &mut Say) {
    let (Some(stated), Some(hours)) = (&claims.hardware, &claims.hours) else {
        return;
    };
    let by_intensity = || {
        let grams = claims.grams.as_ref()?;
        let place = claims.place.as_ref().or(claims.body_place.as_ref())?;
        let country = country(&place.value)?;
        Some((
            grams.value / country.g_per_kwh,
            format!(
                "{} g at {:.0} g/kWh",
                plain_decimal(grams.value, 4),
                country.g_per_kwh
            ),
        ))
    };
    let by_energy = claims
        .kwh
        .as_ref()
        .or(claims.body_kwh.as_ref())
        .map(|kwh| (kwh.value, format!("{} kWh", plain_decimal(kwh.value, 4))));
    let Some((kwh, from)) = by_energy.or_else(by_intensity) else {
        return;
    };
    let gpu = hardware::find(&stated.value);
    let rated = gpu
        .map(|row| (row.name, row.watts))
        .or_else(|| processors::find(&stated.value).map(|row| (row.name, row.tdp_watts)));
    let Some((name, rated)) = rated else { return };
    let count = devices(&stated.value);
    let implied = kwh * 1e3 / hours.value / count;
    let reckoned = format!(
        "{from} / {} h / {count}; a {name} is rated at {rated} W",
        plain_decimal(hours.value, 4)
    );
    let impossible = implied > WATTS_HIGH * rated;
    if impossible || (gpu.is_some() && implied < WATTS_LOW * rated) {
        say(
            Severity::Warning,
            "implied-watts",
            hours.line,
            format!(
                "the figures imply {} W for each device, {}",
                plain_decimal(implied, 3),
                if impossible {
                    "more than it and its share of a machine can draw"
                } else {
                    "less than a training draws"
                }
            ),
            &reckoned,
        );
    }
}
