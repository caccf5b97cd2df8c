//! The output head and the cross-entropy loss as one operation, forward and adjoint.
//!
//! The logits of a batch never exist at once: tokens are taken in chunks, and a chunk's logits are
//! turned into their gradient in place while they are at hand. Tokens without a target cost nothing.
//! For logits `z` and target `t`: `loss = log Σ eᶻ − z_t`, `dz = softmax(z) − onehot(t)`.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::gemm::{Dense, Left, Right, Rows, Term, gemm, product};
use crate::host::{matrix, tensor, update, view, zeroed};
use crate::vector::{LANES, Real, levels, reduce, soften, softened_slope};
use crate::weight::Weight;

/// Marks a token without a target.
pub const IGNORE: u32 = u32::MAX;

/// Numbers of the logits that exist at a time, 32 MiB in f32; twice as many where products are of rounded numbers,
/// which are multiplied twice as fast, so that packing the head for a chunk takes as large a part of its time.
const LOGITS: usize = 1 << 23;
/// The same on a GPU: 256 MiB of f32.
pub const LOGITS_ON_GPU: usize = 1 << 26;
/// At least this many tokens make a chunk, however large the vocabulary.
const FEWEST_TOKENS: usize = 48;

/// What the adjoint is asked for, and what is done to the logits.
#[derive(Clone, Copy, Default)]
pub struct Want<'a> {
    /// Factor on the gradient of the summed loss, usually 1 over the number of targets; `None`: no
    /// gradients at all.
    pub grad_scale: Option<f64>,
    /// Where to add the gradient of the head, `[vocabulary, hidden]`.
    pub weight_grad: Option<&'a Tensor>,
    /// Logits are bent to `cap · tanh(z / cap)` before the loss (Gemma 2).
    pub softcap: Option<f64>,
}

/// Loss of a batch and the gradient of its hidden states.
#[derive(Debug)]
pub struct Loss {
    /// Sum over the targets, in nats.
    pub sum: f64,
    /// Number of targets.
    pub targets: usize,
    /// Targets that were the likeliest token.
    pub correct: usize,
    /// `[tokens, hidden]`, zero for tokens without a target.
    pub hidden_grad: Option<Tensor>,
}

/// Loss of `targets` `[tokens]` under the logits `hidden · headᵀ`, with `hidden` of `[tokens, width]`.
///
/// # Errors
/// Shapes that do not fit, or a target beyond the vocabulary.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    want: Want,
) -> Result<Loss> {
    let (tokens, vocabulary, width) = check(hidden, head, targets)?;
    if let Some(into) = want.weight_grad
        && into.dims() != [vocabulary, width]
    {
        bail!(
            "`linear_cross_entropy`: a head of [{vocabulary}, {width}] meets a gradient of {:?}",
            into.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return crate::cuda::linear_cross_entropy(hidden, head, targets, want);
    }
    by_element!(hidden, T => {
        let hidden = view::<T>(hidden)?;
        let mut gradient = want.grad_scale.map(|_| zeroed::<T>(tokens * width));
        let mut loss = Loss { sum: 0.0, targets: 0, correct: 0, hidden_grad: None };
        head.with_rows::<T, _>(|rows| {
            in_chunks(&hidden, rows, targets, want.grad_scale, want.softcap, |chunk| {
                loss.targets += chunk.losses.len();
                for (nats, correct) in &chunk.losses {
                    loss.sum += nats;
                    loss.correct += usize::from(*correct);
                }
                let Some(gradient) = &mut gradient else { return Ok(()) };
                let count = chunk.tokens.len();
                let left = Left::plain(chunk.logits, count, vocabulary);
                let dstates = product(&[Term { left, right: Right::Plain(rows) }], width);
                for (token, from) in chunk.tokens.iter().zip(dstates.chunks_exact(width)) {
                    gradient[token * width..][..width].copy_from_slice(from);
                }
                let Some(into) = want.weight_grad else { return Ok(()) };
                let states = Dense::new(chunk.states, count, width);
                let left = Left::transposed(chunk.logits, count, vocabulary);
                update(into, |into: &mut [T]| {
                    gemm(&[Term { left, right: Right::Plain(&states) }], width, into, true);
                    Ok(())
                })
            })
        })?;
        if let Some(gradient) = gradient {
            loss.hidden_grad = Some(tensor(gradient, (tokens, width))?);
        }
        Ok(loss)
    })
}

/// The loss of each token in nats, `None` for tokens without a target; for evaluation of logits that
/// are not softened.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn linear_token_losses(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
) -> Result<Vec<Option<f64>>> {
    let (tokens, ..) = check(hidden, head, targets)?;
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return crate::cuda::linear_token_losses(hidden, head, targets);
    }
    by_element!(hidden, T => {
        let hidden = view::<T>(hidden)?;
        let mut losses = vec![None; tokens];
        head.with_rows::<T, _>(|rows| {
            in_chunks::<T>(&hidden, rows, targets, None, None, |chunk| {
                for (token, (nats, _)) in chunk.tokens.iter().zip(&chunk.losses) {
                    losses[*token] = Some(*nats);
                }
                Ok(())
            })
        })?;
        Ok(losses)
    })
}

