//! NVIDIA GPUs through NVML: the total energy counter (mJ since the driver was loaded; Volta and
//! later), with the power reading (mW) integrated beside it. Where both exist they are compared: past
//! 5 % of difference the range is widened to hold both and a note says so. Where the counter is missing
//! or stands still, the integral is the figure.
//!
//! The counter covers the whole GPU with its memory and board. With MIG that is more than the instance
//! a run uses, and a note says that too.
//!
//! The arithmetic ([`Gpu`]) sits behind [`GpuSensor`] and is tested without a GPU.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Nvml;

use super::{Component, Domain, EnergyMeter, Gap, Method, Reading, Roots};
use crate::range::Range;

/// Accuracy of NVIDIA's power sensors: 5 %. NVIDIA states it for Fermi and Kepler in the documentation of
/// `nvmlDeviceGetPowerUsage` (NVML API reference, R590, 2026) and nothing for later ones, for
/// which it is taken too. Short readings err by far more on A100 and H100, whose sensors look a quarter of
/// the time ("Part-time Power Measurements", arXiv 2312.02741); minutes of training average that out.
const ACCURACY: f64 = 0.05;

/// Counter and integral further apart than this are reported.
const DISAGREEMENT: f64 = 0.05;

/// Counter and integral are compared from this much energy on: below, the counter's steps (up to
/// 100 ms) and the sampling weigh too much. Joules.
const COMPARED_FROM: f64 = 1000.0;

/// How far the integral may trail the counter where power has stepped, in seconds of the step: the sensor
/// gives the average of the last second (`nvmlDeviceGetPowerUsage`, Ampere and later except GA100), and
/// the mean of two readings a second apart places a step half a second wrong at most.
const TRAILING: f64 = 1.5;

/// A counter that has not moved for this long while power was drawn stands still.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// The longest time between two power readings that is bridged by their mean. Past it the time is lost
/// for the integral.
const BRIDGED: Duration = Duration::from_secs(15);

/// The names under which the library is looked for. Many systems have only the first.
const LIBRARY_NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// One GPU's sensors.
pub trait GpuSensor: Send {
    /// Energy since an arbitrary moment, mJ.
    ///
    /// # Errors
    /// In words.
    fn energy_millijoules(&self) -> Result<u64, String>;

    /// Power now (or over the last second, depending on the generation), mW.
    ///
    /// # Errors
    /// In words.
    fn power_milliwatts(&self) -> Result<u32, String>;
}

/// A GPU that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// NVML's index, in the order of PCI addresses.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Whether it is split into MIG instances.
    pub mig: bool,
    /// PCI address, `00000000:65:00.0`, where it is known.
    pub pci: Option<String>,
}

/// Why no GPU is measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpu {
    /// The library is not there: no NVIDIA driver, or not within this container.
    #[error("NVML was not found: {0}")]
    NoLibrary(String),
    /// The library is there and fails.
    #[error("NVML failed: {0}")]
    Failed(String),
}

/// A loaded NVML with its GPUs.
#[derive(Clone)]
pub struct Library {
    nvml: Arc<Nvml>,
}

impl Library {
    /// Loads NVML.
    ///
    /// # Errors
    /// It is not there or does not start.
    pub fn load(roots: &Roots) -> Result<Self, NoGpu> {
        let named: Vec<&OsStr> = match &roots.nvml {
            Some(path) => vec![path.as_os_str()],
            None => LIBRARY_NAMES.iter().map(OsStr::new).collect(),
        };
        let mut why = String::new();
        for name in named {
            match Nvml::builder().lib_path(name).init() {
                Ok(nvml) => {
                    return Ok(Self {
                        nvml: Arc::new(nvml),
                    });
                }
                Err(nvml_wrapper::error::NvmlError::LibloadingError(error)) => {
                    why = error.to_string();
                }
                Err(error) => return Err(NoGpu::Failed(error.to_string())),
            }
        }
        Err(NoGpu::NoLibrary(why))
    }

