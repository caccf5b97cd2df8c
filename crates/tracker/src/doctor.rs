//! What can be read on this machine, and how to make the rest readable. Every sensor is tried; where
//! one exists and is refused, the report gives the commands of a lasting repair for this system, and
//! where one does not exist it says why, so that nobody looks for a repair that is none. At the end stands
//! what a card would say today.
//!
//! Nothing is changed here: the commands are for the user to read and run. Access is given to a group and
//! not to everyone, because energy counters tell of other processes' secrets (CVE-2020-8694, "PLATYPUS").

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::format;
use crate::meter::apple::AppleSilicon;
use crate::meter::{Component, Domain, Method, Roots, hwmon, nvml, perf, powercap, system};
use crate::tracker::{Options, StartError, preview};

/// The report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The system.
    pub system: System,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// Every sensor.
    pub sensors: Vec<Sensor>,
    /// What a card would say of each component today.
    pub card: Vec<CardLine>,
    /// The country and its electricity, as a card would name it.
    pub place: String,
    /// What a card would leave out.
    pub not_included: Vec<String>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// The system, as far as repairs depend on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct System {
    /// `linux`.
    pub os: String,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The processor as it names itself.
    pub cpu: Option<String>,
    /// Hardware threads the run may use, and all of them.
    pub threads: Option<(u32, u32)>,
    /// Bytes of memory the run may use.
    pub memory_bytes: Option<u64>,
    /// Whether a hypervisor shows this processor.
    pub virtual_machine: bool,
    /// Whether this runs in a container.
    pub container: bool,
}

/// A GPU that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// PCI address.
    pub pci: Option<String>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// The driver's version.
    pub driver: Option<String>,
    /// Whether it is split into MIG instances.
    pub mig: bool,
    /// Whether `CUDA_VISIBLE_DEVICES` leaves it to this run.
    pub visible: bool,
}

/// The state of a sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It gives figures.
    Readable,
    /// It exists and may not be read.
    Refused,
    /// It does not exist here.
    Absent,
}

impl State {
    /// `readable`, `refused` or `absent`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Readable => "readable",
            Self::Refused => "refused",
            Self::Absent => "absent",
        }
    }
}

/// One sensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensor {
    /// `RAPL package-0 (powercap)`.
    pub sensor: String,
    /// What it counts.
    pub component: &'static str,
    /// Whether it can be read.
    pub state: State,
    /// What it gives, or why it gives nothing.
    pub detail: String,
    /// How to make it readable.
    pub fix: Option<Fix>,
}

/// A repair that lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// What it does.
    pub what: String,
    /// The commands, in order.
    pub commands: Vec<String>,
}

/// What a card would say of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CardLine {
    /// Its name.
    pub label: String,
    /// `measured`, `modelled` or `assumed`.
    pub method: &'static str,
    /// From what.
    pub source: String,
}

/// Looks at everything.
///
/// # Errors
/// The options make no sense.
pub fn examine(options: &Options) -> Result<Report, StartError> {
    let roots = &options.roots;
    let preview = preview(options)?;
    let system = examine_system(roots);
    let (gpus, mut sensors) = nvidia(roots, &system);
    sensors.extend(amd(roots));
    sensors.extend(apple());
    sensors.extend(perf_events(roots, &system));
    sensors.extend(powercap_zones(roots, &system));
    sensors.extend(models(roots));
    Ok(Report {
        system,
        gpus,
        sensors,
        card: preview.domains.iter().map(card_line).collect(),
        place: match (&preview.place, preview.intensity.g_per_kwh.central) {
            (Some(place), Some(g)) => format!(
                "{}, {} g/kWh ({})",
                place.name,
                format::plain_decimal(g, 4),
                preview.intensity.source
            ),
            (None, Some(g)) => format!(
                "{} g/kWh ({})",
                format::plain_decimal(g, 4),
                preview.intensity.source
            ),
            _ => preview.intensity.source.clone(),
        },
        not_included: preview.not_included,
        notes: preview.notes,
    })
}

