//! The body: what the model is, how to use it, how it was trained and evaluated, and what that cost.
//! The five labels of Hugging Face's Environmental Impact section stand word for word, so that parsers
//! find them; our table by component follows.

use std::fmt::Write as _;

use super::{CardInputs, ModelKind, TrainingKind};
use crate::format;
use crate::intensity::CarbonIntensity;
use crate::record::EnergyRecord;
use crate::summary;

/// All after the front matter.
pub(super) fn render(inputs: &CardInputs, record: &EnergyRecord) -> String {
    let mut sections = vec![
        format!("# {}\n\n{}", text(&inputs.title), introduction(inputs)),
        usage(inputs),
        training(inputs),
    ];
    sections.extend(evaluation(inputs));
    sections.push(environmental_impact(
        inputs,
        record,
        &[],
        "The same record is in `run.json`; the readings, joules by component and time, are in \
         `energy.jsonl` in the folder of the run",
    ));
    sections.join("\n")
}

/// User text within a paragraph: one line, with the characters that would start markup escaped.
pub(super) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        if matches!(
            c,
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#'
        ) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// User text as code within a paragraph or table: the fence is longer than any inside.
fn code(raw: &str) -> String {
    let line = raw
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|");
    let longest = line.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    if longest > 0 {
        format!("{fence} {line} {fence}")
    } else {
        format!("{fence}{line}{fence}")
    }
}

/// User text as a string of Python: JSON's form is one.
fn python(raw: &str) -> String {
    serde_json::Value::from(raw).to_string()
}

fn introduction(inputs: &CardInputs) -> String {
    let what = match (inputs.kind, inputs.training) {
        (_, TrainingKind::PreTraining) => {
            "A language model, trained from random weights".to_owned()
        }
        (ModelKind::Adapter, _) if inputs.classes.is_some() => format!(
            "A text classifier: a LoRA adapter and a head for {}",
            code(inputs.base_name())
        ),
        (_, _) if inputs.classes.is_some() => {
            format!("A text classifier made of {}", code(inputs.base_name()))
        }
        (ModelKind::Adapter, _) => format!("A LoRA adapter for {}", code(inputs.base_name())),
        (ModelKind::Full, _) => format!("A fine-tuned version of {}", code(inputs.base_name())),
        (ModelKind::Merged, _) => format!(
            "A fine-tuned version of {}: a LoRA adapter merged into it",
            code(inputs.base_name())
        ),
        (ModelKind::Gguf, _) => format!(
            "A fine-tuned version of {}: a LoRA adapter merged into it, as GGUF",
            code(inputs.base_name())
        ),
    };
    let mut out = format!("{what}, made with [sparsam](https://github.com/sparsam/sparsam)");
    if !inputs.version.is_empty() {
        let _ = write!(out, " {}", text(&inputs.version));
    }
    out.push_str(".\n");
    if let Some(description) = &inputs.description {
        let _ = write!(out, "\n{}\n", text(description));
    }
    out
}

fn usage(inputs: &CardInputs) -> String {
    let mut out = String::from("## How to use it\n");
    if let Some(command) = &inputs.command {
        let _ = write!(
            out,
            "\nWith sparsam:\n\n```sh\n{}\n```\n",
            command.replace("```", "")
        );
    }
    if inputs.kind == ModelKind::Adapter && inputs.base_name().starts_with("builtin:") {
        let _ = write!(
            out,
            "\nThe folder is a PEFT adapter. Its base {} is part of sparsam; to use the adapter elsewhere, \
             load that model first and give it to `PeftModel.from_pretrained`.\n",
            code(inputs.base_name())
        );
        return out;
    }
    if inputs.kind == ModelKind::Gguf {
        if let Some(command) = &inputs.other_command {
            let library = inputs.kind.library();
            let command = command.replace("```", "");
            let _ = write!(out, "\nWith {library}:\n\n```sh\n{command}\n```\n");
        }
        return out;
    }
    let prompt = python(inputs.example_prompt.as_deref().unwrap_or("Hello"));
    let folder = "path/to/this/folder";
    if let Some(classes) = &inputs.classes {
        out.push_str(&classifying(inputs, classes.labels.len(), &prompt, folder));
        return out;
    }
    let loading = match inputs.kind {
        ModelKind::Adapter => format!(
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             base = {}\ntokenizer = AutoTokenizer.from_pretrained(base)\n\
             model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), \"{folder}\")\n",
            python(inputs.base_name())
        ),
        ModelKind::Full | ModelKind::Merged | ModelKind::Gguf => format!(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{folder}\")\n\
             model = AutoModelForCausalLM.from_pretrained(\"{folder}\")\n"
        ),
    };
    let library = inputs.kind.library();
    let inputs_of = if inputs.chat {
        format!(
            "messages = [{{\"role\": \"user\", \"content\": {prompt}}}]\n\
             inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, \
             return_dict=True, return_tensors=\"pt\")"
        )
    } else {
        format!("inputs = tokenizer({prompt}, return_tensors=\"pt\")")
    };
    let _ = write!(
        out,
        "\nWith {library}:\n\n```python\n{loading}\n\
         {inputs_of}\n\
         output = model.generate(**inputs, max_new_tokens=64)\n\
         print(tokenizer.decode(output[0], skip_special_tokens=True))\n```\n"
    );
    out
}

