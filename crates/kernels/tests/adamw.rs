//! AdamW against a step written out number by number, and the gradient norm.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Generator, assert_close, assert_same, on_threads, single, values};
use sparsam_kernels::adamw::{AdamW, adamw_step, grad_norm_squared};

const SETTINGS: AdamW = AdamW {
    lr: 3e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
};

/// Loshchilov and Hutter's algorithm 2, with the factor on the gradient.
fn by_hand(param: &mut f64, moments: &mut (f64, f64), grad: f64, step: i32) {
    let AdamW {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
    } = SETTINGS;
    moments.0 = beta1 * moments.0 + (1.0 - beta1) * grad;
    moments.1 = beta2 * moments.1 + (1.0 - beta2) * grad * grad;
    let first = moments.0 / (1.0 - beta1.powi(step));
    let second = moments.1 / (1.0 - beta2.powi(step));
    *param -= lr * (first / (second.sqrt() + eps) + weight_decay * *param);
}

#[test]
fn follows_the_published_algorithm() -> Result<()> {
    const COUNT: usize = 40_000;
    let mut generator = Generator(1);
    let param = generator.tensor(&[COUNT])?;
    let mut expected: Vec<(f64, (f64, f64))> = values(&param)?
        .into_iter()
        .map(|p| (p, (0.0, 0.0)))
        .collect();
    let narrow = single(&param)?;
    let zeros = |dtype| Tensor::zeros(COUNT, dtype, &Device::Cpu);
    let (m, v) = (zeros(DType::F64)?, zeros(DType::F64)?);
    let (m32, v32) = (zeros(DType::F32)?, zeros(DType::F32)?);
    for step in 1..=5 {
        let grad = generator.tensor(&[COUNT])?;
        for ((param, moments), grad) in expected.iter_mut().zip(values(&grad)?) {
            by_hand(param, moments, grad * 0.25, step);
        }
        adamw_step(&param, &grad, &m, &v, &SETTINGS, step as usize, 0.25)?;
        adamw_step(
            &narrow,
            &single(&grad)?,
            &m32,
            &v32,
            &SETTINGS,
            step as usize,
            0.25,
        )?;
    }
    let of = |f: fn(&(f64, (f64, f64))) -> f64| {
        Tensor::from_vec(
            expected.iter().map(f).collect::<Vec<_>>(),
            COUNT,
            &Device::Cpu,
        )
    };
    assert_close("parameter", &param, &of(|e| e.0)?, 1e-13);
    assert_close("first moment", &m, &of(|e| e.1.0)?, 1e-13);
    assert_close("second moment", &v, &of(|e| e.1.1)?, 1e-13);
    // A gradient near zero divides two small numbers, so f32 is compared loosely.
    assert_close("f32 parameter", &narrow, &of(|e| e.0)?, 1e-5);
    Ok(())
}

#[test]
fn agrees_with_candle() -> Result<()> {
    use candle_nn::optim::{AdamW as Reference, Optimizer, ParamsAdamW};
    let mut generator = Generator(2);
    let start = generator.tensor(&[300])?;
    let variable = candle_core::Var::from_tensor(&start)?;
    let AdamW {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
    } = SETTINGS;
    let mut reference = Reference::new(
        vec![variable.clone()],
        ParamsAdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
        },
    )?;
    let (m, v) = (start.zeros_like()?, start.zeros_like()?);
    for step in 1..=4 {
        let grad = generator.tensor(&[300])?;
        reference.step(&(variable.as_tensor() * &grad)?.sum_all()?.backward()?)?;
        adamw_step(&start, &grad, &m, &v, &SETTINGS, step, 1.0)?;
        assert_close("parameter", &start, variable.as_tensor(), 1e-12);
    }
    Ok(())
}

#[test]
fn norms_are_exact_and_the_same_on_any_number_of_threads() -> Result<()> {
    let mut generator = Generator(3);
    let (x, y) = (generator.tensor(&[333, 301])?, generator.tensor(&[17])?);
    let exact: f64 = values(&x)?.iter().chain(&values(&y)?).map(|x| x * x).sum();
    assert!((grad_norm_squared(&[&x, &y])? / exact - 1.0).abs() < 1e-13);
    let (x, y) = (single(&x)?, single(&y)?);
    let run = || grad_norm_squared(&[&x, &y]);
    let (one, three) = (on_threads(1, run)?, on_threads(3, run)?);
    assert!((one / exact - 1.0).abs() < 1e-6);
    assert_eq!(one.to_bits(), three.to_bits());
    Ok(())
}

#[test]
fn threads_do_not_matter_and_bad_input_is_refused() -> Result<()> {
    let mut generator = Generator(4);
    let (param, grad) = (generator.tensor(&[50_001])?, generator.tensor(&[50_001])?);
    let run = || -> Result<Tensor> {
        let param = single(&param)?;
        let (m, v) = (param.zeros_like()?, param.zeros_like()?);
        adamw_step(&param, &single(&grad)?, &m, &v, &SETTINGS, 1, 1.0)?;
        Ok(param)
    };
    assert_same("threads", &on_threads(1, run)?, &on_threads(3, run)?);
    let (m, v) = (grad.zeros_like()?, grad.zeros_like()?);
    assert!(adamw_step(&param, &grad, &m, &v, &SETTINGS, 0, 1.0).is_err());
    assert!(adamw_step(&param, &grad, &m, &grad.narrow(0, 0, 5)?, &SETTINGS, 1, 1.0).is_err());
    assert!(adamw_step(&param, &single(&grad)?, &m, &v, &SETTINGS, 1, 1.0).is_err());
    Ok(())
}