fn card_line(domain: &Domain) -> CardLine {
    CardLine {
        label: domain.label.clone(),
        method: domain.method.name(),
        source: domain.source.clone(),
    }
}

fn examine_system(roots: &Roots) -> System {
    let processor = system::processor(roots);
    let allowance = system::cpu_allowance(roots);
    let kernel = fs::read_to_string(roots.procfs.join("sys/kernel/osrelease"))
        .ok()
        .map(|text| text.trim().to_owned());
    let group = fs::read_to_string(roots.procfs.join("1/cgroup")).unwrap_or_default();
    let container = Path::new("/.dockerenv").exists()
        || Path::new("/run/.containerenv").exists()
        || ["docker", "kubepods", "containerd", "lxc"]
            .iter()
            .any(|name| group.contains(name));
    System {
        os: std::env::consts::OS.to_owned(),
        kernel,
        cpu: processor.as_ref().and_then(|p| p.name.clone()),
        threads: processor.as_ref().map(|p| {
            let usable = allowance
                .affinity
                .as_ref()
                .and_then(|cpus| u32::try_from(cpus.len()).ok())
                .unwrap_or(p.threads);
            (usable.min(p.threads), p.threads)
        }),
        memory_bytes: system::usable_memory(roots),
        virtual_machine: processor.is_some_and(|p| p.virtual_machine),
        container,
    }
}

fn nvidia(roots: &Roots, system: &System) -> (Vec<Gpu>, Vec<Sensor>) {
    let absent = |state, detail: String, fix| Sensor {
        sensor: "NVML".to_owned(),
        component: Component::Gpu.name(),
        state,
        detail,
        fix,
    };
    let library = match nvml::Library::load(roots) {
        Ok(library) => library,
        Err(error) => {
            let (state, detail, fix) = no_nvml(&error, has_nvidia_hardware(roots), system);
            return (Vec::new(), vec![absent(state, detail, fix)]);
        }
    };
    let found = match library.gpus() {
        Ok(found) => found,
        Err(error) => {
            return (
                Vec::new(),
                vec![absent(State::Refused, error.to_string(), None)],
            );
        }
    };
    if found.is_empty() {
        let detail = "the library is there and shows no GPU".to_owned();
        return (Vec::new(), vec![absent(State::Absent, detail, None)]);
    }
    let listed = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let pci_order = std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID");
    let (visible, _) = nvml::visible(found.clone(), listed.as_deref(), pci_order);
    let driver = library.driver();
    let sensors = library
        .meter(&found, Duration::ZERO)
        .describe()
        .into_iter()
        .zip(&found)
        .map(|(description, gpu)| Sensor {
            sensor: format!("NVML {}", gpu.uuid),
            component: Component::Gpu.name(),
            state: if description.is_ok() {
                State::Readable
            } else {
                State::Refused
            },
            detail: format!(
                "{}: {}",
                gpu.name,
                description.unwrap_or_else(|reason| reason)
            ),
            fix: None,
        })
        .collect();
    let gpus = found
        .into_iter()
        .map(|gpu| Gpu {
            memory_bytes: library.memory_bytes(gpu.index),
            driver: driver.clone(),
            mig: gpu.mig,
            visible: visible.contains(&gpu),
            pci: gpu.pci,
            name: gpu.name,
            uuid: gpu.uuid,
        })
        .collect();
    (gpus, sensors)
}

/// Whether the PCI bus shows a display controller of NVIDIA's (vendor 10de, class 03).
fn has_nvidia_hardware(roots: &Roots) -> bool {
    let Ok(devices) = fs::read_dir(roots.sysfs.join("bus/pci/devices")) else {
        return false;
    };
    devices.flatten().any(|device| {
        let read = |file: &str| fs::read_to_string(device.path().join(file)).unwrap_or_default();
        read("vendor").trim() == "0x10de" && read("class").starts_with("0x03")
    })
}

