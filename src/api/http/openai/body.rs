//! Takes in a request's body, as far as the limit goes.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
};
use bytes::BytesMut;
use futures_util::StreamExt as _;

use super::errors::ApiError;

/// Bytes of a body at most; what gRPC takes in by default.
pub const MAX_BODY_BYTES: usize = 64 << 20;

/// Time within which more of a body has to come.
const PAUSE: Duration = Duration::from_secs(30);

/// Reads a body of at most `limit` bytes. What its content type says does not matter.
///
/// # Errors
/// 408 when it comes too slowly, 413 when it is longer, 415 when it is compressed, 400 when the connection fails under way.
pub async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(ApiError::of_request(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "a compressed body; send it as it is, without content-encoding".to_owned(),
        ));
    }
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let mut taken = BytesMut::new();
    let mut chunks = body.into_data_stream();
    loop {
        let next = tokio::time::timeout(PAUSE, chunks.next()).await;
        let Some(chunk) = next.map_err(|_| too_slow())? else {
            return Ok(taken.freeze());
        };
        let chunk = chunk.map_err(|_| {
            let message = "the body broke off before its end".to_owned();
            ApiError::of_request(StatusCode::BAD_REQUEST, "incomplete_body", message)
        })?;
        if taken.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        taken.extend_from_slice(&chunk);
    }
}

fn too_slow() -> ApiError {
    let message = format!("no more of the body came within {} s", PAUSE.as_secs());
    ApiError::of_request(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
}

fn too_large(limit: usize) -> ApiError {
    ApiError::of_request(
        StatusCode::PAYLOAD_TOO_LARGE,
        "request_too_large",
        format!("the body is longer than {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;

    async fn status(headers: &HeaderMap, body: &'static str, limit: usize) -> u16 {
        match read_body(headers, Body::from(body), limit).await {
            Ok(_) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_announced_or_not() {
        let mut headers = HeaderMap::new();
        assert_eq!(status(&headers, "1234", 4).await, 200);
        assert_eq!(status(&headers, "12345", 4).await, 413);
        headers.insert(header::CONTENT_LENGTH, "5".parse().unwrap());
        assert_eq!(status(&headers, "", 4).await, 413);
    }

    #[tokio::test]
    async fn a_compressed_body_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(status(&headers, "", 4).await, 415);
    }
}
