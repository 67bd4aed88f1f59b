//! `kernels/rope.cu` against `ferry::ops::{Rope, RmsNorm, PagedAttention}`: keys and values as the CPU
//! op writes them to its cache; and queries, which are the keys' own numbers here, as its keys.

use std::sync::Arc;

use candle_core::Device;
use ferry::ops::{
    CacheGeometry, CacheType, LayerCache, PagedAttention, PagedRows, RmsNorm, Rope, RopeStyle,
};

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};
use super::paged::key_place;

const WARPS: usize = 8;
const THREADS: usize = 256;

/// Names of the kernels' types: of the activations, of the cache.
const TYPES: [(&str, Number, Number); 5] = [
    ("f32_f32", Number::F32, Number::F32),
    ("f32_f16", Number::F32, Number::F16),
    ("f32_bf16", Number::F32, Number::Bf16),
    ("f16_f16", Number::F16, Number::F16),
    ("bf16_bf16", Number::Bf16, Number::Bf16),
];

struct Case {
    heads: usize,
    dim: usize,
    /// Style, rotated dimensions, magnitude.
    rope: Option<(RopeStyle, usize, f32)>,
    norm: bool,
    block_size: usize,
    /// First position and number of tokens of each row.
    rows: &'static [(u32, u32)],
}

const CASES: [Case; 5] = [
    Case {
        heads: 3,
        dim: 64,
        rope: Some((RopeStyle::HalfSplit, 64, 1.0)),
        norm: false,
        block_size: 16,
        rows: &[(0, 5), (30, 3)],
    },
    Case {
        heads: 5,
        dim: 40,
        rope: Some((RopeStyle::HalfSplit, 20, 1.25)),
        norm: true,
        block_size: 9,
        rows: &[(4000, 2), (7, 1)],
    },
    Case {
        heads: 2,
        dim: 128,
        rope: Some((RopeStyle::Interleaved, 96, 1.0)),
        norm: true,
        block_size: 8,
        rows: &[(1000, 9)],
    },
    // An odd number of pairs.
    Case {
        heads: 1,
        dim: 24,
        rope: Some((RopeStyle::HalfSplit, 18, 1.0)),
        norm: false,
        block_size: 16,
        rows: &[(3, 4)],
    },
    Case {
        heads: 2,
        dim: 256,
        rope: None,
        norm: true,
        block_size: 16,
        rows: &[(15, 2)],
    },
];

/// Queries, keys and values of the tokens, each `[tokens, heads · dim]`, as the CPU op has them.
fn expected(case: &Case, qkv: &[f32], weight: &[f32], blocks: &[Vec<u32>]) -> [Vec<f32>; 3] {
    let Case {
        heads,
        dim,
        block_size,
        ..
    } = *case;
    let norm = || (case.norm).then(|| RmsNorm::new(tensor(weight, dim), 1e-6));
    let op = PagedAttention {
        heads,
        kv_heads: heads,
        head_dim: dim,
        scale: 1.0,
        window: None,
        softcap: None,
        q_norm: norm(),
        k_norm: norm(),
        rope: case.rope.map(|(style, rotary, magnitude)| {
            let rope = Rope::new(style, frequencies(rotary), magnitude, 5000);
            Arc::new(rope.expect("a rotation"))
        }),
    };
    let geometry = CacheGeometry {
        blocks: blocks.iter().map(Vec::len).sum(),
        block_size,
        kv_heads: heads,
        head_dim: dim,
    };
    let cache = LayerCache::new(&geometry, CacheType::F32, &Device::Cpu).expect("a cache");
    let rows = (case.rows.iter().zip(blocks)).map(|(row, blocks)| (row.0, row.1, &blocks[..]));
    let rows = PagedRows::new(rows, &geometry).expect("rows of the cache");
    let tokens = qkv.len() / (3 * heads * dim);
    op.apply(&tensor(qkv, (tokens, 3 * heads * dim)), &cache, &rows)
        .expect("the CPU op runs");
    let (keys, of_values) = (values(&cache.keys), values(&cache.values));
    let mut result = [Vec::new(), Vec::new(), Vec::new()];
    for (&(first, count), blocks) in case.rows.iter().zip(blocks) {
        for position in first as usize..(first + count) as usize {
            let (block, slot) = (
                blocks[position / block_size] as usize,
                position % block_size,
            );
            for head in block * heads..(block + 1) * heads {
                for i in 0..dim {
                    result[1].push(keys[(head * dim + i) * block_size + slot]);
                    result[2].push(of_values[(head * block_size + slot) * dim + i]);
                }
            }
        }
    }
    let [_, keys, of_values] = result;
    [keys.clone(), keys, of_values]
}

fn frequencies(rotary: usize) -> Vec<f32> {
    (0..rotary / 2)
        .map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary as f32))
        .collect()
}