fn no_nvml(error: &nvml::NoGpu, hardware: bool, system: &System) -> (State, String, Option<Fix>) {
    match error {
        nvml::NoGpu::Failed(reason) => (State::Refused, format!("NVML fails: {reason}"), None),
        nvml::NoGpu::NoLibrary(_) if !hardware => (
            State::Absent,
            "no NVIDIA GPU and no driver".to_owned(),
            None,
        ),
        nvml::NoGpu::NoLibrary(_) if system.container => (
            State::Refused,
            "an NVIDIA GPU is there, and this container lacks the driver's library".to_owned(),
            Some(Fix {
                what: "start the container with the NVIDIA Container Toolkit, whose `utility` part is \
                       this library"
                    .to_owned(),
                commands: vec![
                    "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility IMAGE"
                        .to_owned(),
                ],
            }),
        ),
        nvml::NoGpu::NoLibrary(_) => (
            State::Refused,
            "an NVIDIA GPU is there, and the driver's library libnvidia-ml.so.1 is not".to_owned(),
            Some(Fix {
                what: "install NVIDIA's driver, of which this library is a part; where it is in an \
                       unusual place, name it"
                    .to_owned(),
                commands: vec!["export SPARSAM_NVML=/path/to/libnvidia-ml.so.1".to_owned()],
            }),
        ),
    }
}

fn amd(roots: &Roots) -> Vec<Sensor> {
    hwmon::folders(roots)
        .into_iter()
        .map(|folder| Sensor {
            sensor: format!("amdgpu {}", folder.display()),
            component: Component::Gpu.name(),
            state: State::Readable,
            detail: if folder.join("energy1_input").exists() {
                "energy counter and power".to_owned()
            } else {
                "power, which is integrated".to_owned()
            },
            fix: None,
        })
        .collect()
}

/// On a Mac, the chip's own counters.
fn apple() -> Option<Sensor> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let sensor = |state, detail| Sensor {
        sensor: "IOReport (macmon)".to_owned(),
        component: Component::Cpu.name(),
        state,
        detail,
        fix: None,
    };
    Some(match AppleSilicon::open(true, Duration::ZERO) {
        Some(meter) => sensor(
            State::Readable,
            format!(
                "power of CPU, GPU with neural engine, and memory of {}, which is integrated",
                meter.chip()
            ),
        ),
        None => sensor(
            State::Absent,
            "no counters: a virtual machine, or a Mac without Apple silicon".to_owned(),
        ),
    })
}

/// Whether the kernel knows the capability CAP_PERFMON, which came with Linux 5.8.
fn knows_perfmon(kernel: Option<&str>) -> bool {
    let mut numbers = kernel
        .unwrap_or_default()
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 8)
}

fn perf_events(roots: &Roots, system: &System) -> Vec<Sensor> {
    let sensor = |state, detail: String, fix| Sensor {
        sensor: "RAPL (perf events)".to_owned(),
        component: Component::Cpu.name(),
        state,
        detail,
        fix,
    };
    vec![match perf::PerfRapl::open(roots, Duration::ZERO) {
        Ok(meter) => sensor(
            State::Readable,
            format!(
                "64-bit counters of the package{}",
                if meter.measures_memory() {
                    " and its memory"
                } else {
                    ""
                }
            ),
            None,
        ),
        Err(error @ perf::NoPerf::Refused(_)) => {
            sensor(State::Refused, error.to_string(), Some(perf_fix(system)))
        }
        Err(error) => sensor(State::Absent, error.to_string(), None),
    }]
}

fn perf_fix(system: &System) -> Fix {
    if system.container {
        return Fix {
            what:
                "give the container the capability; Docker's own profile refuses the system call \
                   without it"
                    .to_owned(),
            commands: vec!["docker run --cap-add=PERFMON IMAGE".to_owned()],
        };
    }
    if knows_perfmon(system.kernel.as_deref()) {
        Fix {
            what:
                "give the program the capability to read performance counters; it is lost when the \
                   program is replaced by a new version"
                    .to_owned(),
            commands: vec!["sudo setcap cap_perfmon=ep \"$(command -v sparsam)\"".to_owned()],
        }
    } else {
        Fix {
            what:
                "allow performance counters; kernels before 5.8 have no capability for them alone"
                    .to_owned(),
            commands: vec![
                "echo 'kernel.perf_event_paranoid = 0' | sudo tee /etc/sysctl.d/60-sparsam.conf"
                    .to_owned(),
                "sudo sysctl --system".to_owned(),
            ],
        }
    }
}

