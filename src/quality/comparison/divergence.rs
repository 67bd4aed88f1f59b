//! How far one distribution is from another.

/// A probability below this counts as this, so that one that rounded to 0 is no infinite divergence.
const LEAST: f64 = 1e-9;

/// Kullback-Leibler divergence `Σ p ln(p / q)` of `q` from `p`, in nats.
pub fn kullback_leibler(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(&p, &q)| relative_entropy(p, q)).sum()
}

/// Jensen-Shannon divergence in bits: `(KL(p, m) + KL(q, m)) / 2` with `m = (p + q) / 2`. Symmetric,
/// 0 for equal distributions, 1 for those that share nothing.
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> f64 {
    let nats: f64 = p
        .iter()
        .zip(q)
        .map(|(&p, &q)| {
            let middle = f64::midpoint(p, q);
            f64::midpoint(relative_entropy(p, middle), relative_entropy(q, middle))
        })
        .sum();
    (nats / std::f64::consts::LN_2).clamp(0.0, 1.0)
}

fn relative_entropy(p: f64, q: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    p * (p / q.max(LEAST)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_do_not_diverge_and_disjoint_ones_do_wholly() {
        let p = [0.25, 0.75];
        assert!(kullback_leibler(&p, &p).abs() < 1e-15);
        assert!(jensen_shannon(&p, &p).abs() < 1e-15);
        assert!((jensen_shannon(&[1.0, 0.0], &[0.0, 1.0]) - 1.0).abs() < 1e-12);
        assert!(kullback_leibler(&[1.0, 0.0], &[0.0, 1.0]).is_finite());
    }
}
