//! The journal through the public interface: whatever cuts it, it reads back; a resumed run adds to it
//! and counts nothing twice; no fault of a meter reaches the run.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sparsam_tracker::journal::{self, FILE_NAME, JournalError};
use sparsam_tracker::meter::{Component, Domain, EnergyMeter, Gap, Method, Reading};
use sparsam_tracker::{
    Clock, EnergyRecord, Gpus, Options, Range, StartError, StatedIntensity, SystemClock, Tracker,
};

/// A meter of 100 W by a clock the test holds.
struct HundredWatts {
    domains: Vec<Domain>,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Gap,
    Panic,
}

impl HundredWatts {
    fn boxed(fault: Fault) -> Box<dyn EnergyMeter> {
        Box::new(Self {
            domains: vec![Domain {
                id: "test".into(),
                label: "Test".into(),
                component: Component::Cpu,
                method: Method::Measured,
                source: "a test".into(),
            }],
            fault,
        })
    }
}

impl EnergyMeter for HundredWatts {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        match self.fault {
            Fault::None => Ok(Reading {
                joules: vec![Range::exactly(100.0 * now.as_secs_f64())],
                gaps: Vec::new(),
            }),
            Fault::Gap => Err(Gap {
                domain: None,
                lost_seconds: 1.0,
                reason: "unreadable".into(),
            }),
            Fault::Panic => panic!("a meter that panics"),
        }
    }
}

#[derive(Clone, Default)]
struct HeldClock(Arc<Mutex<Duration>>);

impl HeldClock {
    fn set(&self, seconds: u64) {
        *self.0.lock().unwrap() = Duration::from_secs(seconds);
    }
}

impl Clock for HeldClock {
    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn wall(&self) -> jiff::Timestamp {
        "2026-01-15T10:00:00Z".parse().unwrap()
    }

    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

fn options(folder: &Path) -> Options {
    Options {
        country: Some("DEU".into()),
        gpus: Gpus::None,
        interval: Duration::from_secs(60), // The tests decide when a sample is taken.
        ..Options::in_folder(folder)
    }
}

fn start(options: &Options, clock: &HeldClock, fault: Fault) -> Tracker {
    let meters = Some(vec![HundredWatts::boxed(fault)]);
    Tracker::start_with(options, Arc::new(clock.clone()), meters).unwrap()
}

/// Commands are taken by another thread: wait until it has written as many lines.
fn wait_for_lines(folder: &Path, lines: usize) {
    for _ in 0..2000 {
        let text = fs::read_to_string(folder.join(FILE_NAME)).unwrap_or_default();
        if text.lines().count() >= lines && text.ends_with('\n') {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("the journal did not get {lines} lines");
}

/// load 0..10 s, train 10..40 s with eval 20..30 s inside.
fn session(folder: &Path, resume: bool, lines_before: usize) -> Tracker {
    let clock = HeldClock::default();
    let tracker = start(
        &Options {
            resume,
            ..options(folder)
        },
        &clock,
        Fault::None,
    );
    let steps: [(u64, &dyn Fn()); 6] = [
        (0, &|| tracker.enter("load")),
        (10, &|| tracker.leave("load")),
        (10, &|| tracker.enter("train")),
        (20, &|| tracker.enter("eval")),
        (30, &|| tracker.leave("eval")),
        (40, &|| tracker.leave("train")),
    ];
    for (index, (seconds, step)) in steps.iter().enumerate() {
        clock.set(*seconds);
        step();
        // The start, what was found out, and the steps so far.
        wait_for_lines(folder, lines_before + notes(folder) + index + 2);
    }
    tracker
}

/// Notes that this machine's sensors give rise to.
fn notes(folder: &Path) -> usize {
    let text = fs::read_to_string(folder.join(FILE_NAME)).unwrap_or_default();
    text.lines()
        .filter(|line| line.contains("\"event\":\"note\""))
        .count()
}

fn joules(range: Range) -> f64 {
    range.central * 3.6e6
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6 * b.abs().max(1.0)
}

#[test]
fn windows_nest_and_the_record_equals_that_of_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let record = session(folder.path(), false, 0).finish();
    let windows: Vec<(&str, u32, f64, f64)> = record
        .windows
        .iter()
        .map(|w| {
            (
                w.path.as_str(),
                w.count,
                w.seconds,
                joules(w.energy_kwh).round(),
            )
        })
        .collect();
    assert_eq!(
        windows,
        [
            ("load", 1, 10.0, 1000.0),
            ("train", 1, 30.0, 3000.0),
            ("train/eval", 1, 10.0, 1000.0)
        ]
    );
    assert!(close(joules(record.energy_kwh), 4000.0));
    assert_eq!(
        (record.duration_seconds, record.measured_share),
        (40.0, 1.0)
    );
    assert_eq!(record.ended, "2026-01-15T10:00:40Z");
    assert!(!record.ended_early);
    let read = EnergyRecord::from_journal(&folder.path().join(FILE_NAME)).unwrap();
    assert_eq!(read, record);
    let through_json: EnergyRecord =
        serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    assert_eq!(through_json, record);
}

#[test]
fn a_journal_cut_at_any_byte_reads_back_to_its_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    session(folder.path(), false, 0).finish();
    let whole = fs::read(folder.path().join(FILE_NAME)).unwrap();
    let first_line = whole.iter().position(|b| *b == b'\n').unwrap();
    let cut_path = folder.path().join("cut.jsonl");
    let mut last_energy = 0.0;
    for length in 0..whole.len() {
        fs::write(&cut_path, &whole[..length]).unwrap();
        match EnergyRecord::from_journal(&cut_path) {
            Ok(record) => {
                assert!(length >= first_line);
                let energy = joules(record.energy_kwh);
                assert!(energy >= last_energy, "a longer journal never holds less");
                last_energy = energy;
                assert!(record.ended_early || length == whole.len() - 1);
            }
            Err(error) => {
                assert!(length < first_line, "{length}: {error}");
                assert!(matches!(error, JournalError::Empty { .. }));
            }
        }
    }
    assert!(close(last_energy, 4000.0));
}

#[test]
fn a_resumed_run_continues_after_a_torn_line_and_counts_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    session(folder.path(), false, 0).finish();
    let whole = fs::read_to_string(&path).unwrap();
    // The process died while it wrote its end.
    fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    let lines = whole.lines().count() - notes(folder.path());
    let tracker = session(folder.path(), true, lines);
    // All that was asked of the sampler before is in a reading that is waited for.
    assert!(close(tracker.sampled().joules.central, 8000.0));
    assert!(close(tracker.live().joules.central, 8000.0));
    let record = tracker.finish();
    assert!(close(joules(record.energy_kwh), 8000.0));
    assert_eq!((record.sessions, record.ended_early), (2, false));
    assert_eq!(record.windows[1].count, 2);
    assert!(
        record
            .notes
            .iter()
            .any(|note| note.contains("earlier session")),
        "{:?}",
        record.notes
    );
    let read = EnergyRecord::from_journal(&path).unwrap();
    assert!(close(joules(read.energy_kwh), 8000.0));
}

