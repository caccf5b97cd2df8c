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

use candle_core::{Result, Tensor, bail};

use crate::by_element;
use crate::cpu::Level;
use crate::dora::{Dora, magnitude_grad, rescaled};
use crate::gemm::{Dense, Left, Right, Rounded, Rows, Term, gemm};
use crate::host::{Element, matrix, num::Float, tensor, update, view, zeroed};
use crate::vector::{Real, transpose};
use crate::weight::Weight;

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
}

impl LowRank {
    pub(crate) fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

/// One projection of a group: its frozen weight and, if it is adapted, its branch.
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
    /// `s · x Aᵀ`, `[tokens, r]`.
    pub(crate) reduced: Tensor,
    /// With DoRA, `(W + s B A) x`: the output before it was rescaled, `[tokens, out]`. It cannot be had
    /// back from the output, which has been through bias and rotation.
    pub(crate) sum: Option<Tensor>,
}

/// Outputs of a group of projections of one input, and what their backward pass needs.
///
/// `branch_x` is the branches' input where dropout makes it differ from `x`.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn lora_linear(
    x: &Tensor,
    branch_x: Option<&Tensor>,
    group: &[Projection],
) -> Result<(Vec<Tensor>, Kept)> {
    let (tokens, input) = matrix(x, "lora_linear", "the input")?;
    check_branch_input(x, branch_x)?;
    check(group, input)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::lora_linear(x, branch_x, group);
    }
    by_element!(x, T => {
        let x = view::<T>(x)?;
        let branch_x = branch_x.map(view::<T>).transpose()?;
        let round = group.iter().any(|p| p.weight.multiplies_in_bf16());
        let inputs = Inputs::new(&x, branch_x.as_deref(), tokens, input, round);
        let mut outputs = Vec::with_capacity(group.len());
        let mut branches = Vec::with_capacity(group.len());
        for projection in group {
            let (y, kept) = inputs.forward(projection)?;
            outputs.push(y);
            branches.push(kept);
        }
        Ok((outputs, Kept { branches }))
    })
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
/// input's.
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
    check(group, input)?;
    if [dys.len(), kept.branches.len(), grads.len()] != [group.len(); 3] {
        bail!("`lora_linear_backward`: gradients and projections differ in number");
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::lora_linear_backward(dys, x, branch_x, group, kept, grads);
    }
    by_element!(x, T => {
        let x = view::<T>(x)?;
        let branch_x = branch_x.map(view::<T>).transpose()?;
        let inputs = Inputs::new(&x, branch_x.as_deref(), tokens, input, false);
        let mut dx = Sum::new(tokens, input);
        let mut branch_dx = branch_x.as_ref().map(|_| Sum::new(tokens, input));
        for (((projection, dy), kept), grads) in group.iter().zip(dys).zip(&kept.branches).zip(grads) {
            let (out, _) = projection.weight.dims()?;
            if dy.dims() != [tokens, out] {
                bail!("`lora_linear_backward`: a gradient of {:?}, expected [{tokens}, {out}]", dy.dims());
            }
            let dy = view::<T>(dy)?;
            let dy = Operand::new(&dy, tokens, out, projection.weight.multiplies_in_bf16());
            let branch = match (projection.branch, kept) {
                (Some(branch), Some(kept)) => {
                    Some(inputs.branch_backward(projection.weight, branch, kept, grads.as_ref(), &dy)?)
                }
                _ => None,
            };
            inputs.input_backward(projection, branch.as_ref(), &dy, &mut dx, branch_dx.as_mut())?;
        }
        let branch_x = match branch_dx {
            Some(sum) => Some(tensor(sum.values, (tokens, input))?),
            None => None,
        };
        Ok(InputGrads { x: tensor(dx.values, (tokens, input))?, branch_x })
    })
}

/// A left operand of several products, rounded once for all of them where they are of rounded numbers.
struct Operand<'a, T> {
    values: &'a [T],
    rounded: Option<Rounded>,
    rows: usize,
    columns: usize,
}

impl<'a, T: Real> Operand<'a, T> {
    fn new(values: &'a [T], rows: usize, columns: usize, round: bool) -> Self {
        let rounded = round.then(|| Rounded::new(values, columns)).flatten();
        Self {
            values,
            rounded,
            rows,
            columns,
        }
    }

