//! The op on a CUDA device: launches of `kernels/rope.cu`, `paged_decode.cu` and `paged_prefill.cu`.
//!
//! The device's cache is laid out for them, `[blocks, kv_heads, head_dim/8, block_size, 8]` and
//! `[blocks, kv_heads, block_size, head_dim]`. What a step's kernels need to know of its rows goes
//! to the device in one copy, before the first layer; all layers share it.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use cudarc::driver::{CudaSlice, DevicePtr};

use super::super::cuda::{Argument, Launch, Operand, output, suffix, upload, weight, whole};
use super::super::operand::dims2;
use super::super::rms_norm::RmsNorm;
use super::super::rope::{Rope, RopeStyle};
use super::rows::{PagedRows, RowView};
use super::{LayerCache, PagedAttention};

/// Keys that a block of the kernel attends to. It decides how sums are cut, so it never changes
/// while sequences live.
const SPAN: usize = 256;
/// Query heads that a block does at a time, at most.
const MAX_GROUP: usize = 8;
/// Dimensions of a head at most, and what they are a multiple of.
const MAX_DIM: usize = 256;
const DIM_PART: usize = 8;
/// Rows of a launch at most: a grid's third dimension.
const MAX_ROWS: usize = 65_535;

const ROPE_THREADS: u32 = 256;
/// Heads that a block of `rope_write` does.
const ROPE_HEADS: usize = 8;
const DECODE_THREADS: u32 = 128;

macro_rules! for_types {
    ($($prefix:literal),*) => {
        [$([
            concat!($prefix, "_f32_f32"),
            concat!($prefix, "_f32_f16"),
            concat!($prefix, "_f32_bf16"),
            concat!($prefix, "_f16_f16"),
            concat!($prefix, "_bf16_bf16"),
        ]),*]
    };
}

const ROPE_WRITE: [[&str; 5]; 1] = for_types!("ferry_rope_write");
/// For groups of up to 1, 2, 4 and 8 query heads.
const DECODE: [[&str; 5]; 4] = for_types!(
    "ferry_paged_decode_g1",
    "ferry_paged_decode_g2",
    "ferry_paged_decode_g4",
    "ferry_paged_decode_g8"
);
/// For heads of up to 64, 128 and 256 dimensions. There is none for a cache of f32.
const PREFILL: [[&str; 5]; 3] = for_types!(
    "ferry_paged_prefill_d64",
    "ferry_paged_prefill_d128",
    "ferry_paged_prefill_d256"
);
const PREFILL_DIMS: [usize; 3] = [64, 128, 256];
/// Queries that a block of the prefill kernel has.
const PREFILL_QUERIES: usize = 64;
const REDUCE: [&str; 3] = [
    "ferry_paged_decode_reduce_f32",
    "ferry_paged_decode_reduce_f16",
    "ferry_paged_decode_reduce_bf16",
];

/// The op with what it works on.
pub(super) struct OnDevice<'a> {
    pub op: &'a PagedAttention,
    pub cache: &'a LayerCache,
    pub rows: &'a PagedRows,
}

impl CustomOp1 for OnDevice<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("the cache is on a device, and qkv on the CPU")
    }

    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (tokens, _) = dims2(layout, "qkv")?;
        let values = whole(qkv, layout, "qkv")?;
        let runs = self.cache.keys.dtype() != DType::F32;
        let rows = self.rows.on_device(&qkv.device, runs)?;
        let step = Step {
            op: self.op,
            device: &qkv.device,
            rows,
            block_size: self.rows.block_size(),
            tokens,
            keys: cache_values(&self.cache.keys, "keys")?,
            values: cache_values(&self.cache.values, "values")?,
        };
        // The query's memory goes back to the stream when the op is done with it.
        let (_query, query) = step.write(&values)?;
        step.attend(&query)
    }
}

/// The whole of a cache tensor. Kernels write to it by its address: the cache is the model's alone,
/// and all of its work is in one stream.
fn cache_values(tensor: &Tensor, what: &str) -> Result<Operand> {
    weight(tensor, tensor.elem_count(), tensor.dtype(), what)
}

