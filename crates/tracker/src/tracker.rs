//! The handle a program holds: options in, a [`Tracker`] while the program runs, an [`EnergyRecord`] at
//! the end. Here the meters of this machine are chosen and the sampling thread is started. Only an
//! option that makes no sense is an error; a sensor that is missing is not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::accounting::{self, Pue};
use crate::intensity::{self, CarbonIntensity, UnknownCountry};
use crate::journal::{self, Host, JournalError, Start, Writer};
use crate::live::{Answer, Asking, Inbox, LiveIntensity};
use crate::meter::apple::AppleSilicon;
use crate::meter::hwmon;
use crate::meter::model::{Constant, CpuModel};
use crate::meter::perf::PerfRapl;
use crate::meter::powercap::Powercap;
use crate::meter::{Component, Domain, EnergyMeter, Gap, Reading, Roots, nvml, powercap, system};
use crate::range::{Range, Span};
use crate::record::{Baseline, EnergyRecord, Hardware, Place};
use crate::sampler::{Clock, Command, Live, Published, Sampler, SystemClock};
use crate::stage::Stage;
use crate::water;
use crate::window::{Ledger, format_time};

/// How long a reading on request is waited for.
const SAMPLE_PATIENCE: Duration = Duration::from_millis(250);

/// How long [`Tracker::finish`] waits for the last reading before it falls back on the journal.
const FINISH_PATIENCE: Duration = Duration::from_secs(10);

/// What a tracker is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the journal goes. Without a folder there is none, and a crash loses the figures.
    pub run_dir: Option<PathBuf>,
    /// The run's name.
    pub name: String,
    /// Whether this continues the run whose journal is in the folder.
    pub resume: bool,
    /// The part of a project the run belongs to.
    pub stage: Option<Stage>,
    /// Where the meters look.
    pub roots: Roots,
    /// Time between samples: 1 s unless told otherwise, from 10 ms to 60 s.
    pub interval: Duration,
    /// ISO 3166 code or English name. Without one, emissions are a range over countries.
    pub country: Option<String>,
    /// An own figure for the electricity, which takes the country's place.
    pub intensity: Option<StatedIntensity>,
    /// What tells how clean the grid is while the run goes on. What it does not answer counts with the figures
    /// above. Starting waits for the first answer.
    pub live: Option<LiveIntensity>,
    /// Power usage effectiveness of the building, at least 1; 1 unless told otherwise.
    pub pue: Option<f64>,
    /// The processor's rated power in watts, all sockets together, where it is modelled.
    pub cpu_watts: Option<f64>,
    /// The memory's power in watts, where it is not measured.
    pub ram_watts: Option<f64>,
    /// Constant power of the rest of the machine (mainboard, disks, network, fans) in watts, where the
    /// user knows it.
    pub node_idle_watts: Option<f64>,
    /// Seconds of idle power to measure before the start; 0 for none. Starting waits for them.
    pub baseline_seconds: f64,
    /// Litres evaporated on the site for each kWh of the machine, where the user knows it.
    pub water_site_l_per_kwh: Option<f64>,
    /// Litres consumed by the grid's power plants for each kWh; known for a few countries.
    pub water_grid_l_per_kwh: Option<f64>,
    /// Which GPUs belong to the run.
    pub gpus: Gpus,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run_dir: None,
            name: "run".to_owned(),
            resume: false,
            stage: None,
            roots: Roots::default(),
            interval: Duration::from_secs(1),
            country: None,
            intensity: None,
            live: None,
            pue: None,
            cpu_watts: None,
            ram_watts: None,
            node_idle_watts: None,
            baseline_seconds: 0.0,
            water_site_l_per_kwh: None,
            water_grid_l_per_kwh: None,
            gpus: Gpus::Visible,
        }
    }
}

