//! RAPL energy counters through Linux' powercap tree: `class/powercap/intel-rapl:N` for a package,
//! `intel-rapl:N:M` for what is inside or beside it. AMD processors appear under the same name.
//!
//! Only packages and `dram` are added up. `core` and `uncore` lie inside the package; `psys` is another
//! view of the whole board, which is found below the package on some machines and far above it on
//! others; `intel-rapl-mmio` is the same package a second time. Two dies of a package may show one
//! counter twice; the second counts from the moment on which it is seen to differ.
//!
//! The counters are integers of microjoules that wrap at `max_energy_range_uj` (a quarter of an hour
//! on a large server). [`delta`] is the whole of that arithmetic, free of files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Component, Domain, EnergyMeter, Gap, Method, Reading, Roots};
use crate::range::Range;

/// Power above which a package's step cannot be believed, W. About three times the rated power of the
/// largest packages sold (500 W in 2025); faulty counters have shown 702 W and 64,826 W on a laptop.
pub const PLAUSIBLE_PACKAGE_WATTS: f64 = 1500.0;

/// The same for the memory of one package, W: 24 modules of 20 W.
pub const PLAUSIBLE_DRAM_WATTS: f64 = 480.0;

/// How far a package counter is trusted: 5 %. Khan et al. 2018, "RAPL in Action" (ACM TOMPECS 3:2),
/// find RAPL to follow wall power with correlation 0.99 on Haswell and later; the rest is our margin.
const PACKAGE_ACCURACY: f64 = 0.05;

/// How far a dram counter is trusted: 20 %, the deviation Desrochers, Paradis and Weaver 2016
/// ("A Validation of DRAM RAPL Power Measurements", MEMSYS) found in general.
const DRAM_ACCURACY: f64 = 0.20;

/// Without a known range a step is believed only over at most this time: the smallest range known
/// (65.5 kJ) takes 43 s at [`PLAUSIBLE_PACKAGE_WATTS`].
const UNKNOWN_RANGE_TRUST: Duration = Duration::from_secs(30);

/// RAPL counters are brought up to date about once a millisecond, so that two readings of one counter
/// may differ by that much of the time between them. The error of the two readings adds up to twice.
const UPDATE_SECONDS: f64 = 0.002;

/// Why a step of a counter was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoDelta {
    /// The counter went back, and where it wraps is not known.
    #[error("the counter went back and its range is not known")]
    UnknownRange,
    /// So much time has passed that the counter may have gone round unseen.
    #[error("too long since the last reading: the counter may have gone round unseen")]
    Ambiguous,
    /// The step would mean more power than the hardware can draw: a reset, not a wrap.
    #[error("the counter moved by more than the hardware can draw")]
    Implausible,
    /// No time has passed between two different readings.
    #[error("the counter moved in no time")]
    NoTime,
}

/// Microjoules between two readings of a counter that wraps at `max_range` microjoules.
///
/// `max_range` is none where the file is missing or says 0. `ceiling` is the highest plausible power
/// in watts.
///
/// # Errors
/// The step cannot be told from a reset or from several wraps.
pub fn delta(
    previous: u64,
    current: u64,
    max_range: Option<u64>,
    elapsed: Duration,
    ceiling: f64,
) -> Result<u64, NoDelta> {
    let believable = ceiling * elapsed.as_secs_f64() * 1e6;
    match max_range {
        Some(range) if believable >= range as f64 => return Err(NoDelta::Ambiguous),
        None if elapsed > UNKNOWN_RANGE_TRUST => return Err(NoDelta::Ambiguous),
        _ => {}
    }
    let step = if current >= previous {
        current - previous
    } else {
        match max_range {
            Some(range) if range >= previous => (range - previous) + current,
            _ => return Err(NoDelta::UnknownRange),
        }
    };
    if step > 0 && elapsed.is_zero() {
        return Err(NoDelta::NoTime);
    }
    if step as f64 > believable {
        return Err(NoDelta::Implausible);
    }
    Ok(step)
}

