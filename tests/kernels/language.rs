//! The words of CUDA that the emulation knows mean what they mean on a device: numbers, shuffles,
//! votes, atomics, and which of them order memory.

use half::{bf16, f16};

use super::agreement::Random;
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

/// Runs `kernel` of a source, one block of a warp, or as many as `grid` says.
fn run(
    body: &str,
    grid: u32,
    threads: u32,
    order: Order,
    arguments: &[Argument],
) -> Option<Result<(), String>> {
    let source = format!("#include \"fragments.cuh\"\n{body}\nFERRY_KERNEL(word, 0);\n");
    let emulator = Emulator::of_source("word", &source)?;
    Some(emulator.launch("word", Launch::new([grid, 1, 1], threads), order, arguments))
}

#[test]
fn conversions_to_and_from_16_bits_round_as_ieee_says() {
    const BODY: &str = r#"
extern "C" __global__ void word(const unsigned *bits, unsigned *to, unsigned *from, unsigned *bfrom, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        __half half = __float2half_rn(__uint_as_float(bits[i]));
        to[i] = __half_as_ushort(half);
        from[i] = __float_as_uint(__half2float(__ushort_as_half(bits[i] >> 16)));
        float rounded = __bfloat162float(__float2bfloat16_rn(__uint_as_float(bits[i])));
        bfrom[i] = __float_as_uint(rounded);
    }
}"#;
    // Every 16-bit number, exact, and next to a tie; and any 32 bits.
    let mut random = Random::new(5);
    let mut bits: Vec<u32> = (0..=u16::MAX)
        .flat_map(|half| {
            let exact = f16::from_bits(half).to_f32().to_bits();
            [
                exact,
                exact ^ 0x1000,
                exact ^ 0x1001,
                u32::from(half) << 16 | 0x8000,
            ]
        })
        .collect();
    bits.extend((0..10_000).map(|_| random.next() as u32));
    let input = Buffer::indices("bits", &bits);
    let [to, from, bfrom] =
        ["to", "from", "bfrom"].map(|name| Buffer::indices(name, &vec![0; bits.len()]));
    let arguments = [
        Argument::Buffer(&input),
        Argument::Buffer(&to),
        Argument::Buffer(&from),
        Argument::Buffer(&bfrom),
        Argument::I32(bits.len() as i32),
    ];
    let Some(result) = run(BODY, 1, 64, Order::Forward, &arguments) else {
        return;
    };
    result.unwrap_or_else(|error| panic!("{error}"));
    let [to, from, bfrom] = [to, from, bfrom].map(|buffer| words(&buffer));
    for (i, &bits) in bits.iter().enumerate() {
        let value = f32::from_bits(bits);
        if value.is_nan() {
            assert!(f16::from_bits(to[i] as u16).is_nan() && f32::from_bits(bfrom[i]).is_nan());
        } else {
            assert_eq!(to[i] as u16, f16::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(
                bfrom[i],
                bf16::from_f32(value).to_f32().to_bits(),
                "{value:e}"
            );
        }
        let half = f16::from_bits((bits >> 16) as u16).to_f32();
        let got = f32::from_bits(from[i]);
        assert!(got.to_bits() == half.to_bits() || (got.is_nan() && half.is_nan()));
    }
}

