//! The microkernels: one tile of output, a few rows by a few vectors, held in registers.
//!
//! [`Kernel::multiply`] adds `left · right` to a tile, where `left` is read row by row from where it
//! lies and `right` is a packed panel. Numbers are held as they are, or rounded to bf16, two to a
//! [`Pair`], which [`Kernel::multiply_pairs`] multiplies at once and sums unrounded. Where few rows of `left`
//! would not repay the packing, `right` is read from where it lies too ([`Lying`]). The portable
//! versions are the meaning; the vector versions are tested against them by the property test of the
//! driver.

#[cfg(target_arch = "x86_64")]
mod amx;

use std::mem::MaybeUninit;

use half::bf16;

use crate::cpu::Level;
use crate::host::Element;

/// Rows and columns of the tile a microkernel computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Greatest number of rows.
    pub rows: usize,
    /// Number of columns, which is also the width of a packed panel.
    pub columns: usize,
}

/// The operands of one call of a microkernel, whose numbers are held as `H`.
#[derive(Clone, Copy)]
pub struct Product<'a, H> {
    /// What [`Kernel::tile`] says.
    pub tile: Tile,
    /// Rows of the tile that are computed.
    pub rows: usize,
    /// Length of the sums, in `H`.
    pub depth: usize,
    /// Row `r` is `left[r * left_stride..][..depth]`.
    pub left: &'a [H],
    /// Distance of two rows of `left`.
    pub left_stride: usize,
    /// Packed panel, `right[d * columns + column]`.
    pub right: &'a [H],
}

/// Rows of the left operand of one of several products that are summed, whose numbers are held as `H`.
#[derive(Clone, Copy)]
pub struct Piece<'a, H> {
    /// Row `r` is `left[r * stride..][..depth]`.
    pub left: &'a [H],
    /// Distance of two rows.
    pub stride: usize,
    /// Length of the sums, in `H`.
    pub depth: usize,
}

/// The right operand of a tile as it is stored, row by row.
#[derive(Clone, Copy)]
pub struct Lying<'a, H> {
    /// Row `d` is `rows[d * stride..]`, of which the tile takes as many numbers as it has columns.
    pub rows: &'a [H],
    /// Distance of two rows, in `H`.
    pub stride: usize,
    /// Number of rows; an odd last one is paired with 0.
    pub count: usize,
}

/// Where a tile goes.
pub struct Target<'a, T> {
    /// Row `r` is `out[r * stride..][..columns]`, every place of which is written.
    out: &'a mut [MaybeUninit<T>],
    /// Distance of two rows.
    stride: usize,
    /// Whether the tile is added to what is there, which then must be numbers.
    add: bool,
}

impl<'a, T> Target<'a, T> {
    /// Rows `stride` apart, from the first place of `out` on; the tile is added to them if `add`.
    ///
    /// # Safety
    /// If it is, every place holds a number.
    #[expect(unsafe_code, reason = "a promise of the caller")]
    pub(super) unsafe fn new(out: &'a mut [MaybeUninit<T>], stride: usize, add: bool) -> Self {
        Self { out, stride, add }
    }

    /// The same place, for one of several tiles that are summed there.
    pub(super) fn again(&mut self, add: bool) -> Target<'_, T> {
        Target {
            out: &mut *self.out,
            stride: self.stride,
            add,
        }
    }

    /// Whether the tile is added to what is there.
    pub(super) fn adds(&self) -> bool {
        self.add
    }

    /// The same of numbers, to which a tile may always be added.
    pub fn of_numbers(out: &'a mut [T], stride: usize, add: bool) -> Self {
        let out = places(out);
        Self { out, stride, add }
    }
}

/// Numbers as places of numbers; what writes to them writes nothing else.
#[expect(unsafe_code, reason = "the same numbers under another name")]
pub(super) fn places<T>(numbers: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: a place that holds a number lies in memory as the number does. Those who get the places are the products
    // of this module, which write sums to them and take none away.
    unsafe { &mut *(std::ptr::from_mut(numbers) as *mut [MaybeUninit<T>]) }
}

/// Two numbers that follow each other in depth, each rounded to bf16, as they would lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pair(pub(crate) u32);

/// Place of the bits of a pair's first number.
const FIRST: u32 = if cfg!(target_endian = "little") {
    0
} else {
    16
};
/// Place of the bits of its second number.
const SECOND: u32 = 16 - FIRST;

impl Pair {
    /// The pair of two numbers of bf16.
    #[inline(always)]
    pub(crate) fn of_bits(first: u16, second: u16) -> Self {
        Self(u32::from(first) << FIRST | u32::from(second) << SECOND)
    }

    /// The first and the second number, as f32.
    #[inline(always)]
    fn numbers(self) -> (f32, f32) {
        let number = |place| f32::from_bits((self.0 >> place & 0xFFFF) << 16);
        (number(FIRST), number(SECOND))
    }

    /// Numbers as pairs of those that follow each other, where they lie at the address of a pair and are
    /// even in number.
    #[expect(unsafe_code, reason = "the same bytes, read two numbers at a time")]
    pub(super) fn of_numbers(numbers: &[bf16]) -> Option<&[Self]> {
        // SAFETY: a pair is the bits of two numbers as they lie in memory, and any bits are a pair.
        let (before, pairs, after) = unsafe { numbers.align_to::<Self>() };
        (before.is_empty() && after.is_empty()).then_some(pairs)
    }

    /// [`Pair::of_numbers`], to be written.
    #[expect(unsafe_code, reason = "the same bytes, written two numbers at a time")]
    pub(super) fn of_numbers_mut(numbers: &mut [bf16]) -> Option<&mut [Self]> {
        // SAFETY: as above; a pair is any two numbers.
        let (before, pairs, after) = unsafe { numbers.align_to_mut::<Self>() };
        (before.is_empty() && after.is_empty()).then_some(pairs)
    }

