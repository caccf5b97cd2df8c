//! The commands about energy through the binary: `track`, `estimate`, `doctor`, `card`.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

mod desk;

use desk::{Desk, Ran, finished};

/// codecarbon 3's table, column by column.
const CODECARBON: &str = "timestamp,project_name,run_id,experiment_id,duration,emissions,\
    emissions_rate,cpu_power,gpu_power,ram_power,cpu_energy,gpu_energy,ram_energy,energy_consumed,\
    water_consumed,country_name,country_iso_code,region,cloud_provider,cloud_region,os,\
    python_version,codecarbon_version,cpu_count,cpu_model,gpu_count,gpu_model,longitude,latitude,\
    ram_total_size,tracking_mode,cpu_utilization_percent,gpu_utilization_percent,\
    ram_utilization_percent,ram_used_gb,on_cloud,pue,wue";

impl Desk {
    /// A run measured in Germany, in the folder of that name.
    fn tracked(&self, folder: &str) {
        self.done(&[
            "track",
            "-q",
            "--country",
            "DEU",
            "-o",
            folder,
            "--",
            "true",
        ]);
    }

    /// A sysfs tree with one readable package counter, and the rest of a machine.
    fn machine(&self, counter: &str) {
        self.write("sys/class/powercap/intel-rapl:0/name", "package-0\n");
        self.write(counter, "1000\n");
        self.write(
            "proc/cpuinfo",
            "processor : 0\nmodel name : AMD EPYC 7763 64-Core Processor\nflags : fpu\n",
        );
        self.write("proc/meminfo", "MemTotal: 16000000 kB\n");
        self.write("proc/stat", "cpu0 1 0 1 1 0 0 0 0\n");
        self.write("proc/sys/kernel/osrelease", "6.1.0-test\n");
    }

    fn doctor(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(&[&["doctor"], arguments].concat());
        command
            .env("SPARSAM_SYSFS", self.path("sys"))
            .env("SPARSAM_PROCFS", self.path("proc"))
            .env("SPARSAM_NVML", self.path("none.so"));
        finished(command.output().unwrap())
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[track_caller]
fn fits_a_screen(text: &str) {
    for line in text.lines().filter(|line| !line.starts_with("    ")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[cfg(unix)]
#[test]
fn what_a_program_says_and_its_exit_code_pass_through() {
    let desk = Desk::empty();
    let mut command = desk.command(&[
        "track",
        "--country",
        "DEU",
        "--",
        "sh",
        "-c",
        "cat; echo said >&2; exit 3",
    ]);
    command.stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"typed").unwrap();
    let ran = finished(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.out.as_str()), (Some(3), "typed"));
    let (said, screen) = ran.err.split_once('\n').unwrap();
    assert_eq!(said, "said");
    for part in ["\nenergy     ", "\nemissions  ", "Germany", "\nfiles      "] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    fits_a_screen(screen);
    let runs = desk.names("runs");
    assert_eq!(runs.len(), 1);
    assert!(runs[0].starts_with("track-2"), "{runs:?}");
    assert_eq!(
        desk.names(&format!("runs/{}", runs[0])),
        [
            "card-block.md",
            "emissions.csv",
            "energy.json",
            "energy.jsonl"
        ]
    );
}

#[cfg(unix)]
#[test]
fn a_program_ended_by_a_signal_has_a_shells_code() {
    let desk = Desk::empty();
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let ran = desk.run(&[
            "track",
            "-q",
            "--",
            "sh",
            "-c",
            &format!("kill -{signal} $$"),
        ]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""));
    }
}

#[cfg(unix)]
#[test]
fn the_table_is_codecarbons_and_grows() {
    let desk = Desk::empty();
    for name in ["first", "second, \"quoted\""] {
        desk.done(&[
            "track",
            "-q",
            "--name",
            name,
            "--country",
            "FR",
            "--pue",
            "1.2",
            "-o",
            "r",
            "true",
        ]);
    }
    let table = desk.read("r/emissions.csv");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], CODECARBON);
    assert_eq!(lines.len(), 3);
    assert!(lines[1].contains(",first,") && lines[1].contains(",France,FRA,"));
    assert!(lines[2].contains(",\"second, \"\"quoted\"\"\","));
    let record = json(&desk.read("r/energy.json"));
    assert_eq!(record["pue"]["value"], 1.2);
    assert_eq!(
        desk.names("r"),
        [
            "card-block.md",
            "emissions.csv",
            "energy.1.jsonl",
            "energy.json",
            "energy.jsonl"
        ]
    );
    // Making them again adds no row.
    assert!(desk.done(&["card", "r"]).out.contains("r/card-block.md\n"));
    assert_eq!(desk.read("r/emissions.csv"), table);
}

