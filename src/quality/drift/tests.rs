//! The measures against scipy's, and the watch on rows drawn from seeded distributions.

use serde::Deserialize;

use super::{
    Moments, OTHER, Outputs, Profile, Row, Signal, State, Watch, Windowed, centroid_shift,
    measures::{centroid_cosine, jensen_shannon},
    stability_index,
};
use crate::config::DriftConfig;

#[derive(Deserialize)]
struct Golden {
    histograms: Vec<Histograms>,
    vectors: Vec<Vectors>,
}

#[derive(Deserialize)]
struct Histograms {
    baseline: Vec<u64>,
    window: Vec<u64>,
    stability_index: f64,
    jensen_shannon: f64,
}

#[derive(Deserialize)]
struct Vectors {
    baseline: Vec<Vec<f32>>,
    window: Vec<Vec<f32>>,
    centroid_shift: f64,
    centroid_cosine: f64,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/drift.json")).unwrap()
}

fn moments(vectors: &[Vec<f32>]) -> Moments {
    let mut profile = Profile::default();
    for vector in vectors {
        profile.observe(&embedding(vector));
    }
    profile.embedding
}

fn embedding(vector: &[f32]) -> Row<'_> {
    Row {
        outputs: Outputs::Vector(vector),
        confidence: None,
        tokens: 8,
        unknown: 0,
        language: None,
    }
}

#[test]
fn histograms_are_as_far_apart_as_scipy_says() {
    for case in golden().histograms {
        let found = stability_index(&case.baseline, &case.window);
        assert!((found - case.stability_index).abs() < 1e-9, "{found}");
        let found = jensen_shannon(&case.baseline, &case.window);
        assert!((found - case.jensen_shannon).abs() < 1e-9, "{found}");
    }
}

#[test]
fn centroids_are_as_far_apart_as_numpy_says() {
    for case in golden().vectors {
        let (baseline, window) = (moments(&case.baseline), moments(&case.window));
        let found = centroid_shift(&baseline, &window);
        assert!((found - case.centroid_shift).abs() < 1e-5, "{found}");
        let found = centroid_cosine(&baseline, &window);
        assert!((found - case.centroid_cosine).abs() < 1e-6, "{found}");
    }
}

/// Seeded draws: splitmix64.
struct Draw(u64);

impl Draw {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Sum of uniforms: near enough to normal.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A classifier's row: five classes, confidences that lean to 1, lengths about 20.
fn classified(draw: &mut Draw, lean: f64) -> Row<'static> {
    let shares = [0.4, 0.7, 0.85, 0.95, 1.0];
    let place = draw.uniform().powf(lean);
    let class = shares.iter().position(|&end| place < end).unwrap_or(4);
    Row {
        outputs: Outputs::Class(class),
        confidence: Some((1.0 - 0.5 * draw.uniform().powf(2.0 * lean)) as f32),
        tokens: (20.0 * (draw.normal() * 0.4).exp() * lean) as usize + 2,
        unknown: u32::from(draw.uniform() < 0.02),
        // A sample is told apart, and of short texts some are mistaken.
        language: (draw.uniform() < 0.25).then(|| {
            let place = draw.uniform().powf(lean);
            ["eng", "other", "deu"][usize::from(place > 0.85) + usize::from(place > 0.95)]
        }),
    }
}

fn feed(watch: &mut Watch, rows: usize, mut row: impl FnMut() -> Row<'static>) -> Vec<State> {
    let mut states = Vec::new();
    for _ in 0..rows {
        if let Windowed::Full(_) = watch.observe(&row()) {
            states.push(watch.state());
        }
    }
    states
}

#[test]
fn a_hundred_windows_of_the_same_rows_raise_no_alert_and_a_shifted_one_does_within_two() {
    let config = DriftConfig::default();
    let window = config.window_rows as usize;
    for seed in 0..5 {
        let mut draw = Draw(seed);
        let mut watch = Watch::new(config.clone(), None);
        let learnt = feed(&mut watch, config.learn_rows as usize, || {
            classified(&mut draw, 1.0)
        });
        assert!(learnt.is_empty() && watch.baseline().is_some());
        let usual = feed(&mut watch, 100 * window, || classified(&mut draw, 1.0));
        assert_eq!(usual, vec![State::Ok; 100], "seed {seed}");
        let shifted = feed(&mut watch, 2 * window, || classified(&mut draw, 1.8));
        assert_eq!(shifted[1], State::Drifted, "seed {seed}: {shifted:?}");
        let back = feed(&mut watch, 2 * window, || classified(&mut draw, 1.0));
        assert_eq!(back[1], State::Ok, "seed {seed}: {back:?}");
    }
}

