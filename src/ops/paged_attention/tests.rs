//! The op as a whole: against f64, and against itself in other batches.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use half::f16;

use super::super::rms_norm::RmsNorm;
use super::super::rope::{Rope, RopeStyle};
use super::super::testing::{Random, max_error};
use super::{CacheGeometry, CacheType, LayerCache, PagedAttention, PagedRows};

fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> PagedAttention {
    PagedAttention {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        softcap: None,
        q_norm: None,
        k_norm: None,
        rope: None,
    }
}

/// With every option there is.
fn laden(heads: usize, kv_heads: usize, head_dim: usize, window: usize) -> Result<PagedAttention> {
    let mut random = Random::new(77);
    let mut norm = || -> Result<RmsNorm> {
        let weight = Tensor::from_vec(random.values(head_dim, 2.0), head_dim, &Device::Cpu)?;
        Ok(RmsNorm::new(weight, 1e-6))
    };
    Ok(PagedAttention {
        window: Some(window),
        softcap: Some(5.0),
        q_norm: Some(norm()?),
        k_norm: Some(norm()?),
        rope: Some(rope(RopeStyle::HalfSplit, head_dim / 4 * 2)?),
        ..plain(heads, kv_heads, head_dim)
    })
}

fn rope(style: RopeStyle, rotary: usize) -> Result<Arc<Rope>> {
    let frequencies = (0..rotary / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary as f32));
    Ok(Arc::new(Rope::new(
        style,
        frequencies.collect(),
        1.0,
        4096,
    )?))
}

/// Sequences that share a cache, fed step by step.
struct Sequences<'a> {
    op: &'a PagedAttention,
    geometry: CacheGeometry,
    cache: LayerCache,
    all: Vec<Sequence>,
}

struct Sequence {
    qkv: Vec<f32>,
    blocks: Vec<u32>,
    done: usize,
    y: Vec<f32>,
}

impl<'a> Sequences<'a> {
    /// Their blocks are dealt out at random, from a cache full of NaN.
    fn new(
        op: &'a PagedAttention,
        lengths: &[usize],
        block_size: usize,
        cache_type: CacheType,
    ) -> Result<Self> {
        let needed: usize = lengths.iter().map(|len| len.div_ceil(block_size)).sum();
        let geometry = CacheGeometry {
            blocks: needed + 2,
            block_size,
            kv_heads: op.kv_heads,
            head_dim: op.head_dim,
        };
        let mut random = Random::new(block_size as u64);
        let mut free: Vec<u32> = (0..geometry.blocks as u32).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, random.next() as usize % (i + 1));
        }
        let width = (op.heads + 2 * op.kv_heads) * op.head_dim;
        let all = lengths.iter().enumerate().map(|(i, len)| Sequence {
            qkv: Random::new(i as u64).values(len * width, 2.0),
            blocks: free.split_off(free.len() - len.div_ceil(block_size)),
            done: 0,
            y: Vec::new(),
        });
        let all = all.collect();
        let mut cache = LayerCache::new(&geometry, cache_type, &Device::Cpu)?;
        for tensor in [&mut cache.keys, &mut cache.values] {
            *tensor = tensor.affine(1.0, f64::NAN)?;
        }
        Ok(Self {
            op,
            geometry,
            cache,
            all,
        })
    }

    /// Feeds the next tokens of some sequences: pairs of a sequence and a number of tokens.
    fn step(&mut self, parts: &[(usize, usize)]) -> Result<()> {
        let width = (self.op.heads + 2 * self.op.kv_heads) * self.op.head_dim;
        let mut qkv = Vec::new();
        for &(i, tokens) in parts {
            let sequence = &self.all[i];
            qkv.extend_from_slice(&sequence.qkv[sequence.done * width..][..tokens * width]);
        }
        let rows = parts.iter().map(|&(i, tokens)| {
            let sequence = &self.all[i];
            (sequence.done as u32, tokens as u32, &sequence.blocks[..])
        });
        let rows = PagedRows::new(rows, &self.geometry)?;
        let qkv = Tensor::from_vec(qkv, (rows.tokens(), width), &Device::Cpu)?;
        let y = self.op.apply(&qkv, &self.cache, &rows)?;
        assert_eq!(y.dims(), [rows.tokens(), self.op.heads * self.op.head_dim]);
        let y: Vec<f32> = y.flatten_all()?.to_vec1()?;
        let mut y = &y[..];
        for &(i, tokens) in parts {
            let (here, rest) = y.split_at(tokens * self.op.heads * self.op.head_dim);
            self.all[i].y.extend_from_slice(here);
            self.all[i].done += tokens;
            y = rest;
        }
        Ok(())
    }

    /// Feeds what is left of each sequence, each alone.
    fn finish(mut self) -> Result<Vec<Vec<f32>>> {
        let width = (self.op.heads + 2 * self.op.kv_heads) * self.op.head_dim;
        for i in 0..self.all.len() {
            let left = self.all[i].qkv.len() / width - self.all[i].done;
            if left > 0 {
                self.step(&[(i, left)])?;
            }
        }
        Ok(self.all.into_iter().map(|s| s.y).collect())
    }
}

