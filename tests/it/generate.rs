//! Generation through the typed service, on a tiny Llama: against transformers' golden text, and
//! the same tokens whatever else the server does.

use std::time::Duration;

use ferry::api::proto::ferry::v1::{
    ChatMessage, ChatRequest, Choices, Finish, FinishReason, GenerateRequest, GenerateResponse,
    GenerationOptions, LowConfidence, LowConfidenceAction, Sampling, TokenIds, TokenizeRequest,
    generate_request::Prompt, generation_options::Constraint,
};
use prost::Message as _;
use tonic::{Code, Status, Streaming};

use super::support::{Running, add_version, fixture, metric, settle, write_manifest};

/// A server over the tiny Llama, with these lines in its manifest's `[generate]`.
pub async fn serve(settings: &str) -> Running {
    let models = tempfile::tempdir().unwrap();
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    let manifest = format!("task = \"generate\"\n[generate]\ncache_type = \"f32\"\n{settings}");
    write_manifest(models.path(), "llama", &manifest);
    Running::serving(models, |_| {}).await
}

fn greedy(max_tokens: u32) -> GenerationOptions {
    GenerationOptions {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        sampling: Some(Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        }),
        ..GenerationOptions::default()
    }
}

fn continuing(ids: &[u32], options: GenerationOptions) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: ids.to_vec() })),
        options: Some(options),
        ..GenerateRequest::default()
    }
}

fn text(prompt: &str, options: GenerationOptions) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text(prompt.to_owned())),
        options: Some(options),
        ..GenerateRequest::default()
    }
}

/// One continuation, gathered.
#[derive(Debug, Clone, Default, PartialEq)]
struct Gathered {
    text: String,
    ids: Vec<u32>,
    messages: usize,
    finish: Option<Finish>,
}

async fn gather(mut stream: Streaming<GenerateResponse>) -> Result<Vec<Gathered>, Status> {
    let mut all: Vec<Gathered> = Vec::new();
    while let Some(message) = stream.message().await? {
        let index = message.index as usize;
        all.resize_with(all.len().max(index + 1), Gathered::default);
        let one = &mut all[index];
        assert!(one.finish.is_none(), "something came after the end");
        one.text.push_str(&message.text);
        one.ids.extend(message.tokens.iter().map(|token| token.id));
        one.messages += 1;
        one.finish = message.finish;
    }
    Ok(all)
}

async fn run(running: &Running, request: GenerateRequest) -> Result<Vec<Gathered>, Status> {
    gather(running.typed().generate(request).await?.into_inner()).await
}

async fn run_one(running: &Running, request: GenerateRequest) -> Gathered {
    run(running, request).await.unwrap().remove(0)
}

struct Golden {
    text: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    greedy_text: String,
}

