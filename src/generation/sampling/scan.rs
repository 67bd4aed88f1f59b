//! Passes over the logits of a row, with what is changed and forbidden taken into account.
//!
//! The vocabulary is seen in groups of 32 tokens, one word of a mask. A group is skipped when its
//! largest raw logit is below a threshold, which is one vector comparison for most of them.

use std::cmp::Ordering;

const GROUP: usize = 32;

/// The logits to choose from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logits<'a> {
    /// As the model gave them, `[vocabulary]`.
    pub raw: &'a [f32],
    /// Tokens that have another logit than the raw one, ascending.
    pub changed: &'a [(u32, f32)],
    /// A bit for each token that is allowed; `None` when all are.
    pub mask: Option<&'a [u32]>,
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub token: u32,
    pub logit: f32,
    /// Its probability times a constant.
    pub weight: f32,
}

/// The likelier first, of equal ones the lower id.
pub(super) fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit
        .total_cmp(&a.logit)
        .then_with(|| a.token.cmp(&b.token))
}

/// Whether a token and its logit come before another: the larger, of equal ones the lower id.
pub(super) fn beats(one: (u32, f32), other: (u32, f32)) -> bool {
    one.1 > other.1 || (one.1 >= other.1 && one.0 < other.0)
}

/// A part of the vocabulary: 32 tokens from `first` on.
struct Group<'a> {
    first: u32,
    raw: &'a [f32],
    /// Tokens that are allowed and not changed.
    plain: u32,
    changed: &'a [(u32, f32)],
}

impl<'a> Logits<'a> {
    fn groups(self) -> impl Iterator<Item = Group<'a>> {
        let mut rest = self.changed;
        self.raw.chunks(GROUP).enumerate().map(move |(index, raw)| {
            let first = (index * GROUP) as u32;
            let mut plain = match self.mask {
                Some(mask) => mask.get(index).copied().unwrap_or(0),
                None => u32::MAX,
            };
            if raw.len() < GROUP {
                plain &= (1 << raw.len()) - 1;
            }
            let mut changed: &[(u32, f32)] = &[];
            if rest.first().is_some_and(|&(token, _)| token < first + 32) {
                let count = rest.partition_point(|&(token, _)| token < first + 32);
                (changed, rest) = rest.split_at(count);
                for &(token, _) in changed {
                    plain &= !(1 << (token - first));
                }
            }
            Group {
                first,
                raw,
                plain,
                changed,
            }
        })
    }

    fn allows(&self, token: u32) -> bool {
        self.mask.is_none_or(|mask| {
            mask.get(token as usize / GROUP)
                .is_some_and(|word| word & (1 << (token % 32)) != 0)
        })
    }

    /// Calls `visit` with every allowed token whose logit is not below the threshold, and the
    /// threshold, which may be raised. Not quite in order: changed tokens come first in their group.
    fn visit(self, mut threshold: f32, mut visit: impl FnMut(u32, f32, &mut f32)) {
        for group in self.groups() {
            for &(token, logit) in group.changed {
                if logit >= threshold && self.allows(token) {
                    visit(token, logit, &mut threshold);
                }
            }
            if group.plain == 0 || largest(group.raw) < threshold {
                continue;
            }
            let mut plain = group.plain;
            while plain != 0 {
                let at = plain.trailing_zeros();
                plain &= plain - 1;
                let logit = group.raw[at as usize];
                if logit >= threshold {
                    visit(group.first + at, logit, &mut threshold);
                }
            }
        }
    }

    /// The allowed token of the largest logit.
    pub fn best(self) -> Option<(u32, f32)> {
        let mut best: Option<(u32, f32)> = None;
        self.visit(f32::MIN, |token, logit, threshold| {
            if best.is_none_or(|best| beats((token, logit), best)) {
                best = Some((token, logit));
                *threshold = logit;
            }
        });
        best
    }

    /// Collects the allowed tokens whose logits are not below `threshold`.
    pub fn collect(self, threshold: f32, into: &mut Vec<Candidate>) {
        into.clear();
        self.visit(threshold.max(f32::MIN), |token, logit, _| {
            into.push(Candidate {
                token,
                logit,
                weight: 0.0,
            });
        });
    }

    /// Collects the `count` likeliest allowed tokens, likeliest first.
    pub fn collect_likeliest(self, count: usize, into: &mut Vec<Candidate>) {
        into.clear();
        if count == 0 {
            return;
        }
        // Cut back to `count` whenever there are twice as many and some.
        let room = count.saturating_mul(2).max(64);
        self.visit(f32::MIN, |token, logit, threshold| {
            into.push(Candidate {
                token,
                logit,
                weight: 0.0,
            });
            if into.len() >= room {
                into.select_nth_unstable_by(count - 1, likelier);
                into.truncate(count);
                *threshold = into[count - 1].logit;
            }
        });
        into.sort_unstable_by(likelier);
        into.truncate(count);
    }

    /// `Σ exp((z - max) · scale)` over the allowed tokens of each group; returns their sum.
    pub fn sum_weights(self, max: f32, scale: f32, mut each: impl FnMut(f64)) -> f64 {
        let mut total = 0.0;
        for group in self.groups() {
            let plain = match <&[f32; GROUP]>::try_from(group.raw) {
                Ok(raw) if group.plain == u32::MAX => sum_group(raw, max, scale),
                _ => bits(group.plain)
                    .map(|at| weight(group.raw[at as usize], max, scale))
                    .sum(),
            };
            let changed: f32 = group
                .changed
                .iter()
                .filter(|&&(token, _)| self.allows(token))
                .map(|&(_, logit)| weight(logit, max, scale))
                .sum();
            let sum = f64::from(plain + changed);
            total += sum;
            each(sum);
        }
        total
    }

    /// The allowed tokens of one group and their weights, in no particular but a fixed order.
    pub fn group_weights(
        self,
        index: usize,
        max: f32,
        scale: f32,
    ) -> impl Iterator<Item = (u32, f32)> {
        let group = self.groups().nth(index);
        group.into_iter().flat_map(move |group| {
            let plain = bits(group.plain).map(move |at| (group.first + at, group.raw[at as usize]));
            let changed = group.changed.iter().copied();
            changed
                .filter(move |&(token, _)| self.allows(token))
                .chain(plain)
                .map(move |(token, logit)| (token, weight(logit, max, scale)))
        })
    }
}

