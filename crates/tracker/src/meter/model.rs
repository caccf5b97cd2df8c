//! Models of power, for machines that show no counter: a virtual machine, a container, a system that
//! keeps its counters to root. Every figure says that it is modelled, what from, and between which
//! bounds; a figure the user states takes the model's place.
//!
//! The processor: `share × rated × (idle + (full - idle) × (2u - u^1.4))`. The curve over the load `u`
//! is that of Fan, Weber and Barroso 2007, "Power provisioning for a warehouse-sized computer" (ISCA,
//! section 3), exponent 1.4 by their calibration. `rated` is the thermal design power. Idle and full
//! power as parts of it are [`IDLE`] and [`FULL`]; the low bound takes a straight line for the curve, the high
//! one a line of twice the slope, as all cores are busy when one thread of each is.
//! `share` is the part of the machine this run may use.
//!
//! Memory: watts per gigabyte this run may use, [`RAM_WATTS_PER_GB`].

use std::time::Duration;

use super::system::{self, CpuAllowance, CpuTime, Processor};
use super::{Component, Domain, EnergyMeter, Gap, Method, Reading, Roots, processors};
use crate::range::Range;

/// Idle power of a package as part of its rated power. Low: nothing, as a package in its deepest sleep
/// draws a watt or two. Central and high are our assumption: 12 %, and 30 % for servers with large
/// input/output dies; codecarbon 3.3 takes 10 %.
pub const IDLE: Range = Range::new(0.0, 0.12, 0.30);

/// Power of a package under full load as part of its rated power. Low: 50 %, which carbontracker and
/// codecarbon's constant mode take for work in general. Central: 85 %, our assumption, since the rating
/// is a bound that ordinary work stays below. High: 140 %, since turbo modes exceed the rating: AMD's
/// package power limit is 1.35 times it on desktop sockets, Intel's second limit 1.25 times by default,
/// and the counter adds its own 5 %.
pub const FULL: Range = Range::new(0.50, 0.85, 1.40);

/// Exponent of the load curve, Fan et al. 2007.
const CURVE_EXPONENT: f64 = 1.4;

/// Memory power, W per GB (10^9 bytes). Central: Green Algorithms (Lannelongue et al. 2021), 0.3725.
/// Bounds: 0.19 idle and 0.54 active, the HotCarbon figures of boaviztapi's issue 298.
pub const RAM_WATTS_PER_GB: Range = Range::new(0.19, 0.3725, 0.54);

/// Above this much memory modules are larger and not more numerous, GB.
const RAM_DENSE_ABOVE_GB: f64 = 128.0;

/// Memory power above [`RAM_DENSE_ABOVE_GB`], W per GB. Central: 5 W for a module of 64 GB, as
/// codecarbon 3.3 takes it for x86 servers; low is half of that; high is as for small memories.
const RAM_WATTS_PER_GB_DENSE: Range = Range::new(0.04, 0.08, 0.54);

/// A time without readings that is bridged with the load between its ends, which the kernel's counters
/// give exactly. Past it the machine is taken to have slept.
const BRIDGED: Duration = Duration::from_secs(600);

/// The processor's rated power and where it comes from.
#[derive(Debug, Clone, PartialEq)]
struct Rating {
    watts: Range,
    method: Method,
    source: String,
}

fn rating(processor: &Processor, cpu_watts: Option<f64>) -> Rating {
    let threads = f64::from(processor.threads.max(1));
    let curve = "load from /proc/stat, load curve of Fan et al. 2007";
    if let Some(watts) = cpu_watts {
        return Rating {
            watts: Range::exactly(watts),
            method: Method::Modelled,
            source: format!("rated power {watts} W as stated by the user, {curve}"),
        };
    }
    if let Some(known) = processor.name.as_deref().and_then(processors::find) {
        let (watts, part) = if processor.virtual_machine {
            // The host is larger than what is shown: its power is shared out by threads.
            let part = threads / f64::from(known.threads);
            (
                known.tdp_watts * part,
                format!(", {threads:.0} of its {} threads", known.threads),
            )
        } else {
            let sockets = f64::from(processor.sockets);
            let part = if processor.sockets > 1 {
                format!(" x {sockets:.0} sockets")
            } else {
                String::new()
            };
            (known.tdp_watts * sockets, part)
        };
        return Rating {
            watts: Range::exactly(watts),
            method: Method::Modelled,
            source: format!(
                "rated power of {} ({} W, {}){part}, {curve}",
                known.name, known.tdp_watts, known.year
            ),
        };
    }
    let per_thread = processors::watts_per_thread(processor.name.as_deref());
    Rating {
        watts: per_thread.scale(threads),
        method: Method::Modelled,
        source: format!(
            "processor not in the table, so {:.1} W a thread ({:.1} to {:.1}, as most processors of the \
             table), {curve}",
            per_thread.central, per_thread.low, per_thread.high
        ),
    }
}

