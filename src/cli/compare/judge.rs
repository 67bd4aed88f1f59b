//! Takes both sides' answers to a row and sees how far they agree.

use std::collections::HashMap;

use serde::Serialize;

use super::{
    client::{Answer, Continuation, RowAnswer, Token},
    inputs::Input,
};
use crate::{
    cli::Failure,
    config::{Activation, Task},
    quality::{
        LabelledSpan,
        comparison::{self, Comparison, GeneratedText, GivenToken},
    },
};

/// Rows that agree least, kept for the report.
const LEAST: usize = 10;

/// Rows that failed, kept for the report.
const FAILED: usize = 20;

/// Characters of an input or an answer in the report.
const EXCERPT: usize = 200;

/// Sees how far the answers agree.
#[derive(Debug)]
pub struct Judge {
    comparison: Comparison,
    activation: Option<Activation>,
    /// Labels of a classifier, by name.
    labels: Vec<String>,
    /// Ids of token texts, where the sides' own ids mean different tokens.
    ids: Option<HashMap<String, u32>>,
    findings: Findings,
}

/// What stands out.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    /// The rows that agree least, worst first.
    pub least_alike: Vec<Unlike>,
    /// Rows that a side failed on, the first of them.
    pub failed: Vec<Failed>,
    /// Rows that both sides failed on: they are not compared.
    pub failed_on_both: u64,
}

/// A row on which the sides are not of one mind.
#[derive(Debug, Serialize)]
pub struct Unlike {
    /// Its line in the file.
    pub line: usize,
    /// What was asked.
    pub input: String,
    /// How far the answers agree, 1 being wholly.
    pub agreement: f64,
    /// What the reference says.
    pub reference: String,
    /// What the candidate says.
    pub candidate: String,
}

/// A row without an answer.
#[derive(Debug, Serialize)]
pub struct Failed {
    /// Its line in the file.
    pub line: usize,
    /// Who failed: reference, candidate or both.
    pub side: &'static str,
    /// What was said.
    pub error: String,
}

impl Judge {
    /// A judge of two models of `task`. `activation` is that of a classifier, where it is known.
    /// `same_tokens` tells whether a token's id means the same to both.
    pub fn new(task: Task, activation: Option<Activation>, same_tokens: bool) -> Self {
        Self {
            comparison: Comparison::new(task, activation.unwrap_or(Activation::Softmax)),
            activation,
            labels: Vec::new(),
            ids: (!same_tokens).then(HashMap::new),
            findings: Findings::default(),
        }
    }

    /// The comparison, a classifier's labels by name, and what stands out.
    pub fn finish(self) -> (Comparison, Vec<String>, Findings) {
        (self.comparison, self.labels, self.findings)
    }

