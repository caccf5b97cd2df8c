//! What answering costs, through the public interface: from a measurement to the requests of a year.

use std::fs;
use std::path::{Path, PathBuf};

use sparsam_tracker::accounting::operational_g;
use sparsam_tracker::lifecycle::{
    BENCH_FILE, BENCH_VERSION, Bench, Lifecycle, Placeless, Requests, Work, card_section, gather,
    lines,
};
use sparsam_tracker::range::Span;
use sparsam_tracker::{Range, Stage};

mod common;

/// 10 requests of 50 tokens and 101 of answer: 20 s and 2 Wh, of which prompts take 5 s and 0.5 Wh.
fn bench() -> Bench {
    Bench {
        sparsam_inference: BENCH_VERSION,
        started: "2026-01-01T10:00:00Z".into(),
        model: "base".into(),
        adapter: Some("runs/a".into()),
        merged: false,
        quantize: "none".into(),
        device: "cpu".into(),
        hardware: "a computer".into(),
        batch: 1,
        prompt_tokens: 50,
        answer_tokens: 101,
        prefill: Work {
            requests: 20,
            seconds: 10.0,
            energy_kwh: Range::new(0.0005, 0.001, 0.002),
        },
        answers: Work {
            requests: 10,
            seconds: 20.0,
            energy_kwh: Range::new(0.001, 0.002, 0.004),
        },
        g_per_kwh: Range::exactly(500.0).into(),
        measured_share: 1.0,
    }
}

#[track_caller]
fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs().max(1e-12), "{a} is not {b}");
}

#[test]
fn reading_and_writing_are_apart_and_add_up() {
    let bench = bench();
    close(bench.prompt().energy_kwh.central, 0.001 / 20.0);
    close(bench.answer().energy_kwh.central, 0.0002);
    // 1.5 Wh for 10 answers of 100 tokens beyond the first.
    close(bench.token().energy_kwh.central, 0.0015 / 1000.0);
    close(bench.token().seconds, 15.0 / 1000.0);
    let [all, reading, writing] = bench.thousand();
    close(all.energy_kwh.central, 0.0002 / 101.0 * 1000.0);
    close(
        reading.energy_kwh.high + writing.energy_kwh.high,
        all.energy_kwh.high,
    );
    // As it was measured, a request costs what it cost; twice the prompt costs reading twice.
    close(bench.request(50.0, 101.0).energy_kwh.central, 0.0002);
    close(bench.request(100.0, 101.0).energy_kwh.central, 0.00025);
    close(bench.request(50.0, 1.0).energy_kwh.central, 0.00005);
    close(bench.request(50.0, 201.0).energy_kwh.central, 0.00035);
}

/// A run of 1 kWh in the stage train, one of 0.5 kWh in search, and one of 0.1 kWh in inference.
fn project(desk: &Path, benches: &[Bench]) -> Lifecycle {
    for (name, stage, kwh) in [
        ("train", Stage::Train, 1.0),
        ("search", Stage::Search, 0.5),
        ("answer", Stage::Inference, 0.1),
    ] {
        let mut record = common::record(Some("DEU"));
        record.name = name.into();
        record.stage = Some(stage);
        record.energy_kwh = Range::exactly(kwh);
        record.emissions_g = operational_g(record.energy_kwh, 1.0, record.intensity.g_per_kwh);
        let folder = desk.join(name);
        fs::create_dir_all(&folder).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        fs::write(folder.join("energy.json"), text).unwrap();
    }
    for (index, bench) in benches.iter().enumerate() {
        let folder = desk.join(format!("bench-{index}"));
        fs::create_dir_all(&folder).unwrap();
        let text = serde_json::to_string(bench).unwrap();
        fs::write(folder.join(BENCH_FILE), text).unwrap();
    }
    gather(&[desk.to_owned()], &Placeless::default(), &|_| None).unwrap()
}

fn year(per_day: f64) -> Requests {
    Requests {
        per_day,
        days: 365.0,
        prompt_tokens: None,
        answer_tokens: None,
    }
}