/// The definition, for a whole sequence.
fn reference(op: &PagedAttention, qkv: &[f32], cache_type: CacheType) -> Result<Vec<f64>> {
    let (heads, kv_heads, dim) = (op.heads, op.kv_heads, op.head_dim);
    let width = (heads + 2 * kv_heads) * dim;
    let len = qkv.len() / width;
    let round = |x: f64| match cache_type {
        CacheType::F32 => x,
        CacheType::F16 => f16::from_f64(x).to_f64(),
    };
    let head = |token: usize, head: usize, norm: Option<&RmsNorm>| -> Result<Vec<f64>> {
        let x = &qkv[token * width + head * dim..][..dim];
        let mut x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        if let Some(norm) = norm {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            let inverse = 1.0 / (mean + f64::from(norm.epsilon())).sqrt();
            for (x, w) in x.iter_mut().zip(norm.weight().to_vec1::<f32>()?) {
                *x *= inverse * f64::from(w);
            }
        }
        Ok(x)
    };
    let rotate = |x: &mut [f64], position: usize| {
        if let Some(rope) = &op.rope {
            // Through the identity's columns: the rotation itself is tested beside its code.
            let mut rotated = vec![0f64; dim];
            for (i, x) in x.iter().enumerate() {
                let mut column = vec![0f32; dim];
                column[i] = 1.0;
                rope.at(position).apply(&mut column);
                for (r, c) in rotated.iter_mut().zip(column) {
                    *r += x * f64::from(c);
                }
            }
            x.copy_from_slice(&rotated);
        }
    };
    let mut keys = Vec::new();
    let mut values = Vec::new();
    for j in 0..len {
        for h in 0..kv_heads {
            let mut key = head(j, heads + h, op.k_norm.as_ref())?;
            rotate(&mut key, j);
            keys.push(key.into_iter().map(round).collect::<Vec<_>>());
            let value = head(j, heads + kv_heads + h, None)?;
            values.push(value.into_iter().map(round).collect::<Vec<_>>());
        }
    }
    let mut out: Vec<f64> = Vec::new();
    for i in 0..len {
        for h in 0..heads {
            let mut query = head(i, h, op.q_norm.as_ref())?;
            rotate(&mut query, i);
            let first = op.window.map_or(0, |window| (i + 1).saturating_sub(window));
            let at = |j: usize| j * kv_heads + h / (heads / kv_heads);
            let scores: Vec<f64> = (first..=i)
                .map(|j| {
                    let product: f64 = query.iter().zip(&keys[at(j)]).map(|(q, k)| q * k).sum();
                    let score = product * f64::from(op.scale);
                    op.softcap.map_or(score, |cap| {
                        f64::from(cap) * (score / f64::from(cap)).tanh()
                    })
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let mut sum = vec![0f64; dim];
            for (j, score) in (first..=i).zip(scores) {
                let weight = (score - max).exp() / total;
                for (sum, value) in sum.iter_mut().zip(&values[at(j)]) {
                    *sum += weight * value;
                }
            }
            out.extend(sum);
        }
    }
    Ok(out)
}

fn check(
    op: &PagedAttention,
    lengths: &[usize],
    block_size: usize,
    cache_type: CacheType,
    tolerance: f64,
) -> Result<()> {
    let sequences = Sequences::new(op, lengths, block_size, cache_type)?;
    let qkv: Vec<_> = sequences.all.iter().map(|s| s.qkv.clone()).collect();
    for (qkv, y) in qkv.iter().zip(sequences.finish()?) {
        let error = max_error(&y, &reference(op, qkv, cache_type)?);
        assert!(
            error < tolerance,
            "{op:?} {lengths:?} {block_size}: {error:e}"
        );
    }
    Ok(())
}

#[test]
fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
    for cache_type in [CacheType::F32, CacheType::F16] {
        for (heads, kv_heads, dim, block_size) in [
            (1, 1, 1, 1),
            (2, 1, 3, 5),
            (3, 1, 64, 16),
            (9, 3, 64, 16),
            (4, 4, 20, 8),
            (4, 1, 256, 32),
            (8, 2, 128, 64),
            (5, 1, 80, 7),
            (40, 1, 24, 48),
        ] {
            let op = plain(heads, kv_heads, dim);
            check(&op, &[1, 2, 31, 70], block_size, cache_type, 5e-6)?;
        }
        check(&plain(2, 1, 16), &[1100], 16, cache_type, 5e-6)?;
    }
    Ok(())
}

#[test]
fn every_option_equals_the_f64_reference() -> Result<()> {
    for (cache_type, tolerance) in [(CacheType::F32, 4e-5), (CacheType::F16, 8e-3)] {
        for window in [1, 7, 32, 33, 64, 1000] {
            let op = laden(6, 2, 32, window)?;
            check(&op, &[3, 150], 16, cache_type, tolerance)?;
        }
    }
    check(&laden(2, 1, 16, 700)?, &[1300], 32, CacheType::F32, 4e-5)?;
    let interleaved = PagedAttention {
        rope: Some(rope(RopeStyle::Interleaved, 24)?),
        ..plain(3, 1, 24)
    };
    check(&interleaved, &[90], 16, CacheType::F32, 4e-5)
}

#[test]
fn large_scores_neither_overflow_nor_lose_the_row() -> Result<()> {
    let op = PagedAttention {
        scale: 200.0,
        ..plain(2, 1, 32)
    };
    check(&op, &[600], 16, CacheType::F32, 2e-1)
}

#[test]
fn a_token_is_the_same_to_the_last_bit_in_any_batch_and_chunk() -> Result<()> {
    let ops = [
        plain(3, 1, 64),
        plain(4, 4, 24),
        plain(6, 2, 20),
        laden(4, 1, 64, 40)?,
        laden(9, 3, 16, 600)?,
    ];
    for op in &ops {
        for cache_type in [CacheType::F32, CacheType::F16] {
            let lengths = [650, 40, 97];
            let new = |block_size| Sequences::new(op, &lengths, block_size, cache_type);
            let expected = new(16)?.finish()?;

            // Another block size.
            assert!(new(24)?.finish()? == expected);

            // One token at a time, all sequences together.
            let mut decoded = new(16)?;
            for i in 0..650 {
                let left = (0..3).filter(|&s| i < lengths[s]);
                decoded.step(&left.map(|s| (s, 1)).collect::<Vec<_>>())?;
            }
            assert!(decoded.finish()? == expected);

            // Prompts in chunks of any size beside tokens of others.
            let mut chunked = new(8)?;
            let mut random = Random::new(5);
            for _ in 0..20 {
                let parts: Vec<_> = (0..3)
                    .map(|s| {
                        let left = lengths[s] - chunked.all[s].done;
                        (s, left.min(random.next() as usize % 37))
                    })
                    .collect();
                chunked.step(&parts)?;
            }
            assert!(chunked.finish()? == expected);
        }
    }
    Ok(())
}

#[test]
fn the_number_of_threads_changes_nothing() -> Result<()> {
    let op = laden(4, 1, 64, 900)?;
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("a pool of threads");
        pool.install(|| -> Result<Vec<Vec<f32>>> {
            let mut sequences = Sequences::new(&op, &[1500, 30], 16, CacheType::F16)?;
            sequences.step(&[(0, 1400), (1, 10)])?;
            for _ in 0..5 {
                // Few units of many keys: the spans are the tasks.
                sequences.step(&[(0, 1)])?;
            }
            sequences.finish()
        })
    };
    let expected = run(1)?;
    for threads in [2, 16] {
        assert!(run(threads)? == expected, "{threads} threads");
    }
    Ok(())
}

