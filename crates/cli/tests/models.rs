//! Commands that use a model, through the binary: what goes to which stream, what is refused.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn sparsam(arguments: &[&str], input: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sparsam"))
        .args(arguments)
        .write_stdin(input)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn answer(arguments: &[&str], input: &str) -> String {
    let output = sparsam(arguments, input);
    assert_eq!(text(&output.stderr), "", "--quiet says nothing");
    assert_eq!(output.status.code(), Some(0));
    text(&output.stdout)
}

#[track_caller]
fn refused(arguments: &[&str], message: &str) {
    let output = sparsam(arguments, "");
    assert_eq!(text(&output.stderr), message);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

const GENERATE: [&str; 6] = [
    "--quiet",
    "generate",
    "--model=builtin:sprout",
    "--max-new-tokens=12",
    "--temperature=1",
    "--seed=3",
];

#[test]
fn a_prompt_is_answered_the_same_again_and_from_standard_input() {
    let with = |more: &[&'static str]| [&GENERATE[..], more].concat();
    let first = answer(&with(&["--prompt=Wie ist das Wetter?"]), "");
    assert!(first.ends_with('\n'));
    assert_eq!(answer(&with(&["--prompt=Wie ist das Wetter?"]), ""), first);
    assert_eq!(
        answer(&with(&["--prompt=-"]), "Wie ist das Wetter?\n"),
        first
    );
    let raw = answer(&with(&["--prompt=Wie ist das Wetter?", "--raw"]), "");
    assert_ne!(raw, first, "without the template it is another text");
}

#[test]
fn an_unpacked_model_answers_as_the_one_built_in() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("sprout");
    let name = folder.to_str().unwrap();
    assert_eq!(
        answer(&["-q", "unpack", "builtin:sprout", "-o", name], ""),
        ""
    );
    let mut arguments = GENERATE.to_vec();
    arguments.push("--prompt=Guten Tag");
    let inside = answer(&arguments, "");
    let model = format!("--model={name}");
    arguments[2] = &model;
    assert_eq!(answer(&arguments, ""), inside);

    refused(
        &["unpack", "builtin:sprout", "-o", name],
        &format!(
            "error: `{name}` is there already and not an empty folder\n\
             hint: name a folder that does not exist yet\n"
        ),
    );
    assert!(Path::new(name).join("model.safetensors").exists());
}

#[test]
fn a_conversation_is_one_answer_a_line_until_an_empty_one() {
    let chat = [
        "--quiet",
        "chat",
        "--model=builtin:sprout",
        "--max-new-tokens=4",
    ];
    let two = answer(&chat, "Guten Tag\nUnd morgen?\n\nnever read\n");
    let one = answer(&chat, "Guten Tag\n");
    assert!(two.starts_with(&one) && two.len() > one.len());
    assert_eq!(answer(&chat, ""), "");
}

#[test]
fn a_conversation_that_fills_the_model_says_so() {
    let line = "Guten Tag, wie ist das Wetter? ".repeat(200);
    let output = sparsam(&["chat", "--model=builtin:sprout"], &line);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("the conversation has filled its"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_is_refused_by_a_program_without_support_for_one() {
    let with = |device: &'static str| [&GENERATE[..], &["--prompt=Hello", device]].concat();
    refused(
        &with("--device=cuda:0"),
        "error: `cuda:0` cannot be used: this program was built without support for GPUs\n\
         hint: README.md says how to build for NVIDIA GPUs; `device: cpu` or `--device cpu` computes on the \
         processor\n",
    );
    assert_eq!(
        answer(&with("--device=auto"), ""),
        answer(&with("--device=cpu"), "")
    );
    let output = sparsam(&with("--device=gpu"), "");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("expected `auto`, `cpu`, or `cuda:0`"));
}

#[test]
fn an_instruction_level_that_there_is_not_is_refused() {
    let at = |level: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sparsam"));
        command.arg("estimate").args(["--watts=1", "--hours=1"]);
        command.env("SPARSAM_CPU_LEVEL", level).output().unwrap()
    };
    let output = at("avx9");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.contains("`SPARSAM_CPU_LEVEL` is `avx9`, which is no level"),
        "{said}"
    );
    assert!(said.contains("hint: it may be portable, "), "{said}");
    for level in ["", "portable"] {
        assert_eq!(at(level).status.code(), Some(0), "{level}");
    }
}

#[test]
fn what_is_no_model_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    let adapter = folder.path().to_str().unwrap();
    for (name, message) in [
        (
            "builtin:oak",
            "error: there is no built-in model `builtin:oak`\n\
             hint: the built-in models are `builtin:sprout`\n",
        ),
        (
            "sprout",
            "error: there is no folder `sprout`\nhint: the built-in model is `builtin:sprout`\n",
        ),
        (
            "tiny.gguf",
            "error: there is no file `tiny.gguf`\n\
             hint: name a GGUF file as llama.cpp uses it, in one part\n",
        ),
        (
            "src/nowhere",
            "error: there is no folder `src/nowhere`\n\
             hint: there is something called `src` here, so a path is meant; for the model of that \
             name on the Hub write `hub:src/nowhere`\n",
        ),
        (
            adapter,
            &format!(
                "error: `{adapter}` is an adapter, a base model is expected here\n\
                 hint: name the base as the model and this folder as the adapter\n"
            ),
        ),
    ] {
        refused(&["generate", "--model", name, "--prompt=x"], message);
    }
    let prompt = "Wetter ".repeat(2000);
    let output = sparsam(
        &["generate", "--model=builtin:sprout", "--prompt=-"],
        &prompt,
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the model reads at most"));
}
