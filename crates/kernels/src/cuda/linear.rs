//! Linear layers on the GPU, with their low-rank branches.
//!
//! A weight of bf16 meets its operand in bf16 and one of f32 in f32; a quantised weight is expanded whole for its
//! product, one at a time, in the type it was put on the GPU for. The branches of a group are multiplied in bf16 where
//! all their weights are. Their `A` stand below each other, so that what they read is read once. A sum begins with what
//! the branches add: where it is of bf16, it is then rounded once, but for that small part.

use std::cell::OnceCell;

use candle_core::{DType, Result, Tensor, bail};

use super::blas::{Operand, gemm};
use super::launch::unwritten;
use super::pointwise::{
    copy_into, difference, expand, gated, magnitude_grad, of_type, rescaled, row_lengths,
};
use crate::activation::Activation;
use crate::lora::{BranchGrads, BranchKept, InputGrads, Kept, LowRank, Projection, branch_dtype};
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
            same if same == self.wide.dtype() => return Ok(self.wide),
            DType::BF16 => &self.bf16,
            DType::F16 => &self.f16,
            other => bail!("a weight of {other:?} is not computed with on a GPU"),
        };
        if let Some(found) = cell.get() {
            return Ok(found);
        }
        let made = of_type(self.wide, dtype)?;
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
fn backward(dy: &Narrowed, weight: &Weight, dx: &Tensor, beta: f64) -> Result<()> {
    let weight = plain(weight)?;
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
    backward(&Narrowed::new(dy), weight, &dx, 0.0)?;
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

/// The branches of a group as operands of one type.
struct Branches<'a> {
    dtype: DType,
    /// `A` of each below the other's, `[Σ r, in]`.
    a: Tensor,
    /// Where their gradients are added up, if those lie below each other too.
    a_grad: Option<&'a Tensor>,
    /// Of each projection that has one.
    each: Vec<Option<Branch<'a>>>,
}

struct Branch<'a> {
    low: &'a LowRank,
    /// First of its rows in the `A` of all.
    start: usize,
    b: Tensor,
}

/// A branch, and the first of its rows in the `A` of all.
struct Place<'a> {
    low: &'a LowRank,
    start: usize,
}

impl<'a> Place<'a> {
    fn with(&self, b: Tensor) -> Branch<'a> {
        let Self { low, start } = *self;
        Branch { low, start, b }
    }
}

