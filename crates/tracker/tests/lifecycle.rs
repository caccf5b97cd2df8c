//! The ledger through the public interface: what journals say in sum, what runs that shared a machine
//! counted together, and a published model's lifecycle.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sparsam_tracker::accounting::{Pue, operational_g};
use sparsam_tracker::card::edit::{Details, update, update_lifecycle};
use sparsam_tracker::intensity::CarbonIntensity;
use sparsam_tracker::lifecycle::{
    About, Entry, Lifecycle, Placeless, State, card_section, gather, lines,
};
use sparsam_tracker::{EnergyRecord, Range, Stage};

mod common;

/// A session of a journal by hand: 100 W measured, 10 W modelled.
struct Session {
    boot: Option<&'static str>,
    part: &'static str,
    began: f64,
    /// Seconds of the last line before the end, or of the end.
    until: f64,
    ended: bool,
    stage: Option<&'static str>,
}

impl Session {
    fn at(boot: &'static str, began: f64, until: f64) -> Self {
        Self {
            boot: Some(boot),
            part: "0-1",
            began,
            until,
            ended: true,
            stage: None,
        }
    }

    fn text(&self) -> String {
        let at = jiff::Timestamp::from_second(self.began as i64)
            .unwrap()
            .to_string();
        let record = serde_json::to_value(common::record(Some("DEU"))).unwrap();
        let domain = |id: &str, method: &str| json!({"id": id, "label": id, "component": "cpu", "method": method, "source": "a test"});
        let mut start = json!({
            "event": "start", "version": 1, "name": "run", "at": at,
            "domains": [domain("rapl:package-0", "measured"), domain("model:ram", "modelled")],
            "hardware": record["hardware"], "place": record["place"],
            "intensity": record["intensity"], "pue": record["pue"], "not_included": [],
        });
        if let Some(boot) = self.boot {
            start["host"] = json!({"boot": boot, "part": self.part, "began": self.began});
        }
        if let Some(stage) = self.stage {
            start["stage"] = json!(stage);
        }
        let totals = |event: &str, t: f64| {
            json!({"event": event, "t": t,
                   "joules": [[90.0 * t, 100.0 * t, 110.0 * t], [5.0 * t, 10.0 * t, 20.0 * t]]})
        };
        let half = totals("sample", self.until / 2.0);
        let last = totals(if self.ended { "end" } else { "sample" }, self.until);
        format!("{start}\n{half}\n{last}\n")
    }
}

fn write(desk: &Path, name: &str, sessions: &[Session]) -> PathBuf {
    let path = desk.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text: String = sessions.iter().map(Session::text).collect();
    fs::write(&path, text).unwrap();
    path
}

fn ledger(paths: &[PathBuf]) -> Lifecycle {
    gather(paths, &Placeless::default(), &|_| None).unwrap()
}

fn entry<'a>(ledger: &'a Lifecycle, part_of_path: &str) -> &'a Entry {
    let mut found = ledger
        .runs
        .iter()
        .filter(|run| run.path.contains(part_of_path));
    let entry = found.next().unwrap_or_else(|| panic!("{part_of_path}"));
    assert!(found.next().is_none(), "{part_of_path} is there twice");
    entry
}

#[track_caller]
fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} is not {b}");
}

/// Joules as kWh.
fn kwh(joules: f64) -> f64 {
    joules / 3.6e6
}

