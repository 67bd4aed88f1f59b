//! Tenants and keys as they are looked up. A reload makes a new table; what a tenant has used up of
//! its limits goes over to it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use prometheus::IntCounter;

use super::{
    bucket::{Bucket, Rate},
    models::AllowedModels,
};
use crate::config::auth::{KeysFile, Scope, TenantLimits};

/// The keys that pass.
#[derive(Debug, Default)]
pub struct Table {
    keys: HashMap<[u8; 32], Caller>,
}

/// Who a key belongs to and what it opens.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key's name.
    pub key: Arc<str>,
    /// Whose it is.
    pub tenant: Arc<Tenant>,
    scopes: Vec<Scope>,
    /// The models that it opens.
    pub models: AllowedModels,
}

/// A tenant with its limits.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: Arc<str>,
    rate: Option<Rate>,
    max_concurrent: u32,
    used: Arc<Used>,
}

/// What a tenant has used up.
#[derive(Debug, Default)]
struct Used {
    bucket: Bucket,
    concurrent: AtomicU32,
}

/// A request's place among those of its tenant; given back as it drops.
#[derive(Debug)]
pub struct Place(Arc<Used>);

/// Why a tenant's request has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Too many came; the next may come after so long.
    Rate(Duration),
    /// So many are in the server, which is all that may be.
    Concurrent(u32),
}

impl Table {
    /// The keys of `file`; tenants that were in `before` have used up what they had. Who asks for a
    /// model that its key does not open is counted by `refused`.
    pub fn new(file: &KeysFile, before: &Self, refused: &IntCounter) -> Self {
        let known: HashMap<&str, &Arc<Used>> = before
            .keys
            .values()
            .map(|caller| (&*caller.tenant.name, &caller.tenant.used))
            .collect();
        let tenants: HashMap<&str, Arc<Tenant>> = file
            .tenants
            .iter()
            .map(|limits| {
                let used = known.get(&*limits.name).copied().cloned();
                let tenant = Tenant::new(limits, used.unwrap_or_default());
                (&*limits.name, Arc::new(tenant))
            })
            .collect();
        let keys = file.keys.iter().filter_map(|key| {
            // A checked file has a tenant and a hash for every key.
            let tenant = tenants.get(&*key.tenant)?;
            let name = Arc::from(&*key.name);
            let caller = Caller {
                models: AllowedModels::of_key(&name, key.models.as_deref(), refused),
                key: name,
                tenant: Arc::clone(tenant),
                scopes: key.scopes.clone(),
            };
            Some((*key.parsed_hash()?.as_bytes(), caller))
        });
        Self {
            keys: keys.collect(),
        }
    }

    /// Whose key `candidate` is. The table is looked up by the key's hash, which whoever does not have
    /// the key can't steer: how long it takes tells nothing about the keys there are.
    pub fn find(&self, candidate: &[u8]) -> Option<&Caller> {
        self.keys.get(blake3::hash(candidate).as_bytes())
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

impl Caller {
    /// Whether the key opens `scope`.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// What it opens, for people.
    pub fn scopes(&self) -> String {
        let names: Vec<_> = self.scopes.iter().map(|scope| scope.name()).collect();
        names.join(", ")
    }
}

impl Tenant {
    fn new(limits: &TenantLimits, used: Arc<Used>) -> Self {
        let rate = limits.requests_per_second.map(|per_second| {
            let burst = limits.burst.unwrap_or(per_second.ceil().max(1.0) as u32);
            Rate::new(per_second, burst)
        });
        Self {
            name: Arc::from(&*limits.name),
            rate,
            max_concurrent: limits.max_concurrent.unwrap_or(u32::MAX),
            used,
        }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// The limit it is beyond.
    pub fn enter(&self, now: Duration) -> Result<Place, Limit> {
        // First the place: a request that finds none should not use up the rate.
        let concurrent = &self.used.concurrent;
        concurrent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |inside| {
                (inside < self.max_concurrent).then_some(inside + 1)
            })
            .map_err(|_| Limit::Concurrent(self.max_concurrent))?;
        let place = Place(Arc::clone(&self.used));
        if let Some(rate) = self.rate {
            self.used.bucket.take(rate, now).map_err(Limit::Rate)?;
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.concurrent.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::auth::ApiKey;

    fn file(limits: TenantLimits) -> KeysFile {
        let key = ApiKey {
            name: "k".to_owned(),
            tenant: limits.name.clone(),
            hash: ApiKey::write_hash("right"),
            scopes: vec![Scope::Infer],
            models: None,
        };
        KeysFile {
            tenants: vec![limits],
            keys: vec![key],
        }
    }

    fn table(file: &KeysFile, before: &Table) -> Table {
        let refused = IntCounter::new("refused", "refused").unwrap();
        Table::new(file, before, &refused)
    }

    fn limits(rate: Option<f64>, concurrent: Option<u32>) -> TenantLimits {
        TenantLimits {
            name: "a".to_owned(),
            requests_per_second: rate,
            burst: None,
            max_concurrent: concurrent,
        }
    }

    #[test]
    fn a_place_is_given_back_when_the_request_is_over() {
        let table = table(&file(limits(None, Some(2))), &Table::default());
        let tenant = &table.find(b"right").unwrap().tenant;
        let now = Duration::from_secs(1);
        let first = tenant.enter(now).unwrap();
        let _second = tenant.enter(now).unwrap();
        assert_eq!(tenant.enter(now).unwrap_err(), Limit::Concurrent(2));
        drop(first);
        assert!(tenant.enter(now).is_ok());
    }

    #[test]
    fn a_request_refused_for_the_rate_keeps_no_place() {
        let table = table(&file(limits(Some(1.0), Some(1))), &Table::default());
        let tenant = &table.find(b"right").unwrap().tenant;
        let now = Duration::from_secs(1);
        drop(tenant.enter(now).unwrap());
        let Err(Limit::Rate(wait)) = tenant.enter(now) else {
            panic!("beyond the rate");
        };
        assert!(tenant.enter(now + wait).is_ok());
    }

    #[test]
    fn a_reload_changes_the_limits_and_forgets_nothing_used() {
        let before = table(&file(limits(None, Some(1))), &Table::default());
        let now = Duration::from_secs(1);
        let place = before.find(b"right").unwrap().tenant.enter(now).unwrap();
        let after = table(&file(limits(None, Some(2))), &before);
        let tenant = &after.find(b"right").unwrap().tenant;
        let _second = tenant.enter(now).unwrap();
        assert!(tenant.enter(now).is_err());
        drop(place);
        assert!(tenant.enter(now).is_ok());
        assert!(after.find(b"wrong").is_none());
    }
}
