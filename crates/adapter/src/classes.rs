//! How well a classifier tells classes apart: accuracy, F1, the confusion matrix, and whether its probabilities mean
//! what they say.
//!
//! - **Precision** of a class: of the texts given it, the share that is of it; **recall**: of its texts, the share
//!   that is given it; **F1**: their harmonic mean. A share of nothing is 0.
//! - **Macro F1**: the mean of F1 over the classes that occur, as truth or as answer, as scikit-learn has it.
//! - **Expected calibration error** (Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks",
//!   ICML 2017): answers are put into 15 bins of equal width by their probability; the error is the mean over the
//!   bins, weighted by their answers, of how far the share of right answers lies from the mean probability.

use serde::{Deserialize, Serialize};

/// Bins of the calibration error.
pub const BINS: usize = 15;

/// What a classifier makes of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The class it is of, where that is known.
    pub truth: Option<u32>,
    /// Probability of every class.
    pub probabilities: Vec<f32>,
}

impl Prediction {
    /// The likeliest class, the first of equals.
    pub fn answer(&self) -> usize {
        let mut best = 0;
        for (class, probability) in self.probabilities.iter().enumerate() {
            if *probability > self.probabilities[best] {
                best = class;
            }
        }
        best
    }

    /// The class it is of, where that is known, and the likeliest one.
    pub fn answered(&self) -> Option<(u32, u32)> {
        Some((self.truth?, self.answer() as u32))
    }

    /// Its probability.
    pub fn confidence(&self) -> f32 {
        self.probabilities
            .get(self.answer())
            .copied()
            .unwrap_or(0.0)
    }
}

/// One class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// 0 to 1.
    pub precision: f64,
    /// 0 to 1.
    pub recall: f64,
    /// 0 to 1.
    pub f1: f64,
    /// Texts of it.
    pub texts: u64,
}

/// Answers of about the same probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// How many.
    pub answers: u64,
    /// Their mean probability; 0 where there are none.
    pub confidence: f64,
    /// The share that is right; 0 where there are none.
    pub accuracy: f64,
}

/// How well a classifier does on texts whose classes are known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Share of right answers, 0 to 1.
    pub accuracy: f64,
    /// Mean F1 over the classes, 0 to 1.
    pub macro_f1: f64,
    /// Expected calibration error, 0 to 1.
    pub calibration_error: f64,
    /// By number of the class.
    pub per_class: Vec<ClassScore>,
    /// Texts by true class (rows) and answer (columns).
    pub confusion: Vec<Vec<u64>>,
    /// Answers by their probability, from 0 to 1 in [`BINS`] steps.
    pub bins: Vec<Bin>,
}

/// Macro F1 of answers, each a text's class and what it was given; 0 without any.
pub fn macro_f1(answers: impl IntoIterator<Item = (u32, u32)>) -> f64 {
    // Right ones, texts of the class and answers of it together.
    let mut classes: Vec<(u64, u64)> = Vec::new();
    let mut count = |class: u32, right: u64| {
        let class = class as usize;
        if class >= classes.len() {
            classes.resize(class + 1, (0, 0));
        }
        classes[class].0 += right;
        classes[class].1 += 1;
    };
    for (truth, answer) in answers {
        count(truth, u64::from(truth == answer));
        count(answer, 0);
    }
    let occurring = classes.iter().filter(|(_, both)| *both > 0);
    let (number, sum) = occurring.fold((0, 0.0), |(number, sum), (right, both)| {
        (number + 1, sum + 2.0 * *right as f64 / *both as f64)
    });
    sum / f64::from(number.max(1))
}

