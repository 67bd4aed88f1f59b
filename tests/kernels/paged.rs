//! Sequences in a paged cache, on the CPU and laid out as the device has it.

use candle_core::{Device, Tensor};
use ferry::ops::{CacheGeometry, CacheType, LayerCache, PagedAttention, PagedRows};

use super::agreement::{Random, tensor, values};
use super::buffer::Number;

/// A batch: for each sequence its tokens in the cache and the new ones.
pub struct Case {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub block_size: usize,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub rows: Vec<(usize, usize)>,
}

/// What a kernel gets, and what the CPU op makes of it.
pub struct Batch {
    /// Of the new tokens, `[tokens, heads · dim]`.
    pub q: Vec<f32>,
    /// `[blocks, kv_heads, dim / 8, block_size, 8]`; NaN where no token is.
    pub keys: Vec<f32>,
    /// `[blocks, kv_heads, block_size, dim]`; NaN where no token is.
    pub values: Vec<f32>,
    /// `[rows, table_stride]`
    pub tables: Vec<u32>,
    pub table_stride: usize,
    pub scale: f32,
    pub expected: Vec<f32>,
}

/// The device's place of dimension `i` of a key.
pub fn key_place(block_head: usize, slot: usize, i: usize, block_size: usize, dim: usize) -> usize {
    ((block_head * (dim / 8) + i / 8) * block_size + slot) * 8 + i % 8
}

impl Case {
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.1).sum()
    }

    /// Random sequences, whose numbers `cache` holds exactly.
    pub fn batch(&self, cache: Number) -> Batch {
        let Self {
            heads,
            kv_heads,
            dim,
            block_size,
            ..
        } = *self;
        let mut random = Random::new((heads * 1000 + dim) as u64);
        let blocks = self.deal_blocks();
        let needed: usize = blocks.iter().map(Vec::len).sum();
        let geometry = CacheGeometry {
            blocks: needed + 1,
            block_size,
            kv_heads,
            head_dim: dim,
        };

        let scale = 1.5 / (dim as f32).sqrt();
        let op = PagedAttention {
            heads,
            kv_heads,
            head_dim: dim,
            scale,
            window: self.window,
            softcap: self.softcap,
            q_norm: None,
            k_norm: None,
            rope: None,
        };
        let on_cpu =
            LayerCache::new(&geometry, CacheType::F32, &Device::Cpu).expect("a cache on the CPU");
        let width = (heads + 2 * kv_heads) * dim;
        let mut keys = vec![f32::NAN; geometry.blocks * kv_heads * block_size * dim];
        let mut all_values = keys.clone();
        let mut q = Vec::new();
        let mut expected = Vec::new();
        for step in 0..2 {
            let runs: Vec<(usize, usize)> = (self.rows.iter())
                .map(|&(past, new)| if step == 0 { (0, past) } else { (past, new) })
                .collect();
            let tokens: usize = runs.iter().map(|run| run.1).sum();
            if tokens == 0 {
                continue;
            }
            let qkv = cache.round(&random.values(tokens * width, 1.5));
            let mut token_rows = qkv.chunks_exact(width);
            for (&(first, count), blocks) in runs.iter().zip(&blocks) {
                for (position, row) in (first..first + count).zip(token_rows.by_ref()) {
                    let (block, slot) = (
                        blocks[position / block_size] as usize,
                        position % block_size,
                    );
                    if step == 1 {
                        q.extend_from_slice(&row[..heads * dim]);
                    }
                    for head in 0..kv_heads {
                        let block_head = block * kv_heads + head;
                        for i in 0..dim {
                            keys[key_place(block_head, slot, i, block_size, dim)] =
                                row[(heads + head) * dim + i];
                            all_values[(block_head * block_size + slot) * dim + i] =
                                row[(heads + kv_heads + head) * dim + i];
                        }
                    }
                }
            }
            let rows = (runs.iter().zip(&blocks))
                .map(|(&(first, count), blocks)| (first as u32, count as u32, &blocks[..]));
            let rows = PagedRows::new(rows, &geometry).expect("rows of the cache");
            let qkv: Tensor = tensor(&qkv, (tokens, width));
            let y = op.apply(&qkv, &on_cpu, &rows).expect("the CPU op runs");
            expected = values(&y);
        }

        let (tables, table_stride) = self.tables(&blocks);
        Batch {
            q,
            keys,
            values: all_values,
            tables,
            table_stride,
            scale,
            expected,
        }
    }

    /// The blocks of each row, from the last to the first, but for one that nobody has.
    fn deal_blocks(&self) -> Vec<Vec<u32>> {
        let counts = (self.rows.iter()).map(|(past, new)| (past + new).div_ceil(self.block_size));
        let needed: usize = counts.clone().sum();
        let mut free = (0..=needed as u32).filter(|&block| block != 1);
        let mut blocks: Vec<Vec<u32>> = (counts.rev())
            .map(|count| free.by_ref().take(count).collect())
            .collect();
        for table in &mut blocks {
            table.reverse();
        }
        blocks.reverse();
        blocks
    }

    /// The table of all rows and its stride: no block where none must be looked at.
    fn tables(&self, blocks: &[Vec<u32>]) -> (Vec<u32>, usize) {
        let stride = blocks.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let mut tables = vec![u32::MAX; blocks.len() * stride];
        let rows = tables.chunks_mut(stride).zip(blocks);
        for ((table, blocks), (past, _)) in rows.zip(&self.rows) {
            table[..blocks.len()].copy_from_slice(blocks);
            // What lies before every window may have gone to others.
            if let Some(window) = self.window {
                table[..(past + 1).saturating_sub(window) / self.block_size].fill(u32::MAX);
            }
        }
        (tables, stride)
    }
}
