//! Head and loss against composed candle operations, finite differences and themselves.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{
    Generator, assert_close, assert_same, autograd, check_gradient, on_threads, single, values,
};
use sparsam_kernels::Weight;
use sparsam_kernels::cross_entropy::{
    IGNORE, Want, begin_class_loss, linear_cross_entropy, linear_token_losses,
};

/// Every third token without a target.
fn targets(generator: &mut Generator, tokens: usize, vocabulary: usize) -> Vec<u32> {
    (0..tokens)
        .map(|i| {
            if i % 3 == 1 {
                IGNORE
            } else {
                generator.between(0, vocabulary) as u32
            }
        })
        .collect()
}

/// The two orders in which logits are taken: chunks of tokens, for a head that is trained, and blocks of the
/// vocabulary for one that is not.
fn both(trained: Want) -> [Want; 2] {
    let frozen = Want {
        weight_grad: None,
        ..trained
    };
    [trained, frozen]
}

/// Losses `[targets]` of the counted tokens.
fn composed(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    softcap: Option<f64>,
) -> Result<Tensor> {
    let counted: Vec<u32> = (0..targets.len())
        .filter(|i| targets[*i] != IGNORE)
        .map(|i| i as u32)
        .collect();
    let chosen: Vec<u32> = counted.iter().map(|i| targets[*i as usize]).collect();
    let count = counted.len();
    let counted = Tensor::from_vec(counted, count, &Device::Cpu)?;
    let chosen = Tensor::from_vec(chosen, (count, 1), &Device::Cpu)?;
    let logits = hidden.index_select(&counted, 0)?.matmul(&head.t()?)?;
    let logits = match softcap {
        Some(cap) => ((logits / cap)?.tanh()? * cap)?,
        None => logits,
    };
    candle_nn::ops::log_softmax(&logits, 1)?
        .gather(&chosen, 1)?
        .neg()?
        .squeeze(1)
}

#[test]
fn equals_composed_operations_and_their_gradients() -> Result<()> {
    let mut generator = Generator(1);
    for (tokens, width, vocabulary) in [(1, 1, 2), (7, 5, 33), (40, 16, 257), (301, 9, 40_001)] {
        let hidden = generator.tensor(&[tokens, width])?;
        let head = generator.tensor(&[vocabulary, width])?;
        let targets = targets(&mut generator, tokens, vocabulary);
        let count = targets.iter().filter(|t| **t != IGNORE).count();
        let scale = 0.37;
        let dy = Tensor::full(scale, count, &Device::Cpu)?;
        let (losses, grads) = autograd(&[&hidden, &head], &dy, |v| {
            composed(&v[0], &v[1], &targets, None)
        })?;
        let weight_grad = head.ones_like()?;
        let want = Want {
            grad_scale: Some(scale),
            weight_grad: Some(&weight_grad),
            softcap: None,
        };
        let weight = Weight::Dense(head.clone());
        let expected: f64 = values(&losses)?.iter().sum();
        for want in both(want) {
            let loss = linear_cross_entropy(&hidden, &weight, &targets, want)?;
            assert!(
                (loss.sum - expected).abs() <= 1e-11 * expected.abs(),
                "{} {expected}",
                loss.sum
            );
            assert_eq!(loss.targets, count);
            let grad = loss.hidden_grad.expect("a gradient was asked for");
            assert_close("hidden", &grad, &grads[0], 1e-11);
        }
        assert_close("head", &(weight_grad - 1.0)?, &grads[1], 1e-11);

        let singles = linear_token_losses(&hidden, &weight, &targets)?;
        assert_eq!(singles.len(), tokens);
        assert!(
            singles
                .iter()
                .zip(&targets)
                .all(|(l, t)| l.is_some() == (*t != IGNORE))
        );
        let singles: Vec<f64> = singles.into_iter().flatten().collect();
        let singles = Tensor::from_vec(singles, count, &Device::Cpu)?;
        assert_close("token losses", &singles, &losses, 1e-11);
    }
    Ok(())
}

#[test]
fn is_the_slope_of_its_loss() -> Result<()> {
    let mut generator = Generator(2);
    let (hidden, head) = (generator.tensor(&[11, 7])?, generator.tensor(&[29, 7])?);
    let targets = targets(&mut generator, 11, 29);
    let weight_grad = head.zeros_like()?;
    let want = Want {
        grad_scale: Some(1.0),
        weight_grad: Some(&weight_grad),
        softcap: None,
    };
    let loss = |hidden: &Tensor, head: &Tensor, want| {
        linear_cross_entropy(hidden, &Weight::Dense(head.clone()), &targets, want)
    };
    let none = Want::default();
    for want in both(want) {
        let grad = loss(&hidden, &head, want)?
            .hidden_grad
            .expect("a gradient was asked for");
        check_gradient("hidden", &hidden, &grad, |h| Ok(loss(h, &head, none)?.sum));
    }
    check_gradient("head", &head, &weight_grad, |w| {
        Ok(loss(&hidden, w, none)?.sum)
    });
    Ok(())
}

