//! A frozen product and its low-rank branch as one operation.
//!
//! `y = x Wᵀ + s (x Aᵀ) Bᵀ` with `A` of `[r, in]` and `B` of `[out, r]` (Hu et al., "LoRA", arXiv
//! 2106.09685). Projections that read the same input (q, k and v; gate and up) form a group: their
//! input gradients are one sum. The branch is a second term of the frozen product and costs no pass of
//! its own over `y`. A branch with a [`Dora`] rescales the rows of the sum.
//!
//! Dropout acts on the branch's input alone, as in PEFT; the caller hands the dropped input `x̃` in. With
//! DoRA the frozen product of the dropped input takes part in the rescaling, so that (with `g = m/n`)
//! `y = x Wᵀ + (g − 1) ∘ x̃ Wᵀ + g ∘ s (x̃ Aᵀ) Bᵀ`; this is PEFT's formula, and without dropout it is
//! `g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ)`.

mod operands;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

#[cfg(feature = "cuda")]
use crate::activation::gated_backward_in_place;
use crate::activation::{Activation, narrow_gradients, narrow_product};
use crate::by_element;
use crate::cpu::Level;
use crate::dora::{Dora, magnitude_grad, rescaled};
use crate::gemm::{Dense, Kernel as _, Left, Right, Rows, Term, gemm, in_pieces, product};
use crate::host::{Element, Fresh, matrix, num::Float, tensor, update, view};
use crate::transpose::transpose;
use crate::vector::Real;
use crate::weight::Weight;
use operands::{Computed, Numbers, Operand, Stack, lent};

/// The trained part of one projection.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
    /// Factor of the branch: `alpha / r`, or `alpha / √r`.
    pub scale: f64,
    /// Rescaling of the rows, if the branch is DoRA's.
    pub dora: Option<Dora>,
    /// Where it lies among its group's on a GPU; without, a group's products there put its branches together first.
    pub stacked: Option<Stacked>,
}

/// A branch among those of its group as the products on a GPU read them. Whoever changes `A` or `B` brings these up to
/// date.
#[derive(Clone, Debug)]
pub struct Stacked {
    /// The `A` of the group's branches below each other, in the type of its products; `[Σ r, in]`.
    pub a: Tensor,
    /// The branch's `B` in that type.
    pub b: Tensor,
    /// The gradients of all `A`, of which the branch's own are some rows; f32 `[Σ r, in]`.
    pub a_grad: Tensor,
    /// First of the branch's rows.
    pub start: usize,
}

/// The type of the products of a group's branches on a GPU: bf16 where those of all their weights are.
pub fn branch_dtype<'a>(adapted: impl IntoIterator<Item = &'a Weight>) -> DType {
    let mut adapted = adapted.into_iter();
    if adapted.all(Weight::multiplies_in_bf16) {
        DType::BF16
    } else {
        DType::F32
    }
}

impl LowRank {
    pub(crate) fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

/// One projection of a group: its frozen weight and, if it is adapted, its branch.
#[derive(Clone)]
pub struct Projection<'a> {
    /// `[out, in]`
    pub weight: &'a Weight,
    /// The low-rank branch.
    pub branch: Option<&'a LowRank>,
}

/// What the backward pass of a group needs of its forward pass.
#[derive(Clone, Debug)]
pub struct Kept {
    pub(crate) branches: Vec<Option<BranchKept>>,
}

#[derive(Clone, Debug)]
pub(crate) struct BranchKept {
    /// `s · x Aᵀ`, `[tokens, r]`; on a GPU without the factor `s`, as some of the columns of a wider matrix.
    pub(crate) reduced: Tensor,
    /// With DoRA, `(W + s B A) x`: the output before it was rescaled, `[tokens, out]`. It cannot be had
    /// back from the output, which has been through bias and rotation.
    pub(crate) sum: Option<Tensor>,
}

impl BranchKept {
    /// Of a projection without DoRA.
    fn reduced<T: Element>(
        reduced: Option<Vec<T>>,
        projection: &Projection,
        tokens: usize,
    ) -> Result<Option<Self>> {
        let (Some(reduced), Some(branch)) = (reduced, projection.branch) else {
            return Ok(None);
        };
        let reduced = tensor(reduced, (tokens, branch.rank()))?;
        Ok(Some(Self { reduced, sum: None }))
    }
}

