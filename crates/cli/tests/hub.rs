//! The program and a Hub on loopback: models by name, what a run says of where they come from, and what is
//! never asked of anybody.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[path = "../../hub/tests/loopback/mod.rs"]
mod loopback;

use loopback::{Loopback, TOKEN};

const RECIPE: &str = "model: org/sprout
lora: {r: 2, alpha: 4}
data: {train: train.jsonl}
max_length: 64
packing: false
batch_size: 2
max_steps: 2
save_steps: never
learning_rate: 1e-3
country: DEU
output_dir: run
";

/// A folder to work in, with a cache and a Hub of its own.
struct Desk {
    hub: Loopback,
    folder: tempfile::TempDir,
}

impl Desk {
    /// With the built-in model on the Hub, under a licence.
    fn new() -> Self {
        let desk = Self {
            hub: Loopback::start(),
            folder: tempfile::tempdir().unwrap(),
        };
        desk.write("recipe.yaml", RECIPE);
        let rows: Vec<String> = (0..8)
            .map(|i| format!("{{\"prompt\": \"Tree {i}?\", \"completion\": \"Lime {i}\"}}\n"))
            .collect();
        desk.write("train.jsonl", &rows.concat());
        desk.done(&["unpack", "builtin:sprout", "-o", "unpacked"]);
        let mut files = Vec::new();
        for name in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
        ] {
            files.push((
                name,
                std::fs::read(desk.path("unpacked").join(name)).unwrap(),
            ));
        }
        files.push((
            "README.md",
            b"---\nlicense: cc-by-4.0\n---\n# Sprout\n".to_vec(),
        ));
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (*name, bytes.as_slice()))
            .collect();
        desk.hub.put("models/org/sprout", &files);
        desk
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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sparsam"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("SPARSAM_COUNTRY")
            .env("HF_HOME", self.path("home"))
            .env("HF_ENDPOINT", &self.hub.endpoint)
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::null());
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HF_TOKEN_PATH",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output and error of a run that must succeed.
    #[track_caller]
    fn done(&self, arguments: &[&str]) -> (String, String) {
        finished(&self.run(arguments))
    }
}

#[track_caller]
fn finished(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Fails unless the program refuses with this exit code, in one sentence with these words and a hint.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: "));
    let error = error.unwrap_or_else(|| panic!("no error: {stderr}"));
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {stderr}");
    }
    assert!(
        stderr.lines().any(|line| line.starts_with("hint: ")),
        "{stderr}"
    );
    stderr
}