impl ClassMetrics {
    /// Of predictions over `classes` classes; those without a known class are left out. None where none has one.
    pub fn of(predictions: &[Prediction], classes: usize) -> Option<Self> {
        let mut confusion = vec![vec![0u64; classes]; classes];
        let mut sums = [(0u64, 0.0, 0u64); BINS];
        let mut texts = 0u64;
        for prediction in predictions {
            let Some(truth) = prediction.truth else {
                continue;
            };
            let answer = prediction.answer();
            *confusion.get_mut(truth as usize)?.get_mut(answer)? += 1;
            let confidence = f64::from(prediction.confidence());
            let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            let (answers, sum, right) = &mut sums[bin];
            *answers += 1;
            *sum += confidence;
            *right += u64::from(answer == truth as usize);
            texts += 1;
        }
        if texts == 0 {
            return None;
        }
        let share = |part: u64, whole: u64| {
            if whole == 0 {
                0.0
            } else {
                part as f64 / whole as f64
            }
        };
        let given: Vec<u64> = (0..classes)
            .map(|class| confusion.iter().map(|row| row[class]).sum())
            .collect();
        let per_class: Vec<ClassScore> = (0..classes)
            .map(|class| {
                let (right, texts) = (confusion[class][class], confusion[class].iter().sum());
                ClassScore {
                    precision: share(right, given[class]),
                    recall: share(right, texts),
                    f1: share(2 * right, texts + given[class]),
                    texts,
                }
            })
            .collect();
        let right: u64 = (0..classes).map(|class| confusion[class][class]).sum();
        let bins: Vec<Bin> = sums
            .iter()
            .map(|&(answers, sum, right)| Bin {
                answers,
                confidence: if answers == 0 {
                    0.0
                } else {
                    sum / answers as f64
                },
                accuracy: share(right, answers),
            })
            .collect();
        let off = bins
            .iter()
            .map(|bin| share(bin.answers, texts) * (bin.accuracy - bin.confidence).abs());
        Some(Self {
            accuracy: share(right, texts),
            macro_f1: macro_f1(predictions.iter().filter_map(Prediction::answered)),
            calibration_error: off.sum(),
            per_class,
            confusion,
            bins,
        })
    }

    /// Mean probability of all answers: above the accuracy it is too sure of itself, below it too unsure.
    pub fn confidence(&self) -> f64 {
        let answers: u64 = self.bins.iter().map(|bin| bin.answers).sum();
        let sum: f64 = self
            .bins
            .iter()
            .map(|bin| bin.answers as f64 * bin.confidence)
            .sum();
        sum / answers.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(truth: u32, probabilities: &[f32]) -> Prediction {
        Prediction {
            truth: Some(truth),
            probabilities: probabilities.to_vec(),
        }
    }

    /// The figures of scikit-learn 1.7: `precision_recall_fscore_support` and `f1_score(average="macro")` of
    /// truth 0 0 0 1 1 2 and answers 0 0 1 1 1 0.
    #[test]
    fn figures_are_those_of_their_definitions() {
        let predictions = [
            prediction(0, &[0.8, 0.1, 0.1, 0.0]),
            prediction(0, &[0.6, 0.3, 0.1, 0.0]),
            prediction(0, &[0.3, 0.6, 0.1, 0.0]),
            prediction(1, &[0.1, 0.9, 0.0, 0.0]),
            prediction(1, &[0.2, 0.8, 0.0, 0.0]),
            prediction(2, &[0.5, 0.2, 0.3, 0.0]),
        ];
        let metrics = ClassMetrics::of(&predictions, 4).expect("known classes");
        assert_eq!(metrics.confusion[0], [2, 1, 0, 0]);
        assert_eq!(metrics.confusion[2], [1, 0, 0, 0]);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found}");
        near(metrics.accuracy, 4.0 / 6.0);
        near(metrics.per_class[0].precision, 2.0 / 3.0);
        near(metrics.per_class[0].recall, 2.0 / 3.0);
        near(metrics.per_class[1].f1, 0.8);
        near(metrics.per_class[2].f1, 0.0);
        // The fourth class occurs nowhere and does not count.
        near(metrics.macro_f1, (2.0 / 3.0 + 0.8 + 0.0) / 3.0);
        near(macro_f1([]), 0.0);
        // Bins of a fifteenth: 0.5 and 0.6 in their own, 0.8 twice in one, 0.9 alone.
        let expected = (0.5 + 2.0 * (0.6 - 0.5) + 2.0 * 0.2 + 0.1) / 6.0;
        near(metrics.calibration_error, expected);
        near(
            metrics.confidence(),
            (0.8 + 0.6 + 0.6 + 0.9 + 0.8 + 0.5) / 6.0,
        );
    }

    #[test]
    fn nothing_known_gives_no_figures() {
        let unknown = Prediction {
            truth: None,
            probabilities: vec![0.5, 0.5],
        };
        assert_eq!(unknown.answer(), 0);
        assert_eq!(ClassMetrics::of(&[unknown], 2), None);
    }
}
