//! Budgets held against real runs, for `just budgets`: so many runs with random budgets of minutes, kWh or
//! gCO2e on a small recipe. Each must end within 2 % of its budget with an adapter that fits its base and
//! does something. Ignored by `cargo test`, as it takes minutes and wants the machine for itself.
//!
//! `SPARSAM_SEED` chooses the budgets, `SPARSAM_RUNS` how many; both are printed.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Numbers from 0 to 1 from a seed: SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn sparsam(desk: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sparsam"))
        .args(arguments)
        .current_dir(desk)
        .env_remove("SPARSAM_COUNTRY")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn record(desk: &Path, folder: &str) -> Value {
    let text = std::fs::read_to_string(desk.join(folder).join("run.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
#[ignore = "takes many minutes: `just budgets`"]
#[expect(clippy::print_stdout, reason = "the table is the result")]
fn runs_with_random_budgets_end_within_two_percent_of_them() {
    let desk = tempfile::tempdir().unwrap();
    let desk = desk.path();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/city-trees");
    let recipe = format!(
        "model: builtin:sprout\nlora: {{r: 8, alpha: 16}}\n\
         data: {{train: '{0}/train.jsonl', eval: '{0}/eval.jsonl'}}\nmax_length: 128\nbatch_size: 4\n\
         epochs: 1000\nlearning_rate: 2e-3\ncountry: DEU\nlogging: {{tensorboard: false}}\n\
         save_steps: 50\neval_steps: 40\n",
        data.display()
    );
    std::fs::write(desk.join("recipe.yaml"), recipe).unwrap();
    // What this machine draws, so that budgets of energy are as long as those of time.
    let probe = [
        "-q",
        "train",
        "recipe.yaml",
        "max_steps=20",
        "output_dir=probe",
    ];
    assert!(sparsam(desk, &probe).0);
    let energy = &record(desk, "probe")["energy"];
    let kwh_per_minute = energy["energy_kwh"]["central"].as_f64().unwrap()
        / (energy["duration_seconds"].as_f64().unwrap() / 60.0);
    let grams_per_kwh = energy["intensity"]["g_per_kwh"]["central"]
        .as_f64()
        .unwrap();

    let (seed, runs) = (
        from_environment("SPARSAM_SEED", 1),
        from_environment("SPARSAM_RUNS", 20),
    );
    let mut random = Random(seed);
    println!("seed {seed}, {runs} runs, {:.3} W", kwh_per_minute * 60e3);
    println!(
        "{:>3}  {:<24} {:>8} {:>7} {:>7}  answers  adapter",
        "run", "budget", "used", "share", "steps"
    );
    let mut missed = Vec::new();
    for run in 0..runs {
        let minutes = 0.3 * (2.5f64).powf(random.next());
        let (key, limit, used_key) = match (random.next() * 3.0) as u32 {
            0 => ("minutes", minutes, "used_minutes"),
            1 => ("kwh", minutes * kwh_per_minute, "used_kwh"),
            _ => (
                "gco2e",
                minutes * kwh_per_minute * grams_per_kwh,
                "used_gco2e",
            ),
        };
        let answers = random.next() < 0.5;
        let folder = format!("run-{run}");
        let (output, budget) = (
            format!("output_dir={folder}"),
            format!("budget.{key}={limit:.9}"),
        );
        let mut train = vec!["-q", "train", "recipe.yaml", &output, &budget];
        if answers {
            train.extend([
                "eval_generation.samples=12",
                "eval_generation.max_new_tokens=48",
            ]);
        }
        let (done, said) = sparsam(desk, &train);
        assert!(done, "{said}");
        let record = record(desk, &folder);
        let used = record["budget"][used_key].as_f64().unwrap();
        let share = used / limit;
        let fits = sparsam(desk, &["verify", &folder, "--base", "builtin:sprout"]);
        let speaks = sparsam(
            desk,
            &[
                "generate",
                "--model",
                "builtin:sprout",
                "--adapter",
                &folder,
                "--prompt",
                "The lime tree",
                "--max-new-tokens",
                "8",
            ],
        );
        let usable = fits.0 && speaks.0 && record["state"] == "finished";
        println!(
            "{run:>3}  {:<24} {used:>8.5} {:>6.1}% {:>7}  {:<7}  {}",
            format!("{key} {limit:.6}"),
            share * 100.0,
            record["results"]["steps"],
            if answers { "yes" } else { "no" },
            if usable { "usable" } else { "UNUSABLE" }
        );
        if !(0.98..=1.02).contains(&share) || !usable || record["budget"]["ended_by_budget"] != true
        {
            missed.push(format!(
                "run {run}: {:.1} % of {key} {limit:.6}: {}{}",
                share * 100.0,
                fits.1,
                speaks.1
            ));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
