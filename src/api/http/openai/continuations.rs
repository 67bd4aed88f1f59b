//! The generations of one request: one for each prompt, each with `n` continuations, their pieces
//! in the order they come.

use std::{future::Future, pin::Pin, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::output::Usage;
use crate::{
    admission::{CallContext, GenerateCall, Piece},
    api::{
        generation::{AccountedGeneration, start_generation},
        grpc::Shared,
    },
    error::RequestError,
    repository::ServedModel,
};

/// The generations of one request. Dropped early, those still under way are cancelled.
pub struct Continuations {
    /// The model that generates.
    pub model: Arc<ServedModel>,
    /// Choices in all.
    pub choices: u32,
    /// Whether nothing is generated for any of them; `None` where the model keeps no answers.
    pub all_cached: Option<bool>,
    /// Continuations of each prompt.
    per_prompt: u32,
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Step> + Send>>>,
    usage: Usage,
    /// Of each prompt, the fewest cached tokens that one of its continuations told: the first one's
    /// prompt is computed, the others find it.
    cached: Vec<Option<u32>>,
}

/// A piece of the generation of one prompt, and that generation to be asked again.
type Step = (
    usize,
    AccountedGeneration,
    Option<Result<Piece, RequestError>>,
);

impl Continuations {
    /// Starts the generation of every call, of which there is at least one.
    ///
    /// # Errors
    /// [`RequestError`] of the first call that is not let in; the others are cancelled.
    pub async fn start(
        shared: &Shared,
        calls: Vec<GenerateCall>,
        context: CallContext,
    ) -> Result<Self, RequestError> {
        let prompts = calls.len();
        let per_prompt = calls.first().map_or(1, |call| call.continuations);
        let mut model = None;
        let mut all_cached = None;
        let mut usage = Usage::default();
        let running = FuturesUnordered::new();
        for (prompt, call) in calls.into_iter().enumerate() {
            let context = if prompts > 1 {
                context.of_part("prompt")
            } else {
                context.clone()
            };
            let generation =
                start_generation(&shared.admission, &shared.metrics, call, context).await?;
            usage.prompt_tokens += u64::from(generation.prompt_tokens);
            model.get_or_insert_with(|| Arc::clone(&generation.model));
            all_cached = generation
                .cached
                .map(|cached| cached && all_cached.unwrap_or(true));
            running.push(step(prompt, generation));
        }
        Ok(Self {
            model: model.ok_or_else(|| RequestError::internal("a request without prompts"))?,
            choices: prompts as u32 * per_prompt,
            all_cached,
            per_prompt,
            running,
            usage,
            cached: vec![None; prompts],
        })
    }

    /// The next piece of any choice, with the choice's number: prompt · n + continuation. `None`
    /// when all have ended. An error ends them all.
    pub async fn next(&mut self) -> Option<Result<(u32, Piece), RequestError>> {
        loop {
            let (prompt, generation, piece) = self.running.next().await?;
            match piece {
                // This prompt's are complete; dropping it now is no cancellation.
                None => {}
                Some(Ok(piece)) => {
                    self.running.push(step(prompt, generation));
                    self.count(prompt, &piece);
                    let choice = prompt as u32 * self.per_prompt + piece.index;
                    return Some(Ok((choice, piece)));
                }
                Some(Err(error)) => {
                    self.running.clear();
                    return Some(Err(error));
                }
            }
        }
    }

    /// What went in and has come out.
    pub fn usage(&self) -> Usage {
        let cached = self.cached.iter().flatten().copied().map(u64::from);
        Usage {
            cached_tokens: cached.sum(),
            ..self.usage
        }
    }

    fn count(&mut self, prompt: usize, piece: &Piece) {
        if let Some(finish) = &piece.finish {
            self.usage.completion_tokens += u64::from(finish.generated_tokens);
            let cached = &mut self.cached[prompt];
            *cached = Some(cached.map_or(finish.cached_tokens, |least| {
                least.min(finish.cached_tokens)
            }));
        }
    }
}

fn step(
    prompt: usize,
    mut generation: AccountedGeneration,
) -> Pin<Box<dyn Future<Output = Step> + Send>> {
    Box::pin(async move {
        let piece = generation.next().await;
        (prompt, generation, piece)
    })
}
