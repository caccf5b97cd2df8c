//! The recipe through the binary: what is printed, what is refused, and how.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

/// Runs `sparsam recipe` in a folder of its own that holds `recipe.yaml`.
fn recipe(text: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.yaml"), text).unwrap();
    sparsam(folder.path())
        .args(["recipe", "recipe.yaml"])
        .args(arguments)
        .output()
        .unwrap()
}

fn sparsam(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sparsam"));
    command.current_dir(folder);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn refused(recipe_text: &str, arguments: &[&str], message: &str) {
    let output = recipe(recipe_text, arguments);
    assert_eq!(text(&output.stderr), message);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

const LEAST: &str = "model: builtin:sprout\ndata: {train: a.jsonl, eval: b.jsonl}\n";

/// A recipe of `LEAST`, and on line 3 what is wrong.
fn with(line: &str) -> String {
    format!("{LEAST}{line}\n")
}

#[test]
fn unknown_keys() {
    refused(
        &with("learning_rat: 1e-4"),
        &[],
        "error: recipe.yaml:3: `learning_rat` is not a key of a recipe\n\
         hint: did you mean `learning_rate`?\n",
    );
    refused(
        &with("lora:\n  r: 8\n  alhpa: 16"),
        &[],
        "error: recipe.yaml:5: `alhpa` is not a key of `lora`\n\
         hint: did you mean `lora.alpha`?\n",
    );
    refused(
        &with("target_modules: all-linear"),
        &[],
        "error: recipe.yaml:3: `target_modules` is not a key of a recipe\n\
         hint: the key stands at `lora.target_modules`\n",
    );
    refused(
        &with("per_device_train_batch_size: 4"),
        &[],
        "error: recipe.yaml:3: `per_device_train_batch_size` is not a key of a recipe\n\
         hint: here it is called `batch_size`\n",
    );
    refused(
        &with("optimizer: adamw_8bit"),
        &[],
        "error: recipe.yaml:3: `optimizer` is not a key of a recipe\n\
         hint: here it is called `optim`\n",
    );
    refused(
        &with("early_stopping: {frobnicate: 4}"),
        &[],
        "error: recipe.yaml:3: `frobnicate` is not a key of `early_stopping`\n\
         hint: the keys here are `patience`, `min_delta`\n",
    );
    refused(
        LEAST,
        &["lora.rang=4"],
        "error: argument `lora.rang=4`: `rang` is not a key of `lora`\n\
         hint: the keys here are `r`, `alpha`, `dropout`, `target_modules`, `exclude_modules`, \
         `use_rslora`, `use_dora`, `rank_pattern`, `alpha_pattern`, `layers_to_transform`, \
         `layers_pattern`, `modules_to_save`, `bias`, `init_lora_weights`, `loraplus_lr_ratio`\n",
    );
}

#[test]
fn wrong_types() {
    refused(
        &with("batch_size: eight"),
        &[],
        "error: recipe.yaml:3: `batch_size` expects a whole number of 0 or more, found `eight`\n",
    );
    refused(
        &with("batch_size: '8'"),
        &[],
        "error: recipe.yaml:3: `batch_size` expects a whole number of 0 or more, \
         found the text `\"8\"`\nhint: leave out the quotes\n",
    );
    refused(
        &with("batch_size: -1"),
        &[],
        "error: recipe.yaml:3: `batch_size` expects a whole number of 0 or more, found `-1`\n",
    );
    refused(
        &with("learning_rate: fast"),
        &[],
        "error: recipe.yaml:3: `learning_rate` expects a number, found `fast`\n",
    );
    refused(
        &with("packing: yes"),
        &[],
        "error: recipe.yaml:3: `packing` expects `true` or `false`, found `yes`\n",
    );
    refused(
        &with("lora: 16"),
        &[],
        "error: recipe.yaml:3: `lora` expects keys and values of its own, found `16`\n",
    );
    refused(
        &with("country: [DEU]"),
        &[],
        "error: recipe.yaml:3: `country` expects a text, found a list\n",
    );
    refused(
        &with("lora: {modules_to_save: lm_head}"),
        &[],
        "error: recipe.yaml:3: `lora.modules_to_save` expects a list such as `[a, b]`, \
         found `lm_head`\n",
    );
    refused(
        &with("lora: {target_modules: {q_proj: true}}"),
        &[],
        "error: recipe.yaml:3: `lora.target_modules` expects a name or a list of names, \
         found keys and values\n",
    );
    refused(
        &with("lora:\n  rank_pattern:\n    q_proj: many"),
        &[],
        "error: recipe.yaml:5: `lora.rank_pattern.q_proj` expects a whole number of 0 or more, \
         found `many`\n",
    );
    refused(
        LEAST,
        &["lora.r=1.5"],
        "error: argument `lora.r=1.5`: `lora.r` expects a whole number of 0 or more, \
         found `1.5`\n",
    );
    refused(
        &with("save_steps: often"),
        &[],
        "error: recipe.yaml:3: `save_steps` expects a number of steps, `epoch` or `never`, \
         found `often`\n",
    );
}

#[test]
fn words_that_are_not_a_choice() {
    refused(
        &with("quantize: nf4dq"),
        &[],
        "error: recipe.yaml:3: `quantize` is one of `none`, `int8`, `nf4`, `nf4-dq`, not `nf4dq`\n\
         hint: did you mean `nf4-dq`?\n",
    );
    refused(
        LEAST,
        &["method=distill"],
        "error: argument `method=distill`: `method` is one of `lora`, `full`, not `distill`\n\
         hint: `sparsam recipe` says what each of them does\n",
    );
    // As other programs call it.
    refused(
        &with("optim: adamw_bnb_8bit"),
        &[],
        "error: recipe.yaml:3: `optim` is one of `adamw`, `adamw_8bit`, not `adamw_bnb_8bit`\n\
         hint: here it is called `adamw_8bit`\n",
    );
    refused(
        LEAST,
        &["optim=adam8bit"],
        "error: argument `optim=adam8bit`: `optim` is one of `adamw`, `adamw_8bit`, not `adam8bit`\n\
         hint: did you mean `adamw_8bit`?\n",
    );
}

#[test]
fn impossible_values() {
    refused(
        LEAST,
        &["lora.r=0"],
        "error: argument `lora.r=0`: `lora.r` must be 1 or more, not `0`\n",
    );
    refused(
        &with("lora: {dropout: 1.5}"),
        &[],
        "error: recipe.yaml:3: `lora.dropout` must be a share of at least 0 and below 1, \
         not `1.5`\n",
    );
    refused(
        &with("learning_rate: 2"),
        &[],
        "error: recipe.yaml:3: `learning_rate` must be below 1, not `2`\n\
         hint: a usual value for LoRA is `2e-4`\n",
    );
    refused(
        &with("lora: {target_modules: []}"),
        &[],
        "error: recipe.yaml:3: `lora.target_modules` names nothing to adapt\n\
         hint: write `all-linear`, or a list such as `[q_proj, v_proj]`\n",
    );
    refused(
        &with("energy: {pue: 0.9}"),
        &[],
        "error: recipe.yaml:3: `energy.pue` must be 1 or more (a site uses no less than its \
         computers), not `0.9`\n",
    );
}

#[test]
fn every_number_has_its_limits() {
    for impossible in [
        "max_length=1",
        "epochs=0",
        "max_steps=0",
        "batch_size=0",
        "gradient_accumulation_steps=0",
        "learning_rate=0",
        "warmup_ratio=1.1",
        "min_lr_ratio=-0.1",
        "weight_decay=-1",
        "adam_beta1=1",
        "adam_beta2=1.0",
        "adam_epsilon=0",
        "max_grad_norm=-1",
        "eval_steps=0",
        "save_steps=0",
        "eval_generation.samples=0",
        "eval_generation.max_new_tokens=0",
        "early_stopping.patience=0",
        "early_stopping.min_delta=-1",
        "threads=0",
        "device=gpu",
        "device=cuda:x",
        "country=1",
        "energy.cpu_watts=0",
        "energy.ram_watts=0",
        "energy.node_idle_watts=-1",
        "energy.baseline_seconds=-1",
        "energy.water_site_l_per_kwh=-0.1",
        "energy.water_grid_l_per_kwh=1001",
        "energy.interval_seconds=0",
        "logging.steps=0",
        "lora.alpha=0",
        "lora.rank_pattern={q_proj: 0}",
        "lora.alpha_pattern={q_proj: -1}",
        "output_dir=''",
    ] {
        let output = recipe(LEAST, &[impossible]);
        assert_eq!(output.status.code(), Some(2), "{impossible}");
        let start = format!("error: argument `{impossible}`: `");
        assert!(text(&output.stderr).starts_with(&start), "{impossible}");
    }
}

#[test]
fn keys_that_contradict_each_other() {
    refused(
        &with("epochs: 3\nmax_steps: 100"),
        &[],
        "error: recipe.yaml:4: `epochs` and `max_steps` both say how long to train\n\
         hint: keep one of them\n",
    );
    refused(
        &with("warmup_ratio: 0.1\nwarmup_steps: 100"),
        &[],
        "error: recipe.yaml:4: `warmup_ratio` and `warmup_steps` both say how long to warm up\n\
         hint: keep one of them\n",
    );
    refused(
        &with("method: full\nquantize: nf4"),
        &[],
        "error: recipe.yaml:4: `method: full` trains every weight, which a quantised base does \
         not allow\nhint: write `quantize: none`, or `method: lora`\n",
    );
    refused(
        &with("method: full"),
        &["adapter=a"],
        "error: argument `adapter=a`: `adapter` continues an adapter, but `method: full` trains \
         none\nhint: write `method: lora`, or leave `adapter` out\n",
    );
    refused(
        "model: m\ndata: {train: a.jsonl}\nearly_stopping: {patience: 2}\n",
        &[],
        "error: recipe.yaml:3: `early_stopping` needs evaluation data\n\
         hint: add `data.eval`, a file of examples that are not trained on\n",
    );
    refused(
        &with("early_stopping: {}\neval_steps: never"),
        &[],
        "error: recipe.yaml:4: `early_stopping` has nothing to go by with `eval_steps: never`\n\
         hint: write `eval_steps: epoch` or a number of steps\n",
    );
    refused(
        &with("energy: {intensity_g_per_kwh: 35}"),
        &[],
        "error: recipe.yaml:3: `energy.intensity_g_per_kwh` is a figure without a source\n\
         hint: add `energy.intensity_source` with where it comes from and its year\n",
    );
    refused(
        &with("lora: {layers_to_transform: [0], target_modules: '.*q_proj'}"),
        &[],
        "error: recipe.yaml:3: `lora.layers_to_transform` needs a list in `lora.target_modules`, \
         not a regular expression\nhint: put the layers into the expression, or list the names\n",
    );
}

#[test]
fn what_is_missing() {
    refused(
        "data: {train: a.jsonl}\n",
        &[],
        "error: recipe.yaml: `model` is missing: the recipe names no base model\n\
         hint: add `model:` with a folder, or `model: builtin:sprout` to try things out\n",
    );
    refused(
        "model:\ndata: {train: a.jsonl}\n",
        &[],
        "error: recipe.yaml:1: `model` expects a text, found nothing\n",
    );
    refused(
        "model: m\n",
        &[],
        "error: recipe.yaml: `data.train` is missing: the recipe names nothing to learn from\n\
         hint: add `data: {train: my-data.jsonl}`\n",
    );
    refused(
        "",
        &[],
        "error: recipe.yaml: `model` is missing: the recipe names no base model\n\
         hint: add `model:` with a folder, or `model: builtin:sprout` to try things out\n",
    );
}

#[test]
fn text_that_is_no_recipe() {
    refused(
        "just words\n",
        &[],
        "error: recipe.yaml:1: a recipe is made of `key: value` lines, found `just words`\n\
         hint: `sparsam recipe` prints one to start from\n",
    );
    refused(
        "model: a\nmodel: b\n",
        &[],
        "error: recipe.yaml:2: `model` is given twice\nhint: keep one of the two lines\n",
    );
    refused(
        "model: a\n---\nmodel: b\n",
        &[],
        "error: recipe.yaml:3: a second YAML document begins here\n\
         hint: write each recipe into a file of its own\n",
    );
    refused(
        "model: &m a\nadapter: *m\n",
        &[],
        "error: recipe.yaml:1: anchors have no use in a recipe\n\
         hint: write the value itself, in quotes if it begins with `&`, `*` or `!`\n",
    );
    let output = recipe("model: [a\nseed: 1\n", &[]);
    let message = text(&output.stderr);
    assert!(message.starts_with("error: recipe.yaml:"), "{message}");
    assert!(message.contains("this is not valid YAML"), "{message}");
    assert!(message.contains("\nhint: "), "{message}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn arguments_that_are_no_overrides() {
    refused(
        LEAST,
        &["lora.r"],
        "error: argument `lora.r`: an override has the form `key=value`\n\
         hint: for example `lora.r=32` or `data.train=messages.jsonl`\n",
    );
    refused(
        LEAST,
        &["=3"],
        "error: argument `=3`: an override begins with a key\n\
         hint: for example `lora.r=32` or `data.train=messages.jsonl`\n",
    );
    refused(
        LEAST,
        &["seed.value=3"],
        "error: argument `seed.value=3`: `seed` expects a whole number of 0 or more, \
         found keys and values\n",
    );
    refused(
        &with("seed: 4"),
        &["seed.value=3"],
        "error: argument `seed.value=3`: the recipe has `4` where `value` is to be set\n",
    );
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let output = sparsam(folder.path())
        .args(["recipe", "missing.yaml"])
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stderr),
        "error: cannot read the recipe `missing.yaml`: there is no such file\n\
         hint: `sparsam recipe > recipe.yaml` writes one to start from\n"
    );
    assert_eq!(output.status.code(), Some(2));

    std::fs::write(folder.path().join("binary.yaml"), [0xff, 0xfe, 0x80]).unwrap();
    let output = sparsam(folder.path())
        .args(["recipe", "binary.yaml"])
        .output()
        .unwrap();
    assert!(text(&output.stderr).starts_with("error: `binary.yaml` is not a text file in UTF-8"));
}

#[test]
fn a_recipe_is_filled_in() {
    let output = recipe(LEAST, &["lora.r=32", "max_steps=10", "country=NO"]);
    assert!(output.stderr.is_empty());
    insta::assert_snapshot!("effective", text(&output.stdout));
}

#[test]
fn the_manual() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = sparsam(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        text(&output.stdout)
    };
    insta::assert_snapshot!("commented", run(&["recipe"]));
    insta::assert_snapshot!("schema", run(&["recipe", "--schema"]));
    insta::assert_snapshot!("help", run(&["--help"]));
    insta::assert_snapshot!("help_train", run(&["train", "-h"]));
    insta::assert_snapshot!("help_generate", run(&["generate", "--help"]));
    let long = run(&["train", "--help"]);
    assert!(
        long.contains("\n  lora.r [16]\n      The rank.\n"),
        "{long}"
    );
}