#[test]
fn runs_that_do_not_meet_are_their_journals_to_the_bit() {
    let desk = tempfile::tempdir().unwrap();
    let resumed = [
        Session {
            ended: false,
            ..Session::at("m", 0.0, 10.0)
        },
        Session::at("m", 100.0, 20.0),
    ];
    write(desk.path(), "a/energy.jsonl", &resumed);
    write(
        desk.path(),
        "b/energy.1.jsonl",
        &[Session {
            ended: false,
            ..Session::at("m", 200.0, 7.0)
        }],
    );
    write(
        desk.path(),
        "b/energy.jsonl",
        &[Session::at("m", 300.0, 5.0)],
    );
    write(
        desk.path(),
        "c/energy.jsonl",
        &[Session::at("elsewhere", 300.0, 5.0)],
    );
    let ledger = ledger(&[desk.path().to_owned()]);
    assert_eq!(ledger.runs.len(), 4);
    let journals: f64 = [30.0, 7.0, 5.0, 5.0].iter().map(|s| kwh(110.0 * s)).sum();
    close(ledger.journals_kwh.central, journals);
    assert_eq!(ledger.energy_kwh, ledger.journals_kwh);
    assert_eq!(ledger.counted_twice_kwh, Range::ZERO);
    assert!(ledger.shared.is_empty());
    let a = entry(&ledger, "/a/");
    assert_eq!((a.sessions, a.state), (2, State::Finished));
    assert_eq!(entry(&ledger, "energy.1").state, State::Cut);
    let text = lines(&ledger).join("\n");
    assert!(
        text.contains("4 runs: 3 finished, 1 killed or still running; 1 of them resumed"),
        "{text}"
    );
}

/// a: 0 to 100 s, b: 50 to 150 s, c: 60 to 80 s, all on one machine.
#[test]
fn what_three_runs_counted_together_is_counted_once() {
    let desk = tempfile::tempdir().unwrap();
    write(
        desk.path(),
        "a/energy.jsonl",
        &[Session::at("m", 0.0, 100.0)],
    );
    write(
        desk.path(),
        "b/energy.jsonl",
        &[Session::at("m", 50.0, 100.0)],
    );
    write(
        desk.path(),
        "c/energy.jsonl",
        &[Session::at("m", 60.0, 20.0)],
    );
    let ledger = ledger(&[desk.path().to_owned()]);
    close(ledger.journals_kwh.central, kwh(110.0 * 220.0));
    // The machine ran for 150 s, whoever watched.
    close(ledger.energy_kwh.central, kwh(110.0 * 150.0));
    close(ledger.energy_kwh.high, kwh(130.0 * 150.0));
    close(ledger.counted_twice_kwh.central, kwh(110.0 * 70.0));
    // c had a third of 20 s; a the first 50 s, half of 30 s, a third of 20 s.
    close(
        entry(&ledger, "/c/").energy_kwh.central,
        kwh(110.0 * 20.0 / 3.0),
    );
    close(
        entry(&ledger, "/a/").energy_kwh.central,
        kwh(110.0 * (50.0 + 15.0 + 20.0 / 3.0)),
    );
    let a = entry(&ledger, "/a/");
    close(
        a.emissions_g.central.unwrap() / a.energy_kwh.central,
        ledger.emissions_g.central.unwrap() / ledger.energy_kwh.central,
    );
    assert_eq!(ledger.shared.len(), 1);
    close(ledger.shared[0].seconds, 50.0);
    assert_eq!(ledger.shared[0].runs.len(), 3);
}

