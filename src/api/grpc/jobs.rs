//! `ferry.v1.Jobs`: requests that can wait.

use std::{sync::Arc, time::Duration};

use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::Shared;
use crate::{
    admission::AllowedModels,
    api::{
        context::read_context,
        gate::allowed_models,
        jobs::{check_row, json_line, read_line, read_row, submitter, typed_result},
        proto::ferry::v1::{
            CancelJobRequest, DeleteJobRequest, DeleteJobResponse, GetJobRequest, Job, JobOptions,
            JobState as ProtoState, LineFault as ProtoFault, ListJobsRequest, ListJobsResponse,
            ResultsForm, ResultsRequest, ResultsResponse, SubmitRequest, WatchJobRequest,
            jobs_server::Jobs as JobsRpc, results_response, submit_request::Part,
        },
        status::status_of,
    },
    error::RequestError,
    jobs::{
        JobId, JobRecord, JobRequest, JobState, Jobs, LineFault, LineSplitter, NewRow, Submission,
        Submitter,
    },
};

/// Messages that wait for a slow reader.
const UNREAD: usize = 4;

/// Results that are read from disk at a time, or as many as have [`READ_BYTES`].
const READ_RESULTS: usize = 256;
const READ_BYTES: usize = 1 << 20;

/// Bytes of JSON lines in one message; gRPC clients take 4 MiB where they are not told otherwise.
const PIECE_BYTES: usize = 1 << 20;

/// Time between two messages of a watched job.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// Jobs that a listing tells of.
const LIST_DEFAULT: usize = 100;

/// Whose rows they are that nobody calls theirs.
pub const DEFAULT_TENANT: &str = "jobs";

/// The service.
#[derive(Debug, Clone)]
pub struct JobsService {
    shared: Shared,
}

impl JobsService {
    pub fn new(shared: Shared) -> Self {
        Self { shared }
    }

    fn jobs(&self) -> Result<&Jobs, Status> {
        self.shared.jobs().map_err(|error| status_of(&error))
    }

    fn find(&self, name: &str) -> Result<(Jobs, Arc<JobRecord>), RequestError> {
        let jobs = self.shared.jobs()?;
        let job = jobs.job(parse_id(name)?)?;
        Ok((jobs.clone(), job))
    }

    fn tenant(&self, metadata: &MetadataMap) -> Result<String, RequestError> {
        let most = self.shared.admission.limits().max_metadata_bytes;
        let tenant = read_context(metadata, most)?.tenant;
        Ok(if tenant.is_empty() {
            DEFAULT_TENANT.to_owned()
        } else {
            tenant.to_string()
        })
    }

    async fn take_in(
        &self,
        (tenant, submitter): (String, Submitter),
        mut parts: Streaming<SubmitRequest>,
    ) -> Result<Job, Status> {
        let jobs = self.jobs()?;
        let mut closing = self.shared.closing.clone();
        let mut part = next_part(&mut parts, &mut closing).await?;
        let mut options = JobOptions::default();
        if let Some(Part::Options(given)) = part {
            options = given;
            part = next_part(&mut parts, &mut closing).await?;
        }
        let request = job_request(options, tenant, submitter);
        let submission = jobs
            .submit(request)
            .await
            .map_err(|error| status_of(&error))?;
        let most = jobs.config().max_row_bytes;
        let mut intake = Intake {
            submission,
            models: allowed_models(),
            lines: None,
            ready: Vec::new(),
        };
        while let Some(given) = part {
            let taken = intake.take(given, most).await;
            taken.map_err(|error| status_of(&error))?;
            part = next_part(&mut parts, &mut closing).await?;
        }
        let job = intake.finish().await.map_err(|error| status_of(&error))?;
        Ok(tell(jobs, &job))
    }
}

async fn next_part(
    parts: &mut Streaming<SubmitRequest>,
    closing: &mut watch::Receiver<bool>,
) -> Result<Option<Part>, Status> {
    let message = tokio::select! {
        biased;
        () = closed(closing) => return Err(status_of(&RequestError::ShuttingDown)),
        message = parts.message() => message?,
    };
    match message {
        None => Ok(None),
        Some(SubmitRequest { part: Some(part) }) => Ok(Some(part)),
        Some(SubmitRequest { part: None }) => {
            let allowed = "options, rows or json_lines";
            Err(status_of(&RequestError::invalid(
                "part", "nothing", allowed,
            )))
        }
    }
}

/// A job as its rows come in.
struct Intake {
    submission: Submission,
    /// Those that its rows may be for.
    models: AllowedModels,
    /// Where they come as lines.
    lines: Option<LineSplitter>,
    /// Rows of whole lines.
    ready: Vec<(u32, NewRow)>,
}

