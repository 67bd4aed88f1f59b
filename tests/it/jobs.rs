//! Requests that can wait: what they answer, that each ends exactly once whatever happens to the
//! process, and that they stand behind all others.

use std::path::Path;

use ferry::{
    api::proto::ferry::v1::{
        CancelJobRequest, ChatMessage, ChatRequest, ClassifyRequest, ClassifyTokensRequest,
        DeleteJobRequest, EmbedRequest, GenerateRequest, GenerationOptions, GetJobRequest,
        HttpRequest, Job, JobOptions, JobResult, JobRow, JobRows, JobState, ListJobsRequest,
        ModelOptions, RerankRequest, ResultsForm, ResultsRequest, Sampling, SubmitRequest,
        TokenizeRequest, WatchJobRequest, generate_request::Prompt,
        inference_client::InferenceClient, job_result::Result as Ended, job_row::Request as Asked,
        jobs_client::JobsClient, results_response, submit_request::Part,
    },
    config::ServerConfig,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

use super::{
    openai::{Answer, post, send},
    process::{start, terminate},
    support::{Running, add_version, cosine, fixture, models_of, write_manifest},
};

const EMBED: &str = "tiny-bert-embed";

/// A server that keeps jobs in `kept`.
async fn serving(models: TempDir, kept: &Path, change: impl FnOnce(&mut ServerConfig)) -> Running {
    Running::serving(models, |config| {
        kept.clone_into(&mut config.jobs.directory);
        change(config);
    })
    .await
}

fn jobs(running: &Running) -> JobsClient<Channel> {
    JobsClient::new(running.channel())
}

fn options(model: &str) -> Option<ModelOptions> {
    Some(ModelOptions {
        model: model.to_owned(),
        ..ModelOptions::default()
    })
}

fn embed(text: &str) -> EmbedRequest {
    EmbedRequest {
        options: options(EMBED),
        texts: vec![text.to_owned()],
        ..EmbedRequest::default()
    }
}

fn text_of(row: usize) -> String {
    format!("sentence number {row} is about boats")
}

fn embed_rows(count: usize) -> Vec<JobRow> {
    let row = |at: usize| JobRow {
        id: format!("row-{at}"),
        request: Some(Asked::Embed(embed(&text_of(at)))),
    };
    (0..count).map(row).collect()
}

fn part(part: Part) -> SubmitRequest {
    SubmitRequest { part: Some(part) }
}

fn in_parts(rows: &[JobRow]) -> Vec<SubmitRequest> {
    rows.chunks(300)
        .map(|rows| {
            part(Part::Rows(JobRows {
                rows: rows.to_vec(),
            }))
        })
        .collect()
}

async fn submit(
    client: &mut JobsClient<Channel>,
    parts: Vec<SubmitRequest>,
) -> Result<Job, Status> {
    let answer = client.submit(tokio_stream::iter(parts)).await?;
    Ok(answer.into_inner())
}

async fn get(client: &mut JobsClient<Channel>, id: &str) -> Result<Job, Status> {
    let id = id.to_owned();
    Ok(client.get(GetJobRequest { id }).await?.into_inner())
}

/// Follows a job until `enough`, or its end.
async fn watch(client: &mut JobsClient<Channel>, id: &str, enough: impl Fn(&Job) -> bool) -> Job {
    let id = id.to_owned();
    let mut states = client
        .watch(WatchJobRequest { id })
        .await
        .unwrap()
        .into_inner();
    loop {
        let job = states.message().await.unwrap().expect("it has not ended");
        if enough(&job) || job.ended.is_some() {
            return job;
        }
    }
}

async fn completed(client: &mut JobsClient<Channel>, id: &str) -> Job {
    let job = watch(client, id, |_| false).await;
    assert_eq!(job.state(), JobState::Completed, "{job:?}");
    job
}

async fn results(
    client: &mut JobsClient<Channel>,
    id: &str,
    from_row: u32,
    limit: u32,
) -> Vec<JobResult> {
    let request = ResultsRequest {
        id: id.to_owned(),
        from_row,
        limit,
        form: ResultsForm::Typed.into(),
    };
    let mut stream = client.results(request).await.unwrap().into_inner();
    let mut results = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            results_response::Part::Result(result) => results.push(result),
            other @ results_response::Part::JsonLines(_) => panic!("{other:?}"),
        }
    }
    results
}

