//! Requests that are sound as messages and hostile in what they say: control characters, giants, texts
//! that tokenizers are slow on, prompts at the very edge of the context, forms made to explode, odd stop
//! texts. Each has its code, in bounded time, and those beside it are served.

use std::time::Duration;

use ferry::api::proto::ferry::v1::{EmbedRequest, EmbedResponse, ModelOptions};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{
    openai::{Answer, post, send},
    support::{Running, add_version, fixture, write_manifest},
};

/// Far above what any of these take, below what a test may.
const PATIENCE: Duration = Duration::from_secs(60);

async fn serve() -> Running {
    let models = tempfile::tempdir().unwrap();
    for (name, files) in [
        ("generate", "decoders/llama"),
        ("word-piece", "tiny-bert-embed"),
        ("byte-level", "tiny-roberta-embed"),
        ("unigram", "tiny-xlm-roberta-embed"),
    ] {
        add_version(models.path(), name, 1, &fixture(files));
    }
    write_manifest(models.path(), "generate", "task = \"generate\"\n");
    Running::serving(models, |config| {
        config.limits.max_text_bytes = 1 << 20;
    })
    .await
}

async fn embed(running: &Running, model: &str, text: String) -> Result<EmbedResponse, Status> {
    let request = EmbedRequest {
        options: Some(ModelOptions {
            model: model.to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec![text],
        ..EmbedRequest::default()
    };
    let mut client = running.typed().max_decoding_message_size(64 << 20);
    let answer = client.embed(request).await;
    answer.map(tonic::Response::into_inner)
}

async fn complete(running: &Running, more: Value) -> Answer {
    let mut body = json!({"model": "generate", "prompt": "The ferry", "max_tokens": 2});
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    post(running, "/v1/completions", &body).await
}

/// Does something hostile while a neighbour asks again and again, which must be answered every time.
async fn beside_a_neighbour<T>(running: &Running, hostile: impl Future<Output = T>) -> T {
    let neighbour = async {
        loop {
            let answer = embed(running, "word-piece", "good morning".to_owned()).await;
            answer.expect("the neighbour is served");
        }
    };
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, hostile) => done.expect("in bounded time"),
        () = neighbour => unreachable!("it asks for ever"),
    }
}

