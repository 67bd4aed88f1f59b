//! How far probabilities are from what happens: expected calibration error, −ln p, Brier's score,
//! and the bins that a reliability plot shows.
//!
//! What is counted: where exactly one label holds, each row's best label with its probability, and
//! whether it is the one that holds; where labels hold or not on their own, each label of each row.

use serde::{Deserialize, Serialize};

use super::{Calibration, Labelled};
use crate::{config::Activation, quality::confidence::probabilities_of};

/// Probabilities below this count as it in −ln p, so that one row can't make the mean infinite.
const LEAST_PROBABILITY: f64 = 1e-12;

/// How good probabilities are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Rows looked at.
    pub rows: usize,
    /// Share that is right: best labels, or labels on the right side of 0.5.
    pub accuracy: f64,
    /// Expected calibration error over bins of equal width: the mean distance between a bin's
    /// confidence and its accuracy, weighed by how many are in it.
    pub ece: f64,
    /// The same over bins of equally many.
    pub ece_equal_mass: f64,
    /// The largest distance of any bin of equal width.
    pub mce: f64,
    /// Mean of −ln p of what holds, in nats.
    pub nll: f64,
    /// Mean squared distance of the probabilities from 0 and 1, summed over a row's labels.
    pub brier: f64,
    /// The bins of equal width, lowest first.
    pub bins: Vec<Bin>,
}

/// A stretch of confidence, `from` excluded, `to` included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bin {
    /// Its lower end.
    pub from: f64,
    /// Its upper end.
    pub to: f64,
    /// How many are in it.
    pub count: usize,
    /// Their mean confidence; 0 of none.
    pub confidence: f64,
    /// Share of them that is right; 0 of none.
    pub accuracy: f64,
}

/// Measures the probabilities that `calibration` (or, without one, the activation alone) makes of
/// labelled rows, in `bins` bins.
pub fn measure(
    rows: &[Labelled],
    activation: Activation,
    calibration: Option<&Calibration>,
    bins: usize,
) -> Measured {
    let mut events = Vec::with_capacity(rows.len());
    let (mut nll, mut brier) = (0.0, 0.0);
    for row in rows {
        let logits: Vec<f64> = row.logits.iter().map(|&logit| f64::from(logit)).collect();
        let likely = match calibration {
            Some(calibration) => calibration.wide_probabilities(&logits, activation),
            None => probabilities_of(&logits, activation),
        };
        let minus_log = |p: f64| -p.max(LEAST_PROBABILITY).ln();
        for (&p, &holds) in likely.iter().zip(&row.truth) {
            let truth = f64::from(u8::from(holds));
            brier += (p - truth).powi(2);
            match activation {
                Activation::Softmax if holds => nll += minus_log(p),
                Activation::Softmax => {}
                Activation::Sigmoid => {
                    nll += minus_log(if holds { p } else { 1.0 - p });
                    events.push((p, holds));
                }
            }
        }
        if activation == Activation::Softmax {
            let best = likely
                .iter()
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            if let Some((best, &p)) = best {
                events.push((p, row.truth.get(best) == Some(&true)));
            }
        }
    }
    let count = events.len().max(1) as f64;
    let right = events.iter().filter(|&&(p, hit)| match activation {
        Activation::Softmax => hit,
        Activation::Sigmoid => (p >= 0.5) == hit,
    });
    let wide = equal_width(&events, bins.max(1));
    let distance = |bin: &Bin| (bin.confidence - bin.accuracy).abs();
    let weighed = |bins: &[Bin]| -> f64 {
        let terms = bins.iter().map(|bin| distance(bin) * bin.count as f64);
        terms.sum::<f64>() / count
    };
    Measured {
        rows: rows.len(),
        accuracy: right.count() as f64 / count,
        ece: weighed(&wide),
        ece_equal_mass: weighed(&equal_mass(&events, bins.max(1))),
        mce: wide.iter().map(distance).fold(0.0, f64::max),
        // A label is a term where each stands on its own.
        nll: nll / count,
        brier: brier / rows.len().max(1) as f64,
        bins: wide,
    }
}

fn equal_width(events: &[(f64, bool)], bins: usize) -> Vec<Bin> {
    let place = |p: f64| (((p * bins as f64).ceil() as usize).max(1) - 1).min(bins - 1);
    let mut members: Vec<Vec<(f64, bool)>> = vec![Vec::new(); bins];
    for &(p, hit) in events {
        members[place(p)].push((p, hit));
    }
    let edge = |at: usize| at as f64 / bins as f64;
    let of = |(at, members): (usize, &Vec<_>)| bin(edge(at), edge(at + 1), members);
    members.iter().enumerate().map(of).collect()
}

fn equal_mass(events: &[(f64, bool)], bins: usize) -> Vec<Bin> {
    let mut sorted = events.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let each = sorted.len().div_ceil(bins).max(1);
    let of = |members: &[(f64, bool)]| {
        let ends = members.first().zip(members.last());
        let (from, to) = ends.map_or((0.0, 0.0), |(first, last)| (first.0, last.0));
        bin(from, to, members)
    };
    sorted.chunks(each).map(of).collect()
}

fn bin(from: f64, to: f64, members: &[(f64, bool)]) -> Bin {
    let count = members.len();
    let share = count.max(1) as f64;
    Bin {
        from,
        to,
        count,
        confidence: members.iter().map(|(p, _)| p).sum::<f64>() / share,
        accuracy: members.iter().filter(|(_, hit)| *hit).count() as f64 / share,
    }
}
