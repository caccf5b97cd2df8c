//! What a comparison found, as data, and the sentence for each in English and in German. [`super::advice`]
//! decides what is found; here nothing is decided.

use serde::{Deserialize, Serialize};
use sparsam_tracker::format;

use super::bootstrap::Interval;
use crate::figures::significant;
use crate::report::Language;

/// One thing that follows from the figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub(crate) enum Finding {
    /// The arms do not stand on the same ground.
    NotAlike { reasons: Vec<Unlike> },
    /// An arm is like the best within noise; its share of the best one's energy, where the two can be told apart.
    AsGood {
        arm: String,
        best: String,
        loss: Interval,
        energy: Option<Interval>,
    },
    /// The lowest loss is that of the arm with the least energy.
    BestInBoth { arm: String },
    /// The arm with the least energy has a loss that none undercuts beyond noise.
    LeastEnergy { arm: String },
    /// The lowest loss, and none needs less energy beyond noise.
    BestAtNoMore { arm: String },
    /// The lowest loss, and the arm with the least energy, which has a higher one.
    Trade {
        best: String,
        least: String,
        energy: Interval,
        loss: Interval,
    },
    /// The lowest loss, where energies are not compared.
    LowestLoss { arm: String },
    /// More energy for a higher loss.
    Worse { arms: Vec<String>, best: String },
    /// No arm is ahead beyond noise in what its task is measured by.
    NoneAhead {
        #[serde(default)]
        task: TaskMetric,
        share: f64,
    },
    /// An arm is ahead of others in it.
    Ahead {
        #[serde(default)]
        task: TaskMetric,
        arm: String,
        behind: Vec<String>,
        share: f64,
    },
    /// No arm improved on the base model.
    NothingLearned,
    /// What the figures do not carry.
    Limits { repeats: usize, measured_share: f64 },
}

/// What a task is measured by, beside the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TaskMetric {
    /// The share of answers that are exactly right.
    #[default]
    ExactMatch,
    /// Macro F1 of a classifier.
    MacroF1,
}

impl TaskMetric {
    fn english(self) -> &'static str {
        match self {
            Self::ExactMatch => "On answers that are exactly right",
            Self::MacroF1 => "In macro F1",
        }
    }

    fn german(self) -> &'static str {
        match self {
            Self::ExactMatch => "Bei den genau richtigen Antworten",
            Self::MacroF1 => "Im Makro-F1",
        }
    }
}

/// In what an arm differs from the first, or, in its amount of work, from the others of its repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unlike {
    pub(crate) what: Ground,
    pub(crate) arm: String,
}

/// What all arms must have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ground {
    TrainingData,
    EvaluationData,
    Machine,
    Meters,
    Grid,
    Work,
}

impl Finding {
    /// The sentence.
    pub(crate) fn words(&self, language: Language) -> String {
        match language {
            Language::En => self.english(),
            Language::De => self.german(),
        }
    }

    fn english(&self) -> String {
        match self {
            Self::NotAlike { reasons } => {
                let reasons: Vec<String> = reasons.iter().map(Unlike::english).collect();
                format!(
                    "The arms were not measured alike, so that their energies are not compared: {}.",
                    reasons.join("; ")
                )
            }
            Self::AsGood {
                arm,
                best,
                loss,
                energy,
            } => {
                let at = energy.map_or_else(
                    || "at an energy that cannot be told from its".to_owned(),
                    |energy| format!("at {} of its energy", percent(energy)),
                );
                let loss = signed(*loss);
                format!("{arm} reaches the loss of {best} within noise (difference {loss}) {at}.")
            }
            Self::BestInBoth { arm } => {
                format!("{arm} has the lowest loss, and needs the least energy too.")
            }
            Self::LeastEnergy { arm } => {
                format!("{arm} needs the least energy, and no arm's loss is lower.")
            }
            Self::BestAtNoMore { arm } => {
                format!("{arm} has the lowest loss; no arm needs less energy than it beyond noise.")
            }
            Self::Trade {
                best,
                least,
                energy,
                loss,
            } => format!(
                "{best} has the lowest loss. {least} needs {} of its energy, for a loss that is higher by {}: \
                 whether that is worth it depends on what the model is for.",
                percent(*energy),
                signed(*loss)
            ),
            Self::LowestLoss { arm } => format!("{arm} has the lowest loss."),
            Self::Worse { arms, best } => {
                let verb = if arms.len() == 1 { "needs" } else { "need" };
                let arms = arms.join(" and ");
                format!("{arms} {verb} more energy than {best} for a higher loss.")
            }
            Self::NoneAhead { task, share } => format!(
                "{} no arm is ahead beyond noise ({:.0} % at most).",
                task.english(),
                share * 100.0
            ),
            Self::Ahead {
                task,
                arm,
                behind,
                share,
            } => format!(
                "{} {arm} is ahead of {} ({:.0} %).",
                task.english(),
                behind.join(" and "),
                share * 100.0
            ),
            Self::NothingLearned => {
                "No arm is better than the base model on the held-out data.".to_owned()
            }
            Self::Limits {
                repeats,
                measured_share,
            } => {
                let mut parts = Vec::new();
                if *repeats < 3 {
                    let runs = if *repeats == 1 { "one run" } else { "two runs" };
                    parts.push(format!(
                        "{runs} each say little about the spread between seeds"
                    ));
                }
                if *measured_share < 0.5 {
                    parts.push(format!(
                        "the energies are {} measured, the rest is modelled: their level is uncertain, their \
                         ratios less so, as all arms share the model",
                        format::percent(*measured_share)
                    ));
                }
                parts.push(
                    "all of this holds for this model, this data and this machine".to_owned(),
                );
                sentence(&parts)
            }
        }
    }