/// Queries, keys and values of the tokens as the kernels leave them.
fn run(
    emulator: &Emulator,
    (types, number, cache): (&str, Number, Number),
    case: &Case,
    qkv: &[f32],
    weight: &[f32],
    blocks: &[Vec<u32>],
    order: Order,
) -> [Vec<f32>; 3] {
    let Case {
        heads,
        dim,
        block_size,
        ..
    } = *case;
    let positions: Vec<u32> = (case.rows.iter())
        .flat_map(|&(first, count)| first..first + count)
        .collect();
    let mut slots: Vec<u32> = (case.rows.iter().zip(blocks))
        .flat_map(|(&(first, count), blocks)| {
            (first as usize..(first + count) as usize).map(|position| {
                blocks[position / block_size] * block_size as u32 + (position % block_size) as u32
            })
        })
        .collect();
    // One token more, which is written nowhere.
    slots.push(u32::MAX);
    let places: Vec<usize> = slots.iter().map(|&slot| slot as usize).collect();
    let tokens = slots.len();
    let mut qkv = qkv.to_vec();
    qkv.resize(tokens * 3 * heads * dim, 1.0);
    let mut all_positions = positions;
    all_positions.push(0);

    let (style, rotary, magnitude) = case.rope.unwrap_or((RopeStyle::HalfSplit, 0, 1.0));
    let pairs = rotary / 2;
    let angles = Buffer::output("angles", Number::F32, tokens * 2 * pairs);
    let positions = Buffer::indices("positions", &all_positions);
    let inverse_frequencies = Buffer::floats("inverse_frequencies", &frequencies(rotary));
    if pairs > 0 {
        let blocks = (tokens * pairs).div_ceil(THREADS);
        emulator
            .launch(
                "ferry_rope_angles",
                Launch::new([blocks as u32, 1, 1], THREADS as u32),
                order,
                &[
                    Argument::Buffer(&angles),
                    Argument::Buffer(&positions),
                    Argument::Buffer(&inverse_frequencies),
                    Argument::F32(magnitude),
                    Argument::I32(tokens as i32),
                    Argument::I32(pairs as i32),
                ],
            )
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let count: usize = blocks.iter().map(Vec::len).sum::<usize>() * heads * block_size * dim;
    let q = Buffer::output("q", number, tokens * heads * dim);
    let keys = Buffer::output("keys", cache, count);
    let of_values = Buffer::output("values", cache, count);
    let qkv = Buffer::numbers("qkv", number, &qkv);
    let weight = Buffer::floats("norm", weight);
    let slots = Buffer::indices("slots", &slots);
    let given = |condition, buffer| {
        if condition {
            Argument::Buffer(buffer)
        } else {
            Argument::Null
        }
    };
    let grid = [tokens as u32, (3 * heads).div_ceil(WARPS) as u32, 1];
    emulator
        .launch(
            &format!("ferry_rope_write_{types}"),
            Launch::new(grid, THREADS as u32),
            order,
            &[
                Argument::Buffer(&q),
                Argument::Buffer(&keys),
                Argument::Buffer(&of_values),
                Argument::Buffer(&qkv),
                given(pairs > 0, &angles),
                given(case.norm, &weight),
                given(case.norm, &weight),
                Argument::Buffer(&slots),
                Argument::I32(heads as i32),
                Argument::I32(heads as i32),
                Argument::I32(dim as i32),
                Argument::I32(pairs as i32),
                Argument::I32(i32::from(style == RopeStyle::Interleaved)),
                Argument::I32(block_size as i32),
                Argument::F32(1e-6),
                Argument::F32(1e-6),
            ],
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let (keys, of_values) = (keys.to_floats(cache), of_values.to_floats(cache));
    let mut q = q.to_floats(number);
    q.truncate((tokens - 1) * heads * dim);
    let mut result = [q, Vec::new(), Vec::new()];
    for &place in &places[..tokens - 1] {
        let (block, slot) = (place / block_size, place % block_size);
        for head in block * heads..(block + 1) * heads {
            for i in 0..dim {
                result[1].push(keys[key_place(head, slot, i, block_size, dim)]);
                result[2].push(of_values[(head * block_size + slot) * dim + i]);
            }
        }
    }
    result
}

#[test]
fn rotation_and_cache_writes_agree_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("rope") else {
        return;
    };
    for types in TYPES {
        let (_, number, cache) = types;
        let kernel = format!("ferry_rope_write_{}", types.0);
        let mut of_queries = Agreement::new(&format!("{kernel} q"), number, 4e-6, 1.02);
        let mut of_cache = Agreement::new(&format!("{kernel} k, v"), cache, 4e-6, 1.02);
        for (index, case) in CASES.iter().enumerate() {
            let mut random = Random::new(index as u64);
            let tokens: usize = case.rows.iter().map(|row| row.1 as usize).sum();
            let width = case.heads * case.dim;
            let mut qkv = number.round(&random.values(tokens * 3 * width, 3.0));
            // Some that f16 bounds.
            qkv[2 * width] = 65504.0;
            for row in qkv.chunks_exact_mut(3 * width) {
                row.copy_within(..width, width);
            }
            let weight = random.values(case.dim, 2.0);
            let mut next = 0;
            let blocks: Vec<Vec<u32>> = (case.rows.iter())
                .map(|&(first, count)| {
                    let count = (first + count).div_ceil(case.block_size as u32);
                    next += count;
                    (next - count..next).rev().collect()
                })
                .collect();
            let [q, keys, of_values] = expected(case, &qkv, &weight, &blocks);
            let name = format!("case {index}");
            let run = |order| run(&emulator, types, case, &qkv, &weight, &blocks, order);
            of_queries.check(&name, &q, |order| run(order)[0].clone());
            of_cache.check(&name, &[keys, of_values].concat(), |order| {
                run(order)[1..].concat()
            });
        }
    }
}
