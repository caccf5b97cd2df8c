//! The front matter: what the Hub indexes. It holds only keys with a value, and only values the Hub
//! accepts: a base model or data set that is no Hub name would have the whole card refused, so it is
//! left to the body, with a comment in its place.

use std::fmt::Write as _;

use super::yaml::scalar;
use super::{CardInputs, ModelKind, Origin};
use crate::format::{SIGNIFICANT, plain_decimal};
use crate::record::EnergyRecord;

/// The Hub's licence identifiers in common use (huggingface.co/docs/hub/repositories-licenses). Any
/// other name goes under `license: other`, `license_name`, as that page asks.
const LICENSES: &[&str] = &[
    "afl-3.0",
    "agpl-3.0",
    "apache-2.0",
    "apple-ascl",
    "artistic-2.0",
    "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "bsl-1.0",
    "cc",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "cdla-sharing-1.0",
    "creativeml-openrail-m",
    "deepfloyd-if-license",
    "ecl-2.0",
    "epl-1.0",
    "epl-2.0",
    "eupl-1.1",
    "gemma",
    "gfdl",
    "gpl",
    "gpl-2.0",
    "gpl-3.0",
    "isc",
    "lgpl",
    "lgpl-2.1",
    "lgpl-3.0",
    "lgpl-lr",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "llama4",
    "lppl-1.3c",
    "mit",
    "mpl-2.0",
    "ms-pl",
    "ncsa",
    "odbl",
    "odc-by",
    "ofl-1.1",
    "open-mdw",
    "openrail",
    "openrail++",
    "osl-3.0",
    "other",
    "pddl",
    "postgresql",
    "unknown",
    "unlicense",
    "wtfpl",
    "zlib",
];

/// The lines between the `---`.
pub(super) fn render(inputs: &CardInputs, record: &EnergyRecord) -> String {
    let mut out = String::new();
    let library = inputs.kind.library_name();
    line(&mut out, &format!("library_name: {library}"));
    let base = inputs.base_model.as_ref();
    let base_on_hub = base.is_some_and(Origin::is_on_hub);
    if base_on_hub {
        line(
            &mut out,
            &format!("base_model: {}", scalar(inputs.base_name())),
        );
    } else if base.is_some() {
        line(
            &mut out,
            &format!(
                "# base_model: {} is not on the Hub, which refuses such names; put the published one here",
                scalar(inputs.base_name())
            ),
        );
    }
    license(&mut out, inputs);
    let on_hub: Vec<String> = inputs
        .datasets
        .iter()
        .filter(|data| data.is_on_hub())
        .map(|data| data.name.clone())
        .collect();
    list(&mut out, "datasets", &on_hub);
    list(&mut out, "language", &inputs.languages);
    line(&mut out, &format!("pipeline_tag: {}", task(inputs)));
    list(&mut out, "tags", &tags(inputs, base_on_hub));
    out.push_str(&emissions(inputs, record).unwrap_or_default());
    model_index(&mut out, inputs);
    out
}

/// The Hub's name for what the model does.
fn task(inputs: &CardInputs) -> &'static str {
    match inputs.classes {
        Some(_) => "text-classification",
        None => "text-generation",
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn list(out: &mut String, key: &str, values: &[String]) {
    if values.is_empty() {
        return;
    }
    line(out, &format!("{key}:"));
    for value in values {
        line(out, &format!("- {}", scalar(value)));
    }
}

fn license(out: &mut String, inputs: &CardInputs) {
    let Some(license) = inputs
        .license
        .as_deref()
        .map(str::trim)
        .filter(|l| !l.is_empty())
    else {
        return;
    };
    let lower = license.to_lowercase();
    if LICENSES.contains(&lower.as_str()) {
        line(out, &format!("license: {lower}"));
    } else {
        line(out, "license: other");
        line(out, &format!("license_name: {}", scalar(license)));
    }
}

fn tags(inputs: &CardInputs, base_on_hub: bool) -> Vec<String> {
    let mut tags = Vec::new();
    if base_on_hub {
        let relation = match inputs.kind {
            ModelKind::Adapter => "adapter",
            // A merged adapter changes the weights as training all of them does. The Hub's `merge` and
            // `quantized` are for models that nobody trained further.
            ModelKind::Full | ModelKind::Merged | ModelKind::Gguf => "finetune",
        };
        tags.push(format!("base_model:{relation}:{}", inputs.base_name()));
    }
    if inputs.kind != ModelKind::Full {
        tags.push("lora".to_owned());
    }
    if inputs.kind == ModelKind::Gguf {
        tags.push("gguf".to_owned());
    }
    tags.push("sparsam".to_owned());
    for tag in &inputs.tags {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    tags
}

/// The `co2_eq_emissions` block, in grams and kilowatt-hours. None where there is no single figure: the
/// Hub prints one number, and an unknown place has none.
pub(super) fn emissions(inputs: &CardInputs, record: &EnergyRecord) -> Option<String> {
    let grams = record.emissions_g.central?;
    let mut out = String::from("co2_eq_emissions:\n");
    let _ = writeln!(out, "  emissions: {}", plain_decimal(grams, SIGNIFICANT));
    let _ = writeln!(
        out,
        "  energy_consumed: {}",
        plain_decimal(record.energy_kwh.central, SIGNIFICANT)
    );
    let _ = writeln!(out, "  source: {}", scalar(&source(record)));
    let _ = writeln!(out, "  training_type: {}", inputs.training.name());
    if let Some(place) = &record.place {
        let _ = writeln!(out, "  geographical_location: {}", scalar(&place.name));
    }
    let _ = writeln!(out, "  hardware_used: {}", scalar(&record.hardware.line()));
    Some(out)
}

/// Who counted, and how much of it was measured.
fn source(record: &EnergyRecord) -> String {
    format!(
        "sparsam-tracker {}, {} measured",
        env!("CARGO_PKG_VERSION"),
        crate::format::percent(record.measured_share)
    )
}

fn model_index(out: &mut String, inputs: &CardInputs) {
    if inputs.metrics.is_empty() {
        return;
    }
    let data = inputs
        .evaluation_data
        .as_deref()
        .unwrap_or("evaluation split");
    line(out, "model-index:");
    line(out, &format!("- name: {}", scalar(&inputs.title)));
    line(out, "  results:");
    line(out, "  - task:");
    line(out, &format!("      type: {}", task(inputs)));
    line(out, "    dataset:");
    line(out, &format!("      name: {}", scalar(data)));
    line(out, &format!("      type: {}", scalar(data)));
    line(out, "    metrics:");
    for metric in &inputs.metrics {
        line(out, &format!("    - type: {}", scalar(&metric.kind)));
        line(out, &format!("      name: {}", scalar(&metric.name)));
        line(
            out,
            &format!("      value: {}", plain_decimal(metric.after, SIGNIFICANT)),
        );
    }
}
