//! Who may operate the server: tokens, and how often one may be guessed at.
//!
//! One gate for the admin listener and for the repository RPCs of the public port, so that neither
//! is a way around the other.

mod tokens;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use self::tokens::Tokens;
use super::{attempts::Attempts, bearer::bearer};
use crate::{config::admin::AdminConfig, error::RequestError, telemetry::OperatorMetrics};

pub use tokens::TokenError;

/// Someone who may operate the server.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Where the call came from.
    pub peer: Option<IpAddr>,
    /// The name of the token it carried; `none` where the server has no token.
    pub token: Arc<str>,
}

impl Operator {
    /// The peer, for logs.
    pub fn peer(&self) -> String {
        self.peer
            .map_or_else(|| "unknown".to_owned(), |peer| peer.to_string())
    }
}

/// The gate of the operators.
#[derive(Debug)]
pub struct Operators {
    tokens: Option<Tokens>,
    attempts: Mutex<Attempts>,
    metrics: OperatorMetrics,
}

impl Operators {
    /// Reads the tokens.
    ///
    /// # Errors
    /// [`TokenError`] when there is none where one is needed, or one is wrong.
    pub fn read(config: &AdminConfig, metrics: OperatorMetrics) -> Result<Self, TokenError> {
        Ok(Self {
            tokens: Tokens::read(config)?,
            attempts: Mutex::new(Attempts::default()),
            metrics,
        })
    }

    /// Where its actions are counted.
    pub fn metrics(&self) -> &OperatorMetrics {
        &self.metrics
    }

    /// Tells who is calling. `authorization` is the header of that name.
    ///
    /// # Errors
    /// [`RequestError::Unauthenticated`] without a token that is right,
    /// [`RequestError::Overloaded`] after too many wrong ones from one address.
    pub fn identify(
        &self,
        peer: Option<IpAddr>,
        authorization: Option<&[u8]>,
        now: Instant,
    ) -> Result<Operator, RequestError> {
        let Some(tokens) = &self.tokens else {
            let token = Arc::from("none");
            return Ok(Operator { peer, token });
        };
        self.lock_attempts().check(peer, now).map_err(|wait| {
            self.metrics.limited.inc();
            RequestError::Overloaded {
                what: "too many calls from this address had no right token".to_owned(),
                retry_after: wait,
            }
        })?;
        let token = authorization.map(bearer);
        let name = token.flatten().and_then(|token| tokens.name_of(token));
        if let Some(token) = name {
            return Ok(Operator { peer, token });
        }
        let (counter, reason) = match token {
            None => (
                &self.metrics.missing,
                "no token; send 'authorization: Bearer TOKEN' (ferry admin: --token-file FILE, or \
                 the token in FERRY_ADMIN_TOKEN)",
            ),
            Some(None) => (
                &self.metrics.wrong,
                "the authorization is not 'Bearer TOKEN'",
            ),
            Some(Some(_)) => (
                &self.metrics.wrong,
                "the token is not one of this server's; they stand in [admin] token or \
                 token_file of its ferry.toml, or in its FERRY_ADMIN_TOKEN, and are read at its start",
            ),
        };
        counter.inc();
        self.lock_attempts().count_failure(peer, now);
        Err(RequestError::Unauthenticated {
            reason: reason.to_owned(),
        })
    }

    fn lock_attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::Secret, telemetry::Metrics};

    const TOKEN: &str = "0123456789abcdef";

    fn gate(token: Option<&str>) -> Operators {
        let config = AdminConfig {
            token: token.map(Secret::new),
            ..AdminConfig::default()
        };
        Operators::read(&config, Metrics::new().operators()).unwrap()
    }

    #[test]
    fn only_the_right_token_passes() {
        let gate = gate(Some(TOKEN));
        let peer = Some("127.0.0.1".parse().unwrap());
        let now = Instant::now();
        let identify = |header: Option<&str>| gate.identify(peer, header.map(str::as_bytes), now);
        for right in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef "] {
            assert_eq!(&*identify(Some(right)).unwrap().token, "token");
        }
        for wrong in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Basic 0123456789abcdef"),
            Some("Bearer 0123456789abcdeF"),
            Some("Bearer 0123456789abcde"),
            Some("Bearer 0123456789abcdef0"),
        ] {
            let error = identify(wrong).unwrap_err();
            let refused = matches!(error, RequestError::Unauthenticated { .. });
            assert!(refused, "{wrong:?}: {error}");
        }
    }

    #[test]
    fn who_guesses_is_slowed_down_and_others_are_not() {
        let gate = gate(Some(TOKEN));
        let guesser = Some("10.0.0.1".parse().unwrap());
        let operator = Some("10.0.0.2".parse().unwrap());
        let now = Instant::now();
        let right: Option<&[u8]> = Some(b"Bearer 0123456789abcdef");
        let guesses = (0..100)
            .map(|_| gate.identify(guesser, Some(b"Bearer guess"), now))
            .filter(|answer| matches!(answer, Err(RequestError::Unauthenticated { .. })))
            .count();
        assert_eq!(guesses, 10, "looked at");
        // Even the right token is not looked at now, else the answer would tell that it is right.
        let error = gate.identify(guesser, right, now).unwrap_err();
        let wait = error.retry_after().unwrap();
        assert!(wait <= Duration::from_millis(1001), "{wait:?}");
        assert!(gate.identify(operator, right, now).is_ok());
        assert!(gate.identify(guesser, right, now + wait).is_ok());
    }

    #[test]
    fn without_a_token_everyone_who_reaches_the_listener_operates() {
        let operator = gate(None).identify(None, None, Instant::now()).unwrap();
        assert_eq!((&*operator.token, &*operator.peer()), ("none", "unknown"));
    }
}
