//! The microkernel of pairs on Intel's Advanced Matrix Extensions: registers of 16 rows of 64 bytes, and an instruction
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
use std::mem::MaybeUninit;

use super::{Lying, Pair, Product, Target, Tile, lying_512};

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

/// The tile of this microkernel: it takes many rows in one call, since to configure the registers takes as long as a few
/// steps; 128 rows of a block of depth stay in the second cache.
pub(super) const fn tile(columns: usize) -> Tile {
    Tile { rows: 128, columns }
}

/// Operands and sums of up to 32 rows, by address.
#[derive(Clone, Copy)]
struct Steps {
    left: *const Pair,
    /// In bytes.
    left_stride: usize,
    right: *const Pair,
    /// Columns of the panel: one or two registers of them.
    columns: usize,
    /// At least one.
    steps: usize,
    out: *mut f32,
    /// In bytes.
    out_stride: usize,
    add: bool,
}

/// A function of [`Steps`], from the instructions that load, clear, compute and store.
macro_rules! steps {
    ($name:ident, $right_bytes:literal, [$($load:literal),*], [$($clear:literal),*], [$($step:literal),*], [$($store:literal),*]) => {
        /// # Safety
        /// The processor has AMX and is configured for the rows; the operands and sums are there.
        #[inline]
        #[expect(unsafe_code, reason = "instructions without a name in the language")]
        unsafe fn $name(work: Steps) {
            // SAFETY: reads and writes what the caller promises to be there, in registers that nothing else uses.
            unsafe {
                asm!(
                    "test {add}, {add}",
                    "jz 3f",
                    $($load,)*
                    "jmp 2f",
                    "3:",
                    $($clear,)*
                    "2:",
                    $($step,)*
                    "add {left}, 64",
                    "add {left2}, 64",
                    concat!("add {right}, ", $right_bytes),
                    "dec {steps}",
                    "jnz 2b",
                    $($store,)*
                    "/* {out2} */",
                    add = in(reg) usize::from(work.add),
                    left = inout(reg) work.left => _,
                    left2 = inout(reg) work.left.wrapping_byte_add(ROWS * work.left_stride) => _,
                    left_row = in(reg) work.left_stride,
                    right = inout(reg) work.right => _,
                    right_row = in(reg) work.columns * size_of::<Pair>(),
                    steps = inout(reg) work.steps => _,
                    out = in(reg) work.out,
                    out2 = in(reg) work.out.wrapping_byte_add(ROWS * work.out_stride),
                    out_row = in(reg) work.out_stride,
                    options(nostack),
                );
            }
        }
    };
}

// Registers 0 and 1 are the sums of the upper rows, 2 and 3 those of the lower; 4 and 5 upper and lower rows of the left
// operand, 6 and 7 columns of the right one.
steps!(
    two_by_two,
    2048,
    [
        "tileloadd tmm0, [{out} + {out_row}]",
        "tileloadd tmm1, [{out} + {out_row} + 64]",
        "tileloadd tmm2, [{out2} + {out_row}]",
        "tileloadd tmm3, [{out2} + {out_row} + 64]"
    ],
    [
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3"
    ],
    [
        "tileloadd tmm6, [{right} + {right_row}]",
        "tileloadd tmm4, [{left} + {left_row}]",
        "tileloadd tmm7, [{right} + {right_row} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{left2} + {left_row}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7"
    ],
    [
        "tilestored [{out} + {out_row}], tmm0",
        "tilestored [{out} + {out_row} + 64], tmm1",
        "tilestored [{out2} + {out_row}], tmm2",
        "tilestored [{out2} + {out_row} + 64], tmm3"
    ]
);
steps!(
    one_by_two,
    2048,
    [
        "tileloadd tmm0, [{out} + {out_row}]",
        "tileloadd tmm1, [{out} + {out_row} + 64]"
    ],
    ["tilezero tmm0", "tilezero tmm1"],
    [
        "tileloadd tmm6, [{right} + {right_row}]",
        "tileloadd tmm4, [{left} + {left_row}]",
        "tileloadd tmm7, [{right} + {right_row} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ],
    [
        "tilestored [{out} + {out_row}], tmm0",
        "tilestored [{out} + {out_row} + 64], tmm1"
    ]
);
steps!(
    two_by_one,
    1024,
    [
        "tileloadd tmm0, [{out} + {out_row}]",
        "tileloadd tmm2, [{out2} + {out_row}]"
    ],
    ["tilezero tmm0", "tilezero tmm2"],
    [
        "tileloadd tmm6, [{right} + {right_row}]",
        "tileloadd tmm4, [{left} + {left_row}]",
        "tileloadd tmm5, [{left2} + {left_row}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6"
    ],
    [
        "tilestored [{out} + {out_row}], tmm0",
        "tilestored [{out2} + {out_row}], tmm2"
    ]
);
steps!(
    one_by_one,
    1024,
    ["tileloadd tmm0, [{out} + {out_row}]"],
    ["tilezero tmm0"],
    [
        "tileloadd tmm6, [{right} + {right_row}]",
        "tileloadd tmm4, [{left} + {left_row}]",
        "tdpbf16ps tmm0, tmm4, tmm6"
    ],
    ["tilestored [{out} + {out_row}], tmm0"]
);

/// What the registers are configured for, rows of the tile and depth of a step; released when it is dropped, so that they
/// need not be saved with a thread's state.
#[derive(Default)]
struct Registers(Option<(usize, usize)>);

impl Registers {
    /// # Safety
    /// The processor has AMX, which the system lets this process use.
    #[expect(unsafe_code, reason = "an instruction without a name in the language")]
    unsafe fn configure(&mut self, rows: usize, depth: usize) {
        /// The operand of `LDTILECFG`: palette 1, then from byte 16 on the bytes of a row of each register, two bytes each,
        /// and from byte 48 on the rows of each (the manual, volume 1, chapter 18).
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        debug_assert!((1..=TWO).contains(&rows) && (1..=LANES).contains(&depth));
        if self.0.replace((rows, depth)) == Some((rows, depth)) {
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
}

impl Drop for Registers {
    #[expect(unsafe_code, reason = "an instruction without a name in the language")]
    fn drop(&mut self) {
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
    let mut registers = Registers::default();
    for row in (0..count).step_by(TWO) {
        let height = TWO.min(count - row);
        // SAFETY: the caller's promise.
        unsafe { registers.configure(height, depth) };
        let (left, left_stride) = left(row, height);
        let work = Steps {
            left,
            left_stride,
            right,
            columns,
            steps,
            out: out.wrapping_add(row * out_stride),
            out_stride: out_stride * size_of::<f32>(),
            add,
        };
        // SAFETY: the caller's promise, of rows that the registers are configured for.
        unsafe {
            match (height > ROWS, columns) {
                (true, 32) => two_by_two(work),
                (false, 32) => one_by_two(work),
                (true, 16) => two_by_one(work),
                (false, 16) => one_by_one(work),
                (_, columns) => unreachable!("there is no tile of {columns} columns"),
            }
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
