//! The loss where the head is not trained: blocks of the vocabulary, each with all tokens.
//!
//! What a token's softmax needs of the blocks before is its greatest logit and a sum, as in attention over blocks of
//! keys (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867), and so the
//! gradient of its hidden state is a sum over blocks as well. With `p_j = e^(z_j − g)` and `E` the rows of the head,
//!
//! `dx = Σ_j p_j E_j / Σ_j p_j − E_t = (Σ_{j≠t} p_j E_j − E_t Σ_{j≠t} p_j) / Σ_j p_j`,
//!
//! of which the second form is computed: it takes no small difference of great numbers where the target is likely,
//! and so loses nothing where products are of rounded numbers.

use rayon::prelude::*;

use super::softmax::{Outcome, Softmax, absorb, scale};
use super::{Batch, states_of};
use crate::cpu::Level;
use crate::gemm::{Left, Right, RowRange, Rows as _, Term, gemm};
use crate::host::zeroed;
use crate::vector::Real;

/// Numbers of the logits that exist at a time, 16 MiB in f32.
const LOGITS: usize = 1 << 22;
/// At least this many columns make a block, so that the gradient is not read and written more often than it is worth.
const FEWEST_COLUMNS: usize = 2048;
/// Columns of a block are a multiple of it, that of every product's panels.
const PANEL: usize = 64;

/// Tokens and columns of the vocabulary whose logits exist at a time.
pub(super) fn sizes(targets: usize, vocabulary: usize) -> (usize, usize) {
    let most = LOGITS / FEWEST_COLUMNS.min(vocabulary.max(1));
    let tokens = targets.div_ceil(targets.div_ceil(most).max(1));
    let most = (LOGITS / tokens.max(1)).max(1);
    let columns = vocabulary.div_ceil(vocabulary.div_ceil(most).max(1));
    (tokens, columns.next_multiple_of(PANEL).min(vocabulary))
}

/// The outcomes of the tokens with targets and, with the factor of the gradient, the gradient of the hidden states,
/// `[tokens, width]`.
pub(super) fn pass<T: Real>(
    batch: &Batch<T>,
    grad_scale: Option<f64>,
) -> (Vec<Outcome>, Option<Vec<T>>) {
    let width = batch.head.columns();
    let (count, columns) = sizes(batch.counted.len(), batch.head.rows());
    let mut logits = zeroed::<T>(count * columns);
    let mut gradient = grad_scale.map(|_| zeroed::<T>(batch.targets.len() * width));
    let mut outcomes = Vec::with_capacity(batch.counted.len());
    for (place, tokens) in batch.counted.chunks(count.max(1)).enumerate() {
        // Rows of the gradient stand close together, in the order of the targets, until all are there.
        let rows = place * count * width..(place * count + tokens.len()) * width;
        let mut sums = gradient.as_mut().map(|gradient| &mut gradient[rows]);
        let softmaxes = of_tokens(batch, tokens, columns, &mut logits, sums.as_deref_mut());
        if let (Some(scale), Some(sums)) = (grad_scale, sums) {
            to_gradient(batch, tokens, &softmaxes, scale, sums);
        }
        outcomes.extend(softmaxes.iter().map(Softmax::outcome));
    }
    if let Some(gradient) = &mut gradient {
        spread(gradient, batch.counted, width);
    }
    (outcomes, gradient)
}

