//! Running another program under the tracker: its exit code, its output and its signals pass through,
//! and the folder holds what was promised. Signals are sent to a second copy of this test program, since
//! they are the whole process' affair.
#![cfg(unix)]

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sparsam_tracker::track::{Request, TrackError, run};
use sparsam_tracker::{EnergyRecord, Options, export};

const FOLDER: &str = "SPARSAM_TEST_TRACKED_RUN";
const SCRIPT: &str = "SPARSAM_TEST_TRACKED_SCRIPT";
const IGNORED: &str = "SPARSAM_TEST_TRACKED_SIGNALS_IGNORED";

fn request(folder: &Path, script: &str) -> Request {
    Request {
        options: Options {
            country: Some("DEU".into()),
            cpu_watts: Some(50.0),
            ram_watts: Some(2.0),
            interval: Duration::from_millis(50),
            ..Options::in_folder(folder)
        },
        command: ["sh", "-c", script].map(OsString::from).to_vec(),
    }
}

/// Not a test by itself: a tracker around a script, in a process of its own.
#[test]
#[expect(
    clippy::print_stdout,
    reason = "tells the other process what came of it"
)]
fn the_tracker_in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let script = std::env::var(SCRIPT).unwrap();
    // Tests may themselves run where some of these are ignored, as in the background of a script.
    let ignored = std::env::var_os(IGNORED).is_some();
    let disposition = if ignored {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        #[expect(unsafe_code, reason = "the standard library sets no dispositions")]
        // SAFETY: neither disposition runs code of ours.
        let before = unsafe { libc::signal(signal, disposition) };
        assert_ne!(before, libc::SIG_ERR);
    }
    let tracked = run(&request(Path::new(&folder), &script)).unwrap();
    println!("exit code {}", tracked.exit_code);
}

/// Starts the above, whose signals were `ignored` before or not, waits until the script says `ready`, sends the signal, and
/// gives all output.
fn signalled(folder: &Path, script: &str, signal: &str, ignored: bool) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if ignored {
        command.env(IGNORED, "1");
    }
    let mut child = command
        .args([
            "--exact",
            "the_tracker_in_a_process_of_its_own",
            "--nocapture",
        ])
        .env(FOLDER, folder)
        .env(SCRIPT, script)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("ready") {
        assert!(output.read_line(&mut text).unwrap() > 0, "{text}");
    }
    let sent = Command::new("kill")
        .args([format!("-{signal}"), child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    output.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn exit_codes_pass_through_and_the_folder_holds_everything() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    let tracked = run(&request(&run_dir, "sleep 0.3; exit 7")).unwrap();
    assert_eq!(tracked.exit_code, 7);
    assert!(tracked.problems.is_empty(), "{:?}", tracked.problems);
    let mut names: Vec<String> = tracked
        .files
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "card-block.md",
            "emissions.csv",
            "energy.json",
            "energy.jsonl"
        ]
    );
    let mut there: Vec<String> = fs::read_dir(&run_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, names, "and nothing half-written beside them");
    let json = fs::read_to_string(run_dir.join("energy.json")).unwrap();
    let record: EnergyRecord = serde_json::from_str(&json).unwrap();
    assert_eq!(record, tracked.record);
    assert_eq!(
        record,
        EnergyRecord::from_journal(&run_dir.join("energy.jsonl")).unwrap()
    );
    assert_eq!(record.windows[0].path, "command");
    assert!(record.duration_seconds >= 0.3 && !record.ended_early);
    let block = fs::read_to_string(run_dir.join("card-block.md")).unwrap();
    assert!(block.starts_with("---\nco2_eq_emissions:\n  emissions: "));
    let csv = fs::read_to_string(run_dir.join("emissions.csv")).unwrap();
    assert_eq!(csv.lines().next().unwrap(), export::CSV_COLUMNS.join(","));
}

#[test]
fn a_program_ended_by_a_signal_has_a_shells_code() {
    let folder = tempfile::tempdir().unwrap();
    let tracked = run(&request(folder.path(), "kill -KILL $$")).unwrap();
    assert_eq!(tracked.exit_code, 137);
}

#[test]
fn signals_reach_the_program_and_the_record_is_made_all_the_same() {
    for (signal, code) in [("TERM", 43), ("INT", 43), ("HUP", 43)] {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "trap 'echo caught; exit 43' {signal}; echo ready; i=0; while [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done"
        );
        let begun = Instant::now();
        let text = signalled(folder.path(), &script, signal, false);
        assert!(text.contains("caught"), "{signal}: {text}");
        assert!(
            text.contains(&format!("exit code {code}")),
            "{signal}: {text}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{signal} came at once"
        );
        assert!(folder.path().join("energy.json").exists());
    }
}

#[test]
fn a_signal_that_was_ignored_before_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let text = signalled(
        folder.path(),
        "trap 'exit 43' INT; echo ready; sleep 0.5",
        "INT",
        true,
    );
    assert!(text.contains("exit code 0"), "{text}");
    assert!(folder.path().join("energy.json").exists());
}

#[test]
fn what_cannot_be_run_is_an_error_with_a_shells_code() {
    let folder = tempfile::tempdir().unwrap();
    let mut request = request(folder.path(), "true");
    request.command = vec!["no-such-program-of-sparsam".into()];
    let error = run(&request).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert!(
        error
            .to_string()
            .starts_with("cannot run `no-such-program-of-sparsam`")
    );
    assert!(error.hint().unwrap().contains("PATH"));
    request.command.clear();
    assert!(matches!(run(&request), Err(TrackError::NoCommand)));
    request.options.country = Some("Atlantis".into());
    request.command = vec!["true".into()];
    assert!(run(&request).unwrap_err().hint().is_some());
}