/// One layer's attention in one step.
struct Step<'a> {
    op: &'a PagedAttention,
    device: &'a CudaDevice,
    rows: &'a DeviceRows,
    block_size: usize,
    tokens: usize,
    keys: Operand,
    values: Operand,
}

impl Step<'_> {
    /// Which of the kernels for several types.
    fn types(&self, activations: DType) -> Result<usize> {
        Ok(match (activations, self.keys.dtype) {
            (DType::F32, DType::F32) => 0,
            (DType::F32, DType::F16) => 1,
            (DType::F32, DType::BF16) => 2,
            (DType::F16, DType::F16) => 3,
            (DType::BF16, DType::BF16) => 4,
            (x, cache) => bail!("there is no kernel for {x:?} with a cache of {cache:?}"),
        })
    }

    /// Puts keys and values in the cache and gives the queries, `[tokens, heads · head_dim]`.
    fn write(&self, qkv: &Operand) -> Result<(CudaStorage, Operand)> {
        let PagedAttention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self.op;
        let shape = Shape::from((self.tokens, heads * head_dim));
        let (query, query_values) = output(self.device, &shape, qkv.dtype)?;
        let rope = self.op.rope.as_deref();
        let angles = rope.map(|rope| self.rows.angles(rope, self.device));
        let angles = angles.transpose()?;
        let gain = |norm: &Option<RmsNorm>, what| {
            let gain = norm
                .as_ref()
                .map(|norm| weight(norm.weight(), head_dim, DType::F32, what));
            gain.transpose()
        };
        let epsilon = |norm: &Option<RmsNorm>| norm.as_ref().map_or(0.0, RmsNorm::epsilon);
        let (q_gain, k_gain) = (
            gain(&self.op.q_norm, "query norm weight")?,
            gain(&self.op.k_norm, "key norm weight")?,
        );
        let all_heads = heads + 2 * kv_heads;
        let launch = Launch {
            file: "rope",
            kernel: ROPE_WRITE[0][self.types(qkv.dtype)?],
            grid: [self.tokens as u32, all_heads.div_ceil(ROPE_HEADS) as u32, 1],
            threads: ROPE_THREADS,
            shared_bytes: 0,
        };
        let interleaved = rope.is_some_and(|rope| rope.style() == RopeStyle::Interleaved);
        let arguments = [
            (&query_values).into(),
            (&self.keys).into(),
            (&self.values).into(),
            qkv.into(),
            Argument::Address(angles.unwrap_or(0)),
            q_gain.as_ref().into(),
            k_gain.as_ref().into(),
            Argument::Address(self.rows.slots),
            (heads as i32).into(),
            (kv_heads as i32).into(),
            (head_dim as i32).into(),
            rope.map_or(0, |rope| (rope.rotary_dims() / 2) as i32)
                .into(),
            i32::from(interleaved).into(),
            (self.block_size as i32).into(),
            epsilon(&self.op.q_norm).into(),
            epsilon(&self.op.k_norm).into(),
        ];
        // SAFETY: `qkv` has a row of all heads for each token, `query` one of the query heads;
        // the slots are in the cache, as `PagedRows` has checked; angles and gains are as long as
        // the counts say.
        unsafe { launch.run(self.device, &arguments)? };
        Ok((query, query_values))
    }

    /// `[tokens, heads · head_dim]`
    fn attend(&self, query: &Operand) -> Result<(CudaStorage, Shape)> {
        let shape = Shape::from((self.tokens, self.op.heads * self.op.head_dim));
        let (y, y_values) = output(self.device, &shape, query.dtype)?;
        if let Some(singles) = &self.rows.singles {
            self.attend_singles(singles, query, &y_values)?;
        }
        if let Some(runs) = &self.rows.runs {
            self.attend_runs(runs, query, &y_values)?;
        }
        Ok((y, shape))
    }

    fn window(&self) -> i32 {
        let window = self.op.window;
        window.map_or(0, |window| window.min(i32::MAX as usize) as i32)
    }

    /// One query of a sequence at a time.
    fn attend_singles(&self, rows: &Singles, query: &Operand, y: &Operand) -> Result<()> {
        let PagedAttention {
            heads,
            kv_heads,
            head_dim,
            scale,
            softcap,
            ..
        } = *self.op;
        let spans = rows.longest.div_ceil(SPAN);
        let parts = if spans > 1 {
            rows.count * heads * spans
        } else {
            0
        };
        let between = |values: usize| {
            let shape = Shape::from(parts * values);
            let made = (parts > 0).then(|| output(self.device, &shape, DType::F32));
            made.transpose()
        };
        let (sums, softmax) = (between(head_dim)?, between(2)?);
        let operand = |made: &Option<(CudaStorage, Operand)>| -> Argument {
            made.as_ref().map(|(_, operand)| operand).into()
        };
        let group = heads / kv_heads;
        let at_once = group.next_power_of_two().min(MAX_GROUP);
        let launch = Launch {
            file: "paged_decode",
            kernel: DECODE[at_once.ilog2() as usize][self.types(query.dtype)?],
            grid: [
                (kv_heads * group.div_ceil(at_once)) as u32,
                spans as u32,
                rows.count as u32,
            ],
            threads: DECODE_THREADS,
            shared_bytes: 0,
        };
        let arguments = [
            y.into(),
            operand(&sums),
            operand(&softmax),
            query.into(),
            (&self.keys).into(),
            (&self.values).into(),
            Argument::Address(rows.tokens),
            Argument::Address(rows.contexts),
            Argument::Address(rows.tables),
            (self.rows.table_stride as i32).into(),
            (heads as i32).into(),
            (kv_heads as i32).into(),
            (head_dim as i32).into(),
            (self.block_size as i32).into(),
            (SPAN as i32).into(),
            self.window().into(),
            scale.into(),
            softcap.unwrap_or(0.0).into(),
        ];
        // SAFETY: queries and `y` have a row for each token; tables name blocks of the cache for
        // every position of a context, as `PagedRows` has checked; sums and softmax have room for
        // every row, head and span.
        unsafe { launch.run(self.device, &arguments)? };
        if parts == 0 {
            return Ok(());
        }
        let launch = Launch {
            file: "paged_decode",
            kernel: suffix(REDUCE, query.dtype, "queries")?,
            grid: [heads as u32, rows.count as u32, 1],
            threads: DECODE_THREADS,
            shared_bytes: 0,
        };
        let arguments = [
            y.into(),
            operand(&sums),
            operand(&softmax),
            Argument::Address(rows.tokens),
            Argument::Address(rows.contexts),
            (heads as i32).into(),
            (head_dim as i32).into(),
            (SPAN as i32).into(),
            self.window().into(),
            (spans as i32).into(),
        ];
        // SAFETY: as above; the spans are those that the first kernel wrote.
        unsafe { launch.run(self.device, &arguments) }
    }

    /// Runs of several tokens of a sequence.
    fn attend_runs(&self, rows: &Runs, query: &Operand, y: &Operand) -> Result<()> {
        let PagedAttention {
            heads,
            kv_heads,
            head_dim,
            scale,
            softcap,
            ..
        } = *self.op;
        let types = self.types(query.dtype)?;
        let Some(size) = PREFILL_DIMS.iter().position(|&dim| head_dim <= dim) else {
            bail!("there is no kernel for heads of {head_dim} dimensions");
        };
        let group = heads / kv_heads;
        let launch = Launch {
            file: "paged_prefill",
            kernel: PREFILL[size][types],
            grid: [
                (rows.longest * group).div_ceil(PREFILL_QUERIES) as u32,
                kv_heads as u32,
                rows.count as u32,
            ],
            threads: DECODE_THREADS,
            shared_bytes: 0,
        };
        let arguments = [
            y.into(),
            query.into(),
            (&self.keys).into(),
            (&self.values).into(),
            Argument::Address(rows.first_tokens),
            Argument::Address(rows.first_positions),
            Argument::Address(rows.lengths),
            Argument::Address(rows.tables),
            (self.rows.table_stride as i32).into(),
            (heads as i32).into(),
            (kv_heads as i32).into(),
            (head_dim as i32).into(),
            (self.block_size as i32).into(),
            self.window().into(),
            scale.into(),
            softcap.unwrap_or(0.0).into(),
        ];
        // SAFETY: as for single queries; runs follow each other in the step, as `PagedRows` has them.
        unsafe { launch.run(self.device, &arguments) }
    }
}

