//! What follows from a comparison, and no more than its figures carry. Every finding is made by a rule from
//! intervals: two arms whose difference holds zero are alike within noise, and nobody is said to be better. A
//! ratio of energies is given with its interval, and none is given where the arms were not measured alike.

use super::bootstrap::{Measured, Row, difference, ratio};
use super::finding::{Finding, TaskMetric};
use super::result::{ArmResult, Outcome};

/// What is found, the most useful first.
pub(crate) fn of(outcome: &Outcome, seed: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(best) = lowest(&outcome.arms) else {
        return found;
    };
    let comparable = outcome.unlike.is_empty();
    if !comparable {
        found.push(Finding::NotAlike {
            reasons: outcome.unlike.clone(),
        });
    }
    // Alike within noise: the difference to the lowest loss may be none.
    let alike: Vec<&ArmResult> = outcome
        .arms
        .iter()
        .filter(|arm| {
            std::ptr::eq(*arm, best) || difference(&arm.losses, &best.losses, seed).holds(0.0)
        })
        .collect();
    if comparable {
        found.push(choice(best, &alike, &outcome.arms, seed));
        found.extend(worse(best, &outcome.arms, seed));
    } else if alike.len() == 1 {
        found.push(Finding::LowestLoss {
            arm: best.name.clone(),
        });
    }
    found.extend(task(&outcome.arms, seed));
    if best.loss.mean >= outcome.common.loss_before {
        found.push(Finding::NothingLearned);
    }
    found.push(Finding::Limits {
        repeats: outcome.repeats,
        measured_share: outcome.common.measured_share,
    });
    found
}

fn lowest(arms: &[ArmResult]) -> Option<&ArmResult> {
    arms.iter()
        .filter(|arm| arm.loss.mean.is_finite())
        .min_by(|a, b| a.loss.mean.total_cmp(&b.loss.mean))
}

fn cheapest<'a>(arms: &[&'a ArmResult]) -> Option<&'a ArmResult> {
    arms.iter()
        .copied()
        .min_by(|a, b| a.energy_kwh.central.total_cmp(&b.energy_kwh.central))
}

/// Which arm to take.
fn choice(best: &ArmResult, alike: &[&ArmResult], all: &[ArmResult], seed: u64) -> Finding {
    let arm = best.name.clone();
    let cheap = cheapest(alike).unwrap_or(best);
    if !std::ptr::eq(cheap, best) {
        let energy = ratio(&cheap.energies_kwh, &best.energies_kwh, seed);
        return Finding::AsGood {
            arm: cheap.name.clone(),
            best: arm,
            loss: difference(&cheap.losses, &best.losses, seed),
            energy: (!energy.holds(1.0)).then_some(energy),
        };
    }
    let every: Vec<&ArmResult> = all.iter().collect();
    let least = cheapest(&every).unwrap_or(best);
    if std::ptr::eq(least, best) {
        return match alike.len() {
            1 => Finding::BestInBoth { arm },
            _ => Finding::LeastEnergy { arm },
        };
    }
    let energy = ratio(&least.energies_kwh, &best.energies_kwh, seed);
    if energy.holds(1.0) {
        return Finding::BestAtNoMore { arm };
    }
    Finding::Trade {
        best: arm,
        least: least.name.clone(),
        energy,
        loss: difference(&least.losses, &best.losses, seed),
    }
}

/// Arms that lose on both counts.
fn worse(best: &ArmResult, arms: &[ArmResult], seed: u64) -> Option<Finding> {
    let names: Vec<String> = arms
        .iter()
        .filter(|arm| {
            !std::ptr::eq(*arm, best)
                && difference(&arm.losses, &best.losses, seed).low > 0.0
                && ratio(&arm.energies_kwh, &best.energies_kwh, seed).low > 1.0
        })
        .map(|arm| arm.name.clone())
        .collect();
    (!names.is_empty()).then(|| Finding::Worse {
        arms: names,
        best: best.name.clone(),
    })
}

/// In what the task is measured by, where it was.
fn task(arms: &[ArmResult], seed: u64) -> Option<Finding> {
    ahead(arms, TaskMetric::MacroF1, |arm| arm.classes.as_ref(), seed).or_else(|| {
        ahead(
            arms,
            TaskMetric::ExactMatch,
            |arm| arm.answers.as_ref(),
            seed,
        )
    })
}

fn ahead<R: Row>(
    arms: &[ArmResult],
    task: TaskMetric,
    of: impl Fn(&ArmResult) -> Option<&Measured<R>>,
    seed: u64,
) -> Option<Finding> {
    let measured: Vec<(&ArmResult, &Measured<R>)> = arms
        .iter()
        .filter_map(|arm| Some((arm, of(arm)?)))
        .collect();
    let figures = measured
        .iter()
        .map(|(arm, sample)| (arm, sample, sample.figure()));
    let (best, top, share) = figures.max_by(|a, b| a.2.total_cmp(&b.2))?;
    let behind: Vec<String> = measured
        .iter()
        .filter(|(_, sample)| difference(*top, *sample, seed).low > 0.0)
        .map(|(arm, _)| arm.name.clone())
        .collect();
    Some(if behind.is_empty() {
        Finding::NoneAhead { task, share }
    } else {
        Finding::Ahead {
            task,
            arm: best.name.clone(),
            behind,
            share,
        }
    })
}

#[cfg(test)]
mod tests {
    use sparsam_tracker::Range;

