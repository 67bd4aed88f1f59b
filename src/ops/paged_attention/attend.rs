//! Queries against the cache.
//!
//! **Order.** Keys are taken in tiles of 32 that begin at multiples of 32 of the *position*, and
//! tiles in spans of 512 that begin at multiples of 512. Within a span a running maximum `m` and
//! sum `l` per query are carried from tile to tile (Dao et al. 2022, arXiv:2205.14135); spans are
//! then put together in their order. A query passes over what it does not see, and what it sees
//! it sees in this order, whichever queries are computed beside it, and whether the spans were
//! computed one after the other or at once. That makes its result independent of all that.
//!
//! **Tiling.** The queries of a few tokens with all the heads that share a key head, some
//! [`QUERIES`], form a unit, which reads each block of K and of V once: widened to f32 in scratch,
//! where a tile stays in L1 for all the unit's queries. A decoding row is one unit per key head.
//! Units are the tasks; or, if there are too few of them for the threads, their spans are.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, bail};
use half::f16;
use rayon::prelude::*;

use super::super::operand::{f32_values, read};
use super::super::rms_norm::Gain;
use super::super::simd::dispatch;
use super::cache::{CacheValue, cache_values};
use super::layer::{Layer, Unit};
use super::rows::PagedRows;
use super::span::{AttendSpan, Merge, Prepare, Running, Scratch};
use super::tile::DIMS;
use super::{Heads, PagedAttention};

/// Queries of a unit, if it has more than one token.
const QUERIES: usize = 32;
/// Multiply-adds below which threads cost more than they bring (some 20 µs of one core).
const SERIAL_WORK: usize = 1 << 19;

/// Attends, after keys and values were written. [`PagedAttention::apply`] has checked the shapes.
pub(super) struct Attend<'a> {
    pub op: &'a PagedAttention,
    pub rows: &'a PagedRows,
}

impl CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = f32_values(qkv, qkv_layout, "qkv")?;
        let heads = self.op.heads();
        let norm = self.op.q_norm.as_ref();
        let weight = norm.map(|norm| read(norm.weight(), "query norm weight"));
        let norm = match (norm, &weight) {
            (Some(norm), Some(weight)) => Some(Gain {
                weight: weight.values(heads.dim)?,
                epsilon: norm.epsilon(),
            }),
            _ => None,
        };
        let count = keys_layout.shape().elem_count();
        let mut out = vec![0f32; self.rows.tokens() * heads.query * heads.dim];
        match keys {
            CpuStorage::F32(_) => {
                let keys = cache_values::<f32>(keys, keys_layout, count)?;
                let values = cache_values::<f32>(values, values_layout, count)?;
                self.layer(qkv, keys, values, norm)
                    .attend(&mut out, self.rows);
            }
            CpuStorage::F16(_) => {
                let keys = cache_values::<f16>(keys, keys_layout, count)?;
                let values = cache_values::<f16>(values, values_layout, count)?;
                self.layer(qkv, keys, values, norm)
                    .attend(&mut out, self.rows);
            }
            _ => bail!("a cache must be f32 or f16"),
        }
        let shape = (self.rows.tokens(), heads.query * heads.dim);
        Ok((CpuStorage::F32(out), shape.into()))
    }
}

impl Attend<'_> {
    fn layer<'a, T>(
        &'a self,
        qkv: &'a [f32],
        keys: &'a [T],
        values: &'a [T],
        norm: Option<Gain<'a>>,
    ) -> Layer<'a, T> {
        let heads = self.op.heads();
        Layer {
            heads,
            padded: heads.dim.next_multiple_of(DIMS),
            scale: self.op.scale,
            window: self.op.window,
            softcap: self.op.softcap,
            norm,
            rope: self.op.rope.as_deref(),
            qkv,
            keys,
            values,
            block_size: self.rows.block_size(),
        }
    }
}

