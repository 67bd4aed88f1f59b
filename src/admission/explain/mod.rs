//! Explains one answer: has its text asked about with words left out, and gives each word its share; or
//! follows the model's gradients (`gradients`).
//!
//! The perturbed rows board the model's queue like any others, at the lowest priority and some at a
//! time, so that an explanation fills what the requests leave free and waits while they don't. Its
//! answers are not kept in the response cache, and nobody gets copies of them.

mod gradients;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Admission, Call, CallContext, board::Watching};
use crate::{
    batching::Priority,
    config::Task,
    error::RequestError,
    models::RowOutput,
    quality::explain::{
        Attribution, Explainer, Feature, MAX_FEATURES, MAX_SAMPLES, Perturbed, Plan, features,
    },
    repository::ServedModel,
    text::RowInput,
};

/// Rows of an explanation that board together, at most.
const ROWS_TOGETHER: usize = 64;
/// How long they may run, as predicted: a request that comes meanwhile waits for them, however urgent it
/// is.
const TIME_TOGETHER: Duration = Duration::from_millis(20);
/// Such groups that are under way at a time: one that runs, and one that waits behind it.
const GROUPS: usize = 2;
/// Explanations that are under way at a time.
pub(super) const MAX_EXPLAINING: usize = 16;

/// How shares are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExplainBy {
    /// Words are left out.
    LeavingOut(Explainer),
    /// The model's gradients, on the way from a text without words.
    IntegratedGradients,
}

impl ExplainBy {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeavingOut(explainer) => explainer.name(),
            Self::IntegratedGradients => "integrated_gradients",
        }
    }
}

/// What is to be explained, and how.
#[derive(Debug, Clone)]
pub struct ExplainCall {
    /// The call with one row: the text whose words get shares, or query and document.
    pub call: Call,
    /// Which number.
    pub explained: Explained,
    /// How.
    pub by: ExplainBy,
    /// Subsets of the words to ask about, or points of the line; 0 for as many as usual.
    pub samples: usize,
    /// Of what is drawn.
    pub seed: u64,
    /// What stands in a left-out word's place.
    pub replacement: String,
    /// Features at most; more words are taken together.
    pub max_features: usize,
}

/// The number that is explained.
#[derive(Debug, Clone, PartialEq)]
pub enum Explained {
    /// A label of a classifier.
    Label {
        /// Which; the best one where it is empty.
        label: String,
        /// Whether its logit, not its probability.
        logit: bool,
    },
    /// How well a document fits a query.
    Score {
        /// Whether the logit, not the probability.
        logit: bool,
        /// Whether the query's words get shares, too.
        query: bool,
    },
    /// The cosine between the text's vector and that of another.
    Similarity {
        /// The other text.
        reference: String,
    },
}

/// An explained answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Query and text by their features, in the order of the shares; the query's come first.
    pub query: Vec<Feature>,
    /// Features of the text.
    pub text: Vec<Feature>,
    /// The shares.
    pub attribution: Attribution,
    /// The label that was explained; empty where there is none.
    pub label: String,
    /// Rows that were run for it.
    pub rows: usize,
    /// Tokens of the whole text.
    pub tokens: usize,
    /// Whether the whole text was cut, so that words at its end have no share.
    pub truncated: bool,
    /// What the slowest row waited.
    pub queue: Duration,
    /// What its rows' batches ran, each row its share.
    pub execute: Duration,
}

/// One row's number, with what it cost.
struct Answer {
    output: RowOutput,
    tokens: usize,
    truncated: bool,
    queue: Duration,
    execute: Duration,
}

