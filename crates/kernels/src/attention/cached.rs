//! Attention of new tokens over a cache, for generation.
//!
//! Few queries meet many keys here, so the work is reading the cache once: every row of it serves
//! all query heads of its group, and no block is packed. A prompt as a whole is better served by
//! [`super::attention`].

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::AttentionShape;
use crate::cpu::Level;
use crate::vector::{Real, levels, soften};

/// Attention of the new tokens of one sequence over its cache.
///
/// `q` is `[new, heads · head_dim]`; `keys` and `values` are `[length, kv_heads · head_dim]` and end
/// with those of the new tokens, which see each other causally. Returns `[new, heads · head_dim]`.
///
/// # Errors
/// Slices whose lengths do not fit `shape`, or a cache shorter than the new tokens.
pub fn attention_cached<T: Real>(
    q: &[T],
    keys: &[T],
    values: &[T],
    shape: &AttentionShape,
) -> Result<Vec<T>> {
    shape.check()?;
    let (width, kv_width) = (shape.width(), shape.kv_width());
    let (new, length) = (q.len() / width, keys.len() / kv_width);
    if !q.len().is_multiple_of(width)
        || !keys.len().is_multiple_of(kv_width)
        || keys.len() != values.len()
    {
        bail!(
            "`attention_cached`: slices of {}, {} and {} numbers do not fit {shape:?}",
            q.len(),
            keys.len(),
            values.len()
        );
    }
    if length < new {
        bail!("`attention_cached`: {new} new tokens meet a cache of {length}");
    }
    let level = Level::detect();
    let group_width = shape.group() * shape.head_dim;
    let mut out = vec![T::ZERO; q.len()];
    // A row of the output is the groups of all key heads, one after the other.
    out.par_chunks_mut(group_width)
        .zip(q.par_chunks(group_width))
        .enumerate()
        .for_each(|(index, (out, q))| {
            let (token, kv_head) = (index / shape.kv_heads, index % shape.kv_heads);
            let end = length - new + token + 1;
            let rows = end.saturating_sub(shape.reach())..end;
            let first = rows.start * kv_width + kv_head * shape.head_dim;
            let mut scores = vec![T::ZERO; rows.len() * shape.group()];
            for (key, scores) in scores.chunks_exact_mut(shape.group()).enumerate() {
                let key = &keys[first + key * kv_width..][..shape.head_dim];
                for (score, q) in scores.iter_mut().zip(q.chunks_exact(shape.head_dim)) {
                    *score = T::dot(level, q, key);
                }
            }
            if let Some(cap) = shape.softcap {
                for score in &mut scores {
                    *score *= T::of(shape.scale);
                }
                soften::<T>(level, &mut scores, cap);
            }
            weigh::<T>(level, &mut scores, &values[first..], kv_width, shape, out);
        });
    Ok(out)
}

levels! {
    /// Softmax of `scores`, `[keys, group]`, over the keys, then the values weighted by it.
    fn weigh<T: Real>(
        scores: &mut [T],
        values: &[T],
        stride: usize,
        shape: &AttentionShape,
        out: &mut [T],
    ) {
        let group = shape.group();
        // Softened scores are scaled already.
        let scale = T::of(if shape.softcap.is_some() { 1.0 } else { shape.scale });
        let mut greatest = vec![T::NEG_INFINITY; group];
        for scores in scores.chunks_exact(group) {
            for (greatest, score) in greatest.iter_mut().zip(scores) {
                *greatest = if *score * scale > *greatest { *score * scale } else { *greatest };
            }
        }
        let mut sums = vec![0.0; group];
        for (key, scores) in scores.chunks_exact_mut(group).enumerate() {
            let value = &values[key * stride..][..shape.head_dim];
            let heads = scores.iter().zip(&greatest).zip(&mut sums);
            for (((score, greatest), sum), out) in
                heads.zip(out.chunks_exact_mut(shape.head_dim))
            {
                let share = (*score * scale - *greatest).exp_inline::<FMA>();
                *sum += share.to_f64();
                for (out, value) in out.iter_mut().zip(value) {
                    *out = share.mul_add::<FMA>(*value, *out);
                }
            }
        }
        for (out, sum) in out.chunks_exact_mut(shape.head_dim).zip(sums) {
            let inverse = T::of(1.0 / sum);
            for out in out {
                *out *= inverse;
            }
        }
    }
}
