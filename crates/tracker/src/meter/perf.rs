//! RAPL energy counters through perf events: `bus/event_source/devices/power`. The kernel adds the
//! hardware's steps up to 64 bits itself, so nothing wraps here, and it asks for a capability
//! (`CAP_PERFMON`) and not for the permission of a file. `energy-pkg` and `energy-ram` are counted, on
//! one processor of each package; `energy-cores`, `energy-gpu` and `energy-psys` lie inside the package
//! or are another view of it, and are not opened.
//!
//! The counter is behind [`EnergyCounter`], so that the arithmetic is tested without privilege.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::powercap::{PLAUSIBLE_DRAM_WATTS, PLAUSIBLE_PACKAGE_WATTS};
use super::{Component, Domain, EnergyMeter, Gap, Method, Reading, Roots};
use crate::range::Range;

/// How far a package counter is trusted, as through powercap.
const PACKAGE_ACCURACY: f64 = 0.05;

/// How far a dram counter is trusted, as through powercap.
const DRAM_ACCURACY: f64 = 0.20;

/// Why perf events give no energy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPerf {
    /// The kernel shows no `power` event source: another architecture, a virtual machine, or the
    /// `rapl` module is not loaded.
    #[error("the kernel shows no `power` event source")]
    NoSource,
    /// The source has no `energy-pkg` event, or describes it in a way not known here.
    #[error("the event source `power` has no readable `energy-pkg` event")]
    NoPackage,
    /// The kernel does not let this process open the event.
    #[error("perf events of energy may not be opened: {0}")]
    Refused(String),
    /// A package has several counters, one for each die. They may be copies of one, which powercap's
    /// meter finds out.
    #[error("the event source counts dies and not packages; powercap is read instead")]
    Dies,
    /// Another system than Linux, or roots that are not this machine's.
    #[error("perf events are read on the running Linux system only")]
    Elsewhere,
}

/// A 64-bit counter of energy in units of its own.
pub trait EnergyCounter: Send {
    /// The count since an arbitrary moment.
    ///
    /// # Errors
    /// In words.
    fn count(&self) -> Result<u64, String>;
}

/// One event as sysfs describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EventDescription {
    /// Number of the event source.
    pub source_type: u32,
    /// The event's number within it.
    pub config: u64,
    /// Joules for each count.
    pub joules: f64,
}

/// Reads an event's description.
///
/// # Errors
/// The source or the event is not there, or is not in joules.
pub fn describe(roots: &Roots, event: &str) -> Result<EventDescription, NoPerf> {
    let folder = roots.sysfs.join("bus/event_source/devices/power");
    let text = |file: &str| fs::read_to_string(folder.join(file));
    let source_type = text("type")
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .ok_or(NoPerf::NoSource)?;
    let config = text(&format!("events/{event}"))
        .ok()
        .and_then(|t| parse_event(&t))
        .ok_or(NoPerf::NoPackage)?;
    let unit = text(&format!("events/{event}.unit")).unwrap_or_default();
    let joules = text(&format!("events/{event}.scale"))
        .ok()
        .and_then(|t| t.trim().parse::<f64>().ok())
        .filter(|scale| *scale > 0.0 && unit.trim() == "Joules")
        .ok_or(NoPerf::NoPackage)?;
    Ok(EventDescription {
        source_type,
        config,
        joules,
    })
}

/// `event=0x02` as 2.
fn parse_event(text: &str) -> Option<u64> {
    let number = text.trim().strip_prefix("event=")?;
    match number.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => number.parse().ok(),
    }
}

/// The processors on which the source is opened, one of each package: `cpumask`, such as `0,64`.
pub fn processors(roots: &Roots) -> Vec<u32> {
    let file = roots.sysfs.join("bus/event_source/devices/power/cpumask");
    fs::read_to_string(file)
        .unwrap_or_default()
        .trim()
        .split(',')
        .filter_map(|part| part.split('-').next()?.trim().parse().ok())
        .collect()
}