    /// The numbers of pairs, to be written.
    #[expect(unsafe_code, reason = "the same bytes, written one number at a time")]
    pub(super) fn numbers_mut(pairs: &mut [Self]) -> &mut [bf16] {
        // SAFETY: as above; any two numbers are a pair.
        let (before, numbers, after) = unsafe { pairs.align_to_mut::<bf16>() };
        debug_assert!(before.is_empty() && after.is_empty());
        numbers
    }
}

/// Pairs of a part of [`Steps`].
pub(super) const PAIRS: usize = 16;

/// Numbers that follow each other in depth, 32 of them, as many as the registers of AMX take in a step: pairs of numbers of
/// bf16, which are rounded, or of three `PARTS` whose sum is the number.
///
/// A row of a left operand is one after the other. Of a panel, the first `columns` of them are a depth of 32: for each part
/// 16 rows of pairs, `[pair · columns + column]`; then come the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Steps<const PARTS: usize>([[Pair; PAIRS]; PARTS]);

impl<const PARTS: usize> Default for Steps<PARTS> {
    fn default() -> Self {
        Self([[Pair::default(); PAIRS]; PARTS])
    }
}

impl<const PARTS: usize> Steps<PARTS> {
    /// Which part of the left operand is multiplied with which of the right one, the smallest products first. Of three
    /// parts, the products that are left out are together less than 2⁻²³ of the whole.
    const PRODUCTS: &[(usize, usize)] = match PARTS {
        1 => &[(0, 0)],
        3 => &[(2, 0), (1, 0), (0, 0), (0, 2), (0, 1), (1, 1)],
        _ => panic!("numbers are whole or in three parts"),
    };

    /// All pairs, part by part.
    #[expect(unsafe_code, reason = "the same bytes, read a pair at a time")]
    pub(super) fn pairs(steps: &[Self]) -> &[Pair] {
        // SAFETY: it is made of pairs alone, without a gap.
        let (before, pairs, after) = unsafe { steps.align_to::<Pair>() };
        debug_assert!(before.is_empty() && after.is_empty());
        pairs
    }

    /// [`Steps::pairs`], to be written.
    #[expect(unsafe_code, reason = "the same bytes, written a pair at a time")]
    pub(super) fn pairs_mut(steps: &mut [Self]) -> &mut [Pair] {
        // SAFETY: as above; any pairs are such numbers.
        let (before, pairs, after) = unsafe { steps.align_to_mut::<Pair>() };
        debug_assert!(before.is_empty() && after.is_empty());
        pairs
    }
}

impl Steps<1> {
    /// Pairs as numbers of one part, where they begin at a line of the cache and are as many as a multiple of 16.
    #[expect(unsafe_code, reason = "the same bytes, read 16 pairs at a time")]
    pub(super) fn of_pairs(pairs: &[Pair]) -> Option<&[Self]> {
        // SAFETY: any pairs are such numbers.
        let (before, steps, after) = unsafe { pairs.align_to::<Self>() };
        (before.is_empty() && after.is_empty()).then_some(steps)
    }
}

/// Held by a task while it multiplies: what its products need of the processor besides instructions is given back when it
/// is dropped.
pub(crate) struct Multiplying(Level);

impl Multiplying {
    pub(crate) fn at(level: Level) -> Self {
        Self(level)
    }
}

impl Drop for Multiplying {
    #[cfg_attr(
        target_arch = "x86_64",
        expect(unsafe_code, reason = "an instruction that only some processors have")
    )]
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Level::AmxBf16 {
            // SAFETY: the level is found only where the system lets this process use the registers.
            unsafe { amx::release() };
        }
        let _ = self.0;
    }
}

/// An element type with microkernels.
pub trait Kernel: Element {
    /// The tile of the microkernels at this level, for an output of so many columns.
    fn tile(level: Level, columns: usize) -> Tile;

    /// That of the microkernels of pairs, which is the same where they are the same instructions.
    fn tile_of_pairs(level: Level, columns: usize) -> Tile {
        Self::tile(level, columns)
    }

    /// The sum of the products of several pieces of depth, of numbers in [`Steps`]; `right` is their depths of a panel,
    /// one after the other.
    fn multiply_steps<'a, const PARTS: usize>(
        level: Level,
        tile: Tile,
        rows: usize,
        pieces: impl Iterator<Item = Piece<'a, Steps<PARTS>>> + Clone,
        right: &[Steps<PARTS>],
        target: Target<Self>,
    ) {
        let _ = level;
        portable_steps(tile, rows, pieces, right, target);
    }

    /// Computes a tile.
    fn multiply(level: Level, product: &Product<Self>, target: Target<Self>);

    /// [`Kernel::multiply`] of pairs.
    fn multiply_pairs(level: Level, product: &Product<Pair>, target: Target<Self>);

    /// [`Kernel::multiply`], with the right operand as it lies; that of the product is not read.
    fn multiply_lying(
        level: Level,
        product: &Product<Self>,
        right: Lying<Self>,
        target: Target<Self>,
    );

    /// [`Kernel::multiply_pairs`], with the right operand as it lies: rows of numbers that follow each other, so that
    /// pairs are of one row and the next.
    fn multiply_lying_pairs(
        level: Level,
        product: &Product<Pair>,
        right: Lying<Pair>,
        target: Target<Self>,
    );

    /// Whether pairs are multiplied faster than plain numbers at this level.
    fn pairs_are_faster(level: Level) -> bool;

    /// Whether numbers in [`Steps`] are multiplied faster, rounded ones than pairs and those of three parts than plain ones.
    fn steps_are_faster(level: Level) -> bool {
        let _ = level;
        false
    }

    /// The inner product of two slices of equal length.
    fn dot(level: Level, x: &[Self], y: &[Self]) -> Self;
}

