//! How far two models' answers agree: a reference's and a candidate's, row by row.
//!
//! Pure and incremental: no I/O, no clock, bounded memory (some 100 KiB a comparison, of embeddings up
//! to 2 MiB), the same figures for the same rows in the same order. `ferry compare` reads rows from a
//! file, shadow traffic brings them as they come; comparisons of parts of a stream merge into one.
//!
//! ```
//! use ferry::{
//!     config::{Activation, Task, Thresholds},
//!     quality::comparison::Comparison,
//! };
//!
//! let mut comparison = Comparison::new(Task::Classify, Activation::Softmax);
//! comparison.observe_probabilities(&[0.9, 0.1], &[0.8, 0.2]);
//! let figures = comparison.figures();
//! assert_eq!(figures.agreement, Some(1.0));
//! let wanted = Thresholds { max_js: Some(0.001), ..Thresholds::default() };
//! assert_eq!(wanted.check(&figures)[0].name, "max_js");
//! ```

mod classes;
mod distribution;
mod divergence;
mod embeddings;
mod figures;
mod generation;
mod ranks;
#[cfg(test)]
mod reference_tests;
mod reservoir;
mod scores;
mod thresholds;
mod tokens;

pub use classes::{ClassComparison, ClassFigures};
pub use distribution::{Distribution, Quantiles, quantile};
pub use divergence::{jensen_shannon, kullback_leibler};
pub use embeddings::{EmbeddingComparison, EmbeddingFigures, cosine};
pub use figures::{Cost, Detail, Failures, Figures};
pub use generation::{GeneratedText, GenerationComparison, GenerationFigures, GivenToken};
pub use ranks::{kendall, spearman};
pub use reservoir::Reservoir;
pub use scores::{ScoreComparison, ScoreFigures};
pub use thresholds::Breach;
pub use tokens::{TokenComparison, TokenFigures};

use super::LabelledSpan;
use crate::config::{Activation, Task};

/// One of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is compared with.
    Reference,
    /// What is judged.
    Candidate,
}

/// Two models' answers to the same rows. Rows of another task than its own are not taken, and counted.
#[derive(Debug, Clone)]
pub struct Comparison {
    task: Task,
    rows: u64,
    failures: Failures,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Embed(Box<EmbeddingComparison>),
    Classify(Box<ClassComparison>),
    Rerank(Box<ScoreComparison>),
    Tokens(Box<TokenComparison>),
    Generate(Box<GenerationComparison>),
}

impl Comparison {
    /// A comparison of two models of `task`; `activation` matters to classifiers alone.
    pub fn new(task: Task, activation: Activation) -> Self {
        let kind = match task {
            Task::Embed => Kind::Embed(Box::default()),
            Task::Classify => Kind::Classify(Box::new(ClassComparison::new(activation))),
            Task::Rerank => Kind::Rerank(Box::default()),
            Task::Tokens => Kind::Tokens(Box::default()),
            Task::Generate => Kind::Generate(Box::default()),
        };
        Self {
            task,
            rows: 0,
            failures: Failures::default(),
            kind,
        }
    }

    /// What both models do.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Rows that both sides answered.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Counts a row that one side answered and the other failed on.
    pub fn observe_failure(&mut self, failed: Side) {
        match failed {
            Side::Reference => self.failures.reference += 1,
            Side::Candidate => self.failures.candidate += 1,
        }
    }

    /// Takes both sides' embeddings of a text in.
    pub fn observe_embeddings(&mut self, reference: &[f32], candidate: &[f32]) {
        if let Kind::Embed(embeddings) = &mut self.kind {
            embeddings.observe(reference, candidate);
            self.rows += 1;
        } else {
            self.failures.other_task += 1;
        }
    }

    /// Takes both sides' class probabilities of a text in, labels in the same order.
    pub fn observe_probabilities(&mut self, reference: &[f32], candidate: &[f32]) {
        if let Kind::Classify(classes) = &mut self.kind {
            classes.observe(reference, candidate);
            self.rows += 1;
        } else {
            self.failures.other_task += 1;
        }
    }

