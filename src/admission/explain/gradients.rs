//! Explains by integrated gradients: the row is answered once as any other, and the model's gradient
//! engine walks from a text without words to it.

use std::sync::Arc;

use super::{Answer, ExplainCall, Explained, Explanation, Texts, label_of, missing, unexpected};
use crate::{
    admission::{Admission, CallContext},
    engine::GradientWork,
    error::{RequestError, Stage},
    models::RowOutput,
    quality::explain::{
        Attribution, DEFAULT_POINTS, MAX_SAMPLES, Objective, gather, gauss_legendre,
    },
    repository::ServedModel,
    text::{EncodedRow, RowInput, TextEncoder},
};

impl Admission {
    /// As [`Admission::explain`], by integrated gradients.
    pub(super) async fn explain_by_gradients(
        &self,
        model: &Arc<ServedModel>,
        asked: &ExplainCall,
        texts: &Texts<'_>,
        context: &CallContext,
    ) -> Result<Explanation, RequestError> {
        let encoder = model.encoder()?;
        let engine = encoder
            .gradients
            .as_ref()
            .map_err(|allowed| RequestError::invalid("method", "INTEGRATED_GRADIENTS", allowed))?;
        let points = match asked.samples {
            0 => DEFAULT_POINTS,
            samples if samples <= MAX_SAMPLES => samples,
            samples => {
                let allowed = format!("at most {MAX_SAMPLES}, or 0 for as many as usual");
                return Err(RequestError::invalid("samples", samples, allowed));
            }
        };
        let token = baseline_token(&encoder.text, &asked.replacement)?;
        let encoded = self.located(model, asked, &encoder.text).await?;
        if encoded.ids.len() > engine.max_tokens() {
            return Err(RequestError::invalid(
                asked.call.field,
                format_args!("{} tokens", encoded.ids.len()),
                format_args!(
                    "at most {} for integrated gradients, which keep all that the layers make; other \
                     methods take more",
                    engine.max_tokens()
                ),
            ));
        }
        let answers = self
            .answers(model, &asked.call, asked.call.rows.clone(), context)
            .await?;
        let whole = answers.first().ok_or_else(missing)?;
        let label = label_of(model, &asked.explained, whole)?;
        let (objective, reference) = match &asked.explained {
            Explained::Similarity { reference } => {
                let rows = vec![RowInput::Text(reference.clone())];
                let answer = self.answers(model, &asked.call, rows, context).await?.pop();
                let answer = answer.ok_or_else(missing)?;
                let RowOutput::Embedding(vector) = answer.output.clone() else {
                    return Err(unexpected());
                };
                (Objective::Cosine(vector), Some(answer))
            }
            explained => (objective(model, explained, label), None),
        };
        if !objective.is_smooth() {
            let allowed = format!(
                "LOGIT: the calibration of '{}' is isotonic, and a curve of steps has no slope",
                model.name
            );
            return Err(RequestError::invalid("output", "PROBABILITY", allowed));
        }
        let (objective, parts) = (Arc::new(objective), Parts::of(texts, &encoded));
        let slope = Arc::clone(&objective);
        let integrating = engine.integrate(GradientWork {
            baseline: parts.baseline(&encoded, token),
            ids: encoded.ids.clone(),
            type_ids: encoded.type_ids.clone(),
            points: gauss_legendre(points),
            slope: Arc::new(move |outputs| slope.slope(outputs)),
            deadline: context.deadline,
        });
        let integrated = match context.deadline {
            None => integrating.await?,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), integrating)
                .await
                .map_err(|_| RequestError::DeadlineExceeded {
                    stage: Stage::Execute,
                })??,
        };
        let shares = parts.gather(texts, &encoded, &integrated.shares);
        let (base, value) = (
            objective.value(&integrated.base),
            objective.value(&integrated.whole),
        );
        let all = answers.iter().chain(&reference);
        let queue = all.clone().map(|answer: &Answer| answer.queue).max();
        Ok(Explanation {
            attribution: Attribution {
                additivity_error: (base + shares.iter().sum::<f64>() - value).abs(),
                shares,
                base,
                value,
                exact: false,
            },
            label: label
                .and_then(|label| model.labels.get(label).cloned())
                .unwrap_or_default(),
            // Both ends of the line, the points between, and what was asked through the queue.
            rows: points + 2 + all.clone().count(),
            tokens: encoded.ids.len(),
            truncated: encoded.truncated,
            queue: queue.unwrap_or_default().max(integrated.queue),
            execute: integrated.execute + all.map(|answer| answer.execute).sum(),
            query: texts.query_features(),
            text: texts.text.features().to_vec(),
        })
    }

    /// The row's tokens, with where they stand.
    async fn located(
        &self,
        model: &ServedModel,
        asked: &ExplainCall,
        text: &Arc<TextEncoder>,
    ) -> Result<EncodedRow, RequestError> {
        let mut call = asked.call.clone();
        call.options.offsets = true;
        let rows = self.encode_rows(text, model.task(), call).await?;
        rows.into_iter().next().ok_or_else(missing)?
    }
}

