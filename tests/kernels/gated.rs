//! `kernels/gated.cu` against `ferry::ops::GatedActivation`.

use ferry::ops::{Activation, GatedActivation};

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch};

const THREADS: usize = 256;

/// In the order of `vectors.cuh`.
const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Tanh,
    Activation::Silu,
];

#[test]
fn gated_activation_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("gated") else {
        return;
    };
    for number in Number::ALL {
        let kernel = format!("ferry_gated_{}", number.name());
        // The CPU's GELU is right to 1.5e-6, times up to 4.
        let mut agreement = Agreement::new(&kernel, number, 8e-6, 1.1);
        for (code, activation) in ACTIVATIONS.into_iter().enumerate() {
            // One value, no whole vectors, about a block's columns.
            for (tokens, n) in [(1, 1), (3, 17), (2, 2047), (5, 1536), (1, 2056), (2, 8)] {
                let gate_up = Random::new((tokens * n) as u64).values(tokens * 2 * n, 4.0);
                let gate_up = number.round(&gate_up);
                let expected = GatedActivation(activation)
                    .apply(&tensor(&gate_up, (tokens, 2 * n)))
                    .expect("the CPU op runs");

                let gate_up = Buffer::numbers("gate_up", number, &gate_up);
                let case = format!("{activation:?} {tokens}x{n}");
                agreement.check(&case, &values(&expected), |order| {
                    let y = Buffer::output("y", number, tokens * n);
                    let columns = THREADS * 16 / number.bytes();
                    let grid = [tokens as u32, n.div_ceil(columns) as u32, 1];
                    emulator
                        .launch(
                            &kernel,
                            Launch::new(grid, THREADS as u32),
                            order,
                            &[
                                Argument::Buffer(&y),
                                Argument::Buffer(&gate_up),
                                Argument::I32(n as i32),
                                Argument::I32(code as i32),
                            ],
                        )
                        .unwrap_or_else(|error| panic!("{error}"));
                    y.to_floats(number)
                });
            }
        }
    }
}
