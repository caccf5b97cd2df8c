//! Matrix products over operands in any stored form.
//!
//! One driver serves every product of a training step: forward (`x · Wᵀ`), input gradient
//! (`dy · W`) and weight gradient (`dyᵀ · x`), over a weight that may be stored as f32, bf16 or
//! quantised. A stored form has to do one thing, [`Rows::fill`]: write a piece of one row as plain
//! numbers. The driver asks for the pieces of one panel at a time and packs them for the
//! microkernel, so a quantised weight is never expanded whole.
//!
//! A product is a sum of [`Term`]s that share their output. A low-rank branch is a second term of
//! small depth behind the frozen one, and the input gradients of q, k and v are three terms of one
//! product; neither costs a pass of its own over the output.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (ACM TOMS 34(3), 2008), except that the left operand is not packed where its rows are contiguous:
//! the microkernel broadcasts from them directly. Each output element is summed in an order that
//! depends on the shapes alone, so results are the same bits on any number of threads.

mod blocks;
mod few_rows;
#[allow(clippy::wildcard_imports, reason = "the vector instructions")]
mod kernel;
mod pack;
#[allow(clippy::wildcard_imports, reason = "the vector instructions")]
mod pairs;
mod scratch;
#[allow(clippy::wildcard_imports, reason = "the vector instructions")]
mod steps;

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

pub(crate) use kernel::Multiplying;
pub use kernel::{Kernel, Lying, Pair, Piece, Product, Steps, Target, Tile};
pub use pack::Dense;
pub(crate) use pack::{DenseBf16, Held, Pairs, Rounded, Stored, whole};
pub(crate) use pairs::round;
pub use scratch::Pooled;
pub(crate) use scratch::Scratch;

use crate::cpu::Level;
use crate::host::Fresh;
use crate::vector::Real;

/// At most this many rows are multiplied by dot products along the stored rows, which add up in another order than
/// the products of more rows.
pub const FEW_ROWS: usize = 12;

/// A matrix stored row by row in any form.
pub trait Rows<T>: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Number of columns.
    fn columns(&self) -> usize;
    /// Writes `self[row, columns]` to `out`, whose length is that of `columns`.
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]);
    /// The matrix as a plain slice with its row stride, where it is stored so.
    fn dense(&self) -> Option<(&[T], usize)> {
        None
    }
    /// Whether products with it may be of numbers rounded to bf16, both operands'; their sums are not.
    /// They are where the processor multiplies those faster.
    fn rounded(&self) -> bool {
        false
    }
    /// [`Rows::fill`], rounded to bf16.
    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]);
    /// The matrix as a plain slice of bf16 with its row stride, where it is stored so.
    fn dense_bf16(&self) -> Option<(&[bf16], usize)> {
        None
    }
}

/// Some successive rows of a matrix.
pub(crate) struct RowRange<'a, T> {
    matrix: &'a dyn Rows<T>,
    rows: Range<usize>,
}

impl<'a, T> RowRange<'a, T> {
    /// # Panics
    /// If the matrix has fewer rows.
    pub(crate) fn new(matrix: &'a dyn Rows<T>, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= matrix.rows());
        Self { matrix, rows }
    }

    /// All of them.
    pub(crate) fn whole(matrix: &'a dyn Rows<T>) -> Self {
        Self::new(matrix, 0..matrix.rows())
    }
}

impl<T> Rows<T> for RowRange<'_, T> {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn columns(&self) -> usize {
        self.matrix.columns()
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        self.matrix.fill(self.rows.start + row, columns, out);
    }

    fn dense(&self) -> Option<(&[T], usize)> {
        let (values, stride) = self.matrix.dense()?;
        Some((&values[self.rows.start * stride..], stride))
    }

    fn rounded(&self) -> bool {
        self.matrix.rounded()
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        self.matrix.fill_bf16(self.rows.start + row, columns, out);
    }

    fn dense_bf16(&self) -> Option<(&[bf16], usize)> {
        let (values, stride) = self.matrix.dense_bf16()?;
        Some((&values[self.rows.start * stride..], stride))
    }
}

