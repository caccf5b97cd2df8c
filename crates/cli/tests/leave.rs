//! What leaves: `merge`, `quantize`, `export` and `verify` through the binary, on an adapter trained for
//! a few steps.

use std::path::Path;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use serde_json::Value;

mod desk;

use desk::Desk;

const RECIPE: &str = "model: builtin:sprout
quantize: nf4
lora: {r: 4, alpha: 8}
data: {train: train.jsonl}
max_length: 64
batch_size: 4
max_steps: 6
eval_steps: never
save_steps: never
learning_rate: 1e-2
warmup_ratio: 0
country: DEU
output_dir: run
";

/// A folder with a run in it, shared by all tests; what they write has other names.
fn desk() -> &'static Desk {
    static DESK: OnceLock<Desk> = OnceLock::new();
    DESK.get_or_init(|| {
        let desk = Desk::empty();
        let rows: Vec<String> = (0..16)
            .map(|i| format!("{{\"prompt\": \"Baum {i}?\", \"completion\": \"Linde {i}\"}}"))
            .collect();
        desk.write("recipe.yaml", RECIPE);
        desk.write("train.jsonl", rows.join("\n"));
        desk.works(&["-q", "train", "recipe.yaml"]);
        desk
    })
}

impl Desk {
    /// Standard output of a command that succeeds.
    #[track_caller]
    fn works(&self, arguments: &[&str]) -> String {
        self.done(arguments).out
    }

    /// The error of a command that refuses, one line and a hint.
    #[track_caller]
    fn error(&self, arguments: &[&str], code: i32) -> String {
        self.refused(arguments, code, &[]);
        self.run(arguments).err
    }

    fn logits(&self, name: &str, arguments: &[&str]) -> Tensor {
        let all = [
            &["probe", "--prompt=Wo steht die Linde?", "-o", name],
            arguments,
        ]
        .concat();
        self.works(&all);
        let tensors = candle_core::safetensors::load(self.path(name), &Device::Cpu).unwrap();
        tensors["logits"].clone()
    }
}

fn largest_difference(one: &Tensor, other: &Tensor) -> f32 {
    let difference = (one - other).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The first number behind a word.
fn number(text: &str, word: &str) -> f64 {
    let rest = text
        .split_once(word)
        .unwrap_or_else(|| panic!("no `{word}` in {text}"))
        .1;
    let number = rest.trim_start().split([' ', ',']).next().unwrap();
    number
        .parse()
        .unwrap_or_else(|_| panic!("`{number}` in {text}"))
}

#[test]
fn a_model_merged_into_the_dequantised_base_computes_what_was_trained() {
    let desk = desk();
    let said = desk.works(&[
        "merge",
        "run",
        "-o",
        "merged",
        "--dequantized",
        "--max-shard-size=2MB",
    ]);
    let names = files(&desk.path("merged"));
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }
    assert!(
        names.iter().filter(|n| n.ends_with(".safetensors")).count() > 2,
        "{names:?}"
    );
    let trained = desk.logits(
        "trained.safetensors",
        &["--model=builtin:sprout", "--quantize=nf4", "--adapter=run"],
    );
    let merged = desk.logits("merged.safetensors", &["--model=merged"]);
    let drift = largest_difference(&trained, &merged);
    assert!(drift < 1e-3, "{drift}");

    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("  base "))
        .collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("as it was before quantisation"), "{said}");
    assert!(lines[1].ends_with("(written)"), "{said}");
    assert!(number(lines[1], "largest") < 1e-3, "{said}");
    assert!(
        number(lines[0], "largest") > 100.0 * number(lines[1], "largest"),
        "{said}"
    );
    // It answers without its adapter.
    desk.works(&[
        "-q",
        "generate",
        "--model=merged",
        "--prompt=Baum 3?",
        "--max-new-tokens=4",
    ]);
}

#[test]
fn a_model_merged_into_the_plain_base_is_that_base_with_the_adapter() {
    let desk = desk();
    desk.works(&["merge", "run", "-o", "plain", "--no-drift"]);
    let adapted = desk.logits(
        "adapted.safetensors",
        &["--model=builtin:sprout", "--adapter=run"],
    );
    let merged = desk.logits("plain.safetensors", &["--model=plain"]);
    let base = desk.logits("base.safetensors", &["--model=builtin:sprout"]);
    assert!(largest_difference(&adapted, &merged) < 1e-3);
    assert!(
        largest_difference(&base, &merged) > 0.1,
        "the adapter does something"
    );

    let error = desk.error(&["merge", "run", "-o", "plain"], 2);
    assert!(error.contains("there already"), "{error}");
    let error = desk.error(&["merge", "run", "-o", "other", "--base=plain/nothing"], 2);
    assert!(error.contains("plain/nothing"), "{error}");
    assert!(!desk.path("other").exists());
}

