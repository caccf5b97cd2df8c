//! `sparsam train` through the binary: what a run leaves, what survives a kill, what is refused and how.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

mod desk;

use desk::{Desk, finished};

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

impl Desk {
    /// With a recipe and data for a run of a few seconds.
    fn new() -> Self {
        let desk = Self::empty();
        desk.write("recipe.yaml", RECIPE);
        desk.write("train.jsonl", rows(0..40));
        desk.write("eval.jsonl", rows(40..48));
        desk
    }

    #[track_caller]
    fn train(&self, arguments: &[&str]) -> String {
        self.done(&[&["train", "recipe.yaml"], arguments].concat())
            .out
    }

    /// Fails unless the run is refused, and leaves nothing.
    #[track_caller]
    fn refuses_to_train(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let arguments = [&["-q", "train", "recipe.yaml"], arguments].concat();
        self.refused(&arguments, code, words);
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
    let desk = Desk::new();
    let screen = desk.train(&["eval_generation={samples: 3, max_new_tokens: 8}"]);
    let run = desk.json("run/run.json");
    assert_eq!(run["state"], "finished");
    assert_eq!(run["results"]["steps"], 12);
    #[cfg(not(feature = "cuda"))]
    assert_eq!(run["platform"]["device"], "cpu");
    assert_eq!(run["results"]["after"]["answers"], 3);
    let (before, after) = (&run["results"]["before"], &run["results"]["after"]);
    assert!(after["loss"].as_f64() < before["loss"].as_f64());

    // One record: screen, card and run.json say the same.
    let card = desk.read("run/README.md");
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

    let config = desk.json("run/adapter_config.json");
    assert_eq!(config["lora_alpha"], 8);
    assert_eq!(config["peft_type"], "LORA");
    let metrics = desk.read("run/metrics.jsonl");
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
    assert!(desk.path("run/tensorboard").is_dir());
    assert!(!desk.path("run/.lock").exists());

    let question = ["--prompt", "Die Linde in Gartenweg 1 verliert Äste."];
    let model = ["-q", "generate", "-m", "builtin:sprout", "-a", "run"];
    assert!(!desk.done(&[&model[..], &question].concat()).out.is_empty());

    let again = desk.ends(&["-q", "train", "recipe.yaml"], 2);
    assert!(again.err.contains("--resume"), "{}", again.err);
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let whole = Desk::new();
    whole.train(&[]);
    let expected = std::fs::read(whole.path("run/adapter_model.safetensors")).unwrap();

    let killed = Desk::new();
    let mut child = killed.start_until(&["train", "recipe.yaml"], "run/checkpoints", "step-");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(killed.json("run/run.json")["state"], "running");
    assert!(!killed.path("run/adapter_model.safetensors").exists());

    // A card can be had from what the journal holds.
    killed.done(&["card", "run"]);
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
    let losses = |desk: &Desk| -> Vec<Value> {
        let metrics = desk.read("run/metrics.jsonl");
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
    let desk = Desk::new();
    let arguments = [
        "train",
        "recipe.yaml",
        "max_steps=100000",
        "save_steps=never",
        // A best checkpoint would lie beside the one that is asked for.
        "eval_steps=never",
    ];
    let child = desk.start_until(&arguments, "run", "metrics.jsonl");
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let ran = finished(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    for words in ["error: interrupted after step", "--resume"] {
        assert!(ran.err.contains(words), "{}", ran.err);
    }
    assert_eq!(desk.json("run/run.json")["state"], "interrupted");
    assert_eq!(
        std::fs::read_dir(desk.path("run/checkpoints"))
            .unwrap()
            .count(),
        1
    );

    desk.ends(&["-q", "train", "recipe.yaml", "seed=1", "--resume"], 2);
}

/// A run with more keys that is killed when it has a checkpoint.
#[cfg(unix)]
fn killed_at_a_checkpoint(way: &[&str]) -> Desk {
    let desk = Desk::new();
    let words = [&["train", "recipe.yaml"], way].concat();
    let mut child = desk.start_until(&words, "run/checkpoints", "step-");
    child.kill().unwrap();
    child.wait().unwrap();
    desk
}

/// The bytes of what a run trained.
#[cfg(unix)]
fn adapter(desk: &Desk) -> Vec<u8> {
    std::fs::read(desk.path("run/adapter_model.safetensors")).unwrap()
}

/// PiSSA begins without effect, learns, goes on after a kill to the same bytes, and leaves a plain adapter; LoRA+ is a
/// number.
#[cfg(unix)]
#[test]
fn other_ways_to_begin_and_to_learn_leave_plain_adapters() {
    let way = ["lora.init_lora_weights=pissa", "lora.loraplus_lr_ratio=4"];
    let whole = Desk::new();
    whole.train(&way);
    let config = whole.json("run/adapter_config.json");
    // Twice the rank of the recipe.
    assert_eq!(
        (&config["r"], &config["init_lora_weights"]),
        (&8.into(), &true.into())
    );
    let results = &whole.json("run/run.json")["results"];
    let loss = |when: &str| results[when]["loss"].as_f64().unwrap();
    assert!(loss("after") < loss("before"), "{results}");
    whole.done(&["verify", "run", "--base=builtin:sprout"]);

    let killed = killed_at_a_checkpoint(&way);
    killed.train(&[&way[..], &["--resume"]].concat());
    assert!(
        adapter(&killed) == adapter(&whole),
        "the resumed run ended elsewhere"
    );

    let desk = Desk::new();
    let dora = ["lora.init_lora_weights=pissa", "lora.use_dora=true"];
    desk.refuses_to_train(&dora, 2, &["lora.use_dora"]);
    let zero = desk.ends(&["train", "recipe.yaml", "lora.loraplus_lr_ratio=0"], 2);
    assert!(
        zero.err
            .contains("`lora.loraplus_lr_ratio` must be greater than 0"),
        "{}",
        zero.err
    );
}

/// Moments in eight bits go on after a kill to the same bytes, and only so; the record and the cards name them.
#[cfg(unix)]
#[test]
fn moments_in_eight_bits_go_on_as_they_were() {
    // Of rank 32 most branches are large enough.
    let way = ["lora.r=32", "optim=adamw_8bit"];
    let whole = Desk::new();
    whole.train(&way);
    let run = whole.json("run/run.json");
    assert_eq!(run["recipe"]["optim"], "adamw_8bit");
    let loss = |when: &str| run["results"][when]["loss"].as_f64().unwrap();
    assert!(loss("after") < loss("before"), "{run}");
    assert!(whole.read("run/README.md").contains("adamw_8bit"));
    whole.done(&["card", "run", "--format", "boamps"]);
    assert!(whole.read("run/boamps.json").contains("\"adamw_8bit\""));

    let killed = killed_at_a_checkpoint(&way);
    let other = killed.ends(&["-q", "train", "recipe.yaml", "lora.r=32", "--resume"], 2);
    let told = "`optim` is \"adamw\", the run to be continued had \"adamw_8bit\"";
    assert!(other.err.contains(told), "{}", other.err);
    killed.train(&[&way[..], &["--resume"]].concat());
    assert!(
        adapter(&killed) == adapter(&whole),
        "the resumed run ended elsewhere"
    );

    let plain = Desk::new();
    plain.train(&["lora.r=32"]);
    assert!(adapter(&plain) != adapter(&whole), "the key has no effect");
}

/// Killed and resumed too, and without any room.
#[test]
fn what_is_computed_once_changes_no_byte_and_is_said() {
    let upper = [
        "lora.layers_to_transform=[5]",
        "lora.target_modules=[q_proj, v_proj]",
    ];
    let bytes = |desk: &Desk| std::fs::read(desk.path("run/adapter_model.safetensors")).unwrap();
    let plain = Desk::new();
    plain.train(&[&upper[..], &["prefix_cache.store=none"]].concat());
    let none = &plain.json("run/run.json")["results"]["prefix"];
    assert!(none.is_null(), "{none}");
    for (store, most, share) in [("file", 4000, 1.0), ("memory", 4000, 1.0), ("file", 0, 0.0)] {
        let desk = Desk::new();
        let store = format!("prefix_cache.store={store}");
        let most = format!("prefix_cache.max_mb={most}");
        let way = [&upper[..], &[&store, &most]].concat();
        let said = desk.train(&way);
        assert!(
            said.contains("frozen prefix   5 blocks computed once"),
            "{said}"
        );
        assert!(bytes(&desk) == bytes(&plain), "{store}, {most}");
        let prefix = &desk.json("run/run.json")["results"]["prefix"];
        let number = |key: &str| prefix[key].as_f64().unwrap();
        let reused =
            number("reused_tokens") / (number("reused_tokens") + number("computed_tokens"));
        assert!(reused >= 0.5 * share, "{prefix}");
        assert_eq!(prefix["full"].is_string(), share < 1.0, "{prefix}");
        let left: Vec<String> = std::fs::read_dir(desk.path("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(".tmp"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let killed = Desk::new();
    let words = [&["train", "recipe.yaml"], &upper[..]].concat();
    let mut child = killed.start_until(&words, "run/checkpoints", "step-");
    child.kill().unwrap();
    child.wait().unwrap();
    killed.train(&[&upper[..], &["--resume"]].concat());
    assert!(
        bytes(&killed) == bytes(&plain),
        "the resumed run ended elsewhere"
    );
}

#[test]
fn a_rehearsal_leaves_nothing() {
    let desk = Desk::new();
    let said = desk.done(&["train", "recipe.yaml", "--dry-run"]).err;
    assert!(said.contains("40 examples"), "{said}");
    assert!(!desk.path("run").exists());
}

#[test]
fn a_whole_model_can_be_trained_and_used() {
    let desk = Desk::new();
    desk.train(&["method=full", "max_steps=2", "-q"]);
    assert!(
        desk.read("run/README.md")
            .contains("library_name: transformers")
    );
    desk.done(&["-q", "generate", "-m", "run", "--prompt", "Linde"]);
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_a_hint_and_nothing_is_left() {
    let desk = Desk::new();
    // Data.
    desk.refuses_to_train(
        &["data.train=none.jsonl"],
        2,
        &["`data.train`", "none.jsonl"],
    );
    desk.write("empty.jsonl", "");
    desk.refuses_to_train(&["data.train=empty.jsonl"], 1, &["empty.jsonl", "no data"]);
    desk.write(
        "column.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"}\n",
    );
    let column = ["column.jsonl", "line 2", "`completion`"];
    desk.refuses_to_train(&["data.train=column.jsonl"], 1, &column);
    desk.write("broken.jsonl", "{\"prompt\": \n");
    desk.refuses_to_train(&["data.train=broken.jsonl"], 1, &["broken.jsonl", "line 1"]);
    desk.write(
        "masked.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}\n",
    );
    desk.refuses_to_train(
        &["data.train=masked.jsonl"],
        1,
        &["masked.jsonl", "trained"],
    );
    desk.refuses_to_train(&["data.train=recipe.yaml"], 1, &["recipe.yaml"]);

    // The device.
    #[cfg(not(feature = "cuda"))]
    desk.refuses_to_train(
        &["device=cuda:1"],
        2,
        &["`cuda:1`", "without support for GPUs"],
    );

    // The model.
    desk.refuses_to_train(&["init_scale=1"], 2, &["`init_scale`"]);
    desk.refuses_to_train(&["model=nowhere"], 2, &["`nowhere`"]);
    desk.refuses_to_train(&["model=builtin:nothing"], 2, &["`builtin:nothing`"]);
    let model = desk.path("model");
    desk.done(&["unpack", "builtin:sprout", "-o", "model"]);
    let spoil = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let path = model.join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(bytes.clone())).unwrap();
        move || std::fs::write(&path, &bytes).unwrap()
    };
    let mend = spoil("model.safetensors", &|bytes| {
        bytes[..bytes.len() / 2].to_vec()
    });
    desk.refuses_to_train(&["model=model"], 1, &["model.safetensors"]);
    mend();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mend = spoil("config.json", &|bytes| {
        let config =
            text(bytes).replace("\"intermediate_size\": 512", "\"intermediate_size\": 500");
        config.into_bytes()
    });
    desk.refuses_to_train(&["model=model"], 1, &["shape", "512", "500"]);
    mend();
    let mend = spoil("config.json", &|bytes| {
        let config = text(bytes).replace("\"vocab_size\": 4096", "\"vocab_size\": 4000");
        config.into_bytes()
    });
    desk.refuses_to_train(&["model=model"], 1, &["tokenizer does not fit"]);
    mend();
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    desk.refuses_to_train(&["model=model"], 1, &["tokenizer.json"]);

    // The adapter and the place for the results.
    desk.refuses_to_train(
        &["lora.target_modules=[nothing_proj]"],
        2,
        &["`lora.target_modules`"],
    );
    desk.refuses_to_train(&["max_length=100000"], 2, &["max_length"]);
    desk.write("file", "");
    desk.refuses_to_train(&["output_dir=file/run"], 1, &["`output_dir`", "file/run"]);
}

#[test]
fn a_loss_that_is_no_number_ends_in_one_line() {
    let desk = Desk::new();
    desk.done(&["unpack", "builtin:sprout", "-o", "model"]);
    make_infinite(&desk.path("model"));
    let train = ["-q", "train", "recipe.yaml"];
    let ran = desk.ends(
        &[&train[..], &["model=model", "data.eval=null"]].concat(),
        1,
    );
    assert!(
        ran.err
            .starts_with("error: the loss is NaN\nhint: lower `learning_rate`"),
        "{}",
        ran.err
    );
    assert_eq!(desk.json("run/run.json")["state"], "failed");
    assert!(!desk.path("run/adapter_model.safetensors").exists());
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
