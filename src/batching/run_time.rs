//! Predicts how long a batch will run: `T = a + b·tokens + c·Σlen²`, fitted online.
//!
//! `a` is what any batch costs, `b` the matrix products, `c` attention. Least squares on the
//! *relative* error (a batch of 5 ms and one of 500 ms count alike), exponentially forgetting, with
//! `a, b, c ≥ 0`. Three unknowns have seven non-empty sets of positive ones, so the constrained
//! optimum is found by trying them all.

use std::time::Duration;

/// What an observation's weight is multiplied with each time another one comes.
const FORGET: f64 = 0.98;
/// Scales that bring the features of usual batches near 1, for a well-conditioned fit.
const SCALE: [f64; 3] = [1.0, 1024.0, 1024.0 * 128.0];
/// How strongly a coefficient that the last observations say nothing about keeps its value.
const ANCHOR: f64 = 1e-3;
/// Observations after which one that is off by more than this factor is doubted.
const TRUSTED_AFTER: u32 = 8;
const DOUBTED_FACTOR: f64 = 3.0;

type Vector = [f64; 3];

/// The model of one engine's run time. Predicts zero until it has seen a batch.
#[derive(Debug, Clone)]
pub struct RunTimeModel {
    /// Weighted sum of `x·xᵀ`, where `x` are the scaled features.
    moments: [Vector; 3],
    /// Weighted sum of `x·seconds`.
    targets: Vector,
    /// For the scaled features, in seconds.
    coefficients: Vector,
    /// Mean of `|predicted − seen| / predicted`.
    relative_error: f64,
    observations: u32,
}

impl RunTimeModel {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self {
            moments: [[0.0; 3]; 3],
            targets: [0.0; 3],
            coefficients: [0.0; 3],
            relative_error: 0.0,
            observations: 0,
        }
    }

    /// Learns from a batch that ran for `elapsed`.
    pub fn observe(&mut self, tokens: usize, sum_len_squared: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        if tokens == 0 || seconds <= 0.0 {
            return;
        }
        let features = features(tokens, sum_len_squared);
        let predicted = dot(&self.coefficients, &features);
        let mut weight = 1.0 / (seconds * seconds);
        if predicted > 0.0 {
            let error = (seconds - predicted).abs() / predicted;
            self.relative_error += 0.1 * (error.min(1.0) - self.relative_error);
            let factor = (seconds / predicted).max(predicted / seconds);
            if self.observations >= TRUSTED_AFTER && factor > DOUBTED_FACTOR {
                // A suspended machine, say. If it goes on, forgetting lets it win in the end.
                weight *= (DOUBTED_FACTOR / factor).powi(2) / 16.0;
            }
        }
        for (row, &x) in self.moments.iter_mut().zip(&features) {
            for (moment, &y) in row.iter_mut().zip(&features) {
                *moment = *moment * FORGET + weight * x * y;
            }
        }
        for (target, &x) in self.targets.iter_mut().zip(&features) {
            *target = *target * FORGET + weight * x * seconds;
        }
        self.observations = self.observations.saturating_add(1);
        self.coefficients = self.fit();
    }

    /// Predicted run time of a batch; zero for no tokens.
    pub fn predict(&self, tokens: usize, sum_len_squared: u64) -> Duration {
        if tokens == 0 {
            return Duration::ZERO;
        }
        let seconds = dot(&self.coefficients, &features(tokens, sum_len_squared));
        // A day is more than any queue holds and less than what overflows.
        Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))
    }

    /// What a prediction may be short by, from the errors of the last ones.
    pub fn margin(&self, predicted: Duration) -> Duration {
        predicted.mul_f64(self.relative_error.clamp(0.0, 1.0))
    }

    /// What any batch costs, however small.
    pub fn fixed(&self) -> Duration {
        Duration::from_secs_f64(self.coefficients[0].clamp(0.0, 86_400.0))
    }

    /// `a` and `b` in seconds and seconds a token.
    pub fn linear(&self) -> (f64, f64) {
        (self.coefficients[0], self.coefficients[1] / SCALE[1])
    }

    /// The non-negative coefficients of least loss.
    fn fit(&self) -> Vector {
        let mean = (self.moments[0][0] + self.moments[1][1] + self.moments[2][2]) / 3.0;
        let anchor = ANCHOR * mean;
        let mut moments = self.moments;
        let mut targets = self.targets;
        for i in 0..3 {
            moments[i][i] += anchor;
            targets[i] += anchor * self.coefficients[i];
        }
        let mut best = (0.0, [0.0; 3]);
        for subset in 1_u8..8 {
            let Some(found) = solve(&moments, &targets, subset) else {
                continue;
            };
            if found.iter().any(|value| !value.is_finite() || *value < 0.0) {
                continue;
            }
            let quadratic: f64 = (0..3).map(|i| found[i] * dot(&moments[i], &found)).sum();
            let loss = quadratic - 2.0 * dot(&targets, &found);
            if loss < best.0 {
                best = (loss, found);
            }
        }
        best.1
    }
}