    /// Takes both sides' scores of one query's documents in, documents in the same order.
    pub fn observe_scores(&mut self, reference: &[f32], candidate: &[f32]) {
        if let Kind::Rerank(scores) = &mut self.kind {
            scores.observe(reference, candidate);
            self.rows += 1;
        } else {
            self.failures.other_task += 1;
        }
    }

    /// Takes both sides' spans of a text in.
    pub fn observe_spans(&mut self, reference: &[LabelledSpan], candidate: &[LabelledSpan]) {
        if let Kind::Tokens(tokens) = &mut self.kind {
            tokens.observe_spans(reference, candidate);
            self.rows += 1;
        } else {
            self.failures.other_task += 1;
        }
    }

    /// Takes the best label of each of a text's tokens in, beside its spans.
    pub fn observe_token_labels(&mut self, reference: &[usize], candidate: &[usize]) {
        if let Kind::Tokens(tokens) = &mut self.kind {
            tokens.observe_labels(reference, candidate);
        }
    }

    /// Takes both sides' continuations of a prompt in.
    pub fn observe_generated(&mut self, reference: GeneratedText, candidate: GeneratedText) {
        if let Kind::Generate(generation) = &mut self.kind {
            generation.observe_generated(reference, candidate);
            self.rows += 1;
        } else {
            self.failures.other_task += 1;
        }
    }

    /// Takes both sides' scores of a given text in; see [`GenerationComparison::observe_given`].
    pub fn observe_given(
        &mut self,
        bytes: usize,
        reference: &[GivenToken],
        candidate: &[GivenToken],
    ) {
        if let Kind::Generate(generation) = &mut self.kind {
            generation.observe_given(bytes, reference, candidate);
            self.rows += 1;
        } else {
            self.failures.other_task += 1;
        }
    }

    /// Takes another comparison of the same two models in; one of another task isn't taken.
    pub fn merge(&mut self, other: Self) {
        let rows = other.rows;
        match (&mut self.kind, other.kind) {
            (Kind::Embed(mine), Kind::Embed(theirs)) => mine.merge(*theirs),
            (Kind::Classify(mine), Kind::Classify(theirs)) => mine.merge(*theirs),
            (Kind::Rerank(mine), Kind::Rerank(theirs)) => mine.merge(*theirs),
            (Kind::Tokens(mine), Kind::Tokens(theirs)) => mine.merge(*theirs),
            (Kind::Generate(mine), Kind::Generate(theirs)) => mine.merge(*theirs),
            _ => {
                self.failures.other_task += rows;
                return;
            }
        }
        self.rows += rows;
        self.failures.reference += other.failures.reference;
        self.failures.candidate += other.failures.candidate;
        self.failures.other_task += other.failures.other_task;
    }

    /// One number for how far the sides agree, 1 being wholly; `None` before the first row. Cheap, for
    /// all but embeddings of different dimensions.
    ///
    /// | task | agreement |
    /// | --- | --- |
    /// | embed | mean cosine; of different dimensions, Spearman's ρ of the similarities between texts |
    /// | classify | share of texts of the same label, or set of labels |
    /// | rerank | mean over queries of Kendall's τ-b of their documents' scores |
    /// | tokens | F1 of the candidate's spans, the reference's being right |
    /// | generate | share of given texts' tokens with the same best token; where no text was given, the mean share of tokens generated alike |
    ///
    /// Negative ones are 0.
    pub fn agreement(&self) -> Option<f64> {
        match &self.kind {
            Kind::Embed(embeddings) => embeddings.agreement(),
            Kind::Classify(classes) => classes.agreement(),
            Kind::Rerank(scores) => scores.agreement(),
            Kind::Tokens(tokens) => tokens.agreement(),
            Kind::Generate(generation) => generation.agreement(),
        }
    }

