//! OpenAI's routes with any body, over a real socket: an answer, or the caller's fault in OpenAI's
//! form.

use std::sync::Mutex;

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::TcpStream;

use super::{
    bytes::{Bytes, lossy},
    server::{Served, served},
};

const ROUTES: [&str; 4] = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/rerank",
];
/// Answers that are not Ferry's fault: the last is the deadline below.
const FINE: [u16; 7] = [200, 400, 404, 413, 415, 429, 504];
/// A caller may ask for much.
const TIMEOUT_MS: &str = "5000";

type Connection = http1::SendRequest<Body>;

/// Which route, and the body.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let route = ROUTES[usize::from(input.byte()) % ROUTES.len()];
    let body = input.rest();
    let (status, answer) = served().runtime.block_on(post(route, body));
    assert!(FINE.contains(&status), "{route}: {status} {answer}");
    if status != 200 {
        let answer: Json = serde_json::from_str(&answer).expect("an error in JSON");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(!message.is_empty() && message.len() < 5000, "{message}");
    }
}

async fn post(route: &str, body: &[u8]) -> (u16, String) {
    static OPEN: Mutex<Option<Connection>> = Mutex::new(None);
    let mut kept = OPEN.lock().expect("one at a time").take();
    if let Some(connection) = &mut kept
        && connection.ready().await.is_err()
    {
        kept = None;
    }
    let mut connection = match kept {
        Some(connection) => connection,
        None => connect(served()).await,
    };
    let request = Request::post(route)
        .header(header::HOST, "ferry")
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-request-timeout-ms", TIMEOUT_MS)
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let answer = connection.send_request(request).await.expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("all of it");
    *OPEN.lock().expect("one at a time") = Some(connection);
    (status, lossy(&body.to_bytes()))
}

async fn connect(served: &Served) -> Connection {
    let socket = TcpStream::connect(served.http).await.expect("it listens");
    let (connection, driver) = http1::handshake(TokioIo::new(socket)).await.expect("HTTP");
    tokio::spawn(driver);
    connection
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |route: u8, body: &str| [&[route], body.as_bytes()].concat();
    vec![
        seed(
            0,
            r#"{"model":"generate","prompt":"The ferry","max_tokens":4,"n":2,"stop":["x"],"logit_bias":{"7":1.5},"seed":3,"logprobs":1,"top_p":0.9,"temperature":0.5}"#,
        ),
        seed(
            0,
            r#"{"model":"generate","prompt":[1,2,3],"max_tokens":3,"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"echo":true}"#,
        ),
        seed(
            1,
            r#"{"model":"generate","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"When?"}]}],"max_completion_tokens":5,"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"object","properties":{"a":{"type":"integer"}}}}}}"#,
        ),
        seed(
            1,
            r#"{"model":"generate","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":3,"top_logprobs":2,"logprobs":true,"guided_regex":"[a-z]+"}"#,
        ),
        seed(
            2,
            r#"{"model":"embed","input":["All aboard!","Cast off."],"encoding_format":"base64","dimensions":8}"#,
        ),
        seed(
            2,
            r#"{"model":"embed","input":[[5,6],[7]],"encoding_format":"float"}"#,
        ),
        seed(
            3,
            r#"{"model":"rerank","query":"when","documents":["now",{"text":"later"}],"top_n":1,"return_documents":true}"#,
        ),
    ]
}