/// Outputs of a group of projections of one input, and what their backward pass needs.
///
/// `branch_x` is the branches' input where dropout makes it differ from `x`; both may be of bf16 where [`takes_bf16`]
/// says so.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn lora_linear(
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
) -> Result<(Vec<Tensor>, Kept)> {
    forward(x, branch_x, group, true)
}

/// What [`lora_linear`] keeps, without the outputs where it does not take them: for a pass that is computed again.
///
/// # Errors
/// As [`lora_linear`].
pub fn lora_kept(x: &Tensor, branch_x: Option<&Tensor>, group: &[Projection]) -> Result<Kept> {
    // DoRA keeps a sum, which is the output before it is rescaled.
    let dora = |projection: &Projection| projection.branch.is_some_and(|b| b.dora.is_some());
    Ok(forward(x, branch_x, group, group.iter().any(dora))?.1)
}

/// [`lora_linear`], without the outputs if they are not `wanted`.
fn forward(
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    wanted: bool,
) -> Result<(Vec<Tensor>, Kept)> {
    let (tokens, input) = matrix(x, "lora_linear", "the input")?;
    check_branch_input(x, branch_x)?;
    check(group, input)?;
    check_bf16(std::iter::once(x), group, branch_x)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::lora_linear(x, branch_x, group, DType::F32, wanted);
    }
    by_element!(Computed(x), T => {
        let x = lent::<T>(x)?;
        let branch_x = branch_x.map(view::<T>).transpose()?;
        let round = group.iter().any(|p| p.weight.multiplies_in_bf16());
        let inputs = Inputs::new(x.numbers(), branch_x.as_deref(), tokens, input, round);
        let mut outputs = Vec::with_capacity(group.len());
        let mut branches = Vec::with_capacity(group.len());
        for (projection, reduced) in group.iter().zip(inputs.reduced(group)?) {
            let kept = if wanted {
                let (y, kept) = inputs.forward(projection, reduced)?;
                outputs.push(y);
                kept
            } else {
                BranchKept::reduced(reduced, projection, tokens)?
            };
            branches.push(kept);
        }
        Ok((outputs, Kept { branches }))
    })
}

/// The gated product of a group of gate and up, with both, all of bf16, as [`gated_to_bf16`] makes them of the group's
/// outputs; those are never stored in f32. And what the group's backward pass needs. On a GPU the product is that of
/// gate and up as they were rounded.
///
/// # Errors
/// A group of which [`takes_bf16`] is not true with this input of the branches, or that is not of two projections as
/// wide as each other; otherwise as [`lora_linear`].
///
/// [`gated_to_bf16`]: crate::activation::gated_to_bf16
pub fn lora_gated(
    activation: Activation,
    x: &Tensor,
    branch_x: Option<&Tensor>,
    [gate, up]: [&Projection; 2],
) -> Result<([Tensor; 3], Kept)> {
    let (tokens, input) = matrix(x, "lora_gated", "the input")?;
    let group = [gate, up].map(Projection::clone);
    check(&group, input)?;
    let (out, _) = gate.weight.dims()?;
    check_branch_input(x, branch_x)?;
    if !takes_bf16(&group, branch_x.is_some()) || up.weight.dims()?.0 != out {
        bail!("`lora_gated`: gate and up are not two of a width, of products of rounded numbers");
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::lora_gated(activation, x, branch_x, &group);
    }
    let x = lent::<f32>(x)?;
    let inputs = Inputs::<f32>::new(x.numbers(), None, tokens, input, true);
    let reduced = inputs.reduced(&group)?;
    let weights = [gate.weight.rows::<f32>()?, up.weight.rows::<f32>()?];
    let b = group
        .iter()
        .map(|p| p.branch.map(|branch| view::<f32>(&branch.b)));
    let b = b.map(Option::transpose).collect::<Result<Vec<_>>>()?;
    let b = b.iter().zip(&group).map(|(b, projection)| {
        let rank = projection.branch?.rank();
        Some(Dense::new(b.as_deref()?, out, rank).rounded(true))
    });
    let b: Vec<_> = b.collect();
    let side = |place: usize| {
        let low = b[place].as_ref().zip(reduced[place].as_ref());
        let low = low.map(|(b, reduced)| transposed(Left::plain(reduced, tokens, b.columns()), b));
        let whole = transposed(inputs.x.left(), &*weights[place]);
        std::iter::once(whole).chain(low).collect::<Vec<_>>()
    };
    let (gate, up) = (side(0), side(1));
    let mut narrow: [Fresh<bf16>; 3] = std::array::from_fn(|_| Fresh::new(tokens * out));
    let level = Level::detect();
    let outputs = narrow.each_mut();
    in_pieces([&gate, &up], out, outputs, |_, _, sums, to| {
        narrow_product(level, activation, sums, to);
    });
    drop((gate, up));
    let branches = group.iter().zip(reduced);
    let branches =
        branches.map(|(projection, reduced)| BranchKept::reduced(reduced, projection, tokens));
    let branches = branches.collect::<Result<_>>()?;
    let [y, gate, up] = narrow.map(|numbers| tensor(numbers.done(), (tokens, out)));
    Ok(([y?, gate?, up?], Kept { branches }))
}

