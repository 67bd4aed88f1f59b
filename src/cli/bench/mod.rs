//! `ferry bench`: puts load on a server, Ferry or another, and tells what it bears.
//!
//! Closed loop (clients that wait for their answers) or open loop (calls at a rate of their own), over
//! the protocols of Ferry, Open Inference servers, text-embeddings-inference and OpenAI; sweeps over
//! loads and forms of calls; a search for the highest rate that keeps a promise. Without `--url` the
//! server is one in this process, and an embedding model is measured alone, too, in turn with it.

mod alone;
mod arrivals;
mod load;
mod page;
mod report;
mod slo;
mod stability;
mod table;
mod tally;
mod target;
mod work;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    alone::{Alone, InProcess},
    arrivals::Spacing,
    load::{Load, Run, Timing},
    report::{Found, Measured, Offered, Report, Tried, trial},
    slo::{Search, Slo},
    tally::Tally,
    target::{Asked, Endpoint, Target},
    work::{Shape, Work},
};
use super::{Failure, io_runtime, reach::ClientTls};
use crate::{config::ServerConfig, server::Server};

/// Words of a prompt where nothing says how many, nor what it is.
const PROMPT_WORDS: usize = 80;

/// Texts that are tokenized beforehand for a model without a server, where they are drawn.
const DRAWN_TEXTS: usize = 512;

/// Longest time that anything may take.
const LONGEST_S: f64 = 86_400.0;

