//! The heads over classes that transformers has: `…ForSequenceClassification` of each family.
//!
//! | family | head |
//! |---|---|
//! | BERT | `bert.pooler.dense`, tanh; `classifier` |
//! | DistilBERT | `pre_classifier`, ReLU; `classifier` |
//! | RoBERTa, XLM-RoBERTa | `classifier.dense`, tanh; `classifier.out_proj` |
//! | ModernBERT | `head.dense`, GELU, `head.norm`; `classifier` |
//! | decoders | `score`, without bias, on the last token |

use candle_core::{Result, Tensor};
use sparsam_kernels::Documents;
use sparsam_kernels::activation::Activation;
use sparsam_kernels::gelu::{activate, activate_backward};
use sparsam_kernels::layer_norm::Moments;

use crate::block::one;
use crate::encoder::block::LayerNorm;
use crate::encoder::config::Pooling;
use crate::encoder::{SITES, dropped};
use crate::projection::{Group, Hook, HookKept};

/// What the numbers between a head's projections pass through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadActivation {
    /// The hyperbolic tangent.
    Tanh,
    /// What is above 0.
    Relu,
    /// As in a feed-forward unit.
    Smooth(Activation),
}

impl HeadActivation {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Tanh => x.tanh(),
            Self::Relu => x.relu(),
            Self::Smooth(activation) => activate(activation, x),
        }
    }

    fn backward(self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Tanh => dy * (1.0 - x.tanh()?.sqr()?)?,
            Self::Relu => dy * x.gt(0f32)?.to_dtype(x.dtype())?,
            Self::Smooth(activation) => activate_backward(activation, dy, x),
        }
    }
}

/// A head over classes.
#[derive(Clone, Debug)]
pub struct Head {
    /// What it reads of a text.
    pub pooling: Pooling,
    /// The first projection and what follows it, where there are two.
    pub dense: Option<(Group, HeadActivation)>,
    /// Behind that (ModernBERT).
    pub norm: Option<LayerNorm>,
    /// The projection onto classes.
    pub classifier: Group,
    /// Share of its input that is dropped in training.
    pub dropout: f64,
    /// Whether the first projection's input is dropped too (RoBERTa).
    pub drops_first: bool,
}

/// What the backward pass needs of the forward pass.
pub struct HeadKept {
    pooled: Tensor,
    dense: Option<(Tensor, HookKept)>,
    norm: Option<(Tensor, Moments)>,
    read: Tensor,
    hook: HookKept,
}

impl Head {
    /// Its groups of projections.
    pub fn groups(&self) -> Vec<&Group> {
        let dense = self.dense.iter().map(|(group, _)| group);
        dense.chain([&self.classifier]).collect()
    }

    pub(crate) fn groups_mut(&mut self) -> Vec<&mut Group> {
        let dense = self.dense.iter_mut().map(|(group, _)| group);
        dense.chain([&mut self.classifier]).collect()
    }

    /// Logits `[texts, classes]` of the vectors `x` `[tokens, hidden]`.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn forward(
        &self,
        x: &Tensor,
        documents: &Documents,
        hook: &mut dyn Hook,
        keep: bool,
    ) -> Result<(Tensor, Option<HeadKept>)> {
        let key = hook.dropout();
        let mut pooled = self.pool(x, documents)?;
        if self.drops_first {
            pooled = dropped(pooled, self.dropout, key, SITES - 1)?;
        }
        let mut read = pooled.clone();
        let (mut dense, mut normed) = (None, None);
        if let Some((group, activation)) = &self.dense {
            let (outputs, kept) = hook.forward(group, &pooled, keep)?;
            let inner = one(outputs)?;
            read = activation.forward(&inner)?;
            dense = Some((inner, kept));
        }
        if let Some(norm) = &self.norm {
            let (y, moments) = norm.forward(&read)?;
            normed = Some((read, moments));
            read = y;
        }
        read = dropped(read, self.dropout, key, SITES - 2)?;
        let (logits, kept) = hook.forward(&self.classifier, &read, keep)?;
        let kept = keep.then_some(HeadKept {
            pooled,
            dense,
            norm: normed,
            read,
            hook: kept,
        });
        Ok((one(logits)?, kept))
    }

    /// Gradient of the vectors, `[tokens, hidden]`, from that of the logits.
    ///
    /// # Errors
    /// An operation on tensors failed.
    pub fn backward(
        &self,
        dlogits: &Tensor,
        kept: HeadKept,
        documents: &Documents,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        let key = hook.dropout();
        let logits = std::slice::from_ref(dlogits);
        let dread = hook.backward(&self.classifier, &kept.read, logits, kept.hook)?;
        let mut dx = dropped(dread, self.dropout, key, SITES - 2)?;
        if let (Some(norm), Some((x, moments))) = (&self.norm, &kept.norm) {
            dx = norm.backward(&dx, x, moments, None, hook)?;
        }
        if let (Some((group, activation)), Some((inner, hook_kept))) = (&self.dense, kept.dense) {
            let dinner = activation.backward(&dx, &inner)?;
            dx = hook.backward(group, &kept.pooled, &[dinner], hook_kept)?;
        }
        if self.drops_first {
            dx = dropped(dx, self.dropout, key, SITES - 1)?;
        }
        self.spread(&dx, documents)
    }

    /// Numbers of the tokens that are read, `[texts]`.
    fn places(&self, documents: &Documents) -> Vec<u32> {
        let places = documents.ranges().map(|range| match self.pooling {
            Pooling::Last => range.end - 1,
            _ => range.start,
        });
        places.map(|place| place as u32).collect()
    }

    /// The share of each token in what is read of its text, `[texts, tokens]`.
    fn shares(documents: &Documents, x: &Tensor) -> Result<Tensor> {
        let tokens = documents.tokens();
        let mut shares = vec![0f32; documents.len() * tokens];
        for (text, range) in documents.ranges().enumerate() {
            let share = 1.0 / range.len() as f32;
            shares[text * tokens..][range].fill(share);
        }
        Tensor::from_vec(shares, (documents.len(), tokens), x.device())
    }

    /// What is read of each text, `[texts, hidden]`.
    fn pool(&self, x: &Tensor, documents: &Documents) -> Result<Tensor> {
        if self.pooling == Pooling::Mean {
            return Self::shares(documents, x)?.matmul(x);
        }
        let places = Tensor::new(self.places(documents), x.device())?;
        x.index_select(&places, 0)
    }

    /// Adjoint of [`Head::pool`].
    fn spread(&self, dx: &Tensor, documents: &Documents) -> Result<Tensor> {
        if self.pooling == Pooling::Mean {
            return Self::shares(documents, dx)?.t()?.contiguous()?.matmul(dx);
        }
        let places = Tensor::new(self.places(documents), dx.device())?;
        let dims = (documents.tokens(), dx.dim(1)?);
        let zeros = Tensor::zeros(dims, dx.dtype(), dx.device())?;
        zeros.index_add(&places, dx, 0)
    }
}
