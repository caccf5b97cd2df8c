//! What can be read. A meter gives joules since it was made, for each of its domains; a reading that
//! fails is a [`Gap`] and never a zero. Meters know hardware and nothing of runs, windows or grams.
//!
//! - [`nvml`]: NVIDIA GPUs, by their energy counter with power integrated beside it
//! - [`powercap`]: CPU packages and memory, by RAPL counters in sysfs
//! - [`model`]: CPU and memory where nothing can be read, labelled as a model
//!
//! The places a meter reads from are arguments ([`Roots`]), so that a container can point them at the
//! host's and a test at a folder of its own; the time is an argument of every reading.

pub mod model;
pub mod nvml;
pub mod powercap;
pub mod processors;
pub mod system;

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
}

impl Component {
    /// `GPU`, `CPU` or `RAM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "GPU",
            Self::Cpu => "CPU",
            Self::Ram => "RAM",
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
