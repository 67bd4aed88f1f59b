//! `ferry jobs`: requests that can wait, on a running server, over gRPC.

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Read, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Failure, io_runtime,
    reach::{ClientKey, ClientTls, WithKey},
};
use crate::api::{
    json::to_json,
    proto::ferry::v1::{
        CancelJobRequest, DeleteJobRequest, GetJobRequest, Job, JobOptions, JobState,
        ListJobsRequest, ResultsForm, ResultsRequest, SubmitRequest, WatchJobRequest,
        jobs_client::JobsClient, results_response, submit_request::Part,
    },
};

/// Bytes of a file that travel in one message.
const PIECE_BYTES: usize = 256 << 10;

type Client = JobsClient<WithKey>;

/// Submit requests that can wait to a running server, and fetch their results.
#[derive(Debug, Args)]
pub struct Jobs {
    #[command(subcommand)]
    command: Command,
    /// The server's gRPC address.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:8001",
        env = "FERRY_URL"
    )]
    url: String,
    #[command(flatten)]
    tls: ClientTls,
    #[command(flatten)]
    key: ClientKey,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit a file of JSON lines: one request a line, as `ferry.v1.JobRow` in JSON or as in a batch
    /// of OpenAI's.
    Submit(Submit),
    /// List jobs, newest first.
    List {
        /// Jobs at most.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Tell how a job stands.
    Status {
        /// The job.
        id: String,
    },
    /// Follow a job until it has ended; exits with 1 unless it completed.
    Watch {
        /// The job.
        id: String,
    },
    /// Write a job's results as JSON lines.
    Results {
        /// The job.
        id: String,
        /// The first row.
        #[arg(long, value_name = "ROW", default_value_t = 0)]
        from: u32,
        /// Results at most; 0 for all.
        #[arg(long, value_name = "N", default_value_t = 0)]
        limit: u32,
        /// The file to write; standard output without.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Have no more rows of a job run.
    Cancel {
        /// The job.
        id: String,
    },
    /// Delete a job that has ended, with its results.
    Delete {
        /// The job.
        id: String,
    },
}

#[derive(Debug, Args)]
struct Submit {
    /// The file; - for standard input.
    file: PathBuf,
    /// What to call the job.
    #[arg(long, default_value = "")]
    label: String,
    /// Something to know of it later.
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = key_and_value)]
    metadata: Vec<(String, String)>,
    /// The time it has, in seconds; 0 for what the server gives.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    expires_in: u64,
    /// Whose it is.
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Follow it until it has ended.
    #[arg(long)]
    watch: bool,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Jobs {
    pub fn run(self) -> Result<(), Failure> {
        io_runtime()?.block_on(self.act())
    }

    async fn act(self) -> Result<(), Failure> {
        let token = self.key.token()?;
        let channel = self
            .tls
            .endpoint(&self.url)?
            .connect()
            .await
            .map_err(|error| format!("can't reach {}: {error}", self.url))?;
        // A line with a long answer is a long message.
        let mut client =
            JobsClient::with_interceptor(channel, token).max_decoding_message_size(usize::MAX);
        let json = self.json;
        match self.command {
            Command::Submit(submit) => {
                let watch = submit.watch;
                let job = submit.send(&mut client).await?;
                if watch {
                    return follow(&mut client, job.id, json).await;
                }
                print_job(&job, json)
            }
            Command::List { limit } => {
                let request = ListJobsRequest {
                    limit,
                    ..ListJobsRequest::default()
                };
                let jobs = client.list(request).await.map_err(said)?.into_inner().jobs;
                print_list(&jobs, json)
            }
            Command::Status { id } => {
                let job = client.get(GetJobRequest { id }).await.map_err(said)?;
                print_job(job.get_ref(), json)
            }
            Command::Watch { id } => follow(&mut client, id, json).await,
            Command::Results {
                id,
                from,
                limit,
                output,
            } => {
                let request = ResultsRequest {
                    id,
                    from_row: from,
                    limit,
                    form: ResultsForm::JsonLines.into(),
                };
                write_results(&mut client, request, output.as_deref()).await
            }
            Command::Cancel { id } => {
                let job = client.cancel(CancelJobRequest { id }).await.map_err(said)?;
                print_job(job.get_ref(), json)
            }
            Command::Delete { id } => {
                client.delete(DeleteJobRequest { id }).await.map_err(said)?;
                Ok(())
            }
        }
    }
}

