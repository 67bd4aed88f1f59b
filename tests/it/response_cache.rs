//! Kept answers over a real socket: the same bits as without, told to be kept, gone with their
//! version.

use ferry::api::proto::{
    ferry::v1::{
        ClassifyRequest, ClassifyTokensRequest, EmbedRequest, GenerateRequest, GenerateResponse,
        GenerationOptions, ModelOptions, RerankRequest, Sampling, TokenIds,
        generate_request::Prompt,
    },
    inference::{
        ModelInferRequest, ModelStatisticsRequest, RepositoryModelLoadRequest,
        RepositoryModelUnloadRequest, infer_parameter::ParameterChoice,
        model_infer_request::InferInputTensor,
    },
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::{Running, add_version, fixture, models_of, write_manifest};

const CACHE: &str = "\n[cache]\nmax_mib = 4\n";

/// Serves fixtures, each twice: by its name with a cache, and as `plain-NAME` without.
async fn serve(models: &[(&str, &str)]) -> Running {
    let folder = tempfile::tempdir().unwrap();
    for (name, task) in models {
        let plain = format!("plain-{name}");
        let files = match *task {
            "generate" => fixture(&format!("decoders/{name}")),
            _ => fixture(name),
        };
        add_version(folder.path(), name, 1, &files);
        add_version(folder.path(), &plain, 1, &files);
        let manifest = format!("task = \"{task}\"\n");
        write_manifest(folder.path(), &plain, &manifest);
        write_manifest(folder.path(), name, &(manifest + CACHE));
    }
    Running::serving(folder, |_| {}).await
}

/// A counter's or gauge's value for one model.
async fn metric(running: &Running, name: &str, model: &str) -> i64 {
    let (_, page) = running.http("/metrics").await;
    let label = format!("model=\"{model}\"");
    let lines = page
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(&label));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap())
        .sum()
}

fn options(model: &str) -> Option<ModelOptions> {
    Some(ModelOptions {
        model: model.to_owned(),
        ..ModelOptions::default()
    })
}

fn embed(model: &str, texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        options: options(model),
        texts: texts.iter().map(|&text| text.to_owned()).collect(),
        ..EmbedRequest::default()
    }
}

const TEXT: &str = "Zoë took the ferry to Ærø at nine.";

#[tokio::test]
async fn kept_answers_are_the_bits_that_were_computed() {
    let running = serve(&[
        ("tiny-bert-embed", "embed"),
        ("tiny-bert-classify", "classify"),
        ("tiny-bert-rerank", "rerank"),
        ("tiny-bert-tokens", "tokens"),
    ])
    .await;
    let mut typed = running.typed();
    // What is asked, the same of each kind of model; what it says, and whether it was kept.
    macro_rules! ask {
        ($call:ident, $request:expr) => {{
            let mut rows = typed.$call($request).await.unwrap().into_inner().rows;
            let cached = rows.iter().all(|row| row.info.unwrap().cached);
            for row in &mut rows {
                row.info = None;
            }
            (rows, cached)
        }};
    }
    macro_rules! compare {
        ($name:literal, $request:expr, $call:ident) => {
            let (plain, cached) = ask!($call, $request(concat!("plain-", $name)));
            assert!(!cached);
            for expected in [false, true, true] {
                let (rows, cached) = ask!($call, $request($name));
                assert_eq!(rows, plain, $name);
                assert_eq!(cached, expected, $name);
            }
        };
    }
    compare!("tiny-bert-embed", |model| embed(model, &[TEXT]), embed);
    let classify = |model| ClassifyRequest {
        options: options(model),
        texts: vec![TEXT.to_owned()],
        ..ClassifyRequest::default()
    };
    compare!("tiny-bert-classify", classify, classify);
    let rerank = |model| RerankRequest {
        options: options(model),
        query: "When does it leave?".to_owned(),
        documents: vec![TEXT.to_owned()],
        ..RerankRequest::default()
    };
    compare!("tiny-bert-rerank", rerank, rerank);
    let spans = |model| ClassifyTokensRequest {
        options: options(model),
        texts: vec![TEXT.to_owned()],
        ..ClassifyTokensRequest::default()
    };
    compare!("tiny-bert-tokens", spans, classify_tokens);
    for model in ["tiny-bert-embed", "tiny-bert-tokens"] {
        assert_eq!(metric(&running, "ferry_rows_total", model).await, 1);
        assert_eq!(metric(&running, "ferry_cache_hits_total", model).await, 2);
        assert_eq!(metric(&running, "ferry_cache_misses_total", model).await, 1);
        assert!(metric(&running, "ferry_cache_bytes", model).await > 0);
    }
}

