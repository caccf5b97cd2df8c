//! RAPL over many steps, on a tree of four sockets made like those of real machines: a counter shown by
//! two dies, memory beside the packages, a copy under `intel-rapl-mmio`, counters without a range,
//! readings that fail. The energy that was drawn is the energy that is counted.
//!
//! `cargo test -p sparsam-tracker --test rapl -- --ignored` takes the full 100,000 steps.

#![cfg(unix)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sparsam_tracker::Roots;
use sparsam_tracker::meter::powercap::Powercap;
use sparsam_tracker::meter::{EnergyMeter, Method};

/// The range of most packages, 2^32 units of 61 µJ, and the small one of a Threadripper.
const LARGE: u64 = 262_143_328_850;
const SMALL: u64 = 65_532_610_987;

/// A small generator of our own (xorshift64*, Vigna 2016), so that every run is the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

/// What `max_energy_range_uj` says.
#[derive(Clone, Copy, PartialEq)]
enum Shown {
    Range,
    Zero,
    Missing,
}

struct Zone {
    path: PathBuf,
    /// Held open: a step then costs one system call, as on the kernel's side.
    file: File,
    range: u64,
    counter: u64,
    drawn: u64,
    highest_watts: u64,
}

fn zone(
    root: &Path,
    folder: &str,
    name: &str,
    range: u64,
    shown: Shown,
    start: u64,
    highest_watts: u64,
) -> Zone {
    let folder = root.join("class/powercap").join(folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("name"), format!("{name}\n")).unwrap();
    let text = if shown == Shown::Zero { 0 } else { range };
    let limit = folder.join("max_energy_range_uj");
    if shown == Shown::Missing {
        drop(fs::remove_file(limit)); // A copied tree may have one.
    } else {
        fs::write(limit, format!("{text}\n")).unwrap();
    }
    let path = folder.join("energy_uj");
    let zone = Zone {
        file: File::create(&path).unwrap(),
        path,
        range,
        counter: start,
        drawn: 0,
        highest_watts,
    };
    zone.show();
    zone
}

impl Zone {
    fn advance(&mut self, microjoules: u64) {
        self.drawn += microjoules;
        self.counter = (self.counter + microjoules) % self.range;
    }