    /// Takes both answers to a row in.
    ///
    /// # Errors
    /// When the models' outputs can't be compared at all: classifiers with other labels.
    pub fn observe(
        &mut self,
        input: &Input,
        reference: RowAnswer,
        candidate: RowAnswer,
    ) -> Result<(), Failure> {
        let (ours, theirs) = match (reference, candidate) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(error), Ok(_)) => {
                self.comparison.observe_failure(comparison::Side::Reference);
                self.note_failed(input.line, "reference", &error);
                return Ok(());
            }
            (Ok(_), Err(error)) => {
                self.comparison.observe_failure(comparison::Side::Candidate);
                self.note_failed(input.line, "candidate", &error);
                return Ok(());
            }
            (Err(error), Err(_)) => {
                self.findings.failed_on_both += 1;
                self.note_failed(input.line, "both", &error);
                return Ok(());
            }
        };
        let agreement = match (&ours, &theirs) {
            (Answer::Vector(ours), Answer::Vector(theirs)) => {
                self.comparison.observe_embeddings(ours, theirs);
                comparison::cosine(ours, theirs)
            }
            (Answer::Classes(ours), Answer::Classes(theirs)) => {
                Some(self.observe_classes(ours, theirs)?)
            }
            (Answer::Scores(ours), Answer::Scores(theirs)) => {
                self.comparison.observe_scores(ours, theirs);
                let wide = |side: &[f32]| side.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                comparison::kendall(&wide(ours), &wide(theirs))
            }
            (Answer::Spans(ours), Answer::Spans(theirs)) => {
                self.comparison.observe_spans(ours, theirs);
                Some(shared_spans(ours, theirs))
            }
            (Answer::Text(ours), Answer::Text(theirs)) => Some(self.observe_texts(ours, theirs)),
            _ => return Err("the sides' answers are of different kinds".into()),
        };
        if let Some(agreement) = agreement {
            self.note_unlike(input, agreement, &ours, &theirs);
        }
        Ok(())
    }

    /// Takes both sides' scores of a stretch of text in.
    pub fn observe_given(&mut self, text: &str, ours: &Continuation, theirs: &Continuation) {
        let bytes = text.len() - unscored_bytes(text, &ours.tokens);
        let (our_tops, their_tops) = (self.tops(&ours.tokens), self.tops(&theirs.tokens));
        self.comparison.observe_given(
            bytes,
            &given(&ours.tokens, &our_tops),
            &given(&theirs.tokens, &their_tops),
        );
    }

    fn observe_classes(
        &mut self,
        ours: &[(String, f32)],
        theirs: &[(String, f32)],
    ) -> Result<f64, Failure> {
        let names = |side: &[(String, f32)]| {
            let mut names: Vec<String> = side.iter().map(|class| class.0.clone()).collect();
            names.sort();
            names
        };
        if self.labels.is_empty() {
            self.labels = names(ours);
            self.labels.dedup();
            if self.labels.len() < ours.len() {
                return Err(
                    "labels of the reference have the same name: no telling them apart".into(),
                );
            }
            let sum: f32 = ours.iter().map(|class| class.1).sum();
            if self.activation.is_none() && (sum - 1.0).abs() > 1e-3 {
                self.comparison = Comparison::new(Task::Classify, Activation::Sigmoid);
            }
        }
        for (side, classes) in [("reference", ours), ("candidate", theirs)] {
            if names(classes) != self.labels {
                let (found, expected) = (names(classes).join(", "), self.labels.join(", "));
                return Err(format!("the {side}'s labels are {found}; not {expected}").into());
            }
        }
        let in_order = |side: &[(String, f32)]| {
            let mut sorted = side.to_vec();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            sorted
                .into_iter()
                .map(|class| class.1)
                .collect::<Vec<f32>>()
        };
        let (ours, theirs) = (in_order(ours), in_order(theirs));
        self.comparison.observe_probabilities(&ours, &theirs);
        let furthest = ours.iter().zip(&theirs).map(|(p, q)| (p - q).abs());
        Ok(1.0 - f64::from(furthest.fold(0.0, f32::max)))
    }

    /// Returns the share of tokens alike, up to the first that differs.
    fn observe_texts(&mut self, ours: &Continuation, theirs: &Continuation) -> f64 {
        let logprobs = |side: &Continuation| -> Vec<f32> {
            side.tokens
                .iter()
                .filter_map(|token| token.logprob)
                .collect()
        };
        let mut ids = |side: &Continuation| -> Vec<u32> {
            let tokens = side.tokens.iter();
            tokens.map(|token| self.id(token.id, &token.text)).collect()
        };
        let (our_ids, their_ids) = (ids(ours), ids(theirs));
        let (our_logprobs, their_logprobs) = (logprobs(ours), logprobs(theirs));
        let text = |tokens, logprobs| GeneratedText { tokens, logprobs };
        self.comparison.observe_generated(
            text(&our_ids, &our_logprobs),
            text(&their_ids, &their_logprobs),
        );
        let shared = our_ids.iter().zip(&their_ids).take_while(|(a, b)| a == b);
        let longer = our_ids.len().max(their_ids.len()).max(1);
        let alike = our_ids == their_ids;
        if alike {
            1.0
        } else {
            shared.count() as f64 / longer as f64
        }
    }

    fn tops(&mut self, tokens: &[Token]) -> Vec<Vec<(u32, f32)>> {
        let mut all = Vec::with_capacity(tokens.len());
        for token in tokens {
            let mut top = Vec::with_capacity(token.top.len());
            for (id, text, logprob) in &token.top {
                top.push((self.id(*id, text), *logprob));
            }
            all.push(top);
        }
        all
    }

    /// A token's id, or where the sides' ids mean different tokens one of its text.
    fn id(&mut self, id: u32, text: &str) -> u32 {
        let Some(ids) = &mut self.ids else {
            return id;
        };
        let next = ids.len() as u32;
        *ids.entry(text.to_owned()).or_insert(next)
    }

    fn note_failed(&mut self, line: usize, side: &'static str, error: &str) {
        if self.findings.failed.len() < FAILED {
            let error = excerpt(error);
            self.findings.failed.push(Failed { line, side, error });
        }
    }

    fn note_unlike(&mut self, input: &Input, agreement: f64, ours: &Answer, theirs: &Answer) {
        let least = &mut self.findings.least_alike;
        let place = least.partition_point(|other| other.agreement <= agreement);
        if agreement > 1.0 - 1e-9 || place == LEAST {
            return;
        }
        let unlike = Unlike {
            line: input.line,
            input: excerpt(input.row.describe()),
            agreement,
            reference: excerpt(&describe(ours, input)),
            candidate: excerpt(&describe(theirs, input)),
        };
        least.insert(place, unlike);
        least.truncate(LEAST);
    }
}