impl Options {
    /// The defaults with a run folder, after which the run is named. The meters look where the
    /// environment says ([`Roots::from_env`]).
    pub fn in_folder(run_dir: impl Into<PathBuf>) -> Self {
        let run_dir = run_dir.into();
        Self {
            name: run_dir.file_name().map_or_else(
                || "run".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            ),
            run_dir: Some(run_dir),
            roots: Roots::from_env(),
            ..Self::default()
        }
    }
}

/// A carbon intensity the user states.
#[derive(Debug, Clone, PartialEq)]
pub struct StatedIntensity {
    /// gCO2e/kWh.
    pub g_per_kwh: f64,
    /// Where the figure comes from, in words.
    pub source: String,
}

/// Which GPUs belong to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gpus {
    /// Those that `CUDA_VISIBLE_DEVICES` leaves visible.
    #[default]
    Visible,
    /// The NVIDIA GPU of this number among those; others that are visible are not the run's own.
    Number(usize),
    /// None: the run does not use them, and their idle power is not its own.
    None,
}

/// An option that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StartError {
    /// The country is not in the table.
    #[error(transparent)]
    UnknownCountry(#[from] UnknownCountry),
    /// A figure is not a number or out of its range.
    #[error("`{option}` is {given}, and must be {wanted}")]
    OutOfRange {
        /// The option's name.
        option: &'static str,
        /// What was given.
        given: f64,
        /// What is allowed, in words.
        wanted: &'static str,
    },
    /// An own intensity without a word on where it comes from.
    #[error("`intensity_g_per_kwh` is given without a source")]
    NoSource,
}

impl StartError {
    /// What to write instead.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownCountry(error) => Some(error.hint()),
            Self::OutOfRange { option: "pue", .. } => {
                Some("1.0 is a machine at home, 1.1 to 1.6 a data centre".to_owned())
            }
            Self::OutOfRange { .. } => None,
            Self::NoSource => {
                Some("add where the figure comes from, such as `contract of 2026`".to_owned())
            }
        }
    }
}

/// Checks `value` against bounds, both inclusive.
fn within(
    option: &'static str,
    value: f64,
    (low, high): (f64, f64),
    wanted: &'static str,
) -> Result<(), StartError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(StartError::OutOfRange {
        option,
        given: value,
        wanted,
    })
}

/// The accounting side of the options, checked.
struct Accounting {
    place: Option<Place>,
    intensity: CarbonIntensity,
    pue: Pue,
}

/// A stated PUE, checked, or that of a machine at home.
pub(crate) fn stated_pue(stated: Option<f64>) -> Result<Pue, StartError> {
    let Some(value) = stated else {
        return Ok(Pue::default());
    };
    within("pue", value, (1.0, 10.0), "from 1 to 10")?;
    Ok(Pue {
        value,
        source: "stated by the user".to_owned(),
    })
}

/// A stated intensity, checked.
pub(crate) fn stated_intensity(stated: &StatedIntensity) -> Result<CarbonIntensity, StartError> {
    within(
        "intensity_g_per_kwh",
        stated.g_per_kwh,
        (0.0, intensity::HIGHEST_G_PER_KWH),
        "from 0 to 5000 gCO2e/kWh",
    )?;
    if stated.source.trim().is_empty() {
        return Err(StartError::NoSource);
    }
    Ok(CarbonIntensity::given(
        stated.g_per_kwh,
        stated.source.trim(),
    ))
}

