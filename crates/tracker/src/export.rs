//! The record in other formats: JSON as it is, codecarbon's `emissions.csv`, a BoAmps report, and the
//! answers to the Climate Performance Model Card. Each is a view of the same record; what a format asks
//! and the record does not know is left out and never guessed.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::card::TrainingKind;
use crate::format;
use crate::meter::{Component, Method};
use crate::record::EnergyRecord;
use crate::summary;

/// The record as JSON, ending in a line feed.
pub fn record_json(record: &EnergyRecord) -> String {
    let mut text = serde_json::to_string_pretty(record).unwrap_or_default();
    text.push('\n');
    text
}

/// codecarbon's columns, in the order of its version 3.3.
pub const CSV_COLUMNS: [&str; 38] = [
    "timestamp",
    "project_name",
    "run_id",
    "experiment_id",
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "cloud_provider",
    "cloud_region",
    "os",
    "python_version",
    "codecarbon_version",
    "cpu_count",
    "cpu_model",
    "gpu_count",
    "gpu_model",
    "longitude",
    "latitude",
    "ram_total_size",
    "tracking_mode",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "on_cloud",
    "pue",
    "wue",
];

/// The record as one row of codecarbon's table: kilograms, kilowatt-hours, watts, litres, seconds.
///
/// Energies are those of the machine, without PUE; emissions are with it. Columns that are not known
/// are empty: codecarbon's exact coordinates among them, which a table should not carry.
pub fn csv_row(record: &EnergyRecord) -> [String; 38] {
    let number = |value: f64| format::plain_decimal(value, 12);
    let seconds = record.duration_seconds;
    let energy = |kind: Component| -> Option<f64> {
        let mut parts = record
            .components
            .iter()
            .filter(|c| c.component == kind)
            .map(|c| c.energy_kwh.central)
            .peekable();
        parts.peek()?;
        Some(parts.sum())
    };
    let power = |kind: Component| {
        energy(kind)
            .filter(|_| seconds > 0.0)
            .map(|kwh| number(kwh * 3.6e6 / seconds))
            .unwrap_or_default()
    };
    let kwh = |kind: Component| energy(kind).map(number).unwrap_or_default();
    let kilograms = record.emissions_g.central.map(|grams| grams / 1e3);
    let gpus = &record.hardware.gpus;
    let site = record.water.as_ref().map(|water| water.rates.site);
    [
        record.ended.trim_end_matches('Z').to_owned(),
        record.name.clone(),
        run_id(record),
        String::new(),
        number(seconds),
        kilograms.map(number).unwrap_or_default(),
        kilograms
            .filter(|_| seconds > 0.0)
            .map(|kg| number(kg / seconds))
            .unwrap_or_default(),
        power(Component::Cpu),
        power(Component::Gpu),
        power(Component::Ram),
        kwh(Component::Cpu),
        kwh(Component::Gpu),
        kwh(Component::Ram),
        number(record.energy_kwh.central),
        record
            .water
            .as_ref()
            .map(|water| number(water.litres.central))
            .unwrap_or_default(),
        place(record, |place| &place.name),
        place(record, |place| &place.alpha3),
        String::new(),
        String::new(),
        String::new(),
        std::env::consts::OS.to_owned(),
        String::new(),
        format!("sparsam-tracker {}", env!("CARGO_PKG_VERSION")),
        record
            .hardware
            .cpu_threads
            .map(|(usable, _)| usable.to_string())
            .unwrap_or_default(),
        record.hardware.cpu.clone().unwrap_or_default(),
        gpus.len().to_string(),
        gpu_model(gpus),
        String::new(),
        String::new(),
        record
            .hardware
            .ram_bytes
            .map(|bytes| number(bytes as f64 / f64::from(1u32 << 30)))
            .unwrap_or_default(),
        "machine".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
        number(record.pue.value),
        site.map(number).unwrap_or_default(),
    ]
}

