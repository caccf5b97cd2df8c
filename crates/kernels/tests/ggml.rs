//! GGML blocks against candle's own dequantisation: every type, random blocks, any piece of a row, and
//! the products in both directions.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use sparsam_kernels::Weight;
use sparsam_kernels::ggml::{Ggml, GgmlType};
use sparsam_kernels::linear::{linear, linear_input_grad};

fn theirs(kind: GgmlType) -> GgmlDType {
    match kind {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q8_1 => GgmlDType::Q8_1,
        GgmlType::Q2K => GgmlDType::Q2K,
        GgmlType::Q3K => GgmlDType::Q3K,
        GgmlType::Q4K => GgmlDType::Q4K,
        GgmlType::Q5K => GgmlDType::Q5K,
        GgmlType::Q6K => GgmlDType::Q6K,
        GgmlType::Q8K => GgmlDType::Q8K,
    }
}

/// Where the f16 scales of a block lie.
fn halves(kind: GgmlType) -> &'static [usize] {
    match kind {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q8_1 | GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
        GgmlType::Q2K => &[80, 82],
        GgmlType::Q3K => &[108],
        GgmlType::Q6K => &[208],
        GgmlType::Q8K => &[],
    }
}

/// Random blocks: every byte any byte, the scales finite and of either sign.
fn blocks(kind: GgmlType, count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(count * kind.block_bytes());
    for _ in 0..count {
        let mut block: Vec<u8> = (0..kind.block_bytes())
            .map(|_| (random() >> 32) as u8)
            .collect();
        let mut scale = || (random() >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        for at in halves(kind) {
            let value = half::f16::from_f32(scale());
            block[*at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        if kind == GgmlType::Q8K {
            block[..4].copy_from_slice(&scale().to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

fn both(kind: GgmlType, rows: usize, columns: usize, seed: u64) -> Result<(Weight, Tensor)> {
    let bytes = blocks(kind, rows * columns / kind.block_length(), seed);
    let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, theirs(kind))?;
    let expected = QTensor::new(storage, (rows, columns))?.dequantize(&Device::Cpu)?;
    let weight = Weight::Ggml(Ggml::from_bytes(kind, bytes, rows, columns)?);
    Ok((weight, expected))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn pieces_of_rows_equal_candle_s_dequantisation_bit_for_bit(seed: u64, start in 0usize..700, length in 0usize..130) {
        for kind in GgmlType::ALL {
            let (rows, columns) = (3, 768);
            let (weight, expected) = both(kind, rows, columns, seed).expect("blocks");
            let expected: Vec<Vec<f32>> = expected.to_vec2().expect("numbers");
            let piece = start..(start + length).min(columns);
            weight.with_rows::<f32, _>(|matrix| {
                for (row, expected) in expected.iter().enumerate() {
                    let mut out = vec![f32::NAN; piece.len()];
                    matrix.fill(row, piece.clone(), &mut out);
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&out), bits(&expected[piece.clone()]), "{}", kind.name());
                }
                Ok(())
            }).expect("rows");
        }
    }
}

/// What `tests/cuda/emulated` holds the GPU's kernel to: for each type its number, how many blocks and numbers follow, the
/// blocks, and candle's numbers of them, all little-endian. `SPARSAM_WRITE=1` writes the file anew.
#[test]
fn the_blocks_for_the_emulated_kernel_are_these() -> Result<()> {
    let mut all = Vec::new();
    for kind in GgmlType::ALL {
        let (rows, columns) = (2, 256);
        let bytes = blocks(kind, rows * columns / kind.block_length(), 41);
        let (_, expected) = both(kind, rows, columns, 41)?;
        let count = bytes.len() / kind.block_bytes();
        for number in [kind.code(), count as u32, (rows * columns) as u32] {
            all.extend(number.to_le_bytes());
        }
        all.extend(&bytes);
        for value in expected.flatten_all()?.to_vec1::<f32>()? {
            all.extend(value.to_le_bytes());
        }
    }
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/cuda/emulated/ggml.bin"
    );
    if std::env::var_os("SPARSAM_WRITE").is_some() {
        std::fs::write(path, &all).map_err(candle_core::Error::wrap)?;
    }
    let there = std::fs::read(path).map_err(candle_core::Error::wrap)?;
    assert!(there == all, "{path} is not what it should be");
    Ok(())
}

#[test]
fn products_equal_those_with_the_expanded_matrix() -> Result<()> {
    let (out, input) = (70, 512);
    for kind in GgmlType::ALL {
        let (weight, expanded) = both(kind, out, input, 7)?;
        assert_eq!(weight.dims()?, (out, input));
        assert_eq!(
            weight.bytes(),
            out * input / kind.block_length() * kind.block_bytes()
        );
        let expanded = Weight::Dense(expanded);
        // Few rows take another way than many.
        for tokens in [3, 40] {
            let numbers = |width: usize| {
                let values: Vec<f32> = (0..tokens * width)
                    .map(|i| (i as f32 * 0.37).sin())
                    .collect();
                Tensor::from_vec(values, (tokens, width), &Device::Cpu)
            };
            let (x, dy) = (numbers(input)?, numbers(out)?);
            let equal = |a: Tensor, b: Tensor| -> Result<()> {
                let difference = (&a - &b)?.abs()?.max_all()?.to_scalar::<f32>()?;
                assert_eq!(difference, 0.0, "{}", kind.name());
                Ok(())
            };
            equal(linear(&x, &weight)?, linear(&x, &expanded)?)?;
            equal(
                linear_input_grad(&dy, &weight)?,
                linear_input_grad(&dy, &expanded)?,
            )?;
        }
        let whole = weight.dequantize()?;
        assert_eq!(whole.dtype(), DType::F32);
    }
    Ok(())
}