#[tokio::test]
async fn control_characters_are_text_like_any_other() {
    let running = serve().await;
    let controls: String = (0..=0x9F_u8).map(char::from).collect();
    let odd = format!("{controls}\u{200b}\u{202e}\u{feff}\u{fffe}\u{10ffff}e\u{301}");
    for model in ["word-piece", "byte-level", "unigram"] {
        let answer = embed(&running, model, odd.clone()).await.unwrap();
        assert!(answer.rows[0].embedding.iter().all(|x| x.is_finite()));
        // Nothing but what normalization takes away.
        embed(&running, model, "\0\u{1}\u{7f}".to_owned())
            .await
            .unwrap();
    }
    let answer = complete(&running, json!({"prompt": odd})).await;
    // It has more tokens than the tiny model's context takes.
    assert_eq!(answer.status, 400, "{}", answer.body);
    let answer = complete(&running, json!({"prompt": "\u{1b}[2J\0\u{202e}"})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // In a name they are told of, not written as they are.
    let error = embed(&running, "a\u{1b}[2J\nb", String::new())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[tokio::test]
async fn bodies_that_are_no_utf_8_or_name_half_a_character_are_the_callers_fault() {
    let running = serve().await;
    let half = r#"{"model":"generate","max_tokens":1,"prompt":"\ud83e"}"#;
    let answer = send(&running, "POST", "/v1/completions", "", half).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    // `send` takes text; what follows is none.
    let body = b"{\"model\":\"generate\",\"max_tokens\":1,\"prompt\":\"\xc3\x28\"}";
    let head = format!(
        "POST /v1/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    let answer = raw(&running, &request).await;
    assert!(answer.starts_with("HTTP/1.0 400"), "{answer}");
}

/// Bytes over HTTP/1.0, and what comes back.
async fn raw(running: &Running, request: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = running.server.http_address;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn strings_of_ten_megabytes_are_refused_where_they_stand() {
    let running = serve().await;
    let giant = "x".repeat(10 << 20);
    let text = embed(&running, "word-piece", giant.clone());
    let error = beside_a_neighbour(&running, text).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("10485760 bytes"), "{error}");
    let name = embed(&running, &giant, "a".to_owned());
    let error = beside_a_neighbour(&running, name).await.unwrap_err();
    assert!(error.message().len() < 5000);
    for body in [
        json!({"prompt": giant}),
        json!({"model": giant}),
        json!({"stop": giant}),
        json!({"guided_regex": giant}),
        json!({ (&giant): 1 }),
    ] {
        let answer = beside_a_neighbour(&running, complete(&running, body)).await;
        assert!([400, 404].contains(&answer.status), "{}", answer.status);
        assert!(answer.body.len() < 5000, "{} bytes", answer.body.len());
    }
}

#[tokio::test]
async fn texts_that_tokenizers_are_slow_on_take_bounded_time_and_hold_up_no_neighbour() {
    let running = serve().await;
    // As much as a text may have by default.
    let long = |piece: &str| piece.repeat((128 << 10) / piece.len());
    for text in [
        long("a"),
        long("aab"),
        long(" "),
        long("e\u{301}\u{301}"),
        long("日"),
        long("\u{200d}🦀"),
        long("a\u{1}"),
        long("<s></s>[SEP]"),
    ] {
        for model in ["word-piece", "byte-level", "unigram"] {
            let slow = embed(&running, model, text.clone());
            let answer = beside_a_neighbour(&running, slow).await.unwrap();
            assert_eq!(answer.rows.len(), 1, "it is cut to the model's length");
        }
        let slow = complete(&running, json!({"prompt": text}));
        let answer = beside_a_neighbour(&running, slow).await;
        // The tiny model's context is 128 tokens; white space alone may be few.
        assert!([400, 200].contains(&answer.status), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_prompt_may_fill_the_context_and_not_one_token_more() {
    let running = serve().await;
    let ask = |prompt: usize, max_tokens: u32| {
        let more = json!({"prompt": vec![5; prompt], "max_tokens": max_tokens, "ignore_eos": true});
        complete(&running, more)
    };
    for (prompt, max_tokens, status) in [
        (127, 1, 200),
        (126, 2, 200),
        (1, 127, 200),
        (127, 2, 400),
        (128, 1, 400),
        (1, 128, 400),
        (129, 1, 400),
    ] {
        let answer = ask(prompt, max_tokens).await;
        assert_eq!(
            answer.status, status,
            "{prompt}, {max_tokens}: {}",
            answer.body
        );
        if status == 200 {
            assert_eq!(answer.json()["usage"]["completion_tokens"], max_tokens);
        }
    }
    // Nothing asked for: OpenAI's 16, where they fit.
    for (prompt, status) in [(112, 200), (113, 400)] {
        let asked = json!({"prompt": vec![5; prompt], "max_tokens": null, "ignore_eos": true});
        let answer = complete(&running, asked).await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}

/// Schemas, patterns and grammars that say little and mean much.
fn explosive() -> Vec<(&'static str, Value)> {
    let deep = |open: &str, close: &str, times: usize| {
        let schema = open.repeat(times) + "{}" + &close.repeat(times);
        serde_json::from_str::<Value>(&schema).unwrap()
    };
    let many: Vec<String> = (0..8000).map(|at| format!("choice {at}")).collect();
    let properties: serde_json::Map<_, _> = (0..400)
        .map(|at| (format!("p{at}"), json!({"type": "string"})))
        .collect();
    vec![
        ("guided_json", deep(r#"{"items":"#, "}", 100)),
        ("guided_json", deep(r#"{"not":"#, "}", 100)),
        (
            "guided_json",
            deep(r#"{"anyOf":[{"type":"null"},"#, "]}", 50),
        ),
        ("guided_json", json!({"enum": many})),
        ("guided_json", json!({"$ref": "#"})),
        (
            "guided_json",
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        ("guided_json", json!({"$ref": "http://127.0.0.1:9/schema"})),
        (
            "guided_json",
            json!({"type": "array", "items": {"$ref": "#"}, "minItems": 1_000_000_000}),
        ),
        (
            "guided_json",
            json!({"type": "string", "minLength": 4_000_000_000_u64}),
        ),
        (
            "guided_json",
            json!({"type": "string", "pattern": "^(a+)+$"}),
        ),
        (
            "guided_json",
            json!({"type": "string", "pattern": "^(?=.*a)(?!b)\\1$"}),
        ),
        (
            "guided_json",
            json!({"type": "integer", "multipleOf": 1e-300, "minimum": -1e308}),
        ),
        (
            "guided_json",
            json!({"type": "object", "properties": properties, "additionalProperties": {"$ref": "#"}}),
        ),
        (
            "guided_json",
            json!({"allOf": vec![json!({"pattern": "^.{0,500}[ab].{0,500}$"}); 40]}),
        ),
        (
            "guided_regex",
            json!("(((a{1,1000}){1,1000}){1,1000}){1,1000}"),
        ),
        ("guided_regex", json!("[a-z]{100000000}")),
        ("guided_regex", json!("(.*a.*|.*b.*|.*c.*){200}x{500}")),
        ("guided_regex", json!("(".repeat(20_000))),
        (
            "guided_regex",
            json!("(".repeat(5_000) + &")".repeat(5_000)),
        ),
        ("guided_choice", json!(many)),
        ("guided_choice", json!([])),
    ]
}

#[tokio::test]
async fn forms_made_to_explode_are_refused_or_followed_in_bounded_time() {
    let running = serve().await;
    for (field, form) in explosive() {
        let shown: String = form.to_string().chars().take(80).collect();
        let asked = complete(&running, json!({ field: form }));
        let answer = beside_a_neighbour(&running, asked).await;
        assert!(
            [200, 400].contains(&answer.status),
            "{shown}: {}",
            answer.body
        );
        if answer.status == 400 {
            let message = answer.error()["message"].to_string();
            assert!(message.len() < 5000, "{shown}: {} bytes", message.len());
        }
    }
    // JSON that no reader follows so deep.
    let deep = r#"{"items":"#.repeat(100_000) + "{}" + &"}".repeat(100_000);
    let body =
        format!(r#"{{"model":"generate","prompt":"x","max_tokens":1,"guided_json":{deep}}}"#);
    let answer = send(&running, "POST", "/v1/completions", "", &body).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(complete(&running, json!({})).await.status, 200);
}

#[tokio::test]
async fn odd_stop_texts_are_looked_for_or_refused() {
    let running = serve().await;
    for (stop, status) in [
        (json!("\0"), 200),
        (json!(["\u{1b}[2J", "\u{202e}", "</s>", "\u{fffd}"]), 200),
        (json!("x".repeat(1024)), 200),
        (json!("x".repeat(1025)), 400),
        (json!(""), 400),
        (json!([]), 200),
        (json!(null), 200),
        (json!([null]), 400),
        (json!([["x"]]), 400),
        (json!(7), 400),
    ] {
        let shown: String = stop.to_string().chars().take(40).collect();
        let answer = complete(&running, json!({ "stop": stop })).await;
        assert_eq!(answer.status, status, "{shown}: {}", answer.body);
    }
}