/// The package of a processor, for the domain's name.
fn package_of(sysfs: &Path, cpu: u32) -> u32 {
    let file = sysfs.join(format!(
        "devices/system/cpu/cpu{cpu}/topology/physical_package_id"
    ));
    fs::read_to_string(file)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(cpu)
}

fn has_twice(numbers: &[u32]) -> bool {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

/// One counter while it is watched.
struct Watched {
    counter: Box<dyn EnergyCounter>,
    unit_joules: f64,
    ceiling_watts: f64,
    accuracy: f64,
    last: Option<(Duration, u64)>,
    counted: u64,
}

/// The meter over all packages and their memory.
pub struct PerfRapl {
    domains: Vec<Domain>,
    watched: Vec<Watched>,
}

impl PerfRapl {
    /// Opens the counters of this machine.
    ///
    /// # Errors
    /// There are none, or the kernel refuses; the caller falls back to powercap.
    pub fn open(roots: &Roots, now: Duration) -> Result<Self, NoPerf> {
        if !roots.are_the_systems() {
            return Err(NoPerf::Elsewhere);
        }
        let package = describe(roots, "energy-pkg")?;
        let memory = describe(roots, "energy-ram").ok();
        let cpus = processors(roots);
        if cpus.is_empty() {
            return Err(NoPerf::NoPackage);
        }
        let packages: Vec<u32> = cpus
            .iter()
            .map(|cpu| package_of(&roots.sysfs, *cpu))
            .collect();
        if has_twice(&packages) {
            return Err(NoPerf::Dies);
        }
        let mut counters = Vec::new();
        for (cpu, number) in cpus.into_iter().zip(packages) {
            counters.push((
                number,
                Component::Cpu,
                package.joules,
                system::open(&package, cpu)?,
            ));
            if let Some(memory) = memory {
                counters.push((
                    number,
                    Component::Ram,
                    memory.joules,
                    system::open(&memory, cpu)?,
                ));
            }
        }
        Ok(Self::with(counters, now))
    }

    /// A meter over counters: package number, kind, joules for each count, and the counter.
    pub fn with(
        counters: Vec<(u32, Component, f64, Box<dyn EnergyCounter>)>,
        now: Duration,
    ) -> Self {
        let mut domains = Vec::new();
        let mut watched = Vec::new();
        for (package, component, unit_joules, counter) in counters {
            let (id, label, accuracy, ceiling_watts) = match component {
                Component::Ram => (
                    format!("rapl:package-{package}/dram"),
                    format!("RAM of package {package}"),
                    DRAM_ACCURACY,
                    PLAUSIBLE_DRAM_WATTS,
                ),
                _ => (
                    format!("rapl:package-{package}"),
                    format!("CPU package {package}"),
                    PACKAGE_ACCURACY,
                    PLAUSIBLE_PACKAGE_WATTS,
                ),
            };
            domains.push(Domain {
                id,
                label,
                component,
                method: Method::Measured,
                source: "RAPL energy counter, through perf events".to_owned(),
            });
            let last = counter.count().ok().map(|count| (now, count));
            watched.push(Watched {
                counter,
                unit_joules,
                ceiling_watts,
                accuracy,
                last,
                counted: 0,
            });
        }
        Self { domains, watched }
    }

    /// Whether memory is among the counters.
    pub fn measures_memory(&self) -> bool {
        self.domains.iter().any(|d| d.component == Component::Ram)
    }
}

impl Watched {
    /// Counts the step since the last reading. An error carries the lost seconds and why.
    fn step(&mut self, now: Duration) -> Result<(), (f64, String)> {
        let current = self.counter.count().map_err(|reason| (0.0, reason))?;
        let Some((then, previous)) = self.last.replace((now, current)) else {
            return Err((0.0, "the first reading came late".to_owned()));
        };
        let elapsed = now.saturating_sub(then).as_secs_f64();
        let Some(step) = current.checked_sub(previous) else {
            return Err((elapsed, "the counter went back".to_owned()));
        };
        // A little time is granted: the counter moves in steps of a millisecond.
        if step as f64 * self.unit_joules > self.ceiling_watts * (elapsed + 0.002) {
            return Err((
                elapsed,
                "the counter moved by more than the hardware can draw".to_owned(),
            ));
        }
        self.counted += step;
        Ok(())
    }
}

impl EnergyMeter for PerfRapl {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let mut gaps = Vec::new();
        for (index, watched) in self.watched.iter_mut().enumerate() {
            if let Err((lost_seconds, reason)) = watched.step(now) {
                gaps.push(Gap {
                    domain: Some(index),
                    lost_seconds,
                    reason,
                });
            }
        }
        Ok(Reading {
            joules: self
                .watched
                .iter()
                .map(|w| Range::around(w.counted as f64 * w.unit_joules, w.accuracy))
                .collect(),
            gaps,
        })
    }
}

