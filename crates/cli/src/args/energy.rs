//! What is typed for the commands about energy: `track`, `estimate`, `doctor`, `card`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use sparsam_tracker::{Roots, Stage, StartError, StatedIntensity};

use crate::error::Failure;
use crate::grid;

/// Where the electricity comes from.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// The country, as an ISO 3166 code or an English name: DEU, FR, Norway
    #[arg(long)]
    pub(crate) country: Option<String>,

    /// Emissions of the electricity in gCO2e per kWh, in place of the country's average
    #[arg(long, value_name = "G_PER_KWH")]
    pub(crate) intensity: Option<f64>,

    /// Where that figure comes from, with its year
    #[arg(long, value_name = "TEXT", requires = "intensity")]
    pub(crate) intensity_source: Option<String>,
}

impl PlaceArgs {
    /// The country that was typed, else that of `SPARSAM_COUNTRY`.
    pub(crate) fn country_or_environment(&self) -> Option<String> {
        self.typed_country().or_else(grid::country_of_environment)
    }

    /// The country that was typed.
    pub(crate) fn typed_country(&self) -> Option<String> {
        let typed = self.country.clone();
        typed.filter(|country| !country.trim().is_empty())
    }

    /// The own figure.
    ///
    /// # Errors
    /// A figure without a source, as it would be printed on a card.
    pub(crate) fn stated(&self) -> Result<Option<StatedIntensity>, Failure> {
        let Some(g_per_kwh) = self.intensity else {
            return Ok(None);
        };
        let source = self.intensity_source.clone().ok_or_else(|| {
            Failure::usage("`--intensity` is a figure without a source").hint(
                "add where it comes from, as `--intensity-source \"contract with the utility, 2026\"`",
            )
        })?;
        Ok(Some(StatedIntensity { g_per_kwh, source }))
    }
}

/// A figure out of its range, with the name of the flag it came by.
pub(crate) fn out_of_range(option: &str, given: f64, wanted: &str) -> Failure {
    let flag = match option {
        "intensity_g_per_kwh" => "intensity".to_owned(),
        "water_site_l_per_kwh" => "water-site".to_owned(),
        "water_grid_l_per_kwh" => "water-grid".to_owned(),
        other => other.replace('_', "-"),
    };
    Failure::usage(format!("`--{flag}` is {given}, and must be {wanted}"))
}

/// The tracker's refusal of an option, with the name of the flag.
pub(crate) fn refused(error: StartError) -> anyhow::Error {
    let hint = error.hint();
    match error {
        StartError::OutOfRange {
            option,
            given,
            wanted,
        } => {
            let failure = out_of_range(option, given, wanted);
            match hint {
                Some(hint) => failure.hint(hint).into(),
                None => failure.into(),
            }
        }
        error => error.into(),
    }
}

/// Where the sensors are looked for, as a container needs it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where the sensors are")]
pub(crate) struct RootsArgs {
    /// In place of /sys [env: SPARSAM_SYSFS]
    #[arg(long, value_name = "DIR")]
    path_sysfs: Option<PathBuf>,

    /// In place of /proc [env: SPARSAM_PROCFS]
    #[arg(long, value_name = "DIR")]
    path_procfs: Option<PathBuf>,

    /// NVIDIA's management library, libnvidia-ml.so.1 [env: SPARSAM_NVML]
    #[arg(long, value_name = "FILE")]
    path_nvml: Option<PathBuf>,
}

impl RootsArgs {
    /// What was typed, else what the environment says, else the usual places.
    ///
    /// # Errors
    /// A path that was typed and does not exist.
    pub(crate) fn roots(&self) -> Result<Roots, Failure> {
        let mut roots = Roots::from_env();
        for (flag, given, into) in [
            ("--path-sysfs", &self.path_sysfs, &mut roots.sysfs),
            ("--path-procfs", &self.path_procfs, &mut roots.procfs),
        ] {
            if let Some(given) = given {
                must_exist(flag, given)?;
                into.clone_from(given);
            }
        }
        if let Some(given) = &self.path_nvml {
            must_exist("--path-nvml", given)?;
            roots.nvml = Some(given.clone());
        }
        Ok(roots)
    }
}

fn must_exist(flag: &str, path: &std::path::Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`{flag}` names `{}`, which does not exist",
        path.display()
    ))
    .hint("in a container it is where the host's folder is mounted, such as /host/sys"))
}

