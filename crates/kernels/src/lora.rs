//! A frozen product and its low-rank branch as one operation.
//!
//! `y = x Wᵀ + s (x Aᵀ) Bᵀ` with `A` of `[r, in]` and `B` of `[out, r]` (Hu et al., "LoRA", arXiv
//! 2106.09685). Projections that read the same input (q, k and v; gate and up) form a group: the
//! products of all their `A` with the input are one product, and their input gradients are one sum.
//! The branch is a second term of the frozen product and costs no pass of its own over `y`.
//!
//! Dropout acts on the branch's input alone, as in PEFT; the caller hands the dropped input in.

use candle_core::{Result, Tensor, bail};

use crate::by_element;
use crate::gemm::{Dense, Left, Right, Term, gemm};
use crate::host::{matrix, tensor, update, view};
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
    /// `s · x Aᵀ` of every adapted projection, `[tokens, r]`.
    reduced: Vec<Option<Tensor>>,
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
    let branch_x = branch_x.unwrap_or(x);
    if branch_x.dims() != x.dims() {
        bail!(
            "`lora_linear`: the branch's input is {:?}, not {:?}",
            branch_x.dims(),
            x.dims()
        );
    }
    check(group, input)?;
    by_element!(x, T => {
            let (x, branch_x) = (view::<T>(x)?, view::<T>(branch_x)?);
            let mut outputs = Vec::with_capacity(group.len());
            let mut kept = Vec::with_capacity(group.len());
            for projection in group {
                let (out, _) = projection.weight.dims()?;
                let mut y = vec![0 as T; tokens * out];
                let reduced = match projection.branch {
                    None => None,
                    Some(branch) => {
                        let rank = branch.a.dims()[0];
                        let a = view::<T>(&branch.a)?;
                        let a = Dense::new(&a, rank, input);
                        let mut reduced = vec![0 as T; tokens * rank];
                        let left = Left::plain(&branch_x, tokens, input);
                        let term = Term { left, right: Right::Transposed(&a) };
                        gemm(&[term], rank, &mut reduced, false);
                        let scale = branch.scale as T;
                        for value in &mut reduced {
        *value *= scale;
    }
                        Some((rank, reduced))
                    }
                };
                projection.weight.with_rows::<T, _>(|rows| {
                    let frozen = Term { left: Left::plain(&x, tokens, input), right: Right::Transposed(rows) };
                    match (&reduced, projection.branch) {
                        (Some((rank, reduced)), Some(branch)) => {
                            let b = view::<T>(&branch.b)?;
                            let b = Dense::new(&b, out, *rank);
                            let left = Left::plain(reduced, tokens, *rank);
                            let low = Term { left, right: Right::Transposed(&b) };
                            gemm(&[frozen, low], out, &mut y, false);
                        }
                        _ => gemm(&[frozen], out, &mut y, false),
                    }
                    Ok(())
                })?;
                outputs.push(tensor(y, (tokens, out))?);
                kept.push(match reduced {
                    Some((rank, reduced)) => Some(tensor(reduced, (tokens, rank))?),
                    None => None,
                });
            }
            Ok((outputs, Kept { reduced: kept }))
        })
}

/// Gradients of the trained part of one projection, added to in place.
pub struct BranchGrads<'a> {
    /// `[r, in]`
    pub a: &'a Tensor,
    /// `[out, r]`
    pub b: &'a Tensor,
}

/// The input gradients of [`lora_linear`]: that of the frozen products together with the branches'
/// or, where the branches had an input of their own, the two apart.
pub struct InputGrads {
    /// `[tokens, in]`
    pub x: Tensor,
    /// `[tokens, in]`, only if the branches had an input of their own.
    pub branch_x: Option<Tensor>,
}

/// Adjoint of [`lora_linear`]: adds to the gradients of every `A` and `B` and returns the input's.
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
    check(group, input)?;
    if [dys.len(), kept.reduced.len(), grads.len()] != [group.len(); 3] {
        bail!("`lora_linear_backward`: gradients and projections differ in number");
    }
    by_element!(x, T => {
            // Gradient of each branch's reduced input: s · dy B, [tokens, r].
            let mut reduced_grads: Vec<Option<Vec<T>>> = Vec::with_capacity(group.len());
            for (((projection, dy), grads), kept) in group.iter().zip(dys).zip(grads).zip(&kept.reduced) {
                let (out, _) = projection.weight.dims()?;
                if dy.dims() != [tokens, out] {
                    bail!("`lora_linear_backward`: a gradient of {:?}, expected [{tokens}, {out}]", dy.dims());
                }
                let Some(branch) = projection.branch else {
                    reduced_grads.push(None);
                    continue;
                };
                let rank = branch.a.dims()[0];
                let dy = view::<T>(dy)?;
                let b = view::<T>(&branch.b)?;
                let b = Dense::new(&b, out, rank);
                let mut reduced = vec![0 as T; tokens * rank];
                let term = Term { left: Left::plain(&dy, tokens, out), right: Right::Plain(&b) };
                gemm(&[term], rank, &mut reduced, false);
                let scale = branch.scale as T;
                for value in &mut reduced {
        *value *= scale;
    }
                if let (Some(grads), Some(kept)) = (grads, kept) {
                    // dB += dyᵀ (s x Aᵀ)
                    let kept = view::<T>(kept)?;
                    let right = Dense::new(&kept, tokens, rank);
                    let left = Left::transposed(&dy, tokens, out);
                    update(grads.b, |into: &mut [T]| {
                        gemm(&[Term { left, right: Right::Plain(&right) }], rank, into, true);
                        Ok(())
                    })?;
                    // dA += (s dy B)ᵀ x
                    let x = view::<T>(branch_x.unwrap_or(x))?;
                    let right = Dense::new(&x, tokens, input);
                    let left = Left::transposed(&reduced, tokens, rank);
                    update(grads.a, |into: &mut [T]| {
                        gemm(&[Term { left, right: Right::Plain(&right) }], input, into, true);
                        Ok(())
                    })?;
                }
                reduced_grads.push(Some(reduced));
            }
            let mut dx = vec![0 as T; tokens * input];
            let mut branch_dx = branch_x.map(|_| vec![0 as T; tokens * input]);
            let mut first = true;
            let mut first_branch = true;
            for ((projection, dy), reduced) in group.iter().zip(dys).zip(&reduced_grads) {
                let (out, _) = projection.weight.dims()?;
                let dy = view::<T>(dy)?;
                projection.weight.with_rows::<T, _>(|rows| {
                    let frozen = Term { left: Left::plain(&dy, tokens, out), right: Right::Plain(rows) };
                    let (Some(branch), Some(reduced)) = (projection.branch, reduced) else {
                        gemm(&[frozen], input, &mut dx, !first);
                        return Ok(());
                    };
                    let rank = branch.a.dims()[0];
                    let a = view::<T>(&branch.a)?;
                    let a = Dense::new(&a, rank, input);
                    let low = Term { left: Left::plain(reduced, tokens, rank), right: Right::Plain(&a) };
                    if let Some(branch_dx) = &mut branch_dx {
                        gemm(&[frozen], input, &mut dx, !first);
                        gemm(&[low], input, branch_dx, !first_branch);
                        first_branch = false;
                    } else {
                        gemm(&[frozen, low], input, &mut dx, !first);
                    }
                    Ok(())
                })?;
                first = false;
            }
            let branch_x = match branch_dx {
                Some(values) => Some(tensor(values, (tokens, input))?),
                None => None,
            };
            Ok(InputGrads { x: tensor(dx, (tokens, input))?, branch_x })
        })
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
        }
    }
    Ok(())
}
