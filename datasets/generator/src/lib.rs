//! Writes the data of this repository from a seed: the text that the base model *sprout* is trained on,
//! the untrained model itself, and the data set *city-trees*.
//!
//! Everything is composed by grammars of this crate's own; no text of others is in it.

pub mod city_trees;
pub mod copying;
pub mod corpus;
pub mod dice;
pub mod error;
pub mod grammar;
pub mod lexicon_de;
pub mod lexicon_en;
pub mod names;
pub mod rows;
pub mod seed_model;
