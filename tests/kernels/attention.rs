//! `kernels/attention.cu` against `ferry::ops::Attention`.

use ferry::ops::Attention;

use super::agreement::{Agreement, Random, cu_seqlens, indices, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

const THREADS: u32 = 128;

/// Heads, their dimension, and the batch they attend in.
struct Case<'a> {
    number: Number,
    lengths: &'a [usize],
    heads: usize,
    dim: usize,
}

impl Case<'_> {
    fn run(
        &self,
        emulator: &Emulator,
        qkv: &[f32],
        bias: Option<&[f32]>,
        order: Order,
    ) -> Vec<f32> {
        let Self {
            number,
            lengths,
            heads,
            dim,
        } = *self;
        let columns = [32, 64, 128].into_iter().find(|&columns| dim <= columns);
        let columns = columns.expect("a dimension that there is a kernel for");
        let queries = match (number, columns) {
            (Number::F32, 128) => 32,
            _ => 64,
        };
        let hidden = heads * dim;
        let y = Buffer::output("y", number, qkv.len() / 3);
        let qkv = Buffer::numbers("qkv", number, qkv);
        let bias = bias.map(|bias| Buffer::floats("bias", bias));
        let ends = Buffer::indices("cu_seqlens", &cu_seqlens(lengths));
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let grid = [
            longest.div_ceil(queries) as u32,
            heads as u32,
            lengths.len() as u32,
        ];
        let arguments = [
            Argument::Buffer(&y),
            Argument::Buffer(&qkv),
            bias.as_ref().map_or(Argument::Null, Argument::Buffer),
            Argument::Buffer(&ends),
            Argument::I32(hidden as i32),
            Argument::I32(dim as i32),
        ];
        let kernel = format!("ferry_attention_{}_d{columns}", number.name());
        emulator.run(&kernel, Launch::new(grid, THREADS), order, &arguments);
        y.to_floats(number)
    }
}

#[test]
fn attention_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("attention") else {
        return;
    };
    // Rows around a tile's 64 (f32: 32) keys and 64 queries; dimensions of models, and odd ones.
    let batches: [(&[usize], usize, usize); 10] = [
        (&[1], 1, 1),
        (&[0, 1, 0, 2], 2, 3),
        (&[5], 3, 16),
        (&[16, 17, 8, 9, 1], 2, 32),
        (&[31, 32, 33, 65], 1, 20),
        (&[63, 64], 1, 32),
        (&[130, 3], 1, 64),
        (&[65], 1, 80),
        (&[70], 1, 128),
        (&[33], 1, 40),
    ];
    for number in Number::ALL {
        let kernel = format!("ferry_attention_{}", number.name());
        // q + b, each weight, and the result are rounded once; errors of weights partly cancel.
        let absolute = match number {
            Number::F32 => 4e-6,
            _ => 6.0 * number.rounding(),
        };
        let mut agreement = Agreement::new(&kernel, number, absolute, 1.01);
        for (lengths, heads, dim) in batches {
            let tokens = lengths.iter().sum::<usize>();
            let hidden = heads * dim;
            let mut random = Random::new((tokens * hidden) as u64);
            let qkv = number.round(&random.values(tokens * 3 * hidden, 2.0));
            let bias = random.values(3 * hidden, 1.0);
            for bias in [Some(&bias[..]), None] {
                let op = Attention {
                    heads,
                    bias: bias.map(|bias| tensor(bias, bias.len())),
                };
                let expected = op
                    .apply(
                        &tensor(&qkv, (tokens, 3 * hidden)),
                        &indices(&cu_seqlens(lengths)),
                    )
                    .expect("the CPU op runs");
                let case = Case {
                    number,
                    lengths,
                    heads,
                    dim,
                };
                let name = format!("{lengths:?} {heads}x{dim}");
                agreement.check(&name, &values(&expected), |order| {
                    case.run(&emulator, &qkv, bias, order)
                });
            }
        }
    }
}

#[test]
fn attention_does_not_see_the_neighbouring_row() {
    let Some(emulator) = Emulator::of("attention") else {
        return;
    };
    for number in Number::ALL {
        let (heads, dim) = (2, 32);
        let hidden = heads * dim;
        let case = Case {
            number,
            lengths: &[10, 20],
            heads,
            dim,
        };
        let mut qkv = Random::new(11).values(30 * 3 * hidden, 1.0);
        let before = case.run(&emulator, &qkv, None, Order::Forward);
        qkv[10 * 3 * hidden..].fill(f32::NAN);
        let after = case.run(&emulator, &qkv, None, Order::Forward);
        assert_eq!(before[..10 * hidden], after[..10 * hidden]);
        assert!(after[10 * hidden..].iter().all(|y| y.is_nan()));
    }
}

#[test]
fn attention_neither_overflows_nor_loses_the_row_on_large_scores() {
    let Some(emulator) = Emulator::of("attention") else {
        return;
    };
    for number in Number::ALL {
        let (tokens, dim) = (70, 32);
        // Scores of some hundreds: each query's softmax is near one key.
        let qkv = number.round(&Random::new(12).values(tokens * 3 * dim, 40.0));
        let case = Case {
            number,
            lengths: &[tokens],
            heads: 1,
            dim,
        };
        let op = Attention {
            heads: 1,
            bias: None,
        };
        let ends = indices(&[0, tokens as u32]);
        let expected = op.apply(&tensor(&qkv, (tokens, 3 * dim)), &ends);
        let expected = values(&expected.expect("the CPU op runs"));
        let got = case.run(&emulator, &qkv, None, Order::Forward);
        for (got, want) in got.iter().zip(&expected) {
            let allowed = 1e-2 + 1.5 * number.rounding() * 40.0;
            assert!(
                (got - want).abs() < allowed,
                "{number:?}: {got}, not {want}"
            );
        }
    }
}
