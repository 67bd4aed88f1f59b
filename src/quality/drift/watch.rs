//! Windows of rows, each compared with the baseline.

use serde::Serialize;

use super::{
    alarm::{Alarm, State},
    language::aligned,
    measures::{centroid_cosine, centroid_shift, jensen_shannon, stability_index},
    profile::{Profile, Row},
};
use crate::config::DriftConfig;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// What comes out.
    Output,
    /// How sure the model is.
    Confidence,
    /// Tokens of a row.
    Length,
    /// Unknown tokens.
    Unknown,
    /// Where the embeddings are.
    Embedding,
    /// In which languages texts are.
    Language,
}

impl Signal {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Confidence => "confidence",
            Self::Length => "length",
            Self::Unknown => "unknown_tokens",
            Self::Embedding => "embedding",
            Self::Language => "language",
        }
    }
}

/// What a window says of one signal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reading {
    /// The signal.
    pub signal: Signal,
    /// What its state goes by: the stability index, or the centroid's shift.
    pub value: f64,
    /// Jensen-Shannon divergence in bits; of embeddings 1 less the centroids' cosine.
    pub divergence: f64,
    /// Its state after this window.
    pub state: State,
}

/// What a row did to the watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Windowed {
    /// It is one of a window that is not full.
    Counted,
    /// The baseline is complete with it: there was none before.
    Learnt,
    /// The window is full with it.
    Full(Vec<Reading>),
}

/// Compares rows with a baseline, window by window.
#[derive(Debug, Clone)]
pub struct Watch {
    config: DriftConfig,
    baseline: Option<Profile>,
    window: Profile,
    /// All rows since the last promotion or load, for a new baseline.
    since: Profile,
    alarms: [(Signal, Alarm); 6],
    /// What the latest window said.
    readings: Vec<Reading>,
}

impl Watch {
    /// A watch with `baseline`, or one that learns its own from the first rows.
    pub fn new(config: DriftConfig, baseline: Option<Profile>) -> Self {
        let alarms = alarms(&config);
        Self {
            config,
            baseline,
            window: Profile::default(),
            since: Profile::default(),
            alarms,
            readings: Vec::new(),
        }
    }

    /// Takes a row in.
    pub fn observe(&mut self, row: &Row<'_>) -> Windowed {
        // Beyond this the counts say nothing new, and the sums lose bits.
        if self.since.rows < 10_000_000 {
            self.since.observe(row);
        }
        let Some(baseline) = &self.baseline else {
            if self.since.rows < self.config.learn_rows {
                return Windowed::Counted;
            }
            self.rebase();
            return Windowed::Learnt;
        };
        self.window.observe(row);
        if self.window.rows < self.config.window_rows {
            return Windowed::Counted;
        }
        let window = std::mem::take(&mut self.window);
        let readings: Vec<Reading> = self
            .alarms
            .iter_mut()
            .filter_map(|(signal, alarm)| compare(*signal, alarm, baseline, &window))
            .collect();
        self.readings.clone_from(&readings);
        Windowed::Full(readings)
    }

    /// Makes what was seen since the last time the baseline, if it is enough: a window at least.
    pub fn rebase(&mut self) -> bool {
        if self.since.rows < self.config.window_rows {
            return false;
        }
        self.baseline = Some(std::mem::take(&mut self.since));
        self.window = Profile::default();
        self.alarms = alarms(&self.config);
        self.readings.clear();
        true
    }

    /// The baseline, once there is one.
    pub fn baseline(&self) -> Option<&Profile> {
        self.baseline.as_ref()
    }

    /// What the latest window said of each signal; nothing before the first.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// The worst state of any signal.
    pub fn state(&self) -> State {
        let states = self.alarms.iter().map(|(_, alarm)| alarm.state());
        states.max().unwrap_or_default()
    }
}

fn alarms(config: &DriftConfig) -> [(Signal, Alarm); 6] {
    let new = |warning, drifted| Alarm::new(warning, drifted, config.release, config.windows);
    let psi = new(config.psi_warning, config.psi_drifted);
    [
        (Signal::Output, psi),
        (Signal::Confidence, psi),
        (Signal::Length, psi),
        (Signal::Unknown, psi),
        (
            Signal::Embedding,
            new(config.centroid_warning, config.centroid_drifted),
        ),
        (Signal::Language, psi),
    ]
}

/// `None` for a signal that the model doesn't have.
fn compare(
    signal: Signal,
    alarm: &mut Alarm,
    baseline: &Profile,
    window: &Profile,
) -> Option<Reading> {
    let counts = |profile| -> &[u64] {
        let profile: &Profile = profile;
        match signal {
            Signal::Output => &profile.output,
            Signal::Confidence => &profile.confidence,
            Signal::Length => &profile.length,
            Signal::Unknown => &profile.unknown,
            Signal::Embedding | Signal::Language => &[],
        }
    };
    let (value, divergence) = if signal == Signal::Embedding {
        let (before, now) = (&baseline.embedding, &window.embedding);
        if before.n == 0 || now.n == 0 {
            return None;
        }
        let shift = centroid_shift(before, now);
        (shift, 1.0 - centroid_cosine(before, now))
    } else if signal == Signal::Language {
        if baseline.language.is_empty() || window.language.is_empty() {
            return None;
        }
        let (before, now) = aligned(&baseline.language, &window.language);
        (
            stability_index(&before, &now),
            jensen_shannon(&before, &now),
        )
    } else {
        let (before, now) = (counts(baseline), counts(window));
        if before.is_empty() || now.is_empty() {
            return None;
        }
        (stability_index(before, now), jensen_shannon(before, now))
    };
    Some(Reading {
        signal,
        value,
        divergence,
        state: alarm.observe(value),
    })
}
