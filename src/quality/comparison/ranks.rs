//! Rank correlation of two lists of numbers, ties considered.

#![allow(clippy::float_cmp, reason = "a tie is two equal numbers")]

/// Spearman's ρ: Pearson's correlation of the ranks, equal numbers having the mean of theirs. `None`
/// where it isn't defined: fewer than two pairs, or a side whose numbers are all equal.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len().min(b.len());
    pearson(&ranks(&a[..n]), &ranks(&b[..n]))
}

/// Kendall's τ-b, which allows for ties: `(C − D) / √((P − Tₐ)(P − T_b))`, where of all P pairs C are
/// in the same order on both sides, D in opposite ones, and T are tied on one side. By counting the
/// swaps of a merge sort (Knight 1966): `n log n`. `None` where it isn't defined, as above.
pub fn kendall(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len().min(b.len());
    let mut pairs: Vec<(f64, f64)> = a[..n].iter().copied().zip(b[..n].iter().copied()).collect();
    pairs.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.total_cmp(&y.1)));
    let tied_a = tied_pairs(&pairs, |x, y| x.0 == y.0);
    let tied_both = tied_pairs(&pairs, |x, y| x == y);
    let mut right: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let swaps = sort_counting_swaps(&mut right);
    let tied_b = tied_pairs(&right, |x, y| x == y);
    let all = (n as u64) * (n as u64).saturating_sub(1) / 2;
    let same_less_opposite =
        (all + tied_both) as f64 - (tied_a + tied_b) as f64 - 2.0 * swaps as f64;
    let scale = ((all - tied_a) as f64).sqrt() * ((all - tied_b) as f64).sqrt();
    (scale > 0.0).then(|| (same_less_opposite / scale).clamp(-1.0, 1.0))
}

/// The place of each number in order, from 1; equal ones have the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&x, &y| values[x].total_cmp(&values[y]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for run in order.chunk_by(|&x, &y| values[x] == values[y]) {
        let mean = start as f64 + f64::midpoint(run.len() as f64, 1.0);
        for &index in run {
            ranks[index] = mean;
        }
        start += run.len();
    }
    ranks
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut both, mut left, mut right) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        both += x * y;
        left += x * x;
        right += y * y;
    }
    let scale = left.sqrt() * right.sqrt();
    (scale > 0.0).then(|| (both / scale).clamp(-1.0, 1.0))
}

/// Pairs of equal items in a sorted list.
fn tied_pairs<T>(sorted: &[T], same: impl Fn(&T, &T) -> bool) -> u64 {
    sorted
        .chunk_by(same)
        .map(|run| run.len() as u64 * (run.len() as u64 - 1) / 2)
        .sum()
}

/// Sorts, and tells how many pairs stood in the wrong order.
fn sort_counting_swaps(values: &mut [f64]) -> u64 {
    let mut swaps = 0;
    let mut from = values.to_vec();
    let mut to = from.clone();
    let mut width = 1;
    while width < from.len() {
        for (source, target) in from.chunks(2 * width).zip(to.chunks_mut(2 * width)) {
            let (left, right) = source.split_at(width.min(source.len()));
            let (mut i, mut j) = (0, 0);
            for place in target {
                if j == right.len() || (i < left.len() && left[i] <= right[j]) {
                    *place = left[i];
                    i += 1;
                } else {
                    *place = right[j];
                    j += 1;
                    swaps += (left.len() - i) as u64;
                }
            }
        }
        std::mem::swap(&mut from, &mut to);
        width *= 2;
    }
    values.copy_from_slice(&from);
    swaps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_has_no_order_has_no_correlation() {
        for (a, b) in [
            (&[][..], &[][..]),
            (&[1.0], &[1.0]),
            (&[1.0, 1.0], &[1.0, 2.0]),
        ] {
            assert_eq!(spearman(a, b), None);
            assert_eq!(kendall(a, b), None);
        }
    }

    proptest! {
        #[test]
        fn kendall_is_what_comparing_every_pair_gives(
            pairs in proptest::collection::vec((0_i8..6, 0_i8..6), 2..40)
        ) {
            let a: Vec<f64> = pairs.iter().map(|pair| f64::from(pair.0)).collect();
            let b: Vec<f64> = pairs.iter().map(|pair| f64::from(pair.1)).collect();
            let (mut sum, mut left, mut right) = (0.0_f64, 0.0_f64, 0.0_f64);
            for i in 0..a.len() {
                for j in 0..i {
                    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
                    let (x, y) = (sign(a[i] - a[j]), sign(b[i] - b[j]));
                    sum += x * y;
                    left += x * x;
                    right += y * y;
                }
            }
            let expected = (left * right > 0.0).then(|| sum / (left * right).sqrt());
            match (kendall(&a, &b), expected) {
                (Some(found), Some(expected)) => prop_assert!((found - expected).abs() < 1e-12),
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }
    }
}
