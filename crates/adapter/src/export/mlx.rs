//! An adapter as mlx-lm loads it: `adapters.safetensors` and `adapter_config.json` in a folder.
//!
//! mlx-lm keeps `A` as `[in, r]` and `B` as `[r, out]`, multiplies every branch by one `scale`, makes
//! branches of one rank on the last `num_layers` layers, and fills in what the file holds. Scales that
//! differ are folded into `B`, smaller ranks padded with zeros; branches it makes that the file does not
//! name stay at zero and without effect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use serde_json::json;
use sparsam_base::config::ModelConfig;

use super::{cannot, only_branches};
use crate::error::{Error, Result};
use crate::files::{write_tensors, write_text};
use crate::parts::{Parts, StoredBranch};
use crate::targets::layer_of;

/// Name of the file of tensors.
pub const WEIGHTS_FILE: &str = "adapters.safetensors";
/// Name of the file of settings.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Writes an adapter into an existing folder, for a base of the given configuration named `model`.
///
/// # Errors
/// An adapter that the format cannot hold, files that cannot be written.
pub fn write(folder: &Path, parts: &Parts, config: &ModelConfig, model: &str) -> Result<()> {
    only_branches("an mlx adapter", parts)?;
    let rank = parts.branches.values().map(StoredBranch::rank).max();
    let Some(rank) = rank else {
        return Err(cannot("an mlx adapter", "an adapter without branches", ""));
    };
    // Of the branches with the greatest rank, so that most need no folding.
    let scale = parts
        .branches
        .values()
        .find(|branch| branch.rank() == rank && branch.scale != 0.0)
        .map_or(1.0, |branch| branch.scale);
    let (mut tensors, mut keys, mut first) = (BTreeMap::new(), BTreeSet::new(), usize::MAX);
    for (module, branch) in &parts.branches {
        let layer = layer_of(module, &["layers".to_owned()]);
        let place = layer.and_then(|layer| {
            let rest = module.strip_prefix(&format!("model.layers.{layer}."))?;
            Some((layer, rest))
        });
        let Some((layer, key)) = place else {
            return Err(Error::weight(
                module,
                "is not in a layer, mlx adapts layers only",
            ));
        };
        first = first.min(layer);
        keys.insert(key.to_owned());
        let mut a = branch.a.t()?.contiguous()?;
        let factor = branch.scale / scale;
        let mut b = (branch.b.t()?.contiguous()? * factor)?;
        let missing = rank - branch.rank();
        if missing > 0 {
            let (out, input) = branch.dims();
            a = padded(&a, (input, missing), 1)?;
            b = padded(&b, (missing, out), 0)?;
        }
        tensors.insert(format!("{module}.lora_a"), a);
        tensors.insert(format!("{module}.lora_b"), b);
    }
    let settings = json!({
        "fine_tune_type": "lora",
        "lora_parameters": {
            "dropout": parts.config.lora.lora_dropout,
            "keys": keys,
            "rank": rank,
            "scale": scale,
        },
        "model": model,
        "num_layers": config.num_hidden_layers.saturating_sub(first),
    });
    write_tensors(&folder.join(WEIGHTS_FILE), &tensors)?;
    write_text(&folder.join(CONFIG_FILE), &format!("{settings:#}\n"))
}

fn padded(tensor: &Tensor, zeros: (usize, usize), dim: usize) -> candle_core::Result<Tensor> {
    let zeros = Tensor::zeros(zeros, tensor.dtype(), tensor.device())?;
    Tensor::cat(&[tensor, &zeros], dim)
}
