//! Buffers that products use again: one that is no longer needed is kept for the next that asks.
//!
//! A product packs its operands into a few MiB. To ask for them anew each time would cost as much as a
//! small product, since all of it would be zeroed first.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::kernel::{Pair, Steps};
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

pooled!(f32, f64, Pair, Steps<1>, Steps<3>);

/// Buffers begin at a multiple of so many bytes, a line of the cache: a vector, or a row of a matrix register, that lies
/// in two lines is read more slowly, the latter three times.
const ALIGNMENT: usize = 64;

/// A buffer of any numbers; kept when it is dropped.
pub(crate) struct Scratch<H: Pooled> {
    values: Vec<H>,
    /// Where it begins.
    start: usize,
    length: usize,
}

impl<H: Pooled> Default for Scratch<H> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            start: 0,
            length: 0,
        }
    }
}

impl<H: Pooled> Scratch<H> {
    /// The shortest buffer that is long enough, else the longest, made longer: there are never more of them
    /// than were in use at a time.
    pub(crate) fn new(length: usize) -> Self {
        let enough = length + ALIGNMENT / size_of::<H>();
        let mut kept = H::kept().lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.partition_point(|values| values.len() < enough);
        let mut values = if place < kept.len() {
            kept.remove(place)
        } else {
            kept.pop().unwrap_or_default()
        };
        drop(kept);
        if values.len() < enough {
            lasting(|| values.resize(enough, H::default()));
        }
        let start = values.as_ptr().align_offset(ALIGNMENT);
        Self {
            values,
            start,
            length,
        }
    }

    /// Makes it as long; what was there need not be.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.start + length > self.values.len() {
            *self = Self::new(length);
        }
        self.length = length;
    }
}

impl<H: Pooled> Deref for Scratch<H> {
    type Target = [H];

    fn deref(&self) -> &[H] {
        &self.values[self.start..][..self.length]
    }
}

impl<H: Pooled> DerefMut for Scratch<H> {
    fn deref_mut(&mut self) -> &mut [H] {
        &mut self.values[self.start..][..self.length]
    }
}

impl<H: Pooled> Drop for Scratch<H> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values.is_empty() {
            return;
        }
        let mut kept = H::kept().lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.partition_point(|other| other.len() < values.len());
        kept.insert(place, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the buffer begins with a line of the cache.
    fn aligned<H: Pooled>(buffer: &Scratch<H>) -> bool {
        buffer.as_ptr().align_offset(ALIGNMENT) == 0
    }

    #[test]
    fn buffers_begin_with_a_line_of_the_cache_whatever_their_length() {
        for length in [1, 3, 16, 17, 1000, 4097] {
            let (numbers, wide) = (Scratch::<f32>::new(length), Scratch::<f64>::new(length));
            assert!(aligned(&numbers) && aligned(&wide), "{length}");
            assert_eq!((numbers.len(), wide.len()), (length, length));
        }
    }

    #[test]
    fn a_buffer_changes_its_length_both_ways() {
        let mut buffer = Scratch::<f32>::default();
        assert!(buffer.is_empty());
        for length in [5, 100_000, 7, 0, 200_001] {
            buffer.resize(length);
            buffer.fill(1.0);
            assert!(buffer.len() == length && (length == 0 || aligned(&buffer)));
        }
    }
}
