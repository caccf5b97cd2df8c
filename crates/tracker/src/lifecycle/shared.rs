//! What is counted once although several runs counted it. A counter belongs to the whole machine, so two
//! runs at the same time both have all of its joules. In every stretch of time in which `k` runs count
//! the same thing, each keeps one part in `k` of its own reading, and the parts add up to one machine.
//!
//! Counters are the same thing when domain and machine are the same. Models split a machine by the part
//! of it a run may use, so for them the part must be the same too. Between two lines of a journal the
//! power is taken to be even.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::accounting;
use crate::journal::{Contents, Event, Start, Totals};
use crate::meter::Method;
use crate::range::Range;
use crate::window::is_believable;

/// Runs that shared a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// The folders of the runs.
    pub runs: Vec<String>,
    /// Seconds in which at least two of them ran.
    pub seconds: f64,
    /// What was in more than one journal and is counted once, kWh.
    pub counted_twice_kwh: Range,
    /// Whether it is known that they shared it. Where it is not (journals of older versions, parts of a
    /// machine that overlap), nothing is taken off and the energy may be counted twice.
    pub certain: bool,
}

/// A session of a run on the time axis of its machine.
pub(super) struct Session {
    run: usize,
    start: Start,
    /// Seconds since 1970.
    began: f64,
    ended: f64,
    /// The counters, zero first.
    samples: Vec<Totals>,
}

/// The sessions of the journal of run number `run`.
pub(super) fn sessions(run: usize, contents: &Contents) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    for event in &contents.events {
        match event {
            Event::Start(start) => {
                let parsed = || start.at.parse::<jiff::Timestamp>().ok();
                let began = match &start.host {
                    Some(host) => host.began,
                    None => parsed().map_or(0.0, |at| at.as_second() as f64),
                };
                sessions.push(Session {
                    run,
                    began,
                    ended: began,
                    samples: vec![Totals {
                        t: 0.0,
                        joules: vec![[0.0; 3]; start.domains.len()],
                        gaps: Vec::new(),
                    }],
                    start: (**start).clone(),
                });
            }
            Event::Sample(totals)
            | Event::Enter { totals, .. }
            | Event::Leave { totals, .. }
            | Event::Intensity { totals, .. }
            | Event::End(totals) => {
                if let Some(session) = sessions.last_mut()
                    && totals.joules.len() == session.start.domains.len()
                    && is_believable(totals)
                    && session.samples.last().is_none_or(|last| last.t <= totals.t)
                {
                    session.ended = session.began + totals.t;
                    session.samples.push(totals.clone());
                }
            }
            Event::Note { .. } => {}
        }
    }
    sessions
}

impl Session {
    /// Joules of a domain from the start to a moment, in seconds since 1970.
    fn joules(&self, domain: usize, at: f64) -> Range {
        let t = at - self.began;
        let after = self.samples.partition_point(|sample| sample.t < t);
        let Some(next) = self.samples.get(after) else {
            return self
                .samples
                .last()
                .map_or(Range::ZERO, |last| last.joules[domain].into());
        };
        let Some(previous) = after.checked_sub(1).map(|index| &self.samples[index]) else {
            return next.joules[domain].into();
        };
        let part = (t - previous.t) / (next.t - previous.t);
        let (from, to) = (
            Range::from(previous.joules[domain]),
            Range::from(next.joules[domain]),
        );
        from + (to - from).scale(part.clamp(0.0, 1.0))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.run != other.run && self.began < other.ended && other.began < self.ended
    }

    /// The stretches of this session in which others run too: begin, end and how many run in all.
    fn stretches(&self, others: &[&Self]) -> Vec<(f64, f64, usize)> {
        let others: Vec<&&Self> = others.iter().filter(|other| self.overlaps(other)).collect();
        let mut moments = vec![self.began, self.ended];
        for other in &others {
            moments.extend([other.began, other.ended]);
        }
        moments.retain(|moment| (self.began..=self.ended).contains(moment));
        moments.sort_by(f64::total_cmp);
        moments.dedup();
        moments
            .windows(2)
            .filter_map(|pair| {
                let middle = f64::midpoint(pair[0], pair[1]);
                let mut runs: Vec<usize> = others
                    .iter()
                    .filter(|other| other.began < middle && middle < other.ended)
                    .map(|other| other.run)
                    .collect();
                runs.sort_unstable();
                runs.dedup();
                (!runs.is_empty()).then_some((pair[0], pair[1], runs.len() + 1))
            })
            .collect()
    }
}

