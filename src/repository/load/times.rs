//! How long each part of a load took.

use std::{
    fmt, panic, thread,
    time::{Duration, Instant},
};

/// A part of loading a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Headers checked, weights read and laid out, or found prepared.
    Weights,
    /// The tokenizer and the chat template; beside the weights.
    Tokenizer,
    /// Memory for keys and values, and the engine's threads.
    Engine,
    /// The warm-up plan.
    WarmUp,
    /// The recorded inputs.
    Canary,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Tokenizer => "tokenizer",
            Self::Engine => "engine",
            Self::WarmUp => "warm-up",
            Self::Canary => "canary",
        })
    }
}

/// The times of a load's stages. Weights and tokenizer overlap, so they don't add up to the whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadTimes(Vec<(Stage, Duration)>);

impl LoadTimes {
    /// Runs a stage and notes how long it took.
    pub(super) fn measure<T>(&mut self, stage: Stage, run: impl FnOnce() -> T) -> T {
        let (value, took) = timed(run);
        self.note(stage, took);
        value
    }

    /// Loads weights and tokenizer side by side.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn weights_and_tokenizer<W, T: Send>(
        &mut self,
        weights: impl FnOnce() -> W,
        tokenizer: impl FnOnce() -> T + Send,
    ) -> std::io::Result<(W, T)> {
        thread::scope(|scope| {
            let beside = thread::Builder::new().name("tokenizer".to_owned());
            let beside = beside.spawn_scoped(scope, || timed(tokenizer))?;
            let weights = self.measure(Stage::Weights, weights);
            let (tokenizer, took) = beside.join().unwrap_or_else(|it| panic::resume_unwind(it));
            self.note(Stage::Tokenizer, took);
            Ok((weights, tokenizer))
        })
    }

    /// Notes how long a stage took.
    fn note(&mut self, stage: Stage, took: Duration) {
        match self.0.iter_mut().find(|(of, _)| *of == stage) {
            Some((_, before)) => *before += took,
            None => self.0.push((stage, took)),
        }
    }

    /// How long a stage took; nothing if it was not run.
    pub fn of(&self, stage: Stage) -> Duration {
        let found = self.0.iter().find(|(of, _)| *of == stage);
        found.map_or(Duration::ZERO, |(_, took)| *took)
    }
}

/// `stage 12 ms, …`, in the order in which they ended.
impl fmt::Display for LoadTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (stage, took)) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}{stage} {:.1} ms", took.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

/// What `run` gives, and how long it took.
pub(super) fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let value = run();
    (value, began.elapsed())
}
