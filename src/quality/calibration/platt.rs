//! Platt's method: a logistic curve over one label's logit, fitted by Newton's method with
//! backtracking (Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector
//! machines", 2007), whose smoothed targets keep it finite where the classes are separate.

use serde::{Deserialize, Serialize};

use crate::quality::confidence::wide_sigmoid;

/// `1 / (1 + exp(-(slope · x + intercept)))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sigmoid {
    /// Of the logit.
    pub slope: f64,
    /// Added to it.
    pub intercept: f64,
}

impl Sigmoid {
    /// Its value at a logit.
    pub fn at(self, logit: f64) -> f64 {
        wide_sigmoid(self.slope * logit + self.intercept)
    }

    pub(super) fn is_finite(&self) -> bool {
        self.slope.is_finite() && self.intercept.is_finite()
    }

    /// The curve under which what holds at each logit is most likely. A slope below 0 (a model that
    /// is wrong more often than right) is kept: it is what the labels say.
    pub(super) fn fit(points: &[(f64, bool)]) -> Self {
        let held = points.iter().filter(|(_, holds)| *holds).count() as f64;
        let missed = points.len() as f64 - held;
        let (high, low) = ((held + 1.0) / (held + 2.0), 1.0 / (missed + 2.0));
        let target = |holds: bool| if holds { high } else { low };
        let loss = |curve: Self| -> f64 {
            let of_point = |&(x, holds): &(f64, bool)| {
                let z = curve.slope * x + curve.intercept;
                // −t ln σ(z) − (1 − t) ln σ(−z), without overflow.
                z.max(0.0) - z * target(holds) + (-z.abs()).exp().ln_1p()
            };
            points.iter().map(of_point).sum()
        };
        let mut curve = Self {
            slope: 0.0,
            intercept: ((held + 1.0) / (missed + 1.0)).ln(),
        };
        let mut now = loss(curve);
        for _ in 0..100 {
            // Gradient and Hessian in (slope, intercept); a little on the diagonal keeps it invertible.
            let (mut aa, mut ab, mut bb) = (1e-12, 0.0, 1e-12);
            let (mut a, mut b) = (0.0, 0.0);
            for &(x, holds) in points {
                let p = curve.at(x);
                let weight = p * (1.0 - p);
                aa += x * x * weight;
                ab += x * weight;
                bb += weight;
                a += x * (p - target(holds));
                b += p - target(holds);
            }
            if a.abs() < 1e-9 && b.abs() < 1e-9 {
                break;
            }
            let determinant = aa * bb - ab * ab;
            let step = (
                -(bb * a - ab * b) / determinant,
                -(aa * b - ab * a) / determinant,
            );
            let descent = a * step.0 + b * step.1;
            let mut length = 1.0;
            loop {
                let next = Self {
                    slope: curve.slope + length * step.0,
                    intercept: curve.intercept + length * step.1,
                };
                let then = loss(next);
                if then < now + 1e-4 * length * descent {
                    (curve, now) = (next, then);
                    break;
                }
                length /= 2.0;
                if length < 1e-10 {
                    return curve;
                }
            }
        }
        curve
    }
}