/// The system call.
#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::io::{Error, Read};
    use std::os::fd::FromRawFd;

    use super::{EnergyCounter, EventDescription, NoPerf};

    /// `PERF_FLAG_FD_CLOEXEC` of linux/perf_event.h: a child does not inherit the event.
    const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

    /// `struct perf_event_attr` up to its first published size, `PERF_ATTR_SIZE_VER0`, 64 bytes. The
    /// kernel takes the rest for zeros.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        breakpoint_type: u32,
        config1: u64,
    }

    /// An open event. Reading it gives eight bytes.
    struct Event(File);

    impl EnergyCounter for Event {
        fn count(&self) -> Result<u64, String> {
            let mut bytes = [0u8; 8];
            (&self.0)
                .read_exact(&mut bytes)
                .map_err(|error| error.to_string())?;
            Ok(u64::from_ne_bytes(bytes))
        }
    }

    /// Opens an event for all processes on one processor.
    pub(super) fn open(
        event: &EventDescription,
        cpu: u32,
    ) -> Result<Box<dyn EnergyCounter>, NoPerf> {
        let attributes = Attributes {
            kind: event.source_type,
            size: u32::try_from(size_of::<Attributes>()).unwrap_or(64),
            config: event.config,
            ..Attributes::default()
        };
        let cpu = i32::try_from(cpu).map_err(|_| NoPerf::NoPackage)?;
        let (all_processes, no_group) = (-1i32, -1i32);
        #[expect(
            unsafe_code,
            reason = "perf_event_open has no wrapper in the standard library"
        )]
        // SAFETY: the kernel reads `size` bytes of `attributes`, which lives across the call and has
        // that size; the other arguments are plain numbers, in the order of perf_event_open(2).
        let descriptor = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                all_processes,
                cpu,
                no_group,
                CLOSE_ON_EXEC,
            )
        };
        let descriptor = i32::try_from(descriptor).unwrap_or(-1);
        if descriptor < 0 {
            return Err(NoPerf::Refused(Error::last_os_error().to_string()));
        }
        #[expect(unsafe_code, reason = "a descriptor from a system call becomes a file")]
        // SAFETY: the kernel has just made this descriptor and nothing else owns it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Ok(Box::new(Event(file)))
    }
}

/// Other systems have no such call.
#[cfg(not(target_os = "linux"))]
mod system {
    use super::{EnergyCounter, EventDescription, NoPerf};

