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
    /// Where the speed stands.
    pub(crate) source: &'static str,
}

/// Name as the tracker's table has it or finds it, TFLOP/s, GB, and where the speed stands. Data sheets that
/// give the speed for sparse matrices alone are halved.
const TABLE: [(&str, f64, f64, &str); 13] = [
    (
        "NVIDIA V100 SXM2",
        125.0,
        32.0,
        "V100 data sheet, tensor performance",
    ),
    ("NVIDIA T4", 65.0, 16.0, "T4 data sheet, fp16"),
    (
        "NVIDIA A10",
        125.0,
        24.0,
        "A10 data sheet, bf16 tensor core",
    ),
    ("NVIDIA L4", 121.0, 24.0, "L4 data sheet, 242 sparse"),
    ("NVIDIA L40S", 362.0, 48.0, "L40S data sheet, 733 sparse"),
    ("NVIDIA A100 PCIe 40GB", 312.0, 40.0, "A100 data sheet"),
    ("NVIDIA A100 SXM4 40GB", 312.0, 40.0, "A100 data sheet"),
    ("NVIDIA A100 SXM4 80GB", 312.0, 80.0, "A100 data sheet"),
    (
        "NVIDIA H100 PCIe 80GB",
        756.0,
        80.0,
        "H100 data sheet, 1,513 sparse",
    ),
    (
        "NVIDIA H100 SXM5 80GB",
        989.0,
        80.0,
        "H100 data sheet, 1,979 sparse",
    ),
    (
        "NVIDIA H200 SXM",
        989.0,
        141.0,
        "H200 data sheet, 1,979 sparse",
    ),
    (
        "RTX 3090",
        71.0,
        24.0,
        "GA102 white paper, appendix A, fp16 with sums in fp32",
    ),
    (
        "RTX 4090",
        165.0,
        24.0,
        "Ada white paper, appendix A, fp16 with sums in fp32",
    ),
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
    let Some(((name, tflops, gigabytes, source), power)) = row.zip(power) else {
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
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_has_a_power_and_is_found_by_its_own_name() {
        for (name, tflops, _, _) in TABLE {
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
