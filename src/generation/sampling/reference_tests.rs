//! The sampler against a naive one: everything in f64, everything sorted.

use proptest::{collection::vec, prelude::*};

use super::{
    random::Random,
    sampler::{RowStatistics, SampleError, Sampler},
    scan::Logits,
    *,
};

fn statistics(logits: &[f32]) -> RowStatistics {
    let mut argmax = 0;
    for (at, &logit) in logits.iter().enumerate() {
        if logit > logits[argmax] {
            argmax = at;
        }
    }
    let max = f64::from(logits[argmax]);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    RowStatistics {
        argmax: argmax as u32,
        max: logits[argmax],
        log_sum_exp: (max + sum.ln()) as f32,
    }
}

/// Logits in about the shape of a model's: most of them far below a few.
fn model_like(count: usize, seed: u64, spread: f32) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| (random.unit() as f32).ln() * -spread - 10.0)
        .collect()
}

type Kept = Vec<(u32, f64)>;

fn normalize(kept: &mut Kept) {
    let total: f64 = kept.iter().map(|(_, p)| p).sum();
    for (_, p) in kept {
        *p /= total;
    }
}

/// Keeps the first that have the share `p`. Returns how near the decision was to another one.
fn cut(kept: &mut Kept, p: f64) -> f64 {
    let mut mass = 0.0;
    let mut margin = f64::INFINITY;
    let mut count = kept.len();
    for (at, (_, share)) in kept.iter().enumerate() {
        mass += share;
        margin = margin.min((mass - p).abs());
        if mass >= p {
            count = at + 1;
            break;
        }
    }
    kept.truncate(count);
    margin
}

fn by_probability(kept: &mut Kept, z: &[f64]) {
    kept.sort_by(|a, b| {
        z[b.0 as usize]
            .total_cmp(&z[a.0 as usize])
            .then(a.0.cmp(&b.0))
    });
}

/// What passes the filters, by definition, and how near a decision was to another one.
fn naive(z: &[f64], allowed: impl Fn(u32) -> bool, all: &SamplingParameters) -> (Kept, f64) {
    let t = f64::from(all.temperature);
    let max = (0..z.len() as u32)
        .filter(|&token| allowed(token))
        .map(|token| z[token as usize])
        .fold(f64::NEG_INFINITY, f64::max);
    let mut kept: Kept = (0..z.len() as u32)
        .filter(|&token| allowed(token))
        .map(|token| (token, ((z[token as usize] - max) / t).exp()))
        .collect();
    let mut margin = f64::INFINITY;
    by_probability(&mut kept, z);
    if all.top_k > 0 {
        kept.truncate(all.top_k as usize);
    }
    normalize(&mut kept);
    if all.typical_p < 1.0 {
        let entropy: f64 = kept.iter().map(|(_, p)| -p * p.max(1e-300).ln()).sum();
        let off = |p: f64| (-p.max(1e-300).ln() - entropy).abs();
        kept.sort_by(|a, b| off(a.1).total_cmp(&off(b.1)));
        for pair in kept.windows(2) {
            if (pair[0].1 - pair[1].1).abs() > 0.0 {
                margin = margin.min((off(pair[0].1) - off(pair[1].1)).abs());
            }
        }
        margin = margin.min(cut(&mut kept, f64::from(all.typical_p)));
        by_probability(&mut kept, z);
        normalize(&mut kept);
    }
    if all.top_p < 1.0 {
        margin = margin.min(cut(&mut kept, f64::from(all.top_p)));
        normalize(&mut kept);
    }
    let least = f64::from(all.min_p) * kept[0].1;
    for (_, p) in &kept {
        margin = margin.min((p - least).abs() / kept[0].1.max(least));
    }
    kept.retain(|&(_, p)| p >= least);
    normalize(&mut kept);
    (kept, margin)
}

fn filters() -> impl Strategy<Value = SamplingParameters> {
    let part = || prop_oneof![Just(1.0_f32), 0.05..1.0_f32];
    (
        prop_oneof![Just(1.0_f32), 0.05..3.0_f32],
        prop_oneof![Just(0_u32), 1..80_u32],
        part(),
        prop_oneof![Just(0.0_f32), 0.0001..1.0_f32],
        part(),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, typical_p)| SamplingParameters {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                ..SamplingParameters::greedy()
            },
        )
}

