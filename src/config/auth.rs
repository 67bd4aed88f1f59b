//! `[auth]` and the keys file: who may call, what, how often.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{ConfigError, Violation, read_checked};

/// Keys, tenants of a file at most.
const MOST: usize = 4096;
/// Models that one key names at most.
const MOST_MODELS: usize = 256;
/// What stands before a hash, so that another can come later.
const HASH_PREFIX: &str = "blake3:";

/// Who may call. Everyone, unless there is a keys file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The file with tenants and the hashes of their keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,
    /// Whether `/metrics` can be read without a key.
    pub open_metrics: bool,
    /// How often the file is looked at, in seconds.
    pub reload_seconds: f64,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            keys_file: None,
            open_metrics: false,
            reload_seconds: 5.0,
        }
    }
}

impl AuthConfig {
    pub(super) fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            (0.05..=86_400.0).contains(&self.reload_seconds),
            "auth.reload_seconds",
            self.reload_seconds,
            "0.05 to 86400",
        )
    }
}

/// The keys file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysFile {
    /// Those who call.
    #[serde(rename = "tenant", skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantLimits>,
    /// What they show for it.
    #[serde(rename = "key", skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
}

/// What one tenant may ask for, with all its keys together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantLimits {
    /// Its name; the one that fair shares and metrics go by.
    pub name: String,
    /// Requests a second in the long run; left out for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Requests that may come at once after a quiet time; left out for one second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests that may be in the server at a time, streams among them; left out for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
}

/// A key, known by its hash only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Its name, for logs and for who has to take it away.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// `blake3:` and the key's hash in hexadecimal, as `ferry key` prints it.
    pub hash: String,
    /// What it opens.
    pub scopes: Vec<Scope>,
    /// The models that it opens: names, or patterns in which `*` stands for any part of one; left out
    /// for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
}

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Requests to models.
    Infer,
    /// Jobs and their files.
    Jobs,
    /// The metrics.
    Metrics,
    /// Triton's RPCs that load, unload and change settings, as far as `admin.repository_rpcs` has them
    /// open.
    Operate,
}

impl Scope {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Jobs => "jobs",
            Self::Metrics => "metrics",
            Self::Operate => "operate",
        }
    }
}

impl ApiKey {
    /// The hash, as it is compared; `None` when it isn't one.
    pub fn parsed_hash(&self) -> Option<blake3::Hash> {
        blake3::Hash::from_hex(self.hash.strip_prefix(HASH_PREFIX)?).ok()
    }

    /// How a key's hash is written.
    pub fn write_hash(key: &str) -> String {
        format!("{HASH_PREFIX}{}", blake3::hash(key.as_bytes()).to_hex())
    }
}

