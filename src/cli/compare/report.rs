//! What the comparison found, as data: what JSON, tables and pictures are made of.

use serde::Serialize;

use super::{judge::Findings, measure::Pace};
use crate::{
    cli::page::{NOT_MEASURED, maybe, number},
    config::{Task, Thresholds},
    quality::comparison::{Detail, Figures, Quantiles},
};

/// What the comparison found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Ferry's version.
    pub ferry: &'static str,
    /// What both models do.
    pub task: Task,
    /// What is compared with.
    pub reference: SideReport,
    /// What is judged.
    pub candidate: SideReport,
    /// Where the rows come from.
    pub sources: Vec<String>,
    /// How far they agree.
    pub figures: Figures,
    /// Thresholds, and whether they hold.
    pub thresholds: Vec<Verdict>,
    /// Whether all do.
    pub holds: bool,
    /// A classifier's labels, in the order of its confusion matrix.
    pub labels: Vec<String>,
    /// What stands out.
    #[serde(flatten)]
    pub findings: Findings,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// A side, as it is shown.
#[derive(Debug, Serialize)]
pub struct SideReport {
    /// As the user named it.
    pub name: String,
    /// The version that answered; empty for files given by path.
    pub version: String,
    /// Bytes of its weights, where they are known.
    pub memory_bytes: Option<u64>,
    /// How fast it is.
    #[serde(flatten)]
    pub pace: Pace,
}

/// A threshold, and whether it holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Its key.
    pub name: &'static str,
    /// The figure; `None` where it was not measured.
    pub found: Option<f64>,
    /// The bound.
    pub allowed: f64,
    /// Whether the figure may not be more than it; otherwise, not less.
    pub is_most: bool,
    /// Whether it holds.
    pub holds: bool,
}

/// A line of the table that sets both sides against each other.
#[derive(Debug, PartialEq, Serialize)]
pub struct SideLine {
    /// What it tells.
    pub name: &'static str,
    /// Of the reference.
    pub reference: String,
    /// Of the candidate.
    pub candidate: String,
    /// Candidate's over reference's.
    pub ratio: String,
}

/// A line of the table of figures.
#[derive(Debug, PartialEq, Serialize)]
pub struct FigureLine {
    /// What it tells.
    pub name: &'static str,
    /// The figure, or the mean of a distribution.
    pub value: String,
    /// p1, p5, p50, p95 and p99 of a distribution; else empty.
    pub quantiles: Vec<String>,
}

impl Verdict {
    /// The verdicts on `figures`, a threshold each.
    pub fn all(thresholds: &Thresholds, figures: &Figures) -> Vec<Self> {
        let breaches = thresholds.check(figures);
        let verdicts = thresholds.bounds().map(|bound| Self {
            name: bound.name,
            found: figures.bounded_by(bound.name),
            allowed: bound.allowed,
            is_most: bound.is_most,
            holds: !breaches.iter().any(|breach| breach.name == bound.name),
        });
        verdicts.collect()
    }

    /// The rule in words, such as `at least 0.99`.
    pub fn rule(&self) -> String {
        let rule = if self.is_most { "at most" } else { "at least" };
        format!("{rule} {}", number(self.allowed))
    }
}

