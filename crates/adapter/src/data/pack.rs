//! Several documents in one row of tokens.
//!
//! Best-fit decreasing: the longest document first, each into the fullest row that still has room for
//! it. No document is cut or split. The result depends on the lengths alone. Since the documents of a
//! row stay apart (see [`Documents`](sparsam_kernels::Documents)), packing changes how much work a
//! batch is, not what is computed for a document.

use std::collections::BTreeSet;

/// Distributes documents of the given lengths over rows of at most `capacity` tokens. Returns the
/// indices in each row; rows and the documents in a row keep the order of the data set. A document
/// longer than `capacity` gets a row of its own.
pub fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Rows with room left: (room, row), ascending.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in order {
        let length = lengths[i];
        // The fullest row with room, or a new one.
        let best = open.range((length, 0)..).next().copied();
        let (room, row) = best.unwrap_or((capacity.max(length), rows.len()));
        open.remove(&(room, row));
        if row == rows.len() {
            rows.push(Vec::new());
        }
        rows[row].push(i);
        if room > length {
            open.insert((room - length, row));
        }
    }
    for row in &mut rows {
        row.sort_unstable();
    }
    rows.sort_unstable();
    rows
}

/// Each document in a row of its own.
pub fn unpacked(documents: usize) -> Vec<Vec<usize>> {
    (0..documents).map(|i| vec![i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fills_rows_best_fit() {
        // 6 opens a row, 5 another, 4 fits best beside 6, 3 beside 5, 2 fills up the second.
        assert_eq!(pack(&[4, 6, 3, 5, 2], 10), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(pack(&[12, 3], 10), [vec![0], vec![1]]);
        assert!(pack(&[], 10).is_empty());
    }

    proptest! {
        #[test]
        fn keeps_every_document_once_within_the_capacity(
            lengths in prop::collection::vec(1usize..40, 0..120),
            capacity in 1usize..50,
        ) {
            let rows = pack(&lengths, capacity);
            let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for row in &rows {
                let tokens: usize = row.iter().map(|&i| lengths[i]).sum();
                prop_assert!(tokens <= capacity || row.len() == 1);
                prop_assert!(row.is_sorted());
            }
            // No two rows could have been one.
            let mut tokens: Vec<usize> = rows.iter().map(|row| row.iter().map(|&i| lengths[i]).sum()).collect();
            tokens.sort_unstable();
            if let [first, second, ..] = tokens[..] {
                prop_assert!(first + second > capacity);
            }
            prop_assert_eq!(pack(&lengths, capacity), rows);
        }
    }
}
