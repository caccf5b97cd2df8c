//! Passes over activations: norms, rotations, gates, sums, rescaling, dropout, and weights expanded from few bits.

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, device, unwritten, upload};
use crate::activation::Activation;
use crate::dora::Dora;
use crate::dropout::DropoutKey;
use crate::ggml::GgmlType;
use crate::layer_norm::{self, Moments};
use crate::rope::{Positions, RopeTable};
use crate::weight::{Form, OnDevice};

/// With `y` of f32 or bf16.
pub(crate) fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    epsilon: f64,
    dtype: DType,
) -> Result<(Tensor, Tensor)> {
    let (rows, width) = x.dims2()?;
    let y = unwritten((rows, width), dtype, x)?;
    let roots = unwritten(rows, DType::F32, x)?;
    Launch::new("rms_norm", device(x)?)
        .floats(x)?
        .floats(weight)?
        .wide_or_narrow(&y)?
        .floats(&roots)?
        .int(width)?
        .float(epsilon)
        .rows(rows, width)?;
    Ok((y, roots))
}

pub(crate) fn rms_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    roots: &Tensor,
    residual: Option<&Tensor>,
    weight_grad: Option<&Tensor>,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let dx = unwritten((rows, width), DType::F32, x)?;
    Launch::new("rms_norm_backward", device(x)?)
        .floats(dy)?
        .floats(x)?
        .floats(weight)?
        .floats(roots)?
        .floats_or_null(residual)?
        .floats(&dx)?
        .int(width)?
        .rows(rows, width)?;
    if let Some(into) = weight_grad {
        let normed = Weighted {
            x: Some(x),
            roots: Some(roots),
            ..Weighted::default()
        };
        column_sum(dy, &normed, into)?;
    }
    Ok(dx)
}

/// What the numbers of a sum over rows are multiplied with, and what the sum is divided by.
#[derive(Default)]
struct Weighted<'a> {
    /// `[rows, width]`
    x: Option<&'a Tensor>,
    /// Taken off `x`, `[rows]`.
    means: Option<&'a Tensor>,
    /// Times `x − mean`, `[rows]`.
    roots: Option<&'a Tensor>,
    /// What the sums are divided by, where it is not 0, `[width]`.
    lengths: Option<&'a Tensor>,
}

/// `into += Σ dy` over the rows, weighted.
fn column_sum(dy: &Tensor, by: &Weighted, into: &Tensor) -> Result<()> {
    let (rows, width) = dy.dims2()?;
    Launch::new("column_sum", device(dy)?)
        .floats(dy)?
        .floats_or_null(by.x)?
        .floats_or_null(by.means)?
        .floats_or_null(by.roots)?
        .floats_or_null(by.lengths)?
        .floats(into)?
        .int(rows)?
        .int(width)?
        .run((width.div_ceil(32), 1), (32, 32), 0)
}

pub(crate) fn bias_grad(dy: &Tensor, into: &Tensor) -> Result<()> {
    column_sum(dy, &Weighted::default(), into)
}

pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<(Tensor, Moments)> {
    let (rows, width) = x.dims2()?;
    let y = unwritten((rows, width), DType::F32, x)?;
    let moments = Moments {
        means: unwritten(rows, DType::F32, x)?,
        inverse_deviations: unwritten(rows, DType::F32, x)?,
    };
    Launch::new("layer_norm", device(x)?)
        .floats(x)?
        .floats(weight)?
        .floats_or_null(bias)?
        .floats(&y)?
        .floats(&moments.means)?
        .floats(&moments.inverse_deviations)?
        .int(width)?
        .float(epsilon)
        .rows(rows, width)?;
    Ok((y, moments))
}