fn run_id(record: &EnergyRecord) -> String {
    format!("{}-{}", record.name, record.started)
}

/// Whether the table holds a row of this run.
///
/// # Errors
/// The file is there and cannot be read.
pub fn csv_holds(path: &Path, record: &EnergyRecord) -> io::Result<bool> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.contains(&format!(",{},", csv_field(&run_id(record))))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn place(record: &EnergyRecord, of: impl Fn(&crate::record::Place) -> &str) -> String {
    record
        .place
        .as_ref()
        .map(|place| of(place).to_owned())
        .unwrap_or_default()
}

/// `2 x NVIDIA A100`, as codecarbon writes it.
fn gpu_model(gpus: &[String]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for gpu in gpus {
        match kinds.iter_mut().find(|(kind, _)| kind == gpu) {
            Some((_, count)) => *count += 1,
            None => kinds.push((gpu, 1)),
        }
    }
    let parts: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("{count} x {kind}"))
        .collect();
    parts.join(", ")
}

/// A field as RFC 4180 wants it.
fn csv_field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn csv_line(fields: impl Iterator<Item = String>) -> String {
    let fields: Vec<String> = fields.map(|field| csv_field(&field)).collect();
    fields.join(",") + "\n"
}

/// Appends the record to a table, and makes the table where there is none. A file with other columns is
/// kept beside as `emissions.1.csv`, `emissions.2.csv`, ….
///
/// # Errors
/// The file cannot be read, moved or written.
pub fn append_csv(path: &Path, record: &EnergyRecord) -> io::Result<()> {
    let header = csv_line(CSV_COLUMNS.iter().map(|column| (*column).to_owned()));
    let row = csv_line(csv_row(record).into_iter());
    let existing = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match existing {
        Some(text) if text.lines().next() == Some(header.trim_end()) => {
            let mut file = fs::File::options().append(true).open(path)?;
            let gap = if text.ends_with('\n') { "" } else { "\n" };
            file.write_all(format!("{gap}{row}").as_bytes())
        }
        Some(_) => {
            for number in 1u32.. {
                let aside = path.with_extension(format!("{number}.csv"));
                if !aside.try_exists()? {
                    fs::rename(path, aside)?;
                    break;
                }
            }
            crate::track::write_beside(path, format!("{header}{row}").as_bytes())
        }
        None => crate::track::write_beside(path, format!("{header}{row}").as_bytes()),
    }
}

/// What a BoAmps report and a climate card ask beyond the record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct About {
    /// Fine-tuning or pre-training.
    pub training: TrainingKind,
    /// The base model's name.
    pub base_model: Option<String>,
    /// Billions of parameters.
    pub billion_parameters: Option<f64>,
    /// Passes over the training data.
    pub epochs: Option<f64>,
    /// `lora`, `adam`.
    pub optimizer: Option<String>,
    /// `fp32`, `nf4`.
    pub quantization: Option<String>,
    /// Number of training examples.
    pub examples: Option<u64>,
    /// The provider's name, for rented machines.
    pub cloud_provider: Option<String>,
    /// Where the model is published, if it is.
    pub published: Option<String>,
    /// Energy and emissions of all experiments, where those of further runs were added up.
    pub all_runs: Option<EnergyRecord>,
}

