//! `sparsam train` through the binary: what a run leaves, what survives a kill, what is refused and how.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A folder with a recipe and data for a run of a few seconds.
struct Workshop {
    folder: tempfile::TempDir,
}

const RECIPE: &str = "model: builtin:sprout
lora: {r: 4, alpha: 8, dropout: 0.1}
data: {train: train.jsonl, eval: eval.jsonl}
max_length: 64
packing: false
batch_size: 4
gradient_accumulation_steps: 2
max_steps: 12
eval_steps: 5
save_steps: 2
learning_rate: 1e-3
country: DEU
output_dir: run
";

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let workshop = Self { folder };
        workshop.write("recipe.yaml", RECIPE);
        workshop.write("train.jsonl", &rows(0..40));
        workshop.write("eval.jsonl", &rows(40..48));
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sparsam"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("SPARSAM_COUNTRY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn train(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["train", "recipe.yaml"], arguments].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fails unless the program refuses with this exit code, in one line with these words, and a hint.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.run(&[&["-q", "train", "recipe.yaml"], arguments].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with("error: "), "{stderr}");
        assert!(lines[1].starts_with("hint: "), "{stderr}");
        assert_eq!(lines.len(), 2, "{stderr}");
        for word in words {
            assert!(lines[0].contains(word), "`{word}` is not in: {stderr}");
        }
        assert!(!self.path("run").exists(), "something was left behind");
    }

    /// Starts a run and waits until a file whose name begins so is in the folder.
    fn start_until(&self, arguments: &[&str], folder: &str, file: &str) -> Child {
        let mut child = self.command(arguments).spawn().unwrap();
        let begun = Instant::now();
        let named = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.unwrap().file_name();
            name.to_string_lossy().starts_with(file)
        };
        while !std::fs::read_dir(self.path(folder)).is_ok_and(|mut entries| entries.any(named)) {
            assert!(child.try_wait().unwrap().is_none(), "ended before {file}");
            assert!(begun.elapsed() < Duration::from_secs(120), "no {file}");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }
}

fn rows(range: std::ops::Range<usize>) -> String {
    let trees = ["Linde", "Eiche", "Ahorn", "Birke", "Buche"];
    let row = |i: usize| {
        let tree = trees[i % trees.len()];
        let street = ["Am Markt", "Gartenweg", "Bahnhofstraße"][i % 3];
        serde_json::json!({
            "prompt": format!("Die {tree} in {street} {i} verliert Äste."),
            "completion": format!("{tree}\n{street}"),
        })
    };
    let rows: Vec<String> = range.map(|i| row(i).to_string()).collect();
    rows.join("\n") + "\n"
}

