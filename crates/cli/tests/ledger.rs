//! The ledger through the binary, over runs that really were: trained to their end, failed, killed,
//! killed and resumed, measured by `track`, two at once. Its sums are held against the journals, which
//! are read here by other code.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod desk;

use desk::{Desk, Ran};

/// The arguments that measure a program which sleeps.
fn track<'a>(folder: &'a str, stage: &'a str, seconds: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["-q", "track", "--country", "DEU", "--cpu-watts", "50"];
    arguments.extend([
        "--ram-watts",
        "2",
        "--stage",
        stage,
        "-o",
        folder,
        "--",
        "sleep",
        seconds,
    ]);
    arguments
}

impl Desk {
    fn new() -> Self {
        let desk = Self::empty();
        let rows: Vec<String> = (0..16)
            .map(|i| format!("{{\"prompt\": \"Baum {i}\", \"completion\": \"Linde {i}\"}}"))
            .collect();
        desk.write("train.jsonl", rows.join("\n"));
        desk.write(
            "recipe.yaml",
            "model: builtin:sprout\nlora: {r: 2, alpha: 4}\ndata: {train: train.jsonl}\n\
             max_length: 64\nbatch_size: 2\nmax_steps: 2\ncountry: DEU\nsave_steps: 1\n\
             energy: {cpu_watts: 50, ram_watts: 2}\noutput_dir: runs/x\n",
        );
        desk
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Kills a run when its journal holds some words.
    fn kill_at(&self, mut child: Child, folder: &str, words: &str) {
        let begun = Instant::now();
        let journal = self.path(folder).join("energy.jsonl");
        while !std::fs::read_to_string(&journal).is_ok_and(|text| text.contains(words)) {
            assert!(
                begun.elapsed().as_secs() < 120,
                "`{words}` does not come in {folder}"
            );
            assert!(
                child.try_wait().unwrap().is_none(),
                "{folder} ended by itself"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Joules of a journal, `[low, central, high]`: the last counters of each session, added up.
fn joules(journal: &Path) -> [f64; 3] {
    let text = std::fs::read_to_string(journal).unwrap();
    let mut sessions: Vec<[f64; 3]> = Vec::new();
    for line in text.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if event["event"] == "start" {
            sessions.push([0.0; 3]);
        } else if let Some(domains) = event["joules"].as_array() {
            let sum = |index: usize| domains.iter().map(|d| d[index].as_f64().unwrap()).sum();
            *sessions.last_mut().unwrap() = [sum(0), sum(1), sum(2)];
        }
    }
    let sum = |index: usize| sessions.iter().map(|session| session[index]).sum();
    [sum(0), sum(1), sum(2)]
}

fn journals_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(journals_below(&path));
        } else if path.extension().is_some_and(|ending| ending == "jsonl")
            && path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("energy.")
        {
            found.push(path);
        }
    }
    found
}

#[track_caller]
fn is(range: &Value, joules: [f64; 3], what: &str) {
    for (key, joules) in ["low", "central", "high"].into_iter().zip(joules) {
        let got = range[key].as_f64().unwrap() * 3.6e6;
        assert!(
            (got - joules).abs() <= 1e-9 * joules.max(1.0),
            "{what}, {key}: {got} J and {joules} J"
        );
    }
}

#[test]
fn the_sum_equals_the_journals_and_nothing_is_there_twice() {
    let desk = Desk::new();
    let train = |folder: &str, more: &[&str]| -> Vec<String> {
        let output = format!("output_dir={folder}");
        [&["-q", "train", "recipe.yaml", output.as_str()], more]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let words = |words: &[String]| -> Vec<String> { words.to_vec() };
    let run = |arguments: Vec<String>, code: i32| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        desk.ends(&arguments, code);
    };
    // Two that finish, one that fails on the way, one that is killed, one that is killed and resumed.
    run(train("runs/one", &[]), 0);
    run(train("runs/deep/two", &["seed=2"]), 0);
    run(
        train(
            "runs/failed",
            &["lora.alpha=1e30", "learning_rate=0.9", "max_grad_norm=0"],
        ),
        1,
    );
    for folder in ["runs/killed", "runs/resumed"] {
        let arguments = words(&train(folder, &["max_steps=100000"]));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // A checkpoint is written when the phase `save` ends.
        desk.kill_at(
            desk.spawn(&arguments),
            folder,
            "{\"event\":\"leave\",\"window\":\"save\"",
        );
    }
    let resume = train("runs/resumed", &["max_steps=100000", "--resume"]);
    let resume: Vec<&str> = resume.iter().map(String::as_str).collect();
    let before = std::fs::read_to_string(desk.path("runs/resumed/energy.jsonl")).unwrap();
    desk.kill_at(
        desk.spawn(&resume),
        "runs/resumed",
        &format!("{before}{{\"event\":\"start\""),
    );
    // Other programs: one after the other in one folder, one that is killed, two at once.
    desk.ends(&track("runs/data", "data", "0.2"), 0);
    desk.ends(&track("runs/data", "data", "0.2"), 0);
    desk.kill_at(
        desk.spawn(&track("runs/eval", "eval", "60")),
        "runs/eval",
        "command",
    );
    let mut first = desk.spawn(&track("runs/first", "search", "3"));
    std::thread::sleep(Duration::from_millis(500));
    desk.ends(&track("runs/second", "search", "1"), 0);
    first.wait().unwrap();
    // A copy of a whole folder.
    let copied = desk.path("runs/copy-of-one");
    std::fs::create_dir(&copied).unwrap();
    std::fs::copy(
        desk.path("runs/one/energy.jsonl"),
        copied.join("energy.jsonl"),
    )
    .unwrap();

    let Ran { out, .. } = desk.ends(&["ledger", "--json", "runs"], 0);
    let ledger: Value = serde_json::from_str(&out).unwrap();
    let runs = ledger["runs"].as_array().unwrap();
    let mut journals = journals_below(&desk.path("runs"));
    journals.retain(|path| !path.starts_with(&copied));
    assert_eq!((runs.len(), journals.len()), (10, 10));
    let mut sum = [0.0; 3];
    for journal in &journals {
        let of = joules(journal);
        let name = journal
            .strip_prefix(desk.path(""))
            .unwrap()
            .display()
            .to_string();
        // The copy may stand for the run, as it says the same.
        let entry = runs.iter().find(|run| {
            run["path"] == name || name.starts_with("runs/one/") && run["name"] == "runs/one"
        });
        is(
            &entry.unwrap_or_else(|| panic!("{name}: {out}"))["journal_kwh"],
            of,
            &name,
        );
        for (sum, of) in sum.iter_mut().zip(of) {
            *sum += of;
        }
    }
    is(&ledger["journals_kwh"], sum, "all");
    let state = |folder: &str| {
        let name = format!("{folder}/energy.jsonl");
        let run = runs.iter().find(|run| run["path"] == name);
        run.unwrap()["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        [
            "runs/deep/two",
            "runs/failed",
            "runs/killed",
            "runs/resumed",
            "runs/eval"
        ]
        .map(state),
        ["finished", "failed", "cut", "cut", "cut"]
    );
    let resumed = runs
        .iter()
        .find(|run| run["path"] == "runs/resumed/energy.jsonl")
        .unwrap();
    assert_eq!(resumed["sessions"], 2);
    assert_eq!(ledger["copies"].as_array().unwrap().len(), 1);

    // What two counted at once is taken off once: half of each while both ran. On a machine without a
    // number of its boot nothing is known of that, and it is said.
    let shared = &ledger["shared"][0];
    if shared["certain"] == true {
        let part = |folder: &str| {
            let name = format!("{folder}/energy.jsonl");
            let run = runs.iter().find(|run| run["path"] == name).unwrap();
            let kwh = |key: &str| run[key]["central"].as_f64().unwrap();
            kwh("energy_kwh") / kwh("journal_kwh")
        };
        assert!(
            (part("runs/second") - 0.5).abs() < 0.05,
            "{}",
            part("runs/second")
        );
        let first = part("runs/first");
        assert!(first > 0.6 && first < 0.95, "{first}");
        let twice = ledger["counted_twice_kwh"]["central"].as_f64().unwrap();
        let rest = ledger["energy_kwh"]["central"].as_f64().unwrap();
        assert!((twice + rest - sum[1] / 3.6e6).abs() < 1e-12);
        assert_eq!(shared["runs"].as_array().unwrap().len(), 2, "{shared}");
    } else {
        assert!(
            ledger["shared"]
                .as_array()
                .unwrap()
                .iter()
                .any(|s| s["certain"] == false)
        );
    }
    let stages: Vec<&str> = ledger["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["data", "search", "train", "eval"]);

    // The screen, another machine's ledger, and the card.
    let Ran { out: screen, .. } = desk.ends(&["ledger", "runs"], 0);
    for part in [
        "runs       10 runs: 6 finished, 1 failed, 3 killed",
        "\nemissions  ",
        "\nembodied   ",
        "\nwater      ",
    ] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );
    desk.write("here.json", out);
    let Ran { out: again, .. } = desk.ends(&["ledger", "--json", "here.json"], 0);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["energy_kwh"], ledger["energy_kwh"]);
    desk.write("card.md", "# Model\n");
    let update = [
        "card", "update", "card.md", "--run", "runs/one", "--ledger", "runs",
    ];
    let Ran { err: said, .. } = desk.ends(&update, 0);
    assert!(said.starts_with("updated"), "{said}");
    let card = std::fs::read_to_string(desk.path("card.md")).unwrap();
    assert!(
        card.contains("## Lifecycle") && card.contains("| **all** | 10 |"),
        "{card}"
    );
    let Ran { err: said, .. } = desk.ends(&update, 0);
    assert!(said.starts_with("nothing to change"), "{said}");
}