const PORTABLE: Tile = Tile {
    rows: 4,
    columns: 8,
};

impl Kernel for f64 {
    fn tile(_: Level, _: usize) -> Tile {
        PORTABLE
    }

    fn multiply(_: Level, product: &Product<Self>, target: Target<Self>) {
        portable(product, target);
    }

    fn multiply_pairs(_: Level, product: &Product<Pair>, target: Target<Self>) {
        portable_pairs(product, target);
    }

    fn multiply_lying(_: Level, product: &Product<Self>, right: Lying<Self>, target: Target<Self>) {
        portable_lying(product, right, target);
    }

    fn multiply_lying_pairs(
        _: Level,
        product: &Product<Pair>,
        right: Lying<Pair>,
        target: Target<Self>,
    ) {
        portable_lying_pairs(product, right, target);
    }

    fn pairs_are_faster(_: Level) -> bool {
        false
    }

    fn dot(_: Level, x: &[Self], y: &[Self]) -> Self {
        portable_dot(x, y)
    }
}

/// Asserts that a product and its target hold what a vector microkernel reads and writes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn check<H>(product: &Product<H>, target: &Target<f32>) {
    assert!(product.right.len() >= product.depth * product.tile.columns);
    check_left(product, target);
}

/// [`check`] without the right operand.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn check_left<H>(product: &Product<H>, target: &Target<f32>) {
    let Product {
        tile, rows, depth, ..
    } = *product;
    assert!((1..=tile.rows).contains(&rows));
    assert!(product.left.len() >= (rows - 1) * product.left_stride + depth);
    assert!(target.out.len() >= (rows - 1) * target.stride + tile.columns);
}

/// Asserts that a right operand that lies as it is stored holds the depth of a product, `together` rows to each of its
/// numbers, of so many `H` for the tile's columns.
fn check_lying<H>(product: &Product<H>, right: &Lying<H>, together: usize, width: usize) {
    assert_eq!(right.count.div_ceil(together), product.depth);
    assert!(
        right.count == 0 || right.rows.len() >= (right.count - 1) * right.stride + width,
        "the rows are shorter than a tile"
    );
}