/// A zone of the tree that is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// `package-0`, `package-0-die-1`, `package-0/dram`.
    pub name: String,
    /// The zone's folder.
    pub folder: PathBuf,
    /// CPU or RAM.
    pub component: Component,
}

impl Zone {
    /// Microjoules now.
    ///
    /// # Errors
    /// The counter cannot be read, in words.
    pub fn read(&self) -> Result<u64, String> {
        let file = self.folder.join("energy_uj");
        let text =
            fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        text.trim()
            .parse()
            .map_err(|_| format!("{}: not a number of microjoules", file.display()))
    }

    /// Where the counter wraps, microjoules; none where the file is missing, unreadable or 0.
    fn max_range(&self) -> Option<u64> {
        let text = fs::read_to_string(self.folder.join("max_energy_range_uj")).ok()?;
        text.trim().parse().ok().filter(|range| *range > 0)
    }

    /// The package of which this is a die, if it is one.
    fn die_of(&self) -> Option<&str> {
        self.name.split_once("-die-").map(|(package, _)| package)
    }
}

/// The zones to add up: packages (or their dies) and dram, in the order of their names.
pub fn zones(roots: &Roots) -> Vec<Zone> {
    let root = roots.sysfs.join("class/powercap");
    let Ok(entries) = fs::read_dir(&root) else {
        return Vec::new();
    };
    // Entries are links in a live system and folders in a copy; both are followed.
    let mut folders: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(file_name, _)| file_name.starts_with("intel-rapl:"))
        .collect();
    folders.sort();
    let mut zones = Vec::new();
    for (file_name, folder) in &folders {
        let Some(name) = zone_name(folder) else {
            continue;
        };
        let depth = file_name.matches(':').count();
        if depth == 1 && name.starts_with("package-") {
            zones.push(Zone {
                name,
                folder: folder.clone(),
                component: Component::Cpu,
            });
        } else if depth == 2 && name == "dram" {
            let parent = file_name.rsplit_once(':').map_or("", |(parent, _)| parent);
            let package = zone_name(&root.join(parent)).unwrap_or_else(|| parent.to_owned());
            zones.push(Zone {
                name: format!("{package}/dram"),
                folder: folder.clone(),
                component: Component::Ram,
            });
        }
    }
    zones
}

fn zone_name(folder: &Path) -> Option<String> {
    let name = fs::read_to_string(folder.join("name")).ok()?;
    Some(name.trim().to_owned())
}

/// A zone while it is watched.
#[derive(Debug)]
struct Watched {
    zone: Zone,
    max_range: Option<u64>,
    /// The last believed reading and its time. None until one has succeeded.
    last: Option<(Duration, u64)>,
    /// The time since which nothing has been counted, where no reading has succeeded yet.
    since: Duration,
    microjoules: u64,
    mirror: Mirror,
}

/// Whether a die's counter is a copy of another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mirror {
    /// Not a die, the first of its package, or seen to differ.
    Own,
    /// So far in step with the zone of that index.
    SameAs(usize),
}

/// The meter over all zones that can be read.
#[derive(Debug)]
pub struct Powercap {
    domains: Vec<Domain>,
    zones: Vec<Watched>,
}

impl Powercap {
    /// A meter over the readable zones, or none where not one package can be read. Memory alone would
    /// leave the processor without a figure that fits it.
    pub fn open(roots: &Roots, now: Duration) -> Option<Self> {
        let mut watched: Vec<Watched> = Vec::new();
        for zone in zones(roots) {
            let Ok(first) = zone.read() else {
                continue;
            };
            let sibling = zone.die_of().and_then(|package| {
                watched
                    .iter()
                    .position(|other| other.zone.die_of() == Some(package))
            });
            watched.push(Watched {
                max_range: zone.max_range(),
                zone,
                last: Some((now, first)),
                since: now,
                microjoules: 0,
                mirror: sibling.map_or(Mirror::Own, Mirror::SameAs),
            });
        }
        if !watched.iter().any(|w| w.zone.component == Component::Cpu) {
            return None;
        }
        let domains = watched
            .iter()
            .map(|watched| Domain {
                id: format!("rapl:{}", watched.zone.name),
                label: label(&watched.zone),
                component: watched.zone.component,
                method: Method::Measured,
                source: "RAPL energy counter, through powercap".to_owned(),
            })
            .collect();
        Some(Self {
            domains,
            zones: watched,
        })
    }