    /// All GPUs of the machine, in the order of their PCI addresses.
    ///
    /// # Errors
    /// They cannot be counted.
    pub fn gpus(&self) -> Result<Vec<GpuInfo>, NoGpu> {
        let count = self
            .nvml
            .device_count()
            .map_err(|error| NoGpu::Failed(error.to_string()))?;
        Ok((0..count)
            .filter_map(|index| {
                let device = self.nvml.device_by_index(index).ok()?;
                Some(GpuInfo {
                    index,
                    uuid: device.uuid().ok()?,
                    name: device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned()),
                    mig: device.mig_mode().is_ok_and(|mode| mode.current == 1),
                    pci: device.pci_info().ok().map(|pci| pci.bus_id),
                })
            })
            .collect())
    }

    /// The driver's version, where it is told.
    pub fn driver(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    /// Bytes of a GPU's memory, where it is told.
    pub fn memory_bytes(&self, index: u32) -> Option<u64> {
        let device = self.nvml.device_by_index(index).ok()?;
        device.memory_info().ok().map(|memory| memory.total)
    }

    /// A meter of those GPUs.
    pub fn meter(&self, gpus: &[GpuInfo], now: Duration) -> GpuMeter {
        let parts = gpus
            .iter()
            .map(|gpu| {
                let sensor = Box::new(NvmlSensor {
                    nvml: Arc::clone(&self.nvml),
                    index: gpu.index,
                });
                (gpu.clone(), sensor as Box<dyn GpuSensor>)
            })
            .collect();
        GpuMeter::new(parts, now)
    }
}

/// A GPU of the loaded library.
struct NvmlSensor {
    nvml: Arc<Nvml>,
    index: u32,
}

impl GpuSensor for NvmlSensor {
    fn energy_millijoules(&self) -> Result<u64, String> {
        self.nvml
            .device_by_index(self.index)
            .and_then(|device| device.total_energy_consumption())
            .map_err(|error| error.to_string())
    }

    fn power_milliwatts(&self) -> Result<u32, String> {
        self.nvml
            .device_by_index(self.index)
            .and_then(|device| device.power_usage())
            .map_err(|error| error.to_string())
    }
}

/// The GPUs that `CUDA_VISIBLE_DEVICES` leaves visible, and a note where that cannot be told. NVML
/// itself ignores the variable.
///
/// UUIDs may be cut short, as CUDA allows; PCI addresses are taken too, with or without their domain. A
/// number counts in CUDA's order, which is NVML's only with
/// `CUDA_DEVICE_ORDER=PCI_BUS_ID` or where all GPUs are alike; otherwise all GPUs are kept. Everything
/// after the first name that matches nothing is invisible, as in CUDA.
pub fn visible(
    gpus: Vec<GpuInfo>,
    visible_devices: Option<&str>,
    pci_order: bool,
) -> (Vec<GpuInfo>, Option<String>) {
    let Some(list) = visible_devices else {
        return (gpus, None);
    };
    let alike = gpus.windows(2).all(|pair| pair[0].name == pair[1].name);
    let mut kept: Vec<GpuInfo> = Vec::new();
    for name in list.split(',').map(str::trim) {
        let found = if let Ok(index) = name.parse::<usize>() {
            if !(pci_order || alike) {
                let note = "CUDA_VISIBLE_DEVICES names GPUs by number, and their order is CUDA's own: \
                            all GPUs are counted; set CUDA_DEVICE_ORDER=PCI_BUS_ID or name them by UUID";
                return (gpus, Some(note.to_owned()));
            }
            gpus.get(index)
        } else if name.starts_with("MIG-") {
            let note = "CUDA_VISIBLE_DEVICES names MIG instances, whose energy no sensor shows: the \
                        whole GPUs are counted";
            let split: Vec<GpuInfo> = gpus.iter().filter(|gpu| gpu.mig).cloned().collect();
            return (split, Some(note.to_owned()));
        } else {
            (!name.is_empty())
                .then(|| {
                    gpus.iter().find(|gpu| {
                        gpu.uuid.starts_with(name)
                            || gpu
                                .pci
                                .as_deref()
                                .is_some_and(|pci| same_address(pci, name))
                    })
                })
                .flatten()
        };
        match found {
            Some(gpu) if !kept.contains(gpu) => kept.push(gpu.clone()),
            Some(_) => {}
            None => break,
        }
    }
    (kept, None)
}

