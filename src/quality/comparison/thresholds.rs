//! Whether a comparison's figures hold what is asked of them.

use serde::Serialize;

use super::Figures;
use crate::config::{Task, Thresholds};

/// A threshold that doesn't hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Breach {
    /// The threshold's key, such as `min_agreement`.
    pub name: &'static str,
    /// The figure found; `None` where it was not measured.
    pub found: Option<f64>,
    /// The bound.
    pub allowed: f64,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rule = if self.name.starts_with("max_") {
            "at most"
        } else {
            "at least"
        };
        match self.found {
            Some(found) => write!(f, "{}: found {}; {rule} ", self.name, Rounded(found)),
            None => write!(f, "{}: not measured; {rule} ", self.name),
        }?;
        write!(f, "{}", Rounded(self.allowed))
    }
}

/// A number with as many digits as matter here.
struct Rounded(f64);

impl std::fmt::Display for Rounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.6}", self.0);
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(text)
    }
}

impl Thresholds {
    /// The thresholds that `figures` break; one whose figure wasn't measured is broken.
    pub fn check(&self, figures: &Figures) -> Vec<Breach> {
        self.bounds()
            .filter_map(|bound| {
                let found = figures.bounded_by(bound.name);
                let holds = found.is_some_and(|found| {
                    if bound.is_most {
                        found <= bound.allowed
                    } else {
                        found >= bound.allowed
                    }
                });
                (!holds).then_some(Breach {
                    name: bound.name,
                    found,
                    allowed: bound.allowed,
                })
            })
            .collect()
    }

    /// The thresholds set that models of `task` have no figure for, and would always break.
    pub fn foreign_to(&self, task: Task) -> Vec<&'static str> {
        self.bounds()
            .map(|bound| bound.name)
            .filter(|name| !applies(name, task))
            .collect()
    }
}

fn applies(threshold: &str, task: Task) -> bool {
    match threshold {
        "min_mean_cosine" | "min_cosine_p5" | "min_neighbour_overlap" => task == Task::Embed,
        "min_spearman" | "min_kendall" => matches!(task, Task::Embed | Task::Rerank),
        "min_label_agreement" => matches!(task, Task::Classify | Task::Tokens),
        "max_kl" => matches!(task, Task::Classify | Task::Generate),
        "max_js" | "max_probability_difference" => task == Task::Classify,
        "min_top1_agreement" | "max_score_difference" => task == Task::Rerank,
        "min_span_f1" => task == Task::Tokens,
        "min_token_agreement" | "min_exact_match" | "max_perplexity_ratio" => {
            task == Task::Generate
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Activation, quality::comparison::Comparison};

    fn figures() -> Figures {
        let mut comparison = Comparison::new(Task::Embed, Activation::Softmax);
        comparison.observe_embeddings(&[1.0, 0.0], &[1.0, 0.0]);
        comparison.observe_embeddings(&[1.0, 0.0], &[0.0, 1.0]);
        comparison.figures()
    }

    #[test]
    fn a_breach_names_what_was_found_and_what_is_allowed() {
        let thresholds = Thresholds {
            min_mean_cosine: Some(0.99),
            min_rows: Some(2.0),
            ..Thresholds::default()
        };
        let breaches = thresholds.check(&figures());
        assert_eq!(breaches.len(), 1);
        assert_eq!(
            breaches[0].to_string(),
            "min_mean_cosine: found 0.5; at least 0.99"
        );
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let thresholds = Thresholds {
            max_time_ratio: Some(2.0),
            ..Thresholds::default()
        };
        let breaches = thresholds.check(&figures());
        assert_eq!(
            breaches[0].to_string(),
            "max_time_ratio: not measured; at most 2"
        );
    }

    #[test]
    fn thresholds_of_another_task_are_named() {
        let thresholds = Thresholds {
            min_agreement: Some(0.9),
            max_js: Some(0.1),
            ..Thresholds::default()
        };
        assert_eq!(thresholds.foreign_to(Task::Embed), ["max_js"]);
        assert!(thresholds.foreign_to(Task::Classify).is_empty());
    }
}
