//! What a call's metadata say, in gRPC and HTTP alike: deadline, tenant, priority.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use tonic::metadata::MetadataMap;

use super::gate::allowed_models;
use crate::{admission::CallContext, error::RequestError, telemetry::traces};

/// Reads the metadata of a gRPC call; see [`read_headers`].
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the key whose value isn't understood.
pub fn read_context(metadata: &MetadataMap, max_bytes: usize) -> Result<CallContext, RequestError> {
    read_headers(metadata.as_ref(), max_bytes)
}

/// Reads `grpc-timeout`, `x-request-timeout-ms` (the shorter counts), `x-ferry-tenant`,
/// `x-ferry-priority`, `x-ferry-version` and `x-ferry-route-key`. The clock of the deadline starts now.
/// A request that is traced came in when its headers did. Which models it may ask is what its key says.
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the header whose value isn't understood.
pub fn read_headers(headers: &HeaderMap, max_bytes: usize) -> Result<CallContext, RequestError> {
    let received = Instant::now();
    let mut context = CallContext {
        models: allowed_models(),
        ..CallContext::plain(received)
    };
    if let Some(trace) = traces::current() {
        context.received = trace.received();
        context.trace = Some(trace);
    }
    if let Some(timeout) = read(headers, "grpc-timeout", max_bytes)? {
        let left = parse_timeout(timeout).ok_or_else(|| {
            RequestError::invalid(
                "grpc-timeout",
                format_args!("'{timeout}'"),
                "1 to 8 digits and a unit of H, M, S, m, u, n",
            )
        })?;
        // A deadline too far to be told apart from none is none.
        context.deadline = received.checked_add(left);
    }
    if let Some(timeout) = read(headers, "x-request-timeout-ms", max_bytes)? {
        let left = timeout.parse().map_err(|_| {
            let found = format_args!("'{timeout}'");
            RequestError::invalid("x-request-timeout-ms", found, "whole milliseconds")
        })?;
        let deadline = received.checked_add(Duration::from_millis(left));
        context.deadline = earlier(context.deadline, deadline);
    }
    if let Some(tenant) = read(headers, "x-ferry-tenant", max_bytes)? {
        context.tenant = Arc::from(tenant);
    }
    if let Some(priority) = read(headers, "x-ferry-priority", max_bytes)? {
        context.priority = CallContext::parse_priority(priority).map_err(|error| {
            RequestError::invalid("x-ferry-priority", error, "high, normal or low")
        })?;
    }
    if let Some(key) = read(headers, "x-ferry-route-key", max_bytes)? {
        context.route_key = Some(Arc::from(key));
    }
    if let Some(version) = read(headers, "x-ferry-version", max_bytes)? {
        context.version = Some(Arc::from(version));
    }
    Ok(context)
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// A header's text; `None` when it isn't there.
///
/// # Errors
/// [`RequestError::InvalidArgument`] when it isn't text or is longer than `max_bytes`.
pub fn read<'a>(
    headers: &'a HeaderMap,
    key: &'static str,
    max_bytes: usize,
) -> Result<Option<&'a str>, RequestError> {
    let Some(value) = headers.get(key) else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .map_err(|_| RequestError::invalid(key, "bytes that are not text", "visible ASCII"))?;
    if text.len() > max_bytes {
        let found = format!("{} bytes", text.len());
        let allowed = format!("at most {max_bytes} bytes");
        return Err(RequestError::invalid(key, found, allowed));
    }
    Ok(Some(text))
}

/// Reads a timeout as gRPC's HTTP/2 mapping writes it: at most 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "5", "m", "123456789m", "-5m", "5x", "5 m", "½m"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_shorter_of_two_timeouts_counts() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", "1M".parse().unwrap());
        headers.insert("x-request-timeout-ms", "250".parse().unwrap());
        let context = read_headers(&headers, 64).unwrap();
        let left = context.deadline.unwrap() - context.received;
        assert_eq!(left, Duration::from_millis(250));
        headers.insert("x-request-timeout-ms", "soon".parse().unwrap());
        let error = read_headers(&headers, 64).unwrap_err().to_string();
        assert_eq!(
            error,
            "x-request-timeout-ms: found 'soon'; allowed: whole milliseconds"
        );
    }

    #[test]
    fn a_priority_that_is_not_one_is_refused_with_what_is() {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-ferry-priority", "urgent".parse().unwrap());
        let error = read_context(&metadata, 64).unwrap_err().to_string();
        assert!(error.contains("urgent") && error.contains("high, normal or low"));
    }
}
