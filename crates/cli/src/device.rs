//! Where a run computes: on the processor, or on an NVIDIA GPU where this program was built for one.

use std::str::FromStr;

use candle_core::Device;

use crate::error::Failure;

/// What a recipe or an argument asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first GPU where one can be used, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number, counted as `CUDA_VISIBLE_DEVICES` leaves them.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    "expected `auto`, `cpu`, or `cuda:0` with the number of a GPU".to_owned()
                }),
        }
    }
}

/// A device that was opened, and why it is not the GPU if `auto` would have taken one.
#[derive(Debug)]
pub(crate) struct Place {
    /// Where tensors go.
    pub(crate) device: Device,
    /// A sentence for the log.
    pub(crate) note: Option<String>,
}

impl Place {
    /// The processor.
    pub(crate) fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            note: None,
        }
    }

    /// The device as a recipe would name it, `cpu` or `cuda:0`.
    pub(crate) fn name(&self) -> String {
        match self.device.location() {
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            _ => "cpu".to_owned(),
        }
    }
}

/// Opens what is asked for.
///
/// # Errors
/// A GPU that is asked for by name and cannot be used.
pub(crate) fn open(choice: Choice) -> anyhow::Result<Place> {
    match choice {
        Choice::Cpu => Ok(Place::cpu()),
        Choice::Auto => Ok(gpu(0).map_or_else(
            |reason| Place {
                note: reason.worth_saying().then(|| format!("computing on the processor: {}", reason.text)),
                ..Place::cpu()
            },
            |device| Place { device, note: None },
        )),
        Choice::Cuda(number) => match gpu(number) {
            Ok(device) => Ok(Place { device, note: None }),
            Err(reason) if reason.built => {
                Err(Failure::run(format!("`cuda:{number}` cannot be used: {}", reason.text))
                    .hint("`nvidia-smi` shows the GPUs and their driver; `device: cpu` computes on the processor")
                    .into())
            }
            Err(reason) => Err(Failure::usage(format!("`cuda:{number}` cannot be used: {}", reason.text))
                .hint("use a program built with `just cuda-build`, or `device: cpu`")
                .into()),
        },
    }
}

/// The most of a GPU's memory that tensors have held, in MiB.
#[cfg(feature = "cuda")]
pub(crate) fn peak_mib(device: &Device) -> Option<f64> {
    let (_, most) = sparsam_kernels::cuda::memory(device).ok()?;
    Some(most as f64 / (1024.0 * 1024.0))
}

/// Nothing, without GPUs.
#[cfg(not(feature = "cuda"))]
pub(crate) fn peak_mib(_: &Device) -> Option<f64> {
    None
}

/// Why a GPU is not used.
struct Reason {
    /// Whether this program could use one at all.
    built: bool,
    text: String,
}

impl Reason {
    /// A program without GPUs in it is no news on every run.
    fn worth_saying(&self) -> bool {
        self.built
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, Reason> {
    Err(Reason {
        built: false,
        text: "this program was built without support for GPUs".to_owned(),
    })
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device, Reason> {
    let found = std::panic::catch_unwind(|| sparsam_kernels::cuda::open(number));
    let text = match found {
        Ok(Ok(device)) => return Ok(device),
        Ok(Err(error)) => plain(&error.to_string()),
        // The bindings panic where a library of CUDA is there and lacks what they look for.
        Err(_) => "the CUDA libraries found do not fit this program".to_owned(),
    };
    Err(Reason { built: true, text })
}

/// A driver's code as a sentence.
#[cfg(feature = "cuda")]
fn plain(error: &str) -> String {
    let known = [
        ("CUDA_ERROR_NO_DEVICE", "no NVIDIA GPU is visible"),
        (
            "CUDA_ERROR_INVALID_DEVICE",
            "there is no GPU of that number",
        ),
        ("CUDA_ERROR_OUT_OF_MEMORY", "its memory is full"),
        (
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "its driver is too old, CUDA 13 needs version 580 or newer",
        ),
        (
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "the driver and its library differ in version",
        ),
        ("CUDA_ERROR_STUB_LIBRARY", "there is no NVIDIA driver"),
        ("CUDA_ERROR_UNKNOWN", "the driver does not answer"),
    ];
    for (code, sentence) in known {
        if error.contains(code) {
            return sentence.to_owned();
        }
    }
    format!(
        "the driver says {}",
        error.lines().next().unwrap_or("nothing")
    )
}

#[cfg(test)]
mod tests {
    use super::Choice;

    #[test]
    fn devices_are_named_as_elsewhere() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("cpu".parse(), Ok(Choice::Cpu));
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Choice::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "mps", ""] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }
}
