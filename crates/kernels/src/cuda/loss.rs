//! Head and loss on the GPU, in chunks of tokens. The losses are read when whoever asked for them wants to wait.

use candle_core::{DType, Result, Tensor};

use super::blas::{Operand, gemm};
use super::launch::{Launch, device, unwritten, upload};
use super::pointwise::{expand, of_type};
use crate::cross_entropy::{Begun, IGNORE, LOGITS_ON_GPU, Want};
use crate::weight::Weight;

/// Losses and hits of every token with a target, with the places of those tokens. Of what has none, both are 0.
pub(crate) struct Losses {
    places: Vec<u32>,
    losses: Vec<Tensor>,
    correct: Vec<Tensor>,
}

impl Losses {
    /// Waits for the GPU.
    fn read(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let all = |parts: &[Tensor]| match parts {
            [] => Ok(Vec::new()),
            parts => Tensor::cat(parts, 0)?.to_vec1::<f32>(),
        };
        Ok((all(&self.losses)?, all(&self.correct)?))
    }

    /// Their sum, how many there are, and how many targets were the likeliest token.
    pub(crate) fn sums(&self) -> Result<(f64, usize, usize)> {
        let (nats, correct) = self.read()?;
        let sum = nats.iter().map(|nats| f64::from(*nats)).sum();
        let correct = correct.iter().filter(|correct| **correct > 0.0).count();
        Ok((sum, self.places.len(), correct))
    }
}

fn head(weight: &Weight) -> Result<Tensor> {
    match weight {
        Weight::OnDevice(stored) => expand(stored, stored.compute),
        Weight::Dense(tensor) => Ok(tensor.clone()),
        _ => candle_core::bail!("a quantised head was not put on the GPU"),
    }
}

/// Losses and hits of rows of logits; these become their gradient, if it has a factor.
fn judged(
    logits: &Tensor,
    targets: &Tensor,
    grad_scale: f64,
    softcap: Option<f64>,
) -> Result<(Tensor, Tensor)> {
    let (rows, vocabulary) = logits.dims2()?;
    let losses = unwritten(rows, DType::F32, logits)?;
    let correct = unwritten(rows, DType::F32, logits)?;
    Launch::new("cross_entropy", device(logits)?)
        .floats(logits)?
        .words(targets)?
        .floats(&losses)?
        .floats(&correct)?
        .int(vocabulary)?
        .float(grad_scale)
        .float(softcap.unwrap_or(0.0))
        .run((rows, 1), (512, 1), 0)?;
    Ok((losses, correct))
}

/// Enqueues all chunks. `work` gets each one's places, states and, where a gradient is wanted, that of its logits.
fn in_chunks(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    grad_scale: f64,
    softcap: Option<f64>,
    mut work: impl FnMut(&Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<Losses> {
    let vocabulary = head.dims2()?.0;
    let places: Vec<u32> = (0..targets.len() as u32)
        .filter(|i| targets[*i as usize] != IGNORE)
        .collect();
    let most = (LOGITS_ON_GPU / vocabulary.max(1)).max(1);
    let size = places
        .len()
        .div_ceil(places.len().div_ceil(most).max(1))
        .max(1);
    let mut found = Losses {
        places: Vec::new(),
        losses: Vec::new(),
        correct: Vec::new(),
    };
    for chunk in places.chunks(size) {
        let count = chunk.len();
        let wanted: Vec<u32> = chunk.iter().map(|place| targets[*place as usize]).collect();
        let (chunk, wanted) = (upload(chunk.to_vec(), hidden)?, upload(wanted, hidden)?);
        let states = hidden.index_select(&chunk, 0)?;
        let logits = unwritten((count, vocabulary), DType::F32, hidden)?;
        let narrow = of_type(&states, head.dtype())?;
        gemm(
            Operand::plain(&narrow),
            Operand::transposed(head),
            &logits,
            1.0,
            0.0,
        )?;
        let (losses, correct) = judged(&logits, &wanted, grad_scale, softcap)?;
        found.losses.push(losses);
        found.correct.push(correct);
        work(&chunk, &states, &logits)?;
    }
    found.places = places;
    Ok(found)
}

pub(crate) fn begin_cross_entropy(
    hidden: &Tensor,
    weight: &Weight,
    targets: &[u32],
    want: Want,
) -> Result<Begun> {
    let head = head(weight)?;
    let (tokens, width) = hidden.dims2()?;
    let gradient = match want.grad_scale {
        Some(_) => Some(Tensor::zeros((tokens, width), DType::F32, hidden.device())?),
        None => None,
    };
    let losses = in_chunks(
        hidden,
        &head,
        targets,
        want.grad_scale.unwrap_or(0.0),
        want.softcap,
        |chunk, states, dlogits| {
            let Some(gradient) = &gradient else {
                return Ok(());
            };
            let count = chunk.dims1()?;
            let dstates = unwritten((count, width), DType::F32, hidden)?;
            let narrow = of_type(dlogits, head.dtype())?;
            gemm(
                Operand::plain(&narrow),
                Operand::plain(&head),
                &dstates,
                1.0,
                0.0,
            )?;
            Launch::new("scatter_rows", device(hidden)?)
                .floats(&dstates)?
                .words(chunk)?
                .floats(gradient)?
                .int(width)?
                .rows(count, width)?;
            match want.weight_grad {
                Some(into) => gemm(
                    Operand::transposed(dlogits),
                    Operand::plain(states),
                    into,
                    1.0,
                    1.0,
                ),
                None => Ok(()),
            }
        },
    )?;
    Ok(Begun::on_gpu(losses, gradient))
}

pub(crate) fn begin_class_loss(
    logits: &Tensor,
    targets: &[u32],
    grad_scale: f64,
) -> Result<(Begun, Tensor)> {
    let texts = targets.len();
    let gradient = logits.copy()?;
    let wanted = upload(targets.to_vec(), logits)?;
    let (losses, correct) = judged(&gradient, &wanted, grad_scale, None)?;
    let counted = (0..texts as u32).filter(|text| targets[*text as usize] != IGNORE);
    let losses = Losses {
        places: counted.collect(),
        losses: vec![losses],
        correct: vec![correct],
    };
    Ok((Begun::on_gpu(losses, None), gradient))
}

pub(crate) fn linear_token_losses(
    hidden: &Tensor,
    weight: &Weight,
    targets: &[u32],
) -> Result<Vec<Option<f64>>> {
    let losses = in_chunks(hidden, &head(weight)?, targets, 0.0, None, |_, _, _| Ok(()))?;
    let mut all = vec![None; targets.len()];
    for (place, nats) in losses.places.iter().zip(losses.read()?.0) {
        all[*place as usize] = Some(f64::from(nats));
    }
    Ok(all)
}