async fn lines(client: &mut JobsClient<Channel>, id: &str) -> Vec<Value> {
    let request = ResultsRequest {
        id: id.to_owned(),
        form: ResultsForm::JsonLines.into(),
        ..ResultsRequest::default()
    };
    let mut stream = client.results(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(results_response::Part::JsonLines(lines)) = message.part {
            text.extend(lines);
        }
    }
    let text = String::from_utf8(text).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

fn greedy() -> Option<GenerationOptions> {
    Some(GenerationOptions {
        max_tokens: Some(8),
        ignore_eos: true,
        sampling: Some(Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        }),
        n: 2,
        ..GenerationOptions::default()
    })
}

/// Models of every task.
fn all_models() -> TempDir {
    let models = models_of(&[
        EMBED,
        "tiny-bert-classify",
        "tiny-bert-rerank",
        "tiny-bert-tokens",
    ]);
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    let manifest = "task = \"generate\"\n[generate]\ncache_type = \"f32\"\n";
    write_manifest(models.path(), "llama", manifest);
    models
}

/// What every answer of an encoder tells that depends on its company.
macro_rules! without_company {
    ($answer:expr) => {{
        let mut answer = $answer;
        answer.timing = None;
        for row in &mut answer.rows {
            row.info.as_mut().unwrap().batch_rows = 0;
        }
        answer
    }};
}

#[tokio::test]
async fn typed_results_are_those_of_the_direct_calls() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(all_models(), kept.path(), |_| {}).await;
    let classify = ClassifyRequest {
        options: options("tiny-bert-classify"),
        texts: vec!["a fine day".to_owned(), "no".to_owned()],
        ..ClassifyRequest::default()
    };
    let rerank = RerankRequest {
        options: options("tiny-bert-rerank"),
        query: "when does it leave".to_owned(),
        documents: vec!["at noon".to_owned(), "the gate is shut".to_owned()],
        top_n: 1,
        ..RerankRequest::default()
    };
    let tokens = ClassifyTokensRequest {
        options: options("tiny-bert-tokens"),
        texts: vec!["Anna sails to Kiel".to_owned()],
        ..ClassifyTokensRequest::default()
    };
    let tokenize = TokenizeRequest {
        options: options(EMBED),
        texts: vec!["all aboard".to_owned()],
        ..TokenizeRequest::default()
    };
    let generate = GenerateRequest {
        model: "llama".to_owned(),
        prompt: Some(Prompt::Text("The ferry".to_owned())),
        options: greedy(),
        ..GenerateRequest::default()
    };
    let chat = ChatRequest {
        model: "llama".to_owned(),
        messages: vec![ChatMessage {
            role: "user".to_owned(),
            content: "Where is the gate?".to_owned(),
        }],
        options: greedy(),
        ..ChatRequest::default()
    };
    let asked = [
        Asked::Embed(embed("all aboard")),
        Asked::Classify(classify.clone()),
        Asked::Rerank(rerank.clone()),
        Asked::ClassifyTokens(tokens.clone()),
        Asked::Tokenize(tokenize.clone()),
        Asked::Generate(generate.clone()),
        Asked::Chat(chat.clone()),
    ];
    let rows: Vec<_> = asked
        .into_iter()
        .map(|request| JobRow {
            id: String::new(),
            request: Some(request),
        })
        .collect();
    let mut client = jobs(&running);
    let job = submit(&mut client, in_parts(&rows)).await.unwrap();
    let job = completed(&mut client, &job.id).await;
    assert_eq!((job.rows, job.done_rows, job.failed_rows), (7, 7, 0));

    let mut direct = running.typed();
    for (at, result) in results(&mut client, &job.id, 0, 0)
        .await
        .into_iter()
        .enumerate()
    {
        assert_eq!(result.row as usize, at);
        match result.result.unwrap() {
            Ended::Embed(answer) => {
                let wanted = direct
                    .embed(embed("all aboard"))
                    .await
                    .unwrap()
                    .into_inner();
                assert_eq!(without_company!(answer), without_company!(wanted));
            }
            Ended::Classify(answer) => {
                let wanted = direct.classify(classify.clone()).await.unwrap();
                let wanted = without_company!(wanted.into_inner());
                let answer = without_company!(answer);
                for (row, wanted) in answer.rows.iter().zip(&wanted.rows) {
                    assert_eq!((&row.label, row.info), (&wanted.label, wanted.info));
                    assert!((row.confidence - wanted.confidence).abs() < 1e-5);
                }
            }
            Ended::Rerank(answer) => {
                let wanted = direct.rerank(rerank.clone()).await.unwrap().into_inner();
                assert_eq!(answer.rows.len(), 1);
                assert_eq!(
                    answer.rows[0].info.unwrap().row,
                    wanted.rows[0].info.unwrap().row
                );
                assert!((answer.rows[0].logit - wanted.rows[0].logit).abs() < 1e-5);
            }
            Ended::ClassifyTokens(answer) => {
                let wanted = direct.classify_tokens(tokens.clone()).await.unwrap();
                let wanted = wanted.into_inner();
                assert_eq!(without_company!(answer), without_company!(wanted));
            }
            Ended::Tokenize(answer) => {
                let wanted = direct.tokenize(tokenize.clone()).await.unwrap();
                assert_eq!(answer, wanted.into_inner());
            }
            Ended::Generate(answer) => {
                let mut stream = direct
                    .generate(generate.clone())
                    .await
                    .unwrap()
                    .into_inner();
                let mut wanted = [String::new(), String::new()];
                while let Some(piece) = stream.message().await.unwrap() {
                    wanted[piece.index as usize].push_str(&piece.text);
                }
                let told: Vec<_> = answer.continuations.iter().map(|one| &one.text).collect();
                assert_eq!(told, wanted.iter().collect::<Vec<_>>());
                let finish = answer.continuations[1].finish.as_ref().unwrap();
                assert_eq!(finish.generated_tokens, 8);
                assert_eq!(answer.continuations[0].tokens.len(), 8);
            }
            Ended::Chat(answer) => {
                let mut stream = direct.chat(chat.clone()).await.unwrap().into_inner();
                let mut wanted = String::new();
                while let Some(piece) = stream.message().await.unwrap() {
                    if piece.index == 0 {
                        wanted.push_str(&piece.text);
                    }
                }
                assert_eq!(answer.continuations[0].text, wanted);
            }
            other => panic!("row {at}: {other:?}"),
        }
    }
}

