//! A model as whoever trains it sees it: its parameters by their names.
//!
//! Training needs no more of a model than which projections there are, which other parameters, and on which
//! layer they sit. A language model and a classifier answer alike.

use candle_core::{Device, Tensor};
use sparsam_kernels::Weight;

use crate::error::Result;
use crate::model::{EMBEDDING, HEAD, Model};
use crate::projection::Group;

/// The parameters of a model.
pub trait Network {
    /// Number of blocks.
    fn layers(&self) -> usize;

    /// Numbers that blocks pass on for each token.
    fn width(&self) -> usize;

    /// All groups of projections with the block they are in, from the first on; those of a head above the blocks
    /// are given the number of blocks.
    fn groups(&self) -> Vec<(usize, &Group)>;

    /// Parameters outside the projections that are kept in f32: norms, and tables of positions.
    fn vectors(&self) -> Vec<(String, &Tensor)>;

    /// Tables over the vocabulary.
    fn tables(&self) -> Vec<(String, &Weight)>;

    /// Whether the head over the vocabulary is the embedding.
    fn tied(&self) -> bool;

    /// Where the weights are.
    fn device(&self) -> &Device;

    /// Whether the module at a path is one that is trained whole where `modules_to_save` names `saved`.
    fn is_saved(&self, _path: &str, _saved: &str) -> bool {
        false
    }

    /// Gives the model copies of its own, in f32, of the parameters of modules that are to be trained whole, and
    /// returns them with their names; none where there is no such module.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn own(&mut self, saved: &str) -> Result<Vec<(String, Tensor)>>;

    /// The names that [`Network::own`] knows, for messages.
    fn ownable(&self) -> Vec<&'static str>;
}

impl Network for Model {
    fn layers(&self) -> usize {
        self.blocks.len()
    }

    fn width(&self) -> usize {
        self.config.hidden_size
    }

    fn groups(&self) -> Vec<(usize, &Group)> {
        let blocks = self.blocks.iter().enumerate();
        blocks
            .flat_map(|(layer, block)| block.groups().map(|group| (layer, group)))
            .collect()
    }

    fn vectors(&self) -> Vec<(String, &Tensor)> {
        let norms = self.blocks.iter().flat_map(crate::block::Block::norms);
        std::iter::once(&self.norm)
            .chain(norms)
            .map(|norm| (norm.name.clone(), &norm.weight))
            .collect()
    }

    fn tables(&self) -> Vec<(String, &Weight)> {
        let mut tables = vec![(EMBEDDING.to_owned(), &self.embedding)];
        if !self.config.tie_word_embeddings {
            tables.push((HEAD.to_owned(), &self.head));
        }
        tables
    }

    fn tied(&self) -> bool {
        self.config.tie_word_embeddings
    }

    fn device(&self) -> &Device {
        Model::device(self)
    }

    fn own(&mut self, saved: &str) -> Result<Vec<(String, Tensor)>> {
        let (name, weight) = match saved {
            "lm_head" => (HEAD, &mut self.head),
            "embed_tokens" => (EMBEDDING, &mut self.embedding),
            _ => return Ok(Vec::new()),
        };
        let copy = weight.dequantize()?.copy()?;
        *weight = Weight::Dense(copy.clone());
        Ok(vec![(name.to_owned(), copy)])
    }

    fn ownable(&self) -> Vec<&'static str> {
        vec!["lm_head", "embed_tokens"]
    }
}
