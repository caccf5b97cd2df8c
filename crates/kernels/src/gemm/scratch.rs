//! Buffers that products use again: one that is no longer needed is kept for the next that asks.
//!
//! A product packs its operands into a few MiB. To ask for them anew each time would cost as much as a
//! small product, since all of it would be zeroed first.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::kernel::Pair;
use crate::arena::lasting;

/// What buffers are made of.
pub trait Pooled: Copy + Default + 'static {
    /// The buffers that nobody uses now, the shortest first.
    fn kept() -> &'static Mutex<Vec<Vec<Self>>>;
}

macro_rules! pooled {
    ($($held:ty),*) => {$(
        impl Pooled for $held {
            fn kept() -> &'static Mutex<Vec<Vec<Self>>> {
                static KEPT: Mutex<Vec<Vec<$held>>> = Mutex::new(Vec::new());
                &KEPT
            }
        }
    )*};
}

pooled!(f32, f64, Pair);

/// A buffer of any numbers; kept when it is dropped.
pub(super) struct Scratch<H: Pooled> {
    values: Vec<H>,
    length: usize,
}

impl<H: Pooled> Scratch<H> {
    /// The shortest buffer that is long enough, else the longest, made longer: there are never more of them
    /// than were in use at a time.
    pub(super) fn new(length: usize) -> Self {
        let mut kept = H::kept().lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.partition_point(|values| values.len() < length);
        let mut values = if place < kept.len() {
            kept.remove(place)
        } else {
            kept.pop().unwrap_or_default()
        };
        drop(kept);
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
        let mut kept = H::kept().lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.partition_point(|other| other.len() < values.len());
        kept.insert(place, values);
    }
}
