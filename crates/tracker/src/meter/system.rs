//! What procfs and the control groups say about the machine: processor, load, memory, and how much of
//! them this process may use. Only facts are gathered here; [`super::model`] turns them into watts.

use std::fs;
use std::path::{Path, PathBuf};

use super::Roots;

/// The processor as `/proc/cpuinfo` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Processor {
    /// `model name`, where the architecture has one.
    pub name: Option<String>,
    /// Logical processors that are shown.
    pub threads: u32,
    /// Distinct `physical id`s, at least 1.
    pub sockets: u32,
    /// Whether a hypervisor shows this processor, so that it may be a part of a larger one.
    pub virtual_machine: bool,
}

/// Reads the processor. Nothing where `/proc/cpuinfo` cannot be read.
pub fn processor(roots: &Roots) -> Option<Processor> {
    let text = fs::read_to_string(roots.procfs.join("cpuinfo")).ok()?;
    Some(parse_cpuinfo(&text))
}

fn parse_cpuinfo(text: &str) -> Processor {
    let mut processor = Processor::default();
    let mut physical: Vec<&str> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match key.trim() {
            "processor" if value.bytes().all(|b| b.is_ascii_digit()) => processor.threads += 1,
            "model name" if processor.name.is_none() && !value.is_empty() => {
                processor.name = Some(value.to_owned());
            }
            "physical id" if !physical.contains(&value) => physical.push(value),
            "flags" => processor.virtual_machine |= value.split(' ').any(|f| f == "hypervisor"),
            _ => {}
        }
    }
    processor.sockets = u32::try_from(physical.len().max(1)).unwrap_or(1);
    processor
}

/// The number that the kernel drew when it started, `/proc/sys/kernel/random/boot_id`.
pub fn boot(roots: &Roots) -> Option<String> {
    let text = fs::read_to_string(roots.procfs.join("sys/kernel/random/boot_id")).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The processors and the control groups of this process, as the kernel writes them: two processes of
/// which these are equal are given the same power by the models.
pub fn part(roots: &Roots) -> String {
    let read = |name: &str| fs::read_to_string(roots.procfs.join(name)).unwrap_or_default();
    let status = read("self/status");
    let affinity = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .map_or("", str::trim);
    let groups = read("self/cgroup").lines().collect::<Vec<_>>().join(" ");
    format!("{affinity} {groups}").trim().to_owned()
}

/// Which logical processors, and how much of their time, this process may use.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CpuAllowance {
    /// The logical processors of the affinity mask, or none where it cannot be read.
    pub affinity: Option<Vec<u32>>,
    /// Processors' worth of time by the control group's quota, where one is set.
    pub quota: Option<f64>,
}

/// Reads affinity and quota.
pub fn cpu_allowance(roots: &Roots) -> CpuAllowance {
    let status = fs::read_to_string(roots.procfs.join("self/status")).unwrap_or_default();
    let affinity = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .and_then(|list| parse_cpu_list(list.trim()));
    let unified = cgroup_folders(roots, "")
        .iter()
        .filter_map(|folder| parse_cpu_max(&fs::read_to_string(folder.join("cpu.max")).ok()?))
        .reduce(f64::min);
    let quota = cgroup_folders(roots, "cpu")
        .iter()
        .filter_map(|folder| {
            let quota: f64 = number(&folder.join("cpu.cfs_quota_us"))?;
            let period: f64 = number(&folder.join("cpu.cfs_period_us"))?;
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        })
        .chain(unified)
        .reduce(f64::min);
    CpuAllowance { affinity, quota }
}

/// `0-3,8` as 0, 1, 2, 3, 8.
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last.checked_sub(first)? > 65_536 {
            return None;
        }
        cpus.extend(first..=last);
    }
    (!cpus.is_empty()).then_some(cpus)
}