/// Whether the kernels do heads like these.
pub(super) fn check_heads(head_dim: usize) -> Result<()> {
    if !head_dim.is_multiple_of(DIM_PART) || head_dim > MAX_DIM {
        bail!(
            "attention on a device takes heads of a multiple of {DIM_PART} dimensions up to \
             {MAX_DIM}; this model's have {head_dim}"
        );
    }
    Ok(())
}

/// What a step's kernels know of its rows, in device memory. Addresses are into `memory`.
#[derive(Debug)]
pub(super) struct DeviceRows {
    _memory: Tensor,
    tokens: usize,
    /// Blocks of a row of a table.
    table_stride: usize,
    /// Position of each token.
    positions: u64,
    /// Where each token goes in the cache: `block · block_size + place`.
    slots: u64,
    singles: Option<Singles>,
    runs: Option<Runs>,
    /// By the address of the `Rope`, which outlives the step.
    angles: Mutex<Vec<(usize, CudaSlice<f32>)>>,
}

/// Tokens that attend one by one.
#[derive(Debug)]
struct Singles {
    count: usize,
    /// Keys of the longest context.
    longest: usize,
    /// Which token of the step each is.
    tokens: u64,
    /// Keys of each one's sequence, its own among them.
    contexts: u64,
    /// `[count, table_stride]`
    tables: u64,
}

