//! Learning rates over a run: warm-up, then constant, linear or cosine.

/// The shape after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Stays.
    Constant,
    /// Falls in a line.
    Linear,
    /// Falls in half a cosine (Loshchilov and Hutter, arXiv 1608.03983).
    #[default]
    Cosine,
}

/// A learning rate for every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Shape after the warm-up.
    pub scheduler: Scheduler,
    /// Steps over which the rate rises in a line.
    pub warmup_steps: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// What the rate falls to, as a share of the highest.
    pub min_ratio: f64,
}

impl Schedule {
    /// The learning rate of a step, counted from 0; as transformers' schedules give it before the step.
    pub fn at(&self, step: usize) -> f64 {
        self.along(step as f64)
    }

    /// The same between two steps.
    fn along(&self, step: f64) -> f64 {
        let warmup = self.warmup_steps as f64;
        if step < warmup {
            return self.peak * step / warmup;
        }
        let rest = (self.total_steps.saturating_sub(self.warmup_steps)).max(1) as f64;
        let progress = ((step - warmup) / rest).min(1.0);
        let share = match self.scheduler {
            Scheduler::Constant => return self.peak,
            Scheduler::Linear => 1.0 - progress,
            Scheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * (self.min_ratio + (1.0 - self.min_ratio) * share)
    }
}

impl Schedule {
    /// The learning rate of a step when the part `used` of a budget is used, 0 to 1: as far along as the
    /// steps or the budget are, whichever is further. A run that its budget ends thus has its whole
    /// schedule, warm-up and fall.
    pub fn within(&self, step: usize, used: Option<f64>) -> f64 {
        match used {
            Some(used) => {
                let by_budget = used.clamp(0.0, 1.0) * self.total_steps as f64;
                self.along(by_budget.max(step as f64))
            }
            None => self.at(step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_and_falls_as_said() {
        let schedule = |scheduler| Schedule {
            peak: 2.0,
            scheduler,
            warmup_steps: 4,
            total_steps: 14,
            min_ratio: 0.1,
        };
        let cosine = schedule(Scheduler::Cosine);
        assert_eq!([cosine.at(0), cosine.at(2), cosine.at(4)], [0.0, 1.0, 2.0]);
        assert!((cosine.at(9) - 1.1).abs() < 1e-12 && (cosine.at(14) - 0.2).abs() < 1e-12);
        assert!((schedule(Scheduler::Linear).at(9) - 1.1).abs() < 1e-12);
        assert_eq!(schedule(Scheduler::Constant).at(100), 2.0);
        assert!((cosine.at(100) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn a_budget_moves_the_schedule_on_and_never_back() {
        let schedule = Schedule {
            peak: 1.0,
            scheduler: Scheduler::Linear,
            warmup_steps: 10,
            total_steps: 110,
            min_ratio: 0.0,
        };
        assert_eq!(schedule.within(5, None), schedule.at(5));
        assert_eq!(schedule.within(60, Some(0.1)), schedule.at(60));
        assert_eq!(schedule.within(3, Some(60.0 / 110.0)), schedule.at(60));
        assert_eq!(schedule.within(3, Some(1.0)), 0.0);
        assert!((schedule.within(0, Some(5.0 / 110.0)) - 0.5).abs() < 1e-12);
    }
}
