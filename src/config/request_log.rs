//! `[request_log]`: which requests are written down, and what of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Secret, Violation};

/// What of a text is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// All of it.
    Full,
    /// With what the rules of `redact` match replaced.
    Redacted,
    /// Its keyed hash alone: equal texts show as equal.
    Hashed,
    /// Nothing.
    None,
}

/// What is replaced in texts that are kept `redacted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedactRule {
    /// A regular expression, as Rust's `regex` crate reads it.
    pub pattern: String,
    /// What stands in the place of what it matches; `$1` is its first group.
    #[serde(default = "default_replacement")]
    pub with: String,
}

fn default_replacement() -> String {
    "[redacted]".to_owned()
}

/// The log of requests. It is off until a file is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestLogConfig {
    /// Where lines go; older ones are in the files of this name with `.1`, `.2`, … after it. Empty for
    /// no log.
    pub file: PathBuf,
    /// Requests of one that are written down.
    pub sample: f64,
    /// What is kept of what came in.
    pub inputs: Keep,
    /// What is kept of what went out.
    pub outputs: Keep,
    /// What is replaced in texts that are kept `redacted`, in this order.
    pub redact: Vec<RedactRule>,
    /// Secret that hashes are keyed with, so that short texts can't be found by trying; empty for a
    /// new one at each start, which makes hashes of different runs differ.
    pub hash_key: Secret,
    /// Bytes of one file; then the next is begun.
    pub max_file_bytes: u64,
    /// Files that are kept, the one that is written included.
    pub max_files: u32,
    /// Bytes of requests that wait to be written; those beyond are dropped and counted.
    pub max_waiting_bytes: usize,
}

impl Default for RequestLogConfig {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            sample: 1.0,
            inputs: Keep::Full,
            outputs: Keep::Full,
            redact: Vec::new(),
            hash_key: Secret::default(),
            max_file_bytes: 64 << 20,
            max_files: 8,
            max_waiting_bytes: 16 << 20,
        }
    }
}

impl RequestLogConfig {
    /// Whether requests are written down.
    pub fn is_on(&self) -> bool {
        !self.file.as_os_str().is_empty()
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            (0.0..=1.0).contains(&self.sample),
            "request_log.sample",
            self.sample,
            "0 to 1",
        )?;
        let keeps_redacted = [self.inputs, self.outputs].contains(&Keep::Redacted);
        Violation::unless(
            !keeps_redacted || !self.redact.is_empty(),
            "request_log.redact",
            "no rules",
            "at least one [[request_log.redact]] where texts are kept \"redacted\"",
        )?;
        let wrong = self
            .redact
            .iter()
            .find_map(|rule| regex::Regex::new(&rule.pattern).err());
        Violation::unless(
            wrong.is_none(),
            "request_log.redact",
            wrong.map_or_else(String::new, |error| error.to_string()),
            "patterns that are regular expressions",
        )?;
        Violation::unless(
            !self.hash_key.is_blank(),
            "request_log.hash_key",
            "what --print-config shows in a secret's place",
            "the secret",
        )?;
        Violation::unless(
            self.max_file_bytes >= 1 << 10,
            "request_log.max_file_bytes",
            self.max_file_bytes,
            "1024 or more",
        )?;
        Violation::unless(
            (1..=10_000).contains(&self.max_files),
            "request_log.max_files",
            self.max_files,
            "1 to 10000",
        )?;
        Violation::unless(
            self.max_waiting_bytes >= 1 << 10,
            "request_log.max_waiting_bytes",
            self.max_waiting_bytes,
            "1024 or more",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redaction_without_a_rule_or_with_one_that_is_no_pattern_is_refused() {
        let mut config = RequestLogConfig {
            inputs: Keep::Redacted,
            ..RequestLogConfig::default()
        };
        assert_eq!(config.validate().unwrap_err().key, "request_log.redact");
        config.redact = vec![RedactRule {
            pattern: "(".to_owned(),
            with: default_replacement(),
        }];
        let refused = config.validate().unwrap_err();
        assert!(refused.found.contains("regex parse error"), "{refused:?}");
        config.redact[0].pattern = r"\d{4,}".to_owned();
        assert_eq!(config.validate(), Ok(()));
    }
}