    pub(super) fn open(_: &EventDescription, _: u32) -> Result<Box<dyn EnergyCounter>, NoPerf> {
        Err(NoPerf::Elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// 2^-32 J, as the kernel states it.
    const SCALE: f64 = 2.328_306_436_538_696_3e-10;

    #[derive(Clone)]
    struct Held(Arc<Mutex<Option<u64>>>);

    impl EnergyCounter for Held {
        fn count(&self) -> Result<u64, String> {
            self.0.lock().unwrap().ok_or_else(|| "gone".to_owned())
        }
    }

    fn counts(joules: f64) -> u64 {
        (joules / SCALE).round() as u64
    }

    #[test]
    fn sysfs_describes_the_events() {
        let folder = tempfile::tempdir().unwrap();
        let power = folder.path().join("bus/event_source/devices/power");
        fs::create_dir_all(power.join("events")).unwrap();
        for (file, text) in [
            ("type", "21\n"),
            ("cpumask", "0,64\n"),
            ("events/energy-pkg", "event=0x02\n"),
            ("events/energy-pkg.scale", "2.3283064365386962890625e-10\n"),
            ("events/energy-pkg.unit", "Joules\n"),
            ("events/energy-ram", "event=0x03\n"),
            ("events/energy-ram.scale", "2.3283064365386962890625e-10\n"),
            ("events/energy-ram.unit", "Watts\n"),
        ] {
            fs::write(power.join(file), text).unwrap();
        }
        let roots = Roots {
            sysfs: folder.path().to_owned(),
            ..Roots::default()
        };
        let event = describe(&roots, "energy-pkg").unwrap();
        assert_eq!(
            (event.source_type, event.config, event.joules),
            (21, 2, SCALE)
        );
        assert_eq!(describe(&roots, "energy-ram"), Err(NoPerf::NoPackage));
        assert_eq!(processors(&roots), [0, 64]);
        let topology = folder.path().join("devices/system/cpu/cpu64/topology");
        fs::create_dir_all(&topology).unwrap();
        fs::write(topology.join("physical_package_id"), "0\n").unwrap();
        let packages = [0, 64].map(|cpu| package_of(&roots.sysfs, cpu));
        assert!(has_twice(&packages), "two dies of one package");
        assert!(!has_twice(&[0, 1]));
        // A copy of a tree is not this machine, and no event is opened for it.
        assert_eq!(
            PerfRapl::open(&roots, Duration::ZERO).err(),
            Some(NoPerf::Elsewhere)
        );
        fs::remove_file(power.join("type")).unwrap();
        assert_eq!(describe(&roots, "energy-pkg"), Err(NoPerf::NoSource));
    }

    #[test]
    fn counts_become_joules_and_a_failed_read_is_covered_by_the_next() {
        let held = Held(Arc::new(Mutex::new(Some(counts(1e6)))));
        let memory = Held(Arc::new(Mutex::new(Some(0))));
        let mut meter = PerfRapl::with(
            vec![
                (0, Component::Cpu, SCALE, Box::new(held.clone())),
                (0, Component::Ram, SCALE, Box::new(memory.clone())),
            ],
            Duration::ZERO,
        );
        assert!(meter.measures_memory());
        *held.0.lock().unwrap() = Some(counts(1e6 + 100.0));
        *memory.0.lock().unwrap() = Some(counts(5.0));
        let joules = meter.read(Duration::from_secs(1)).unwrap().joules;
        assert!((joules[0].central - 100.0).abs() < 1e-6);
        assert!((joules[1].high - 6.0).abs() < 1e-6);

        *held.0.lock().unwrap() = None;
        assert_eq!(meter.read(Duration::from_secs(2)).unwrap().gaps.len(), 1);
        *held.0.lock().unwrap() = Some(counts(1e6 + 300.0));
        let joules = meter.read(Duration::from_secs(3)).unwrap().joules;
        assert!((joules[0].central - 300.0).abs() < 1e-6);
    }

    #[test]
    fn a_counter_that_goes_back_or_leaps_is_a_gap() {
        let held = Held(Arc::new(Mutex::new(Some(counts(1000.0)))));
        let mut meter = PerfRapl::with(
            vec![(0, Component::Cpu, SCALE, Box::new(held.clone()))],
            Duration::ZERO,
        );
        for (second, joules) in [(1, 10.0), (2, 1e6)] {
            *held.0.lock().unwrap() = Some(counts(joules));
            let reading = meter.read(Duration::from_secs(second)).unwrap();
            assert_eq!(reading.gaps[0].lost_seconds, 1.0);
            assert_eq!(reading.joules[0].central, 0.0);
        }
    }
}
