//! The loss of texts that are classified: logits `[texts, classes]`, all there at once, a target a text.

use candle_core::{Result, Tensor, bail};

use super::{Begun, IGNORE, Loss};
use crate::host::{fetch, tensor, view};

/// Probabilities of each text, `[texts · classes]` in f64, and how many classes there are; waits for a GPU.
///
/// # Errors
/// Other shapes or types.
pub fn probabilities(logits: &Tensor) -> Result<(Vec<f64>, usize)> {
    let (_, classes) = logits.dims2()?;
    let logits = fetch(logits)?;
    let logits = view::<f32>(&logits)?;
    let mut all = Vec::with_capacity(logits.len());
    for row in logits.chunks_exact(classes) {
        let greatest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let powers = row.iter().map(|logit| f64::from(logit - greatest).exp());
        let powers: Vec<f64> = powers.collect();
        let sum: f64 = powers.iter().sum();
        all.extend(powers.into_iter().map(|power| power / sum));
    }
    Ok((all, classes))
}

/// The summed loss of texts under their probabilities; those of [`IGNORE`] count for nothing.
///
/// # Errors
/// A target beyond the classes.
pub fn class_loss(probabilities: &[f64], classes: usize, targets: &[u32]) -> Result<Loss> {
    within(targets, classes)?;
    let mut loss = Loss {
        sum: 0.0,
        targets: 0,
        correct: 0,
        hidden_grad: None,
    };
    for (row, target) in probabilities.chunks_exact(classes).zip(targets) {
        if *target == IGNORE {
            continue;
        }
        let p = row[*target as usize];
        loss.sum -= p.max(f64::MIN_POSITIVE).ln();
        loss.targets += 1;
        loss.correct += usize::from(row.iter().all(|other| *other <= p));
    }
    // Logits that are not numbers make every probability none.
    if probabilities.iter().any(|p| p.is_nan()) {
        loss.sum = f64::NAN;
    }
    Ok(loss)
}

/// The loss of texts under their logits, and the gradient of `grad_scale` times its sum by the logits, f32
/// `[texts, classes]`: probabilities, less 1 at the target. Does not wait for a GPU.
///
/// # Errors
/// Other shapes or types, or a target beyond the classes.
pub fn begin_class_loss(
    logits: &Tensor,
    targets: &[u32],
    grad_scale: f64,
) -> Result<(Begun, Tensor)> {
    let (texts, classes) = logits.dims2()?;
    if targets.len() != texts {
        bail!(
            "`begin_class_loss`: {} targets for {texts} texts",
            targets.len()
        );
    }
    within(targets, classes)?;
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return crate::cuda::begin_class_loss(logits, targets, grad_scale);
    }
    let (mut p, classes) = probabilities(logits)?;
    let loss = class_loss(&p, classes, targets)?;
    for (row, target) in p.chunks_exact_mut(classes).zip(targets) {
        if *target == IGNORE {
            row.fill(0.0);
        } else {
            row[*target as usize] -= 1.0;
        }
    }
    let gradient: Vec<f32> = p.iter().map(|p| (p * grad_scale) as f32).collect();
    Ok((Begun::known(loss), tensor(gradient, (texts, classes))?))
}

/// The first target that is no class.
pub fn beyond_classes(targets: &[u32], classes: usize) -> Option<u32> {
    let beyond = |target: &u32| *target != IGNORE && *target as usize >= classes;
    targets.iter().copied().find(beyond)
}

fn within(targets: &[u32], classes: usize) -> Result<()> {
    match beyond_classes(targets, classes) {
        None => Ok(()),
        Some(target) => bail!("a text is of class {target}, the head knows {classes}"),
    }
}
