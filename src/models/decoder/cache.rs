//! The keys and values of all sequences that a model works on, in blocks that sequences own one by
//! one. Who owns which block is the scheduler's to know; here they are only memory.

use super::spec::DecoderSpec;
use crate::ops::{CacheGeometry, CacheType, LayerCache};

/// Keys and values of all layers. A block of it is the same positions of a sequence in every layer.
#[derive(Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    pub(super) geometry: CacheGeometry,
}

impl KvCache {
    /// Bytes of one block in all layers.
    pub fn bytes_per_block(spec: &DecoderSpec, block_size: usize, cache_type: CacheType) -> usize {
        spec.layers * geometry(spec, 1, block_size).bytes_per_block(cache_type)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.geometry.blocks
    }

    /// Positions in a block.
    pub fn block_size(&self) -> usize {
        self.geometry.block_size
    }
}

/// The geometry of a model's cache.
pub(super) fn geometry(spec: &DecoderSpec, blocks: usize, block_size: usize) -> CacheGeometry {
    CacheGeometry {
        blocks,
        block_size,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
    }
}