#[test]
fn shuffles_and_votes_give_what_a_warp_gives() {
    const BODY: &str = r#"
extern "C" __global__ void word(const unsigned *x, unsigned *y) {
    unsigned lane = threadIdx.x % 32, v = x[threadIdx.x], *to = y + threadIdx.x * 12;
    to[0] = __shfl_sync(~0u, v, 5);
    to[1] = __shfl_xor_sync(~0u, v, 3);
    to[2] = __shfl_down_sync(~0u, v, 4, 8);
    to[3] = __shfl_up_sync(~0u, v, 1);
    to[4] = __ballot_sync(~0u, v % 3 == 0);
    to[5] = __any_sync(~0u, v == 999) * 2 + __all_sync(~0u, v < 999);
    to[6] = __match_any_sync(~0u, v % 4);
    to[7] = __reduce_add_sync(~0u, v);
    to[8] = __reduce_max_sync(~0u, int(v) - 500);
    to[9] = lane < 8 ? __shfl_sync(0xffu, v, 2) : __shfl_sync(~0xffu, v, 9);
    to[10] = __byte_perm(v, 0x04030201, 0x6541);
    to[11] = __dp4a(int(v | 0xff00), int(0x00000302), 1);
}"#;
    let x = Random::new(6).indices(64, 900);
    let input = Buffer::indices("x", &x);
    for order in Order::ALL {
        let y = Buffer::indices("y", &[0; 64 * 12]);
        let arguments = [Argument::Buffer(&input), Argument::Buffer(&y)];
        let Some(result) = run(BODY, 1, 64, order, &arguments) else {
            return;
        };
        result.unwrap_or_else(|error| panic!("{error}"));
        let y = words(&y);
        for thread in 0..64 {
            let (first, lane) = (thread / 32 * 32, thread % 32);
            let warp = &x[first..first + 32];
            let v = warp[lane];
            let mask = |is: &dyn Fn(u32) -> bool| {
                (0..32).fold(0u32, |mask, i| mask | u32::from(is(warp[i])) << i)
            };
            let down = if lane % 8 + 4 < 8 { lane + 4 } else { lane };
            let expected = [
                warp[5],
                warp[lane ^ 3],
                warp[down],
                warp[lane.saturating_sub(1)],
                mask(&|v| v % 3 == 0),
                1,
                mask(&|other| other % 4 == v % 4),
                warp.iter().sum(),
                (*warp.iter().max().expect("32 lanes")).wrapping_sub(500),
                if lane < 8 { warp[2] } else { warp[9] },
                (v >> 8 & 0xff) | 0x0002_0100 | 0x0300_0000,
                (1 + i32::from(v as i8) * 2 - 3).cast_unsigned(),
            ];
            assert_eq!(
                y[thread * 12..][..12],
                expected,
                "thread {thread}, {order:?}"
            );
        }
    }
}

#[test]
fn a_shuffle_from_a_lane_outside_of_the_mask_and_a_missing_lane_are_errors() {
    for (body, what) in [
        (
            "if (threadIdx.x < 16) y[0] = __shfl_sync(0xffffu, 1, 20);",
            "not in mask",
        ),
        (
            "if (threadIdx.x < 16) y[0] = __shfl_sync(~0u, 1, 2);",
            "has ended",
        ),
        (
            "if (threadIdx.x < 16) __syncthreads(); else __syncwarp();",
            "don't come",
        ),
    ] {
        let source = format!("extern \"C\" __global__ void word(int *y) {{ {body} (void)y; }}");
        let y = Buffer::indices("y", &[0]);
        let order = Order::Reverse;
        let Some(result) = run(&source, 1, 32, order, &[Argument::Buffer(&y)]) else {
            return;
        };
        let error = result.expect_err("lanes that don't meet are an error");
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn within_a_warp_a_syncwarp_orders_memory_and_a_shuffle_does_not() {
    for (order_by, is_ordered) in [
        ("__syncwarp();", true),
        ("__shfl_sync(~0u, 1, 0);", false),
        ("__syncthreads();", true),
    ] {
        let body = format!(
            "extern \"C\" __global__ void word(int *y) {{
                SHARED_ARRAY(int, values, [32]);
                values[threadIdx.x] = threadIdx.x;
                {order_by}
                y[threadIdx.x] = values[31 - threadIdx.x];
            }}"
        );
        for order in Order::ALL {
            let y = Buffer::indices("y", &[0; 32]);
            let Some(result) = run(&body, 1, 32, order, &[Argument::Buffer(&y)]) else {
                return;
            };
            match result {
                Ok(()) => assert!(is_ordered && words(&y)[0] == 31, "{order_by}"),
                Err(error) => assert!(!is_ordered && error.contains("race"), "{error}"),
            }
        }
    }
}

#[test]
fn atomics_do_not_race_among_themselves_but_with_plain_accesses() {
    for (body, races) in [
        ("atomicAdd(&y[0], 1.0f);", false),
        (
            "atomicAdd(&y[0], 1.0f); if (threadIdx.x == 3) y[0] = 0.0f;",
            true,
        ),
        ("y[0] += 1.0f;", true),
    ] {
        let source = format!("extern \"C\" __global__ void word(float *y) {{ {body} }}");
        for order in Order::ALL {
            let y = Buffer::floats("y", &[0.0]);
            let Some(result) = run(&source, 3, 64, order, &[Argument::Buffer(&y)]) else {
                return;
            };
            assert_eq!(result.is_err(), races, "{body} {order:?}: {result:?}");
            if !races {
                assert_eq!(y.to_floats(Number::F32), [192.0]);
            }
        }
    }
}

