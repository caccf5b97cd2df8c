//! AMD GPUs through the kernel's own sensors: `class/hwmon/hwmonN` with the name `amdgpu`.
//! `energy1_input` (µJ, newer accelerators) is the figure where it is there and moves; else
//! `power1_average` or `power1_input` (µW) is integrated. Files only: no library, no privilege.
//!
//! The arithmetic is that of NVIDIA's GPUs ([`super::nvml::GpuMeter`]), with the same checks; the
//! accuracy of AMD's sensors is not published, and NVIDIA's 5 % is taken for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::nvml::{GpuInfo, GpuMeter, GpuSensor};
use super::{Domain, EnergyMeter, Gap, Reading, Roots};

/// The sensors of one GPU.
struct Folder(PathBuf);

impl Folder {
    fn micro(&self, file: &str) -> Result<u64, String> {
        let path = self.0.join(file);
        fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?
            .trim()
            .parse()
            .map_err(|_| format!("{}: not a number", path.display()))
    }
}

impl GpuSensor for Folder {
    fn energy_millijoules(&self) -> Result<u64, String> {
        self.micro("energy1_input").map(|micro| micro / 1000)
    }

    fn power_milliwatts(&self) -> Result<u32, String> {
        let micro = self
            .micro("power1_average")
            .or_else(|_| self.micro("power1_input"))?;
        u32::try_from(micro / 1000).map_err(|_| "the power is beyond belief".to_owned())
    }
}

/// The folders of AMD GPUs with at least one sensor, in the order of their PCI addresses.
pub fn folders(roots: &Roots) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(roots.sysfs.join("class/hwmon")) else {
        return Vec::new();
    };
    let mut found: Vec<(String, PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| {
            fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim() == "amdgpu")
        })
        .filter(|folder| {
            let sensor = Folder(folder.clone());
            // The second die of a two-die card shows a power of 0: its card is counted by the first.
            sensor.energy_millijoules().is_ok()
                || sensor
                    .power_milliwatts()
                    .is_ok_and(|milliwatts| milliwatts > 0)
        })
        .map(|folder| (address(&folder), folder))
        .collect();
    found.sort();
    found.into_iter().map(|(_, folder)| folder).collect()
}

/// `0000:03:00.0`, where the device link shows it; else the folder's own name.
fn address(folder: &Path) -> String {
    fs::canonicalize(folder.join("device"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .filter(|name| name.contains(':'))
        .or_else(|| Some(folder.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

/// All AMD GPUs as a meter.
pub struct AmdGpus {
    meter: GpuMeter,
    domains: Vec<Domain>,
}

impl AmdGpus {
    /// A meter over all AMD GPUs, or nothing where there are none.
    pub fn open(roots: &Roots, now: Duration) -> Option<Self> {
        let folders = folders(roots);
        if folders.is_empty() {
            return None;
        }
        let parts = folders
            .into_iter()
            .zip(0u32..)
            .map(|(folder, index)| {
                let info = GpuInfo {
                    index,
                    uuid: format!("amd-{}", address(&folder)),
                    name: product(&folder),
                    mig: false,
                    pci: Some(address(&folder)),
                };
                (info, Box::new(Folder(folder)) as Box<dyn GpuSensor>)
            })
            .collect();
        let meter = GpuMeter::new(parts, now);
        let domains = meter
            .domains()
            .iter()
            .map(|domain| Domain {
                source: domain.source.replace("NVML", "amdgpu"),
                ..domain.clone()
            })
            .collect();
        Some(Self { meter, domains })
    }

    /// The GPUs' names.
    pub fn names(&self) -> Vec<String> {
        self.domains
            .iter()
            .map(|domain| {
                domain
                    .label
                    .split_once('(')
                    .map_or(domain.label.as_str(), |(_, name)| {
                        name.trim_end_matches(')')
                    })
                    .to_owned()
            })
            .collect()
    }
}

/// The product's name, which newer drivers show.
fn product(folder: &Path) -> String {
    fs::read_to_string(folder.join("device/product_name"))
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "AMD GPU".to_owned())
}

impl EnergyMeter for AmdGpus {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        self.meter.read(now)
    }

    fn notes(&self) -> Vec<String> {
        self.meter.notes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join("class/hwmon").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let roots = Roots {
            sysfs: folder.path().to_owned(),
            ..Roots::default()
        };
        (folder, roots)
    }

    #[test]
    fn the_energy_counter_is_the_figure_and_power_where_there_is_none() {
        let (folder, roots) = tree(&[
            ("hwmon0/name", "amdgpu\n"),
            ("hwmon0/energy1_input", "5000000\n"),
            ("hwmon0/power1_average", "100000000\n"),
            ("hwmon1/name", "amdgpu\n"),
            ("hwmon1/power1_input", "50000000\n"),
            ("hwmon1/device/product_name", "Instinct MI250X\n"),
            ("hwmon2/name", "k10temp\n"),
            ("hwmon2/power1_input", "9000000\n"),
            ("hwmon3/name", "amdgpu\n"),
            ("hwmon3/power1_average", "0\n"),
        ]);
        let mut meter = AmdGpus::open(&roots, Duration::ZERO).unwrap();
        assert_eq!(meter.names(), ["AMD GPU", "Instinct MI250X"]);
        assert!(meter.domains()[0].source.contains("amdgpu energy counter"));
        fs::write(
            folder.path().join("class/hwmon/hwmon0/energy1_input"),
            "205000000\n",
        )
        .unwrap();
        let joules = meter.read(Duration::from_secs(2)).unwrap().joules;
        assert_eq!((joules[0].central, joules[1].central), (200.0, 100.0));
    }

    #[test]
    fn no_amd_gpu_is_no_meter() {
        let (_folder, roots) = tree(&[("hwmon0/name", "nvme\n")]);
        assert!(AmdGpus::open(&roots, Duration::ZERO).is_none());
    }
}