/// Gradients of the trained part of one projection, added to in place.
pub struct BranchGrads<'a> {
    /// `[r, in]`
    pub a: &'a Tensor,
    /// `[out, r]`
    pub b: &'a Tensor,
    /// `[out]`, of DoRA's magnitude.
    pub magnitude: Option<&'a Tensor>,
}

/// The input gradients of [`lora_linear`]: that of the frozen products together with the branches'
/// or, where the branches had an input of their own, the two apart.
pub struct InputGrads {
    /// `[tokens, in]`
    pub x: Tensor,
    /// `[tokens, in]`, only if the branches had an input of their own.
    pub branch_x: Option<Tensor>,
}

/// Adjoint of [`lora_linear`]: adds to the gradients of every `A`, `B` and magnitude and returns the
/// input's. The gradients of the outputs, too, may be of bf16 where [`takes_bf16`] says so.
///
/// # Errors
/// Shapes that do not fit.
pub fn lora_linear_backward(
    dys: &[Tensor],
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    kept: &Kept,
    grads: &[Option<BranchGrads>],
) -> Result<InputGrads> {
    let (tokens, input) = matrix(x, "lora_linear_backward", "the input")?;
    check_branch_input(x, branch_x)?;
    check_gradients(group, input, [dys.len(), kept.branches.len(), grads.len()])?;
    check_bf16(dys.iter().chain([x]), group, branch_x)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let dtype = DType::F32;
        return crate::cuda::lora_linear_backward(dys, x, branch_x, group, kept, grads, dtype);
    }
    by_element!(Computed(x), T => {
        let sum = |terms: &[Term<T>]| tensor(product(terms, input), (tokens, input));
        let (x, branch_x) = backward(dys, x, branch_x, group, kept, grads, sum)?;
        Ok(InputGrads { x, branch_x })
    })
}

/// Adds to the gradients of every `A`, `B` and magnitude; returns what `sum` makes of the terms of the input's gradient,
/// and the gradient of the branches' input where they had one of their own.
fn backward<T: Real, R>(
    dys: &[Tensor],
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    kept: &Kept,
    grads: &[Option<BranchGrads>],
    sum: impl FnOnce(&[Term<T>]) -> Result<R>,
) -> Result<(R, Option<Tensor>)> {
    let (tokens, input) = matrix(x, "lora_linear_backward", "the input")?;
    let x = lent::<T>(x)?;
    let branch_x = branch_x.map(view::<T>).transpose()?;
    let inputs = Inputs::new(x.numbers(), branch_x.as_deref(), tokens, input, false);
    let views = dys.iter().map(lent::<T>).collect::<Result<Vec<_>>>()?;
    let mut backs = Vec::with_capacity(group.len());
    for ((projection, dy), kept) in group.iter().zip(&views).zip(&kept.branches) {
        let (out, _) = projection.weight.dims()?;
        let dy = dy.numbers();
        if dy.len() != tokens * out {
            bail!(
                "`lora_linear_backward`: a gradient of {} numbers, expected [{tokens}, {out}]",
                dy.len()
            );
        }
        let dy = Operand::new(dy, tokens, out, projection.weight.multiplies_in_bf16());
        backs.push(Back::new(projection, kept.as_ref(), dy)?);
    }
    inputs.branches_backward(&backs, grads)?;
    inputs.input_backward(&backs, sum)
}