    /// Whether memory is among the zones.
    pub fn measures_memory(&self) -> bool {
        self.domains.iter().any(|d| d.component == Component::Ram)
    }
}

fn label(zone: &Zone) -> String {
    match zone.component {
        Component::Ram => format!(
            "RAM of {}",
            zone.name.trim_end_matches("/dram").replace('-', " ")
        ),
        _ => format!("CPU {}", zone.name.replace('-', " ")),
    }
}

impl EnergyMeter for Powercap {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let mut gaps = Vec::new();
        let mut steps: Vec<Option<(u64, f64)>> = Vec::with_capacity(self.zones.len());
        for (index, watched) in self.zones.iter_mut().enumerate() {
            match watched.step(now) {
                Ok(step) => steps.push(Some(step)),
                Err((lost_seconds, reason)) => {
                    steps.push(None);
                    gaps.push(Gap {
                        domain: Some(index),
                        lost_seconds,
                        reason,
                    });
                }
            }
        }
        for index in 0..self.zones.len() {
            if let Mirror::SameAs(first) = self.zones[index].mirror
                && differ(steps[first], steps[index])
            {
                self.zones[index].mirror = Mirror::Own;
            }
        }
        if gaps.len() == self.zones.len()
            && let Some(first) = gaps.first()
            && gaps
                .iter()
                .all(|gap| gap.lost_seconds == first.lost_seconds)
        {
            return Err(Gap {
                domain: None,
                ..first.clone()
            });
        }
        Ok(Reading {
            joules: self.zones.iter().map(Watched::joules).collect(),
            gaps,
        })
    }

    fn notes(&self) -> Vec<String> {
        // A kilojoule: enough to tell two dies apart, if there are two.
        const ENOUGH_MICROJOULES: u64 = 1_000_000_000;
        self.zones
            .iter()
            .filter(|w| w.mirror != Mirror::Own && w.microjoules > ENOUGH_MICROJOULES)
            .map(|w| {
                format!(
                    "the counter of {} moves exactly as that of the package's first die, so it is \
                     taken for a copy and not added; the upper bound includes it",
                    w.zone.name
                )
            })
            .collect()
    }
}

/// Whether two dies' steps, microjoules over seconds, are too far apart to be one counter read twice.
fn differ(first: Option<(u64, f64)>, second: Option<(u64, f64)>) -> bool {
    let (Some((a, seconds)), Some((b, other_seconds))) = (first, second) else {
        return false;
    };
    // After a failed reading one step covers more time than the other, and the two say nothing.
    if seconds != other_seconds {
        return false;
    }
    let larger = a.max(b) as f64;
    // Steps under a joule are too coarse to compare.
    larger > 1e6
        && seconds > 0.0
        && a.abs_diff(b) as f64 / larger > 0.005 + UPDATE_SECONDS / seconds
}

impl Watched {
    /// Counts the step since the last reading: microjoules and seconds. An error carries the seconds
    /// that are lost and why.
    fn step(&mut self, now: Duration) -> Result<(u64, f64), (f64, String)> {
        // The counter itself goes on when it cannot be read: nothing is lost yet.
        let current = self.zone.read().map_err(|reason| (0.0, reason))?;
        let Some((then, previous)) = self.last else {
            self.last = Some((now, current));
            let lost = now.saturating_sub(self.since).as_secs_f64();
            return Err((lost, "the first reading came late".to_owned()));
        };
        let elapsed = now.saturating_sub(then);
        let ceiling = match self.zone.component {
            Component::Ram => PLAUSIBLE_DRAM_WATTS,
            _ => PLAUSIBLE_PACKAGE_WATTS,
        };
        match delta(previous, current, self.max_range, elapsed, ceiling) {
            Ok(step) => {
                self.last = Some((now, current));
                self.microjoules += step;
                Ok((step, elapsed.as_secs_f64()))
            }
            // The same moment read twice; the next reading covers it.
            Err(NoDelta::NoTime) => Ok((0, 0.0)),
            Err(reason) => {
                self.last = Some((now, current));
                Err((elapsed.as_secs_f64(), reason.to_string()))
            }
        }
    }