#[test]
fn a_quantised_checkpoint_says_how_and_is_not_quantised_again() {
    let desk = desk();
    let said = desk.works(&["quantize", "builtin:sprout", "--to=nf4-dq", "-o", "nf4-dq"]);
    assert!(number(&said, "error of") < 0.12, "{said}");
    let text = std::fs::read_to_string(desk.path("nf4-dq/config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        config["quantization_config"]["bnb_4bit_use_double_quant"],
        true
    );
    assert!(files(&desk.path("nf4-dq")).contains(&"tokenizer.json".to_owned()));
    let error = desk.error(&["quantize", "nf4-dq", "--to=int8", "-o", "again"], 2);
    assert!(
        error.contains("quantised already, with bitsandbytes"),
        "{error}"
    );
    assert!(!desk.path("again").exists());
}

/// Two adapters as one do what one does on a model into which the other is merged.
#[test]
fn adapters_are_stacked_and_averaged() {
    let desk = desk();
    desk.works(&[
        "-q",
        "train",
        "recipe.yaml",
        "lora.r=2",
        "seed=9",
        "output_dir=second",
    ]);
    desk.works(&["merge", "run", "--no-drift", "-o", "first-merged"]);
    let said = desk.works(&["combine", "run", "second", "-o", "both"]);
    assert!(said.contains("branches of rank 6"), "{said}");
    let stacked = desk.logits(
        "both.safetensors",
        &["--model=builtin:sprout", "--adapter=both"],
    );
    let merged = desk.logits(
        "merged-second.safetensors",
        &["--model=first-merged", "--adapter=second"],
    );
    let apart = (stacked - merged)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    let apart: f32 = apart.to_scalar().unwrap();
    assert!(apart < 1e-3, "{apart}");

    // Given several times they add up without a folder of their own.
    let prompt = ["--prompt=Baum 3?", "--max-new-tokens=6"];
    let answer = |adapters: &[&str]| {
        desk.works(&[&["generate", "--model=builtin:sprout"], adapters, &prompt].concat())
    };
    assert_eq!(
        answer(&["--adapter=run", "--adapter=second"]),
        answer(&["--adapter=both"])
    );
    desk.works(&["combine", "run", "run", "--weights=0.25,0.75", "-o", "mean"]);
    assert_eq!(answer(&["--adapter=mean"]), answer(&["--adapter=run"]));
    desk.works(&["verify", "both", "--base=builtin:sprout"]);
    let error = desk.error(&["combine", "run", "second", "--weights=1", "-o", "x"], 2);
    assert!(error.contains("1 numbers for 2 adapters"), "{error}");
}

/// What a quantised file answers is near to what its model answers, and the fewer bits the smaller it is.
/// An adapter that is whole and fits, but is not the one that was trained, is found out by its stored logits.
#[test]
fn a_changed_adapter_does_not_reproduce_its_stored_logits() {
    let desk = desk();
    std::fs::create_dir(desk.path("changed")).unwrap();
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "probe.json",
        "run.json",
    ] {
        let from = desk.path("run").join(name);
        std::fs::copy(from, desk.path("changed").join(name)).unwrap();
    }
    let path = desk.path("changed/adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    // One that is felt: of some late ones, three times as much lies within what rounding may change.
    let name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight";
    let changed = (&tensors[name] * 3.0).unwrap();
    tensors.insert(name.to_owned(), changed);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let ran = desk.ends(&["verify", "changed", "--base=builtin:sprout"], 1);
    assert!(ran.out.contains("are not reproduced"), "{}", ran.out);
    let ran = desk.ends(&["verify", "changed", "--base=builtin:sprout", "--json"], 1);
    let told: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(told["probe"]["largest_difference"].as_f64() > told["probe"]["allowed"].as_f64());
}

#[test]
fn a_model_is_quantised_for_llama_cpp() {
    let desk = desk();
    let mut sizes = Vec::new();
    for (kind, number) in [
        ("f16", 1),
        ("Q8_0", 7),
        ("q6_k", 18),
        ("Q5_K_M", 17),
        ("Q4_K_M", 15),
    ] {
        let name = format!("{kind}.gguf");
        let to = format!("--to=gguf:{kind}");
        let said = desk.works(&["quantize", "builtin:sprout", &to, "-o", &name]);
        assert!(said.contains(&name), "{said}");
        let mut file = std::fs::File::open(desk.path(&name)).unwrap();
        let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
        assert_eq!(
            content.metadata["general.file_type"].to_u32().unwrap(),
            number
        );
        sizes.push(file.metadata().unwrap().len());
        let words = ["--prompt=The lime tree", "--max-new-tokens=4"];
        desk.works(&[&["generate", "--model", &name], &words[..]].concat());
    }
    assert!(sizes.is_sorted_by(|more, less| more > less), "{sizes:?}");
    let unknown = desk.ends(
        &["quantize", "builtin:sprout", "--to=gguf:Q9", "-o", "x"],
        2,
    );
    assert!(unknown.err.contains("Q4_K_M"), "{}", unknown.err);
    let again = [
        "quantize",
        "builtin:sprout",
        "--to=gguf:F16",
        "-o",
        "f16.gguf",
    ];
    assert!(desk.error(&again, 2).contains("there already"));
}

#[test]
fn exports_are_written_and_what_a_format_cannot_hold_is_refused() {
    let desk = desk();
    let said = desk.works(&["export", "run", "--format=gguf-lora", "-o", "run.gguf"]);
    assert!(said.contains("run.gguf"), "{said}");
    // The desk's run is others' too.
    let template = "{# an adapter's own #}";
    std::fs::create_dir(desk.path("own")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(
            desk.path(&format!("run/{file}")),
            desk.path(&format!("own/{file}")),
        )
        .unwrap();
    }
    desk.write("own/chat_template.jinja", template);
    desk.works(&[
        "export",
        "own",
        "--format=gguf",
        "--type=q8_0",
        "-o",
        "model.gguf",
    ]);
    let model = std::fs::read(desk.path("model.gguf")).unwrap();
    let mut places = model.windows(template.len());
    assert!(places.any(|bytes| bytes == template.as_bytes()));
    let size = |name: &str| std::fs::metadata(desk.path(name)).unwrap().len();
    assert!(size("model.gguf") > 20 * size("run.gguf"));
    for name in ["run.gguf", "model.gguf"] {
        assert_eq!(&std::fs::read(desk.path(name)).unwrap()[..4], b"GGUF");
    }
    desk.works(&["export", "run", "--format=mlx", "-o", "mlx"]);
    assert_eq!(
        files(&desk.path("mlx")),
        ["adapter_config.json", "adapters.safetensors"]
    );
    let error = desk.error(&["export", "run", "--format=gguf", "-o", "model.gguf"], 2);
    assert!(error.contains("there already"), "{error}");
    let error = desk.error(
        &[
            "export",
            "run",
            "--format=gguf-lora",
            "--type=q8_0",
            "-o",
            "x.gguf",
        ],
        2,
    );
    assert!(error.contains("q8_0"), "{error}");
}

#[test]
fn a_sound_adapter_is_judged_for_every_program() {
    let desk = desk();
    let said = desk.works(&["verify", "run", "--base=builtin:sprout"]);
    assert!(said.contains("the weights it was trained on"), "{said}");
    assert!(said.contains("rank 4, scale 2"), "{said}");
    assert!(
        said.contains("64 logits stored when it was trained are within"),
        "{said}"
    );
    for name in ["PEFT", "llama.cpp", "mistral.rs", "vLLM", "mlx"] {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains("yes: "), "{said}");
    }
    let value: Value = serde_json::from_str(&desk.works(&["verify", "run", "--json"])).unwrap();
    assert_eq!(value["sound"], true);
    assert_eq!(value["base_blake3"], value["trained_on_blake3"]);
    assert!(
        value["effect"]["largest"].as_f64().unwrap() > 0.1,
        "{value}"
    );
    assert_eq!(value["verdicts"].as_array().unwrap().len(), 5);
}

#[test]
fn an_adapter_with_a_fault_fails_the_check() {
    let desk = desk();
    let copy = desk.path("wrong");
    std::fs::create_dir(&copy).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(desk.path("run").join(name), copy.join(name)).unwrap();
    }
    let path = copy.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"r\": 4", "\"r\": 8")).unwrap();
    let verify = ["verify", "wrong", "--base=builtin:sprout"];
    let said = desk.ends(&verify, 1).out;
    assert!(
        said.contains("fault") && said.contains("the rank 8"),
        "{said}"
    );
    assert!(said.contains("PEFT       no: "), "{said}");
    let error = desk.error(&["verify", "nowhere", "--base=builtin:sprout"], 2);
    assert!(error.contains("`nowhere`"), "{error}");
}