fn check(options: &Options) -> Result<Accounting, StartError> {
    within(
        "interval",
        options.interval.as_secs_f64(),
        (0.01, 60.0),
        "from 0.01 to 60 seconds",
    )?;
    let watts = "more than 0 and at most 100000 watts";
    for (option, given) in [
        ("cpu_watts", options.cpu_watts),
        ("ram_watts", options.ram_watts),
        ("node_idle_watts", options.node_idle_watts),
    ] {
        if let Some(given) = given {
            within(option, given, (f64::MIN_POSITIVE, 1e5), watts)?;
        }
    }
    within(
        "baseline_seconds",
        options.baseline_seconds,
        (0.0, 3600.0),
        "from 0 to 3600 seconds",
    )?;
    for (option, given) in [
        ("water_site_l_per_kwh", options.water_site_l_per_kwh),
        ("water_grid_l_per_kwh", options.water_grid_l_per_kwh),
    ] {
        if let Some(given) = given {
            within(option, given, (0.0, 1000.0), "from 0 to 1000 L/kWh")?;
        }
    }
    let pue = stated_pue(options.pue)?;
    let country = options
        .country
        .as_deref()
        .map(intensity::lookup)
        .transpose()?;
    let intensity = match (&options.intensity, country) {
        (Some(stated), _) => stated_intensity(stated)?,
        (None, Some(country)) => CarbonIntensity::of(country),
        (None, None) => CarbonIntensity::unknown_place(),
    };
    Ok(Accounting {
        place: country.map(|country| Place {
            name: country.name.to_owned(),
            alpha3: country.alpha3.to_owned(),
        }),
        intensity,
        pue,
    })
}

/// The meters of this machine, and what there is to say about them.
struct Found {
    meters: Vec<Box<dyn EnergyMeter>>,
    hardware: Hardware,
    notes: Vec<String>,
    not_included: Vec<String>,
}

/// Chooses the meters: measured where anything can be measured, else modelled.
fn find_meters(options: &Options, now: Duration) -> Found {
    let roots = &options.roots;
    let mut found = Found {
        meters: Vec::new(),
        hardware: hardware(roots),
        notes: Vec::new(),
        not_included: Vec::new(),
    };
    match options.gpus {
        Gpus::Visible => {
            find_gpus(roots, now, None, &mut found);
            if let Some(meter) = hwmon::AmdGpus::open(roots, now) {
                found.hardware.gpus.extend(meter.names());
                found.meters.push(Box::new(meter));
            }
        }
        Gpus::Number(number) => find_gpus(roots, now, Some(number), &mut found),
        Gpus::None => found
            .not_included
            .push("GPUs, which this run did not use".to_owned()),
    }

    let apple = AppleSilicon::open(matches!(options.gpus, Gpus::Visible), now);
    let perf = PerfRapl::open(roots, now).ok();
    let powercap = if perf.is_none() {
        Powercap::open(roots, now)
    } else {
        None
    };
    let memory_is_measured = apple.is_some()
        || perf.as_ref().is_some_and(PerfRapl::measures_memory)
        || powercap.as_ref().is_some_and(Powercap::measures_memory);
    if (apple.is_some() || perf.is_some() || powercap.is_some()) && options.cpu_watts.is_some() {
        found
            .notes
            .push("`cpu_watts` was not used: the processor is measured".to_owned());
    }
    if let Some(meter) = apple {
        found.meters.push(Box::new(meter));
    } else if let Some(meter) = perf {
        found.meters.push(Box::new(meter));
    } else if let Some(meter) = powercap {
        let unreadable: Vec<String> = powercap::zones(roots)
            .iter()
            .filter(|zone| zone.read().is_err())
            .map(|zone| zone.name.clone())
            .collect();
        if !unreadable.is_empty() {
            found.notes.push(format!(
                "the counters of {} exist and may not be read; they are missing from the figures",
                unreadable.join(", ")
            ));
        }
        found.meters.push(Box::new(meter));
    } else {
        if !powercap::zones(roots).is_empty() {
            found.notes.push(
                "this machine has RAPL energy counters that may not be read, so the processor is \
                 modelled; `sparsam doctor` says how to make it measured"
                    .to_owned(),
            );
        }
        let model = CpuModel::new(roots, options.cpu_watts, now);
        found.meters.push(Box::new(model));
    }
    if memory_is_measured {
        if options.ram_watts.is_some() {
            found
                .notes
                .push("`ram_watts` was not used: the memory is measured".to_owned());
        }
    } else {
        match Constant::memory(roots, options.ram_watts, now) {
            Some(meter) => found.meters.push(Box::new(meter)),
            None => found
                .not_included
                .push("memory, whose size could not be found out".to_owned()),
        }
    }
    if let Some(watts) = options.node_idle_watts {
        found.meters.push(Box::new(Constant::node(watts, now)));
        found
            .not_included
            .push("the losses of power supplies".to_owned());
    } else {
        found
            .not_included
            .push("disks, network, fans, mainboard and the losses of power supplies".to_owned());
    }
    found.not_included.extend(
        [
            "the manufacture of the hardware",
            "water",
            "other runs: searches, failed attempts, preparation of the data",
            "the training of the base model",
        ]
        .map(str::to_owned),
    );
    found
}