/// [`lora_linear_backward`] of a group whose input is the product of gate and up, both of bf16, and then the adjoint of
/// that product: the gradients of the two, of bf16, on a GPU in the places of gate and up, which nobody else may hold.
/// That of the product is never stored, on a GPU in bf16. Where the branches had an input of their own, `join` makes one
/// gradient of the product of both.
///
/// # Errors
/// A group of which [`takes_bf16`] is not true with this input of the branches, or gate and up that are not of bf16 and
/// of the input's shape; otherwise as [`lora_linear_backward`].
pub fn lora_gated_backward(
    activation: Activation,
    dys: &[Tensor],
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
    kept: &Kept,
    grads: &[Option<BranchGrads>],
    [gate, up]: [Tensor; 2],
    join: impl FnOnce(InputGrads) -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (tokens, input) = matrix(x, "lora_gated_backward", "the input")?;
    check_gradients(group, input, [dys.len(), kept.branches.len(), grads.len()])?;
    check_branch_input(x, branch_x)?;
    if !takes_bf16(group, branch_x.is_some()) || gate.dims() != x.dims() || up.dims() != x.dims() {
        bail!("`lora_gated_backward`: products that are not of rounded numbers, or other shapes");
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let dtype = DType::BF16;
        let dx = crate::cuda::lora_linear_backward(dys, x, branch_x, group, kept, grads, dtype)?;
        return gated_backward_in_place(activation, &join(dx)?, gate, up);
    }
    // Here branches have no input of their own.
    drop(join);
    let (gate, up) = (view::<bf16>(&gate)?, view::<bf16>(&up)?);
    let level = Level::detect();
    let sum = |terms: &[Term<f32>]| {
        let mut narrow: [Fresh<bf16>; 2] = std::array::from_fn(|_| Fresh::new(tokens * input));
        let outputs = narrow.each_mut();
        in_pieces([terms], input, outputs, |row, columns, [dy], to| {
            let at = row * input + columns.start..row * input + columns.end;
            narrow_gradients(level, activation, dy, [&gate[at.clone()], &up[at]], to);
        });
        let [dgate, dup] = narrow.map(|numbers| tensor(numbers.done(), (tokens, input)));
        Ok((dgate?, dup?))
    };
    Ok(backward(dys, x, None, group, kept, grads, sum)?.0)
}

/// Whether this processor multiplies numbers rounded to bf16 faster than others.
pub fn rounding_is_faster() -> bool {
    f32::pairs_are_faster(Level::detect())
}

/// Whether the input of a group may be of bf16, and the gradients of its outputs: where all products round them, as on
/// a GPU and where the processor multiplies numbers rounded so faster, and nothing else looks at them.
///
/// DoRA does look, and so does what drops on a processor: there the branches may not have an input of their own
/// (`dropped`).
pub fn takes_bf16(group: &[Projection], dropped: bool) -> bool {
    let here = rounding_is_faster() && !dropped;
    group.iter().all(|projection| {
        let even = |(out, input): (usize, usize)| out.is_multiple_of(2) && input.is_multiple_of(2);
        let there = !projection.weight.on_cpu();
        (there || here && projection.weight.dims().is_ok_and(even))
            && projection.weight.multiplies_in_bf16()
            && projection.branch.is_none_or(|branch| branch.dora.is_none())
    })
}

/// The input of a group, and that of its branches where it differs.
struct Inputs<'a, T> {
    x: Operand<'a, T>,
    branch_x: Option<Operand<'a, T>>,
}

/// The backward pass of one projection.
struct Back<'a, T: Real> {
    projection: &'a Projection<'a>,
    dy: Operand<'a, T>,
    branch: Option<BranchBack<'a, T>>,
}

struct BranchBack<'a, T> {
    low_rank: &'a LowRank,
    kept: &'a BranchKept,
    /// Gradient of the reduced input: `s · dz B`, `[tokens, r]`.
    reduced: Vec<T>,
    /// With DoRA, the gradient `dz = g ∘ dy` of the output before it was rescaled.
    rescaled: Option<Vec<T>>,
}

