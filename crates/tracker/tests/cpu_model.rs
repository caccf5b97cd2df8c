//! The processor's model against watts measured on four machines (codecarbon's load profiles, RAPL).
//! Nothing in the model was fitted to these files, and they show what such a model is worth: at full load
//! these machines draw from half to one and a third of their rated power, and no model that knows only
//! the name and the load can tell which. The central figure is 15 to 77 % off in the median (codecarbon's
//! 10 to 42 %). The clock does not tell either: of 59,290 models of rated power, load and clock, fitted to
//! these very files, the best is 39 % off on its worst machine, and none is nearer than codecarbon's on all
//! four (`tests/tracker/cpu_model_bound.py`). So the stated range is what is checked: it holds in at least
//! 90 % of the rows on every machine.
//!
//! Only with `SPARSAM_SHARED`; without it the arithmetic is tested in the crate.

use std::fs;

use sparsam_tracker::Range;
use sparsam_tracker::meter::{model, processors};

/// What a file says: load from 0 to 1, measured W, codecarbon's own estimate in W.
struct Row {
    load: f64,
    measured: f64,
    codecarbon: f64,
}

fn rows(text: &str) -> Vec<Row> {
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|c| *c == name).unwrap();
    let (load, measured, estimated) = (
        column("cpu_load"),
        column("rapl_power"),
        column("estimated_power"),
    );
    text.lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let number = |index: usize| fields[index].parse::<f64>().unwrap();
            Row {
                load: number(load) / 100.0,
                measured: number(measured),
                codecarbon: number(estimated),
            }
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is the point of this test")]
fn the_stated_range_holds_what_was_measured() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        return;
    };
    let folder = std::path::Path::new(&shared).join("data/codecarbon/cpu_load_profiling");
    let machines = [
        // Name in the files, name of the processor, sockets (codecarbon's notes on these machines).
        ("EPYC_8024P", "AMD EPYC 8024P 8-Core Processor", 1.0),
        (
            "1950X",
            "AMD Ryzen Threadripper 1950X 16-Core Processor",
            1.0,
        ),
        ("E3-1240", "Intel(R) Xeon(R) CPU E3-1240 V2 @ 3.40GHz", 1.0),
        ("E5-2620", "Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz", 2.0),
    ];
    let (mut held, mut better) = (0, 0);
    for (part, name, sockets) in machines {
        let rated = processors::find(name).unwrap().tdp_watts * sockets;
        let mut all = Vec::new();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains(part) {
                all.extend(rows(&fs::read_to_string(path).unwrap()));
            }
        }
        assert!(all.len() >= 20);
        let model = |load: f64| model::cpu_watts(Range::exactly(rated), 1.0, 1.0, load, load);
        let error = |of: &dyn Fn(&Row) -> f64| {
            median(
                all.iter()
                    .map(|row| (of(row) - row.measured).abs() / row.measured)
                    .collect(),
            )
        };
        let ours = error(&|row| model(row.load).central);
        let theirs = error(&|row| row.codecarbon);
        let inside = all
            .iter()
            .filter(|row| {
                let range = model(row.load);
                (range.low..=range.high).contains(&row.measured)
            })
            .count() as f64
            / all.len() as f64;
        println!(
            "{part}: {} rows, rated {rated} W: median error {:.1} %, codecarbon's {:.1} %, in range {:.0} %",
            all.len(),
            100.0 * ours,
            100.0 * theirs,
            100.0 * inside
        );
        held += usize::from(inside >= 0.9);
        better += usize::from(ours < theirs);
    }
    assert_eq!(held, 4, "machines on which the range holds");
    assert!(
        better >= 1,
        "nearer than codecarbon's on {better} of 4 machines"
    );
}