fn allows(mask: &[u32], token: u32) -> bool {
    mask[token as usize / 32] & (1 << (token % 32)) != 0
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(512),
        failure_persistence: None,
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_filters_keep_what_they_keep_by_definition(
        count in 1..700_usize,
        seed: u64,
        spread in 0.5..8.0_f32,
        all in filters(),
        masked: bool,
        density in 1..4_u32,
    ) {
        let logits = model_like(count, seed, spread);
        let mut random = Random::new(seed);
        let mask: Vec<u32> = (0..count.div_ceil(32))
            .map(|_| (0..density).fold(u32::MAX, |mask, _| mask & random.bits() as u32))
            .collect();
        let allowed = |token: u32| !masked || allows(&mask, token);
        prop_assume!((0..count as u32).any(allowed));
        let z: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
        let (mut expected, margin) = naive(&z, allowed, &all);
        // Where rounding may decide, either is right.
        prop_assume!(margin > 1e-5);
        let view = Logits { raw: &logits, changed: &[], mask: masked.then_some(&mask[..]) };
        let max = view.best().unwrap().1;
        let mut sampler = Sampler::new(&all, seed);
        sampler.collect_candidates(view, max, statistics(&logits).log_sum_exp);
        let mut found: Vec<_> = sampler.candidates().to_vec();
        found.sort_by_key(|candidate| candidate.token);
        expected.sort_by_key(|&(token, _)| token);
        if all.min_p == 0.0 {
            // Tokens whose weight is 0 in f32 are never drawn, wherever they are.
            found.retain(|candidate| candidate.weight > 0.0);
            expected.retain(|&(token, _)| found.iter().any(|one| one.token == token));
        }
        let tokens: Vec<u32> = found.iter().map(|candidate| candidate.token).collect();
        let expected_tokens: Vec<u32> = expected.iter().map(|&(token, _)| token).collect();
        prop_assert_eq!(tokens, expected_tokens);
        let total: f64 = found.iter().map(|candidate| f64::from(candidate.weight)).sum();
        for (candidate, (_, p)) in found.iter().zip(expected) {
            prop_assert!((f64::from(candidate.weight) / total - p).abs() < 1e-5);
        }
    }

    #[test]
    fn greedy_takes_the_best_of_what_penalties_and_mask_leave(
        count in 1..200_usize,
        seed: u64,
        prompt in vec(0..200_u32, 0..20),
        generated in vec(0..200_u32, 0..20),
        bias in vec((0..200_u32, -5.0..5.0_f32), 0..4),
        penalties in (0.5..2.0_f32, -2.0..2.0_f32, -2.0..2.0_f32),
        masked: bool,
    ) {
        let logits = model_like(count, seed, 4.0);
        let inside = |token: &u32| (*token as usize) < count;
        let prompt: Vec<u32> = prompt.into_iter().filter(inside).collect();
        let generated: Vec<u32> = generated.into_iter().filter(inside).collect();
        let logit_bias: Vec<(u32, f32)> =
            bias.into_iter().filter(|(token, _)| inside(token)).collect();
        let (repetition_penalty, presence_penalty, frequency_penalty) = penalties;
        let all = SamplingParameters {
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
            ..SamplingParameters::greedy()
        };
        let mut sampler = Sampler::new(&all, 1);
        sampler.accept_prompt(&prompt);
        for &token in &generated {
            sampler.accept(token);
        }
        let mask = [seed as u32, 0, u32::MAX, 1, (seed >> 32) as u32, 7, 9];
        let mut best: Option<(u32, f32)> = None;
        for (token, &logit) in (0..).zip(&logits) {
            let mut z = logit;
            let times = generated.iter().filter(|&&other| other == token).count();
            if times > 0 || prompt.contains(&token) {
                z = if z > 0.0 { z / repetition_penalty } else { z * repetition_penalty };
            }
            if times > 0 {
                z -= frequency_penalty * times as f32 + presence_penalty;
            }
            let biases = all.logit_bias.iter().filter(|(other, _)| *other == token);
            z += biases.fold(0.0, |sum, (_, bias)| sum + bias);
            if (!masked || allows(&mask, token)) && best.is_none_or(|(_, other)| z > other) {
                best = Some((token, z));
            }
        }
        let found = sampler.sample(&logits, statistics(&logits), masked.then_some(&mask[..]));
        let Some((token, _)) = best else {
            prop_assert_eq!(found.unwrap_err(), SampleError::NoneAllowed);
            return Ok(());
        };
        let found = found.unwrap();
        prop_assert_eq!(found.token, token);
        let logprob = logits[token as usize] - statistics(&logits).log_sum_exp;
        prop_assert_eq!(found.logprob.to_bits(), logprob.to_bits());
    }
}

