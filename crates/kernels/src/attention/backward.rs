//! The backward pass: a run of keys of one head is met by the queries that see them.
//!
//! With `P` the probabilities and `D = rowsum(dO ∘ O)`: `dV = Pᵀ dO`, `dS = P ∘ (dO Vᵀ − D)`,
//! `dQ = scale · dS K`, `dK = scale · dSᵀ Q`. Blocks are computed transposed, keys by queries, since
//! two of the three gradients want them so.
//!
//! A task is one query head and one run of keys of one document. It sums its gradients apart; the
//! runs of a document and the query heads that share a key head are added afterwards, in order.

use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use super::block::{HeadRows, Panels, Part, product};
use crate::cpu::Level;
use crate::documents::Documents;
use crate::gemm::{Multiplying, Scratch, Stored};
use crate::host::zeroed;
use crate::transpose::transpose;
use crate::vector::{LANES, Real, dot, levels, soften, softened_slope};

/// Keys of a block: a multiple of every microkernel's rows.
const KEYS: usize = 96;
/// Queries of a block: a multiple of every microkernel's columns.
const QUERIES: usize = 128;
/// Queries of a task begin at a multiple of this, so that blocks begin at a panel's edge.
const ALIGN: usize = 32;
/// A document's keys are cut until a batch has about this many tasks …
const TASKS: usize = 32;
/// … but into no more runs than this, for each run packs the queries behind it again.
const RUNS: usize = 4;
/// Memory for the tasks' own sums, in bytes, beyond which key heads are taken in turns.
const SUMS: usize = 64 << 20;
/// Rows that are added up by one thread.
const ROWS: usize = 64;

/// Checked inputs of the backward pass.
pub(super) struct Inputs<'a, T> {
    pub(super) dout: &'a [T],
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    pub(super) output: &'a [T],
    pub(super) log_sums: &'a [T],
    pub(super) tokens: usize,
    pub(super) shape: &'a AttentionShape,
}

/// One query head against one run of keys of one document.
struct Task {
    /// Tokens of the document within the batch.
    document: Range<usize>,
    head: usize,
    /// Positions within the document.
    keys: Range<usize>,
}

/// The sums of a task; positions are within the document.
struct Sums<T> {
    /// Queries that see a key of the run.
    queries: Range<usize>,
    /// `[queries, padded]`, without the factor `scale`.
    dq: Vec<T>,
    padded: usize,
    /// `[keys, head_dim]`
    dk: Vec<T>,
    /// `[keys, head_dim]`
    dv: Vec<T>,
}

/// The gradients of q, k and v, from products of numbers held as `H`.
pub(super) fn all<T: Real, H: Stored<T>>(
    inputs: &Inputs<T>,
    documents: &Documents,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let level = Level::detect();
    let shape = inputs.shape;
    let mut dq = zeroed::<T>(inputs.tokens * shape.width());
    let mut dk = zeroed::<T>(inputs.tokens * shape.kv_width());
    let mut dv = zeroed::<T>(inputs.tokens * shape.kv_width());
    let wanted_runs = TASKS
        .div_ceil((documents.len() * shape.heads).max(1))
        .min(RUNS);
    let runs: Vec<(Range<usize>, Vec<Range<usize>>)> = documents
        .ranges()
        .map(|range| (range.clone(), cut(range.len(), wanted_runs)))
        .collect();

    // How many key heads are taken at a time decides nothing but memory and the use of threads.
    let tasks_per_head = shape.group() * runs.iter().map(|(_, runs)| runs.len()).sum::<usize>();
    let sums_per_head = 3 * shape.group() * inputs.tokens * shape.head_dim * size_of::<T>();
    let at_once = (2 * rayon::current_num_threads())
        .div_ceil(tasks_per_head.max(1))
        .max(SUMS / sums_per_head.max(1))
        .max(1);
    for first in (0..shape.kv_heads).step_by(at_once) {
        let kv_heads = first..shape.kv_heads.min(first + at_once);
        let heads = kv_heads.start * shape.group()..kv_heads.end * shape.group();
        let mut tasks = Vec::new();
        for (document, runs) in &runs {
            for head in heads.clone() {
                tasks.extend(runs.iter().map(|keys| Task {
                    document: document.clone(),
                    head,
                    keys: keys.clone(),
                }));
            }
        }
        let sums: Vec<Sums<T>> = tasks
            .par_iter()
            .with_max_len(1)
            .map(|task| run::<T, H>(level, inputs, task))
            .collect();
        let scale = T::of(shape.scale);
        add(
            &tasks,
            &sums,
            documents,
            &mut dq,
            shape.width(),
            |to, task, sums, position| {
                if let Some(row) = within(position, &sums.queries) {
                    let from = &sums.dq[row * sums.padded..][..shape.head_dim];
                    let to = &mut to[task.head * shape.head_dim..][..shape.head_dim];
                    for (to, from) in to.iter_mut().zip(from) {
                        *to += *from * scale;
                    }
                }
            },
        );
        for (gradient, of) in [
            (&mut dk, key_sums as fn(&Sums<T>) -> &[T]),
            (&mut dv, value_sums),
        ] {
            add(
                &tasks,
                &sums,
                documents,
                gradient,
                shape.kv_width(),
                |to, task, sums, position| {
                    if let Some(row) = within(position, &task.keys) {
                        let from = &of(sums)[row * shape.head_dim..][..shape.head_dim];
                        let to = &mut to[task.head / shape.group() * shape.head_dim..];
                        for (to, from) in to.iter_mut().zip(from) {
                            *to += *from;
                        }
                    }
                },
            );
        }
    }
    (dq, dk, dv)
}

