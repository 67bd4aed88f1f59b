//! Weighted least squares with a ridge, by Cholesky's decomposition of the normal equations.

/// `argmin Σ w (x·β − y)² + ridge · |β|²`; rows `[n, k]`, weights and targets `[n]`. Where the rows
/// leave directions open, the solution is close to the shortest.
pub(super) fn solve_weighted(
    rows: &[Vec<f64>],
    weights: &[f64],
    targets: &[f64],
    ridge: f64,
) -> Vec<f64> {
    let width = rows.first().map_or(0, Vec::len);
    let mut matrix = vec![vec![0.0; width]; width];
    let mut right = vec![0.0; width];
    for ((row, &weight), &target) in rows.iter().zip(weights).zip(targets) {
        for i in 0..width {
            let scaled = weight * row[i];
            right[i] += scaled * target;
            for j in 0..=i {
                matrix[i][j] += scaled * row[j];
            }
        }
    }
    let trace: f64 = (0..width).map(|i| matrix[i][i]).sum();
    // Far below what matters to the solution, and enough to keep the decomposition going.
    let least = trace.max(f64::MIN_POSITIVE) * 1e-13;
    for (i, row) in matrix.iter_mut().enumerate() {
        row[i] += ridge + least;
    }
    for i in 0..width {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| matrix[i][k] * matrix[j][k]).sum();
            let rest = matrix[i][j] - dot;
            matrix[i][j] = if i == j {
                rest.max(least).sqrt()
            } else {
                rest / matrix[j][j]
            };
        }
    }
    for i in 0..width {
        let dot: f64 = (0..i).map(|k| matrix[i][k] * right[k]).sum();
        right[i] = (right[i] - dot) / matrix[i][i];
    }
    for i in (0..width).rev() {
        let dot: f64 = (i + 1..width).map(|k| matrix[k][i] * right[k]).sum();
        right[i] = (right[i] - dot) / matrix[i][i];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rows_leave_open_is_no_panic() {
        let rows = vec![vec![1.0, 1.0], vec![2.0, 2.0]];
        let found = solve_weighted(&rows, &[1.0, 1.0], &[2.0, 4.0], 0.0);
        assert!((found[0] + found[1] - 2.0).abs() < 1e-5, "{found:?}");
        assert!(solve_weighted(&[], &[], &[], 0.0).is_empty());
    }
}
