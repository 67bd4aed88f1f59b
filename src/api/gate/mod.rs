//! The gate of the callers in front of both protocols: reads the key, asks [`Callers`], names the
//! tenant for all that comes after, and holds the request's place until its answer is out.

mod body;
mod grpc;
mod http;
mod needs;
mod scope;

use std::{net::IpAddr, time::Instant};

use axum::http::{HeaderMap, HeaderValue, header};

use crate::{
    admission::{AllowedModels, Callers, Need, Place, bearer},
    error::RequestError,
};

pub use grpc::GrpcGate;
pub use http::http_gate;
pub use scope::{allowed_models, restricted};

/// Names whose request it is, for the fair shares of the queues, metrics and logs.
const TENANT: &str = "x-ferry-tenant";

/// Lets a request in. What it says of its tenant is replaced by what its key says.
///
/// # Errors
/// As [`Callers::enter`].
fn enter(
    callers: &Callers,
    need: Need,
    headers: &mut HeaderMap,
    peer: Option<IpAddr>,
) -> Result<(Option<Place>, AllowedModels), RequestError> {
    let entered = callers.enter(need, key_of(headers), peer, Instant::now())?;
    if let Some(tenant) = entered.tenant {
        // Names of tenants are visible ASCII, which a checked keys file says.
        let name = HeaderValue::from_str(&tenant).map_err(RequestError::internal)?;
        headers.insert(TENANT, name);
    }
    Ok((entered.place, entered.models))
}

/// The key in `authorization: Bearer KEY`, `x-api-key` or `api-key`, the first that has one. An empty
/// one is none: clients that are not told a key send the header all the same.
fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let named = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let key = |name: &str| Some(named(name)?.trim_ascii()).filter(|key| !key.is_empty());
    named(header::AUTHORIZATION.as_str())
        .and_then(bearer)
        .or_else(|| key("x-api-key"))
        .or_else(|| key("api-key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_in_any_of_three_headers() {
        for (name, value, key) in [
            ("authorization", "Bearer k", Some("k")),
            ("authorization", "bearer  k ", Some("k")),
            ("authorization", "Basic k", None),
            ("authorization", "k", None),
            ("x-api-key", "k", Some("k")),
            ("api-key", "k", Some("k")),
            ("x-key", "k", None),
            ("authorization", "Bearer ", None),
            ("x-api-key", "", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(key_of(&headers), key.map(str::as_bytes), "{name}: {value}");
        }
    }

    #[test]
    fn a_header_without_a_key_hides_none_that_has_one() {
        for authorization in ["Bearer ", "Basic k", ""] {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", authorization.parse().unwrap());
            headers.insert("x-api-key", "".parse().unwrap());
            headers.insert("api-key", "k".parse().unwrap());
            assert_eq!(key_of(&headers), Some(&b"k"[..]), "{authorization:?}");
        }
    }
}
