//! A stand-in for a model that answers a row in one pass, and an engine over it.

use std::{sync::Arc, time::Instant};

use ferry::{
    batching::{BatchPolicy, Priority},
    engine::{
        Answers, Changed, Departure, Engine, EngineOptions, Forward, Recovery, RowWork,
        Supervision, Watchdog,
    },
    error::RequestError,
    models::{PackedBatch, RowOutput},
    telemetry::{Metrics, ModelMetrics, ModelStatistics},
};
use tokio::sync::watch;

/// Each row's embedding is its first token.
pub fn echo(batch: &PackedBatch) -> Vec<RowOutput> {
    let starts = batch.cu_seqlens();
    (0..batch.rows())
        .map(|row| RowOutput::Embedding(vec![batch.tokens()[starts[row] as usize] as f32]))
        .collect()
}

/// An engine whose instances are told of.
pub struct Bench {
    pub engine: Engine,
    pub metrics: ModelMetrics,
    changes: watch::Receiver<usize>,
}

impl Bench {
    /// An engine over models that does this about those that are lost.
    pub fn over(forwards: Vec<Forward>, recovery: Recovery<Forward>) -> Self {
        Self::watched(forwards, recovery, None)
    }

    /// And this about those that hang.
    pub fn watched(
        forwards: Vec<Forward>,
        recovery: Recovery<Forward>,
        watchdog: Option<Watchdog>,
    ) -> Self {
        let metrics = Metrics::new().model("echo", "1");
        let (changed, changes) = watch::channel(0);
        let options = EngineOptions {
            name: "echo".to_owned(),
            metrics: metrics.clone(),
            statistics: Arc::new(ModelStatistics::new(64)),
            policy: BatchPolicy::default(),
            instances: forwards.len(),
        };
        let supervision = Supervision {
            recovery,
            watchdog,
            changed: Changed::new(move || changed.send_modify(|count| *count += 1)),
        };
        let engine = Engine::start_over(options, forwards, &supervision).unwrap();
        Self {
            engine,
            metrics,
            changes,
        }
    }

    /// Waits until instances were lost or came back so often.
    pub async fn changed(&mut self, times: usize) {
        self.changes
            .wait_for(|&count| count >= times)
            .await
            .unwrap();
    }

    /// Puts rows of one token each in line.
    pub fn submit(&self, tokens: &[u32]) -> Result<Answers, RequestError> {
        let rows = tokens.iter().map(|&token| RowWork {
            ids: vec![token],
            type_ids: vec![0],
        });
        let departure = Departure {
            deadline: None,
            priority: Priority::NORMAL,
            tenant: Arc::from(""),
            trace: None,
        };
        let rows = rows.enumerate().collect();
        self.engine.submit(rows, &departure, Instant::now())
    }

    /// Their answers.
    pub async fn ask(&self, tokens: &[u32]) -> Vec<Result<f32, RequestError>> {
        let mut answers = self.submit(tokens).unwrap();
        let mut found = vec![None; tokens.len()];
        while let Some((row, answer)) = answers.next().await {
            found[row] = Some(answer.map(|answer| match answer.output {
                RowOutput::Embedding(values) => values[0],
                other => panic!("{other:?}"),
            }));
        }
        found.into_iter().map(Option::unwrap).collect()
    }
}