#[test]
fn f32_is_near_f64_and_the_same_on_any_number_of_threads() -> Result<()> {
    let mut generator = Generator(3);
    let (hidden, head) = (
        generator.tensor(&[200, 33])?,
        generator.tensor(&[40_000, 33])?,
    );
    // Two blocks of the vocabulary.
    let targets = targets(&mut generator, 200, 40_000);
    let want = Want {
        grad_scale: Some(0.01),
        ..Want::default()
    };
    let exact = linear_cross_entropy(&hidden, &Weight::Dense(head.clone()), &targets, want)?;
    let exact_grad = exact.hidden_grad.expect("a gradient was asked for");
    for order in 0..2 {
        let run = || -> Result<(f64, usize, Tensor, Tensor)> {
            let weight_grad = Tensor::zeros((40_000, 33), DType::F32, &Device::Cpu)?;
            let trained = Want {
                weight_grad: Some(&weight_grad),
                ..want
            };
            let head = Weight::Dense(single(&head)?);
            let want = both(trained)[order];
            let loss = linear_cross_entropy(&single(&hidden)?, &head, &targets, want)?;
            let grad = loss.hidden_grad.expect("a gradient was asked for");
            Ok((loss.sum, loss.correct, grad, weight_grad))
        };
        let (one, three) = (on_threads(1, run)?, on_threads(3, run)?);
        assert!((one.0 / exact.sum - 1.0).abs() < 1e-6);
        assert_eq!(one.1, exact.correct);
        assert_close("hidden", &one.2, &exact_grad, 1e-5);
        assert_eq!(one.0.to_bits(), three.0.to_bits());
        assert_eq!(one.1, three.1);
        assert_same("hidden", &one.2, &three.2);
        assert_same("head", &one.3, &three.3);
    }
    Ok(())
}

#[test]
fn counts_the_targets_that_were_likeliest() -> Result<()> {
    // With the unit matrix as head, the hidden states are the logits.
    let head = Weight::Dense(Tensor::eye(3, DType::F32, &Device::Cpu)?);
    let hidden = Tensor::new(
        &[[3f32, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 2.0, 9.0]],
        &Device::Cpu,
    )?;
    let loss = linear_cross_entropy(&hidden, &head, &[0, 0, 2], Want::default())?;
    assert_eq!((loss.correct, loss.targets), (2, 3));
    assert!(loss.hidden_grad.is_none());
    Ok(())
}