fn golden() -> (Vec<Golden>, Vec<(Vec<ChatMessage>, Golden)>) {
    let path = super::support::root().join("tests/golden/decoders/llama.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let ids =
        |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let (mut plain, mut chats) = (Vec::new(), Vec::new());
    for case in file["cases"].as_array().unwrap() {
        let golden = Golden {
            text: case["text"].as_str().unwrap_or_default().to_owned(),
            ids: ids(&case["ids"]),
            greedy: ids(&case["greedy"]),
            greedy_text: case["greedy_text"].as_str().unwrap().to_owned(),
        };
        match case["messages"].as_array() {
            None => plain.push(golden),
            Some(messages) => {
                let messages = messages.iter().map(|message| ChatMessage {
                    role: message["role"].as_str().unwrap().to_owned(),
                    content: message["content"].as_str().unwrap().to_owned(),
                });
                chats.push((messages.collect(), golden));
            }
        }
    }
    (plain, chats)
}

#[tokio::test]
async fn greedy_text_is_that_of_transformers() {
    let running = serve("").await;
    let (plain, chats) = golden();
    for case in plain {
        let one = run_one(&running, continuing(&case.ids, greedy(16))).await;
        assert_eq!(one.ids, case.greedy);
        let one = run_one(&running, text(&case.text, greedy(16))).await;
        assert_eq!(one.ids, case.greedy, "{}", case.text);
        assert_eq!(one.text, case.greedy_text);
        let finish = one.finish.unwrap();
        assert_eq!(finish.reason(), FinishReason::Length);
        assert_eq!(finish.prompt_tokens as usize, case.ids.len());
        assert_eq!(finish.generated_tokens, 16);
        assert!(finish.confidence > 0.0 && finish.confidence <= 1.0);
    }
    for (messages, case) in chats {
        let request = ChatRequest {
            messages,
            options: Some(greedy(16)),
            ..ChatRequest::default()
        };
        let stream = running.typed().chat(request).await.unwrap().into_inner();
        let one = gather(stream).await.unwrap().remove(0);
        assert_eq!(one.ids, case.greedy);
        assert_eq!(one.finish.unwrap().prompt_tokens as usize, case.ids.len());
    }
}

/// Prompts of many lengths, some of which begin alike.
fn prompts(count: u32) -> Vec<Vec<u32>> {
    (0..count)
        .map(|i| {
            let shared = (0..24).map(|at| 3 + (at * 7 + i % 3) % 300);
            let own = (0..=i % 29).map(|at| 3 + (at * 11 + i * 5) % 300);
            shared.chain(own).collect()
        })
        .collect()
}

/// Runs all prompts at once.
async fn together(running: &Running, prompts: &[Vec<u32>], tokens: u32) -> Vec<Gathered> {
    let runs: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let (mut client, request) = (running.typed(), continuing(prompt, greedy(tokens)));
            tokio::spawn(async move {
                let stream = client.generate(request).await.unwrap().into_inner();
                gather(stream).await.unwrap().remove(0)
            })
        })
        .collect();
    let mut all = Vec::new();
    for run in runs {
        all.push(run.await.unwrap());
    }
    all
}

fn ids(all: &[Gathered]) -> Vec<&[u32]> {
    all.iter().map(|one| one.ids.as_slice()).collect()
}

#[tokio::test]
async fn tokens_are_the_same_alone_batched_chunked_preempted_and_with_shared_prefixes() {
    let prompts = prompts(100);
    let alone = serve("max_running = 1\nshare_prefixes = false").await;
    let expected = together(&alone, &prompts, 60).await;

    let batched = serve("max_running = 16\nshare_prefixes = false").await;
    assert_eq!(ids(&together(&batched, &prompts, 60).await), ids(&expected));

    let chunked = serve("max_running = 16\nmax_step_tokens = 19\nshare_prefixes = false").await;
    assert_eq!(ids(&together(&chunked, &prompts, 60).await), ids(&expected));

    let shared = serve("max_running = 16\nblock_size = 8").await;
    let found = together(&shared, &prompts, 60).await;
    assert_eq!(ids(&found), ids(&expected));
    let cached: u32 = found
        .iter()
        .map(|one| one.finish.as_ref().unwrap().cached_tokens)
        .sum();
    assert!(cached > 24 * 50, "{cached} tokens were shared");

    // 1 MiB holds 4096 positions; 100 sequences come to need 9800.
    let tight =
        serve("max_running = 100\ncache_mib = 1\nblock_size = 8\nshare_prefixes = false").await;
    assert_eq!(ids(&together(&tight, &prompts, 60).await), ids(&expected));
    assert!(metric(&tight, "ferry_preemptions_total").await > 0);
}

#[tokio::test]
async fn a_seed_gives_the_same_text_whatever_travels_with_it() {
    let running = serve("").await;
    let drawn = |seed, n| {
        let mut options = greedy(40);
        options.n = n;
        options.sampling = Some(Sampling {
            temperature: Some(1.3),
            top_p: Some(0.95),
            seed: Some(seed),
            ..Sampling::default()
        });
        continuing(&[5, 6, 7, 8, 9], options)
    };
    let first = run_one(&running, drawn(7, 1)).await;
    let company = prompts(20);
    let (crowd, again) = tokio::join!(
        together(&running, &company, 40),
        run_one(&running, drawn(7, 1))
    );
    assert_eq!(crowd.len(), 20);
    assert_eq!(first.ids, again.ids);
    assert_ne!(first.ids, run_one(&running, drawn(8, 1)).await.ids);
    // The continuations of one request differ, and the first is the one drawn alone.
    let several = run(&running, drawn(7, 3)).await.unwrap();
    assert_eq!(several.len(), 3);
    assert_eq!(several[0].ids, first.ids);
    assert_ne!(several[1].ids, several[0].ids);
}