impl Kernel for f32 {
    fn tile(level: Level, columns: usize) -> Tile {
        let _ = columns;
        match level {
            Level::Portable => PORTABLE,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Tile {
                rows: 6,
                columns: 16,
            },
            // A low-rank branch fills one vector, or three; of two or four, one would be empty.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16 if matches!(columns, 0..=16 | 33..=48) => {
                Tile {
                    rows: 16,
                    columns: 16,
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16 => Tile {
                rows: 12,
                columns: 32,
            },
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonBf16 => Tile {
                rows: 6,
                columns: 16,
            },
        }
    }

    fn tile_of_pairs(level: Level, columns: usize) -> Tile {
        let tile = Self::tile(level, columns);
        #[cfg(target_arch = "x86_64")]
        if level == Level::AmxBf16 {
            return amx::tile(tile.columns);
        }
        tile
    }

    #[expect(unsafe_code, reason = "the vector microkernels")]
    fn multiply(level: Level, product: &Product<Self>, target: Target<Self>) {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        {
            if level != Level::Portable {
                check(product, &target);
            }
            // SAFETY: the processor has the instructions of `level` (the driver checked it against
            // `Level::detect`), and the assertions above bound every access of the microkernels, which
            // compute the tile that `Self::tile` names.
            unsafe {
                match (level, product.tile.columns) {
                    (Level::Portable, _) => {}
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx2, 16) => return avx2::multiply(product, target),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16, 16) => {
                        return avx512_narrow::multiply(product, target);
                    }
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16, 32) => {
                        return avx512::multiply(product, target);
                    }
                    #[cfg(target_arch = "aarch64")]
                    (Level::Neon | Level::NeonBf16, 16) => return neon::multiply(product, target),
                    (_, columns) => unreachable!("there is no tile of {columns} columns"),
                }
            }
        }
        let _ = level;
        portable(product, target);
    }

    #[expect(unsafe_code, reason = "the vector microkernels")]
    fn multiply_pairs(level: Level, product: &Product<Pair>, target: Target<Self>) {
        #[cfg(target_arch = "x86_64")]
        if level == Level::AmxBf16 {
            let mut target = target;
            check(product, &target);
            // SAFETY: as above; the level is found only where the system lets this process use the registers.
            return unsafe { amx::multiply(product, &mut target) };
        }
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512Bf16 {
            check(product, &target);
            // SAFETY: as above.
            unsafe {
                match product.tile.columns {
                    16 => return avx512_bf16_narrow::multiply(product, target),
                    32 => return avx512_bf16::multiply(product, target),
                    columns => unreachable!("there is no tile of {columns} columns"),
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if level == Level::NeonBf16 {
            check(product, &target);
            assert_eq!(product.tile.columns, 16);
            // SAFETY: as above.
            return unsafe { neon_bf16::multiply(product, target) };
        }
        let _ = level;
        assert_eq!(
            product.tile, PORTABLE,
            "{level:?} has no microkernel for pairs"
        );
        portable_pairs(product, target);
    }

    #[expect(unsafe_code, reason = "the vector microkernels")]
    fn multiply_lying(
        level: Level,
        product: &Product<Self>,
        right: Lying<Self>,
        target: Target<Self>,
    ) {
        check_lying(product, &right, 1, product.tile.columns);
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        {
            if level != Level::Portable {
                check_left(product, &target);
            }
            // SAFETY: as in `multiply`; the rows of `right` hold the tile's columns.
            unsafe {
                match (level, product.tile.columns) {
                    (Level::Portable, _) => {}
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx2, 16) => return avx2::multiply_lying(product, right, target),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16, 16) => {
                        return avx512_narrow::multiply_lying(product, right, target);
                    }
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16, 32) => {
                        return avx512::multiply_lying(product, right, target);
                    }
                    #[cfg(target_arch = "aarch64")]
                    (Level::Neon | Level::NeonBf16, 16) => {
                        return neon::multiply_lying(product, right, target);
                    }
                    (_, columns) => unreachable!("there is no tile of {columns} columns"),
                }
            }
        }
        let _ = level;
        portable_lying(product, right, target);
    }

    #[expect(unsafe_code, reason = "the vector microkernels")]
    fn multiply_lying_pairs(
        level: Level,
        product: &Product<Pair>,
        right: Lying<Pair>,
        target: Target<Self>,
    ) {
        check_lying(product, &right, 2, product.tile.columns / 2);
        #[cfg(target_arch = "x86_64")]
        if level == Level::AmxBf16 {
            check_left(product, &target);
            // SAFETY: as above.
            return unsafe { amx::multiply_lying(product, right, target) };
        }
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512Bf16 {
            check_left(product, &target);
            // SAFETY: as above.
            unsafe {
                match product.tile.columns {
                    16 => return avx512_bf16_narrow::multiply_lying(product, right, target),
                    32 => return avx512_bf16::multiply_lying(product, right, target),
                    columns => unreachable!("there is no tile of {columns} columns"),
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if level == Level::NeonBf16 {
            check_left(product, &target);
            assert_eq!(product.tile.columns, 16);
            // SAFETY: as above.
            return unsafe { neon_bf16::multiply_lying(product, right, target) };
        }
        let _ = level;
        assert_eq!(
            product.tile, PORTABLE,
            "{level:?} has no microkernel for pairs"
        );
        portable_lying_pairs(product, right, target);
    }

    fn pairs_are_faster(level: Level) -> bool {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 | Level::AmxBf16 => true,
            #[cfg(target_arch = "aarch64")]
            Level::NeonBf16 => true,
            _ => false,
        }
    }

    fn steps_are_faster(level: Level) -> bool {
        #[cfg(target_arch = "x86_64")]
        if level == Level::AmxBf16 {
            return true;
        }
        let _ = level;
        false
    }

    #[cfg_attr(
        target_arch = "x86_64",
        expect(unsafe_code, reason = "the vector microkernels")
    )]
    fn multiply_steps<'a, const PARTS: usize>(
        level: Level,
        tile: Tile,
        rows: usize,
        pieces: impl Iterator<Item = Piece<'a, Steps<PARTS>>> + Clone,
        right: &[Steps<PARTS>],
        target: Target<Self>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if level == Level::AmxBf16 {
            let mut target = target;
            assert!((1..=tile.rows).contains(&rows));
            assert!(target.out.len() >= (rows - 1) * target.stride + tile.columns);
            let mut depth = 0;
            for piece in pieces.clone() {
                assert!(piece.left.len() >= (rows - 1) * piece.stride + piece.depth);
                depth += piece.depth;
            }
            assert!(right.len() >= depth * tile.columns);
            // SAFETY: the level is found only where the system lets this process use the registers; the assertions bound
            // what is read and written.
            unsafe {
                amx::multiply_steps(tile.columns, rows, &pieces, right, &mut target);
            }
            return;
        }
        assert_eq!(tile, PORTABLE, "{level:?} has no microkernel for steps");
        portable_steps(tile, rows, pieces, right, target);
    }

    #[expect(unsafe_code, reason = "the vector inner product")]
    fn dot(level: Level, x: &[Self], y: &[Self]) -> Self {
        assert_eq!(x.len(), y.len());
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx2 {
            // SAFETY: the processor has AVX2 and FMA, and the lengths are equal.
            return unsafe { avx2::dot(x, y) };
        }
        #[cfg(target_arch = "aarch64")]
        if level >= Level::Neon {
            // SAFETY: the processor has Advanced SIMD, and the lengths are equal.
            return unsafe { neon::dot(x, y) };
        }
        let _ = level;
        portable_dot(x, y)
    }
}

fn portable<T: Element>(product: &Product<T>, target: Target<T>) {
    portable_tile(product, target, |d| packed(product, d), multiply_add);
}

fn portable_lying<T: Element>(product: &Product<T>, right: Lying<T>, target: Target<T>) {
    let row = |d| first_of(&right.rows[d * right.stride..]);
    portable_tile(product, target, row, multiply_add);
}

fn portable_pairs<T: Element>(product: &Product<Pair>, target: Target<T>) {
    portable_tile(product, target, |d| packed(product, d), multiply_add_pairs);
}

fn portable_steps<'a, T: Element, const PARTS: usize>(
    tile: Tile,
    rows: usize,
    pieces: impl Iterator<Item = Piece<'a, Steps<PARTS>>>,
    right: &[Steps<PARTS>],
    target: Target<T>,
) {
    let columns = tile.columns;
    let mut sums = vec![T::ZERO; rows * columns];
    let mut steps = right.chunks_exact(columns).map(Steps::pairs);
    for piece in pieces {
        for (d, right) in steps.by_ref().take(piece.depth).enumerate() {
            for (row, sums) in sums.chunks_exact_mut(columns).enumerate() {
                let Steps(left) = &piece.left[row * piece.stride + d];
                for &(of_left, of_right) in Steps::<PARTS>::PRODUCTS {
                    let right = right[of_right * PAIRS * columns..].chunks_exact(columns);
                    for (left, right) in left[of_left].iter().zip(right) {
                        for (sum, right) in sums.iter_mut().zip(right) {
                            multiply_add_pairs(sum, *left, *right);
                        }
                    }
                }
            }
        }
    }
    let Target { out, stride, add } = target;
    for (row, sums) in sums.chunks_exact(columns).enumerate() {
        for (place, sum) in out[row * stride..].iter_mut().zip(sums) {
            let before = if add {
                // SAFETY: places that are added to hold numbers.
                #[expect(unsafe_code, reason = "places hold numbers already")]
                unsafe {
                    place.assume_init()
                }
            } else {
                T::ZERO
            };
            place.write(before + *sum);
        }
    }
}

