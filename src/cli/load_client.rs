//! Closed-loop gRPC clients: each sends its next call when the last one is answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::transport::Endpoint;

use super::Failure;
use crate::api::proto::ferry::v1::{EmbedRequest, ModelOptions, inference_client::InferenceClient};

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Time of each call, shortest first.
    pub latencies: Vec<Duration>,
    /// Of each call, its time less the time its batch ran.
    pub overheads: Vec<Duration>,
    /// Sum of the rows of the batches that the calls travelled in.
    pub batch_rows: u64,
    /// Time that was measured.
    pub elapsed: Duration,
    /// Calls that failed.
    pub errors: u64,
}

impl Seen {
    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Mean rows of the batch that a call travelled in.
    pub fn mean_batch_rows(&self) -> f64 {
        self.batch_rows as f64 / self.latencies.len().max(1) as f64
    }

    fn take(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.overheads.extend(other.overheads);
        self.batch_rows += other.batch_rows;
        self.errors += other.errors;
    }
}

/// The value below which `share` of the sorted `values` lie.
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let at = (values.len() as f64 * share) as usize;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

/// Embeds `texts` on `model` with so many clients for `warm_up` and then for `measure`.
///
/// # Errors
/// When a client can't connect.
pub async fn closed_loop(
    url: &str,
    model: &str,
    texts: Arc<Vec<String>>,
    clients: usize,
    warm_up: Duration,
    measure: Duration,
) -> Result<Seen, Failure> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
    // One connection for every 8 clients, as backends with a small pool do.
    let mut channels = Vec::new();
    for _ in 0..clients.div_ceil(8) {
        channels.push(endpoint.connect().await?);
    }
    let begin = Instant::now() + warm_up;
    let end = begin + measure;
    let mut running = tokio::task::JoinSet::new();
    for client in 0..clients {
        let channel = channels[client % channels.len()].clone();
        let texts = Arc::clone(&texts);
        let model = model.to_owned();
        running.spawn(async move {
            let mut inference = InferenceClient::new(channel);
            let mut seen = Seen::default();
            for at in (client * 7..).step_by(1) {
                let sent = Instant::now();
                if sent >= end {
                    break;
                }
                let request = EmbedRequest {
                    options: Some(ModelOptions {
                        model: model.clone(),
                        ..ModelOptions::default()
                    }),
                    texts: vec![texts[at % texts.len()].clone()],
                    ..EmbedRequest::default()
                };
                let answer = inference.embed(request).await;
                let latency = sent.elapsed();
                if sent < begin {
                    continue;
                }
                match answer {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        let execute = answer.timing.map_or(0, |timing| timing.execute_us);
                        let execute = Duration::from_micros(execute);
                        seen.latencies.push(latency);
                        seen.overheads.push(latency.saturating_sub(execute));
                        let rows = answer.rows.first().and_then(|row| row.info);
                        seen.batch_rows += rows.map_or(0, |info| u64::from(info.batch_rows));
                    }
                    Err(_) => seen.errors += 1,
                }
            }
            seen
        });
    }
    let mut seen = Seen::default();
    while let Some(client) = running.join_next().await {
        seen.take(client?);
    }
    seen.elapsed = begin.elapsed();
    seen.latencies.sort_unstable();
    seen.overheads.sort_unstable();
    Ok(seen)
}
