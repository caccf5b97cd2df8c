//! Causal attention with grouped queries, document by document, and its adjoint.
//!
//! `softmax(scale · q kᵀ) v` (or, with a cap, `softmax(cap · tanh(scale · q kᵀ / cap)) v`) with `q` of `[tokens, heads · head_dim]` and `k`, `v` of
//! `[tokens, kv_heads · head_dim]`. Documents are problems of their own, so one never sees another,
//! and keys a query cannot see are skipped, not masked. A small block of queries by keys is all that
//! ever exists of the score matrix; the forward pass keeps the output and the logarithm of each row's
//! sum, from which the backward pass computes the block again (Dao et al., "FlashAttention", arXiv
//! 2205.14135).
//!
//! | part | module |
//! |---|---|
//! | packed operands and products of blocks | `block` |
//! | one block of queries against the keys it sees | `forward` |
//! | a run of keys of one head against the queries that see them | `backward` |
//! | new tokens against a cache, for generation | `cached` |
//! | both directions, for encoders: problems of their own | `bidirectional` |
//!
//! How the work is cut into tasks and in which order their results are added depends on the shapes
//! alone, so results are the same bits on any number of threads.

mod backward;
mod bidirectional;
mod block;
mod cached;
mod forward;

use candle_core::{Device, Result, Tensor, bail};

use crate::by_element;
use crate::cpu::Level;
use crate::documents::Documents;
use crate::gemm::Pair;
use crate::host::{matrix, tensor, view};
use crate::vector::Real;

pub use bidirectional::{Bidirectional, bidirectional, bidirectional_backward};
pub use cached::{Cache, attention_cached, attention_next};

/// Whether attention in bf16 is computed on a device. On a GPU its tensor cores are tried once in a process, on numbers
/// made for that, against attention in f32, which multiplies without them. With `SPARSAM_BF16_ATTENTION=0` they are not
/// used, with `1` they are without being tried.
///
/// # Errors
/// Why not.
pub fn on_tensor_cores(device: &Device) -> std::result::Result<(), &'static str> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        static TRIED: std::sync::OnceLock<std::result::Result<(), String>> =
            std::sync::OnceLock::new();
        let tried = TRIED.get_or_init(|| crate::cuda::try_tensor_cores(device));
        return tried.as_ref().copied().map_err(String::as_str);
    }
    debug_assert!(!device.is_cuda());
    Err("it is for GPUs")
}

/// The shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1/√head_dim`.
    pub scale: f64,
    /// A query sees at most this many keys, itself included.
    pub window: Option<usize>,
    /// Scaled scores are bent so that none is greater (Gemma 2).
    pub softcap: Option<f64>,
    /// Whether its products may be of numbers rounded to bf16, as those of a weight may
    /// ([`Rows::rounded`](crate::gemm::Rows::rounded)); softmax and sums are not.
    pub rounded: bool,
}

impl AttentionShape {
    /// Whether q, k and v may be bf16 there: on a GPU, whose tensor cores multiply them then, for heads of up to 128
    /// numbers in eights, and if [`on_tensor_cores`] says so.
    pub fn takes_bf16(&self, device: &Device) -> bool {
        self.head_dim <= 128
            && self.head_dim.is_multiple_of(8)
            && device.is_cuda()
            && on_tensor_cores(device).is_ok()
    }

    /// Whether its products are of pairs of rounded numbers on this processor.
    fn multiplies_pairs<T: Real>(&self) -> bool {
        self.rounded && T::pairs_are_faster(Level::detect())
    }

    /// Width of a row of `q`.
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of a row of `k` and of `v`.
    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The window as a number of keys; none is a window that nothing reaches past.
    fn reach(&self) -> usize {
        // Halved, so that adding a position to it cannot overflow.
        self.window.unwrap_or(usize::MAX / 2).min(usize::MAX / 2)
    }

    fn check(&self) -> Result<()> {
        if self.kv_heads == 0
            || self.head_dim == 0
            || self.heads == 0
            || !self.heads.is_multiple_of(self.kv_heads)
        {
            bail!(
                "`attention`: {} heads of width {} cannot share {} key heads",
                self.heads,
                self.head_dim,
                self.kv_heads
            );
        }
        if self
            .softcap
            .is_some_and(|cap| !(cap > 0.0 && cap.is_finite()))
        {
            bail!("`attention`: {:?} is no cap on scores", self.softcap);
        }
        if self.window == Some(0) {
            bail!("`attention`: a window of 0 sees nothing");
        }
        Ok(())
    }

    fn check_inputs(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        documents: &Documents,
    ) -> Result<usize> {
        self.check()?;
        let (tokens, width) = matrix(q, "attention", "q")?;
        let kv = [tokens, self.kv_width()];
        if width != self.width() || k.dims() != kv || v.dims() != kv {
            bail!(
                "`attention`: q {:?}, k {:?}, v {:?} do not fit {self:?}",
                q.dims(),
                k.dims(),
                v.dims()
            );
        }
        if documents.tokens() != tokens {
            bail!(
                "`attention`: documents of {} tokens, inputs of {tokens}",
                documents.tokens()
            );
        }
        Ok(tokens)
    }
}

