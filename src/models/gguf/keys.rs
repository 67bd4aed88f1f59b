//! The keys of a file that begin with its architecture's name, each with the range that it may
//! have.

use std::ops::RangeInclusive;

use super::super::error::LoadError;
use super::Metadata;

/// Typed and bounded access to the keys of one architecture.
#[derive(Debug, Clone)]
pub(in crate::models) struct Keys<'a> {
    pub metadata: Metadata<'a>,
    prefix: String,
}

impl<'a> Keys<'a> {
    pub fn new(metadata: Metadata<'a>, architecture: &str) -> Self {
        Self {
            metadata,
            prefix: format!("{architecture}."),
        }
    }

    /// The whole of a key.
    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The error for the value that `key` has.
    pub fn unsupported(&self, key: &str, supported: &str) -> LoadError {
        self.metadata.unsupported(&self.key(key), supported)
    }

    /// A whole number that must be there.
    pub fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, LoadError> {
        let supported = || format!("a whole number from {} to {}", range.start(), range.end());
        self.count(key, range.clone())?
            .ok_or_else(|| self.unsupported(key, &supported()))
    }

    /// A whole number.
    pub fn count(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, LoadError> {
        let Some(count) = self.metadata.u64(&self.key(key))? else {
            return Ok(None);
        };
        let count = usize::try_from(count).ok();
        if let Some(count) = count.filter(|count| range.contains(count)) {
            return Ok(Some(count));
        }
        let (least, most) = (range.start(), range.end());
        Err(self.unsupported(key, &format!("a whole number from {least} to {most}")))
    }

    /// A number.
    pub fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, LoadError> {
        match self.metadata.f32(&self.key(key))? {
            None => Ok(None),
            Some(number) if range.contains(&f64::from(number)) => Ok(Some(f64::from(number))),
            Some(_) => {
                let (least, most) = (range.start(), range.end());
                Err(self.unsupported(key, &format!("a number from {least} to {most}")))
            }
        }
    }
}
