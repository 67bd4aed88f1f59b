//! Who may call: API keys, what they open, and how often a tenant may come.
//!
//! The keys file has hashes only. Keys are random, 256 bits, so that one round of a fast hash is as
//! good as many of a slow one: there is nothing to guess.

mod bucket;
mod models;
mod table;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use self::table::{Limit, Table};
use super::attempts::Attempts;
use crate::{
    config::{
        ConfigError,
        auth::{KeysFile, Scope},
    },
    error::RequestError,
    telemetry::CallerMetrics,
};

pub use models::AllowedModels;
pub use table::Place;

/// Where a place is asked for again when all are taken: about as long as a short request takes.
const PLACE_RETRY: Duration = Duration::from_millis(50);

/// What a request needs to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: whoever asks how the server is, and those who bring something else than a key.
    Nothing,
    /// A key, whatever it opens.
    Key,
    /// A key that opens this.
    Scope(Scope),
}

/// A request that has been let in.
#[derive(Debug)]
pub struct Entered {
    /// Whose it is; `None` where everyone may call.
    pub tenant: Option<Arc<str>>,
    /// Its place among its tenant's requests, to be kept until it is answered.
    pub place: Option<Place>,
    /// The models that it may ask.
    pub models: AllowedModels,
}

/// The gate of the callers.
#[derive(Debug)]
pub struct Callers {
    /// `None` where everyone may call.
    keys: Option<Keys>,
    attempts: Mutex<Attempts>,
    metrics: CallerMetrics,
    /// What buckets count their time from.
    began: Instant,
}

#[derive(Debug)]
struct Keys {
    file: PathBuf,
    table: ArcSwap<Table>,
}

impl Callers {
    /// Reads the keys; without a file, everyone may call.
    ///
    /// # Errors
    /// [`ConfigError`] when the file can't be read or is wrong.
    pub fn read(file: Option<&Path>, metrics: CallerMetrics) -> Result<Self, ConfigError> {
        let keys = file
            .map(|file| {
                let table = Table::new(&KeysFile::read(file)?, &Table::default(), &metrics.model);
                Ok(Keys {
                    file: file.to_owned(),
                    table: ArcSwap::from_pointee(table),
                })
            })
            .transpose()?;
        Ok(Self {
            keys,
            attempts: Mutex::new(Attempts::default()),
            metrics,
            began: Instant::now(),
        })
    }

    /// The file that the keys come from.
    pub fn file(&self) -> Option<&Path> {
        self.keys.as_ref().map(|keys| &*keys.file)
    }