/// Whether two PCI addresses are one: `00000000:65:00.0`, `0000:65:00.0` and `65:00.0` are. An index
/// or a UUID is no address.
fn same_address(one: &str, other: &str) -> bool {
    let parts = |address: &str| -> Option<(u32, String)> {
        let lower = address.to_lowercase();
        let fields: Vec<&str> = lower.split(':').collect();
        match fields[..] {
            [bus, device] => Some((0, format!("{bus}:{device}"))),
            [domain, bus, device] => Some((
                u32::from_str_radix(domain, 16).ok()?,
                format!("{bus}:{device}"),
            )),
            _ => None,
        }
    };
    let one = parts(one);
    one.is_some() && one == parts(other)
}

/// Joules of one GPU, from its counter and its power.
#[derive(Debug, Default)]
struct Gpu {
    /// Last counter value, mJ, and when it last moved.
    counter: Option<(u64, Duration)>,
    /// Last power reading, W.
    power: Option<(Duration, f64)>,
    /// The lowest and the highest power read, W.
    span: Option<(f64, f64)>,
    /// Since when counter and integral are apart without a break.
    apart_since: Option<Duration>,
    /// The figure, J.
    joules: f64,
    /// Joules by the counter since the meter was made.
    counted: f64,
    /// Joules by integration since the meter was made.
    integrated: f64,
    /// Joules by integration since the counter last moved.
    since_move: f64,
    /// The part of `since_move` that is in `joules` because the counter stands still.
    bridged: f64,
    /// Whether the counter has ever moved, was seen to stand still, or is missing.
    moved: bool,
    stuck: bool,
    /// Whether time was lost for the integral, so that it cannot be compared.
    integral_torn: bool,
    /// Time up to which there is a figure of one kind or the other.
    covered: Duration,
}

impl Gpu {
    /// Takes both sensors' readings. An error carries the lost seconds and why.
    fn step(
        &mut self,
        now: Duration,
        energy: Result<u64, String>,
        power: Result<u32, String>,
    ) -> Result<(), (f64, String)> {
        let power_step = self.integrate(now, &power);
        match energy {
            Ok(millijoules) => {
                let counted = self.count(now, millijoules, power_step);
                let since = self.apart_since.unwrap_or(now);
                self.apart_since = self.apart().then_some(since);
                counted
            }
            Err(reason) => {
                // The counter keeps on counting while it cannot be read. Where there is none, or it
                // stands still, the integral is all there is.
                if self.counter.is_none() || self.stuck {
                    if let Some(step) = power_step {
                        self.joules += step;
                    } else {
                        let lost = now.saturating_sub(self.covered).as_secs_f64();
                        self.covered = now;
                        return Err((lost, power.err().unwrap_or(reason)));
                    }
                } else {
                    return Err((0.0, reason));
                }
                self.covered = now;
                Ok(())
            }
        }
    }

    /// Adds the power since the last reading to the integral, and gives the joules of that step.
    fn integrate(&mut self, now: Duration, power: &Result<u32, String>) -> Option<f64> {
        let watts = f64::from(*power.as_ref().ok()?) / 1e3;
        let (low, high) = self.span.unwrap_or((watts, watts));
        self.span = Some((low.min(watts), high.max(watts)));
        let last = self.power.replace((now, watts));
        let (then, before) = last?;
        let elapsed = now.saturating_sub(then);
        if elapsed > BRIDGED {
            self.integral_torn = true;
            return None;
        }
        let joules = elapsed.as_secs_f64() * f64::midpoint(watts, before);
        self.integrated += joules;
        self.since_move += joules;
        Some(joules)
    }

    fn count(
        &mut self,
        now: Duration,
        millijoules: u64,
        power_step: Option<f64>,
    ) -> Result<(), (f64, String)> {
        let Some((last, moved_at)) = self.counter else {
            self.counter = Some((millijoules, now));
            self.since_move = 0.0;
            self.covered = now;
            return Ok(());
        };
        if millijoules < last {
            self.counter = Some((millijoules, now));
            let lost = now.saturating_sub(self.covered).as_secs_f64();
            self.covered = now;
            self.since_move = 0.0;
            self.bridged = 0.0;
            self.integral_torn = true;
            return Err((lost, "the energy counter went back".to_owned()));
        }
        if millijoules > last {
            let joules = (millijoules - last) as f64 / 1e3;
            self.counted += joules;
            // What the integral has already put in for a counter that stood still is not added again.
            self.joules += (joules - self.bridged).max(0.0);
            self.counter = Some((millijoules, now));
            self.since_move = 0.0;
            self.bridged = 0.0;
            self.stuck = false;
            self.moved = true;
        } else if now.saturating_sub(moved_at) >= STUCK_AFTER && power_step.is_some() {
            self.stuck = true;
            self.joules += self.since_move - self.bridged;
            self.bridged = self.since_move;
        }
        self.covered = now;
        Ok(())
    }