/// cgroup v2's `cpu.max`: `max 100000`, or quota and period in microseconds.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// Bytes of memory this process may use: the smallest of the control groups' limits and the
/// machine's memory. Nothing where neither can be read.
pub fn usable_memory(roots: &Roots) -> Option<u64> {
    let meminfo = fs::read_to_string(roots.procfs.join("meminfo")).unwrap_or_default();
    let machine = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024);
    let unified = cgroup_folders(roots, "")
        .into_iter()
        .map(|folder| folder.join("memory.max"));
    let version_1 = cgroup_folders(roots, "memory")
        .into_iter()
        .map(|folder| folder.join("memory.limit_in_bytes"));
    unified
        .chain(version_1)
        .filter_map(|file| number::<u64>(&file))
        .chain(machine)
        .filter(|bytes| *bytes > 0)
        .min()
}

/// Processor time in seconds, summed by what it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CpuTime {
    /// Logical processors that are shown.
    pub threads: u32,
    /// Busy time of the whole machine, processor-seconds.
    pub machine_busy: f64,
    /// All time of the whole machine, busy and idle, processor-seconds.
    pub machine_total: f64,
    /// Busy time of the processors of the affinity mask, processor-seconds.
    pub allowed_busy: f64,
}

/// Clock ticks per second in `/proc/stat`. The kernel's `USER_HZ`, 100 on every architecture Linux
/// runs on today; only ratios of ticks to ticks are taken from it here.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/stat`. Nothing where it cannot be read or understood.
pub fn cpu_time(roots: &Roots, allowance: &CpuAllowance) -> Option<CpuTime> {
    let text = fs::read_to_string(roots.procfs.join("stat")).ok()?;
    parse_stat(&text, allowance.affinity.as_deref())
}

/// Columns after the name: user nice system idle iowait irq softirq steal guest guest_nice. Guest time
/// is inside user and nice already; stolen time is another machine's work.
fn parse_stat(text: &str, affinity: Option<&[u32]>) -> Option<CpuTime> {
    let mut time = CpuTime::default();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("cpu") else {
            continue;
        };
        let mut fields = rest.split_ascii_whitespace();
        if rest.starts_with(' ') {
            continue; // The sum line: it would also count processors that went offline.
        }
        let Ok(cpu) = fields.next()?.parse::<u32>() else {
            continue;
        };
        let ticks: Vec<f64> = fields
            .take(8)
            .map(|field| field.parse::<f64>().ok())
            .collect::<Option<_>>()?;
        let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks[..] else {
            return None;
        };
        let busy = (user + nice + system + irq + softirq) / TICKS_PER_SECOND;
        time.threads += 1;
        time.machine_busy += busy;
        time.machine_total += busy + (idle + iowait) / TICKS_PER_SECOND;
        if affinity.is_none_or(|cpus| cpus.contains(&cpu)) {
            time.allowed_busy += busy;
        }
    }
    (time.threads > 0).then_some(time)
}

/// Processor-seconds used by this process' control group, where the kernel accounts them.
pub fn cgroup_cpu_seconds(roots: &Roots) -> Option<f64> {
    // Innermost first: the process' own group, or the container's root where that is hidden.
    for folder in cgroup_folders(roots, "") {
        let Ok(text) = fs::read_to_string(folder.join("cpu.stat")) else {
            continue;
        };
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .and_then(|value| value.trim().parse::<f64>().ok());
        if let Some(microseconds) = usage {
            return Some(microseconds / 1e6);
        }
    }
    cgroup_folders(roots, "cpuacct")
        .iter()
        .find_map(|folder| number::<f64>(&folder.join("cpuacct.usage")))
        .map(|nanoseconds| nanoseconds / 1e9)
}

