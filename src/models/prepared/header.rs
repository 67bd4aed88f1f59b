//! What stands before the sections of a file of prepared weights.
//!
//! ```text
//! magic "FERRYPW", 0             8 bytes
//! format version                 u32
//! bytes of the header's JSON     u32
//! digest of the JSON             u64
//! bytes of the whole file        u64
//! the JSON                       `Header`
//! sections                       each from a multiple of 64
//! ```
//! Numbers are little-endian. The digest is XXH3: it tells damage, not malice; whoever can write
//! this file can write the model as well. Nothing that it says is used before it is held against
//! the file's length, and no bits of a section can make a kernel read where it must not.

use candle_core::quantized::GgmlDType;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::Unusable;
use super::source::SourceFile;
use crate::ops::values::ALIGNMENT;
use crate::ops::{Compute, Linear, QuantizedWeight};

const MAGIC: [u8; 8] = *b"FERRYPW\0";
const FORMAT: u32 = 1;
/// Bytes before the JSON.
pub(super) const PREFIX: usize = 32;
/// Some 300 bytes a matrix.
const MAX_JSON: usize = 64 << 20;
/// Bytes that a thread digests at a time.
const DIGEST_CHUNK: usize = 4 << 20;

/// The kind of a table whose rows are looked up.
pub(super) const TABLE: &str = "table";

/// What a file was made from and for, and what it holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub layout: String,
    pub settings: String,
    pub sources: Vec<SourceFile>,
    pub weights: Vec<WeightEntry>,
}

/// A matrix.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightEntry {
    pub name: String,
    pub kind: String,
    /// `[outputs, inputs]`
    pub shape: [usize; 2],
    pub sections: Vec<Section>,
}

/// A part of a matrix's layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    /// From the beginning of the sections.
    pub offset: usize,
    pub bytes: usize,
    pub digest: u64,
}

impl Header {
    /// The header of a whole file, and where its sections begin.
    pub fn parse(file: &[u8]) -> Result<(Self, usize), Unusable> {
        let damaged = |what: &str| Unusable::Damaged(what.to_owned());
        let prefix: &[u8; PREFIX] = file.first_chunk().ok_or_else(|| damaged("too short"))?;
        if prefix[..8] != MAGIC {
            return Err(damaged("it does not begin as prepared weights do"));
        }
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| prefix[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| prefix[at + i]));
        let format = number(8);
        if format != FORMAT {
            let reason = format!("format {format}; this build reads {FORMAT}");
            return Err(Unusable::Foreign(reason));
        }
        let length = number(12) as usize;
        let json = file[PREFIX..].get(..length);
        let json = json.filter(|_| length <= MAX_JSON);
        let json = json.ok_or_else(|| damaged("its header is longer than the file"))?;
        if XxHash3_64::oneshot(json) != long(16) {
            return Err(damaged("the header's checksum"));
        }
        if long(24) != file.len() as u64 {
            let reason = format!("{} bytes of {}", file.len(), long(24));
            return Err(Unusable::Damaged(reason));
        }
        let header =
            serde_json::from_slice(json).map_err(|error| Unusable::Damaged(error.to_string()))?;
        Ok((header, Self::end(length)))
    }

    /// The bytes before the sections, of which there are so many.
    pub fn bytes(&self, sections: usize) -> serde_json::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let end = Self::end(json.len());
        let mut bytes = Vec::with_capacity(end);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(XxHash3_64::oneshot(&json).to_le_bytes());
        bytes.extend(((end + sections) as u64).to_le_bytes());
        bytes.extend(json);
        bytes.resize(end, 0);
        Ok(bytes)
    }

    fn end(json: usize) -> usize {
        (PREFIX + json).next_multiple_of(ALIGNMENT)
    }
}

/// The layouts that this build's kernels read.
pub(super) fn layout() -> String {
    let order = if cfg!(target_endian = "little") {
        "little"
    } else {
        "big"
    };
    format!("{} {} {order}", Linear::LAYOUT, QuantizedWeight::LAYOUT)
}

/// The kind of a matrix of f32 values, laid out to be computed in some precision.
pub(super) fn kind_of_linear(compute: Compute) -> String {
    format!("linear-{}", compute.name())
}

/// The kind of a matrix in a type of GGML.
pub(super) fn kind_of(dtype: GgmlDType) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// The digest of many bytes, by all threads: that of their chunks' digests.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let chunks: Vec<u8> = bytes
        .par_chunks(DIGEST_CHUNK)
        .flat_map_iter(|chunk| XxHash3_64::oneshot(chunk).to_le_bytes())
        .collect();
    XxHash3_64::oneshot(&chunks)
}