#[test]
fn fetch_says_where_it_is_and_under_which_licence() {
    let desk = Desk::new();
    let (folder, news) = desk.done(&["fetch", "org/sprout"]);
    let folder = Path::new(folder.trim_end());
    assert!(folder.starts_with(desk.path("home/hub/models--org--sprout/snapshots")));
    assert!(folder.join("model.safetensors").exists());
    assert!(news.contains("fetching 6 files of `org/sprout`"), "{news}");
    assert!(news.contains("licence cc-by-4.0"), "{news}");

    desk.hub.asked();
    let output = desk
        .command(&["fetch", "org/sprout"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let (again, news) = finished(&output);
    assert_eq!(Path::new(again.trim_end()), folder);
    assert!(news.contains("all in the cache"), "{news}");
    assert!(desk.hub.asked().is_empty());
}

#[test]
fn refusals_have_exit_codes_and_tokens_are_never_shown() {
    let desk = Desk::new();
    refused(
        &desk.run(&["fetch", "org/none"]),
        2,
        &["no model `org/none`"],
    );
    refused(&desk.run(&["fetch", "none"]), 2, &["`none` is not a name"]);
    let revision = ["fetch", "org/sprout", "--revision", "v9"];
    refused(&desk.run(&revision), 2, &["no revision `v9`"]);
    desk.hub
        .with("models/org/sprout", |repository| repository.gated = true);
    refused(&desk.run(&["fetch", "org/sprout"]), 1, &["gated"]);
    for token in [TOKEN, "hf_expired"] {
        let output = desk
            .command(&["generate", "--model", "org/sprout", "--prompt=x"])
            .env("HF_TOKEN", token)
            .output()
            .unwrap();
        let stderr = refused(&output, 1, &[]);
        assert!(!stderr.contains(token), "{stderr}");
    }
    let output = desk
        .command(&["fetch", "org/sprout"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    refused(&output, 1, &["HF_HUB_OFFLINE", "org/sprout"]);
}

#[test]
fn a_model_by_name_answers_as_the_one_built_in_and_a_run_says_where_it_is_from() {
    let desk = Desk::new();
    let answer = |model: &str| {
        let arguments = [
            "generate",
            "--model",
            model,
            "--prompt=The lime tree",
            "--max-new-tokens=8",
        ];
        desk.done(&arguments).0
    };
    assert_eq!(answer("org/sprout"), answer("builtin:sprout"));

    let commit = desk.hub.state().repositories["models/org/sprout"].commit();
    let (_, news) = desk.done(&["train", "recipe.yaml"]);
    assert!(news.contains("licence of the base: cc-by-4.0"), "{news}");
    let record: Value = serde_json::from_str(&desk.read("run/run.json")).unwrap();
    assert_eq!(record["base"]["model"], "org/sprout");
    assert_eq!(record["base"]["revision"], commit.as_str());
    let card = desk.read("run/README.md");
    for line in ["base_model: org/sprout", "license: cc-by-4.0"] {
        assert!(
            card.lines().any(|found| found == line),
            "no `{line}` in {card}"
        );
    }
    let config: Value = serde_json::from_str(&desk.read("run/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/sprout");
}

#[test]
fn a_run_that_is_continued_keeps_the_commit_it_began_with() {
    let desk = Desk::new();
    let train =
        |more: &[&str]| desk.done(&[&["train", "recipe.yaml", "save_steps=1"], more].concat());
    train(&[]);
    let whole = desk.read("run/run.json");
    let interrupted = whole.replace("\"state\": \"finished\"", "\"state\": \"interrupted\"");
    assert_ne!(whole, interrupted);
    desk.write("run/run.json", &interrupted);
    let commit = desk.hub.state().repositories["models/org/sprout"].commit();
    // The branch moves to a model that could not even be loaded.
    desk.hub.put("models/org/sprout", &[("config.json", b"{}")]);
    desk.hub.asked();
    train(&["--resume"]);
    assert!(desk.hub.asked().is_empty());
    let record: Value = serde_json::from_str(&desk.read("run/run.json")).unwrap();
    assert_eq!(record["base"]["revision"], commit.as_str());
    assert_eq!(record["state"], "finished");
}

#[test]
fn an_adapter_by_name_is_used_and_trained_on() {
    let desk = Desk::new();
    desk.done(&["train", "recipe.yaml"]);
    let read = |name: &str| std::fs::read(desk.path("run").join(name)).unwrap();
    desk.hub.put(
        "models/me/trees",
        &[
            ("adapter_config.json", &read("adapter_config.json")),
            (
                "adapter_model.safetensors",
                &read("adapter_model.safetensors"),
            ),
        ],
    );
    let answer = |adapter: &str| {
        let model = ["generate", "--model", "org/sprout", "--adapter", adapter];
        desk.done(&[&model[..], &["--prompt=Tree", "--max-new-tokens=4"]].concat())
            .0
    };
    assert_eq!(answer("me/trees"), answer("run"));
    let further = [
        "train",
        "recipe.yaml",
        "adapter=me/trees",
        "output_dir=further",
    ];
    desk.done(&further);
    assert!(desk.path("further/adapter_model.safetensors").exists());
    let wrong = [
        "train",
        "recipe.yaml",
        "adapter=org/sprout",
        "output_dir=wrong",
    ];
    refused(&desk.run(&wrong), 2, &["org/sprout", "adapter_config.json"]);
}

/// Every command that names no model of the Hub, with the Hub's address set to a listener that must hear
/// nothing.
#[test]
fn nobody_is_asked_unless_the_hub_is_named() {
    let desk = Desk::new();
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let address = trap.local_addr().unwrap();
    let quiet = |arguments: &[&str]| {
        let mut command = desk.command(arguments);
        // A proxy would see what goes to any other host.
        for proxy in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
        ] {
            command.env(proxy, format!("http://{address}"));
        }
        command.env_remove("NO_PROXY");
        let output = command
            .env("HF_ENDPOINT", format!("http://{address}"))
            .output()
            .unwrap();
        let heard = trap.accept();
        assert!(
            heard.is_err(),
            "`{}` opened a connection",
            arguments.join(" ")
        );
        output
    };
    finished(&quiet(&["train", "recipe.yaml", "model=builtin:sprout"]));
    finished(&quiet(&[
        "generate",
        "-m",
        "builtin:sprout",
        "-a",
        "run",
        "--prompt=x",
        "--max-new-tokens=2",
    ]));
    finished(&quiet(&[
        "train",
        "recipe.yaml",
        "model=unpacked",
        "output_dir=other",
        "--dry-run",
    ]));
    finished(&quiet(&["card", "run"]));
    finished(&quiet(&["doctor"]));
    finished(&quiet(&["recipe"]));
    // A mistyped path is no name on the Hub.
    refused(
        &quiet(&["train", "recipe.yaml", "model=run/mistyped", "output_dir=b"]),
        2,
        &["run/mistyped"],
    );
    refused(
        &quiet(&["generate", "-m", "unpacked/x", "--prompt=x"]),
        2,
        &["unpacked/x"],
    );
    // The trap works: a name does reach it.
    let output = desk
        .command(&["fetch", "org/sprout"])
        .env("HF_ENDPOINT", format!("http://{address}"))
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "0.05")
        .output()
        .unwrap();
    refused(&output, 1, &["cannot reach"]);
    assert!(trap.accept().is_ok());
}

/// Lines `send PATH …` of a dry run.
fn to_send(stdout: &str) -> Vec<String> {
    let lines = stdout.lines().filter_map(|line| line.strip_prefix("send "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_run_is_published_as_the_dry_run_says_and_only_once() {
    let desk = Desk::new();
    desk.done(&["train", "recipe.yaml"]);
    // What must stay here, even beside what goes.
    desk.write("run/notes.txt", "mine");
    desk.write("run/loss.svg", "<svg/>");
    let publish = |more: &[&str]| {
        let mut command = desk.command(&["publish", "run", "me/trees"]);
        command.args(more).env("HF_TOKEN", TOKEN).output().unwrap()
    };
    desk.hub.asked();
    let (said, _) = finished(&publish(&["--private", "--dry-run"]));
    assert!(
        said.starts_with("would create the private model me/trees\n"),
        "{said}"
    );
    assert!(desk.hub.asked().iter().all(|asked| asked.method == "GET"));
    assert!(desk.hub.state().commits.is_empty());

    let (url, news) = finished(&publish(&["--private"]));
    let (commits, there) = {
        let state = desk.hub.state();
        (
            state.commits.clone(),
            state.repositories["models/me/trees"].clone(),
        )
    };
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].paths, to_send(&said));
    assert_eq!(
        commits[0].paths,
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "loss.svg",
            "probe.json",
            "run.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    for name in ["README.md", "adapter_model.safetensors", "run.json"] {
        assert_eq!(
            there.files[name],
            std::fs::read(desk.path("run").join(name)).unwrap(),
            "{name}"
        );
    }
    assert!(there.private);
    assert!(commits[0].description.contains("org/sprout"));
    assert!(
        commits[0]
            .description
            .contains("energy of this upload is not part")
    );
    assert!(url.contains("/me/trees/commit/"), "{url}");
    assert!(!news.contains(TOKEN) && !url.contains(TOKEN));
    assert!(
        desk.hub
            .asked()
            .iter()
            .any(|asked| asked.path == "/api/validate-yaml")
    );

    let (_, news) = finished(&publish(&[]));
    assert!(news.contains("nothing to change"), "{news}");
    assert_eq!(desk.hub.state().commits.len(), 1);

    // Trained on by its name.
    let mut further = desk.command(&[
        "train",
        "recipe.yaml",
        "adapter=me/trees",
        "output_dir=further",
    ]);
    finished(&further.env("HF_TOKEN", TOKEN).output().unwrap());
    assert!(desk.path("further/adapter_model.safetensors").exists());
}

#[test]
fn a_merged_model_and_gguf_files_are_published_with_the_emissions_of_their_adapter() {
    let desk = Desk::new();
    desk.done(&["train", "recipe.yaml"]);
    let base = ["--base", "unpacked"];
    let made = |arguments: &[&str]| desk.done(&[arguments, &base].concat());
    made(&[
        "merge",
        "run",
        "-o",
        "whole",
        "--no-drift",
        "--max-shard-size=4MB",
    ]);
    made(&["export", "run", "--format=gguf", "-o", "trees-f16.gguf"]);
    desk.done(&[
        "quantize",
        "whole",
        "--to=gguf:Q8_0",
        "-o",
        "trees-q8_0.gguf",
    ]);
    let publish = |arguments: &[&str]| {
        let mut command = desk.command(&[&["publish", "run"], arguments].concat());
        command.env("HF_TOKEN", TOKEN).output().unwrap()
    };
    let (said, _) = finished(&publish(&["me/whole", "--merged=whole", "--dry-run"]));
    finished(&publish(&["me/whole", "--merged=whole"]));
    let ggufs = ["me/ggufs", "--gguf", "trees-f16.gguf", "trees-q8_0.gguf"];
    finished(&publish(&ggufs));

    let grams = |card: &str| {
        let line = card.lines().find(|line| line.contains("  emissions: "));
        line.unwrap().to_owned()
    };
    let own = desk.read("run/README.md");
    let sent = |name: &str| {
        let state = desk.hub.state();
        let files = &state.repositories[&format!("models/{name}")].files;
        let card = String::from_utf8(files["README.md"].clone()).unwrap();
        (
            files
                .keys()
                .filter(|name| *name != ".gitattributes")
                .cloned()
                .collect::<Vec<_>>(),
            card,
        )
    };
    let (files, card) = sent("me/whole");
    assert_eq!(to_send(&said), files);
    let shards = files.iter().filter(|name| name.starts_with("model-0"));
    assert!(shards.count() > 1, "{files:?}");
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "run.json",
    ] {
        assert!(files.iter().any(|file| file == name), "{name}: {files:?}");
    }
    assert!(
        !files.iter().any(|file| file.contains("adapter")),
        "{files:?}"
    );
    for line in [
        "library_name: transformers",
        "base_model: org/sprout",
        "- base_model:finetune:org/sprout",
        "# me/whole",
    ] {
        assert!(
            card.lines().any(|found| found == line),
            "no `{line}` in {card}"
        );
    }
    assert_eq!(grams(&card), grams(&own));
    assert!(card.contains("merging it is not in them"), "{card}");

    let (files, card) = sent("me/ggufs");
    assert_eq!(
        files,
        ["README.md", "run.json", "trees-f16.gguf", "trees-q8_0.gguf"]
    );
    for line in ["library_name: gguf", "base_model: org/sprout", "- gguf"] {
        assert!(
            card.lines().any(|found| found == line),
            "no `{line}` in {card}"
        );
    }
    assert!(card.contains("llama-cli -m trees-f16.gguf -p"), "{card}");
    assert_eq!(grams(&card), grams(&own));

    // Again it changes nothing, and what was published works by its name.
    let (_, news) = finished(&publish(&["me/whole", "--merged=whole"]));
    assert!(news.contains("nothing to change"), "{news}");
    let answer = |model: &str| {
        let prompt = ["--prompt=Tree", "--max-new-tokens=4"];
        desk.done(&[&["generate", "--model", model], &prompt[..]].concat())
            .0
    };
    assert_eq!(answer("me/whole"), answer("whole"));

    // Nothing else goes under the run's figures.
    desk.done(&["train", "recipe.yaml", "seed=7", "output_dir=other"]);
    made(&["merge", "other", "-o", "others", "--no-drift"]);
    refused(
        &publish(&["me/x", "--merged=others"]),
        2,
        &["another adapter"],
    );
    refused(
        &publish(&["me/x", "--merged=unpacked"]),
        2,
        &["does not say which adapter"],
    );
    refused(
        &publish(&["me/x", "--gguf", "missing.gguf"]),
        1,
        &["missing.gguf"],
    );
    let twice = ["me/x", "--gguf", "trees-f16.gguf", "./trees-f16.gguf"];
    refused(&publish(&twice), 2, &["two files are called"]);
}

#[test]
fn a_card_on_the_hub_keeps_what_others_wrote() {
    let desk = Desk::new();
    desk.done(&["train", "recipe.yaml"]);
    let theirs =
        "---\nlicense: mit\n# A comment of theirs\ntags: [trees]\n---\n# Trees\n\nTheir words.\n";
    desk.hub
        .put("models/me/trees", &[("README.md", theirs.as_bytes())]);
    let publish = |more: &[&str]| {
        let mut command = desk.command(&["publish", "run", "me/trees"]);
        finished(&command.args(more).env("HF_TOKEN", TOKEN).output().unwrap())
    };
    let card = || {
        let state = desk.hub.state();
        String::from_utf8(state.repositories["models/me/trees"].files["README.md"].clone()).unwrap()
    };
    publish(&["--pull-request"]);
    assert_eq!(card(), theirs);
    let (_, news) = publish(&[]);
    assert!(news.contains("the card on the Hub is kept"), "{news}");
    let updated = card();
    for kept in theirs.lines() {
        assert!(
            updated.lines().any(|line| line == kept),
            "`{kept}` is gone: {updated}"
        );
    }
    assert!(updated.contains("co2_eq_emissions:"), "{updated}");
    let commits = desk.hub.state().commits.len();
    publish(&[]);
    assert_eq!(
        desk.hub.state().commits.len(),
        commits,
        "a second publish changed something"
    );
    publish(&["--replace-card"]);
    assert_eq!(card(), desk.read("run/README.md"));
}

#[test]
fn what_should_not_be_published_is_refused_before_anything_is_sent() {
    let desk = Desk::new();
    let publish = |run: &str| {
        // Each run to a repository of its own.
        let name = format!("me/{run}");
        let mut command = desk.command(&["publish", run, &name]);
        command.env("HF_TOKEN", TOKEN).output().unwrap()
    };
    refused(&publish("nowhere"), 2, &["nowhere"]);

    desk.done(&["train", "recipe.yaml", "model=unpacked", "output_dir=local"]);
    refused(&publish("local"), 2, &["`unpacked`", "others do not have"]);

    let elsewhere = RECIPE.replace("country: DEU\n", "");
    desk.write("elsewhere.yaml", &elsewhere);
    desk.done(&[
        "train",
        "elsewhere.yaml",
        "model=builtin:sprout",
        "output_dir=placeless",
    ]);
    let stderr = refused(&publish("placeless"), 1, &["could not read the emissions"]);
    assert!(
        stderr.contains("sparsam card update placeless --run placeless"),
        "{stderr}"
    );
    // The hint helps.
    let place = [
        "card",
        "update",
        "placeless",
        "--run",
        "placeless",
        "--country",
        "DEU",
    ];
    desk.done(&place);
    finished(&publish("placeless"));
    desk.hub.asked();
    desk.hub.state().commits.clear();

    desk.done(&["train", "recipe.yaml"]);
    let card = desk.read("run/README.md");
    desk.write(
        "run/README.md",
        &card.replace("license: cc-by-4.0", "license: no-such-licence"),
    );
    refused(&publish("run"), 2, &["refuses the card", "must be one of"]);
    let secret = format!("{card}\n{}{}\n", "hf_", "abcdefghijABCDEFGHIJ1234");
    desk.write("run/README.md", &secret);
    refused(&publish("run"), 1, &["looks like a token"]);
    desk.write("run/README.md", &card);

    let whole = desk.read("run/run.json");
    desk.write(
        "run/run.json",
        &whole.replace("\"state\": \"finished\"", "\"state\": \"interrupted\""),
    );
    refused(&publish("run"), 2, &["not finished"]);
    desk.write("run/run.json", &whole);

    let output = desk.run(&["publish", "run", "me/other"]);
    let stderr = refused(&output, 1, &["without a token"]);
    assert!(stderr.contains("HF_TOKEN"), "{stderr}");
    let output = desk
        .command(&["publish", "run", "me/other"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    refused(&output, 1, &["HF_HUB_OFFLINE"]);
    assert!(desk.hub.state().commits.is_empty());
    assert!(
        !desk
            .hub
            .state()
            .repositories
            .contains_key("models/me/other")
    );
}

#[test]
fn data_by_name_is_the_split_that_is_asked_for() {
    let desk = Desk::new();
    let row = |i: usize| format!("{{\"prompt\": \"Tree {i}?\", \"completion\": \"Lime {i}\"}}\n");
    let rows = |range: std::ops::Range<usize>| range.map(row).collect::<String>();
    let name = "datasets/city/trees";
    desk.hub.put(
        name,
        &[
            ("README.md", b"---\nlicense: cc-by-4.0\n---\n# Trees\n"),
            ("data/train-00000-of-00002.jsonl", rows(0..4).as_bytes()),
            ("data/train-00001-of-00002.jsonl", rows(4..8).as_bytes()),
            ("data/test-00000-of-00001.jsonl", rows(8..10).as_bytes()),
            ("data/secret-00000-of-00001.jsonl", b"not asked for"),
        ],
    );
    desk.write("train.jsonl", &rows(0..8));
    desk.write("eval.jsonl", &rows(8..10));
    let train = |more: &[&str]| desk.done(&[&["train", "recipe.yaml"], more].concat());
    train(&["data.eval=eval.jsonl", "output_dir=here"]);
    desk.hub.asked();
    train(&[
        "data.train=city/trees",
        "data.eval=city/trees",
        "data.split=train",
        "output_dir=there",
    ]);
    assert!(
        desk.hub
            .asked()
            .iter()
            .all(|asked| !asked.path.contains("secret"))
    );
    let weights =
        |run: &str| std::fs::read(desk.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(
        weights("here") == weights("there"),
        "another data set was trained on"
    );

    let record: Value = serde_json::from_str(&desk.read("there/run.json")).unwrap();
    let commit = desk.hub.state().repositories[name].commit();
    assert_eq!(record["train_data"]["revision"], commit.as_str());
    assert_eq!(record["train_data"]["split"], "train");
    assert_eq!(record["train_data"]["examples"], 8);
    assert_eq!(record["eval_data"]["split"], "test");
    assert_eq!(record["eval_data"]["examples"], 2);
    assert!(
        desk.read("there/README.md")
            .contains("datasets:\n- city/trees\n")
    );

    let refuse = |more: &[&str], words: &[&str]| {
        let output = desk.run(&[&["train", "recipe.yaml", "output_dir=none"], more].concat());
        refused(&output, 2, words);
        assert!(!desk.path("none").exists());
    };
    refuse(
        &["data.train=city/trees", "data.split=winter"],
        &["no split `winter`"],
    );
    refuse(&["data.train=city/none"], &["no data set `city/none`"]);
    refuse(&["data.split=train"], &["`data.split`", "not on the Hub"]);
    let (folder, _) = desk.done(&["fetch", "--dataset", "city/trees", "--split", "test"]);
    assert!(
        Path::new(folder.trim_end())
            .join("data/test-00000-of-00001.jsonl")
            .exists()
    );
}
