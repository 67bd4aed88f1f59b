//! OpenAI's routes, byte by byte: what its own Python client needs is tested with that client in
//! tests/clients.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{generate, support::Running};

/// An answer: status, headers in lower case, body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn error(&self) -> Value {
        self.json()["error"].clone()
    }
}

pub async fn send(
    running: &Running,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let address = running.server.http_address;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let length = body.len();
    // HTTP/1.0: the answer ends with the connection, and is not chunked.
    let request =
        format!("{method} {path} HTTP/1.0\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

pub async fn post(running: &Running, path: &str, body: &Value) -> Answer {
    send(running, "POST", path, "", &body.to_string()).await
}

fn greedy(prompt: &str, more: &Value) -> Value {
    let mut body = json!({
        "model": "llama", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": true
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// The data of each event.
fn events(answer: &Answer) -> Vec<&str> {
    let events = answer.body.split("\n\n").filter(|event| !event.is_empty());
    events
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect()
}

#[tokio::test]
async fn a_completion_is_the_same_whole_and_streamed() {
    let running = generate::serve("").await;
    let whole = post(
        &running,
        "/v1/completions",
        &greedy("The ferry", &json!({})),
    )
    .await;
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert!(
        whole.head.contains("x-ferry-model-version: 1"),
        "{}",
        whole.head
    );
    let answer = whole.json();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 12);

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streamed = post(&running, "/v1/completions", &greedy("The ferry", &more)).await;
    assert!(
        streamed.head.contains("content-type: text/event-stream"),
        "{}",
        streamed.head
    );
    let events = events(&streamed);
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let pieces = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    assert_eq!(chunks.last().unwrap()["usage"], answer["usage"]);
}

#[tokio::test]
async fn several_prompts_with_several_continuations_are_choices_in_order() {
    let running = generate::serve("").await;
    let mut body = greedy("", &json!({"n": 2}));
    body["prompt"] = json!(["The ferry", "A letter"]);
    let answer = post(&running, "/v1/completions", &body).await.json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (at, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], at);
    }
    assert_eq!(choices[0]["text"], choices[1]["text"]);
    assert_ne!(choices[0]["text"], choices[2]["text"]);
}

#[tokio::test]
async fn a_chat_is_streamed_as_deltas() {
    let running = generate::serve("").await;
    let body = json!({
        "model": "llama", "stream": true, "max_tokens": 5, "temperature": 0, "ignore_eos": true,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "When?"}]}],
    });
    let answer = post(&running, "/v1/chat/completions", &body).await;
    let events = events(&answer);
    let first: Value = serde_json::from_str(events[0]).unwrap();
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    let last: Value = serde_json::from_str(events[events.len() - 2]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(events.last(), Some(&"[DONE]"));
}

#[tokio::test]
async fn what_is_wrong_is_told_in_openais_form() {
    let running = generate::serve("").await;
    let completions = "/v1/completions";
    for (body, status, param) in [
        (greedy("x", &json!({"temprature": 1})), 400, "temprature"),
        (greedy("x", &json!({"temperature": -1})), 400, "temperature"),
        (
            greedy("x", &json!({"temperature": "hot"})),
            400,
            "temperature",
        ),
        (greedy("x", &json!({"max_tokens": 1000})), 400, "max_tokens"),
        (
            greedy("x", &json!({"logit_bias": {"999": 1}})),
            400,
            "logit_bias",
        ),
        (greedy("x", &json!({"stop": vec!["a"; 17]})), 400, "stop"),
        (greedy("x", &json!({"suffix": "y"})), 400, "suffix"),
    ] {
        let answer = post(&running, completions, &body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        let error = answer.error();
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["param"].as_str().unwrap().contains(param), "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    let mut unknown = greedy("x", &json!({}));
    unknown["model"] = json!("gpt");
    assert_eq!(post(&running, completions, &unknown).await.status, 404);
    let broken = send(&running, "POST", completions, "", "{\"model\":").await;
    assert_eq!(broken.status, 400, "{}", broken.body);
    assert_eq!(send(&running, "GET", completions, "", "").await.status, 405);
    assert_eq!(
        send(&running, "GET", "/v1/nothing", "", "").await.status,
        404
    );
    let priority = send(
        &running,
        "POST",
        completions,
        "x-ferry-priority: now\r\n",
        "{}",
    )
    .await;
    assert_eq!(priority.status, 400, "{}", priority.body);
    let late = greedy("x", &json!({"max_tokens": 100, "n": 64}));
    let late = late.to_string();
    let late = send(
        &running,
        "POST",
        completions,
        "x-request-timeout-ms: 5\r\n",
        &late,
    )
    .await;
    assert!([504, 429].contains(&late.status), "{}", late.body);
}

#[tokio::test]
async fn encoders_embed_and_rerank_over_http() {
    let running = Running::with(&["tiny-bert-embed", "tiny-bert-rerank"]).await;
    let body = json!({"model": "tiny-bert-embed", "input": ["All aboard!", "Mind the gap."]});
    let answer = post(&running, "/v1/embeddings", &body).await.json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    assert_eq!(answer["data"][1]["embedding"].as_array().unwrap().len(), 32);

    let body = json!({
        "model": "tiny-bert-rerank", "query": "ferry", "documents": ["a boat", "a hat", "a cat"],
        "top_n": 2, "return_documents": true,
    });
    let answer = post(&running, "/v1/rerank", &body).await.json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64());
    assert!(results[0]["document"]["text"].is_string());

    // A model of another task.
    let body = json!({"model": "tiny-bert-embed", "prompt": "x"});
    let wrong = post(&running, "/v1/completions", &body).await;
    assert_eq!(wrong.status, 400, "{}", wrong.body);
    let models = send(&running, "GET", "/v1/models", "", "").await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 2);
}

/// What JSON is made of.
const SIGNS: &[u8] = b"{}[]\",:0-9eE.tfn";

#[tokio::test]
async fn mangled_bodies_are_the_callers_fault_and_leave_the_server_well() {
    let running = generate::serve("").await;
    let good = greedy(
        "The ferry",
        &json!({
            "n": 2, "stop": ["x"], "logit_bias": {"7": 1.5}, "seed": 3, "logprobs": 1,
            "top_p": 0.9, "stream": false, "response_format": {"type": "text"}
        }),
    )
    .to_string();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut roll = |sides: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % sides
    };
    let mut refused = 0;
    for _ in 0..400 {
        let mut body = good.clone().into_bytes();
        for _ in 0..=roll(4) {
            let at = roll(body.len());
            match roll(3) {
                0 => body[at] = b' ' + roll(95) as u8,
                1 => drop(body.remove(at)),
                _ => body.insert(at, SIGNS[roll(SIGNS.len())]),
            }
        }
        let body = String::from_utf8(body).unwrap();
        let answer = send(&running, "POST", "/v1/completions", "", &body).await;
        assert!(
            [200, 400, 404].contains(&answer.status),
            "{body}: {}",
            answer.body
        );
        if answer.status != 200 {
            refused += 1;
            assert!(
                answer.error()["message"].is_string(),
                "{body}: {}",
                answer.body
            );
        }
    }
    assert!(refused > 200, "only {refused} were refused");
    assert_eq!(
        send(&running, "POST", "/v1/completions", "", &good)
            .await
            .status,
        200
    );
}