impl<T: CacheValue> Layer<'_, T> {
    /// `out` is `[tokens, heads · dim]`.
    fn attend(&self, out: &mut [f32], rows: &PagedRows) {
        let Heads { kv, dim, .. } = self.heads;
        let group = self.heads.group();
        let unit_tokens = (QUERIES / group).max(1);
        let mut units = Vec::new();
        // Per unit the places of its tokens in `out`, each `[group, dim]`.
        let mut places: Vec<Vec<&mut [f32]>> = Vec::new();
        let mut all_places = out.chunks_exact_mut(group * dim);
        let mut work = 0;
        for row in rows.iter() {
            for first_token in (0..row.tokens).step_by(unit_tokens) {
                let tokens = unit_tokens.min(row.tokens - first_token);
                let first_unit = units.len();
                for kv_head in 0..kv {
                    let unit = Unit {
                        row,
                        kv_head,
                        first_token,
                        tokens,
                    };
                    work += 2 * self.visible_to(&unit).len() * tokens * group * dim;
                    units.push(unit);
                    places.push(Vec::with_capacity(tokens));
                }
                for (i, place) in all_places.by_ref().take(tokens * kv).enumerate() {
                    places[first_unit + i % kv].push(place);
                }
            }
        }

        let threads = rayon::current_num_threads();
        let whole = |scratch: &mut Scratch, (unit, place): (&Unit, Vec<&mut [f32]>)| {
            self.attend_whole(unit, place, scratch);
        };
        if work < SERIAL_WORK || threads == 1 {
            let mut scratch = Scratch::default();
            for task in units.iter().zip(places) {
                whole(&mut scratch, task);
            }
        } else if units.len() < 2 * threads {
            self.attend_by_span(&units, places);
        } else {
            let tasks = units.par_iter().zip(places);
            tasks.for_each_init(Scratch::default, whole);
        }
    }

    /// All spans of a unit, one after the other.
    fn attend_whole(&self, unit: &Unit, places: Vec<&mut [f32]>, scratch: &mut Scratch) {
        let spans = self.spans(unit);
        let mut total = std::mem::take(&mut scratch.total);
        total.reset(unit.tokens * self.heads.group(), self.padded);
        dispatch(Prepare {
            layer: self,
            unit,
            scratch,
        });
        for span in spans {
            dispatch(AttendSpan {
                layer: self,
                unit,
                span,
                scratch,
            });
            dispatch(Merge {
                total: &mut total,
                later: &scratch.running,
            });
        }
        self.finish(&total, places);
        scratch.total = total;
    }

    /// All spans of all units at once, then put together.
    fn attend_by_span(&self, units: &[Unit], places: Vec<Vec<&mut [f32]>>) {
        let tasks: Vec<(&Unit, usize)> = units
            .iter()
            .flat_map(|unit| self.spans(unit).map(move |span| (unit, span)))
            .collect();
        let parts: Vec<Running> = tasks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, (unit, span)| {
                dispatch(Prepare {
                    layer: self,
                    unit,
                    scratch,
                });
                dispatch(AttendSpan {
                    layer: self,
                    unit,
                    span,
                    scratch,
                });
                std::mem::take(&mut scratch.running)
            })
            .collect();
        let mut parts = parts.iter();
        let mut total = Running::default();
        for (unit, places) in units.iter().zip(places) {
            total.reset(unit.tokens * self.heads.group(), self.padded);
            for later in parts.by_ref().take(self.spans(unit).len()) {
                dispatch(Merge {
                    total: &mut total,
                    later,
                });
            }
            self.finish(&total, places);
        }
    }

    /// `y = Σ w·v / l`, to its places.
    fn finish(&self, total: &Running, places: Vec<&mut [f32]>) {
        let queries = total.weighted.chunks_exact(self.padded).zip(&total.sum);
        let heads = places
            .into_iter()
            .flat_map(|place| place.chunks_exact_mut(self.heads.dim));
        for ((weighted, sum), y) in queries.zip(heads) {
            let inverse = 1.0 / sum;
            for (y, weighted) in y.iter_mut().zip(weighted) {
                *y = weighted * inverse;
            }
        }
    }
}
