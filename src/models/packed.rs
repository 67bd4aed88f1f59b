//! The one batch shape of every model: rows of different lengths, one after the other, without
//! padding.

/// Token rows packed end to end, with the boundaries between them.
///
/// ```
/// use ferry::models::PackedBatch;
/// let mut batch = PackedBatch::new();
/// batch.push_row(&[101, 7592, 102], None);
/// batch.push_row(&[101, 102], None);
/// assert_eq!(batch.tokens(), [101, 7592, 102, 101, 102]);
/// assert_eq!(batch.cu_seqlens(), [0, 3, 5]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    tokens: Vec<u32>,
    type_ids: Vec<u32>,
    /// `rows + 1` ends, the first of them 0.
    cu_seqlens: Vec<u32>,
    max_len: usize,
}

impl Default for PackedBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl PackedBatch {
    /// A batch without rows.
    pub fn new() -> Self {
        Self::with_capacity(0, 0)
    }

    /// A batch without rows, with room for `rows` rows of `tokens` tokens in all.
    pub fn with_capacity(rows: usize, tokens: usize) -> Self {
        let mut cu_seqlens = Vec::with_capacity(rows + 1);
        cu_seqlens.push(0);
        Self {
            tokens: Vec::with_capacity(tokens),
            type_ids: Vec::with_capacity(tokens),
            cu_seqlens,
            max_len: 0,
        }
    }

    /// Appends a row. `type_ids` (segments of a pair) has one value per token; `None` is all 0.
    pub fn push_row(&mut self, tokens: &[u32], type_ids: Option<&[u32]>) {
        self.tokens.extend_from_slice(tokens);
        if let Some(type_ids) = type_ids {
            debug_assert_eq!(tokens.len(), type_ids.len(), "one type id per token");
            self.type_ids.extend_from_slice(type_ids);
        }
        self.type_ids.resize(self.tokens.len(), 0);
        self.cu_seqlens.push(self.tokens.len() as u32);
        self.max_len = self.max_len.max(tokens.len());
    }

    /// A batch of some of its rows, in the order of `rows`.
    pub(super) fn select(&self, rows: &[usize]) -> Self {
        let mut selected = Self::new();
        for &row in rows {
            let tokens = self.cu_seqlens[row] as usize..self.cu_seqlens[row + 1] as usize;
            selected.push_row(&self.tokens[tokens.clone()], Some(&self.type_ids[tokens]));
        }
        selected
    }

    /// Removes all rows, and keeps the memory for the next batch.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.type_ids.clear();
        self.cu_seqlens.truncate(1);
        self.max_len = 0;
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Token ids of all rows, `[tokens]`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Token types of all rows, `[tokens]`.
    pub fn type_ids(&self) -> &[u32] {
        &self.type_ids
    }

    /// Row boundaries, `[rows + 1]`: row `r` is `cu_seqlens[r]..cu_seqlens[r + 1]`.
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// Tokens of the longest row.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.cu_seqlens
            .windows(2)
            .map(|row| (row[1] - row[0]) as usize)
    }

    /// `Σ len²` over the rows: what attention costs grows with it.
    pub fn sum_len_squared(&self) -> u64 {
        self.lengths().map(|len| (len as u64).pow(2)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_packed_and_measured() {
        let mut batch = PackedBatch::with_capacity(2, 5);
        assert!(batch.is_empty());
        batch.push_row(&[1, 2, 3], Some(&[0, 0, 1]));
        batch.push_row(&[4], None);
        assert_eq!(batch.rows(), 2);
        assert_eq!(batch.type_ids(), [0, 0, 1, 0]);
        assert_eq!(batch.cu_seqlens(), [0, 3, 4]);
        assert_eq!(batch.lengths().collect::<Vec<_>>(), [3, 1]);
        assert_eq!((batch.max_len(), batch.sum_len_squared()), (3, 10));
        batch.clear();
        assert_eq!(batch, PackedBatch::new());
    }
}
