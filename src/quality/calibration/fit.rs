//! Fits calibrations, and chooses between methods by cross-validation on the rows for fitting.

use std::str::FromStr;

use super::{Calibration, Labelled, Sigmoid, Steps, measure, temperature};
use crate::{
    config::Activation,
    quality::{confidence::log_odds, draws::Draws},
};

/// Parts that the rows for fitting are cut into to compare methods.
const FOLDS: usize = 5;
/// Fewer rows than this say too little to fit to.
const LEAST_ROWS: usize = 20;

/// A way to calibrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// [`Calibration::Temperature`].
    Temperature,
    /// [`Calibration::Platt`].
    Platt,
    /// [`Calibration::Isotonic`].
    Isotonic,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Temperature => "temperature",
            Self::Platt => "platt",
            Self::Isotonic => "isotonic",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Temperature, Self::Platt, Self::Isotonic]
            .into_iter()
            .find(|method| method.to_string() == name)
            .ok_or_else(|| format!("'{name}'; use temperature, platt or isotonic"))
    }
}

/// Why nothing can be fitted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Too few rows.
    #[error("{found} rows to fit to; {LEAST_ROWS} or more are needed")]
    TooFew {
        /// Rows there are.
        found: usize,
    },
    /// A label that always or never holds.
    #[error(
        "label {label} (from 0) {} of the {rows} rows to fit to; a curve needs rows of both kinds",
        if *always { "holds in each" } else { "holds in none" }
    )]
    OneSided {
        /// Its index.
        label: usize,
        /// Rows looked at.
        rows: usize,
        /// Whether it always holds.
        always: bool,
    },
    /// Not for this activation.
    #[error(
        "Platt's method is for labels that each hold or not (sigmoid); use temperature or isotonic"
    )]
    PlattOfSoftmax,
    /// A model whose only label has probability 1, whatever it says.
    #[error("a softmax over one label is always 1: there is nothing to calibrate")]
    OneLabel,
}

/// The rows for fitting and those kept apart from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// What is fitted to.
    pub fit: Vec<Labelled>,
    /// What is measured on.
    pub held_out: Vec<Labelled>,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The one, fitted to all rows for fitting.
    pub calibration: Calibration,
    /// Each method's mean −ln p on rows that its fit had not seen.
    pub tried: Vec<(Method, f64)>,
}

/// The methods for an activation.
pub fn methods_of(activation: Activation) -> &'static [Method] {
    match activation {
        Activation::Softmax => &[Method::Temperature, Method::Isotonic],
        Activation::Sigmoid => &[Method::Temperature, Method::Platt, Method::Isotonic],
    }
}

/// Puts `share` of the rows apart, chosen by `seed`.
pub fn split(mut rows: Vec<Labelled>, share: f64, seed: u64) -> Split {
    Draws::new(seed).shuffle(&mut rows);
    let kept = rows.len() - (rows.len() as f64 * share).round() as usize;
    let held_out = rows.split_off(kept);
    Split {
        fit: rows,
        held_out,
    }
}

/// Fits one method.
///
/// # Errors
/// [`FitError`] when the rows or the method don't allow it.
pub fn fit(
    rows: &[Labelled],
    activation: Activation,
    method: Method,
) -> Result<Calibration, FitError> {
    let labels = rows.first().map_or(0, |row| row.truth.len());
    if rows.len() < LEAST_ROWS {
        return Err(FitError::TooFew { found: rows.len() });
    }
    if activation == Activation::Softmax && labels < 2 {
        return Err(FitError::OneLabel);
    }
    match method {
        Method::Temperature => Ok(Calibration::Temperature {
            temperature: temperature::fit(rows, activation),
        }),
        Method::Platt if activation == Activation::Softmax => Err(FitError::PlattOfSoftmax),
        Method::Platt => {
            let logit = |row: &Labelled, label: usize| f64::from(row.logits[label]);
            let curves = points_of(rows, labels, logit)?;
            let curves = curves.iter().map(|points| Sigmoid::fit(points)).collect();
            Ok(Calibration::Platt { curves })
        }
        Method::Isotonic => {
            let odds = |row: &Labelled, label: usize| {
                let wide: Vec<f64> = row.logits.iter().map(|&logit| f64::from(logit)).collect();
                log_odds(&wide, activation)[label]
            };
            let curves = points_of(rows, labels, odds)?;
            let curves = curves.iter().map(|points| Steps::fit(points)).collect();
            Ok(Calibration::Isotonic { curves })
        }
    }
}