#[test]
fn sequences_may_share_the_blocks_of_a_prefix() -> Result<()> {
    let op = plain(3, 1, 32);
    let mut sequences = Sequences::new(&op, &[64, 64], 16, CacheType::F16)?;
    let width = 5 * 32;
    let prefix = sequences.all[0].qkv[..32 * width].to_vec();
    sequences.all[1].qkv[..32 * width].copy_from_slice(&prefix);
    sequences.step(&[(0, 64)])?;
    let shared = sequences.all[0].blocks[..2].to_vec();
    sequences.all[1].blocks[..2].copy_from_slice(&shared);
    sequences.all[1].done = 32;
    let y = sequences.finish()?;

    let mut alone = Sequences::new(&op, &[64, 64], 16, CacheType::F16)?;
    alone.all[1].qkv[..32 * width].copy_from_slice(&prefix);
    assert!(alone.finish()?[1][32 * 3 * 32..] == y[1]);
    Ok(())
}

#[test]
fn no_tokens_are_no_work() -> Result<()> {
    let op = plain(2, 1, 8);
    let mut sequences = Sequences::new(&op, &[4], 4, CacheType::F16)?;
    sequences.step(&[])?;
    sequences.step(&[(0, 0)])?;
    sequences.step(&[(0, 2), (0, 0)])?;
    Ok(())
}

