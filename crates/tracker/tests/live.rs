//! The grid's intensity as told while a run goes on: what each answer prices, what silence costs, and that the
//! journal alone gives the same record.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sparsam_tracker::journal::FILE_NAME;
use sparsam_tracker::meter::{Component, Domain};
use sparsam_tracker::summary::formula;
use sparsam_tracker::{
    Clock, EnergyMeter, EnergyRecord, Gap, Gpus, LiveIntensity, Method, Options, Range, Reading,
    Tracker, combine,
};

/// 1000 W by a clock that the tests hold.
struct Kilowatt(Vec<Domain>);

impl Kilowatt {
    fn boxed() -> Box<dyn EnergyMeter> {
        Box::new(Self(vec![Domain {
            id: "test".into(),
            label: "Test".into(),
            component: Component::Cpu,
            method: Method::Measured,
            source: "a test".into(),
        }]))
    }
}

impl EnergyMeter for Kilowatt {
    fn domains(&self) -> &[Domain] {
        &self.0
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        Ok(Reading {
            joules: vec![Range::exactly(1000.0 * now.as_secs_f64())],
            gaps: Vec::new(),
        })
    }
}

#[derive(Clone, Default)]
struct HeldClock(Arc<Mutex<Duration>>);

impl HeldClock {
    fn set(&self, hours: f64) {
        *self.0.lock().unwrap() = Duration::from_secs_f64(hours * 3600.0);
    }
}

impl Clock for HeldClock {
    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn wall(&self) -> jiff::Timestamp {
        let start: jiff::Timestamp = "2026-01-15T10:00:00Z".parse().unwrap();
        start + *self.0.lock().unwrap()
    }
}

/// What the grid answers, set by the test.
#[derive(Clone)]
struct Told(Arc<Mutex<Result<f64, String>>>);

impl Told {
    fn new(first: Result<f64, String>) -> Self {
        Self(Arc::new(Mutex::new(first)))
    }

    fn set(&self, answer: Result<f64, String>) {
        *self.0.lock().unwrap() = answer;
    }

    fn live(&self, every: Duration) -> LiveIntensity {
        let told = self.clone();
        LiveIntensity {
            source: "a test grid".to_owned(),
            every,
            ask: Arc::new(move || told.0.lock().unwrap().clone()),
        }
    }
}

fn options(folder: &Path, live: Option<LiveIntensity>) -> Options {
    Options {
        country: Some("DEU".into()),
        gpus: Gpus::None,
        interval: Duration::from_secs(60),
        live,
        ..Options::in_folder(folder)
    }
}

fn start(options: &Options, clock: &HeldClock) -> Tracker {
    Tracker::start_with(
        options,
        Arc::new(clock.clone()),
        Some(vec![Kilowatt::boxed()]),
    )
    .unwrap()
}

/// Only the answer at the start: no run of a test lasts so long.
const ONCE: Duration = Duration::from_secs(3600);

fn close(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-6 * b.abs().max(1.0))
}

/// Lines of the journal that are questions to the grid.
fn questions(folder: &Path) -> usize {
    let text = std::fs::read_to_string(folder.join(FILE_NAME)).unwrap();
    text.lines()
        .filter(|line| line.contains("\"event\":\"intensity\""))
        .count()
}

