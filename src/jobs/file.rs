//! Uploaded files, as OpenAI's batches are made of.

use serde::{Deserialize, Serialize};

use super::id::FileId;

/// What is known of an uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name.
    pub id: FileId,
    /// The name it has where it comes from.
    pub filename: String,
    /// Bytes of it.
    pub bytes: u64,
    /// Parts it is kept in.
    pub parts: u32,
    /// Whether all of it is here.
    pub complete: bool,
    /// When it was uploaded, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it is deleted.
    pub expires_ms: u64,
}

/// A stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePart {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The part after it; `None` when this is the last.
    pub next: Option<u32>,
}