fn portable_lying_pairs<T: Element>(
    product: &Product<Pair>,
    right: Lying<Pair>,
    target: Target<T>,
) {
    let number = |row: usize, column: usize| {
        if row == right.count {
            return 0;
        }
        let Pair(bits) = right.rows[row * right.stride + column / 2];
        let place = if column.is_multiple_of(2) {
            FIRST
        } else {
            SECOND
        };
        (bits >> place & 0xFFFF) as u16
    };
    let row = |d: usize| {
        std::array::from_fn(|column| {
            Pair::of_bits(number(2 * d, column), number(2 * d + 1, column))
        })
    };
    portable_tile(product, target, row, multiply_add_pairs);
}

/// One depth of a packed panel.
#[inline(always)]
fn packed<H: Copy>(product: &Product<H>, d: usize) -> [H; PORTABLE.columns] {
    first_of(&product.right[d * PORTABLE.columns..])
}

#[inline(always)]
fn first_of<H: Copy>(row: &[H]) -> [H; PORTABLE.columns] {
    *row.first_chunk()
        .expect("a right operand has the columns of a tile")
}

fn multiply_add<T: Element>(sum: &mut T, left: T, right: T) {
    *sum += left * right;
}

/// The products of two bf16 numbers are exact in f32.
fn multiply_add_pairs<T: Element>(sum: &mut T, left: Pair, right: Pair) {
    let (left, right) = (left.numbers(), right.numbers());
    *sum += T::of(f64::from(left.1 * right.1));
    *sum += T::of(f64::from(left.0 * right.0));
}

#[expect(unsafe_code, reason = "reads the target where it is added to")]
#[inline(always)]
fn portable_tile<T: Element, H: Copy>(
    product: &Product<H>,
    Target { out, stride, add }: Target<T>,
    right: impl Fn(usize) -> [H; PORTABLE.columns],
    multiply_add: impl Fn(&mut T, H, H),
) {
    const COLUMNS: usize = PORTABLE.columns;
    for row in 0..product.rows {
        let left = &product.left[row * product.left_stride..][..product.depth];
        let mut sums = [T::ZERO; COLUMNS];
        for (d, value) in left.iter().enumerate() {
            for (sum, right) in sums.iter_mut().zip(right(d)) {
                multiply_add(sum, *value, right);
            }
        }
        for (out, sum) in out[row * stride..][..COLUMNS].iter_mut().zip(sums) {
            let before = if add {
                // SAFETY: the promise made with the target.
                unsafe { out.assume_init() }
            } else {
                T::ZERO
            };
            out.write(before + sum);
        }
    }
}

fn portable_dot<T: Element>(x: &[T], y: &[T]) -> T {
    let mut sums = [T::ZERO; 8];
    let (x8, y8) = (x.chunks_exact(8), y.chunks_exact(8));
    let mut sum = T::ZERO;
    for (x, y) in x8.remainder().iter().zip(y8.remainder()) {
        sum += *x * *y;
    }
    for (x, y) in x8.zip(y8) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += *x * *y;
        }
    }
    sum + sums.into_iter().sum()
}

/// The microkernels of one instruction set, for every number of rows up to that of the tile.
///
/// Every sum has a name of its own, so that the compiler keeps it in a register: each row is its
/// number and a name with the number of its vector for each vector of columns. `$load` and `$set1`
/// read numbers as they are held, `$fma` multiplies and adds them to sums of f32. `$lying` reads a vector of one
/// depth from a right operand that lies as it is stored: from its first number, the depth, the stride, the count of
/// rows, and the number of the vector.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! microkernels {
    (
        $held:ty, $features:literal, $lanes:literal, [$($vector:literal),*], [$load:expr, $set1:expr, $fma:expr],
        $lying:expr, $sums:tt, $rows:tt
    ) => {
        const WIDTH: usize = [$($vector),*].len() * $lanes;

        /// # Safety
        /// The processor has the features; `product` and `target` hold a tile of `product.rows` rows.
        #[expect(unsafe_code, reason = "vector instructions")]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn multiply(product: &Product<$held>, target: Target<f32>) {
            let (left, right) = (product.left.as_ptr(), product.right.as_ptr());
            let out = target.out.as_mut_ptr().cast::<f32>();
            let lengths = (product.left_stride, product.depth, target.stride);
            let (rows, add) = (product.rows, target.add);
            tiles!(
                (
                    $lanes,
                    [|d: usize| [$($load(right.add(d * WIDTH + $vector * $lanes))),*], $set1, $fma],
                    $sums, rows, left, out, lengths, add
                ),
                [],
                $rows
            );
            unreachable!("the tile has no {rows} rows");
        }

        /// # Safety
        /// As [`multiply`]; `right` holds the depth of the product and the columns of the tile.
        #[expect(unsafe_code, reason = "vector instructions")]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn multiply_lying(
            product: &Product<$held>,
            right: Lying<$held>,
            target: Target<f32>,
        ) {
            let left = product.left.as_ptr();
            let (first, stride, count) = (right.rows.as_ptr(), right.stride, right.count);
            let out = target.out.as_mut_ptr().cast::<f32>();
            let lengths = (product.left_stride, product.depth, target.stride);
            let (rows, add) = (product.rows, target.add);
            tiles!(
                (
                    $lanes,
                    [|d: usize| [$($lying(first, d, stride, count, $vector)),*], $set1, $fma],
                    $sums, rows, left, out, lengths, add
                ),
                [],
                $rows
            );
            unreachable!("the tile has no {rows} rows");
        }
    };
}

