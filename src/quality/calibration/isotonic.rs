//! Isotonic regression: the rising steps closest to what happened, by pooling neighbours that fall
//! (the pool-adjacent-violators algorithm). Between steps it is interpolated, beyond the ends level.

use serde::{Deserialize, Serialize};

/// A curve through points, rising in both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steps {
    /// Log-odds, rising.
    pub x: Vec<f64>,
    /// Shares of rows where the label holds, not falling.
    pub y: Vec<f64>,
}

/// Neighbouring points of one value.
struct Block {
    sum: f64,
    count: f64,
    first: f64,
    last: f64,
}

impl Block {
    fn value(&self) -> f64 {
        self.sum / self.count
    }
}

impl Steps {
    /// The curve's value at `x`. Its points must be there, as `check` sees to.
    pub fn at(&self, x: f64) -> f64 {
        let after = self.x.partition_point(|&at| at < x);
        let (Some(&right), Some(&above)) = (self.x.get(after), self.y.get(after)) else {
            return self.y.last().copied().unwrap_or(0.5);
        };
        let Some(before) = after.checked_sub(1) else {
            return above;
        };
        let (left, below) = (self.x[before], self.y[before]);
        below + (x - left) / (right - left) * (above - below)
    }

    /// The rising curve closest to the points (in squares), which may come in any order. No share is
    /// quite 0 or 1: those of `n` points keep away from the ends by `1 / (n + 2)`.
    pub(super) fn fit(points: &[(f64, bool)]) -> Self {
        let mut sorted: Vec<(f64, bool)> = points.to_vec();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut blocks: Vec<Block> = Vec::new();
        for (x, holds) in sorted {
            let value = f64::from(u8::from(holds));
            match blocks.last_mut() {
                // Equal log-odds have one value.
                #[expect(clippy::float_cmp, reason = "points of the very same place")]
                Some(last) if last.first == x && last.last == x => {
                    last.sum += value;
                    last.count += 1.0;
                }
                _ => blocks.push(Block {
                    sum: value,
                    count: 1.0,
                    first: x,
                    last: x,
                }),
            }
        }
        let mut pooled: Vec<Block> = Vec::with_capacity(blocks.len());
        for block in blocks {
            pooled.push(block);
            while let [.., before, last] = pooled.as_mut_slice()
                && before.value() >= last.value()
            {
                before.sum += last.sum;
                before.count += last.count;
                before.last = last.last;
                pooled.pop();
            }
        }
        let margin = 1.0 / (points.len() as f64 + 2.0);
        let mut steps = Self {
            x: Vec::new(),
            y: Vec::new(),
        };
        for block in pooled {
            let value = block.value().clamp(margin, 1.0 - margin);
            steps.push(block.first, value);
            if block.last > block.first {
                steps.push(block.last, value);
            }
        }
        steps
    }

    fn push(&mut self, x: f64, y: f64) {
        self.x.push(x);
        self.y.push(y);
    }

    /// Checks that it is a rising curve within 0 and 1.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let finite = self.x.iter().chain(&self.y).all(|value| value.is_finite());
        if self.x.is_empty() || self.x.len() != self.y.len() || !finite {
            return Err("a curve has no points, or not as many of x as of y");
        }
        let rises = self.x.windows(2).all(|pair| pair[0] < pair[1])
            && self.y.windows(2).all(|pair| pair[0] <= pair[1]);
        if !rises || self.y.iter().any(|y| !(0.0..=1.0).contains(y)) {
            return Err("a curve does not rise, or leaves 0 to 1");
        }
        // The labels' values are divided by their sum.
        if self.y[0] <= 0.0 {
            return Err("a curve reaches 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_its_ends_a_curve_is_level() {
        let curve = Steps {
            x: vec![0.0, 2.0],
            y: vec![0.25, 0.75],
        };
        let found = [-9.0, 0.0, 1.0, 2.0, 9.0].map(|x| curve.at(x));
        let expected = [0.25, 0.25, 0.5, 0.75, 0.75];
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-12)
        );
    }

    #[test]
    fn all_points_of_one_place_are_one_step() {
        let curve = Steps::fit(&[(1.0, true), (1.0, false), (1.0, false), (1.0, false)]);
        assert_eq!((curve.x.len(), curve.y[0]), (1, 0.25));
        assert!(curve.check().is_ok());
    }
}