impl Report {
    /// What `agreement` means here.
    pub fn meaning_of_agreement(&self) -> &'static str {
        match &self.figures.detail {
            Detail::Embed(found) if found.cosine.is_some() => "mean cosine of a text's two vectors",
            Detail::Embed(_) => "Spearman's correlation of the similarities between texts",
            Detail::Classify(_) => "share of texts of the same label",
            Detail::Rerank(_) => "mean of Kendall's τ of a query's scores",
            Detail::Tokens(_) => "F1 of the candidate's spans",
            Detail::Generate(found) if found.token_agreement.is_some() => {
                "share of the text's tokens in whose place both hold the same most likely"
            }
            Detail::Generate(_) => "mean share of tokens generated alike",
        }
    }

    /// Both sides against each other. What was not measured of either has no line.
    pub fn side_lines(&self) -> Vec<SideLine> {
        let (ours, theirs) = (&self.reference, &self.candidate);
        let mebibytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        let pace = |of: fn(&Pace) -> Option<f64>| (of(&ours.pace), of(&theirs.pace));
        let mut lines = vec![
            (
                "weights, MiB",
                (mebibytes(ours.memory_bytes), mebibytes(theirs.memory_bytes)),
            ),
            (self.rows_name(), pace(|pace| pace.rows_per_second)),
            (
                "prefill, tokens/s",
                pace(|pace| pace.prefill_tokens_per_second),
            ),
            (
                "decode, tokens/s",
                pace(|pace| pace.decode_tokens_per_second),
            ),
        ];
        if let Detail::Generate(found) = &self.figures.detail {
            lines.extend([
                (
                    "perplexity of the text",
                    (found.reference_perplexity, found.candidate_perplexity),
                ),
                (
                    "bits a byte of the text",
                    (found.reference_bits_per_byte, found.candidate_bits_per_byte),
                ),
                (
                    "perplexity of its own answers",
                    (
                        found.reference_generated_perplexity,
                        found.candidate_generated_perplexity,
                    ),
                ),
            ]);
        }
        let mut lines: Vec<SideLine> = lines
            .into_iter()
            .filter(|(_, (ours, theirs))| ours.is_some() || theirs.is_some())
            .map(|(name, (ours, theirs))| SideLine {
                name,
                reference: maybe(ours),
                candidate: maybe(theirs),
                ratio: maybe(ours.zip(theirs).map(|(ours, theirs)| theirs / ours)),
            })
            .collect();
        if let Some(ratio) = self.figures.cost.time_ratio {
            lines.push(SideLine {
                name: "time for the same work",
                reference: "1".to_owned(),
                candidate: number(ratio),
                ratio: number(ratio),
            });
        }
        lines
    }

    /// The figures of the task.
    pub fn figure_lines(&self) -> Vec<FigureLine> {
        let one = |name, value: Option<f64>| FigureLine {
            name,
            value: maybe(value),
            quantiles: Vec::new(),
        };
        let count = |name, value: u64| FigureLine {
            name,
            value: value.to_string(),
            quantiles: Vec::new(),
        };
        let many = |name, spread: Option<Quantiles>| FigureLine {
            name,
            value: maybe(spread.map(|spread| spread.mean)),
            quantiles: spread.map_or_else(Vec::new, |spread| {
                let shown = [spread.p1, spread.p5, spread.p50, spread.p95, spread.p99];
                shown.map(number).to_vec()
            }),
        };
        let mut lines = match &self.figures.detail {
            Detail::Embed(found) => vec![
                many("cosine", found.cosine),
                one("Spearman's ρ of similarities", found.spearman),
                one("Kendall's τ of similarities", found.kendall),
                one("nearest neighbours in common", found.neighbour_overlap),
            ],
            Detail::Classify(found) => vec![
                one("same label", found.label_agreement),
                many("Jensen-Shannon, bits", found.js),
                many("Kullback-Leibler, nats", found.kl),
                many("largest difference of a text", found.max_difference),
                many("shift of confidence", found.confidence_shift),
            ],
            Detail::Rerank(found) => vec![
                count("documents", found.documents),
                one("same best document", found.top1_agreement),
                many("Spearman's ρ of a query", found.spearman),
                many("Kendall's τ of a query", found.kendall),
                many("difference of scores", found.score_difference),
                one("mean absolute difference", found.mean_absolute_difference),
            ],
            Detail::Tokens(found) => vec![
                one("F1 of spans", found.span_f1),
                one("precision", found.span_precision),
                one("recall", found.span_recall),
                count("spans of the reference", found.reference_spans),
                count("spans of the candidate", found.candidate_spans),
                one("texts with the same spans", found.same_spans),
                many("shift of confidence", found.confidence_shift),
            ],
            Detail::Generate(found) => vec![
                one("same most likely token", found.token_agreement),
                one("perplexity ratio", found.perplexity_ratio),
                many("shift of a token's logprob", found.logprob_difference),
                many("Kullback-Leibler, nats", found.kl),
                one("same text to the end", found.exact_match),
                many("share of tokens alike", found.shared_prefix),
                many("first token that differs", found.first_divergence),
            ],
        };
        lines.retain(|line| line.value != NOT_MEASURED);
        lines
    }

    fn rows_name(&self) -> &'static str {
        if self.task == Task::Rerank {
            "documents/s"
        } else {
            "texts/s"
        }
    }
}