fn powercap_zones(roots: &Roots, system: &System) -> Vec<Sensor> {
    let zones = powercap::zones(roots);
    if zones.is_empty() {
        let (detail, fix) = no_zones(system);
        return vec![Sensor {
            sensor: "RAPL (powercap)".to_owned(),
            component: Component::Cpu.name(),
            state: State::Absent,
            detail,
            fix,
        }];
    }
    zones
        .into_iter()
        .map(|zone| {
            let outcome = zone.read();
            Sensor {
                sensor: format!("RAPL {} (powercap)", zone.name),
                component: zone.component.name(),
                state: if outcome.is_ok() {
                    State::Readable
                } else {
                    State::Refused
                },
                detail: match &outcome {
                    Ok(microjoules) => format!("a counter, now at {microjoules} uJ"),
                    Err(reason) => reason.clone(),
                },
                fix: outcome.is_err().then(|| powercap_fix(system)),
            }
        })
        .collect()
}

fn no_zones(system: &System) -> (String, Option<Fix>) {
    if system.virtual_machine {
        return (
            "this is a virtual machine, and its host keeps the counters to itself: the processor is \
             modelled; `energy.cpu_watts` or `--cpu-watts` states its power"
                .to_owned(),
            None,
        );
    }
    if system.container {
        return (
            "the container does not show them".to_owned(),
            Some(mount_fix()),
        );
    }
    (
        "the kernel shows none: the driver is not loaded, or the processor has no such counters"
            .to_owned(),
        Some(Fix {
            what: "load the driver, now and at every start".to_owned(),
            commands: vec![
                "sudo modprobe intel_rapl_msr".to_owned(),
                "echo intel_rapl_msr | sudo tee /etc/modules-load.d/sparsam.conf".to_owned(),
            ],
        }),
    )
}

/// Docker hides `/sys/devices/virtual/powercap`; links alone would lead nowhere, so both trees are
/// mounted, at another place.
fn mount_fix() -> Fix {
    Fix {
        what:
            "mount both trees of the host into the container (one holds links into the other), and \
               name their root"
                .to_owned(),
        commands: vec![
            "docker run -v /sys/class/powercap:/host/sys/class/powercap:ro \
             -v /sys/devices/virtual/powercap:/host/sys/devices/virtual/powercap:ro \
             -e SPARSAM_SYSFS=/host/sys IMAGE"
                .to_owned(),
        ],
    }
}

fn powercap_fix(system: &System) -> Fix {
    if system.container {
        return Fix {
            what:
                "the host gives these files to root alone: make them readable there (run `sparsam \
                   doctor` on the host), then start the container with that group"
                    .to_owned(),
            commands: vec![
                "docker run --group-add \"$(getent group energy | cut -d: -f3)\" IMAGE".to_owned(),
            ],
        };
    }
    Fix {
        what: "give all counters to a group, at every start; one rule covers every socket and its \
               memory"
            .to_owned(),
        commands: vec![
            "sudo groupadd --force --system energy".to_owned(),
            "sudo usermod --append --groups energy \"$USER\"".to_owned(),
            "echo 'SUBSYSTEM==\"powercap\", ACTION==\"add|change\", RUN+=\"/bin/sh -c '\\''chgrp energy \
             /sys%p/energy_uj; chmod 0440 /sys%p/energy_uj'\\''\"' | sudo tee \
             /etc/udev/rules.d/60-sparsam-rapl.rules"
                .to_owned(),
            "echo 'z /sys/class/powercap/intel-rapl:*/energy_uj 0440 root energy - -' | sudo tee \
             /etc/tmpfiles.d/sparsam-rapl.conf"
                .to_owned(),
            "sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=powercap".to_owned(),
            "sudo systemd-tmpfiles --create sparsam-rapl.conf".to_owned(),
            "newgrp energy  # or log in again".to_owned(),
        ],
    }
}

