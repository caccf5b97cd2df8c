//! An adapter as llama.cpp loads it beside a GGUF model, `--lora`.
//!
//! llama.cpp multiplies every branch by `alpha / rank` with one alpha for the whole file. What rsLoRA
//! and alpha patterns change beyond that is folded into `B`. Rows of `B` on q and k follow the order of
//! GGUF's q and k. Names and types are those of `convert_lora_to_gguf.py`.

use std::path::Path;

use sparsam_base::config::ModelConfig;
use sparsam_base::files::gguf_names::{architecture, permute, permuted_heads, tensor_name};
use sparsam_base::files::gguf_writer::{GgufWriter, Kind, Meta, Planned};
use sparsam_kernels::host::view;

use super::only_branches;
use crate::error::Result;
use crate::files::write_through;
use crate::parts::{Parts, StoredBranch};

/// The alpha of the file: the adapter's own, or 1 where that is 0, which llama.cpp takes for "none
/// given".
pub fn alpha(parts: &Parts) -> f64 {
    match parts.config.lora.lora_alpha {
        0.0 => 1.0,
        alpha => alpha,
    }
}

/// The factor on `B` that makes `alpha / rank` the branch's own scale.
fn folded(branch: &StoredBranch, alpha: f64) -> f64 {
    let factor = branch.scale * branch.rank() as f64 / alpha;
    // Rounding must not touch numbers that need no change.
    if (factor - 1.0).abs() < 1e-12 {
        1.0
    } else {
        factor
    }
}

/// Writes an adapter for a base of the given configuration; `kind` is f32, bf16 or f16.
///
/// # Errors
/// An adapter that the format cannot hold, a base that has no name in it, a file that cannot be
/// written.
pub fn write(path: &Path, parts: &Parts, config: &ModelConfig, kind: Kind) -> Result<()> {
    only_branches("a GGUF adapter", parts)?;
    let alpha = alpha(parts);
    let text = |text: &str| Meta::Text(text.to_owned());
    let metadata = [
        ("general.type", text("adapter")),
        ("general.architecture", text(architecture(config)?)),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Meta::F32(alpha as f32)),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let mut planned = Vec::new();
    for (module, branch) in &parts.branches {
        let name = tensor_name(&format!("{module}.weight"))?;
        let (out, input) = branch.dims();
        let rank = branch.rank();
        for (suffix, shape) in [("lora_a", [rank, input]), ("lora_b", [out, rank])] {
            planned.push(Planned {
                name: format!("{name}.{suffix}"),
                shape: shape.to_vec(),
                kind,
            });
        }
    }
    write_through(path, |out| {
        let mut writer = GgufWriter::begin(out, &metadata, planned)?;
        for (module, branch) in &parts.branches {
            writer.tensor(&view::<f32>(&branch.a)?)?;
            let b = (&branch.b * folded(branch, alpha))?.contiguous()?;
            let b = view::<f32>(&b)?;
            match permuted_heads(config, module) {
                Some(heads) => writer.tensor(&permute(&b, branch.rank(), heads))?,
                None => writer.tensor(&b)?,
            }
        }
        writer.finish()?;
        Ok(())
    })
}
