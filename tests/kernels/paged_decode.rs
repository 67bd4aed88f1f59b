//! `kernels/paged_decode.cu` against `ferry::ops::PagedAttention`.

use super::agreement::Agreement;
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order, source};
use super::paged::{Batch, Case};

const THREADS: u32 = 128;
const REDUCE_THREADS: u32 = 128;

/// Names of the kernels' types: of q and y, of the cache.
const TYPES: [(&str, Number, Number); 5] = [
    ("f32_f32", Number::F32, Number::F32),
    ("f32_f16", Number::F32, Number::F16),
    ("f32_bf16", Number::F32, Number::Bf16),
    ("f16_f16", Number::F16, Number::F16),
    ("bf16_bf16", Number::Bf16, Number::Bf16),
];

fn run(
    emulator: &Emulator,
    (types, number, cache): (&str, Number, Number),
    case: &Case,
    batch: &Batch,
    span: usize,
    order: Order,
) -> Result<Vec<f32>, String> {
    let Case { heads, dim, .. } = *case;
    let group = heads / case.kv_heads;
    let g = [1, 2, 4, 8].into_iter().find(|&g| g >= group).unwrap_or(8);
    let rows = case.rows.len();
    let contexts: Vec<u32> = (case.rows.iter())
        .map(|(past, new)| if *new == 0 { 0 } else { *past as u32 + 1 })
        .collect();
    let longest = contexts.iter().copied().max().unwrap_or(0) as usize;
    let spans = longest.div_ceil(span);
    // Rows that are not there share a place behind the others.
    let mut tokens = Vec::new();
    for (_, new) in &case.rows {
        let before = tokens.iter().filter(|&&t| t < case.tokens() as u32).count();
        tokens.push(if *new == 0 { case.tokens() } else { before } as u32);
    }
    let places = case.tokens() + 1;
    let mut q = batch.q.clone();
    q.resize(places * heads * dim, f32::NAN);

    let y = Buffer::output("y", number, places * heads * dim);
    let sums = Buffer::output("sums", Number::F32, rows * heads * spans * dim);
    let softmax = Buffer::output("softmax", Number::F32, rows * heads * spans * 2);
    let q = Buffer::numbers("q", number, &q);
    let keys = Buffer::numbers("keys", cache, &batch.keys);
    let values = Buffer::numbers("values", cache, &batch.values);
    let tokens = Buffer::indices("tokens", &tokens);
    let contexts = Buffer::indices("contexts", &contexts);
    let tables = Buffer::indices("tables", &batch.tables);
    let window = case.window.unwrap_or(0) as i32;
    let width = case.kv_heads * group.div_ceil(g);
    let partial = |buffer| {
        if spans == 1 {
            Argument::Null
        } else {
            Argument::Buffer(buffer)
        }
    };
    emulator.launch(
        &format!("ferry_paged_decode_g{g}_{types}"),
        Launch::new([width as u32, spans as u32, rows as u32], THREADS),
        order,
        &[
            Argument::Buffer(&y),
            partial(&sums),
            partial(&softmax),
            Argument::Buffer(&q),
            Argument::Buffer(&keys),
            Argument::Buffer(&values),
            Argument::Buffer(&tokens),
            Argument::Buffer(&contexts),
            Argument::Buffer(&tables),
            Argument::I32(batch.table_stride as i32),
            Argument::I32(heads as i32),
            Argument::I32(case.kv_heads as i32),
            Argument::I32(dim as i32),
            Argument::I32(case.block_size as i32),
            Argument::I32(span as i32),
            Argument::I32(window),
            Argument::F32(batch.scale),
            Argument::F32(case.softcap.unwrap_or(0.0)),
        ],
    )?;
    if spans > 1 {
        emulator.launch(
            &format!("ferry_paged_decode_reduce_{}", number.name()),
            Launch::new([heads as u32, rows as u32, 1], REDUCE_THREADS),
            order,
            &[
                Argument::Buffer(&y),
                Argument::Buffer(&sums),
                Argument::Buffer(&softmax),
                Argument::Buffer(&tokens),
                Argument::Buffer(&contexts),
                Argument::I32(heads as i32),
                Argument::I32(dim as i32),
                Argument::I32(span as i32),
                Argument::I32(window),
                Argument::I32(spans as i32),
            ],
        )?;
    }
    let mut y = y.to_floats(number);
    let absent = y.split_off(case.tokens() * heads * dim);
    if case.rows.iter().any(|row| row.1 == 0) {
        assert!(absent.iter().all(|&y| y.abs() <= 0.0), "an absent row is 0");
    }
    Ok(y)
}

