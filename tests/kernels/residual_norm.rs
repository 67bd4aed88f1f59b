//! `kernels/residual_norm.cu` against `ferry::ops::ResidualNorm`.

use ferry::ops::ResidualNorm;

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch};

const ROWS: usize = 4;
const THREADS: u32 = 128;

#[test]
fn residual_norm_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("residual_norm") else {
        return;
    };
    for number in Number::ALL {
        let kernel = format!("ferry_residual_norm_{}", number.name());
        let mut agreement = Agreement::new(&kernel, number, 4e-6, 1.01);
        // Widths below, at and above a lane's vectors; beyond registers; that are no whole vectors.
        for (tokens, hidden) in [
            (1, 1),
            (3, 7),
            (5, 8),
            (9, 384),
            (4, 768),
            (2, 1024),
            (3, 1032),
            (1, 2048),
            (6, 769),
        ] {
            let mut random = Random::new((tokens * hidden) as u64);
            let [x, residual] =
                [(); 2].map(|()| number.round(&random.values(tokens * hidden, 3.0)));
            let [bias, weight, norm_bias] = [(); 3].map(|()| random.values(hidden, 1.0));
            let op = ResidualNorm {
                bias: tensor(&bias, hidden),
                weight: tensor(&weight, hidden),
                norm_bias: tensor(&norm_bias, hidden),
                epsilon: 1e-5,
            };
            let expected = tensor(&x, (tokens, hidden));
            op.apply(&expected, &tensor(&residual, (tokens, hidden)))
                .expect("the CPU op runs");
            let expected = values(&expected);

            let residual = Buffer::numbers("residual", number, &residual);
            let bias = Buffer::floats("bias", &bias);
            let weight = Buffer::floats("weight", &weight);
            let norm_bias = Buffer::floats("norm_bias", &norm_bias);
            agreement.check(&format!("{tokens}x{hidden}"), &expected, |order| {
                let x = Buffer::numbers("x", number, &x);
                let grid = [tokens.div_ceil(ROWS) as u32, 1, 1];
                let launch = Launch::new(grid, THREADS);
                let arguments = [
                    Argument::Buffer(&x),
                    Argument::Buffer(&residual),
                    Argument::Buffer(&bias),
                    Argument::Buffer(&weight),
                    Argument::Buffer(&norm_bias),
                    Argument::F32(1e-5),
                    Argument::I32(tokens as i32),
                    Argument::I32(hidden as i32),
                ];
                emulator.run(&kernel, launch, order, &arguments);
                x.to_floats(number)
            });
        }
    }
}
