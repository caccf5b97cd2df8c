//! Devices that a plan can be made for without having them: how fast they multiply, how much memory they
//! have, what they draw. Their speed and memory are the manufacturer's data sheets, dense bf16 or fp16
//! with sums in f32; their power is the tracker's table.

use sparsam_tracker::{Range, estimate, hardware};

use crate::error::Failure;

/// The part of its rated speed at which a device trains. From published speeds: Llama 2 7B with LoRA on
/// an A100 at 2,392 to 4,007 tokens/s is 0.21 to 0.34 (LLaMA-Factory), 8B on an RTX 4090 at 3,083 is 0.60
/// (torchtune); careless settings reach half of the least of these.
pub(super) const UTILISATION: Range = Range::new(0.12, 0.35, 0.60);

/// The least part of its rated power at which a device was seen to train.
pub(super) const LEAST_LOAD: f64 = estimate::LOW_LOAD;

/// A device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    /// 10^12 operations a second.
    pub(crate) tflops: f64,
    /// Memory, bytes.
    pub(crate) memory: f64,
    /// Rated power, W.
    pub(crate) watts: f64,
}

/// Name as the tracker's table has it or finds it, TFLOP/s, GB.
const TABLE: [(&str, f64, f64); 13] = [
    ("NVIDIA V100 SXM2", 125.0, 32.0),
    ("NVIDIA T4", 65.0, 16.0),
    ("NVIDIA A10", 125.0, 24.0),
    ("NVIDIA L4", 121.0, 24.0),
    ("NVIDIA L40S", 362.0, 48.0),
    ("NVIDIA A100 PCIe 40GB", 312.0, 40.0),
    ("NVIDIA A100 SXM4 40GB", 312.0, 40.0),
    ("NVIDIA A100 SXM4 80GB", 312.0, 80.0),
    ("NVIDIA H100 PCIe 80GB", 756.0, 80.0),
    ("NVIDIA H100 SXM5 80GB", 989.0, 80.0),
    ("NVIDIA H200 SXM", 989.0, 141.0),
    ("RTX 3090", 71.0, 24.0),
    ("RTX 4090", 165.0, 24.0),
];

/// The device of a name.
///
/// # Errors
/// It is in no table; the hint lists what is.
pub(crate) fn find(name: &str) -> Result<Device, Failure> {
    let wanted = hardware::find(name);
    let row = TABLE.iter().find(|(listed, ..)| {
        let same = hardware::find(listed)
            .zip(wanted)
            .is_some_and(|(a, b)| a.name == b.name);
        same || listed.eq_ignore_ascii_case(name.trim())
    });
    let power = row.and_then(|(listed, ..)| hardware::find(listed));
    let Some(((name, tflops, gigabytes), power)) = row.zip(power) else {
        let names: Vec<&str> = TABLE.iter().map(|(name, ..)| *name).collect();
        return Err(
            Failure::usage(format!("there is no speed for the hardware `{name}`"))
                .hint(format!("known are {}", names.join(", "))),
        );
    };
    Ok(Device {
        name,
        tflops: *tflops,
        memory: gigabytes * 1e9,
        watts: power.watts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_power_and_is_found_by_its_own_name() {
        for (name, tflops, _) in TABLE {
            let device = find(name).unwrap_or_else(|failure| panic!("{name}: {failure}"));
            assert_eq!((device.name, device.tflops), (name, tflops));
        }
        assert_eq!(
            find("h100 80gb hbm3").unwrap().name,
            "NVIDIA H100 SXM5 80GB"
        );
        assert!(find("abacus").unwrap_err().to_string().contains("abacus"));
    }
}