/// Watts of the part of a machine that a run may use.
///
/// `rated` is the whole machine's rated power, `threads` its hardware threads, `allowed` how many of
/// them the run may use, `machine_load` and `own_load` the busy threads of the machine and of the run's
/// part. Idle power is shared out by threads, power above idle by busy time.
pub fn cpu_watts(
    rated: Range,
    threads: f64,
    allowed: f64,
    machine_load: f64,
    own_load: f64,
) -> Range {
    let u = (machine_load / threads).clamp(0.0, 1.0);
    let curve = 2.0 * u - u.powf(CURVE_EXPONENT);
    let of_idle = (allowed / threads).clamp(0.0, 1.0);
    let of_busy = if machine_load > 0.0 {
        (own_load / machine_load).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let watts = |rated: f64, idle: f64, full: f64, curve: f64| {
        rated * (of_idle * idle + of_busy * (full - idle) * curve)
    };
    // The straight line, as Green Algorithms takes it, is the lowest of the published curves. High: a core of two
    // threads works as soon as one of them does, so that half the threads may keep all cores busy.
    Range::new(
        watts(rated.low, IDLE.low, FULL.low, u),
        watts(rated.central, IDLE.central, FULL.central, curve),
        watts(rated.high, IDLE.high, FULL.high, (2.0 * u).min(1.0)),
    )
}

/// Watts of a memory of that many bytes.
pub fn ram_watts(bytes: u64) -> Range {
    let gigabytes = bytes as f64 / 1e9;
    let dense = (gigabytes - RAM_DENSE_ABOVE_GB).max(0.0);
    RAM_WATTS_PER_GB.scale(gigabytes - dense) + RAM_WATTS_PER_GB_DENSE.scale(dense)
}

/// The processor's model as a meter.
#[derive(Debug)]
pub struct CpuModel {
    domains: Vec<Domain>,
    roots: Roots,
    allowance: CpuAllowance,
    rated: Range,
    last: Option<Observed>,
    since: Duration,
    joules: Range,
}

/// What the kernel's counters said at one moment.
#[derive(Debug, Clone, Copy)]
struct Observed {
    at: Duration,
    time: CpuTime,
    /// Processor-seconds of the control group, read where a quota is set.
    group: Option<f64>,
}

impl CpuModel {
    /// A model of this machine's processor. `cpu_watts` is its rated power where the user states it.
    pub fn new(roots: &Roots, cpu_watts: Option<f64>, now: Duration) -> Self {
        let processor = system::processor(roots).unwrap_or_default();
        let rating = rating(&processor, cpu_watts);
        let mut model = Self {
            domains: vec![Domain {
                id: "model:cpu".to_owned(),
                label: "CPU".to_owned(),
                component: Component::Cpu,
                method: rating.method,
                source: rating.source,
            }],
            roots: roots.clone(),
            allowance: system::cpu_allowance(roots),
            rated: rating.watts,
            last: None,
            since: now,
            joules: Range::ZERO,
        };
        model.last = model.observe(now);
        model
    }

    fn observe(&self, at: Duration) -> Option<Observed> {
        Some(Observed {
            at,
            time: system::cpu_time(&self.roots, &self.allowance)?,
            group: self
                .allowance
                .quota
                .and_then(|_| system::cgroup_cpu_seconds(&self.roots)),
        })
    }

    /// Joules between two observations.
    fn between(&self, earlier: &Observed, later: &Observed) -> Range {
        let seconds = later.at.saturating_sub(earlier.at).as_secs_f64();
        let threads = f64::from(later.time.threads);
        let affinity = self
            .allowance
            .affinity
            .as_ref()
            .map_or(threads, |cpus| (cpus.len() as f64).min(threads));
        let allowed = self
            .allowance
            .quota
            .map_or(affinity, |quota| quota.min(affinity));
        let busy = |later: f64, earlier: f64| ((later - earlier) / seconds).max(0.0);
        let machine = busy(later.time.machine_busy, earlier.time.machine_busy);
        let on_allowed = busy(later.time.allowed_busy, earlier.time.allowed_busy);
        // Under a quota the allowed processors also serve others; the group's own time is known then.
        let own = match (later.group, earlier.group) {
            (Some(later), Some(earlier)) => busy(later, earlier),
            _ => on_allowed,
        };
        let watts = cpu_watts(
            self.rated,
            threads,
            allowed,
            machine.max(own),
            own.min(allowed),
        );
        watts.scale(seconds)
    }
}

impl EnergyMeter for CpuModel {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let gap = |lost_seconds, reason: &str| Gap {
            domain: Some(0),
            lost_seconds,
            reason: reason.to_owned(),
        };
        let Some(observed) = self.observe(now) else {
            return Err(gap(
                0.0,
                "the processor's load (/proc/stat) could not be read",
            ));
        };
        let Some(last) = self.last.replace(observed) else {
            return Err(gap(
                now.saturating_sub(self.since).as_secs_f64(),
                "the first reading of the processor's load came late",
            ));
        };
        let elapsed = now.saturating_sub(last.at);
        if elapsed > BRIDGED {
            return Err(gap(
                elapsed.as_secs_f64(),
                "too long since the last reading",
            ));
        }
        if !elapsed.is_zero() {
            self.joules += self.between(&last, &observed);
        }
        Ok(Reading {
            joules: vec![self.joules],
            gaps: Vec::new(),
        })
    }
}