#[tokio::test]
async fn what_changes_the_answer_is_another_question() {
    let running = serve(&[("tiny-bert-embed", "embed")]).await;
    let mut typed = running.typed();
    let name = "tiny-bert-embed";
    let rows = async || metric(&running, "ferry_rows_total", name).await;
    let whole = typed
        .embed(embed(name, &[TEXT]))
        .await
        .unwrap()
        .into_inner();

    // Cut to other tokens: run. Cut to the same tokens, or shortened afterwards: known.
    let mut cut = embed(name, &[TEXT]);
    cut.options.as_mut().unwrap().max_tokens = 4;
    let short = typed.embed(cut.clone()).await.unwrap().into_inner();
    assert!(!short.rows[0].info.unwrap().cached && short.rows[0].info.unwrap().truncated);
    assert_ne!(short.rows[0].embedding, whole.rows[0].embedding);
    assert_eq!(rows().await, 2);
    let again = typed.embed(cut.clone()).await.unwrap().into_inner();
    assert!(again.rows[0].info.unwrap().cached && again.rows[0].info.unwrap().truncated);
    cut.options.as_mut().unwrap().max_tokens = 64;
    cut.dimensions = 8;
    let eight = typed.embed(cut).await.unwrap().into_inner();
    assert!(eight.rows[0].info.unwrap().cached && !eight.rows[0].info.unwrap().truncated);
    assert_eq!(eight.rows[0].embedding.len(), 8);
    assert_eq!(rows().await, 2);

    // A pair of texts is not the text of both.
    let known = typed.embed(embed(name, &[TEXT, "another", TEXT])).await;
    let known = known.unwrap().into_inner();
    let cached: Vec<bool> = known
        .rows
        .iter()
        .map(|row| row.info.unwrap().cached)
        .collect();
    assert_eq!(cached, [true, false, true]);
    assert_eq!(known.rows[0].info.unwrap().batch_rows, 0);
    assert_eq!(rows().await, 3);
}