/// An answer without what no two answers share.
fn without_id(mut answer: Value) -> Value {
    let fields = answer.as_object_mut().unwrap();
    fields.remove("id");
    fields.remove("created");
    if let Some(usage) = fields.get_mut("usage").and_then(Value::as_object_mut) {
        // Who comes second finds the prompt in the cache.
        usage.remove("prompt_tokens_details");
    }
    answer
}

#[tokio::test]
async fn rows_of_http_get_what_their_route_answers() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(all_models(), kept.path(), |_| {}).await;
    let requests = [
        (
            "/v1/embeddings",
            json!({"model": EMBED, "input": "all aboard", "encoding_format": "base64"}),
        ),
        (
            "/v1/completions",
            json!({"model": "llama", "prompt": "The ferry", "temperature": 0, "max_tokens": 6}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "llama", "messages": [{"role": "user", "content": "Where?"}], "temperature": 0, "max_tokens": 6}),
        ),
        (
            "/v1/rerank",
            json!({"model": "tiny-bert-rerank", "query": "a", "documents": ["b"]}),
        ),
        (
            "/v1/embeddings",
            json!({"model": "nobody", "input": "all aboard"}),
        ),
        (
            "/v1/completions",
            json!({"model": "llama", "prompt": "a", "temperature": -1}),
        ),
    ];
    let rows: Vec<_> = requests
        .iter()
        .map(|(url, body)| JobRow {
            id: String::new(),
            request: Some(Asked::Http(HttpRequest {
                url: (*url).to_owned(),
                body: body.to_string(),
            })),
        })
        .collect();
    let mut client = jobs(&running);
    let job = submit(&mut client, in_parts(&rows)).await.unwrap();
    let job = completed(&mut client, &job.id).await;
    assert_eq!((job.done_rows, job.failed_rows), (4, 2));
    let results = results(&mut client, &job.id, 0, 0).await;
    for (result, (url, body)) in results.into_iter().zip(&requests) {
        let Some(Ended::Http(answer)) = result.result else {
            panic!("{url}: {result:?}");
        };
        let wanted: Answer = post(&running, url, body).await;
        assert_eq!(answer.status, u32::from(wanted.status), "{url}");
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(without_id(answer), without_id(wanted.json()), "{url}");
    }
}