fn bits(mut word: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let at = word.trailing_zeros();
        word &= word - 1;
        Some(at)
    })
}

fn largest(values: &[f32]) -> f32 {
    let Ok(values) = <&[f32; GROUP]>::try_from(values) else {
        return f32::INFINITY;
    };
    let mut lanes = [f32::MIN; 8];
    for part in values.as_chunks::<8>().0 {
        for (lane, &value) in lanes.iter_mut().zip(part) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::MIN, f32::max)
}

fn sum_group(values: &[f32; GROUP], max: f32, scale: f32) -> f32 {
    let mut lanes = [0.0; 8];
    for part in values.as_chunks::<8>().0 {
        for (lane, &value) in lanes.iter_mut().zip(part) {
            *lane += weight(value, max, scale);
        }
    }
    lanes.into_iter().sum()
}

/// `exp((logit - max) · scale)` for logits up to `max`, to a few ulp; 0 from e⁻⁸⁷ down.
///
/// exp(x) = 2ⁿ · exp(r), n = round(x / ln 2), with a polynomial for exp(r), |r| ≤ ln 2 / 2. Written
/// so that the compiler makes vectors of it.
#[inline(always)]
pub(super) fn weight(logit: f32, max: f32, scale: f32) -> f32 {
    // Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = (logit - max) * scale;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut series = 1.0 / 720.0;
    for factor in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + factor;
    }
    let power = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    let value = series * f32::from_bits(power);
    if x > -87.0 { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials() {
        for at in 0..87_000 {
            let x = at as f32 * -1e-3;
            let expected = f64::from(x).exp();
            let found = f64::from(weight(x, 0.0, 1.0));
            assert!(
                (found / expected - 1.0).abs() < 5e-7,
                "{x}: {found} {expected}"
            );
        }
        let exactly = |found: f32, expected: f32| assert_eq!(found.to_bits(), expected.to_bits());
        exactly(weight(f32::NEG_INFINITY, 3.0, 0.5), 0.0);
        exactly(weight(-1e30, 3.0, 100.0), 0.0);
        exactly(weight(3.0, 3.0, 0.5), 1.0);
    }
}
