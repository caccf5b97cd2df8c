//! The grid's intensity while a run goes on, told from outside: this crate asks no network, the program hands it
//! something to ask. It is asked once before the run begins and then every so often on a thread of its own, so
//! that a service that hangs holds up neither the run nor its meters. Each answer is a line of the journal.
//!
//! An answer counts from the moment it came until the next; the first one also for what was drawn before it.
//! The run's intensity is the mean of the answers, weighted by the energy drawn under each, so that energy ×
//! PUE × intensity is still its emissions. What is asked in vain is counted and said.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::intensity::{LiveReadings, is_believable};

/// No question follows another sooner.
const SHORTEST: Duration = Duration::from_millis(1);

/// What is asked: gCO2e/kWh now, or why it is not known.
pub type Ask = dyn Fn() -> Result<f64, String> + Send + Sync;

/// Something that knows how clean the electricity is now.
#[derive(Clone)]
pub struct LiveIntensity {
    /// Who says so, in words, and what the figure counts; printed on the card.
    pub source: String,
    /// Time between two questions.
    pub every: Duration,
    /// Asks it. May take seconds.
    pub ask: Arc<Ask>,
}

impl fmt::Debug for LiveIntensity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveIntensity")
            .field("source", &self.source)
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}

impl LiveIntensity {
    /// One question; what cannot be an intensity is no answer.
    pub(crate) fn answer(&self) -> Answer {
        match catch_unwind(AssertUnwindSafe(|| (self.ask)())) {
            Ok(Ok(grams)) if is_believable(grams) => Ok(grams),
            Ok(Ok(grams)) => Err(format!("{grams} gCO2e/kWh cannot be")),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err("asking failed in an unforeseen way".to_owned()),
        }
    }
}

/// gCO2e/kWh, or why there is none.
pub(crate) type Answer = Result<f64, String>;

/// Answers that the sampling thread has not seen yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inbox(Arc<Mutex<Vec<Answer>>>);

impl Inbox {
    pub(crate) fn put(&self, answer: Answer) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(answer);
    }

    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The thread that asks; it ends after this is dropped. It is not waited for, as it may hang in the network.
#[derive(Debug)]
pub(crate) struct Asking {
    _stop: Sender<()>,
}

impl Asking {
    /// Goes on asking after the first answer. None where no thread can be had.
    pub(crate) fn start(live: LiveIntensity, inbox: Inbox) -> Option<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        std::thread::Builder::new()
            .name("sparsam-grid".to_owned())
            .spawn(move || {
                let pause = live.every.max(SHORTEST);
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    inbox.put(live.answer());
                }
            })
            .ok()?;
        Some(Self { _stop: stop })
    }
}

/// The answers of one session, priced by the energy drawn under each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Priced {
    /// What the session knows, once it knows anything.
    known: Option<Known>,
    /// Questions without an answer.
    missed: u32,
}

#[derive(Debug, Clone)]
struct Known {
    /// gCO2e/kWh now.
    current: f64,
    /// Joules of the session when that was told.
    since: f64,
    /// Joules times gCO2e/kWh until then.
    weighted: f64,
    readings: LiveReadings,
}

impl Priced {
    /// An answer at a moment, when the session had drawn so many joules.
    pub(crate) fn answered(&mut self, grams: f64, joules: f64, at: &str) {
        match &mut self.known {
            None => {
                self.known = Some(Known {
                    current: grams,
                    since: 0.0,
                    weighted: 0.0,
                    readings: LiveReadings::one(grams, at),
                });
            }
            Some(known) => {
                known.weighted += known.current * (joules - known.since).max(0.0);
                known.since = known.since.max(joules);
                known.current = grams;
                known.readings.and(&LiveReadings::one(grams, at));
            }
        }
    }

    /// A question in vain.
    pub(crate) fn missed(&mut self) {
        self.missed += 1;
    }

    /// Joules times gCO2e/kWh of the session, of which so many joules were drawn, and the lowest and the highest
    /// gCO2e/kWh that were told. None without an answer.
    pub(crate) fn told(&self, joules: f64) -> Option<(f64, f64, f64)> {
        let known = self.known.as_ref()?;
        let weighted = known.weighted + known.current * (joules - known.since).max(0.0);
        Some((weighted, known.readings.lowest, known.readings.highest))
    }

    /// gCO2e/kWh as last told.
    pub(crate) fn current(&self) -> Option<f64> {
        self.known.as_ref().map(|known| known.current)
    }

    /// What was answered, and how often nothing was.
    pub(crate) fn readings(&self) -> Option<LiveReadings> {
        let known = self.known.as_ref()?;
        Some(LiveReadings {
            missed: self.missed,
            ..known.readings.clone()
        })
    }
}
