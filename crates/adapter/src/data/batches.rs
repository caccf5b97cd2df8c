//! Rows of documents as batches, epoch after epoch.
//!
//! `batch_size` counts rows. With packing a row holds as many documents as fit into `max_length`
//! tokens, without it one; as there is no padding, both are only lists of documents. The last batch
//! of an epoch may be smaller, none is dropped.

use serde::{Deserialize, Serialize};

use super::shuffle::permutation;
use super::{Batch, Example};

/// In which order rows are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A new order every epoch, from the seed.
    Shuffled {
        /// The seed.
        seed: u64,
    },
    /// The order of the data set, for evaluation.
    AsRead,
}

/// How far a run has come. All there is to store for an exact resumption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Epochs completed.
    pub epoch: u64,
    /// Batches of the current epoch given out.
    pub batch: usize,
}

/// The batches of a data set.
#[derive(Clone, Debug)]
pub struct Batches {
    examples: Vec<Example>,
    rows: Vec<Vec<usize>>,
    batch_size: usize,
    order: Order,
    position: Position,
    /// Order of the rows in the current epoch.
    current: Vec<usize>,
}

impl Batches {
    /// Batches of `batch_size` rows; `rows` are indices into `examples`, from
    /// [`pack`](super::pack::pack) or [`unpacked`](super::pack::unpacked).
    ///
    /// A `batch_size` of zero counts as one.
    pub fn new(
        examples: Vec<Example>,
        rows: Vec<Vec<usize>>,
        batch_size: usize,
        order: Order,
    ) -> Self {
        let mut batches = Self {
            examples,
            rows,
            batch_size: batch_size.max(1),
            order,
            position: Position::default(),
            current: Vec::new(),
        };
        batches.seek(Position::default());
        batches
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of batches in every epoch.
    pub fn per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.batch_size)
    }

    /// The examples behind the rows.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Where the next batch stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Continues from a position.
    pub fn seek(&mut self, position: Position) {
        self.position = position;
        self.current = self.order(position.epoch);
    }

    /// The next batch, going on to the next epoch at the end of one; `None` if there are no rows.
    pub fn next_batch(&mut self) -> Option<Batch> {
        if self.position.batch >= self.per_epoch() {
            self.seek(Position {
                epoch: self.position.epoch + 1,
                batch: 0,
            });
        }
        let batch = self.batch(self.position.batch)?;
        self.position.batch += 1;
        Some(batch)
    }

    /// The batches of the current epoch from its beginning, as evaluation wants them; the position
    /// stays.
    pub fn epoch(&self) -> impl Iterator<Item = Batch> + '_ {
        (0..self.per_epoch()).map_while(|batch| self.batch(batch))
    }

    fn batch(&self, batch: usize) -> Option<Batch> {
        let rows = self.current.chunks(self.batch_size).nth(batch)?;
        let documents = rows.iter().flat_map(|&row| &self.rows[row]);
        Some(Batch::new(
            documents.map(|&document| &self.examples[document]),
        ))
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        match self.order {
            Order::Shuffled { seed } => permutation(self.rows.len(), seed, epoch),
            Order::AsRead => (0..self.rows.len()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::{pack, unpacked};
    use super::*;
    use proptest::prelude::*;

    /// Example `i` has the length given and ids that name it.
    fn examples(lengths: &[usize]) -> Vec<Example> {
        let example = |(i, &length): (usize, &usize)| Example {
            ids: (0..length).map(|token| (1000 * i + token) as u32).collect(),
            trained: (0..length).map(|token| token > 0).collect(),
            label: None,
        };
        lengths.iter().enumerate().map(example).collect()
    }

    fn sorted_ids<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Vec<u32> {
        let mut ids: Vec<u32> = batches
            .into_iter()
            .flat_map(|batch| batch.ids.clone())
            .collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn evaluation_keeps_the_order() {
        let batches = Batches::new(examples(&[2, 1, 3]), unpacked(3), 2, Order::AsRead);
        let ids: Vec<Vec<u32>> = batches.epoch().map(|batch| batch.ids).collect();
        assert_eq!(ids, [vec![0, 1, 1000], vec![2000, 2001, 2002]]);
        assert_eq!(batches.position(), Position::default());
    }

    #[test]
    fn no_rows_no_batches() {
        let mut batches = Batches::new(Vec::new(), Vec::new(), 2, Order::Shuffled { seed: 1 });
        assert_eq!((batches.per_epoch(), batches.next_batch()), (0, None));
    }

    proptest! {
        #[test]
        fn an_epoch_gives_every_token_once_and_resumes_exactly(
            lengths in prop::collection::vec(1usize..20, 1..40),
            batch_size in 1usize..7,
            packed: bool,
            stop in 0usize..60,
            seed: u64,
        ) {
            let examples = examples(&lengths);
            let all = sorted_ids([&Batch::new(&examples)]);
            let rows = if packed { pack(&lengths, 20) } else { unpacked(lengths.len()) };
            let mut batches = Batches::new(examples, rows, batch_size, Order::Shuffled { seed });
            let per_epoch = batches.per_epoch();
            let run: Vec<Batch> = std::iter::from_fn(|| batches.next_batch()).take(3 * per_epoch).collect();
            for epoch in run.chunks(per_epoch) {
                prop_assert_eq!(sorted_ids(epoch), all.clone());
            }
            let stop = stop % run.len();
            let mut first = batches.clone();
            first.seek(Position::default());
            for _ in 0..stop {
                first.next_batch();
            }
            let mut resumed = batches.clone();
            resumed.seek(first.position());
            for expected in &run[stop..] {
                prop_assert_eq!(resumed.next_batch(), Some(expected.clone()));
            }
        }
    }
}
