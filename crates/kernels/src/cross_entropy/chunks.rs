//! The loss where the head is trained: chunks of tokens, each with the whole vocabulary.
//!
//! The gradient of the head needs the softmax of every token it sums over, so a token's logits must all be there.

use rayon::prelude::*;

use super::softmax::{Outcome, Softmax, absorb, scale};
use super::{Batch, states_of};
use crate::cpu::Level;
use crate::gemm::{Dense, Left, Right, Term, gemm, product};
use crate::host::zeroed;
use crate::vector::Real;

/// Numbers of the logits that exist at a time, 32 MiB in f32; twice as many where products are faster than those of
/// plain numbers, so that packing the head for a chunk takes no larger a part of its time.
const LOGITS: usize = 1 << 23;
/// At least this many tokens make a chunk, however large the vocabulary.
const FEWEST_TOKENS: usize = 48;

/// Tokens of a chunk, under a head whose products may be of rounded numbers or not. Chunks are of about equal size: a
/// short one would pay as much for the head's way into the cache.
pub(super) fn tokens_at_a_time<T: Real>(targets: usize, vocabulary: usize, rounded: bool) -> usize {
    let level = Level::detect();
    let fast = T::steps_are_faster(level) || rounded && T::pairs_are_faster(level);
    let logits = LOGITS << u32::from(fast);
    let most = (logits / vocabulary.max(1)).max(FEWEST_TOKENS);
    let chunks = targets.div_ceil(most).max(1);
    targets.div_ceil(chunks).max(1)
}

/// The outcomes of the tokens with targets and the gradient of the hidden states, `[tokens, width]`; that of the head
/// is added to `head_grad`.
pub(super) fn train<T: Real>(
    batch: &Batch<T>,
    grad_scale: f64,
    head_grad: &mut [T],
) -> (Vec<Outcome>, Vec<T>) {
    let level = Level::detect();
    let (vocabulary, width) = (batch.head.rows(), batch.head.columns());
    let size = tokens_at_a_time::<T>(batch.counted.len(), vocabulary, batch.head.rounded());
    let mut buffer = zeroed::<T>(size * vocabulary);
    let mut gradient = zeroed::<T>(batch.targets.len() * width);
    let mut outcomes = Vec::with_capacity(batch.counted.len());
    for tokens in batch.counted.chunks(size) {
        let count = tokens.len();
        let states = states_of(batch.hidden, tokens, width);
        let logits = &mut buffer[..count * vocabulary];
        let term = Term {
            left: Left::plain(&states, count, width),
            right: Right::Transposed(batch.head),
        };
        gemm(&[term], vocabulary, logits, false);
        let chunk: Vec<Outcome> = logits
            .par_chunks_mut(vocabulary)
            .zip(tokens)
            .map(|(logits, token)| {
                let target = batch.targets[*token] as usize;
                softmax_loss::<T>(level, logits, target, batch.softcap, grad_scale)
            })
            .collect();
        outcomes.extend(chunk);
        let term = Term {
            left: Left::plain(logits, count, vocabulary),
            right: Right::Plain(batch.head),
        };
        let dstates = product(&[term], width);
        for (token, from) in tokens.iter().zip(dstates.chunks_exact(width)) {
            gradient[token * width..][..width].copy_from_slice(from);
        }
        let term = Term {
            left: Left::transposed(logits, count, vocabulary),
            right: Right::Plain(&Dense::new(&states, count, width)),
        };
        gemm(&[term], width, head_grad, true);
    }
    (outcomes, gradient)
}

/// Outcome of one row of logits, which become their gradient.
fn softmax_loss<T: Real>(
    level: Level,
    logits: &mut [T],
    target: usize,
    softcap: Option<f64>,
    grad_scale: f64,
) -> Outcome {
    let mut softmax = Softmax::new();
    absorb::<T>(level, logits, Some(target), softcap, &mut softmax);
    let factor = grad_scale / softmax.total();
    scale::<T>(level, logits, T::of(factor));
    logits[target] = -T::of(factor * softmax.of_target(softcap));
    softmax.outcome()
}