    fn german(&self) -> String {
        let de = |text: String| Language::De.figure(&text);
        match self {
            Self::NotAlike { reasons } => {
                let reasons: Vec<String> = reasons.iter().map(Unlike::german).collect();
                format!(
                    "Die Varianten wurden nicht gleich gemessen, daher werden ihre Energien nicht verglichen: {}.",
                    reasons.join("; ")
                )
            }
            Self::AsGood {
                arm,
                best,
                loss,
                energy,
            } => {
                let at = energy.map_or_else(
                    || "mit einer Energie, die sich von ihrer nicht unterscheiden lässt".to_owned(),
                    |energy| format!("mit {} ihrer Energie", de(percent(energy))),
                );
                let loss = de(signed(*loss));
                format!(
                    "{arm} erreicht im Rahmen der Streuung den Verlust von {best} (Unterschied {loss}), {at}."
                )
            }
            Self::BestInBoth { arm } => {
                format!("{arm} hat den niedrigsten Verlust und braucht auch die wenigste Energie.")
            }
            Self::LeastEnergy { arm } => format!(
                "{arm} braucht die wenigste Energie, und keine Variante hat einen niedrigeren Verlust."
            ),
            Self::BestAtNoMore { arm } => format!(
                "{arm} hat den niedrigsten Verlust; keine Variante braucht über die Streuung hinaus weniger \
                 Energie."
            ),
            Self::Trade {
                best,
                least,
                energy,
                loss,
            } => format!(
                "{best} hat den niedrigsten Verlust. {least} braucht {} der Energie, bei einem um {} höheren \
                 Verlust: ob sich das lohnt, hängt davon ab, wofür das Modell da ist.",
                de(percent(*energy)),
                de(signed(*loss))
            ),
            Self::LowestLoss { arm } => format!("{arm} hat den niedrigsten Verlust."),
            Self::Worse { arms, best } => {
                let verb = if arms.len() == 1 {
                    "braucht"
                } else {
                    "brauchen"
                };
                let arms = arms.join(" und ");
                format!("{arms} {verb} mehr Energie als {best}, bei einem höheren Verlust.")
            }
            Self::NoneAhead { task, share } => format!(
                "{} liegt keine Variante über die Streuung hinaus vorn (höchstens {:.0} %).",
                task.german(),
                share * 100.0
            ),
            Self::Ahead {
                task,
                arm,
                behind,
                share,
            } => format!(
                "{} liegt {arm} vor {} ({:.0} %).",
                task.german(),
                behind.join(" und "),
                share * 100.0
            ),
            Self::NothingLearned => {
                "Auf den zurückgehaltenen Daten ist keine Variante besser als das Grundmodell."
                    .to_owned()
            }
            Self::Limits {
                repeats,
                measured_share,
            } => {
                let mut parts = Vec::new();
                if *repeats < 3 {
                    parts.push(if *repeats == 1 {
                        "je ein Lauf sagt wenig über die Streuung zwischen Startwerten".to_owned()
                    } else {
                        "je zwei Läufe sagen wenig über die Streuung zwischen Startwerten"
                            .to_owned()
                    });
                }
                if *measured_share < 0.5 {
                    parts.push(format!(
                        "die Energien sind zu {} gemessen, der Rest ist nach einem Modell berechnet: ihre Höhe \
                         ist unsicher, ihr Verhältnis weniger, da alle Varianten dasselbe Modell teilen",
                        de(format::percent(*measured_share))
                    ));
                }
                parts.push(
                    "all das gilt für dieses Modell, diese Daten und diese Maschine".to_owned(),
                );
                sentence(&parts)
            }
        }
    }
}