/// Measure what a server bears, or an embedding model in process beside it.
#[derive(Debug, Args)]
pub struct Bench {
    /// The model.
    #[arg(long, default_value = "minilm")]
    model: String,
    /// The models folder, for a server in this process.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        env = "FERRY_MODELS"
    )]
    models: PathBuf,
    /// A running server instead of one in this process; leaves the in-process figures out.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    tls: ClientTls,
    /// What is asked, and in which protocol.
    #[arg(long, value_enum, default_value_t = Endpoint::Embed)]
    endpoint: Endpoint,
    /// A header of every call, such as `authorization: Bearer KEY`; may be given more than once.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The tensor that takes the text, with open-inference; by default the first of BYTES.
    #[arg(long, value_name = "NAME")]
    input: Option<String>,

    /// Numbers of closed-loop clients; the in-process batches have as many calls' rows.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,8,32",
        value_parser = at_least_one,
        conflicts_with = "rate"
    )]
    clients: Vec<usize>,
    /// Open loop instead: calls a second, whatever the server does.
    #[arg(long, value_delimiter = ',', value_name = "RATE", value_parser = rate)]
    rate: Vec<f64>,
    /// How the calls of an open loop are spread.
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    arrivals: Spacing,
    /// Of an open loop's times and of drawn texts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Calls of an open loop that are under way at most; others wait, and their latency says so.
    #[arg(long, value_name = "CALLS", default_value_t = 512, value_parser = in_flight)]
    max_in_flight: usize,

    /// Texts of a call; several are measured in turn.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = at_least_one)]
    rows: Vec<usize>,
    /// Words of a text, drawn from those of all texts; several are measured in turn. By default texts
    /// are taken as they are, and prompts have 80 words.
    #[arg(long, value_delimiter = ',', value_parser = at_least_one)]
    words: Vec<usize>,
    /// Texts, one a line, instead of the built-in sentences.
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Tokens that an answer has, where text is written.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Let answers end where the model ends them. Else the server is told to go on (`ignore_eos`, which
    /// Ferry, vLLM and llama.cpp know), so that all answers have as many tokens.
    #[arg(long)]
    end_early: bool,

    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds of load before each measurement that don't count.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds_or_none)]
    warm_up: f64,
    /// Rounds; in each, all loads (and in process and served) take turns, and ratios are taken within a
    /// round, so that a machine whose speed drifts does not spoil them. Medians are printed.
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    rounds: usize,
    /// Seconds after which a call has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    timeout: f64,

    /// What is promised: 99 in 100 calls take no longer.
    #[arg(long, value_name = "MS", value_parser = rate)]
    slo_p99: Option<f64>,
    /// What is promised: 99 in 100 first tokens take no longer.
    #[arg(long, value_name = "MS", value_parser = rate)]
    slo_ttft: Option<f64>,
    /// What is promised: 99 in 100 times between tokens are no longer.
    #[arg(long, value_name = "MS", value_parser = rate)]
    slo_itl: Option<f64>,
    /// Search the highest rate that keeps the promise, in place of the loads given.
    #[arg(long, conflicts_with_all = ["rate", "clients"])]
    find_rate: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write a report with pictures, one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Bench {
    /// Measures, and prints what was found.
    ///
    /// # Errors
    /// When the server can't be reached or refuses the first call, or a file can't be read or written.
    pub fn run(self) -> Result<(), Failure> {
        self.check()?;
        let work = Arc::new(Work::read(self.texts.as_deref(), self.seed)?);
        let report = io_runtime()?.block_on(self.measure(work))?;
        if let Some(path) = &self.html {
            std::fs::write(path, page::page(&report)?)
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if self.json {
            say!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            say_part!("{}", table::terminal(&report));
        }
        for doubt in table::doubts(&report) {
            say_aside!("ferry: {doubt}");
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        if self.endpoint.generates() && self.rows != [1] {
            return Err(format!("--rows: {} takes one text a call", self.endpoint).into());
        }
        if self.url.is_none() && self.endpoint == Endpoint::Tei {
            return Err("--endpoint tei: Ferry has no such route; give the --url of one".into());
        }
        let slo = self.slo();
        if self.find_rate && slo.is_empty() {
            return Err("--find-rate: give a promise: --slo-p99, --slo-ttft or --slo-itl".into());
        }
        if (slo.ttft_ms.is_some() || slo.itl_ms.is_some()) && !self.endpoint.generates() {
            return Err(format!("--slo-ttft, --slo-itl: {} does not stream", self.endpoint).into());
        }
        Ok(())
    }

    async fn measure(&self, work: Arc<Work>) -> Result<Report, Failure> {
        let is_alone_too = self.url.is_none()
            && self.endpoint == Endpoint::Embed
            && self.rate.is_empty()
            && !self.find_rate;
        let alone = if is_alone_too {
            Some(Alone::load(&self.models, &self.model)?)
        } else {
            None
        };
        let (server, url) = if let Some(url) = &self.url {
            (None, url.clone())
        } else {
            let server = self.start().await?;
            let address = if self.endpoint.is_grpc() {
                server.grpc_address
            } else {
                server.http_address
            };
            (Some(server), format!("http://127.0.0.1:{}", address.port()))
        };
        let report = self.ask(&url, &work, alone).await;
        if let Some(server) = server {
            server.shut_down().await;
        }
        report
    }

    async fn ask(
        &self,
        url: &str,
        work: &Arc<Work>,
        alone: Option<Alone>,
    ) -> Result<Report, Failure> {
        let asked = Asked {
            endpoint: self.endpoint,
            model: self.model.clone(),
            headers: self.headers.clone(),
            max_tokens: self.max_tokens,
            may_end_early: self.end_early,
            input: self.input.clone(),
        };
        let target = Arc::new(Target::find(url, asked, &self.tls).await?);
        let shapes = self.shapes();
        let runs: Vec<_> = shapes
            .into_iter()
            .map(|shape| Run {
                target: Arc::clone(&target),
                work: Arc::clone(work),
                shape,
                timing: Timing {
                    warm_up: Duration::from_secs_f64(self.warm_up),
                    measure: Duration::from_secs_f64(self.seconds),
                    timeout: Duration::from_secs_f64(self.timeout),
                },
                slo: self.slo(),
            })
            .collect();
        for run in &runs {
            run.try_one().await?;
        }
        let mut report = Report {
            ferry: env!("CARGO_PKG_VERSION"),
            model: self.model.clone(),
            endpoint: self.endpoint,
            url: self.url.clone(),
            seconds: self.seconds,
            rounds: if self.find_rate { 1 } else { self.rounds },
            arrivals: self.arrivals,
            seed: self.seed,
            slo: self.slo(),
            measured: Vec::new(),
            searches: Vec::new(),
        };
        if self.find_rate {
            for run in &runs {
                report.searches.push(self.search(run).await?);
            }
        } else {
            report.measured = self.sweep(&runs, alone).await?;
        }
        Ok(report)
    }

    /// Every load with every form of call, round after round.
    async fn sweep(
        &self,
        runs: &[Run],
        mut alone: Option<Alone>,
    ) -> Result<Vec<Measured>, Failure> {
        let points: Vec<(&Run, Offered)> = runs
            .iter()
            .flat_map(|run| {
                self.offered()
                    .into_iter()
                    .map(move |offered| (run, offered))
            })
            .collect();
        let mut rounds: Vec<Vec<(Option<InProcess>, Tally)>> = Vec::new();
        rounds.resize_with(points.len(), Vec::new);
        let bar = progress(Some((points.len() * self.rounds) as u64));
        for round in 0..self.rounds {
            for ((run, offered), rounds) in points.iter().zip(&mut rounds) {
                bar.set_message(offered.to_string());
                let in_process = match (&mut alone, offered) {
                    (Some(alone), Offered::Clients(clients)) => {
                        let count = match run.shape.words {
                            Some(_) => DRAWN_TEXTS,
                            None => run.work.len(),
                        };
                        let rows = clients * run.shape.rows;
                        let texts = run.work.sample(count, run.shape.words);
                        Some(tokio::task::block_in_place(|| {
                            alone.take_texts(texts)?;
                            alone.run(rows, run.timing.measure)
                        })?)
                    }
                    _ => None,
                };
                let seed = self.seed.wrapping_add(round as u64);
                rounds.push((in_process, run.measure(self.load(*offered, seed)).await?));
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let measured = points.iter().zip(&rounds);
        Ok(measured
            .map(|((run, offered), rounds)| Measured::of(*offered, run.shape, rounds))
            .collect())
    }

    /// The highest rate at which the promise is kept.
    async fn search(&self, run: &Run) -> Result<Found, Failure> {
        let bar = progress(None);
        bar.set_message("one client, to know where to begin");
        let lone = run
            .measure(self.load(Offered::Clients(1), self.seed))
            .await?;
        let start = lone.calls_per_second();
        if start <= 0.0 {
            return Err(
                "one client got no answer within a measurement: make --seconds longer".into(),
            );
        }
        let mut search = Search::new(start, 1.0 / self.seconds);
        let mut trials = Vec::new();
        while let Some(rate) = search.next_rate() {
            let offered = Offered::Rate(rate);
            bar.set_message(format!("{offered}, trial {}", trials.len() + 1));
            let tally = run.measure(self.load(offered, self.seed)).await?;
            let broken = run.slo.broken_by(&trial(&tally));
            search.tell(rate, broken.is_empty());
            trials.push(Tried {
                broken,
                measured: Measured::of(offered, run.shape, &[(None, tally)]),
            });
        }
        bar.finish_and_clear();
        Ok(Found {
            rows: run.shape.rows,
            words: run.shape.words,
            rate: search.found(),
            trials,
        })
    }

    fn slo(&self) -> Slo {
        Slo {
            p99_ms: self.slo_p99,
            ttft_ms: self.slo_ttft,
            itl_ms: self.slo_itl,
        }
    }

    fn shapes(&self) -> Vec<Shape> {
        let words: Vec<Option<usize>> = if !self.words.is_empty() {
            self.words.iter().copied().map(Some).collect()
        } else if self.endpoint.generates() && self.texts.is_none() {
            vec![Some(PROMPT_WORDS)]
        } else {
            vec![None]
        };
        let mut shapes = Vec::new();
        for &rows in &self.rows {
            shapes.extend(words.iter().map(|&words| Shape { rows, words }));
        }
        shapes
    }

    fn offered(&self) -> Vec<Offered> {
        if self.rate.is_empty() {
            self.clients.iter().copied().map(Offered::Clients).collect()
        } else {
            self.rate.iter().copied().map(Offered::Rate).collect()
        }
    }

    fn load(&self, offered: Offered, seed: u64) -> Load {
        match offered {
            Offered::Clients(clients) => Load::Closed { clients },
            Offered::Rate(rate) => Load::Open {
                rate,
                spacing: self.arrivals,
                seed,
                in_flight: self.max_in_flight,
            },
        }
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
}

/// Progress on standard error; nothing where that is no terminal.
fn progress(steps: Option<u64>) -> ProgressBar {
    let (bar, template) = match steps {
        Some(steps) => (
            ProgressBar::new(steps),
            "{bar:30} {pos}/{len} {msg} {elapsed} ({eta} left)",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("allowed: NAME: VALUE".to_owned())?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let wrong = |error: &dyn std::fmt::Display| format!("{name}: {error}");
    hyper::header::HeaderName::try_from(&name).map_err(|error| wrong(&error))?;
    hyper::header::HeaderValue::try_from(value).map_err(|error| wrong(&error))?;
    Ok((name, value.to_owned()))
}

fn number(text: &str) -> Result<f64, String> {
    text.trim()
        .parse()
        .map_err(|_| "a number is allowed".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = number(text)?;
    // Below, the next call would be due in more than a day.
    if (1.0 / LONGEST_S..=1e7).contains(&rate) {
        return Ok(rate);
    }
    Err("allowed: above 0, up to 10 million".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = number(text)?;
    if (0.01..=LONGEST_S).contains(&seconds) {
        return Ok(seconds);
    }
    Err("allowed: 0.01 to 86400".to_owned())
}

fn seconds_or_none(text: &str) -> Result<f64, String> {
    match number(text)? {
        0.0 => Ok(0.0),
        _ => seconds(text),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(count) if count > 1_000_000 => Err("at most a million".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

fn in_flight(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        count if count > 65_536 => Err("at most 65536".to_owned()),
        count => Ok(count),
    }
}
