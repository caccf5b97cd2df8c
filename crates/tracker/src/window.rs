//! Adding up. A [`Ledger`] is fed the events of a run in order, live by the sampler or afterwards from a
//! journal, and says at any moment what they amount to. Both ways go through the same code, so a
//! record made from a journal equals the record made live from the same lines.
//!
//! Windows nest: what happens in `eval` inside `train` belongs to `train` and to `train/eval`. Sessions
//! follow each other: each counts from zero, and the record is their sum, so that nothing is counted
//! twice when a run is resumed.

use std::time::Duration;

use jiff::Timestamp;

use crate::intensity::{CarbonIntensity, LiveReadings, is_believable as can_be_intensity};
use crate::journal::{Contents, Event, Start, Totals};
use crate::live::Priced;
use crate::meter::Method;
use crate::range::{Range, Span};
use crate::record::{ComponentEnergy, EnergyRecord, RECORD_VERSION, WindowEnergy};
use crate::{accounting, comparison, embodied, format, water};

/// The running sum of a run's events.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    sessions: Vec<Session>,
    /// Closed windows, in the order in which they were first entered.
    windows: Vec<Spent>,
    notes: Vec<String>,
}

/// One start of the process.
#[derive(Debug, Clone)]
struct Session {
    start: Start,
    latest: Totals,
    ended: bool,
    /// The windows that are open, outermost first.
    open: Vec<Open>,
    /// What the grid answered.
    priced: Priced,
}

/// A window that was entered and not yet left.
#[derive(Debug, Clone)]
struct Open {
    name: String,
    path: String,
    entered: Totals,
}

/// What was spent in a window, in all its visits.
#[derive(Debug, Clone)]
struct Spent {
    path: String,
    count: u32,
    seconds: f64,
    joules: Range,
}

impl Session {
    fn new(start: Start) -> Self {
        Self {
            latest: Totals {
                t: 0.0,
                joules: vec![[0.0; 3]; start.domains.len()],
                gaps: Vec::new(),
            },
            start,
            ended: false,
            open: Vec::new(),
            priced: Priced::default(),
        }
    }

    /// Joules of the session, the central figure.
    fn joules(&self) -> f64 {
        sum(&self.latest).central
    }
}

impl Ledger {
    /// The ledger of everything a journal holds.
    pub fn replay(contents: Contents) -> Self {
        let mut ledger = Self::default();
        let unreadable = contents.unreadable_lines;
        for event in contents.events {
            ledger.apply(event);
        }
        if unreadable > 0 {
            ledger.notes.push(format!(
                "{unreadable} {} of the journal could not be read and {} skipped",
                if unreadable == 1 { "line" } else { "lines" },
                if unreadable == 1 { "was" } else { "were" },
            ));
        }
        ledger
    }