impl KeysFile {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`] with the line that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_checked(path, Self::validate)
    }

    fn validate(&self) -> Result<(), Violation> {
        unless(
            self.tenants.len() <= MOST,
            "tenant",
            self.tenants.len(),
            "at most 4096",
        )?;
        unless(
            self.keys.len() <= MOST,
            "key",
            self.keys.len(),
            "at most 4096",
        )?;
        let mut tenants = HashSet::new();
        for tenant in &self.tenants {
            let name = &tenant.name;
            unless(is_name(name), "tenant.name", quoted(name), NAME)?;
            unless(
                tenants.insert(name),
                "tenant.name",
                quoted(name),
                "each tenant once",
            )?;
            if let Some(rate) = tenant.requests_per_second {
                let fine = (0.001..=1e6).contains(&rate);
                unless(fine, "tenant.requests_per_second", rate, "0.001 to 1000000")?;
            }
            let burst = tenant.burst.unwrap_or(1);
            unless(burst > 0, "tenant.burst", burst, "1 or more")?;
            unless(
                tenant.burst.is_none() || tenant.requests_per_second.is_some(),
                "tenant.burst",
                burst,
                "a burst beside requests_per_second",
            )?;
            let concurrent = tenant.max_concurrent.unwrap_or(1);
            unless(
                concurrent > 0,
                "tenant.max_concurrent",
                concurrent,
                "1 or more",
            )?;
        }
        let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
        for key in &self.keys {
            let name = &key.name;
            unless(is_name(name), "key.name", quoted(name), NAME)?;
            unless(
                names.insert(name),
                "key.name",
                quoted(name),
                "each key once",
            )?;
            unless(
                tenants.contains(&key.tenant),
                "key.tenant",
                quoted(&key.tenant),
                "the name of a [[tenant]] of this file",
            )?;
            unless(
                key.parsed_hash().is_some(),
                "key.hash",
                format_args!("no hash, at key {}", quoted(name)),
                "'blake3:' and 64 hexadecimal digits, as `ferry key` prints",
            )?;
            unless(
                hashes.insert(&key.hash),
                "key.hash",
                format_args!("a hash that another key has, at key {}", quoted(name)),
                "each key once",
            )?;
            let found = format_args!("none, at key {}", quoted(name));
            unless(
                !key.scopes.is_empty(),
                "key.scopes",
                found,
                "one or more of infer, jobs, metrics, operate",
            )?;
            let models = key.models.as_deref();
            let fits = |models: &[String]| {
                (1..=MOST_MODELS).contains(&models.len())
                    && models.iter().all(|model| is_pattern(model))
            };
            unless(
                models.is_none_or(fits),
                "key.models",
                format_args!("something else, at key {}", quoted(name)),
                "1 to 256 names or patterns such as \"bge-*\", of 1 to 128 characters, without spaces; left out: all",
            )?;
        }
        Ok(())
    }
}

/// Short for what this file does much of.
fn unless(
    right: bool,
    key: &'static str,
    found: impl std::fmt::Display,
    allowed: &'static str,
) -> Result<(), Violation> {
    Violation::unless(right, key, found, allowed)
}

const NAME: &str = "1 to 128 visible ASCII characters";

/// A name that fits a header and a metric's label.
fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_pattern(model: &str) -> bool {
    let fits = |letter: char| !letter.is_whitespace() && !letter.is_control();
    (1..=128).contains(&model.chars().count()) && model.chars().all(fits)
}

/// Whether a model's name fits a pattern, in which `*` stands for any part of a name.
pub fn matches_model(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        // No star: all of it.
        return rest.is_empty();
    };
    for part in parts {
        // The first place where a part fits leaves most for those after it.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn quoted(name: &str) -> String {
    format!("{:?}", name.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<KeysFile, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        KeysFile::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_names_tenants_and_their_keys() {
        let hash = ApiKey::write_hash("ferry_0123");
        let text = format!(
            "[[tenant]]\nname = \"search\"\nrequests_per_second = 2.5\nmax_concurrent = 4\n\n\
             [[key]]\nname = \"search-1\"\ntenant = \"search\"\nhash = \"{hash}\"\nscopes = [\"infer\"]\n"
        );
        let file = read(&text).unwrap();
        assert_eq!(file.keys[0].scopes, [Scope::Infer]);
        let parsed = file.keys[0].parsed_hash().unwrap();
        assert_eq!(parsed, blake3::hash(b"ferry_0123"));
        assert_eq!(
            toml::from_str::<KeysFile>(&toml::to_string(&file).unwrap()).unwrap(),
            file
        );
    }

    #[test]
    fn stars_stand_for_any_part_of_a_name() {
        for (pattern, fits, does_not) in [
            ("a", &["a"][..], &["", "ab", "ba"][..]),
            ("*", &["", "a", "abc"], &[]),
            ("a*", &["a", "ab"], &["", "ba"]),
            (
                "*-ab*ba",
                &["x-abba", "-ab-ba", "-ab-ab-baba"],
                &["abba", "-aba", "x-abbab"],
            ),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
        ] {
            for name in fits {
                assert!(matches_model(pattern, name), "{pattern} {name}");
            }
            for name in does_not {
                assert!(!matches_model(pattern, name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let key = |tenant: &str, hash: &str, scopes: &str| {
            format!(
                "[[tenant]]\nname = \"a\"\n[[key]]\nname = \"k\"\ntenant = \"{tenant}\"\nhash = \"{hash}\"\nscopes = {scopes}\n"
            )
        };
        let hash = ApiKey::write_hash("x");
        for (text, part) in [
            (key("b", &hash, "[\"infer\"]"), "key.tenant"),
            (key("a", "blake3:12", "[\"infer\"]"), "key.hash"),
            (key("a", "ferry_0123", "[\"infer\"]"), "key.hash"),
            (key("a", &hash, "[]"), "key.scopes"),
            (key("a", &hash, "[\"everything\"]"), "everything"),
            (key("a", &hash, "[\"infer\"]\nmodels = []"), "key.models"),
            (
                key("a", &hash, "[\"infer\"]\nmodels = [\"a b\"]"),
                "key.models",
            ),
            ("[[tenant]]\nname = \"a b\"\n".to_owned(), "tenant.name"),
            (
                "[[tenant]]\nname = \"a\"\n[[tenant]]\nname = \"a\"\n".to_owned(),
                "each tenant once",
            ),
            (
                "[[tenant]]\nname = \"a\"\nrequests_per_second = 0.0\n".to_owned(),
                "requests_per_second",
            ),
            ("[[tenant]]\nname = \"a\"\nburst = 5\n".to_owned(), "burst"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("ferry_0123"), "a key was repeated: {error}");
        }
    }
}