impl Submit {
    async fn send(self, client: &mut Client) -> Result<Job, Failure> {
        let (input, bytes): (Box<dyn Read + Send>, _) = if self.file == Path::new("-") {
            (Box::new(std::io::stdin()), None)
        } else {
            let file = std::fs::File::open(&self.file)
                .map_err(|error| format!("{}: {error}", self.file.display()))?;
            let bytes = file.metadata()?.len();
            (Box::new(file), Some(bytes))
        };
        let options = JobOptions {
            label: self.label,
            metadata: self.metadata.into_iter().collect::<HashMap<_, _>>(),
            expires_in_seconds: self.expires_in,
        };
        let (parts, sent) = mpsc::channel(4);
        let reading =
            tokio::task::spawn_blocking(move || read_pieces(options, input, bytes, &parts));
        let mut request = tonic::Request::new(ReceiverStream::new(sent));
        if let Some(tenant) = self.tenant {
            request
                .metadata_mut()
                .insert("x-ferry-tenant", tenant.parse()?);
        }
        let job = client.submit(request).await;
        // What the server says of the rows tells more than that it read no further.
        let read = reading.await?;
        let job = job.map_err(said)?.into_inner();
        read?;
        Ok(job)
    }
}

/// Sends a file, piece by piece, until the server takes no more.
fn read_pieces(
    options: JobOptions,
    mut input: Box<dyn Read + Send>,
    bytes: Option<u64>,
    parts: &mpsc::Sender<SubmitRequest>,
) -> std::io::Result<()> {
    let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(style("{bar:40} {bytes} of {total_bytes}"));
    let mut part = Part::Options(options);
    loop {
        if parts
            .blocking_send(SubmitRequest { part: Some(part) })
            .is_err()
        {
            return Ok(());
        }
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        input
            .by_ref()
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut piece)?;
        if piece.is_empty() {
            bar.finish_and_clear();
            return Ok(());
        }
        bar.inc(piece.len() as u64);
        part = Part::JsonLines(piece);
    }
}