fn models(roots: &Roots) -> Vec<Sensor> {
    let sensor = |name: &str, component: Component, found: Option<String>, missing: &str| Sensor {
        sensor: name.to_owned(),
        component: component.name(),
        state: if found.is_some() {
            State::Readable
        } else {
            State::Absent
        },
        detail: found.unwrap_or_else(|| missing.to_owned()),
        fix: None,
    };
    let load = system::cpu_time(roots, &system::CpuAllowance::default());
    vec![
        sensor(
            "processor load (model)",
            Component::Cpu,
            load.map(|time| format!("{} threads", time.threads)),
            "/proc/stat cannot be read",
        ),
        sensor(
            "memory size (model)",
            Component::Ram,
            system::usable_memory(roots)
                .map(|bytes| format!("{:.1} GB usable", bytes as f64 / 1e9)),
            "neither /proc/meminfo nor a control group can be read",
        ),
    ]
}

/// The report in words.
pub fn lines(report: &Report) -> Vec<String> {
    let system = &report.system;
    let mut out = vec![format!(
        "system     {}{}, {}{}",
        system.os,
        system
            .kernel
            .as_ref()
            .map_or_else(String::new, |kernel| format!(" {kernel}")),
        system.cpu.as_deref().unwrap_or("unknown processor"),
        match (system.virtual_machine, system.container) {
            (true, true) => ", container in a virtual machine",
            (true, false) => ", virtual machine",
            (false, true) => ", container",
            (false, false) => "",
        }
    )];
    if let Some((usable, all)) = system.threads {
        let memory = system.memory_bytes.map_or_else(String::new, |bytes| {
            format!(", {:.1} GB of memory", bytes as f64 / 1e9)
        });
        out.push(format!(
            "           {usable} of {all} threads usable{memory}"
        ));
    }
    for gpu in &report.gpus {
        let mut parts = vec![gpu.name.clone()];
        parts.extend(
            gpu.memory_bytes
                .map(|bytes| format!("{:.0} GB", bytes as f64 / 1e9)),
        );
        parts.extend(gpu.driver.as_ref().map(|d| format!("driver {d}")));
        parts.push(gpu.uuid.clone());
        if gpu.mig {
            parts.push("split by MIG".to_owned());
        }
        if !gpu.visible {
            parts.push("not visible to this run".to_owned());
        }
        out.push(format!("gpu        {}", parts.join(", ")));
    }
    for sensor in &report.sensors {
        out.push(format!(
            "sensor     {}: {}: {}: {}",
            sensor.component,
            sensor.sensor,
            sensor.state.name(),
            sensor.detail
        ));
    }
    // The same repair serves several sensors and is printed once.
    let mut told: Vec<&Fix> = Vec::new();
    for fix in report.sensors.iter().filter_map(|s| s.fix.as_ref()) {
        if told.contains(&fix) {
            continue;
        }
        told.push(fix);
        out.push(format!("fix        {}", fix.what));
        out.extend(fix.commands.iter().map(|command| format!("    {command}")));
    }
    out.push("card       what a card would say today:".to_owned());
    for line in &report.card {
        out.push(format!(
            "  {}: {}: {}",
            line.label, line.method, line.source
        ));
    }
    out.push(format!("  electricity: {}", report.place));
    out.push(format!(
        "  not included: {}",
        report.not_included.join("; ")
    ));
    out.extend(report.notes.iter().map(|note| format!("  note: {note}")));
    out
}

impl Report {
    /// Whether everything a card would say of processor and GPUs is measured.
    pub fn all_measured(&self) -> bool {
        self.card
            .iter()
            .all(|line| line.method == Method::Measured.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Options) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let options = Options {
            roots: Roots {
                sysfs: folder.path().join("sys"),
                procfs: folder.path().join("proc"),
                nvml: Some(folder.path().join("none.so")),
            },
            country: Some("FRA".to_owned()),
            ..Options::default()
        };
        (folder, options)
    }