fn find_gpus(roots: &Roots, now: Duration, number: Option<usize>, found: &mut Found) {
    let library = match nvml::Library::load(roots) {
        Ok(library) => library,
        Err(nvml::NoGpu::NoLibrary(_)) => return,
        Err(error) => {
            found.notes.push(format!(
                "no NVIDIA GPU could be read and none is counted: {error}"
            ));
            return;
        }
    };
    match library.gpus() {
        Ok(gpus) => {
            let listed = std::env::var("CUDA_VISIBLE_DEVICES").ok();
            let pci_order = std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|o| o == "PCI_BUS_ID");
            let (gpus, note) = nvml::visible(gpus, listed.as_deref(), pci_order);
            found.notes.extend(note);
            let gpus = match number {
                None => gpus,
                Some(number) => gpus.into_iter().skip(number).take(1).collect(),
            };
            if gpus.is_empty() && number.is_some() {
                found
                    .not_included
                    .push("the GPU, which NVML does not show".to_owned());
            }
            if !gpus.is_empty() {
                found
                    .hardware
                    .gpus
                    .extend(gpus.iter().map(|gpu| gpu.name.clone()));
                found.meters.push(Box::new(library.meter(&gpus, now)));
            }
        }
        Err(error) => found.notes.push(format!(
            "no NVIDIA GPU could be read and none is counted: {error}"
        )),
    }
}

fn hardware(roots: &Roots) -> Hardware {
    let processor = system::processor(roots);
    let allowance = system::cpu_allowance(roots);
    Hardware {
        cpu: processor.as_ref().and_then(|p| p.name.clone()),
        cpu_threads: processor.as_ref().map(|p| {
            let affinity = allowance.affinity.as_ref().map_or(p.threads, |cpus| {
                u32::try_from(cpus.len()).unwrap_or(p.threads)
            });
            let quota = allowance
                .quota
                .map_or(p.threads, |quota| (quota.ceil() as u32).max(1));
            (p.threads.min(affinity).min(quota), p.threads)
        }),
        gpus: Vec::new(),
        ram_bytes: system::usable_memory(roots),
    }
}

