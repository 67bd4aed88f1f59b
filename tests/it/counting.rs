//! A stand-in for a model that generates: it counts, and misbehaves at some tokens.

use std::{sync::Arc, time::Instant};

use candle_core::{Device, Tensor};
use ferry::{
    batching::Priority,
    engine::{
        Departure, GenerationEngine, GenerationOptions,
        continuous::{SequenceEvent, SequenceStream, SequenceWork, StepForward, StepOutput},
    },
    error::RequestError,
    generation::{FinishReason, RowStatistics, SamplingParameters, SchedulerOptions},
    models::{DecoderBatch, ForwardError, StepLogits},
    telemetry::{Metrics, ModelStatistics},
};

const VOCABULARY: usize = 64;
/// The model returns an error when it sees this token.
pub const FAILS: u32 = 61;
/// It panics at this one.
pub const PANICS: u32 = 62;
/// Its logits are not numbers after this one.
pub const NOT_A_NUMBER: u32 = 63;

/// The most likely next token is the one before plus one, up to 50, then 0.
pub fn forward(batch: &DecoderBatch) -> Result<StepOutput, ForwardError> {
    if batch.tokens.contains(&FAILS) {
        return Err(ForwardError::Blocks("a token that fails".to_owned()));
    }
    assert!(!batch.tokens.contains(&PANICS), "a token that panics");
    let mut logits = Vec::new();
    let mut statistics = Vec::new();
    for &at in &batch.logit_tokens {
        let token = batch.tokens[at as usize];
        let best = if token < 50 { token + 1 } else { 0 };
        let level = if token == NOT_A_NUMBER { f32::NAN } else { 1.0 };
        logits
            .extend((0..VOCABULARY as u32).map(|id| if id == best { 2.0 * level } else { level }));
        statistics.push(RowStatistics {
            argmax: best,
            max: 2.0 * level,
            log_sum_exp: level * (63.0 * 1f32.exp() + 2f32.exp()).ln(),
        });
    }
    let shape = (batch.logit_tokens.len(), VOCABULARY);
    let logits = StepLogits::new(Tensor::from_vec(logits, shape, &Device::Cpu)?);
    Ok(StepOutput { logits, statistics })
}

/// An engine over a model, with so many blocks of cache.
pub fn start(forward: StepForward, blocks: usize) -> GenerationEngine {
    GenerationEngine::start(options(blocks, &Metrics::new()), forward).unwrap()
}

/// How it runs.
pub fn options(blocks: usize, metrics: &Metrics) -> GenerationOptions {
    GenerationOptions {
        name: "counting".to_owned(),
        scheduler: SchedulerOptions {
            block_size: 8,
            blocks,
            max_step_tokens: 64,
            max_running: 32,
            max_waiting: 64,
            max_sequence_tokens: 512,
            max_prompt_logits: 16,
            share_prefixes: true,
        },
        metrics: metrics.model("counting", "1"),
        generation_metrics: metrics.generation("counting", "1"),
        statistics: Arc::new(ModelStatistics::new(32)),
    }
}

/// A prompt, and so many tokens after it.
pub fn work(prompt: &[u32], tokens: u32) -> SequenceWork {
    SequenceWork {
        prompt: prompt.to_vec(),
        max_new_tokens: tokens,
        sampling: SamplingParameters {
            temperature: 0.0,
            ..SamplingParameters::default()
        },
        seed: 0,
        stop_tokens: Arc::from([40]),
        constraint: None,
        score_prompt: false,
    }
}

/// Nothing special.
pub fn departure() -> Departure {
    Departure {
        deadline: None,
        priority: Priority::NORMAL,
        tenant: Arc::from(""),
        trace: None,
    }
}

/// Puts one sequence in line.
pub fn submit(engine: &GenerationEngine, prompt: &[u32], tokens: u32) -> SequenceStream {
    let streams = engine.submit(vec![work(prompt, tokens)], &departure(), Instant::now());
    streams.unwrap().remove(0)
}

/// All tokens of a sequence, and its end.
pub async fn gather(mut stream: SequenceStream) -> (Vec<u32>, Result<FinishReason, RequestError>) {
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            SequenceEvent::Prompt(_) => {}
            SequenceEvent::Token(token) => tokens.push(token.id),
            SequenceEvent::Finished(reason) => return (tokens, Ok(reason)),
            SequenceEvent::Failed(error) => return (tokens, Err(error)),
        }
    }
    panic!("a stream ended without saying how");
}
