//! Passes over activations: norms, rotations, gates, sums, dropout, and weights expanded from few bits.

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, device, unwritten, upload};
use crate::activation::Activation;
use crate::dropout::DropoutKey;
use crate::rope::{Positions, RopeTable};
use crate::weight::{Form, OnDevice};

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let (rows, width) = x.dims2()?;
    let y = unwritten((rows, width), DType::F32, x)?;
    let roots = unwritten(rows, DType::F32, x)?;
    Launch::new("rms_norm", device(x)?)
        .floats(x)?
        .floats(weight)?
        .floats(&y)?
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
        column_sum(dy, Some((x, roots)), into)?;
    }
    Ok(dx)
}

/// `into += Σ dy` over the rows, or `Σ dy ∘ x · root`.
fn column_sum(dy: &Tensor, scaled: Option<(&Tensor, &Tensor)>, into: &Tensor) -> Result<()> {
    let (rows, width) = dy.dims2()?;
    Launch::new("column_sum", device(dy)?)
        .floats(dy)?
        .floats_or_null(scaled.map(|(x, _)| x))?
        .floats_or_null(scaled.map(|(_, roots)| roots))?
        .floats(into)?
        .int(rows)?
        .int(width)?
        .run((width.div_ceil(32), 1), (32, 32), 0)
}

pub(crate) fn bias_grad(dy: &Tensor, into: &Tensor) -> Result<()> {
    column_sum(dy, None, into)
}

pub(crate) fn turn(
    x: &Tensor,
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
        .words(positions.on(x.device())?)?
        .floats(cosines)?
        .floats(sines)?
        .int(heads)?
        .int(width / heads)?
        .int(half)?
        .float(way)
        .rows(tokens, heads * half)
}

fn number(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
    }
}

pub(crate) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let count = gate.elem_count();
    let y = unwritten(gate.shape(), DType::F32, gate)?;
    Launch::new("gated", device(gate)?)
        .floats(gate)?
        .floats(up)?
        .floats(&y)?
        .long(count)
        .int(number(activation))?
        .each(count)?;
    Ok(y)
}

pub(crate) fn gated_backward(
    activation: Activation,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let count = gate.elem_count();
    let dgate = unwritten(gate.shape(), DType::F32, gate)?;
    let dup = unwritten(gate.shape(), DType::F32, gate)?;
    Launch::new("gated_backward", device(gate)?)
        .floats(dy)?
        .floats(gate)?
        .floats(up)?
        .floats(&dgate)?
        .floats(&dup)?
        .long(count)
        .int(number(activation))?
        .each(count)?;
    Ok((dgate, dup))
}

pub(crate) fn add_in_place(x: &Tensor, y: &Tensor) -> Result<()> {
    let count = x.elem_count();
    Launch::new("add", device(x)?)
        .floats(x)?
        .floats(y)?
        .long(count)
        .each(count)
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

/// Copies f32 numbers into a tensor of f32 or bf16.
pub(crate) fn copy_into(from: &Tensor, to: &Tensor) -> Result<()> {
    let count = from.elem_count();
    let launch = |kernel| Launch::new(kernel, device(from)?).floats(from);
    match to.dtype() {
        DType::F32 => launch("copy")?.floats(to)?.long(count).each(count),
        _ => launch("narrow")?.narrow(to)?.long(count).each(count),
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

pub(crate) fn dropout(x: &Tensor, threshold: u32, scale: f64, key: DropoutKey) -> Result<Tensor> {
    let count = x.elem_count();
    let y = unwritten(x.shape(), DType::F32, x)?;
    Launch::new("dropout", device(x)?)
        .floats(x)?
        .floats(&y)?
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
    let (rows, columns) = (weight.rows, weight.columns);
    let count = rows * columns;
    let out = unwritten((rows, columns), dtype, &weight.codes)?;
    let (kernel, items) = match weight.form {
        Form::FourBits => ("expand_four_bits", count.div_ceil(2)),
        Form::EightBits => ("expand_eight_bits", count),
    };
    let mut launch = Launch::new(kernel, device(&out)?)
        .bytes(&weight.codes)?
        .floats(&weight.scales)?;
    if weight.form == Form::FourBits {
        launch = launch.floats(&weight.levels)?;
    }
    launch = match dtype {
        DType::F32 => launch.floats(&out)?.null(),
        _ => launch.null().narrow(&out)?,
    };
    launch = launch.long(count).int(weight.block)?;
    launch.each(items)?;
    Ok(out)
}