    /// What was seen so far. Of embeddings this compares each of up to 256 texts with each other:
    /// some 20 ms; for reports, not for every request.
    pub fn figures(&self) -> Figures {
        Figures {
            task: self.task,
            rows: self.rows,
            agreement: self.agreement(),
            failures: self.failures,
            cost: Cost::default(),
            detail: match &self.kind {
                Kind::Embed(embeddings) => Detail::Embed(embeddings.figures()),
                Kind::Classify(classes) => Detail::Classify(classes.figures()),
                Kind::Rerank(scores) => Detail::Rerank(scores.figures()),
                Kind::Tokens(tokens) => Detail::Tokens(tokens.figures()),
                Kind::Generate(generation) => Detail::Generate(generation.figures()),
            },
        }
    }

    /// The comparison of embeddings, if it is one.
    pub fn embeddings(&self) -> Option<&EmbeddingComparison> {
        match &self.kind {
            Kind::Embed(embeddings) => Some(embeddings),
            _ => None,
        }
    }

    /// The comparison of classifiers, if it is one.
    pub fn classes(&self) -> Option<&ClassComparison> {
        match &self.kind {
            Kind::Classify(classes) => Some(classes),
            _ => None,
        }
    }

    /// The comparison of rerankers, if it is one.
    pub fn scores(&self) -> Option<&ScoreComparison> {
        match &self.kind {
            Kind::Rerank(scores) => Some(scores),
            _ => None,
        }
    }

    /// The comparison of models that generate, if it is one.
    pub fn generation(&self) -> Option<&GenerationComparison> {
        match &self.kind {
            Kind::Generate(generation) => Some(generation),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: [Task; 5] = [
        Task::Embed,
        Task::Classify,
        Task::Rerank,
        Task::Tokens,
        Task::Generate,
    ];

    fn observe_all(comparison: &mut Comparison) {
        comparison.observe_embeddings(&[1.0, 0.0], &[1.0, 0.0]);
        comparison.observe_probabilities(&[0.7, 0.3], &[0.7, 0.3]);
        comparison.observe_scores(&[0.9, 0.2], &[0.9, 0.2]);
        comparison.observe_spans(&[], &[]);
        let text = GeneratedText {
            tokens: &[1, 2],
            logprobs: &[],
        };
        comparison.observe_generated(text, text);
    }

    #[test]
    fn rows_of_another_task_are_counted_and_not_taken() {
        for task in TASKS {
            let mut comparison = Comparison::new(task, Activation::Softmax);
            assert_eq!(comparison.agreement(), None, "{task}");
            observe_all(&mut comparison);
            let figures = comparison.figures();
            assert_eq!(figures.rows, 1, "{task}");
            assert_eq!(figures.failures.other_task, 4, "{task}");
            assert_eq!(figures.agreement, Some(1.0), "{task}");
        }
    }

    #[test]
    fn comparisons_of_parts_merge_into_one() {
        for task in TASKS {
            let mut whole = Comparison::new(task, Activation::Softmax);
            let mut part = whole.clone();
            observe_all(&mut whole);
            observe_all(&mut part);
            part.observe_failure(Side::Candidate);
            whole.merge(part);
            assert_eq!(whole.rows(), 2, "{task}");
            assert_eq!(whole.figures().failures.candidate, 1, "{task}");
            let other = TASKS.into_iter().find(|other| *other != task).unwrap();
            let mut alien = Comparison::new(other, Activation::Softmax);
            observe_all(&mut alien);
            whole.merge(alien);
            assert_eq!(whole.rows(), 2, "{task}");
        }
    }

    #[test]
    fn figures_are_json_without_a_number_that_json_lacks() {
        for task in TASKS {
            let mut comparison = Comparison::new(task, Activation::Softmax);
            serde_json::to_string(&comparison.figures()).unwrap();
            observe_all(&mut comparison);
            let json = serde_json::to_value(comparison.figures()).unwrap();
            assert_eq!(json["task"], task.to_string());
            assert_eq!(json["agreement"], 1.0);
        }
    }
}