#[test]
fn another_run_in_the_same_folder_keeps_the_earlier_journal() {
    let folder = tempfile::tempdir().unwrap();
    session(folder.path(), false, 0).finish();
    let clock = HeldClock::default();
    let record = start(&options(folder.path()), &clock, Fault::None).finish();
    assert_eq!(record.energy_kwh, Range::ZERO);
    let kept = EnergyRecord::from_journal(&folder.path().join("energy.1.jsonl")).unwrap();
    assert!(close(joules(kept.energy_kwh), 4000.0));
}

#[test]
fn a_tracker_that_is_dropped_leaves_a_journal_that_ended_early() {
    let folder = tempfile::tempdir().unwrap();
    drop(session(folder.path(), false, 0));
    let record = EnergyRecord::from_journal(&folder.path().join(FILE_NAME)).unwrap();
    assert!(record.ended_early);
    assert!(close(joules(record.energy_kwh), 4000.0));
}

#[test]
fn a_meter_that_fails_is_counted_and_one_that_panics_is_retired() {
    let folder = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let record = start(&options(folder.path()), &clock, Fault::Gap).finish();
    assert_eq!((record.gaps, record.components[0].gap_seconds), (1, 1.0));

    let tracker = start(&options(folder.path()), &clock, Fault::Panic);
    tracker.enter("train");
    tracker.leave("train");
    let record = tracker.finish();
    assert_eq!(record.gaps, 3);
    assert_eq!(record.windows.len(), 1);
    assert!(
        record
            .notes
            .iter()
            .any(|note| note.contains("not read again")),
        "{:?}",
        record.notes
    );
}

#[test]
fn an_unwritable_folder_costs_the_journal_and_not_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let clock = HeldClock::default();
    let tracker = start(&options(&file.join("run")), &clock, Fault::None);
    assert_eq!(tracker.journal(), None);
    clock.set(10);
    let record = tracker.finish();
    assert!(close(joules(record.energy_kwh), 1000.0));
    assert!(
        record
            .notes
            .iter()
            .any(|note| note.contains("no energy journal")),
        "{:?}",
        record.notes
    );
}

