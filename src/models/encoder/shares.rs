//! Which rows of a batch run together on one thread: shares of about equal cost, so small that their
//! activations stay in the thread's own cache from one op to the next.

use super::super::packed::PackedBatch;

/// Tokens of a share, about: the widest activation of a small encoder, 4 · 384 floats a token, takes
/// 768 KiB.
const TOKENS: usize = 128;
/// Fewer tokens than this are too few to read all weights for.
const LEAST_TOKENS: usize = 8;
/// How much longer than in an ideal cut the threads may take, in percent, before it is better that
/// each op shares its own work.
const MOST_PERCENT: usize = 125;

/// Cuts a batch in shares of rows for `threads` threads to run, of about equal cost and at least
/// one a thread. `None` if it doesn't divide well enough.
pub(super) fn of(batch: &PackedBatch, hidden: usize, threads: usize) -> Option<Vec<Vec<usize>>> {
    let tokens = batch.tokens().len();
    let rounds = tokens.div_ceil(threads * TOKENS).max(1);
    let count = (threads * rounds).min(batch.rows());
    if count < threads || tokens < threads * LEAST_TOKENS {
        return None;
    }
    // Products and attention of a row, in multiply-adds by hidden and layer.
    let costs: Vec<usize> = batch
        .lengths()
        .map(|len| len * (12 * hidden + 2 * len))
        .collect();
    let shares = pack(&costs, count);
    let share_costs: Vec<usize> = shares
        .iter()
        .map(|rows| rows.iter().map(|&row| costs[row]).sum())
        .collect();
    let taken = pack(&share_costs, threads)
        .iter()
        .map(|shares| shares.iter().map(|&share| share_costs[share]).sum())
        .max();
    let ideal = costs.iter().sum::<usize>().div_ceil(threads);
    (taken.unwrap_or(0) * 100 <= ideal * MOST_PERCENT).then_some(shares)
}

/// Puts each item, from the most costly to the least, to the group that costs least so far
/// (Graham 1969, "Bounds on Multiprocessing Timing Anomalies").
fn pack(costs: &[usize], groups: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&item| std::cmp::Reverse(costs[item]));
    let mut packed = vec![(0, Vec::new()); groups];
    for item in order {
        if let Some((total, items)) = packed.iter_mut().min_by_key(|(total, _)| *total) {
            *total += costs[item];
            items.push(item);
        }
    }
    packed.into_iter().map(|(_, items)| items).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize]) -> PackedBatch {
        let mut batch = PackedBatch::new();
        for &len in lengths {
            batch.push_row(&vec![1; len], None);
        }
        batch
    }

    #[test]
    fn every_row_is_in_one_share_and_shares_cost_the_same() {
        let lengths: Vec<usize> = (0..100).map(|i| 5 + i * 37 % 120).collect();
        for threads in [1, 2, 5] {
            let shares = of(&batch(&lengths), 384, threads).expect("it divides");
            assert_eq!(shares.len() % threads, 0);
            let mut rows: Vec<usize> = shares.iter().flatten().copied().collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..100).collect::<Vec<_>>());
            let tokens = |rows: &Vec<usize>| rows.iter().map(|&row| lengths[row]).sum::<usize>();
            let most = shares.iter().map(tokens).max();
            let least = shares.iter().map(tokens).min();
            assert!(
                most.zip(least)
                    .is_some_and(|(most, least)| most - least < 20)
            );
        }
    }

    #[test]
    fn what_does_not_divide_is_left_whole() {
        assert_eq!(of(&batch(&[100]), 384, 2), None);
        assert_eq!(of(&batch(&[100, 30]), 384, 2), None);
        assert_eq!(of(&batch(&[5, 5]), 384, 2), None);
        assert_eq!(of(&batch(&[200, 200, 200]), 384, 2), None);
        assert!(of(&batch(&[100, 95]), 384, 2).is_some());
        // On one thread, a long batch in several shares.
        let shares = of(&batch(&[100; 10]), 384, 1).expect("it divides");
        assert_eq!(shares.len(), 8);
    }
}