#[test]
fn a_run_leaves_an_adapter_a_card_and_records_that_agree() {
    let workshop = Workshop::new();
    let screen = workshop.train(&["eval_generation={samples: 3, max_new_tokens: 8}"]);
    let run = workshop.json("run/run.json");
    assert_eq!(run["state"], "finished");
    assert_eq!(run["results"]["steps"], 12);
    #[cfg(not(feature = "cuda"))]
    assert_eq!(run["platform"]["device"], "cpu");
    assert_eq!(run["results"]["after"]["answers"], 3);
    let (before, after) = (&run["results"]["before"], &run["results"]["after"]);
    assert!(after["loss"].as_f64() < before["loss"].as_f64());

    // One record: screen, card and run.json say the same.
    let card = workshop.read("run/README.md");
    let loss = format!("{:.4}", after["loss"].as_f64().unwrap());
    assert!(screen.contains(&loss), "{loss} is not in {screen}");
    let row = card
        .lines()
        .find(|line| line.starts_with("| Loss"))
        .expect("the card has the loss");
    let shown: f64 = row.split('|').nth(3).unwrap().trim().parse().unwrap();
    assert!(
        (shown / after["loss"].as_f64().unwrap() - 1.0).abs() < 1e-3,
        "{row}"
    );
    let grams = run["energy"]["emissions_g"]["central"].as_f64().unwrap();
    let line = card
        .lines()
        .find_map(|line| line.trim().strip_prefix("emissions: "))
        .expect("the card has emissions");
    let stated: f64 = line.parse().expect("a plain number");
    assert!(
        (stated / grams - 1.0).abs() < 1e-3,
        "{stated} against {grams}"
    );
    assert!(!line.contains(['e', 'E', '"', ',']), "{line}");

    let config = workshop.json("run/adapter_config.json");
    assert_eq!(config["lora_alpha"], 8);
    assert_eq!(config["peft_type"], "LORA");
    let metrics = workshop.read("run/metrics.jsonl");
    let steps = metrics
        .lines()
        .filter(|line| line.contains("\"loss\""))
        .count();
    assert_eq!(steps, 12);
    let phases: Vec<&str> = run["energy"]["windows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|window| window["path"].as_str())
        .collect();
    for phase in ["load", "train", "eval", "save", "generate"] {
        assert!(phases.contains(&phase), "{phase} is not among {phases:?}");
    }
    assert!(workshop.path("run/tensorboard").is_dir());
    assert!(!workshop.path("run/.lock").exists());

    let question = ["--prompt", "Die Linde in Gartenweg 1 verliert Äste."];
    let model = ["-q", "generate", "-m", "builtin:sprout", "-a", "run"];
    let output = workshop.run(&[&model[..], &question].concat());
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.is_empty());

    let again = workshop.run(&["-q", "train", "recipe.yaml"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(
        String::from_utf8(again.stderr)
            .unwrap()
            .contains("--resume")
    );
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let whole = Workshop::new();
    whole.train(&[]);
    let expected = std::fs::read(whole.path("run/adapter_model.safetensors")).unwrap();

    let killed = Workshop::new();
    let mut child = killed.start_until(&["train", "recipe.yaml"], "run/checkpoints", "step-");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(killed.json("run/run.json")["state"], "running");
    assert!(!killed.path("run/adapter_model.safetensors").exists());

    // A card can be had from what the journal holds.
    let output = killed.run(&["card", "run"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(killed.read("run/README.md").contains("ended early"));

    // The checkpoint is an adapter as it stands.
    let checkpoints = std::fs::read_dir(killed.path("run/checkpoints")).unwrap();
    let mut steps = checkpoints.map(|entry| entry.unwrap().path());
    let usable = steps.any(|path| path.join("adapter_model.safetensors").is_file());
    assert!(usable);

    // Where it is computed may change; here it is the same place by another name.
    killed.train(&["--resume", "device=cpu"]);
    let device = killed.json("run/run.json")["platform"]["device"].clone();
    #[cfg(not(feature = "cuda"))]
    assert_eq!(device, "cpu");
    #[cfg(feature = "cuda")]
    assert!(device.as_str().unwrap().ends_with("cpu"));
    let resumed = std::fs::read(killed.path("run/adapter_model.safetensors")).unwrap();
    assert!(resumed == expected, "the resumed run ended elsewhere");
    let run = killed.json("run/run.json");
    assert_eq!(run["state"], "finished");
    assert_eq!(run["energy"]["sessions"], 2);
    let losses = |workshop: &Workshop| -> Vec<Value> {
        let metrics = workshop.read("run/metrics.jsonl");
        let lines = metrics
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines
            .map(|line: Value| serde_json::json!([line["step"], line["loss"], line["eval_loss"]]))
            .collect()
    };
    assert_eq!(losses(&killed), losses(&whole));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_writes_a_checkpoint_and_says_how_to_go_on() {
    let workshop = Workshop::new();
    let arguments = [
        "train",
        "recipe.yaml",
        "max_steps=100000",
        "save_steps=never",
        // A best checkpoint would lie beside the one that is asked for.
        "eval_steps=never",
    ];
    let child = workshop.start_until(&arguments, "run", "metrics.jsonl");
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: interrupted after step"), "{stderr}");
    assert!(stderr.contains("--resume"), "{stderr}");
    assert_eq!(workshop.json("run/run.json")["state"], "interrupted");
    assert_eq!(
        std::fs::read_dir(workshop.path("run/checkpoints"))
            .unwrap()
            .count(),
        1
    );

    let other = workshop.run(&["-q", "train", "recipe.yaml", "seed=1", "--resume"]);
    let stderr = String::from_utf8(other.stderr).unwrap();
    assert_eq!(other.status.code(), Some(2), "{stderr}");
}

#[test]
fn a_rehearsal_leaves_nothing() {
    let workshop = Workshop::new();
    let output = workshop.run(&["train", "recipe.yaml", "--dry-run"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("40 examples"), "{stderr}");
    assert!(!workshop.path("run").exists());
}

#[test]
fn a_whole_model_can_be_trained_and_used() {
    let workshop = Workshop::new();
    workshop.train(&["method=full", "max_steps=2", "-q"]);
    assert!(
        workshop
            .read("run/README.md")
            .contains("library_name: transformers")
    );
    let arguments = ["-q", "generate", "-m", "run", "--prompt", "Linde"];
    let output = workshop.run(&arguments);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_a_hint_and_nothing_is_left() {
    let workshop = Workshop::new();
    // Data.
    workshop.refused(
        &["data.train=none.jsonl"],
        2,
        &["`data.train`", "none.jsonl"],
    );
    workshop.write("empty.jsonl", "");
    workshop.refused(&["data.train=empty.jsonl"], 1, &["empty.jsonl", "no data"]);
    workshop.write(
        "column.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"}\n",
    );
    let column = ["column.jsonl", "line 2", "`completion`"];
    workshop.refused(&["data.train=column.jsonl"], 1, &column);
    workshop.write("broken.jsonl", "{\"prompt\": \n");
    workshop.refused(&["data.train=broken.jsonl"], 1, &["broken.jsonl", "line 1"]);
    workshop.write(
        "masked.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}\n",
    );
    workshop.refused(
        &["data.train=masked.jsonl"],
        1,
        &["masked.jsonl", "trained"],
    );
    workshop.refused(&["data.train=recipe.yaml"], 1, &["recipe.yaml"]);

    // The device.
    #[cfg(not(feature = "cuda"))]
    workshop.refused(
        &["device=cuda:1"],
        2,
        &["`cuda:1`", "without support for GPUs"],
    );

    // The model.
    workshop.refused(&["model=nowhere"], 2, &["`nowhere`"]);
    workshop.refused(&["model=builtin:nothing"], 2, &["`builtin:nothing`"]);
    let model = workshop.path("model");
    let unpacked = workshop.run(&["unpack", "builtin:sprout", "-o", "model"]);
    assert_eq!(unpacked.status.code(), Some(0));
    let spoil = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let path = model.join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(bytes.clone())).unwrap();
        move || std::fs::write(&path, &bytes).unwrap()
    };
    let mend = spoil("model.safetensors", &|bytes| {
        bytes[..bytes.len() / 2].to_vec()
    });
    workshop.refused(&["model=model"], 1, &["model.safetensors"]);
    mend();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mend = spoil("config.json", &|bytes| {
        let config =
            text(bytes).replace("\"intermediate_size\": 512", "\"intermediate_size\": 500");
        config.into_bytes()
    });
    workshop.refused(&["model=model"], 1, &["shape", "512", "500"]);
    mend();
    let mend = spoil("config.json", &|bytes| {
        let config = text(bytes).replace("\"vocab_size\": 4096", "\"vocab_size\": 4000");
        config.into_bytes()
    });
    workshop.refused(&["model=model"], 1, &["tokenizer does not fit"]);
    mend();
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    workshop.refused(&["model=model"], 1, &["tokenizer.json"]);

    // The adapter and the place for the results.
    workshop.refused(
        &["lora.target_modules=[nothing_proj]"],
        2,
        &["`lora.target_modules`"],
    );
    workshop.refused(&["max_length=100000"], 2, &["max_length"]);
    workshop.write("file", "");
    workshop.refused(&["output_dir=file/run"], 1, &["`output_dir`", "file/run"]);
}

#[test]
fn a_rate_that_is_too_high_ends_in_one_line_and_keeps_the_last_checkpoint() {
    let workshop = Workshop::new();
    let output = workshop.run(&[
        "-q",
        "train",
        "recipe.yaml",
        "learning_rate=0.99",
        "lr_scheduler=constant",
        "warmup_steps=0",
        "max_grad_norm=0",
        "init_scale=1",
    ]);
    // A key that does not exist, first.
    assert_eq!(output.status.code(), Some(2));
    let broken = workshop.path("model");
    assert_eq!(
        workshop
            .run(&["unpack", "builtin:sprout", "-o", "model"])
            .status
            .code(),
        Some(0)
    );
    make_infinite(&broken);
    let output = workshop.run(&[
        "-q",
        "train",
        "recipe.yaml",
        "model=model",
        "data.eval=null",
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.starts_with("error: the loss is NaN\nhint: lower `learning_rate`"),
        "{stderr}"
    );
    assert_eq!(workshop.json("run/run.json")["state"], "failed");
    assert!(!workshop.path("run/adapter_model.safetensors").exists());
}

/// Puts an infinity into the first tensor of a model.
fn make_infinite(model: &Path) {
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let end = bytes.len().min(8 + header + 4 * 192 * 4096);
    for number in bytes[8 + header..end].chunks_exact_mut(4) {
        number.copy_from_slice(&f32::INFINITY.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
}
