//! Answers that go out whole: what becomes of those that the model is not sure of, once their confidence
//! is known. A stream's text has been sent by then; all that can be done there is to say so at its end.
//!
//! As with rows (`admission::cascade`), a continuation that the further model can't generate keeps what it
//! has, and none goes to a model that it has been to.

use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc};

use super::{
    call::{GenerateCall, Prompt},
    piece::Piece,
    stream::Generation,
};
use crate::{
    admission::{
        Admission, CallContext, Escalation, WhenUnsure,
        cascade::{Step, TrafficGuard},
    },
    config::cascade::MAX_STAGES,
    error::RequestError,
    repository::ServedModel,
    telemetry::traces::Sequence,
};

/// An answer that is being completed.
pub(super) type Settling = Pin<Box<dyn Future<Output = Result<Settled, RequestError>> + Send>>;

/// A complete answer.
pub(super) struct Settled {
    /// The prompt, where it was to be repeated, and a piece of each continuation.
    pub(super) pieces: VecDeque<Piece>,
    /// What was noted of the sequences of the model that was asked.
    pub(super) sequences: Vec<Sequence>,
}

/// What becomes of continuations below a confidence.
pub(super) enum Unsure {
    Abstain(f32),
    HandOn(Step),
}

impl Admission {
    /// What is to be done with unsure continuations of a call; `None` where it is nothing.
    pub(super) fn unsure(
        &self,
        model: &Arc<ServedModel>,
        call: &GenerateCall,
        context: &CallContext,
    ) -> Result<Option<Unsure>, RequestError> {
        if !call.whole {
            return match call.when_unsure {
                WhenUnsure::Abstain => Err(streamed("ABSTAIN")),
                WhenUnsure::FallBack(_) => Err(streamed("FALL_BACK")),
                WhenUnsure::AsManifest | WhenUnsure::Flag => Ok(None),
            };
        }
        // Ids mean other tokens to another model.
        let ids = if matches!(call.prompt, Prompt::Tokens(_)) {
            Some("prompt")
        } else if !call.stop_tokens.is_empty() {
            Some("stop_token_ids")
        } else if !call.sampling.logit_bias.is_empty() {
            Some("logit_bias")
        } else {
            None
        };
        match (&call.when_unsure, ids) {
            (WhenUnsure::Abstain, _) => Ok(Some(Unsure::Abstain(call.min_confidence))),
            (WhenUnsure::FallBack(_), Some(field)) => {
                let allowed = "text: another model has other tokens, and can't fall back on these";
                Err(RequestError::invalid(field, "token ids", allowed))
            }
            (WhenUnsure::FallBack(asked), None) => {
                Ok(Some(Unsure::HandOn(self.step_of(model, asked, context)?)))
            }
            (WhenUnsure::AsManifest, None) => Ok(Step::of_manifest(model).map(Unsure::HandOn)),
            (WhenUnsure::Flag, _) | (WhenUnsure::AsManifest, Some(_)) => Ok(None),
        }
    }

    /// Completes what `own` generates.
    pub(super) fn settle(
        &self,
        mut own: Generation,
        unsure: Unsure,
        call: GenerateCall,
        context: CallContext,
    ) -> Settling {
        let gate = self.clone();
        Box::pin(async move {
            let (mut pieces, answers) = gather(&mut own).await?;
            let answers = match unsure {
                Unsure::Abstain(below) => answers
                    .into_iter()
                    .map(|piece| abstain(piece, below))
                    .collect(),
                Unsure::HandOn(step) => {
                    let model = Arc::clone(&own.model);
                    let climber = Climber {
                        gate,
                        call,
                        context: CallContext {
                            // It pins the version of the model that the request names.
                            version: None,
                            ..context
                        },
                    };
                    climber.climb(model, step, answers).await
                }
            };
            pieces.extend(answers);
            Ok(Settled {
                pieces,
                sequences: own.sequences(),
            })
        })
    }
}

fn streamed(action: &str) -> RequestError {
    let allowed = "FLAG, or with options.whole: what is streamed has gone out before its confidence \
                   is known";
    RequestError::invalid("options.on_low_confidence.action", action, allowed)
}

