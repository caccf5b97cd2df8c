//! A budget of energy, emissions or time, and how far a run is with it.
//!
//! The budget is the whole run's: loading, both evaluations, answers and all. What the end will need is
//! set aside, as much as the same things took at the start, by readings of the meters at their ends. In between the
//! tracker's live figures are up to a sampling interval old, so power times that time is added.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use sparsam_adapter::data::questions::Question;
use sparsam_adapter::evaluate::Answer;
use sparsam_adapter::train::Phase;
use sparsam_tracker::accounting::JOULES_PER_KWH;
use sparsam_tracker::{EnergyRecord, Live};

use crate::error::Failure;
use crate::recipe::Budget;

/// What a run used of its budget, for its record.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct BudgetUse {
    /// The limits of the recipe.
    pub(crate) limits: Budget,
    /// Energy of the whole run, kWh.
    pub(crate) used_kwh: f64,
    /// Emissions of the whole run, gCO2e, where its place is known.
    pub(crate) used_gco2e: Option<f64>,
    /// Time of the whole run, minutes.
    pub(crate) used_minutes: f64,
    /// Whether the budget ended the training, and not its length.
    pub(crate) ended_by_budget: bool,
    /// When the first step began and what its end needs, which a resumed run goes on with.
    pub(crate) begun: Spent,
    /// Set aside for the last evaluation, the answers and the files.
    pub(crate) reserve: Spent,
}

/// Something used.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// Joules, the central figure.
    pub(crate) joules: f64,
    /// Seconds.
    pub(crate) seconds: f64,
    /// gCO2e, the central figure; 0 where the place is unknown.
    #[serde(default)]
    pub(crate) grams: f64,
}

impl Spent {
    fn less(self, other: Self) -> Self {
        Self {
            grams: (self.grams - other.grams).max(0.0),
            joules: (self.joules - other.joules).max(0.0),
            seconds: (self.seconds - other.seconds).max(0.0),
        }
    }

    fn times(self, factor: f64) -> Self {
        Self {
            grams: self.grams * factor,
            joules: self.joules * factor,
            seconds: self.seconds * factor,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            grams: self.grams + other.grams,
            joules: self.joules + other.joules,
            seconds: self.seconds + other.seconds,
        }
    }
}

/// The meter of a budget.
#[derive(Debug)]
pub(super) struct Meter {
    limits: Budget,
    /// Tracked seconds of the sessions before, and the start of this one.
    earlier: f64,
    started: Instant,
    begun: Option<Spent>,
    /// Of the last evaluation, the answers before the training, and the last checkpoint.
    evaluation: Spent,
    answers: Spent,
    save: Spent,
    /// What an earlier session set aside, which this one may not measure again.
    floor: Spent,
    /// Where the phase that is going on began.
    phase: Option<Spent>,
    /// What the last step took.
    step: Spent,
    /// At the end of the step before.
    last: Option<Spent>,
}

impl Meter {
    /// A meter from the start of the tracker on. `before` is what an earlier session of the run noted.
    ///
    /// # Errors
    /// A budget of emissions for a run whose place is unknown.
    pub(super) fn start(
        limits: Budget,
        live: &Live,
        before: Option<&BudgetUse>,
    ) -> Result<Self, Failure> {
        if limits.gco2e.is_some() && live.grams_per_kwh.is_none() {
            return Err(Failure::usage(
                "`budget.gco2e` is a budget of emissions, and the run's place is not known",
            )
            .hint("add `country: DEU` (your own), set SPARSAM_COUNTRY, or give `budget.kwh`"));
        }
        let mut meter = Self {
            limits,
            earlier: live.seconds,
            started: Instant::now(),
            begun: None,
            evaluation: Spent::default(),
            answers: Spent::default(),
            save: Spent::default(),
            floor: Spent::default(),
            phase: None,
            step: Spent::default(),
            last: None,
        };
        if let Some(before) = before {
            meter.begun = Some(before.begun);
            meter.floor = before.reserve;
        }
        Ok(meter)
    }

    /// What the run has used until now.
    pub(super) fn now(&self, live: &Live) -> Spent {
        let seconds = self.earlier + self.started.elapsed().as_secs_f64();
        let since = (seconds - live.seconds).max(0.0);
        let unread = live.watts.unwrap_or(0.0) * since;
        let grams = live.emissions_g.central.zip(live.grams_per_kwh);
        Spent {
            joules: live.joules.central + unread,
            seconds: seconds.max(live.seconds),
            grams: grams.map_or(0.0, |(grams, each)| grams + unread / JOULES_PER_KWH * each),
        }
    }

    /// A phase whose cost will come again at the end begins.
    pub(super) fn enter(&mut self, live: &Live) {
        self.phase = Some(self.now(live));
    }

    fn phase(&mut self, live: &Live) -> Spent {
        let began = self.phase.take();
        began.map_or_else(Spent::default, |began| self.now(live).less(began))
    }

