//! Oracles shared by the kernels' tests: seeded inputs, comparisons, finite differences, threads.

#![allow(dead_code, reason = "no test needs all of it")]

use candle_core::{DType, Device, Result, Tensor, Var};

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(crate) struct Generator(pub(crate) u64);

impl Generator {
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number in `low..high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.word() % (high - low) as u64) as usize
    }

    /// Numbers between −1.5 and 1.5, in f64.
    pub(crate) fn tensor(&mut self, dims: &[usize]) -> Result<Tensor> {
        let values: Vec<f64> = (0..dims.iter().product())
            .map(|_| (self.word() >> 11) as f64 / (1u64 << 53) as f64 * 3.0 - 1.5)
            .collect();
        Tensor::from_vec(values, dims, &Device::Cpu)
    }
}

pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

pub(crate) fn single(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)
}

/// `Σ x ∘ y`, the scalar whose gradient with respect to `x` is `y`.
pub(crate) fn inner(x: &Tensor, y: &Tensor) -> Result<f64> {
    Ok(values(x)?.iter().zip(values(y)?).map(|(x, y)| x * y).sum())
}

/// Fails unless the tensors agree within `tolerance` of the greatest number of the second.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shapes differ");
    let found = values(found).expect("a readable tensor");
    let expected = values(expected).expect("a readable tensor");
    let greatest = expected.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * greatest,
            "{what}: number {index} is {found}, not {expected} (off by {error:e})"
        );
    }
}

/// Fails unless the tensors hold the same bits.
#[track_caller]
pub(crate) fn assert_same(what: &str, x: &Tensor, y: &Tensor) {
    assert_eq!(x.dims(), y.dims(), "{what}: shapes differ");
    let bits = |t: &Tensor| -> Vec<u64> {
        values(t)
            .expect("a readable tensor")
            .into_iter()
            .map(f64::to_bits)
            .collect()
    };
    assert!(bits(x) == bits(y), "{what}: bits differ");
}

/// Compares `gradient` with central differences of `loss` in `at`, at about sixty of its numbers.
#[track_caller]
pub(crate) fn check_gradient(
    what: &str,
    at: &Tensor,
    gradient: &Tensor,
    loss: impl Fn(&Tensor) -> Result<f64>,
) {
    const STEP: f64 = 1e-5;
    const TOLERANCE: f64 = 1e-6;
    assert_eq!(at.dims(), gradient.dims(), "{what}: shapes differ");
    let point = values(at).expect("a readable tensor");
    let gradient = values(gradient).expect("a readable tensor");
    let greatest = gradient.iter().fold(1e-2f64, |m, x| m.max(x.abs()));
    assert!(
        gradient.iter().any(|x| x.abs() > 1e-6),
        "{what}: the gradient vanishes, so the comparison would prove nothing"
    );
    // An odd stride, so that the sample falls on every column.
    let stride = (point.len() / 60).max(1) | 1;
    for index in (0..point.len()).step_by(stride) {
        let moved = |by: f64| -> f64 {
            let mut point = point.clone();
            point[index] += by;
            let point = Tensor::from_vec(point, at.dims(), &Device::Cpu).expect("a tensor");
            loss(&point).expect("the loss is computed")
        };
        let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let error = (slope - gradient[index]).abs();
        assert!(
            error <= TOLERANCE * greatest,
            "{what}: gradient {index} is {}, the slope {slope} (off by {error:e})",
            gradient[index]
        );
    }
}

/// Gradients of `Σ forward(inputs) ∘ dy` by candle's autograd.
pub(crate) fn autograd(
    inputs: &[&Tensor],
    dy: &Tensor,
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let variables: Vec<Var> = inputs
        .iter()
        .map(|input| Var::from_tensor(input))
        .collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let y = forward(&tensors)?;
    let gradients = (&y * dy)?.sum_all()?.backward()?;
    let gradients = tensors
        .iter()
        .map(|tensor| {
            gradients
                .get(tensor)
                .cloned()
                .expect("the graph reaches every input")
        })
        .collect();
    Ok((y.detach(), gradients))
}

/// Runs `work` on a pool of its own.
pub(crate) fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a thread pool")
        .install(work)
}
