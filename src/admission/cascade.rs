//! Rows that their model is not sure of, asked again of another: a request can board twice.
//!
//! The other rows' answers go out meanwhile. A row that the further model does not answer, for want of
//! time or of room, keeps the answer it has: less sure is better than late. Each row is handed on a
//! bounded number of times, never to a model that it has been to, and always within its request's
//! deadline.

use std::{future::Future, pin::Pin, sync::Arc};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::{
    Admission, AnsweredRow, Call, CallContext, RowResult,
    board::{OwnRows, Watching},
    unsure::{FallBack, WhenUnsure, sureness},
};
use crate::{
    config::cascade::MAX_STAGES,
    error::RequestError,
    repository::ServedModel,
    telemetry::{CascadeMetrics, Outcome},
    text::RowInput,
};

/// Who answered a row that its own model was not sure of.
#[derive(Debug, Clone)]
pub struct Escalation {
    /// The model whose answer this is.
    pub by: Arc<ServedModel>,
    /// Those asked before it, first first.
    pub from: Vec<Arc<ServedModel>>,
    /// Whether a further model should have been asked and could not.
    pub failed: bool,
}

/// Where a model's unsure rows go.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) model: String,
    version: String,
    pub(super) below: f32,
    pub(super) metrics: CascadeMetrics,
    /// Whether further steps are taken, as the manifests of the models say.
    pub(super) goes_on: bool,
}

impl PartialEq for Escalation {
    fn eq(&self, other: &Self) -> bool {
        let name = |model: &Arc<ServedModel>| (model.name.clone(), model.version.clone());
        let names = |of: &Self| of.from.iter().map(name).collect::<Vec<_>>();
        name(&self.by) == name(&other.by)
            && names(self) == names(other)
            && self.failed == other.failed
    }
}

type Climbing = Pin<Box<dyn Future<Output = (usize, AnsweredRow)> + Send>>;

/// The rows of one request that are asked again.
pub(super) struct Climb {
    gate: Admission,
    step: Step,
    /// The further model, as far as it is there, for what it would have cost.
    further: Option<Arc<ServedModel>>,
    rows: Vec<RowInput>,
    /// The call without its rows.
    call: Call,
    context: CallContext,
    climbing: FuturesUnordered<Climbing>,
    own_are_done: bool,
}

impl std::fmt::Debug for Climb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Climb")
            .field("step", &self.step)
            .field("climbing", &self.climbing.len())
            .finish_non_exhaustive()
    }
}

impl Admission {
    /// Sees where the unsure rows of `call` to `model` go; `None` where they stay.
    pub(super) fn climb(
        &self,
        model: &Arc<ServedModel>,
        call: &Call,
        context: &CallContext,
    ) -> Result<Option<Box<Climb>>, RequestError> {
        let step = match &call.when_unsure {
            WhenUnsure::Flag | WhenUnsure::Abstain => return Ok(None),
            WhenUnsure::AsManifest => match Step::of_manifest(model) {
                Some(step) => step,
                None => return Ok(None),
            },
            WhenUnsure::FallBack(asked) => self.step_of(model, asked, context)?,
        };
        let context = CallContext {
            // It pins the version of the model that the request names.
            version: None,
            ..context.clone()
        };
        Ok(Some(Box::new(Climb {
            further: self.further(&step, model, &context).ok(),
            gate: self.clone(),
            step,
            rows: call.rows.clone(),
            call: Call {
                rows: Vec::new(),
                ..call.clone()
            },
            context,
            climbing: FuturesUnordered::new(),
            own_are_done: false,
        })))
    }

    /// What a request asks for.
    pub(super) fn step_of(
        &self,
        model: &Arc<ServedModel>,
        asked: &FallBack,
        context: &CallContext,
    ) -> Result<Step, RequestError> {
        let cascade = &model.manifest.cascade;
        let (name, version) = if asked.model.is_empty() {
            (&cascade.model, &cascade.version)
        } else {
            (&asked.model, &asked.version)
        };
        if name.is_empty() {
            let found = format!(
                "none, and the manifest of '{}' has no [cascade]",
                model.name
            );
            let allowed = "the model that is to answer instead";
            return Err(RequestError::invalid("fallback_model", found, allowed));
        }
        if *name == model.name {
            let allowed = "another model than the one that is asked first";
            return Err(RequestError::invalid("fallback_model", name, allowed));
        }
        if !asked.model.is_empty() {
            // Where the manifest hands on, the operator has said that whoever asks the first may.
            context.models.check(name)?;
        }
        let repository = self.repository();
        if !repository.is_evicted(name) {
            repository.route(name, version, Some(model.task()), None)?;
        }
        Ok(Step {
            below: if asked.below > 0.0 {
                asked.below
            } else {
                cascade.below
            },
            metrics: repository.cascade_metrics(model, name),
            model: name.clone(),
            version: version.clone(),
            goes_on: false,
        })
    }

    /// The model of a step, if it can take the rows of `from`.
    pub(super) fn further(
        &self,
        step: &Step,
        from: &ServedModel,
        context: &CallContext,
    ) -> Result<Arc<ServedModel>, RequestError> {
        let key = context.route_key.as_deref();
        let task = Some(from.task());
        let further = self
            .repository()
            .route(&step.model, &step.version, task, key)?;
        // Their manifests were compared as `from` was loaded, but versions change.
        if further.labels != from.labels {
            return Err(RequestError::Refused {
                what: format!(
                    "the labels of '{}' are not those of '{}'",
                    further.name, from.name
                ),
            });
        }
        Ok(further)
    }
}

impl Step {
    pub(super) fn of_manifest(model: &ServedModel) -> Option<Self> {
        let cascade = &model.manifest.cascade;
        let metrics = model.cascade.clone()?;
        Some(Self {
            model: cascade.model.clone(),
            version: cascade.version.clone(),
            below: cascade.below,
            metrics,
            goes_on: true,
        })
    }
}

