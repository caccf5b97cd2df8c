//! Energy and emissions of a run: meters, journal, accounting, model card.
//!
//! Any Rust program can use this crate; it knows no tensor, asks no network, and never harms the
//! program it watches. Its parts, in the order in which a joule travels:
//!
//! - [`meter`]: what can be read, and a labelled model where nothing can
//! - [`sampler`]: a thread of its own that reads the meters once a second
//! - [`journal`]: append-only lines that survive whatever ends the program
//! - [`window`]: named, nesting parts of a run, and the sums
//! - [`intensity`], [`live`], [`accounting`]: from joules to grams of CO2e
//! - [`embodied`], [`water`], [`comparison`]: what stands beside that figure and never in it
//! - [`record`]: the one record from which everything is printed; [`combine`] adds several up
//! - [`lifecycle`]: all runs below some folders, by [`stage`], nothing counted twice
//! - [`summary`], [`card`], [`export`]: words for the terminal, a model card, other formats
//! - [`tracker`]: the handle a program holds; [`track`] runs any other program under it
//! - [`estimate`]: the same arithmetic after the fact, from a table of [`hardware`]
//! - [`doctor`]: what can be read on this machine, and how to make the rest readable
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
pub mod combine;
pub mod comparison;
pub mod doctor;
pub mod embodied;
pub mod estimate;
pub mod export;
pub mod format;
pub mod hardware;
pub mod intensity;
pub mod journal;
pub mod lifecycle;
pub mod live;
pub mod meter;
pub mod range;
pub mod record;
pub mod sampler;
pub mod stage;
pub mod summary;
pub mod track;
pub mod tracker;
pub mod water;
pub mod window;

pub use journal::JournalError;
pub use live::LiveIntensity;
pub use meter::{EnergyMeter, Gap, Method, Reading, Roots};
pub use range::{Range, Span};
pub use record::EnergyRecord;
pub use sampler::{Clock, Live, SystemClock};
pub use stage::Stage;
pub use summary::summary_lines;
pub use tracker::{
    Gauge, Gpus, Options, SensorReport, StartError, StatedIntensity, Tracker, Window, sensors,
};
