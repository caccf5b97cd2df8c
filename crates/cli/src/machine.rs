//! What the operating system says about this process and its machine.

use serde::{Deserialize, Serialize};

/// The machine a run was made on, for its record. Processor and GPU are named in the energy
/// record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    /// Such as `linux`.
    pub(crate) os: String,
    /// Such as `x86_64`.
    pub(crate) architecture: String,
    /// Where the model was computed: `cpu`, or `cuda:0` with the number of a GPU. A run that was continued
    /// elsewhere has all of them in turn, `cuda:0, cpu`.
    #[serde(default = "cpu")]
    pub(crate) device: String,
    /// Processor threads this process may use.
    pub(crate) processors: usize,
}

impl Platform {
    /// The machine this runs on, and where on it the model is computed.
    pub(crate) fn here(device: &str) -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            device: device.to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Platform {
    /// The device of the last session.
    pub(crate) fn last_device(&self) -> &str {
        self.device.rsplit(", ").next().unwrap_or_default()
    }

    /// Notes that the run goes on on `device`.
    pub(crate) fn goes_on(&mut self, device: &str) {
        if self.last_device() != device {
            self.device = format!("{}, {device}", self.device);
        }
    }
}

/// What records of versions before GPUs mean.
fn cpu() -> String {
    "cpu".to_owned()
}

/// The most memory this process has held so far, in bytes: the maximum resident set of getrusage(2).
#[cfg(unix)]
#[expect(unsafe_code, reason = "getrusage is reached through libc")]
pub(crate) fn peak_memory() -> Option<u64> {
    // SAFETY: all zeros are a valid rusage, and getrusage only writes to the structure given.
    let (outcome, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), usage)
    };
    // Linux and the BSDs count kilobytes, macOS bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    (outcome == 0)
        .then(|| u64::try_from(usage.ru_maxrss).ok())?
        .map(|count| count * unit)
}

/// Not known here.
#[cfg(not(unix))]
pub(crate) fn peak_memory() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::Platform;

    #[test]
    fn a_run_that_went_elsewhere_says_so() {
        let mut platform = Platform::here("cuda:0");
        for (device, wanted) in [
            ("cuda:0", "cuda:0"),
            ("cpu", "cuda:0, cpu"),
            ("cpu", "cuda:0, cpu"),
            ("cuda:0", "cuda:0, cpu, cuda:0"),
        ] {
            platform.goes_on(device);
            assert_eq!(platform.device, wanted);
            assert_eq!(platform.last_device(), device);
        }
        let mut old = serde_json::to_value(&platform).expect("plain values");
        old.as_object_mut().expect("an object").remove("device");
        let old: Platform = serde_json::from_value(old).expect("a record of before GPUs");
        assert_eq!(old.device, "cpu");
    }

    #[cfg(unix)]
    #[test]
    fn the_peak_grows_with_what_is_held() {
        let before = super::peak_memory().expect("getrusage works");
        // More than was ever held, as other tests may have given much back.
        let held = vec![1u8; before as usize + (64 << 20)];
        let after = super::peak_memory().expect("getrusage works");
        assert!(held.iter().all(|&byte| byte == 1));
        assert!(after >= before + (64 << 20), "{before} then {after}");
    }
}
