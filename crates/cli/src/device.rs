//! Where a model is computed: on the processor, or on an NVIDIA GPU where this program was built for one.
//!
//! [`Choice`] is what a recipe or an argument asks for, [`open`] what becomes of it, [`put`] moves a model there,
//! and [`explain`] turns what a driver says, also in the middle of a run, into a sentence.

use std::str::FromStr;

use candle_core::{DType, Device, DeviceLocation};
use sparsam_base::classifier::Classifier;
use sparsam_base::model::Model;
use sparsam_base::network::Network;
use sparsam_base::projection::Group;
use sparsam_kernels::Weight;
use sparsam_kernels::attention::on_tensor_cores;

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
                .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
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
        name(&self.device)
    }
}

/// Why a model that computes in bf16 has its attention in f32 on a GPU, if it has; a sentence for the log.
pub(crate) fn attention_note(model: &impl Network) -> Option<String> {
    let rounds = |group: &Group| {
        let mut weights = group.projections.iter().map(|p| &p.weight);
        weights.all(Weight::multiplies_in_bf16)
    };
    if !model.device().is_cuda() || !model.groups().iter().any(|(_, group)| rounds(group)) {
        return None;
    }
    let why = on_tensor_cores(model.device()).err()?;
    Some(format!(
        "attention is computed in f32, without this GPU's tensor cores: {why}"
    ))
}

/// A device as a recipe would name it, `cpu` or `cuda:0`.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        _ => "cpu".to_owned(),
    }
}

/// Opens what is asked for.
///
/// # Errors
/// A GPU that is asked for by name and cannot be used: the invocation's fault where this program has no support
/// for GPUs, the run's where the machine does not give one.
pub(crate) fn open(choice: Choice) -> anyhow::Result<Place> {
    match choice {
        Choice::Cpu => Ok(Place::cpu()),
        Choice::Auto => Ok(match gpu(0) {
            Ok(device) => Place { device, note: None },
            Err(reason) => Place {
                note: reason
                    .is_news()
                    .then(|| format!("computing on the processor: {}", reason.sentence())),
                ..Place::cpu()
            },
        }),
        Choice::Cuda(number) => match gpu(number) {
            Ok(device) => Ok(Place { device, note: None }),
            Err(reason) => Err(reason.refusal(number).into()),
        },
    }
}

/// Puts what of a classifier's weights is not there yet into the memory of a device. Quantised ones stay so and are
/// expanded to `compute` for each product. On the processor nothing is done.
///
/// # Errors
/// A model that does not fit.
pub(crate) fn put(
    model: &mut Classifier,
    name_of_model: &str,
    device: &Device,
    compute: DType,
) -> anyhow::Result<()> {
    let size = crate::figures::bytes(model.bytes() as u64);
    let named = format!("`{name_of_model}`, {size} of weights,");
    model
        .move_to(device, compute)
        .map_err(|error| not_put(&named, device, "", &error).into())
}

/// A model that was loaded into a device's memory block by block.
///
/// # Errors
/// What it says, and that of a model that does not fit.
pub(crate) fn placed(
    loaded: sparsam_base::error::Result<Model>,
    name_of_model: &str,
    device: &Device,
) -> anyhow::Result<Model> {
    use sparsam_base::error::Error;
    let (bytes, error) = match loaded {
        Ok(model) => return Ok(model),
        Err(Error::Placed { bytes, source }) => (bytes, Error::Tensor(source)),
        Err(other) => return Err(other.into()),
    };
    let so_far = format!(
        ", with {} of its weights there",
        crate::figures::bytes(bytes as u64)
    );
    Err(not_put(&format!("`{name_of_model}`"), device, &so_far, &error).into())
}

/// What is said where weights cannot be put somewhere; `so_far`: how far they came.
fn not_put(
    named: &str,
    device: &Device,
    so_far: &str,
    error: &sparsam_base::error::Error,
) -> Failure {
    let text = error.to_string();
    let (reason, hint) = match explain(&text) {
        Some(explanation) => (explanation.sentence, Some(explanation.hint.to_owned())),
        None => (text.lines().next().unwrap_or_default(), error.hint()),
    };
    let place = name(device);
    let failure = Failure::run(format!(
        "{named} cannot be put on `{place}`: {reason}{so_far}"
    ));
    let failure = hint.into_iter().fold(failure, Failure::hint);
    failure.hint("`device: cpu` or `--device cpu` computes on the processor")
}

