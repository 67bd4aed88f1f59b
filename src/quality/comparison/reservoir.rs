//! A uniform sample of a stream, bounded (Vitter's algorithm R).

use crate::quality::draws::Draws;

/// At most `capacity` of the items offered, each as likely to be kept as any other; all of them
/// while they fit. The same items in the same order leave the same sample.
#[derive(Debug, Clone)]
pub struct Reservoir<T> {
    kept: Vec<T>,
    capacity: usize,
    seen: u64,
    draws: Draws,
}

impl<T> Reservoir<T> {
    /// An empty sample of at most `capacity` items, of which it keeps at least one.
    pub fn new(capacity: usize, seed: u64) -> Self {
        Self {
            kept: Vec::new(),
            capacity: capacity.max(1),
            seen: 0,
            draws: Draws::new(seed),
        }
    }

    /// Offers an item, which is made only if it is kept.
    pub fn offer(&mut self, item: impl FnOnce() -> T) {
        self.seen += 1;
        if self.kept.len() < self.capacity {
            self.kept.push(item());
            return;
        }
        let place = self.draws.below(self.seen) as usize;
        if let Some(kept) = self.kept.get_mut(place) {
            *kept = item();
        }
    }

    /// The items kept, in no particular order.
    pub fn kept(&self) -> &[T] {
        &self.kept
    }

    /// Items offered.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Takes another sample in, as if its items had been offered here.
    pub fn merge(&mut self, mut other: Self) {
        let seen = self.seen + other.seen;
        if self.kept.len() + other.kept.len() <= self.capacity && other.seen == other.len() {
            self.kept.append(&mut other.kept);
            self.seen = seen;
            return;
        }
        // Each place is filled from either side as likely as that side's share of what is left.
        let (mut left, mut right) = (self.seen, other.seen);
        let mut mine = std::mem::take(&mut self.kept);
        while self.kept.len() < self.capacity && !(mine.is_empty() && other.kept.is_empty()) {
            let from_mine = self.draws.below((left + right).max(1)) < left;
            let (side, count) = if (from_mine && !mine.is_empty()) || other.kept.is_empty() {
                (&mut mine, &mut left)
            } else {
                (&mut other.kept, &mut right)
            };
            let place = self.draws.below(side.len() as u64) as usize;
            self.kept.push(side.swap_remove(place));
            *count = count.saturating_sub(1);
        }
        self.seen = seen;
    }

    fn len(&self) -> u64 {
        self.kept.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(from: u64, to: u64, capacity: usize) -> Reservoir<u64> {
        let mut sample = Reservoir::new(capacity, 7);
        for item in from..to {
            sample.offer(|| item);
        }
        sample
    }

    fn mean(sample: &Reservoir<u64>) -> f64 {
        sample.kept().iter().sum::<u64>() as f64 / sample.kept().len() as f64
    }

    #[test]
    fn everything_is_kept_while_it_fits_and_a_uniform_sample_after() {
        assert_eq!(filled(0, 5, 8).kept(), [0, 1, 2, 3, 4]);
        let sample = filled(0, 100_000, 1000);
        assert_eq!((sample.kept().len(), sample.seen()), (1000, 100_000));
        // The mean of 1000 draws has a standard error of 913.
        assert!((mean(&sample) - 50_000.0).abs() < 4.0 * 913.0);
    }

    #[test]
    fn the_same_stream_leaves_the_same_sample() {
        assert_eq!(filled(0, 5000, 64).kept(), filled(0, 5000, 64).kept());
    }

    #[test]
    fn a_merged_sample_weighs_both_sides_by_what_they_saw() {
        let mut sample = filled(0, 30_000, 1000);
        sample.merge(filled(30_000, 40_000, 1000));
        assert_eq!((sample.kept().len(), sample.seen()), (1000, 40_000));
        let late = sample.kept().iter().filter(|item| **item >= 30_000).count();
        // 250 expected, with a standard deviation below 14.
        assert!((late as i64 - 250).abs() < 56, "{late}");

        let mut small = filled(0, 3, 8);
        small.merge(filled(3, 5, 8));
        assert_eq!(small.kept(), [0, 1, 2, 3, 4]);
    }
}