impl Climb {
    /// The next row's answer: of its own model, or of the one that it was handed on to. May be dropped
    /// while it waits; nothing is lost by that.
    pub(super) async fn next(
        &mut self,
        model: &Arc<ServedModel>,
        own: &mut OwnRows,
    ) -> Option<(usize, RowResult)> {
        loop {
            let next = tokio::select! {
                biased;
                Some((row, answer)) = self.climbing.next(), if !self.climbing.is_empty() => {
                    return Some((row, Ok(answer)));
                }
                next = own.next(), if !self.own_are_done => next,
                else => return None,
            };
            match next {
                None => self.own_are_done = true,
                Some((row, Ok(answer))) => {
                    if let Some(answer) = self.hand_on(model, row, answer) {
                        return Some((row, Ok(answer)));
                    }
                }
                refused => return refused,
            }
        }
    }

    /// Hands a row on where its model is not sure; else gives its answer back.
    fn hand_on(
        &mut self,
        model: &Arc<ServedModel>,
        row: usize,
        answer: AnsweredRow,
    ) -> Option<AnsweredRow> {
        self.count_own(model, &answer);
        // What has no confidence is as sure as can be.
        if sureness(model, &answer).unwrap_or(1.0) >= self.step.below {
            self.step.metrics.kept.inc();
            if let Some(further) = &self.further {
                self.step.metrics.saved.add(cost(further, &answer));
            }
            return Some(answer);
        }
        let input = std::mem::replace(&mut self.rows[row], RowInput::Text(String::new()));
        let climber = Climber {
            gate: self.gate.clone(),
            call: Call {
                rows: vec![input],
                ..self.call.clone()
            },
            context: self.context.clone(),
        };
        let (model, step) = (Arc::clone(model), self.step.clone());
        self.climbing.push(Box::pin(async move {
            (row, climber.climb(model, step, answer).await)
        }));
        None
    }

    fn count_own(&self, model: &ServedModel, answer: &AnsweredRow) {
        if !answer.cached {
            self.step.metrics.saved.sub(cost(model, answer));
        }
    }
}

/// One row on its way from model to model.
struct Climber {
    gate: Admission,
    call: Call,
    context: CallContext,
}

impl Climber {
    async fn climb(
        mut self,
        model: Arc<ServedModel>,
        step: Step,
        answer: AnsweredRow,
    ) -> AnsweredRow {
        let (mut by, mut answer, mut from) = (model, answer, Vec::new());
        let (mut step, mut failed) = (Some(step), false);
        while let Some(next) = step.take() {
            let been_to = |name: &str| {
                from.iter()
                    .any(|model: &Arc<ServedModel>| model.name == name)
            };
            if from.len() + 1 >= MAX_STAGES || been_to(&next.model) || next.model == by.name {
                break;
            }
            match self.ask(&next, &by).await {
                Ok((further, better)) => {
                    next.metrics.escalated.inc();
                    from.push(std::mem::replace(&mut by, further));
                    answer = better;
                }
                Err(error) => {
                    next.metrics.failed.inc();
                    tracing::debug!(from = by.name, to = next.model, %error, "not handed on");
                    failed = true;
                    break;
                }
            }
            if next.goes_on {
                step = Step::of_manifest(&by).filter(|further| {
                    let sure = sureness(&by, &answer).unwrap_or(1.0) >= further.below;
                    further.metrics.saved.sub(cost(&by, &answer));
                    if sure {
                        further.metrics.kept.inc();
                    }
                    !sure
                });
            }
        }
        answer.escalation = Some(Box::new(Escalation { by, from, failed }));
        answer
    }

    /// Has the row answered by the model of a step.
    async fn ask(
        &mut self,
        step: &Step,
        from: &ServedModel,
    ) -> Result<(Arc<ServedModel>, AnsweredRow), RequestError> {
        self.gate.wake(&step.model, &self.context).await;
        let further = self.gate.further(step, from, &self.context)?;
        let traffic = TrafficGuard::open(&further, self.context.received);
        let mut boarded = self
            .gate
            .line_up(
                Arc::clone(&further),
                self.call.clone(),
                self.context.clone(),
                Watching::Yes,
            )
            .await?;
        let (_, answer) = boarded
            .next()
            .await
            .ok_or_else(|| RequestError::internal("a row got no answer"))?;
        let answer = answer?;
        traffic.answered();
        Ok((further, answer))
    }
}

/// Counts a row that was handed on as a request that its model has, so that it isn't unloaded.
pub(super) struct TrafficGuard {
    model: Option<Arc<ServedModel>>,
    received: std::time::Instant,
}

impl TrafficGuard {
    pub(super) fn open(model: &Arc<ServedModel>, received: std::time::Instant) -> Self {
        model.traffic.open();
        Self {
            model: Some(Arc::clone(model)),
            received,
        }
    }

    pub(super) fn answered(mut self) {
        if let Some(model) = self.model.take() {
            model.traffic.close(Outcome::Ok, self.received.elapsed());
        }
    }
}

impl Drop for TrafficGuard {
    fn drop(&mut self) {
        if let Some(model) = self.model.take() {
            let ran = self.received.elapsed();
            model.traffic.close(Outcome::Cancelled, ran);
        }
    }
}

/// Predicted seconds of a row at a model, in a batch of the size that it travelled in.
fn cost(model: &ServedModel, answer: &AnsweredRow) -> f64 {
    let Ok(encoder) = model.encoder() else {
        return 0.0;
    };
    let predicted = encoder
        .engine
        .predict_row(answer.tokens, answer.answer.batch_rows);
    predicted.as_secs_f64()
}
