//! Reads a file's header from front to back; what is not there is an error, at its position.

use std::ops::Range;

/// Why a file is damaged; becomes [`super::LoadError::Gguf`] where the path is known.
pub(super) type Damage = String;

/// A position in the file.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes before the cursor.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes after the cursor.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn u8(&mut self) -> Result<u8, Damage> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Damage> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        match self.bytes[self.at..].first_chunk() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(format!(
                "it ends at byte {}, in the middle of its header",
                self.bytes.len()
            )),
        }
    }

    /// A count of things that take at least `least_bytes` each, `what` in errors.
    pub fn count(&mut self, least_bytes: usize, what: &str) -> Result<usize, Damage> {
        let at = self.at;
        let count = self.u64()?;
        let most = self.remaining() / least_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!(
                "{count} {what} are announced at byte {at}; what is left of the file has room for \
                 {most} at most"
            )),
        }
    }

    /// Where a string of any bytes lies.
    pub fn string(&mut self) -> Result<Range<usize>, Damage> {
        let len = self.count(1, "bytes of a string")?;
        self.skip(len)
    }

    /// A string that is a name.
    pub fn name(&mut self, most: usize, what: &str) -> Result<&'a str, Damage> {
        let at = self.at;
        let range = self.string()?;
        let name = &self.bytes[range];
        if name.len() > most {
            let len = name.len();
            return Err(format!(
                "{what} at byte {at} has {len} bytes; up to {most} are allowed"
            ));
        }
        std::str::from_utf8(name).map_err(|_| format!("{what} at byte {at} is not UTF-8"))
    }

    /// Passes over `len` bytes.
    pub fn skip(&mut self, len: usize) -> Result<Range<usize>, Damage> {
        if len > self.remaining() {
            return Err(format!(
                "{len} bytes are announced at byte {}; the file has {} more",
                self.at,
                self.remaining()
            ));
        }
        let start = self.at;
        self.at += len;
        Ok(start..self.at)
    }
}
