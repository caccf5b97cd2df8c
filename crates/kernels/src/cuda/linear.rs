//! Linear layers on the GPU, with their low-rank branches.
//!
//! A weight of bf16 meets its operand in bf16 and one of f32 in f32; a quantised weight is expanded whole for its
//! product, one at a time, in the type it was put on the GPU for. Branches are f32 throughout.

use std::cell::OnceCell;

use candle_core::{DType, Result, Tensor, bail};

use super::blas::{Operand, gemm};
use super::launch::unwritten;
use super::pointwise::{difference, expand, magnitude_grad, rescaled, row_lengths};
use crate::lora::{BranchGrads, BranchKept, InputGrads, Kept, Projection};
use crate::weight::Weight;

/// An activation, and its copies in narrower types, made when first asked for.
struct Narrowed<'a> {
    wide: &'a Tensor,
    bf16: OnceCell<Tensor>,
    f16: OnceCell<Tensor>,
}

impl<'a> Narrowed<'a> {
    fn new(wide: &'a Tensor) -> Self {
        Self {
            wide,
            bf16: OnceCell::new(),
            f16: OnceCell::new(),
        }
    }

    fn of(&self, dtype: DType) -> Result<&Tensor> {
        let cell = match dtype {
            DType::F32 => return Ok(self.wide),
            DType::BF16 => &self.bf16,
            DType::F16 => &self.f16,
            other => bail!("a weight of {other:?} is not computed with on a GPU"),
        };
        if let Some(found) = cell.get() {
            return Ok(found);
        }
        let made = self.wide.to_dtype(dtype)?;
        Ok(cell.get_or_init(|| made))
    }
}

/// The weight as a plain matrix on the GPU.
fn plain(weight: &Weight) -> Result<Tensor> {
    match weight {
        Weight::Dense(tensor) => Ok(tensor.clone()),
        Weight::OnDevice(stored) => expand(stored, stored.compute),
        _ => bail!("a quantised weight was not put on the GPU"),
    }
}

/// `y = x Wᵀ`, added to `y` with a `beta` of 1.
fn forward(x: &Narrowed, weight: &Weight, y: &Tensor, beta: f64) -> Result<()> {
    let weight = plain(weight)?;
    let x = x.of(weight.dtype())?;
    gemm(
        Operand::plain(x),
        Operand::transposed(&weight),
        y,
        1.0,
        beta,
    )
}

/// `dx = dy W`, added to `dx` with a `beta` of 1.
fn backward(dy: &Tensor, weight: &Weight, dx: &Tensor, beta: f64) -> Result<()> {
    let weight = plain(weight)?;
    let dy = Narrowed::new(dy);
    gemm(
        Operand::plain(dy.of(weight.dtype())?),
        Operand::plain(&weight),
        dx,
        1.0,
        beta,
    )
}

pub(crate) fn linear(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    let y = unwritten((x.dims2()?.0, weight.dims()?.0), DType::F32, x)?;
    forward(&Narrowed::new(x), weight, &y, 0.0)?;
    Ok(y)
}

pub(crate) fn linear_input_grad(dy: &Tensor, weight: &Weight) -> Result<Tensor> {
    let dx = unwritten((dy.dims2()?.0, weight.dims()?.1), DType::F32, dy)?;
    backward(dy, weight, &dx, 0.0)?;
    Ok(dx)
}

pub(crate) fn linear_weight_grad(dy: &Tensor, x: &Tensor, into: &Tensor) -> Result<()> {
    gemm(Operand::transposed(dy), Operand::plain(x), into, 1.0, 1.0)
}

/// Norms of the rows of `W + s B A`, `[out]`; the sum is made whole in f32.
pub(crate) fn row_norms(weight: &Weight, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let sum = match weight {
        Weight::Dense(tensor) if tensor.dtype() == DType::F32 => tensor.copy()?,
        Weight::Dense(tensor) => tensor.to_dtype(DType::F32)?,
        Weight::OnDevice(stored) => expand(stored, DType::F32)?,
        _ => bail!("a quantised weight was not put on the GPU"),
    };
    gemm(Operand::plain(b), Operand::plain(a), &sum, scale, 1.0)?;
    row_lengths(&sum)
}