fn key_sums<T>(sums: &Sums<T>) -> &[T] {
    &sums.dk
}

fn value_sums<T>(sums: &Sums<T>) -> &[T] {
    &sums.dv
}

fn within(position: usize, range: &Range<usize>) -> Option<usize> {
    range.contains(&position).then(|| position - range.start)
}

/// Cuts the keys of a document into runs of about equal work: a key is seen by all later queries.
fn cut(length: usize, wanted: usize) -> Vec<Range<usize>> {
    let blocks = length.div_ceil(KEYS);
    let total = blocks * (blocks + 1) / 2;
    let mut runs = Vec::new();
    let (mut start, mut work) = (0, 0);
    for block in 0..blocks {
        work += blocks - block;
        if work * wanted >= total * (runs.len() + 1) {
            let end = length.min((block + 1) * KEYS);
            runs.push(start..end);
            start = end;
        }
    }
    runs
}

/// Lets `row` add every task's share to every row of its document, tasks in order, rows in parallel.
fn add<T: Real>(
    tasks: &[Task],
    sums: &[Sums<T>],
    documents: &Documents,
    gradient: &mut [T],
    width: usize,
    row: impl Fn(&mut [T], &Task, &Sums<T>, usize) + Sync,
) {
    let mut parts = Vec::new();
    let mut rest = gradient;
    let per_document = tasks.len() / documents.len().max(1);
    let mut first_task = 0;
    for document in documents.ranges() {
        let end = first_task
            + tasks[first_task..]
                .iter()
                .take_while(|task| task.document == document)
                .count();
        debug_assert!(end > first_task || per_document == 0);
        for first in (0..document.len()).step_by(ROWS) {
            let rows = ROWS.min(document.len() - first);
            let (now, later) = rest.split_at_mut(rows * width);
            rest = later;
            parts.push((first, first_task..end, now));
        }
        first_task = end;
    }
    parts.into_par_iter().for_each(|(first, range, part)| {
        for (task, sums) in tasks[range.clone()].iter().zip(&sums[range]) {
            for (position, to) in part.chunks_exact_mut(width).enumerate() {
                row(to, task, sums, first + position);
            }
        }
    });
}

