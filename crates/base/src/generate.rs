//! Text by continuation: one token after the other, for several prompts at once.
//!
//! The prompts go through the model as one packed batch, which fills a cache of keys and values for
//! each. From then on a step is a batch of one token of every sequence that has not ended, so that the
//! weights are read once for all of them. Which prompt stands beside which changes no answer: each has
//! its own positions, its own cache and its own random numbers. What a prompt says and how ids become
//! text is the caller's business.

use std::ops::ControlFlow;

use candle_core::Tensor;
use candle_transformers::generation::LogitsProcessor;
use sparsam_kernels::Documents;
use sparsam_kernels::attention::Cache;
use sparsam_kernels::awake::awake;
use sparsam_kernels::host::fetch;
use sparsam_kernels::rope::Positions;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::projection::Hook;

/// How the next token is chosen, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The longest answer.
    pub max_new_tokens: usize,
    /// Logits are divided by it; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Choose among the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Seed of the choice.
    pub seed: u64,
}

/// One sequence on its way.
struct Sequence {
    /// Which prompt it continues.
    prompt: usize,
    /// One for each block.
    caches: Vec<Cache>,
    /// Position of the next token.
    position: usize,
    /// The token chosen last, which the model has not seen yet.
    last: u32,
    processor: LogitsProcessor,
}

/// Answers to several prompts at once, without the id that ended them.
///
/// `on_token(prompt, id)` is called with each id as it comes (not with the one that ends an answer);
/// `ControlFlow::Break` stops everything, and what there is of the answers is returned. An answer
/// ends at one of `end_ids`, after `max_new_tokens`, or where prompt and answer together have the
/// `max_length` the model was loaded for. An answer of a prompt depends on its place among the
/// prompts (through its random numbers) but not on the other prompts.
///
/// # Errors
/// An empty prompt, one that leaves no room for an answer, ids beyond the vocabulary, output that is
/// not a number.
pub fn generate(
    model: &Model,
    hook: &mut dyn Hook,
    prompts: &[Vec<u32>],
    end_ids: &[u32],
    sampling: &Sampling,
    on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>> {
    let room = model.table.positions();
    check(prompts, room)?;
    let mut answers = vec![Vec::new(); prompts.len()];
    if sampling.max_new_tokens == 0 || prompts.is_empty() {
        return Ok(answers);
    }
    let temperature = (sampling.temperature > 0.0).then_some(sampling.temperature);
    let mut sequences: Vec<Sequence> = (0..prompts.len())
        .map(|prompt| Sequence {
            prompt,
            caches: model.blocks.iter().map(|_| Cache::default()).collect(),
            position: 0,
            last: 0,
            processor: LogitsProcessor::new(
                seed(sampling.seed, prompt),
                temperature,
                sampling.top_p,
            ),
        })
        .collect();
    let mut new: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    loop {
        let logits = step(model, hook, &mut sequences, &new)?;
        let mut ended = Vec::with_capacity(sequences.len());
        for (row, sequence) in sequences.iter_mut().enumerate() {
            let id = choose(&mut sequence.processor, &logits.get(row)?)?;
            if end_ids.contains(&id) {
                ended.push(true);
                continue;
            }
            sequence.last = id;
            let answer = &mut answers[sequence.prompt];
            answer.push(id);
            if on_token(sequence.prompt, id).is_break() {
                return Ok(answers);
            }
            ended.push(answer.len() == sampling.max_new_tokens || sequence.position + 1 >= room);
        }
        let mut ended = ended.into_iter();
        sequences.retain(|_| ended.next() == Some(false));
        if sequences.is_empty() {
            return Ok(answers);
        }
        new = Vec::new();
    }
}

fn check(prompts: &[Vec<u32>], room: usize) -> Result<()> {
    for prompt in prompts {
        if prompt.is_empty() {
            return Err(Error::Generation {
                what: "the prompt is empty, there is nothing to continue".to_owned(),
                hint: "give a prompt of at least one token",
            });
        }
        if prompt.len() >= room {
            return Err(Error::Generation {
                what: format!(
                    "a prompt of {} tokens leaves no room for an answer in {room}",
                    prompt.len()
                ),
                hint: "shorten the prompt",
            });
        }
    }
    Ok(())
}

/// Logits after the newest token of each sequence, `[sequences, vocabulary]`. What is new is in `new`,
/// or the token chosen last where that is empty.
fn step(
    model: &Model,
    hook: &mut dyn Hook,
    sequences: &mut [Sequence],
    new: &[&[u32]],
) -> Result<Tensor> {
    let (ids, lengths): (Vec<u32>, Vec<usize>) = if new.is_empty() {
        let last = sequences.iter().map(|sequence| sequence.last);
        (last.collect(), vec![1; sequences.len()])
    } else {
        (new.concat(), new.iter().map(|ids| ids.len()).collect())
    };
    let documents = Documents::from_lengths(&lengths);
    let mut positions = Vec::with_capacity(ids.len());
    for (sequence, length) in sequences.iter_mut().zip(&lengths) {
        let end = sequence.position + length;
        positions.extend((sequence.position..end).map(|position| position as u32));
        sequence.position = end;
    }
    let positions = Positions::new(positions);
    let pass = model.pass(&documents, &positions);
    awake(model.device(), || {
        let mut x = model.embed(&ids)?;
        for (index, block) in model.blocks.iter().enumerate() {
            let mut caches: Vec<&mut Cache> = sequences
                .iter_mut()
                .map(|sequence| &mut sequence.caches[index])
                .collect();
            x = block.forward_cached(&x, &pass, hook, &mut caches)?;
        }
        let last: Vec<u32> = documents
            .ranges()
            .map(|range| range.end as u32 - 1)
            .collect();
        if last.len() < ids.len() {
            x = x.index_select(&Tensor::new(last, x.device())?, 0)?;
        }
        Ok(fetch(&model.head_output(&model.head_input(&x)?.0)?)?)
    })
}

fn choose(processor: &mut LogitsProcessor, logits: &Tensor) -> Result<u32> {
    // The likeliest of numbers that are none would be any token at all.
    let sum = logits.sum_all()?.to_scalar::<f32>()?;
    if !sum.is_finite() {
        return Err(Error::Generation {
            what: "the model's output is not a number".to_owned(),
            hint: "the weights or the adapter may be damaged, or training has diverged",
        });
    }
    Ok(processor.sample(logits)?)
}

/// A seed of its own for each prompt: the output function of SplitMix64 (Steele, Lea and Flood,
/// "Fast splittable pseudorandom number generators", 2014), so that neighbours share nothing.
fn seed(seed: u64, prompt: usize) -> u64 {
    let mut z = seed.wrapping_add((prompt as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
