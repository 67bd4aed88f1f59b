//! Where the tokens of a packed batch stand in their sequences and in the cache.

use candle_core::{Result, bail};

use super::cache::CacheGeometry;

/// One step's rows, checked against the cache; all layers share it. The kernels index by it
/// without further thought.
#[derive(Debug, Clone)]
pub struct PagedRows {
    rows: Vec<Row>,
    /// The block tables of all rows, one after the other.
    blocks: Vec<u32>,
    tokens: usize,
    /// Past the last position of any row.
    end_position: usize,
    cache_blocks: usize,
    block_size: usize,
    /// The same on the device that asked for it first.
    #[cfg(feature = "cuda")]
    on_device: std::sync::OnceLock<std::sync::Arc<super::device::DeviceRows>>,
}

/// One row: a run of tokens of one sequence.
#[derive(Debug, Clone)]
struct Row {
    first_token: usize,
    first_position: usize,
    tokens: usize,
    /// Where its block table begins.
    first_block: usize,
}

/// One row and its block table, as the kernels see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowView<'a> {
    /// Index of its first token in the batch.
    pub first_token: usize,
    /// Position of that token in its sequence.
    pub first_position: usize,
    pub tokens: usize,
    /// Position `p` is in `blocks[p / block_size]`.
    pub blocks: &'a [u32],
}

impl PagedRows {
    /// The rows of a step, in the order of the packed batch: each the position of its first
    /// token, its number of tokens, and the blocks of its sequence from position 0 on (those past
    /// the last token are not looked at, except that they must exist).
    ///
    /// # Errors
    /// If a block does not exist, a row has too few of them, or two rows would write to the same.
    pub fn new<'a>(
        rows: impl IntoIterator<Item = (u32, u32, &'a [u32])>,
        geometry: &CacheGeometry,
    ) -> Result<Self> {
        let block_size = geometry.block_size;
        let mut paged = Self {
            rows: Vec::new(),
            blocks: Vec::new(),
            tokens: 0,
            end_position: 0,
            cache_blocks: geometry.blocks,
            block_size,
            #[cfg(feature = "cuda")]
            on_device: std::sync::OnceLock::new(),
        };
        let mut written: Vec<u32> = Vec::new();
        for (first_position, tokens, blocks) in rows {
            let (first_position, tokens) = (first_position as usize, tokens as usize);
            let end = first_position + tokens;
            if end > blocks.len() * block_size {
                let blocks = blocks.len();
                bail!("{end} positions do not fit in {blocks} blocks of {block_size}");
            }
            if let Some(block) = blocks.iter().find(|&&id| id as usize >= geometry.blocks) {
                bail!(
                    "block {block} is not one of the cache's {}",
                    geometry.blocks
                );
            }
            if tokens > 0 {
                written.extend(&blocks[first_position / block_size..end.div_ceil(block_size)]);
                paged.end_position = paged.end_position.max(end);
            }
            paged.rows.push(Row {
                first_token: paged.tokens,
                first_position,
                tokens,
                first_block: paged.blocks.len(),
            });
            paged.tokens += tokens;
            paged.blocks.extend_from_slice(blocks);
        }
        written.sort_unstable();
        let mut pairs = written.iter().zip(written.iter().skip(1));
        if let Some((block, _)) = pairs.find(|(block, next)| block == next) {
            bail!("block {block} would be written to from two places");
        }
        Ok(paged)
    }

    /// What the kernels of a device know of the rows; copied there by the first layer that asks,
    /// which also says whether there is a kernel for `runs` of several tokens.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(
        &self,
        device: &candle_core::CudaDevice,
        runs: bool,
    ) -> Result<&super::device::DeviceRows> {
        if let Some(found) = self.on_device.get() {
            return Ok(found);
        }
        let made = super::device::DeviceRows::upload(self, runs, device)?;
        Ok(self.on_device.get_or_init(|| made))
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// One past the last position of any token.
    pub(super) fn end_position(&self) -> usize {
        self.end_position
    }

    /// Blocks of the cache that the rows were checked against.
    pub(super) fn cache_blocks(&self) -> usize {
        self.cache_blocks
    }

    /// Tokens per block.
    pub(super) fn block_size(&self) -> usize {
        self.block_size
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = RowView<'_>> {
        let ends = self.rows.iter().skip(1).map(|row| row.first_block);
        let ends = ends.chain([self.blocks.len()]);
        self.rows.iter().zip(ends).map(|(row, end)| RowView {
            first_token: row.first_token,
            first_position: row.first_position,
            tokens: row.tokens,
            blocks: &self.blocks[row.first_block..end],
        })
    }

    /// The row of each token and its place there.
    pub(super) fn token_positions(&self) -> impl Iterator<Item = usize> {
        self.iter()
            .flat_map(|row| row.first_position..row.first_position + row.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: CacheGeometry = CacheGeometry {
        blocks: 4,
        block_size: 8,
        kv_heads: 1,
        head_dim: 8,
    };

    fn rows(rows: &[(u32, u32, &[u32])]) -> Result<PagedRows> {
        PagedRows::new(rows.iter().copied(), &GEOMETRY)
    }

    #[test]
    fn rows_keep_their_own_block_tables() -> Result<()> {
        let paged = rows(&[(7, 2, &[3, 1]), (0, 0, &[]), (5, 3, &[2, 0])])?;
        assert_eq!((paged.tokens(), paged.end_position()), (5, 9));
        let views: Vec<_> = paged
            .iter()
            .map(|row| (row.first_token, row.first_position, row.blocks))
            .collect();
        assert_eq!(views, [(0, 7, &[3, 1][..]), (2, 0, &[]), (2, 5, &[2, 0])]);
        assert_eq!(paged.token_positions().collect::<Vec<_>>(), [7, 8, 5, 6, 7]);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_the_cache_is_an_error() {
        assert!(rows(&[(0, 9, &[0])]).is_err());
        assert!(rows(&[(8, 1, &[0])]).is_err());
        assert!(rows(&[(u32::MAX, u32::MAX, &[0])]).is_err());
        assert!(rows(&[(0, 1, &[4])]).is_err());
        assert!(rows(&[(0, 1, &[0, u32::MAX])]).is_err());
        assert!(rows(&[(0, 1, &[])]).is_err());
        let nothing = CacheGeometry {
            block_size: 0,
            ..GEOMETRY
        };
        assert!(PagedRows::new([(0, 1, &[0][..])], &nothing).is_err());
        assert!(PagedRows::new([(0, 0, &[0][..])], &nothing).is_ok());
    }

    #[test]
    fn blocks_may_be_shared_for_reading_but_not_for_writing() {
        assert!(rows(&[(8, 1, &[0, 1]), (8, 1, &[0, 2])]).is_ok());
        assert!(rows(&[(8, 1, &[0, 1]), (12, 1, &[2, 1])]).is_err());
        assert!(rows(&[(0, 16, &[3, 3])]).is_err());
    }
}