/// The softmax of each of some tokens, by so many columns of the vocabulary at a time, with room for their logits; and
/// `Σ_{j≠t} p_j E_j` of each, `[tokens, width]`, if it is wanted.
fn of_tokens<T: Real>(
    batch: &Batch<T>,
    tokens: &[usize],
    columns: usize,
    logits: &mut [T],
    mut sums: Option<&mut [T]>,
) -> Vec<Softmax<T>> {
    let level = Level::detect();
    let (vocabulary, width) = (batch.head.rows(), batch.head.columns());
    let states = states_of(batch.hidden, tokens, width);
    let mut softmaxes = vec![Softmax::new(); tokens.len()];
    for first in (0..vocabulary).step_by(columns.max(1)) {
        let part = RowRange::new(batch.head, first..(first + columns).min(vocabulary));
        let columns = part.rows();
        let logits = &mut logits[..tokens.len() * columns];
        let term = Term {
            left: Left::plain(&states, tokens.len(), width),
            right: Right::Transposed(&part),
        };
        gemm(&[term], columns, logits, false);
        let factors: Vec<T> = logits
            .par_chunks_mut(columns)
            .zip(&mut softmaxes)
            .zip(tokens)
            .map(|((logits, softmax), token)| {
                let target = (batch.targets[*token] as usize).checked_sub(first);
                let target = target.filter(|target| *target < columns);
                absorb::<T>(level, logits, target, batch.softcap, softmax)
            })
            .collect();
        let Some(sums) = sums.as_deref_mut() else {
            continue;
        };
        if first > 0 {
            let rows = sums.par_chunks_mut(width).zip(factors);
            rows.filter(|(_, factor)| *factor != T::ONE)
                .for_each(|(sums, factor)| scale::<T>(level, sums, factor));
        }
        let term = Term {
            left: Left::plain(logits, tokens.len(), columns),
            right: Right::Plain(&part),
        };
        gemm(&[term], width, sums, first > 0);
    }
    softmaxes
}

/// Makes of `Σ_{j≠t} p_j E_j` of each of some tokens the gradient of its hidden state.
fn to_gradient<T: Real>(
    batch: &Batch<T>,
    tokens: &[usize],
    softmaxes: &[Softmax<T>],
    grad_scale: f64,
    sums: &mut [T],
) {
    let width = batch.head.columns();
    let rows = sums.par_chunks_mut(width).zip(softmaxes).zip(tokens);
    rows.for_each_init(
        || vec![T::ZERO; width],
        |of_target, ((sums, softmax), token)| {
            let target = batch.targets[*token] as usize;
            batch.head.fill(target, 0..width, of_target);
            let factor = grad_scale / softmax.total();
            let target_factor = T::of(factor * softmax.of_target(batch.softcap));
            let factor = T::of(factor);
            for (sum, of_target) in sums.iter_mut().zip(&*of_target) {
                *sum = *sum * factor - *of_target * target_factor;
            }
        },
    );
}

/// Moves the rows that stand close together at the front to their tokens' places; the others become 0.
fn spread<T: Real>(rows: &mut [T], tokens: &[usize], width: usize) {
    // From the last: no place is before the row that goes there.
    let mut end = rows.len();
    for (from, to) in tokens.iter().enumerate().rev() {
        rows.copy_within(from * width..(from + 1) * width, to * width);
        rows[(to + 1) * width..end].fill(T::ZERO);
        end = to * width;
    }
    rows[..end].fill(T::ZERO);
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn rows_find_their_places() {
        for tokens in [
            vec![],
            vec![0],
            vec![4],
            vec![1, 2, 4],
            vec![0, 1, 2, 3, 4],
            vec![0, 4],
        ] {
            let mut rows = vec![-1.0f32; 10];
            for (from, token) in tokens.iter().enumerate() {
                rows[2 * from..][..2].fill(*token as f32 + 1.0);
            }
            spread(&mut rows, &tokens, 2);
            for (token, row) in rows.chunks(2).enumerate() {
                let expected = if tokens.contains(&token) {
                    token as f32 + 1.0
                } else {
                    0.0
                };
                assert_eq!(row, [expected; 2], "{tokens:?}");
            }
        }
    }

    #[test]
    fn sizes_cover_everything_within_the_memory_meant() {
        for targets in [0, 1, 7, 250, 1020, 1024, 2047, 2049, 4096, 20_000] {
            for vocabulary in [
                1, 2, 63, 64, 65, 2048, 32_000, 49_152, 151_936, 262_144, 5_000_000,
            ] {
                let (tokens, columns) = sizes(targets, vocabulary);
                assert!(columns >= 1 && columns <= vocabulary);
                assert!((tokens >= 1 || targets == 0) && tokens <= targets);
                // Rounding up to whole panels may exceed it.
                assert!(
                    tokens * columns <= LOGITS + tokens * PANEL,
                    "{targets} {vocabulary}"
                );
            }
        }
    }
}
