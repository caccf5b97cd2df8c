//! A tracked run that is killed: the journal reads back whatever the moment, at most five seconds of it
//! are lost, and a card can be made from it. The run is this very test program, started again.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sparsam_tracker::card::edit::{Details, update};
use sparsam_tracker::{EnergyRecord, Options, Tracker, combine};

const FOLDER: &str = "SPARSAM_TEST_KILLED_RUN";

/// Not a test by itself: what the killed processes do. They track until they are killed.
#[test]
#[expect(
    clippy::print_stdout,
    reason = "tells the other process that it has begun"
)]
fn the_run_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let options = Options {
        country: Some("DEU".into()),
        cpu_watts: Some(50.0),
        ram_watts: Some(2.0),
        interval: Duration::from_millis(100),
        ..Options::in_folder(folder)
    };
    let tracker = Tracker::start(&options).unwrap();
    println!("begun");
    let _window = tracker.window("train");
    std::thread::sleep(Duration::from_secs(60));
    drop(tracker.window("never"));
}

fn start(folder: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_run_that_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn whatever_the_moment_at_most_five_seconds_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs: Vec<(std::path::PathBuf, Child, Instant, Duration)> = (0..20u64)
        .map(|index| {
            let run = folder.path().join(format!("run-{index}"));
            let mut child = start(&run);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.is_ok_and(|line| line.contains("begun"))));
            // Spread over 7 s by the golden ratio, past the first regular writing at 5 s.
            let moment = (index as f64 * 0.618_033_988_75).fract() * 7.0;
            (run, child, Instant::now(), Duration::from_secs_f64(moment))
        })
        .collect();
    // In the order of their moments, each counted from its own start.
    runs.sort_by_key(|(_, _, begun, moment)| *begun + *moment);
    for (run, mut child, begun, moment) in runs {
        std::thread::sleep((begun + moment).saturating_duration_since(Instant::now()));
        child.kill().unwrap(); // SIGKILL.
        let lived = begun.elapsed().as_secs_f64();
        child.wait().unwrap();
        let record = EnergyRecord::from_journal(&run.join("energy.jsonl"))
            .unwrap_or_else(|error| panic!("after {lived} s: {error}"));
        assert!(record.ended_early);
        // Half a second is granted to a machine that is busy with other tests.
        assert!(
            lived - record.duration_seconds <= 5.5,
            "{} of {lived} s were kept",
            record.duration_seconds
        );
        assert_eq!(
            record.place.as_ref().map(|p| p.alpha3.as_str()),
            Some("DEU")
        );
        let records = combine::read_folder(&run, true).unwrap();
        if record.duration_seconds > 0.0 {
            let card = update(b"# T\n", &records, &Details::default()).unwrap();
            assert!(
                String::from_utf8(card)
                    .unwrap()
                    .contains("the run ended early")
            );
        }
    }
}