/// What the headline consists of, from the meters that were chosen.
fn contains(meters: &[Box<dyn EnergyMeter>], pue: f64) -> Vec<String> {
    let mut kinds: Vec<&str> = Vec::new();
    for domain in meters.iter().flat_map(|meter| meter.domains()) {
        let kind = match domain.component {
            Component::Node => "the rest of the machine",
            component => component.name(),
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut contains = vec![format!(
        "electricity of {} while the run was tracked, idle power included",
        if kinds.is_empty() {
            "nothing".to_owned()
        } else {
            kinds.join(", ")
        }
    )];
    if pue > 1.0 {
        contains.push(format!(
            "the building's overhead, by PUE {}",
            crate::format::plain_decimal(pue, 3)
        ));
    }
    contains
}

/// Mean power over `seconds` before the run. The meters' own counts go on from what was drawn
/// meanwhile, so that time is made good by renewing their origin: see [`Rebased`].
fn measure_baseline(found: &mut Found, clock: &dyn Clock, seconds: f64) -> Option<Baseline> {
    if seconds <= 0.0 {
        return None;
    }
    let joules = |meters: &mut [Box<dyn EnergyMeter>]| -> Option<Range> {
        let now = clock.monotonic();
        let mut sum = Range::ZERO;
        for meter in meters {
            let reading = catch_unwind(AssertUnwindSafe(|| meter.read(now)))
                .ok()?
                .ok()?;
            sum += reading.joules.iter().copied().sum();
        }
        Some(sum)
    };
    let started = clock.monotonic();
    let before = joules(&mut found.meters);
    clock.sleep(Duration::from_secs_f64(seconds));
    let after = joules(&mut found.meters);
    let elapsed = clock.monotonic().saturating_sub(started).as_secs_f64();
    // Whatever was drawn until now is not the run's.
    found.meters = std::mem::take(&mut found.meters)
        .into_iter()
        .map(|meter| Box::new(Rebased::new(meter, clock.monotonic())) as Box<dyn EnergyMeter>)
        .collect();
    let (Some(before), Some(after)) = (before, after) else {
        found.notes.push(
            "the idle baseline could not be measured; only the gross figure is given".to_owned(),
        );
        return None;
    };
    (elapsed > 0.0).then(|| Baseline {
        seconds: elapsed,
        watts: (after - before).scale(1.0 / elapsed),
    })
}

/// A meter that counts from its second reading on: what it had counted when this was made is taken off.
struct Rebased {
    meter: Box<dyn EnergyMeter>,
    /// None until a reading has succeeded.
    origin: Option<Vec<Range>>,
}

impl Rebased {
    fn new(mut meter: Box<dyn EnergyMeter>, now: Duration) -> Self {
        let reading = catch_unwind(AssertUnwindSafe(|| meter.read(now)));
        let origin = match reading {
            Ok(Ok(reading)) => Some(reading.joules),
            _ => None,
        };
        Self { meter, origin }
    }
}

impl EnergyMeter for Rebased {
    fn domains(&self) -> &[Domain] {
        self.meter.domains()
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let mut reading = self.meter.read(now)?;
        let origin = self.origin.get_or_insert_with(|| reading.joules.clone());
        for (joules, origin) in reading.joules.iter_mut().zip(origin.iter()) {
            *joules = *joules - *origin;
        }
        Ok(reading)
    }

    fn notes(&self) -> Vec<String> {
        self.meter.notes()
    }
}

/// The name of the sampling thread, by which runs on one machine see each other. Linux shows 15
/// characters of it.
const THREAD_NAME: &str = "sparsam-energy";

/// A note where another tracked run is on this machine, so that shared counters count it too. Looked
/// for among the threads procfs shows: no lock, no file, no wait.
fn shared_machine(roots: &Roots) -> Option<String> {
    let own = std::process::id().to_string();
    let others = std::fs::read_dir(&roots.procfs)
        .ok()?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.bytes().all(|b| b.is_ascii_digit()) && *name != *own
        })
        .filter(|entry| {
            std::fs::read_dir(entry.path().join("task")).is_ok_and(|tasks| {
                tasks.flatten().any(|task| {
                    std::fs::read_to_string(task.path().join("comm"))
                        .is_ok_and(|comm| comm.trim() == THREAD_NAME)
                })
            })
        })
        .count();
    (others > 0).then(|| {
        format!(
            "{others} other tracked {} on this machine at the start: what is measured for the whole \
             machine is in each of them",
            if others == 1 { "run was" } else { "runs were" }
        )
    })
}

/// The machine as the ledger tells it from others.
fn host(roots: &Roots, clock: &dyn Clock) -> Option<Host> {
    Some(Host {
        boot: system::boot(roots)?,
        part: system::part(roots),
        began: clock.wall().as_nanosecond() as f64 / 1e9,
    })
}

