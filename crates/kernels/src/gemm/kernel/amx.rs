//! The microkernels of pairs on Intel's Advanced Matrix Extensions: registers of 16 rows of 64 bytes, and an instruction
//! that multiplies two of them.
//!
//! A step takes 16 pairs of depth: up to two registers of rows of the left operand, 16 pairs each, meet up to two of the
//! panel, 16 depths of 16 columns, and are added to up to four registers of sums. The panel's layout, pairs of depth in
//! 32 bits, is what the instruction wants. Sums are f32; a step's own sums are formed first and then added, numbers below
//! the normal range count as 0 (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS).
//!
//! The instructions have no stable names in the language, so they are written as such. The compiler itself never uses
//! these registers: what one block of instructions leaves in them, the next finds.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
use std::cell::Cell;
use std::mem::MaybeUninit;

use super::{Lying, Pair, Piece, Product, Steps, Target, Tile, lying_512};

/// Rows of a register.
const ROWS: usize = 16;
/// Pairs of a row of a register: the depth of a step, and the columns of a register of sums.
const LANES: usize = 16;
/// Bytes of a row of a register.
const ROW_BYTES: usize = 64;
/// Rows of two registers.
const TWO: usize = 2 * ROWS;
/// Greatest depth, in pairs, of a right operand that is put together in pairs at a time: 16 KiB, a third of the first
/// cache.
const PUT_TOGETHER: usize = 128;

/// Steps of numbers of one part after which the next rows are taken, about: so much of a panel, 18 KiB, is in the first
/// cache for all rows.
const RUN: usize = 9;

/// The tile of this microkernel: it takes many rows in one call, since to configure the registers takes as long as a few
/// steps; 128 rows of a block of depth stay in the second cache.
pub(super) const fn tile(columns: usize) -> Tile {
    Tile { rows: 128, columns }
}

/// Up to 32 rows of a left operand and a panel, by address.
#[derive(Clone, Copy)]
struct Operands {
    left: *const Pair,
    /// In bytes.
    left_stride: usize,
    right: *const Pair,
    /// At least one.
    steps: usize,
}

/// The sums of up to 32 rows, by address.
#[derive(Clone, Copy)]
struct Sums {
    out: *mut f32,
    /// In bytes.
    stride: usize,
    /// Whether it is added to what is there.
    add: bool,
}

impl Sums {
    /// Asks the cache for the lines of the sums, to be written: by the time they are stored, they are there.
    fn ask_for(&self, rows: usize, columns: usize) {
        for row in 0..rows {
            let row = self.out.wrapping_byte_add(row * self.stride);
            for column in (0..columns).step_by(LANES) {
                // SAFETY: a hint, which reads nothing.
                #[expect(unsafe_code, reason = "an instruction")]
                unsafe {
                    _mm_prefetch::<_MM_HINT_ET0>(row.wrapping_add(column).cast());
                }
            }
        }
    }
}

/// What is done with the registers of a tile of one shape: all of it promises that they are configured for the rows, and
/// that operands and sums are there.
struct Shape {
    /// Loads the sums, or sets them to zero.
    begin: unsafe fn(Sums),
    /// Adds steps of numbers held whole.
    one: unsafe fn(Operands),
    /// Adds steps of numbers held in three parts.
    three: unsafe fn(Operands),
    /// Stores the sums.
    end: unsafe fn(Sums),
}

// Registers 0 and 1 are the sums of the upper rows, 2 and 3 those of the lower; 4 and 5 upper and lower rows of the left
// operand, 6 and 7 columns of the right one.

/// Clears the sums of both rows of registers or the upper alone, in two columns of them or one; loads them, or stores
/// them.
macro_rules! sums {
    (clear both two) => {
        "tilezero tmm0
        tilezero tmm1
        tilezero tmm2
        tilezero tmm3"
    };
    (clear upper two) => {
        "tilezero tmm0
        tilezero tmm1"
    };
    (clear both one) => {
        "tilezero tmm0
        tilezero tmm2"
    };
    (clear upper one) => {
        "tilezero tmm0"
    };
    (load both two) => {
        "tileloadd tmm0, [{upper} + {row}]
        tileloadd tmm1, [{upper} + {row} + 64]
        tileloadd tmm2, [{lower} + {row}]
        tileloadd tmm3, [{lower} + {row} + 64]"
    };
    (load upper two) => {
        "tileloadd tmm0, [{upper} + {row}]
        tileloadd tmm1, [{upper} + {row} + 64]
        /* {lower} */"
    };
    (load both one) => {
        "tileloadd tmm0, [{upper} + {row}]
        tileloadd tmm2, [{lower} + {row}]"
    };
    (load upper one) => {
        "tileloadd tmm0, [{upper} + {row}]
        /* {lower} */"
    };
    (store both two) => {
        "tilestored [{upper} + {row}], tmm0
        tilestored [{upper} + {row} + 64], tmm1
        tilestored [{lower} + {row}], tmm2
        tilestored [{lower} + {row} + 64], tmm3"
    };
    (store upper two) => {
        "tilestored [{upper} + {row}], tmm0
        tilestored [{upper} + {row} + 64], tmm1
        /* {lower} */"
    };
    (store both one) => {
        "tilestored [{upper} + {row}], tmm0
        tilestored [{lower} + {row}], tmm2"
    };
    (store upper one) => {
        "tilestored [{upper} + {row}], tmm0
        /* {lower} */"
    };
}