#[test]
fn what_answering_takes_is_measured_and_multiplied() {
    let desk = Desk::new();
    desk.ends(&["-q", "train", "recipe.yaml", "output_dir=runs/a"], 0);
    let bench = |more: &[&str]| -> Value {
        let base = [
            "-q",
            "bench-generate",
            "--model",
            "builtin:sprout",
            "--adapter",
            "runs/a",
            "--seconds",
            "1",
            "--tokens",
            "12",
            "--prompt-tokens",
            "5",
            "--country",
            "DEU",
            "--cpu-watts",
            "50",
            "--ram-watts",
            "2",
            "--json",
        ];
        let Ran { out, .. } = desk.ends(&[&base, more].concat(), 0);
        serde_json::from_str(&out).unwrap()
    };
    let plain = bench(&["-o", "runs/bench"]);
    assert_eq!(plain["answer_tokens"], 12);
    let energy = |of: &Value| of["energy_kwh"]["central"].as_f64().unwrap();
    let per = &plain["per_1000_tokens"];
    let parts = energy(&per["prefill"]) + energy(&per["decode"]);
    assert!((parts / energy(&per["all"]) - 1.0).abs() < 1e-9, "{per}");
    assert!(energy(&plain["answers"]) > 0.0 && energy(&per["all"]) > 0.0);
    // What the window of the journal holds is what is multiplied.
    let requests = plain["answers"]["requests"].as_f64().unwrap();
    let each = energy(&plain["answers"]) / requests;
    assert!((energy(&per["all"]) / (each / 12.0 * 1000.0) - 1.0).abs() < 1e-9);

    bench(&[
        "-o",
        "runs/merged",
        "--merged",
        "--quantize",
        "int8",
        "--batch",
        "2",
    ]);
    let ask = ["ledger", "runs", "--requests-per-day", "50", "--days", "10"];
    let Ran { out, .. } = desk.ends(&[&ask[..], &["--json"]].concat(), 0);
    let ledger: Value = serde_json::from_str(&out).unwrap();
    let stages: Vec<&str> = ledger["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["train", "inference"]);
    let ways = ledger["expected"]["ways"].as_array().unwrap();
    assert_eq!(ways[0]["name"], "adapter beside the base");
    assert_eq!(ways[1]["name"], "adapter merged, base in int8, 2 at once");
    assert!((energy(&ways[0]) / (each * 500.0) - 1.0).abs() < 1e-9);
    let train = energy(&ledger["stages"][0]);
    let after = ways[0]["overtakes_after"]["central"].as_f64().unwrap();
    assert!((after / (train / each) - 1.0).abs() < 1e-9);
    let Ran { out: screen, .. } = desk.ends(&ask, 0);
    assert!(
        screen.contains("\ninference  50 requests a day for 10 days"),
        "{screen}"
    );
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );
    desk.write("card.md", "# Model\n");
    let card = [
        "-q",
        "card",
        "update",
        "card.md",
        "--ledger",
        "runs",
        "--requests-per-day",
        "50",
        "--inference",
        "runs/bench",
    ];
    desk.ends(&card, 0);
    let card = std::fs::read_to_string(desk.path("card.md")).unwrap();
    assert!(
        card.contains("expected for answering, 50 requests a day for 365 days"),
        "{card}"
    );
    assert!(!card.contains("adapter merged"), "{card}");

    for (arguments, code, word) in [
        (
            &["ledger", "runs", "--days", "3"][..],
            2,
            "--requests-per-day",
        ),
        (
            &["ledger", "runs/a", "--requests-per-day", "3"],
            2,
            "not known",
        ),
        (
            &[
                "ledger",
                "runs",
                "--requests-per-day",
                "3",
                "--inference",
                "runs/a",
            ],
            2,
            "no measurement",
        ),
        (
            &[
                "bench-generate",
                "--model",
                "builtin:sprout",
                "-o",
                "runs/a",
            ],
            2,
            "holds a run",
        ),
        (
            &[
                "bench-generate",
                "--model",
                "builtin:sprout",
                "--tokens",
                "9999",
                "-o",
                "runs/x",
            ],
            2,
            "tokens",
        ),
        (
            &["bench-generate", "--model", "builtin:nix", "-o", "runs/x"],
            2,
            "builtin:nix",
        ),
    ] {
        let Ran { err, .. } = desk.ends(arguments, code);
        assert!(err.starts_with("error: ") && err.contains(word), "{err}");
    }
    assert!(!desk.path("runs/x").exists());
}

#[test]
fn what_is_no_run_is_refused_in_one_sentence() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("empty")).unwrap();
    for (arguments, word) in [
        (&["ledger", "empty"][..], "no run"),
        (&["ledger", "nix"], "`nix`"),
        (&["ledger", "recipe.yaml"], "not a ledger"),
        (
            &["card", "update", "card.md", "--ledger", "empty"],
            "no run",
        ),
    ] {
        let Ran { err, .. } = desk.ends(arguments, 2);
        let lines: Vec<&str> = err.lines().collect();
        assert!(
            lines[0].starts_with("error: ") && lines[0].contains(word),
            "{err}"
        );
        assert!(lines.len() == 2 && lines[1].starts_with("hint: "), "{err}");
    }
}
