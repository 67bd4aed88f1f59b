//! Names of jobs and files. They grow with time, so that the order of names is the order of
//! creation.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Names a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub(super) u64);

/// Names an uploaded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub(super) u64);

/// Names a file as OpenAI's clients see it: an uploaded one, or one that a batch wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyFileId {
    /// An uploaded file.
    Uploaded(FileId),
    /// The answers of a batch.
    Output(JobId),
    /// The errors of a batch.
    Errors(JobId),
}

impl JobId {
    /// The job's name in `ferry.v1.Jobs`.
    pub fn name(self) -> String {
        format!("job_{:016x}", self.0)
    }

    /// The job's name as a batch.
    pub fn batch_name(self) -> String {
        format!("batch_{:016x}", self.0)
    }

    /// Reads a name, of either form.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name
            .strip_prefix("job_")
            .or_else(|| name.strip_prefix("batch_"))?;
        parse_number(digits).map(Self)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file-{:016x}", self.0)
    }
}

impl fmt::Display for AnyFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uploaded(id) => id.fmt(f),
            Self::Output(JobId(id)) => write!(f, "file-{id:016x}-output"),
            Self::Errors(JobId(id)) => write!(f, "file-{id:016x}-errors"),
        }
    }
}

impl AnyFileId {
    /// Reads a name.
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("file-")?;
        Some(match rest.split_once('-') {
            None => Self::Uploaded(FileId(parse_number(rest)?)),
            Some((digits, "output")) => Self::Output(JobId(parse_number(digits)?)),
            Some((digits, "errors")) => Self::Errors(JobId(parse_number(digits)?)),
            Some(_) => return None,
        })
    }
}

fn parse_number(digits: &str) -> Option<u64> {
    let plain = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

/// A number above `last` that tells the time: milliseconds in the upper 48 bits.
pub(super) fn next_number(last: Option<u64>) -> u64 {
    let by_time = now_ms() << 16;
    last.map_or(by_time, |last| by_time.max(last + 1))
}

/// The time now, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let id = JobId(0x1f);
        assert_eq!(JobId::parse(&id.name()), Some(id));
        assert_eq!(JobId::parse(&id.batch_name()), Some(id));
        for file in [
            AnyFileId::Uploaded(FileId(7)),
            AnyFileId::Output(id),
            AnyFileId::Errors(id),
        ] {
            assert_eq!(AnyFileId::parse(&file.to_string()), Some(file));
        }
        for wrong in ["", "job_", "job_1", "job_000000000000001g", "file-1-output"] {
            assert_eq!(JobId::parse(wrong), None);
            assert_eq!(AnyFileId::parse(wrong), None);
        }
    }

    #[test]
    fn numbers_grow_even_when_the_clock_goes_back() {
        let far = (now_ms() + 1_000_000) << 16;
        assert_eq!(next_number(Some(far)), far + 1);
        assert!(next_number(Some(1)) > 1 << 40);
    }
}