    /// The evaluation data was measured.
    pub(super) fn evaluated(&mut self, live: &Live) {
        self.evaluation = self.phase(live);
        self.last = None;
    }

    /// The answers before the training were written. Those after it will be so many times as long: a model
    /// that has learned nothing yet seldom ends where one does that has.
    pub(super) fn answered(&mut self, live: &Live, longer: f64) {
        let took = self.phase(live);
        self.answers = took.times(longer);
    }

    /// A checkpoint was written.
    pub(super) fn saved(&mut self, live: &Live) {
        self.save = self.phase(live);
        self.last = None;
    }

    /// Whether the first step has begun, in this session or an earlier one.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// The first step begins.
    pub(super) fn begin(&mut self, live: &Live) {
        self.begun = Some(self.now(live));
    }

    /// A step is done.
    pub(super) fn stepped(&mut self, live: &Live) {
        let now = self.now(live);
        if let Some(last) = self.last {
            self.step = now.less(last);
        }
        self.last = Some(now);
    }

    /// Set aside: an evaluation and answers as before, and the best values, a checkpoint and the result.
    pub(super) fn reserve(&self) -> Spent {
        let files = self.save.and(self.save).and(self.save);
        let measured = self.evaluation.and(self.answers).and(files);
        Spent {
            grams: measured.grams.max(self.floor.grams),
            joules: measured.joules.max(self.floor.joules),
            seconds: measured.seconds.max(self.floor.seconds),
        }
    }

    /// The part of the budget for training that is used: 0 at the first step, 1 when the next step would
    /// more likely pass the limit than not.
    pub(super) fn used(&self, live: &Live) -> f64 {
        self.used_with(live, Spent::default())
    }

    /// Whether there is room for such a phase now and for some steps after it. Where nothing is known of it
    /// there is.
    pub(super) fn affords(&self, phase: Phase, live: &Live) -> bool {
        let cost = match phase {
            Phase::Train => self.step,
            // The best values so far are written after an evaluation.
            Phase::Evaluate => self.evaluation.and(self.save),
            Phase::Save => self.save,
        };
        self.used_with(live, cost.and(self.step)) < 1.0
    }

    /// The same when `more` will have been used too.
    fn used_with(&self, live: &Live, more: Spent) -> f64 {
        let begun = self.begun.unwrap_or_default();
        let now = self.now(live).and(more);
        let aside = self.reserve().and(self.step.times(0.5));
        let part = |limit: f64, now: f64, begun: f64, aside: f64| {
            let for_training = limit - begun - aside;
            if for_training > 0.0 {
                (now - begun) / for_training
            } else {
                1.0
            }
        };
        // What the end will need, it will need of the grid as it is by then: as it is now, as far as is known.
        let grams_aside = live
            .grams_per_kwh
            .map(|each| aside.joules / JOULES_PER_KWH * each);
        [
            self.limits
                .kwh
                .map(|kwh| part(kwh * JOULES_PER_KWH, now.joules, begun.joules, aside.joules)),
            self.limits
                .gco2e
                .zip(grams_aside)
                .map(|(limit, aside)| part(limit, now.grams, begun.grams, aside)),
            self.limits
                .minutes
                .map(|minutes| part(minutes * 60.0, now.seconds, begun.seconds, aside.seconds)),
        ]
        .into_iter()
        .flatten()
        .fold(0.0, f64::max)
    }

    /// For the record while the run goes on, so that it can be resumed.
    pub(super) fn so_far(&self, live: &Live) -> BudgetUse {
        let now = self.now(live);
        BudgetUse {
            limits: self.limits,
            used_kwh: now.joules / JOULES_PER_KWH,
            used_gco2e: live.grams_per_kwh.map(|_| now.grams),
            used_minutes: now.seconds / 60.0,
            ended_by_budget: false,
            begun: self.begun.unwrap_or_default(),
            reserve: self.reserve(),
        }
    }
}

impl BudgetUse {
    /// With the figures of the books that are closed.
    pub(super) fn close(&mut self, energy: &EnergyRecord, ended_by_budget: bool) {
        self.used_kwh = energy.energy_kwh.central;
        self.used_gco2e = energy.emissions_g.central;
        self.used_minutes = energy.duration_seconds / 60.0;
        self.ended_by_budget = ended_by_budget;
    }