pub(crate) fn layer_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    moments: &Moments,
    residual: Option<&Tensor>,
    into: layer_norm::Into,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let dx = unwritten((rows, width), DType::F32, x)?;
    Launch::new("layer_norm_backward", device(x)?)
        .floats(dy)?
        .floats(x)?
        .floats(weight)?
        .floats(&moments.means)?
        .floats(&moments.inverse_deviations)?
        .floats_or_null(residual)?
        .floats(&dx)?
        .int(width)?
        .rows(rows, width)?;
    if let Some(into) = into.weight {
        let normed = Weighted {
            x: Some(x),
            means: Some(&moments.means),
            roots: Some(&moments.inverse_deviations),
            lengths: None,
        };
        column_sum(dy, &normed, into)?;
    }
    if let Some(into) = into.bias {
        bias_grad(dy, into)?;
    }
    Ok(dx)
}

/// Lengths of the rows of `x`, `[rows]`.
pub(super) fn row_lengths(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let lengths = unwritten(rows, DType::F32, x)?;
    Launch::new("row_lengths", device(x)?)
        .floats(x)?
        .floats(&lengths)?
        .int(width)?
        .rows(rows, width)?;
    Ok(lengths)
}

/// `x ∘ m/n`, row by row of `x` `[tokens, out]`.
pub(super) fn rescaled(x: &Tensor, dora: &Dora) -> Result<Tensor> {
    let count = x.elem_count();
    let y = unwritten(x.shape(), DType::F32, x)?;
    Launch::new("rescale_columns", device(x)?)
        .floats(x)?
        .floats(&dora.magnitude)?
        .floats(&dora.norms)?
        .floats(&y)?
        .long(count)
        .int(x.dims2()?.1)?
        .each(count)?;
    Ok(y)
}

/// `into += Σ dy ∘ z / n` over the tokens.
pub(super) fn magnitude_grad(dy: &Tensor, z: &Tensor, dora: &Dora, into: &Tensor) -> Result<()> {
    let by = Weighted {
        x: Some(z),
        lengths: Some(&dora.norms),
        ..Weighted::default()
    };
    column_sum(dy, &by, into)
}

/// `x − y`
pub(super) fn difference(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    one_of_each("subtract", DType::F32, &[x, y], None)
}

/// Turns `x` into `to`, which may be `x` itself, or of bf16.
pub(crate) fn turn(
    x: &Tensor,
    to: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
    way: f64,
) -> Result<()> {
    let (tokens, width) = x.dims2()?;
    let (cosines, sines) = table.on(x.device())?;
    let half = table.frequencies();
    Launch::new("rope", device(x)?)
        .floats(x)?
        .wide_or_narrow(to)?
        .words(positions.on(x.device())?)?
        .floats(cosines)?
        .floats(sines)?
        .int(heads)?
        .int(width / heads)?
        .int(half)?
        .float(way)
        .rows(tokens, heads * half)
}

/// Turned, in bf16.
pub(crate) fn turned_to_bf16(
    x: &Tensor,
    heads: usize,
    positions: &Positions,
    table: &RopeTable,
    way: f64,
) -> Result<Tensor> {
    let y = unwritten(x.shape(), DType::BF16, x)?;
    turn(x, &y, heads, positions, table, way)?;
    Ok(y)
}

fn number(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
    }
}

/// A kernel for f32, or that for bf16 where a tensor is of it, and the type that the kernel is for.
fn either(tensor: &Tensor, single: &'static str, narrow: &'static str) -> (&'static str, DType) {
    match tensor.dtype() {
        DType::BF16 => (narrow, DType::BF16),
        _ => (single, DType::F32),
    }
}

/// A new number of those that stand at the same place of each input, all of the type that the kernel is for; it may take
/// an activation.
fn one_of_each(
    kernel: &str,
    dtype: DType,
    inputs: &[&Tensor],
    activation: Option<Activation>,
) -> Result<Tensor> {
    let like = inputs[0];
    let count = like.elem_count();
    let out = unwritten(like.shape(), dtype, like)?;
    let mut launch = Launch::new(kernel, device(like)?);
    for input in inputs {
        launch = launch.of(input, dtype)?;
    }
    launch = launch.of(&out, dtype)?.long(count);
    if let Some(activation) = activation {
        launch = launch.int(number(activation))?;
    }
    launch.each(count)?;
    Ok(out)
}