    fn joules(&self) -> Range {
        let joules = self.microjoules as f64 / 1e6;
        let accuracy = match self.zone.component {
            Component::Ram => DRAM_ACCURACY,
            _ => PACKAGE_ACCURACY,
        };
        match self.mirror {
            Mirror::Own => Range::around(joules, accuracy),
            Mirror::SameAs(_) => Range::new(0.0, 0.0, joules * (1.0 + accuracy)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: u64 = 262_143_328_850;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn steps_forward_and_across_the_wrap() {
        assert_eq!(delta(10, 30, Some(RANGE), SECOND, 1500.0), Ok(20));
        assert_eq!(delta(RANGE - 5, 7, Some(RANGE), SECOND, 1500.0), Ok(12));
        assert_eq!(delta(5, 5, Some(RANGE), Duration::ZERO, 1500.0), Ok(0));
    }

    #[test]
    fn a_reset_is_not_taken_for_a_wrap() {
        // From the middle of the range back to zero would be 131 kJ in a second.
        assert_eq!(
            delta(RANGE / 2, 0, Some(RANGE), SECOND, 1500.0),
            Err(NoDelta::Implausible)
        );
        assert_eq!(
            delta(0, 64_826_000_000, Some(RANGE), SECOND, 1500.0),
            Err(NoDelta::Implausible)
        );
    }

    #[test]
    fn an_unknown_range_gives_a_gap_and_never_a_number() {
        assert_eq!(
            delta(100, 50, None, SECOND, 1500.0),
            Err(NoDelta::UnknownRange)
        );
        assert_eq!(
            delta(100, 50, Some(60), SECOND, 1500.0),
            Err(NoDelta::Ambiguous)
        );
        assert_eq!(
            delta(1 << 40, 50, Some(RANGE), SECOND, 1500.0),
            Err(NoDelta::UnknownRange)
        );
        assert_eq!(delta(50, 100, None, SECOND, 1500.0), Ok(50));
        assert_eq!(
            delta(50, 100, None, Duration::from_secs(31), 1500.0),
            Err(NoDelta::Ambiguous)
        );
    }

    #[test]
    fn a_pause_in_which_the_counter_may_have_gone_round_is_a_gap() {
        let pause = Duration::from_secs(175);
        assert_eq!(
            delta(0, 1_000_000, Some(RANGE), pause, 1500.0),
            Err(NoDelta::Ambiguous)
        );
    }

    proptest! {
        /// Whatever path the counter takes, the sum of the deltas is the energy that was drawn.
        #[test]
        fn random_walks_with_wraps_conserve_energy(
            start in 0..RANGE,
            steps in prop::collection::vec((1u64..170, 0.0f64..1.0), 1..200),
        ) {
            let (mut counter, mut drawn, mut counted) = (start, 0, 0);
            for (seconds, load) in steps {
                let elapsed = Duration::from_secs(seconds);
                let step = (load * PLAUSIBLE_PACKAGE_WATTS * 1e6) as u64 * seconds;
                let next = (counter + step) % RANGE;
                drawn += step;
                counted += delta(counter, next, Some(RANGE), elapsed, PLAUSIBLE_PACKAGE_WATTS).unwrap();
                counter = next;
            }
            prop_assert_eq!(counted, drawn);
        }

        /// Whatever the files say, a delta never exceeds what the hardware can draw.
        #[test]
        fn no_delta_exceeds_the_ceiling(
            previous: u64,
            current: u64,
            range in prop::option::of(any::<u64>()),
            milliseconds in 0u64..1_000_000,
        ) {
            let elapsed = Duration::from_millis(milliseconds);
            if let Ok(step) = delta(previous, current, range, elapsed, 1500.0) {
                prop_assert!(step as f64 <= 1500.0 * elapsed.as_secs_f64() * 1e6);
            }
        }
    }

    /// A powercap tree whose counters the test advances.
    struct Tree {
        folder: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().unwrap(),
            }
        }

        fn roots(&self) -> Roots {
            Roots {
                sysfs: self.folder.path().to_owned(),
                ..Roots::default()
            }
        }

        fn zone(&self, file_name: &str, name: &str, energy: u64) -> &Self {
            let folder = self.folder.path().join("class/powercap").join(file_name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("name"), format!("{name}\n")).unwrap();
            fs::write(folder.join("max_energy_range_uj"), format!("{RANGE}\n")).unwrap();
            self.set(file_name, energy);
            self
        }

        fn file(&self, file_name: &str, file: &str) -> PathBuf {
            self.folder
                .path()
                .join("class/powercap")
                .join(file_name)
                .join(file)
        }

        fn set(&self, file_name: &str, energy: u64) {
            fs::write(self.file(file_name, "energy_uj"), format!("{energy}\n")).unwrap();
        }
    }

    fn central(meter: &mut Powercap, seconds: u64) -> Vec<f64> {
        let reading = meter.read(Duration::from_secs(seconds)).unwrap();
        reading.joules.iter().map(|joules| joules.central).collect()
    }

    #[test]
    fn packages_and_dram_are_counted_and_nothing_twice() {
        let tree = Tree::new();
        tree.zone("intel-rapl:0", "package-0", 1_000_000)
            .zone("intel-rapl:0:0", "core", 0)
            .zone("intel-rapl:0:1", "uncore", 0)
            .zone("intel-rapl:0:2", "dram", 0)
            .zone("intel-rapl:1", "package-1", RANGE - 1_000_000)
            .zone("intel-rapl:1:0", "dram", 0)
            .zone("intel-rapl:2", "psys", 0)
            .zone("intel-rapl-mmio:0", "package-0", 1_000_000);
        let mut meter = Powercap::open(&tree.roots(), Duration::ZERO).unwrap();
        let ids: Vec<&str> = meter.domains().iter().map(|d| d.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "rapl:package-0",
                "rapl:package-0/dram",
                "rapl:package-1",
                "rapl:package-1/dram"
            ]
        );
        for (file_name, energy) in [
            ("intel-rapl:0", 51_000_000),
            ("intel-rapl:0:0", 40_000_000),
            ("intel-rapl:0:2", 5_000_000),
            ("intel-rapl:1", 29_000_000), // Across the wrap.
            ("intel-rapl:1:0", 3_000_000),
            ("intel-rapl:2", 99_000_000),
            ("intel-rapl-mmio:0", 51_000_000),
        ] {
            tree.set(file_name, energy);
        }
        assert_eq!(central(&mut meter, 1), [50.0, 5.0, 30.0, 3.0]);
    }

