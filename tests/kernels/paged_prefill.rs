//! `kernels/paged_prefill.cu` against `ferry::ops::PagedAttention`.

use super::agreement::Agreement;
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order, source};
use super::paged::{Batch, Case};

const THREADS: u32 = 128;
const QUERIES: usize = 64;

/// Names of the kernels' types: of q and y, of the cache.
const TYPES: [(&str, Number, Number); 4] = [
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
    order: Order,
) -> Result<Vec<f32>, String> {
    let Case { heads, dim, .. } = *case;
    let group = heads / case.kv_heads;
    let d = [64, 128, 256]
        .into_iter()
        .find(|&d| d >= dim)
        .expect("a kernel for the dimension");
    let longest = case.rows.iter().map(|row| row.1).max().unwrap_or(0);
    let mut first_tokens = Vec::new();
    let mut tokens = 0;
    for (_, new) in &case.rows {
        first_tokens.push(tokens as u32);
        tokens += new;
    }
    let of_rows = |value: fn(&(usize, usize)) -> usize| -> Vec<u32> {
        case.rows.iter().map(|row| value(row) as u32).collect()
    };
    let y = Buffer::output("y", number, tokens * heads * dim);
    let q = Buffer::numbers("q", number, &batch.q);
    let keys = Buffer::numbers("keys", cache, &batch.keys);
    let values = Buffer::numbers("values", cache, &batch.values);
    let first_tokens = Buffer::indices("first_tokens", &first_tokens);
    let first_positions = Buffer::indices("first_positions", &of_rows(|row| row.0));
    let lengths = Buffer::indices("lengths", &of_rows(|row| row.1));
    let tables = Buffer::indices("tables", &batch.tables);
    let tiles = (longest * group).div_ceil(QUERIES);
    let grid = [tiles as u32, case.kv_heads as u32, case.rows.len() as u32];
    emulator.launch(
        &format!("ferry_paged_prefill_d{d}_{types}"),
        Launch::new(grid, THREADS),
        order,
        &[
            Argument::Buffer(&y),
            Argument::Buffer(&q),
            Argument::Buffer(&keys),
            Argument::Buffer(&values),
            Argument::Buffer(&first_tokens),
            Argument::Buffer(&first_positions),
            Argument::Buffer(&lengths),
            Argument::Buffer(&tables),
            Argument::I32(batch.table_stride as i32),
            Argument::I32(heads as i32),
            Argument::I32(case.kv_heads as i32),
            Argument::I32(dim as i32),
            Argument::I32(case.block_size as i32),
            Argument::I32(case.window.unwrap_or(0) as i32),
            Argument::F32(batch.scale),
            Argument::F32(case.softcap.unwrap_or(0.0)),
        ],
    )?;
    Ok(y.to_floats(number))
}

/// Groups of 1 to 9 heads, runs of one token to several tiles, with a past and without, dimensions
/// below each D, blocks of odd sizes, windows shorter than a tile and longer, an empty row.
fn cases() -> Vec<Case> {
    let case = |heads, kv_heads, dim, block_size, window, softcap, rows: &[(usize, usize)]| Case {
        heads,
        kv_heads,
        dim,
        block_size,
        window,
        softcap,
        rows: rows.to_vec(),
    };
    vec![
        case(
            2,
            2,
            64,
            16,
            None,
            None,
            &[(0, 70), (3, 1), (0, 0), (60, 5)],
        ),
        case(4, 2, 40, 9, None, Some(4.0), &[(130, 33), (0, 2)]),
        case(9, 1, 64, 16, Some(20), None, &[(50, 17), (0, 9)]),
        case(3, 1, 128, 8, Some(90), None, &[(100, 30)]),
        case(2, 1, 96, 16, None, None, &[(7, 40)]),
        case(4, 1, 256, 16, Some(50), Some(6.0), &[(65, 20), (0, 3)]),
    ]
}

#[test]
fn paged_prefill_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("paged_prefill") else {
        return;
    };
    for types in TYPES {
        let kernel = format!("ferry_paged_prefill_{}", types.0);
        // The weights are rounded to the cache's type before the values are summed.
        let weights = types.2.rounding() * 1.5;
        let mut agreement = Agreement::new(&kernel, types.1, weights, 1.02);
        for case in cases() {
            let batch = case.batch(types.2);
            let name = format!("{}/{} of {}", case.heads, case.kv_heads, case.dim);
            agreement.check(&name, &batch.expected, |order| {
                run(&emulator, types, &case, &batch, order)
                    .unwrap_or_else(|error| panic!("{error}"))
            });
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_chunk_it_comes_in() {
    let Some(emulator) = Emulator::of("paged_prefill") else {
        return;
    };
    for mut case in cases() {
        let mut batch = case.batch(Number::F16);
        let types = TYPES[2];
        let whole = run(&emulator, types, &case, &batch, Order::Forward);
        let whole = whole.expect("the chunk is computed");
        // The first row without its first tokens.
        let left_out = case.rows[0].1 / 3;
        case.rows[0].0 += left_out;
        case.rows[0].1 -= left_out;
        let width = case.heads * case.dim;
        batch.q.drain(..left_out * width);
        let part = run(&emulator, types, &case, &batch, Order::Forward);
        assert_eq!(part.as_deref(), Ok(&whole[left_out * width..]));
    }
}

#[test]
fn bugs_planted_in_paged_prefill_are_caught() {
    for (from, to, what) in [
        ("__syncthreads(); // K is here", "//", "race at"),
        ("__syncthreads(); // V is here", "//", "race at"),
        (
            "const bool seen = position >= source.begin && position < source.end;",
            "const bool seen = true;",
            "out of bounds",
        ),
    ] {
        let original = source("paged_prefill");
        assert!(original.contains(from), "{from}");
        let planted = original.replacen(from, to, 1);
        let Some(emulator) = Emulator::of_source("paged_prefill", &planted) else {
            return;
        };
        let case = cases().swap_remove(0);
        let batch = case.batch(Number::F16);
        let result = run(&emulator, TYPES[2], &case, &batch, Order::Forward);
        let error = result.expect_err("the planted bug is seen");
        assert!(error.contains(what), "{error}");
        println!("caught: {error}");
    }
}