fn run<T: Real, H: Stored<T>>(level: Level, inputs: &Inputs<T>, task: &Task) -> Sums<T> {
    let _multiplying = Multiplying::at(level);
    let shape = inputs.shape;
    let (head_dim, window) = (shape.head_dim, shape.reach());
    let length = task.document.len();
    // The queries that see a key of the run, begun at a panel's edge.
    let queries = task.keys.start / ALIGN * ALIGN..length.min(task.keys.end - 1 + window);
    let tokens = task.document.start + queries.start..task.document.start + queries.end;
    let of_head = |x| HeadRows::new(x, shape.heads, head_dim, task.head, tokens.clone());
    let q = of_head(inputs.q).scaled(level, T::of(shape.scale));
    let q = HeadRows::alone(&q, head_dim);
    let dout = of_head(inputs.dout);
    let (q_turned, dout_turned): (Panels<H>, Panels<H>) = (
        Panels::transposed(level, &q),
        Panels::transposed(level, &dout),
    );
    let (q, dout_plain): (Panels<H>, Panels<H>) =
        (Panels::plain(level, &q), Panels::plain(level, &dout));
    let padded = q.columns();
    // Filled up to whole lanes; what is there is never used.
    let lanes = queries.len().next_multiple_of(LANES);
    let mut log_sums = inputs.log_sums[task.head * inputs.tokens..][tokens.clone()].to_vec();
    log_sums.resize(lanes, T::ZERO);
    let mut pulls = vec![T::ZERO; lanes];
    let output = of_head(inputs.output);
    for (row, pull) in pulls[..queries.len()].iter_mut().enumerate() {
        *pull = T::of(inner::<T>(level, dout.row(row), output.row(row)));
    }

    let mut sums = Sums {
        dq: vec![T::ZERO; queries.len() * padded],
        padded,
        dk: Vec::with_capacity(task.keys.len() * head_dim),
        dv: Vec::with_capacity(task.keys.len() * head_dim),
        queries: queries.clone(),
    };
    let mut held = Scratch::default();
    let mut p = vec![T::ZERO; KEYS * QUERIES];
    let mut ds = vec![T::ZERO; KEYS * QUERIES];
    // How much less a softened score changes than the score itself.
    let mut slopes = vec![T::ONE; shape.softcap.map_or(0, |_| KEYS * QUERIES)];
    let mut ds_turned = vec![T::ZERO; QUERIES * KEYS];
    let mut dk = vec![T::ZERO; KEYS * padded];
    let mut dv = vec![T::ZERO; KEYS * padded];
    for first_key in task.keys.clone().step_by(KEYS) {
        let keys = first_key..task.keys.end.min(first_key + KEYS);
        let count = keys.len();
        let tokens = task.document.start + keys.start..task.document.start + keys.end;
        let of_head = |x| {
            HeadRows::new(
                x,
                shape.kv_heads,
                head_dim,
                task.head / shape.group(),
                tokens.clone(),
            )
        };
        let (k_rows, v_rows) = (of_head(inputs.k).copied(), of_head(inputs.v).copied());
        let k_plain: Panels<H> = Panels::plain(level, &HeadRows::alone(&k_rows, head_dim));
        dk.fill(T::ZERO);
        dv.fill(T::ZERO);
        let last_query = queries.end.min(keys.end - 1 + window);
        for first_query in (keys.start / ALIGN * ALIGN..last_query).step_by(QUERIES) {
            let block = first_query..last_query.min(first_query + QUERIES);
            // Place of the block among the task's queries.
            let at = block.start - queries.start;
            // Queries of the block that see some of a range of its keys, as the task counts them.
            let seeing = |rows: Range<usize>| {
                let end = (keys.start + rows.end - 1)
                    .saturating_add(window)
                    .min(block.end);
                let start = (keys.start + rows.start).max(block.start).min(end);
                start - queries.start..end - queries.start
            };
            for (rows, panels, out) in [
                (&k_rows, &q_turned, &mut p),
                (&v_rows, &dout_turned, &mut ds),
            ] {
                let part = |rows| Part {
                    columns: seeing(rows),
                    depth: 0..head_dim,
                };
                let out = (&mut out[..], QUERIES);
                product(
                    level,
                    count,
                    H::of_rows(level, rows, head_dim, &mut held),
                    panels,
                    (0, at),
                    out,
                    false,
                    part,
                );
            }
            let place = Place {
                keys: keys.clone(),
                queries: block.clone(),
                window,
            };
            let lanes = at..at + block.len().next_multiple_of(LANES);
            let of_rows = (&log_sums[lanes.clone()], &pulls[lanes]);
            if let Some(cap) = shape.softcap {
                soften::<T>(level, &mut p, cap);
                for (slope, softened) in slopes.iter_mut().zip(&p) {
                    *slope = softened_slope(*softened, cap);
                }
            }
            gradients::<T>(level, &mut p, &mut ds, &place, of_rows);
            if shape.softcap.is_some() {
                for (ds, slope) in ds.iter_mut().zip(&slopes) {
                    *ds *= *slope;
                }
            }
            for (left, panels, out) in [(&p, &dout_plain, &mut dv), (&ds, &q, &mut dk)] {
                let part = |rows| Part {
                    columns: 0..padded,
                    depth: seeing(rows),
                };
                let out = (&mut out[..], padded);
                product(
                    level,
                    count,
                    H::of_rows(level, left, QUERIES, &mut held),
                    panels,
                    (at, 0),
                    out,
                    true,
                    part,
                );
            }
            transpose::<T>(
                level,
                &ds,
                QUERIES,
                count,
                block.len(),
                &mut ds_turned,
                KEYS,
            );
            // Keys of the block that some of a range of its queries see.
            let seen = |rows: Range<usize>| {
                let start = (block.start + rows.start + 1).saturating_sub(window);
                let end = (block.start + rows.end)
                    .min(keys.end)
                    .saturating_sub(keys.start);
                start.saturating_sub(keys.start).min(end)..end
            };
            let part = |rows| Part {
                columns: 0..padded,
                depth: seen(rows),
            };
            let out = (&mut sums.dq[at * padded..], padded);
            product(
                level,
                block.len(),
                H::of_rows(level, &ds_turned, KEYS, &mut held),
                &k_plain,
                (0, 0),
                out,
                true,
                part,
            );
        }
        for row in 0..count {
            sums.dk.extend_from_slice(&dk[row * padded..][..head_dim]);
            sums.dv.extend_from_slice(&dv[row * padded..][..head_dim]);
        }
    }
    sums
}

