//! Classifiers out of their files; parts of the head that the files do not hold begin as transformers begins them.

use candle_core::{DType, Tensor};
use sparsam_kernels::Weight;
use sparsam_kernels::activation::Activation;

use super::head::{Head, HeadActivation};
use super::{Body, Classifier};
use crate::encoder::Encoder;
use crate::encoder::block::LayerNorm;
use crate::encoder::config::{EncoderConfig, Pooling};
use crate::error::{Error, Result};
use crate::model::{LoadOptions, Loader, Model, Quantize};
use crate::projection::{Group, Projection};
use crate::weights::Weights;

/// How a parameter begins that no file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Normally distributed with this deviation.
    Normal(f64),
    /// The same, without what lies farther than so many deviations from 0 (ModernBERT).
    Truncated(f64, f64),
}

/// Makes a matrix `[out, in]` in f32 of its name and of how it begins; whoever loads has the random numbers.
pub type Init<'a> = &'a dyn Fn(&str, (usize, usize), Start) -> candle_core::Result<Tensor>;

/// Loads the head of a model.
struct HeadLoader<'a> {
    loader: Loader<'a>,
    init: Init<'a>,
    fresh: Vec<String>,
}

impl HeadLoader<'_> {
    /// A projection, read where it is there in this shape, else begun anew.
    fn projection(
        &mut self,
        name: &str,
        (out, input): (usize, usize),
        bias: bool,
        start: Start,
    ) -> Result<Group> {
        let parameter = format!("{name}.weight");
        let weights = self.loader.weights;
        let there = weights.contains(&parameter)
            && weights.tensor(&parameter)?.dims() == [out, input]
            && (!bias || weights.contains(&format!("{name}.bias")));
        let projection = if there {
            self.loader.projection(name.to_owned(), out, input, bias)?
        } else {
            self.fresh.push(name.to_owned());
            let zeros = || Tensor::zeros(out, DType::F32, &candle_core::Device::Cpu);
            Projection {
                name: name.to_owned(),
                weight: Weight::Dense((self.init)(name, (out, input), start)?),
                bias: if bias { Some(zeros()?) } else { None },
            }
        };
        Ok(Group {
            projections: vec![projection],
        })
    }
}

/// Heads are small, and trained: they are read as plain numbers in f32.
fn plain(options: LoadOptions) -> LoadOptions {
    LoadOptions {
        quantize: Quantize::None,
        dtype: DType::F32,
        ..options
    }
}

impl Classifier {
    /// An encoder with its family's head over `labels`.
    ///
    /// # Errors
    /// Tensors of the encoder that are missing or do not fit the configuration.
    pub fn encoder(
        config: EncoderConfig,
        weights: &dyn Weights,
        options: LoadOptions,
        labels: Vec<String>,
        init: Init,
    ) -> Result<Self> {
        let encoder = Encoder::load(config, weights, options)?;
        let config = &encoder.config;
        let renamed = crate::encoder::Renamed::new(weights, config.prefix());
        let mut head = HeadLoader {
            loader: Loader {
                weights: &renamed,
                options: plain(options),
                norm_offset: 0.0,
            },
            init,
            fresh: Vec::new(),
        };
        let (hidden, classes) = (config.hidden_size, labels.len());
        let square = (hidden, hidden);
        let usual = Start::Normal(config.initializer_range);
        let mut norm = None;
        let (dense, classifier) = match config.family.as_str() {
            "bert" => (
                (
                    head.projection("bert.pooler.dense", square, true, usual)?,
                    HeadActivation::Tanh,
                ),
                head.projection("classifier", (classes, hidden), true, usual)?,
            ),
            "distilbert" => (
                (
                    head.projection("pre_classifier", square, true, usual)?,
                    HeadActivation::Relu,
                ),
                head.projection("classifier", (classes, hidden), true, usual)?,
            ),
            "modernbert" => {
                let modern = config.modern.as_ref();
                let bias = modern.is_some_and(|modern| modern.classifier_bias);
                let activation = modern.map_or(Activation::Gelu, |m| m.classifier_activation);
                let range = config.initializer_range;
                let depth = (2.0 * config.num_hidden_layers as f64).sqrt();
                let dense = Start::Truncated(range / depth, 2.0);
                let out = Start::Truncated((hidden as f64).powf(-0.5), 2.0);
                norm = Some(head_norm(&head.loader, config)?);
                (
                    (
                        head.projection("head.dense", square, bias, dense)?,
                        HeadActivation::Smooth(activation),
                    ),
                    head.projection("classifier", (classes, hidden), true, out)?,
                )
            }
            _ => (
                (
                    head.projection("classifier.dense", square, true, usual)?,
                    HeadActivation::Tanh,
                ),
                head.projection("classifier.out_proj", (classes, hidden), true, usual)?,
            ),
        };
        let fresh = head.fresh;
        let head = Head {
            pooling: config.pooling,
            dense: Some(dense),
            norm,
            classifier,
            dropout: config.classifier_dropout,
            drops_first: matches!(config.family.as_str(), "roberta" | "xlm-roberta"),
        };
        Ok(Self {
            body: Body::Encoder(Box::new(encoder)),
            head,
            labels,
            fresh,
        })
    }

    /// A language model with the head `score` over `labels`, from `weights` where these hold it. The model may be
    /// loaded as if its head over the vocabulary were the embedding: it is not used.
    ///
    /// # Errors
    /// A head of other classes that cannot be read.
    pub fn decoder(
        model: Model,
        weights: Option<&dyn Weights>,
        labels: Vec<String>,
        init: Init,
    ) -> Result<Self> {
        struct Nothing;
        impl Weights for Nothing {
            fn contains(&self, _name: &str) -> bool {
                false
            }
            fn tensor(&self, name: &str) -> Result<Tensor> {
                Err(Error::weight(name, "is missing"))
            }
        }
        let mut head = HeadLoader {
            loader: Loader {
                weights: weights.unwrap_or(&Nothing),
                options: LoadOptions {
                    quantize: Quantize::None,
                    dtype: DType::F32,
                    max_length: 0,
                },
                norm_offset: 0.0,
            },
            init,
            fresh: Vec::new(),
        };
        let shape = (labels.len(), model.config.hidden_size);
        // The range that all families' configurations have where they say none.
        let score = head.projection("score", shape, false, Start::Normal(0.02))?;
        let fresh = head.fresh;
        Ok(Self {
            head: Head {
                pooling: Pooling::Last,
                dense: None,
                norm: None,
                classifier: score,
                dropout: 0.0,
                drops_first: false,
            },
            body: Body::Decoder(Box::new(model)),
            labels,
            fresh,
        })
    }
}

/// ModernBERT's norm behind the head's first projection; ones where no file holds it.
fn head_norm(loader: &Loader, config: &EncoderConfig) -> Result<LayerNorm> {
    if loader.weights.contains("head.norm.weight") {
        return crate::encoder::norm(loader, config, "head.norm");
    }
    Ok(LayerNorm {
        name: "head.norm".to_owned(),
        weight: Tensor::ones(config.hidden_size, DType::F32, &candle_core::Device::Cpu)?,
        bias: None,
        epsilon: config.epsilon,
    })
}