/// Runs of tokens of one sequence each.
#[derive(Debug)]
struct Runs {
    count: usize,
    /// Tokens of the longest.
    longest: usize,
    first_tokens: u64,
    first_positions: u64,
    lengths: u64,
    /// `[count, table_stride]`
    tables: u64,
}

impl DeviceRows {
    /// With `runs`, several tokens of a sequence attend together; without, each one by one.
    pub fn upload(rows: &PagedRows, runs: bool, device: &CudaDevice) -> Result<Arc<Self>> {
        let (tokens, block_size) = (rows.tokens(), rows.block_size());
        if tokens > MAX_ROWS {
            bail!("a step on a device has at most {MAX_ROWS} tokens, not {tokens}");
        }
        let table_stride = rows.end_position().div_ceil(block_size.max(1)).max(1);
        let mut list = List::default();
        let positions = list.add(rows.token_positions().map(|position| position as u32));
        let slots = list.add(rows.iter().flat_map(|row| {
            (row.first_position..row.first_position + row.tokens).map(move |position| {
                let block = row.blocks[position / block_size] as usize;
                (block * block_size + position % block_size) as u32
            })
        }));

        let one_by_one = |row: &RowView<'_>| !runs || row.tokens == 1;
        let singles: Vec<(RowView<'_>, usize)> = rows
            .iter()
            .filter(one_by_one)
            .flat_map(|row| (0..row.tokens).map(move |token| (row, token)))
            .collect();
        let context = |(row, token): &(RowView<'_>, usize)| row.first_position + token + 1;
        let singles = (!singles.is_empty()).then(|| Singles {
            count: singles.len(),
            longest: singles.iter().map(context).max().unwrap_or(0),
            tokens: list.add(
                singles
                    .iter()
                    .map(|(row, token)| (row.first_token + token) as u32),
            ),
            contexts: list.add(singles.iter().map(|single| context(single) as u32)),
            tables: list.add_tables(singles.iter().map(|(row, _)| row), table_stride),
        });

        let several: Vec<RowView<'_>> = rows
            .iter()
            .filter(|row| !one_by_one(row) && row.tokens > 0)
            .collect();
        let runs = (!several.is_empty()).then(|| Runs {
            count: several.len(),
            longest: several.iter().map(|row| row.tokens).max().unwrap_or(0),
            first_tokens: list.add(several.iter().map(|row| row.first_token as u32)),
            first_positions: list.add(several.iter().map(|row| row.first_position as u32)),
            lengths: list.add(several.iter().map(|row| row.tokens as u32)),
            tables: list.add_tables(several.iter(), table_stride),
        });

        let [memory] = upload(device, [&list.values])?;
        let start = weight(&memory, list.values.len(), DType::U32, "rows")?.address();
        let mut made = Self {
            tokens,
            table_stride,
            positions,
            slots,
            singles,
            runs,
            angles: Mutex::default(),
            _memory: memory,
        };
        made.place_at(start);
        Ok(Arc::new(made))
    }

    /// Makes addresses of offsets.
    fn place_at(&mut self, start: u64) {
        let offsets = [&mut self.positions, &mut self.slots];
        let singles = self.singles.iter_mut();
        let singles = singles.flat_map(|s| [&mut s.tokens, &mut s.contexts, &mut s.tables]);
        let runs = self.runs.iter_mut().flat_map(|r| {
            [
                &mut r.first_tokens,
                &mut r.first_positions,
                &mut r.lengths,
                &mut r.tables,
            ]
        });
        for offset in offsets.into_iter().chain(singles).chain(runs) {
            *offset += start;
        }
    }

    /// Cosines and sines for all tokens of the step, computed once for all layers with this `rope`.
    fn angles(&self, rope: &Rope, device: &CudaDevice) -> Result<u64> {
        let name = std::ptr::from_ref(rope).addr();
        let mut angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        let address = |slice: &CudaSlice<f32>| slice.device_ptr(slice.stream()).0;
        if let Some((_, found)) = angles.iter().find(|(found, _)| *found == name) {
            return Ok(address(found));
        }
        let pairs = rope.rotary_dims() / 2;
        let frequencies = rope.frequencies_on(device)?;
        let frequencies = weight(frequencies, pairs, DType::F32, "rope's frequencies")?;
        // SAFETY: the kernel writes all of it.
        let made = unsafe { device.alloc::<f32>(self.tokens * 2 * pairs)? };
        let launch = Launch {
            file: "rope",
            kernel: "ferry_rope_angles",
            grid: [
                (self.tokens * pairs).div_ceil(ROPE_THREADS as usize) as u32,
                1,
                1,
            ],
            threads: ROPE_THREADS,
            shared_bytes: 0,
        };
        let arguments = [
            Argument::Address(address(&made)),
            Argument::Address(self.positions),
            (&frequencies).into(),
            rope.magnitude().into(),
            (self.tokens as i32).into(),
            (pairs as i32).into(),
        ];
        // SAFETY: there is a position for each token, a frequency for each pair, and room for both
        // of each token's.
        unsafe { launch.run(device, &arguments)? };
        let found = address(&made);
        angles.push((name, made));
        Ok(found)
    }
}

/// What goes to the device in one copy, list after list.
#[derive(Default)]
struct List {
    values: Vec<u32>,
}

impl List {
    /// Gives the offset of what is added, in bytes.
    fn add(&mut self, values: impl Iterator<Item = u32>) -> u64 {
        let offset = size_of_val(&self.values[..]) as u64;
        self.values.extend(values);
        offset
    }

    /// As many blocks of each row, whatever its own number.
    fn add_tables<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a RowView<'a>>,
        stride: usize,
    ) -> u64 {
        let offset = size_of_val(&self.values[..]) as u64;
        for row in rows {
            let used = row.blocks.len().min(stride);
            self.values.extend_from_slice(&row.blocks[..used]);
            self.values.resize(self.values.len() + stride - used, 0);
        }
        offset
    }
}
