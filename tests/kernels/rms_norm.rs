//! `kernels/rms_norm.cu` against `ferry::ops::{RmsNorm, ResidualRmsNorm}`.

use ferry::ops::{ResidualRmsNorm, RmsNorm};

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch};

const THREADS: u32 = 256;

/// Names of the kernels' types: of x, of the rest.
const TYPES: [(&str, Number, Number); 5] = [
    ("f32", Number::F32, Number::F32),
    ("f16", Number::F16, Number::F16),
    ("bf16", Number::Bf16, Number::Bf16),
    ("f32_f16", Number::F32, Number::F16),
    ("f32_bf16", Number::F32, Number::Bf16),
];

/// Widths of one value, of no whole vectors, below and above a block's vectors, beyond registers.
const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (3, 7),
    (2, 33),
    (5, 576),
    (2, 1100),
    (3, 2056),
    (1, 8192),
    (2, 9000),
];

#[test]
fn rms_norm_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("rms_norm") else {
        return;
    };
    for (types, of_x, number) in TYPES {
        let kernel = format!("ferry_rms_norm_{types}");
        let mut agreement = Agreement::new(&kernel, number, 2e-6, 1.02);
        for (tokens, n) in SHAPES {
            let mut random = Random::new((tokens * n) as u64);
            let x = of_x.round(&random.values(tokens * n, 3.0));
            let weight = random.values(n, 2.0);
            let op = RmsNorm::new(tensor(&weight, n), 1e-5);
            let expected = op.apply(&tensor(&x, (tokens, n))).expect("the CPU op runs");

            let x = Buffer::numbers("x", of_x, &x);
            let weight = Buffer::floats("weight", &weight);
            agreement.check(&format!("{tokens}x{n}"), &values(&expected), |order| {
                let y = Buffer::output("y", number, tokens * n);
                emulator
                    .launch(
                        &kernel,
                        Launch::new([tokens as u32, 1, 1], THREADS),
                        order,
                        &[
                            Argument::Buffer(&y),
                            Argument::Buffer(&x),
                            Argument::Buffer(&weight),
                            Argument::I32(n as i32),
                            Argument::F32(1e-5),
                        ],
                    )
                    .unwrap_or_else(|error| panic!("{error}"));
                y.to_floats(number)
            });
        }
    }
}

#[test]
fn both_forms_of_residual_rms_norm_agree_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("rms_norm") else {
        return;
    };
    for (types, of_x, number) in TYPES {
        let kernel = format!("ferry_residual_rms_norm_{types}");
        // The sum is rounded to x's type before it is normalized: one rounding more.
        let mut agreement = Agreement::new(&kernel, number, 8e-6, 2.5);
        for (tokens, n) in SHAPES {
            for with_post in [false, true] {
                let mut random = Random::new((tokens * n) as u64);
                let x = of_x.round(&random.values(tokens * n, 3.0));
                let delta = number.round(&random.values(tokens * n, 3.0));
                let [post, next] = [(); 2].map(|()| random.values(n, 1.0));
                let norm = |weight: &[f32], epsilon| RmsNorm::new(tensor(weight, n), epsilon);
                let op =
                    ResidualRmsNorm::new(with_post.then(|| norm(&post, 1e-6)), norm(&next, 1e-5));
                let sum = tensor(&x, (tokens, n));
                let y = op
                    .apply(&sum, &tensor(&delta, (tokens, n)))
                    .expect("the CPU op runs");
                let expected = [values(&sum), values(&y)].concat();

                let delta = Buffer::numbers("delta", number, &delta);
                let post = Buffer::floats("post_weight", &post);
                let next = Buffer::floats("next_weight", &next);
                let case = format!("{tokens}x{n} post {with_post}");
                agreement.check(&case, &expected, |order| {
                    let x = Buffer::numbers("x", of_x, &x);
                    let y = Buffer::output("y", number, tokens * n);
                    emulator
                        .launch(
                            &kernel,
                            Launch::new([tokens as u32, 1, 1], THREADS),
                            order,
                            &[
                                Argument::Buffer(&y),
                                Argument::Buffer(&x),
                                Argument::Buffer(&delta),
                                if with_post {
                                    Argument::Buffer(&post)
                                } else {
                                    Argument::Null
                                },
                                Argument::Buffer(&next),
                                Argument::I32(n as i32),
                                Argument::F32(1e-6),
                                Argument::F32(1e-5),
                            ],
                        )
                        .unwrap_or_else(|error| panic!("{error}"));
                    [x.to_floats(of_x), y.to_floats(number)].concat()
                });
            }
        }
    }
}