/// Loads the part of the left operand at a distance in bytes.
macro_rules! left {
    (both, $at:literal) => {
        concat!(
            "tileloadd tmm4, [{left} + {left_row} + ",
            $at,
            "]\n",
            "tileloadd tmm5, [{lower} + {left_row} + ",
            $at,
            "]"
        )
    };
    (upper, $at:literal) => {
        concat!("tileloadd tmm4, [{left} + {left_row} + ", $at, "]")
    };
}

/// Loads the named part of the panel.
macro_rules! right {
    (two, $part:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {right_row} + {",
            $part,
            "}]\n",
            "tileloadd tmm7, [{right} + {right_row} + {",
            $part,
            "} + 64]"
        )
    };
    (one, $part:literal) => {
        concat!("tileloadd tmm6, [{right} + {right_row} + {", $part, "}]")
    };
}

/// Asks the nearest cache for a sixth of the panel's next step, whose first bytes are the named ones: a panel of numbers in
/// parts does not stay there while all rows pass by.
macro_rules! ask {
    (two, $ahead:literal) => {
        concat!(
            ".irp at, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960\n",
            "prefetcht0 [{right} + {", $ahead, "} + \\at]\n",
            ".endr"
        )
    };
    (one, $ahead:literal) => {
        concat!(
            ".irp at, 0, 64, 128, 192, 256, 320, 384, 448\n",
            "prefetcht0 [{right} + {", $ahead, "} + \\at]\n",
            ".endr"
        )
    };
}

/// Multiplies what has been loaded.
macro_rules! multiply {
    (both, two) => {
        "tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm1, tmm4, tmm7
        tdpbf16ps tmm2, tmm5, tmm6
        tdpbf16ps tmm3, tmm5, tmm7"
    };
    (upper, two) => {
        "tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm1, tmm4, tmm7"
    };
    (both, one) => {
        "tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm2, tmm5, tmm6"
    };
    (upper, one) => {
        "tdpbf16ps tmm0, tmm4, tmm6"
    };
}