    use super::super::finding::{Ground, Unlike};
    use super::super::result::Common;
    use super::*;
    use crate::report::Language;

    fn words(outcome: &Outcome, seed: u64) -> Vec<String> {
        let english = |finding: &Finding| finding.words(Language::En);
        of(outcome, seed).iter().map(english).collect()
    }

    /// An arm whose rows all have about this loss, and whose runs took about this energy.
    fn arm(name: &str, loss: f64, noise: f64, kwh: f64) -> ArmResult {
        let rows = |repeat: usize| -> Vec<(f64, f64)> {
            (0..20)
                .map(|row| {
                    let sign = if (row * 7 + repeat * 3 + name.len()).is_multiple_of(2) {
                        1.0
                    } else {
                        -1.0
                    };
                    (loss + noise * sign, 1.0)
                })
                .collect()
        };
        let losses = Measured((0..3).map(rows).collect());
        let energies_kwh = vec![kwh * 0.99, kwh, kwh * 1.01];
        ArmResult {
            name: name.to_owned(),
            keys: Vec::new(),
            trainable: 1,
            loss: super::super::bootstrap::mean(&losses, 1),
            loss_difference: None,
            exact_match: None,
            exact_match_difference: None,
            macro_f1: None,
            macro_f1_difference: None,
            minutes: 1.0,
            minutes_each: Vec::new(),
            peak_memory_each: Vec::new(),
            peak_memory_bytes: None,
            energy_kwh: Range::exactly(kwh),
            energies_kwh,
            energy_ratio: None,
            emissions_g: Range::exactly(1.0).into(),
            phases_kwh: Vec::new(),
            components_kwh: Vec::new(),
            published_bytes: None,
            wh_to_target: None,
            gain_per_wh: 1.0,
            losses,
            answers: None,
            classes: None,
        }
    }

    fn outcome(arms: Vec<ArmResult>) -> Outcome {
        Outcome {
            recipe: String::new(),
            set: Vec::new(),
            repeats: 3,
            common: Common {
                model: String::new(),
                hardware: String::new(),
                train_blake3: String::new(),
                eval_blake3: None,
                steps: 1,
                tokens: 1,
                batch: String::new(),
                loss_before: 9.0,
                emissions: String::new(),
                measured_share: 1.0,
            },
            arms,
            unlike: Vec::new(),
            target_loss: 1.0,
            findings: Vec::new(),
            advice: Vec::new(),
        }
    }

    #[test]
    fn alike_within_noise_the_cheaper_one_is_named_with_its_share() {
        let advice = words(
            &outcome(vec![
                arm("full", 1.0, 0.2, 1.0),
                arm("LoRA r 16", 1.001, 0.2, 0.41),
            ]),
            1,
        );
        assert!(
            advice[0].starts_with(
                "LoRA r 16 reaches the loss of full within noise (difference 0.0010 ("
            ),
            "{advice:?}"
        );
        assert!(
            advice[0].contains("at 41 % (40 to 42) of its energy."),
            "{advice:?}"
        );
    }

    #[test]
    fn a_difference_beyond_noise_is_a_trade_and_no_advice_to_take_either() {
        let advice = words(
            &outcome(vec![
                arm("full", 1.0, 0.001, 1.0),
                arm("LoRA r 4", 1.5, 0.001, 0.3),
            ]),
            1,
        );
        assert!(
            advice[0].starts_with("full has the lowest loss. LoRA r 4 needs 30 %"),
            "{advice:?}"
        );
        assert!(advice[0].contains("higher by 0.50"), "{advice:?}");
    }

    #[test]
    fn energies_within_noise_are_not_told_apart() {
        let mut other = arm("int8", 1.5, 0.001, 0.999);
        other.energies_kwh = vec![0.9, 1.0, 1.1];
        let advice = words(&outcome(vec![arm("full", 1.0, 0.001, 1.0), other]), 1);
        assert!(advice[0].contains("beyond noise"), "{advice:?}");
    }

    #[test]
    fn who_loses_on_both_counts_is_said_so_and_unlike_arms_are_not_compared() {
        let arms = || vec![arm("a", 1.0, 0.001, 1.0), arm("bb", 2.0, 0.001, 3.0)];
        let advice = words(&outcome(arms()), 1);
        assert_eq!(
            advice[0],
            "a has the lowest loss, and needs the least energy too."
        );
        assert_eq!(advice[1], "bb needs more energy than a for a higher loss.");
        let mut unlike = outcome(arms());
        unlike.unlike.push(Unlike {
            what: Ground::Machine,
            arm: "bb".to_owned(),
        });
        unlike.repeats = 1;
        let advice = words(&unlike, 1);
        assert!(advice[0].contains("not compared"), "{advice:?}");
        assert!(!advice[1].contains("energy"), "{advice:?}");
        assert!(
            advice.last().unwrap().starts_with("One run each"),
            "{advice:?}"
        );
    }

    #[test]
    fn a_model_that_learned_nothing_is_said_to_have() {
        let mut outcome = outcome(vec![arm("a", 9.5, 0.001, 1.0), arm("bb", 9.6, 0.001, 1.0)]);
        outcome.common.measured_share = 0.0;
        let advice = words(&outcome, 1);
        assert!(
            advice
                .iter()
                .any(|text| text.starts_with("No arm is better")),
            "{advice:?}"
        );
        assert!(advice.last().unwrap().contains("modelled"), "{advice:?}");
    }
}