/// A report in the BoAmps format (Boavizta, format version 0.1, CC BY 4.0).
pub fn boamps(record: &EnergyRecord, about: &About) -> Value {
    let mut algorithm = Map::new();
    algorithm.insert("algorithmType".into(), "llm".into());
    algorithm.insert("framework".into(), "sparsam".into());
    algorithm.insert("frameworkVersion".into(), env!("CARGO_PKG_VERSION").into());
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            algorithm.insert(key.to_owned(), value);
        }
    };
    set("trainingType", Some("supervisedLearning".into()));
    set(
        "foundationModelName",
        about.base_model.clone().map(Value::from),
    );
    set(
        "parametersNumber",
        about.billion_parameters.map(Value::from),
    );
    set("epochsNumber", about.epochs.map(Value::from));
    set("optimizer", about.optimizer.clone().map(Value::from));
    set("quantization", about.quantization.clone().map(Value::from));
    let mut dataset = json!({ "dataUsage": "input", "dataType": "text" });
    if let Some(examples) = about.examples {
        dataset["dataQuantity"] = examples.into();
    }
    let mut report = json!({
        "header": {
            "licensing": "Creative Commons 4.0",
            "formatVersion": "0.1",
            "formatVersionSpecificationUri": "https://github.com/Boavizta/BoAmps/tree/main/model",
            "reportId": run_id(record),
            "reportDatetime": record.ended.replace('T', " ").trim_end_matches('Z'),
            "reportStatus": if record.ended_early { "draft" } else { "final" },
        },
        "task": {
            "taskStage": match about.training {
                TrainingKind::FineTuning => "finetuning",
                TrainingKind::PreTraining => "training",
            },
            "taskFamily": "text generation",
            "algorithms": [algorithm],
            "dataset": [dataset],
        },
        "measures": [measure(record)],
        "system": { "os": std::env::consts::OS },
        "software": { "language": "rust" },
        "infrastructure": {
            "infraType": if about.cloud_provider.is_some() { "publicCloud" } else { "onPremise" },
            "components": components(record),
        },
        "quality": quality(record),
    });
    if let Some(provider) = &about.cloud_provider {
        report["infrastructure"]["cloudProvider"] = provider.as_str().into();
    }
    if let Some(place) = &record.place {
        report["environment"] = json!({ "country": place.name });
        if let Some(g) = record.intensity.g_per_kwh.central {
            report["environment"]["powerSourceCarbonIntensity"] = g.into();
        }
    }
    report
}

/// The energy as the format has it; with the idle baseline as its calibration.
fn measure(record: &EnergyRecord) -> Value {
    let mode = |kind: Component| {
        let mut words: Vec<String> = Vec::new();
        for component in record.components.iter().filter(|c| c.component == kind) {
            let word = format!("{}: {}", component.method.name(), component.source);
            if !words.contains(&word) {
                words.push(word);
            }
        }
        words.join("; ")
    };
    let mut measure = json!({
        "measurementMethod": "sparsam-tracker",
        "version": env!("CARGO_PKG_VERSION"),
        "powerConsumption": record.energy_kwh.central,
        "measurementDuration": record.duration_seconds,
        "measurementDateTime": record.started.replace('T', " ").trim_end_matches('Z'),
    });
    for (key, kind) in [
        ("cpuTrackingMode", Component::Cpu),
        ("gpuTrackingMode", Component::Gpu),
    ] {
        let words = mode(kind);
        if !words.is_empty() {
            measure[key] = words.into();
        }
    }
    if let Some(baseline) = record.baseline {
        measure["powerCalibrationMeasurement"] =
            (baseline.watts.central * baseline.seconds / 3.6e6).into();
        measure["durationCalibrationMeasurement"] = baseline.seconds.into();
    }
    measure
}

fn components(record: &EnergyRecord) -> Vec<Value> {
    let mut components = Vec::new();
    let mut gpus: Vec<(&str, u64)> = Vec::new();
    for gpu in &record.hardware.gpus {
        match gpus.iter_mut().find(|(name, _)| name == gpu) {
            Some((_, count)) => *count += 1,
            None => gpus.push((gpu, 1)),
        }
    }
    for (name, count) in gpus {
        components.push(json!({
            "componentName": name, "componentType": "gpu", "nbComponent": count, "share": 1,
        }));
    }
    let share = record
        .hardware
        .cpu_threads
        .filter(|(_, all)| *all > 0)
        .map_or(1.0, |(usable, all)| f64::from(usable) / f64::from(all));
    let mut cpu = json!({ "componentType": "cpu", "nbComponent": 1, "share": share });
    if let Some(name) = &record.hardware.cpu {
        cpu["componentName"] = name.as_str().into();
    }
    components.push(cpu);
    if let Some(bytes) = record.hardware.ram_bytes {
        let gigabytes = (bytes as f64 / 1e9).round() as u64;
        components.push(json!({
            "componentType": "ram", "nbComponent": 1, "memorySize": gigabytes,
        }));
    }
    components
}