impl<'a, T: Real> Back<'a, T> {
    /// With the gradient of the reduced input.
    fn new(
        projection: &'a Projection,
        kept: Option<&'a BranchKept>,
        dy: Operand<'a, T>,
    ) -> Result<Self> {
        let mut back = Self {
            projection,
            dy,
            branch: None,
        };
        let (Some(low_rank), Some(kept)) = (projection.branch, kept) else {
            return Ok(back);
        };
        let rescaled = match &low_rank.dora {
            Some(dora) => Some(rescaled(back.dy.values()?, &dora.gains()?)),
            None => None,
        };
        let (rank, out) = (low_rank.rank(), back.dy.columns);
        let b = view::<T>(&low_rank.b)?;
        let b = Dense::new(&b, out, rank).rounded(projection.weight.multiplies_in_bf16());
        let mut reduced = product(&[plain(back.dz(rescaled.as_deref()), &b)], rank);
        multiply(&mut reduced, low_rank.scale);
        back.branch = Some(BranchBack {
            low_rank,
            kept,
            reduced,
            rescaled,
        });
        Ok(back)
    }

    /// With DoRA, `dz`.
    fn rescaled(&self) -> Option<&[T]> {
        self.branch.as_ref()?.rescaled.as_deref()
    }

    /// `dz` where it is given, otherwise the gradient of the output.
    fn dz<'b>(&'b self, rescaled: Option<&'b [T]>) -> Left<'b, T> {
        match rescaled {
            Some(dz) => Left::plain(dz, self.dy.rows, self.dy.columns),
            None => self.dy.left(),
        }
    }
}

impl<'a, T: Real> Inputs<'a, T> {
    /// Inputs `[tokens, input]`, rounded beforehand if `round`, as is worth it for left operands alone.
    fn new(
        x: Numbers<'a, T>,
        branch_x: Option<&'a [T]>,
        tokens: usize,
        input: usize,
        round: bool,
    ) -> Self {
        let operand = |numbers| Operand::new(numbers, tokens, input, round);
        let branch_x = branch_x.map(Numbers::Plain);
        Self {
            x: operand(x),
            branch_x: branch_x.map(operand),
        }
    }