    /// The figure with its bounds.
    fn range(&self) -> Range {
        let range = Range::around(self.joules, ACCURACY);
        if self.disagree() {
            Range {
                low: range.low.min(self.integrated),
                high: range.high.max(self.integrated),
                ..range
            }
        } else {
            range
        }
    }

    /// Whether counter and integral have been apart for longer than the sensor may trail.
    fn disagree(&self) -> bool {
        self.apart_since
            .is_some_and(|since| (self.covered.saturating_sub(since)).as_secs_f64() > TRAILING)
    }

    /// Whether counter and integral are both complete and further apart than they should be.
    fn apart(&self) -> bool {
        let larger = self.counted.max(self.integrated);
        let trailing = TRAILING * self.span.map_or(0.0, |(low, high)| high - low);
        self.moved
            && !self.stuck
            && !self.integral_torn
            && larger > COMPARED_FROM
            && (self.counted - self.integrated).abs() > DISAGREEMENT * larger + trailing
    }
}

/// The meter of several GPUs.
pub struct GpuMeter {
    domains: Vec<Domain>,
    gpus: Vec<(Gpu, Box<dyn GpuSensor>)>,
    notes: Vec<String>,
    told: Vec<[bool; 3]>,
}

impl GpuMeter {
    /// A meter over GPUs and their sensors. Takes the first readings.
    pub fn new(parts: Vec<(GpuInfo, Box<dyn GpuSensor>)>, now: Duration) -> Self {
        let mut notes = Vec::new();
        let mut domains = Vec::new();
        let mut gpus = Vec::new();
        for (info, sensor) in parts {
            if info.mig {
                notes.push(format!(
                    "GPU {} is split by MIG and its sensor covers all of it: the figure includes what \
                     other instances drew",
                    info.index
                ));
            }
            let counter = sensor.energy_millijoules();
            let whole = if info.mig {
                "; the whole GPU, of which MIG instances have shares that no sensor shows"
            } else {
                ""
            };
            domains.push(Domain {
                id: format!("gpu:{}", info.uuid),
                label: format!("GPU {} ({})", info.index, info.name),
                component: Component::Gpu,
                method: Method::Measured,
                source: if counter.is_ok() {
                    format!("NVML energy counter, compared with integrated power{whole}")
                } else {
                    format!("NVML power, integrated (this GPU has no energy counter){whole}")
                },
            });
            let mut gpu = Gpu {
                covered: now,
                ..Gpu::default()
            };
            // A first reading has nothing to compare with; a failure shows again at the next.
            drop(gpu.step(now, counter, sensor.power_milliwatts()));
            gpus.push((gpu, sensor));
        }
        Self {
            told: vec![[false; 3]; domains.len()],
            domains,
            gpus,
            notes,
        }
    }

    /// What each GPU's sensors give now, or why they give nothing.
    pub fn describe(&self) -> Vec<Result<String, String>> {
        self.gpus
            .iter()
            .map(|(_, sensor)| {
                let power = sensor.power_milliwatts();
                match (sensor.energy_millijoules(), &power) {
                    (Ok(_), Ok(milliwatts)) => Ok(format!(
                        "energy counter, and power (now {:.0} W)",
                        f64::from(*milliwatts) / 1e3
                    )),
                    (Ok(_), Err(_)) => Ok("energy counter".to_owned()),
                    (Err(_), Ok(milliwatts)) => Ok(format!(
                        "no energy counter; power (now {:.0} W) is integrated",
                        f64::from(*milliwatts) / 1e3
                    )),
                    (Err(reason), Err(_)) => Err(reason),
                }
            })
            .collect()
    }