/// What a run that started now would count, and how.
pub(crate) struct Preview {
    pub(crate) domains: Vec<Domain>,
    pub(crate) place: Option<Place>,
    pub(crate) intensity: CarbonIntensity,
    pub(crate) not_included: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// Chooses the meters as [`Tracker::start`] does, and starts nothing.
pub(crate) fn preview(options: &Options) -> Result<Preview, StartError> {
    let accounting = check(options)?;
    let found = find_meters(options, Duration::ZERO);
    Ok(Preview {
        domains: found
            .meters
            .iter()
            .flat_map(|meter| meter.domains().to_vec())
            .collect(),
        place: accounting.place,
        intensity: accounting.intensity,
        not_included: found.not_included,
        notes: found.notes,
    })
}

/// The live figures of a run that is being tracked. Once it is over they stay as they were last.
#[derive(Debug, Clone)]
pub struct Gauge {
    live: Arc<Mutex<Option<Published>>>,
    labels: Vec<String>,
    /// As stated, until the first sample.
    g_per_kwh: Span,
    pue: f64,
}

impl Gauge {
    /// Power now, joules and grams so far. Never waits for a sensor.
    pub fn live(&self) -> Live {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let live = live.as_ref().map(|published| published.live);
        live.unwrap_or(Live {
            watts: None,
            joules: Range::ZERO,
            emissions_g: accounting::operational_g(Range::ZERO, 1.0, self.g_per_kwh),
            grams_per_kwh: self.g_per_kwh.central.map(|grams| grams * self.pue),
            seconds: 0.0,
        })
    }

    /// The components by their names for people, and the power of each in watts over the last second or
    /// so; nothing before the second sample.
    pub fn components(&self) -> Vec<(String, f64)> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let watts = live.as_ref().map_or(&[][..], |published| &published.watts);
        let labels = self.labels.iter().cloned();
        labels.zip(watts.iter().copied()).collect()
    }
}

/// A run that is being tracked. Dropping it without [`Tracker::finish`] leaves a journal that says the
/// run ended early.
#[derive(Debug)]
pub struct Tracker {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    gauge: Gauge,
    grid_at_start: Option<Answer>,
    /// Asks the grid until the tracker is gone.
    _asking: Option<Asking>,
    journal: Option<PathBuf>,
    /// The opening line, from which an empty record is made if all else fails.
    start: Start,
}

