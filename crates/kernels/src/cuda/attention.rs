//! Attention on the GPU: tiles of queries against tiles of keys, each document by itself.
//!
//! Queries, keys and values of f32 are multiplied in f32 (`kernels.cu`), those of bf16 on the tensor cores
//! (`attention.cu`); outputs and gradients are f32. Where the tiles lie is worked out on the host once for a
//! batch and kept with its [`Documents`].

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{ATTENTION, Launch, device, unwritten};
use crate::attention::AttentionShape;
use crate::documents::Documents;

/// Kernels compiled for heads of up to so many numbers; narrower ones are padded.
struct Compiled {
    /// What the entries' names begin with.
    name: &'static str,
    width: usize,
    /// Rows of a block's own tile.
    tile: usize,
    /// Rows of the tiles it goes over in the adjoint.
    next: usize,
}

impl Compiled {
    const SINGLE: [Self; 5] = [
        Self::single(16, 32),
        Self::single(32, 32),
        Self::single(64, 32),
        Self::single(128, 32),
        Self::single(256, 16),
    ];
    const NARROW: [Self; 2] = [Self::narrow(64, 64), Self::narrow(128, 32)];

    const fn single(width: usize, tile: usize) -> Self {
        Self {
            name: "attention",
            width,
            tile,
            next: tile,
        }
    }

    const fn narrow(width: usize, next: usize) -> Self {
        Self {
            name: "attention_bf16",
            width,
            tile: 64,
            next,
        }
    }

    fn of(dtype: DType, head: usize) -> Result<&'static Self> {
        let compiled: &[Self] = match dtype {
            DType::BF16 if head.is_multiple_of(8) => &Self::NARROW,
            DType::BF16 => bail!("attention in bf16 needs heads of a multiple of 8, not {head}"),
            _ => &Self::SINGLE,
        };
        match compiled.iter().find(|compiled| head <= compiled.width) {
            Some(found) => Ok(found),
            None => bail!(
                "attention in {dtype:?} with heads of {head} numbers is not computed on a GPU"
            ),
        }
    }

    fn is_narrow(&self) -> bool {
        self.name == "attention_bf16"
    }

    fn threads(&self) -> (usize, usize) {
        (if self.is_narrow() { 128 } else { 256 }, 1)
    }

    /// Bytes of shared memory for `operands` of the block's own and tiles for the rest, as the kernels lay it out.
    fn shared(&self, own: usize, scores: usize) -> usize {
        if self.is_narrow() {
            let next = if scores == 1 { self.tile } else { self.next };
            // Two operands in two stages, and for the keys' adjoint two numbers a query in two stages.
            2 * (self.width + 8) * (own * self.tile + 4 * next) + 16 * next
        } else {
            let tiles = (own + 2) * self.tile * (self.width + 1);
            4 * (tiles + scores * self.tile * (self.tile + 1))
        }
    }

    fn launch<'a>(&self, kernel: &'a str, like: &'a Tensor) -> Result<Launch<'a>> {
        let launch = Launch::new(kernel, device(like)?);
        Ok(if self.is_narrow() {
            launch.of_module(ATTENTION)
        } else {
            launch
        })
    }

    fn operand<'a>(&self, launch: Launch<'a>, tensor: &'a Tensor) -> Result<Launch<'a>> {
        if self.is_narrow() {
            launch.narrow(tensor)
        } else {
            launch.floats(tensor)
        }
    }
}

/// So large a window reaches past everything, and adding a position to it does not overflow.
const ALL: usize = 1 << 29;

/// The shape as every kernel takes it, at the end of its arguments.
fn shaped<'a>(launch: Launch<'a>, tokens: usize, shape: &AttentionShape) -> Result<Launch<'a>> {
    if shape.softcap.is_some() {
        bail!("attention with capped scores is not computed on a GPU");
    }
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
    let compiled = Compiled::of(q.dtype(), shape.head_dim)?;
    let out = unwritten(q.shape(), DType::F32, q)?;
    let log_sums = unwritten((shape.heads, tokens), DType::F32, q)?;
    let tiles = documents.tiles(compiled.tile, q.device())?;
    let kernel = format!("{}_{}", compiled.name, compiled.width);
    let mut launch = compiled.launch(&kernel, q)?;
    for operand in [q, k, v] {
        launch = compiled.operand(launch, operand)?;
    }
    let launch = launch.words(tiles)?.floats(&out)?.floats(&log_sums)?;
    let grid = (tiles.elem_count() / 3, shape.heads);
    shaped(launch, tokens, shape)?.run(grid, compiled.threads(), compiled.shared(1, 1))?;
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
    let compiled = Compiled::of(q.dtype(), shape.head_dim)?;
    let tiles = documents.tiles(compiled.tile, q.device())?;
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
    let dout = dout.to_dtype(q.dtype())?;
    let names =
        ["q", "kv"].map(|which| format!("{}_backward_{which}_{}", compiled.name, compiled.width));
    let begin = |name| {
        let mut launch = compiled.launch(name, q)?;
        for operand in [&dout, q, k, v] {
            launch = compiled.operand(launch, operand)?;
        }
        launch.floats(log_sums)?.floats(&delta)?.words(tiles)
    };
    let (threads, shared) = (compiled.threads(), compiled.shared(2, 2));
    shaped(begin(&names[0])?.floats(&dq)?, tokens, shape)?.run(
        (count, shape.heads),
        threads,
        shared,
    )?;
    shaped(begin(&names[1])?.floats(&dk)?.floats(&dv)?, tokens, shape)?.run(
        (count, shape.kv_heads),
        threads,
        shared,
    )?;
    Ok((dq, dk, dv))
}
