//! `ferry bench`: an embedding model in process and served over gRPC, measured in one run.
//!
//! In process: the model alone, on tokenized rows, in batches of so many. Served: a server of its
//! own in this process (or a running one, with `--url`) under as many closed-loop clients over
//! loopback. The machine is shared by clients and server, as in any single-machine measurement.

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
    models::{EncoderModel, PackedBatch},
    repository::{encoder_text, find_models, load_encoder, read_manifest},
    server::Server,
    text::{EncodeOptions, EncodedRow, RowInput},
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
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Rounds; in each, in process and served take turns, and ratios are taken within a round, so
    /// that a machine whose speed drifts does not spoil them. Medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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

/// One number of clients, measured over all rounds; medians.
#[derive(Debug, Default)]
struct Row {
    clients: usize,
    in_process_rows: Option<f64>,
    in_process_tokens: Option<f64>,
    served_rows: f64,
    /// Served over in process, within a round.
    share: Option<f64>,
    batch_rows: f64,
    p50: Duration,
    p99: Duration,
    overhead_p50: Duration,
    errors: u64,
}

/// A model without a server around it.
struct Alone {
    model: EncoderModel,
    rows: Vec<EncodedRow>,
    next: usize,
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
        let alone = match self.url {
            Some(_) => None,
            None => Some(self.load(&texts)?),
        };
        let rows = io_runtime()?.block_on(self.measure(Arc::new(texts), alone))?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.report(&rows))?);
        } else {
            self.print(&rows);
        }
        Ok(())
    }

    fn load(&self, texts: &[String]) -> Result<Alone, Failure> {
        let models = find_models(&self.models)?;
        let model = models.iter().find(|model| model.name == self.model);
        let (model, version) = model
            .and_then(|model| Some((model, *model.versions.last()?)))
            .ok_or_else(|| format!("model '{}' is not in {}", self.model, self.models.display()))?;
        let dir = model.version_dir(version);
        let manifest = read_manifest(model, &dir)?;
        if manifest.task != Task::Embed {
            return Err(format!("'{}' does '{}', not 'embed'", model.name, manifest.task).into());
        }
        let encoder = load_encoder(&dir, &manifest)?;
        let max_tokens = match manifest.input.max_tokens {
            0 => encoder.spec().max_tokens(),
            limit => limit,
        };
        let spec = encoder.spec();
        let text = encoder_text(&dir, spec, max_tokens, manifest.input.truncation)?;
        let encode =
            |line: &String| text.encode(&RowInput::Text(line.clone()), EncodeOptions::default());
        Ok(Alone {
            model: encoder,
            rows: texts.iter().map(encode).collect::<Result<_, _>>()?,
            next: 0,
        })
    }

    async fn measure(
        &self,
        texts: Arc<Vec<String>>,
        mut alone: Option<Alone>,
    ) -> Result<Vec<Row>, Failure> {
        let server = match self.url {
            Some(_) => None,
            None => Some(self.start().await?),
        };
        let url = match (&self.url, &server) {
            (Some(url), _) => url.clone(),
            (None, Some(server)) => format!("http://127.0.0.1:{}", server.grpc_address.port()),
            (None, None) => unreachable!("a server was started"),
        };
        let time = Duration::from_secs(self.seconds.max(1));
        let warm_up = Duration::from_secs(1);
        let mut measured = Vec::new();
        for &clients in &self.clients {
            let mut rounds = Vec::new();
            for _ in 0..self.rounds.max(1) {
                let in_process = match &mut alone {
                    Some(alone) => Some(tokio::task::block_in_place(|| alone.run(clients, time))?),
                    None => None,
                };
                let texts = Arc::clone(&texts);
                let seen = closed_loop(&url, &self.model, texts, clients, warm_up, time).await?;
                rounds.push((in_process, seen));
            }
            measured.push(Row::of(clients, &rounds));
        }
        if let Some(server) = server {
            server.shut_down().await;
        }
        Ok(measured)
    }

    async fn start(&self) -> Result<Server, Failure> {
        let mut config = ServerConfig::default();
        config.models.directory.clone_from(&self.models);
        config.models.serve = vec![self.model.clone()];
        (config.grpc.port, config.http.port) = (0, 0);
        config.admin.enabled = false;
        let mut server = Server::start(config).await?;
        if server.loaded().await == 0 {
            return Err(format!("model '{}' did not load", self.model).into());
        }
        Ok(server)
    }

    fn print(&self, rows: &[Row]) {
        println!(
            "model {}, medians of {} rounds of {} s\n",
            self.model, self.rounds, self.seconds
        );
        println!("          in process          served");
        println!(
            "clients   rows/s  tokens/s    rows/s   share  rows/batch   p50 ms   p99 ms  overhead p50 µs  errors"
        );
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for row in rows {
            println!(
                "{:>7} {:>8} {:>9} {:>9.1} {:>7} {:>11.1} {:>8.2} {:>8.2} {:>16} {:>7}",
                row.clients,
                or_dash(row.in_process_rows.map(|rate| format!("{rate:.1}"))),
                or_dash(row.in_process_tokens.map(|rate| format!("{rate:.0}"))),
                row.served_rows,
                or_dash(row.share.map(|share| format!("{:.0} %", share * 100.0))),
                row.batch_rows,
                milliseconds(row.p50),
                milliseconds(row.p99),
                row.overhead_p50.as_micros(),
                row.errors
            );
        }
        if let ([few, .., many], true) = (rows, rows.len() > 1) {
            let ratio = many.served_rows / few.served_rows;
            println!(
                "\n{} clients ÷ {}: {ratio:.2} × the throughput",
                many.clients, few.clients
            );
        }
    }

    fn report(&self, rows: &[Row]) -> Value {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "clients": row.clients,
                    "in_process_rows_per_second": row.in_process_rows,
                    "in_process_tokens_per_second": row.in_process_tokens,
                    "served_rows_per_second": row.served_rows,
                    "served_share_of_in_process": row.share,
                    "mean_rows_per_batch": row.batch_rows,
                    "p50_ms": milliseconds(row.p50),
                    "p99_ms": milliseconds(row.p99),
                    "overhead_p50_us": row.overhead_p50.as_micros() as u64,
                    "errors": row.errors,
                })
            })
            .collect();
        json!({
            "model": self.model,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "measured": rows,
        })
    }
}