#[tokio::test]
async fn a_stop_text_ends_the_generation_and_is_not_sent() {
    let running = serve("").await;
    let whole = run_one(&running, text("The ferry leaves", greedy(40))).await;
    let characters: Vec<char> = whole.text.chars().collect();
    let stop: String = characters[8..11].iter().collect();
    let mut options = greedy(40);
    options.stop = vec!["never there".to_owned(), stop.clone()];
    let cut = run_one(&running, text("The ferry leaves", options)).await;
    let before = whole.text.find(&stop).unwrap();
    assert_eq!(cut.text, whole.text[..before]);
    let finish = cut.finish.unwrap();
    assert_eq!(finish.reason(), FinishReason::Stop);
    assert_eq!(finish.stop_text, stop);
}

#[tokio::test]
async fn stop_tokens_end_the_generation() {
    let running = serve("").await;
    let (plain, _) = golden();
    let case = &plain[0];
    let stop = case.greedy[3];
    let at = case.greedy.iter().position(|&id| id == stop).unwrap();
    let mut options = greedy(16);
    options.stop_token_ids = vec![stop];
    let one = run_one(&running, continuing(&case.ids, options)).await;
    assert_eq!(one.ids, case.greedy[..at]);
    assert_eq!(one.finish.unwrap().reason(), FinishReason::Stop);
}

#[tokio::test]
async fn tokens_are_gathered_into_messages_of_the_interval() {
    let running = serve("").await;
    let mut options = greedy(20);
    options.stream_interval = 8;
    let gathered = run_one(&running, continuing(&[5, 6, 7], options)).await;
    assert_eq!((gathered.ids.len(), gathered.messages), (20, 3));
    let single = run_one(&running, continuing(&[5, 6, 7], greedy(20))).await;
    assert_eq!((single.ids.len(), single.messages), (20, 20));
    assert_eq!(single.text, gathered.text);
}

#[tokio::test]
async fn an_echoed_prompt_comes_first_with_its_scores() {
    let running = serve("").await;
    let mut options = greedy(4);
    options.top_logprobs = 2;
    let mut request = text("The ferry leaves the harbour", options);
    request.echo = true;
    let mut stream = running
        .typed()
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.text, "The ferry leaves the harbour");
    assert_eq!(first.tokens[0].logprob, None);
    for token in &first.tokens[1..] {
        assert!(token.logprob.unwrap() < 0.0);
        assert_eq!(token.alternatives.len(), 2);
        assert!(token.alternatives[0].logprob >= token.logprob.unwrap());
    }
    let rest = gather(stream).await.unwrap().remove(0);
    assert_eq!(rest.ids.len(), 4);
}