/// χ² of the draws against the definition, and the degrees of freedom.
fn chi_square(all: &SamplingParameters, mask: Option<&[u32]>, seed: u64) -> (f64, f64) {
    const DRAWS: u32 = 40_000;
    let logits = model_like(100, seed, 2.0);
    let z: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let (expected, _) = naive(&z, |token| mask.is_none_or(|mask| allows(mask, token)), all);
    let mut sampler = Sampler::new(all, seed);
    let mut counts = [0_u32; 100];
    for _ in 0..DRAWS {
        let sampled = sampler.sample(&logits, statistics(&logits), mask).unwrap();
        counts[sampled.token as usize] += 1;
    }
    let inside: u32 = expected.iter().map(|&(at, _)| counts[at as usize]).sum();
    assert_eq!(inside, DRAWS, "nothing else is drawn");
    // Rare tokens are taken together.
    let (mut sum, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (token, p) in expected {
        let (count, mean) = (f64::from(counts[token as usize]), p * f64::from(DRAWS));
        if mean < 10.0 {
            rare = (rare.0 + count, rare.1 + mean);
        } else {
            sum += (count - mean).powi(2) / mean;
            cells += 1.0;
        }
    }
    if rare.1 > 5.0 {
        sum += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1.0;
    }
    (sum, cells - 1.0)
}

#[test]
fn tokens_are_drawn_as_often_as_their_probabilities_say() {
    let base = SamplingParameters {
        temperature: 1.0,
        ..SamplingParameters::greedy()
    };
    let cases = [
        base.clone(),
        SamplingParameters {
            temperature: 0.6,
            ..base.clone()
        },
        SamplingParameters {
            temperature: 1.7,
            ..base.clone()
        },
        SamplingParameters {
            top_k: 10,
            ..base.clone()
        },
        SamplingParameters {
            top_p: 0.8,
            ..base.clone()
        },
        SamplingParameters {
            min_p: 0.1,
            temperature: 1.3,
            ..base.clone()
        },
        SamplingParameters {
            typical_p: 0.7,
            ..base.clone()
        },
        SamplingParameters {
            top_k: 30,
            top_p: 0.9,
            min_p: 0.02,
            ..base
        },
    ];
    let mask = [0xf0f0_1234_u32, 0xffff_ffff, 0x0000_00ff, 0xf];
    for (at, all) in (0..).zip(&cases) {
        for mask in [None, Some(&mask[..])] {
            let (sum, freedom) = chi_square(all, mask, 100 + at);
            // About four standard deviations; the seeds are fixed.
            let limit = freedom + 4.0 * (2.0 * freedom).sqrt() + 4.0;
            assert!(sum < limit, "{all:?}: {sum} for {freedom} degrees");
        }
    }
}

fn draws(all: &SamplingParameters, seed: u64) -> Vec<u32> {
    let logits = model_like(1000, 3, 1.0);
    let mut sampler = Sampler::new(all, seed);
    (0..50)
        .map(|_| {
            sampler
                .sample(&logits, statistics(&logits), None)
                .unwrap()
                .token
        })
        .collect()
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_another_seed_others() {
    for top_p in [1.0, 0.9] {
        let all = SamplingParameters {
            temperature: 1.0,
            top_p,
            ..SamplingParameters::greedy()
        };
        assert_eq!(draws(&all, 7), draws(&all, 7));
        assert_ne!(draws(&all, 7), draws(&all, 8));
    }
}

#[test]
fn a_flat_distribution_widens_the_candidates_until_they_suffice() {
    // All of the mass is below the first cutoff but for one token's.
    let mut logits = vec![0.0; 200_000];
    logits[5] = 8.0;
    let all = SamplingParameters {
        temperature: 1.0,
        top_p: 0.9,
        ..SamplingParameters::greedy()
    };
    let told = statistics(&logits);
    let mut sampler = Sampler::new(&all, 1);
    let view = Logits {
        raw: &logits,
        changed: &[],
        mask: None,
    };
    sampler.collect_candidates(view, 8.0, told.log_sum_exp);
    let e8 = 8_f64.exp();
    let expected = (0.9 * (e8 + 199_999.0) - e8).ceil() + 1.0;
    let found = sampler.candidates().len() as f64;
    assert!((found - expected).abs() < 5.0, "{found}, {expected}");
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let mut sampler = Sampler::new(&SamplingParameters::greedy(), 1);
    for bad in [
        [f32::NAN, 1.0],
        [f32::INFINITY, 1.0],
        [f32::NEG_INFINITY; 2],
    ] {
        let found = sampler.sample(&bad, statistics(&bad), None);
        assert!(matches!(found, Err(SampleError::NotFinite { .. })));
    }
    let logits = [1.0, f32::NEG_INFINITY];
    let found = sampler.sample(&logits, statistics(&logits), Some(&[0b10]));
    assert_eq!(found, Err(SampleError::NoneAllowed));
    let found = sampler.sample(&logits, statistics(&logits), Some(&[]));
    assert_eq!(found, Err(SampleError::NoneAllowed));
}

#[test]
fn the_likeliest_tokens_are_reported_by_the_models_own_probabilities() {
    let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
    let told = statistics(&logits);
    let mut sampler = Sampler::new(
        &SamplingParameters {
            logit_bias: vec![(4, 100.0)],
            top_logprobs: 3,
            ..SamplingParameters::greedy()
        },
        1,
    );
    let sampled = sampler.sample(&logits, told, None).unwrap();
    assert_eq!(sampled.token, 4);
    assert_eq!(
        sampled.logprob.to_bits(),
        (-1.0 - told.log_sum_exp).to_bits()
    );
    let expected = [(1, 3.0), (3, 3.0), (2, 2.0)].map(|(t, l)| (t, l - told.log_sum_exp));
    assert_eq!(sampled.top, expected);
}