#[cfg(unix)]
#[test]
fn the_idle_machine_is_measured_first_when_asked() {
    let desk = Desk::empty();
    let arguments = ["track", "--baseline-seconds", "0.2", "-o", "r", "true"];
    let ran = desk.done(&arguments);
    assert!(ran.err.starts_with("measuring the idle machine for 0.2 s"));
    let record = json(&desk.read("r/energy.json"));
    assert!(record["baseline"]["watts"]["central"].as_f64().unwrap() > 0.0);
    assert!(record["net_energy_kwh"].is_object());
}

#[cfg(unix)]
#[test]
fn what_cannot_be_tracked_is_refused_and_leaves_nothing() {
    let desk = Desk::empty();
    desk.write("plain.txt", "no program");
    desk.refused(&["track", "no-such-program"], 127, &["`no-such-program`"]);
    desk.refused(&["track", "--", "./plain.txt"], 126, &["./plain.txt"]);
    desk.refused(&["track", "--country", "Germny", "true"], 2, &["Germny"]);
    desk.refused(&["track", "--pue", "0.5", "true"], 2, &["`--pue` is 0.5"]);
    desk.refused(&["track", "--intensity", "57", "true"], 2, &["source"]);
    desk.refused(&["track", "--path-sysfs", "nix", "true"], 2, &["`nix`"]);
    // An option that is not one is no program either.
    let ran = desk.run(&["track", "--contry", "DEU", "true"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("--country"), "{}", ran.err);
    assert!(desk.run(&["track"]).code == Some(2));
    let left: Vec<String> = desk.names(".");
    assert!(
        left == ["plain.txt"] || (left == ["plain.txt", "runs"] && desk.names("runs").is_empty()),
        "{left:?}"
    );
}

/// Luccioni, Viguier and Ligozat 2022, "Estimating the carbon footprint of BLOOM", table 3.
#[test]
fn bloom_is_reckoned_to_the_printed_digit() {
    let desk = Desk::empty();
    let ran = desk.done(&[
        "estimate",
        "--hardware",
        "NVIDIA A100 SXM4 80GB",
        "--count",
        "1",
        "--hours",
        "1082990",
        "--intensity",
        "57",
        "--embodied",
        "--json",
    ]);
    let estimate = json(&ran.out);
    let tonnes = |value: &Value| format!("{:.2}", value.as_f64().unwrap() / 1e6);
    let kwh = estimate["energy_kwh"]["central"].as_f64().unwrap();
    assert_eq!(format!("{kwh:.0}"), "433196");
    assert_eq!(tonnes(&estimate["emissions_g"]["central"]), "24.69");
    let grams = |line: &Value| line["grams"]["central"].as_f64().unwrap();
    let making = &estimate["embodied"]["lines"];
    assert_eq!(tonnes(&making[0]["grams"]["central"]), "3.64");
    // 7.5753 t: the paper cuts this one and rounds the others.
    assert_eq!((grams(&making[1]) / 1e4).floor(), 757.0);
    // The idle machines: 256,646 kWh, given as watts.
    let ran = desk.done(&[
        "estimate",
        "--watts",
        "256646",
        "--hours",
        "1000",
        "--intensity",
        "57",
        "--json",
    ]);
    let idle = json(&ran.out)["emissions_g"]["central"].as_f64().unwrap();
    assert_eq!(format!("{:.1}", idle / 1e6), "14.6");
    let dynamic = estimate["emissions_g"]["central"].as_f64().unwrap();
    let total = dynamic + idle + grams(&making[0]) + grams(&making[1]);
    assert_eq!(format!("{:.1}", total / 1e6), "50.5");
}

/// Strubell, Ganesh and McCallum 2019, tables 1 and 3: PUE 1.58, 0.954 lb of CO2e a kWh.
#[test]
fn strubell_is_reckoned_to_the_printed_digit() {
    let desk = Desk::empty();
    for (watts, hours, kwh, pounds) in [
        ("1415.78", "12", "27", "26"),
        ("1515.43", "84", "201", "192"),
        ("517.66", "336", "275", "262"),
        ("1515.43", "274120", "656347", "626155"),
    ] {
        let ran = desk.done(&[
            "estimate",
            "--watts",
            watts,
            "--hours",
            hours,
            "--pue",
            "1.58",
            "--intensity",
            "432.72712098",
            "--json",
        ]);
        let estimate = json(&ran.out);
        let central = |key: &str| estimate[key]["central"].as_f64().unwrap();
        assert_eq!(format!("{:.0}", central("energy_with_pue_kwh")), kwh);
        assert_eq!(
            format!("{:.0}", central("emissions_g") / 453.592_37),
            pounds
        );
    }
}

#[test]
fn an_estimate_shows_its_formula() {
    let desk = Desk::empty();
    let ran = desk.done(&[
        "estimate",
        "--hardware",
        "NVIDIA H100 80GB HBM3",
        "--count",
        "8",
        "--hours",
        "100",
        "--pue",
        "1.2",
        "--country",
        "France",
    ]);
    assert!(ran.out.contains("not measured"));
    let formula = "  energy = 8 x 100 h x 700 W x PUE 1.2 = 672 kWh\n";
    assert!(ran.out.contains(formula), "{}", ran.out);
    fits_a_screen(&ran.out);
    assert!(ran.err.is_empty());
}

#[test]
fn an_estimate_of_nothing_known_is_refused() {
    let desk = Desk::empty();
    let ran = desk.run(&["estimate", "--hardware", "A100", "--hours", "1"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err
            .contains("hint: did you mean `NVIDIA A100 SXM4 80GB`")
    );
    let by_watts = ["estimate", "--watts", "3", "--hours", "1"];
    desk.refused(&[&by_watts[..], &["--embodied"]].concat(), 2, &["watts"]);
    desk.refused(&[&by_watts[..], &["--country", "XX"]].concat(), 2, &["XX"]);
    desk.refused(&[&by_watts[..], &["--pue", "0.9"]].concat(), 2, &["--pue"]);
    for wrong in [
        &["--watts", "0", "--hours", "1"][..],
        &["--watts", "1", "--hours", "0"],
        &["--watts", "1"],
        &["--hours", "1"],
        &["--watts", "1", "--hardware", "NVIDIA T4", "--hours", "1"],
    ] {
        let ran = desk.run(&[&["estimate"], wrong].concat());
        assert_eq!(ran.code, Some(2), "{wrong:?}");
    }
}

#[test]
fn doctor_looks_where_the_environment_says() {
    let desk = Desk::empty();
    desk.machine("sys/class/powercap/intel-rapl:0/energy_uj");
    let ran = desk.doctor(&["--country", "FRA", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let report = json(&ran.out);
    let sensor = report["sensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|sensor| sensor["sensor"] == "RAPL package-0 (powercap)")
        .unwrap();
    assert_eq!(sensor["state"], "readable");
    assert_eq!(report["card"][0]["method"], "measured");
    assert!(report["place"].as_str().unwrap().starts_with("France"));
    let words = desk.doctor(&[]).out;
    assert!(words.contains("AMD EPYC 7763"), "{words}");
    fits_a_screen(&words);
}

#[test]
fn doctor_gives_the_repair_of_what_is_refused() {
    let desk = Desk::empty();
    // A folder in the counter's place cannot be read by anyone, root included.
    desk.machine("sys/class/powercap/intel-rapl:0/energy_uj/x");
    let ran = desk.doctor(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.out.contains("package-0 (powercap): refused"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("\nfix        "), "{}", ran.out);
    // Commands are to be copied and stay whole.
    let commands: Vec<&str> = ran
        .out
        .lines()
        .filter(|line| line.starts_with("    ") && !line.starts_with("     "))
        .collect();
    assert!(!commands.is_empty(), "{}", ran.out);
}

#[cfg(unix)]
#[test]
fn a_card_is_updated_once_and_keeps_its_bytes() {
    let desk = Desk::empty();
    desk.tracked("r");
    let card = "---\r\nlicense: mit # mine\r\ntags: [a, \"b\"]\r\n---\r\n# Model\r\n\r\nNo newline";
    desk.write("card.md", card);
    let update = ["card", "update", "card.md", "--run", "r"];
    assert!(
        desk.done(&update)
            .err
            .starts_with("updated `card.md`: 1 run")
    );
    let updated = desk.read("card.md");
    let (front, rest) = updated.split_once("co2_eq_emissions:\r\n").unwrap();
    assert_eq!(front, "---\r\nlicense: mit # mine\r\ntags: [a, \"b\"]\r\n");
    assert!(rest.contains("---\r\n# Model\r\n\r\nNo newline\r\n\r\n<!-- sparsam"));
    assert_eq!(
        updated.matches('\n').count(),
        updated.matches("\r\n").count()
    );
    assert!(!updated.ends_with('\n'));
    let written = std::fs::metadata(desk.path("card.md")).unwrap().modified();
    let ran = desk.done(&update);
    assert!(ran.err.starts_with("nothing to change"), "{}", ran.err);
    assert_eq!(desk.read("card.md"), updated);
    let again = std::fs::metadata(desk.path("card.md")).unwrap().modified();
    assert_eq!(again.unwrap(), written.unwrap());
}

#[cfg(unix)]
#[test]
fn several_runs_add_up_with_those_before_them() {
    let desk = Desk::empty();
    for folder in ["a", "a", "b"] {
        desk.tracked(folder);
    }
    desk.write("README.md", "# Model\n");
    let update = ["card", "update", ".", "--run", "a", "--run", "b"];
    assert!(desk.done(&update).err.contains(": 3 runs, "));
    assert!(desk.read("README.md").contains("The sum of 3 runs"));
    let ran = desk.done(&[&update[..], &["--latest-only"]].concat());
    assert!(ran.err.contains(": 2 runs, "), "{}", ran.err);
    assert!(!desk.read("README.md").contains("was resumed"));
    desk.refused(
        &["card", "update", ".", "--run", "b", "--run", "b"],
        2,
        &["twice"],
    );
}

#[cfg(unix)]
#[test]
fn a_card_that_cannot_be_edited_is_left_alone() {
    let desk = Desk::empty();
    desk.tracked("r");
    let invalid = "---\nlicense: mit\na: [1\nb: 2\n---\nx\n";
    desk.write("invalid.md", invalid);
    let update = |card| ["card", "update", card, "--run", "r"];
    desk.refused(
        &update("invalid.md"),
        1,
        &["`invalid.md`", "line 4", "YAML"],
    );
    assert_eq!(desk.read("invalid.md"), invalid);
    desk.refused(&update("nix.md"), 2, &["`nix.md`", "no such file"]);
    desk.write("card.md", "# Model\n");
    desk.refused(
        &["card", "update", "card.md", "--run", "nix"],
        2,
        &["nix/energy.jsonl"],
    );
    assert_eq!(desk.read("card.md"), "# Model\n");
    assert_eq!(desk.names("."), ["card.md", "invalid.md", "r"]);
}

#[cfg(unix)]
#[test]
fn a_run_without_a_place_needs_one_and_takes_no_other() {
    let desk = Desk::empty();
    desk.done(&["track", "-q", "-o", "r", "true"]);
    desk.write("card.md", "# Model\n");
    let update = ["card", "update", "card.md", "--run", "r"];
    desk.refused(&update, 2, &["place was not given"]);
    desk.done(&[&update[..], &["--country", "FRA"]].concat());
    assert!(
        desk.read("card.md")
            .contains("geographical_location: France")
    );
    desk.tracked("g");
    let update = [
        "card",
        "update",
        "card.md",
        "--run",
        "g",
        "--country",
        "FRA",
    ];
    assert!(
        desk.done(&update)
            .err
            .contains("note: every run states its own place")
    );
    assert!(
        desk.read("card.md")
            .contains("geographical_location: Germany")
    );
}

#[test]
fn lint_ends_with_an_exit_code_for_ci() {
    let desk = Desk::empty();
    desk.write("none.md", "# Model\n");
    desk.write(
        "kilograms.md",
        "---\nco2_eq_emissions:\n  emissions: 21.5\n  source: CodeCarbon\n  \
         training_type: fine-tuning\n  geographical_location: France\n  \
         hardware_used: 8 x NVIDIA A100 SXM4 80GB\n---\n\n- **Hours used:** 100\n\
         - **Carbon Emitted:** 21.5 kg\n",
    );
    let ran = desk.run(&["card", "lint", "none.md", "kilograms.md"]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("none.md:1: warning: "), "{}", ran.out);
    assert!(ran.out.contains("kilograms.md:3: error: "), "{}", ran.out);
    assert!(
        ran.err.starts_with("2 cards checked: 1 error"),
        "{}",
        ran.err
    );
    let ran = desk.run(&["card", "lint", "--json", "kilograms.md"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(json(&ran.out)[0]["card"], "kilograms.md");
    desk.refused(&["card", "lint", "none.md", "nix.md"], 2, &["`nix.md`"]);
}

/// A run of two steps, whose card is made again, checked, and written in the other formats.
#[test]
fn a_card_made_here_lints_clean() {
    let desk = Desk::empty();
    let row = |i: usize| format!("{{\"prompt\": \"Baum {i}\", \"completion\": \"Linde {i}\"}}\n");
    desk.write("train.jsonl", (0..8).map(row).collect::<String>());
    desk.write(
        "recipe.yaml",
        "model: builtin:sprout\nlora: {r: 2, alpha: 4}\ndata: {train: train.jsonl}\n\
         max_length: 64\nbatch_size: 2\nmax_steps: 2\ncountry: DEU\noutput_dir: run\n\
         energy: {node_idle_watts: 20, baseline_seconds: 0.1, water_grid_l_per_kwh: 3.1}\n",
    );
    desk.done(&["-q", "train", "recipe.yaml"]);
    let written = desk.read("run/README.md");
    // The flag of every command goes before and behind.
    assert_eq!(desk.done(&["card", "-q", "run"]).out, "run/README.md\n");
    assert_eq!(desk.read("run/README.md"), written);
    let ran = desk.run(&["card", "-q", "lint", "run"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (Some(0), "", "")
    );
    assert!(written.contains("above idle: ") && written.contains("3.1 L/kWh in the grid"));
    let ran = desk.done(&["card", "run", "--format", "boamps,climate"]);
    assert_eq!(
        ran.out,
        "run/README.md\nrun/boamps.json\nrun/climate-card.md\n"
    );
    let report = json(&desk.read("run/boamps.json"));
    assert_eq!(report["task"]["taskStage"], "finetuning");
    assert_eq!(report["task"]["dataset"][0]["dataQuantity"], 8);
    assert!(desk.read("run/climate-card.md").contains("| Germany |"));
}

#[test]
fn a_folder_without_a_run_has_no_card() {
    let desk = Desk::empty();
    desk.write("empty/x", "");
    desk.refused(
        &["card", "empty"],
        2,
        &["`empty`", "run.json", "energy.jsonl"],
    );
    desk.refused(&["card", "nix"], 2, &["`nix`"]);
    desk.refused(
        &["card", "--format", "climate", "lint", "empty"],
        2,
        &["--format"],
    );
    assert_eq!(desk.run(&["card"]).code, Some(2));
}

/// What was measured is not lost with the process that measured it.
#[cfg(unix)]
#[test]
fn after_a_kill_the_block_comes_from_the_journal() {
    let desk = Desk::empty();
    let mut child = desk
        .command(&["track", "--country", "DEU", "-o", "r", "--", "sleep", "30"])
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    let opened =
        |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("enter"));
    while !opened(&desk.path("r/energy.jsonl")) {
        assert!(begun.elapsed().as_secs() < 60, "no journal");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(desk.names("r"), ["energy.jsonl"]);
    desk.done(&["card", "r"]);
    assert!(desk.read("r/card-block.md").contains("ended early"));
    assert_eq!(desk.read("r/emissions.csv").lines().count(), 2);
    assert_eq!(json(&desk.read("r/energy.json"))["ended_early"], true);
}