impl<'a> Branches<'a> {
    /// None, of a group without any.
    fn of(group: &[Projection<'a>]) -> Result<Option<Self>> {
        let adapted = || group.iter().filter_map(|p| Some((p.weight, p.branch?)));
        if adapted().next().is_none() {
            return Ok(None);
        }
        let dtype = branch_dtype(adapted().map(|(weight, _)| weight));
        let mut depth = 0;
        let places: Vec<Option<Place>> = group
            .iter()
            .map(|projection| {
                let low = projection.branch?;
                let start = depth;
                depth += low.rank();
                Some(Place { low, start })
            })
            .collect();
        match Self::stacked(&places, dtype, depth) {
            Some(stacked) => Ok(Some(stacked)),
            None => Self::put_together(&places, dtype, depth).map(Some),
        }
    }

    /// Of branches that lie below each other already, all that are in that place and in their order.
    fn stacked(places: &[Option<Place<'a>>], dtype: DType, depth: usize) -> Option<Self> {
        let first = places.iter().flatten().next()?.low.stacked.as_ref()?;
        if first.a.dtype() != dtype || first.a.dims()[0] != depth {
            return None;
        }
        let lies = |place: &Place<'a>| {
            let stacked = place.low.stacked.as_ref()?;
            let there = stacked.a.id() == first.a.id() && stacked.start == place.start;
            (there && stacked.b.dtype() == dtype).then(|| place.with(stacked.b.clone()))
        };
        let each = places.iter().map(|place| match place {
            Some(place) => lies(place).map(Some),
            None => Some(None),
        });
        Some(Self {
            dtype,
            a: first.a.clone(),
            a_grad: Some(&first.a_grad),
            each: each.collect::<Option<_>>()?,
        })
    }

    fn put_together(places: &[Option<Place<'a>>], dtype: DType, depth: usize) -> Result<Self> {
        let Some(first) = places.iter().flatten().next() else {
            bail!("a group without branches")
        };
        let a = if depth == first.low.rank() {
            of_type(&first.low.a, dtype)?
        } else {
            let all = unwritten((depth, first.low.a.dims()[1]), dtype, &first.low.a)?;
            for Place { low, start } in places.iter().flatten() {
                copy_into(&low.a, &all.narrow(0, *start, low.rank())?)?;
            }
            all
        };
        let narrowed = |place: &Place<'a>| Ok(place.with(of_type(&place.low.b, dtype)?));
        let each = places
            .iter()
            .map(|place| place.as_ref().map(narrowed).transpose());
        Ok(Self {
            dtype,
            a,
            a_grad: None,
            each: each.collect::<Result<_>>()?,
        })
    }

    /// Of something of `rows` tokens by the ranks of all branches.
    fn beside(&self, rows: usize) -> Result<Tensor> {
        unwritten((rows, self.a.dims()[0]), self.dtype, &self.a)
    }
}

impl Branch<'_> {
    /// Its columns of what [`Branches::beside`] made.
    fn columns(&self, of: &Tensor) -> Result<Tensor> {
        of.narrow(1, self.start, self.low.rank())
    }
}

/// Outputs of `dtype`; none, if they are not `wanted`.
pub(crate) fn lora_linear(
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    dtype: DType,
    wanted: bool,
) -> Result<(Vec<Tensor>, Kept)> {
    let tokens = x.dims2()?.0;
    let narrowed = Narrowed::new(x);
    let dropped = branch_x.map(Narrowed::new);
    let branches = Branches::of(group)?;
    let reduced = match &branches {
        Some(branches) => {
            let reduced = branches.beside(tokens)?;
            let x = dropped.as_ref().unwrap_or(&narrowed).of(branches.dtype)?;
            gemm(
                Operand::plain(x),
                Operand::transposed(&branches.a),
                &reduced,
                1.0,
                0.0,
            )?;
            Some(reduced)
        }
        None => None,
    };
    let mut outputs = Vec::with_capacity(group.len());
    let mut kept = Vec::with_capacity(group.len());
    for (place, projection) in group.iter().enumerate() {
        let branch = branches.as_ref().and_then(|all| all.each[place].as_ref());
        let reduced = branch
            .zip(reduced.as_ref())
            .map(|(branch, reduced)| branch.columns(reduced))
            .transpose()?;
        if !wanted {
            kept.push(reduced.map(|reduced| BranchKept { reduced, sum: None }));
            continue;
        }
        let mut y = unwritten((tokens, projection.weight.dims()?.0), dtype, x)?;
        let Some((branch, reduced)) = branch.zip(reduced) else {
            forward(&narrowed, projection.weight, &y, 0.0)?;
            outputs.push(y);
            kept.push(None);
            continue;
        };
        gemm(
            Operand::plain(&reduced),
            Operand::transposed(&branch.b),
            &y,
            branch.low.scale,
            0.0,
        )?;
        let dora = branch.low.dora.as_ref();
        // DoRA rescales a sum whose frozen part, too, is of the dropped input.
        let of_sum = dropped.as_ref().filter(|_| dora.is_some());
        forward(of_sum.unwrap_or(&narrowed), projection.weight, &y, 1.0)?;
        let mut sum = None;
        if let Some(dora) = dora {
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
        kept.push(Some(BranchKept { reduced, sum }));
    }
    Ok((outputs, Kept { branches: kept }))
}

/// The input's gradients are of `dtype`.
pub(crate) fn lora_linear_backward(
    dys: &[Tensor],
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    kept: &Kept,
    grads: &[Option<BranchGrads>],
    dtype: DType,
) -> Result<InputGrads> {
    // Rows are the gradients', since a frozen group is differentiated without its input.
    let (rows, input) = (dys[0].dims2()?.0, x.dims2()?.1);
    // With DoRA, the gradients of the sums before they were rescaled.
    let apart: Vec<Option<Tensor>> = group
        .iter()
        .zip(dys)
        .map(|(projection, dy)| {
            let dora = projection.branch.and_then(|low| low.dora.as_ref());
            dora.map(|dora| rescaled(dy, dora)).transpose()
        })
        .collect::<Result<_>>()?;
    let narrowed: Vec<Narrowed> = dys
        .iter()
        .zip(&apart)
        .map(|(dy, apart)| Narrowed::new(apart.as_ref().unwrap_or(dy)))
        .collect();
    let branches = Branches::of(group)?;
    let dreduced = match &branches {
        Some(branches) => Some((branches, branches.beside(rows)?)),
        None => None,
    };
    if let Some((branches, dreduced)) = &dreduced {
        let input = Narrowed::new(branch_x.unwrap_or(x));
        // Of all at once where all are wanted.
        let at_once = branches.a_grad.filter(|_| {
            let mut grads = branches.each.iter().zip(grads);
            grads.all(|(branch, grads)| branch.is_none() || grads.is_some())
        });
        for (place, branch) in branches.each.iter().enumerate() {
            let (Some(branch), Some(kept)) = (branch, &kept.branches[place]) else {
                continue;
            };
            let dz = narrowed[place].of(branches.dtype)?;
            let dreduced = branch.columns(dreduced)?;
            let scale = branch.low.scale;
            gemm(
                Operand::plain(dz),
                Operand::plain(&branch.b),
                &dreduced,
                scale,
                0.0,
            )?;
            let Some(grads) = &grads[place] else {
                continue;
            };
            gemm(
                Operand::transposed(dz),
                Operand::plain(&kept.reduced),
                grads.b,
                scale,
                1.0,
            )?;
            if at_once.is_none() {
                gemm(
                    Operand::transposed(&dreduced),
                    Operand::plain(input.of(branches.dtype)?),
                    grads.a,
                    1.0,
                    1.0,
                )?;
            }
            if let (Some(dora), Some(sum), Some(into)) =
                (&branch.low.dora, &kept.sum, grads.magnitude)
            {
                magnitude_grad(&dys[place], sum, dora, into)?;
            }
        }
        if let Some(into) = at_once {
            gemm(
                Operand::transposed(dreduced),
                Operand::plain(input.of(branches.dtype)?),
                into,
                1.0,
                1.0,
            )?;
        }
    }
    let dx = unwritten((rows, input), dtype, x)?;
    let branch_dx = match branch_x {
        Some(_) => Some(Tensor::zeros((rows, input), dtype, x.device())?),
        None => None,
    };
    let mut begun = 0.0;
    if let Some((branches, dreduced)) = &dreduced {
        gemm(
            Operand::plain(dreduced),
            Operand::plain(&branches.a),
            branch_dx.as_ref().unwrap_or(&dx),
            1.0,
            0.0,
        )?;
        begun = if branch_dx.is_some() { 0.0 } else { 1.0 };
    }
    for (place, (projection, dy)) in group.iter().zip(dys).enumerate() {
        let dz = &narrowed[place];
        let (Some(wide), Some(branch_dx)) = (&apart[place], &branch_dx) else {
            backward(dz, projection.weight, &dx, begun)?;
            begun = 1.0;
            continue;
        };
        // With an input of the branches' own, what DoRA adds to the frozen product reaches that one.
        backward(&Narrowed::new(dy), projection.weight, &dx, begun)?;
        begun = 1.0;
        let beside = difference(wide, dy)?;
        backward(&Narrowed::new(&beside), projection.weight, branch_dx, 1.0)?;
    }
    Ok(InputGrads {
        x: dx,
        branch_x: branch_dx,
    })
}

/// The gated product of gate and up with both, in bf16.
pub(crate) fn lora_gated(
    activation: Activation,
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
) -> Result<([Tensor; 3], Kept)> {
    let (outputs, kept) = lora_linear(x, branch_x, group, DType::BF16, true)?;
    let [gate, up] = outputs
        .try_into()
        .or_else(|_| bail!("a gated unit has two projections"))?;
    Ok(([gated(activation, &gate, &up)?, gate, up], kept))
}
