//! The largest singular values of a matrix and their vectors, for branches that begin with what a weight does
//! most (PiSSA: Meng, Wang and Zhang 2024).
//!
//! Subspace iteration with a few vectors more than asked for (Halko, Martinsson and Tropp 2011, algorithm 4.4): the
//! weight is multiplied with them some times in turn with its transpose, after which they span what it stretches
//! most; what is left is a symmetric matrix of the size of the rank, whose eigenvectors Jacobi's rotations give.

use candle_core::{DType, Device, Result, Tensor};

use crate::random::Random;

/// Vectors beyond those asked for, which make the last of them precise.
const MORE: usize = 8;
/// Multiplications with the weight and its transpose; as `pissa_niter_16` of PEFT.
const TURNS: usize = 16;
/// Rounds of rotations after which Jacobi's method has long converged.
const ROUNDS: usize = 60;

/// The part of a weight `[out, in]` that `rank` singular values make: `left` `[out, rank]` and `right` `[rank, in]`
/// in f32, each with the root of the singular values in it, so that `left right` is the best approximation of that
/// rank. A smaller rank where the weight has no more.
///
/// # Errors
/// An operation on tensors failed.
pub fn principal(weight: &Tensor, rank: usize, random: &mut Random) -> Result<(Tensor, Tensor)> {
    let weight = weight
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .contiguous()?;
    let (out, input) = weight.dims2()?;
    let rank = rank.min(out).min(input);
    let many = (rank + MORE).min(out).min(input);
    let values: Vec<f32> = (0..input * many).map(|_| random.normal() as f32).collect();
    let start = Tensor::from_vec(values, (input, many), &Device::Cpu)?;
    let transposed = weight.t()?.contiguous()?;
    let mut span = orthonormal(&weight.matmul(&start)?)?;
    for _ in 0..TURNS {
        let back = orthonormal(&transposed.matmul(&span)?)?;
        span = orthonormal(&weight.matmul(&back)?)?;
    }
    // span spanᵀ W ≈ W, and the small matrix spanᵀ W has its singular values.
    let small = span.t()?.contiguous()?.matmul(&weight)?;
    let small64 = small.to_dtype(DType::F64)?;
    let gram = small64.matmul(&small64.t()?.contiguous()?)?.to_vec2()?;
    let (squares, vectors) = eigen(gram);
    let kept = &squares[..rank];
    let columns = |scale: &dyn Fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f32> = (0..many)
            .flat_map(|row| {
                let vectors = &vectors;
                kept.iter().enumerate().map(move |(column, square)| {
                    (vectors[row][column] * scale(square.max(0.0).sqrt())) as f32
                })
            })
            .collect();
        Tensor::from_vec(values, (many, rank), &Device::Cpu)
    };
    let left = span.matmul(&columns(&f64::sqrt)?)?;
    let inverse = |value: f64| if value > 0.0 { 1.0 / value.sqrt() } else { 0.0 };
    let right = columns(&inverse)?.t()?.contiguous()?.matmul(&small)?;
    Ok((left, right))
}

/// The columns of a matrix made orthogonal and of length 1, by Gram and Schmidt's method gone through twice.
fn orthonormal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, count) = matrix.dims2()?;
    let mut columns: Vec<Vec<f64>> = matrix.t()?.to_dtype(DType::F64)?.to_vec2()?;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    for index in 0..count {
        let (before, rest) = columns.split_at_mut(index);
        let column = &mut rest[0];
        for _ in 0..2 {
            for other in before.iter() {
                let part = dot(other, column);
                for (x, y) in column.iter_mut().zip(other) {
                    *x -= part * y;
                }
            }
        }
        let length = dot(column, column).sqrt();
        // What is in the span of the others already has no direction of its own.
        let scale = if length > 1e-30 { 1.0 / length } else { 0.0 };
        for x in column.iter_mut() {
            *x *= scale;
        }
    }
    let values: Vec<f32> = (0..rows)
        .flat_map(|row| columns.iter().map(move |column| column[row] as f32))
        .collect();
    Tensor::from_vec(values, (rows, count), &Device::Cpu)
}

