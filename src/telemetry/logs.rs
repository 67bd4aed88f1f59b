//! Structured logs through `tracing`, with a filter that can be changed while the server runs.

use std::sync::OnceLock;

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// A filter that isn't understood.
#[derive(Debug, thiserror::Error)]
#[error("log filter '{filter}': {reason}; use a level or directives such as 'ferry=debug,info'")]
pub struct FilterError {
    filter: String,
    reason: String,
}

/// Starts logging to standard error. `json` writes one object a line.
///
/// A second call in one process does nothing: the first one's subscriber stays.
///
/// # Errors
/// [`FilterError`] when `filter` isn't understood.
pub fn start(filter: &str, json: bool) -> Result<(), FilterError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .try_init()
    } else {
        registry
            .with(
                fmt::layer()
                    .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                    .with_writer(std::io::stderr),
            )
            .try_init()
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// Changes what is logged from now on.
///
/// # Errors
/// [`FilterError`] when `filter` isn't understood, or logging was not started by [`start`].
pub fn set_filter(filter: &str) -> Result<(), FilterError> {
    let parsed = parse(filter)?;
    let error = |reason: String| FilterError {
        filter: filter.to_owned(),
        reason,
    };
    FILTER
        .get()
        .ok_or_else(|| error("logging was not started".to_owned()))?
        .reload(parsed)
        .map_err(|reason| error(reason.to_string()))
}

fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    EnvFilter::try_new(filter).map_err(|error| FilterError {
        filter: filter.to_owned(),
        reason: error.to_string(),
    })
}
