//! What a run costs, before and after it, through the binary: `plan`, budgets, `compare`, `report`.

use std::path::Path;

use serde_json::Value;

mod desk;

use desk::{Desk, Ran};

impl Desk {
    /// A small recipe with held-out data: 60 short rows, 8 steps.
    fn new() -> Self {
        let desk = Self::empty();
        let rows = |from: usize, to: usize| {
            let rows: Vec<String> = (from..to)
                .map(|i| {
                    let tree = i % 7;
                    format!("{{\"prompt\": \"Baum {i}\", \"completion\": \"Linde {tree}\"}}")
                })
                .collect();
            rows.join("\n")
        };
        desk.write("train.jsonl", rows(0, 32));
        desk.write("eval.jsonl", rows(40, 60));
        desk.write(
            "recipe.yaml",
            "model: builtin:sprout\nlora: {r: 4, alpha: 8}\ndata: {train: train.jsonl, eval: eval.jsonl}\n\
             max_length: 64\npacking: false\nbatch_size: 4\nepochs: 1\nlearning_rate: 2e-3\ncountry: DEU\n\
             eval_steps: 4\nlogging: {tensorboard: false}\n\
             energy: {cpu_watts: 50, ram_watts: 2, interval_seconds: 0.2}\noutput_dir: run\n",
        );
        desk
    }