#[test]
fn each_answer_prices_what_is_drawn_until_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let told = Told::new(Ok(100.0));
    let tracker = start(
        &options(folder.path(), Some(told.live(Duration::from_millis(1)))),
        &clock,
    );
    assert_eq!(tracker.grid_at_start(), Some(&Ok(100.0)));
    assert!(close(tracker.live().grams_per_kwh, 100.0));
    // Three hours at 100 g/kWh, one at 300, two of silence, in which 300 goes on.
    let hear = |answer: Result<f64, String>, hours: f64| {
        // What was answered before this moment is priced first.
        clock.set(hours);
        tracker.sampled();
        told.set(answer.clone());
        // An answer that was on its way is followed by one that was asked after it.
        for _ in 0..2 {
            let before = questions(folder.path());
            while questions(folder.path()) <= before {
                std::thread::sleep(Duration::from_millis(2));
                tracker.sampled();
            }
        }
    };
    hear(Ok(300.0), 3.0);
    let live = tracker.sampled();
    assert!(close(live.emissions_g.central, 300.0), "{live:?}");
    assert!(close(live.grams_per_kwh, 300.0));
    hear(Err("the line is dead".to_owned()), 4.0);
    clock.set(6.0);
    let record = tracker.finish();
    // 3 kWh × 100 + 3 kWh × 300.
    assert!(
        close(record.emissions_g.central, 1200.0),
        "{:?}",
        record.emissions_g
    );
    assert!(close(record.intensity.g_per_kwh.central, 200.0));
    let energy = record.energy_kwh.central * record.pue.value;
    assert!(close(record.emissions_g.central, energy * 200.0));
    let readings = record.intensity.live.as_ref().unwrap();
    assert_eq!((readings.lowest, readings.highest), (100.0, 300.0));
    assert!(readings.count >= 3 && readings.missed >= 1, "{readings:?}");
    assert_eq!(readings.first, "2026-01-15T10:00:00Z");
    let words = formula(&record);
    for part in [
        "200 g/kWh (Germany, a test grid, ",
        "readings of 100 to 300 g/kWh",
        "without an answer",
    ] {
        assert!(words.contains(part), "{words}");
    }
    // Said once, however often it happened; and what the yearly figure would have given.
    let about = |text: &str| {
        record
            .notes
            .iter()
            .filter(|note| note.contains(text))
            .count()
    };
    assert_eq!(
        (
            about("the line is dead"),
            about("with the yearly average of the place")
        ),
        (1, 1)
    );
    let from_journal = EnergyRecord::from_journal(&folder.path().join(FILE_NAME)).unwrap();
    assert_eq!(from_journal, record);
}

#[test]
fn a_grid_that_never_answers_leaves_the_yearly_figure_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let silent = Told::new(Err("no route to the grid".to_owned())).live(ONCE);
    let tracker = start(&options(folder.path(), Some(silent)), &clock);
    clock.set(1.0);
    let record = tracker.finish();
    let yearly = {
        let other = tempfile::tempdir().unwrap();
        let clock = HeldClock::default();
        let tracker = start(&options(other.path(), None), &clock);
        assert_eq!(tracker.grid_at_start(), None);
        clock.set(1.0);
        tracker.finish()
    };
    assert_eq!(record.intensity, yearly.intensity);
    assert_eq!(record.emissions_g, yearly.emissions_g);
    for part in ["no route to the grid", "no intensity came from a test grid"] {
        assert!(
            record.notes.iter().any(|note| note.contains(part)),
            "{part}: {:?}",
            record.notes
        );
        assert!(!yearly.notes.iter().any(|note| note.contains(part)));
    }
    // What cannot be an intensity is no answer either.
    for odd in [f64::NAN, -1.0, 1e6] {
        let other = tempfile::tempdir().unwrap();
        let odd = Told::new(Ok(odd)).live(ONCE);
        let tracker = start(&options(other.path(), Some(odd)), &HeldClock::default());
        assert!(tracker.grid_at_start().unwrap().is_err());
        assert_eq!(tracker.finish().intensity, yearly.intensity);
    }
}