/// Measure any program: what it draws, what it emits
///
/// The program runs as it would alone: its input, output, exit code and signals pass through. At the end
/// one screen on standard error, and in the folder: the journal (`energy.jsonl`), the record
/// (`energy.json`), a table with codecarbon's columns (`emissions.csv`), and a block for a model card
/// (`card-block.md`).
///
/// The whole machine is measured while the program runs, other programs included.
#[derive(Debug, Args)]
#[command(
    override_usage = "sparsam track [OPTIONS] [--] <COMMAND>...",
    after_help = "Examples:\n  \
    sparsam track -- python train.py --epochs 3\n  \
    sparsam track --country DEU -o runs/night -- ./train.sh\n\n\
    A folder can be used again: earlier journals stay beside the new one, and the table grows.\n\
    After a power cut, `sparsam card DIR` makes the block from the journal.\n\
    Without --country, that of --live-intensity counts, else the environment variable SPARSAM_COUNTRY.\n\
    Nothing is looked up on the network but what --live-intensity names."
)]
pub(crate) struct TrackArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Ask while the program runs how clean the grid is: `uk-grid` (no key), `electricity-maps:ZONE` (key in
    /// ELECTRICITY_MAPS_TOKEN), an address, or a file that holds gCO2e per kWh
    #[arg(long, value_name = "SOURCE", conflicts_with = "intensity")]
    pub(crate) live_intensity: Option<String>,

    /// The run's name; the name of the folder by default
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// The part of a project it belongs to, by which `sparsam ledger` sums
    #[arg(long, value_enum)]
    pub(crate) stage: Option<StageArg>,

    /// The folder for what is measured; `runs/track-` and the time by default
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Energy of the whole site over energy of its computers: 1 at home, 1.1 to 1.6 in data centres
    #[arg(long)]
    pub(crate) pue: Option<f64>,

    /// Seconds between two readings of the meters
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub(crate) interval: f64,

    /// Measure the idle machine for so long before the start, to show what the program adds to it
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds)]
    pub(crate) baseline_seconds: f64,

    /// Constant power of mainboard, disks, fans and network in watts, where you know it
    #[arg(long, value_name = "WATTS")]
    pub(crate) node_idle_watts: Option<f64>,

    /// Power of the processor at full load in watts, where it cannot be measured
    #[arg(long, value_name = "WATTS")]
    pub(crate) cpu_watts: Option<f64>,

    /// Power of the memory in watts, where it cannot be measured
    #[arg(long, value_name = "WATTS")]
    pub(crate) ram_watts: Option<f64>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,

    #[command(flatten)]
    pub(crate) roots: RootsArgs,
}

/// The part of a project that a run belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StageArg {
    /// Gathering, cleaning, labelling or generating data
    Data,
    /// Runs made to choose settings
    Search,
    /// Training what is used
    Train,
    /// Measuring how good it is
    Eval,
    /// Answering requests
    Inference,
}

impl From<StageArg> for Stage {
    fn from(stage: StageArg) -> Self {
        match stage {
            StageArg::Data => Self::Data,
            StageArg::Search => Self::Search,
            StageArg::Train => Self::Train,
            StageArg::Eval => Self::Eval,
            StageArg::Inference => Self::Inference,
        }
    }
}

/// Estimate a run that nobody measured
///
/// Devices times hours times watts times PUE times intensity, with the formula shown. A named device is
/// taken at its rated power for the whole time; the range reaches down to the least that real trainings
/// were seen to draw.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("power").required(true).args(["hardware", "watts"]),
    after_help = "Examples:\n  \
    sparsam estimate --hardware \"NVIDIA A100 SXM4 80GB\" --count 8 --hours 100 --country FRA\n  \
    sparsam estimate --watts 400 --hours 12 --pue 1.2 --intensity 57"
)]
pub(crate) struct EstimateArgs {
    /// A GPU or a processor, as the data sheet calls it
    #[arg(long, value_name = "NAME")]
    pub(crate) hardware: Option<String>,

    /// Power of one device in watts, in place of a name
    #[arg(long)]
    pub(crate) watts: Option<f64>,

    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub(crate) count: f64,

    /// For how many hours
    #[arg(long)]
    pub(crate) hours: f64,

    /// Energy of the whole site over energy of its computers: 1 at home, 1.1 to 1.6 in data centres
    #[arg(long)]
    pub(crate) pue: Option<f64>,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Add the share of making the hardware, on a line of its own
    #[arg(long)]
    pub(crate) embodied: bool,