    const CPUINFO: &str =
        "processor : 0\nmodel name : AMD EPYC 7763 64-Core Processor\nflags : fpu\n";

    #[test]
    fn a_readable_counter_is_what_the_card_says() {
        let (_folder, options) = tree(&[
            ("proc/cpuinfo", CPUINFO),
            ("proc/meminfo", "MemTotal: 16000000 kB\n"),
            ("proc/stat", "cpu0 1 0 1 1 0 0 0 0\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-test\n"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "1000\n"),
        ]);
        let report = examine(&options).unwrap();
        let rapl = report
            .sensors
            .iter()
            .find(|s| s.sensor == "RAPL package-0 (powercap)")
            .unwrap();
        assert_eq!((rapl.state, rapl.fix.as_ref()), (State::Readable, None));
        assert_eq!(report.card[0].label, "CPU package 0");
        assert_eq!(report.card[0].method, "measured");
        assert_eq!(report.card[1].method, "modelled");
        assert!(!report.all_measured());
        assert!(report.place.starts_with("France, "));
        let text = lines(&report).join("\n");
        assert!(
            text.contains("AMD EPYC 7763") && text.contains("linux 6.1.0-test"),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["card"][0]["method"], "measured");
    }

    #[test]
    fn a_counter_that_is_refused_comes_with_a_lasting_repair() {
        // A folder in the counter's place cannot be read by anyone, root included.
        let (_folder, options) = tree(&[
            ("proc/cpuinfo", CPUINFO),
            ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
            ("sys/class/powercap/intel-rapl:0/energy_uj/x", ""),
            ("sys/class/powercap/intel-rapl:1/name", "package-1\n"),
            ("sys/class/powercap/intel-rapl:1/energy_uj/x", ""),
        ]);
        let report = examine(&options).unwrap();
        let refused: Vec<&Sensor> = report
            .sensors
            .iter()
            .filter(|s| s.state == State::Refused)
            .collect();
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(|s| s.fix.is_some()));
        let text = lines(&report).join("\n");
        assert_eq!(text.matches("\nfix ").count(), 1, "told once: {text}");
    }

    #[test]
    fn repairs_fit_the_system() {
        let bare = System {
            kernel: Some("6.1.0".to_owned()),
            ..System::default()
        };
        let old = System {
            kernel: Some("5.4.0-26-generic".to_owned()),
            ..System::default()
        };
        let container = System {
            container: true,
            ..bare.clone()
        };
        let machine = System {
            virtual_machine: true,
            ..bare.clone()
        };
        let text = |fix: Fix| fix.commands.join("\n");
        assert!(text(perf_fix(&bare)).contains("cap_perfmon"));
        assert!(text(perf_fix(&old)).contains("perf_event_paranoid"));
        assert!(text(perf_fix(&container)).contains("--cap-add=PERFMON"));
        let rule = text(powercap_fix(&bare));
        assert!(rule.contains("/etc/udev/rules.d/") && rule.contains("/etc/tmpfiles.d/"));
        assert!(
            rule.contains("0440") && !rule.contains("0444"),
            "a group, not everyone"
        );
        let mounts = text(no_zones(&container).1.unwrap());
        assert!(
            mounts.contains("/sys/class/powercap:")
                && mounts.contains("/sys/devices/virtual/powercap:")
        );
        assert_eq!(
            no_zones(&machine).1,
            None,
            "nothing to repair in a virtual machine"
        );
        assert!(text(no_zones(&bare).1.unwrap()).contains("modprobe"));
        let missing = nvml::NoGpu::NoLibrary("x".to_owned());
        assert_eq!(no_nvml(&missing, false, &bare).0, State::Absent);
        assert!(text(no_nvml(&missing, true, &container).2.unwrap()).contains("--gpus all"));
    }
}
