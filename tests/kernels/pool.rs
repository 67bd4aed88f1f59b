//! `kernels/pool.cu` against `ferry::ops::Pool`.

use ferry::ops::{Pool, Pooling};

use super::agreement::{Agreement, Random, cu_seqlens, indices, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

const THREADS: u32 = 256;
/// In the order of their numbers.
const POOLINGS: [Pooling; 3] = [Pooling::Mean, Pooling::Cls, Pooling::Last];

fn run(
    emulator: &Emulator,
    number: Number,
    (pooling, dimension, normalize): (usize, usize, bool),
    (x, hidden): (&[f32], usize),
    ends: &[u32],
    order: Order,
) -> Vec<f32> {
    let rows = ends.len() - 1;
    let x = Buffer::numbers("x", number, x);
    let y = Buffer::output("y", Number::F32, rows * dimension);
    let ends = Buffer::indices("cu_seqlens", ends);
    let arguments = [
        Argument::Buffer(&y),
        Argument::Buffer(&x),
        Argument::Buffer(&ends),
        Argument::I32(hidden as i32),
        Argument::I32(dimension as i32),
        Argument::I32(pooling as i32),
        Argument::I32(normalize.into()),
    ];
    let kernel = format!("ferry_pool_{}", number.name());
    let launch = Launch::new([rows as u32, 1, 1], THREADS);
    emulator.run(&kernel, launch, order, &arguments);
    y.to_floats(Number::F32)
}

#[test]
fn pool_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("pool") else {
        return;
    };
    let lengths = [1, 9, 70, 2];
    let ends = cu_seqlens(&lengths);
    let tokens = lengths.iter().sum::<usize>();
    for number in Number::ALL {
        let kernel = format!("ferry_pool_{}", number.name());
        // Both sums are f32, in different orders.
        let mut agreement = Agreement::new(&kernel, Number::F32, 1e-6, 1.0);
        for hidden in [1, 33, 384, 1040] {
            let x = number.round(&Random::new(13).values(tokens * hidden, 2.0));
            for (code, pooling) in POOLINGS.into_iter().enumerate() {
                for dimension in [hidden, hidden.div_ceil(3)] {
                    for normalize in [false, true] {
                        let op = Pool {
                            pooling,
                            dimension: Some(dimension),
                            normalize,
                        };
                        let expected = op
                            .apply(&tensor(&x, (tokens, hidden)), &indices(&ends))
                            .expect("the CPU op runs");
                        let name = format!("{op:?} of {hidden}");
                        let how = (code, dimension, normalize);
                        agreement.check(&name, &values(&expected), |order| {
                            run(&emulator, number, how, (&x, hidden), &ends, order)
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn pool_of_zeros_is_zero_and_of_nothing_or_nan_is_nan() {
    let Some(emulator) = Emulator::of("pool") else {
        return;
    };
    let mut x = [0f32; 24];
    x[16] = f32::NAN;
    for code in 0..POOLINGS.len() {
        let how = (code, 8, true);
        let ends = [0, 2, 2, 3];
        let y = run(&emulator, Number::F32, how, (&x, 8), &ends, Order::Forward);
        assert_eq!(y[..8], [0.0; 8]);
        assert!(y[8..].iter().all(|y| y.is_nan()), "{code}: {y:?}");
    }
}