pub(crate) fn lora_linear(
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
) -> Result<(Vec<Tensor>, Kept)> {
    let tokens = x.dims2()?.0;
    let narrowed = Narrowed::new(x);
    let dropped = branch_x.map(Narrowed::new);
    let mut outputs = Vec::with_capacity(group.len());
    let mut branches = Vec::with_capacity(group.len());
    for projection in group {
        let mut y = unwritten((tokens, projection.weight.dims()?.0), DType::F32, x)?;
        let Some(branch) = projection.branch else {
            forward(&narrowed, projection.weight, &y, 0.0)?;
            outputs.push(y);
            branches.push(None);
            continue;
        };
        // DoRA rescales a sum whose frozen part, too, is of the dropped input.
        let of_sum = match &dropped {
            Some(dropped) if branch.dora.is_some() => dropped,
            _ => &narrowed,
        };
        forward(of_sum, projection.weight, &y, 0.0)?;
        let reduced = unwritten((tokens, branch.rank()), DType::F32, x)?;
        let input = Operand::plain(branch_x.unwrap_or(x));
        gemm(
            input,
            Operand::transposed(&branch.a),
            &reduced,
            branch.scale,
            0.0,
        )?;
        gemm(
            Operand::plain(&reduced),
            Operand::transposed(&branch.b),
            &y,
            1.0,
            1.0,
        )?;
        let mut sum = None;
        if let Some(dora) = &branch.dora {
            let rescaled = rescaled(&y, dora)?;
            let z = std::mem::replace(&mut y, rescaled);
            if let Some(branch_x) = branch_x {
                // x Wᵀ − x̃ Wᵀ, as one product of the difference.
                let apart = difference(x, branch_x)?;
                forward(&Narrowed::new(&apart), projection.weight, &y, 1.0)?;
            }
            sum = Some(z);
        }
        outputs.push(y);
        branches.push(Some(BranchKept { reduced, sum }));
    }
    Ok((outputs, Kept { branches }))
}

pub(crate) fn lora_linear_backward(
    dys: &[Tensor],
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    kept: &Kept,
    grads: &[Option<BranchGrads>],
) -> Result<InputGrads> {
    // Rows are the gradients', since a frozen group is differentiated without its input.
    let (rows, input) = (dys[0].dims2()?.0, x.dims2()?.1);
    let dx = unwritten((rows, input), DType::F32, x)?;
    let branch_dx = match branch_x {
        Some(_) => Some(Tensor::zeros((rows, input), DType::F32, x.device())?),
        None => None,
    };
    let branch_input = branch_x.unwrap_or(x);
    let mut begun = 0.0;
    for (((projection, dy), kept), grads) in group.iter().zip(dys).zip(&kept.branches).zip(grads) {
        let branch = projection.branch.zip(kept.as_ref());
        // The gradient of the sum before DoRA rescaled it.
        let dora = branch.and_then(|(branch, _)| branch.dora.as_ref());
        let apart = dora.map(|dora| rescaled(dy, dora)).transpose()?;
        let dz = apart.as_ref().unwrap_or(dy);
        // With an input of the branches' own, what DoRA adds to the frozen product reaches that one.
        let past = if branch_x.is_some() { dy } else { dz };
        backward(past, projection.weight, &dx, begun)?;
        begun = 1.0;
        let Some((branch, kept)) = branch else {
            continue;
        };
        if let (Some(dz), Some(branch_dx)) = (&apart, &branch_dx) {
            backward(&difference(dz, dy)?, projection.weight, branch_dx, 1.0)?;
        }
        let reduced = unwritten((rows, branch.rank()), DType::F32, x)?;
        gemm(
            Operand::plain(dz),
            Operand::plain(&branch.b),
            &reduced,
            branch.scale,
            0.0,
        )?;
        if let Some(grads) = grads {
            gemm(
                Operand::transposed(dz),
                Operand::plain(&kept.reduced),
                grads.b,
                1.0,
                1.0,
            )?;
            gemm(
                Operand::transposed(&reduced),
                Operand::plain(branch_input),
                grads.a,
                1.0,
                1.0,
            )?;
            if let (Some(dora), Some(sum), Some(into)) = (dora, &kept.sum, grads.magnitude) {
                magnitude_grad(dy, sum, dora, into)?;
            }
        }
        let into = branch_dx.as_ref().unwrap_or(&dx);
        gemm(
            Operand::plain(&reduced),
            Operand::plain(&branch.a),
            into,
            1.0,
            1.0,
        )?;
    }
    Ok(InputGrads {
        x: dx,
        branch_x: branch_dx,
    })
}
