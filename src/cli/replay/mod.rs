//! `ferry replay`: a request log is run again, on a running server, and its answers are compared with
//! those in the log.

mod read;
mod run;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use self::{
    read::Log,
    run::{Pace, Ran},
};
use super::{
    Failure,
    compare::{client::Client, judge::Judge, subject::split_version},
    io_runtime,
    reach::{ClientKey, ClientTls, WithKey},
};
pub use read::read as read_log;

use crate::{config::Task, quality::comparison::Figures};
use clap::Args;
use serde::Serialize;

/// Run a request log again, on a running server.
///
/// Requests go out when they did then, faster or slower by `--speed`, or as soon as those before are
/// answered with `--closed`. Only lines with full inputs can be run again.
#[derive(Debug, Args)]
pub struct Replay {
    /// A request log: JSON lines, as `[request_log]` has them written.
    log: PathBuf,
    /// The model that is asked, as NAME or NAME@VERSION.
    #[arg(long, value_name = "MODEL")]
    against: String,
    /// The server's gRPC address.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8001",
        env = "FERRY_URL"
    )]
    url: String,
    #[command(flatten)]
    tls: ClientTls,
    #[command(flatten)]
    key: ClientKey,
    /// How many times faster than then.
    #[arg(long, default_value_t = 1.0, value_parser = above_zero)]
    speed: f64,
    /// So many clients that send their next request when the last is answered, in place of the log's
    /// own pace.
    #[arg(long, value_name = "CLIENTS", conflicts_with = "speed", value_parser = clap::value_parser!(u16).range(1..=1024))]
    closed: Option<u16>,
    /// Lines of the log at most.
    #[arg(long, default_value_t = 100_000)]
    limit: usize,
    /// Time that one request may take, in seconds.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Least agreement; below it the exit code is 2.
    #[arg(long, value_name = "0 TO 1")]
    min_agreement: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    version: String,
    lines: read::Counts,
    sent: usize,
    failed: usize,
    /// Requests that differ from the log and can't be told apart from chance: their tokens were drawn.
    drawn: usize,
    seconds: f64,
    /// How late the latest request went out, in seconds: it had to wait for others.
    behind_seconds: f64,
    then_ms: Latency,
    now_ms: Latency,
    figures: Figures,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Latency {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        // The value below which `share` of the times lie.
        let at = |share: f64| {
            let place = (times.len() as f64 * share) as usize;
            let time = times.get(place.min(times.len().saturating_sub(1)));
            time.copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
        }
    }
}

impl Replay {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let report = io_runtime()?.block_on(self.replay())?;
        if self.json {
            say!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print(&report);
        }
        let least = self.min_agreement.unwrap_or(0.0);
        Ok(match report.figures.agreement {
            Some(agreement) if agreement < least => ExitCode::from(2),
            _ => ExitCode::SUCCESS,
        })
    }

    async fn replay(&self) -> Result<Report, Failure> {
        let (model, version) = split_version(&self.against);
        let endpoint = self.tls.endpoint(&self.url)?.tcp_nodelay(true);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| format!("{}: {error}; is the server there?", self.url))?;
        let channel = WithKey::new(channel, self.key.token()?);
        let client = Client::new(channel, model, version, Duration::from_secs(self.timeout));
        let (task, version) = client.describe().await?;
        let Log { requests, counts } = read::read(&self.log, task, self.limit)?;
        if requests.is_empty() {
            return Err(format!(
                "{}: no line to run: {} are of other tasks than {task}, {} have no full input (see \
                 request_log.inputs), {} are token ids, {} had no answer",
                self.log.display(),
                counts.other_task,
                counts.not_full,
                counts.token_ids,
                counts.unanswered
            )
            .into());
        }
        let pace = match self.closed {
            Some(clients) => Pace::Closed(usize::from(clients)),
            None => Pace::Open(self.speed),
        };
        let ran = run::run(&client, task, &requests, pace).await?;
        report(model.to_owned(), version, task, &requests, counts, ran)
    }
}

fn report(
    model: String,
    version: String,
    task: Task,
    requests: &[read::Request],
    counts: read::Counts,
    ran: Ran,
) -> Result<Report, Failure> {
    let mut judge = Judge::new(task, None, true);
    let (mut failed, mut drawn) = (0, 0);
    let mut now = Vec::with_capacity(requests.len());
    for (request, answered) in requests.iter().zip(ran.answers) {
        let Some((answers, latency)) = answered else {
            failed += 1;
            continue;
        };
        now.push(latency);
        failed += usize::from(answers.iter().all(Result::is_err));
        if !request.is_comparable(&model) {
            drawn += 1;
            continue;
        }
        for ((input, then), answer) in request.inputs.iter().zip(&request.answers).zip(answers) {
            judge.observe(input, then.clone(), answer)?;
        }
    }
    let (comparison, _, _) = judge.finish();
    let then = requests.iter().map(|request| request.took).collect();
    Ok(Report {
        model,
        version,
        lines: counts,
        sent: requests.len(),
        failed,
        drawn,
        seconds: ran.elapsed.as_secs_f64(),
        behind_seconds: ran.behind.as_secs_f64(),
        then_ms: Latency::of(then),
        now_ms: Latency::of(now),
        figures: comparison.figures(),
    })
}

fn print(report: &Report) {
    let Report { lines, figures, .. } = report;
    say!(
        "{} requests of {} lines sent to {}@{} in {:.1} s, {} failed",
        report.sent,
        lines.read,
        report.model,
        report.version,
        report.seconds,
        report.failed
    );
    let left_out = lines.other_task + lines.not_full + lines.token_ids + lines.unanswered;
    if left_out > 0 {
        say!(
            "left out: {} of other tasks, {} without their full input, {} of token ids, {} that had \
             no answer, {} that are no lines of a log",
            lines.other_task,
            lines.not_full,
            lines.token_ids,
            lines.unanswered,
            lines.wrong
        );
    }
    if report.behind_seconds > 0.1 {
        say!(
            "the server was not fast enough: the latest request went out {:.1} s late",
            report.behind_seconds
        );
    }
    let row = |name: &str, latency: Latency| {
        say!(
            "{name:<28} p50 {:>9.2} ms  p95 {:>9.2} ms  p99 {:>9.2} ms",
            latency.p50,
            latency.p95,
            latency.p99
        );
    };
    row("then, in the server", report.then_ms);
    row("now, at the client", report.now_ms);
    match figures.agreement {
        Some(agreement) => say!(
            "answers of {} rows compared: agreement {agreement:.4}",
            figures.rows
        ),
        None => say!("no answers could be compared: the log has not kept them in full"),
    }
    if report.drawn > 0 {
        say!(
            "{} generations not compared: their tokens were drawn, or of another model's vocabulary",
            report.drawn
        );
    }
}

fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        Ok(_) => Err("above 0, at most 1000000".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}
