//! Generation beside candle's own Llama, in turn, from the same folder: tokens a second of prompt and answer.
//!
//!     cargo run --release -p sparsam-base --example beside_candle -- FOLDER [PROMPT TOKENS] [NEW TOKENS] [ROUNDS]
//!
//! One sequence, f32, the likeliest token each time, with a cache of keys and values. Both write the same tokens, or
//! the program ends with an error: then it was not the same work. Medians over the rounds.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use sparsam_base::generate::{Sampling, generate};
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::projection::Frozen;

/// As in the program: candle's large operations are many times slower with the allocator of glibc.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seconds until the first token, and from there to the last; and the tokens.
struct Written {
    first: f64,
    rest: f64,
    ids: Vec<u32>,
}

fn ours(model: &Model, prompt: &[u32], new: usize) -> anyhow::Result<Written> {
    let sampling = Sampling {
        max_new_tokens: new,
        temperature: 0.0,
        top_p: None,
        seed: 0,
    };
    let begun = Instant::now();
    let (mut first, mut ids) = (None, Vec::new());
    let mut each = |_: usize, id: u32| {
        first.get_or_insert(begun.elapsed().as_secs_f64());
        ids.push(id);
        ControlFlow::Continue(())
    };
    generate(
        model,
        &mut Frozen,
        &[prompt.to_vec()],
        &[],
        &sampling,
        &mut each,
    )?;
    let first = first.context("nothing was written")?;
    Ok(Written {
        first,
        rest: begun.elapsed().as_secs_f64() - first,
        ids,
    })
}

fn candle(model: &Llama, config: &Config, prompt: &[u32], new: usize) -> anyhow::Result<Written> {
    let device = Device::Cpu;
    let begun = Instant::now();
    let mut cache = Cache::new(true, DType::F32, config, &device)?;
    let (mut first, mut ids, mut next) = (None, Vec::new(), prompt.to_vec());
    let mut position = 0;
    while ids.len() < new {
        let input = Tensor::new(next.as_slice(), &device)?.unsqueeze(0)?;
        let logits = model.forward(&input, position, &mut cache)?.squeeze(0)?;
        position += next.len();
        let id = logits.argmax(D::Minus1)?.to_scalar::<u32>()?;
        first.get_or_insert(begun.elapsed().as_secs_f64());
        ids.push(id);
        next = vec![id];
    }
    let first = first.context("nothing was written")?;
    Ok(Written {
        first,
        rest: begun.elapsed().as_secs_f64() - first,
        ids,
    })
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("name a model's folder")?);
    let mut number = |otherwise: usize| {
        let word = arguments.next();
        word.map_or(Ok(otherwise), |word| word.parse::<usize>())
    };
    let (tokens, new, rounds) = (number(256)?, number(64)?, number(3)?);
    let text = std::fs::read_to_string(folder.join("config.json"))?;
    let mut keys: serde_json::Value = serde_json::from_str(&text)?;
    // Newer configurations have it in a table of its own, which candle does not read.
    let theta = keys["rope_parameters"]["rope_theta"].clone();
    if keys.get("rope_theta").is_none() && theta.is_number() {
        keys["rope_theta"] = theta;
    }
    let config = serde_json::from_value::<LlamaConfig>(keys)?.into_config(false);
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
    let theirs = Llama::load(
        VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu),
        &config,
    )?;
    let options = LoadOptions {
        quantize: Quantize::None,
        dtype: DType::F32,
        max_length: tokens + new,
    };
    let model = Model::from_folder(Path::new(&folder), options)?;
    let prompt: Vec<u32> = (0..tokens)
        .map(|i| (i * 7919 % config.vocab_size) as u32)
        .collect();
    let mut times = [[vec![], vec![]], [vec![], vec![]]];
    for _ in 0..rounds {
        let written = [
            candle(&theirs, &config, &prompt, new)?,
            ours(&model, &prompt, new)?,
        ];
        ensure!(
            written[0].ids == written[1].ids,
            "candle wrote {:?}, sparsam {:?}",
            written[0].ids,
            written[1].ids
        );
        for (times, written) in times.iter_mut().zip(&written) {
            times[0].push(tokens as f64 / written.first);
            times[1].push((new - 1) as f64 / written.rest);
        }
    }
    let [theirs, ours] = times.map(|[prompt, answer]| [median(&prompt), median(&answer)]);
    writeln!(
        std::io::stdout(),
        "| {tokens} + {new} tokens, f32, medians of {rounds} | candle, tokens/s | sparsam | ratio |\n\
         |---|--:|--:|--:|\n\
         | prompt | {:.1} | {:.1} | {:.2} |\n\
         | answer | {:.1} | {:.1} | {:.2} |",
        theirs[0],
        ours[0],
        ours[0] / theirs[0],
        theirs[1],
        ours[1],
        ours[1] / theirs[1],
    )?;
    Ok(())
}
