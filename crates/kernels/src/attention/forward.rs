//! The forward pass: a block of queries runs over the keys it sees.
//!
//! The block carries, for every query, the greatest score so far, the sum of the exponentials
//! relative to it, and the sum of the values weighted by them; a greater score rescales both
//! (Milakov and Gimelshein, arXiv 1805.02867).

use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use super::block::{HeadRows, Panels, Part, by_head, problems, product};
use crate::cpu::Level;
use crate::documents::Documents;
use crate::gemm::{Multiplying, Pooled, Scratch, Stored};
use crate::host::zeroed;
use crate::vector::{LANES, Real, larger, levels, reduce, soften};

/// Queries of a block: a multiple of every microkernel's rows.
const QUERIES: usize = 48;
/// Keys of a block: a multiple of every microkernel's columns.
const KEYS: usize = 128;

/// The keys and values of one head of one document, ready for the products.
struct Cache<H: Pooled> {
    /// Depth: the head's width; columns: keys.
    keys: Panels<H>,
    /// Depth: keys; columns: the head's width.
    values: Panels<H>,
}

/// A block of queries of one document, all heads.
struct Task<'a, T> {
    document: usize,
    /// First token of the document within the batch.
    start: usize,
    /// Positions within the document.
    queries: Range<usize>,
    /// Their rows of the output.
    output: &'a mut [T],
}

/// Output `[tokens, heads · head_dim]` and log-sum-exp `[heads, tokens]` of checked inputs, whose products
/// are of numbers held as `H`.
pub(super) fn all<T: Real, H: Stored<T>>(
    q: &[T],
    k: &[T],
    v: &[T],
    documents: &Documents,
    shape: &AttentionShape,
) -> (Vec<T>, Vec<T>) {
    let level = Level::detect();
    let tokens = documents.tokens();
    let problems = problems(documents, shape.kv_heads);
    let caches: Vec<Cache<H>> = problems
        .into_par_iter()
        .map(|(range, head)| {
            let rows = |x| HeadRows::new(x, shape.kv_heads, shape.head_dim, head, range.clone());
            Cache {
                keys: Panels::transposed(level, &rows(k)),
                values: Panels::plain(level, &rows(v)),
            }
        })
        .collect();

    let mut output = zeroed::<T>(tokens * shape.width());
    let mut tasks = Vec::new();
    let mut rest = output.as_mut_slice();
    for (document, range) in documents.ranges().enumerate() {
        for first in (0..range.len()).step_by(QUERIES) {
            let queries = first..range.len().min(first + QUERIES);
            let (now, later) = rest.split_at_mut(queries.len() * shape.width());
            rest = later;
            tasks.push(Task {
                document,
                start: range.start,
                queries,
                output: now,
            });
        }
    }
    let sums: Vec<_> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|mut task| {
            let caches = &caches[task.document * shape.kv_heads..][..shape.kv_heads];
            let first = task.start + task.queries.start;
            (first, run(level, q, caches, shape, &mut task))
        })
        .collect();
    (output, by_head(sums, shape.heads, tokens))
}