    #[test]
    fn a_failed_read_is_a_gap_and_the_next_one_covers_it() {
        let tree = Tree::new();
        tree.zone("intel-rapl:0", "package-0", 0)
            .zone("intel-rapl:0:0", "dram", 0);
        let mut meter = Powercap::open(&tree.roots(), Duration::ZERO).unwrap();
        fs::write(tree.file("intel-rapl:0", "energy_uj"), "").unwrap();
        tree.set("intel-rapl:0:0", 2_000_000);
        let reading = meter.read(SECOND).unwrap();
        assert_eq!(reading.gaps.len(), 1);
        assert_eq!(
            (reading.gaps[0].domain, reading.gaps[0].lost_seconds),
            (Some(0), 0.0)
        );
        tree.set("intel-rapl:0", 80_000_000);
        assert_eq!(central(&mut meter, 2), [80.0, 2.0]);
    }

    #[test]
    fn a_reset_counter_loses_its_interval_and_says_so() {
        let tree = Tree::new();
        tree.zone("intel-rapl:0", "package-0", 100_000_000_000);
        let mut meter = Powercap::open(&tree.roots(), Duration::ZERO).unwrap();
        tree.set("intel-rapl:0", 0);
        let gap = meter.read(SECOND).unwrap_err();
        assert_eq!(gap.lost_seconds, 1.0);
        tree.set("intel-rapl:0", 7_000_000);
        assert_eq!(central(&mut meter, 2), [7.0]);
    }

