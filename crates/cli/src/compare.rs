//! Several ways to train, on the same work: what each achieved, what each cost, and how sure that is.
//!
//! [`file`] is what is compared, [`result`] what came out, [`bootstrap`] how far it may be off, [`advice`]
//! what follows from it, [`finding`] that in words, [`words`] the screen and the files.

pub(crate) mod advice;
pub(crate) mod bootstrap;
pub(crate) mod file;
pub(crate) mod finding;
pub(crate) mod result;
pub(crate) mod words;
