//! What a classifier's card says of its classes: how well each is found, what is taken for what, and whether its
//! probabilities mean what they say.

use std::fmt::Write as _;

use super::body::text;
use crate::format::plain_decimal;

/// Up to so many classes the whole confusion matrix is shown; of more, the commonest confusions.
const MATRIX: usize = 12;
/// How many of those.
const CONFUSIONS: usize = 10;

/// A classifier's classes as they were found in the evaluation data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Classes {
    /// Names, by number.
    pub labels: Vec<String>,
    /// Precision, recall and F1 of each, 0 to 1, with the number of its texts; empty where nothing was measured.
    pub scores: Vec<([f64; 3], u64)>,
    /// Texts by true class (rows) and answer (columns).
    pub confusion: Vec<Vec<u64>>,
    /// Answers by probability in steps of equal width: how many, their mean probability, the share that is right.
    pub bins: Vec<(u64, f64, f64)>,
    /// Expected calibration error, 0 to 1.
    pub calibration_error: f64,
}

impl Classes {
    /// The part of the evaluation that is about classes.
    pub(super) fn render(&self) -> String {
        if self.scores.is_empty() {
            return String::new();
        }
        let percent = |share: f64| format!("{} %", plain_decimal(share * 100.0, 3));
        let mut out = String::from(
            "\n### Class by class\n\nPrecision: of the texts given this class, the share that is of it. Recall: of its \
             texts, the share that is given it.\n\n| class | precision | recall | F1 | texts |\n|---|---|---|---|---|\n",
        );
        for (label, ([precision, recall, f1], texts)) in self.labels.iter().zip(&self.scores) {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {texts} |",
                text(label),
                percent(*precision),
                percent(*recall),
                percent(*f1)
            );
        }
        out.push_str(&self.mistakes());
        out.push_str(&self.calibration());
        out
    }

    fn mistakes(&self) -> String {
        let mut out = String::from("\n### What is taken for what\n\n");
        if self.labels.len() <= MATRIX {
            out.push_str("Rows are the true classes, columns the answers.\n\n| |");
            for label in &self.labels {
                let _ = write!(out, " {} |", text(label));
            }
            let _ = write!(out, "\n|---|{}\n", "---|".repeat(self.labels.len()));
            for (label, row) in self.labels.iter().zip(&self.confusion) {
                let _ = write!(out, "| **{}** |", text(label));
                for count in row {
                    let _ = write!(out, " {count} |");
                }
                out.push('\n');
            }
            return out;
        }
        let mut mistakes: Vec<(u64, usize, usize)> = Vec::new();
        for (truth, row) in self.confusion.iter().enumerate() {
            let wrong = row
                .iter()
                .enumerate()
                .filter(|(answer, count)| *answer != truth && **count > 0);
            mistakes.extend(wrong.map(|(answer, count)| (*count, truth, answer)));
        }
        mistakes.sort_by_key(|&(count, truth, answer)| (std::cmp::Reverse(count), truth, answer));
        if mistakes.is_empty() {
            out.push_str("Every text was given its class.\n");
            return out;
        }
        let _ = write!(
            out,
            "The commonest of {} kinds of mistakes; `run.json` has the whole matrix.\n\n| true class | answer | texts |\n\
             |---|---|---|\n",
            mistakes.len()
        );
        for (count, truth, answer) in mistakes.into_iter().take(CONFUSIONS) {
            let name = |class: usize| {
                self.labels
                    .get(class)
                    .map_or_else(String::new, |label| text(label))
            };
            let _ = writeln!(out, "| {} | {} | {count} |", name(truth), name(answer));
        }
        out
    }

    fn calibration(&self) -> String {
        let all: u64 = self.bins.iter().map(|bin| bin.0).sum();
        let mean = |of: fn(&(u64, f64, f64)) -> f64| {
            let sum: f64 = self.bins.iter().map(|bin| bin.0 as f64 * of(bin)).sum();
            sum / all.max(1) as f64
        };
        let (confidence, accuracy) = (mean(|bin| bin.1), mean(|bin| bin.2));
        let words = match confidence - accuracy {
            gap if gap > 0.02 => "surer than it should be",
            gap if gap < -0.02 => "less sure than it could be",
            _ => "about as sure as it should be",
        };
        let percent = |share: f64| format!("{} %", plain_decimal(share * 100.0, 3));
        let mut out = format!(
            "\n### How far its probabilities can be trusted\n\nIt is {words}: its answers have a probability of {} on \
             average, and {} of them are right. The expected calibration error is {} points: over {} steps of \
             probability, the mean distance between what is said and what is right, weighted by answers (Guo et al., \
             2017).\n\n| probability | answers | said, on average | right |\n|---|---|---|---|\n",
            percent(confidence),
            percent(accuracy),
            plain_decimal(self.calibration_error * 100.0, 3),
            self.bins.len(),
        );
        let width = 100.0 / self.bins.len().max(1) as f64;
        for (index, (answers, said, right)) in self.bins.iter().enumerate() {
            if *answers > 0 {
                let _ = writeln!(
                    out,
                    "| {:.0} to {:.0} % | {answers} | {} | {} |",
                    index as f64 * width,
                    (index + 1) as f64 * width,
                    percent(*said),
                    percent(*right)
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_name_what_was_found() {
        let classes = Classes {
            labels: vec!["a|b".to_owned(), "c".to_owned()],
            scores: vec![([0.5, 1.0, 2.0 / 3.0], 1), ([1.0, 0.5, 2.0 / 3.0], 2)],
            confusion: vec![vec![1, 0], vec![1, 1]],
            bins: vec![(0, 0.0, 0.0), (3, 0.9, 2.0 / 3.0)],
            calibration_error: 0.2333,
        };
        let card = classes.render();
        assert!(
            card.contains("| a\\|b | 50 % | 100 % | 66.7 % | 1 |"),
            "{card}"
        );
        assert!(card.contains("| **c** | 1 | 1 |"), "{card}");
        assert!(card.contains("surer than it should be"), "{card}");
        assert!(
            card.contains("| 50 to 100 % | 3 | 90 % | 66.7 % |"),
            "{card}"
        );
        let many = Classes {
            labels: (0..20).map(|i| format!("class {i}")).collect(),
            scores: vec![([1.0; 3], 1); 20],
            confusion: (0..20)
                .map(|row| (0..20).map(|c| u64::from(c == (row + 1) % 20)).collect())
                .collect(),
            ..classes
        };
        let card = many.render();
        assert!(card.contains("of 20 kinds of mistakes"), "{card}");
        assert!(card.contains("| class 0 | class 1 | 1 |"), "{card}");
    }
}