#[tokio::test]
async fn a_streamed_answer_is_refused_in_its_row() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(all_models(), kept.path(), |_| {}).await;
    let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": {"model": "llama", "prompt": "a", "stream": true}});
    let mut client = jobs(&running);
    let parts = vec![part(Part::JsonLines(line.to_string().into_bytes()))];
    let job = submit(&mut client, parts).await.unwrap();
    completed(&mut client, &job.id).await;
    let line = &lines(&mut client, &job.id).await[0];
    assert_eq!(line["custom_id"], "a");
    assert_eq!(line["response"]["status_code"], 400);
    assert_eq!(line["response"]["body"]["error"]["param"], "stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_ends_exactly_once_however_often_the_process_is_killed() {
    const ROWS: usize = 3000;
    const KILLS: usize = 8;
    let models = models_of(&[EMBED]);
    let models = models.path().to_str().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().to_str().unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    // Small groups, so that there are many moments between two commits.
    std::fs::write(config.path(), "[jobs]\nwindow = 16\n").unwrap();
    let more = ["--jobs", kept, "--config", config.path().to_str().unwrap()];
    let connect = |address: String| async move {
        let url = format!("http://{address}");
        Channel::from_shared(url).unwrap().connect().await.unwrap()
    };

    // Killed while a job comes in: nobody was told its name, so nothing is left of it.
    let (mut child, address, _log) = start(models, &more);
    let client = JobsClient::new(connect(address).await);
    let (sender, sent) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut submitting = client.clone();
    let never = tokio::spawn(async move { submitting.submit(stream).await });
    for part in in_parts(&embed_rows(1500)) {
        sender.send(part).await.unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(never.await.unwrap().is_err());
    drop((sender, client));

    let (mut child, address, _log) = start(models, &more);
    let mut channel = connect(address).await;
    let mut client = JobsClient::new(channel.clone());
    let listed = client.list(ListJobsRequest::default()).await.unwrap();
    assert!(listed.into_inner().jobs.is_empty());
    let job = submit(&mut client, in_parts(&embed_rows(ROWS)))
        .await
        .unwrap();
    let mut random = u64::from(std::process::id()) | 1;
    for kill in 0..KILLS {
        // Somewhere in this stretch of the job, and then somewhere in a commit or between two.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let stretch = ROWS * 9 / 10 / KILLS;
        let at = (stretch * kill) as u32 + (random >> 33) as u32 % stretch as u32;
        let mut seen = get(&mut client, &job.id).await.unwrap();
        while seen.done_rows < at {
            seen = get(&mut client, &job.id).await.unwrap();
        }
        assert!(
            seen.ended.is_none(),
            "killed at {at} of {ROWS}, it had ended"
        );
        tokio::time::sleep(std::time::Duration::from_micros(random >> 40 & 0xfff)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let (next, address, _log) = start(models, &more);
        child = next;
        channel = connect(address).await;
        client = JobsClient::new(channel.clone());
        let found = get(&mut client, &job.id).await.unwrap();
        assert!(found.done_rows >= seen.done_rows, "what was told was lost");
        assert_eq!(found.rows as usize, ROWS);
    }
    let done = completed(&mut client, &job.id).await;
    assert_eq!((done.done_rows as usize, done.failed_rows), (ROWS, 0));
    let ended = results(&mut client, &job.id, 0, 0).await;
    let places: Vec<_> = ended.iter().map(|result| result.row as usize).collect();
    assert_eq!(places, (0..ROWS).collect::<Vec<_>>());
    for at in (0..ROWS).step_by(97) {
        assert_eq!(ended[at].id, format!("row-{at}"));
    }
    // And they are the answers of those rows.
    let mut direct = InferenceClient::new(channel);
    for at in (0..ROWS).step_by(311) {
        let wanted = direct
            .embed(embed(&text_of(at)))
            .await
            .unwrap()
            .into_inner();
        let Some(Ended::Embed(answer)) = &ended[at].result else {
            panic!("{:?}", ended[at]);
        };
        let near = cosine(&answer.rows[0].embedding, &wanted.rows[0].embedding);
        assert!(near > 0.99999, "row {at}: {near}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_not_hold_up_the_exit_and_goes_on_after_it() {
    let models = models_of(&[EMBED]);
    let models = models.path().to_str().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let more = ["--jobs", kept.path().to_str().unwrap()];
    let (child, address, log) = start(models, &more);
    let mut client = JobsClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let job = submit(&mut client, in_parts(&embed_rows(1500)))
        .await
        .unwrap();
    while get(&mut client, &job.id).await.unwrap().done_rows == 0 {}
    let (code, log) = terminate(child, log).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("job completed"), "{log}");
    let (child, address, log) = start(models, &more);
    let mut client = JobsClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    assert!(get(&mut client, &job.id).await.unwrap().done_rows > 0);
    assert_eq!(completed(&mut client, &job.id).await.done_rows, 1500);
    let (code, log) = terminate(child, log).await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_passes_the_rows_of_jobs_that_wait() {
    let models = models_of(&[EMBED]);
    let manifest = "task = \"embed\"\n[batching]\nmax_rows = 64\nmax_tokens = 100000\n";
    write_manifest(models.path(), EMBED, manifest);
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models, kept.path(), |config| config.jobs.window = 64 * 20).await;
    // Each row of the job fills a batch, and nearly 20 of them wait.
    let full = EmbedRequest {
        options: options(EMBED),
        texts: vec!["the ferry waits for nobody ".repeat(3); 64],
        ..EmbedRequest::default()
    };
    let row = |_| JobRow {
        id: String::new(),
        request: Some(Asked::Embed(full.clone())),
    };
    let rows: Vec<_> = (0..80).map(row).collect();
    let mut client = jobs(&running);
    let job = submit(&mut client, in_parts(&rows)).await.unwrap();
    let waiting = || {
        running.server.repository().ready()[0]
            .encoder()
            .unwrap()
            .engine
            .waiting_rows()
    };
    let batches = || batches(&running);
    let mut direct = running.typed();
    for _ in 0..3 {
        while waiting() < 64 * 12 {
            tokio::task::yield_now().await;
        }
        let before = batches();
        direct.embed(embed("all aboard")).await.unwrap();
        let after = batches();
        // Of the 12 or more that wait, only those that had left already ran first.
        assert!(
            after - before <= 6,
            "{} batches went before it",
            after - before
        );
    }
    let job = get(&mut client, &job.id).await.unwrap();
    assert!(job.ended.is_none(), "{job:?}");
}

/// Batches that have run.
fn batches(running: &Running) -> u64 {
    let page = String::from_utf8(running.server.metrics().render()).unwrap();
    page.lines()
        .filter(|line| line.starts_with("ferry_batches_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test]
async fn rows_wait_for_a_model_that_is_not_ready() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    running.server.repository().unload(EMBED, None).unwrap();
    let mut client = jobs(&running);
    let job = submit(&mut client, in_parts(&embed_rows(20)))
        .await
        .unwrap();
    let job = watch(&mut client, &job.id, |job| !job.waiting_for.is_empty()).await;
    assert!(
        job.waiting_for.contains("is not ready"),
        "{}",
        job.waiting_for
    );
    assert_eq!((job.state(), job.done_rows), (JobState::Running, 0));
    running.server.repository().load(EMBED, None).unwrap();
    assert_eq!(completed(&mut client, &job.id).await.done_rows, 20);
}

#[tokio::test]
async fn a_job_whose_model_is_not_there_lets_others_pass() {
    let kept = tempfile::tempdir().unwrap();
    let models = models_of(&[EMBED, "tiny-roberta-embed"]);
    let running = serving(models, kept.path(), |config| config.jobs.max_running = 1).await;
    running.server.repository().unload(EMBED, None).unwrap();
    let mut client = jobs(&running);
    let waits = submit(&mut client, in_parts(&embed_rows(5))).await.unwrap();
    let mut request = embed("all aboard");
    request.options = options("tiny-roberta-embed");
    let row = JobRow {
        id: String::new(),
        request: Some(Asked::Embed(request)),
    };
    let passes = submit(&mut client, in_parts(&[row])).await.unwrap();
    completed(&mut client, &passes.id).await;
    let waits = get(&mut client, &waits.id).await.unwrap();
    assert_eq!((waits.state(), waits.done_rows), (JobState::Running, 0));
}

#[tokio::test]
async fn a_cancelled_job_has_a_result_for_every_row() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    running.server.repository().unload(EMBED, None).unwrap();
    let mut client = jobs(&running);
    let job = submit(&mut client, in_parts(&embed_rows(3000)))
        .await
        .unwrap();
    let id = job.id.clone();
    let error = client
        .delete(DeleteJobRequest { id: id.clone() })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("cancel it first"), "{error}");
    client
        .cancel(CancelJobRequest { id: id.clone() })
        .await
        .unwrap();
    let job = watch(&mut client, &id, |_| false).await;
    assert_eq!((job.state(), job.not_run_rows), (JobState::Cancelled, 3000));
    let ended = results(&mut client, &id, 0, 0).await;
    assert_eq!(ended.len(), 3000);
    for (at, result) in ended.iter().enumerate() {
        assert_eq!(
            (result.row as usize, &result.id),
            (at, &format!("row-{at}"))
        );
        assert!(
            matches!(&result.result, Some(Ended::Error(error)) if error.code == Code::Cancelled as i32)
        );
    }
    // Cancelling again changes nothing; then it can be deleted.
    let again = client
        .cancel(CancelJobRequest { id: id.clone() })
        .await
        .unwrap();
    assert_eq!(again.into_inner().state(), JobState::Cancelled);
    client
        .delete(DeleteJobRequest { id: id.clone() })
        .await
        .unwrap();
    assert_eq!(
        get(&mut client, &id).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_job_ends_when_its_time_is_over() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    running.server.repository().unload(EMBED, None).unwrap();
    let options = JobOptions {
        expires_in_seconds: 1,
        label: "soon".to_owned(),
        ..JobOptions::default()
    };
    let mut parts = vec![part(Part::Options(options))];
    parts.extend(in_parts(&embed_rows(10)));
    let mut client = jobs(&running);
    let job = submit(&mut client, parts).await.unwrap();
    let job = watch(&mut client, &job.id, |_| false).await;
    assert_eq!((job.state(), job.not_run_rows), (JobState::Expired, 10));
    assert_eq!(job.label, "soon");
    let line = &lines(&mut client, &job.id).await[9];
    assert_eq!(
        (&line["row"], &line["error"]["code"]),
        (&json!(9), &json!(4))
    );
    assert!(
        line["error"]["message"]
            .as_str()
            .unwrap()
            .contains("time was over")
    );
}

#[tokio::test]
async fn a_bad_row_is_its_own_error() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    let mut rows = embed_rows(3);
    let mut bad = embed("x");
    bad.dimensions = 100_000;
    rows[1].request = Some(Asked::Embed(bad));
    let mut client = jobs(&running);
    let job = submit(&mut client, in_parts(&rows)).await.unwrap();
    let job = completed(&mut client, &job.id).await;
    assert_eq!((job.done_rows, job.failed_rows), (2, 1));
    let ended = results(&mut client, &job.id, 1, 1).await;
    assert_eq!(ended.len(), 1);
    let Some(Ended::Error(error)) = &ended[0].result else {
        panic!("{ended:?}");
    };
    assert_eq!(error.code, Code::InvalidArgument as i32);
    assert!(
        error.message.starts_with("dimensions: found 100000"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn what_is_submitted_wrongly_is_refused_by_its_place() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |config| {
        config.jobs.max_rows = 5;
        config.jobs.max_row_bytes = 300;
    })
    .await;
    let good = r#"{"id":"a","embed":{"texts":["x"]}}"#;
    let lines = |text: String| vec![part(Part::JsonLines(text.into_bytes()))];
    let mut twice = embed_rows(2);
    twice[1].id = twice[0].id.clone();
    let empty = JobRow::default();
    let long = "x".repeat(400);
    let cases = vec![
        (vec![], "rows: found none"),
        (
            lines(format!("{good}\n\n{{\"id\":")),
            "line 3: found no JSON object",
        ),
        (
            lines(format!("{good}\n{good}\n")),
            "line 2: found custom_id 'a' was given before",
        ),
        (
            lines(format!("{good}\n{{\"embed\":{{\"text\":1}}}}")),
            "line 2: found ",
        ),
        (
            lines(format!("\n{long}\n")),
            "line 2: found more than 300 bytes",
        ),
        (in_parts(&[empty]), "rows[0]: found no request"),
        (
            in_parts(&twice),
            "rows[1]: found custom_id 'row-0' was given before",
        ),
        (
            in_parts(&embed_rows(6)),
            "rows[5]: found one more row; allowed: at most 5",
        ),
        (
            vec![
                part(Part::Rows(JobRows::default())),
                part(Part::Options(JobOptions::default())),
            ],
            "part: found options after something else",
        ),
        (
            [in_parts(&embed_rows(1)), lines(good.to_owned())].concat(),
            "part: found json_lines after rows",
        ),
        (vec![SubmitRequest::default()], "part: found nothing"),
        (
            vec![part(Part::Options(JobOptions {
                metadata: (0..17).map(|at| (at.to_string(), String::new())).collect(),
                ..JobOptions::default()
            }))],
            "metadata: found 17 keys",
        ),
    ];
    let mut client = jobs(&running);
    for (parts, says) in cases {
        let error = submit(&mut client, parts).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{says}: {error}");
        assert!(error.message().starts_with(says), "{says}: {error}");
    }
    let listed = client.list(ListJobsRequest::default()).await.unwrap();
    assert!(
        listed.into_inner().jobs.is_empty(),
        "nothing of them is left"
    );
}

#[tokio::test]
async fn jobs_that_are_not_there_are_not_found() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    let mut client = jobs(&running);
    for id in ["job_0123456789abcdef", "nobody", ""] {
        let name = || id.to_owned();
        let errors = [
            client.get(GetJobRequest { id: name() }).await.unwrap_err(),
            client
                .watch(WatchJobRequest { id: name() })
                .await
                .unwrap_err(),
            client
                .cancel(CancelJobRequest { id: name() })
                .await
                .unwrap_err(),
            client
                .delete(DeleteJobRequest { id: name() })
                .await
                .unwrap_err(),
            client
                .results(ResultsRequest {
                    id: name(),
                    ..ResultsRequest::default()
                })
                .await
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.code(), Code::NotFound, "{error}");
            assert_eq!(error.message(), format!("no job '{id}'"));
        }
    }
}

#[tokio::test]
async fn without_a_directory_there_are_no_jobs() {
    let running = Running::with(&[EMBED]).await;
    let mut client = jobs(&running);
    let error = submit(&mut client, in_parts(&embed_rows(1)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("jobs.directory"), "{error}");
    let answer = send(&running, "GET", "/v1/batches", "", "").await;
    assert_eq!(
        (answer.status, &answer.error()["code"]),
        (409, &json!("refused"))
    );
}

#[tokio::test]
async fn what_is_kept_is_bounded_and_calls_go_on() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |config| {
        config.jobs.max_bytes = 1 << 17;
        config.jobs.max_jobs = 3;
    })
    .await;
    let mut client = jobs(&running);
    // Rows that don't fit.
    let error = submit(&mut client, in_parts(&embed_rows(3000)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("jobs.max_bytes"), "{error}");
    // Results that don't: what is kept stays kept, the rest waits for room.
    let job = submit(&mut client, in_parts(&embed_rows(700)))
        .await
        .unwrap();
    let full = watch(&mut client, &job.id, |job| {
        job.waiting_for.contains("no room")
    })
    .await;
    assert_eq!(full.state(), JobState::Running, "{full:?}");
    assert!(running.typed().embed(embed("all aboard")).await.is_ok());
    client
        .cancel(CancelJobRequest { id: job.id.clone() })
        .await
        .unwrap();
    let job = watch(&mut client, &job.id, |_| false).await;
    assert_eq!(job.state(), JobState::Cancelled);
    assert_eq!(job.done_rows + job.not_run_rows, 700);
    assert_eq!(results(&mut client, &job.id, 0, 0).await.len(), 700);
    client
        .delete(DeleteJobRequest { id: job.id })
        .await
        .unwrap();
    // And jobs.
    for _ in 0..3 {
        submit(&mut client, in_parts(&embed_rows(1))).await.unwrap();
    }
    let error = submit(&mut client, in_parts(&embed_rows(1)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("jobs.max_jobs"), "{error}");
}

/// A form with a file, as browsers and OpenAI's clients send it.
async fn upload(running: &Running, purpose: &str, contents: &str) -> Answer {
    let body = format!(
        "--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n\
         {contents}\r\n--cut--\r\n"
    );
    let headers = "content-type: multipart/form-data; boundary=cut\r\n";
    send(running, "POST", "/v1/files", headers, &body).await
}

fn batch_line(id: &str, text: &str) -> String {
    let body = json!({"model": EMBED, "input": text});
    let line = json!({"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body});
    format!("{line}\n")
}

#[tokio::test]
async fn a_batch_is_a_job_of_a_file() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    let contents = batch_line("a", "one") + &batch_line("b", "") + &batch_line("c", "three");
    let file = upload(&running, "batch", &contents).await.json();
    assert_eq!(file["bytes"], contents.len());
    let id = file["id"].as_str().unwrap();
    let content = send(&running, "GET", &format!("/v1/files/{id}/content"), "", "").await;
    assert_eq!(content.body, contents);
    let request = json!({"input_file_id": id, "endpoint": "/v1/embeddings",
        "completion_window": "24h", "metadata": {"k": "v"}});
    let batch = post(&running, "/v1/batches", &request).await.json();
    assert_eq!(batch["status"], "validating");
    let name = batch["id"].as_str().unwrap();
    let job = completed(&mut jobs(&running), &name.replace("batch_", "job_")).await;
    assert_eq!((job.rows, job.metadata["k"].as_str()), (3, "v"));
    let batch = send(&running, "GET", &format!("/v1/batches/{name}"), "", "")
        .await
        .json();
    assert_eq!(batch["status"], "completed");
    let path = format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap());
    let output = send(&running, "GET", &path, "", "").await.json();
    let content = send(&running, "GET", &format!("{path}/content"), "", "")
        .await
        .body;
    assert_eq!(output["bytes"], content.len());
    for line in content.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["response"]["body"]["data"][0]["object"], "embedding");
    }
    // A batch that has ended stays as it is; its file can be deleted.
    let answer = send(
        &running,
        "POST",
        &format!("/v1/batches/{name}/cancel"),
        "",
        "",
    )
    .await;
    assert_eq!(answer.status, 409);
    let deleted = send(&running, "DELETE", &path, "", "").await.json();
    assert_eq!(deleted["deleted"], true);
    assert_eq!(send(&running, "GET", &path, "", "").await.status, 404);
}

#[tokio::test]
async fn a_batch_whose_file_is_wrong_fails_with_its_lines() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |_| {}).await;
    let contents = batch_line("a", "one") + "\n{oops\n" + &batch_line("a", "two");
    let file = upload(&running, "batch", &contents).await.json();
    let request = json!({"input_file_id": file["id"], "endpoint": "/v1/embeddings",
        "completion_window": "24h"});
    let batch = post(&running, "/v1/batches", &request).await.json();
    let name = batch["id"].as_str().unwrap();
    let job = watch(&mut jobs(&running), &name.replace("batch_", "job_"), |_| {
        false
    })
    .await;
    assert_eq!((job.state(), job.rows), (JobState::Failed, 0));
    let batch = send(&running, "GET", &format!("/v1/batches/{name}"), "", "")
        .await
        .json();
    assert_eq!(batch["status"], "failed");
    let faults = batch["errors"]["data"].as_array().unwrap();
    let told: Vec<_> = faults
        .iter()
        .map(|fault| (&fault["line"], &fault["code"]))
        .collect();
    let wanted = [
        (&json!(3), &json!("invalid_json_line")),
        (&json!(4), &json!("duplicate_custom_id")),
    ];
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn files_that_are_wrong_are_refused() {
    let kept = tempfile::tempdir().unwrap();
    let running = serving(models_of(&[EMBED]), kept.path(), |config| {
        config.jobs.max_file_bytes = 1000;
    })
    .await;
    let answer = upload(&running, "fine-tune", "x").await;
    assert_eq!(
        (answer.status, &answer.error()["param"]),
        (400, &json!("purpose"))
    );
    let answer = upload(&running, "batch", &"x".repeat(1001)).await;
    assert_eq!(
        (answer.status, &answer.error()["param"]),
        (400, &json!("file"))
    );
    let answer = send(&running, "POST", "/v1/files", "", "x").await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    let answer = send(&running, "GET", "/v1/files/file-0000000000000001", "", "").await;
    assert_eq!(answer.status, 404);
    let listed = send(&running, "GET", "/v1/files", "", "").await.json();
    assert_eq!(listed["data"], json!([]), "nothing of them is left");
}