    /// Takes the next event. Events before the first start, or with another number of counters than
    /// their session has domains, or with counters that cannot be, are damaged and left out.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Start(start) => self.start(*start),
            Event::Note { text } => {
                if !self.notes.contains(&text) {
                    self.notes.push(text);
                }
            }
            Event::Sample(totals) => {
                self.advance(totals);
            }
            Event::End(totals) => {
                if let Some(session) = self.advance(totals) {
                    session.ended = true;
                }
                self.close(0);
            }
            Event::Intensity {
                g_per_kwh,
                at,
                totals,
            } => {
                let Some(session) = self.advance(totals) else {
                    return;
                };
                let joules = session.joules();
                match g_per_kwh {
                    Some(grams) if can_be_intensity(grams) => {
                        session.priced.answered(grams, joules, &at);
                    }
                    _ => session.priced.missed(),
                }
            }
            Event::Enter { window, totals } => self.enter(window, totals),
            Event::Leave { window, totals } => {
                if let Some(session) = self.advance(totals)
                    && let Some(index) = session.open.iter().rposition(|open| open.name == window)
                {
                    self.close(index);
                }
            }
        }
    }

    fn start(&mut self, start: Start) {
        self.close(0);
        self.sessions.push(Session::new(start));
    }

    /// Sets the counters of the running session.
    fn advance(&mut self, totals: Totals) -> Option<&mut Session> {
        let session = self.sessions.last_mut()?;
        if totals.joules.len() != session.start.domains.len() || !is_believable(&totals) {
            return None;
        }
        session.latest = totals;
        Some(session)
    }

    fn enter(&mut self, name: String, totals: Totals) {
        let Some(session) = self.advance(totals) else {
            return;
        };
        let path = match session.open.last() {
            Some(parent) => format!("{}/{name}", parent.path),
            None => name.clone(),
        };
        session.open.push(Open {
            name,
            path: path.clone(),
            entered: session.latest.clone(),
        });
        // Listed on entry, so that parents stand before their children.
        if !self.windows.iter().any(|spent| spent.path == path) {
            self.windows.push(Spent {
                path,
                count: 0,
                seconds: 0.0,
                joules: Range::ZERO,
            });
        }
    }

    /// Closes the open windows from `index` inwards with the latest counters.
    fn close(&mut self, index: usize) {
        let Some(session) = self.sessions.last_mut() else {
            return;
        };
        for open in session.open.split_off(index.min(session.open.len())) {
            add_visit(&mut self.windows, &open, &session.latest);
        }
    }

    /// Joules so far, all sessions and domains together.
    pub fn joules(&self) -> Range {
        self.sessions
            .iter()
            .map(|session| sum(&session.latest))
            .sum()
    }

    /// Seconds so far, all sessions together.
    pub fn seconds(&self) -> f64 {
        self.sessions.iter().map(|session| session.latest.t).sum()
    }

    /// gCO2e/kWh of all energy so far: as stated, or the mean of what the grid answered, weighted by energy. A
    /// session without an answer counts as stated.
    pub fn g_per_kwh(&self) -> Span {
        let Some(last) = self.sessions.last() else {
            return Range::ZERO.into();
        };
        let stated = last.start.intensity.g_per_kwh;
        if self.sessions.iter().all(|s| s.priced.current().is_none()) {
            return stated;
        }
        let all: f64 = self.sessions.iter().map(Session::joules).sum();
        if all <= 0.0 {
            return last
                .priced
                .current()
                .map_or(stated, |now| Range::exactly(now).into());
        }
        let drawn = || {
            self.sessions
                .iter()
                .filter(|session| session.joules() > 0.0)
        };
        // `stated` is one end, or the centre, of what counts for a session without an answer.
        let mean = |stated: Option<f64>| -> Option<f64> {
            let (mut weighted, mut low, mut high) = (0.0, f64::INFINITY, f64::NEG_INFINITY);
            for session in drawn() {
                let joules = session.joules();
                let (sum, least, most) = match session.priced.told(joules) {
                    Some(told) => told,
                    None => (stated? * joules, stated?, stated?),
                };
                weighted += sum;
                low = low.min(least);
                high = high.max(most);
            }
            // A mean lies among its parts, and that of one figure is that figure, to the bit.
            Some((weighted / all).clamp(low, high))
        };
        Span {
            low: mean(Some(stated.low)).unwrap_or(stated.low),
            central: mean(stated.central),
            high: mean(Some(stated.high)).unwrap_or(stated.high),
        }
    }

    /// gCO2e/kWh of what is drawn now, where it is known.
    pub fn g_per_kwh_now(&self) -> Option<f64> {
        let last = self.sessions.last()?;
        let stated = last.start.intensity.g_per_kwh.central;
        last.priced.current().or(stated)
    }

    /// The intensity as the record carries it. `stated` is that of the last session.
    fn intensity(&self, stated: &CarbonIntensity) -> CarbonIntensity {
        let mut all: Option<LiveReadings> = None;
        let mut sources: Vec<&str> = Vec::new();
        for session in &self.sessions {
            let Some(readings) = session.priced.readings() else {
                continue;
            };
            match &mut all {
                Some(all) => all.and(&readings),
                None => all = Some(readings),
            }
            if let Some(source) = session.start.live.as_deref()
                && !sources.contains(&source)
            {
                sources.push(source);
            }
        }
        let Some(readings) = all else {
            return stated.clone();
        };
        let mut source = sources.join("; ");
        let silent = |session: &Session| session.priced.current().is_none();
        if self.sessions.iter().any(|s| silent(s) && s.joules() > 0.0) {
            source = format!(
                "{source}; for sessions without a reading: {}",
                stated.source
            );
        }
        CarbonIntensity {
            g_per_kwh: self.g_per_kwh(),
            year: None,
            source,
            live: Some(readings),
        }
    }

    /// What there is to say of a grid that was asked: where it kept silent, and what the yearly figure of the
    /// place would have given.
    fn said_of_the_grid(&self, energy_kwh: Range, last: &Session) -> Vec<String> {
        let mut notes = Vec::new();
        let stated = &last.start.intensity;
        for session in &self.sessions {
            if let Some(source) = &session.start.live
                && session.priced.current().is_none()
            {
                let note = format!(
                    "no intensity came from {source} while the run went on; used instead: {}",
                    stated.source
                );
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
        let live = self.sessions.iter().any(|s| s.priced.current().is_some());
        if let (true, Some(year), Some(grams)) = (live, stated.year, stated.g_per_kwh.central) {
            let yearly =
                accounting::operational_g(energy_kwh, last.start.pue.value, stated.g_per_kwh);
            notes.push(format!(
                "with the yearly average of the place, {} g/kWh in {year}, the emissions would be {} CO2e ({})",
                format::plain_decimal(grams, 4),
                format::grams(yearly),
                stated.source,
            ));
        }
        notes
    }

    /// What the events amount to now, or nothing before the first start.
    pub fn record(&self) -> Option<EnergyRecord> {
        Some(self.between(self.sessions.first()?, self.sessions.last()?))
    }

    /// The record of a session in which nothing was counted.
    pub fn empty(start: Start) -> EnergyRecord {
        let session = Session::new(start);
        Self::default().between(&session, &session)
    }

    /// The record, of which `first` and `last` are the sessions at either end.
    fn between(&self, first: &Session, last: &Session) -> EnergyRecord {
        let mut windows = self.windows.clone();
        for open in &last.open {
            add_visit(&mut windows, open, &last.latest);
        }
        let components = self.components();
        let energy_kwh: Range = components.iter().map(|c| c.energy_kwh).sum();
        let measured: f64 = components
            .iter()
            .filter(|c| c.method == Method::Measured)
            .map(|c| c.energy_kwh.central)
            .fold(0.0, |sum, kwh| sum + kwh); // The sum of nothing would be -0.
        let intensity = self.intensity(&last.start.intensity);
        let emissions_g =
            accounting::operational_g(energy_kwh, last.start.pue.value, intensity.g_per_kwh);
        let mut notes = self.all_notes();
        notes.extend(self.said_of_the_grid(energy_kwh, last));
        let seconds = self.seconds();
        EnergyRecord {
            version: RECORD_VERSION,
            name: last.start.name.clone(),
            stage: last.start.stage,
            started: first.start.at.clone(),
            ended: later(&last.start.at, last.latest.t),
            ended_early: !last.ended,
            sessions: u32::try_from(self.sessions.len()).unwrap_or(u32::MAX),
            duration_seconds: seconds,
            contains: last.start.contains.clone(),
            baseline: last.start.baseline,
            net_energy_kwh: self.net(energy_kwh),
            embodied: embodied::of_gpus(&last.start.hardware.gpus, seconds / 3600.0),
            water: last
                .start
                .water
                .as_ref()
                .map(|rates| water::litres(energy_kwh, last.start.pue.value, rates)),
            comparisons: comparison::of(emissions_g),
            hardware: last.start.hardware.clone(),
            measured_share: if energy_kwh.central > 0.0 {
                measured / energy_kwh.central
            } else {
                0.0
            },
            gaps: components.iter().map(|c| c.gaps).sum(),
            components,
            energy_kwh,
            windows: windows
                .into_iter()
                .map(|spent| WindowEnergy {
                    path: spent.path,
                    count: spent.count,
                    seconds: spent.seconds,
                    energy_kwh: accounting::kwh(spent.joules),
                })
                .collect(),
            place: last.start.place.clone(),
            emissions_g,
            intensity,
            pue: last.start.pue.clone(),
            not_included: last.start.not_included.clone(),
            notes,
        }
    }

    /// Energy above idle, where every session measured its idle power: gross less idle power times
    /// time. The low bound takes the highest idle power from the lowest energy; nothing is below zero.
    fn net(&self, gross_kwh: Range) -> Option<Range> {
        let mut idle = Range::ZERO;
        for session in &self.sessions {
            idle += session.start.baseline?.watts.scale(session.latest.t);
        }
        let idle = accounting::kwh(idle);
        (!self.sessions.is_empty()).then(|| {
            Range::new(
                (gross_kwh.low - idle.high).max(0.0),
                (gross_kwh.central - idle.central).max(0.0),
                (gross_kwh.high - idle.low).max(0.0),
            )
        })
    }

    /// The domains of all sessions. The same domain in two sessions is one component.
    fn components(&self) -> Vec<ComponentEnergy> {
        let mut components: Vec<ComponentEnergy> = Vec::new();
        for session in &self.sessions {
            for (index, domain) in session.start.domains.iter().enumerate() {
                let joules = session
                    .latest
                    .joules
                    .get(index)
                    .map_or(Range::ZERO, |j| Range::from(*j));
                let (gaps, gap_seconds) =
                    session.latest.gaps.get(index).copied().unwrap_or((0, 0.0));
                let energy_kwh = accounting::kwh(joules);
                let same = components
                    .iter_mut()
                    .find(|c| c.domain == domain.id && c.method == domain.method);
                if let Some(component) = same {
                    component.energy_kwh += energy_kwh;
                    component.gaps += gaps;
                    component.gap_seconds += gap_seconds;
                } else {
                    components.push(ComponentEnergy {
                        component: domain.component,
                        domain: domain.id.clone(),
                        label: domain.label.clone(),
                        energy_kwh,
                        method: domain.method,
                        source: domain.source.clone(),
                        gaps,
                        gap_seconds,
                    });
                }
            }
        }
        components
    }

    fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if let Some((last, earlier)) = self.sessions.split_last() {
            let cut = earlier.iter().filter(|session| !session.ended).count();
            if cut > 0 {
                notes.push(format!(
                    "{cut} earlier {} of this run stopped without an end; what it drew after its last \
                     line in the journal is missing",
                    if cut == 1 { "session" } else { "sessions" },
                ));
            }
            if earlier
                .iter()
                .any(|session| session.start.hardware != last.start.hardware)
            {
                notes.push(
                    "the run moved between machines; the hardware named is that of its last session"
                        .to_owned(),
                );
            }
            if earlier.iter().any(|session| {
                (&session.start.intensity, &session.start.pue)
                    != (&last.start.intensity, &last.start.pue)
            }) {
                notes.push(
                    "place, intensity or PUE changed between sessions; the last ones are used for all"
                        .to_owned(),
                );
            }
        }
        notes
    }
}

