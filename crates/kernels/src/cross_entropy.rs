//! The output head and the cross-entropy loss as one operation, forward and adjoint.
//!
//! The logits of a batch never exist at once. Tokens without a target cost nothing.
//! For logits `z` and target `t`: `loss = log Σ eᶻ − z_t`, `dz = softmax(z) − onehot(t)`.
//!
//! There are two orders to take them in. Where the head is trained, tokens come in chunks, and a chunk's logits are
//! turned into their gradient in place (`chunks`). Where it is not, the vocabulary comes in blocks with all tokens of
//! each, so that the head is brought to the cache once for each direction and not once a chunk (`blocks`).

mod blocks;
mod chunks;
mod classes;
mod softmax;

use candle_core::{Result, Tensor, bail};

use crate::by_element;
use crate::gemm::Rows;
use crate::host::{matrix, tensor, update, view};
use crate::weight::Weight;

pub use classes::{begin_class_loss, beyond_classes, class_loss, probabilities};

/// Marks a token without a target.
pub const IGNORE: u32 = u32::MAX;

/// Numbers of the logits that exist at a time on a GPU: 256 MiB of f32.
pub const LOGITS_ON_GPU: usize = 1 << 26;

/// What the adjoint is asked for, and what is done to the logits.
#[derive(Clone, Copy, Default)]
pub struct Want<'a> {
    /// Factor on the gradient of the summed loss, usually 1 over the number of targets; `None`: no
    /// gradients at all.
    pub grad_scale: Option<f64>,
    /// Where to add the gradient of the head, `[vocabulary, hidden]`.
    pub weight_grad: Option<&'a Tensor>,
    /// Logits are bent to `cap · tanh(z / cap)` before the loss (Gemma 2).
    pub softcap: Option<f64>,
}

/// Loss of a batch and the gradient of its hidden states.
#[derive(Debug)]
pub struct Loss {
    /// Sum over the targets, in nats.
    pub sum: f64,
    /// Number of targets.
    pub targets: usize,
    /// Targets that were the likeliest token.
    pub correct: usize,
    /// `[tokens, hidden]`, zero for tokens without a target.
    pub hidden_grad: Option<Tensor>,
}

/// A loss whose numbers may be on their way still, with the gradient of the hidden states for the work that follows.
pub struct Begun {
    /// As [`Loss::hidden_grad`].
    pub hidden_grad: Option<Tensor>,
    numbers: Numbers,
}

enum Numbers {
    Here {
        sum: f64,
        targets: usize,
        correct: usize,
    },
    #[cfg(feature = "cuda")]
    OnGpu(crate::cuda::Losses),
}

impl Begun {
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(losses: crate::cuda::Losses, hidden_grad: Option<Tensor>) -> Self {
        let numbers = Numbers::OnGpu(losses);
        Self {
            hidden_grad,
            numbers,
        }
    }

    /// One whose numbers are known.
    pub fn known(loss: Loss) -> Self {
        Self {
            numbers: Numbers::Here {
                sum: loss.sum,
                targets: loss.targets,
                correct: loss.correct,
            },
            hidden_grad: loss.hidden_grad,
        }
    }

    /// Its sum, where it need not be waited for.
    pub fn sum(&self) -> Option<f64> {
        match self.numbers {
            Numbers::Here { sum, .. } => Some(sum),
            #[cfg(feature = "cuda")]
            Numbers::OnGpu(_) => None,
        }
    }

    /// Waits for the numbers, on a GPU behind all that it has been asked for.
    ///
    /// # Errors
    /// What the GPU did wrong since the last wait.
    pub fn read(self) -> Result<Loss> {
        let (sum, targets, correct) = match self.numbers {
            Numbers::Here {
                sum,
                targets,
                correct,
            } => (sum, targets, correct),
            #[cfg(feature = "cuda")]
            Numbers::OnGpu(losses) => losses.sums()?,
        };
        Ok(Loss {
            sum,
            targets,
            correct,
            hidden_grad: self.hidden_grad,
        })
    }
}

/// Loss of `targets` `[tokens]` under the logits `hidden · headᵀ`, with `hidden` of `[tokens, width]`.
///
/// # Errors
/// Shapes that do not fit, or a target beyond the vocabulary.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    want: Want,
) -> Result<Loss> {
    begin_cross_entropy(hidden, head, targets, want)?.read()
}

