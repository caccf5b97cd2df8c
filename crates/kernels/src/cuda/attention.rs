//! Attention on the GPU: tiles of queries against tiles of keys, each document by itself.
//!
//! Where the tiles lie is worked out on the host once for a batch and kept with its [`Documents`].

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Launch, device, unwritten};
use crate::attention::AttentionShape;
use crate::documents::Documents;

/// Widths of head that the kernels are compiled for, with their tiles; others are padded up.
const COMPILED: [(usize, usize); 5] = [(16, 32), (32, 32), (64, 32), (128, 32), (256, 16)];

fn compiled(head: usize) -> Result<(usize, usize)> {
    match COMPILED.iter().find(|(width, _)| head <= *width) {
        Some(found) => Ok(*found),
        None => bail!(
            "attention with heads of {head} numbers is not computed on a GPU, 256 is the widest"
        ),
    }
}

/// The shape as every kernel takes it, at the end of its arguments.
fn shaped<'a>(launch: Launch<'a>, tokens: usize, shape: &AttentionShape) -> Result<Launch<'a>> {
    if shape.softcap.is_some() {
        bail!("attention with capped scores is not computed on a GPU");
    }
    // So large a window reaches past everything, and adding a position to it does not overflow.
    const ALL: usize = 1 << 29;
    Ok(launch
        .int(tokens)?
        .int(shape.heads)?
        .int(shape.kv_heads)?
        .int(shape.head_dim)?
        .int(shape.window.unwrap_or(ALL).min(ALL))?
        .float(shape.scale))
}

pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
    shape: &AttentionShape,
) -> Result<(Tensor, Tensor)> {
    let tokens = documents.tokens();
    let (width, tile) = compiled(shape.head_dim)?;
    let out = unwritten(q.shape(), DType::F32, q)?;
    let log_sums = unwritten((shape.heads, tokens), DType::F32, q)?;
    let tiles = documents.tiles(tile, q.device())?;
    let kernel = format!("attention_{width}");
    let launch = Launch::new(&kernel, device(q)?)
        .floats(q)?
        .floats(k)?
        .floats(v)?
        .words(tiles)?
        .floats(&out)?
        .floats(&log_sums)?;
    let shared = 4 * (3 * tile * (width + 1) + tile * (tile + 1));
    shaped(launch, tokens, shape)?.run((tiles.elem_count() / 3, shape.heads), (256, 1), shared)?;
    Ok((out, log_sums))
}

pub(crate) fn attention_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    output: &Tensor,
    log_sums: &Tensor,
    documents: &Documents,
    shape: &AttentionShape,
) -> Result<(Tensor, Tensor, Tensor)> {
    let tokens = documents.tokens();
    let (width, tile) = compiled(shape.head_dim)?;
    let tiles = documents.tiles(tile, q.device())?;
    let count = tiles.elem_count() / 3;
    let delta = unwritten((shape.heads, tokens), DType::F32, q)?;
    Launch::new("attention_delta", device(q)?)
        .floats(dout)?
        .floats(output)?
        .floats(&delta)?
        .int(tokens)?
        .int(shape.heads)?
        .int(shape.head_dim)?
        .run(((tokens * shape.heads).div_ceil(8), 1), (256, 1), 0)?;
    let dq = unwritten(q.shape(), DType::F32, q)?;
    let dk = unwritten(k.shape(), DType::F32, q)?;
    let dv = unwritten(v.shape(), DType::F32, q)?;
    let shared = 4 * (4 * tile * (width + 1) + 2 * tile * (tile + 1));
    let names = [
        format!("attention_backward_q_{width}"),
        format!("attention_backward_kv_{width}"),
    ];
    let begin = |name| {
        Launch::new(name, device(q)?)
            .floats(dout)?
            .floats(q)?
            .floats(k)?
            .floats(v)?
            .floats(log_sums)?
            .floats(&delta)?
            .words(tiles)
    };
    shaped(begin(&names[0])?.floats(&dq)?, tokens, shape)?.run(
        (count, shape.heads),
        (256, 1),
        shared,
    )?;
    shaped(begin(&names[1])?.floats(&dk)?.floats(&dv)?, tokens, shape)?.run(
        (count, shape.kv_heads),
        (256, 1),
        shared,
    )?;
    Ok((dq, dk, dv))
}
