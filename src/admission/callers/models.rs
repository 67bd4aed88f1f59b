//! Which models a key opens. What a key does not open it can't tell from what is not there: a name is
//! refused before it is looked up.

use std::sync::Arc;

use prometheus::IntCounter;

use crate::{config::auth::matches_model, error::RequestError};

/// The models that a caller may ask; all of them where nobody says otherwise.
#[derive(Debug, Clone, Default)]
pub struct AllowedModels(Option<Arc<Allowed>>);

#[derive(Debug)]
struct Allowed {
    /// The key's name.
    key: Arc<str>,
    patterns: Vec<String>,
    refused: Option<IntCounter>,
}

impl AllowedModels {
    /// Those that `key` opens; who asks for others is counted by `refused`.
    pub(super) fn of_key(
        key: &Arc<str>,
        patterns: Option<&[String]>,
        refused: &IntCounter,
    ) -> Self {
        Self(patterns.map(|patterns| {
            Arc::new(Allowed {
                key: Arc::clone(key),
                patterns: patterns.to_vec(),
                refused: Some(refused.clone()),
            })
        }))
    }

    /// As [`AllowedModels::kept`] has them; `None` are all.
    pub fn restored(kept: Option<(&str, &[String])>) -> Self {
        Self(kept.map(|(key, patterns)| {
            Arc::new(Allowed {
                key: Arc::from(key),
                patterns: patterns.to_vec(),
                refused: None,
            })
        }))
    }

    /// The key and its patterns, to be kept with what runs later; `None` where all models may be asked.
    pub fn kept(&self) -> Option<(&str, &[String])> {
        let allowed = self.0.as_ref()?;
        Some((&allowed.key, &allowed.patterns))
    }

    /// Whether there is a model that may not be asked.
    pub fn is_restricted(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the model called `name` may be asked, or told of.
    pub fn allows(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|allowed| {
            let mut patterns = allowed.patterns.iter();
            patterns.any(|pattern| matches_model(pattern, name))
        })
    }

    /// Lets a question to the model called `name` pass.
    ///
    /// # Errors
    /// [`RequestError::NotPermitted`].
    pub fn check(&self, name: &str) -> Result<(), RequestError> {
        let Some(allowed) = self.0.as_ref().filter(|_| !self.allows(name)) else {
            return Ok(());
        };
        if let Some(refused) = &allowed.refused {
            refused.inc();
        }
        let (key, opens) = (&allowed.key, allowed.patterns.join(", "));
        let asked = if name.is_empty() {
            "no model is named".to_owned()
        } else {
            format!("this asks '{}'", name.chars().take(64).collect::<String>())
        };
        Err(RequestError::NotPermitted {
            what: format!("key '{key}' opens the models {opens}; {asked}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(patterns: &[&str]) -> AllowedModels {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        AllowedModels::restored(Some(("k", &patterns)))
    }

    #[test]
    fn a_key_opens_the_models_it_names_and_those_that_fit() {
        let models = opening(&["bge", "minilm-*"]);
        for open in ["bge", "minilm-", "minilm-l6"] {
            assert!(models.check(open).is_ok(), "{open}");
        }
        for closed in ["", "bg", "bge2", "minilm", "xminilm-l6"] {
            let error = models.check(closed).unwrap_err();
            assert!(
                matches!(error, RequestError::NotPermitted { .. }),
                "{error}"
            );
        }
        let error = models.check("other").unwrap_err().to_string();
        assert_eq!(
            error,
            "not permitted: key 'k' opens the models bge, minilm-*; this asks 'other'"
        );
        assert!(AllowedModels::default().check("anything").is_ok());
    }
}