#[test]
fn expected_requests_stand_beside_the_sums_with_the_moment_they_overtake() {
    let desk = tempfile::tempdir().unwrap();
    let mut ledger = project(desk.path(), &[bench()]);
    let before = ledger.clone();
    ledger.expect(year(100.0)).unwrap();
    assert_eq!(ledger.energy_kwh, before.energy_kwh);
    assert_eq!(ledger.stages, before.stages);
    let expected = ledger.expected.as_ref().unwrap();
    // Answering itself is not what answering is held against.
    close(expected.training_kwh.central, 1.5);
    let way = &expected.ways[0];
    close(way.energy_kwh.central, 0.0002 * 36_500.0);
    close(way.energy_kwh.high, 0.0004 * 36_500.0);
    close(way.emissions_g.central.unwrap(), 0.0002 * 36_500.0 * 500.0);
    let after = way.overtakes_after.unwrap();
    close(after.central, 7500.0);
    close(after.low, 1.5 / 0.0004);
    close(after.high, 1.5 / 0.0001);
    let text = lines(&ledger).join("\n");
    for part in [
        "100 requests a day for 365 days",
        "adapter beside the base: 7.3 kWh (3.65 to 14.6), 3.65 kg (1.83 to 7.3) CO2e",
        "after 7,500 requests (3,750 to 15,000), on day 75",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let card = card_section(&ledger);
    assert!(
        card.contains("- expected for answering, 100 requests a day") && card.contains("on day 75"),
        "{card}"
    );
    // Longer answers, shorter requests.
    let mut asked = year(100.0);
    (asked.prompt_tokens, asked.answer_tokens) = (Some(25.0), Some(201.0));
    ledger.expect(asked).unwrap();
    let way = &ledger.expected.as_ref().unwrap().ways[0];
    close(way.request.energy_kwh.central, 0.000_025 + 0.0003);
}

#[test]
fn each_way_of_answering_has_its_line_and_the_last_measurement_counts() {
    let desk = tempfile::tempdir().unwrap();
    let old = bench();
    let mut new = bench();
    new.started = "2026-01-02T10:00:00Z".into();
    new.answers.energy_kwh = Range::exactly(0.003);
    let mut merged = bench();
    (merged.merged, merged.started) = (true, "2026-01-03T10:00:00Z".into());
    let mut quantised = merged.clone();
    quantised.quantize = "nf4".into();
    quantised.batch = 8;
    let mut ledger = project(desk.path(), &[new, quantised, merged, old]);
    ledger.expect(year(1.0)).unwrap();
    let names: Vec<&str> = ledger
        .expected
        .as_ref()
        .unwrap()
        .ways
        .iter()
        .map(|way| way.name.as_str())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for name in [
        "adapter beside the base",
        "adapter merged",
        "adapter merged, base in nf4, 8 at once",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let beside = ledger.inference.iter().find(|bench| !bench.merged).unwrap();
    close(beside.answers.energy_kwh.central, 0.003);

    // Another machine's ledger brings its measurements along.
    let file = desk.path().join("here.json");
    fs::write(&file, serde_json::to_string(&ledger).unwrap()).unwrap();
    let other = gather(&[file], &Placeless::default(), &|_| None).unwrap();
    assert_eq!(other.inference, ledger.inference);
    assert!(
        lines(&other)
            .join("\n")
            .contains("3 ways of answering were measured")
    );
}

#[test]
fn without_a_measurement_nothing_is_made_up() {
    let desk = tempfile::tempdir().unwrap();
    let mut ledger = project(desk.path(), &[]);
    let error = ledger.expect(year(1.0)).unwrap_err();
    assert!(error.to_string().contains("not known") && error.hint().is_some());
    let damaged: PathBuf = desk.path().join("train").join(BENCH_FILE);
    fs::write(&damaged, "{}").unwrap();
    assert!(Bench::read(&damaged).is_err() && Bench::read(desk.path()).is_err());
    let ledger = gather(&[desk.path().to_owned()], &Placeless::default(), &|_| None).unwrap();
    assert_eq!((ledger.runs.len(), ledger.unknown.len()), (3, 1));
    // No place: emissions have bounds and no centre.
    let mut placeless = bench();
    placeless.g_per_kwh = Span {
        low: 20.0,
        central: None,
        high: 800.0,
    };
    let desk = tempfile::tempdir().unwrap();
    let mut ledger = project(desk.path(), &[placeless]);
    ledger.expect(year(10.0)).unwrap();
    let way = &ledger.expected.as_ref().unwrap().ways[0];
    assert!(way.emissions_g.central.is_none() && way.emissions_g.high > way.emissions_g.low);
}