    fn branch_x(&self) -> &Operand<'a, T> {
        self.branch_x.as_ref().unwrap_or(&self.x)
    }

    /// `s · x Aᵀ` of each projection that has a branch, `[tokens, r]`; one product for all of them.
    fn reduced(&self, group: &[Projection]) -> Result<Vec<Option<Vec<T>>>> {
        let branches = group.iter().filter_map(|p| Some((p.weight, p.branch?)));
        let stack = Stack::new(branches, self.x.columns)?;
        let a = stack.matrix();
        let together = product(&[transposed(self.branch_x().left(), &a)], stack.depth());
        let mut parts = stack.apart(&together).into_iter();
        let of = |projection: &Projection| {
            let branch = projection.branch?;
            let mut reduced = parts.next()?;
            multiply(&mut reduced, branch.scale);
            Some(reduced)
        };
        Ok(group.iter().map(of).collect())
    }

    fn forward(
        &self,
        projection: &Projection,
        reduced: Option<Vec<T>>,
    ) -> Result<(Tensor, Option<BranchKept>)> {
        let (tokens, input) = (self.x.rows, self.x.columns);
        let (out, _) = projection.weight.dims()?;
        let rows = projection.weight.rows::<T>()?;
        let (Some(branch), Some(reduced)) = (projection.branch, reduced) else {
            let y = product(&[transposed(self.x.left(), &*rows)], out);
            return Ok((tensor(y, (tokens, out))?, None));
        };
        let rank = branch.rank();
        let b = view::<T>(&branch.b)?;
        let b = Dense::new(&b, out, rank).rounded(projection.weight.multiplies_in_bf16());
        let low = transposed(Left::plain(&reduced, tokens, rank), &b);
        // DoRA rescales a sum whose frozen part, too, is of the dropped input.
        let summed = if branch.dora.is_some() {
            self.branch_x()
        } else {
            &self.x
        };
        let mut y = product(&[transposed(summed.left(), &*rows), low], out);
        let mut sum = None;
        if let Some(dora) = &branch.dora {
            let z = std::mem::take(&mut y);
            y = rescaled(&z, &dora.gains()?);
            if let Some(branch_x) = &self.branch_x {
                // x Wᵀ − x̃ Wᵀ, as one product of the difference.
                let apart = difference(self.x.values()?, branch_x.values()?);
                let apart = transposed(Left::plain(&apart, tokens, input), &*rows);
                gemm(&[apart], out, &mut y, true);
            }
            sum = Some(tensor(z, (tokens, out))?);
        }
        let reduced = tensor(reduced, (tokens, rank))?;
        Ok((tensor(y, (tokens, out))?, Some(BranchKept { reduced, sum })))
    }

    /// Adds to the gradients of what the branches train.
    fn branches_backward(&self, backs: &[Back<T>], grads: &[Option<BranchGrads>]) -> Result<()> {
        let (tokens, input) = (self.x.rows, self.x.columns);
        let trained: Vec<_> = backs
            .iter()
            .zip(grads)
            .filter_map(|(back, grads)| Some((back, back.branch.as_ref()?, grads.as_ref()?)))
            .collect();
        if trained.is_empty() {
            return Ok(());
        }
        for (back, branch, grads) in &trained {
            let (rank, out) = (branch.low_rank.rank(), back.dy.columns);
            let rounded = back.projection.weight.multiplies_in_bf16();
            // dBᵀ += (s x Aᵀ)ᵀ dz; turned round, the wide operand would have to be transposed.
            let forward = view::<T>(&branch.kept.reduced)?;
            let right: Box<dyn Rows<T>> = match &branch.rescaled {
                Some(dz) => Box::new(Dense::new(dz, tokens, out).rounded(rounded)),
                None => back.dy.right(rounded),
            };
            let turned = product(&[across(&forward, rank, tokens, &*right)], out);
            let mut gradient = vec![T::ZERO; out * rank];
            transpose::<T>(
                Level::detect(),
                &turned,
                out,
                rank,
                out,
                &mut gradient,
                rank,
            );
            add_to(grads.b, &gradient)?;
            if let (Some(dora), Some(sum), Some(into)) =
                (&branch.low_rank.dora, &branch.kept.sum, grads.magnitude)
            {
                let (sum, norms) = (view::<T>(sum)?, view::<T>(&dora.norms)?);
                magnitude_grad(back.dy.values()?, &sum, &norms, into)?;
            }
        }
        // dA += (s dz B)ᵀ x, one product for all, since packing x takes longest.
        let branches = trained
            .iter()
            .map(|(back, branch, _)| (back.projection.weight, branch.low_rank));
        let stack = Stack::new(branches, input)?;
        let parts: Vec<_> = trained
            .iter()
            .map(|(_, branch, _)| &branch.reduced[..])
            .collect();
        let left = stack.side_by_side(tokens, &parts);
        let right = self.branch_x().right(stack.rounded);
        let gradient = product(&[across(&left, stack.depth(), tokens, &*right)], input);
        let mut rest = gradient.as_slice();
        for ((.., grads), rank) in trained.iter().zip(&stack.ranks) {
            let (now, later) = rest.split_at(rank * input);
            add_to(grads.a, now)?;
            rest = later;
        }
        Ok(())
    }

    /// The gradients of the input, which is what `sum` makes of its terms, and of the branches' input.
    fn input_backward<R>(
        &self,
        backs: &[Back<T>],
        sum: impl FnOnce(&[Term<T>]) -> Result<R>,
    ) -> Result<(R, Option<Tensor>)> {
        let (tokens, input) = (self.x.rows, self.x.columns);
        let weights = backs.iter().map(|back| back.projection.weight.rows::<T>());
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let branches = || {
            backs
                .iter()
                .filter_map(|back| Some((back.projection.weight, back.branch.as_ref()?)))
        };
        let stack = Stack::new(
            branches().map(|(weight, branch)| (weight, branch.low_rank)),
            input,
        )?;
        let parts: Vec<_> = branches().map(|(_, branch)| &branch.reduced[..]).collect();
        let reduced = stack.side_by_side(tokens, &parts);
        let a = stack.matrix();
        let low = plain(Left::plain(&reduced, tokens, stack.depth()), &a);
        // With an input of the branches' own, what DoRA adds to the frozen products reaches that one.
        let separate = self.branch_x.is_some();
        let beside = backs.iter().map(|back| {
            let dz = back.rescaled().filter(|_| separate);
            dz.map(|dz| Ok(difference(dz, back.dy.values()?)))
                .transpose()
        });
        let beside = beside.collect::<Result<Vec<Option<Vec<T>>>>>()?;
        let (mut terms, mut branch_terms) = (Vec::new(), Vec::new());
        for ((back, rows), beside) in backs.iter().zip(&weights).zip(&beside) {
            let dz = back.rescaled().filter(|_| !separate);
            terms.push(plain(back.dz(dz), &**rows));
            if let Some(beside) = beside {
                let left = Left::plain(beside, tokens, back.dy.columns);
                branch_terms.push(plain(left, &**rows));
            }
        }
        if separate {
            branch_terms.push(low);
        } else {
            terms.push(low);
        }
        let branch_x = if separate {
            Some(tensor(product(&branch_terms, input), (tokens, input))?)
        } else {
            None
        };
        Ok((sum(&terms)?, branch_x))
    }
}

