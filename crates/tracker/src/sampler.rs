//! Sampling, on a thread of its own. The thread owns the meters, the ledger and the journal; the run
//! only sends it short messages and never waits for a sensor or a disk, except once at the end. A
//! failure in here is written down and stays in here: a meter that panics is retired, a journal that
//! cannot be written is noted, and a thread that dies costs the figures and not the run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::accounting;
use crate::journal::{Event, Start, Totals, Writer};
use crate::live::Inbox;
use crate::meter::{EnergyMeter, Gap};
use crate::range::{Range, Span};
use crate::record::EnergyRecord;
use crate::window::{Ledger, format_time};

/// The journal reaches the disk at least this often.
pub const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// Watts shown live are an average over at least this long, because counters move in steps of up to
/// 100 ms.
const LIVE_WINDOW_SECONDS: f64 = 0.5;

/// Time, injected so that tests can hold it.
pub trait Clock: Send + Sync {
    /// Monotonic time since an arbitrary origin.
    fn monotonic(&self) -> Duration;
    /// Wall time.
    fn wall(&self) -> Timestamp;
    /// Lets time pass.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// What a progress bar shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Live {
    /// Power over the last second or so, all components together. Nothing before the second sample.
    pub watts: Option<f64>,
    /// Joules so far, earlier sessions included.
    pub joules: Range,
    /// gCO2e so far.
    pub emissions_g: Span,
    /// gCO2e of a kilowatt-hour of the machine drawn now, PUE included, where that is known.
    pub grams_per_kwh: Option<f64>,
    /// Seconds so far, earlier sessions included.
    pub seconds: f64,
}

/// What the thread tells: the sums, and the power of each domain.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) live: Live,
    /// In the order of the domains; empty before the second sample.
    pub(crate) watts: Vec<f64>,
}

/// Messages to the thread.
#[derive(Debug)]
pub(crate) enum Command {
    Enter(String),
    Leave(String),
    /// Read the meters now, and say when that is done.
    Sample(Sender<()>),
    Finish(Sender<Option<EnergyRecord>>),
}

/// A meter and its place among the run's domains.
struct Installed {
    meter: Box<dyn EnergyMeter>,
    first_domain: usize,
    notes_told: usize,
    retired: bool,
}

/// All that the sampling thread owns.
pub(crate) struct Sampler {
    meters: Vec<Installed>,
    clock: Arc<dyn Clock>,
    started: Duration,
    totals: Totals,
    ledger: Ledger,
    journal: Option<Writer>,
    journal_failed: bool,
    flushed: Duration,
    /// The sample against which live power is taken.
    power_base: (f64, f64),
    /// Joules of each domain at that sample.
    domain_base: Vec<f64>,
    watts: Option<f64>,
    domain_watts: Vec<f64>,
    /// What the grid answered meanwhile, and what is known of it already.
    grid: Inbox,
    grid_told: Vec<String>,
    pue: f64,
    live: Arc<Mutex<Option<Published>>>,
}

impl Sampler {
    /// Starts a session: `start.domains` are the domains of `meters`, in order. `ledger` holds the
    /// earlier sessions of a resumed run.
    pub(crate) fn new(
        meters: Vec<Box<dyn EnergyMeter>>,
        clock: Arc<dyn Clock>,
        mut ledger: Ledger,
        mut journal: Option<Writer>,
        start: Start,
        notes: Vec<String>,
        grid: Inbox,
        live: Arc<Mutex<Option<Published>>>,
    ) -> Self {
        let mut first_domain = 0;
        let meters = meters
            .into_iter()
            .map(|meter| {
                let installed = Installed {
                    first_domain,
                    notes_told: 0,
                    retired: false,
                    meter,
                };
                first_domain += installed.meter.domains().len();
                installed
            })
            .collect();
        let totals = Totals {
            t: 0.0,
            joules: vec![[0.0; 3]; first_domain],
            gaps: Vec::new(),
        };
        let pue = start.pue.value;
        let event = Event::Start(Box::new(start));
        let journal_failed = journal
            .as_mut()
            .is_some_and(|writer| writer.append(&event).is_err());
        ledger.apply(event);
        let started = clock.monotonic();
        let power_base = (ledger.seconds(), ledger.joules().central);
        let mut sampler = Self {
            meters,
            started,
            flushed: started,
            clock,
            totals,
            ledger,
            journal,
            journal_failed: false,
            power_base,
            domain_base: vec![0.0; first_domain],
            watts: None,
            domain_watts: Vec::new(),
            grid,
            grid_told: Vec::new(),
            pue,
            live,
        };
        if journal_failed {
            sampler.journal_is_broken();
        }
        for note in notes {
            sampler.write(Event::Note { text: note });
        }
        sampler.hear_the_grid();
        sampler.sync();
        sampler.publish();
        sampler
    }