/// Tokens, vocabulary and width of inputs that fit.
fn check(hidden: &Tensor, head: &Weight, targets: &[u32]) -> Result<(usize, usize, usize)> {
    let (tokens, width) = matrix(hidden, "linear_cross_entropy", "the hidden states")?;
    let (vocabulary, input) = head.dims()?;
    if input != width || width == 0 || targets.len() != tokens {
        bail!(
            "`linear_cross_entropy`: hidden states {:?} and {} targets meet a head of [{vocabulary}, {input}]",
            hidden.dims(),
            targets.len()
        );
    }
    if let Some(target) = targets
        .iter()
        .find(|t| **t != IGNORE && **t as usize >= vocabulary)
    {
        bail!("`linear_cross_entropy`: target {target} is beyond the vocabulary of {vocabulary}");
    }
    Ok((tokens, vocabulary, width))
}

/// Some tokens with targets, while their logits are at hand.
struct Chunk<'a, T> {
    tokens: &'a [usize],
    /// Hidden states, `[tokens, width]`.
    states: &'a [T],
    /// Gradient of the logits if it was asked for, `[tokens, vocabulary]`.
    logits: &'a [T],
    /// Loss in nats, and whether the target is the likeliest token.
    losses: Vec<(f64, bool)>,
}

/// Numbers of the logits that exist at a time on a processor, where its products are of rounded numbers or of others.
pub fn logits_at_a_time(rounded: bool) -> usize {
    LOGITS << u32::from(rounded)
}

/// Lends the tokens with targets to `work`, chunk by chunk, in order.
fn in_chunks<T: Real>(
    hidden: &[T],
    head: &dyn Rows<T>,
    targets: &[u32],
    grad_scale: Option<f64>,
    softcap: Option<f64>,
    mut work: impl FnMut(Chunk<T>) -> Result<()>,
) -> Result<()> {
    let level = Level::detect();
    let (vocabulary, width) = (head.rows(), head.columns());
    let counted: Vec<usize> = (0..targets.len())
        .filter(|i| targets[*i] != IGNORE)
        .collect();
    // Chunks of about equal size: a short one would pay as much for the head's way into the cache.
    let logits = logits_at_a_time(head.rounded() && T::pairs_are_faster(level));
    let most = (logits / vocabulary.max(1)).max(FEWEST_TOKENS);
    let chunks = counted.len().div_ceil(most).max(1);
    let size = counted.len().div_ceil(chunks).max(1);
    let mut buffer = zeroed::<T>(size * vocabulary);
    for tokens in counted.chunks(size) {
        let states: Vec<T> = tokens
            .iter()
            .flat_map(|token| &hidden[token * width..][..width])
            .copied()
            .collect();
        let logits = &mut buffer[..tokens.len() * vocabulary];
        let left = Left::plain(&states, tokens.len(), width);
        gemm(
            &[Term {
                left,
                right: Right::Transposed(head),
            }],
            vocabulary,
            logits,
            false,
        );
        let losses = logits
            .par_chunks_mut(vocabulary)
            .zip(tokens)
            .map(|(logits, token)| {
                let target = targets[*token] as usize;
                let Some(cap) = softcap else {
                    return softmax_loss::<T>(level, logits, target, grad_scale);
                };
                soften::<T>(level, logits, cap);
                let slopes: Vec<T> = match grad_scale {
                    Some(_) => logits.iter().map(|z| softened_slope(*z, cap)).collect(),
                    None => Vec::new(),
                };
                let loss = softmax_loss::<T>(level, logits, target, grad_scale);
                for (gradient, slope) in logits.iter_mut().zip(slopes) {
                    *gradient *= slope;
                }
                loss
            })
            .collect();
        work(Chunk {
            tokens,
            states: &states,
            logits,
            losses,
        })?;
    }
    Ok(())
}

levels! {
    /// Loss of one row of logits, which become their gradient if that is wanted; and whether the
    /// target is the likeliest token.
    fn softmax_loss<T: Real>(
        logits: &mut [T],
        target: usize,
        grad_scale: Option<f64>,
    ) -> (f64, bool) {
        /// Vectors whose sum is formed in the element type before it is added to a sum in f64.
        const BLOCK: usize = 16;
        let chosen = logits[target];
        let mut greatest = [T::NEG_INFINITY; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for part in whole {
            for lane in 0..LANES {
                greatest[lane] = if part[lane] > greatest[lane] { part[lane] } else { greatest[lane] };
            }
        }
        for (greatest, logit) in greatest.iter_mut().zip(rest) {
            *greatest = if *logit > *greatest { *logit } else { *greatest };
        }
        let greatest = reduce(greatest, |a, b| if a > b { a } else { b });
        let mut sum = 0.0;
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for block in whole.chunks_mut(BLOCK) {
            let mut sums = [T::ZERO; LANES];
            for part in block {
                for lane in 0..LANES {
                    part[lane] = (part[lane] - greatest).exp_inline::<FMA>();
                    sums[lane] += part[lane];
                }
            }
            sum += reduce(sums, |a, b| a + b).to_f64();
        }
        for logit in rest {
            *logit = (*logit - greatest).exp_inline::<FMA>();
            sum += logit.to_f64();
        }
        if let Some(scale) = grad_scale {
            let factor = T::of(scale / sum);
            for probability in logits.iter_mut() {
                *probability *= factor;
            }
            logits[target] -= T::of(scale);
        }
        (sum.ln() - (chosen.to_f64() - greatest.to_f64()), chosen == greatest)
    }
}
