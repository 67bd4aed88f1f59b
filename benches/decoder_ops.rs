//! Speed of the decoder's fused ops besides the matrix products, on random activations: attention
//! over the paged cache as one layer of SmolLM2-135M (9 heads, 3 key heads of 64) and of Gemma 3
//! 270M (4 heads, 1 key head of 256) runs it, and the statistics of a step's logits.

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use ferry::ops::{
    CacheGeometry, CacheType, LayerCache, PagedAttention, PagedRows, Rope, RopeStyle,
    logit_statistics,
};

/// What the server uses: large activations are not given back to the kernel after every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

const BLOCK_SIZE: usize = 16;

/// Rows of a step, each with so many tokens in the cache and so many new ones.
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rows: usize,
    cached: usize,
    new: usize,
}

const fn smollm(rows: usize, cached: usize, new: usize) -> Case {
    Case {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rows,
        cached,
        new,
    }
}

const fn gemma(rows: usize, cached: usize, new: usize) -> Case {
    Case {
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        rows,
        cached,
        new,
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            heads,
            kv_heads,
            head_dim,
            rows,
            cached,
            new,
        } = self;
        write!(
            f,
            "{heads}/{kv_heads} x {head_dim}, {rows} rows, {new} after {cached}"
        )
    }
}

#[divan::bench(args = [
    smollm(16, 511, 1), smollm(1, 511, 1), smollm(1, 4095, 1), smollm(1, 0, 512),
    gemma(16, 511, 1), gemma(1, 511, 1), gemma(1, 4095, 1), gemma(1, 0, 512),
])]
fn paged_attention(bencher: Bencher, case: &Case) {
    let Case {
        heads,
        kv_heads,
        head_dim,
        rows,
        cached,
        new,
    } = *case;
    let row_blocks = (cached + new).div_ceil(BLOCK_SIZE);
    let geometry = CacheGeometry {
        blocks: rows * row_blocks,
        block_size: BLOCK_SIZE,
        kv_heads,
        head_dim,
    };
    let frequencies = (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32));
    let rope = Rope::new(RopeStyle::HalfSplit, frequencies.collect(), 1.0, 8192);
    let op = PagedAttention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        softcap: None,
        q_norm: None,
        k_norm: None,
        rope: Some(Arc::new(rope.expect("a rope"))),
    };
    let cache = LayerCache::new(&geometry, CacheType::F16, &Device::Cpu).expect("a cache");
    // The rows' blocks lie among each other, as they do when sequences grow together.
    let tables: Vec<Vec<u32>> = (0..rows)
        .map(|row| (0..row_blocks).map(|i| (i * rows + row) as u32).collect())
        .collect();
    let width = (heads + 2 * kv_heads) * head_dim;
    let step = |first: usize, tokens: usize| {
        let paged = tables.iter().map(|t| (first as u32, tokens as u32, &t[..]));
        let paged = PagedRows::new(paged, &geometry).expect("rows");
        let qkv = Tensor::rand(-1f32, 1f32, (rows * tokens, width), &Device::Cpu).expect("qkv");
        (paged, qkv)
    };
    if cached > 0 {
        let (paged, qkv) = step(0, cached);
        op.apply(&qkv, &cache, &paged).expect("a prompt");
    }
    let (paged, qkv) = step(cached, new);
    bencher
        .counter(ItemsCount::new(rows * new))
        .bench_local(|| op.apply(&qkv, &cache, &paged).expect("a step"));
}

/// Rows and vocabulary.
#[divan::bench(args = [(1, 262_144), (16, 49_152), (16, 262_144)])]
fn statistics(bencher: Bencher, (rows, vocabulary): (usize, usize)) {
    let logits = Tensor::randn(0f32, 5f32, (rows, vocabulary), &Device::Cpu).expect("logits");
    bencher
        .counter(BytesCount::of_many::<f32>(rows * vocabulary))
        .bench_local(|| logit_statistics(&logits).expect("statistics"));
}
