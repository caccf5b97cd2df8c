//! Heads that begin with a task: to find a word again and go on from there.
//!
//! Random weights learn to copy late and suddenly, after many more tokens than this model ever sees (Olsson
//! et al., In-context Learning and Induction Heads, 2022, arXiv 2209.11895). Initial weights in the form that
//! training would bring them to spare it the search, as mimetic initialisation does (Trockman and Kolter
//! 2023, arXiv 2305.09828). Here a head of each key group is prepared in the first two blocks:
//!
//! - In block 0 it looks at the token before: queries and keys read a coordinate that all embeddings share,
//!   and are turned against each other so that rotary positions match at a distance of one. It writes a
//!   projection `P` of that token's embedding into directions `U` of their own.
//! - In block 1 it looks for tokens whose predecessor is the present token: keys read `U`, queries read
//!   `P`, on rotary pairs that turn so slowly that distance does not matter. It adds some of the found
//!   token's embedding, and so its logit, as the embeddings are tied.
//!
//! Everything stays trainable; the shared coordinate adds the same to all logits, that is, nothing.

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::seed_model::Shape;

/// The value of the coordinate all embeddings share; about as long as the rest of an embedding.
const SHARED: f64 = 0.25;
/// Weights of the fastest rotary pairs in the score of a distance. The neighbours of the token before
/// score about 3 less than it, anything up to 100 tokens away at least 3 less.
const PAIRS: [f64; 4] = [4.0, 2.0, 1.5, 1.0];
/// Brings the score of one unit of weight to 1.5, given the shared coordinate after the norm.
const SHARPNESS: f64 = 0.098;
/// Length of what is written of the token before.
const TRACE: f64 = 0.07;
/// Brings the score of a predecessor that is the present token to about 8.
const MATCH: f64 = 3.1;
/// Share of the found token's embedding that is added.
const COPY: f64 = 0.1;

/// A tensor: its size and its numbers, row by row.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// `[rows, columns]` or `[width]`.
    pub size: Vec<usize>,
    /// Row by row.
    pub values: Vec<f64>,
}

impl Matrix {
    fn row(&mut self, row: usize) -> &mut [f64] {
        let width = self.size[1];
        &mut self.values[row * width..][..width]
    }

    fn set_row(&mut self, row: usize, factor: f64, values: &[f64]) {
        for (to, from) in self.row(row).iter_mut().zip(values) {
            *to = factor * from;
        }
    }

    fn set_column(&mut self, column: usize, factor: f64, values: &[f64]) {
        for (row, value) in values.iter().enumerate() {
            self.row(row)[column] = factor * value;
        }
    }
}

/// Prepares the heads. A model without a second block is left as it is.
pub fn prepare(weights: &mut BTreeMap<String, Matrix>, shape: &Shape, dice: &mut Dice) {
    if shape.layers < 2 || shape.head / 2 < PAIRS.len() {
        return;
    }
    let half = shape.head / 2;
    let mut on = |name: &str, change: &mut dyn FnMut(&mut Matrix)| {
        if let Some(matrix) = weights.get_mut(name) {
            change(matrix);
        }
    };
    on("model.embed_tokens.weight", &mut |embedding| {
        embedding.set_column(0, SHARED, &vec![1.0; shape.vocabulary]);
    });
    let slow: Vec<usize> = (half / 2..half).chain(half + half / 2..2 * half).collect();
    for group in 0..shape.kv_heads {
        let query = group * (shape.heads / shape.kv_heads) * shape.head;
        let key = group * shape.head;
        let read = directions(shape.head, shape.hidden, dice);
        let written = directions(shape.head, shape.hidden, dice);
        let copied = directions(shape.head, shape.hidden, dice);
        let name =
            |layer: usize, part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");

        for (pair, weight) in PAIRS.iter().enumerate() {
            let length = (SHARPNESS * weight).sqrt();
            let angle = 10_000f64.powf(-(pair as f64) / half as f64);
            on(&name(0, "k_proj"), &mut |k| k.row(key + pair)[0] = length);
            on(&name(0, "q_proj"), &mut |q| {
                q.row(query + pair)[0] = length * angle.cos();
                q.row(query + half + pair)[0] = -length * angle.sin();
            });
        }
        for i in 0..shape.head {
            on(&name(0, "v_proj"), &mut |v| {
                v.set_row(key + i, 1.0, &read[i]);
            });
            on(&name(0, "o_proj"), &mut |o| {
                o.set_column(query + i, TRACE, &written[i]);
            });
            on(&name(1, "v_proj"), &mut |v| {
                v.set_row(key + i, 1.0, &copied[i]);
            });
            on(&name(1, "o_proj"), &mut |o| {
                o.set_column(query + i, COPY, &copied[i]);
            });
        }
        for (i, place) in slow.iter().enumerate() {
            let length = MATCH.sqrt();
            on(&name(1, "k_proj"), &mut |k| {
                k.set_row(key + place, length, &written[i]);
            });
            on(&name(1, "q_proj"), &mut |q| {
                q.set_row(query + place, length, &read[i]);
            });
        }
    }
}

/// `count` directions of length one at right angles to each other and to the shared coordinate.
fn directions(count: usize, width: usize, dice: &mut Dice) -> Vec<Vec<f64>> {
    let mut found: Vec<Vec<f64>> = Vec::with_capacity(count);
    while found.len() < count.min(width - 1) {
        let mut new: Vec<f64> = (0..width).map(|_| dice.normal()).collect();
        new[0] = 0.0;
        for other in &found {
            let along: f64 = new.iter().zip(other).map(|(x, y)| x * y).sum();
            for (x, y) in new.iter_mut().zip(other) {
                *x -= along * y;
            }
        }
        let length = new.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A draw that lies almost within the others is drawn again.
        if length > 1e-3 {
            found.push(new.iter().map(|x| x / length).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_stand_at_right_angles() {
        let found = directions(8, 24, &mut Dice::new(1, "test"));
        for (i, x) in found.iter().enumerate() {
            assert_eq!(x[0], 0.0);
            for (j, y) in found.iter().enumerate() {
                let product: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-9, "{i} {j}: {product}");
            }
        }
    }

    /// The score of a distance, of which the token before must have the highest by far.
    #[test]
    fn rotary_positions_match_at_a_distance_of_one() {
        let score = |distance: f64| -> f64 {
            let pairs = PAIRS.iter().enumerate();
            pairs
                .map(|(pair, weight)| {
                    let angle = 10_000f64.powf(-(pair as f64) / 16.0);
                    1.5 * weight * (angle * (distance - 1.0)).cos()
                })
                .sum()
        };
        for distance in (0..100).filter(|distance| *distance != 1) {
            let gap = score(1.0) - score(f64::from(distance));
            assert!(gap > 2.5, "{distance}: {gap}");
        }
    }
}
