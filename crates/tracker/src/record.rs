//! The one record of a run's energy. Terminal, `run.json`, card and report are all printed from it, so
//! they cannot disagree. It is made by the [`Ledger`](crate::window::Ledger), live or from a journal.
//! It holds figures and their provenance; how they are worded is a matter of [`crate::summary`] and
//! [`crate::card`].

use serde::{Deserialize, Serialize};

use crate::accounting::Pue;
use crate::comparison::Comparison;
use crate::embodied::Embodied;
use crate::intensity::CarbonIntensity;
use crate::meter::{Component, Method};
use crate::range::{Range, Span};
use crate::stage::Stage;
use crate::water::Water;

/// The version of the record's shape, raised when a field changes its meaning.
pub const RECORD_VERSION: u32 = 1;

/// Energy and emissions of a run, with where each number comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnergyRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// The run's name.
    pub name: String,
    /// The part of a project it belongs to, where that was stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// When the first session started, RFC 3339 in UTC.
    pub started: String,
    /// The last moment that was recorded, RFC 3339 in UTC.
    pub ended: String,
    /// Whether the last session stopped without saying so (killed, power cut): what follows its last
    /// line is missing from every figure.
    pub ended_early: bool,
    /// Number of sessions: 1, and one more for each time the run was resumed.
    pub sessions: u32,
    /// Seconds that were tracked, all sessions together.
    pub duration_seconds: f64,
    /// The machine, in words.
    pub hardware: Hardware,
    /// Energy by component.
    pub components: Vec<ComponentEnergy>,
    /// Sum of the components, kWh.
    pub energy_kwh: Range,
    /// The share of the central energy that was measured, 0 to 1.
    pub measured_share: f64,
    /// Energy and time of the named windows, in the order in which they were first entered.
    pub windows: Vec<WindowEnergy>,
    /// Readings that failed.
    pub gaps: u64,
    /// The country, where it was given.
    pub place: Option<Place>,
    /// Carbon intensity of the electricity.
    pub intensity: CarbonIntensity,
    /// Power usage effectiveness.
    pub pue: Pue,
    /// Operational emissions, gCO2e: energy × PUE × intensity.
    pub emissions_g: Span,
    /// What the energy and the emissions above consist of, in words.
    #[serde(default)]
    pub contains: Vec<String>,
    /// What the figures leave out.
    pub not_included: Vec<String>,
    /// What the machine drew before the run began, where that was measured.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Energy above the idle baseline, kWh. The headline stays gross.
    #[serde(default)]
    pub net_energy_kwh: Option<Range>,
    /// The run's share of making the hardware. Beside the headline, never in it.
    #[serde(default)]
    pub embodied: Option<Embodied>,
    /// Water, where the rates are known. Beside the headline, never in it.
    #[serde(default)]
    pub water: Option<Water>,
    /// The emissions in terms people know.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// What a reader should know of how the figures came about: warnings, repairs, oddities.
    pub notes: Vec<String>,
}

/// The machine, in words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hardware {
    /// The processor as it names itself, where it does.
    pub cpu: Option<String>,
    /// Hardware threads this run may use, and threads the system shows.
    pub cpu_threads: Option<(u32, u32)>,
    /// The GPUs that were measured.
    pub gpus: Vec<String>,
    /// Bytes of memory this run may use.
    pub ram_bytes: Option<u64>,
}

impl Hardware {
    /// One line for a card: GPUs first, then the processor.
    pub fn line(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut seen: Vec<(&str, usize)> = Vec::new();
        for gpu in &self.gpus {
            match seen.iter_mut().find(|(name, _)| name == gpu) {
                Some((_, count)) => *count += 1,
                None => seen.push((gpu, 1)),
            }
        }
        parts.extend(seen.iter().map(|(name, count)| format!("{count} x {name}")));
        let cpu = self.cpu.as_deref().unwrap_or("unknown processor");
        parts.push(match self.cpu_threads {
            Some((usable, all)) if usable < all => format!("{cpu} ({usable} of {all} threads)"),
            Some((_, 1)) => format!("{cpu} (1 thread)"),
            Some((_, all)) => format!("{cpu} ({all} threads)"),
            None => cpu.to_owned(),
        });
        if let Some(bytes) = self.ram_bytes {
            parts.push(format!("{:.0} GB RAM", bytes as f64 / 1e9));
        }
        parts.join(", ")
    }
}

/// Idle power, measured before a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// How long was measured.
    pub seconds: f64,
    /// All components together, W.
    pub watts: Range,
}

/// Energy of one component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentEnergy {
    /// Which kind of component.
    pub component: Component,
    /// The domain's name: `rapl:package-0`, `gpu:GPU-…`, `model:cpu`.
    pub domain: String,
    /// Name for people: `CPU package 0`, `GPU 0 (NVIDIA H200)`.
    pub label: String,
    /// Energy, kWh.
    pub energy_kwh: Range,
    /// How the figure was won.
    pub method: Method,
    /// Where the figure comes from, in words, with a year where constants are involved.
    pub source: String,
    /// Readings that failed.
    pub gaps: u64,
    /// Seconds whose energy could not be recovered, and is therefore missing.
    pub gap_seconds: f64,
}

/// Energy and time of one named window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowEnergy {
    /// Names from the outermost window inwards, joined by `/`: `train/eval`.
    pub path: String,
    /// How many times it was entered.
    pub count: u32,
    /// Seconds inside, inner windows included.
    pub seconds: f64,
    /// Energy inside, inner windows included, kWh.
    pub energy_kwh: Range,
}

/// The country of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// English name.
    pub name: String,
    /// ISO 3166-1 alpha-3.
    pub alpha3: String,
}