    /// Says each oddity of each GPU once.
    fn take_note(&mut self) {
        for (((gpu, _), told), domain) in self.gpus.iter().zip(&mut self.told).zip(&self.domains) {
            let label = &domain.label;
            let mut say = |slot: usize, holds: bool, text: &dyn Fn() -> String| {
                if holds && !told[slot] {
                    told[slot] = true;
                    self.notes.push(text());
                }
            };
            say(0, gpu.stuck, &|| {
                format!(
                    "the energy counter of {label} stood still for a time; power was integrated instead"
                )
            });
            say(1, gpu.disagree(), &|| {
                format!(
                    "the energy counter of {label} and its integrated power differ by more than 5 %; the \
                     counter is the figure, and the range holds both"
                )
            });
        }
    }
}

impl EnergyMeter for GpuMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let mut gaps = Vec::new();
        for (index, (gpu, sensor)) in self.gpus.iter_mut().enumerate() {
            let step = gpu.step(now, sensor.energy_millijoules(), sensor.power_milliwatts());
            if let Err((lost_seconds, reason)) = step {
                gaps.push(Gap {
                    domain: Some(index),
                    lost_seconds,
                    reason,
                });
            }
        }
        self.take_note();
        Ok(Reading {
            joules: self.gpus.iter().map(|(gpu, _)| gpu.range()).collect(),
            gaps,
        })
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What a pretended GPU answers; shared with the test that changes it.
    #[derive(Clone)]
    struct Pretended(Arc<Mutex<(Option<u64>, Option<u32>)>>);

    impl Pretended {
        fn new(energy: Option<u64>, power: Option<u32>) -> Self {
            Self(Arc::new(Mutex::new((energy, power))))
        }

        fn set(&self, energy: Option<u64>, power: Option<u32>) {
            *self.0.lock().unwrap() = (energy, power);
        }
    }

    impl GpuSensor for Pretended {
        fn energy_millijoules(&self) -> Result<u64, String> {
            self.0
                .lock()
                .unwrap()
                .0
                .ok_or_else(|| "not supported".to_owned())
        }

        fn power_milliwatts(&self) -> Result<u32, String> {
            self.0
                .lock()
                .unwrap()
                .1
                .ok_or_else(|| "not supported".to_owned())
        }
    }

    fn info(index: u32, name: &str) -> GpuInfo {
        GpuInfo {
            index,
            uuid: format!("GPU-{index}0a1b2c3"),
            name: name.to_owned(),
            mig: false,
            pci: Some(format!("00000000:{:02X}:00.0", 16 * (index + 1))),
        }
    }

    fn meter(gpu: &Pretended) -> GpuMeter {
        let sensor = Box::new(gpu.clone()) as Box<dyn GpuSensor>;
        GpuMeter::new(vec![(info(0, "X"), sensor)], Duration::ZERO)
    }

    fn at(meter: &mut GpuMeter, seconds: u64) -> Range {
        meter.read(Duration::from_secs(seconds)).unwrap().joules[0]
    }

    #[test]
    fn the_counter_is_the_figure_and_power_agrees() {
        let gpu = Pretended::new(Some(5_000_000), Some(300_000));
        let mut meter = meter(&gpu);
        for second in 1..=60 {
            gpu.set(Some(5_000_000 + second * 300_000), Some(300_000));
            assert_eq!(at(&mut meter, second).central, second as f64 * 300.0);
        }
        assert!(meter.notes().is_empty());
        assert_eq!(at(&mut meter, 60).high, 18_900.0);
    }

    #[test]
    fn without_a_counter_power_is_integrated() {
        let gpu = Pretended::new(None, Some(100_000));
        let mut meter = meter(&gpu);
        assert!(meter.domains()[0].source.contains("no energy counter"));
        gpu.set(None, Some(200_000));
        assert_eq!(at(&mut meter, 2).central, 300.0);
        assert_eq!(at(&mut meter, 3).central, 500.0);
    }

    #[test]
    fn a_counter_that_stands_still_is_bridged_and_not_added_twice() {
        let gpu = Pretended::new(Some(1000), Some(50_000));
        let mut meter = meter(&gpu);
        for second in 1..=30 {
            at(&mut meter, second);
        }
        assert_eq!(at(&mut meter, 30).central, 1500.0);
        assert!(
            meter.notes()[0].contains("stood still"),
            "{:?}",
            meter.notes()
        );
        gpu.set(Some(1000 + 31 * 50_000), Some(50_000));
        assert_eq!(at(&mut meter, 31).central, 1550.0);
    }

    #[test]
    fn counter_and_integral_apart_widen_the_range_and_are_told_once() {
        let gpu = Pretended::new(Some(0), Some(200_000));
        let mut meter = meter(&gpu);
        for second in 1..=20 {
            gpu.set(Some(second * 100_000), Some(200_000));
            at(&mut meter, second);
        }
        let range = at(&mut meter, 20);
        assert_eq!((range.central, range.high), (2000.0, 4000.0));
        assert_eq!(meter.notes().len(), 1);
    }

    /// As an H200 showed it: 80 W, then 690 W at once, and a sensor a second behind.
    #[test]
    fn a_sensor_that_trails_a_step_of_power_does_not_disagree() {
        let gpu = Pretended::new(Some(0), Some(80_000));
        let mut meter = meter(&gpu);
        let mut counter = 0;
        for second in 1..=30 {
            counter += if second <= 6 { 80_000 } else { 690_000 };
            gpu.set(
                Some(counter),
                Some(if second <= 7 { 80_000 } else { 690_000 }),
            );
            at(&mut meter, second);
        }
        assert!(meter.notes().is_empty(), "{:?}", meter.notes());
    }

    #[test]
    fn a_device_that_vanishes_leaves_gaps_and_its_last_figure() {
        let gpu = Pretended::new(None, Some(100_000));
        let mut meter = meter(&gpu);
        assert_eq!(at(&mut meter, 1).central, 100.0);
        gpu.set(None, None);
        let reading = meter.read(Duration::from_secs(4)).unwrap();
        assert_eq!(reading.joules[0].central, 100.0);
        assert_eq!((reading.gaps.len(), reading.gaps[0].lost_seconds), (1, 3.0));
    }

    #[test]
    fn a_counter_that_goes_back_is_a_gap() {
        let gpu = Pretended::new(Some(9_000_000), Some(1000));
        let mut meter = meter(&gpu);
        gpu.set(Some(10), Some(1000));
        let reading = meter.read(Duration::from_secs(1)).unwrap();
        assert_eq!((reading.joules[0].central, reading.gaps.len()), (0.0, 1));
        gpu.set(Some(1010), Some(1000));
        assert_eq!(at(&mut meter, 2).central, 1.0);
    }

    #[test]
    fn visible_devices_are_respected() {
        let alike = || vec![info(0, "A100"), info(1, "A100"), info(2, "A100")];
        let indices = |gpus: &[GpuInfo]| gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>();
        assert_eq!(indices(&visible(alike(), None, false).0), [0, 1, 2]);
        assert_eq!(indices(&visible(alike(), Some("2,0"), false).0), [2, 0]);
        assert_eq!(indices(&visible(alike(), Some("GPU-10a"), false).0), [1]);
        assert_eq!(indices(&visible(alike(), Some("1,7,0"), false).0), [1]);
        assert_eq!(
            indices(&visible(alike(), Some("0000:30:00.0"), false).0),
            [2]
        );
        assert_eq!(indices(&visible(alike(), Some("20:00.0"), false).0), [1]);
        assert!(visible(alike(), Some("40:00.0"), false).0.is_empty());
        assert!(visible(alike(), Some(""), false).0.is_empty());
        assert!(visible(alike(), Some("-1"), false).0.is_empty());
        let mixed = || vec![info(0, "T4"), info(1, "A100")];
        let (all, note) = visible(mixed(), Some("0"), false);
        assert_eq!(all.len(), 2);
        assert!(note.unwrap().contains("PCI_BUS_ID"));
        assert_eq!(indices(&visible(mixed(), Some("1"), true).0), [1]);
    }

    #[test]
    fn a_library_that_is_not_there_is_no_gpu() {
        let roots = Roots {
            nvml: Some("/nonexistent/libnvidia-ml.so.1".into()),
            ..Roots::default()
        };
        assert!(matches!(Library::load(&roots), Err(NoGpu::NoLibrary(_))));
    }
}
