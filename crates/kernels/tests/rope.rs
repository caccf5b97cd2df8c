//! Rotary position embedding against candle's composed version, and its adjoint.

mod common;

use candle_core::{DType, Result, Tensor};
use common::{Generator, assert_close, assert_same, inner, on_threads, single};
use sparsam_kernels::rope::{
    Positions, RopeTable, rope, rope_backward, rope_backward_to_bf16, rope_to_bf16,
};

fn frequencies(rotary_dim: usize) -> Vec<f64> {
    (0..rotary_dim / 2)
        .map(|i| 1e4f64.powf(-2.0 * i as f64 / rotary_dim as f64))
        .collect()
}

/// Rotates by hand, in f64, what the first `2 · frequencies` numbers of each head are.
fn by_hand(x: &Tensor, heads: usize, positions: &[u32], frequencies: &[f64]) -> Result<Tensor> {
    let mut rows: Vec<Vec<f64>> = x.to_vec2()?;
    let half = frequencies.len();
    for (row, position) in rows.iter_mut().zip(positions) {
        let head_dim = row.len() / heads;
        for head in row.chunks_mut(head_dim) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let angle = f64::from(*position as f32 * *frequency as f32);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = a * angle.sin() + b * angle.cos();
            }
        }
    }
    Tensor::new(rows, x.device())
}

#[test]
fn rotates_whole_and_partial_heads() -> Result<()> {
    let mut generator = Generator(1);
    for (tokens, heads, head_dim, rotary_dim) in [(1, 1, 2, 2), (35, 3, 64, 64), (40, 2, 20, 12)] {
        let x = generator.tensor(&[tokens, heads * head_dim])?;
        let positions: Vec<u32> = (0..tokens)
            .map(|_| generator.between(0, 100) as u32)
            .collect();
        let frequencies = frequencies(rotary_dim);
        let table = RopeTable::new(&frequencies, 100, 1.0);
        let expected = by_hand(&x, heads, &positions, &frequencies)?;
        let turned = x.copy()?;
        rope(&turned, heads, &Positions::new(positions.clone()), &table)?;
        assert_close("rotated", &turned, &expected, 1e-13);
        let narrow = single(&x)?;
        rope(&narrow, heads, &Positions::new(positions.clone()), &table)?;
        assert_close("rotated in f32", &narrow, &expected, 1e-6);
        let rounded = rope_to_bf16(
            &single(&x)?,
            heads,
            &Positions::new(positions.clone()),
            &table,
        )?;
        assert_same("rounded", &rounded, &narrow.to_dtype(DType::BF16)?);
        let back =
            rope_backward_to_bf16(&narrow, heads, &Positions::new(positions.clone()), &table)?;
        rope_backward(&narrow, heads, &Positions::new(positions.clone()), &table)?;
        assert_same("rounded back", &back, &narrow.to_dtype(DType::BF16)?);
        rope_backward(&turned, heads, &Positions::new(positions.clone()), &table)?;
        assert_close("rotated back", &turned, &x, 1e-13);
    }
    Ok(())
}

#[test]
fn agrees_with_candle() -> Result<()> {
    let x = Generator(2).tensor(&[17, 3 * 16])?;
    let frequencies = frequencies(16);
    let table = RopeTable::new(&frequencies, 17, 1.0);
    let positions: Vec<u32> = (0..17).collect();
    let angles: Vec<f64> = positions
        .iter()
        .flat_map(|p| {
            frequencies
                .iter()
                .map(move |f| f64::from(*p as f32 * *f as f32))
        })
        .collect();
    let angles = Tensor::from_vec(angles, (17, 8), x.device())?;
    let candle = candle_nn::rotary_emb::rope_slow(
        &x.reshape((1, 17, 3, 16))?.transpose(1, 2)?.contiguous()?,
        &angles.cos()?,
        &angles.sin()?,
    )?;
    let candle = candle.transpose(1, 2)?.contiguous()?.reshape((17, 48))?;
    rope(&x, 3, &Positions::new(positions.clone()), &table)?;
    assert_close("rotated", &x, &candle, 1e-13);
    Ok(())
}

/// `⟨R x, y⟩ = ⟨x, Rᵀ y⟩`, which for a linear map says all about its adjoint; with a scaled table,
/// so that the adjoint is not merely the inverse.
#[test]
fn the_adjoint_is_the_transpose() -> Result<()> {
    let mut generator = Generator(3);
    let table = RopeTable::new(&frequencies(6), 50, 1.3);
    let positions: Vec<u32> = (0..9).map(|i| i * 5).collect();
    let (x, y) = (generator.tensor(&[9, 16])?, generator.tensor(&[9, 16])?);
    let (rx, ry) = (x.copy()?, y.copy()?);
    rope(&rx, 2, &Positions::new(positions.clone()), &table)?;
    rope_backward(&ry, 2, &Positions::new(positions.clone()), &table)?;
    assert!((inner(&rx, &y)? - inner(&x, &ry)?).abs() < 1e-12);
    Ok(())
}

#[test]
fn threads_do_not_matter_and_bad_shapes_are_refused() -> Result<()> {
    let x = single(&Generator(4).tensor(&[70, 32])?)?;
    let table = RopeTable::new(&frequencies(16), 70, 1.0);
    let positions: Vec<u32> = (0..70).collect();
    let run = || -> Result<Tensor> {
        let x = x.copy()?;
        rope(&x, 2, &Positions::new(positions.clone()), &table)?;
        Ok(x)
    };
    assert_same("threads", &on_threads(1, run)?, &on_threads(3, run)?);
    assert!(rope(&x, 3, &Positions::new(positions.clone()), &table).is_err());
    assert!(rope(&x, 4, &Positions::new(positions.clone()), &table).is_err());
    assert!(rope(&x, 2, &Positions::new(positions[1..].to_vec()), &table).is_err());
    let error = rope(&x, 2, &Positions::new(vec![70; 70]), &table)
        .expect_err("beyond the table")
        .to_string();
    assert!(error.contains("70"), "{error}");
    Ok(())
}