impl Intake {
    async fn take(&mut self, part: Part, max_line_bytes: usize) -> Result<(), RequestError> {
        let both = |found| {
            Err(RequestError::invalid(
                "part",
                found,
                "only rows or only json_lines",
            ))
        };
        match part {
            Part::Options(_) => {
                return Err(RequestError::invalid(
                    "part",
                    "options after something else",
                    "options first",
                ));
            }
            Part::Rows(_) if self.lines.is_some() => return both("rows after json_lines"),
            Part::JsonLines(_) if self.lines.is_none() && self.submission.rows() > 0 => {
                return both("json_lines after rows");
            }
            Part::Rows(rows) => {
                for row in rows.rows {
                    let field = format!("rows[{}]", self.submission.rows());
                    let row = read_row(row, &field)?;
                    check_row(&self.models, &row, &field)?;
                    self.submission.add(0, row).await?;
                }
            }
            Part::JsonLines(bytes) => {
                let lines = self
                    .lines
                    .get_or_insert_with(|| LineSplitter::new(max_line_bytes));
                let ready = &mut self.ready;
                lines.push::<Refused>(&bytes, |number, line| {
                    ready.push((number, read_line(number, line)?));
                    Ok(())
                })?;
                self.add_ready().await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Arc<JobRecord>, RequestError> {
        if let Some(lines) = self.lines.take() {
            let ready = &mut self.ready;
            lines.finish::<Refused>(|number, line| {
                ready.push((number, read_line(number, line)?));
                Ok(())
            })?;
            self.add_ready().await?;
        }
        self.submission.finish().await
    }

    async fn add_ready(&mut self) -> Result<(), RequestError> {
        for (line, row) in std::mem::take(&mut self.ready) {
            check_row(&self.models, &row, &format!("line {line}"))?;
            self.submission.add(line, row).await?;
        }
        Ok(())
    }
}

/// Why a line is refused: by the splitter or by who reads it.
struct Refused(RequestError);

impl From<LineFault> for Refused {
    fn from(fault: LineFault) -> Self {
        Self(RequestError::invalid(
            format!("line {}", fault.line),
            fault.message,
            "a shorter line",
        ))
    }
}

impl From<RequestError> for Refused {
    fn from(error: RequestError) -> Self {
        Self(error)
    }
}

impl From<Refused> for RequestError {
    fn from(refused: Refused) -> Self {
        refused.0
    }
}

#[tonic::async_trait]
impl JobsRpc for JobsService {
    async fn submit(
        &self,
        request: Request<Streaming<SubmitRequest>>,
    ) -> Result<Response<Job>, Status> {
        let (metadata, _, parts) = request.into_parts();
        let tenant = self.tenant(&metadata).map_err(|error| status_of(&error))?;
        let submitter = submitter(metadata.as_ref());
        let job = self.take_in((tenant, submitter), parts).await;
        job.map(Response::new)
    }

    async fn get(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let found = self.find(&request.into_inner().id);
        let (jobs, job) = found.map_err(|error| status_of(&error))?;
        Ok(Response::new(tell(&jobs, &job)))
    }

    async fn list(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let jobs = self.jobs()?;
        let after = match request.after.as_str() {
            "" => None,
            name => Some(parse_id(name).map_err(|error| status_of(&error))?),
        };
        let most = match request.limit as usize {
            0 => LIST_DEFAULT,
            limit => limit,
        };
        let all = jobs.jobs();
        let mut wanted = all.iter().rev().filter(|job| {
            after.is_none_or(|after| job.id < after)
                && (request.states.is_empty()
                    || request.states.contains(&(proto_state(job.state) as i32)))
        });
        let listed = wanted.by_ref().take(most).map(|job| tell(jobs, job));
        Ok(Response::new(ListJobsResponse {
            jobs: listed.collect(),
            has_more: wanted.next().is_some(),
        }))
    }

    type WatchStream = ReceiverStream<Result<Job, Status>>;

    async fn watch(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let found = self.find(&request.into_inner().id);
        let (jobs, job) = found.map_err(|error| status_of(&error))?;
        let (told, unread) = mpsc::channel(UNREAD);
        let closing = self.shared.closing.clone();
        tokio::spawn(watch_job(jobs, job.id, told, closing));
        Ok(Response::new(ReceiverStream::new(unread)))
    }

    type ResultsStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ResultsResponse, Status>> + Send>>;

    async fn results(
        &self,
        request: Request<ResultsRequest>,
    ) -> Result<Response<Self::ResultsStream>, Status> {
        let request = request.into_inner();
        let found = self.find(&request.id);
        let (jobs, job) = found.map_err(|error| status_of(&error))?;
        let form = ResultsForm::try_from(request.form).map_err(|_| {
            let allowed = "a value of ferry.v1.ResultsForm, 0 or 1";
            status_of(&RequestError::invalid("form", request.form, allowed))
        })?;
        let reading = Reading {
            jobs,
            job: job.id,
            form,
            from: request.from_row,
            left: match request.limit {
                0 => usize::MAX,
                limit => limit as usize,
            },
        };
        let (told, unread) = mpsc::channel(UNREAD);
        let mut closing = self.shared.closing.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = closed(&mut closing) => {
                    let _ = told.send(Err(status_of(&RequestError::ShuttingDown))).await;
                }
                () = reading.tell(&told) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(unread))))
    }

    async fn cancel(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        let cancelled = async {
            let (jobs, job) = self.find(&request.into_inner().id)?;
            let job = jobs.cancel(job.id).await?;
            Ok(tell(&jobs, &job))
        };
        cancelled
            .await
            .map(Response::new)
            .map_err(|error: RequestError| status_of(&error))
    }