/// Writes the output of a task and returns its log-sum-exp, `[heads, queries]`.
fn run<T: Real, H: Stored<T>>(
    level: Level,
    q: &[T],
    caches: &[Cache<H>],
    shape: &AttentionShape,
    task: &mut Task<T>,
) -> Vec<T> {
    let _multiplying = Multiplying::at(level);
    let count = task.queries.len();
    let window = shape.reach();
    let padded = caches[0].values.columns();
    let rows = task.start + task.queries.start..task.start + task.queries.end;
    let mut log_sums = Vec::with_capacity(shape.heads * count);
    let mut scores = vec![T::ZERO; count * KEYS];
    let mut sums = vec![T::ZERO; count * padded];
    let (mut held_queries, mut held_scores) = (Scratch::default(), Scratch::default());
    for head in 0..shape.heads {
        let cache = &caches[head / shape.group()];
        let left = HeadRows::new(q, shape.heads, shape.head_dim, head, rows.clone());
        let left = left.scaled(level, T::of(shape.scale));
        let left = H::of_rows(level, &left, shape.head_dim, &mut held_queries);
        let mut state = vec![(T::NEG_INFINITY, 0.0); count];
        sums.fill(T::ZERO);
        let first_seen = (task.queries.start + 1).saturating_sub(window);
        let first_block = first_seen / cache.keys.width() * cache.keys.width();
        for first in (first_block..task.queries.end).step_by(KEYS) {
            let keys = first..task.queries.end.min(first + KEYS);
            // Keys that a range of the block's rows sees, cut to this block.
            let seen = |rows: Range<usize>| {
                let lowest = (task.queries.start + rows.start + 1).saturating_sub(window);
                let end = (task.queries.start + rows.end).min(keys.end);
                lowest.max(keys.start).min(end)..end
            };
            product(
                level,
                count,
                left,
                &cache.keys,
                (0, keys.start),
                (&mut scores, KEYS),
                false,
                |rows| Part {
                    columns: seen(rows),
                    depth: 0..shape.head_dim,
                },
            );
            if let Some(cap) = shape.softcap {
                soften::<T>(level, &mut scores, cap);
            }
            let place = Place {
                first_query: task.queries.start,
                keys: keys.clone(),
                window,
            };
            exponentials::<T>(level, &mut scores, &place, &mut state, &mut sums, padded);
            product(
                level,
                count,
                H::of_rows(level, &scores, KEYS, &mut held_scores),
                &cache.values,
                (keys.start, 0),
                (&mut sums, padded),
                true,
                |rows| Part {
                    columns: 0..padded,
                    depth: seen(rows),
                },
            );
        }
        for (row, (greatest, sum)) in state.iter().enumerate() {
            let inverse = T::of(1.0 / sum);
            let to = &mut task.output[row * shape.width() + head * shape.head_dim..];
            for (to, from) in to[..shape.head_dim].iter_mut().zip(&sums[row * padded..]) {
                *to = *from * inverse;
            }
            log_sums.push(T::of(greatest.to_f64() + sum.ln()));
        }
    }
    log_sums
}

/// Where a block of scores lies in its document.
struct Place {
    first_query: usize,
    keys: Range<usize>,
    window: usize,
}

levels! {
    /// Turns scores `[queries, KEYS]` into exponentials, those of unseen keys into 0.
    ///
    /// `state` is the greatest score and the sum of exponentials of each query so far; `sums`,
    /// `[queries, padded]`, is rescaled with them.
    fn exponentials<T: Real>(
        scores: &mut [T],
        place: &Place,
        state: &mut [(T, f64)],
        sums: &mut [T],
        padded: usize,
    ) {
        let keys = &place.keys;
        let rows = scores.chunks_exact_mut(KEYS).zip(state).zip(sums.chunks_exact_mut(padded));
        for (row, ((scores, (greatest, sum)), sums)) in rows.enumerate() {
            let query = place.first_query + row;
            let start = (query + 1).saturating_sub(place.window).max(keys.start) - keys.start;
            let end = (query + 1).min(keys.end).saturating_sub(keys.start);
            if start >= end {
                scores.fill(T::ZERO);
                continue;
            }
            let whole = start / LANES * LANES..end.next_multiple_of(LANES);
            scores[..whole.start].fill(T::ZERO);
            scores[whole.start..start].fill(T::NEG_INFINITY);
            scores[end..whole.end].fill(T::NEG_INFINITY);
            scores[whole.end..].fill(T::ZERO);
            let (seen, _) = scores[whole].as_chunks_mut::<LANES>();
            let mut lanes = [*greatest; LANES];
            for seen in seen.iter() {
                for lane in 0..LANES {
                    lanes[lane] = larger(seen[lane], lanes[lane]);
                }
            }
            let now = reduce(lanes, larger);
            let mut lanes = [T::ZERO; LANES];
            for seen in seen {
                for lane in 0..LANES {
                    seen[lane] = (seen[lane] - now).exp_inline::<FMA>();
                    lanes[lane] += seen[lane];
                }
            }
            if now > *greatest {
                let shrink = (*greatest - now).exp_inline::<FMA>();
                *sum *= shrink.to_f64();
                for value in sums {
                    *value *= shrink;
                }
                *greatest = now;
            }
            *sum += reduce(lanes, |a, b| a + b).to_f64();
        }
    }
}
