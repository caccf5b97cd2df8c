//! Operations and their adjoints on candle tensors.
//!
//! The training engine has no tape: each operation stands here beside its adjoint, written out, and
//! the model calls them in order. This crate knows no model, no file and no adapter. Tensors are
//! contiguous and flat over tokens (`[tokens, …]`); there is no padding anywhere, the documents of a
//! batch are concatenated and [`Documents`] says where they begin.
//!
//! | concept | module |
//! |---|---|
//! | a weight matrix in the form it is stored | [`weight`], [`nf4`], [`int8`], [`ggml`] |
//! | products with it, forward and adjoint | [`linear`], [`lora`], [`dora`], on top of [`gemm`] |
//! | the rest of a decoder block | [`norm`], [`rope`], [`attention`], [`activation`], [`dropout`] |
//! | what encoders have instead | [`layer_norm`], [`gelu`], [`attention::bidirectional()`] |
//! | head and loss together | [`cross_entropy`] |
//! | rows of the embedding | [`embedding`] |
//! | the update, its moments in f32 or eight bits | [`adamw`], [`adamw::eight_bit`] |
//! | what waits in the host's memory for the way back | [`parked`] |
//! | all of it on an NVIDIA GPU, with the feature `cuda` | `cuda` |
//! | what all of them stand on | [`documents`], [`host`], [`cpu`], [`arena`], [`awake`](mod@awake) |

pub mod activation;
pub mod adamw;
pub mod arena;
pub mod attention;
pub mod awake;
pub mod cpu;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod documents;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod gemm;
pub mod ggml;
pub mod host;
pub mod int8;
pub mod layer_norm;
pub mod linear;
pub mod lora;
pub mod nf4;
pub mod norm;
pub mod parked;
pub mod rope;
#[allow(clippy::wildcard_imports, reason = "the vector instructions")]
mod transpose;
mod vector;
pub mod weight;

pub use documents::Documents;
pub use weight::Weight;