#[test]
fn what_does_not_agree_is_an_error() -> Result<()> {
    let geometry = CacheGeometry {
        blocks: 4,
        block_size: 8,
        kv_heads: 1,
        head_dim: 16,
    };
    let cpu = &Device::Cpu;
    let op = plain(2, 1, 16);
    let cache = LayerCache::new(&geometry, CacheType::F16, cpu)?;
    let rows = PagedRows::new([(0, 3, &[2][..])], &geometry)?;
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, cpu);
    let qkv = zeros((3, 64))?;
    assert!(op.apply(&qkv, &cache, &rows).is_ok());

    assert!(op.apply(&zeros((3, 63))?, &cache, &rows).is_err());
    assert!(op.apply(&zeros((2, 64))?, &cache, &rows).is_err());
    assert!(op.apply(&zeros((64, 3))?.t()?, &cache, &rows).is_err());
    assert!(op.apply(&qkv.to_dtype(DType::F16)?, &cache, &rows).is_err());

    for other in [
        CacheGeometry {
            blocks: 5,
            ..geometry
        },
        CacheGeometry {
            block_size: 16,
            ..geometry
        },
        CacheGeometry {
            kv_heads: 2,
            ..geometry
        },
        CacheGeometry {
            head_dim: 8,
            ..geometry
        },
    ] {
        let cache = LayerCache::new(&other, CacheType::F16, cpu)?;
        assert!(op.apply(&qkv, &cache, &rows).is_err(), "{other:?}");
    }
    let mixed = LayerCache {
        values: cache.values.to_dtype(DType::F32)?,
        ..cache.clone()
    };
    assert!(op.apply(&qkv, &mixed, &rows).is_err());
    let double = LayerCache {
        keys: cache.keys.to_dtype(DType::F64)?,
        values: cache.values.to_dtype(DType::F64)?,
    };
    assert!(op.apply(&qkv, &double, &rows).is_err());
    let swapped = LayerCache {
        keys: cache.keys.zeros_like()?.t()?.contiguous()?.t()?,
        ..cache.clone()
    };
    assert!(op.apply(&qkv, &swapped, &rows).is_err());

    let narrow = Some(RmsNorm::new(Tensor::ones(8, DType::F32, cpu)?, 1e-6));
    let wide_rope = Some(rope(RopeStyle::HalfSplit, 18)?);
    let short_rope = Some(Arc::new(Rope::new(
        RopeStyle::HalfSplit,
        vec![1.0],
        1.0,
        2,
    )?));
    for wrong in [
        plain(3, 2, 16),
        plain(0, 1, 16),
        plain(2, 0, 16),
        plain(2, 1, 0),
        PagedAttention {
            window: Some(0),
            ..op.clone()
        },
        PagedAttention {
            softcap: Some(0.0),
            ..op.clone()
        },
        PagedAttention {
            softcap: Some(f32::NAN),
            ..op.clone()
        },
        PagedAttention {
            q_norm: narrow.clone(),
            ..op.clone()
        },
        PagedAttention {
            k_norm: narrow,
            ..op.clone()
        },
        PagedAttention {
            rope: wide_rope,
            ..op.clone()
        },
        PagedAttention {
            rope: short_rope,
            ..op.clone()
        },
    ] {
        assert!(wrong.apply(&qkv, &cache, &rows).is_err(), "{wrong:?}");
    }
    Ok(())
}