    async fn delete(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let deleted = async {
            let (jobs, job) = self.find(&request.into_inner().id)?;
            jobs.delete(job.id).await
        };
        deleted
            .await
            .map(|()| Response::new(DeleteJobResponse {}))
            .map_err(|error| status_of(&error))
    }
}

/// Tells how a job stands until it has ended, is gone, or nobody listens.
async fn watch_job(
    jobs: Jobs,
    id: JobId,
    told: mpsc::Sender<Result<Job, Status>>,
    mut closing: watch::Receiver<bool>,
) {
    let mut changed = jobs.watch();
    let mut last = None;
    loop {
        changed.mark_unchanged();
        let now = match jobs.job(id) {
            Ok(job) => tell(&jobs, &job),
            Err(error) => {
                let _ = told.send(Err(status_of(&error))).await;
                return;
            }
        };
        let ended = now.ended.is_some();
        if last.as_ref() != Some(&now) {
            last = Some(now.clone());
            if told.send(Ok(now)).await.is_err() || ended {
                return;
            }
        }
        tokio::select! {
            biased;
            () = told.closed() => return,
            () = closed(&mut closing) => {
                let _ = told.send(Err(status_of(&RequestError::ShuttingDown))).await;
                return;
            }
            _ = changed.changed() => tokio::time::sleep(WATCH_PAUSE).await,
        }
    }
}

/// Results on their way to a reader.
struct Reading {
    jobs: Jobs,
    job: JobId,
    form: ResultsForm,
    from: u32,
    left: usize,
}

impl Reading {
    async fn tell(mut self, told: &mpsc::Sender<Result<ResultsResponse, Status>>) {
        while self.left > 0 {
            match self.next().await {
                Ok(messages) if messages.is_empty() => return,
                Ok(messages) => {
                    for message in messages {
                        if told.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let _ = told.send(Err(status_of(&error))).await;
                    return;
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Vec<ResultsResponse>, RequestError> {
        let most = READ_RESULTS.min(self.left);
        let read = self.jobs.results(self.job, self.from, most, READ_BYTES);
        let results = read.await?;
        self.left -= results.len();
        if let Some(last) = results.last() {
            self.from = last.index + 1;
        }
        let message = |part| ResultsResponse { part: Some(part) };
        if self.form == ResultsForm::Typed {
            let told = results.iter().map(|result| {
                let result = typed_result(result)?;
                Ok(message(results_response::Part::Result(result)))
            });
            return told.collect();
        }
        let mut lines = Vec::new();
        for result in &results {
            lines.extend(json_line(self.job, result)?);
        }
        let pieces = lines.chunks(PIECE_BYTES);
        Ok(pieces
            .map(|piece| message(results_response::Part::JsonLines(piece.to_vec())))
            .collect())
    }
}

fn parse_id(name: &str) -> Result<JobId, RequestError> {
    JobId::parse(name).ok_or_else(|| RequestError::NotFound {
        what: "job",
        id: name.chars().take(64).collect(),
    })
}

fn job_request(options: JobOptions, tenant: String, submitter: Submitter) -> JobRequest {
    let seconds = options.expires_in_seconds;
    JobRequest {
        label: options.label,
        tenant,
        submitter,
        metadata: options.metadata.into_iter().collect(),
        expires_in: (seconds > 0).then(|| Duration::from_secs(seconds)),
    }
}

fn proto_state(state: JobState) -> ProtoState {
    match state {
        JobState::Validating => ProtoState::Validating,
        JobState::Queued => ProtoState::Queued,
        JobState::Running => ProtoState::Running,
        JobState::Cancelling => ProtoState::Cancelling,
        JobState::Completed => ProtoState::Completed,
        JobState::Failed => ProtoState::Failed,
        JobState::Cancelled => ProtoState::Cancelled,
        JobState::Expired => ProtoState::Expired,
    }
}

fn tell(jobs: &Jobs, job: &JobRecord) -> Job {
    let live = jobs.live(job.id);
    Job {
        id: job.id.name(),
        label: job.label.clone(),
        tenant: job.tenant.clone(),
        metadata: job.metadata.clone().into_iter().collect(),
        state: proto_state(job.state).into(),
        rows: job.total,
        done_rows: job.done,
        failed_rows: job.failed,
        not_run_rows: job.unrun,
        rows_per_second: live.rows_per_second,
        waiting_for: live.waiting_for,
        bytes: job.bytes,
        faults: job
            .faults
            .iter()
            .map(|fault| ProtoFault {
                line: fault.line,
                message: fault.message.clone(),
            })
            .collect(),
        created: Some(timestamp(job.created_ms)),
        started: job.started_ms.map(timestamp),
        ended: job.ended_ms.map(timestamp),
        expires: Some(timestamp(job.expires_ms)),
    }
}

fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: (ms / 1000) as i64,
        nanos: (ms % 1000 * 1_000_000) as i32,
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is closed enough.
    let _ = closing.wait_for(|closing| *closing).await;
}