/// Everything that comes: the repeated prompts, and each continuation as one piece.
async fn gather(
    generation: &mut Generation,
) -> Result<(VecDeque<Piece>, Vec<Piece>), RequestError> {
    let (mut prompts, mut answers) = (VecDeque::new(), Vec::<Piece>::new());
    while let Some(piece) = generation.next_own().await {
        let piece = piece?;
        if piece.is_prompt {
            prompts.push_back(piece);
            continue;
        }
        let index = piece.index as usize;
        if answers.len() <= index {
            answers.resize_with(index + 1, Piece::default);
        }
        let answer = &mut answers[index];
        answer.index = piece.index;
        answer.text.push_str(&piece.text);
        answer.tokens.extend(piece.tokens);
        answer.finish = piece.finish;
    }
    Ok((prompts, answers))
}

fn confidence(piece: &Piece) -> f32 {
    piece
        .finish
        .as_ref()
        .map_or(1.0, |finish| finish.confidence)
}

/// Takes the text of a continuation back that is not sure enough.
fn abstain(piece: Piece, below: f32) -> Piece {
    if confidence(&piece) >= below {
        return piece;
    }
    let mut finish = piece.finish;
    if let Some(finish) = &mut finish {
        finish.abstained = true;
    }
    Piece {
        index: piece.index,
        finish,
        ..Piece::default()
    }
}

/// Continuations on their way from model to model.
struct Climber {
    gate: Admission,
    call: GenerateCall,
    context: CallContext,
}

impl Climber {
    async fn climb(
        mut self,
        model: Arc<ServedModel>,
        step: Step,
        mut answers: Vec<Piece>,
    ) -> Vec<Piece> {
        let (mut by, mut from) = (model, Vec::<Arc<ServedModel>>::new());
        // Those that the latest model generated.
        let mut latest: Vec<usize> = (0..answers.len()).collect();
        let mut step = Some(step);
        while let Some(next) = step.take() {
            let count = latest.len();
            latest.retain(|&at| confidence(&answers[at]) < next.below);
            next.metrics.kept.inc_by((count - latest.len()) as u64);
            let been_to = from.iter().any(|model| model.name == next.model);
            let ends = from.len() + 1 >= MAX_STAGES || been_to || next.model == by.name;
            if latest.is_empty() || ends {
                break;
            }
            match self.ask(&next, &by, latest.len()).await {
                Ok((further, better)) => {
                    next.metrics.escalated.inc_by(latest.len() as u64);
                    from.push(std::mem::replace(&mut by, further));
                    for (&at, better) in latest.iter().zip(better) {
                        let index = answers[at].index;
                        answers[at] = Piece { index, ..better };
                        escalated(&mut answers[at], &by, &from, false);
                    }
                }
                Err(error) => {
                    next.metrics.failed.inc_by(latest.len() as u64);
                    tracing::debug!(from = by.name, to = next.model, %error, "not handed on");
                    for &at in &latest {
                        escalated(&mut answers[at], &by, &from, true);
                    }
                    break;
                }
            }
            if next.goes_on {
                step = Step::of_manifest(&by);
            }
        }
        answers
    }

    /// Has `count` continuations generated by the model of a step.
    async fn ask(
        &mut self,
        step: &Step,
        from: &ServedModel,
        count: usize,
    ) -> Result<(Arc<ServedModel>, Vec<Piece>), RequestError> {
        self.gate.wake(&step.model, &self.context).await;
        let further = self.gate.further(step, from, &self.context)?;
        let traffic = TrafficGuard::open(&further, self.context.received);
        let call = GenerateCall {
            model: further.name.clone(),
            version: String::new(),
            continuations: count as u32,
            echo: false,
            score_prompt: false,
            ..self.call.clone()
        };
        let lining_up =
            self.gate
                .line_up_generation(Arc::clone(&further), call, self.context.clone());
        let (_, answers) = gather(&mut lining_up.await?).await?;
        if answers.len() != count {
            return Err(RequestError::internal("a continuation got no end"));
        }
        traffic.answered();
        Ok((further, answers))
    }
}

fn escalated(piece: &mut Piece, by: &Arc<ServedModel>, from: &[Arc<ServedModel>], failed: bool) {
    if let Some(finish) = &mut piece.finish {
        finish.escalation = Some(Box::new(Escalation {
            by: Arc::clone(by),
            from: from.to_vec(),
            failed,
        }));
    }
}