/// A [`Shape`] of both rows of registers or the upper alone, and of two columns of them or one.
macro_rules! shape {
    ($rows:ident, $columns:ident, $width:literal) => {{
        /// Bytes of a part of a step of the panel.
        const PART: usize = LANES * $width * size_of::<Pair>();

        #[expect(unsafe_code, reason = "instructions without a name in the language")]
        unsafe fn begin(sums: Sums) {
            if !sums.add {
                // SAFETY: changes registers that nothing else uses.
                unsafe {
                    asm!(sums!(clear $rows $columns), options(nostack, nomem, preserves_flags));
                }
                return;
            }
            // SAFETY: reads what the caller promises to be there, into registers that nothing else uses.
            unsafe {
                asm!(
                    sums!(load $rows $columns),
                    upper = in(reg) sums.out,
                    lower = in(reg) sums.out.wrapping_byte_add(ROWS * sums.stride),
                    row = in(reg) sums.stride,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }

        #[expect(unsafe_code, reason = "instructions without a name in the language")]
        unsafe fn end(sums: Sums) {
            // SAFETY: writes where the caller promises that there is room.
            unsafe {
                asm!(
                    sums!(store $rows $columns),
                    upper = in(reg) sums.out,
                    lower = in(reg) sums.out.wrapping_byte_add(ROWS * sums.stride),
                    row = in(reg) sums.stride,
                    options(nostack, preserves_flags),
                );
            }
        }

        #[expect(unsafe_code, reason = "instructions without a name in the language")]
        unsafe fn one(operands: Operands) {
            // SAFETY: reads what the caller promises to be there, into registers that nothing else uses.
            unsafe {
                asm!(
                    "2:",
                    right!($columns, "whole"),
                    left!($rows, "0"),
                    multiply!($rows, $columns),
                    "add {left}, 64",
                    "add {lower}, 64",
                    "add {right}, {step}",
                    "dec {steps}",
                    "jnz 2b",
                    left = inout(reg) operands.left => _,
                    lower = inout(reg) operands.left.wrapping_byte_add(ROWS * operands.left_stride) => _,
                    left_row = in(reg) operands.left_stride,
                    right = inout(reg) operands.right => _,
                    right_row = in(reg) $width * size_of::<Pair>(),
                    steps = inout(reg) operands.steps => _,
                    whole = const 0,
                    step = const PART,
                    options(nostack, readonly),
                );
            }
        }

        // Small products first. Parts that were loaded for one product serve the next where they can.
        #[expect(unsafe_code, reason = "instructions without a name in the language")]
        unsafe fn three(operands: Operands) {
            // SAFETY: reads what the caller promises to be there, into registers that nothing else uses.
            unsafe {
                asm!(
                    "2:",
                    right!($columns, "high"),
                    left!($rows, "128"),
                    multiply!($rows, $columns),
                    ask!($columns, "first"),
                    left!($rows, "64"),
                    multiply!($rows, $columns),
                    ask!($columns, "second"),
                    left!($rows, "0"),
                    multiply!($rows, $columns),
                    ask!($columns, "third"),
                    right!($columns, "low"),
                    multiply!($rows, $columns),
                    ask!($columns, "fourth"),
                    right!($columns, "middle"),
                    multiply!($rows, $columns),
                    ask!($columns, "fifth"),
                    left!($rows, "64"),
                    multiply!($rows, $columns),
                    ask!($columns, "sixth"),
                    "add {left}, 192",
                    "add {lower}, 192",
                    "add {right}, {step}",
                    "dec {steps}",
                    "jnz 2b",
                    left = inout(reg) operands.left => _,
                    lower = inout(reg) operands.left.wrapping_byte_add(ROWS * operands.left_stride) => _,
                    left_row = in(reg) operands.left_stride,
                    right = inout(reg) operands.right => _,
                    right_row = in(reg) $width * size_of::<Pair>(),
                    steps = inout(reg) operands.steps => _,
                    high = const 0,
                    middle = const PART,
                    low = const 2 * PART,
                    first = const 3 * PART,
                    second = const 3 * PART + PART / 2,
                    third = const 3 * PART + 2 * PART / 2,
                    fourth = const 3 * PART + 3 * PART / 2,
                    fifth = const 3 * PART + 4 * PART / 2,
                    sixth = const 3 * PART + 5 * PART / 2,
                    step = const 3 * PART,
                    options(nostack, readonly),
                );
            }
        }

        Shape { begin, one, three, end }
    }};
}

impl Shape {
    /// That of up to 32 rows, of a tile of so many columns.
    fn of(rows: usize, columns: usize) -> &'static Self {
        const TWO_BY_TWO: &Shape = &shape!(both, two, 32);
        const ONE_BY_TWO: &Shape = &shape!(upper, two, 32);
        const TWO_BY_ONE: &Shape = &shape!(both, one, 16);
        const ONE_BY_ONE: &Shape = &shape!(upper, one, 16);
        match (rows > ROWS, columns) {
            (true, 32) => TWO_BY_TWO,
            (false, 32) => ONE_BY_TWO,
            (true, 16) => TWO_BY_ONE,
            (false, 16) => ONE_BY_ONE,
            (_, columns) => unreachable!("there is no tile of {columns} columns"),
        }
    }
}

thread_local! {
    /// What this thread's registers are configured for, rows of the tile and depth of a step. They stay so while a task
    /// multiplies: to configure them takes as long as a few steps.
    static CONFIGURED: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// Configures the registers, where they are not yet, for up to 32 rows and a depth of up to 16 pairs.
///
/// # Safety
/// The processor has AMX, which the system lets this process use.
#[expect(unsafe_code, reason = "an instruction without a name in the language")]
unsafe fn configure(rows: usize, depth: usize) {
    /// The operand of `LDTILECFG`: palette 1, then from byte 16 on the bytes of a row of each register, two bytes each,
    /// and from byte 48 on the rows of each (the manual, volume 1, chapter 18).
    #[repr(C, align(64))]
    struct Shapes([u8; 64]);
    debug_assert!((1..=TWO).contains(&rows) && (1..=LANES).contains(&depth));
    if CONFIGURED.replace(Some((rows, depth))) == Some((rows, depth)) {
        return;
    }
    let mut shapes = Shapes([0; 64]);
    shapes.0[0] = 1;
    let (upper, lower) = (rows.min(ROWS), rows.saturating_sub(ROWS));
    let of_left = depth * size_of::<Pair>();
    let each = [
        (upper, ROW_BYTES),
        (upper, ROW_BYTES),
        (lower, ROW_BYTES),
        (lower, ROW_BYTES),
        (upper, of_left),
        (lower, of_left),
        (depth, ROW_BYTES),
        (depth, ROW_BYTES),
    ];
    for (register, (rows, bytes)) in each
        .into_iter()
        .enumerate()
        .filter(|(_, (rows, _))| *rows > 0)
    {
        shapes.0[16 + 2 * register] = bytes as u8;
        shapes.0[48 + register] = rows as u8;
    }
    // SAFETY: the structure is a valid configuration of the registers, which nothing else uses.
    unsafe {
        asm!("ldtilecfg [{shapes}]", shapes = in(reg) &raw const shapes, options(nostack, readonly, preserves_flags));
    }
}

/// Gives back what the registers hold, so that it need not be saved with the thread's state, and that others may use them.
///
/// # Safety
/// The processor has AMX, which the system lets this process use.
#[expect(unsafe_code, reason = "an instruction without a name in the language")]
pub(super) unsafe fn release() {
    if CONFIGURED.take().is_some() {
        // SAFETY: nothing needs what the registers hold any more.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Steps of `depth` pairs each over the rows of a product, 32 at a time. `left` says where the left operand of the rows
/// from one on lies, and its stride in bytes.
///
/// # Safety
/// As [`multiply`].
#[expect(unsafe_code, reason = "vector instructions")]
unsafe fn rows(
    (count, columns): (usize, usize),
    (depth, steps): (usize, usize),
    mut left: impl FnMut(usize, usize) -> (*const Pair, usize),
    right: *const Pair,
    (out, out_stride, add): (*mut f32, usize, bool),
) {
    for row in (0..count).step_by(TWO) {
        let height = TWO.min(count - row);
        // SAFETY: the caller's promise.
        unsafe { configure(height, depth) };
        let (left, left_stride) = left(row, height);
        let operands = Operands {
            left,
            left_stride,
            right,
            steps,
        };
        let sums = Sums {
            out: out.wrapping_add(row * out_stride),
            stride: out_stride * size_of::<f32>(),
            add,
        };
        let shape = Shape::of(height, columns);
        // SAFETY: the caller's promise, of rows that the registers are configured for.
        unsafe {
            (shape.begin)(sums);
            (shape.one)(operands);
            (shape.end)(sums);
        }
    }
}

/// The sum of several products of numbers in steps, which stays in the registers from one to the next.
///
/// # Safety
/// The processor has AMX, which the system lets this process use; every piece holds `rows` rows of its depth, `right` all
/// depths one after the other, and `target` a tile of `rows` rows.
#[expect(unsafe_code, reason = "vector instructions")]
pub(super) unsafe fn multiply_steps<'a, const PARTS: usize>(
    columns: usize,
    rows: usize,
    pieces: &(impl Iterator<Item = Piece<'a, Steps<PARTS>>> + Clone),
    right: &[Steps<PARTS>],
    target: &mut Target<f32>,
) {
    const {
        assert!(
            PARTS == 1 || PARTS == 3,
            "numbers are whole or in three parts"
        );
    }
    let depth: usize = pieces.clone().map(|piece| piece.depth).sum();
    // Of numbers in three parts so much is computed with what is read that reading the sums again would cost more.
    let runs = match PARTS {
        1 => ((depth + RUN / 2) / RUN).max(1),
        _ => 1,
    };
    for run in 0..runs {
        let steps = run * depth / runs..(run + 1) * depth / runs;
        for row in (0..rows).step_by(TWO) {
            let height = TWO.min(rows - row);
            let shape = Shape::of(height, columns);
            let sums = Sums {
                out: target.out[row * target.stride..].as_mut_ptr().cast(),
                stride: target.stride * size_of::<f32>(),
                add: target.add || run > 0,
            };
            if run == 0 {
                sums.ask_for(height, columns);
            }
            // SAFETY: the caller's promise, of rows that the registers are configured for.
            unsafe {
                configure(height, LANES);
                (shape.begin)(sums);
            }
            let mut before = 0;
            for piece in pieces.clone() {
                let within = before..before + piece.depth;
                before = within.end;
                let first = steps.start.max(within.start);
                let end = steps.end.min(within.end);
                if first >= end {
                    continue;
                }
                let left = &piece.left[row * piece.stride + first - within.start..];
                let operands = Operands {
                    left: left.as_ptr().cast(),
                    left_stride: piece.stride * size_of::<Steps<PARTS>>(),
                    right: right[first * columns..].as_ptr().cast(),
                    steps: end - first,
                };
                // SAFETY: as above; the piece and the panel hold so many steps.
                unsafe {
                    match PARTS {
                        1 => (shape.one)(operands),
                        _ => (shape.three)(operands),
                    }
                }
            }
            // SAFETY: as above.
            unsafe { (shape.end)(sums) };
        }
    }
}

/// # Safety
/// The processor has AMX, which the system lets this process use; `product` and `target` hold a tile of `product.rows`
/// rows.
#[expect(unsafe_code, reason = "vector instructions")]
pub(super) unsafe fn multiply(product: &Product<Pair>, target: &mut Target<f32>) {
    let columns = product.tile.columns;
    let shape = (product.rows, columns);
    let (out, out_stride, add) = (
        target.out.as_mut_ptr().cast::<f32>(),
        target.stride,
        target.add,
    );
    if product.depth == 0 {
        if !add {
            for row in 0..product.rows {
                // SAFETY: the target has the rows of the tile.
                unsafe { out.add(row * out_stride).write_bytes(0, columns) };
            }
        }
        return;
    }
    let (left, left_stride) = (product.left.as_ptr(), product.left_stride);
    let right = product.right.as_ptr();
    let in_place = |row: usize, _| {
        let row = left.wrapping_add(row * left_stride);
        (row, left_stride * size_of::<Pair>())
    };
    let (steps, rest) = (product.depth / LANES, product.depth % LANES);
    // SAFETY: the caller's promise; of a product less deep than a step, registers take just what is there.
    unsafe {
        if steps == 0 {
            return rows(shape, (rest, 1), in_place, right, (out, out_stride, add));
        }
        rows(
            shape,
            (LANES, steps),
            in_place,
            right,
            (out, out_stride, add),
        );
    }
    if rest == 0 {
        return;
    }
    // What is left of the depth, filled up with zeros.
    let done = steps * LANES;
    let mut last_left = Aligned([Pair::default(); TWO * LANES]);
    let mut last_right = Aligned([Pair::default(); LANES * 2 * LANES]);
    last_right.0[..rest * columns]
        .copy_from_slice(&product.right[done * columns..][..rest * columns]);
    let filled_up = |row: usize, height: usize| {
        for (i, to) in last_left.0.chunks_exact_mut(LANES).take(height).enumerate() {
            to[..rest].copy_from_slice(&product.left[(row + i) * left_stride + done..][..rest]);
        }
        (last_left.0.as_ptr(), ROW_BYTES)
    };
    // SAFETY: as above; the copies are as large as the registers.
    unsafe {
        rows(
            shape,
            (LANES, 1),
            filled_up,
            last_right.0.as_ptr(),
            (out, out_stride, true),
        );
    }
}

/// At the beginning of a line of the cache: a row of a register that lies in two lines takes several times as long.
#[repr(C, align(64))]
struct Aligned<T>(T);

/// # Safety
/// As [`multiply`]; `right` holds the depth of the product and the columns of the tile.
#[expect(unsafe_code, reason = "vector instructions")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn multiply_lying(
    product: &Product<Pair>,
    right: Lying<Pair>,
    mut target: Target<f32>,
) {
    let columns = product.tile.columns;
    let mut together = Aligned([MaybeUninit::<Pair>::uninit(); PUT_TOGETHER * 2 * LANES]);
    for first in (0..product.depth).step_by(PUT_TOGETHER) {
        let depth = PUT_TOGETHER.min(product.depth - first);
        let pairs = &mut together.0[..depth * columns];
        // SAFETY: the rows of `right` hold the depth; `pairs` is written whole before it is read.
        let pairs = unsafe {
            for (d, out) in pairs.chunks_exact_mut(columns).enumerate() {
                lying_512::row(&right, first + d, out);
            }
            std::slice::from_raw_parts(pairs.as_ptr().cast::<Pair>(), pairs.len())
        };
        let part = Product {
            depth,
            left: &product.left[first..],
            right: pairs,
            ..*product
        };
        // SAFETY: the caller's promise; after the first piece the tile is there.
        unsafe { multiply(&part, &mut target) };
        target.add = true;
    }
}