#[test]
fn embeddings_of_the_same_texts_raise_no_alert_and_moved_ones_do() {
    const DIMENSIONS: usize = 24;
    let config = DriftConfig {
        window_rows: 200,
        learn_rows: 800,
        ..DriftConfig::default()
    };
    let mut draw = Draw(3);
    let mut watch = Watch::new(config, None);
    let mut windows = |watch: &mut Watch, rows: usize, moved: f64| {
        let mut states = Vec::new();
        for _ in 0..rows {
            let vector: Vec<f32> = (0..DIMENSIONS)
                // Some directions have more spread than others, as embeddings' do.
                .map(|at| (draw.normal() / (1.0 + at as f64 / 4.0) + moved) as f32)
                .collect();
            if let Windowed::Full(_) = watch.observe(&embedding(&vector)) {
                states.push(watch.state());
            }
        }
        states
    };
    windows(&mut watch, 800, 0.0);
    assert_eq!(windows(&mut watch, 100 * 200, 0.0), vec![State::Ok; 100]);
    assert_eq!(windows(&mut watch, 2 * 200, 0.15)[1], State::Drifted);
}

#[test]
fn memory_is_bounded_whatever_comes() {
    let mut profile = Profile::default();
    for (outputs, tokens) in [
        (Outputs::Class(usize::MAX), usize::MAX),
        (Outputs::Score(f32::NAN), 0),
        (Outputs::Vector(&[f32::INFINITY]), 1),
        (Outputs::Vector(&[1.0; 3]), 1),
        (Outputs::Vector(&[1.0; 5]), 1),
    ] {
        profile.observe(&Row {
            outputs,
            confidence: Some(f32::NAN),
            tokens,
            unknown: u32::MAX,
            language: Some(OTHER),
        });
    }
    assert_eq!(profile.rows, 5);
    assert!(profile.output.len() <= 256 && profile.length.len() <= 32);
    assert_eq!((profile.embedding.n, profile.embedding.sum.len()), (1, 3));
    let json = serde_json::to_string(&profile).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
}

#[test]
fn what_was_seen_becomes_the_baseline_when_there_is_enough_of_it() {
    let config = DriftConfig::default();
    let mut draw = Draw(9);
    let mut watch = Watch::new(config.clone(), Some(Profile::default()));
    feed(&mut watch, 999, || classified(&mut draw, 1.0));
    assert!(!watch.rebase());
    feed(&mut watch, 1, || classified(&mut draw, 1.0));
    assert!(watch.rebase());
    assert_eq!(watch.baseline().unwrap().rows, 1000);
}

#[test]
fn another_mix_of_languages_raises_the_alert_and_the_same_does_not() {
    let config = DriftConfig::default();
    let mut draw = Draw(5);
    let mut watch = Watch::new(config.clone(), None);
    let mut windows = |watch: &mut Watch, rows: usize, german: f64| {
        let mut readings = Vec::new();
        for _ in 0..rows {
            let language = if draw.uniform() < german {
                "deu"
            } else {
                "eng"
            };
            let row = Row {
                language: (draw.uniform() < config.language_sample).then_some(language),
                ..classified(&mut Draw(1), 1.0)
            };
            if let Windowed::Full(full) = watch.observe(&row) {
                let reading = full
                    .iter()
                    .find(|reading| reading.signal == Signal::Language);
                readings.push(reading.map(|reading| reading.state));
            }
        }
        readings
    };
    windows(&mut watch, config.learn_rows as usize, 0.1);
    let window = config.window_rows as usize;
    let usual = windows(&mut watch, 100 * window, 0.1);
    assert_eq!(usual, vec![Some(State::Ok); 100]);
    let other = windows(&mut watch, 2 * window, 0.5);
    assert_eq!(other[1], Some(State::Drifted));
    assert!(!watch.readings().is_empty());
}

#[test]
fn a_baseline_of_an_earlier_version_is_read_and_has_no_languages() {
    let earlier = r#"{"rows":100,"output":[60,40],"confidence":[],"length":[0,100],"unknown":[100],
        "embedding":{"n":0,"sum":[],"squares":0.0}}"#;
    let baseline: Profile = serde_json::from_str(earlier).unwrap();
    assert!(baseline.language.is_empty() && baseline.distance.is_empty());
    let config = DriftConfig {
        window_rows: 50,
        ..DriftConfig::default()
    };
    let mut watch = Watch::new(config, Some(baseline));
    let mut draw = Draw(2);
    feed(&mut watch, 50, || classified(&mut draw, 1.0));
    assert!(!watch.readings().is_empty());
    let of_language = |reading: &&super::Reading| reading.signal == Signal::Language;
    assert!(watch.readings().iter().find(of_language).is_none());
}