/// Shows a job until it has ended.
async fn follow(client: &mut Client, id: String, json: bool) -> Result<(), Failure> {
    let watched = client.watch(WatchJobRequest { id }).await.map_err(said)?;
    let mut states = watched.into_inner();
    let draws = !json && std::io::stderr().is_terminal();
    let bar = ProgressBar::new(0);
    bar.set_style(style("{bar:40} {pos} of {len} rows, {msg}"));
    if !draws {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut last = None;
    while let Some(job) = states.message().await.map_err(said)? {
        bar.set_length(job.rows.into());
        bar.set_position(ended_rows(&job).into());
        bar.set_message(progress(&job));
        if json {
            print_job(&job, true)?;
        } else if !draws {
            say!(
                "{}: {} of {} rows, {}",
                job.id,
                ended_rows(&job),
                job.rows,
                progress(&job)
            );
        }
        last = Some(job);
    }
    bar.finish_and_clear();
    let job = last.ok_or("the server told nothing of the job")?;
    if draws {
        print_job(&job, false)?;
    }
    match job.state() {
        JobState::Completed => Ok(()),
        state => Err(format!("{} is {}", job.id, state_name(state)).into()),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn ended_rows(job: &Job) -> u32 {
    job.done_rows + job.failed_rows + job.not_run_rows
}

fn progress(job: &Job) -> String {
    let mut text = state_name(job.state()).to_owned();
    if job.failed_rows > 0 {
        text = format!("{text}, {} failed", job.failed_rows);
    }
    if job.rows_per_second > 0.0 {
        text = format!("{text}, {:.0} rows/s", job.rows_per_second);
    }
    if !job.waiting_for.is_empty() {
        text = format!("{text}, waits: {}", job.waiting_for);
    }
    text
}

async fn write_results(
    client: &mut Client,
    request: ResultsRequest,
    output: Option<&Path>,
) -> Result<(), Failure> {
    let mut results = client.results(request).await.map_err(said)?.into_inner();
    let mut output: Box<dyn std::io::Write> = match output {
        Some(path) => Box::new(
            std::fs::File::create(path).map_err(|error| format!("{}: {error}", path.display()))?,
        ),
        None => Box::new(std::io::stdout().lock()),
    };
    while let Some(piece) = results.message().await.map_err(said)? {
        if let Some(results_response::Part::JsonLines(lines)) = piece.part {
            output.write_all(&lines)?;
        }
    }
    Ok(output.flush()?)
}

fn print_job(job: &Job, json: bool) -> Result<(), Failure> {
    if json {
        say!("{}", String::from_utf8(to_json(job, "ferry.v1.Job")?)?);
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    let mut row = |name: &str, value: String| match value.as_str() {
        "" => Ok(()),
        value => writeln!(out, "{name:<12} {value}"),
    };
    row("job", job.id.clone())?;
    row("label", job.label.clone())?;
    row("state", state_name(job.state()).to_owned())?;
    let mut rows = format!("{} of {} ended", ended_rows(job), job.rows);
    for (count, what) in [(job.failed_rows, "failed"), (job.not_run_rows, "not run")] {
        if count > 0 {
            rows = format!("{rows}, {count} {what}");
        }
    }
    row("rows", rows)?;
    row("waits for", job.waiting_for.clone())?;
    row("tenant", job.tenant.clone())?;
    let mut metadata: Vec<_> = job.metadata.iter().collect();
    metadata.sort();
    for (key, value) in metadata {
        row("metadata", format!("{key}={value}"))?;
    }
    row("on disk", format!("{} KiB", job.bytes.div_ceil(1024)))?;
    for (name, time) in [
        ("created", &job.created),
        ("started", &job.started),
        ("ended", &job.ended),
        ("expires", &job.expires),
    ] {
        let told = name != "expires" || job.ended.is_none();
        row(
            name,
            time.as_ref().filter(|_| told).map_or_else(String::new, ago),
        )?;
    }
    for fault in &job.faults {
        row("fault", format!("line {}: {}", fault.line, fault.message))?;
    }
    Ok(())
}

fn print_list(jobs: &[Job], json: bool) -> Result<(), Failure> {
    if json {
        for job in jobs {
            print_job(job, true)?;
        }
        return Ok(());
    }
    let line = |cells: [&str; 6]| {
        let [id, state, rows, failed, created, label] = cells;
        let text =
            format!("{id:<20}  {state:<10}  {rows:>15}  {failed:>7}  {created:>12}  {label}");
        say!("{}", text.trim_end());
    };
    line(["JOB", "STATE", "ROWS", "FAILED", "CREATED", "LABEL"]);
    for job in jobs {
        let rows = format!("{}/{}", ended_rows(job), job.rows);
        let created = job.created.as_ref().map_or_else(String::new, ago);
        let failed = job.failed_rows.to_string();
        let state = state_name(job.state());
        line([&job.id, state, &rows, &failed, &created, &job.label]);
    }
    Ok(())
}

/// How far a time is from now, for people.
fn ago(time: &prost_types::Timestamp) -> String {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(time.seconds.max(0) as u64);
    match SystemTime::now().duration_since(then) {
        Ok(past) => format!("{} ago", span(past)),
        Err(future) => format!("in {}", span(future.duration())),
    }
}

fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Validating => "validating",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Cancelling => "cancelling",
        JobState::Completed => "completed",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Expired => "expired",
    }
}

/// A status as people read it.
#[allow(clippy::needless_pass_by_value, reason = "used with map_err")]
fn said(status: tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::Unknown | tonic::Code::Unavailable if status.message().is_empty() => {
            "the server is gone".into()
        }
        code => format!("{} ({code:?})", status.message()).into(),
    }
}