impl Admission {
    /// Explains an answer of `model` (from [`Admission::find`]).
    ///
    /// # Errors
    /// [`RequestError`] when the request is wrong, comes too late or finds no room, or one of its rows
    /// does.
    pub async fn explain(
        &self,
        model: &Arc<ServedModel>,
        asked: ExplainCall,
        context: CallContext,
    ) -> Result<Explanation, RequestError> {
        let _place = self.explaining.try_acquire().map_err(|_| {
            let what = format!("{MAX_EXPLAINING} explanations are under way, no more may be");
            let retry_after = Duration::from_millis(200);
            RequestError::Overloaded { what, retry_after }
        })?;
        let row = asked
            .call
            .rows
            .first()
            .ok_or_else(|| RequestError::invalid(asked.call.field, "nothing", "one text"))?;
        asked.call.check_row(0, model.task(), self.limits())?;
        let texts = Texts::of(row, &asked)?;
        let context = CallContext {
            priority: Priority::LOW,
            ..context
        };
        let explainer = match asked.by {
            ExplainBy::LeavingOut(explainer) => explainer,
            ExplainBy::IntegratedGradients => {
                let explaining = self.explain_by_gradients(model, &asked, &texts, &context);
                return explaining.await;
            }
        };
        let plan = plan(&asked, explainer, texts.count())?;
        let ask = |rows: Vec<RowInput>| self.answers(model, &asked.call, rows, &context);

        let mut runs = 0;
        let reference = match &asked.explained {
            Explained::Similarity { reference } => {
                runs += 1;
                let rows = vec![RowInput::Text(reference.clone())];
                let answer = ask(rows).await?.pop();
                Some(answer.ok_or_else(missing)?.output)
            }
            _ => None,
        };
        let (ends, between) = plan.masks().split_at(2);
        let mut answers = ask(ends.iter().map(|mask| texts.render(mask)).collect()).await?;
        let tokens = answers.first().ok_or_else(missing)?.tokens;
        let groups = between.chunks(rows_together(model, tokens)).map(|masks| {
            let (texts, ask) = (&texts, &ask);
            // Written as they board: all of them at once could be more than memory holds.
            async move { ask(masks.iter().map(|mask| texts.render(mask)).collect()).await }
        });
        let groups: Vec<_> = groups.collect();
        let further: Vec<Vec<Answer>> = stream::iter(groups).buffered(GROUPS).try_collect().await?;
        answers.extend(further.into_iter().flatten());
        runs += answers.len();

        let whole = answers.first().ok_or_else(missing)?;
        let label = label_of(model, &asked.explained, whole)?;
        let number = |answer: &Answer| {
            number_of(
                model,
                &asked.explained,
                label,
                reference.as_ref(),
                &answer.output,
            )
        };
        let numbers = answers
            .iter()
            .map(number)
            .collect::<Result<Vec<f64>, _>>()?;
        // Of many words and samples it takes tens of milliseconds, too long for a thread of the I/O.
        let attribution = tokio::task::spawn_blocking(move || plan.attribute(&numbers))
            .await
            .map_err(|_| RequestError::internal("the shares could not be computed"))?;
        Ok(Explanation {
            attribution,
            label: label
                .and_then(|label| model.labels.get(label).cloned())
                .unwrap_or_default(),
            rows: runs,
            tokens: whole.tokens,
            truncated: whole.truncated,
            queue: answers
                .iter()
                .map(|answer| answer.queue)
                .max()
                .unwrap_or_default(),
            execute: answers.iter().map(|answer| answer.execute).sum(),
            query: texts.query_features(),
            text: texts.text.features().to_vec(),
        })
    }

    /// The outputs of some rows, in their order.
    async fn answers(
        &self,
        model: &Arc<ServedModel>,
        call: &Call,
        rows: Vec<RowInput>,
        context: &CallContext,
    ) -> Result<Vec<Answer>, RequestError> {
        let call = Call {
            rows,
            keeps_no_answer: true,
            ..call.clone()
        };
        let mut boarded = self
            .line_up(Arc::clone(model), call, context.clone(), Watching::No)
            .await?;
        let answers = boarded.all().await.into_iter().map(|row| {
            let row = row?;
            Ok(Answer {
                output: row.answer.output,
                tokens: row.tokens,
                truncated: row.encoded.truncated,
                queue: row.answer.queue,
                execute: row.answer.execute / row.answer.batch_rows.max(1) as u32,
            })
        });
        answers.collect()
    }
}

/// Rows of `tokens` that run within [`TIME_TOGETHER`].
fn rows_together(model: &ServedModel, tokens: usize) -> usize {
    let Ok(encoder) = model.encoder() else {
        return 1;
    };
    let one = encoder.engine.predict_row(tokens, ROWS_TOGETHER);
    let rows = TIME_TOGETHER.as_secs_f64() / one.as_secs_f64().max(1e-9);
    (rows as usize).clamp(1, ROWS_TOGETHER)
}

/// The texts of a row whose words are left out.
struct Texts<'a> {
    /// Of a pair, with its words where they get shares.
    query: Option<(Perturbed<'a>, bool)>,
    text: Perturbed<'a>,
}

