//! What follows the backward pass: the norm of the gradients, the optimiser's step, clearing. Each is one launch for all
//! tensors, whose addresses are put into a table for it.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Launch, address, device, unwritten, upload};
use crate::adamw::all::{GradNorm, Moments, Update};
use crate::adamw::eight_bit::BLOCK;
use crate::adamw::{AdamW, Factors};

/// Numbers that a block of `square_sums` and `adamw` goes through.
const NUMBERS: usize = 4096;

/// Tensors for a launch, as the `Trained` of `kernels.cu`.
#[derive(Default)]
struct Table {
    words: Vec<i64>,
    tensors: usize,
    blocks: usize,
}

impl Table {
    /// Adds a tensor whose blocks have so many numbers each.
    fn add(&mut self, update: &Update, factors: &Factors, numbers: usize) -> Result<()> {
        let narrow = update.narrow.map(|narrow| of(narrow, DType::BF16));
        let mask = update.mask.map(|mask| of(mask, DType::F32));
        let moments = match update.moments {
            Moments::F32(first, second) => [of(first, DType::F32)?, of(second, DType::F32)?, 0, 0],
            Moments::EightBit(first, second) => [
                of(first.codes(), DType::U8)?,
                of(second.codes(), DType::U8)?,
                of(first.absmax(), DType::F32)?,
                of(second.absmax(), DType::F32)?,
            ],
        };
        let count = update.param.elem_count();
        let bits = |value: f64| u64::from((value as f32).to_bits());
        self.words.extend([
            of(update.param, DType::F32)?,
            of(update.grad, DType::F32)?,
            mask.transpose()?.unwrap_or(0),
            narrow.transpose()?.unwrap_or(0),
        ]);
        self.words.extend(moments);
        self.words.extend([
            count as i64,
            self.blocks as i64,
            (bits(factors.keep) | bits(factors.step_size) << 32).cast_signed(),
        ]);
        self.tensors += 1;
        self.blocks += count.div_ceil(numbers);
        Ok(())
    }
}

/// Address of a tensor that must be of `dtype`.
fn of(tensor: &Tensor, dtype: DType) -> Result<i64> {
    if tensor.dtype() != dtype {
        let found = tensor.dtype();
        bail!("a step expects a tensor of {dtype:?}, found {found:?}");
    }
    Ok(address(tensor)?.cast_signed())
}

/// Tensors of a step on the GPU, those with moments in f32 before those in eight bits.
struct Tables<'a> {
    /// All of them, in blocks of [`NUMBERS`].
    all: Tensor,
    tensors: usize,
    blocks: usize,
    /// How many of these have moments in f32, and in how many blocks.
    wide: (usize, usize),
    /// Those in eight bits, in blocks of their own, with the levels of both moments.
    eight_bit: Option<(Table, &'a Tensor, &'a Tensor)>,
    factors: Factors,
}

