//! Budgets held against real runs: so many runs with random budgets of minutes, kWh or gCO2e on a small
//! recipe. Each must end within 2 % of its budget with an adapter that fits its base and does something.
//! `just budgets` makes twenty of them and wants the machine for itself; `cargo test`, which may share it, makes two and
//! allows 5 %.
//!
//! `SPARSAM_SEED` chooses the budgets, `SPARSAM_RUNS` how many; both are printed.

use std::path::Path;

mod desk;

use desk::Desk;

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

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is the result")]
fn runs_with_random_budgets_end_where_their_budgets_do() {
    let desk = Desk::empty();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/city-trees");
    let recipe = format!(
        "model: builtin:sprout\nlora: {{r: 8, alpha: 16}}\n\
         data: {{train: '{0}/train.jsonl', eval: '{0}/eval.jsonl'}}\nmax_length: 128\nbatch_size: 4\n\
         epochs: 1000\nlearning_rate: 2e-3\ncountry: DEU\nlogging: {{tensorboard: false}}\n\
         save_steps: 50\neval_steps: 40\n",
        data.display()
    );
    desk.write("recipe.yaml", recipe);
    // What this machine draws, so that budgets of energy are as long as those of time.
    let probe = [
        "-q",
        "train",
        "recipe.yaml",
        "max_steps=20",
        "output_dir=probe",
    ];
    desk.done(&probe);
    let energy = &desk.json("probe/run.json")["energy"];
    let kwh_per_minute = energy["energy_kwh"]["central"].as_f64().unwrap()
        / (energy["duration_seconds"].as_f64().unwrap() / 60.0);
    let grams_per_kwh = energy["intensity"]["g_per_kwh"]["central"]
        .as_f64()
        .unwrap();

    let (seed, runs) = (
        from_environment("SPARSAM_SEED", 1),
        from_environment("SPARSAM_RUNS", 2),
    );
    let off = if std::env::var_os("SPARSAM_RUNS").is_some() {
        0.02
    } else {
        0.05
    };
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
        desk.done(&train);
        let record = desk.json(&format!("{folder}/run.json"));
        let used = record["budget"][used_key].as_f64().unwrap();
        let share = used / limit;
        let fits = desk.run(&["verify", &folder, "--base", "builtin:sprout"]);
        let speaks = desk.run(&[
            "generate",
            "--model",
            "builtin:sprout",
            "--adapter",
            &folder,
            "--prompt",
            "The lime tree",
            "--max-new-tokens",
            "8",
        ]);
        let usable =
            fits.code == Some(0) && speaks.code == Some(0) && record["state"] == "finished";
        println!(
            "{run:>3}  {:<24} {used:>8.5} {:>6.1}% {:>7}  {:<7}  {}",
            format!("{key} {limit:.6}"),
            share * 100.0,
            record["results"]["steps"],
            if answers { "yes" } else { "no" },
            if usable { "usable" } else { "UNUSABLE" }
        );
        if (share - 1.0).abs() > off || !usable || record["budget"]["ended_by_budget"] != true {
            missed.push(format!(
                "run {run}: {:.1} % of {key} {limit:.6}: {}{}",
                share * 100.0,
                fits.err,
                speaks.err
            ));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