/// A [`tile`] of the first row, one of the first two, and so on.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! tiles {
    ($with:tt, [$($done:tt)*], []) => {};
    ($with:tt, [$($done:tt)*], [$count:literal $row:literal $sums:tt, $($rest:tt)*]) => {
        tile!($with, $count, [$($done)* $row $sums]);
        tiles!($with, [$($done)* $row $sums], [$($rest)*]);
    };
}

/// Returns with the tile of `$count` rows done, if `$rows` is that.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! tile {
    (
        (
            $lanes:literal, [$columns:expr, $set1:expr, $fma:expr],
            [$load_sum:ident, $store:ident, $zero:ident, $plus:ident],
            $rows:ident, $left:ident, $out:ident, $lengths:ident, $add:ident
        ),
        $count:literal,
        [$($row:literal [$($sum:ident $at:literal),*])*]
    ) => {
        if $rows == $count {
            let (step, depth, stride) = $lengths;
            $($(let mut $sum = $zero();)*)*
            for d in 0..depth {
                // SAFETY: the right operand holds `depth` times all vectors, each row of `left` `depth` numbers.
                unsafe {
                    let columns = $columns(d);
                    $(
                        let value = $set1($left.add($row * step + d));
                        $($sum = $fma($sum, value, columns[$at]);)*
                    )*
                }
            }
            // SAFETY: `out` holds the rows of all vectors, `stride` apart.
            unsafe {
                $($(
                    let to = $out.add($row * stride + $at * $lanes);
                    if $add {
                        $sum = $plus($sum, $load_sum(to));
                    }
                    $store(to, $sum);
                )*)*
            }
            return;
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Lying, Product, Target};

    microkernels!(
        f32,
        "avx2,fma",
        8,
        [0, 1],
        [
            |at: *const f32| _mm256_loadu_ps(at),
            |at: *const f32| _mm256_set1_ps(*at),
            |sum, left, right| _mm256_fmadd_ps(left, right, sum)
        ],
        |first: *const f32, d, stride, _, vector: usize| _mm256_loadu_ps(first.add(d * stride + 8 * vector)),
        [_mm256_loadu_ps, _mm256_storeu_ps, _mm256_setzero_ps, _mm256_add_ps],
        [1 0 [a0 0, b0 1], 2 1 [a1 0, b1 1], 3 2 [a2 0, b2 1], 4 3 [a3 0, b3 1], 5 4 [a4 0, b4 1], 6 5 [a5 0, b5 1],]
    );

    /// # Safety
    /// The processor has AVX2 and FMA; `x` and `y` are equally long.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut sums = [_mm256_setzero_ps(); 4];
        let (x32, y32) = (x.chunks_exact(32), y.chunks_exact(32));
        let mut rest = 0.0;
        for (x, y) in x32.remainder().iter().zip(y32.remainder()) {
            rest = f32::mul_add(*x, *y, rest);
        }
        for (x, y) in x32.zip(y32) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunks hold 32 numbers, `i` is below 4.
                unsafe {
                    let x = _mm256_loadu_ps(x.as_ptr().add(8 * i));
                    let y = _mm256_loadu_ps(y.as_ptr().add(8 * i));
                    *sum = _mm256_fmadd_ps(x, y, *sum);
                }
            }
        }
        let sum = _mm256_add_ps(
            _mm256_add_ps(sums[0], sums[1]),
            _mm256_add_ps(sums[2], sums[3]),
        );
        let mut lanes = [0f32; 8];
        // SAFETY: `lanes` holds eight numbers.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        rest + lanes.iter().sum::<f32>()
    }
}

/// The microkernels of 512-bit vectors, of plain numbers and of pairs, for one tile.
#[cfg(target_arch = "x86_64")]
macro_rules! microkernels_512 {
    ($plain:ident, $pairs:ident, $vectors:tt, $interleaved:ident, $rows:tt) => {
        mod $plain {
            use std::arch::x86_64::*;

            use super::{Lying, Product, Target, ahead};

            microkernels!(
                f32,
                "avx512f",
                16,
                $vectors,
                [
                    |at: *const f32| _mm512_loadu_ps(at),
                    |at: *const f32| _mm512_set1_ps(*at),
                    |sum, left, right| _mm512_fmadd_ps(left, right, sum)
                ],
                |first: *const f32, d, stride, _, vector: usize| {
                    let at = first.add(d * stride + 16 * vector);
                    ahead(at, stride);
                    _mm512_loadu_ps(at)
                },
                [
                    _mm512_loadu_ps,
                    _mm512_storeu_ps,
                    _mm512_setzero_ps,
                    _mm512_add_ps
                ],
                $rows
            );
        }

        mod $pairs {
            use std::arch::x86_64::*;

            use super::{Lying, Pair, Product, Target, lying_512};

            microkernels!(
                Pair,
                "avx512f,avx512bw,avx512bf16",
                16,
                $vectors,
                // The same bits, named as bf16 numbers.
                [
                    |at: *const Pair| {
                        std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast()))
                    },
                    |at: *const Pair| {
                        let pair = _mm512_set1_epi32((*at).0.cast_signed());
                        std::mem::transmute::<__m512i, __m512bh>(pair)
                    },
                    |sum, left, right| _mm512_dpbf16_ps(sum, left, right)
                ],
                |first: *const Pair, d, stride, count, vector| {
                    let one = first.add(2 * d * stride);
                    let next = (2 * d + 1 < count).then(|| one.add(stride));
                    let pairs = lying_512::$interleaved(one, next, vector);
                    std::mem::transmute::<__m512i, __m512bh>(pairs)
                },
                [
                    _mm512_loadu_ps,
                    _mm512_storeu_ps,
                    _mm512_setzero_ps,
                    _mm512_add_ps
                ],
                $rows
            );
        }
    };
}