#[test]
fn great_logits_stay_finite_and_no_target_is_no_loss() -> Result<()> {
    let head = Weight::Dense(Tensor::eye(2, DType::F32, &Device::Cpu)?);
    let hidden = Tensor::new(&[[1e30f32, -1e30]], &Device::Cpu)?;
    let want = Want {
        grad_scale: Some(1.0),
        ..Want::default()
    };
    let weight_grad = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
    let trained = Want {
        weight_grad: Some(&weight_grad),
        ..want
    };
    for want in both(trained) {
        let loss = linear_cross_entropy(&hidden, &head, &[0], want)?;
        assert_eq!(loss.sum, 0.0);
        assert_eq!(values(&loss.hidden_grad.expect("a gradient"))?, [0.0, 0.0]);
    }
    let none = linear_cross_entropy(&hidden, &head, &[IGNORE], want)?;
    assert_eq!((none.sum, none.targets), (0.0, 0));
    assert_eq!(values(&none.hidden_grad.expect("a gradient"))?, [0.0, 0.0]);
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() -> Result<()> {
    let head = Weight::Dense(Tensor::eye(3, DType::F32, &Device::Cpu)?);
    let hidden = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
    let run = |targets: &[u32], want| linear_cross_entropy(&hidden, &head, targets, want);
    let error = run(&[0, 3], Want::default())
        .expect_err("beyond the vocabulary")
        .to_string();
    assert!(error.contains("target 3"), "{error}");
    assert!(run(&[0], Want::default()).is_err());
    let grad = hidden.clone();
    let want = Want {
        grad_scale: Some(1.0),
        weight_grad: Some(&grad),
        softcap: None,
    };
    assert!(run(&[0, 1], want).is_err());
    let narrow = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
    assert!(linear_cross_entropy(&narrow, &head, &[0, 1], Want::default()).is_err());
    Ok(())
}

#[test]
fn softened_logits_have_their_own_loss_and_gradients() -> Result<()> {
    let mut generator = Generator(9);
    // Several blocks of the vocabulary.
    let vocabulary = 90_001;
    let (hidden, head) = (
        generator.tensor(&[151, 9])?,
        generator.tensor(&[vocabulary, 9])?,
    );
    let targets = targets(&mut generator, 151, vocabulary);
    let count = targets.iter().filter(|t| **t != IGNORE).count();
    let dy = Tensor::full(0.37, count, &Device::Cpu)?;
    let softcap = Some(2.0);
    let (losses, grads) = autograd(&[&hidden, &head], &dy, |v| {
        composed(&v[0], &v[1], &targets, softcap)
    })?;
    let weight_grad = head.zeros_like()?;
    let want = Want {
        grad_scale: Some(0.37),
        weight_grad: Some(&weight_grad),
        softcap,
    };
    let expected: f64 = values(&losses)?.iter().sum();
    for want in both(want) {
        let loss = linear_cross_entropy(&hidden, &Weight::Dense(head.clone()), &targets, want)?;
        assert!((loss.sum - expected).abs() <= 1e-11 * expected.abs());
        let grad = loss.hidden_grad.expect("a gradient was asked for");
        assert_close("hidden", &grad, &grads[0], 1e-11);
    }
    assert_close("head", &weight_grad, &grads[1], 1e-11);
    Ok(())
}

/// Neither order loses what products of rounded numbers keep: also where the target is so likely that the gradient
/// is a small difference of great numbers.
#[test]
fn rounded_products_keep_the_gradient_of_sure_and_of_unsure_targets() -> Result<()> {
    let (tokens, width, vocabulary) = (40, 64, 120_000);
    let mut generator = Generator(10);
    let head = generator
        .tensor(&[vocabulary, width])?
        .to_dtype(DType::BF16)?;
    let exact = Weight::Dense(head.to_dtype(DType::F64)?);
    let targets: Vec<u32> = (0..tokens).map(|i| (i * 2999) as u32).collect();
    let chosen = Tensor::new(targets.as_slice(), &Device::Cpu)?;
    let towards = head.index_select(&chosen, 0)?.to_dtype(DType::F64)?;
    // Of bf16, so that what is rounded is the probabilities alone.
    for sureness in [0.0, 0.4, 1.0] {
        let hidden = ((generator.tensor(&[tokens, width])? * 0.1)? + (&towards * sureness)?)?;
        let hidden = hidden.to_dtype(DType::BF16)?.to_dtype(DType::F64)?;
        let weight_grad = Tensor::zeros((vocabulary, width), DType::F32, &Device::Cpu)?;
        let trained = Want {
            grad_scale: Some(1.0),
            weight_grad: Some(&weight_grad),
            softcap: None,
        };
        let [_, frozen] = both(trained);
        let truth = linear_cross_entropy(&hidden, &exact, &targets, frozen)?;
        let truth = values(&truth.hidden_grad.expect("a gradient was asked for"))?;
        for want in both(trained) {
            let head = Weight::Dense(head.clone());
            let loss = linear_cross_entropy(&single(&hidden)?, &head, &targets, want)?;
            let found = values(&loss.hidden_grad.expect("a gradient was asked for"))?;
            // Each token's gradient by itself, as they differ by orders of magnitude.
            for (found, truth) in found.chunks(width).zip(truth.chunks(width)) {
                let squares = found.iter().zip(truth).map(|(a, b)| (a - b) * (a - b));
                let distance = squares.sum::<f64>().sqrt();
                let size = truth.iter().map(|v| v * v).sum::<f64>().sqrt();
                // Twice the distance between neighbours of bf16.
                let bound = 2f64.powi(-7) * size;
                assert!(distance <= bound, "{sureness}: {distance} of {size}");
            }
        }
    }
    Ok(())
}

/// Logits are the hidden numbers of a head that is the identity.
#[test]
fn classes_are_a_small_vocabulary() -> Result<()> {
    let mut generator = Generator(77);
    for (texts, classes) in [(1, 2), (8, 3), (33, 40)] {
        let logits = single(&generator.tensor(&[texts, classes])?)?;
        let targets = targets(&mut generator, texts, classes);
        let identity = Weight::Dense(Tensor::eye(classes, DType::F32, &Device::Cpu)?);
        let want = Want {
            grad_scale: Some(0.5),
            ..Want::default()
        };
        let expected = linear_cross_entropy(&logits, &identity, &targets, want)?;
        let (loss, gradient) = begin_class_loss(&logits, &targets, 0.5)?;
        let loss = loss.read()?;
        assert!((loss.sum - expected.sum).abs() <= 1e-6 * expected.sum);
        assert_eq!(
            (loss.targets, loss.correct),
            (expected.targets, expected.correct)
        );
        let hidden_grad = expected.hidden_grad.expect("a gradient");
        assert_close("gradient", &gradient, &hidden_grad, 1e-6);
        assert!(begin_class_loss(&logits, &targets[1..], 0.5).is_err());
    }
    let nothing = Tensor::new(&[[f32::NAN, 0.0]], &Device::Cpu)?;
    let (loss, _) = begin_class_loss(&nothing, &[1], 1.0)?;
    assert!(loss.sum().is_some_and(f64::is_nan));
    Ok(())
}