impl<'a> Texts<'a> {
    fn of(row: &'a RowInput, asked: &'a ExplainCall) -> Result<Self, RequestError> {
        if !(1..=MAX_FEATURES).contains(&asked.max_features) {
            return Err(RequestError::invalid(
                "max_features",
                asked.max_features,
                format_args!("1 to {MAX_FEATURES}"),
            ));
        }
        let perturbed = |text: &'a str, most: usize| {
            Perturbed::new(text, features(text, most), &asked.replacement)
        };
        let texts = match row {
            RowInput::Pair(query, document) => {
                let both = matches!(asked.explained, Explained::Score { query: true, .. });
                // Half of the features each.
                let most = if both {
                    asked.max_features.div_ceil(2)
                } else {
                    asked.max_features
                };
                Self {
                    query: Some((perturbed(query, most), both)),
                    text: perturbed(document, most),
                }
            }
            RowInput::Text(text) => Self {
                query: None,
                text: perturbed(text, asked.max_features),
            },
            RowInput::Tokens(_) => {
                let allowed = "a text: shares are those of words";
                return Err(RequestError::invalid(
                    asked.call.field,
                    "token ids",
                    allowed,
                ));
            }
        };
        if texts.count() == 0 {
            let allowed = "a text with at least one word";
            return Err(RequestError::invalid(asked.call.field, "no words", allowed));
        }
        Ok(texts)
    }

    fn query_features(&self) -> Vec<Feature> {
        match &self.query {
            Some((query, true)) => query.features().to_vec(),
            _ => Vec::new(),
        }
    }

    fn count(&self) -> usize {
        let of_query = self.query.as_ref().filter(|(_, counts)| *counts);
        of_query.map_or(0, |(query, _)| query.features().len()) + self.text.features().len()
    }

    fn render(&self, mask: &[bool]) -> RowInput {
        match &self.query {
            None => RowInput::Text(self.text.render(mask)),
            Some((query, counts)) => {
                let of_query = query.features().len();
                if *counts {
                    let (first, second) = mask.split_at(of_query);
                    RowInput::Pair(query.render(first), self.text.render(second))
                } else {
                    let query = query.render(&vec![true; of_query]);
                    RowInput::Pair(query, self.text.render(mask))
                }
            }
        }
    }
}

fn plan(asked: &ExplainCall, explainer: Explainer, features: usize) -> Result<Plan, RequestError> {
    if asked.samples > MAX_SAMPLES {
        let allowed = format!("at most {MAX_SAMPLES}, or 0 for as many as usual");
        return Err(RequestError::invalid("samples", asked.samples, allowed));
    }
    Plan::new(explainer, features, asked.samples, asked.seed).map_err(|least| {
        let allowed = format!("{least} or more for {features} features, or 0 for as many as usual");
        RequestError::invalid("samples", asked.samples, allowed)
    })
}

/// The label that is explained: the one asked for, or the best of the whole text.
fn label_of(
    model: &ServedModel,
    explained: &Explained,
    whole: &Answer,
) -> Result<Option<usize>, RequestError> {
    let Explained::Label { label, .. } = explained else {
        return Ok(None);
    };
    if label.is_empty() {
        let RowOutput::Logits(logits) = &whole.output else {
            return Err(unexpected());
        };
        return Ok(model.classify(logits).ranking.first().copied());
    }
    let place = model.labels.iter().position(|known| known == label);
    let unknown = || {
        let allowed = format!("one of {}", model.labels.join(", "));
        RequestError::invalid("label", label, allowed)
    };
    place.map(Some).ok_or_else(unknown)
}

fn number_of(
    model: &ServedModel,
    explained: &Explained,
    label: Option<usize>,
    reference: Option<&RowOutput>,
    output: &RowOutput,
) -> Result<f64, RequestError> {
    let number = match (explained, output) {
        (Explained::Label { logit, .. }, RowOutput::Logits(logits)) => {
            let label = label.unwrap_or_default();
            if *logit {
                logits.get(label).copied()
            } else {
                model.classify(logits).probabilities.get(label).copied()
            }
        }
        (Explained::Score { logit, .. }, RowOutput::Logits(logits)) => {
            let score = |value: &f32| if *logit { *value } else { model.score(*value) };
            logits.first().map(score)
        }
        (Explained::Similarity { .. }, RowOutput::Embedding(vector)) => match reference {
            Some(RowOutput::Embedding(reference)) => return Ok(cosine(vector, reference)),
            _ => None,
        },
        _ => None,
    };
    number.map(f64::from).ok_or_else(unexpected)
}

/// The cosine of two vectors; 0 where one of them is none.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        dot(a, b) / lengths
    } else {
        0.0
    }
}

/// The task that a number is of.
impl Explained {
    /// What the model must do.
    pub fn task(&self) -> Task {
        match self {
            Self::Label { .. } => Task::Classify,
            Self::Score { .. } => Task::Rerank,
            Self::Similarity { .. } => Task::Embed,
        }
    }
}

fn unexpected() -> RequestError {
    RequestError::internal("the model's output is not of its task")
}

fn missing() -> RequestError {
    RequestError::internal("a row got no answer")
}