/// The tokens that have a score.
fn given<'a>(tokens: &[Token], tops: &'a [Vec<(u32, f32)>]) -> Vec<GivenToken<'a>> {
    let scored = tokens.iter().zip(tops).filter_map(|(token, top)| {
        Some(GivenToken {
            logprob: token.logprob?,
            top,
        })
    });
    scored.collect()
}

/// Bytes of the first token where no score is known of it: a text begins without anything before.
fn unscored_bytes(text: &str, tokens: &[Token]) -> usize {
    let first = tokens.first().filter(|first| first.logprob.is_none());
    first.map_or(0, |first| {
        if text.starts_with(&first.text) {
            first.text.len()
        } else {
            0
        }
    })
}

/// F1 of two lists of spans; 1 of none.
fn shared_spans(ours: &[LabelledSpan], theirs: &[LabelledSpan]) -> f64 {
    let same = |a: &LabelledSpan, b: &LabelledSpan| {
        (a.start, a.end, &a.label) == (b.start, b.end, &b.label)
    };
    let shared = ours
        .iter()
        .filter(|span| theirs.iter().any(|other| same(span, other)));
    match ours.len() + theirs.len() {
        0 => 1.0,
        all => 2.0 * shared.count() as f64 / all as f64,
    }
}

fn describe(answer: &Answer, input: &Input) -> String {
    match answer {
        // Numbers that say nothing to a reader.
        Answer::Vector(_) => String::new(),
        Answer::Classes(classes) => {
            let best = classes.iter().max_by(|a, b| a.1.total_cmp(&b.1));
            best.map_or_else(String::new, |(label, p)| format!("{label} {p:.3}"))
        }
        Answer::Scores(scores) => {
            let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            let (Some(best), super::inputs::Row::Query { documents, .. }) = (best, &input.row)
            else {
                return String::new();
            };
            format!("{:.3} {}", scores[best], documents[best])
        }
        Answer::Spans(spans) => {
            let spans = spans.iter();
            let named: Vec<_> = spans
                .map(|span| format!("{} {}–{}", span.label, span.start, span.end))
                .collect();
            if named.is_empty() {
                "no span".to_owned()
            } else {
                named.join(", ")
            }
        }
        Answer::Text(text) => text.text.clone(),
    }
}

/// The beginning of a text, in one line and without what a terminal or a page would obey.
fn excerpt(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut letters = text.chars().map(plain);
    let mut short: String = letters.by_ref().take(EXCERPT).collect();
    if letters.next().is_some() {
        short.push('…');
    }
    short
}