/// What is taken off a run because others counted it too.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct TakenOff {
    pub(super) joules: Range,
    pub(super) seconds: f64,
}

/// What each of `runs` runs gives up, and who shared a machine. `names` are the runs' folders.
pub(super) fn share(sessions: &[Session], names: &[String]) -> (Vec<TakenOff>, Vec<Shared>) {
    let mut off = vec![TakenOff::default(); names.len()];
    let mut machines: BTreeMap<&str, Vec<&Session>> = BTreeMap::new();
    for session in sessions {
        if let Some(host) = &session.start.host {
            machines.entry(&host.boot).or_default().push(session);
        }
    }
    let mut shared = Vec::new();
    for on_machine in machines.values() {
        let mut things: BTreeMap<(&str, &str), Vec<(&Session, usize)>> = BTreeMap::new();
        for session in on_machine {
            for (index, domain) in session.start.domains.iter().enumerate() {
                things
                    .entry((&domain.id, part(session, domain.method)))
                    .or_default()
                    .push((*session, index));
            }
        }
        let (mut twice, mut runs) = (Range::ZERO, Vec::new());
        for counted in things.values() {
            let others: Vec<&Session> = counted.iter().map(|(session, _)| *session).collect();
            for (session, domain) in counted {
                for (from, to, count) in session.stretches(&others) {
                    let own = session.joules(*domain, to) - session.joules(*domain, from);
                    let given_up = own.scale(1.0 - 1.0 / count as f64);
                    off[session.run].joules += given_up;
                    twice += given_up;
                    runs.push(session.run);
                }
            }
        }
        let mut seconds = 0.0;
        for session in on_machine {
            for (from, to, count) in session.stretches(on_machine) {
                seconds += (to - from) / count as f64;
            }
            let same_gpus: Vec<&Session> = on_machine
                .iter()
                .copied()
                .filter(|other| other.start.hardware.gpus == session.start.hardware.gpus)
                .collect();
            for (from, to, count) in session.stretches(&same_gpus) {
                off[session.run].seconds += (to - from) * (1.0 - 1.0 / count as f64);
            }
        }
        if !runs.is_empty() {
            shared.push(Shared {
                runs: named(runs, names),
                seconds,
                counted_twice_kwh: accounting::kwh(twice),
                certain: true,
            });
        }
        shared.extend(overlapping_parts(on_machine, names));
    }
    shared.extend(alike(sessions, names));
    (off, shared)
}

/// What beside its name makes a domain the same thing.
fn part(session: &Session, method: Method) -> &str {
    match (method, &session.start.host) {
        (Method::Modelled | Method::Assumed, Some(host)) => &host.part,
        _ => "",
    }
}

/// Runs on one machine at once whose models go by different parts of it: the parts may overlap.
fn overlapping_parts(on_machine: &[&Session], names: &[String]) -> Option<Shared> {
    unsure(on_machine, names, |a, b| {
        a.start.domains.iter().any(|ours| {
            ours.method != Method::Measured
                && part(a, ours.method) != part(b, ours.method)
                && b.start.domains.iter().any(|theirs| theirs.id == ours.id)
        })
    })
}

/// Runs at once on machines that look the same, where a journal does not say which machine it was.
fn alike(sessions: &[Session], names: &[String]) -> Option<Shared> {
    let all: Vec<&Session> = sessions.iter().collect();
    unsure(&all, names, |a, b| {
        (a.start.host.is_none() || b.start.host.is_none()) && a.start.hardware == b.start.hardware
    })
}

fn unsure(
    sessions: &[&Session],
    names: &[String],
    maybe: impl Fn(&Session, &Session) -> bool,
) -> Option<Shared> {
    let (mut runs, mut seconds) = (Vec::new(), 0.0);
    for (index, a) in sessions.iter().enumerate() {
        for b in &sessions[index + 1..] {
            if a.overlaps(b) && maybe(a, b) {
                runs.extend([a.run, b.run]);
                seconds += a.ended.min(b.ended) - a.began.max(b.began);
            }
        }
    }
    (!runs.is_empty()).then(|| Shared {
        runs: named(runs, names),
        seconds,
        counted_twice_kwh: Range::ZERO,
        certain: false,
    })
}

fn named(mut runs: Vec<usize>, names: &[String]) -> Vec<String> {
    runs.sort_unstable();
    runs.dedup();
    runs.into_iter().map(|run| names[run].clone()).collect()
}
