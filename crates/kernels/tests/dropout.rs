//! Dropout: its rate, its scale, and that nothing but the key decides it.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Generator, assert_same, inner, on_threads, single, values};
use sparsam_kernels::dropout::{DropoutKey, dropout};

const KEY: DropoutKey = DropoutKey {
    seed: 42,
    step: 7,
    site: 3,
};

#[test]
fn drops_its_share_and_keeps_the_mean() -> Result<()> {
    const COUNT: usize = 100_003;
    let ones = Tensor::ones(COUNT, DType::F32, &Device::Cpu)?;
    for p in [0.05, 0.1, 0.5, 0.9] {
        let y: Vec<f32> = dropout(&ones, p, KEY)?.to_vec1()?;
        let scale = (1.0 / (1.0 - p)) as f32;
        assert!(y.iter().all(|y| *y == 0.0 || *y == scale));
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64;
        // Five standard deviations of the binomial distribution.
        let slack = 5.0 * (COUNT as f64 * p * (1.0 - p)).sqrt();
        assert!(
            (dropped - p * COUNT as f64).abs() < slack,
            "{dropped} dropped at {p}"
        );
    }
    Ok(())
}

/// Neighbours, and numbers one counter or one group of counters apart, are dropped independently.
#[test]
fn numbers_are_independent() -> Result<()> {
    const COUNT: usize = 100_000;
    let ones = Tensor::ones(COUNT, DType::F64, &Device::Cpu)?;
    let y = values(&dropout(&ones, 0.5, KEY)?)?;
    for distance in [1, 2, 4, 16, 64, 8192] {
        let pairs = COUNT - distance;
        let both = (0..pairs)
            .filter(|i| y[*i] > 0.0 && y[i + distance] > 0.0)
            .count() as f64;
        let slack = 6.0 * (pairs as f64 * 3.0 / 16.0).sqrt();
        assert!(
            (both - pairs as f64 / 4.0).abs() < slack,
            "{both} pairs at {distance}"
        );
    }
    Ok(())
}

#[test]
fn the_key_decides_and_nothing_else() -> Result<()> {
    let ones = Tensor::ones((40, 1031), DType::F32, &Device::Cpu)?;
    let y = dropout(&ones, 0.3, KEY)?;
    let run = || dropout(&ones, 0.3, KEY);
    assert_same("one thread", &y, &on_threads(1, run)?);
    assert_same("three threads", &y, &on_threads(3, run)?);
    let wide = dropout(&ones.to_dtype(DType::F64)?, 0.3, KEY)?;
    let kept =
        |t: &Tensor| -> Result<Vec<bool>> { Ok(values(t)?.into_iter().map(|v| v > 0.0).collect()) };
    assert_eq!(kept(&y)?, kept(&wide)?);
    // A prefix has the same mask, whatever the length.
    let short = dropout(&ones.narrow(0, 0, 7)?, 0.3, KEY)?;
    assert_same("prefix", &short, &y.narrow(0, 0, 7)?);
    for other in [
        DropoutKey { seed: 43, ..KEY },
        DropoutKey {
            seed: KEY.seed + (1 << 32),
            ..KEY
        },
        DropoutKey { step: 8, ..KEY },
        DropoutKey {
            step: KEY.step + (1 << 32),
            ..KEY
        },
        DropoutKey { site: 4, ..KEY },
    ] {
        let z = dropout(&ones, 0.3, other)?;
        let same = kept(&y)?
            .iter()
            .zip(kept(&z)?)
            .filter(|(a, b)| **a == *b)
            .count() as f64;
        let share = same / 41_240.0;
        assert!(
            (share - 0.58).abs() < 0.02,
            "{other:?} repeats {share} of the mask"
        );
    }
    Ok(())
}

/// A diagonal map is its own adjoint: `⟨D x, y⟩ = ⟨x, D y⟩`.
#[test]
fn is_its_own_adjoint() -> Result<()> {
    let mut generator = Generator(1);
    let (x, y) = (generator.tensor(&[33, 35])?, generator.tensor(&[33, 35])?);
    let left = inner(&dropout(&x, 0.4, KEY)?, &y)?;
    let right = inner(&x, &dropout(&y, 0.4, KEY)?)?;
    assert!((left - right).abs() < 1e-11 && left.abs() > 1e-3);
    Ok(())
}

#[test]
fn nothing_is_dropped_at_zero_and_bad_probabilities_are_refused() -> Result<()> {
    let x = single(&Generator(2).tensor(&[19, 5])?)?;
    assert_same("p = 0", &dropout(&x, 0.0, KEY)?, &x);
    for p in [1.0, -0.1, f64::NAN] {
        assert!(dropout(&x, p, KEY).is_err());
    }
    Ok(())
}
