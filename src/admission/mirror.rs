//! Copies of requests, for a candidate version's trial.
//!
//! A request that is due for a copy is answered by its own version as ever; what it got is noted as it
//! goes out. When the answer is complete, the other version is asked the same, at low priority and on
//! behalf of nobody, and the two answers are compared. Nothing of that is on the request's way: it is
//! never delayed, and a copy is dropped where the other version has work.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

use super::{
    Admission, AnsweredRow, Call, CallContext, GenerateCall, Prompt, RowResult, board::Watching,
};
use crate::{
    batching::Priority,
    config::Task,
    generation::SamplingParameters,
    models::RowOutput,
    quality::{
        self,
        comparison::{Comparison, GivenToken},
    },
    repository::{Mirror, ServedModel},
    telemetry::Outcome,
};

/// Tokens of a text that both versions score, at most.
const MAX_SCORED_TOKENS: usize = 1024;

/// Notes a request's answered rows, and hands them over when all are out.
#[derive(Debug)]
pub(super) struct RowTap {
    rows: Vec<Option<AnsweredRow>>,
    pending: usize,
    done: Option<oneshot::Sender<Vec<Option<AnsweredRow>>>>,
}

impl RowTap {
    fn new(rows: usize) -> (Self, oneshot::Receiver<Vec<Option<AnsweredRow>>>) {
        let (done, answered) = oneshot::channel();
        let tap = Self {
            rows: vec![None; rows],
            pending: rows,
            done: Some(done),
        };
        (tap, answered)
    }

    /// Notes a row on its way out.
    pub(super) fn note(&mut self, row: usize, result: &RowResult) {
        self.rows[row] = result.as_ref().ok().cloned();
        self.pending = self.pending.saturating_sub(1);
        if self.pending == 0
            && let Some(done) = self.done.take()
        {
            // Fails only when the server goes down.
            let _ = done.send(std::mem::take(&mut self.rows));
        }
    }
}

/// Notes the tokens of a generation's first continuation, and hands them over when it has ended.
#[derive(Debug)]
pub(super) struct TokenTap {
    prompt: usize,
    tokens: Vec<u32>,
    done: Option<oneshot::Sender<(usize, Vec<u32>)>>,
}

impl TokenTap {
    /// Notes tokens on their way out; `over` with the last.
    pub(super) fn note(&mut self, tokens: impl Iterator<Item = u32>, over: bool) {
        let room = MAX_SCORED_TOKENS.saturating_sub(self.tokens.len());
        self.tokens.extend(tokens.take(room));
        if over && let Some(done) = self.done.take() {
            let _ = done.send((self.prompt, std::mem::take(&mut self.tokens)));
        }
    }
}

impl Admission {
    /// Sends a copy of `call`, which `model` answers, where its turn has come. What the tap notes is
    /// compared.
    pub(super) fn mirror_rows(&self, model: &Arc<ServedModel>, call: &Call) -> Option<RowTap> {
        let mirror = model.mirror()?;
        let other = mirror.take()?;
        let (tap, answered) = RowTap::new(call.rows.len());
        let (gate, model, call) = (self.clone(), Arc::clone(model), call.clone());
        tokio::spawn(async move {
            let Ok(mine) = answered.await else {
                return;
            };
            let Some(theirs) = gate.ask_rows(&other, call, &mirror).await else {
                mirror.trial.count_failed();
                return;
            };
            mirror.trial.record(|comparison| {
                if mirror.to_candidate {
                    compare_rows(comparison, (&model, &mine), (&other, &theirs));
                } else {
                    compare_rows(comparison, (&other, &theirs), (&model, &mine));
                }
            });
        });
        Some(tap)
    }

    async fn ask_rows(
        &self,
        other: &Arc<ServedModel>,
        call: Call,
        mirror: &Mirror,
    ) -> Option<Vec<Option<AnsweredRow>>> {
        let began = Instant::now();
        let account = CopyAccount::open(other, mirror, began);
        // Of a shadow, the copies are all that shows whether it drifts.
        let watching = match account.model {
            Some(_) => Watching::Yes,
            None => Watching::No,
        };
        let lining_up = self.line_up(Arc::clone(other), call, copied(began), watching);
        let Ok(mut boarded) = lining_up.await else {
            account.close(Outcome::Internal);
            return None;
        };
        let rows: Vec<_> = boarded.all().await.into_iter().map(Result::ok).collect();
        let any = rows.iter().any(Option::is_some);
        if let Some(drift) = other.drift.as_ref().filter(|_| watching == Watching::Yes) {
            drift.observe(rows.iter().flatten().map(AnsweredRow::seen));
        }
        account.close(if any { Outcome::Ok } else { Outcome::Internal });
        any.then_some(rows)
    }

    /// As [`Admission::mirror_rows`], for a call to generate after `prompt`.
    ///
    /// Both versions score the text that came out, since two texts that part at a near tie say little
    /// of the rest.
    pub(super) fn mirror_generation(
        &self,
        model: &Arc<ServedModel>,
        prompt: &[u32],
    ) -> Option<TokenTap> {
        let mirror = model.mirror()?;
        if prompt.len() >= MAX_SCORED_TOKENS {
            return None;
        }
        let other = mirror.take()?;
        let (done, generated) = oneshot::channel::<(usize, Vec<u32>)>();
        let (gate, model) = (self.clone(), Arc::clone(model));
        tokio::spawn(async move {
            let Ok((prompt, tokens)) = generated.await else {
                return;
            };
            let (stable, candidate) = if mirror.to_candidate {
                (&model, &other)
            } else {
                (&other, &model)
            };
            let Some(theirs) = gate.score(candidate, &tokens, &mirror).await else {
                mirror.trial.count_failed();
                return;
            };
            let Some(ours) = gate.score(stable, &tokens, &mirror).await else {
                return;
            };
            let from = |scores: &[Score]| scores.get(prompt..).map(<[Score]>::to_vec);
            let (Some(ours), Some(theirs)) = (from(&ours), from(&theirs)) else {
                return;
            };
            let bytes = ours.iter().map(|score| score.bytes).sum();
            mirror.trial.record(|comparison| {
                comparison.observe_given(bytes, &given(&ours), &given(&theirs));
            });
        });
        Some(TokenTap {
            prompt: prompt.len(),
            tokens: prompt.to_vec(),
            done: Some(done),
        })
    }

