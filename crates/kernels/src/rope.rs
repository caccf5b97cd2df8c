//! Rotary position embedding and its adjoint, in place.
//!
//! Dimensions `i` and `i + d/2` of a head form a pair that is turned by `position · inv_freq[i]` (Su
//! et al., arXiv 2104.09864; the order of Hugging Face's models). The adjoint turns back. Which
//! frequencies a model uses is its configuration's business.

use std::ops::Deref;
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::Device;
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::host::{matrix, update};

/// Sines and cosines of every position and frequency.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[positions, frequencies]`
    cosines: Vec<f64>,
    sines: Vec<f64>,
    frequencies: usize,
    /// Cosines and sines in f32 on a GPU, copied there when first used.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "GPUs ask for it"))]
    there: OnceLock<(Tensor, Tensor)>,
}

/// Position of every token within its document.
#[derive(Debug)]
pub struct Positions {
    here: Vec<u32>,
    greatest: u32,
    /// On a GPU, copied there when first used.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "GPUs ask for it"))]
    there: OnceLock<Tensor>,
}

impl Positions {
    /// Positions of the tokens in their order.
    pub fn new(positions: Vec<u32>) -> Self {
        Self {
            greatest: positions.iter().copied().max().unwrap_or(0),
            here: positions,
            there: OnceLock::new(),
        }
    }

    /// `[tokens]` on a device; a batch stays on one.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, device: &Device) -> Result<&Tensor> {
        copied(&self.there, || {
            Tensor::from_slice(&self.here, self.here.len(), device)
        })
    }
}

impl Deref for Positions {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.here
    }
}

/// What `cell` holds, made when first asked for.
#[cfg(feature = "cuda")]
pub(crate) fn copied<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(found) = cell.get() {
        return Ok(found);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

impl RopeTable {
    /// Tables for positions below `positions`, for inverse frequencies `[rotated dimensions / 2]`.
    ///
    /// `scaling` multiplies both tables (the attention factor of some scaled embeddings, else 1).
    /// Angles are rounded to f32 as the models that were trained with them do.
    pub fn new(inverse_frequencies: &[f64], positions: usize, scaling: f64) -> Self {
        let angles = (0..positions).flat_map(|position| {
            inverse_frequencies
                .iter()
                .map(move |frequency| f64::from(position as f32 * *frequency as f32))
        });
        let (cosines, sines) = angles
            .map(|angle| (angle.cos() * scaling, angle.sin() * scaling))
            .unzip();
        Self {
            cosines,
            sines,
            frequencies: inverse_frequencies.len(),
            there: OnceLock::new(),
        }
    }

    /// Number of positions the tables cover.
    pub fn positions(&self) -> usize {
        self.cosines.len() / self.frequencies.max(1)
    }

    /// Pairs that are turned in each head.
    #[cfg(feature = "cuda")]
    pub(crate) fn frequencies(&self) -> usize {
        self.frequencies
    }

    /// Cosines and sines on a device, `[positions, frequencies]` in f32; a model stays on one.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, device: &Device) -> Result<(&Tensor, &Tensor)> {
        let (cosines, sines) = copied(&self.there, || {
            let shape = (self.positions(), self.frequencies);
            let narrow = |values: &[f64]| {
                let values = values.iter().map(|value| *value as f32).collect();
                Tensor::from_vec(values, shape, device)
            };
            Ok((narrow(&self.cosines)?, narrow(&self.sines)?))
        })?;
        Ok((cosines, sines))
    }
}

/// Turns `x` `[tokens, heads · head_dim]` in place by each token's position.
///
/// # Errors
/// Shapes that do not fit, or a position beyond the table.
pub fn rope(x: &Tensor, heads: usize, positions: &Positions, table: &RopeTable) -> Result<()> {
    turn(x, heads, positions, table, 1.0)
}

/// Adjoint of [`rope`]: turns the gradient back, in place.
///
/// # Errors
/// As [`rope`].
pub fn rope_backward(
    dy: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
) -> Result<()> {
    turn(dy, heads, positions, table, -1.0)
}

/// [`rope`], rounded to bf16 and not in place.
///
/// # Errors
/// As [`rope`].
pub fn rope_to_bf16(
    x: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
) -> Result<Tensor> {
    turned_to_bf16(x, heads, positions, table, 1.0)
}

/// [`rope_backward`], rounded to bf16 and not in place.
///
/// # Errors
/// As [`rope`].
pub fn rope_backward_to_bf16(
    dy: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
) -> Result<Tensor> {
    turned_to_bf16(dy, heads, positions, table, -1.0)
}

fn turned_to_bf16(
    x: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
    way: f64,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        check(x, heads, positions, table)?;
        return crate::cuda::turned_to_bf16(x, heads, positions, table, way);
    }
    let y = x.copy()?;
    turn(&y, heads, positions, table, way)?;
    y.to_dtype(DType::BF16)
}

/// Refuses what does not fit; `(tokens, width)`.
fn check(
    x: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
) -> Result<(usize, usize)> {
    let (tokens, width) = matrix(x, "rope", "the input")?;
    let half = table.frequencies;
    if heads == 0 || width % heads != 0 || width / heads < 2 * half {
        bail!("`rope`: a width of {width} in {heads} heads does not hold {half} frequencies");
    }
    if positions.len() != tokens {
        bail!("`rope`: {} positions for {tokens} tokens", positions.len());
    }
    if tokens > 0 && positions.greatest as usize >= table.positions() {
        bail!(
            "`rope`: position {} is beyond the table of {}",
            positions.greatest,
            table.positions()
        );
    }
    Ok((tokens, width))
}

fn turn(
    x: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
    way: f64,
) -> Result<()> {
    let (_, width) = check(x, heads, positions, table)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::turn(x, x, heads, positions, table, way);
    }
    let half = table.frequencies;
    let head = width / heads;
    by_element!(x, T => update(x, |x: &mut [T]| {
        x.par_chunks_mut(width).zip(positions.par_iter()).for_each(|(row, position)| {
            let at = *position as usize * half;
            let (cosines, sines) = (&table.cosines[at..at + half], &table.sines[at..at + half]);
            for head in row.chunks_exact_mut(head) {
                let (first, second) = head.split_at_mut(half);
                let pairs = first.iter_mut().zip(second).zip(cosines.iter().zip(sines));
                for ((a, b), (cosine, sine)) in pairs {
                    let (cosine, sine) = (*cosine as T, (*sine * way) as T);
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        });
        Ok(())
    }))
}
