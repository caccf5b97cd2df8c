//! Says what can be measured on this machine, and how to make the rest measurable.
//!
//! `cargo run -p sparsam-tracker --example doctor [-- COUNTRY]`
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use sparsam_tracker::{Options, Roots, doctor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options {
        country: std::env::args().nth(1),
        roots: Roots::from_env(),
        ..Options::default()
    };
    for line in doctor::lines(&doctor::examine(&options)?) {
        println!("{line}");
    }
    Ok(())
}