impl Unlike {
    fn english(&self) -> String {
        let what = match self.what {
            Ground::TrainingData => "the training data",
            Ground::EvaluationData => "the evaluation data",
            Ground::Machine => "the machine",
            Ground::Meters => "the way of measuring",
            Ground::Grid => "the grid",
            Ground::Work => "the amount of work",
        };
        let others = match self.what {
            Ground::Work => "the others in its repeat",
            _ => "the first",
        };
        format!("{what} of the arm `{}` is not that of {others}", self.arm)
    }

    fn german(&self) -> String {
        let arm = &self.arm;
        match self.what {
            Ground::TrainingData => {
                format!("die Trainingsdaten der Variante `{arm}` sind nicht die der ersten")
            }
            Ground::EvaluationData => {
                format!("die Auswertungsdaten der Variante `{arm}` sind nicht die der ersten")
            }
            Ground::Machine => {
                format!("die Maschine der Variante `{arm}` ist nicht die der ersten")
            }
            Ground::Meters => {
                format!("die Art der Messung der Variante `{arm}` ist nicht die der ersten")
            }
            Ground::Grid => {
                format!("das Stromnetz der Variante `{arm}` ist nicht das der ersten")
            }
            Ground::Work => format!(
                "der Arbeitsumfang der Variante `{arm}` ist nicht der der anderen in ihrer Wiederholung"
            ),
        }
    }
}

/// Parts as one sentence.
fn sentence(parts: &[String]) -> String {
    let text = parts.join("; ");
    let mut letters = text.chars();
    let first: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    format!("{first}{}.", letters.as_str())
}

/// `41 % (38 to 44)`.
fn percent(share: Interval) -> String {
    format!(
        "{:.0} % ({:.0} to {:.0})",
        share.mean * 100.0,
        share.low * 100.0,
        share.high * 100.0
    )
}

/// `0.012 (-0.003 to 0.027)`.
fn signed(difference: Interval) -> String {
    let number = |value: f64| significant(value, 2);
    format!(
        "{} ({} to {})",
        number(difference.mean),
        number(difference.low),
        number(difference.high)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Interval = Interval {
        low: 0.061,
        mean: 0.096,
        high: 0.12,
    };

    fn all() -> Vec<Finding> {
        let name = || "LoRA r 1.5".to_owned();
        let grounds = [
            Ground::TrainingData,
            Ground::EvaluationData,
            Ground::Machine,
            Ground::Meters,
            Ground::Grid,
            Ground::Work,
        ];
        let reasons = grounds.map(|what| Unlike { what, arm: name() }).into();
        let as_good = |energy| Finding::AsGood {
            arm: name(),
            best: name(),
            loss: INTERVAL,
            energy,
        };
        vec![
            Finding::NotAlike { reasons },
            as_good(None),
            as_good(Some(INTERVAL)),
            Finding::BestInBoth { arm: name() },
            Finding::LeastEnergy { arm: name() },
            Finding::BestAtNoMore { arm: name() },
            Finding::Trade {
                best: name(),
                least: name(),
                energy: INTERVAL,
                loss: INTERVAL,
            },
            Finding::LowestLoss { arm: name() },
            Finding::Worse {
                arms: vec![name(), name()],
                best: name(),
            },
            Finding::NoneAhead {
                task: TaskMetric::MacroF1,
                share: 0.705,
            },
            Finding::Ahead {
                task: TaskMetric::ExactMatch,
                arm: name(),
                behind: vec![name()],
                share: 0.7,
            },
            Finding::NothingLearned,
            Finding::Limits {
                repeats: 1,
                measured_share: 0.0,
            },
        ]
    }

    /// A name is a name in both, a number is written as each language writes it.
    #[test]
    fn every_finding_has_a_sentence_in_both_languages() {
        for finding in all() {
            let (en, de) = (finding.words(Language::En), finding.words(Language::De));
            assert!(
                en.ends_with('.') && de.ends_with('.') && en != de,
                "{en}\n{de}"
            );
            assert!(de.starts_with(char::is_uppercase), "{de}");
            assert_eq!(
                en.matches("LoRA r 1.5").count(),
                de.matches("LoRA r 1.5").count()
            );
            for english in [" the ", " is ", " to ", " of ", "loss", "arm "] {
                assert!(!de.contains(english), "{de}");
            }
            let text = serde_json::to_string(&finding).unwrap();
            assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), finding);
        }
    }

    #[test]
    fn german_numbers_are_german() {
        let trade = Finding::Trade {
            best: "full".to_owned(),
            least: "r 4".to_owned(),
            energy: INTERVAL,
            loss: INTERVAL,
        };
        assert_eq!(
            trade.words(Language::De),
            "full hat den niedrigsten Verlust. r 4 braucht 10 % (6 bis 12) der Energie, bei einem um 0,096 \
             (0,061 bis 0,12) höheren Verlust: ob sich das lohnt, hängt davon ab, wofür das Modell da ist."
        );
    }
}