/// Adds one visit of a window, from its entry to `now`.
fn add_visit(windows: &mut [Spent], open: &Open, now: &Totals) {
    if let Some(spent) = windows.iter_mut().find(|spent| spent.path == open.path) {
        spent.count += 1;
        spent.seconds += now.t - open.entered.t;
        spent.joules += sum(now) - sum(&open.entered);
    }
}

/// Whether counters can be such: numbers, not negative, and within what no run reaches, so that their
/// sums are numbers too. A line that was damaged may say anything.
pub(crate) fn is_believable(totals: &Totals) -> bool {
    // Thirty thousand years, and what the world draws in a day.
    const SECONDS: f64 = 1e12;
    const JOULES: f64 = 1e18;
    (0.0..SECONDS).contains(&totals.t)
        && totals.joules.iter().all(|[low, central, high]| {
            (0.0..JOULES).contains(central) && low.abs() < JOULES && high.abs() < JOULES
        })
}

/// All domains together.
fn sum(totals: &Totals) -> Range {
    totals.joules.iter().map(|j| Range::from(*j)).sum()
}

/// `seconds` after an RFC 3339 time, or that time itself where it does not parse.
fn later(at: &str, seconds: f64) -> String {
    let moved = at.parse::<Timestamp>().ok().and_then(|start| {
        let after = Duration::try_from_secs_f64(seconds).ok()?;
        start.checked_add(after).ok()
    });
    moved.map_or_else(|| at.to_owned(), format_time)
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn format_time(time: Timestamp) -> String {
    let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
    whole.to_string()
}