/// Of gate and up of f32 or bf16, in their type.
pub(crate) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (kernel, dtype) = either(gate, "gated", "gated_bf16");
    let count = gate.elem_count();
    let y = unwritten(gate.shape(), dtype, gate)?;
    Launch::new(kernel, device(gate)?)
        .of(gate, dtype)?
        .of(up, dtype)?
        .of(&y, dtype)?
        .long(count)
        .int(number(activation))?
        .fours(count)?;
    Ok(y)
}

/// `act(gate) ∘ up`, gate and up in bf16, of f32.
pub(crate) fn gated_to_bf16(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
) -> Result<[Tensor; 3]> {
    let y = gated(activation, gate, up)?;
    Ok([to_bf16(&y)?, to_bf16(gate)?, to_bf16(up)?])
}

pub(crate) fn gated_backward(
    activation: Activation,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let into = || unwritten(gate.shape(), gate.dtype(), gate);
    let (dgate, dup) = (into()?, into()?);
    unit_gradients(activation, dy, [gate, up], [&dgate, &dup])?;
    Ok((dgate, dup))
}

/// The adjoint of the product in the places of gate and up.
pub(crate) fn gated_backward_in_place(
    activation: Activation,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    unit_gradients(activation, dy, [gate, up], [gate, up])
}

fn unit_gradients(
    activation: Activation,
    dy: &Tensor,
    of: [&Tensor; 2],
    into: [&Tensor; 2],
) -> Result<()> {
    let (kernel, dtype) = either(of[0], "gated_backward", "gated_backward_bf16");
    let dy = of_type(dy, dtype)?;
    let mut launch = Launch::new(kernel, device(of[0])?);
    for tensor in [&dy].into_iter().chain(of).chain(into) {
        launch = launch.of(tensor, dtype)?;
    }
    let count = of[0].elem_count();
    launch.long(count).int(number(activation))?.fours(count)
}

pub(crate) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    one_of_each("activate", DType::F32, &[x], Some(activation))
}

pub(crate) fn activate_backward(activation: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    one_of_each("activate_backward", DType::F32, &[dy, x], Some(activation))
}

/// Of f32 or bf16.
pub(crate) fn add_in_place(x: &Tensor, y: &Tensor) -> Result<()> {
    let count = x.elem_count();
    let (kernel, dtype) = either(x, "add", "add_bf16");
    Launch::new(kernel, device(x)?)
        .of(x, dtype)?
        .of(y, dtype)?
        .long(count)
        .fours(count)
}

pub(crate) fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    let count = y.elem_count();
    Launch::new("add_bias", device(y)?)
        .floats(y)?
        .floats(bias)?
        .long(count)
        .int(bias.elem_count())?
        .each(count)
}

/// Numbers of f32 in bf16; itself, if it is of that.
pub(crate) fn to_bf16(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::BF16 {
        return Ok(x.clone());
    }
    let y = unwritten(x.shape(), DType::BF16, x)?;
    copy_into(x, &y)?;
    Ok(y)
}

/// Numbers of f32 in another type; itself, if it is of that.
pub(super) fn of_type(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::BF16 => to_bf16(x),
        other => x.to_dtype(other),
    }
}

/// Copies f32 numbers into a tensor of f32 or bf16.
pub(crate) fn copy_into(from: &Tensor, to: &Tensor) -> Result<()> {
    let count = from.elem_count();
    let launch = |kernel| Launch::new(kernel, device(from)?).floats(from);
    match to.dtype() {
        DType::F32 => launch("copy")?.floats(to)?.long(count).fours(count),
        _ => launch("narrow")?.narrow(to)?.long(count).fours(count),
    }
}

