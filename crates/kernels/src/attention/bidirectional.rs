//! Attention in both directions, document by document, and its adjoint: what encoders do.
//!
//! `softmax(scale · q kᵀ) v` with q, k and v of `[tokens, heads · head_dim]`. A token sees all of its document, or
//! with a window the tokens at most so far away on either side. As there is no padding, nothing is masked but what
//! lies outside the window. A block of queries by the keys it sees is all that exists of the score matrix; the
//! forward pass keeps the logarithm of each row's sum, from which the backward pass computes the block again.
//!
//! A task is a document's block of queries in the forward pass, and a head of a document in the backward pass;
//! sums therefore have the same order on any number of threads.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::block::{HeadRows, Panels, Part, by_head, problems, product};
use crate::by_element;
use crate::cpu::Level;
use crate::documents::Documents;
use crate::host::{matrix, tensor, view, zeroed};
use crate::transpose::transpose;
use crate::vector::{LANES, Real, dot, greatest, levels, reduce};

/// Queries of a block: a multiple of every microkernel's rows.
const QUERIES: usize = 48;
/// A block's keys begin at a multiple of this, a multiple of every microkernel's columns.
const ALIGN: usize = 32;

/// The shape of an encoder's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bidirectional {
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1/√head_dim`.
    pub scale: f64,
    /// A query sees keys at most this many places away on either side.
    pub window: Option<usize>,
}

impl Bidirectional {
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Keys that some of a range of queries see, of a document of `length` tokens.
    fn seen(&self, queries: &Range<usize>, length: usize) -> Range<usize> {
        match self.window {
            None => 0..length,
            Some(window) => {
                let end = (queries.end - 1).saturating_add(window).saturating_add(1);
                queries.start.saturating_sub(window)..end.min(length)
            }
        }
    }

    fn check(&self, inputs: [&Tensor; 3], documents: &Documents) -> Result<usize> {
        let (tokens, width) = matrix(inputs[0], "bidirectional", "q")?;
        if self.heads == 0 || self.head_dim == 0 || width != self.width() {
            bail!(
                "`bidirectional`: q {:?} does not fit {self:?}",
                inputs[0].dims()
            );
        }
        for other in &inputs[1..] {
            if other.dims() != inputs[0].dims() {
                bail!(
                    "`bidirectional`: {:?} beside q {:?}",
                    other.dims(),
                    inputs[0].dims()
                );
            }
        }
        if documents.tokens() != tokens {
            bail!(
                "`bidirectional`: documents of {} tokens, inputs of {tokens}",
                documents.tokens()
            );
        }
        Ok(tokens)
    }
}

/// `(output [tokens, heads · head_dim], log-sum-exp of the scaled scores [heads, tokens])`.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn bidirectional(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
    shape: &Bidirectional,
) -> Result<(Tensor, Tensor)> {
    let tokens = shape.check([q, k, v], documents)?;
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return crate::cuda::attention(q, k, v, documents, &shape.into());
    }
    by_element!(q, T => {
        let (q, k, v) = (view::<T>(q)?, view::<T>(k)?, view::<T>(v)?);
        let (output, log_sums) = forward::<T>(&q, &k, &v, documents, shape);
        Ok((tensor(output, (tokens, shape.width()))?, tensor(log_sums, (shape.heads, tokens))?))
    })
}

/// Adjoint of [`bidirectional`]: the gradients of q, k and v. `output` and `log_sums` are what it returned.
///
/// # Errors
/// As [`bidirectional`].
pub fn bidirectional_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    output: &Tensor,
    log_sums: &Tensor,
    documents: &Documents,
    shape: &Bidirectional,
) -> Result<(Tensor, Tensor, Tensor)> {
    let tokens = shape.check([q, k, v], documents)?;
    if dout.dims() != q.dims()
        || output.dims() != q.dims()
        || log_sums.dims() != [shape.heads, tokens]
    {
        bail!(
            "`bidirectional_backward`: gradient {:?}, output {:?} and sums {:?} do not fit q {:?}",
            dout.dims(),
            output.dims(),
            log_sums.dims(),
            q.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        let shape = shape.into();
        return crate::cuda::attention_backward(dout, q, k, v, output, log_sums, documents, &shape);
    }
    by_element!(q, T => {
        let (q, k, v) = (view::<T>(q)?, view::<T>(k)?, view::<T>(v)?);
        let (dout, output, log_sums) = (view::<T>(dout)?, view::<T>(output)?, view::<T>(log_sums)?);
        let inputs = Inputs {
            dout: &dout,
            q: &q,
            k: &k,
            v: &v,
            output: &output,
            log_sums: &log_sums,
            tokens,
            shape,
        };
        let gradients = backward::<T>(&inputs, documents);
        let [dq, dk, dv] = gradients.map(|gradient| tensor(gradient, (tokens, shape.width())));
        Ok((dq?, dk?, dv?))
    })
}

fn forward<T: Real>(
    q: &[T],
    k: &[T],
    v: &[T],
    documents: &Documents,
    shape: &Bidirectional,
) -> (Vec<T>, Vec<T>) {
    let level = Level::detect();
    let tokens = documents.tokens();
    let problems = problems(documents, shape.heads);
    // Keys and values of every head of every document, ready for the products.
    let packed: Vec<(Panels<T>, Panels<T>)> = problems
        .into_par_iter()
        .map(|(range, head)| {
            let rows = |x| HeadRows::new(x, shape.heads, shape.head_dim, head, range.clone());
            (
                Panels::transposed(level, &rows(k)),
                Panels::plain(level, &rows(v)),
            )
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
            tasks.push((document, range.clone(), queries, now));
        }
    }
    let sums: Vec<(usize, Vec<T>)> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|(document, range, queries, output)| {
            let heads = &packed[document * shape.heads..][..shape.heads];
            let first = range.start + queries.start;
            (
                first,
                block(level, q, heads, shape, &range, &queries, output),
            )
        })
        .collect();
    (output, by_head(sums, shape.heads, tokens))
}

/// Writes the output of a block of queries, all heads, and returns its log-sum-exp, `[heads, queries]`.
fn block<T: Real>(
    level: Level,
    q: &[T],
    heads: &[(Panels<T>, Panels<T>)],
    shape: &Bidirectional,
    document: &Range<usize>,
    queries: &Range<usize>,
    output: &mut [T],
) -> Vec<T> {
    let (count, length) = (queries.len(), document.len());
    let seen = shape.seen(queries, length);
    let first = seen.start / ALIGN * ALIGN;
    let stride = (seen.end - first).next_multiple_of(ALIGN);
    let padded = heads[0].1.columns();
    let rows = document.start + queries.start..document.start + queries.end;
    let mut log_sums = Vec::with_capacity(shape.heads * count);
    let mut scores = vec![T::ZERO; count * stride];
    let mut sums = vec![T::ZERO; count * padded];
    for (head, (keys, values)) in heads.iter().enumerate() {
        let left = HeadRows::new(q, shape.heads, shape.head_dim, head, rows.clone());
        let left = left.scaled(level, T::of(shape.scale));
        let part = |_| Part {
            columns: seen.clone(),
            depth: 0..shape.head_dim,
        };
        let out = (&mut scores[..], stride);
        product(
            level,
            count,
            (&left, shape.head_dim),
            keys,
            (0, first),
            out,
            false,
            part,
        );
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let query = queries.start + row;
            let of_row = shape.seen(&(query..query + 1), length);
            let of_row = of_row.start - first..of_row.end - first;
            log_sums.push(softmax::<T>(level, scores, of_row));
        }
        let part = |_| Part {
            columns: 0..padded,
            depth: seen.clone(),
        };
        // What lies before the seen keys in `scores` is 0, and is not touched.
        let out = (&mut sums[..], padded);
        product(
            level,
            count,
            (&scores, stride),
            values,
            (first, 0),
            out,
            false,
            part,
        );
        for (row, sums) in sums.chunks_exact(padded).enumerate() {
            let to = &mut output[row * shape.width() + head * shape.head_dim..][..shape.head_dim];
            to.copy_from_slice(&sums[..shape.head_dim]);
        }
    }
    log_sums
}

struct Inputs<'a, T> {
    dout: &'a [T],
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    output: &'a [T],
    log_sums: &'a [T],
    tokens: usize,
    shape: &'a Bidirectional,
}

/// The gradients of q, k and v.
fn backward<T: Real>(inputs: &Inputs<T>, documents: &Documents) -> [Vec<T>; 3] {
    let level = Level::detect();
    let shape = inputs.shape;
    let problems = problems(documents, shape.heads);
    let parts: Vec<[Vec<T>; 3]> = problems
        .par_iter()
        .with_max_len(1)
        .map(|(range, head)| of_head(level, inputs, range, *head))
        .collect();
    let ranges: Vec<_> = documents.ranges().collect();
    [0, 1, 2].map(|which| {
        let mut all = zeroed::<T>(inputs.tokens * shape.width());
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut rest = all.as_mut_slice();
        for range in &ranges {
            let (now, later) = rest.split_at_mut(range.len() * shape.width());
            pieces.push(now);
            rest = later;
        }
        pieces
            .into_par_iter()
            .enumerate()
            .for_each(|(document, piece)| {
                let heads = &parts[document * shape.heads..][..shape.heads];
                for (row, to) in piece.chunks_exact_mut(shape.width()).enumerate() {
                    for (to, part) in to.chunks_exact_mut(shape.head_dim).zip(heads) {
                        to.copy_from_slice(&part[which][row * shape.head_dim..][..shape.head_dim]);
                    }
                }
            });
        all
    })
}

/// Gradients of q, k and v of one head of a document, each `[tokens of the document, head_dim]`.
///
/// With `P` the probabilities and `D = rowsum(dO ∘ O)`: `dV = Pᵀ dO`, `dS = P ∘ (dO Vᵀ − D)`,
/// `dQ = scale · dS K`, `dK = scale · dSᵀ Q`.
fn of_head<T: Real>(
    level: Level,
    inputs: &Inputs<T>,
    document: &Range<usize>,
    head: usize,
) -> [Vec<T>; 3] {
    let shape = inputs.shape;
    let (head_dim, length) = (shape.head_dim, document.len());
    let rows = |x, of: Range<usize>| HeadRows::new(x, shape.heads, head_dim, head, of);
    let (k, v) = (
        rows(inputs.k, document.clone()),
        rows(inputs.v, document.clone()),
    );
    let (k_turned, v_turned) = (Panels::transposed(level, &k), Panels::transposed(level, &v));
    let k_plain = Panels::plain(level, &k);
    let padded = k_plain.columns();
    let mut dq = Vec::with_capacity(length * head_dim);
    let mut dk = vec![T::ZERO; length * padded];
    let mut dv = vec![T::ZERO; length * padded];
    let most = length.next_multiple_of(ALIGN) + ALIGN;
    let (mut p, mut ds) = (vec![T::ZERO; QUERIES * most], vec![T::ZERO; QUERIES * most]);
    let mut turned = vec![T::ZERO; most * QUERIES];
    let mut dq_block = vec![T::ZERO; QUERIES * padded];
    for first_query in (0..length).step_by(QUERIES) {
        let queries = first_query..length.min(first_query + QUERIES);
        let count = queries.len();
        let tokens = document.start + queries.start..document.start + queries.end;
        let q = rows(inputs.q, tokens.clone()).scaled(level, T::of(shape.scale));
        let dout = rows(inputs.dout, tokens.clone()).copied();
        let output = rows(inputs.output, tokens.clone());
        let seen = shape.seen(&queries, length);
        let first = seen.start / ALIGN * ALIGN;
        let stride = (seen.end - first).next_multiple_of(ALIGN);
        for (left, right, out) in [(&q, &k_turned, &mut p), (&dout, &v_turned, &mut ds)] {
            let part = |_| Part {
                columns: seen.clone(),
                depth: 0..head_dim,
            };
            let out = (&mut out[..count * stride], stride);
            product(
                level,
                count,
                (left, head_dim),
                right,
                (0, first),
                out,
                false,
                part,
            );
        }
        for row in 0..count {
            let query = queries.start + row;
            let of_row = shape.seen(&(query..query + 1), length);
            let of_row = of_row.start - first..of_row.end - first;
            let log_sum = inputs.log_sums[head * inputs.tokens + document.start + query];
            let dout = &dout[row * head_dim..][..head_dim];
            let pull = T::of(inner::<T>(level, dout, output.row(row)));
            let (p, ds) = (
                &mut p[row * stride..][..stride],
                &mut ds[row * stride..][..stride],
            );
            slopes::<T>(level, p, ds, of_row, log_sum, pull);
        }
        // dQ of the block.
        let part = |_| Part {
            columns: 0..padded,
            depth: seen.clone(),
        };
        let out = (&mut dq_block[..], padded);
        product(
            level,
            count,
            (&ds, stride),
            &k_plain,
            (first, 0),
            out,
            false,
            part,
        );
        for row in dq_block[..count * padded].chunks_exact(padded) {
            dq.extend(
                row[..head_dim]
                    .iter()
                    .map(|value| *value * T::of(shape.scale)),
            );
        }
        // The block's share of dK and dV. `q` carries the factor `scale` already.
        let block = HeadRows::alone(&q, head_dim);
        let q_plain = Panels::plain(level, &block);
        let dout_plain = Panels::plain(level, &HeadRows::alone(&dout, head_dim));
        let at = seen.start - first;
        for (from, right, into) in [(&ds, &q_plain, &mut dk), (&p, &dout_plain, &mut dv)] {
            transpose::<T>(
                level,
                &from[at..],
                stride,
                count,
                seen.len(),
                &mut turned,
                QUERIES,
            );
            let part = |_| Part {
                columns: 0..padded,
                depth: 0..count,
            };
            let into = (&mut into[seen.start * padded..], padded);
            product(
                level,
                seen.len(),
                (&turned, QUERIES),
                right,
                (0, 0),
                into,
                true,
                part,
            );
        }
    }
    let narrow = |wide: Vec<T>| {
        let rows = wide.chunks_exact(padded);
        rows.flat_map(|row| row[..head_dim].iter().copied())
            .collect()
    };
    [dq, narrow(dk), narrow(dv)]
}

levels! {
    /// Turns a row of scores into probabilities, 0 outside `seen`, and returns its log-sum-exp.
    fn softmax<T: Real>(row: &mut [T], seen: Range<usize>) -> T {
        row[..seen.start].fill(T::ZERO);
        row[seen.end..].fill(T::ZERO);
        let row = &mut row[seen];
        let greatest = greatest(row);
        let mut lanes = [T::ZERO; LANES];
        let (whole, rest) = row.as_chunks_mut::<LANES>();
        for chunk in whole {
            for lane in 0..LANES {
                chunk[lane] = (chunk[lane] - greatest).exp_inline::<FMA>();
                lanes[lane] += chunk[lane];
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *value = (*value - greatest).exp_inline::<FMA>();
            *lane += *value;
        }
        let sum = reduce(lanes, |a, b| a + b).to_f64();
        let inverse = T::of(1.0 / sum);
        for value in row.iter_mut() {
            *value *= inverse;
        }
        T::of(greatest.to_f64() + sum.ln())
    }
}

levels! {
    /// A row of scores `p` and of `dO Vᵀ` in `ds` become `P` and `dS`; 0 outside `seen`.
    fn slopes<T: Real>(p: &mut [T], ds: &mut [T], seen: Range<usize>, log_sum: T, pull: T) {
        for row in [&mut *p, &mut *ds] {
            row[..seen.start].fill(T::ZERO);
            row[seen.end..].fill(T::ZERO);
        }
        for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
            *p = (*p - log_sum).exp_inline::<FMA>();
            *ds = *p * (*ds - pull);
        }
    }
}

levels! {
    fn inner<T: Real>(x: &[T], y: &[T]) -> f64 {
        dot::<T, FMA>(x, y)
    }
}
