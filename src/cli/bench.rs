//! `ferry bench`: an embedding model in process and served over gRPC, measured in one run.
//!
//! In process: the model alone, on tokenized rows, in batches of so many. Served: a server of its
//! own in this process (or a running one, with `--url`) under closed-loop clients over loopback.
//! The machine is shared by clients and server, as in any single-machine measurement.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Failure, io_runtime,
    load_client::{Seen, closed_loop, percentile},
};
use crate::{
    config::{ServerConfig, Task},
    models::{EncoderModel, LoadOptions, PackedBatch},
    repository::{find_models, head_of, read_manifest},
    server::Server,
    text::{RowInput, TextEncoder},
};

/// Single sentences of 7 to 40 words.
const SENTENCES: &str = include_str!("../../benches/sentences.txt");

/// Measure an embedding model in process and served over gRPC.
#[derive(Debug, Args)]
pub struct Bench {
    /// The model.
    #[arg(long, default_value = "minilm")]
    model: String,
    /// The models folder.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        env = "FERRY_MODELS"
    )]
    models: PathBuf,
    /// Numbers of closed-loop clients; the in-process batches have as many rows.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    clients: Vec<usize>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// A running server instead of one in this process; leaves the in-process figures out.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Texts to embed, one a line, instead of the built-in sentences.
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug)]
struct InProcess {
    rows: usize,
    rows_per_second: f64,
    tokens_per_second: f64,
}

impl Bench {
    pub fn run(self) -> Result<(), Failure> {
        let texts = match &self.texts {
            Some(path) => std::fs::read_to_string(path)?,
            None => SENTENCES.to_owned(),
        };
        let texts: Vec<String> = texts
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(str::to_owned)
            .collect();
        if texts.is_empty() || self.clients.is_empty() || self.clients.contains(&0) {
            return Err("at least one text and one client are needed".into());
        }
        let texts = Arc::new(texts);
        let measure = Duration::from_secs(self.seconds.max(1));
        let mut alone = Vec::new();
        if self.url.is_none() {
            let (model, text) = self.load()?;
            for &rows in &self.clients {
                alone.push(in_process(&model, &text, &texts, rows, measure)?);
            }
        }
        let served = io_runtime()?.block_on(self.served(&texts, measure))?;
        if self.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&self.report(&alone, &served))?
            );
        } else {
            self.print(&alone, &served);
        }
        Ok(())
    }

    fn load(&self) -> Result<(EncoderModel, TextEncoder), Failure> {
        let models = find_models(&self.models)?;
        let model = models.iter().find(|model| model.name == self.model);
        let (model, version) = model
            .and_then(|model| Some((model, *model.versions.last()?)))
            .ok_or_else(|| format!("model '{}' is not in {}", self.model, self.models.display()))?;
        let dir = model.version_dir(version);
        let manifest = read_manifest(model, &dir)?;
        if manifest.task != Task::Embed {
            return Err(format!(
                "model '{}' does '{}', not 'embed'",
                model.name, manifest.task
            )
            .into());
        }
        let head = head_of(&manifest)?;
        let encoder = EncoderModel::load(&dir, &LoadOptions { head }, &candle_core::Device::Cpu)?;
        let max_tokens = match manifest.input.max_tokens {
            0 => encoder.spec().max_tokens(),
            limit => limit,
        };
        let text = TextEncoder::load(
            &dir,
            encoder.spec().vocabulary,
            encoder.spec().type_vocabulary > 1,
            max_tokens,
            manifest.input.truncation,
        )?;
        Ok((encoder, text))
    }

    async fn served(
        &self,
        texts: &Arc<Vec<String>>,
        measure: Duration,
    ) -> Result<Vec<(usize, Seen)>, Failure> {
        let mut server = None;
        let url = if let Some(url) = &self.url {
            url.clone()
        } else {
            let mut config = ServerConfig::default();
            config.models.directory.clone_from(&self.models);
            config.models.serve = vec![self.model.clone()];
            (config.grpc.port, config.http.port) = (0, 0);
            let mut started = Server::start(config).await?;
            if started.loaded().await == 0 {
                return Err(format!("model '{}' did not load", self.model).into());
            }
            let url = format!("http://127.0.0.1:{}", started.grpc_address.port());
            server = Some(started);
            url
        };
        let mut served = Vec::new();
        for &clients in &self.clients {
            let warm_up = Duration::from_secs(2);
            let texts = Arc::clone(texts);
            let seen = closed_loop(&url, &self.model, texts, clients, warm_up, measure).await?;
            served.push((clients, seen));
        }
        if let Some(server) = server {
            server.shut_down().await;
        }
        Ok(served)
    }

    fn print(&self, alone: &[InProcess], served: &[(usize, Seen)]) {
        println!("model {}, {} s each\n", self.model, self.seconds);
        if !alone.is_empty() {
            println!("in process   rows/batch     rows/s   tokens/s");
            for alone in alone {
                println!(
                    "             {:>10} {:>10.1} {:>10.0}",
                    alone.rows, alone.rows_per_second, alone.tokens_per_second
                );
            }
            println!();
        }
        println!(
            "served       clients     rows/s   rows/batch    p50 ms    p99 ms   overhead p50 µs   of in-process   errors"
        );
        for (clients, seen) in served {
            let share = share_of(alone, *clients, seen);
            println!(
                "             {clients:>7} {:>10.1} {:>12.1} {:>9.2} {:>9.2} {:>17} {:>15} {:>8}",
                seen.rate(),
                seen.mean_batch_rows(),
                milliseconds(percentile(&seen.latencies, 0.5)),
                milliseconds(percentile(&seen.latencies, 0.99)),
                percentile(&seen.overheads, 0.5).as_micros(),
                share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
                seen.errors
            );
        }
        if let ([(few, first), .., (many, last)], true) = (served, served.len() > 1) {
            let ratio = last.rate() / first.rate();
            println!("\n{many} clients ÷ {few}: {ratio:.2} × the throughput");
        }
    }

    fn report(&self, alone: &[InProcess], served: &[(usize, Seen)]) -> Value {
        let in_process: Vec<_> = alone
            .iter()
            .map(|alone| {
                json!({
                    "rows_per_batch": alone.rows,
                    "rows_per_second": alone.rows_per_second,
                    "tokens_per_second": alone.tokens_per_second,
                })
            })
            .collect();
        let served: Vec<_> = served
            .iter()
            .map(|(clients, seen)| {
                json!({
                    "clients": clients,
                    "rows_per_second": seen.rate(),
                    "mean_rows_per_batch": seen.mean_batch_rows(),
                    "p50_ms": milliseconds(percentile(&seen.latencies, 0.5)),
                    "p99_ms": milliseconds(percentile(&seen.latencies, 0.99)),
                    "overhead_p50_us": percentile(&seen.overheads, 0.5).as_micros() as u64,
                    "share_of_in_process": share_of(alone, *clients, seen),
                    "errors": seen.errors,
                })
            })
            .collect();
        json!({
            "model": self.model,
            "seconds": self.seconds,
            "in_process": in_process,
            "served": served,
        })
    }
}