#[test]
fn a_command_line_that_cannot_be_meant_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["trian"][..],
        &["train"],
        &["recipe", "--schema", "recipe.yaml"],
        &["generate", "--model", "m"],
        &[
            "generate", "--model", "m", "--prompt", "p", "--top-p", "1.5",
        ],
        &[
            "generate",
            "--model",
            "m",
            "--prompt",
            "p",
            "--max-new-tokens",
            "0",
        ],
    ] {
        let output = sparsam(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_reader_that_closes_early_is_no_failure() {
    use std::process::{Command, Stdio};

    let mut child = Command::new(env!("CARGO_BIN_EXE_sparsam"))
        .args(["recipe", "--schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_recipes_of_this_project_are_recipes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found: Vec<PathBuf> = std::fs::read_dir(root.join("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    found.sort();
    assert!(found.len() >= 5);
    for path in found {
        let opening = std::fs::read_to_string(&path).unwrap();
        // A comparison names a recipe, and is checked by the command that it is for.
        let comparison = opening.lines().any(|line| line.starts_with("recipe:"));
        let check: &[&str] = if comparison {
            &["-q", "compare", "--dry-run"]
        } else {
            &["recipe"]
        };
        let output = sparsam(&root).args(check).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", path.display());
        assert_eq!(text(&output.stderr), "", "{}", path.display());
        assert!(opening.starts_with("# "), "{}", path.display());
        for needed in ["# Needs", "# Run"] {
            assert!(opening.contains(needed), "{} {needed}", path.display());
        }
    }
}
