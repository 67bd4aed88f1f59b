//! Configuration files in JSON, read with suspicion: bounded in size, every number with its range,
//! and errors that name the key.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::LoadError;

/// A config is a few kilobytes; one with 100 000 labels is some megabytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads a file of at most `limit` bytes that holds one JSON object.
pub(super) fn read_json(path: &Path, limit: u64) -> Result<Map<String, Value>, LoadError> {
    let io = |source| LoadError::Io {
        path: path.to_owned(),
        source,
    };
    let syntax = |reason: String| LoadError::Syntax {
        path: path.to_owned(),
        reason,
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(limit + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > limit {
        return Err(syntax(format!("larger than {limit} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| syntax(error.to_string()))
}

/// Typed and bounded access to the keys of a config; `null` counts as absent.
pub(super) struct Config<'a> {
    values: &'a Map<String, Value>,
    /// The keys that lead here, each with its dot; for errors.
    path: String,
}

impl<'a> Config<'a> {
    pub fn new(values: &'a Map<String, Value>) -> Self {
        Self {
            values,
            path: String::new(),
        }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there and says that there is nothing.
    pub fn is_null(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_null)
    }

    /// The error for the value that `key` has.
    pub fn unsupported(&self, key: &str, supported: &str) -> LoadError {
        let found = self
            .get(key)
            .map_or_else(|| "missing".to_owned(), |value| shorten(&value.to_string()));
        LoadError::Config {
            key: format!("{}{key}", self.path),
            found,
            supported: supported.to_owned(),
        }
    }

    /// Accepts an absent key or exactly this value.
    pub fn require(&self, key: &str, value: &Value) -> Result<(), LoadError> {
        match self.get(key) {
            Some(found) if found != value => Err(self.unsupported(key, &value.to_string())),
            _ => Ok(()),
        }
    }

    pub fn optional_text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.get(key)
            .map(|value| {
                value
                    .as_str()
                    .ok_or_else(|| self.unsupported(key, "a string"))
            })
            .transpose()
    }

    pub fn text(&self, key: &str) -> Result<&'a str, LoadError> {
        self.optional_text(key)?
            .ok_or_else(|| self.unsupported(key, "a string"))
    }

    pub fn texts(&self, key: &str) -> Result<Vec<String>, LoadError> {
        let error = || self.unsupported(key, "a list of strings");
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let list = value.as_array().ok_or_else(error)?;
        list.iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(error))
            .collect()
    }

    pub fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, LoadError> {
        self.get(key)
            .and_then(Value::as_u64)
            .and_then(|value| usize::try_from(value).ok())
            .filter(|value| range.contains(value))
            .ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                self.unsupported(key, &format!("a whole number from {least} to {most}"))
            })
    }

    pub fn count_or(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize, LoadError> {
        match self.get(key) {
            Some(_) => self.count(key, range),
            None => Ok(default),
        }
    }

    /// A number in `range`; `None` where the config has none.
    pub fn optional_number(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let (least, most) = (range.start(), range.end());
                Err(self.unsupported(key, &format!("a number from {least} to {most}")))
            }
        }
    }

    /// `true` or `false`.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        match self.get(key) {
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.unsupported(key, "true or false")),
            None => Ok(default),
        }
    }

    /// A nested object; `None` where the config has none.
    pub fn object(&self, key: &str) -> Result<Option<Config<'a>>, LoadError> {
        self.get(key)
            .map(|value| {
                let values = value.as_object();
                let values = values.ok_or_else(|| self.unsupported(key, "an object"))?;
                let path = format!("{}{key}.", self.path);
                Ok(Config { values, path })
            })
            .transpose()
    }
}

/// Keeps an error line readable when the value is a megabyte.
fn shorten(text: &str) -> String {
    const LIMIT: usize = 80;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