/// `(output [tokens, heads · head_dim], log-sum-exp of the scaled scores [heads, tokens])`. Where q, k and v are bf16
/// (see [`AttentionShape::takes_bf16`]), so is the output; the sums are f32.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
    shape: &AttentionShape,
) -> Result<(Tensor, Tensor)> {
    let tokens = shape.check_inputs(q, k, v, documents)?;
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return crate::cuda::attention(q, k, v, documents, &shape.into());
    }
    by_element!(q, T => {
        let (q, k, v) = (view::<T>(q)?, view::<T>(k)?, view::<T>(v)?);
        let (output, log_sums) = if shape.multiplies_pairs::<T>() {
            forward::all::<T, Pair>(&q, &k, &v, documents, shape)
        } else {
            forward::all::<T, T>(&q, &k, &v, documents, shape)
        };
        Ok((tensor(output, (tokens, shape.width()))?, tensor(log_sums, (shape.heads, tokens))?))
    })
}

/// Adjoint of [`attention`]: the gradients of q, k and v.
///
/// `output` and `log_sums` are what [`attention`] returned, the output in f32 or bf16 where inputs are bf16; `dout` and
/// the gradients are f32 beside those.
///
/// # Errors
/// As [`attention`].
pub fn attention_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    output: &Tensor,
    log_sums: &Tensor,
    documents: &Documents,
    shape: &AttentionShape,
) -> Result<(Tensor, Tensor, Tensor)> {
    let tokens = shape.check_inputs(q, k, v, documents)?;
    if dout.dims() != q.dims()
        || output.dims() != q.dims()
        || log_sums.dims() != [shape.heads, tokens]
    {
        bail!(
            "`attention_backward`: gradient {:?}, output {:?} and sums {:?} do not fit q {:?}",
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
        let (dout, q, k, v) = (view::<T>(dout)?, view::<T>(q)?, view::<T>(k)?, view::<T>(v)?);
        let (output, log_sums) = (view::<T>(output)?, view::<T>(log_sums)?);
        let inputs = backward::Inputs {
            dout: &dout,
            q: &q,
            k: &k,
            v: &v,
            output: &output,
            log_sums: &log_sums,
            tokens,
            shape,
        };
        let (dq, dk, dv) = if shape.multiplies_pairs::<T>() {
            backward::all::<T, Pair>(&inputs, documents)
        } else {
            backward::all::<T, T>(&inputs, documents)
        };
        Ok((
            tensor(dq, (tokens, shape.width()))?,
            tensor(dk, (tokens, shape.kv_width()))?,
            tensor(dv, (tokens, shape.kv_width()))?,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Kernel as _, Stored};

    fn numbers<T: Real>(seed: f64, length: usize) -> Vec<T> {
        (0..length)
            .map(|i| T::of((i as f64 * 0.377 + seed).sin() + (i as f64 * 0.0231).cos()))
            .collect()
    }

    /// Output, log-sum-exp and gradients, each, from products of numbers held as `H`.
    fn everything<T: Real, H: Stored<T>>(lengths: &[usize], shape: &AttentionShape) -> [Vec<T>; 5] {
        let documents = Documents::from_lengths(lengths);
        let tokens = documents.tokens();
        let (wide, narrow) = (tokens * shape.width(), tokens * shape.kv_width());
        let (q, dout) = (numbers(0.0, wide), numbers(1.0, wide));
        let (k, v) = (numbers(2.0, narrow), numbers(3.0, narrow));
        let (output, log_sums) = forward::all::<T, H>(&q, &k, &v, &documents, shape);
        let inputs = backward::Inputs {
            dout: &dout,
            q: &q,
            k: &k,
            v: &v,
            output: &output,
            log_sums: &log_sums,
            tokens,
            shape,
        };
        let (dq, dk, dv) = backward::all::<T, H>(&inputs, &documents);
        [output, log_sums, dq, dk, dv]
    }

    fn stays_near<T: Real>() {
        // Odd lengths and widths, where a pair lacks its second number.
        for (lengths, heads, kv_heads, head_dim, window, softcap) in [
            (vec![150], 2, 1, 64, None, None),
            (vec![1, 33, 97], 3, 3, 17, None, None),
            (vec![129, 2], 4, 2, 31, Some(5), None),
            (vec![260], 1, 1, 8, Some(77), Some(2.0)),
        ] {
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f64).sqrt(),
                window,
                softcap,
                rounded: true,
            };
            let exact = everything::<T, T>(&lengths, &shape);
            let rounded = everything::<T, Pair>(&lengths, &shape);
            for (which, (exact, rounded)) in exact.iter().zip(&rounded).enumerate() {
                let norm = |values: &mut dyn Iterator<Item = f64>| {
                    values.map(|x| x * x).sum::<f64>().sqrt()
                };
                let of = |x: &T| x.to_double();
                let pairs = exact.iter().zip(rounded);
                let apart = norm(&mut pairs.map(|(x, y)| of(x) - of(y)));
                let whole = norm(&mut exact.iter().map(of));
                // Numbers are off by up to 2⁻⁹ of themselves, in both factors of two products one after the other;
                // gradients of scores are differences.
                assert!(
                    apart <= 0.02 * whole + 1e-9,
                    "{lengths:?} {shape:?} {which}: {apart} of {whole}"
                );
            }
            assert!(exact[0] != rounded[0], "nothing was rounded");
        }
    }

    #[test]
    fn rounded_products_stay_near() {
        stays_near::<f64>();
        if f32::pairs_are_faster(Level::detect()) {
            stays_near::<f32>();
        }
    }
}
