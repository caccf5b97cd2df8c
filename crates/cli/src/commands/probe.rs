//! `sparsam probe`: the logits of a text, in a file, for comparison with other programs.
//!
//! A hidden command; `tests/interop/check_adapter.py` lays what it writes beside PEFT's logits.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use sparsam_adapter::files::write_tensors;
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_kernels::Documents;

use crate::args::ProbeArgs;
use crate::device;
use crate::opened::{Wanted, open};

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<()> {
    let place = device::open(args.device)?;
    let mut opened = open(&Wanted {
        name: &args.model,
        quantize: args.quantize,
        dtype: Some(args.dtype),
        device: &place.device,
        max_length: 0,
        chat_template: None,
        revision: None,
        quiet: true,
    })?;
    let mut hook = match &args.adapter {
        Some(folder) => peft::load(folder, &mut opened.model, 0)?.0,
        None => Trainable::none(&opened.model),
    };
    let ids = opened.tokenizer.encode(&args.prompt, true)?;
    opened.model.set_max_length(ids.len())?;
    let documents = Documents::single(ids.len());
    let logits = opened.model.logits(&ids, &documents, &mut hook)?;
    // Whole numbers of this size are exact in f32, the one type these files are written in.
    let numbers: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
    let count = numbers.len();
    let tensors = BTreeMap::from([
        (
            "input_ids".to_owned(),
            Tensor::from_vec(numbers, count, &Device::Cpu)?,
        ),
        ("logits".to_owned(), logits),
    ]);
    Ok(write_tensors(Path::new(&args.output), &tensors)?)
}
