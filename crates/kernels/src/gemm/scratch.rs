//! Buffers that products use again: a thread keeps those it no longer needs.
//!
//! A product packs its operands into a few MiB. To ask for them anew each time would cost as much as a
//! small product, since all of it would be zeroed first.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use super::kernel::Pair;
use crate::arena::lasting;

/// What buffers are made of.
pub trait Pooled: Copy + Default + 'static {
    /// The buffers that this thread keeps.
    fn kept() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>>;
}

macro_rules! pooled {
    ($($held:ty),*) => {$(
        impl Pooled for $held {
            fn kept() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>> {
                thread_local!(static KEPT: RefCell<Vec<Vec<$held>>> = const { RefCell::new(Vec::new()) });
                &KEPT
            }
        }
    )*};
}

pooled!(f32, f64, Pair);

/// A buffer of any numbers; kept by the thread that drops it.
pub(super) struct Scratch<H: Pooled> {
    values: Vec<H>,
    length: usize,
}

impl<H: Pooled> Scratch<H> {
    pub(super) fn new(length: usize) -> Self {
        let mut values = H::kept().with_borrow_mut(Vec::pop).unwrap_or_default();
        if values.len() < length {
            lasting(|| values.resize(length, H::default()));
        }
        Self { values, length }
    }
}

impl<H: Pooled> Deref for Scratch<H> {
    type Target = [H];

    fn deref(&self) -> &[H] {
        &self.values[..self.length]
    }
}

impl<H: Pooled> DerefMut for Scratch<H> {
    fn deref_mut(&mut self) -> &mut [H] {
        &mut self.values[..self.length]
    }
}

impl<H: Pooled> Drop for Scratch<H> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // A thread that ends keeps nothing.
        let _ = H::kept().try_with(|kept| kept.borrow_mut().push(values));
    }
}
