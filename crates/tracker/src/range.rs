//! A number with its uncertainty. Every figure of the tracker is a [`Range`]: what is believed, and
//! the bounds between which the truth is expected. Where nothing central may be claimed (the place of
//! a run is unknown, so its grid is too) the figure is a [`Span`], which has bounds only.
//!
//! Ranges add bound by bound, as if all errors pointed the same way. That is the cautious choice: the
//! errors of one model are correlated, and nothing here knows how strongly.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

use serde::{Deserialize, Serialize};

/// A central value between a low and a high bound, all in the same unit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Range {
    /// Lower bound.
    pub low: f64,
    /// Best figure.
    pub central: f64,
    /// Upper bound.
    pub high: f64,
}

impl Range {
    /// Nothing.
    pub const ZERO: Self = Self::new(0.0, 0.0, 0.0);

    /// The three values, in order.
    pub const fn new(low: f64, central: f64, high: f64) -> Self {
        Self { low, central, high }
    }

    /// A value taken as exact, such as a figure given by the user.
    pub const fn exactly(value: f64) -> Self {
        Self::new(value, value, value)
    }

    /// `central` within plus or minus `relative` (0.05 is 5 %).
    pub fn around(central: f64, relative: f64) -> Self {
        Self::new(
            central * (1.0 - relative),
            central,
            central * (1.0 + relative),
        )
    }

    /// All three values times `factor`, which is not negative.
    #[must_use]
    pub fn scale(self, factor: f64) -> Self {
        Self::new(self.low * factor, self.central * factor, self.high * factor)
    }

    /// Whether the bounds say no more than the central value does.
    pub fn is_exact(&self) -> bool {
        self.low == self.high
    }
}

impl Add for Range {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::new(
            self.low + other.low,
            self.central + other.central,
            self.high + other.high,
        )
    }
}

impl AddAssign for Range {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Range {
    type Output = Self;

    /// The difference of two readings of the same cumulative figure: bounds are subtracted from like
    /// bounds, because both readings carry the same systematic error.
    fn sub(self, earlier: Self) -> Self {
        Self::new(
            self.low - earlier.low,
            self.central - earlier.central,
            self.high - earlier.high,
        )
    }
}

impl Sum for Range {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

/// Bounds, and a central value only where one can be defended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Lower bound.
    pub low: f64,
    /// Best figure, absent where only the bounds are known.
    pub central: Option<f64>,
    /// Upper bound.
    pub high: f64,
}

impl From<Range> for Span {
    fn from(range: Range) -> Self {
        Self {
            low: range.low,
            central: Some(range.central),
            high: range.high,
        }
    }
}

/// The three numbers as a JSON array `[low, central, high]`, the compact form of the journal.
impl From<Range> for [f64; 3] {
    fn from(range: Range) -> Self {
        [range.low, range.central, range.high]
    }
}

impl From<[f64; 3]> for Range {
    fn from([low, central, high]: [f64; 3]) -> Self {
        Self::new(low, central, high)
    }
}
