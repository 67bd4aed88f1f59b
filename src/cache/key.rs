//! The name of a question: a hash of all that its answer depends on.
//!
//! Equal names give away another's answer for one's own, so nobody may be able to make two questions
//! of one name. BLAKE3's 256 bits are not known to collide for anybody.

/// Names a question to one model version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// Makes a [`Key`] of the parts of a question. Every part goes in with its length, so that no two
/// lists of parts read the same.
#[derive(Debug, Clone, Default)]
pub struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// The name of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    /// Adds a real number, by its bits.
    pub fn real(&mut self, number: f32) -> &mut Self {
        self.number(u64::from(number.to_bits()))
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
        self
    }

    /// Adds token ids, or the segments of tokens.
    pub fn ids(&mut self, ids: &[u32]) -> &mut Self {
        self.number(ids.len() as u64);
        let mut bytes = [0; 256];
        for chunk in ids.chunks(bytes.len() / size_of::<u32>()) {
            for (place, id) in bytes.chunks_exact_mut(size_of::<u32>()).zip(chunk) {
                place.copy_from_slice(&id.to_le_bytes());
            }
            self.0.update(&bytes[..size_of_val(chunk)]);
        }
        self
    }

    /// The name of all that was added.
    pub fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u32]]) -> Key {
        let mut key = KeyBuilder::new();
        for part in parts {
            key.ids(part);
        }
        key.finish()
    }

    #[test]
    fn parts_that_read_the_same_together_have_different_names() {
        assert_eq!(of(&[&[1, 2], &[3]]), of(&[&[1, 2], &[3]]));
        assert_ne!(of(&[&[1, 2], &[3]]), of(&[&[1], &[2, 3]]));
        assert_ne!(of(&[&[1, 2]]), of(&[&[2, 1]]));
        assert_ne!(of(&[&[]]), of(&[]));
        let text = |text| KeyBuilder::new().text(text).finish();
        assert_ne!(text("a"), text("b"));
    }

    #[test]
    fn every_id_of_a_long_row_counts() {
        let ids: Vec<u32> = (0..1000).collect();
        let whole = of(&[&ids]);
        for at in [0, 63, 64, 65, 999] {
            let mut other = ids.clone();
            other[at] += 1;
            assert_ne!(of(&[&other]), whole, "{at}");
        }
    }
}