#[tokio::test]
async fn equal_requests_at_the_same_time_run_once() {
    let running = serve(&[("tiny-bert-embed", "embed")]).await;
    let name = "tiny-bert-embed";
    let calls = (0..32).map(|_| {
        let mut typed = running.typed();
        tokio::spawn(async move { typed.embed(embed("tiny-bert-embed", &[TEXT])).await })
    });
    let calls: Vec<_> = calls.collect();
    let mut answers = Vec::new();
    for call in calls {
        let answer = call.await.unwrap().unwrap().into_inner();
        let timing = answer.timing.unwrap();
        assert!(timing.total_us >= timing.queue_us + timing.execute_us);
        answers.push(answer.rows[0].embedding.clone());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(metric(&running, "ferry_rows_total", name).await, 1);
    assert_eq!(metric(&running, "ferry_cache_misses_total", name).await, 1);
    let shared = metric(&running, "ferry_cache_shared_total", name).await;
    let hits = metric(&running, "ferry_cache_hits_total", name).await;
    assert_eq!(shared + hits, 31);
    let request = ModelStatisticsRequest {
        name: name.to_owned(),
        ..ModelStatisticsRequest::default()
    };
    let statistics = running.open().model_statistics(request).await.unwrap();
    let statistics = &statistics.into_inner().model_stats[0];
    let lookups = statistics.inference_stats.as_ref().unwrap();
    assert_eq!(lookups.cache_hit.unwrap().count, hits as u64);
    assert_eq!(lookups.cache_miss.unwrap().count, 32 - hits as u64);
}

#[tokio::test]
async fn a_version_takes_its_answers_with_it() {
    let running = serve(&[("tiny-bert-embed", "embed")]).await;
    let (mut typed, mut open) = (running.typed(), running.open());
    let name = "tiny-bert-embed";
    let ask =
        async |typed: &mut ferry::api::proto::ferry::v1::inference_client::InferenceClient<_>| {
            let answer = typed
                .embed(embed(name, &[TEXT]))
                .await
                .unwrap()
                .into_inner();
            let row = &answer.rows[0];
            (row.embedding.clone(), row.info.unwrap().cached)
        };
    let (first, _) = ask(&mut typed).await;
    assert!(ask(&mut typed).await.1);
    let load = RepositoryModelLoadRequest {
        model_name: name.to_owned(),
        ..RepositoryModelLoadRequest::default()
    };

    // The same version loaded again begins with nothing.
    open.repository_model_load(load.clone()).await.unwrap();
    assert_eq!(ask(&mut typed).await, (first.clone(), false));
    // Another version's answers are its own.
    let other = fixture("tiny-roberta-embed");
    add_version(running.models.path(), name, 2, &other);
    open.repository_model_load(load).await.unwrap();
    let (second, cached) = ask(&mut typed).await;
    assert!(!cached && second != first);
    assert!(ask(&mut typed).await.1);
    // When nothing is loaded, nothing is kept.
    let unload = RepositoryModelUnloadRequest {
        model_name: name.to_owned(),
        ..RepositoryModelUnloadRequest::default()
    };
    open.repository_model_unload(unload).await.unwrap();
    while metric(&running, "ferry_cache_bytes", name).await > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_full_cache_forgets_and_stays_within_its_bound() {
    let name = "tiny-bert-embed";
    let folder = models_of(&[name]);
    let manifest = "task = \"embed\"\n[cache]\nmax_mib = 1\n";
    write_manifest(folder.path(), name, manifest);
    let running = Running::serving(folder, |_| {}).await;
    let mut typed = running.typed();
    for at in 0..5 {
        // Of some 300 bytes each: more than 1 MiB in all.
        let row = |row: u32| TokenIds {
            ids: vec![5 + at, 5 + row / 40, 5 + row % 40],
        };
        let request = EmbedRequest {
            options: options(name),
            token_ids: (0..1000).map(row).collect(),
            ..EmbedRequest::default()
        };
        let answer = typed.embed(request).await.unwrap().into_inner();
        assert!(answer.rows.iter().all(|row| row.error.is_none()));
        assert!(metric(&running, "ferry_cache_bytes", name).await <= 1 << 20);
    }
    assert_eq!(metric(&running, "ferry_rows_total", name).await, 5_000);
    assert!(metric(&running, "ferry_cache_evictions_total", name).await > 0);
    assert!(metric(&running, "ferry_cache_bytes", name).await > 3 << 18);
}

fn generate(model: &str, change: impl FnOnce(&mut GenerationOptions)) -> GenerateRequest {
    let mut options = GenerationOptions {
        max_tokens: Some(12),
        ignore_eos: true,
        sampling: Some(Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        }),
        ..GenerationOptions::default()
    };
    change(&mut options);
    GenerateRequest {
        model: model.to_owned(),
        prompt: Some(Prompt::Text("The ferry leaves".to_owned())),
        options: Some(options),
        ..GenerateRequest::default()
    }
}

/// Every message of a generation without names and times, by continuation, and whether it was kept.
async fn told(running: &Running, request: GenerateRequest) -> (Vec<GenerateResponse>, bool) {
    let mut stream = running
        .typed()
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let (mut messages, mut cached) = (Vec::new(), true);
    while let Some(mut message) = stream.message().await.unwrap() {
        message.model = None;
        if let Some(finish) = &mut message.finish {
            cached &= finish.cached;
            (finish.first_token_us, finish.total_us) = (0, 0);
            // How much of the prompt was found depends on who asked before.
            (finish.cached, finish.cached_tokens) = (false, 0);
        }
        messages.push(message);
    }
    messages.sort_by_key(|message| message.index);
    (messages, cached)
}

#[tokio::test]
async fn a_kept_generation_is_told_again_message_by_message() {
    let running = serve(&[("llama", "generate")]).await;
    let questions: [fn(&mut GenerationOptions); 7] = [
        |_| {},
        |options| options.top_logprobs = 3,
        |options| options.stream_interval = 5,
        |options| options.max_tokens = Some(7),
        |options| options.keep_special_tokens = true,
        |options| {
            options.n = 3;
            options.sampling.as_mut().unwrap().temperature = Some(1.5);
            options.sampling.as_mut().unwrap().seed = Some(11);
        },
        |options| {
            options.sampling.as_mut().unwrap().repetition_penalty = Some(1.3);
            options.sampling.as_mut().unwrap().logit_bias = (0..9).map(|id| (id, 0.5)).collect();
        },
    ];
    for (at, change) in questions.into_iter().enumerate() {
        let (plain, _) = told(&running, generate("plain-llama", change)).await;
        let (first, cached) = told(&running, generate("llama", change)).await;
        assert_eq!(first, plain, "question {at}");
        // Gathered otherwise, the question is the same.
        assert_eq!(cached, at == 2, "question {at}");
        let generated = metric(&running, "ferry_generated_tokens_total", "llama").await;
        let (again, cached) = told(&running, generate("llama", change)).await;
        assert_eq!(again, plain, "question {at}");
        assert!(cached, "question {at}");
        let now = metric(&running, "ferry_generated_tokens_total", "llama").await;
        assert_eq!(now, generated, "nothing was generated");
    }

    // One that a stop text ends is kept up to there; with its echo it is told as it was.
    let (plain, _) = told(&running, generate("plain-llama", |_| {})).await;
    let text: String = plain.iter().map(|message| message.text.as_str()).collect();
    let stop: String = text.chars().skip(6).take(4).collect();
    let ask = |model| {
        let mut request = generate(model, |options| {
            options.stop = vec![stop.clone()];
            options.top_logprobs = 1;
        });
        request.echo = true;
        request
    };
    let (plain, _) = told(&running, ask("plain-llama")).await;
    assert_eq!(
        plain.last().unwrap().finish.as_ref().unwrap().stop_text,
        stop
    );
    for expected in [false, true] {
        let (rows, cached) = told(&running, ask("llama")).await;
        assert_eq!((rows, cached), (plain.clone(), expected));
    }
}

#[tokio::test]
async fn chance_and_what_was_cut_off_are_not_kept() {
    let running = serve(&[("llama", "generate")]).await;
    let chance = || {
        generate("llama", |options| {
            options.sampling.as_mut().unwrap().temperature = Some(1.0);
        })
    };
    for _ in 0..2 {
        assert!(!told(&running, chance()).await.1);
    }
    assert_eq!(
        metric(&running, "ferry_cache_misses_total", "llama").await,
        0
    );

    let long = || generate("llama", |options| options.max_tokens = Some(100));
    let mut stream = running.typed().generate(long()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    drop(stream);
    assert!(!told(&running, long()).await.1);
    assert!(told(&running, long()).await.1);
}

/// An HTTP answer: its head in lower case, and its body.
async fn post(running: &Running, path: &str, body: &Value) -> (String, String) {
    let address = running.server.http_address;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let length = body.len();
    let request = format!("POST {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn every_protocol_tells_that_an_answer_was_kept() {
    let running = serve(&[
        ("tiny-bert-embed", "embed"),
        ("tiny-bert-rerank", "rerank"),
        ("llama", "generate"),
    ])
    .await;
    let completion = |stream: bool| json!({"model": "llama", "prompt": "The ferry", "max_tokens": 8, "temperature": 0, "stream": stream});
    let rerank = json!({"model": "tiny-bert-rerank", "query": "q", "documents": ["a", "b"]});
    let embed = json!({"model": "tiny-bert-embed", "input": ["a", "b"]});
    for (path, body) in [
        ("/v1/embeddings", embed.clone()),
        ("/v1/rerank", rerank),
        ("/v1/completions", completion(false)),
    ] {
        for expected in ["false", "true"] {
            let (head, body) = post(&running, path, &body).await;
            assert!(
                head.contains(&format!("x-ferry-cached: {expected}")),
                "{path}: {head}\n{body}"
            );
        }
    }
    let (head, body) = post(&running, "/v1/completions", &completion(true)).await;
    assert!(head.contains("x-ferry-cached: true") && body.ends_with("data: [DONE]\n\n"));
    // Some known and some not is not kept.
    let mut more = embed;
    more["input"] = json!(["a", "c"]);
    let (head, _) = post(&running, "/v1/embeddings", &more).await;
    assert!(head.contains("x-ferry-cached: false"));
    more["model"] = json!("plain-tiny-bert-embed");
    let (head, _) = post(&running, "/v1/embeddings", &more).await;
    assert!(!head.contains("x-ferry-cached"));

    let mut text = 3_u32.to_le_bytes().to_vec();
    text.extend_from_slice(b"c d");
    let infer = |model: &str, name: &str, shape: Vec<i64>| ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: name.to_owned(),
            datatype: "BYTES".to_owned(),
            shape,
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![text.clone().into()],
        ..ModelInferRequest::default()
    };
    let mut open = running.open();
    for expected in [Some(false), Some(true)] {
        let request = infer("tiny-bert-embed", "TEXT", vec![1, 1]);
        let answer = open.model_infer(request).await.unwrap().into_inner();
        let told = answer
            .parameters
            .get("ferry_cached")
            .map(|parameter| parameter.parameter_choice == Some(ParameterChoice::BoolParam(true)));
        assert_eq!(told, expected);
    }
    let request = infer("plain-tiny-bert-embed", "TEXT", vec![1, 1]);
    let answer = open.model_infer(request).await.unwrap().into_inner();
    assert!(!answer.parameters.contains_key("ferry_cached"));
}