/// Where a block lies in its document.
struct Place {
    keys: Range<usize>,
    queries: Range<usize>,
    window: usize,
}

levels! {
    /// Scores `p` and `dO Vᵀ` in `ds`, both `[keys, QUERIES]`, become `P` and `dS`; 0 where unseen.
    ///
    /// `of_queries` is log-sum-exp and `D` of the block's queries, filled up to whole lanes.
    fn gradients<T: Real>(
        p: &mut [T],
        ds: &mut [T],
        place: &Place,
        of_queries: (&[T], &[T]),
    ) {
        let queries = &place.queries;
        let rows = p.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES));
        for ((p, ds), key) in rows.zip(place.keys.clone()) {
            let start = key.max(queries.start) - queries.start;
            let end = key.saturating_add(place.window).min(queries.end).saturating_sub(queries.start);
            if start >= end {
                p.fill(T::ZERO);
                ds.fill(T::ZERO);
                continue;
            }
            let whole = start / LANES * LANES..end.next_multiple_of(LANES);
            p[..whole.start].fill(T::ZERO);
            p[whole.start..start].fill(T::NEG_INFINITY);
            p[end..whole.end].fill(T::NEG_INFINITY);
            p[whole.end..].fill(T::ZERO);
            ds[..start].fill(T::ZERO);
            ds[end..].fill(T::ZERO);
            let (log_sums, pulls) = (&of_queries.0[whole.clone()], &of_queries.1[whole.clone()]);
            let (p, _) = p[whole.clone()].as_chunks_mut::<LANES>();
            let (ds, _) = ds[whole].as_chunks_mut::<LANES>();
            let (log_sums, _) = log_sums.as_chunks::<LANES>();
            let (pulls, _) = pulls.as_chunks::<LANES>();
            for (((p, ds), log_sum), pull) in p.iter_mut().zip(ds).zip(log_sums).zip(pulls) {
                for lane in 0..LANES {
                    p[lane] = (p[lane] - log_sum[lane]).exp_inline::<FMA>();
                    ds[lane] = p[lane] * (ds[lane] - pull[lane]);
                }
            }
        }
    }
}

levels! {
    fn inner<T: Real>(x: &[T], y: &[T]) -> f64 {
        dot::<T, FMA>(x, y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_document_in_order() {
        for length in [1, 47, 48, 49, 500, 4096] {
            for wanted in 1..=RUNS {
                let runs = cut(length, wanted);
                assert!(runs.len() <= wanted);
                assert_eq!(runs.first().map(|run| run.start), Some(0));
                assert_eq!(runs.last().map(|run| run.end), Some(length));
                assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start));
            }
        }
    }
}