/// The GPU that this process has opened.
#[cfg(feature = "cuda")]
static OPENED: std::sync::OnceLock<Device> = std::sync::OnceLock::new();

/// The most of the opened GPU's memory that tensors have held, in bytes; none where no GPU is open.
#[cfg(feature = "cuda")]
pub(crate) fn peak_gpu_memory() -> Option<u64> {
    let (_, most) = sparsam_kernels::cuda::memory(OPENED.get()?).ok()?;
    Some(most)
}

/// Nothing, without GPUs.
#[cfg(not(feature = "cuda"))]
pub(crate) fn peak_gpu_memory() -> Option<u64> {
    None
}

/// Why a GPU is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reason {
    /// This program has no support for GPUs.
    NotBuilt,
    /// It has, and the driver says this.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "made where there are GPUs")
    )]
    Driver(String),
}

impl Reason {
    /// Without a GPU, a program without support for one is no news on every run.
    fn is_news(&self) -> bool {
        *self != Self::NotBuilt || driver_is_loaded()
    }

    fn sentence(&self) -> String {
        match self {
            Self::NotBuilt => "this program was built without support for GPUs".to_owned(),
            Self::Driver(text) => explain(text).map_or_else(
                || {
                    let first = text.lines().next().unwrap_or_default();
                    format!("the driver says `{first}`")
                },
                |explanation| explanation.sentence.to_owned(),
            ),
        }
    }

    fn refusal(&self, number: usize) -> Failure {
        let sentence = format!("`cuda:{number}` cannot be used: {}", self.sentence());
        match self {
            Self::NotBuilt => Failure::usage(sentence).hint(
                "README.md says how to build for NVIDIA GPUs; `device: cpu` or `--device cpu` computes on \
                 the processor",
            ),
            Self::Driver(text) => Failure::run(sentence).hint(explain(text).map_or(
                "`nvidia-smi` shows the GPUs and their driver",
                |explanation| explanation.hint,
            )),
        }
    }
}