/// The right operand of a product.
#[derive(Clone, Copy)]
pub enum Right<'a, T> {
    /// The matrix as it is: depth runs over its rows.
    Plain(&'a dyn Rows<T>),
    /// Its transpose: depth runs over its columns.
    Transposed(&'a dyn Rows<T>),
}

impl<'a, T> Right<'a, T> {
    fn matrix(&self) -> &'a dyn Rows<T> {
        match self {
            Self::Plain(matrix) | Self::Transposed(matrix) => *matrix,
        }
    }

    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.rows(),
            Self::Transposed(matrix) => matrix.columns(),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.columns(),
            Self::Transposed(matrix) => matrix.rows(),
        }
    }
}

/// The left operand of a product: a strided view of plain numbers.
#[derive(Clone, Copy)]
pub struct Left<'a, T> {
    values: &'a [T],
    rows: usize,
    depth: usize,
    row_stride: usize,
    depth_stride: usize,
    /// The same numbers rounded, for a product of such; `values` may be empty then.
    rounded: Option<Pairs<'a>>,
}

impl<'a, T> Left<'a, T> {
    /// `values` as a matrix `[rows, depth]`, row by row.
    pub fn plain(values: &'a [T], rows: usize, depth: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * depth,
            "left operand: length does not fit its shape"
        );
        Self {
            values,
            rows,
            depth,
            row_stride: depth,
            depth_stride: 1,
            rounded: None,
        }
    }

    /// The transpose of `values`, which is a matrix `[depth, rows]`, row by row.
    pub fn transposed(values: &'a [T], depth: usize, rows: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * depth,
            "left operand: length does not fit its shape"
        );
        Self {
            values,
            rows,
            depth,
            row_stride: 1,
            depth_stride: rows,
            rounded: None,
        }
    }

    /// The same operand, whose numbers have been rounded already.
    #[must_use]
    pub(crate) fn with(self, rounded: Option<&'a Rounded>) -> Self {
        Self {
            rounded: rounded.map(Rounded::pairs),
            ..self
        }
    }

    /// `values`, stored in bf16, as a matrix `[rows, depth]`, row by row; only for products of rounded numbers.
    ///
    /// # Panics
    /// If the depth is odd.
    pub(crate) fn of_bf16(values: &'a [bf16], rows: usize, depth: usize) -> Self {
        Self {
            rounded: Some(Pairs::of_rows(values, depth)),
            values: &[],
            rows,
            depth,
            row_stride: depth,
            depth_stride: 1,
        }
    }

    /// Whether its numbers are there in bf16 only.
    fn narrow(&self) -> bool {
        self.values.is_empty() && self.rows * self.depth > 0
    }
}

/// One summand of a product, `left · right`.
#[derive(Clone, Copy)]
pub struct Term<'a, T> {
    /// `[rows, depth]`
    pub left: Left<'a, T>,
    /// `[depth, columns]`
    pub right: Right<'a, T>,
}

/// Computes `out = Σ left·right` (or `out += …` if `accumulate`) for `out` of `[rows, columns]`.
///
/// Where one of the right operands allows it ([`Rows::rounded`]) and the processor multiplies them faster,
/// all operands are rounded to bf16; the sums are of `T`.
///
/// # Panics
/// If the shapes of the terms and of `out` do not fit; callers check the shapes users control.
pub fn gemm<T: Real>(terms: &[Term<T>], columns: usize, out: &mut [T], accumulate: bool) {
    gemm_at(Level::detect(), terms, columns, out, accumulate);
}

/// `Σ left·right`, as [`gemm`] computes it, in a new vector, which need not be cleared first.
///
/// # Panics
/// As [`gemm`].
#[expect(unsafe_code, reason = "the product is the first to write its output")]
pub fn product<T: Real>(terms: &[Term<T>], columns: usize) -> Vec<T> {
    let length = terms.first().map_or(0, |term| term.left.rows) * columns;
    let mut out = Vec::with_capacity(length);
    let places = &mut out.spare_capacity_mut()[..length];
    // SAFETY: nothing is added to what is there, so every place is written and none is read before.
    unsafe {
        into_places(Level::detect(), terms, columns, places, false);
        out.set_len(length);
    }
    out
}

