//! The record in other formats, each as its readers take it.

mod common;

use std::fs;

use common::record;
use sparsam_tracker::EnergyRecord;
use sparsam_tracker::export::{
    About, CSV_COLUMNS, append_csv, boamps, climate_card, csv_row, record_json,
};

fn column(record: &EnergyRecord, name: &str) -> String {
    let index = CSV_COLUMNS.iter().position(|c| *c == name).unwrap();
    csv_row(record)[index].clone()
}

#[test]
fn a_row_is_in_codecarbons_units() {
    let record = record(Some("DEU"));
    let number = |name: &str| column(&record, name).parse::<f64>().unwrap();
    assert!(
        (number("emissions") - 0.000_457_14).abs() < 1e-6,
        "kilograms"
    );
    assert!(
        (number("energy_consumed") - 0.0012).abs() < 1e-12,
        "kilowatt-hours"
    );
    assert!(
        (number("cpu_power") - 0.001 * 3.6e6 / 150.0).abs() < 1e-9,
        "watts"
    );
    let rate = number("emissions") / number("duration");
    assert!((number("emissions_rate") / rate - 1.0).abs() < 1e-9);
    assert_eq!(column(&record, "country_iso_code"), "DEU");
    assert_eq!(column(&record, "gpu_energy"), "", "no GPU is no zero");
    assert_eq!(column(&record, "latitude"), "");
    assert_eq!(column(&common::record(None), "emissions"), "");
}

#[test]
fn a_table_grows_and_another_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("emissions.csv");
    let mut record = record(Some("DEU"));
    record.name = "a, \"b\"".into();
    append_csv(&path, &record).unwrap();
    append_csv(&path, &record).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(text.starts_with("timestamp,project_name,run_id,"));
    assert!(text.contains(",\"a, \"\"b\"\"\","));
    fs::write(&path, "other,columns\n1,2\n").unwrap();
    append_csv(&path, &record).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    let kept = fs::read_to_string(folder.path().join("emissions.1.csv")).unwrap();
    assert_eq!(kept, "other,columns\n1,2\n");
}

#[test]
fn codecarbons_own_columns_are_those() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        return; // The order is written down above.
    };
    let folder = std::path::Path::new(&shared).join("data/codecarbon");
    let text = fs::read_to_string(folder.join("codecarbon-tests-valid-38col.csv")).unwrap();
    assert_eq!(
        text.lines().next().unwrap().trim_end(),
        CSV_COLUMNS.join(",")
    );
}

#[test]
fn boamps_has_what_its_schema_requires() {
    let about = About {
        base_model: Some("someone/base".into()),
        quantization: Some("nf4".into()),
        examples: Some(2000),
        ..About::default()
    };
    let report = boamps(&record(Some("DEU")), &about);
    for key in ["task", "measures", "infrastructure"] {
        assert!(report.get(key).is_some(), "{key}");
    }
    let task = &report["task"];
    assert_eq!(task["taskStage"], "finetuning");
    assert_eq!(task["algorithms"][0]["foundationModelName"], "someone/base");
    assert_eq!(task["dataset"][0]["dataQuantity"], 2000);
    let measure = &report["measures"][0];
    assert!((measure["powerConsumption"].as_f64().unwrap() - 0.0012).abs() < 1e-12);
    assert_eq!(measure["measurementDuration"], 150.0);
    assert!(measure.get("gpuTrackingMode").is_none());
    assert_eq!(report["environment"]["country"], "Germany");
    assert_eq!(report["infrastructure"]["components"][0]["share"], 0.125);
    assert_eq!(
        report["quality"], "low",
        "0.7 to 2.1 around 1.2 is more than 25 %"
    );
    let nowhere = boamps(&record(None), &About::default());
    assert!(
        nowhere.get("environment").is_none(),
        "an unknown place is not named"
    );
}

#[test]
fn the_climate_card_answers_every_question() {
    let text = climate_card(&record(Some("DEU")), &About::default());
    for number in 1..=11 {
        assert!(
            text.contains(&format!("\n| {number}. ")),
            "{number}: {text}"
        );
    }
    assert!(text.contains("| Germany |"));
    assert!(text.contains("| 0.457 g (0.267 to 0.8) |"));
    assert!(text.contains("24 W on average (measured)"));
}

#[test]
fn records_of_earlier_versions_are_read() {
    let record = record(Some("DEU"));
    let mut json: serde_json::Value = serde_json::from_str(&record_json(&record)).unwrap();
    let back: EnergyRecord = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(back, record);
    for key in [
        "contains",
        "baseline",
        "net_energy_kwh",
        "embodied",
        "water",
        "comparisons",
    ] {
        json.as_object_mut().unwrap().remove(key).unwrap();
    }
    let old: EnergyRecord = serde_json::from_value(json).unwrap();
    assert_eq!(old.energy_kwh, record.energy_kwh);
    assert!(old.comparisons.is_empty());
}
