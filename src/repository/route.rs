//! Which version answers a request: pure, so that a share is proven by counting.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde::{Deserialize, Serialize};

/// A version and its share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The version.
    pub version: u64,
    /// Requests of a hundred.
    pub percent: f64,
}

/// Who gets which version of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Answers what is not for the canary.
    pub stable: Option<u64>,
    /// Answers its share.
    pub canary: Option<Share>,
    /// Gets copies of its share; its answers go to nobody.
    pub shadow: Option<Share>,
    /// Names that requests may give instead of a number, beside `stable` and `canary`.
    pub labels: BTreeMap<String, u64>,
    /// What was stable before, for rolling back.
    pub previous: Option<u64>,
}

/// A change of a route; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteChange {
    /// The version to be stable.
    pub stable: Option<u64>,
    /// The canary, or that there is to be none.
    pub canary: Option<Option<Share>>,
    /// The shadow, or that there is to be none.
    pub shadow: Option<Option<Share>>,
    /// Labels to set, and to take away.
    pub labels: BTreeMap<String, Option<u64>>,
}

impl Route {
    /// The version for a request with the sticky `key`, or, without one, the `draw`-th request.
    pub fn choose(&self, key: Option<&str>, draw: u64) -> Option<u64> {
        match self.canary {
            Some(canary) if place(key, draw) * 100.0 < canary.percent => Some(canary.version),
            _ => self.stable,
        }
    }

    /// The version that a label means.
    pub fn labelled(&self, label: &str) -> Option<u64> {
        match label {
            "stable" => self.stable,
            "canary" => self.canary.map(|canary| canary.version),
            _ => self.labels.get(label).copied(),
        }
    }

    /// Every label and the version it means.
    pub fn all_labels(&self) -> BTreeMap<&str, u64> {
        let mut labels: BTreeMap<&str, u64> = self
            .labels
            .iter()
            .map(|(label, version)| (label.as_str(), *version))
            .collect();
        for label in ["stable", "canary"] {
            labels.extend(self.labelled(label).map(|version| (label, version)));
        }
        labels
    }

    /// Whether a version gets requests or copies of them.
    pub fn uses(&self, version: u64) -> bool {
        self.stable == Some(version)
            || self.canary.is_some_and(|share| share.version == version)
            || self.shadow.is_some_and(|share| share.version == version)
            || self.labels.values().any(|labelled| *labelled == version)
    }

    /// The version that may become stable: the canary, or else the shadow.
    pub fn candidate(&self) -> Option<u64> {
        let share = self.canary.or(self.shadow)?;
        Some(share.version)
    }

    /// Of a hundred requests without a version, those that `version` answers.
    pub fn percent_of(&self, version: u64) -> f64 {
        let canary = self.canary.map_or(0.0, |canary| canary.percent);
        let mut percent = 0.0;
        if self.stable == Some(version) {
            percent += 100.0 - canary;
        }
        if self.canary.is_some_and(|share| share.version == version) {
            percent += canary;
        }
        percent
    }

    /// Makes `version` stable and ends its candidacy.
    pub fn promote(&mut self, version: u64) {
        if self.stable != Some(version) {
            self.previous = self.stable;
        }
        self.stable = Some(version);
        self.forget_candidate(version);
    }

    /// Ends a version's being canary and shadow.
    pub fn forget_candidate(&mut self, version: u64) {
        self.canary.take_if(|share| share.version == version);
        self.shadow.take_if(|share| share.version == version);
    }

    /// Takes a version that is gone out of everything.
    pub fn forget(&mut self, version: u64) {
        self.forget_candidate(version);
        self.stable.take_if(|stable| *stable == version);
        self.labels.retain(|_, labelled| *labelled != version);
    }
}

/// A place in [0, 1). A key always has the same one, so that a growing share only adds keys; requests
/// without take turns in steps of the golden ratio, which spreads any share evenly.
fn place(key: Option<&str>, draw: u64) -> f64 {
    let bits = match key {
        Some(key) => {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            hasher.finish()
        }
        None => draw.wrapping_mul(0x9E37_79B9_7F4A_7C15),
    };
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(percent: f64) -> Route {
        Route {
            stable: Some(1),
            canary: Some(Share {
                version: 2,
                percent,
            }),
            ..Route::default()
        }
    }

    #[test]
    fn a_canary_gets_its_share_in_any_stretch_of_requests() {
        for percent in [0.0, 1.0, 5.0, 50.0, 100.0] {
            let route = canary(percent);
            for start in [0, 12_345] {
                let draws = start..start + 1000;
                let hits = draws.filter(|&draw| route.choose(None, draw) == Some(2));
                let found = hits.count() as f64 / 10.0;
                assert!((found - percent).abs() < 0.5, "{percent}: {found}");
            }
        }
    }

    #[test]
    fn a_key_that_is_with_the_canary_stays_there_as_the_share_grows() {
        let mut counts = [0; 2];
        for key in 0..2000 {
            let key = format!("user-{key}");
            let at = |percent| canary(percent).choose(Some(&key), 7) == Some(2);
            assert_eq!(at(10.0), canary(10.0).choose(Some(&key), 8) == Some(2));
            assert!(!at(10.0) || at(30.0), "{key}");
            counts[0] += usize::from(at(10.0));
            counts[1] += usize::from(at(30.0));
        }
        assert!((150..250).contains(&counts[0]), "{counts:?}");
        assert!((530..670).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_promoted_canary_is_stable_and_what_was_is_remembered() {
        let mut route = canary(5.0);
        route.promote(2);
        assert_eq!((route.stable, route.previous), (Some(2), Some(1)));
        assert_eq!(route.canary, None);
        route.promote(2);
        assert_eq!(route.previous, Some(1));
    }

    #[test]
    fn a_version_that_is_gone_is_in_no_route() {
        let mut route = canary(5.0);
        route.labels.insert("blue".to_owned(), 2);
        route.forget(2);
        assert!(!route.uses(2) && route.uses(1));
        assert_eq!(route.labelled("blue"), None);
        assert_eq!(route.labelled("stable"), Some(1));
    }
}