/// `Σ left·right` of each side, several products of the same shape, of numbers rounded to bf16. No sum is stored
/// whole: `finish` gets the sums of a piece of a row, by its number and columns, and the same piece of each output,
/// `[rows, columns]`, to write.
///
/// # Panics
/// As [`gemm`], for each side; and where the processor does not multiply such numbers faster, or no operand allows it.
pub(crate) fn in_pieces<T: Real, O, const N: usize, const M: usize>(
    sides: [&[Term<T>]; N],
    columns: usize,
    outputs: [&mut Fresh<O>; M],
    finish: impl Fn(usize, Range<usize>, [&[T]; N], [&mut [O]; M]) + Sync,
) where
    O: Copy + Default + Send + Sync,
{
    let level = Level::detect();
    let rows = sides[0].first().map_or(0, |term| term.left.rows);
    for terms in sides {
        check(terms, rows, columns);
    }
    let mut terms = sides.iter().copied().flatten();
    assert!(
        T::pairs_are_faster(level) && terms.any(|term| term.right.matrix().rounded()),
        "products in pieces are of rounded numbers"
    );
    if T::steps_are_faster(level) {
        blocks::in_pieces::<T, Steps<1>, O, N, M>(level, sides, columns, outputs, finish);
    } else {
        blocks::in_pieces::<T, Pair, O, N, M>(level, sides, columns, outputs, finish);
    }
}

/// Asserts that the terms of a product fit each other and its output.
fn check<T>(terms: &[Term<T>], rows: usize, columns: usize) {
    for term in terms {
        assert_eq!(term.left.rows, rows, "product: terms differ in rows");
        assert_eq!(
            term.right.columns(),
            columns,
            "product: terms differ in columns"
        );
        assert_eq!(
            term.right.depth(),
            term.left.depth,
            "product: depths of a term differ"
        );
    }
}

/// [`gemm`] at a given instruction level, which must not exceed [`Level::detect`]'s.
pub fn gemm_at<T: Real>(
    level: Level,
    terms: &[Term<T>],
    columns: usize,
    out: &mut [T],
    accumulate: bool,
) {
    // SAFETY: every place holds a number.
    #[expect(unsafe_code, reason = "the output holds numbers already")]
    unsafe {
        into_places(level, terms, columns, kernel::places(out), accumulate);
    }
}

/// [`gemm_at`], which writes every place.
///
/// # Safety
/// If it is to accumulate, every place holds a number.
#[expect(unsafe_code, reason = "a promise of the caller")]
unsafe fn into_places<T: Real>(
    level: Level,
    terms: &[Term<T>],
    columns: usize,
    out: &mut [MaybeUninit<T>],
    accumulate: bool,
) {
    assert!(
        level <= Level::detect(),
        "the processor lacks the instructions of {level:?}"
    );
    let rows = terms.first().map_or(0, |term| term.left.rows);
    assert_eq!(
        out.len(),
        rows * columns,
        "product: output length does not fit its shape"
    );
    check(terms, rows, columns);
    if out.is_empty() {
        return;
    }
    if !accumulate && terms.iter().all(|term| term.left.depth == 0) {
        out.fill(MaybeUninit::new(T::ZERO));
        return;
    }
    let few = rows <= FEW_ROWS
        && terms
            .iter()
            .all(|term| matches!(term.right, Right::Transposed(_)) && term.left.depth_stride == 1)
        && !terms.iter().any(|term| term.left.narrow());
    if few {
        // SAFETY: the caller's promise.
        unsafe { few_rows::multiply(level, terms, rows, columns, out, accumulate) };
        return;
    }
    let in_pairs =
        T::pairs_are_faster(level) && terms.iter().any(|term| term.right.matrix().rounded());
    assert!(
        in_pairs || !terms.iter().any(|term| term.left.narrow()),
        "a left operand of bf16 meets a product that is not rounded"
    );
    let in_steps = T::steps_are_faster(level) && !blocks::lies(terms, rows);
    // SAFETY: the caller's promise.
    unsafe {
        match (in_pairs, in_steps) {
            (true, true) => blocks::multiply::<T, Steps<1>>(level, terms, columns, out, accumulate),
            (true, false) => blocks::multiply::<T, Pair>(level, terms, columns, out, accumulate),
            (false, true) if repays_parts(terms, columns) => {
                blocks::multiply::<T, Steps<3>>(level, terms, columns, out, accumulate);
            }
            (false, _) => blocks::multiply::<T, T>(level, terms, columns, out, accumulate),
        }
    }
}