/// `into += gradient`
fn add_to<T: Element>(into: &Tensor, gradient: &[T]) -> Result<()> {
    update(into, |into: &mut [T]| {
        for (into, gradient) in into.iter_mut().zip(gradient) {
            *into += *gradient;
        }
        Ok(())
    })
}

/// `left · rightᵀ`
fn transposed<'a, T>(left: Left<'a, T>, right: &'a dyn Rows<T>) -> Term<'a, T> {
    let right = Right::Transposed(right);
    Term { left, right }
}

/// `left · right`
fn plain<'a, T>(left: Left<'a, T>, right: &'a dyn Rows<T>) -> Term<'a, T> {
    let right = Right::Plain(right);
    Term { left, right }
}

/// `leftᵀ · right`, summed over the tokens, with a left operand of `[tokens, rows]`.
fn across<'a, T>(left: &'a [T], rows: usize, tokens: usize, right: &'a dyn Rows<T>) -> Term<'a, T> {
    let left = Left::transposed(left, tokens, rows);
    Term {
        left,
        right: Right::Plain(right),
    }
}

fn multiply<T: Element>(values: &mut [T], factor: f64) {
    let factor = <T as Float>::of(factor);
    for value in values {
        *value *= factor;
    }
}

fn difference<T: Element>(x: &[T], y: &[T]) -> Vec<T> {
    x.iter().zip(y).map(|(x, y)| *x - *y).collect()
}

/// Tensors of bf16 where [`takes_bf16`] does not allow them are an error.
fn check_bf16<'a>(
    mut tensors: impl Iterator<Item = &'a Tensor>,
    group: &[Projection],
    branch_x: Option<&Tensor>,
) -> Result<()> {
    let narrow = tensors.any(|tensor| tensor.dtype() == DType::BF16);
    if narrow && !takes_bf16(group, branch_x.is_some()) {
        bail!("`lora_linear`: products that are not of rounded numbers meet a tensor of bf16");
    }
    Ok(())
}

fn check_branch_input(x: &Tensor, branch_x: Option<&Tensor>) -> Result<()> {
    match branch_x {
        Some(branch_x) if branch_x.dims() != x.dims() => bail!(
            "`lora_linear`: the branch's input is {:?}, not {:?}",
            branch_x.dims(),
            x.dims()
        ),
        _ => Ok(()),
    }
}

/// [`check`], of a backward pass with so many gradients of outputs, kept branches and places for gradients.
fn check_gradients(group: &[Projection], input: usize, counts: [usize; 3]) -> Result<()> {
    check(group, input)?;
    if counts != [group.len(); 3] {
        bail!("`lora_linear_backward`: gradients and projections differ in number");
    }
    Ok(())
}

fn check(group: &[Projection], input: usize) -> Result<()> {
    for projection in group {
        let (out, width) = projection.weight.dims()?;
        if width != input {
            bail!("`lora_linear`: an input of width {input} meets a weight of [{out}, {width}]");
        }
        if let Some(branch) = projection.branch {
            let rank = branch.a.dims().first().copied().unwrap_or(0);
            if branch.a.dims() != [rank, input] || branch.b.dims() != [out, rank] {
                bail!(
                    "`lora_linear`: A of {:?} and B of {:?} do not fit a weight of [{out}, {input}]",
                    branch.a.dims(),
                    branch.b.dims()
                );
            }
            if let Some(dora) = &branch.dora {
                dora.check(out)?;
            }
        }
    }
    Ok(())
}
