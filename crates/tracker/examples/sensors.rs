//! Lists the sensors of this machine, or of a copy of a sysfs tree.
//!
//! `cargo run -p sparsam-tracker --example sensors [-- SYSFS]`
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use sparsam_tracker::{Roots, sensors};

fn main() {
    let mut roots = Roots::default();
    if let Some(sysfs) = std::env::args().nth(1) {
        roots.sysfs = sysfs.into();
    }
    for report in sensors(&roots) {
        let state = if report.readable {
            "readable"
        } else {
            "not readable"
        };
        let component = report.component.name();
        println!("{component} {}: {state}: {}", report.sensor, report.detail);
    }
}