impl Tracker {
    /// Starts tracking on a thread of its own.
    ///
    /// # Errors
    /// An option makes no sense. Missing sensors and an unwritable journal are notes in the record.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        Self::start_with(options, clock, None)
    }

    /// Starts with another clock, and with other meters than those of this machine where given.
    ///
    /// # Errors
    /// As [`Tracker::start`].
    pub fn start_with(
        options: &Options,
        clock: Arc<dyn Clock>,
        meters: Option<Vec<Box<dyn EnergyMeter>>>,
    ) -> Result<Self, StartError> {
        let Accounting {
            place,
            intensity,
            pue,
        } = check(options)?;
        let found = catch_unwind(AssertUnwindSafe(|| find_meters(options, clock.monotonic())));
        let mut found = found.unwrap_or_else(|_| Found {
            meters: Vec::new(),
            hardware: Hardware::default(),
            notes: vec!["the sensors could not be looked for; nothing is counted".to_owned()],
            not_included: vec!["everything".to_owned()],
        });
        if let Some(meters) = meters {
            found.meters = meters;
        }
        let grid_at_start = options.live.as_ref().map(LiveIntensity::answer);
        let inbox = Inbox::default();
        if let Some(answer) = &grid_at_start {
            inbox.put(answer.clone());
        }
        let baseline = measure_baseline(&mut found, clock.as_ref(), options.baseline_seconds);
        found.notes.extend(shared_machine(&options.roots));
        let start = Start {
            version: journal::JOURNAL_VERSION,
            name: options.name.clone(),
            at: format_time(clock.wall()),
            domains: found
                .meters
                .iter()
                .flat_map(|meter| meter.domains().to_vec())
                .collect(),
            hardware: found.hardware,
            water: water::rates(
                place.as_ref().map(|place| place.alpha3.as_str()),
                options.water_site_l_per_kwh,
                options.water_grid_l_per_kwh,
            ),
            place,
            intensity,
            live: options.live.as_ref().map(|live| live.source.clone()),
            contains: contains(&found.meters, pue.value),
            pue,
            not_included: found.not_included,
            baseline,
            stage: options.stage,
            host: host(&options.roots, clock.as_ref()),
        };
        let mut notes = found.notes;
        let (ledger, writer) = open_journal(options, &mut notes);
        let journal = writer
            .is_some()
            .then(|| {
                options
                    .run_dir
                    .as_deref()
                    .map(|dir| dir.join(journal::FILE_NAME))
            })
            .flatten();

        let live = Arc::new(Mutex::new(None));
        let sampler = Sampler::new(
            found.meters,
            clock,
            ledger,
            writer,
            start.clone(),
            notes,
            inbox.clone(),
            Arc::clone(&live),
        );
        let asking = options.live.clone();
        let asking = asking.and_then(|live| Asking::start(live, inbox));
        let (commands, received) = mpsc::channel();
        let interval = options.interval;
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                // A failure stays on this thread: the run goes on and the journal keeps what it has.
                drop(catch_unwind(AssertUnwindSafe(|| {
                    sampler.serve(&received, interval);
                })));
            })
            .ok();
        Ok(Self {
            commands: Some(commands),
            thread,
            gauge: Gauge {
                live,
                labels: start.domains.iter().map(|d| d.label.clone()).collect(),
                g_per_kwh: start.intensity.g_per_kwh,
                pue: start.pue.value,
            },
            grid_at_start,
            _asking: asking,
            journal,
            start,
        })
    }

    /// Opens a named window inside those that are open.
    pub fn enter(&self, window: &str) {
        self.send(Command::Enter(window.to_owned()));
    }

    /// Closes the innermost open window of that name, and those inside it.
    pub fn leave(&self, window: &str) {
        self.send(Command::Leave(window.to_owned()));
    }

    /// Opens a window that closes when the guard is dropped.
    pub fn window<'a>(&'a self, name: &'a str) -> Window<'a> {
        self.enter(name);
        Window {
            tracker: self,
            name,
        }
    }

    /// What a progress bar shows: power now, joules and grams so far. Never waits for a sensor.
    pub fn live(&self) -> Live {
        self.gauge.live()
    }

    /// The same after the meters were read anew, which takes as long as they do: for what begins or ends now.
    /// A meter that does not answer is not waited for.
    pub fn sampled(&self) -> Live {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Sample(reply));
        // Late, the figures are those of the last sample.
        let _ = answer.recv_timeout(SAMPLE_PATIENCE);
        self.live()
    }

    /// The live figures by themselves, for another thread.
    pub fn gauge(&self) -> Gauge {
        self.gauge.clone()
    }

    /// What the grid answered at the start, gCO2e/kWh, or why it did not. None where it is not asked.
    pub fn grid_at_start(&self) -> Option<&Result<f64, String>> {
        self.grid_at_start.as_ref()
    }

    /// The journal's path, where there is one.
    pub fn journal(&self) -> Option<&Path> {
        self.journal.as_deref()
    }

    /// Takes the last reading and gives the record. Open windows are closed.
    ///
    /// Where the sampling thread has died or does not answer within ten seconds, the record is made
    /// from the journal, and says that it ended early.
    pub fn finish(mut self) -> EnergyRecord {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Finish(reply));
        if let Ok(Some(record)) = answer.recv_timeout(FINISH_PATIENCE) {
            return record;
        }
        self.thread = None; // It may hang in a driver: do not wait for it again.
        self.fallback()
    }

    fn fallback(&self) -> EnergyRecord {
        let from_journal = self.journal.as_deref().map(EnergyRecord::from_journal);
        let mut record = match from_journal {
            Some(Ok(record)) => record,
            _ => Ledger::empty(self.start.clone()),
        };
        record.notes.push(
            "the tracker stopped before the run did: what was drawn after its last sample is missing"
                .to_owned(),
        );
        record
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A thread that died has left a note; the run must not notice.
            drop(commands.send(command));
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The earlier sessions of a resumed run, and the journal. What goes wrong becomes a note.
fn open_journal(options: &Options, notes: &mut Vec<String>) -> (Ledger, Option<Writer>) {
    let Some(run_dir) = options.run_dir.as_deref() else {
        return (Ledger::default(), None);
    };
    let mut ledger = Ledger::default();
    if options.resume {
        match journal::read(&run_dir.join(journal::FILE_NAME)) {
            Ok(contents) => ledger = Ledger::replay(contents),
            Err(error) => notes.push(format!(
                "the energy of the run before it was resumed is missing: {error}"
            )),
        }
    }
    match Writer::open(run_dir, options.resume) {
        Ok(writer) => (ledger, Some(writer)),
        Err(error) => {
            notes.push(format!("no energy journal could be kept: {error}"));
            (ledger, None)
        }
    }
}

impl EnergyRecord {
    /// The record of a run's journal up to its last whole line.
    ///
    /// # Errors
    /// The file cannot be read, no session starts in it, or a newer version wrote it.
    pub fn from_journal(path: &Path) -> Result<Self, JournalError> {
        let contents = journal::read(path)?;
        Ledger::replay(contents)
            .record()
            .ok_or_else(|| JournalError::Empty {
                path: path.to_owned(),
            })
    }
}

/// An open window; dropping it closes the window.
#[derive(Debug)]
#[must_use = "the window closes when this is dropped"]
pub struct Window<'a> {
    tracker: &'a Tracker,
    name: &'a str,
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.tracker.leave(self.name);
    }
}