    #[test]
    fn a_missing_range_is_no_obstacle_until_the_counter_goes_back() {
        let tree = Tree::new();
        tree.zone("intel-rapl:0", "package-0", 90_000_000);
        fs::write(tree.file("intel-rapl:0", "max_energy_range_uj"), "0\n").unwrap();
        let mut meter = Powercap::open(&tree.roots(), Duration::ZERO).unwrap();
        tree.set("intel-rapl:0", 100_000_000);
        assert_eq!(central(&mut meter, 1), [10.0]);
        tree.set("intel-rapl:0", 4_000_000);
        assert!(meter.read(Duration::from_secs(2)).is_err());
    }

    #[test]
    fn a_mirrored_die_counts_once_and_a_real_one_counts_from_the_start() {
        let tree = Tree::new();
        tree.zone("intel-rapl:0", "package-0-die-0", 0)
            .zone("intel-rapl:1", "package-0-die-1", 0);
        let mut meter = Powercap::open(&tree.roots(), Duration::ZERO).unwrap();
        for second in 1..=20 {
            tree.set("intel-rapl:0", second * 68_000_000);
            tree.set("intel-rapl:1", second * 68_000_000 + 30_000);
            central(&mut meter, second);
        }
        let reading = meter.read(Duration::from_secs(21)).unwrap();
        assert_eq!(reading.joules[0].central, 1360.0);
        assert_eq!(reading.joules[1].central, 0.0);
        assert!(reading.joules[1].high > 1360.0);
        assert_eq!(meter.notes().len(), 1);

        // One die's reading fails: its next step covers twice the time, which is no difference.
        fs::write(tree.file("intel-rapl:0", "energy_uj"), "").unwrap();
        tree.set("intel-rapl:1", 21 * 68_000_000);
        assert_eq!(central(&mut meter, 22), [1360.0, 0.0]);
        tree.set("intel-rapl:0", 22 * 68_000_000);
        tree.set("intel-rapl:1", 22 * 68_000_000);
        assert_eq!(central(&mut meter, 23), [1496.0, 0.0]);

        tree.set("intel-rapl:0", 23 * 68_000_000);
        tree.set("intel-rapl:1", 22 * 68_000_000 + 50_000_000);
        assert_eq!(central(&mut meter, 24), [1564.0, 1546.0]);
        assert!(meter.notes().is_empty());
    }

    #[test]
    fn no_tree_and_no_readable_package_are_no_meter() {
        assert!(Powercap::open(&Tree::new().roots(), Duration::ZERO).is_none());
        let tree = Tree::new();
        tree.zone("intel-rapl:0", "psys", 0);
        assert!(Powercap::open(&tree.roots(), Duration::ZERO).is_none());
    }

    #[test]
    fn many_wraps_over_four_sockets_stay_exact() {
        let tree = Tree::new();
        for socket in 0..4u64 {
            tree.zone(
                &format!("intel-rapl:{socket}"),
                &format!("package-{socket}"),
                socket * (RANGE / 4),
            );
        }
        let mut meter = Powercap::open(&tree.roots(), Duration::ZERO).unwrap();
        let mut drawn = [0u64; 4];
        let mut read = Vec::new();
        for step in 1..=500u64 {
            for (socket, total) in drawn.iter_mut().enumerate() {
                *total += 5 * (200 + 37 * (step * (socket as u64 + 1) % 11)) * 1_000_000;
                let counter = (socket as u64 * (RANGE / 4) + *total) % RANGE;
                tree.set(&format!("intel-rapl:{socket}"), counter);
            }
            read = central(&mut meter, 5 * step); // Five seconds each.
        }
        for (total, joules) in drawn.iter().zip(read) {
            assert!(*total > 3 * RANGE);
            assert!((joules - *total as f64 / 1e6).abs() < 1e-3);
        }
    }
}
