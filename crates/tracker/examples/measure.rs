//! Measures a piece of work and prints what it cost.
//!
//! `cargo run -p sparsam-tracker --example measure -- DEU`
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::time::{Duration, Instant};

use sparsam_tracker::{Options, Tracker, summary_lines};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("sparsam-measure");
    let options = Options {
        country: std::env::args().nth(1),
        ..Options::in_folder(&folder)
    };
    let tracker = Tracker::start(&options)?;
    {
        let _window = tracker.window("work");
        let until = Instant::now() + Duration::from_secs(3);
        let mut sum = 0.0_f64;
        while Instant::now() < until {
            sum = std::hint::black_box(sum + 1.0).sqrt();
        }
    }
    let record = tracker.finish();
    for line in summary_lines(&record) {
        println!("{line}");
    }
    println!("journal: {}", folder.join("energy.jsonl").display());
    Ok(())
}
