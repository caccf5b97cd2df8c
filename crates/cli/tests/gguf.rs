//! A GGUF file as the base of every command, through the binary: trained on, asked, probed, refused.

use candle_core::quantized::GgmlDType;

mod desk;
#[path = "../../base/tests/common/gguf.rs"]
mod gguf;

use desk::Desk;
use gguf::Contents;

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

impl Desk {
    fn new() -> Self {
        let desk = Self::empty();
        Contents::of_family("llama", GgmlDType::Q8_0).write(&desk.path("tiny.gguf"));
        let rows = "{\"text\": \"the bath of the path\"}\n".repeat(16);
        desk.write("train.jsonl", rows);
        desk.write("recipe.yaml", RECIPE);
        desk
    }

    #[track_caller]
    fn says(&self, arguments: &[&str], code: i32, message: &str) {
        let ran = self.ends(arguments, code);
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", message));
    }
}

#[test]
fn a_file_is_trained_on_and_answers_with_its_adapter() {
    let desk = Desk::new();
    desk.done(&["-q", "train", "recipe.yaml"]);
    let run = desk.json("run/run.json");
    let loss = |when: &str| run["results"][when]["loss"].as_f64().unwrap();
    assert!(loss("after") < 0.8 * loss("before"), "{}", run["results"]);
    let bytes = std::fs::read(desk.path("tiny.gguf")).unwrap();
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
    let plain = desk.done(&generate).out;
    let adapted = desk.done(&[&generate[..], &["--adapter=run"]].concat()).out;
    assert!(adapted.starts_with("th of "), "{adapted}");
    assert_ne!(plain, adapted);
    desk.done(&[
        "probe",
        "--model=tiny.gguf",
        "--adapter=run",
        "--prompt=the bath",
        "--output=logits.safetensors",
    ]);
    assert!(desk.path("logits.safetensors").exists());
}

#[test]
fn what_a_file_does_not_allow_is_refused_with_a_hint() {
    let desk = Desk::new();
    desk.says(
        &["-q", "train", "recipe.yaml", "method=full"],
        2,
        "error: recipe.yaml:1: `method: full` trains every weight, which a GGUF file does not allow\n\
         hint: write `method: lora`, or name the model's folder in Hugging Face's layout\n",
    );
    desk.says(
        &["-q", "train", "recipe.yaml", "quantize=nf4"],
        1,
        "error: `tiny.gguf` cannot be used: the model cannot be quantised: its tensor \
         `model.layers.0.self_attn.q_proj.weight` is so already\n\
         hint: leave `quantize` out\n",
    );
    let bytes = std::fs::read(desk.path("tiny.gguf")).unwrap();
    std::fs::write(desk.path("cut.gguf"), &bytes[..bytes.len() / 2]).unwrap();
    let generate = ["generate", "--model=cut.gguf", "--prompt=x"];
    let said = ["error: `cut.gguf` is cut short or damaged: tensor `"];
    desk.refused(&generate, 1, &said);
    let hint = desk.run(&generate).err;
    assert!(hint.contains("\nhint: the file may be cut short"), "{hint}");
}
