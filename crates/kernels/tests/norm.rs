//! RMS normalisation against composed candle operations, finite differences and itself.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{
    Generator, assert_close, assert_same, autograd, check_gradient, inner, on_threads, single,
};
use sparsam_kernels::norm::{rms_norm, rms_norm_backward, rms_norm_to_bf16};

const EPS: f64 = 1e-5;

fn composed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let root = (x.sqr()?.mean_keepdim(1)? + EPS)?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

#[test]
fn bf16_is_f32_rounded() -> Result<()> {
    let mut generator = Generator(8);
    for (rows, width) in [(1, 1), (3, 32), (65, 37), (33, 257)] {
        let x = single(&generator.tensor(&[rows, width])?)?;
        let weight = single(&generator.tensor(&[width])?)?;
        let (y, roots) = rms_norm(&x, &weight, EPS)?;
        let (y_16, roots_16) = rms_norm_to_bf16(&x, &weight, EPS)?;
        assert_same("y", &y_16, &y.to_dtype(DType::BF16)?);
        assert_same("roots", &roots_16, &roots);
    }
    Ok(())
}

#[test]
fn equals_composed_operations_and_their_gradients() -> Result<()> {
    let mut generator = Generator(1);
    for (rows, width) in [(1, 1), (3, 32), (65, 37), (33, 257), (2, 8192)] {
        let (x, dy) = (
            generator.tensor(&[rows, width])?,
            generator.tensor(&[rows, width])?,
        );
        let (weight, residual) = (
            generator.tensor(&[width])?,
            generator.tensor(&[rows, width])?,
        );
        let (y, grads) = autograd(&[&x, &weight], &dy, |v| composed(&v[0], &v[1]))?;
        let (found, inv_rms) = rms_norm(&x, &weight, EPS)?;
        assert_close("y", &found, &y, 1e-13);
        let weight_grad = generator.tensor(&[width])?;
        let expected = (&weight_grad + &grads[1])?;
        let dx = rms_norm_backward(
            &dy,
            &x,
            &weight,
            &inv_rms,
            Some(&residual),
            Some(&weight_grad),
        )?;
        assert_close("dx", &dx, &(&grads[0] + &residual)?, 1e-11);
        assert_close("dw", &weight_grad, &expected, 1e-12);
    }
    Ok(())
}

#[test]
fn is_the_slope_of_its_forward_pass() -> Result<()> {
    let mut generator = Generator(2);
    let (x, dy) = (generator.tensor(&[5, 33])?, generator.tensor(&[5, 33])?);
    let weight = generator.tensor(&[33])?;
    let (_, inv_rms) = rms_norm(&x, &weight, EPS)?;
    let weight_grad = Tensor::zeros(33, DType::F64, &Device::Cpu)?;
    let dx = rms_norm_backward(&dy, &x, &weight, &inv_rms, None, Some(&weight_grad))?;
    check_gradient("dx", &x, &dx, |x| inner(&rms_norm(x, &weight, EPS)?.0, &dy));
    check_gradient("dw", &weight, &weight_grad, |w| {
        inner(&rms_norm(&x, w, EPS)?.0, &dy)
    });
    Ok(())
}

#[test]
fn f32_is_near_f64_and_the_same_on_any_number_of_threads() -> Result<()> {
    let mut generator = Generator(3);
    let (x, dy) = (
        generator.tensor(&[130, 576])?,
        generator.tensor(&[130, 576])?,
    );
    let weight = generator.tensor(&[576])?;
    let (y, inv_rms) = rms_norm(&x, &weight, EPS)?;
    let dx = rms_norm_backward(&dy, &x, &weight, &inv_rms, None, None)?;
    let run = || -> Result<[Tensor; 3]> {
        let (x, dy, weight) = (single(&x)?, single(&dy)?, single(&weight)?);
        let weight_grad = Tensor::zeros(576, DType::F32, &Device::Cpu)?;
        let (y, inv_rms) = rms_norm(&x, &weight, EPS)?;
        let dx = rms_norm_backward(&dy, &x, &weight, &inv_rms, None, Some(&weight_grad))?;
        Ok([y, dx, weight_grad])
    };
    let (one, three) = (on_threads(1, run)?, on_threads(3, run)?);
    assert_close("y", &one[0], &y, 1e-6);
    assert_close("dx", &one[1], &dx, 1e-6);
    for (one, three) in one.iter().zip(&three) {
        assert_same("threads", one, three);
    }
    Ok(())
}

#[test]
fn refuses_shapes_that_do_not_fit() -> Result<()> {
    let mut generator = Generator(4);
    let x = generator.tensor(&[4, 8])?;
    let short = generator.tensor(&[7])?;
    let weight = generator.tensor(&[8])?;
    let (_, inv_rms) = rms_norm(&x, &weight, EPS)?;
    assert!(rms_norm(&x, &short, EPS).is_err());
    assert!(rms_norm(&x.t()?, &generator.tensor(&[4])?, EPS).is_err());
    let backward = |inv_rms: &Tensor, residual: &Tensor, into: &Tensor| {
        rms_norm_backward(&x, &x, &weight, inv_rms, Some(residual), Some(into))
    };
    let into = weight.zeros_like()?;
    assert!(backward(&inv_rms, &x, &into).is_ok());
    assert!(backward(&weight, &x, &into).is_err());
    assert!(backward(&inv_rms, &weight, &into).is_err());
    assert!(backward(&inv_rms, &x, &short).is_err());
    Ok(())
}
