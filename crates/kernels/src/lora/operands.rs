//! What stands in the products of a group: matrices of one type or the other, and branches put together.

use std::ops::Deref;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::LowRank;
use crate::gemm::{Dense, DenseBf16, Left, Rounded, Rows};
use crate::host::{Element, view};
use crate::vector::Real;
use crate::weight::Weight;

/// A matrix in memory, of numbers of `T` or of bf16.
pub(super) enum Lent<G, H> {
    Plain(G),
    Bf16(H),
}

/// Borrows a matrix of a pass, which [`takes_bf16`](super::takes_bf16) allowed to be of bf16.
pub(super) fn lent<T: Element>(
    tensor: &Tensor,
) -> Result<Lent<impl Deref<Target = [T]> + '_, impl Deref<Target = [bf16]> + '_>> {
    Ok(if tensor.dtype() == DType::BF16 {
        Lent::Bf16(view::<bf16>(tensor)?)
    } else {
        Lent::Plain(view::<T>(tensor)?)
    })
}

impl<G, H> Lent<G, H> {
    pub(super) fn numbers<T>(&self) -> Numbers<'_, T>
    where
        G: Deref<Target = [T]>,
        H: Deref<Target = [bf16]>,
    {
        match self {
            Self::Plain(values) => Numbers::Plain(values),
            Self::Bf16(values) => Numbers::Bf16(values),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Numbers<'a, T> {
    Plain(&'a [T]),
    Bf16(&'a [bf16]),
}

impl<T> Numbers<'_, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

/// An operand of several products, rounded once for all in which it stands at the left, where they are of rounded
/// numbers.
pub(super) struct Operand<'a, T> {
    numbers: Numbers<'a, T>,
    rounded: Option<Rounded>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a, T: Real> Operand<'a, T> {
    pub(super) fn new(numbers: Numbers<'a, T>, rows: usize, columns: usize, round: bool) -> Self {
        let rounded = match numbers {
            Numbers::Plain(values) if round => Rounded::new(values, columns),
            _ => None,
        };
        Self {
            numbers,
            rounded,
            rows,
            columns,
        }
    }

    pub(super) fn left(&self) -> Left<'_, T> {
        match self.numbers {
            Numbers::Plain(values) => {
                Left::plain(values, self.rows, self.columns).with(self.rounded.as_ref())
            }
            Numbers::Bf16(values) => Left::of_bf16(values, self.rows, self.columns),
        }
    }

    pub(super) fn right(&self, rounded: bool) -> Box<dyn Rows<T> + '_> {
        match self.numbers {
            Numbers::Plain(values) => {
                Box::new(Dense::new(values, self.rows, self.columns).rounded(rounded))
            }
            Numbers::Bf16(values) => Box::new(DenseBf16::new(values, self.rows, self.columns)),
        }
    }

    /// The numbers themselves, for DoRA.
    pub(super) fn values(&self) -> Result<&'a [T]> {
        match self.numbers {
            Numbers::Plain(values) => Ok(values),
            Numbers::Bf16(_) => bail!("`lora_linear`: DoRA needs its input and gradients in f32"),
        }
    }
}

/// The matrices `A` of several branches one below the other, `[Σ r, in]`, and the ranks.
pub(super) struct Stack<T> {
    values: Vec<T>,
    pub(super) ranks: Vec<usize>,
    input: usize,
    pub(super) rounded: bool,
}

impl<T: Real> Stack<T> {
    pub(super) fn new<'a>(
        branches: impl Iterator<Item = (&'a Weight, &'a LowRank)>,
        input: usize,
    ) -> Result<Self> {
        let (mut values, mut ranks, mut rounded) = (Vec::new(), Vec::new(), false);
        for (weight, branch) in branches {
            values.extend_from_slice(&view::<T>(&branch.a)?);
            ranks.push(branch.rank());
            rounded |= weight.multiplies_in_bf16();
        }
        Ok(Self {
            values,
            ranks,
            input,
            rounded,
        })
    }

    /// `Σ r`
    pub(super) fn depth(&self) -> usize {
        self.ranks.iter().sum()
    }

    pub(super) fn matrix(&self) -> Dense<'_, T> {
        Dense::new(&self.values, self.depth(), self.input).rounded(self.rounded)
    }

    /// Matrices `[tokens, r]`, one for each branch, side by side: `[tokens, Σ r]`.
    pub(super) fn side_by_side(&self, tokens: usize, parts: &[&[T]]) -> Vec<T> {
        let mut values = Vec::with_capacity(tokens * self.depth());
        for token in 0..tokens {
            for (part, rank) in parts.iter().zip(&self.ranks) {
                values.extend_from_slice(&part[token * rank..][..*rank]);
            }
        }
        values
    }

    /// What [`Stack::side_by_side`] put together.
    pub(super) fn apart(&self, values: &[T]) -> Vec<Vec<T>> {
        let mut parts: Vec<Vec<T>> = self.ranks.iter().map(|_| Vec::new()).collect();
        for row in values.chunks_exact(self.depth().max(1)) {
            let mut start = 0;
            for (part, rank) in parts.iter_mut().zip(&self.ranks) {
                part.extend_from_slice(&row[start..start + rank]);
                start += rank;
            }
        }
        parts
    }
}

/// A tensor by the type that it is computed with.
pub(super) struct Computed<'a>(pub(super) &'a Tensor);

impl Computed<'_> {
    pub(super) fn dtype(&self) -> DType {
        match self.0.dtype() {
            DType::BF16 => DType::F32,
            other => other,
        }
    }
}