/// Served throughput over that of the model alone in batches of as many rows.
fn share_of(alone: &[InProcess], clients: usize, seen: &Seen) -> Option<f64> {
    let alone = alone.iter().find(|alone| alone.rows == clients)?;
    Some(seen.rate() / alone.rows_per_second)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn in_process(
    model: &EncoderModel,
    text: &TextEncoder,
    texts: &[String],
    rows: usize,
    measure: Duration,
) -> Result<InProcess, Failure> {
    let encoded = texts
        .iter()
        .map(|line| text.encode(&RowInput::Text(line.clone()), None, None))
        .collect::<Result<Vec<_>, _>>()?;
    let mut next = 0;
    let mut run = || -> Result<usize, Failure> {
        let mut batch = PackedBatch::with_capacity(rows, rows * 64);
        for _ in 0..rows {
            let row = &encoded[next % encoded.len()];
            batch.push_row(&row.ids, Some(&row.type_ids));
            next += 1;
        }
        model.forward(&batch)?;
        Ok(batch.tokens().len())
    };
    for _ in 0..3 {
        run()?;
    }
    let (mut batches, mut tokens) = (0_u64, 0);
    let begin = Instant::now();
    while begin.elapsed() < measure {
        tokens += run()?;
        batches += 1;
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(InProcess {
        rows,
        rows_per_second: (batches * rows as u64) as f64 / seconds,
        tokens_per_second: tokens as f64 / seconds,
    })
}