#[test]
fn sessions_are_priced_by_their_own_answers_and_runs_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let session = |answer: Option<f64>, resume: bool, hours: f64| {
        let clock = HeldClock::default();
        let live = answer.map(|grams| Told::new(Ok(grams)).live(ONCE));
        let tracker = start(
            &Options {
                resume,
                ..options(folder.path(), live)
            },
            &clock,
        );
        clock.set(hours);
        tracker.finish()
    };
    let first = session(Some(50.0), false, 2.0);
    assert!(close(first.emissions_g.central, 100.0));
    let second = session(Some(200.0), true, 1.0);
    assert!(
        close(second.emissions_g.central, 300.0),
        "{:?}",
        second.emissions_g
    );
    assert_eq!(second.intensity.live.as_ref().unwrap().count, 2);
    // A session that asked nothing counts with the country's year.
    let third = session(None, true, 1.0);
    let yearly = sparsam_tracker::intensity::lookup("DEU").unwrap().g_per_kwh;
    assert!(
        close(third.emissions_g.central, 300.0 + yearly),
        "{:?}",
        third.emissions_g
    );
    assert!(
        third
            .intensity
            .source
            .contains("for sessions without a reading")
    );

    let other = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let live = Told::new(Ok(500.0)).live(ONCE);
    let tracker = start(&options(other.path(), Some(live)), &clock);
    clock.set(1.0);
    let other = tracker.finish();
    let sum = combine::sum(&[second.clone(), other]).unwrap();
    assert!(close(sum.emissions_g.central, 800.0));
    assert!(close(sum.intensity.g_per_kwh.central, 200.0));
    let readings = sum.intensity.live.unwrap();
    assert_eq!(
        (readings.count, readings.lowest, readings.highest),
        (3, 50.0, 500.0)
    );
}

#[test]
fn a_place_that_is_unknown_has_a_figure_while_the_grid_tells_one() {
    let folder = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let live = Told::new(Ok(80.0)).live(ONCE);
    let told = Options {
        country: None,
        pue: Some(1.5),
        ..options(folder.path(), Some(live))
    };
    let tracker = start(&told, &clock);
    assert!(close(tracker.live().grams_per_kwh, 120.0));
    clock.set(1.0);
    let record = tracker.finish();
    assert!(close(record.emissions_g.central, 120.0));
    assert!(
        !record
            .notes
            .iter()
            .any(|note| note.contains("yearly average"))
    );
    assert_eq!(
        formula(&record),
        "energy x PUE 1.5 x 80 g/kWh (a test grid, 1 reading, 2026-01-15T10:00:00Z)"
    );
}

#[test]
fn a_grid_that_hangs_holds_up_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let live = {
        let asked = Arc::clone(&asked);
        LiveIntensity {
            source: "a grid that hangs".to_owned(),
            every: Duration::from_millis(1),
            ask: Arc::new(move || {
                if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0 {
                    std::thread::sleep(Duration::from_secs(60));
                }
                Ok(150.0)
            }),
        }
    };
    let clock = HeldClock::default();
    let tracker = start(&options(folder.path(), Some(live)), &clock);
    while asked.load(std::sync::atomic::Ordering::Relaxed) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    clock.set(1.0);
    let began = std::time::Instant::now();
    let record = tracker.finish();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(close(record.emissions_g.central, 150.0));
}

#[test]
fn a_card_says_what_the_grid_emitted_and_passes_our_own_check() {
    use sparsam_tracker::card::edit::{Details, update};
    use sparsam_tracker::card::lint::{Severity, lint};
    let folder = tempfile::tempdir().unwrap();
    let clock = HeldClock::default();
    let live = Told::new(Ok(40.0)).live(ONCE);
    let tracker = start(&options(folder.path(), Some(live)), &clock);
    clock.set(1.0);
    let card = update(b"# T\n", &[tracker.finish()], &Details::default()).unwrap();
    let text = String::from_utf8(card.clone()).unwrap();
    for part in [
        "emissions: 40\n",
        "x 40 g/kWh (Germany, a test grid, 1 reading, 2026-01-15T10:00:00Z)",
        "what the grid emitted while the run went on",
        "with the yearly average of the place, 3",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("the yearly average of the grid"), "{text}");
    // A ninth of the year's figure: a note for the reader, and nothing that fails a check.
    let found: Vec<_> = lint(&card).iter().map(|f| (f.code, f.severity)).collect();
    assert_eq!(found, [("own-intensity", Severity::Note)]);
}