impl<'a> Tables<'a> {
    fn of(updates: &[Update<'a>], factors: impl Fn(&Update) -> Result<Factors>) -> Result<Self> {
        let (mut all, mut eight_bit) = (Table::default(), Table::default());
        let mut levels = None;
        let is_wide = |update: &&Update| matches!(update.moments, Moments::F32(..));
        for update in updates.iter().filter(is_wide) {
            all.add(update, &factors(update)?, NUMBERS)?;
        }
        let wide = (all.tensors, all.blocks);
        for update in updates {
            if let Moments::EightBit(first, second) = update.moments {
                let factors = factors(update)?;
                all.add(update, &factors, NUMBERS)?;
                eight_bit.add(update, &factors, BLOCK)?;
                levels = Some((first.levels(), second.levels()));
            }
        }
        let Some(first) = updates.first() else {
            bail!("a step of nothing")
        };
        Ok(Self {
            tensors: all.tensors,
            blocks: all.blocks,
            all: upload(all.words, first.param)?,
            wide,
            eight_bit: levels.map(|(signed, unsigned)| (eight_bit, signed, unsigned)),
            factors: factors(first)?,
        })
    }

    /// The norm of the gradients, and the factor that brings it to at most `most`: f32 `[2]`.
    fn norm_and_scale(&self, most: Option<f64>) -> Result<Tensor> {
        let parts = unwritten(self.blocks, DType::F32, &self.all)?;
        Launch::new("square_sums", device(&parts)?)
            .longs(&self.all)?
            .int(self.tensors)?
            .floats(&parts)?
            .run((self.blocks, 1), (256, 1), 0)?;
        let both = unwritten(2, DType::F32, &self.all)?;
        Launch::new("norm_and_scale", device(&both)?)
            .floats(&parts)?
            .int(self.blocks)?
            .float(most.unwrap_or(-1.0))
            .floats(&both)?
            .run((1, 1), (256, 1), 0)?;
        Ok(both)
    }

    /// Updates all tensors with gradients times the second of `norm_and_scale`.
    fn step(&self, norm_and_scale: &Tensor, clears: bool) -> Result<()> {
        let factors = &self.factors;
        let launch = |kernel, table, tensors| {
            Ok::<_, candle_core::Error>(
                Launch::new(kernel, device(norm_and_scale)?)
                    .longs(table)?
                    .int(tensors)?
                    .floats(norm_and_scale)?
                    .int(usize::from(clears))?
                    .float(1.0 - factors.beta1)
                    .float(factors.beta2)
                    .float(1.0 - factors.beta2)
                    .float(factors.eps)
                    .float(factors.root_correction),
            )
        };
        let (tensors, blocks) = self.wide;
        launch("adamw", &self.all, tensors)?.run((blocks, 1), (256, 1), 0)?;
        let Some((table, signed, unsigned)) = &self.eight_bit else {
            return Ok(());
        };
        let words = upload(table.words.clone(), norm_and_scale)?;
        launch("adamw_eight_bit", &words, table.tensors)?
            .floats(signed)?
            .floats(unsigned)?
            .run((table.blocks, 1), (BLOCK, 1), 0)
    }
}

pub(crate) fn adamw_all(
    updates: &[Update],
    settings: &AdamW,
    step: usize,
    max_norm: Option<f64>,
) -> Result<GradNorm> {
    let tables = Tables::of(updates, |update| {
        let settings = AdamW {
            lr: update.lr,
            weight_decay: update.weight_decay,
            ..*settings
        };
        Factors::of(&settings, step, 1.0)
    })?;
    let both = tables.norm_and_scale(max_norm)?;
    tables.step(&both, true)?;
    Ok(GradNorm::on_gpu(both))
}

/// The norm of what [`adamw_all`] left; waits for the GPU.
pub(crate) fn read_norm(norm_and_scale: &Tensor) -> Result<f64> {
    Ok(f64::from(norm_and_scale.to_vec1::<f32>()?[0]))
}

/// A tensor alone, whose gradient stays.
fn alone<'a>(param: &'a Tensor, grad: &'a Tensor, moments: Moments<'a>) -> Update<'a> {
    Update {
        param,
        grad,
        moments,
        lr: 0.0,
        weight_decay: 0.0,
        mask: None,
        narrow: None,
    }
}

pub(crate) fn adamw_step(
    param: &Tensor,
    grad: &Tensor,
    moments: Moments,
    factors: &Factors,
) -> Result<()> {
    let update = alone(param, grad, moments);
    let tables = Tables::of(&[update], |_| Ok(*factors))?;
    let norm_and_scale = upload(vec![0.0, factors.grad_scale as f32], param)?;
    tables.step(&norm_and_scale, false)
}

/// `Σ x²` over all tensors; waits for the GPU once.
pub(crate) fn grad_norm_squared(tensors: &[&Tensor]) -> Result<f64> {
    // Nothing is updated: the moments are never looked at.
    let updates: Vec<Update> = tensors
        .iter()
        .map(|tensor| alone(tensor, tensor, Moments::F32(tensor, tensor)))
        .collect();
    if updates.is_empty() {
        return Ok(0.0);
    }
    let tables = Tables::of(&updates, |_| Factors::of(&AdamW::default(), 1, 1.0))?;
    Ok(read_norm(&tables.norm_and_scale(None)?)?.powi(2))
}

/// Zeros, in place.
pub(crate) fn clear(tensor: &Tensor) -> Result<()> {
    let zeros = tensor.zeros_like()?;
    super::copy_into(&zeros, tensor)
}