/// Whether a product is so large that it is faster to take its numbers apart and multiply the parts. It does not depend on
/// the number of rows, so that a row's numbers do not either.
fn repays_parts<T>(terms: &[Term<T>], columns: usize) -> bool {
    /// Below, taking the left operand apart takes as long as its product.
    const COLUMNS: usize = 64;
    /// Below, much of a step would be zeros.
    const DEPTH: usize = 64;
    let depth: usize = terms.iter().map(|term| term.left.depth).sum();
    columns >= COLUMNS && depth >= DEPTH
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::blocks::COLUMN_BLOCK;
    use super::*;

    /// Depth of a block in f32.
    const DEPTH_BLOCK: usize = <f32 as Held<f32>>::BLOCK;

    /// Small whole numbers, exact in every order of summation.
    fn numbers<T: Real>(seed: u64, length: usize) -> Vec<T> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                <T as crate::host::num::Float>::of((state % 17) as f64 - 8.0)
            })
            .collect()
    }

    fn naive<T: Real>(left: &[T], right: &[T], m: usize, n: usize, k: usize, out: &mut [T]) {
        for i in 0..m {
            for j in 0..n {
                for d in 0..k {
                    out[i * n + j] += left[i * k + d] * right[d * n + j];
                }
            }
        }
    }

    fn transpose<T: Real>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
        (0..rows * columns)
            .map(|i| values[(i % rows) * columns + i / rows])
            .collect()
    }

    /// A product, added to itself, of numbers held as `H`.
    fn twice<T: Real, H: Held<T>>(level: Level, terms: &[Term<T>], m: usize, n: usize) -> Vec<T> {
        let mut out = vec![MaybeUninit::new(T::of(f64::NAN)); m * n];
        // SAFETY: every place holds a number, at the latest after the first product.
        #[expect(unsafe_code, reason = "places are read")]
        unsafe {
            blocks::multiply::<T, H>(level, terms, n, &mut out, false);
            blocks::multiply::<T, H>(level, terms, n, &mut out, true);
            out.into_iter().map(|place| place.assume_init()).collect()
        }
    }

    fn check<T: Real>(level: Level, m: usize, n: usize, depths: &[usize], form: u8) {
        let mut expected = numbers::<T>(3, m * n);
        let mut out = expected.clone();
        let operands: Vec<_> = depths
            .iter()
            .enumerate()
            .map(|(i, &k)| {
                let left = numbers::<T>(10 + i as u64, m * k);
                let right = numbers::<T>(20 + i as u64, k * n);
                let left_t = transpose(&left, m, k);
                let right_t = transpose(&right, k, n);
                (k, left, right, left_t, right_t)
            })
            .collect();
        let dense: Vec<_> = operands
            .iter()
            .map(|(k, _, right, _, right_t)| (Dense::new(right, *k, n), Dense::new(right_t, n, *k)))
            .collect();
        let terms: Vec<Term<T>> = operands
            .iter()
            .zip(&dense)
            .map(|((k, left, _, left_t, _), (plain, transposed))| Term {
                left: if form & 1 == 0 {
                    Left::plain(left, m, *k)
                } else {
                    Left::transposed(left_t, *k, m)
                },
                right: if form & 2 == 0 {
                    Right::Plain(plain)
                } else {
                    Right::Transposed(transposed)
                },
            })
            .collect();
        for (k, left, right, _, _) in &operands {
            naive(left, right, m, n, *k, &mut expected);
        }
        gemm_at(level, &terms, n, &mut out, true);
        assert!(
            out == expected,
            "{level:?} {m}×{n}×{depths:?} form {form}: accumulated product"
        );
        let start = numbers::<T>(3, m * n);
        // These numbers are exact in bf16 too; where vectors have no microkernel for pairs, `gemm` makes none.
        let all_forms = level == Level::Portable;
        let mut others = Vec::new();
        if all_forms || T::pairs_are_faster(level) {
            others.push(("pairs", twice::<T, Pair>(level, &terms, m, n)));
        }
        if all_forms || T::steps_are_faster(level) {
            others.push(("steps", twice::<T, Steps<1>>(level, &terms, m, n)));
            others.push(("parts", twice::<T, Steps<3>>(level, &terms, m, n)));
        }
        for (name, other) in others {
            let once = out.iter().zip(&start).map(|(out, start)| *out - *start);
            assert!(
                other.into_iter().eq(once.map(|once| once + once)),
                "{level:?} {m}×{n}×{depths:?} form {form}: {name}"
            );
        }
        let mut fresh = vec![T::of(f64::NAN); m * n];
        gemm_at(level, &terms, n, &mut fresh, false);
        if level == Level::detect() {
            assert!(
                product(&terms, n) == fresh,
                "{level:?} {m}×{n}×{depths:?} form {form}: a new product"
            );
        }
        for (fresh, (out, start)) in fresh.iter().zip(out.iter().zip(&start)) {
            assert!(
                *fresh + *start == *out,
                "{level:?} {m}×{n}×{depths:?} form {form}: product"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_the_definition(m in 1usize..70, n in 1usize..90, k in 1usize..50, r in 0usize..20, form in 0u8..4) {
            for level in Level::available() {
                check::<f32>(level, m, n, &[k, r], form);
                check::<f64>(level, m, n, &[k, r], form);
            }
        }
    }

    #[test]
    fn equals_the_definition_past_every_block_size() {
        for level in Level::available() {
            for form in 0..4 {
                check::<f32>(level, 101, COLUMN_BLOCK + 19, &[37], form);
                check::<f32>(level, 2053, 40, &[9], form);
                check::<f32>(level, 13, 40, &[2 * DEPTH_BLOCK + 7, 16, 3], form);
                check::<f32>(level, 5, 33, &[700, 16], form);
            }
        }
    }

    /// Products of three parts are as near to the truth as those of whole numbers of f32.
    #[test]
    fn three_parts_lose_nothing_that_f32_keeps() {
        let (m, n, k) = (70, 96, 1200);
        let numbers = |seed: f32, count: usize| -> Vec<f32> {
            // Of all magnitudes from 10⁻⁶ to 10⁶, with all bits of theirs in use.
            let number = |i: usize| {
                let x = (i as f32 * seed).sin();
                x * 10f32.powf((i as f32 * 0.773).sin() * 6.0)
            };
            (0..count).map(number).collect()
        };
        let (left, right) = (numbers(0.37, m * k), numbers(0.11, n * k));
        let matrix = Dense::new(&right, n, k);
        let terms = [Term {
            left: Left::plain(&left, m, k),
            right: Right::Transposed(&matrix),
        }];
        // The greatest distance from the product in f64, in units of the sum of all magnitudes.
        let distance = |product: &[f32]| {
            let mut greatest = 0f64;
            for (row, left) in left.chunks_exact(k).enumerate() {
                for (column, right) in right.chunks_exact(k).enumerate() {
                    let each = left
                        .iter()
                        .zip(right)
                        .map(|(x, y)| f64::from(*x) * f64::from(*y));
                    let (sum, size) =
                        each.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let found = f64::from(product[row * n + column]);
                    greatest = greatest.max((found - sum).abs() / size);
                }
            }
            greatest
        };
        for level in Level::available() {
            if level > Level::Portable && !f32::steps_are_faster(level) {
                continue;
            }
            let zeros = vec![0f32; m * n];
            let whole = distance(&added::<f32>(level, &terms, n, &zeros, false));
            let parts = distance(&added::<Steps<3>>(level, &terms, n, &zeros, false));
            assert!(
                parts < 2e-7 && parts < 2.0 * whole,
                "{level:?}: {parts:e} in parts, {whole:e} whole"
            );
        }
    }

    #[test]
    fn rounds_only_where_an_operand_allows_it() {
        let (m, n, k) = (40, 50, 70);
        let left: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let right: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
        let product = |level, rounded| {
            let right = Dense::new(&right, k, n).rounded(rounded);
            let left = Left::plain(&left, m, k);
            let right = Right::Plain(&right);
            let mut out = vec![0f32; m * n];
            gemm_at(level, &[Term { left, right }], n, &mut out, false);
            out
        };
        for level in Level::available() {
            let (plain, rounded) = (product(level, false), product(level, true));
            let largest = plain
                .iter()
                .zip(&rounded)
                .map(|(x, y)| (x - y).abs())
                .fold(0f32, f32::max);
            if f32::pairs_are_faster(level) {
                // Each factor is off by up to 2⁻⁹ of itself.
                assert!(
                    largest > 0.0 && f64::from(largest) < k as f64 / 256.0,
                    "{largest}"
                );
            } else {
                assert_eq!(largest, 0.0, "{level:?}");
            }
        }
    }

    #[test]
    fn rounding_beforehand_and_storing_in_bf16_change_no_bit() {
        for (m, n, k) in [
            (40, 50, 70),
            (21, 33, 31),
            (70, 2 * 64 + 7, DEPTH_BLOCK + 300),
        ] {
            let left: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let right: Vec<f32> = (0..k * n)
                .map(|i| half::bf16::from_f32((i as f32 * 0.11).cos()).to_f32())
                .collect();
            let product = |rounded: Option<&Rounded>, right: Right<f32>| {
                let left = Left::plain(&left, m, k).with(rounded);
                let mut out = vec![f32::NAN; m * n];
                gemm(&[Term { left, right }], n, &mut out, false);
                out
            };
            let rounded = Rounded::new(&left, k);
            let stored = |rows, columns| {
                let tensor = crate::host::tensor(right.clone(), (rows, columns));
                let tensor = tensor.and_then(|tensor| tensor.to_dtype(candle_core::DType::BF16));
                crate::Weight::Dense(tensor.expect("a tensor"))
            };
            let plain = Dense::new(&right, k, n).rounded(true);
            let turned = Dense::new(&right, n, k).rounded(true);
            let (as_plain, as_turned) = (
                product(None, Right::Plain(&plain)),
                product(None, Right::Transposed(&turned)),
            );
            let of_stored = |weight: &crate::Weight, transposed: bool| {
                let product = weight.with_rows::<f32, _>(|rows| {
                    let right = if transposed {
                        Right::Transposed(rows)
                    } else {
                        Right::Plain(rows)
                    };
                    Ok(product(rounded.as_ref(), right))
                });
                product.expect("a product")
            };
            assert!(as_plain == of_stored(&stored(k, n), false), "{m}×{n}×{k}");
            assert!(as_turned == of_stored(&stored(n, k), true), "{m}×{n}×{k}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn some_rows_of_a_matrix_are_multiplied_as_a_matrix_of_their_own(
            m in 1usize..60,
            rows in 1usize..150,
            columns in 1usize..90,
            cut in (0.0f64..1.0, 0.0f64..1.0),
            gap in 0usize..3,
        ) {
            let from = (cut.0.min(cut.1) * rows as f64) as usize;
            let to = (cut.0.max(cut.1) * rows as f64) as usize + 1;
            let count = to - from;
            let stride = columns + gap;
            let numbers: Vec<f32> = (0..rows * stride).map(|i| (i as f32 * 0.37).sin()).collect();
            let narrow = &numbers[..rows * columns];
            let narrow: Vec<bf16> = narrow.iter().map(|x| bf16::from_f32(*x)).collect();
            let own: Vec<f32> = numbers
                .chunks(stride)
                .take(to)
                .skip(from)
                .flat_map(|row| row[..columns].to_vec())
                .collect();
            let strided = Dense::strided(&numbers, rows, columns, stride);
            let alone = Dense::new(&own, count, columns);
            let stored = DenseBf16::new(&narrow, rows, columns);
            let stored_alone = DenseBf16::new(&narrow[from * columns..to * columns], count, columns);
            let cases: [(&dyn Rows<f32>, &dyn Rows<f32>); 3] = [
                (&strided, &alone),
                (&Hidden(&strided), &alone),
                (&stored, &stored_alone),
            ];
            let left: Vec<f32> = (0..m * columns.max(count)).map(|i| (i as f32 * 0.21).cos()).collect();
            let of = |right: Right<f32>| {
                let left = Left::plain(&left[..m * right.depth()], m, right.depth());
                product(&[Term { left, right }], right.columns())
            };
            for (matrix, alone) in cases {
                let part = RowRange::new(matrix, from..to);
                prop_assert!(of(Right::Transposed(&part)) == of(Right::Transposed(alone)));
                prop_assert!(of(Right::Plain(&part)) == of(Right::Plain(alone)));
            }
        }
    }

    /// A matrix that does not say that it lies row by row, so that it is packed.
    struct Hidden<'a, R>(&'a R);

    impl<T, R: Rows<T>> Rows<T> for Hidden<'_, R> {
        fn rows(&self) -> usize {
            self.0.rows()
        }

        fn columns(&self) -> usize {
            self.0.columns()
        }

        fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
            self.0.fill(row, columns, out);
        }

        fn rounded(&self) -> bool {
            self.0.rounded()
        }

        fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
            self.0.fill_bf16(row, columns, out);
        }
    }

    /// The terms of some left operands of `m` rows and as many matrices.
    fn terms<'a>(
        lefts: &'a [Vec<f32>; 3],
        matrices: [&'a dyn Rows<f32>; 3],
        m: usize,
        turned: bool,
    ) -> Vec<Term<'a, f32>> {
        let term = |(left, matrix): (&'a Vec<f32>, &'a dyn Rows<f32>)| Term {
            left: if turned {
                Left::transposed(left, matrix.rows(), m)
            } else {
                Left::plain(left, m, matrix.rows())
            },
            right: Right::Plain(matrix),
        };
        lefts.iter().zip(matrices).map(term).collect()
    }

    fn as_rows<R: Rows<f32>>(matrices: &[R; 3]) -> [&dyn Rows<f32>; 3] {
        matrices.each_ref().map(|matrix| matrix as _)
    }

    /// The product in the place of `before`, or added to it, of numbers held as `H`.
    fn added<H: Held<f32>>(
        level: Level,
        terms: &[Term<f32>],
        columns: usize,
        before: &[f32],
        accumulate: bool,
    ) -> Vec<f32> {
        let mut out = before.to_vec();
        // SAFETY: every place holds a number.
        #[expect(unsafe_code, reason = "the output holds numbers")]
        unsafe {
            blocks::multiply::<f32, H>(level, terms, columns, kernel::places(&mut out), accumulate);
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn a_right_operand_that_lies_gives_the_sums_of_a_packed_one(
            m in 1usize..=blocks::LYING_ROWS,
            n in 1usize..150,
            k in 1usize..70,
            r in 0usize..20,
            turned in any::<bool>(),
            accumulate in any::<bool>(),
        ) {
            let numbers = |from: usize, count: usize| -> Vec<f32> {
                (from..from + count).map(|i| (i as f32 * 0.37).sin()).collect()
            };
            let depths = [k, r, 2 * DEPTH_BLOCK + 5];
            let lefts = depths.map(|depth| numbers(depth, m * depth));
            let rights = depths.map(|depth| numbers(7 + depth, depth * n));
            let narrow = rights.each_ref().map(|right| {
                right.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>()
            });
            let before = numbers(1, m * n);
            for level in Level::available() {
                let plain: [_; 3] = std::array::from_fn(|i| Dense::new(&rights[i], depths[i], n));
                let stored: [_; 3] = std::array::from_fn(|i| DenseBf16::new(&narrow[i], depths[i], n));
                let (hidden, hidden_stored) = (plain.each_ref().map(Hidden), stored.each_ref().map(Hidden));
                let of = |matrices| terms(&lefts, matrices, m, turned);
                let (lying, packed) = (of(as_rows(&plain)), of(as_rows(&hidden)));
                prop_assert!(
                    added::<f32>(level, &lying, n, &before, accumulate)
                        == added::<f32>(level, &packed, n, &before, accumulate),
                    "{:?}", level
                );
                if level > Level::Portable && !f32::pairs_are_faster(level) {
                    continue;
                }
                let (lying, packed) = (of(as_rows(&stored)), of(as_rows(&hidden_stored)));
                prop_assert!(
                    added::<Pair>(level, &lying, n, &before, accumulate)
                        == added::<Pair>(level, &packed, n, &before, accumulate),
                    "{:?} pairs", level
                );
            }
        }
    }

    #[test]
    fn same_bits_on_any_number_of_threads() {
        let (m, n, k) = (200, 170, 900);
        let left: Vec<f32> = numbers::<f32>(1, m * k).iter().map(|x| x * 0.37).collect();
        let right: Vec<f32> = numbers::<f32>(2, k * n).iter().map(|x| x * 0.11).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a pool");
            pool.install(|| {
                let right = Dense::new(&right, n, k);
                let term = Term {
                    left: Left::plain(&left, m, k),
                    right: Right::Transposed(&right),
                };
                let mut out = vec![0f32; m * n];
                gemm(&[term], n, &mut out, false);
                out
            })
        };
        assert!(run(1) == run(2) && run(1) == run(3));
    }
}
