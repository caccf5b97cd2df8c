//! What a run trains: a language model or a classifier.

use candle_core::{Device, Tensor};
use sparsam_adapter::data::Batches;
use sparsam_adapter::error::Result;
use sparsam_adapter::pass::Input;
use sparsam_adapter::train::{Learner, Measured};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::classifier::Classifier;
use sparsam_base::model::Model;
use sparsam_base::network::Network;
use sparsam_base::projection::Group;
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::Weight;
use sparsam_kernels::cross_entropy::Begun;

/// A model of either kind.
pub(crate) enum Learned {
    /// Goes on with texts.
    Language(Box<Model>),
    /// Says of which class they are.
    Classes(Box<Classifier>),
}

impl Learned {
    /// The language model.
    ///
    /// # Errors
    /// It is a classifier; recipes that would lead here are refused before.
    pub(crate) fn language(&self) -> anyhow::Result<&Model> {
        match self {
            Self::Language(model) => Ok(model),
            Self::Classes(_) => anyhow::bail!("a classifier does not go on with texts"),
        }
    }

    /// Names of the classes, by number.
    pub(crate) fn labels(&self) -> &[String] {
        match self {
            Self::Language(_) => &[],
            Self::Classes(model) => &model.labels,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Language(model) => model.bytes(),
            Self::Classes(model) => model.bytes(),
        }
    }

    pub(crate) fn device(&self) -> &Device {
        self.network().device()
    }

    /// Keys of the configuration that are not known.
    pub(crate) fn unrecognised(&self) -> &[String] {
        match self {
            Self::Language(model) => &model.config.unrecognised,
            Self::Classes(model) => model.unrecognised(),
        }
    }

    pub(crate) fn as_stored(
        &self,
        name: &str,
        value: &Tensor,
    ) -> sparsam_base::error::Result<Tensor> {
        match self {
            Self::Language(model) => model.as_stored(name, value),
            Self::Classes(model) => model.as_stored(name, value),
        }
    }

    /// A line on a classifier's head.
    pub(crate) fn head_words(&self) -> Option<String> {
        let Self::Classes(model) = self else {
            return None;
        };
        let begun = match model.fresh.as_slice() {
            [] => "from its files".to_owned(),
            fresh => format!("{} at random", fresh.join(", ")),
        };
        Some(format!(
            "a head over {} classes, {begun}",
            model.labels.len()
        ))
    }

    fn network(&self) -> &dyn Network {
        match self {
            Self::Language(model) => model.as_ref(),
            Self::Classes(model) => model.as_ref(),
        }
    }
}

impl Network for Learned {
    fn layers(&self) -> usize {
        self.network().layers()
    }

    fn width(&self) -> usize {
        self.network().width()
    }

    fn groups(&self) -> Vec<(usize, &Group)> {
        self.network().groups()
    }

    fn vectors(&self) -> Vec<(String, &Tensor)> {
        self.network().vectors()
    }

    fn tables(&self) -> Vec<(String, &Weight)> {
        self.network().tables()
    }

    fn tied(&self) -> bool {
        self.network().tied()
    }

    fn device(&self) -> &Device {
        self.network().device()
    }

    fn is_saved(&self, path: &str, saved: &str) -> bool {
        self.network().is_saved(path, saved)
    }

    fn own(&mut self, saved: &str) -> sparsam_base::error::Result<Vec<(String, Tensor)>> {
        match self {
            Self::Language(model) => model.own(saved),
            Self::Classes(model) => model.own(saved),
        }
    }

    fn ownable(&self) -> Vec<&'static str> {
        self.network().ownable()
    }
}

impl Learner for Learned {
    fn begin(
        &self,
        trainable: &mut Trainable,
        input: Input,
        grad_scale: f64,
        checkpointing: Checkpointing,
    ) -> Result<Begun> {
        match self {
            Self::Language(model) => model.begin(trainable, input, grad_scale, checkpointing),
            Self::Classes(model) => model.begin(trainable, input, grad_scale, checkpointing),
        }
    }

    fn measure(&self, trainable: &mut Trainable, batches: &Batches) -> Result<Measured> {
        match self {
            Self::Language(model) => model.measure(trainable, batches),
            Self::Classes(model) => model.measure(trainable, batches),
        }
    }
}