    /// What a version thinks of each token of a text.
    async fn score(
        &self,
        model: &Arc<ServedModel>,
        tokens: &[u32],
        mirror: &Mirror,
    ) -> Option<Vec<Score>> {
        let began = Instant::now();
        let account = CopyAccount::open(model, mirror, began);
        let prompt = Prompt::Tokens(tokens.to_vec());
        let mut call = GenerateCall::new(model.name.clone(), prompt);
        call.echo = true;
        call.score_prompt = true;
        call.max_tokens = Some(0);
        call.sampling = SamplingParameters {
            top_logprobs: 5,
            ..SamplingParameters::greedy()
        };
        let mut scores = None;
        if let Ok(mut generation) = self
            .line_up_generation(Arc::clone(model), call, copied(began))
            .await
        {
            while let Some(Ok(piece)) = generation.next().await {
                if piece.is_prompt {
                    let tokens = piece.tokens.into_iter();
                    scores = Some(
                        tokens
                            .map(|token| Score {
                                bytes: token.bytes.len(),
                                logprob: token.logprob.unwrap_or(0.0),
                                top: token
                                    .alternatives
                                    .into_iter()
                                    .map(|other| (other.id, other.logprob))
                                    .collect(),
                            })
                            .collect(),
                    );
                }
            }
        }
        account.close(match scores {
            Some(_) => Outcome::Ok,
            None => Outcome::Internal,
        });
        scores
    }
}

/// The context of a copy: nobody waits for it.
fn copied(received: Instant) -> CallContext {
    CallContext {
        priority: Priority::LOW,
        tenant: Arc::from("copies"),
        ..CallContext::plain(received)
    }
}

/// Counts a copy as a request of the candidate. Copies that the stable version gets are nobody's.
struct CopyAccount<'a> {
    model: Option<&'a ServedModel>,
    began: Instant,
}

impl<'a> CopyAccount<'a> {
    fn open(model: &'a ServedModel, mirror: &Mirror, began: Instant) -> Self {
        let is_shadow = mirror.to_candidate && model.number() == mirror.trial.candidate;
        let model = Some(model).filter(|_| is_shadow);
        if let Some(model) = model {
            model.traffic.open();
        }
        Self { model, began }
    }

    fn close(mut self, outcome: Outcome) {
        if let Some(model) = self.model.take() {
            model.traffic.close(outcome, self.began.elapsed());
        }
    }
}

impl Drop for CopyAccount<'_> {
    fn drop(&mut self) {
        if let Some(model) = self.model.take() {
            model
                .traffic
                .close(Outcome::Cancelled, self.began.elapsed());
        }
    }
}

/// A token as a version scores it.
#[derive(Debug, Clone)]
struct Score {
    bytes: usize,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

fn given(scores: &[Score]) -> Vec<GivenToken<'_>> {
    scores
        .iter()
        .map(|score| GivenToken {
            logprob: score.logprob,
            top: &score.top,
        })
        .collect()
}

type Side<'a> = (&'a ServedModel, &'a [Option<AnsweredRow>]);

/// Takes the rows that both have answered into the comparison.
fn compare_rows(comparison: &mut Comparison, stable: Side, candidate: Side) {
    let pairs: Vec<_> = stable
        .1
        .iter()
        .zip(candidate.1)
        .filter_map(|(ours, theirs)| Some((ours.as_ref()?, theirs.as_ref()?)))
        .collect();
    if stable.0.task() == Task::Rerank {
        // The documents of one query belong together.
        let scores = |side: fn(&(&AnsweredRow, &AnsweredRow)) -> f32| -> Vec<f32> {
            pairs.iter().map(side).collect()
        };
        let ours = scores(|(ours, _)| first_logit(ours));
        let theirs = scores(|(_, theirs)| first_logit(theirs));
        comparison.observe_scores(&ours, &theirs);
        return;
    }
    for (ours, theirs) in pairs {
        match (&ours.answer.output, &theirs.answer.output) {
            (RowOutput::Embedding(a), RowOutput::Embedding(b)) => {
                comparison.observe_embeddings(a, b);
            }
            (RowOutput::Logits(a), RowOutput::Logits(b)) => {
                let a = stable.0.classify(a).probabilities;
                let b = candidate.0.classify(b).probabilities;
                comparison.observe_probabilities(&a, &b);
            }
            (
                RowOutput::TokenLogits { values: a, .. },
                RowOutput::TokenLogits { values: b, .. },
            ) => {
                let spans = |values: &[f32], model: &ServedModel, row: &AnsweredRow| {
                    let encoded = &row.encoded;
                    quality::label_spans(values, &model.labels, &encoded.offsets, &encoded.words)
                };
                let (a, b) = (spans(a, stable.0, ours), spans(b, candidate.0, theirs));
                comparison.observe_spans(&a, &b);
            }
            _ => {}
        }
    }
}

fn first_logit(row: &AnsweredRow) -> f32 {
    match &row.answer.output {
        RowOutput::Logits(logits) => logits.first().copied().unwrap_or(f32::NAN),
        _ => f32::NAN,
    }
}