impl Row {
    fn of(clients: usize, rounds: &[(Option<InProcess>, Seen)]) -> Self {
        let over =
            |value: &dyn Fn(&Seen) -> f64| median(rounds.iter().map(|(_, seen)| value(seen)));
        let time = |share: f64, values: &dyn Fn(&Seen) -> Vec<Duration>| {
            let seconds = over(&|seen| percentile(&values(seen), share).as_secs_f64());
            Duration::from_secs_f64(seconds.unwrap_or(0.0))
        };
        let alone = |value: &dyn Fn(&InProcess) -> f64| {
            median(
                rounds
                    .iter()
                    .filter_map(|(alone, _)| alone.as_ref().map(value)),
            )
        };
        let shares = rounds.iter().filter_map(|(alone, seen)| {
            alone
                .as_ref()
                .map(|alone| seen.rate() / alone.rows_per_second)
        });
        Self {
            clients,
            in_process_rows: alone(&|alone| alone.rows_per_second),
            in_process_tokens: alone(&|alone| alone.tokens_per_second),
            served_rows: over(&Seen::rate).unwrap_or(0.0),
            share: median(shares),
            batch_rows: over(&Seen::mean_batch_rows).unwrap_or(0.0),
            p50: time(0.5, &|seen| seen.latencies.clone()),
            p99: time(0.99, &|seen| seen.latencies.clone()),
            overhead_p50: time(0.5, &|seen| seen.overheads.clone()),
            errors: rounds.iter().map(|(_, seen)| seen.errors).sum(),
        }
    }
}

#[derive(Debug)]
struct InProcess {
    rows_per_second: f64,
    tokens_per_second: f64,
}

impl Alone {
    fn run(&mut self, rows: usize, time: Duration) -> Result<InProcess, Failure> {
        let (mut batches, mut tokens) = (0_u64, 0);
        let begin = Instant::now();
        while begin.elapsed() < time {
            let mut batch = PackedBatch::with_capacity(rows, rows * 64);
            for _ in 0..rows {
                let row = &self.rows[self.next % self.rows.len()];
                batch.push_row(&row.ids, Some(&row.type_ids));
                self.next += 1;
            }
            self.model.forward(&batch)?;
            tokens += batch.tokens().len();
            batches += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        Ok(InProcess {
            rows_per_second: (batches * rows as u64) as f64 / seconds,
            tokens_per_second: tokens as f64 / seconds,
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