/// One sensor, as found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorReport {
    /// `RAPL package-0`, `NVML`, `/proc/stat`.
    pub sensor: String,
    /// What it would give.
    pub component: Component,
    /// Whether it exists and can be read.
    pub readable: bool,
    /// What it gives, or why it cannot be read.
    pub detail: String,
}

/// Every sensor this crate knows, as found under `roots`.
pub fn sensors(roots: &Roots) -> Vec<SensorReport> {
    let mut reports = Vec::new();
    let mut report = |sensor: &str, component, outcome: Result<String, String>| {
        reports.push(SensorReport {
            sensor: sensor.to_owned(),
            component,
            readable: outcome.is_ok(),
            detail: outcome.unwrap_or_else(|why| why),
        });
    };
    match nvml::Library::load(roots).and_then(|library| library.gpus()) {
        Ok(gpus) => {
            for gpu in &gpus {
                report(
                    &format!("NVML {}", gpu.uuid),
                    Component::Gpu,
                    Ok(gpu.name.clone()),
                );
            }
            if gpus.is_empty() {
                report("NVML", Component::Gpu, Err("no GPU".to_owned()));
            }
        }
        Err(error) => report("NVML", Component::Gpu, Err(error.to_string())),
    }
    let zones = powercap::zones(roots);
    for zone in &zones {
        let outcome = zone.read().map(|microjoules| format!("{microjoules} uJ"));
        report(&format!("RAPL {}", zone.name), zone.component, outcome);
    }
    if zones.is_empty() {
        report(
            "RAPL",
            Component::Cpu,
            Err(
                "no powercap zones: a virtual machine, a container, or the driver is not loaded"
                    .to_owned(),
            ),
        );
    }
    let load = system::cpu_time(roots, &system::CpuAllowance::default());
    report(
        "processor load",
        Component::Cpu,
        load.map(|time| format!("{} threads", time.threads))
            .ok_or_else(|| "/proc/stat cannot be read".to_owned()),
    );
    report(
        "memory size",
        Component::Ram,
        system::usable_memory(roots)
            .map(|bytes| format!("{:.1} GB usable", bytes as f64 / 1e9))
            .ok_or_else(|| "neither /proc/meminfo nor a control group can be read".to_owned()),
    );
    reports
}