    /// The object that a command puts out.
    #[track_caller]
    fn told(&self, arguments: &[&str]) -> Value {
        let out = self.done(arguments).out;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

/// Every element that is opened is closed, in order: what a browser and an SVG reader need.
#[track_caller]
fn is_well_formed(text: &str, void: &[&str]) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest
            .find('>')
            .unwrap_or_else(|| panic!("a tag is not closed: {rest:.80}"));
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        let name = tag
            .trim_start_matches('/')
            .split([' ', '/', '\n'])
            .next()
            .unwrap();
        if tag.starts_with('!') || tag.ends_with('/') || void.contains(&name) {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are left open");
}

#[test]
fn the_report_is_one_page_that_asks_for_nothing() {
    let desk = Desk::new();
    desk.ends(&["-q", "train", "recipe.yaml"], 0);
    let Ran { out, .. } = desk.ends(&["report", "run"], 0);
    let files: Vec<&str> = out.lines().collect();
    assert_eq!(files[0], "run/report.html");
    let page = desk.read("run/report.html");
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    is_well_formed(&page, &["meta", "br", "link", "img"]);
    for foreign in [
        "http:", "https:", "<script", "<link", "<img", "<iframe", "@import", "url(",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // Loss, power, phases, emissions so far, published emissions, models: each with a title, a description and
    // a table.
    assert_eq!(page.matches("role=\"img\"").count(), 6);
    assert_eq!(page.matches("<desc ").count(), 6);
    assert_eq!(page.matches("<details>").count(), 7);
    for word in [
        "BLOOM",
        "Strubell",
        "lang=\"en\"",
        "Loss on held-out data",
        "energy x PUE",
    ] {
        assert!(page.contains(word), "{word}");
    }
    assert_eq!(files.len(), 7);
    for file in &files[1..] {
        let svg = desk.read(file);
        is_well_formed(&svg, &[]);
        assert!(
            svg.starts_with("<svg xmlns=") && svg.contains("<title>"),
            "{file}"
        );
    }
    desk.ends(
        &[
            "report",
            "--language",
            "de",
            "-o",
            "neu/b.html",
            "run",
            "run",
        ],
        0,
    );
    let page = desk.read("neu/b.html");
    is_well_formed(&page, &["meta"]);
    assert!(page.contains("lang=\"de\"") && page.contains("Woher die Zahlen kommen"));
    assert!(page.contains("Güte und Energie") && !page.contains("Loss on held-out"));
    for bars in [
        "Energie im Vergleich",
        "Dauer im",
        "Speicherbedarf im",
        "Größe des Ergebnisses",
    ] {
        assert!(page.contains(bars), "{bars}");
    }
    desk.refused(&["report", "nix"], 2, &["not the folder of a run"]);
    desk.refused(&["report", "-o", "run", "run"], 2, &["is a folder"]);
}

#[test]
fn a_budget_ends_the_training_in_time_with_an_adapter() {
    let desk = Desk::new();
    let train = [
        "-q",
        "train",
        "recipe.yaml",
        "epochs=100000",
        "budget.minutes=0.15",
    ];
    desk.ends(&train, 0);
    let record: Value = serde_json::from_str(&desk.read("run/run.json")).unwrap();
    let budget = &record["budget"];
    assert_eq!(budget["ended_by_budget"], true);
    let used = budget["used_minutes"].as_f64().unwrap();
    // A busy machine may take longer for its last evaluation than for the first.
    assert!((0.10..0.22).contains(&used), "{used} of 0.15 minutes");
    assert!(desk.path("run/adapter_model.safetensors").exists());
    assert_eq!(record["state"], "finished");
    assert!(record["results"]["after"]["loss"].is_f64());
    assert!(
        desk.read("run/README.md")
            .contains("Of its budget the run used ")
    );
    // The learning rate has come to its end with the budget, and not after 800,000 steps.
    let metrics = desk.read("run/metrics.jsonl");
    let rates: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["learning_rate"].as_f64())
        .collect();
    let highest = rates.iter().copied().fold(0.0, f64::max);
    assert!(
        highest > 1.9e-3 && rates.last().unwrap() < &(0.15 * highest),
        "{highest} to {:?}",
        rates.last()
    );

    desk.refused(
        &["train", "recipe.yaml", "output_dir=b", "budget={}"],
        2,
        &["names no limit"],
    );
    desk.refused(
        &["train", "recipe.yaml", "output_dir=b", "budget.kwh=0"],
        2,
        &["greater than 0"],
    );
    desk.refused(
        &[
            "train",
            "recipe.yaml",
            "output_dir=b",
            "budget.gco2e=1",
            "country=null",
        ],
        2,
        &["place is not known"],
    );
    assert!(!desk.path("b").exists());
}

#[test]
fn a_plan_is_made_of_real_steps_and_kept() {
    let desk = Desk::new();
    // On one thread, as each has memory of its own that it keeps, and which of them does what is left to chance.
    let ask = [
        "-q",
        "plan",
        "recipe.yaml",
        "threads=1",
        "--seconds",
        "0.5",
        "--json",
    ];
    let plan = desk.told(&ask);
    let arms = plan["arms"].as_array().unwrap();
    let names: Vec<&str> = arms
        .iter()
        .map(|arm| arm["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["LoRA (this)", "full", "LoRA on NF4"]);
    for arm in arms {
        assert_eq!(arm["how"], "calibrated");
        assert_eq!(arm["fits"], true);
        for figure in ["seconds", "energy_kwh", "peak_bytes"] {
            assert!(arm[figure]["central"].as_f64().unwrap() > 0.0, "{figure}");
        }
    }
    assert_eq!(plan["work"]["steps"], 8);
    assert_eq!(plan["work"]["evaluations"], 3);
    // Again it comes from what is kept, to the last digit.
    assert_eq!(desk.told(&ask), plan);
    // The memory is that of the run itself.
    desk.ends(&["-q", "train", "recipe.yaml", "threads=1"], 0);
    let record: Value = serde_json::from_str(&desk.read("run/run.json")).unwrap();
    let real = record["results"]["peak_memory_bytes"].as_f64().unwrap();
    let said = arms[0]["peak_bytes"]["central"].as_f64().unwrap();
    assert!(
        (said / real - 1.0).abs() < 0.10,
        "{said} planned, {real} used"
    );

    let small = desk.told(&[
        "-q",
        "plan",
        "recipe.yaml",
        "--seconds",
        "0.5",
        "--memory",
        "20MB",
        "--json",
    ]);
    assert_eq!(small["arms"][0]["fits"], false);
    assert!(!small["knobs"].as_array().unwrap().is_empty());
    let Ran { out: screen, .. } = desk.ends(
        &[
            "-q",
            "plan",
            "recipe.yaml",
            "--hardware",
            "RTX 4090",
            "--country",
            "FRA",
        ],
        0,
    );
    for part in [
        "RTX 4090",
        "France",
        "it fits",
        "LoRA on NF4",
        "nothing was run",
    ] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );
    desk.refused(
        &["plan", "recipe.yaml", "--hardware", "abacus"],
        2,
        &["`abacus`"],
    );
}

/// A server on loopback that answers each request with the next of some texts, the last again and again.
fn serves(texts: Vec<String>) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/intensity", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (next, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let text = &texts[next.min(texts.len() - 1)];
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    address
}

#[test]
fn a_run_waits_for_a_cleaner_grid_and_not_longer_than_told() {
    let desk = Desk::new();
    let uk = |actual: &str| {
        format!("{{\"data\": [{{\"intensity\": {{\"forecast\": 310, \"actual\": {actual}}}}}]}}")
    };
    let address = serves(vec![uk("300"), uk("null"), uk("150")]);
    let source = format!("energy.live_intensity={address}");
    let train = |more: &[&str], folder: &str, code: i32| -> String {
        let output = format!("output_dir={folder}");
        let arguments = [
            &["train", "recipe.yaml", "max_steps=2", output.as_str()],
            more,
        ]
        .concat();
        desk.ends(&arguments, code).err
    };
    let waited = |folder: &str| -> Value {
        let record: Value =
            serde_json::from_str(&desk.read(&format!("{folder}/run.json"))).unwrap();
        record["waited"].clone()
    };
    let when = "energy.start_when={intensity_below: 200, within_hours: 0.01}";
    let said = train(&[source.as_str(), when], "clean", 0);
    for part in [
        "the grid emits 300 gCO2e/kWh now; waiting for less than 200",
        "the grid emits 310 gCO2e/kWh now; waiting",
        "the grid emits 150 gCO2e/kWh now: starting",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let record = waited("clean");
    assert_eq!(
        (&record["reached"], &record["intensity"]),
        (&true.into(), &150.0.into())
    );
    assert!(record["seconds"].as_f64().unwrap() >= 2.0);
    assert!(
        desk.read("clean/README.md")
            .contains("for a grid below 200 gCO2e/kWh")
    );
    // The wait is no part of the run, and what the grid emits when it begins is.
    let run = desk.json("clean/run.json");
    assert_eq!(run["energy"]["place"]["alpha3"], "DEU");
    let intensity = &run["energy"]["intensity"];
    assert_eq!(intensity["g_per_kwh"]["central"], 150.0);
    assert_eq!(intensity["live"]["count"], 1);

    // A grid that stays dirty, and a source that says nothing: the run starts when the time is up.
    desk.write("grid.txt", "500\n");
    let soon = "energy.start_when={intensity_below: 200, within_hours: 0.0005}";
    let said = train(&["energy.live_intensity=grid.txt", soon], "dirty", 0);
    assert!(
        said.contains("the longest wait of 2 s is over: starting"),
        "{said}"
    );
    assert_eq!(waited("dirty")["reached"], false);
    let said = train(&["energy.live_intensity=nowhere.txt", soon], "unknown", 0);
    assert!(said.contains("`nowhere.txt` gives no answer"), "{said}");
    assert!(waited("unknown")["intensity"].is_null());

    // A figure of one's own is the account's; the grid says when to start, and no more.
    let own = [
        "energy.intensity_g_per_kwh=35",
        "energy.intensity_source=our roof",
    ];
    train(
        &["energy.live_intensity=grid.txt", soon, own[0], own[1]],
        "roof",
        0,
    );
    let run = desk.json("roof/run.json");
    assert_eq!(run["energy"]["intensity"]["g_per_kwh"]["central"], 35.0);
    assert!(run["energy"]["intensity"]["live"].is_null());
    let twice = [
        "train",
        "recipe.yaml",
        "energy.live_intensity=grid.txt",
        own[0],
        own[1],
    ];
    desk.refused(&twice, 2, &["both say what the electricity emits"]);
    let elsewhere = [
        "train",
        "recipe.yaml",
        "energy.live_intensity=electricity-maps:FR",
    ];
    desk.refused(
        &elsewhere,
        2,
        &["is of the grid of France, and `country` is Germany"],
    );

    for (key, word) in [
        (soon, "nothing says how clean"),
        ("energy.live_intensity=electricity-maps", "names no zone"),
        (
            "energy.start_when={within_hours: 0}",
            "nothing says how clean",
        ),
    ] {
        desk.refused(&["train", "recipe.yaml", "output_dir=x", key], 2, &[word]);
    }
    let zero = [
        "train",
        "recipe.yaml",
        "output_dir=x",
        "energy.live_intensity=electricity-maps:DE",
        "energy.start_when={within_hours: 0}",
    ];
    let Ran { err, .. } = desk.ends(&zero, 2);
    assert!(
        err.contains("`energy.start_when.within_hours` must be more than 0"),
        "{err}"
    );
    assert!(!desk.path("x").exists());
}

#[test]
fn emissions_are_of_the_grid_as_it_was_while_the_run_went_on() {
    let desk = Desk::new();
    let address = serves(vec![
        "{\"zone\": \"XX\", \"carbonIntensity\": 100}".to_owned(),
        "400".to_owned(),
    ]);
    let source = format!("energy.live_intensity={address}?auth=secret");
    let arguments = [
        "train",
        "recipe.yaml",
        source.as_str(),
        "output_dir=live",
        "save_steps=4",
    ];
    let said = desk.ends(&arguments, 0).err;
    assert!(said.contains("the grid emits 100 gCO2e/kWh now"), "{said}");
    let energy = desk.json("live/run.json")["energy"].clone();
    let figure = |value: &Value| value["central"].as_f64().unwrap();
    let grams = figure(&energy["emissions_g"]);
    assert!((grams - figure(&energy["energy_kwh"]) * 100.0).abs() < 1e-9 * grams);
    // The source stands on the card, and its key nowhere.
    let card = desk.read("live/README.md");
    assert!(
        card.contains(&format!("x 100 g/kWh (Germany, {address}, 1 reading, ")),
        "{card}"
    );
    assert!(
        card.contains("with the yearly average of the place"),
        "{card}"
    );
    for file in ["live/README.md", "live/run.json", "live/energy.jsonl"] {
        assert!(!desk.read(file).contains("secret"), "{file}");
    }
    // The journal alone gives the same figure.
    let before = energy["emissions_g"].clone();
    desk.done(&["card", "live"]);
    assert_eq!(desk.json("live/run.json")["energy"]["emissions_g"], before);

    // Any program: the grid of the second answer.
    let asked = [
        "track",
        "--live-intensity",
        address.as_str(),
        "-o",
        "tracked",
        "--",
        "true",
    ];
    let said = desk.ends(&asked, 0).err;
    assert!(said.contains("x 400 g/kWh"), "{said}");
    assert_eq!(
        figure(&desk.json("tracked/energy.json")["intensity"]["g_per_kwh"]),
        400.0
    );
    let both = [
        "track",
        "--live-intensity",
        "uk-grid",
        "--intensity",
        "3",
        "--",
        "true",
    ];
    assert!(desk.ends(&both, 2).err.contains("cannot be used with"));
    let wrong = [
        "track",
        "--live-intensity",
        "electricity-maps:",
        "--",
        "true",
    ];
    desk.refused(&wrong, 2, &["names no zone"]);
    let abroad = [
        "track",
        "--country=DEU",
        "--live-intensity=uk-grid",
        "--",
        "true",
    ];
    desk.refused(
        &abroad,
        2,
        &["is of the grid of United Kingdom, and `--country` is Germany"],
    );
}

#[test]
fn the_network_is_asked_by_live_intensity_and_by_nothing_else() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    let desk = Desk::new();
    // Whoever asks the network asks this proxy, which refuses.
    let asked = Arc::new(AtomicU32::new(0));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    {
        let asked = Arc::clone(&asked);
        std::thread::spawn(move || {
            for _refused in listener.incoming() {
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let train = |more: &[&str]| -> String {
        let arguments = [&["train", "recipe.yaml", "max_steps=2"], more].concat();
        let mut command = desk.command(&arguments);
        for name in [
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ] {
            command.env(name, &proxy);
        }
        for name in ["NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        let ran = command.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{said}");
        said
    };
    train(&["output_dir=quiet"]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let said = train(&[
        "output_dir=asks",
        "energy.live_intensity=uk-grid",
        "country=GBR",
    ]);
    assert!(asked.load(Ordering::SeqCst) >= 1);
    // The run goes on with the figure it would have had, and says so wherever the figure stands.
    assert!(said.contains("gives no answer"), "{said}");
    let energy = desk.json("asks/run.json")["energy"].clone();
    let yearly = sparsam_tracker::intensity::lookup("GBR").unwrap();
    assert_eq!(
        energy["intensity"]["g_per_kwh"]["central"],
        yearly.g_per_kwh
    );
    assert!(
        desk.read("asks/README.md")
            .contains("no intensity came from the Carbon Intensity API")
    );
}

fn modified(path: &Path) -> std::time::SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

#[test]
fn a_comparison_goes_on_where_it_stopped_and_says_what_its_figures_carry() {
    let desk = Desk::new();
    desk.write(
        "compare.yaml",
        "recipe: recipe.yaml\nset: [eval_generation.samples=4, eval_generation.max_new_tokens=8]\n\
         arms:\n  full: [method=full, learning_rate=5e-4]\n  LoRA r 2: [lora.r=2, lora.alpha=4]\n\
         repeats: 2\npause_seconds: 0\nwarm_up_seconds: 0\noutput_dir: out\n",
    );
    let Ran { out: order, .. } = desk.ends(&["compare", "compare.yaml", "--dry-run"], 0);
    let arms: Vec<&str> = order
        .lines()
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    assert_eq!(arms, ["full", "LoRA r 2", "LoRA r 2", "full"]);
    let Ran { out: screen, .. } = desk.ends(&["-q", "compare", "compare.yaml"], 0);
    assert!(
        screen.contains("LoRA r 2") && screen.contains("\nadvice     "),
        "{screen}"
    );

    // One run is gone: it alone is made again.
    let kept = desk.path("out/arms/full/1/run.json");
    let before = modified(&kept);
    std::fs::remove_dir_all(desk.path("out/arms/lora-r-2/2")).unwrap();
    desk.ends(&["-q", "compare", "compare.yaml"], 0);
    assert_eq!(modified(&kept), before);
    assert!(desk.path("out/arms/lora-r-2/2/run.json").exists());

    let result: Value = serde_json::from_str(&desk.read("out/comparison.json")).unwrap();
    assert_eq!(result["unlike"].as_array().unwrap().len(), 0);
    assert_eq!(result["common"]["steps"], 8);
    for arm in result["arms"].as_array().unwrap() {
        let loss = |key: &str| arm["loss"][key].as_f64().unwrap();
        assert!(loss("low") <= loss("mean") && loss("mean") <= loss("high"));
        assert_eq!(arm["energies_kwh"].as_array().unwrap().len(), 2);
        assert!(arm["published_bytes"].as_u64().unwrap() > 1000);
        assert!(arm["exact_match"]["mean"].is_f64());
        assert!(arm["wh_to_target"].as_f64().unwrap() > 0.0);
    }
    // The mean is that of the records.
    let record = |run: &str| -> f64 {
        let record: Value =
            serde_json::from_str(&desk.read(&format!("out/arms/{run}/run.json"))).unwrap();
        record["results"]["after"]["loss"].as_f64().unwrap()
    };
    let mean = f64::midpoint(record("full/1"), record("full/2"));
    let said = result["arms"][0]["loss"]["mean"].as_f64().unwrap();
    assert!((said - mean).abs() < 1e-9, "{said} and {mean}");
    assert!(!result["advice"].as_array().unwrap().is_empty());
    assert_eq!(desk.read("out/comparison.csv").lines().count(), 3);
    assert!(desk.read("out/comparison.md").contains("| LoRA r 2 |"));
    is_well_formed(&desk.read("out/pareto.svg"), &[]);
    let page = desk.read("out/report.html");
    for part in [
        "LoRA r 2",
        "What follows",
        "Time, side by side",
        "Memory, side by side",
        "Size of what is",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // The folder of a comparison is one for `report` too, in either language.
    desk.ends(
        &["report", "--language", "de", "-o", "vergleich.html", "out"],
        0,
    );
    let page = desk.read("vergleich.html");
    is_well_formed(&page, &["meta"]);
    assert!(page.contains("Was daraus folgt") && page.contains("Dauer im Vergleich"));
    // The ledger takes its runs for a search.
    let ledger = desk.told(&["ledger", "--json", "out"]);
    assert_eq!(ledger["stages"][0]["stage"], "search");
    assert_eq!(ledger["stages"].as_array().unwrap().len(), 1);

    // One run alone, as a job array makes it; then the result without a run.
    std::fs::remove_dir_all(desk.path("out/arms/full/1")).unwrap();
    let Ran { out, err, .. } = desk.ends(&["-q", "compare", "compare.yaml", "--result"], 1);
    assert!(
        out.is_empty() && err.contains("repeat 1 of the arm `full` is not finished"),
        "{err}"
    );
    let Ran { out, .. } = desk.ends(&["-q", "compare", "compare.yaml", "--run", "1"], 0);
    assert_eq!(out, "out/arms/full/1\n");
    desk.ends(&["-q", "compare", "compare.yaml", "--result"], 0);
    desk.refused(&["compare", "compare.yaml", "--run", "9"], 2, &["no run 9"]);

    // Another recipe in the same folder is not taken for the same comparison.
    let changed = desk
        .read("compare.yaml")
        .replace("lora.alpha=4", "lora.alpha=8");
    desk.write("compare.yaml", &changed);
    desk.refused(&["compare", "compare.yaml"], 2, &["another recipe"]);
    desk.write("compare.yaml", changed.replace("lora.r=2", "epochs=2"));
    desk.refused(&["compare", "compare.yaml"], 2, &["`epochs`"]);
}
