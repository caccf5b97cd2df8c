//! Attention of new tokens over a cache, for generation.
//!
//! Few queries meet many keys here, so the work is reading the cache once: every row of it serves
//! all query heads of its group, and no block is packed. A prompt as a whole is better served by
//! [`super::attention`].

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{AttentionShape, attention};
use crate::cpu::Level;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::documents::Documents;
use crate::host::{tensor, view};
use crate::vector::{Real, levels, soften};

/// Keys and values of one sequence in one layer, in f32 and in the memory where they were computed.
#[derive(Debug, Default)]
pub struct Cache {
    /// `[length, kv_heads · head_dim]`
    keys: Vec<f32>,
    /// As `keys`.
    values: Vec<f32>,
    /// Both of them, on a GPU.
    #[cfg(feature = "cuda")]
    there: Option<cuda::DeviceRows>,
}

impl Cache {
    fn is_empty(&self) -> bool {
        #[cfg(feature = "cuda")]
        if self.there.is_some() {
            return false;
        }
        self.keys.is_empty()
    }
}

/// Attention of the next tokens of several sequences, of which each is a document, over what came before them: their
/// keys and values are added to `caches`, one for each document. As [`attention`] where these were empty.
///
/// # Errors
/// Another number of caches than documents; as [`attention`].
pub fn attention_next(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    caches: &mut [&mut Cache],
    documents: &Documents,
    shape: &AttentionShape,
) -> Result<Tensor> {
    shape.check_inputs(q, k, v, documents)?;
    if caches.len() != documents.len() {
        bail!(
            "`attention_next`: {} caches for {} sequences",
            caches.len(),
            documents.len()
        );
    }
    let fresh = caches.iter().all(|cache| cache.is_empty());
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        let mut rows = Vec::with_capacity(caches.len());
        for cache in caches.iter_mut() {
            if cache.there.is_none() {
                cache.there = Some(cuda::DeviceRows::new(shape.kv_width(), q.device())?);
            }
            rows.extend(&mut cache.there);
        }
        let seen = cuda::append(k, v, &mut rows, documents, &shape.into())?;
        if !fresh {
            return cuda::attention_cached(q, &seen, &shape.into());
        }
        return Ok(attention(q, k, v, documents, shape)?.0);
    }
    {
        let (k, v) = (view::<f32>(k)?, view::<f32>(v)?);
        let width = shape.kv_width();
        for (cache, range) in caches.iter_mut().zip(documents.ranges()) {
            let range = range.start * width..range.end * width;
            cache.keys.extend_from_slice(&k[range.clone()]);
            cache.values.extend_from_slice(&v[range]);
        }
    }
    if fresh {
        return Ok(attention(q, k, v, documents, shape)?.0);
    }
    let dims = q.dims();
    let (q, width) = (view::<f32>(q)?, shape.width());
    let ranges: Vec<_> = documents.ranges().collect();
    let rows = caches.par_iter().zip(ranges).map(|(cache, range)| {
        let q = &q[range.start * width..range.end * width];
        attention_cached(q, &cache.keys, &cache.values, shape)
    });
    let rows: Vec<Vec<f32>> = rows.collect::<Result<_>>()?;
    tensor(rows.concat(), dims)
}

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