/// Whether the kernel of this system has NVIDIA's driver.
fn driver_is_loaded() -> bool {
    std::path::Path::new("/proc/driver/nvidia/version").exists()
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device, Reason> {
    Err(Reason::NotBuilt)
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device, Reason> {
    // The bindings panic where a library of CUDA is there and lacks what they look for. That is said below, and
    // not by the hook, which would call it a fault of this program.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let opened = std::panic::catch_unwind(|| sparsam_kernels::cuda::open(number));
    std::panic::set_hook(hook);
    match opened {
        Ok(opened) => opened
            .inspect(|device| drop(OPENED.set(device.clone())))
            .map_err(|error| Reason::Driver(error.to_string())),
        Err(_) => Err(Reason::Driver("CUDA libraries that do not fit".to_owned())),
    }
}

/// What a driver's code means and what can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Explanation {
    pub(crate) sentence: &'static str,
    pub(crate) hint: &'static str,
}

/// Explains an error's text if it holds a code of NVIDIA's libraries.
///
/// The names are those of `CUresult` and `cublasStatus_t` (CUDA 13.0, driver API and cuBLAS references).
pub(crate) fn explain(text: &str) -> Option<Explanation> {
    const FULL: Explanation = Explanation {
        sentence: "the memory of the GPU is full",
        hint: "in a recipe, `quantize: nf4`, `gradient_checkpointing: true`, a smaller `batch_size` or `max_length` need less; \
            `nvidia-smi` shows what other programs hold",
    };
    const OLD_DRIVER: Explanation = Explanation {
        sentence: "the NVIDIA driver is too old",
        hint: "CUDA 13 needs a driver of series 580 or newer; `nvidia-smi` shows the one installed",
    };
    const OLD_GPU: Explanation = Explanation {
        sentence: "the GPU is older than this program supports",
        hint: "compute capability 8.0 or newer is needed: Ampere (A100, RTX 30) and what came after",
    };
    const LOST: Explanation = Explanation {
        sentence: "the GPU stopped answering",
        hint: "the kernel's log (`dmesg`) names the cause as an Xid; after it, start again with `--resume`",
    };
    const KNOWN: &[(&str, Explanation)] = &[
        ("CUDA_ERROR_OUT_OF_MEMORY", FULL),
        ("CUBLAS_STATUS_ALLOC_FAILED", FULL),
        (
            "CUDA_ERROR_STUB_LIBRARY",
            Explanation {
                sentence: "there is no NVIDIA driver, only an empty library in its place",
                hint: "install a driver of series 580 or newer, and take folders of stubs out of LD_LIBRARY_PATH",
            },
        ),
        (
            "CUDA_ERROR_NO_DEVICE",
            Explanation {
                sentence: "no NVIDIA GPU is visible",
                hint: "`nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them, and a container has to \
                    be given them",
            },
        ),
        (
            "CUDA_ERROR_INVALID_DEVICE",
            Explanation {
                sentence: "there is no GPU of that number",
                hint: "`nvidia-smi` lists the GPUs; numbers begin at 0, and CUDA_VISIBLE_DEVICES renumbers them",
            },
        ),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", OLD_DRIVER),
        (
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            Explanation {
                sentence: "the NVIDIA driver and its library differ in version",
                hint: "they differ after an update of the driver until the machine is restarted",
            },
        ),
        ("CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", OLD_DRIVER),
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", OLD_GPU),
        ("CUDA_ERROR_INVALID_PTX", OLD_GPU),
        ("CUBLAS_STATUS_ARCH_MISMATCH", OLD_GPU),
        (
            "CUDA_ERROR_DEVICE_UNAVAILABLE",
            Explanation {
                sentence: "another program has the GPU for itself",
                hint: "`nvidia-smi` shows which; the GPU's compute mode may be exclusive",
            },
        ),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", LOST),
        ("CUDA_ERROR_LAUNCH_TIMEOUT", LOST),
        ("CUDA_ERROR_UNKNOWN", LOST),
    ];
    KNOWN
        .iter()
        .find(|(code, _)| text.contains(code))
        .map(|(_, explanation)| *explanation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_elsewhere() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("cpu".parse(), Ok(Choice::Cpu));
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Choice::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:+1", "cuda:-1", "mps", ""] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_model_that_does_not_fit_says_how_far_it_came() {
        let full = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let loaded = Err(sparsam_base::error::Error::Placed {
            bytes: 9 << 30,
            source: candle_core::Error::Msg(full.to_owned()),
        });
        let Err(error) = placed(loaded, "big", &Device::Cpu) else {
            panic!("it was put there");
        };
        let what = format!(
            "`big` cannot be put on `cpu`: the memory of the GPU is full, with {} of its weights there",
            crate::figures::bytes(9 << 30)
        );
        assert_eq!(error.to_string(), what);
    }

    #[test]
    fn the_processor_is_always_there_and_needs_no_note() {
        let place = open(Choice::Cpu).expect("a processor");
        assert_eq!(place.name(), "cpu");
        assert_eq!(place.note, None);
    }

    #[test]
    fn what_drivers_say_becomes_a_sentence_with_advice() {
        let text = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: backtrace";
        let full = explain(text).expect("known");
        assert!(full.sentence.contains("memory"));
        assert!(full.hint.contains("quantize"));
        assert_eq!(
            explain("CublasError(CUBLAS_STATUS_ALLOC_FAILED)"),
            Some(full)
        );
        assert_eq!(explain("cannot read `a`"), None);

        let reason = Reason::Driver("DriverError(CUDA_ERROR_NO_DEVICE, \"x\")".to_owned());
        let refusal = anyhow::Error::from(reason.refusal(0)).to_string();
        assert_eq!(refusal, "`cuda:0` cannot be used: no NVIDIA GPU is visible");
        assert!(reason.is_news());
        // One that is not in the list is passed on, without its backtrace.
        let other = Reason::Driver("DriverError(CUDA_ERROR_TIMER)\n  at x".to_owned());
        assert_eq!(
            other.sentence(),
            "the driver says `DriverError(CUDA_ERROR_TIMER)`"
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_support_for_gpus_one_is_refused_by_name_and_auto_takes_the_processor() {
        let refused = open(Choice::Cuda(1)).expect_err("no support");
        let text = refused.to_string();
        assert!(text.starts_with("`cuda:1` cannot be used: "), "{text}");
        let place = open(Choice::Auto).expect("the processor");
        assert_eq!(place.name(), "cpu");
        assert_eq!(place.note.is_some(), driver_is_loaded());
    }
}
