//! A GGUF file as the base of every command, through the binary: trained on, asked, probed, refused.

use std::path::PathBuf;
use std::process::Output;

use assert_cmd::Command;
use candle_core::quantized::GgmlDType;
use serde_json::Value;

#[path = "../../base/tests/common/gguf.rs"]
mod gguf;

use gguf::Contents;

struct Workshop {
    folder: tempfile::TempDir,
}

const RECIPE: &str = "model: tiny.gguf
lora: {r: 4, alpha: 8}
data: {train: train.jsonl, eval: train.jsonl}
max_length: 64
max_steps: 30
eval_steps: never
learning_rate: 1e-2
country: DEU
output_dir: run
";

impl Workshop {
    fn new() -> Self {
        let workshop = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        Contents::of_family("llama", GgmlDType::Q8_0).write(&workshop.path("tiny.gguf"));
        let rows = "{\"text\": \"the bath of the path\"}\n".repeat(16);
        std::fs::write(workshop.path("train.jsonl"), rows).unwrap();
        std::fs::write(workshop.path("recipe.yaml"), RECIPE).unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sparsam"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn answer(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, message: &str) {
        let output = self.run(arguments);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), message);
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_file_is_trained_on_and_answers_with_its_adapter() {
    let workshop = Workshop::new();
    workshop.answer(&["-q", "train", "recipe.yaml"]);
    let text = std::fs::read_to_string(workshop.path("run/run.json")).unwrap();
    let run: Value = serde_json::from_str(&text).unwrap();
    let loss = |when: &str| run["results"][when]["loss"].as_f64().unwrap();
    assert!(loss("after") < 0.8 * loss("before"), "{}", run["results"]);
    let bytes = std::fs::read(workshop.path("tiny.gguf")).unwrap();
    assert_eq!(run["base"]["blake3"], blake3::hash(&bytes).to_string());
    assert_eq!(run["base"]["architecture"], "llama");

    let generate = [
        "-q",
        "generate",
        "--model=tiny.gguf",
        "--raw",
        "--prompt=the ba",
        "--max-new-tokens=6",
        "--temperature=0",
    ];
    let plain = workshop.answer(&generate);
    let adapted = workshop.answer(&[&generate[..], &["--adapter=run"]].concat());
    assert!(adapted.starts_with("th of "), "{adapted}");
    assert_ne!(plain, adapted);
    workshop.answer(&[
        "probe",
        "--model=tiny.gguf",
        "--adapter=run",
        "--prompt=the bath",
        "--output=logits.safetensors",
    ]);
    assert!(workshop.path("logits.safetensors").exists());
}

#[test]
fn what_a_file_does_not_allow_is_refused_with_a_hint() {
    let workshop = Workshop::new();
    workshop.refused(
        &["-q", "train", "recipe.yaml", "method=full"],
        2,
        "error: recipe.yaml:1: `method: full` trains every weight, which a GGUF file does not allow\n\
         hint: write `method: lora`, or name the model's folder in Hugging Face's layout\n",
    );
    workshop.refused(
        &["-q", "train", "recipe.yaml", "quantize=nf4"],
        1,
        "error: `tiny.gguf` cannot be used: the model cannot be quantised: its tensor \
         `model.layers.0.self_attn.q_proj.weight` is so already\n\
         hint: leave `quantize` out\n",
    );
    let bytes = std::fs::read(workshop.path("tiny.gguf")).unwrap();
    std::fs::write(workshop.path("cut.gguf"), &bytes[..bytes.len() / 2]).unwrap();
    let output = workshop.run(&["generate", "--model=cut.gguf", "--prompt=x"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.starts_with("error: `cut.gguf` is cut short or damaged: tensor `"),
        "{stderr}"
    );
    assert!(
        stderr.contains("\nhint: the file may be cut short"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}