/// A constant power as a meter: memory, or a figure the user states.
#[derive(Debug)]
pub struct Constant {
    domains: Vec<Domain>,
    watts: Range,
    since: Duration,
}

impl Constant {
    /// Memory: `ram_watts` where the user states it, else by what this run may use. Nothing where the
    /// size of the memory is not known either.
    pub fn memory(roots: &Roots, ram_watts: Option<f64>, now: Duration) -> Option<Self> {
        let (watts, method, source) = if let Some(watts) = ram_watts {
            (
                Range::exactly(watts),
                Method::Assumed,
                format!("constant {watts} W as stated by the user"),
            )
        } else {
            let bytes = system::usable_memory(roots)?;
            (
                self::ram_watts(bytes),
                Method::Modelled,
                format!(
                    "{} W/GB x {:.1} GB this run may use (Green Algorithms 2021, bounds of HotCarbon)",
                    RAM_WATTS_PER_GB.central,
                    bytes as f64 / 1e9
                ),
            )
        };
        Some(Self {
            domains: vec![Domain {
                id: "model:ram".to_owned(),
                label: "RAM".to_owned(),
                component: Component::Ram,
                method,
                source,
            }],
            watts,
            since: now,
        })
    }
}

impl Constant {
    /// The rest of the machine, at a constant power the user states.
    pub fn node(watts: f64, now: Duration) -> Self {
        Self {
            domains: vec![Domain {
                id: "stated:node".to_owned(),
                label: "rest of the machine".to_owned(),
                component: Component::Node,
                method: Method::Assumed,
                source: format!("constant {watts} W as stated by the user"),
            }],
            watts: Range::exactly(watts),
            since: now,
        }
    }
}