/// The format's three classes are errors of 10, 25 and 50 %.
fn quality(record: &EnergyRecord) -> &'static str {
    let range = record.energy_kwh;
    if range.central <= 0.0 {
        return "low";
    }
    let error = (range.high - range.central).max(range.central - range.low) / range.central;
    if error <= 0.10 {
        "high"
    } else if error <= 0.25 {
        "medium"
    } else {
        "low"
    }
}

/// The questions of the Climate Performance Model Card (Hershcovich et al. 2022, "Towards Climate
/// Awareness in NLP Research"), answered from the record, as Markdown.
pub fn climate_card(record: &EnergyRecord, about: &About) -> String {
    let mut out = String::from("| Climate performance model card | |\n|---|---|\n");
    let mut row = |question: &str, answer: &str| {
        let _ = writeln!(out, "| {question} | {} |", answer.replace('|', "\\|"));
    };
    let all = about.all_runs.as_ref();
    let unknown = "not counted".to_owned();
    row(
        "1. Is the resulting model publicly available?",
        &about
            .published
            .as_ref()
            .map_or_else(|| "not stated".to_owned(), |place| format!("yes, {place}")),
    );
    row(
        "2. How much time does the training of the final model take?",
        &format::duration(record.duration_seconds),
    );
    row(
        "3. How much time did all experiments take (incl. hyperparameter search)?",
        &all.map_or_else(|| unknown.clone(), |r| format::duration(r.duration_seconds)),
    );
    row(
        "4. What was the power of GPU and CPU?",
        &power_words(record),
    );
    row(
        "5. At which geo location were the computations performed?",
        &record
            .place
            .as_ref()
            .map_or_else(|| "not stated".to_owned(), |place| place.name.clone()),
    );
    row(
        "6. What was the energy mix at the geo location?",
        &match record.intensity.g_per_kwh.central {
            Some(_) => summary::formula(record),
            None => record.intensity.source.clone(),
        },
    );
    row(
        "7. How much CO2eq was emitted to train the final model?",
        &format::grams(record.emissions_g),
    );
    row(
        "8. How much CO2eq was emitted for all experiments?",
        &all.map_or_else(|| unknown.clone(), |r| format::grams(r.emissions_g)),
    );
    row(
        "9. What is the average CO2eq emission for the inference of one sample?",
        "not counted",
    );
    row(
        "10. Which positive environmental impact can be expected from this work?",
        "to be answered by the authors",
    );
    row("11. Comments", &comments(record));
    out
}

/// Mean power by kind, and what it was won from.
fn power_words(record: &EnergyRecord) -> String {
    if record.duration_seconds <= 0.0 {
        return record.hardware.line();
    }
    let parts: Vec<String> = record
        .components
        .iter()
        .map(|c| {
            format!(
                "{} {} W on average ({})",
                c.label,
                format::plain_decimal(c.energy_kwh.central * 3.6e6 / record.duration_seconds, 3),
                c.method.name()
            )
        })
        .collect();
    format!("{}; {}", record.hardware.line(), parts.join(", "))
}

fn comments(record: &EnergyRecord) -> String {
    let modelled = record
        .components
        .iter()
        .any(|component| component.method != Method::Measured);
    let mut words = vec![format!(
        "energy {}, {} measured",
        format::energy(record.energy_kwh),
        format::percent(record.measured_share)
    )];
    if modelled {
        words.push("the rest is modelled, within the bounds given".to_owned());
    }
    words.push(format!("not included: {}", record.not_included.join(", ")));
    words.join("; ")
}