/// Groups of 1 to 9 heads, dimensions of whole and of no whole warps, contexts about a tile and over
/// many spans, blocks of odd sizes, windows that begin within tiles, a row that is not there.
fn cases() -> Vec<(Case, usize)> {
    let case = |heads, kv_heads, dim, block_size, window, softcap, contexts: &[usize]| Case {
        heads,
        kv_heads,
        dim,
        block_size,
        window,
        softcap,
        rows: contexts
            .iter()
            .map(|&n| if n == 0 { (0, 0) } else { (n - 1, 1) })
            .collect(),
    };
    vec![
        (case(4, 4, 64, 16, None, None, &[1, 31, 32, 33, 200]), 256),
        (case(4, 2, 80, 16, None, None, &[300, 0, 5]), 64),
        (case(9, 3, 64, 16, Some(50), None, &[70, 300, 12]), 128),
        (case(8, 1, 128, 32, None, Some(7.0), &[150, 513]), 256),
        (case(9, 1, 8, 9, Some(33), Some(3.0), &[100, 9]), 32),
        (case(4, 1, 256, 8, Some(100), None, &[260]), 64),
    ]
}

#[test]
fn paged_decode_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("paged_decode") else {
        return;
    };
    for types in TYPES {
        let kernel = format!("ferry_paged_decode_{}", types.0);
        let mut agreement = Agreement::new(&kernel, types.1, 3e-6, 1.02);
        for (case, span) in cases() {
            let batch = case.batch(types.2);
            let name = format!("{}/{} of {}", case.heads, case.kv_heads, case.dim);
            agreement.check(&name, &batch.expected, |order| {
                run(&emulator, types, &case, &batch, span, order)
                    .unwrap_or_else(|error| panic!("{error}"))
            });
        }
    }
}

#[test]
fn a_decoded_row_does_not_depend_on_its_batch() {
    let Some(emulator) = Emulator::of("paged_decode") else {
        return;
    };
    let (mut case, span) = cases().swap_remove(2);
    let mut batch = case.batch(Number::F16);
    let types = TYPES[3];
    let together = run(&emulator, types, &case, &batch, span, Order::Forward);
    let together = together.expect("the batch is decoded");
    // The last row alone.
    let width = case.heads * case.dim;
    case.rows.drain(..2);
    batch.q.drain(..2 * width);
    batch.tables.drain(..2 * batch.table_stride);
    let alone = run(&emulator, types, &case, &batch, span, Order::Forward);
    assert_eq!(alone.as_deref(), Ok(&together[2 * width..]));
}

#[test]
fn bugs_planted_in_paged_decode_are_caught() {
    for (from, to, what) in [
        ("__syncwarp();", "", "race at weights"),
        ("__syncthreads();", "", "race at shared"),
        (
            "min(max(tile + lane, begin), end - 1)",
            "tile + lane",
            "out of bounds",
        ),
    ] {
        let original = source("paged_decode");
        assert!(original.contains(from), "{from}");
        let planted = original.replacen(from, to, 1);
        let Some(emulator) = Emulator::of_source("paged_decode", &planted) else {
            return;
        };
        let (case, span) = cases().swap_remove(0);
        let batch = case.batch(Number::F16);
        let result = run(&emulator, TYPES[3], &case, &batch, span, Order::Forward);
        let error = result.expect_err("the planted bug is seen");
        assert!(error.contains(what), "{error}");
        println!("caught: {error}");
    }
}