    /// Litres of water evaporated on the site for each kWh
    #[arg(long, value_name = "L_PER_KWH")]
    pub(crate) water_site: Option<f64>,

    /// Litres of water consumed by the grid's power plants for each kWh
    #[arg(long, value_name = "L_PER_KWH")]
    pub(crate) water_grid: Option<f64>,

    /// Print the estimate with all its inputs as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say what can be measured here, and how to make the rest measurable
///
/// Every sensor: whether it is there, whether it may be read, what it gives. Where it may not, the
/// commands of a lasting repair for this system, to read and to run yourself; nothing is changed here.
/// At the end what a card would say today.
#[derive(Debug, Args)]
#[command(after_help = "Example: sparsam doctor --country DEU\n\n\
    Without --country, the environment variable SPARSAM_COUNTRY is read.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) roots: RootsArgs,
}

/// Write the model card of a run again, update any card, check cards
///
/// With the folder of a run: reads its record and its energy journal, and writes `README.md` in it; for a
/// folder of `sparsam track`, the record and the card block. Works after a run that was killed: the card
/// then says how far it came.
#[derive(Debug, Args)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    sparsam card runs/quickstart\n  \
    sparsam card runs/quickstart --format boamps,climate\n  \
    sparsam card update README.md --run runs/a --run runs/b\n  \
    sparsam card lint README.md"
)]
pub(crate) struct CardArgs {
    /// The folder of a run
    #[arg(required = true)]
    pub(crate) run_dir: Option<PathBuf>,

    /// Write this beside the card as well; may be given twice
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) format: Vec<CardFormat>,

    #[command(subcommand)]
    pub(crate) command: Option<CardCommand>,
}

/// What can be written beside a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CardFormat {
    /// A report in the BoAmps format, `boamps.json`
    Boamps,
    /// The Climate Performance Model Card, `climate-card.md`
    Climate,
}

/// What the training was, in the Hub's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CardTraining {
    FineTuning,
    PreTraining,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CardCommand {
    /// Write the energy and emissions of runs into any model card
    Update(Box<CardUpdateArgs>),
    /// Check what cards say of their emissions
    Lint(CardLintArgs),
}

/// Write the energy and emissions of runs into any model card
///
/// Writes or replaces `co2_eq_emissions` in the front matter and the section on environmental impact in
/// the body. Every other byte stays. A card that cannot be read with certainty is not touched.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam card update README.md --run runs/final\n  \
    sparsam card update README.md --run runs/failed --run runs/final --country DEU\n  \
    sparsam card update README.md --run runs/final --ledger runs")]
pub(crate) struct CardUpdateArgs {
    /// The card, or the folder with its README.md
    pub(crate) card: PathBuf,

    /// The folder of a run, measured by `train` or `track`; several add up
    #[arg(long = "run", value_name = "DIR", required_unless_present = "ledger")]
    pub(crate) runs: Vec<PathBuf>,

    /// Add a section on the whole project: all runs below this folder by stage, as `sparsam ledger` sums
    /// them; may be given again
    #[arg(long, value_name = "DIR")]
    pub(crate) ledger: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) requests: super::ledger::RequestsArgs,

    /// Leave out runs that were started in the same folders before
    #[arg(long)]
    pub(crate) latest_only: bool,

    /// For runs that were measured without a country
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// What the training was; left as the card says by default
    #[arg(long, value_enum)]
    pub(crate) training_type: Option<CardTraining>,

    /// The provider of rented machines
    #[arg(long, value_name = "NAME")]
    pub(crate) cloud_provider: Option<String>,

    /// The provider's region
    #[arg(long, value_name = "NAME")]
    pub(crate) compute_region: Option<String>,
}

/// Check what cards say of their emissions
///
/// Looks for kilograms taken for grams, power or intensity that cannot be, a front matter that says
/// something else than the body, numbers the Hub cannot read, missing keys. Ends with exit code 1 where
/// it found an error or a warning, so that a CI job fails.
#[derive(Debug, Args)]
#[command(after_help = "Example: sparsam card lint README.md models/*/README.md")]
pub(crate) struct CardLintArgs {
    /// The cards, or folders with a README.md
    #[arg(required = true)]
    pub(crate) cards: Vec<PathBuf>,

    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number of seconds".to_owned()),
    }
}