#[test]
fn this_machine_is_tracked_whatever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        interval: Duration::from_millis(20),
        cpu_watts: Some(50.0),
        ram_watts: Some(2.0),
        ..options(folder.path())
    };
    let tracker = Tracker::start_with(&options, Arc::new(SystemClock::default()), None).unwrap();
    {
        let _window = tracker.window("train");
        std::thread::sleep(Duration::from_millis(700));
    }
    assert!(tracker.live().watts.is_some_and(|watts| watts > 0.0));
    let record = tracker.finish();
    assert!(record.energy_kwh.central > 0.0);
    assert!(record.emissions_g.central.is_some_and(|grams| grams > 0.0));
    // The window opens when the sampling thread has heard of it, a little late on a busy machine.
    assert!(record.windows[0].seconds >= 0.5);
}

#[test]
fn options_that_make_no_sense_are_errors_with_a_hint() {
    let base = Options::default();
    let cases = [
        (
            Options {
                country: Some("Germny".into()),
                ..base.clone()
            },
            "unknown country `Germny`",
        ),
        (
            Options {
                pue: Some(0.5),
                ..base.clone()
            },
            "`pue` is 0.5, and must be from 1 to 10",
        ),
        (
            Options {
                cpu_watts: Some(f64::NAN),
                ..base.clone()
            },
            "`cpu_watts` is NaN, and must be more than 0 and at most 100000 watts",
        ),
        (
            Options {
                intensity: Some(StatedIntensity {
                    g_per_kwh: 10.0,
                    source: " ".into(),
                }),
                ..base.clone()
            },
            "`intensity_g_per_kwh` is given without a source",
        ),
    ];
    for (options, message) in cases {
        let error: StartError = Tracker::start(&options).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_newer_journal_and_a_missing_one_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    session(folder.path(), false, 0).finish();
    let path = folder.path().join(FILE_NAME);
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("\"version\":1", "\"version\":99");
    fs::write(&path, text).unwrap();
    assert!(matches!(
        journal::read(&path),
        Err(JournalError::TooNew { version: 99, .. })
    ));
    assert!(matches!(
        journal::read(&folder.path().join("none")),
        Err(JournalError::Read { .. })
    ));
}

#[test]
fn idle_power_is_measured_before_the_start_and_net_stands_beside_gross() {
    let folder = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let options = Options {
        baseline_seconds: 5.0,
        ..options(folder.path())
    };
    // 100 W all the time: the run adds nothing to what the machine draws anyway.
    let tracker = start(&options, &clock, Fault::None);
    clock.set(65);
    let record = tracker.finish();
    let baseline = record.baseline.unwrap();
    assert_eq!((baseline.seconds, baseline.watts.central), (5.0, 100.0));
    assert!(
        close(joules(record.energy_kwh), 6000.0),
        "the five seconds are not the run's"
    );
    assert!(close(joules(record.net_energy_kwh.unwrap()), 0.0));
    let words = sparsam_tracker::summary_lines(&record).join("\n");
    assert!(words.contains("above idle: 0 mWh"), "{words}");
    let read = EnergyRecord::from_journal(&folder.path().join(FILE_NAME)).unwrap();
    assert_eq!(read, record);
}

#[test]
fn a_baseline_that_cannot_be_measured_is_a_note_and_no_figure() {
    let clock = HeldClock::default();
    let options = Options {
        baseline_seconds: 2.0,
        run_dir: None,
        ..options(Path::new("unused"))
    };
    let record = start(&options, &clock, Fault::Gap).finish();
    assert_eq!((record.baseline, record.net_energy_kwh), (None, None));
    assert!(record.notes.iter().any(|note| note.contains("baseline")));
}

/// A journal as the first version of the format had it, on a machine with two GPUs.
const FIRST_VERSION: &str = r#"{"event":"start","version":1,"name":"old","at":"2026-01-15T10:00:00Z","domains":[{"id":"gpu:GPU-1","label":"GPU 0","component":"gpu","method":"measured","source":"NVML"}],"hardware":{"cpu":null,"cpu_threads":null,"gpus":["NVIDIA A100-SXM4-80GB"],"ram_bytes":null},"place":{"name":"United States","alpha3":"USA"},"intensity":{"g_per_kwh":{"low":400.0,"central":400.0,"high":400.0},"year":2024,"source":"a test"},"pue":{"value":1.5,"source":"a test"},"not_included":[]}
{"event":"end","t":3600.0,"joules":[[3420000.0,3600000.0,3780000.0]]}
"#;

#[test]
fn a_journal_of_the_first_version_is_read_and_what_was_added_since_is_reckoned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    fs::write(&path, FIRST_VERSION).unwrap();
    let record = EnergyRecord::from_journal(&path).unwrap();
    assert!(close(record.energy_kwh.central, 1.0));
    assert!(close(record.emissions_g.central.unwrap(), 600.0));
    let embodied = record.embodied.clone().unwrap();
    let an_hour = 150e3 / 44_676.0 + 2500e3 / 8.0 / 44_676.0;
    assert!(close(embodied.grams.central, an_hour), "{embodied:?}");
    assert_eq!(record.water, None, "the journal has no rates");
    let words = sparsam_tracker::summary_lines(&record).join("\n");
    assert!(
        words.contains("emissions  600 g"),
        "not added to the headline: {words}"
    );
    assert!(
        words.contains("making the hardware, by hours over its life: 10.4 g"),
        "{words}"
    );
    // Given the place again, the water is known too: 1 kWh x PUE 1.5 x 3.142 L/kWh.
    let placed = record.at_place(Some("USA"), None).unwrap();
    assert!(close(placed.water.unwrap().litres.central, 4.713));
}