    fn left(&self) -> Left<'_, T> {
        Left::plain(self.values, self.rows, self.columns).with(self.rounded.as_ref())
    }
}

/// The input of a group, and that of its branches where it differs.
struct Inputs<'a, T> {
    x: Operand<'a, T>,
    branch_x: Option<Operand<'a, T>>,
}

/// What the adjoint of a branch hands to that of the input.
struct BranchBack<'a, T> {
    low_rank: &'a LowRank,
    /// Gradient of the reduced input: `s · dz B`, `[tokens, r]`.
    reduced: Vec<T>,
    /// With DoRA, the gradient `dz = g ∘ dy` of the output before it was rescaled.
    rescaled: Option<Vec<T>>,
}

/// A sum of products whose first replaces what was there.
struct Sum<T> {
    values: Vec<T>,
    columns: usize,
    begun: bool,
}

impl<T: Real> Sum<T> {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            values: zeroed(rows * columns),
            columns,
            begun: false,
        }
    }

    fn add(&mut self, terms: &[Term<T>]) {
        gemm(terms, self.columns, &mut self.values, self.begun);
        self.begun = true;
    }
}

impl<'a, T: Real> Inputs<'a, T> {
    /// Inputs `[tokens, input]`, rounded beforehand if `round`, as is worth it for left operands alone.
    fn new(
        x: &'a [T],
        branch_x: Option<&'a [T]>,
        tokens: usize,
        input: usize,
        round: bool,
    ) -> Self {
        let operand = |values| Operand::new(values, tokens, input, round);
        Self {
            x: operand(x),
            branch_x: branch_x.map(operand),
        }
    }

