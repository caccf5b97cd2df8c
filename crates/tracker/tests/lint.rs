//! The linter against the mistakes that are made in real cards, and against cards without one.

mod common;

use common::record;
use sparsam_tracker::card::edit::{Details, update};
use sparsam_tracker::card::lint::{Severity, lint, render, worst};

fn card(block: &str, body: &str) -> String {
    format!("---\nlicense: mit\nco2_eq_emissions:\n{block}---\n# T\n\n{body}\n")
}

const A100: &str = "  source: CodeCarbon\n  training_type: fine-tuning\n  geographical_location: Germany\n  \
                    hardware_used: NVIDIA A100-SXM4-40GB\n";

fn codes(text: &str) -> Vec<(&'static str, usize)> {
    lint(text.as_bytes())
        .iter()
        .map(|finding| (finding.code, finding.line))
        .collect()
}

fn codes_and_severities(text: &str) -> Vec<(&'static str, Severity)> {
    lint(text.as_bytes())
        .iter()
        .map(|finding| (finding.code, finding.severity))
        .collect()
}

#[test]
fn a_card_that_adds_up_has_no_finding() {
    let body = "- **Training time**: ~ 280 hours\n- **Emissions:** 41.1 KgCO2 (Germany)\n\
                - **Total energy consumption:** 115.69 kWh\n";
    assert_eq!(
        codes(&card(&format!("  emissions: 41100\n{A100}"), body)),
        []
    );
    let ours = update(b"# T\n", &[record(Some("DEU"))], &Details::default()).unwrap();
    assert_eq!(lint(&ours), [], "what we write passes our own check");
}

#[test]
fn kilograms_are_told_from_grams_by_the_body_and_by_the_energy() {
    let body = "- **Emissions:** 41.1 KgCO2 (Germany)\n";
    let by_body = lint(card(&format!("  emissions: 41.1\n{A100}"), body).as_bytes());
    assert_eq!(
        (by_body[0].code, by_body[0].line),
        ("kilograms-for-grams", 4)
    );
    assert_eq!(worst(&by_body), Some(Severity::Error));
    let block = format!("  emissions: 41.1\n  energy_consumed: 115.69\n{A100}");
    assert_eq!(codes(&card(&block, "")), [("kilograms-for-grams", 4)]);
}

#[test]
fn an_intensity_no_grid_of_the_country_has_is_found() {
    let block = format!("  emissions: 0.2\n{A100}");
    let body =
        "- **Emissions:** 0.0002 KgCO2 (Germany)\n- **Total Energy Consumption:** 0.10 kWh\n";
    let findings = lint(card(&block, body).as_bytes());
    assert_eq!(findings[0].code, "implied-intensity");
    assert!(
        findings[0].message.contains("imply 2 g/kWh"),
        "{:?}",
        findings[0]
    );
    assert!(
        findings[0].reason.contains("Germany had 3"),
        "{:?}",
        findings[0]
    );
}

#[test]
fn an_intensity_of_its_own_that_the_body_states_is_for_the_reader_to_judge() {
    let of = |factor: &str| {
        let block = format!("  emissions: 2.1\n{A100}");
        let body = format!(
            "- **Emissions:** 0.0021 KgCO2 (Germany)\n- **Total Energy Consumption:** 0.05 kWh\n\n\
             Emissions are energy x PUE {factor} (contract with the utility, 2026)\n"
        );
        codes_and_severities(&card(&block, &body))
    };
    assert_eq!(of("1.2 x 35 g/kWh"), [("own-intensity", Severity::Note)]);
    // What it says it multiplied by must be what its figures are.
    for other in ["1.2 x 350 g/kWh", "1 x 1 to 5 g/kWh", "35 g/kWh"] {
        assert_eq!(
            of(other),
            [("implied-intensity", Severity::Warning)],
            "{other}"
        );
    }
}

#[test]
fn watts_beyond_and_below_the_hardware_are_found() {
    let block = format!("  emissions: 41100\n{A100}");
    let hours = |h: &str| {
        format!("- **Training time**: {h} hours\n- **Total energy consumption:** 115.69 kWh\n")
    };
    assert_eq!(codes(&card(&block, &hours("30"))), [("implied-watts", 12)]);
    assert_eq!(
        codes(&card(&block, &hours("4000"))),
        [("implied-watts", 12)]
    );
    // Eight of them may draw eight times as much.
    let eight = block.replace("NVIDIA A100-SXM4-40GB", "8 x NVIDIA A100-SXM4-40GB");
    assert_eq!(codes(&card(&eight, &hours("40"))), []);
}

#[test]
fn numbers_the_hub_reads_wrongly_are_found() {
    for (number, code) in [
        ("1.2e-05", "exponent"),
        ("17g", "not-a-number"),
        ("\"1,234\"", "not-a-number"),
        ("0", "nothing-emitted"),
    ] {
        let findings = lint(card(&format!("  emissions: {number}\n{A100}"), "").as_bytes());
        assert_eq!((findings[0].code, findings[0].line), (code, 4), "{number}");
    }
    let findings = lint(card(&format!("  emissions: \"1,234\"\n{A100}"), "").as_bytes());
    assert!(findings[0].reason.contains("here 1,"), "{:?}", findings[0]);
    let findings = lint(card(&format!("  emissions: 1.2e-05\n{A100}"), "").as_bytes());
    assert!(
        findings[0].reason.contains("reads 1.2 g; write 0.000012"),
        "{:?}",
        findings[0]
    );
}

#[test]
fn body_and_front_matter_are_compared() {
    let body = "- **Emissions:** 0.15 KgCO2 (Singapore)\n";
    let block = format!("  emissions: 150\n{A100}");
    assert_eq!(codes(&card(&block, body)), [("place-differs", 7)]);
    let block = format!("  emissions: 250\n{A100}");
    assert_eq!(
        codes(&card(&block, "- **Emissions:** 0.15 KgCO2\n")),
        [("body-differs", 4)]
    );
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(codes("# T\n"), [("no-block", 1)]);
    assert_eq!(
        codes("---\nco2_eq_emissions: 12\n---\n"),
        [("bare-number", 2)]
    );
    assert_eq!(
        codes("---\nco2_eq_emissions:\n  source: x\n---\n"),
        [
            ("missing-key", 2),
            ("missing-key", 2),
            ("missing-key", 2),
            ("no-emissions", 2)
        ]
    );
    let findings = lint(b"---\na: [\n---\n");
    assert_eq!(
        (findings[0].code, findings[0].severity),
        ("unreadable", Severity::Error)
    );
    let lines = render("README.md", &findings);
    assert!(
        lines[0].starts_with("README.md:") && lines[0].ends_with("[unreadable]"),
        "{lines:?}"
    );
}

#[test]
fn real_cards_are_judged_as_a_reader_would() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        return; // The same mistakes are above.
    };
    let folder = std::path::Path::new(&shared).join("data/cards");
    let codes_of = |name: &str| {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        lint(&bytes).iter().map(|f| f.code).collect::<Vec<_>>()
    };
    assert_eq!(
        codes_of("Nkluge-correa__Cards_models_Aira-2-124M-DPO.md"),
        ["place-differs"]
    );
    assert_eq!(
        codes_of("Nkluge-correa__Cards_models_ToxiGuardrail.md"),
        ["implied-intensity"]
    );
    assert!(codes_of("Nkluge-correa__cards_models_TeenyTinyLlama-460m.md").is_empty());
}
