//! Gated activations against composed candle operations, finite differences and themselves.

mod common;

use candle_core::{DType, Result, Tensor};
use common::{
    Generator, assert_close, assert_same, autograd, check_gradient, inner, on_threads, single,
};
use sparsam_kernels::activation::{
    Activation, gated, gated_backward, gated_backward_in_place, gated_to_bf16,
};

const ALL: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

fn composed(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::Gelu => gate.gelu_erf()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    gate * up
}

#[test]
fn equals_composed_operations_and_their_gradients() -> Result<()> {
    let mut generator = Generator(1);
    for activation in ALL {
        for dims in [[1, 1], [3, 17], [70, 131]] {
            let gate = (generator.tensor(&dims)? * 4.0)?;
            let (up, dy) = (generator.tensor(&dims)?, generator.tensor(&dims)?);
            let (y, grads) = autograd(&[&gate, &up], &dy, |v| composed(activation, &v[0], &v[1]))?;
            assert_close("y", &gated(activation, &gate, &up)?, &y, 1e-13);
            let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
            // candle's gradients of GELU use constants of six digits.
            assert_close("dgate", &dgate, &grads[0], 1e-5);
            assert_close("dup", &dup, &grads[1], 1e-12);
        }
    }
    Ok(())
}

#[test]
fn gradients_in_place_are_the_same() -> Result<()> {
    let mut generator = Generator(7);
    for activation in ALL {
        // Pieces of a task and tasks of several pieces, and what is left of them.
        for dims in [[1, 1], [3, 17], [1, 512], [70, 131], [3, 9001]] {
            let gate = (generator.tensor(&dims)? * 4.0)?;
            let (up, dy) = (generator.tensor(&dims)?, generator.tensor(&dims)?);
            for dtype in [DType::F64, DType::F32, DType::BF16] {
                let (gate, up) = (gate.to_dtype(dtype)?, up.to_dtype(dtype)?);
                let dy = match dtype {
                    DType::BF16 => dy.to_dtype(DType::F32)?,
                    _ => dy.to_dtype(dtype)?,
                };
                let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
                let (gate, up) = (gate.copy()?, up.copy()?);
                let (dgate_in, dup_in) = gated_backward_in_place(activation, &dy, gate, up)?;
                let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
                assert_same("dgate", &wide(&dgate)?, &wide(&dgate_in)?);
                assert_same("dup", &wide(&dup)?, &wide(&dup_in)?);
            }
        }
    }
    Ok(())
}

#[test]
fn is_the_slope_of_its_forward_pass() -> Result<()> {
    let mut generator = Generator(2);
    for activation in ALL {
        let gate = (generator.tensor(&[5, 13])? * 3.0)?;
        let (up, dy) = (generator.tensor(&[5, 13])?, generator.tensor(&[5, 13])?);
        let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
        check_gradient("dgate", &gate, &dgate, |g| {
            inner(&gated(activation, g, &up)?, &dy)
        });
        check_gradient("dup", &up, &dup, |u| {
            inner(&gated(activation, &gate, u)?, &dy)
        });
    }
    Ok(())
}

/// What bf16 does is what f32 does with the operands rounded, rounded.
#[test]
fn bf16_is_f32_rounded() -> Result<()> {
    let mut generator = Generator(4);
    for dims in [[1, 1], [5, 103], [97, 301]] {
        let gate = single(&(generator.tensor(&dims)? * 6.0)?)?;
        let (up, dy) = (
            single(&generator.tensor(&dims)?)?,
            single(&generator.tensor(&dims)?)?,
        );
        let narrow = |x: &Tensor| x.to_dtype(DType::BF16);
        let rounded = |x: &Tensor| narrow(x)?.to_dtype(DType::F32);
        for activation in ALL {
            let [y, gate_16, up_16] = gated_to_bf16(activation, &gate, &up)?;
            assert_same("y", &y, &narrow(&gated(activation, &gate, &up)?)?);
            assert_same("gate", &gate_16, &narrow(&gate)?);
            assert_same("up", &up_16, &narrow(&up)?);
            let (gate, up) = (rounded(&gate)?, rounded(&up)?);
            let y = gated(activation, &gate_16, &up_16)?;
            assert_same("y", &y, &narrow(&gated(activation, &gate, &up)?)?);
            let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
            let (dgate_16, dup_16) = gated_backward(activation, &dy, &gate_16, &up_16)?;
            assert_same("dgate", &dgate_16, &narrow(&dgate)?);
            assert_same("dup", &dup_16, &narrow(&dup)?);
        }
    }
    Ok(())
}

#[test]
fn f32_is_near_f64_and_the_same_on_any_number_of_threads() -> Result<()> {
    let mut generator = Generator(3);
    let dims = [97, 301];
    let gate = (generator.tensor(&dims)? * 6.0)?;
    let (up, dy) = (generator.tensor(&dims)?, generator.tensor(&dims)?);
    for activation in ALL {
        let y = gated(activation, &gate, &up)?;
        let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
        let run = || -> Result<[Tensor; 3]> {
            let (gate, up, dy) = (single(&gate)?, single(&up)?, single(&dy)?);
            let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
            Ok([gated(activation, &gate, &up)?, dgate, dup])
        };
        let (one, three) = (on_threads(1, run)?, on_threads(3, run)?);
        for ((one, three), exact) in one.iter().zip(&three).zip([&y, &dgate, &dup]) {
            // The exponent of a gate of 9 is rounded at several times its own precision.
            assert_close("f32", one, exact, 5e-6);
            assert_same("threads", one, three);
        }
    }
    Ok(())
}

/// Far from zero the gate is open or shut, without overflow on the way.
#[test]
fn keeps_its_ends() -> Result<()> {
    let gate = Tensor::new(
        &[[-1e4f32, -100.0, 0.0, 100.0, 1e4]],
        &candle_core::Device::Cpu,
    )?;
    let one = gate.ones_like()?;
    for activation in ALL {
        let y = gated(activation, &gate, &one)?;
        assert_close("y", &y, &gate.relu()?, 1e-7);
        let (dgate, _) = gated_backward(activation, &one, &gate, &one)?;
        let expected = Tensor::new(&[[0f32, 0.0, 0.5, 1.0, 1.0]], &candle_core::Device::Cpu)?;
        assert_close("dgate", &dgate, &expected, 1e-7);
    }
    Ok(())
}

#[test]
fn refuses_shapes_that_differ() -> Result<()> {
    let mut generator = Generator(4);
    let (x, y) = (generator.tensor(&[2, 3])?, generator.tensor(&[3, 2])?);
    assert!(gated(Activation::Silu, &x, &y).is_err());
    assert!(gated_backward(Activation::Silu, &y, &x, &x).is_err());
    assert!(gated_backward_in_place(Activation::Silu, &y, x.clone(), x.copy()?).is_err());
    // Halves of one tensor, and the gradient itself.
    let dy = x.copy()?;
    let (one, other) = (x.narrow(0, 0, 1)?, x.narrow(0, 1, 1)?);
    let dy_of_one = dy.narrow(0, 0, 1)?;
    assert!(gated_backward_in_place(Activation::Silu, &dy_of_one, one, other).is_err());
    assert!(gated_backward_in_place(Activation::Silu, &dy, x.copy()?, dy.clone()).is_err());
    assert!(gated_backward_in_place(Activation::Silu, &x, x.clone(), y).is_err());
    assert!(gated(Activation::Silu, &x, &single(&x)?).is_err());
    Ok(())
}