/// Asks the cache for what is read some rows later; rows past the last are not read, and asking for them does no harm.
#[cfg(target_arch = "x86_64")]
#[inline]
fn ahead<H>(at: *const H, stride: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    /// With twelve rows of sums the time of as many steps is about that of a read from memory.
    const ROWS: usize = 24;
    // SAFETY: a hint, which reads nothing.
    #[expect(unsafe_code, reason = "an instruction")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ROWS * stride).cast());
    }
}

/// Pairs of two rows of bf16 that lie as they are stored.
#[cfg(target_arch = "x86_64")]
mod lying_512 {
    use std::arch::x86_64::*;
    use std::mem::MaybeUninit;

    use super::{Lying, Pair, ahead};

    /// Pairs in a vector.
    const LANES: usize = 16;

    /// For the vector number `vector` of pairs: place `2 i` is number `i` of the first row, `2 i + 1` of the second,
    /// which stands `apart` numbers behind.
    const fn places(vector: usize, apart: u16) -> [u16; 2 * LANES] {
        let mut places = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            let number = (vector * LANES + i) as u16;
            (places[2 * i], places[2 * i + 1]) = (number, apart + number);
            i += 1;
        }
        places
    }

    const OF_TWO: [[u16; 2 * LANES]; 2] = [places(0, 32), places(1, 32)];
    const OF_HALVES: [u16; 2 * LANES] = places(0, 16);

    /// The pairs of 16 of 32 columns, those of `vector`.
    ///
    /// # Safety
    /// The processor has AVX-512 BW; each row is 16 pairs of numbers.
    #[inline]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn of_32(
        one: *const Pair,
        next: Option<*const Pair>,
        vector: usize,
    ) -> __m512i {
        // SAFETY: the caller's promise; the places are as many bytes as a vector has.
        unsafe {
            let low = _mm512_loadu_si512(one.cast());
            let high = match next {
                Some(next) => {
                    if vector == 0 {
                        let stride = next.offset_from_unsigned(one);
                        ahead(one, 2 * stride);
                        ahead(next, 2 * stride);
                    }
                    _mm512_loadu_si512(next.cast())
                }
                None => _mm512_setzero_si512(),
            };
            let places = _mm512_loadu_si512(OF_TWO[vector].as_ptr().cast());
            _mm512_permutex2var_epi16(low, places, high)
        }
    }

    /// Writes the pairs of depth `d`, as many columns as `out` has places.
    ///
    /// # Safety
    /// As [`of_32`] and [`of_16`].
    #[inline]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn row(right: &Lying<Pair>, d: usize, out: &mut [MaybeUninit<Pair>]) {
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "written as what lies at any address"
        )]
        let out_at = out.as_mut_ptr().cast::<__m512i>();
        // SAFETY: the caller's promise.
        unsafe {
            let one = right.rows.as_ptr().add(2 * d * right.stride);
            let next = (2 * d + 1 < right.count).then(|| one.add(right.stride));
            match out.len() {
                16 => _mm512_storeu_si512(out_at, of_16(one, next, 0)),
                32 => {
                    _mm512_storeu_si512(out_at, of_32(one, next, 0));
                    _mm512_storeu_si512(out_at.add(1), of_32(one, next, 1));
                }
                columns => unreachable!("there is no tile of {columns} columns"),
            }
        }
    }

    /// The pairs of 16 columns.
    ///
    /// # Safety
    /// As [`of_32`], of rows of 8 pairs of numbers.
    #[inline]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn of_16(one: *const Pair, next: Option<*const Pair>, _: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_loadu_si256(one.cast());
            let high = match next {
                Some(next) => _mm256_loadu_si256(next.cast()),
                None => _mm256_setzero_si256(),
            };
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            let places = _mm512_loadu_si512(OF_HALVES.as_ptr().cast());
            _mm512_permutexvar_epi16(places, both)
        }
    }
}

#[cfg(target_arch = "x86_64")]
microkernels_512!(avx512, avx512_bf16, [0, 1], of_32, [
    1 0 [a0 0, b0 1], 2 1 [a1 0, b1 1], 3 2 [a2 0, b2 1], 4 3 [a3 0, b3 1],
    5 4 [a4 0, b4 1], 6 5 [a5 0, b5 1], 7 6 [a6 0, b6 1], 8 7 [a7 0, b7 1],
    9 8 [a8 0, b8 1], 10 9 [a9 0, b9 1], 11 10 [a10 0, b10 1], 12 11 [a11 0, b11 1],
]);

#[cfg(target_arch = "x86_64")]
microkernels_512!(avx512_narrow, avx512_bf16_narrow, [0], of_16, [
    1 0 [a0 0], 2 1 [a1 0], 3 2 [a2 0], 4 3 [a3 0], 5 4 [a4 0], 6 5 [a5 0], 7 6 [a6 0], 8 7 [a7 0],
    9 8 [a8 0], 10 9 [a9 0], 11 10 [a10 0], 12 11 [a11 0], 13 12 [a12 0], 14 13 [a13 0], 15 14 [a14 0], 16 15 [a15 0],
]);