#[test]
fn where_it_is_not_known_what_was_shared_nothing_is_taken_off_and_it_is_said() {
    let desk = tempfile::tempdir().unwrap();
    let old = |began| Session {
        boot: None,
        ..Session::at("", began, 10.0)
    };
    write(desk.path(), "a/energy.jsonl", &[old(0.0)]);
    write(desk.path(), "b/energy.jsonl", &[old(5.0)]);
    let ledger = ledger(&[desk.path().to_owned()]);
    assert_eq!(ledger.energy_kwh, ledger.journals_kwh);
    assert!(!ledger.shared[0].certain);
    close(ledger.shared[0].seconds, 5.0);
    assert!(lines(&ledger).join("\n").contains("counted twice"));

    // Other processors of the same machine: the counter is shared, the models are not surely so.
    let desk = tempfile::tempdir().unwrap();
    write(
        desk.path(),
        "a/energy.jsonl",
        &[Session::at("m", 0.0, 10.0)],
    );
    let other = Session {
        part: "2-3",
        ..Session::at("m", 0.0, 10.0)
    };
    write(desk.path(), "b/energy.jsonl", &[other]);
    let ledger = self::ledger(&[desk.path().to_owned()]);
    close(
        ledger.energy_kwh.central,
        kwh(100.0 * 10.0 + 2.0 * 10.0 * 10.0),
    );
    assert_eq!(
        ledger.shared.iter().map(|s| s.certain).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn a_copy_counts_once_and_the_longer_one_stays() {
    let desk = tempfile::tempdir().unwrap();
    let sessions = [Session::at("m", 0.0, 10.0), Session::at("m", 50.0, 10.0)];
    write(desk.path(), "a/energy.jsonl", &sessions[..1]);
    write(desk.path(), "backup/a/energy.jsonl", &sessions);
    let here = ledger(&[desk.path().to_owned(), desk.path().join("a")]);
    assert_eq!((here.runs.len(), here.copies.len()), (1, 1));
    close(here.energy_kwh.central, kwh(110.0 * 20.0));

    // The ledger of another machine, on which the same run lies too.
    let other = tempfile::tempdir().unwrap();
    write(other.path(), "a/energy.jsonl", &sessions);
    write(
        other.path(),
        "b/energy.jsonl",
        &[Session::at("n", 0.0, 30.0)],
    );
    let theirs = other.path().join("theirs.json");
    fs::write(
        &theirs,
        serde_json::to_string(&ledger(&[other.path().to_owned()])).unwrap(),
    )
    .unwrap();
    let both = ledger(&[desk.path().to_owned(), theirs]);
    assert_eq!(both.runs.len(), 2);
    close(both.energy_kwh.central, kwh(110.0 * 50.0));
}

#[test]
fn stages_add_up_to_the_whole_and_a_folders_state_is_the_callers() {
    let desk = tempfile::tempdir().unwrap();
    for (index, stage) in [Some("data"), Some("eval"), Some("eval"), None]
        .into_iter()
        .enumerate()
    {
        let session = Session {
            stage,
            ..Session::at("m", 100.0 * index as f64, 10.0)
        };
        write(desk.path(), &format!("{index}/energy.jsonl"), &[session]);
    }
    let about = |folder: &Path| {
        folder.ends_with("3").then_some(About {
            state: Some(State::Failed),
            stage: Some(Stage::Train),
            energy: None,
        })
    };
    let ledger = gather(&[desk.path().to_owned()], &Placeless::default(), &about).unwrap();
    let stages: Vec<_> = ledger
        .stages
        .iter()
        .map(|s| (s.stage.unwrap(), s.runs, s.unfinished_runs))
        .collect();
    assert_eq!(
        stages,
        [
            (Stage::Data, 1, 0),
            (Stage::Train, 1, 1),
            (Stage::Eval, 2, 0)
        ]
    );
    let sum: Range = ledger.stages.iter().map(|s| s.energy_kwh).sum();
    close(sum.central, ledger.energy_kwh.central);
    assert_eq!(ledger.stages[1].unfinished_kwh, ledger.stages[1].energy_kwh);
}

#[test]
fn a_run_without_figures_is_named_and_nothing_at_all_is_an_error() {
    let desk = tempfile::tempdir().unwrap();
    let paths = [desk.path().to_owned()];
    let error = gather(&paths, &Placeless::default(), &|_| None).unwrap_err();
    assert!(error.to_string().contains("no run") && error.hint().is_some());
    write(desk.path(), "a/energy.jsonl", &[]);
    let known = |folder: &Path| folder.ends_with("b").then(About::default);
    fs::create_dir(desk.path().join("b")).unwrap();
    let ledger = gather(&paths, &Placeless::default(), &known).unwrap();
    assert_eq!((ledger.runs.len(), ledger.unknown.len()), (0, 2));
    fs::write(desk.path().join("x.json"), "{}").unwrap();
    let error = gather(
        &[desk.path().join("x.json")],
        &Placeless::default(),
        &|_| None,
    )
    .unwrap_err();
    assert!(error.to_string().contains("not a ledger"), "{error}");
}

/// 30 runs on two machines: 8 killed, 3 resumed, 2 at once. The journals are read here by other code, line
/// by line, and the ledger must be their sum to the last joule, nothing twice.
#[test]
fn thirty_runs_are_their_journals_to_the_last_joule() {
    let desk = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for run in 0..30u32 {
        let boot = if run % 5 == 4 { "n" } else { "m" };
        // Number 29 begins while number 28 goes on; all others have their hour to themselves.
        let began = 3600.0 * f64::from(if run == 29 { 28 } else { run });
        let boot = if run >= 28 { "m" } else { boot };
        let began = if run == 29 { began + 100.0 } else { began };
        let seconds = 200.0 + 7.0 * f64::from(run);
        let session = |began: f64, seconds: f64, ended: bool| Session {
            ended,
            ..Session::at(boot, began, seconds)
        };
        let sessions = match run {
            // Killed.
            0..8 => vec![session(began, seconds, false)],
            // Killed and resumed.
            8..11 => vec![
                session(began, seconds / 2.0, false),
                session(began + 1800.0, seconds, true),
            ],
            _ => vec![session(began, seconds, true)],
        };
        let name = format!("{}/{run}/energy.jsonl", run % 3);
        let path = write(desk.path(), &name, &sessions);
        if run % 4 == 0 {
            // A kill can tear the last line.
            let mut text = fs::read_to_string(&path).unwrap();
            if run < 8 {
                text.push_str("{\"event\":\"sample\",\"t\":9");
            }
            fs::write(&path, text).unwrap();
        }
        paths.push(path);
    }
    // A backup of everything counts nothing.
    for (run, path) in paths.iter().enumerate() {
        let copy = desk.path().join(format!("backup/{run}"));
        fs::create_dir_all(&copy).unwrap();
        fs::copy(path, copy.join("energy.jsonl")).unwrap();
    }
    let last_counters = |path: &PathBuf| -> f64 {
        let mut sessions: Vec<f64> = Vec::new();
        for line in fs::read_to_string(path).unwrap().lines() {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else {
                continue;
            };
            if event["event"] == "start" {
                sessions.push(0.0);
            } else if let Some(joules) = event["joules"].as_array() {
                let sum = joules
                    .iter()
                    .map(|domain| domain[1].as_f64().unwrap())
                    .sum();
                *sessions.last_mut().unwrap() = sum;
            }
        }
        sessions.into_iter().sum()
    };
    let joules: f64 = paths.iter().map(last_counters).sum();
    let ledger = ledger(&[desk.path().to_owned()]);
    let states = |state| ledger.runs.iter().filter(|run| run.state == state).count();
    let resumed = ledger.runs.iter().filter(|run| run.sessions == 2).count();
    assert_eq!(
        (
            ledger.runs.len(),
            states(State::Cut),
            resumed,
            ledger.copies.len()
        ),
        (30, 8, 3, 30)
    );
    let got = ledger.journals_kwh.central * 3.6e6;
    assert!((got - joules).abs() < 1e-6, "{got} J and {joules} J");
    // Number 28 runs 396 s and number 29 from its 100th second 403 s: 296 s of 110 W were counted twice.
    let twice = ledger.counted_twice_kwh.central * 3.6e6;
    assert!((twice - 296.0 * 110.0).abs() < 1e-6, "{twice} J");
    let sum = (ledger.energy_kwh.central + ledger.counted_twice_kwh.central) * 3.6e6;
    assert!((sum - joules).abs() < 1e-6, "{sum} J and {joules} J");
    assert_eq!(ledger.shared.len(), 1);
    assert_eq!(ledger.shared[0].runs.len(), 2);
}

/// Luccioni et al. 2022, "Estimating the carbon footprint of BLOOM": 433,196 kWh of dynamic and
/// 256,646 kWh of idle power at 57 g/kWh, and 1,082,990 hours of A100 in servers of eight, over
/// 44,676 hours of life: 24.7 + 14.6 + 11.2 = 50.5 t, of which 48.9, 28.9 and 22.2 %.
#[test]
fn the_lifecycle_of_bloom_has_its_published_shares() {
    let desk = tempfile::tempdir().unwrap();
    let intensity = CarbonIntensity::given(57.0, "Luccioni et al. 2022");
    let record = |name: &str, kwh: f64, gpus: usize| {
        let energy_kwh = Range::exactly(kwh);
        let mut record = common::record(None);
        record.name = name.into();
        record.energy_kwh = energy_kwh;
        record.hardware.gpus = vec!["NVIDIA A100-SXM4-80GB".into(); gpus];
        record.duration_seconds = if gpus > 0 {
            1_082_990.0 / gpus as f64 * 3600.0
        } else {
            0.0
        };
        record.emissions_g = operational_g(energy_kwh, 1.0, intensity.g_per_kwh);
        record.intensity = intensity.clone();
        record.pue = Pue {
            value: 1.0,
            source: "in the figures".into(),
        };
        record
    };
    let records: [EnergyRecord; 2] = [
        record("dynamic", 433_196.0, 384),
        record("idle", 256_646.0, 0),
    ];
    for record in &records {
        let folder = desk.path().join(&record.name);
        fs::create_dir(&folder).unwrap();
        fs::write(
            folder.join("energy.json"),
            serde_json::to_string(record).unwrap(),
        )
        .unwrap();
    }
    let ledger = ledger(&[desk.path().to_owned()]);
    let tonnes = |grams: f64| grams / 1e6;
    let part = |name: &str| {
        let run = ledger.runs.iter().find(|run| run.name == name).unwrap();
        tonnes(run.emissions_g.central.unwrap())
    };
    let (dynamic, idle) = (part("dynamic"), part("idle"));
    let embodied = tonnes(ledger.embodied_g.unwrap().central);
    let total = dynamic + idle + embodied;
    for (got, published) in [
        (dynamic, 24.69),
        (idle, 14.6),
        (embodied, 11.2),
        (total, 50.5),
    ] {
        assert!((got - published).abs() < 0.05, "{got} and {published}");
    }
    for (got, published) in [(dynamic, 48.9), (idle, 28.9), (embodied, 22.2)] {
        assert!(
            (got / total * 100.0 - published).abs() < 0.1,
            "{got} and {published} %"
        );
    }
    assert!(
        lines(&ledger)
            .join("\n")
            .contains("22 % of operation and making together")
    );
}

#[test]
fn the_section_of_a_card_is_written_once_beside_that_of_a_run() {
    let desk = tempfile::tempdir().unwrap();
    write(
        desk.path(),
        "a/energy.jsonl",
        &[Session::at("m", 0.0, 10.0)],
    );
    let section = card_section(&ledger(&[desk.path().to_owned()]));
    let card = b"---\nlicense: mit\n---\n# Model\n\nText without an end";
    let once = update_lifecycle(card, &section).unwrap();
    assert!(once.starts_with(card));
    assert_eq!(update_lifecycle(&once, &section).unwrap(), once);
    let records = [common::record(Some("DEU"))];
    let both = update(&once, &records, &Details::default()).unwrap();
    let other_way = update(card, &records, &Details::default()).unwrap();
    let other_way = update_lifecycle(&other_way, &section).unwrap();
    for card in [both, other_way] {
        let text = String::from_utf8(card).unwrap();
        assert_eq!(text.matches("## Lifecycle").count(), 1);
        assert_eq!(text.matches("## Environmental Impact").count(), 1);
        assert!(text.contains("| no stage | 1 | 0 | 10.0 s |"), "{text}");
    }
}