impl Default for RunTimeModel {
    fn default() -> Self {
        Self::new()
    }
}

fn features(tokens: usize, sum_len_squared: u64) -> Vector {
    [
        1.0 / SCALE[0],
        tokens as f64 / SCALE[1],
        sum_len_squared as f64 / SCALE[2],
    ]
}

fn dot(a: &Vector, b: &Vector) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Solves `moments · x = targets` over the unknowns in `subset` (a bit each), the others being 0,
/// by Gaussian elimination; the matrix is positive definite, so no pivoting is needed.
fn solve(moments: &[Vector; 3], targets: &Vector, subset: u8) -> Option<Vector> {
    let used: Vec<usize> = (0..3).filter(|at| subset & (1 << at) != 0).collect();
    let mut matrix = *moments;
    let mut right = *targets;
    for (step, &pivot) in used.iter().enumerate() {
        if matrix[pivot][pivot] <= f64::MIN_POSITIVE {
            return None;
        }
        for &row in &used[step + 1..] {
            let factor = matrix[row][pivot] / matrix[pivot][pivot];
            for &column in &used {
                matrix[row][column] -= factor * matrix[pivot][column];
            }
            right[row] -= factor * right[pivot];
        }
    }
    let mut found = [0.0; 3];
    for (step, &row) in used.iter().enumerate().rev() {
        let known: f64 = used[step + 1..]
            .iter()
            .map(|&column| matrix[row][column] * found[column])
            .sum();
        found[row] = (right[row] - known) / matrix[row][row];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of 1 to 64 rows of 4 to 128 tokens in a fixed, scattered order.
    fn shapes() -> impl Iterator<Item = (usize, u64)> {
        (0_u64..).map(|at| {
            let rows = at * 37 % 64 + 1;
            let length = at * 53 % 125 + 4;
            ((rows * length) as usize, rows * length * length)
        })
    }

    fn truth(tokens: usize, squares: u64) -> f64 {
        1e-3 + 1e-4 * tokens as f64 + 2e-7 * squares as f64
    }

    fn off_by(model: &RunTimeModel, speed: f64) -> f64 {
        shapes()
            .skip(1000)
            .take(200)
            .map(|(tokens, squares)| {
                let expected = truth(tokens, squares) * speed;
                (model.predict(tokens, squares).as_secs_f64() / expected - 1.0).abs()
            })
            .fold(0.0, f64::max)
    }

    fn learn(model: &mut RunTimeModel, from: usize, count: usize, speed: f64) {
        for (at, (tokens, squares)) in shapes().enumerate().skip(from).take(count) {
            let noise = 1.0 + 0.1 * ((at * 7919 % 201) as f64 / 100.0 - 1.0);
            // Every 29th is a page-fault-slow or suspended one.
            let outlier = if at % 29 == 28 { 20.0 } else { 1.0 };
            let seconds = truth(tokens, squares) * speed * noise * outlier;
            model.observe(tokens, squares, Duration::from_secs_f64(seconds));
        }
    }

    #[test]
    fn noisy_observations_with_outliers_are_predicted_within_a_fifth() {
        let mut model = RunTimeModel::new();
        learn(&mut model, 0, 400, 1.0);
        assert!(off_by(&model, 1.0) < 0.2, "off by {}", off_by(&model, 1.0));
    }

    #[test]
    fn a_machine_that_gets_half_as_fast_is_learnt_within_two_hundred_batches() {
        let mut model = RunTimeModel::new();
        learn(&mut model, 0, 400, 1.0);
        learn(&mut model, 400, 200, 2.0);
        assert!(off_by(&model, 2.0) < 0.25, "off by {}", off_by(&model, 2.0));
    }

    #[test]
    fn nothing_seen_predicts_zero() {
        let model = RunTimeModel::new();
        assert_eq!(model.predict(100, 10_000), Duration::ZERO);
        assert_eq!(model.fixed(), Duration::ZERO);
    }

    #[test]
    fn one_shape_over_and_over_is_predicted_and_leaves_the_others_sane() {
        let mut model = RunTimeModel::new();
        for _ in 0..10_000 {
            model.observe(36, 36 * 36, Duration::from_millis(5));
        }
        let seen = model.predict(36, 36 * 36).as_secs_f64();
        assert!((seen / 5e-3 - 1.0).abs() < 0.05, "{seen}");
        assert!(model.predict(3600, 3600 * 36) >= model.predict(36, 36 * 36));
    }

    #[test]
    fn absurd_observations_never_make_a_prediction_that_is_not_a_time() {
        let mut model = RunTimeModel::new();
        for tokens in [0, 1, usize::MAX] {
            for squares in [0, u64::MAX] {
                for elapsed in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
                    model.observe(tokens, squares, elapsed);
                    let (a, b) = model.linear();
                    assert!(a >= 0.0 && b >= 0.0 && a.is_finite() && b.is_finite());
                    let _ = model.predict(usize::MAX, u64::MAX);
                    let _ = model.margin(model.predict(1, 1));
                }
            }
        }
    }
}
