//! Texts of a configuration that nobody is to see.

use serde::{Deserialize, Serialize};

/// What stands in the place of one.
const HIDDEN: &str = "(hidden)";

/// A text that is neither logged nor printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that compares it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is printed of it.
    fn shown(&self) -> &'static str {
        if self.is_empty() { "" } else { HIDDEN }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is what is printed in a secret's place: whoever has made a file of a printed
    /// configuration has yet to put the secret in.
    pub fn is_blank(&self) -> bool {
        self.0 == HIDDEN
    }

    /// Whether it can be a token: long enough not to be guessed, and fit for a header.
    ///
    /// # Errors
    /// What is wrong, without the secret.
    pub fn check(&self) -> Result<(), String> {
        if !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a token with spaces or characters that no header takes".to_owned());
        }
        match self.0.len() {
            16..=256 => Ok(()),
            other => Err(format!("a token of {other} characters")),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

/// Writes an address without the name and password that may stand in it.
///
/// # Errors
/// As the serializer.
pub(super) fn without_user<S: serde::Serializer>(
    address: &str,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let hidden = address.split_once("://").and_then(|(scheme, rest)| {
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (_, host) = host.rsplit_once('@')?;
        Some(format!("{scheme}://{HIDDEN}@{host}{path}"))
    });
    serializer.serialize_str(hidden.as_deref().unwrap_or(address))
}