/// `into[ids[i]] += rows[i]`; the rows of one id are added in their order.
pub(crate) fn add_rows(rows: &Tensor, ids: &[u32], into: &Tensor) -> Result<()> {
    let width = rows.dims2()?.1;
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|at| ids[*at as usize]);
    let (mut starts, mut different) = (Vec::new(), Vec::new());
    for (place, at) in order.iter().enumerate() {
        let id = ids[*at as usize];
        if different.last() != Some(&id) {
            different.push(id);
            starts.push(place as u32);
        }
    }
    starts.push(ids.len() as u32);
    let blocks = different.len();
    let (order, starts, different) = (
        upload(order, rows)?,
        upload(starts, rows)?,
        upload(different, rows)?,
    );
    Launch::new("add_rows", device(rows)?)
        .floats(rows)?
        .words(&order)?
        .words(&starts)?
        .words(&different)?
        .floats(into)?
        .int(width)?
        .rows(blocks, width)
}

/// Of f32 or bf16.
pub(crate) fn dropout(x: &Tensor, threshold: u32, scale: f64, key: DropoutKey) -> Result<Tensor> {
    let count = x.elem_count();
    let (kernel, dtype) = either(x, "dropout", "dropout_bf16");
    let y = unwritten(x.shape(), dtype, x)?;
    Launch::new(kernel, device(x)?)
        .of(x, dtype)?
        .of(&y, dtype)?
        .long(count)
        .word(threshold)
        .float(scale)
        .word(key.site)
        .word(key.step as u32)
        .word((key.step >> 32) as u32)
        .word(key.seed as u32)
        .word((key.seed >> 32) as u32)
        .each(count.div_ceil(64) * 16)?;
    Ok(y)
}

/// A quantised weight as numbers of `dtype`, f32 or bf16, `[out, in]`.
pub(crate) fn expand(weight: &OnDevice, dtype: DType) -> Result<Tensor> {
    if let Form::Ggml(kind) = weight.form {
        return expand_ggml(weight, kind, None, dtype);
    }
    let (rows, columns) = (weight.rows, weight.columns);
    let count = rows * columns;
    let out = unwritten((rows, columns), dtype, &weight.codes)?;
    let four = weight.form == Form::FourBits;
    let kernel = if four {
        "expand_four_bits"
    } else {
        "expand_eight_bits"
    };
    let mut launch = Launch::new(kernel, device(&out)?)
        .bytes(&weight.codes)?
        .floats(&weight.scales)?;
    if four {
        launch = launch.floats(&weight.levels)?;
    }
    launch = launch.wide_or_narrow(&out)?;
    launch.long(count).int(weight.block)?.fours(count)?;
    Ok(out)
}

/// Rows of a quantised weight in f32, `[ids, in]`.
pub(crate) fn expand_rows(weight: &OnDevice, ids: &[u32]) -> Result<Tensor> {
    let ids = upload(ids.to_vec(), &weight.codes)?;
    match weight.form {
        Form::Ggml(kind) => expand_ggml(weight, kind, Some(&ids), DType::F32),
        // An embedding is kept so by nothing that is read or written here.
        _ => expand(weight, DType::F32)?.index_select(&ids, 0),
    }
}

fn expand_ggml(
    weight: &OnDevice,
    kind: GgmlType,
    ids: Option<&Tensor>,
    dtype: DType,
) -> Result<Tensor> {
    let rows = ids.map_or(weight.rows, Tensor::elem_count);
    let count = rows * weight.columns;
    let out = unwritten((rows, weight.columns), dtype, &weight.codes)?;
    Launch::new("expand_ggml", device(&out)?)
        .bytes(&weight.codes)?
        .words_or_null(ids)?
        .wide_or_narrow(&out)?
        .long(count)
        .int(weight.columns)?
        .int(kind.code() as usize)?
        .int(kind.block_length())?
        .int(kind.block_bytes())?
        .each(count)?;
    Ok(out)
}
