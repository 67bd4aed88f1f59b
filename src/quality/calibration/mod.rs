//! Calibration: so that of the answers with confidence 0.8, eight of ten are right.
//!
//! A [`Calibration`] is fitted on labelled rows that the model was not trained on, and turns the
//! model's logits into probabilities from then on. How far probabilities are from what happens is
//! [`measure`]d before and after, on rows that the fit has not seen. **Pure**: numbers in, numbers out.

mod fit;
mod isotonic;
mod measure;
mod platt;
#[cfg(test)]
mod reference_tests;
mod temperature;

use serde::{Deserialize, Serialize};

pub use fit::{Choice, FitError, Method, Split, choose, fit, methods_of, split};
pub use isotonic::Steps;
pub use measure::{Bin, Measured, measure};
pub use platt::Sigmoid;

use super::confidence::{log_odds, probabilities_of};
use crate::config::Activation;

/// How a model's logits become calibrated probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum Calibration {
    /// All logits divided by one number (Guo et al. 2017). Never changes which label is best.
    Temperature {
        /// The number; above 1 where the model is too sure of itself.
        temperature: f64,
    },
    /// `1 / (1 + exp(-(slope · logit + intercept)))`, a curve a label (Platt 1999), for labels that
    /// each hold or not.
    Platt {
        /// In the order of the labels.
        curves: Vec<Sigmoid>,
    },
    /// A rising curve of steps over a label's log-odds, a curve a label (Zadrozny and Elkan 2002).
    /// The labels' values are scaled to sum to one where exactly one of them holds.
    Isotonic {
        /// In the order of the labels.
        curves: Vec<Steps>,
    },
}

/// One row whose answer is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// What the model said, `[labels]`.
    pub logits: Vec<f32>,
    /// Which labels hold, `[labels]`; exactly one where the activation is softmax.
    pub truth: Vec<bool>,
}

impl Calibration {
    /// The method's name.
    pub fn method(&self) -> Method {
        match self {
            Self::Temperature { .. } => Method::Temperature,
            Self::Platt { .. } => Method::Platt,
            Self::Isotonic { .. } => Method::Isotonic,
        }
    }

    /// The probabilities of one row's logits `[labels]`.
    pub fn probabilities(&self, logits: &[f32], activation: Activation) -> Vec<f32> {
        let wide: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
        let calibrated = self.wide_probabilities(&wide, activation);
        calibrated.into_iter().map(|value| value as f32).collect()
    }

    /// The same in the precision that fitting and measuring want.
    pub(super) fn wide_probabilities(&self, logits: &[f64], activation: Activation) -> Vec<f64> {
        match self {
            Self::Temperature { temperature } => {
                let cooled: Vec<f64> = logits.iter().map(|logit| logit / temperature).collect();
                probabilities_of(&cooled, activation)
            }
            Self::Platt { curves } => logits
                .iter()
                .zip(curves)
                .map(|(&logit, curve)| curve.at(logit))
                .collect(),
            Self::Isotonic { curves } => {
                let odds = log_odds(logits, activation);
                let raw = odds.iter().zip(curves).map(|(&x, curve)| curve.at(x));
                let raw: Vec<f64> = raw.collect();
                match activation {
                    Activation::Sigmoid => raw,
                    Activation::Softmax => {
                        // Above 0, since every curve is.
                        let sum: f64 = raw.iter().sum();
                        raw.into_iter().map(|value| value / sum).collect()
                    }
                }
            }
        }
    }

    /// Checks that it can be used with a model of `labels` outputs.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence's end.
    pub fn check(&self, labels: usize, activation: Activation) -> Result<(), String> {
        let curves = match self {
            Self::Temperature { temperature } => {
                return if temperature.is_finite() && *temperature > 0.0 {
                    Ok(())
                } else {
                    Err(format!("its temperature is {temperature}"))
                };
            }
            Self::Platt { curves } => {
                if activation == Activation::Softmax {
                    return Err("Platt's method is for labels that each hold or not".to_owned());
                }
                if !curves.iter().all(Sigmoid::is_finite) {
                    return Err("a slope or an intercept is not finite".to_owned());
                }
                curves.len()
            }
            Self::Isotonic { curves } => {
                if let Some(wrong) = curves.iter().find_map(|curve| curve.check().err()) {
                    return Err(wrong.to_owned());
                }
                curves.len()
            }
        };
        if curves == labels {
            Ok(())
        } else {
            Err(format!("it has {curves} curves for {labels} labels"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_keeps_the_order_and_moves_the_confidence() {
        let calibration = Calibration::Temperature { temperature: 2.0 };
        let found = calibration.probabilities(&[4.0, 0.0], Activation::Softmax);
        assert!((found[0] - 0.880_797).abs() < 1e-6, "{found:?}");
        let single = calibration.probabilities(&[4.0], Activation::Sigmoid);
        assert!((single[0] - 0.880_797).abs() < 1e-6);
    }

    #[test]
    fn one_that_does_not_fit_the_model_is_refused() {
        let steps = |x: &[f64], y: &[f64]| Calibration::Isotonic {
            curves: vec![Steps {
                x: x.to_vec(),
                y: y.to_vec(),
            }],
        };
        let good = steps(&[0.0, 1.0], &[0.2, 0.4]);
        assert!(good.check(1, Activation::Sigmoid).is_ok());
        for (wrong, labels) in [
            (good, 2),
            (steps(&[1.0, 0.0], &[0.2, 0.4]), 1),
            (steps(&[0.0, 1.0], &[0.4, 0.2]), 1),
            (steps(&[0.0, 1.0], &[0.4]), 1),
            (steps(&[], &[]), 1),
            (steps(&[0.0], &[1.5]), 1),
            (steps(&[f64::NAN], &[0.5]), 1),
            (Calibration::Temperature { temperature: 0.0 }, 1),
            (Calibration::Platt { curves: Vec::new() }, 1),
        ] {
            assert!(
                wrong.check(labels, Activation::Sigmoid).is_err(),
                "{wrong:?}"
            );
        }
        let platt = Calibration::Platt { curves: Vec::new() };
        assert!(platt.check(0, Activation::Softmax).is_err());
    }

    #[test]
    fn classes_that_exclude_each_other_sum_to_one_after_steps() {
        let curve = Steps {
            x: vec![-1.0, 1.0],
            y: vec![0.1, 0.7],
        };
        let calibration = Calibration::Isotonic {
            curves: vec![curve; 3],
        };
        let found = calibration.probabilities(&[0.3, 0.1, 2.0], Activation::Softmax);
        assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(found[2] > found[0] && found[0] >= found[1]);
    }
}