    /// Reads the file again. Until it is right, what was read before holds.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn reload(&self) -> Result<usize, ConfigError> {
        let Some(keys) = &self.keys else {
            return Ok(0);
        };
        let table = Table::new(
            &KeysFile::read(&keys.file)?,
            &keys.table.load(),
            &self.metrics.model,
        );
        let count = table.len();
        keys.table.store(Arc::new(table));
        Ok(count)
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// [`RequestError::Unauthenticated`] without a right key, [`RequestError::NotPermitted`] with one
    /// that opens something else, [`RequestError::Overloaded`] beyond a limit or after too many wrong
    /// keys.
    pub fn enter(
        &self,
        need: Need,
        key: Option<&[u8]>,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> Result<Entered, RequestError> {
        let nobody = Entered {
            tenant: None,
            place: None,
            models: AllowedModels::default(),
        };
        let Some(keys) = &self.keys else {
            return Ok(nobody);
        };
        if need == Need::Nothing {
            return Ok(nobody);
        }
        let Some(key) = key else {
            self.metrics.missing.inc();
            return Err(RequestError::Unauthenticated {
                reason: "no API key; send 'authorization: Bearer KEY' or 'x-api-key: KEY'"
                    .to_owned(),
            });
        };
        let table = keys.table.load();
        let Some(caller) = table.find(key) else {
            return Err(self.count_wrong(peer, now));
        };
        if let Need::Scope(scope) = need
            && !caller.may(scope)
        {
            self.metrics.scope.inc();
            let (key, opens) = (&caller.key, caller.scopes());
            let needed = scope.name();
            return Err(RequestError::NotPermitted {
                what: format!("key '{key}' opens {opens}; this needs one that opens {needed}"),
            });
        }
        let tenant = &caller.tenant;
        let place = match need {
            Need::Scope(Scope::Infer | Scope::Jobs) => {
                let since = now.saturating_duration_since(self.began);
                let place = tenant
                    .enter(since)
                    .map_err(|limit| self.beyond(&tenant.name, limit))?;
                Some(place)
            }
            _ => None,
        };
        Ok(Entered {
            tenant: Some(Arc::clone(&tenant.name)),
            place,
            models: caller.models.clone(),
        })
    }

    fn count_wrong(&self, peer: Option<IpAddr>, now: Instant) -> RequestError {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(retry_after) = attempts.check(peer, now) {
            self.metrics.limited.inc();
            return RequestError::Overloaded {
                what: "too many calls from this address had no right key".to_owned(),
                retry_after,
            };
        }
        attempts.count_failure(peer, now);
        self.metrics.wrong.inc();
        RequestError::Unauthenticated {
            reason: "the API key is not one of this server's; `ferry key` makes one, and its line \
                     goes into the file that auth.keys_file names"
                .to_owned(),
        }
    }

    fn beyond(&self, tenant: &str, limit: Limit) -> RequestError {
        match limit {
            Limit::Rate(wait) => {
                self.metrics.rate.inc();
                RequestError::Overloaded {
                    what: format!("tenant '{tenant}' has sent as many requests as it may"),
                    // Timers round down to the millisecond.
                    retry_after: wait + Duration::from_millis(1),
                }
            }
            Limit::Concurrent(most) => {
                self.metrics.concurrent.inc();
                RequestError::Overloaded {
                    what: format!("tenant '{tenant}' has {most} requests in the server, its limit"),
                    retry_after: PLACE_RETRY,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::auth::ApiKey, telemetry::Metrics};

    fn gate(text: &str) -> (Callers, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let callers = Callers::read(Some(file.path()), Metrics::new().callers()).unwrap();
        (callers, file)
    }

    fn keys(secret: &str) -> String {
        let hash = ApiKey::write_hash(secret);
        format!(
            "[[tenant]]\nname = \"a\"\nrequests_per_second = 1\nburst = 2\n[[key]]\nname = \"k\"\n\
             tenant = \"a\"\nhash = \"{hash}\"\nscopes = [\"infer\"]\n"
        )
    }

    #[test]
    fn a_key_opens_what_its_scopes_say_and_no_more() {
        let (gate, _file) = gate(&keys("right"));
        let now = Instant::now();
        let enter = |need, key: Option<&[u8]>| gate.enter(need, key, None, now);
        let entered = enter(Need::Scope(Scope::Infer), Some(b"right")).unwrap();
        assert_eq!(entered.tenant.as_deref(), Some("a"));
        assert!(enter(Need::Key, Some(b"right")).unwrap().place.is_none());
        assert!(enter(Need::Nothing, None).is_ok());
        let error = enter(Need::Scope(Scope::Metrics), Some(b"right")).unwrap_err();
        assert!(
            matches!(error, RequestError::NotPermitted { .. }),
            "{error}"
        );
        for wrong in [None, Some(&b"wrong"[..]), Some(b"")] {
            let error = enter(Need::Key, wrong).unwrap_err();
            let refused = matches!(error, RequestError::Unauthenticated { .. });
            assert!(refused, "{error}");
        }
    }

    #[test]
    fn who_is_beyond_its_rate_is_told_when_to_come_again() {
        let (gate, _file) = gate(&keys("right"));
        let now = Instant::now();
        let enter = |at| gate.enter(Need::Scope(Scope::Infer), Some(b"right"), None, at);
        assert!(enter(now).is_ok() && enter(now).is_ok());
        let wait = enter(now).unwrap_err().retry_after().unwrap();
        assert!(enter(now + wait).is_ok());
        // Questions about the server are not counted.
        assert!(gate.enter(Need::Key, Some(b"right"), None, now).is_ok());
    }

    #[test]
    fn a_file_that_is_wrong_leaves_the_keys_as_they_were() {
        let (gate, file) = gate(&keys("old"));
        let now = Instant::now();
        let enter = |key: &[u8]| gate.enter(Need::Key, Some(key), None, now).is_ok();
        std::fs::write(file.path(), "[[key]]\n").unwrap();
        assert!(gate.reload().is_err() && enter(b"old"));
        std::fs::write(file.path(), keys("new")).unwrap();
        assert_eq!(gate.reload().unwrap(), 1);
        assert!(enter(b"new") && !enter(b"old"));
    }

    #[test]
    fn who_guesses_keys_is_slowed_down_and_who_has_one_is_not() {
        let (gate, _file) = gate(&keys("right"));
        let peer = Some("10.0.0.1".parse().unwrap());
        let now = Instant::now();
        let guesses = (0..50).filter(|_| {
            let error = gate
                .enter(Need::Key, Some(b"guess"), peer, now)
                .unwrap_err();
            matches!(error, RequestError::Unauthenticated { .. })
        });
        assert_eq!(guesses.count(), 10);
        assert!(gate.enter(Need::Key, Some(b"right"), peer, now).is_ok());
    }
}