#[test]
fn the_last_block_may_read_what_the_others_wrote_before_their_fence() {
    const BODY: &str = r#"
extern "C" __global__ void word(float *parts, unsigned *done, float *y) {
    if (threadIdx.x > 0) return;
    parts[blockIdx.x] = float(blockIdx.x);
    __threadfence();
    if (atomicInc(done, gridDim.x - 1) < gridDim.x - 1) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += parts[i];
    *y = sum;
}"#;
    for order in Order::ALL {
        let parts = Buffer::output("parts", Number::F32, 5);
        let done = Buffer::indices("done", &[0]);
        let y = Buffer::output("y", Number::F32, 1);
        let arguments = [&parts, &done, &y].map(Argument::Buffer);
        let Some(result) = run(BODY, 5, 32, order, &arguments) else {
            return;
        };
        assert_eq!((result, y.to_floats(Number::F32)), (Ok(()), vec![10.0]));
    }
}

#[test]
fn a_matrix_product_of_fragments_is_the_product_of_the_matrices() {
    // A [16, 16] and B [16, 8] through shared memory; D twice, B once transposed and once not.
    const BODY: &str = r#"
extern "C" __global__ void word(const __half *a, const __half *b, const __half *bt, float *d) {
    SHARED_ARRAY(__half, as, [16][16]);
    SHARED_ARRAY(__half, bs, [16][8]);
    SHARED_ARRAY(__half, bts, [8][16]);
    int lane = threadIdx.x;
    ferry::copy_async(&as[lane / 2][lane % 2 * 8], a + lane * 8, true);
    if (lane < 16) ferry::copy_async(&bs[lane][0], b + lane * 8, true);
    if (lane < 16) ferry::copy_async(&bts[lane / 2][lane % 2 * 8], bt + lane * 8, true);
    ferry::commit_copies();
    ferry::wait_for_copies<0>();
    __syncthreads();
    unsigned fa[4], fb[4], ft[4];
    ferry::load_matrices<false>(fa, &as[lane % 16][lane / 16 * 8]);
    ferry::load_matrices<true>(fb, &bs[lane % 16][0]);
    ferry::load_matrices<false>(ft, &bts[lane % 8][lane / 8 % 2 * 8]);
    for (int way = 0; way < 2; way++) {
        float sums[4] = {0, 0, 0, 0};
        unsigned right[2] = {way ? ft[0] : fb[0], way ? ft[1] : fb[1]};
        ferry::multiply_add<__half>(sums, fa, right);
        for (int i = 0; i < 4; i++)
            d[way * 128 + (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
}"#;
    let mut random = Random::new(7);
    let a = Number::F16.round(&random.values(256, 1.0));
    let b = Number::F16.round(&random.values(128, 1.0));
    let transposed: Vec<f32> = (0..128).map(|i| b[i % 16 * 8 + i / 16]).collect();
    let inputs = [("a", &a), ("b", &b), ("bt", &transposed)]
        .map(|(name, values)| Buffer::numbers(name, Number::F16, values));
    let d = Buffer::output("d", Number::F32, 256);
    let [a_buffer, b_buffer, t_buffer] = &inputs;
    let arguments = [a_buffer, b_buffer, t_buffer, &d].map(Argument::Buffer);
    for order in Order::ALL {
        let Some(result) = run(BODY, 1, 32, order, &arguments) else {
            return;
        };
        result.unwrap_or_else(|error| panic!("{error}"));
        for (i, got) in d.to_floats(Number::F32).into_iter().enumerate() {
            let (row, column) = (i % 128 / 8, i % 8);
            let want: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
            assert!(
                (got - want).abs() < 1e-5,
                "{row}, {column}: {got}, not {want}"
            );
        }
    }
}

/// The values of a buffer of u32.
fn words(buffer: &Buffer) -> Vec<u32> {
    let bytes = buffer.to_bytes();
    let words = bytes.chunks_exact(4);
    words
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}