/// The microkernels of Advanced SIMD, of plain numbers and of pairs: six rows of four vectors leave eight of the 32
/// registers for the panel and the left operand.
#[cfg(target_arch = "aarch64")]
macro_rules! microkernels_neon {
    ($rows:tt) => {
        mod neon {
            use std::arch::aarch64::*;

            use super::{Lying, Product, Target};

            microkernels!(
                f32,
                "neon",
                4,
                [0, 1, 2, 3],
                [
                    |at: *const f32| vld1q_f32(at),
                    |at: *const f32| vld1q_dup_f32(at),
                    |sum, left, right| vfmaq_f32(sum, left, right)
                ],
                |first: *const f32, d, stride, _, vector: usize| vld1q_f32(first.add(d * stride + 4 * vector)),
                [vld1q_f32, vst1q_f32, zero, vaddq_f32],
                $rows
            );

            #[inline]
            #[target_feature(enable = "neon")]
            pub(super) fn zero() -> float32x4_t {
                vdupq_n_f32(0.0)
            }

            /// # Safety
            /// The processor has Advanced SIMD; `x` and `y` are equally long.
            #[expect(unsafe_code, reason = "vector instructions")]
            #[target_feature(enable = "neon")]
            pub(super) unsafe fn dot(x: &[f32], y: &[f32]) -> f32 {
                let mut sums = [zero(); 4];
                let (x16, x_rest) = x.as_chunks::<16>();
                let (y16, y_rest) = y.as_chunks::<16>();
                let mut rest = 0.0;
                for (x, y) in x_rest.iter().zip(y_rest) {
                    rest = f32::mul_add(*x, *y, rest);
                }
                for (x, y) in x16.iter().zip(y16) {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the chunks hold 16 numbers, `i` is below 4.
                        unsafe {
                            let x = vld1q_f32(x.as_ptr().add(4 * i));
                            let y = vld1q_f32(y.as_ptr().add(4 * i));
                            *sum = vfmaq_f32(*sum, x, y);
                        }
                    }
                }
                let [a, b, c, d] = sums;
                rest + vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
            }
        }

        mod neon_bf16 {
            use std::arch::aarch64::*;
            use std::arch::asm;

            use super::neon::zero;
            use super::{Lying, Pair, Product, Target};

            microkernels!(
                Pair,
                "neon,bf16",
                4,
                [0, 1, 2, 3],
                [
                    |at: *const Pair| vld1q_u32(at.cast()),
                    |at: *const Pair| vld1q_dup_u32(at.cast()),
                    |sum, left, right| multiply_add(sum, left, right)
                ],
                |first: *const Pair, d, stride, count, vector: usize| {
                    let one = first.add(2 * d * stride + 2 * vector);
                    let next = (2 * d + 1 < count).then(|| one.add(stride));
                    interleaved(one, next)
                },
                [vld1q_f32, vst1q_f32, zero, vaddq_f32],
                $rows
            );

            /// The pairs of four numbers of a row and of the next.
            ///
            /// # Safety
            /// Each row is two pairs of numbers.
            #[inline]
            #[expect(unsafe_code, reason = "vector instructions")]
            #[target_feature(enable = "neon,bf16")]
            unsafe fn interleaved(one: *const Pair, next: Option<*const Pair>) -> uint32x4_t {
                // SAFETY: the caller's promise.
                unsafe {
                    let low = vld1_u16(one.cast());
                    let high = next.map_or(vdup_n_u16(0), |next| vld1_u16(next.cast()));
                    vreinterpretq_u32_u16(vcombine_u16(vzip1_u16(low, high), vzip2_u16(low, high)))
                }
            }

            /// `sum + left · right` of the pairs of four places.
            #[inline]
            #[target_feature(enable = "neon,bf16")]
            fn multiply_add(
                mut sum: float32x4_t,
                left: uint32x4_t,
                right: uint32x4_t,
            ) -> float32x4_t {
                // SAFETY: an instruction of registers alone, which the processor has.
                #[expect(unsafe_code, reason = "an instruction without a name in the language")]
                unsafe {
                    asm!(
                        "bfdot {sum:v}.4s, {left:v}.8h, {right:v}.8h",
                        sum = inout(vreg) sum,
                        left = in(vreg) left,
                        right = in(vreg) right,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                sum
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
microkernels_neon!([
    1 0 [a0 0, b0 1, c0 2, d0 3], 2 1 [a1 0, b1 1, c1 2, d1 3], 3 2 [a2 0, b2 1, c2 2, d2 3], 4 3 [a3 0, b3 1, c3 2, d3 3], 5 4 [a4 0, b4 1, c4 2, d4 3], 6 5 [a5 0, b5 1, c5 2, d5 3],
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_the_numbers_that_follow_each_other() {
        let mut pairs = [Pair::default(); 3];
        for (i, number) in Pair::numbers_mut(&mut pairs).iter_mut().enumerate() {
            *number = bf16::from_f32(i as f32);
        }
        assert_eq!(
            pairs.map(Pair::numbers),
            [(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)]
        );
        let one = |number| bf16::from_f32(number).to_bits();
        assert_eq!(pairs[1], Pair::of_bits(one(2.0), one(3.0)));
        let read_again = pairs;
        let numbers = Pair::numbers_mut(&mut pairs);
        assert_eq!(Pair::of_numbers(numbers), Some(&read_again[..]));
        assert_eq!(
            Pair::of_numbers(&numbers[1..5]),
            None,
            "not at a pair's address"
        );
        assert_eq!(Pair::of_numbers(&numbers[..5]), None, "an odd number");
    }
}