/// How a classifier is used from Python.
fn classifying(inputs: &CardInputs, classes: usize, prompt: &str, folder: &str) -> String {
    let loading = match inputs.kind {
        ModelKind::Adapter => format!(
            "import json\nfrom peft import PeftModel\n\
             from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
             base = {}\ntokenizer = AutoTokenizer.from_pretrained(base)\n\
             label2id = json.load(open(\"{folder}/labels.json\"))[\"label2id\"]\n\
             model = AutoModelForSequenceClassification.from_pretrained(\n    \
             base, num_labels={classes}, label2id=label2id, id2label={{i: name for name, i in label2id.items()}})\n\
             model = PeftModel.from_pretrained(model, \"{folder}\").eval()\n",
            python(inputs.base_name())
        ),
        ModelKind::Full | ModelKind::Merged | ModelKind::Gguf => format!(
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{folder}\")\n\
             model = AutoModelForSequenceClassification.from_pretrained(\"{folder}\").eval()\n"
        ),
    };
    let library = inputs.kind.library();
    format!(
        "\nWith {library}:\n\n```python\n{loading}\n\
         logits = model(**tokenizer({prompt}, return_tensors=\"pt\")).logits[0]\n\
         print(model.config.id2label[logits.argmax().item()], logits.softmax(-1).max().item())\n```\n"
    )
}

fn training(inputs: &CardInputs) -> String {
    let mut out = String::from("## Training\n");
    for sentence in &inputs.data {
        let _ = write!(out, "\n{}\n", text(sentence));
    }
    let local: Vec<String> = inputs
        .datasets
        .iter()
        .filter(|data| !data.is_on_hub())
        .map(|data| code(&data.name))
        .collect();
    if !local.is_empty() {
        let _ = write!(out, "\nLocal data, not on the Hub: {}.\n", local.join(", "));
    }
    if !inputs.recipe.is_empty() {
        out.push_str("\n| recipe | |\n|---|---|\n");
        for (key, value) in &inputs.recipe {
            let _ = writeln!(out, "| {} | {} |", code(key), code(value));
        }
    }
    out
}

fn evaluation(inputs: &CardInputs) -> Option<String> {
    if inputs.metrics.is_empty() {
        return None;
    }
    let mut out = String::from("## Evaluation\n\n");
    if let Some(data) = &inputs.evaluation_data {
        let _ = write!(out, "On {}, which was not trained on.\n\n", code(data));
    }
    let number = |value: f64| format::plain_decimal(value, 4);
    out.push_str("| metric | before | after |\n|---|---|---|\n");
    for metric in &inputs.metrics {
        let before = metric
            .before
            .map_or_else(|| "not measured".to_owned(), number);
        let _ = writeln!(
            out,
            "| {} | {before} | {} |",
            text(&metric.name),
            number(metric.after)
        );
    }
    if let Some(classes) = &inputs.classes {
        out.push_str(&classes.render());
    }
    Some(out)
}

/// The section of that name. `runs` are the runs that `record` adds up, where there are several;
/// `readings` says where a reader finds what was measured.
pub(super) fn environmental_impact(
    inputs: &CardInputs,
    record: &EnergyRecord,
    runs: &[EnergyRecord],
    readings: &str,
) -> String {
    let provider = inputs
        .cloud_provider
        .as_deref()
        .map_or_else(|| "none stated".to_owned(), text);
    let region = match (&inputs.compute_region, &record.place) {
        (Some(region), _) => text(region),
        (None, Some(place)) => text(&place.name),
        (None, None) => "not stated".to_owned(),
    };
    let mut out = format!(
        "## Environmental Impact\n\n\
         - **Hardware Type:** {}\n\
         - **Hours used:** {}\n\
         - **Cloud Provider:** {provider}\n\
         - **Compute Region:** {region}\n\
         - **Carbon Emitted:** {} CO2e\n\n",
        text(&record.hardware.line()),
        format::plain_decimal(record.duration_seconds / 3600.0, 3),
        format::grams(record.emissions_g),
    );
    if record.emissions_g.central.is_none() {
        out.push_str(
            "No country was given, so there is no single figure: the range runs over all countries, and \
             the front matter has no `co2_eq_emissions`.\n\n",
        );
    }
    if runs.len() > 1 {
        run_table(&mut out, runs);
    }
    components(&mut out, record);
    windows(&mut out, record);
    let _ = write!(
        out,
        "Energy {}, {} measured. Emissions are {}; PUE: {}. {}\n\n",
        format::energy(record.energy_kwh),
        format::percent(record.measured_share),
        text(&summary::formula(record)),
        text(&record.pue.source),
        basis(&record.intensity),
    );
    if record.ended_early {
        let _ = write!(out, "**Incomplete:** {}.\n\n", summary::ended_early(record));
    }
    if record.sessions as usize > runs.len().max(1) {
        let _ = write!(
            out,
            "{} resumed: {} sessions are added up.\n\n",
            if runs.len() > 1 {
                "Some runs were"
            } else {
                "The run was"
            },
            record.sessions
        );
    }
    if let Some(gaps) = summary::gaps(record) {
        let _ = write!(out, "{gaps}.\n\n");
    }
    for note in &record.notes {
        let _ = write!(out, "Note: {}.\n\n", text(note));
    }
    if !record.contains.is_empty() {
        let _ = write!(out, "Included: {}.\n\n", text(&record.contains.join("; ")));
    }
    let _ = write!(
        out,
        "Not included: {}.\n\n",
        text(&record.not_included.join("; "))
    );
    let beside = summary::beside(record);
    if !beside.is_empty() {
        out.push_str("Beside that figure and not in it:\n\n");
        for line in beside {
            let _ = writeln!(out, "- {}", text(&line));
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "To check it: {} x {} = {}. {readings}. Recorded from {} to {}.",
        format::energy_central(record.energy_kwh.central),
        check_factor(record),
        check_result(record),
        record.started,
        record.ended,
    );
    out
}

fn run_table(out: &mut String, runs: &[EnergyRecord]) {
    let _ = write!(
        out,
        "The sum of {} runs, failed ones included:\n\n| run | started | time | energy | CO2e | ended |\n\
         |---|---|---|---|---|---|\n",
        runs.len()
    );
    for run in runs {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            text(&run.name),
            run.started,
            format::duration(run.duration_seconds),
            format::energy_central(run.energy_kwh.central),
            format::grams(run.emissions_g),
            if run.ended_early {
                "early"
            } else {
                "as it should"
            },
        );
    }
    out.push('\n');
}

fn components(out: &mut String, record: &EnergyRecord) {
    out.push_str("| component | energy | range | method | source |\n|---|---|---|---|---|\n");
    for component in &record.components {
        let energy = component.energy_kwh;
        let range = if energy.is_exact() {
            "as stated".to_owned()
        } else {
            format::energy_bounds(energy)
        };
        let _ = writeln!(
            out,
            "| {} | {} | {range} | {} | {} |",
            text(&component.label),
            format::energy_central(energy.central),
            component.method.name(),
            text(&component.source),
        );
    }
    out.push('\n');
}

fn windows(out: &mut String, record: &EnergyRecord) {
    if record.windows.is_empty() {
        return;
    }
    out.push_str("| phase | time | energy |\n|---|---|---|\n");
    for window in &record.windows {
        let _ = writeln!(
            out,
            "| {} | {} | {} |",
            text(&window.path),
            format::duration(window.seconds),
            format::energy_central(window.energy_kwh.central),
        );
    }
    out.push('\n');
}

/// What kind of figure the intensity is.
fn basis(intensity: &CarbonIntensity) -> &'static str {
    let of_the_table = intensity.year.is_some() || intensity.g_per_kwh.central.is_none();
    match &intensity.live {
        Some(_) => {
            "They are location-based: what the grid emitted while the run went on, weighted by the energy drawn, \
             whatever the electricity contract."
        }
        None if of_the_table => {
            "They are location-based: the yearly average of the grid over its whole lifecycle, whatever the \
             electricity contract."
        }
        None => {
            "The intensity is the one that was stated, and not the yearly average of a country's grid."
        }
    }
}

fn check_factor(record: &EnergyRecord) -> String {
    let span = record.intensity.g_per_kwh;
    let pue = format::plain_decimal(record.pue.value, 3);
    match span.central {
        Some(g) => format!("{pue} x {} g/kWh", format::plain_decimal(g, 4)),
        None => format!("{pue} x {:.0} to {:.0} g/kWh", span.low, span.high),
    }
}

fn check_result(record: &EnergyRecord) -> String {
    let central = record.energy_kwh.central * record.pue.value;
    let span = record.intensity.g_per_kwh;
    match record.emissions_g.central {
        Some(grams) => format::grams(crate::range::Range::exactly(grams).into()),
        None => format::grams(crate::range::Span {
            low: central * span.low,
            central: None,
            high: central * span.high,
        }),
    }
}