/// The folders of this process' control group and all its parents, innermost first. `controller` is
/// empty for version 2. In a container the inner folders are often hidden and only the root is there;
/// the caller skips what does not exist.
fn cgroup_folders(roots: &Roots, controller: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string(roots.procfs.join("self/cgroup")).unwrap_or_default();
    let Some(group) = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        (controllers == controller || controllers.split(',').any(|c| c == controller))
            .then_some(path)
    }) else {
        return Vec::new();
    };
    let root = roots.sysfs.join("fs/cgroup").join(controller);
    let inner = Path::new(group.trim_start_matches('/'));
    inner
        .ancestors()
        .filter(|part| {
            part.components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
        })
        .map(|part| root.join(part))
        .collect()
}

fn number<T: std::str::FromStr>(file: &Path) -> Option<T> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let roots = Roots {
            sysfs: folder.path().join("sys"),
            procfs: folder.path().join("proc"),
            nvml: None,
        };
        (folder, roots)
    }

    #[test]
    fn cpuinfo_gives_name_threads_sockets_and_hypervisor() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nphysical id\t: 0\nflags\t\t: fpu hypervisor\n\n\
                    processor\t: 1\nmodel name\t: AMD EPYC 7763\nphysical id\t: 1\nflags\t\t: fpu hypervisor\n";
        let processor = parse_cpuinfo(text);
        assert_eq!(processor.name.as_deref(), Some("AMD EPYC 7763"));
        assert_eq!((processor.threads, processor.sockets), (2, 2));
        assert!(processor.virtual_machine);
        assert!(!parse_cpuinfo("processor : 0\nflags : fpu\n").virtual_machine);
    }

    #[test]
    fn the_smallest_limit_of_the_group_and_its_parents_counts() {
        let (_folder, roots) = roots(&[
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8\n"),
            (
                "proc/meminfo",
                "MemTotal:       16777216 kB\nMemFree: 1 kB\n",
            ),
            ("sys/fs/cgroup/outer/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/outer/memory.max", "2147483648\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            (
                "sys/fs/cgroup/outer/inner/cpu.stat",
                "usage_usec 2500000\nuser_usec 1\n",
            ),
        ]);
        let allowance = cpu_allowance(&roots);
        assert_eq!(allowance.affinity, Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(allowance.quota, Some(1.5));
        assert_eq!(usable_memory(&roots), Some(2_147_483_648));
        assert_eq!(cgroup_cpu_seconds(&roots), Some(2.5));
    }

    #[test]
    fn version_1_groups_are_read_and_no_limit_means_the_machines_memory() {
        let (_folder, roots) = roots(&[
            (
                "proc/self/cgroup",
                "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n",
            ),
            ("proc/meminfo", "MemTotal:       1000 kB\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpuacct/cpuacct.usage", "3000000000\n"),
        ]);
        assert_eq!(usable_memory(&roots), Some(1_024_000));
        assert_eq!(cpu_allowance(&roots).quota, Some(2.0));
        assert_eq!(cgroup_cpu_seconds(&roots), Some(3.0));
    }

    #[test]
    fn nothing_readable_is_nothing_and_not_zero() {
        let (_folder, roots) = roots(&[]);
        assert_eq!(processor(&roots), None);
        assert_eq!(usable_memory(&roots), None);
        assert_eq!(cpu_allowance(&roots), CpuAllowance::default());
        assert_eq!(cpu_time(&roots, &CpuAllowance::default()), None);
    }

    #[test]
    fn busy_time_leaves_out_idle_steal_and_guest() {
        let text = "cpu  999 0 0 999 0 0 0 0 0 0\n\
                    cpu0 100 0 100 700 100 0 0 50 90 0\n\
                    cpu1 300 0 0 700 0 0 0 0 0 0\nintr 1\n";
        let all = parse_stat(text, None).unwrap();
        assert_eq!(all.threads, 2);
        assert!((all.machine_busy - 5.0).abs() < 1e-9);
        assert!((all.machine_total - 20.0).abs() < 1e-9);
        let one = parse_stat(text, Some(&[1])).unwrap();
        assert!((one.allowed_busy - 3.0).abs() < 1e-9);
        assert_eq!(parse_stat("cpu0 a b\n", None), None);
    }
}