    fn branch_x(&self) -> &Operand<'a, T> {
        self.branch_x.as_ref().unwrap_or(&self.x)
    }

    fn forward(&self, projection: &Projection) -> Result<(Tensor, Option<BranchKept>)> {
        let (tokens, input) = (self.x.rows, self.x.columns);
        let (out, _) = projection.weight.dims()?;
        let mut y = zeroed::<T>(tokens * out);
        let Some(branch) = projection.branch else {
            projection.weight.with_rows::<T, _>(|rows| {
                gemm(&[transposed(self.x.left(), rows)], out, &mut y, false);
                Ok(())
            })?;
            return Ok((tensor(y, (tokens, out))?, None));
        };
        let rank = branch.rank();
        let rounded = projection.weight.multiplies_in_bf16();
        let (a, b) = (view::<T>(&branch.a)?, view::<T>(&branch.b)?);
        let a = Dense::new(&a, rank, input).rounded(rounded);
        let b = Dense::new(&b, out, rank).rounded(rounded);
        let mut reduced = vec![T::ZERO; tokens * rank];
        gemm(
            &[transposed(self.branch_x().left(), &a)],
            rank,
            &mut reduced,
            false,
        );
        multiply(&mut reduced, branch.scale);
        let low = transposed(Left::plain(&reduced, tokens, rank), &b);
        // DoRA rescales a sum whose frozen part, too, is of the dropped input.
        let summed = if branch.dora.is_some() {
            self.branch_x()
        } else {
            &self.x
        };
        projection.weight.with_rows::<T, _>(|rows| {
            gemm(&[transposed(summed.left(), rows), low], out, &mut y, false);
            Ok(())
        })?;
        let mut sum = None;
        if let Some(dora) = &branch.dora {
            let z = std::mem::take(&mut y);
            y = rescaled(&z, &dora.gains()?);
            if let Some(branch_x) = &self.branch_x {
                // x Wᵀ − x̃ Wᵀ, as one product of the difference.
                let apart = difference(self.x.values, branch_x.values);
                projection.weight.with_rows::<T, _>(|rows| {
                    gemm(
                        &[transposed(Left::plain(&apart, tokens, input), rows)],
                        out,
                        &mut y,
                        true,
                    );
                    Ok(())
                })?;
            }
            sum = Some(tensor(z, (tokens, out))?);
        }
        let reduced = tensor(reduced, (tokens, rank))?;
        Ok((tensor(y, (tokens, out))?, Some(BranchKept { reduced, sum })))
    }

    /// Gradients of what the branch trains, and of its reduced input.
    fn branch_backward<'b>(
        &self,
        weight: &Weight,
        low_rank: &'b LowRank,
        kept: &BranchKept,
        grads: Option<&BranchGrads>,
        dy: &Operand<T>,
    ) -> Result<BranchBack<'b, T>> {
        let (tokens, input, rank) = (self.x.rows, self.x.columns, low_rank.rank());
        let (out, _) = weight.dims()?;
        let rounded = weight.multiplies_in_bf16();
        let rescaled = match &low_rank.dora {
            Some(dora) => Some(rescaled(dy.values, &dora.gains()?)),
            None => None,
        };
        let dz = rescaled_or(rescaled.as_deref(), dy);
        let b = view::<T>(&low_rank.b)?;
        let b = Dense::new(&b, out, rank).rounded(rounded);
        let mut reduced = vec![T::ZERO; tokens * rank];
        gemm(&[plain(dz, &b)], rank, &mut reduced, false);
        multiply(&mut reduced, low_rank.scale);
        if let Some(grads) = grads {
            // dBᵀ += (s x Aᵀ)ᵀ dz; turned round, the wide operand would have to be transposed.
            let forward = view::<T>(&kept.reduced)?;
            let mut turned = vec![T::ZERO; rank * out];
            let right = rescaled.as_deref().unwrap_or(dy.values);
            let right = Dense::new(right, tokens, out).rounded(rounded);
            gemm(
                &[across(&forward, rank, tokens, &right)],
                out,
                &mut turned,
                false,
            );
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
            update(grads.b, |into: &mut [T]| {
                for (into, gradient) in into.iter_mut().zip(&gradient) {
                    *into += *gradient;
                }
                Ok(())
            })?;
            // dA += (s dz B)ᵀ x
            let right = Dense::new(self.branch_x().values, tokens, input).rounded(rounded);
            update(grads.a, |into: &mut [T]| {
                gemm(&[across(&reduced, rank, tokens, &right)], input, into, true);
                Ok(())
            })?;
            if let (Some(dora), Some(sum), Some(into)) =
                (&low_rank.dora, &kept.sum, grads.magnitude)
            {
                magnitude_grad(dy.values, &view::<T>(sum)?, &view::<T>(&dora.norms)?, into)?;
            }
        }
        Ok(BranchBack {
            low_rank,
            reduced,
            rescaled,
        })
    }

    /// Adds the gradients of the input and of the branches' input.
    fn input_backward(
        &self,
        projection: &Projection,
        branch: Option<&BranchBack<T>>,
        dy: &Operand<T>,
        dx: &mut Sum<T>,
        branch_dx: Option<&mut Sum<T>>,
    ) -> Result<()> {
        let (tokens, input) = (self.x.rows, self.x.columns);
        let (out, _) = projection.weight.dims()?;
        projection.weight.with_rows::<T, _>(|rows| {
            let Some(branch) = branch else {
                dx.add(&[plain(dy.left(), rows)]);
                return Ok(());
            };
            let rank = branch.low_rank.rank();
            let a = view::<T>(&branch.low_rank.a)?;
            let a = Dense::new(&a, rank, input).rounded(projection.weight.multiplies_in_bf16());
            let low = plain(Left::plain(&branch.reduced, tokens, rank), &a);
            match (branch_dx, &branch.rescaled) {
                (None, dz) => {
                    dx.add(&[plain(rescaled_or(dz.as_deref(), dy), rows), low]);
                }
                (Some(branch_dx), None) => {
                    dx.add(&[plain(dy.left(), rows)]);
                    branch_dx.add(&[low]);
                }
                (Some(branch_dx), Some(dz)) => {
                    dx.add(&[plain(dy.left(), rows)]);
                    let apart = difference(dz, dy.values);
                    branch_dx.add(&[plain(Left::plain(&apart, tokens, out), rows), low]);
                }
            }
            Ok(())
        })
    }
}

/// The gradient `dz` where DoRA rescales it, otherwise that of the output.
fn rescaled_or<'a, T: Real>(dz: Option<&'a [T]>, dy: &'a Operand<T>) -> Left<'a, T> {
    match dz {
        Some(dz) => Left::plain(dz, dy.rows, dy.columns),
        None => dy.left(),
    }
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