/// Each label's points: where a row lies, and whether the label holds there.
fn points_of(
    rows: &[Labelled],
    labels: usize,
    place: impl Fn(&Labelled, usize) -> f64,
) -> Result<Vec<Vec<(f64, bool)>>, FitError> {
    let of_label = |label: usize| {
        let points = rows.iter().map(|row| (place(row, label), row.truth[label]));
        let points: Vec<_> = points.collect();
        let held = points.iter().filter(|(_, holds)| *holds).count();
        if held == 0 || held == points.len() {
            return Err(FitError::OneSided {
                label,
                rows: points.len(),
                always: held > 0,
            });
        }
        Ok(points)
    };
    (0..labels).map(of_label).collect()
}

/// Fits the one of `methods` under which rows that the fit has not seen are most likely, by
/// cross-validation in `FOLDS` parts.
///
/// # Errors
/// [`FitError`] when none of them can be fitted.
pub fn choose(
    rows: &[Labelled],
    activation: Activation,
    methods: &[Method],
) -> Result<Choice, FitError> {
    let mut tried: Vec<(Method, f64)> = Vec::new();
    let mut failure = None;
    for &method in methods {
        match unseen_loss(rows, activation, method) {
            Ok(loss) => tried.push((method, loss)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let best = tried.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let Some(&(method, _)) = best else {
        return Err(failure.unwrap_or(FitError::TooFew { found: rows.len() }));
    };
    Ok(Choice {
        calibration: fit(rows, activation, method)?,
        tried,
    })
}

fn unseen_loss(rows: &[Labelled], activation: Activation, method: Method) -> Result<f64, FitError> {
    let mut sum = 0.0;
    for fold in 0..FOLDS {
        let part = |seen: bool| -> Vec<Labelled> {
            let rows = rows.iter().enumerate();
            let of_part = rows.filter(|(at, _)| (at % FOLDS != fold) == seen);
            of_part.map(|(_, row)| row.clone()).collect()
        };
        let calibration = fit(&part(true), activation, method)?;
        sum += measure(&part(false), activation, Some(&calibration), 1).nll;
    }
    Ok(sum / FOLDS as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a model that is right as often as `sureness / 3` of its logits say.
    fn too_sure(count: usize) -> Vec<Labelled> {
        let mut draws = Draws::new(3);
        (0..count)
            .map(|_| {
                let logit = draws.unit() * 4.0 - 2.0;
                let holds = draws.unit() < 1.0 / (1.0 + (-logit).exp());
                Labelled {
                    logits: vec![0.0, (logit * 3.0) as f32],
                    truth: vec![!holds, holds],
                }
            })
            .collect()
    }

    #[test]
    fn a_model_three_times_too_sure_is_told_from_one_that_is_right() {
        let split = split(too_sure(4000), 0.5, 1);
        let choice = choose(
            &split.fit,
            Activation::Softmax,
            methods_of(Activation::Softmax),
        )
        .unwrap();
        let Calibration::Temperature { temperature } = choice.calibration else {
            panic!("{choice:?}");
        };
        assert!((2.6..3.5).contains(&temperature), "{temperature}");
        let before = measure(&split.held_out, Activation::Softmax, None, 15);
        let after = measure(
            &split.held_out,
            Activation::Softmax,
            Some(&choice.calibration),
            15,
        );
        assert!(before.ece > 0.1 && after.ece < 0.04, "{before:?} {after:?}");
        assert!((before.accuracy - after.accuracy).abs() < f64::EPSILON);
        assert!(after.nll < before.nll);
    }

    #[test]
    fn what_can_not_be_fitted_is_said() {
        let rows = too_sure(19);
        let few = fit(&rows, Activation::Softmax, Method::Temperature);
        assert_eq!(few, Err(FitError::TooFew { found: 19 }));
        let rows = too_sure(50);
        let platt = fit(&rows, Activation::Softmax, Method::Platt);
        assert_eq!(platt, Err(FitError::PlattOfSoftmax));
        let always = vec![
            Labelled {
                logits: vec![1.0],
                truth: vec![true]
            };
            30
        ];
        let one_sided = fit(&always, Activation::Sigmoid, Method::Platt).unwrap_err();
        assert!(one_sided.to_string().contains("holds in each of the 30"));
        let only = fit(&always, Activation::Softmax, Method::Temperature);
        assert_eq!(only, Err(FitError::OneLabel));
    }

    #[test]
    fn a_split_keeps_every_row_once() {
        let split = split(too_sure(101), 0.3, 9);
        assert_eq!((split.fit.len(), split.held_out.len()), (71, 30));
    }
}