    /// `0.049 of 0.05 kWh (98.2 %)` for each limit.
    pub(crate) fn words(&self) -> String {
        let digits = |value: f64| sparsam_tracker::format::plain_decimal(value, 4);
        let one = |limit: Option<f64>, used: Option<f64>, unit: &str| {
            let (limit, used) = limit.zip(used)?;
            Some(format!(
                "{} of {} {unit} ({:.1} %)",
                digits(used),
                digits(limit),
                used / limit * 100.0
            ))
        };
        [
            one(self.limits.kwh, Some(self.used_kwh), "kWh"),
            one(self.limits.gco2e, self.used_gco2e, "gCO2e"),
            one(self.limits.minutes, Some(self.used_minutes), "min"),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
    }
}

/// How many times as long the expected answers are as those that were written, by letters. The longest of
/// either decides, as the others of its batch wait for it.
pub(super) fn longer(questions: &[Question], answers: &[Answer]) -> f64 {
    let expected = questions.iter().map(|q| q.expected.trim().len()).max();
    let written = answers.iter().map(|answer| answer.text.len()).max();
    let ratio = expected.unwrap_or(0) as f64 / written.unwrap_or(0).max(1) as f64;
    // Of a model that writes nothing nothing more precise can be said.
    let ratio = ratio.clamp(0.5, 4.0);
    // One that wrote more than is expected may have learned to end when it is asked again, or not in one of its
    // answers, for which the others wait.
    if ratio < 1.0 {
        f64::midpoint(ratio, 1.0)
    } else {
        ratio
    }
}

#[cfg(test)]
mod tests {
    use sparsam_tracker::Range;

    use super::*;

    fn live(seconds: f64, joules: f64) -> Live {
        Live {
            watts: None,
            joules: Range::exactly(joules),
            emissions_g: Range::ZERO.into(),
            grams_per_kwh: None,
            seconds,
        }
    }

    /// Where a kilowatt-hour emits so much now, and `grams` were emitted so far.
    fn placed(joules: f64, grams: f64, each: f64) -> Live {
        Live {
            emissions_g: Range::exactly(grams).into(),
            grams_per_kwh: Some(each),
            ..live(0.0, joules)
        }
    }

    /// 1000 J in all, of which 100 are gone at the first step, and an evaluation took 50.
    #[test]
    fn what_the_end_needs_is_set_aside() {
        let limits = Budget {
            kwh: Some(1000.0 / 3.6e6),
            ..Budget::default()
        };
        let mut meter = Meter::start(limits, &live(0.0, 0.0), None).unwrap();
        meter.enter(&live(0.0, 50.0));
        meter.evaluated(&live(0.0, 100.0));
        meter.begin(&live(0.0, 100.0));
        assert!(meter.used(&live(0.0, 100.0)).abs() < 1e-9);
        assert!((meter.used(&live(0.0, 100.0 + 425.0)) - 0.5).abs() < 1e-9);
        assert!((meter.used(&live(0.0, 950.0)) - 1.0).abs() < 1e-9);
        // A step of 20 J: half of one before the limit is the nearest that steps can come.
        meter.stepped(&live(0.0, 500.0));
        meter.stepped(&live(0.0, 520.0));
        assert!(meter.used(&live(0.0, 941.0)) >= 1.0 && meter.used(&live(0.0, 939.0)) < 1.0);
        // An evaluation of 50 J and a step of 20 J fit before 940 J, or they do not.
        assert!(meter.affords(Phase::Evaluate, &live(0.0, 865.0)));
        assert!(!meter.affords(Phase::Evaluate, &live(0.0, 875.0)));
        assert!(meter.affords(Phase::Save, &live(0.0, 875.0)));
    }

    #[test]
    fn a_budget_that_is_gone_before_the_first_step_leaves_one_step() {
        let limits = Budget {
            minutes: Some(1.0),
            ..Budget::default()
        };
        let mut meter = Meter::start(limits, &live(90.0, 0.0), None).unwrap();
        meter.begin(&live(90.0, 0.0));
        assert!(meter.used(&live(90.0, 0.0)) >= 1.0);
    }

    #[test]
    fn emissions_need_a_place() {
        let limits = Budget {
            gco2e: Some(1.0),
            ..Budget::default()
        };
        let failure = Meter::start(limits, &live(0.0, 0.0), None).unwrap_err();
        assert!(failure.to_string().contains("place"));
        let mut meter = Meter::start(limits, &placed(0.0, 0.0, 360.0), None).unwrap();
        meter.begin(&placed(0.0, 0.0, 360.0));
        // 360 g/kWh are 1 g in 10 kJ.
        assert!((meter.used(&placed(5000.0, 0.5, 360.0)) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn emissions_are_reckoned_by_the_grid_of_their_time() {
        let limits = Budget {
            gco2e: Some(10.0),
            ..Budget::default()
        };
        // An evaluation of 10 kJ at 360 g/kWh: 1 g then.
        let mut meter = Meter::start(limits, &placed(0.0, 0.0, 360.0), None).unwrap();
        meter.enter(&placed(0.0, 0.0, 360.0));
        meter.evaluated(&placed(10e3, 1.0, 360.0));
        meter.begin(&placed(10e3, 1.0, 360.0));
        // 8 g for the training, and 4 of them are gone.
        assert!((meter.used(&placed(50e3, 5.0, 360.0)) - 0.5).abs() < 1e-9);
        // Twice as dirty, the evaluation will be 2 g: 7 g for the training, and 7 are gone.
        assert!((meter.used(&placed(65e3, 8.0, 720.0)) - 1.0).abs() < 1e-9);
    }
}
