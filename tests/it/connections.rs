//! What connections may do: how many there are, how long they may be silent, how much they may say of
//! a request before it begins.

use ferry::config::ServerConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Request, metadata::MetadataValue};

use super::support::{Running, models_of};

async fn serving(change: impl FnOnce(&mut ServerConfig)) -> Running {
    Running::serving(models_of(&["tiny-bert-embed"]), change).await
}

async fn connect(running: &Running) -> TcpStream {
    TcpStream::connect(running.server.http_address)
        .await
        .unwrap()
}

/// Asks for the health, on a connection that stays.
async fn ask(connection: &mut TcpStream) {
    let request = b"GET /health/live HTTP/1.1\r\nhost: ferry\r\n\r\n";
    connection.write_all(request).await.unwrap();
}

/// Reads one answer of [`ask`].
async fn answer(connection: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"live\n") {
        let byte = connection.read_u8().await.unwrap();
        answer.push(byte);
    }
    String::from_utf8(answer).unwrap()
}

/// Reads until the server ends the connection.
async fn rest(connection: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    let reading = connection.read_to_end(&mut rest);
    let limit = std::time::Duration::from_secs(60);
    let read = tokio::time::timeout(limit, reading).await;
    // A reset is an end, too.
    drop(read.expect("the connection is ended"));
    String::from_utf8(rest).unwrap()
}

#[tokio::test]
async fn a_connection_beyond_the_bound_waits_until_another_ends() {
    let running = serving(|config| config.http.max_connections = 1).await;
    let mut first = connect(&running).await;
    ask(&mut first).await;
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = connect(&running).await;
    ask(&mut second).await;
    for _ in 0..20 {
        ask(&mut first).await;
        answer(&mut first).await;
    }
    let nothing = second.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_connection_that_says_no_more_is_ended() {
    let running = serving(|config| config.http.idle_seconds = 1).await;
    let mut begun = connect(&running).await;
    begun.write_all(b"GET /health/live HTT").await.unwrap();
    let mut answered = connect(&running).await;
    ask(&mut answered).await;
    answer(&mut answered).await;
    let mut silent = connect(&running).await;
    for connection in [&mut begun, &mut answered, &mut silent] {
        assert!(!rest(connection).await.contains("200 OK"));
    }
}

#[tokio::test]
async fn headers_beyond_the_bound_are_refused() {
    let running = serving(|config| config.http.max_header_bytes = 8 << 10).await;
    let mut connection = connect(&running).await;
    let long = "x".repeat(20 << 10);
    let request = format!("GET /health/live HTTP/1.1\r\nhost: ferry\r\nlong: {long}\r\n\r\n");
    // It may end the connection before all has been written.
    let _ = connection.write_all(request.as_bytes()).await;
    let mut status = vec![0; 12];
    connection.read_exact(&mut status).await.unwrap();
    assert_eq!(status, b"HTTP/1.1 431");
    let many = "a: b\r\n".repeat(200);
    let mut connection = connect(&running).await;
    let request = format!("GET /health/live HTTP/1.1\r\nhost: ferry\r\n{many}\r\n");
    let _ = connection.write_all(request.as_bytes()).await;
    connection.read_exact(&mut status).await.unwrap();
    assert_eq!(status, b"HTTP/1.1 431");

    // Of gRPC's 16 KiB.
    let mut request = Request::new(ferry::api::proto::ferry::v1::EmbedRequest::default());
    let value = MetadataValue::try_from(long).unwrap();
    request.metadata_mut().insert("long", value);
    let refused = running.typed().embed(request).await.unwrap_err();
    assert_ne!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn a_connection_over_http_ends_as_the_server_does() {
    let running = serving(|_| {}).await;
    let mut idle = connect(&running).await;
    ask(&mut idle).await;
    answer(&mut idle).await;
    let Running { server, .. } = running;
    assert!(server.shut_down().await);
    assert!(rest(&mut idle).await.is_empty());
}