    /// Serves the run until it finishes or lets go of its end of the channel.
    pub(crate) fn serve(mut self, commands: &Receiver<Command>, interval: Duration) {
        loop {
            match commands.recv_timeout(interval) {
                Ok(Command::Enter(window)) => self.enter(window),
                Ok(Command::Leave(window)) => self.leave(window),
                Ok(Command::Sample(reply)) => {
                    self.tick();
                    // Who asked may have given up waiting.
                    let _ = reply.send(());
                }
                Ok(Command::Finish(reply)) => {
                    // The run may have given up waiting; the journal has the end all the same.
                    drop(reply.send(self.finish()));
                    return;
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => {
                    // Dropped without an end: keep what was measured, and leave the end out.
                    self.sample();
                    self.write(Event::Sample(self.totals.clone()));
                    self.sync();
                    return;
                }
            }
        }
    }

    /// One regular sample, written to the journal when it is time.
    pub(crate) fn tick(&mut self) {
        self.sample();
        if self.clock.monotonic().saturating_sub(self.flushed) >= FLUSH_EVERY {
            self.write(Event::Sample(self.totals.clone()));
            self.sync();
        } else {
            self.ledger.apply(Event::Sample(self.totals.clone()));
        }
        self.publish();
    }

    pub(crate) fn enter(&mut self, window: String) {
        self.sample();
        let totals = self.totals.clone();
        self.write(Event::Enter { window, totals });
        self.sync();
        self.publish();
    }

    pub(crate) fn leave(&mut self, window: String) {
        self.sample();
        let totals = self.totals.clone();
        self.write(Event::Leave { window, totals });
        self.sync();
        self.publish();
    }

    pub(crate) fn finish(&mut self) -> Option<EnergyRecord> {
        self.sample();
        self.write(Event::End(self.totals.clone()));
        self.sync();
        self.publish();
        self.ledger.record()
    }

    /// Reads all meters into the totals.
    fn sample(&mut self) {
        let now = self.clock.monotonic();
        let mut notes = Vec::new();
        for installed in &mut self.meters {
            read_into(installed, now, &mut self.totals, &mut notes);
        }
        self.totals.t = thousandths(now.saturating_sub(self.started).as_secs_f64());
        for text in notes {
            self.write(Event::Note { text });
        }
        self.hear_the_grid();
    }

    /// Writes down what the grid has answered. Why it did not is told once.
    fn hear_the_grid(&mut self) {
        for answer in self.grid.take() {
            let (g_per_kwh, silent) = match answer {
                Ok(grams) => (Some(grams), None),
                Err(reason) => (None, Some(reason)),
            };
            self.write(Event::Intensity {
                g_per_kwh,
                at: format_time(self.clock.wall()),
                totals: self.totals.clone(),
            });
            if let Some(text) = silent.filter(|reason| !self.grid_told.contains(reason)) {
                self.grid_told.push(text.clone());
                self.write(Event::Note { text });
            }
        }
    }

    /// Applies an event, and appends it to the journal where there is one.
    fn write(&mut self, event: Event) {
        let written = match &mut self.journal {
            Some(journal) => journal.append(&event),
            None => Ok(()),
        };
        self.ledger.apply(event);
        if written.is_err() {
            self.journal_is_broken();
        }
    }

    fn sync(&mut self) {
        self.flushed = self.clock.monotonic();
        let synced = self.journal.as_mut().map_or(Ok(()), Writer::sync);
        if synced.is_err() {
            self.journal_is_broken();
        }
    }

    /// The run goes on and later lines are still tried: a full disk may empty itself.
    fn journal_is_broken(&mut self) {
        if !self.journal_failed {
            self.journal_failed = true;
            self.ledger.apply(Event::Note {
                text:
                    "the energy journal could not be written for a time; a crash then would have \
                       lost figures"
                        .to_owned(),
            });
        }
    }

    fn publish(&mut self) {
        let joules = self.ledger.joules();
        let seconds = self.ledger.seconds();
        let elapsed = seconds - self.power_base.0;
        if elapsed >= LIVE_WINDOW_SECONDS {
            self.watts = Some((joules.central - self.power_base.1) / elapsed);
            self.power_base = (seconds, joules.central);
            let now: Vec<f64> = self.totals.joules.iter().map(|j| j[1]).collect();
            let drawn = now.iter().zip(&self.domain_base);
            self.domain_watts = drawn.map(|(now, then)| (now - then) / elapsed).collect();
            self.domain_base = now;
        }
        let live = Live {
            watts: self.watts,
            joules,
            emissions_g: accounting::operational_g(
                accounting::kwh(joules),
                self.pue,
                self.ledger.g_per_kwh(),
            ),
            grams_per_kwh: self.ledger.g_per_kwh_now().map(|grams| grams * self.pue),
            seconds,
        };
        let published = Published {
            live,
            watts: self.domain_watts.clone(),
        };
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(published);
    }
}

/// Reads one meter; whatever goes wrong becomes a gap.
fn read_into(
    installed: &mut Installed,
    now: Duration,
    totals: &mut Totals,
    notes: &mut Vec<String>,
) {
    let first = installed.first_domain;
    let count = installed.meter.domains().len();
    let gaps = if installed.retired {
        vec![whole_meter("the meter was retired")]
    } else {
        match catch_unwind(AssertUnwindSafe(|| installed.meter.read(now))) {
            Ok(Ok(reading)) if reading.joules.len() == count => {
                for (slot, joules) in totals.joules[first..].iter_mut().zip(&reading.joules) {
                    *slot = <[f64; 3]>::from(*joules).map(thousandths);
                }
                reading.gaps
            }
            Ok(Ok(_)) => vec![whole_meter("the meter gave another number of domains")],
            Ok(Err(gap)) => vec![gap],
            Err(_) => {
                installed.retired = true;
                notes.push(format!(
                    "a meter ({}) failed in an unforeseen way and was not read again",
                    installed
                        .meter
                        .domains()
                        .first()
                        .map_or("without domains", |domain| domain.id.as_str()),
                ));
                vec![whole_meter("the meter failed")]
            }
        }
    };
    for gap in gaps {
        if totals.gaps.is_empty() {
            totals.gaps = vec![(0, 0.0); totals.joules.len()];
        }
        let hit = match gap.domain {
            Some(domain) => first + domain..first + domain + 1,
            None => first..first + count,
        };
        for slot in totals.gaps.get_mut(hit).into_iter().flatten() {
            slot.0 += 1;
            slot.1 = thousandths(slot.1 + gap.lost_seconds);
        }
    }
    if !installed.retired {
        let told = installed.meter.notes();
        notes.extend(told.iter().skip(installed.notes_told).cloned());
        installed.notes_told = installed.notes_told.max(told.len());
    }
}

fn whole_meter(reason: &str) -> Gap {
    Gap {
        domain: None,
        lost_seconds: 0.0,
        reason: reason.to_owned(),
    }
}

/// Three decimals: a millijoule and a millisecond, finer than any counter here. Rounding before the
/// ledger and the journal see a number keeps the two equal.
fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