#[tokio::test]
async fn text_has_the_form_that_was_asked_for() {
    let running = serve("").await;
    let mut options = greedy(60);
    options.ignore_eos = false;
    options.constraint = Some(Constraint::Choices(Choices {
        texts: vec!["yes".to_owned(), "no, never".to_owned()],
    }));
    let one = run_one(&running, text("Will it?", options.clone())).await;
    assert!(["yes", "no, never"].contains(&one.text.as_str()), "{one:?}");
    assert_eq!(one.finish.unwrap().reason(), FinishReason::Stop);

    options.constraint = Some(Constraint::Regex("[0-9]{3}-[a-c]+x".to_owned()));
    options.sampling = Some(Sampling {
        temperature: Some(1.0),
        seed: Some(1),
        ..Sampling::default()
    });
    let one = run_one(&running, text("A number:", options.clone())).await;
    let (digits, letters) = one.text.split_once('-').unwrap();
    assert!(digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit()));
    let letters = letters.trim_end_matches('x');
    assert!(
        letters.bytes().all(|byte| (b'a'..=b'c').contains(&byte)),
        "{one:?}"
    );

    let schema = r#"{"type":"object","properties":{"a":{"type":"boolean"}},"required":["a"],"additionalProperties":false}"#;
    options.constraint = Some(Constraint::JsonSchema(schema.to_owned()));
    let one = run_one(&running, text("JSON:", options.clone())).await;
    if one.finish.as_ref().unwrap().reason() == FinishReason::Stop {
        let value: serde_json::Value = serde_json::from_str(&one.text).unwrap();
        assert!(value["a"].is_boolean());
    }

    options.constraint = Some(Constraint::Regex("(".to_owned()));
    let error = run(&running, text("A number:", options)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_reason() {
    let running = serve("").await;
    let with = |change: &dyn Fn(&mut GenerationOptions, &mut Sampling)| {
        let mut options = greedy(4);
        let mut sampling = options.sampling.take().unwrap();
        change(&mut options, &mut sampling);
        options.sampling = Some(sampling);
        continuing(&[5, 6], options)
    };
    let cases: Vec<(GenerateRequest, &str)> = vec![
        (
            with(&|options, _| options.max_tokens = Some(127)),
            "max_tokens",
        ),
        (
            with(&|options, _| options.max_tokens = Some(0)),
            "max_tokens",
        ),
        (with(&|options, _| options.n = 1000), "n"),
        (
            with(&|options, _| options.stop = vec![String::new()]),
            "stop",
        ),
        (
            with(&|options, _| options.stop = vec!["x".to_owned(); 17]),
            "stop",
        ),
        (
            with(&|options, _| options.stop_token_ids = vec![320]),
            "stop_token_ids",
        ),
        (
            with(&|options, _| options.top_logprobs = 21),
            "top_logprobs",
        ),
        (
            with(&|options, _| options.min_confidence = 1.5),
            "min_confidence",
        ),
        (
            with(&|_, sampling| sampling.temperature = Some(-1.0)),
            "temperature",
        ),
        (
            with(&|_, sampling| sampling.temperature = Some(f32::NAN)),
            "temperature",
        ),
        (with(&|_, sampling| sampling.top_p = Some(0.0)), "top_p"),
        (with(&|_, sampling| sampling.min_p = Some(2.0)), "min_p"),
        (
            with(&|_, sampling| sampling.typical_p = Some(-0.5)),
            "typical_p",
        ),
        (
            with(&|_, sampling| sampling.repetition_penalty = Some(0.0)),
            "repetition_penalty",
        ),
        (
            with(&|_, sampling| sampling.presence_penalty = 3.0),
            "presence_penalty",
        ),
        (
            with(&|_, sampling| sampling.logit_bias = [(999, 1.0)].into()),
            "logit_bias",
        ),
        (continuing(&[], greedy(4)), "prompt"),
        (continuing(&[320], greedy(4)), "prompt"),
        (continuing(&[5; 128], greedy(4)), "prompt"),
        (GenerateRequest::default(), "prompt"),
    ];
    for (request, named) in cases {
        let error = run(&running, request.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{named}: {error}");
        assert!(error.message().contains(named), "{named}: {error}");
    }
    let mut unknown = continuing(&[5], greedy(1));
    unknown.model = "gpt".to_owned();
    assert_eq!(
        run(&running, unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        run_one(&running, continuing(&[5], greedy(1)))
            .await
            .ids
            .len(),
        1
    );
}

#[tokio::test]
async fn blocks_come_back_when_readers_vanish_and_a_stuck_one_holds_up_nobody() {
    let running = serve("max_running = 256").await;
    let mut vanishing = Vec::new();
    for prompt in prompts(200) {
        let mut client = running.typed();
        vanishing.push(tokio::spawn(async move {
            let request = continuing(&prompt, greedy(70));
            let mut stream = client.generate(request).await.unwrap().into_inner();
            // Gone after a token or two.
            stream.message().await.unwrap();
            stream.message().await.unwrap();
        }));
    }
    for one in vanishing {
        one.await.unwrap();
    }
    settle(&running, "ferry_sequences", 0).await;
    assert_eq!(
        metric(&running, "ferry_cache_blocks{state=\"used\"}").await,
        0
    );

    // One that never reads: its answer is larger than what the connection takes unread.
    let mut stuck = running.typed();
    let request = continuing(&[9; 10], {
        let mut options = greedy(110);
        options.n = 64;
        options.top_logprobs = 20;
        options
    });
    let held = stuck.generate(request).await.unwrap().into_inner();
    let all = together(&running, &prompts(20), 60).await;
    assert_eq!(all.len(), 20);
    drop(held);
    settle(&running, "ferry_sequences", 0).await;
    assert_eq!(
        metric(&running, "ferry_cache_blocks{state=\"used\"}").await,
        0
    );
}

#[tokio::test]
async fn a_deadline_ends_a_generation_and_frees_its_blocks() {
    let running = serve("").await;
    let mut options = greedy(120);
    options.n = 64;
    let mut request = tonic::Request::new(continuing(&[5; 6], options));
    request.set_timeout(Duration::from_millis(30));
    let outcome = match running.typed().generate(request).await {
        Ok(stream) => gather(stream.into_inner()).await.map(drop),
        Err(status) => Err(status),
    };
    if let Err(status) = outcome {
        // The client's own timer may be first.
        let late = [
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::ResourceExhausted,
        ];
        assert!(late.contains(&status.code()), "{status}");
    }
    settle(&running, "ferry_sequences", 0).await;
}

#[tokio::test]
async fn prompts_are_tokenized_as_the_model_sees_them() {
    let running = serve("").await;
    let (plain, _) = golden();
    let request = TokenizeRequest {
        texts: vec![plain[0].text.clone()],
        ..TokenizeRequest::default()
    };
    let response = running
        .typed()
        .tokenize(request)
        .await
        .unwrap()
        .into_inner();
    let tokens = &response.rows[0].tokens;
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, plain[0].ids);
    assert_eq!(
        tokens.last().unwrap().end as usize,
        plain[0].text.chars().count()
    );
}

#[tokio::test]
async fn mangled_requests_are_the_callers_fault_and_leave_the_server_well() {
    let running = serve("").await;
    let mut options = greedy(8);
    options.n = 2;
    options.stop = vec!["x".to_owned()];
    options.top_logprobs = 2;
    options.constraint = Some(Constraint::Regex("[a-z]+".to_owned()));
    let good = text("The ferry", options).encode_to_vec();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut roll = |sides: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % sides
    };
    let mut refused = 0;
    for _ in 0..600 {
        let mut message = good.clone();
        for _ in 0..=roll(3) {
            let at = roll(message.len());
            message[at] ^= 1 << roll(8);
        }
        // What isn't a message at all is `malformed`'s.
        let Ok(mut request) = GenerateRequest::decode(message.as_slice()) else {
            continue;
        };
        if let Some(options) = &mut request.options {
            options.max_tokens = options.max_tokens.map(|tokens| tokens.min(200));
        }
        if let Err(status) = run(&running, request.clone()).await {
            refused += 1;
            let fault = [Code::InvalidArgument, Code::NotFound];
            assert!(fault.contains(&status.code()), "{request:?}: {status}");
        }
    }
    assert!(refused > 50, "only {refused} were refused");
    assert_eq!(
        run_one(&running, continuing(&[5], greedy(3)))
            .await
            .ids
            .len(),
        3
    );
}

/// Two names for one model, the first of which hands on what it is not sure of.
async fn cascading(small: &str) -> Running {
    let models = tempfile::tempdir().unwrap();
    for name in ["small", "large"] {
        add_version(models.path(), name, 1, &fixture("decoders/llama"));
        let cascade = if name == "small" { small } else { "" };
        let manifest = format!("task = \"generate\"\n{cascade}");
        write_manifest(models.path(), name, &manifest);
    }
    Running::serving(models, |_| {}).await
}

fn asked_of(model: &str, options: GenerationOptions) -> GenerateRequest {
    GenerateRequest {
        model: model.to_owned(),
        ..text("The ferry", options)
    }
}

fn when_low(action: LowConfidenceAction, model: &str) -> GenerationOptions {
    GenerationOptions {
        min_confidence: 1.0,
        whole: true,
        n: 2,
        on_low_confidence: Some(LowConfidence {
            action: action.into(),
            fallback_model: model.to_owned(),
            ..LowConfidence::default()
        }),
        ..greedy(6)
    }
}

#[tokio::test]
async fn a_generation_below_the_confidence_is_flagged_taken_back_or_handed_on() {
    let running = cascading("").await;
    let flag = when_low(LowConfidenceAction::Flag, "");
    let own = run(&running, asked_of("small", flag)).await.unwrap();
    assert_eq!(own.len(), 2);
    for one in &own {
        let finish = one.finish.as_ref().unwrap();
        assert!(finish.low_confidence && !finish.abstained && finish.escalation.is_none());
        assert_eq!((one.messages, one.ids.len()), (1, 6));
    }

    let abstain = when_low(LowConfidenceAction::Abstain, "");
    for one in run(&running, asked_of("small", abstain)).await.unwrap() {
        let finish = one.finish.unwrap();
        assert!(finish.abstained && finish.low_confidence && finish.confidence > 0.0);
        assert_eq!((one.text.as_str(), one.ids.len()), ("", 0));
    }

    let fall_back = when_low(LowConfidenceAction::FallBack, "large");
    for (at, one) in run(&running, asked_of("small", fall_back))
        .await
        .unwrap()
        .iter()
        .enumerate()
    {
        let escalation = one.finish.as_ref().unwrap().escalation.as_ref().unwrap();
        assert_eq!(escalation.answered_by.as_ref().unwrap().name, "large");
        assert_eq!(escalation.escalated_from[0].name, "small");
        assert!(!escalation.failed);
        // It is the same model under another name.
        assert_eq!(one.ids, own[at].ids);
    }
    let escalated = "ferry_cascade_rows_total{model=\"small\",result=\"escalated\",to=\"large\",\
                     version=\"1\"}";
    assert_eq!(metric(&running, escalated).await, 2);

    // What it is sure enough of stays.
    let mut sure = when_low(LowConfidenceAction::FallBack, "large");
    sure.min_confidence = 1e-6;
    for one in run(&running, asked_of("small", sure)).await.unwrap() {
        assert!(one.finish.unwrap().escalation.is_none());
    }
}

#[tokio::test]
async fn what_is_streamed_is_flagged_at_its_end_and_can_not_fall_back() {
    let running = cascading("[cascade]\nmodel = \"large\"\nbelow = 1.0\n").await;
    for action in [LowConfidenceAction::Abstain, LowConfidenceAction::FallBack] {
        let mut streamed = when_low(action, "");
        streamed.whole = false;
        let error = run(&running, asked_of("small", streamed))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("options.whole"), "{error:?}");
    }
    let mut ids = continuing(&[1, 2], when_low(LowConfidenceAction::FallBack, "large"));
    ids.model = "small".to_owned();
    let error = run(&running, ids).await.unwrap_err();
    assert!(error.message().contains("other tokens"), "{error:?}");

    let streamed = GenerationOptions {
        min_confidence: 1.0,
        ..greedy(4)
    };
    let one = run_one(&running, asked_of("small", streamed.clone())).await;
    let finish = one.finish.unwrap();
    assert!(one.messages > 1 && finish.low_confidence && finish.escalation.is_none());
    // Whole, the manifest's cascade holds.
    let whole = GenerationOptions {
        whole: true,
        ..streamed
    };
    let one = run_one(&running, asked_of("small", whole)).await;
    let escalation = one.finish.unwrap().escalation.unwrap();
    assert_eq!(escalation.answered_by.unwrap().name, "large");
}