    /// Always as many bytes, so that nothing of an earlier number stays behind.
    fn show(&self) {
        let text = format!("{:<20}\n", self.counter);
        self.file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    fn fail(&self) {
        let text = format!("{:<20}\n", "unreadable");
        self.file.write_all_at(text.as_bytes(), 0).unwrap();
    }
}

/// Walks over the tree and compares. `root` may hold a tree already.
fn walk(root: &Path, steps: u64) {
    let mut random = Random(0x5eed_0001);
    // Counted, in the order of the meter's domains. Zones without a known range start at zero and do
    // not come round.
    let mut counted = [
        zone(
            root,
            "intel-rapl:0",
            "package-0-die-0",
            SMALL,
            Shown::Range,
            7,
            500,
        ),
        zone(
            root,
            "intel-rapl:2",
            "package-1",
            LARGE,
            Shown::Range,
            LARGE - 1,
            500,
        ),
        zone(
            root,
            "intel-rapl:2:0",
            "dram",
            SMALL,
            Shown::Range,
            SMALL - 5,
            60,
        ),
        zone(
            root,
            "intel-rapl:3",
            "package-2",
            LARGE,
            Shown::Range,
            LARGE / 2,
            500,
        ),
        zone(root, "intel-rapl:3:0", "dram", u64::MAX, Shown::Zero, 0, 60),
        zone(
            root,
            "intel-rapl:4",
            "package-3",
            LARGE,
            Shown::Range,
            0,
            500,
        ),
        zone(
            root,
            "intel-rapl:4:0",
            "dram",
            u64::MAX,
            Shown::Missing,
            0,
            60,
        ),
    ];
    // Never to be added: the mirrored die, the mmio copy, what is inside a package, the whole board.
    let mut mirror = zone(
        root,
        "intel-rapl:1",
        "package-0-die-1",
        SMALL,
        Shown::Range,
        7,
        500,
    );
    let mut copy = zone(
        root,
        "intel-rapl-mmio:0",
        "package-1",
        LARGE,
        Shown::Range,
        0,
        500,
    );
    let mut core = zone(root, "intel-rapl:2:1", "core", LARGE, Shown::Range, 0, 500);
    let mut psys = zone(root, "intel-rapl:5", "psys", LARGE, Shown::Range, 0, 500);

    let roots = Roots {
        sysfs: root.to_owned(),
        ..Roots::default()
    };
    let mut meter = Powercap::open(&roots, Duration::ZERO).unwrap();
    let names: Vec<&str> = meter.domains().iter().map(|d| d.id.as_str()).collect();
    assert_eq!(
        names,
        [
            "rapl:package-0-die-0",
            "rapl:package-0-die-1",
            "rapl:package-1",
            "rapl:package-1/dram",
            "rapl:package-2",
            "rapl:package-2/dram",
            "rapl:package-3",
            "rapl:package-3/dram"
        ]
    );
    assert!(meter.domains().iter().all(|d| d.method == Method::Measured));

    let mut now = 0;
    let (mut failures, mut gaps, mut lost) = (0, 0, 0.0);
    let mut failed_before = false;
    for step in 1..=steps {
        let seconds = 1 + random.below(14);
        now += seconds;
        // A failure lasts for one reading at most, so that no counter goes round unseen.
        let failing = (step < steps && !failed_before && random.below(50) == 0)
            .then(|| random.below(counted.len() as u64) as usize);
        failed_before = failing.is_some();
        for (index, zone) in counted.iter_mut().enumerate() {
            let microjoules =
                seconds * random.below(zone.highest_watts) * 1_000_000 + random.below(1_000_000);
            zone.advance(microjoules);
            if failing == Some(index) {
                zone.fail();
                failures += 1;
            } else {
                zone.show();
            }
            if index == 0 {
                mirror.advance(microjoules);
                mirror.show();
            }
        }
        for zone in [&mut copy, &mut core, &mut psys] {
            zone.advance(seconds * 100_000_000);
        }
        if step % 100 == 0 {
            copy.show();
            core.show();
            psys.show();
        }
        let reading = meter.read(Duration::from_secs(now)).unwrap();
        gaps += reading.gaps.len();
        lost += reading.gaps.iter().map(|gap| gap.lost_seconds).sum::<f64>();
        if step == steps {
            let central: Vec<f64> = reading.joules.iter().map(|j| j.central).collect();
            assert_eq!(central[1], 0.0, "the mirrored die is not added");
            assert!(
                reading.joules[1].high > 0.0,
                "and the upper bound includes it"
            );
            let mut drawn_in_all = 0.0;
            for (zone, index) in counted.iter().zip([0, 2, 3, 4, 5, 6, 7]) {
                let drawn = zone.drawn as f64 / 1e6;
                drawn_in_all += drawn;
                assert!(
                    (central[index] / drawn - 1.0).abs() < 1e-9,
                    "{}: {} J counted, {drawn} J drawn",
                    zone.path.display(),
                    central[index]
                );
                let wraps = zone.drawn / zone.range;
                assert!(
                    zone.range == u64::MAX || wraps > steps / 2000,
                    "{wraps} wraps"
                );
            }
            let sum: f64 = central.iter().sum();
            assert!(
                (sum / drawn_in_all - 1.0).abs() < 1e-3,
                "the issue asks for 0.1 %"
            );
        }
    }
    assert_eq!(
        gaps, failures,
        "every failed reading is a gap, and nothing else is"
    );
    assert_eq!(lost, 0.0, "the counters covered them");
    assert!(failures as u64 > steps / 100);
}

#[test]
fn a_walk_of_a_hundred_thousand_steps_conserves_energy() {
    let folder = tempfile::tempdir().unwrap();
    walk(folder.path(), 100_000);
}

#[test]
fn trees_of_real_machines_are_read_and_nothing_is_added_twice() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        return; // The tree above has the same traps.
    };
    for fixture in ["procfs-fixture", "kepler-fixture"] {
        let roots = Roots {
            sysfs: Path::new(&shared)
                .join("data/rapl")
                .join(fixture)
                .join("sys"),
            ..Roots::default()
        };
        let mut meter = Powercap::open(&roots, Duration::ZERO).unwrap();
        let names: Vec<&str> = meter.domains().iter().map(|d| d.id.as_str()).collect();
        assert_eq!(names, ["rapl:package-0", "rapl:package-10"], "{fixture}");
        let reading = meter.read(Duration::from_secs(1)).unwrap();
        assert!(reading.joules.iter().all(|joules| joules.central == 0.0));
    }
}
