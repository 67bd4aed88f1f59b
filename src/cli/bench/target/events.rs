//! Server-sent events, as their bytes come.

use super::Refusal;

/// Bytes of one event at most.
const MAX_EVENT: usize = 1 << 20;

/// Puts events together from pieces that begin and end anywhere.
#[derive(Debug, Default)]
pub struct Events {
    /// A line that has not ended.
    line: Vec<u8>,
    /// The data of an event that has not ended.
    data: Vec<u8>,
}

impl Events {
    /// The data of each event that ends with these bytes.
    ///
    /// # Errors
    /// When an event is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut ended = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.len() > MAX_EVENT {
                let what = format!("an event of more than {MAX_EVENT} bytes");
                return Err(Refusal::broken("MALFORMED_ANSWER", what));
            }
            if self.line.last() != Some(&b'\n') {
                break;
            }
            let line = self.line.trim_ascii_end();
            if line.is_empty() {
                if !self.data.is_empty() {
                    ended.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.trim_ascii_start());
            }
            self.line.clear();
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": hello\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_the_same_however_their_bytes_are_cut() {
        for step in 1..STREAM.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in STREAM.chunks(step) {
                found.extend(events.push(piece).unwrap());
            }
            let wanted: [&[u8]; 3] = [b"{\"a\":1}", b"two\nlines", b"[DONE]"];
            assert_eq!(found, wanted, "{step}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; MAX_EVENT / 4];
        let refused = (0..5).find_map(|_| events.push(&piece).err());
        assert_eq!(refused.unwrap().code, "MALFORMED_ANSWER");
    }
}
