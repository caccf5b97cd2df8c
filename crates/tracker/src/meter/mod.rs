//! What can be read. A meter gives joules since it was made, for each of its domains; a reading that
//! fails is a [`Gap`] and never a zero. Meters know hardware and nothing of runs, windows or grams.
//!
//! - [`nvml`]: NVIDIA GPUs, by their energy counter with power integrated beside it
//! - [`hwmon`]: AMD GPUs, by the kernel's own sensors
//! - [`apple`]: Apple silicon, by what macOS counts of its parts
//! - [`perf`]: CPU packages and memory, by RAPL counters through perf events
//! - [`powercap`]: the same counters in sysfs
//! - [`model`]: CPU and memory where nothing can be read, labelled as a model
//!
//! The places a meter reads from are arguments ([`Roots`]), so that a container can point them at the
//! host's and a test at a folder of its own; the time is an argument of every reading.

pub mod apple;
pub mod hwmon;
pub mod model;
pub mod nvml;
pub mod perf;
pub mod powercap;
pub mod processors;
pub mod system;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::range::Range;

/// Where meters look. In a container these may point at the host's trees, as in Prometheus'
/// node_exporter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Root of sysfs, `/sys`.
    pub sysfs: PathBuf,
    /// Root of procfs, `/proc`.
    pub procfs: PathBuf,
    /// The NVML library. Without one, `libnvidia-ml.so.1` and then `libnvidia-ml.so` are tried by the
    /// system's own search.
    pub nvml: Option<PathBuf>,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sysfs: PathBuf::from("/sys"),
            procfs: PathBuf::from("/proc"),
            nvml: None,
        }
    }
}

impl Roots {
    /// The defaults, each replaced by `SPARSAM_SYSFS`, `SPARSAM_PROCFS` and `SPARSAM_NVML` where those
    /// are set and not empty.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// As [`Roots::from_env`], from any source of variables.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name| {
            lookup(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let usual = Self::default();
        Self {
            sysfs: path("SPARSAM_SYSFS").unwrap_or(usual.sysfs),
            procfs: path("SPARSAM_PROCFS").unwrap_or(usual.procfs),
            nvml: path("SPARSAM_NVML"),
        }
    }

    /// Whether these are the running system's own trees, so that what the kernel tells without a file
    /// (perf events) is about the same machine.
    pub fn are_the_systems(&self) -> bool {
        let usual = Self::default();
        self.sysfs == usual.sysfs && self.procfs == usual.procfs
    }
}

/// Kinds of components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// Graphics processor with its memory and board.
    Gpu,
    /// Processor package.
    Cpu,
    /// Main memory.
    Ram,
    /// The rest of the machine: mainboard, disks, network, fans.
    Node,
}

impl Component {
    /// `GPU`, `CPU` or `RAM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "GPU",
            Self::Cpu => "CPU",
            Self::Ram => "RAM",
            Self::Node => "node",
        }
    }
}

/// How a number was won.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Read from a sensor or counter.
    Measured,
    /// Computed from other observations, such as the processor's load.
    Modelled,
    /// A constant that somebody stated.
    Assumed,
}

impl Method {
    /// `measured`, `modelled` or `assumed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Modelled => "modelled",
            Self::Assumed => "assumed",
        }
    }
}

/// One thing whose energy is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Stable name: `rapl:package-0`, `gpu:GPU-…`, `model:cpu`.
    pub id: String,
    /// Name for people.
    pub label: String,
    /// Which kind of component.
    pub component: Component,
    /// How its figures are won.
    pub method: Method,
    /// Where the figures come from, in words.
    pub source: String,
}

/// Joules since the meter was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Cumulative joules, in the order of [`EnergyMeter::domains`]; no value ever falls. A domain that
    /// could not be read keeps its last value and appears in `gaps`.
    pub joules: Vec<Range>,
    /// Domains that could not be read this time.
    pub gaps: Vec<Gap>,
}

/// A reading that failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Gap {
    /// Index of the domain, or none where the whole meter failed.
    pub domain: Option<usize>,
    /// Seconds whose energy can no longer be recovered. Zero where a counter goes on counting and a
    /// later reading will cover the time.
    pub lost_seconds: f64,
    /// Why.
    pub reason: String,
}

/// A source of cumulative energy.
pub trait EnergyMeter: Send {
    /// What is counted. The list does not change during the life of a meter.
    fn domains(&self) -> &[Domain];

    /// Joules since the meter was made.
    ///
    /// `now` is a monotonic time with an arbitrary origin, the same for all calls.
    ///
    /// # Errors
    /// Nothing could be read. The caller counts the gap and asks again later.
    fn read(&mut self, now: Duration) -> Result<Reading, Gap>;

    /// What a reader of the figures should know, such as counters that disagree. May grow.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn variables_point_the_meters_elsewhere_and_empty_ones_do_not() {
        let roots = Roots::from_lookup(|name| match name {
            "SPARSAM_SYSFS" => Some("/host/sys".into()),
            "SPARSAM_PROCFS" => Some("".into()),
            _ => None,
        });
        assert_eq!(roots.sysfs, PathBuf::from("/host/sys"));
        assert_eq!(
            (roots.procfs.as_path(), roots.nvml.as_ref()),
            (Path::new("/proc"), None)
        );
        assert!(!roots.are_the_systems());
        assert!(Roots::default().are_the_systems());
    }
}
