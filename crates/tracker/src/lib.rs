//! Energy and emissions of a run: meters, journal, accounting, model card.
//!
//! Any Rust program can use this crate; it knows no tensor, asks no network, and never harms the
//! program it watches. Its parts, in the order in which a joule travels:
//!
//! - [`meter`]: what can be read, and a labelled model where nothing can
//! - [`sampler`]: a thread of its own that reads the meters once a second
//! - [`journal`]: append-only lines that survive whatever ends the program
//! - [`window`]: named, nesting parts of a run, and the sums
//! - [`intensity`], [`accounting`]: from joules to grams of CO2e
//! - [`record`]: the one record from which everything is printed
//! - [`summary`], [`card`]: words for the terminal and for a model card
//! - [`tracker`]: the handle a program holds
//!
//! ```no_run
//! use sparsam_tracker::{Options, Tracker};
//!
//! let options = Options { country: Some("DEU".into()), ..Options::in_folder("runs/first") };
//! let tracker = Tracker::start(&options)?;
//! {
//!     let _window = tracker.window("train");
//!     // … the work …
//! }
//! let record = tracker.finish();
//! for line in sparsam_tracker::summary_lines(&record) {
//!     println!("{line}");
//! }
//! # Ok::<(), sparsam_tracker::StartError>(())
//! ```

pub mod accounting;
pub mod card;
pub mod format;
pub mod intensity;
pub mod journal;
pub mod meter;
pub mod range;
pub mod record;
pub mod sampler;
pub mod summary;
pub mod tracker;
pub mod window;

pub use journal::JournalError;
pub use meter::{EnergyMeter, Gap, Method, Reading, Roots};
pub use range::{Range, Span};
pub use record::EnergyRecord;
pub use sampler::{Clock, Live, SystemClock};
pub use summary::summary_lines;
pub use tracker::{
    Gpus, Options, SensorReport, StartError, StatedIntensity, Tracker, Window, sensors,
};
