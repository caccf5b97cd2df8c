//! The adjoint of looking up rows of an embedding.

use candle_core::{Result, Tensor, bail};

use crate::host::{matrix, update, view};

/// `into[ids[i]] += rows[i]`, in order: `[tokens, hidden]` in f32 to `[vocabulary, hidden]`.
///
/// # Errors
/// Shapes that do not fit, or a token beyond the vocabulary.
pub fn add_rows(rows: &Tensor, ids: &[u32], into: &Tensor) -> Result<()> {
    let (tokens, width) = matrix(rows, "add_rows", "the gradient")?;
    let (vocabulary, hidden) = matrix(into, "add_rows", "the embedding's gradient")?;
    if tokens != ids.len() || width != hidden {
        bail!(
            "`add_rows`: {} tokens and a gradient of {:?} do not give {:?}",
            ids.len(),
            rows.dims(),
            into.dims()
        );
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        bail!("`add_rows`: token {id} is beyond a vocabulary of {vocabulary}");
    }
    #[cfg(feature = "cuda")]
    if rows.device().is_cuda() {
        return crate::cuda::add_rows(rows, ids, into);
    }
    let rows = view::<f32>(rows)?;
    update(into, |into: &mut [f32]| {
        for (row, id) in rows.chunks_exact(width.max(1)).zip(ids) {
            for (into, row) in into[*id as usize * width..][..width].iter_mut().zip(row) {
                *into += row;
            }
        }
        Ok(())
    })
}