/// Eigenvalues of a symmetric matrix, the largest first, and the eigenvectors as columns in the same order.
fn eigen(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = a.len();
    let mut vectors = vec![vec![0.0; n]; n];
    for (i, row) in vectors.iter_mut().enumerate() {
        row[i] = 1.0;
    }
    for _ in 0..ROUNDS {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i][j] * a[i][j])
            .sum();
        let size: f64 = (0..n).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-28 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    let values = order.iter().map(|&i| a[i][i]).collect();
    let vectors = vectors
        .iter()
        .map(|row| order.iter().map(|&i| row[i]).collect())
        .collect();
    (values, vectors)
}

/// Turns the axes `p` and `q` so that the matrix has a zero between them.
fn rotate(a: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for row in a.iter_mut().chain(vectors.iter_mut()) {
        let (x, y) = (row[p], row[q]);
        row[p] = c * x - s * y;
        row[q] = s * x + c * y;
    }
    for column in 0..a.len() {
        let (x, y) = (a[p][column], a[q][column]);
        a[p][column] = c * x - s * y;
        a[q][column] = s * x + c * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(out: usize, input: usize, name: &str) -> Tensor {
        let mut random = Random::new(7, name);
        let values: Vec<f32> = (0..out * input).map(|_| random.normal() as f32).collect();
        Tensor::from_vec(values, (out, input), &Device::Cpu).unwrap()
    }

    fn squares(matrix: &Tensor) -> f64 {
        let sum = matrix.to_dtype(DType::F64).unwrap().sqr().unwrap();
        sum.sum_all().unwrap().to_scalar().unwrap()
    }

    /// What is left is the sum of the smaller singular values' squares (Eckart and Young), which a full
    /// decomposition gives.
    #[test]
    fn what_is_left_is_the_least_that_can_be() {
        for (out, input, rank) in [(40, 24, 5), (24, 40, 5), (33, 33, 12), (16, 64, 16)] {
            let weight = random(out, input, "weight");
            let (left, right) = principal(&weight, rank, &mut Random::new(1, "start")).unwrap();
            assert_eq!(
                (left.dims(), right.dims()),
                (&[out, rank][..], &[rank, input][..])
            );
            let rest = (&weight - left.matmul(&right).unwrap()).unwrap();
            let gram = weight.matmul(&weight.t().unwrap()).unwrap();
            let gram: Vec<Vec<f64>> = gram.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
            let (all, _) = eigen(gram);
            let least: f64 = all[rank..].iter().map(|square| square.max(0.0)).sum();
            let total = squares(&weight);
            assert!(
                (squares(&rest) - least).abs() < 1e-3 * total,
                "{out} {input} {rank}: {} {least}",
                squares(&rest)
            );
        }
    }

    /// Both halves carry the root of the same singular values.
    #[test]
    fn the_two_halves_are_alike() {
        let weight = random(30, 20, "alike");
        let (left, right) = principal(&weight, 4, &mut Random::new(1, "start")).unwrap();
        for k in 0..4 {
            let column = squares(&left.narrow(1, k, 1).unwrap());
            let row = squares(&right.narrow(0, k, 1).unwrap());
            assert!((column - row).abs() < 1e-3 * column, "{column} {row}");
        }
    }

    #[test]
    fn a_weight_of_a_low_rank_is_found_whole() {
        let weight = random(20, 3, "a").matmul(&random(3, 30, "b")).unwrap();
        let (left, right) = principal(&weight, 8, &mut Random::new(1, "start")).unwrap();
        let rest = (&weight - left.matmul(&right).unwrap()).unwrap();
        assert!(squares(&rest) < 1e-6 * squares(&weight));
    }

    #[test]
    fn eigenvalues_of_a_known_matrix() {
        let (values, vectors) = eigen(vec![
            vec![2.0, 1.0, 0.0],
            vec![1.0, 2.0, 0.0],
            vec![0.0, 0.0, 5.0],
        ]);
        for (value, expected) in values.iter().zip([5.0, 3.0, 1.0]) {
            assert!((value - expected).abs() < 1e-12);
        }
        assert!((vectors[0][1].abs() - 0.5f64.sqrt()).abs() < 1e-12);
    }
}