/// Found by fuzzing: a line with a time of 1e308 seconds made a duration that is no number.
#[test]
fn counters_that_cannot_be_are_left_out() {
    let start = FIRST_VERSION.lines().next().unwrap();
    let counters = |joules: &str, t: &str| {
        let domains = start.matches("\"id\":").count();
        let joules = vec![format!("[{joules},{joules},{joules}]"); domains].join(",");
        format!("{{\"event\":\"sample\",\"t\":{t},\"joules\":[{joules}]}}\n")
    };
    let record = |lines: &str| {
        let journal = format!("{start}\n{lines}");
        let contents = journal::parse(journal.as_bytes());
        sparsam_tracker::window::Ledger::replay(contents)
            .record()
            .unwrap()
    };
    let whole = record(&counters("3600", "2"));
    assert!(whole.energy_kwh.central > 0.0 && whole.duration_seconds == 2.0);
    for (joules, t) in [("1", "1e308"), ("1e308", "3"), ("-5", "3"), ("1", "-1")] {
        let lines = counters("3600", "2") + &counters(joules, t);
        assert_eq!(record(&lines), whole, "{joules} J at {t} s");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// A journal that was damaged anywhere, in any way: read or refused, never a panic, and never a
    /// figure that is not a number.
    #[test]
    fn a_damaged_journal_does_no_harm(
        at in 0..FIRST_VERSION.len(),
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
        replaced in 0usize..40,
    ) {
        let mut journal = FIRST_VERSION.as_bytes().to_vec();
        let end = (at + replaced).min(journal.len());
        journal.splice(at..end, bytes);
        let contents = journal::parse(&journal);
        let ledger = sparsam_tracker::window::Ledger::replay(contents);
        if let Some(record) = ledger.record() {
            proptest::prop_assert!(record.energy_kwh.central.is_finite());
            proptest::prop_assert!(record.duration_seconds.is_finite());
            drop(sparsam_tracker::summary_lines(&record));
        }
    }
}

/// A training of a minute and a half on one NVIDIA H200 (driver 580), as the meters recorded it.
#[test]
fn a_recorded_run_on_a_gpu_adds_up() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/h200-energy.jsonl");
    let contents = journal::read(&path).unwrap();
    // The counter moves between any two readings, by what such a card can draw: 60 to 700 W.
    let samples: Vec<(f64, f64)> = contents
        .events
        .iter()
        .filter_map(|event| match event {
            journal::Event::Sample(totals) => Some((totals.t, totals.joules[0][1])),
            _ => None,
        })
        .collect();
    assert!(samples.len() >= 18, "{}", samples.len());
    for pair in samples.windows(2) {
        let watts = (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0);
        assert!(
            (60.0..700.0).contains(&watts),
            "{watts} W at {} s",
            pair[1].0
        );
    }
    let record = sparsam_tracker::window::Ledger::replay(contents)
        .record()
        .unwrap();
    let gpu = &record.components[0];
    assert_eq!(
        (gpu.component, gpu.method),
        (Component::Gpu, Method::Measured)
    );
    assert!((gpu.energy_kwh.central - 49_450.866 / 3.6e6).abs() < 1e-9);
    assert!((record.emissions_g.central.unwrap() - 7.42192).abs() < 1e-5);
    assert!(!record.ended_early && record.gaps == 0);
    let train = record
        .windows
        .iter()
        .find(|window| window.path == "train")
        .unwrap();
    assert!((train.seconds - 99.226).abs() < 1e-9);
}