/// [`linear_cross_entropy`] that does not wait for a GPU.
///
/// # Errors
/// As there.
pub fn begin_cross_entropy(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    want: Want,
) -> Result<Begun> {
    let (tokens, vocabulary, width) = check(hidden, head, targets)?;
    if let Some(into) = want.weight_grad
        && into.dims() != [vocabulary, width]
    {
        bail!(
            "`linear_cross_entropy`: a head of [{vocabulary}, {width}] meets a gradient of {:?}",
            into.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return crate::cuda::begin_cross_entropy(hidden, head, targets, want);
    }
    let counted = counted(targets);
    by_element!(hidden, T => {
        let hidden = view::<T>(hidden)?;
        let (outcomes, gradient) = head.with_rows::<T, _>(|head| {
            let batch = Batch { hidden: &hidden, head, targets, counted: &counted, softcap: want.softcap };
            match (want.grad_scale, want.weight_grad) {
                (Some(scale), Some(into)) => update(into, |into: &mut [T]| {
                    let (outcomes, gradient) = chunks::train(&batch, scale, into);
                    Ok((outcomes, Some(gradient)))
                }),
                (scale, _) => Ok(blocks::pass(&batch, scale)),
            }
        })?;
        Ok(Begun {
            hidden_grad: gradient.map(|gradient| tensor(gradient, (tokens, width))).transpose()?,
            numbers: Numbers::Here {
                sum: outcomes.iter().map(|outcome| outcome.nats).sum(),
                targets: outcomes.len(),
                correct: outcomes.iter().filter(|outcome| outcome.likeliest).count(),
            },
        })
    })
}

/// The loss of each token in nats, `None` for tokens without a target; for evaluation of logits that
/// are not softened.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn linear_token_losses(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
) -> Result<Vec<Option<f64>>> {
    let (tokens, ..) = check(hidden, head, targets)?;
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return crate::cuda::linear_token_losses(hidden, head, targets);
    }
    by_element!(hidden, T => {
        let hidden = view::<T>(hidden)?;
        let counted = counted(targets);
        let (outcomes, _) = head.with_rows::<T, _>(|head| {
            let batch = Batch { hidden: &hidden, head, targets, counted: &counted, softcap: None };
            Ok(blocks::pass(&batch, None))
        })?;
        let mut losses = vec![None; tokens];
        for (token, outcome) in counted.iter().zip(outcomes) {
            losses[*token] = Some(outcome.nats);
        }
        Ok(losses)
    })
}

/// Numbers of the logits in f32 that exist at a time on this processor, for so many tokens with targets.
/// `trained`: whether the head has a gradient. `rounded`: whether its products may be of rounded numbers.
pub fn logits_at_a_time(targets: usize, vocabulary: usize, trained: bool, rounded: bool) -> usize {
    if trained {
        return chunks::tokens_at_a_time::<f32>(targets, vocabulary, rounded) * vocabulary;
    }
    let (tokens, columns) = blocks::sizes(targets, vocabulary);
    tokens * columns
}

/// What both orders work on.
struct Batch<'a, T> {
    /// `[tokens, width]`
    hidden: &'a [T],
    /// `[vocabulary, width]`
    head: &'a dyn Rows<T>,
    /// `[tokens]`
    targets: &'a [u32],
    /// The tokens with a target.
    counted: &'a [usize],
    /// See [`Want::softcap`].
    softcap: Option<f64>,
}

/// The tokens with a target.
fn counted(targets: &[u32]) -> Vec<usize> {
    (0..targets.len())
        .filter(|token| targets[*token] != IGNORE)
        .collect()
}

/// The hidden states of some tokens, `[tokens, width]`.
fn states_of<T: Copy>(hidden: &[T], tokens: &[usize], width: usize) -> Vec<T> {
    let rows = tokens
        .iter()
        .flat_map(|token| &hidden[token * width..][..width]);
    rows.copied().collect()
}

/// Tokens, vocabulary and width of inputs that fit.
fn check(hidden: &Tensor, head: &Weight, targets: &[u32]) -> Result<(usize, usize, usize)> {
    let (tokens, width) = matrix(hidden, "linear_cross_entropy", "the hidden states")?;
    let (vocabulary, input) = head.dims()?;
    if input != width || width == 0 || targets.len() != tokens {
        bail!(
            "`linear_cross_entropy`: hidden states {:?} and {} targets meet a head of [{vocabulary}, {input}]",
            hidden.dims(),
            targets.len()
        );
    }
    if let Some(target) = targets
        .iter()
        .find(|t| **t != IGNORE && **t as usize >= vocabulary)
    {
        bail!("`linear_cross_entropy`: target {target} is beyond the vocabulary of {vocabulary}");
    }
    Ok((tokens, vocabulary, width))
}