impl EnergyMeter for Constant {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let seconds = now.saturating_sub(self.since).as_secs_f64();
        Ok(Reading {
            joules: vec![self.watts.scale(seconds)],
            gaps: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
    }

    #[test]
    fn a_whole_machine_goes_from_idle_to_full() {
        let rated = Range::exactly(100.0);
        assert!(close(cpu_watts(rated, 8.0, 8.0, 0.0, 0.0).central, 12.0));
        assert!(close(cpu_watts(rated, 8.0, 8.0, 8.0, 8.0).central, 85.0));
        let half = cpu_watts(rated, 8.0, 8.0, 4.0, 4.0);
        assert!(
            half.central > 48.5 && half.central < 85.0,
            "concave: {half:?}"
        );
        assert!(half.low < half.central && half.central < half.high);
    }

    #[test]
    fn a_part_of_a_machine_pays_its_part() {
        let rated = Range::exactly(100.0);
        let part = cpu_watts(rated, 64.0, 2.0, 64.0, 2.0);
        assert!(close(part.central, 85.0 * 2.0 / 64.0), "{part:?}");
        let idle_part = cpu_watts(rated, 64.0, 2.0, 62.0, 0.0);
        assert!(close(idle_part.central, 12.0 * 2.0 / 64.0), "{idle_part:?}");
    }

    #[test]
    fn memory_is_bounded_on_large_hosts() {
        let small = ram_watts(16_000_000_000);
        assert!(close(small.central, 5.96), "{small:?}");
        let large = ram_watts(1_000_000_000_000);
        assert!(large.central < 130.0 && large.low < large.central && large.central < large.high);
    }

    #[test]
    fn ratings_know_sockets_virtual_machines_and_the_users_word() {
        let mut processor = Processor {
            name: Some("AMD EPYC 7763 64-Core Processor".to_owned()),
            threads: 256,
            sockets: 2,
            virtual_machine: false,
        };
        assert!(close(rating(&processor, None).watts.central, 560.0));
        processor.virtual_machine = true;
        processor.threads = 4;
        assert!(close(rating(&processor, None).watts.central, 8.75));
        assert!(
            rating(&processor, None)
                .source
                .contains("4 of its 128 threads")
        );
        assert!(close(rating(&processor, Some(65.0)).watts.central, 65.0));
        processor.name = None;
        let unknown = rating(&processor, None);
        assert!(unknown.watts.low < unknown.watts.high);
        assert!(unknown.source.contains("not in the table"));
    }

    fn tree(stat: &str) -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().unwrap();
        let procfs = folder.path().join("proc");
        fs::create_dir_all(&procfs).unwrap();
        fs::write(procfs.join("stat"), stat).unwrap();
        let roots = Roots {
            sysfs: folder.path().join("sys"),
            procfs,
            nvml: None,
        };
        (folder, roots)
    }

    #[test]
    fn the_meter_follows_the_load_and_a_gap_is_no_zero() {
        let idle = "cpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\n";
        let (_folder, roots) = tree(idle);
        let mut meter = CpuModel::new(&roots, Some(100.0), Duration::ZERO);
        fs::write(
            roots.procfs.join("stat"),
            "cpu0 200 0 0 0 0 0 0 0\ncpu1 200 0 0 0 0 0 0 0\n",
        )
        .unwrap();
        let joules = meter.read(Duration::from_secs(2)).unwrap().joules[0];
        assert!(close(joules.central, 170.0), "{joules:?}");

        fs::remove_file(roots.procfs.join("stat")).unwrap();
        assert!(meter.read(Duration::from_secs(3)).is_err());
        // What was missed is covered by the next reading: the kernel's counters went on.
        fs::write(
            roots.procfs.join("stat"),
            "cpu0 400 0 0 0 0 0 0 0\ncpu1 400 0 0 0 0 0 0 0\n",
        )
        .unwrap();
        let joules = meter.read(Duration::from_secs(4)).unwrap().joules[0];
        assert!(close(joules.central, 340.0), "{joules:?}");
    }

    #[test]
    fn no_proc_at_all_gives_gaps_and_never_panics() {
        let (_folder, roots) = tree("");
        let mut meter = CpuModel::new(&roots, None, Duration::ZERO);
        assert!(meter.read(Duration::from_secs(1)).is_err());
        assert!(Constant::memory(&roots, None, Duration::ZERO).is_none());
        let mut stated = Constant::memory(&roots, Some(3.0), Duration::ZERO).unwrap();
        assert!(close(
            stated.read(Duration::from_secs(10)).unwrap().joules[0].central,
            30.0
        ));
    }
}