/// The token whose embedding stands in every word's place: what the request wants there, else the
/// padding or the mask.
fn baseline_token(text: &TextEncoder, replacement: &str) -> Result<u32, RequestError> {
    if replacement.is_empty() {
        return text.blank().ok_or_else(|| {
            let allowed =
                "a token, such as one for unknown words: this model has neither padding nor mask";
            RequestError::invalid("replacement", "nothing", allowed)
        });
    }
    text.single_token(replacement).ok_or_else(|| {
        let allowed = "one token of the model's vocabulary with INTEGRATED_GRADIENTS";
        RequestError::invalid("replacement", replacement, allowed)
    })
}

fn objective(model: &ServedModel, explained: &Explained, label: Option<usize>) -> Objective {
    let label = label.unwrap_or_default();
    match explained {
        Explained::Label { logit: true, .. } | Explained::Score { logit: true, .. } => {
            Objective::Logit(label)
        }
        _ => Objective::Probability {
            label,
            activation: model.activation,
            calibration: model.calibration.clone(),
        },
    }
}

/// Which tokens get shares.
struct Parts {
    /// Whether a token is of a word whose share is wanted.
    counts: Vec<bool>,
}

impl Parts {
    fn of(texts: &Texts<'_>, encoded: &EncodedRow) -> Self {
        let counts_query = texts.query.as_ref().is_some_and(|(_, counts)| *counts);
        let counts = (0..encoded.ids.len()).map(|at| {
            let in_text = texts.query.is_none() || encoded.is_second(at);
            encoded.is_word(at) && (in_text || counts_query)
        });
        Self {
            counts: counts.collect(),
        }
    }

    fn baseline(&self, encoded: &EncodedRow, token: u32) -> Vec<u32> {
        let ids = encoded.ids.iter().zip(&self.counts);
        ids.map(|(&id, &counts)| if counts { token } else { id })
            .collect()
    }

    /// Tokens' shares to features', the query's first.
    fn gather(&self, texts: &Texts<'_>, encoded: &EncodedRow, shares: &[f64]) -> Vec<f64> {
        let of = |second: bool| -> Vec<_> {
            (0..encoded.ids.len())
                .filter(|&at| self.counts[at] && encoded.is_second(at) == second)
                .filter_map(|at| {
                    let &(start, end) = encoded.offsets.get(at)?;
                    Some((start as usize..end as usize, *shares.get(at)?))
                })
                .collect()
        };
        let mut all = match &texts.query {
            Some((query, true)) => gather(query.features(), &of(false)),
            _ => Vec::new(),
        };
        all.extend(gather(texts.text.features(), &of(texts.query.is_some())));
        all
    }
}
