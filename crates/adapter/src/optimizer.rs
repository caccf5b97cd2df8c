//! The optimiser: AdamW over everything that is trained, with its state, and clipping before it.

use std::collections::BTreeMap;

use candle_core::Tensor;
use sparsam_kernels::adamw::{AdamW, adamw_step, grad_norm_squared};

use crate::error::{Error, Result};
use crate::trainable::Trainable;

/// AdamW and its moments.
pub struct Optimizer {
    /// Constants; the learning rate is set step by step.
    pub settings: AdamW,
    /// Gradients with a norm above this are scaled down to it.
    pub max_grad_norm: Option<f64>,
    /// How many times as fast as all else the second halves of branches learn (LoRA+: Hayou, Ghosh and Yu 2024),
    /// and with them what has one dimension, as in PEFT's `create_loraplus_optimizer`.
    pub b_ratio: f64,
    /// Updates made so far.
    pub steps: usize,
    /// First and second moment of each trained tensor.
    moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl Optimizer {
    /// A fresh optimiser for what is trained.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn new(trainable: &Trainable, settings: AdamW, max_grad_norm: Option<f64>) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, trained) in trainable.registry() {
            moments.insert(
                name.clone(),
                (trained.value.zeros_like()?, trained.value.zeros_like()?),
            );
        }
        Ok(Self {
            settings,
            max_grad_norm,
            b_ratio: 1.0,
            steps: 0,
            moments,
        })
    }

    /// Updates everything at a learning rate, clears the gradients and returns their norm before
    /// clipping.
    ///
    /// # Errors
    /// A gradient that is not a number; nothing is updated then.
    pub fn step(&mut self, trainable: &Trainable, learning_rate: f64) -> Result<f64> {
        for trained in trainable.registry().values() {
            trained.hold()?;
        }
        let grads: Vec<&Tensor> = trainable
            .registry()
            .values()
            .map(|trained| &trained.grad)
            .collect();
        let norm = grad_norm_squared(&grads)?.sqrt();
        if !norm.is_finite() {
            return Err(Error::training(
                "a gradient is not a number",
                "lower `learning_rate` or set `max_grad_norm`; the last checkpoint is kept",
            ));
        }
        // torch.nn.utils.clip_grad_norm_ divides by the norm plus 1e-6.
        let scale = match self.max_grad_norm {
            Some(most) => (most / (norm + 1e-6)).min(1.0),
            None => 1.0,
        };
        self.steps += 1;
        for (name, trained) in trainable.registry() {
            let Some((first, second)) = self.moments.get(name) else {
                return Err(Error::weight(name, "has no state in the optimiser"));
            };
            let faster = name.ends_with(".lora_B.weight") || trained.value.rank() == 1;
            let lr = learning_rate * if faster { self.b_ratio } else { 1.0 };
            let settings = AdamW {
                lr,
                weight_decay: trained.decayed(lr, self.settings.weight_decay)?,
                ..self.settings
            };
            adamw_step(
                &trained.value,
                &trained.grad,
                first,
                second,
                &settings,
                self.steps,
                scale,
            )?;
            trained.refresh()?;
        }
        trainable.clear_gradients()?;
        Ok(norm)
    }

    /// The moments by name, for a checkpoint.
    pub fn moments(&self) -> &BTreeMap<String, (Tensor, Tensor)> {
        &self.moments
    }

    /// Restores the moments of a checkpoint.
    ///
    /// # Errors
    /// Moments that do not fit.
    pub fn restore(
        &mut self,
        steps: usize,
        moments: BTreeMap<String, (Tensor, Tensor)>,
    ) -> Result<()> {
        for (name, (first, second)) in &self.moments {
            match moments.get(name) {
                Some((m, v)) if m.dims() == first.dims() && v.dims() == second.dims() => {}
                _ => {
                    return Err(Error::weight(
                        name,
                        "has no fitting state in the checkpoint",
                    ));
                }
            }
        }
        self.steps = steps;
        for (name, (first, second)) in moments {
            if let Some(place) = self.moments.get_mut(&name) {
                let device = place.0.device();
                *place = (first.to_device(device)?, second.to_device(device)?);
            }
        }
        Ok(())
    }
}
