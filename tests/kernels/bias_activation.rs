//! `kernels/bias_activation.cu` against `ferry::ops::BiasActivation`.

use ferry::ops::{Activation, BiasActivation};

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

const THREADS: u32 = 128;
/// In the order of their numbers.
const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Tanh,
    Activation::Silu,
];

/// `act(x + bias)` on the emulated device; `x` is `[tokens, features]`.
fn run(
    emulator: &Emulator,
    number: Number,
    activation: usize,
    x: &[f32],
    bias: &[f32],
    order: Order,
) -> Vec<f32> {
    let features = bias.len();
    let tokens = (x.len() / features) as u32;
    let x = Buffer::numbers("x", number, x);
    let bias = Buffer::floats("bias", bias);
    let arguments = [
        Argument::Buffer(&x),
        Argument::Buffer(&bias),
        Argument::I32(features as i32),
        Argument::I32(activation as i32),
    ];
    let kernel = format!("ferry_bias_activation_{}", number.name());
    emulator.run(
        &kernel,
        Launch::new([tokens, 1, 1], THREADS),
        order,
        &arguments,
    );
    x.to_floats(number)
}

#[test]
fn bias_activation_agrees_with_the_cpu_op() {
    let Some(emulator) = Emulator::of("bias_activation") else {
        return;
    };
    let mut random = Random::new(3);
    for number in Number::ALL {
        for (code, activation) in ACTIVATIONS.into_iter().enumerate() {
            let name = format!("ferry_bias_activation_{} {activation:?}", number.name());
            // The CPU's GELU itself is good to 1.5e-6.
            let mut agreement = Agreement::new(&name, number, 2e-6, 1.01);
            for (tokens, features) in [(1, 1), (1, 17), (5, 100), (2, 1536), (2, 1111)] {
                let x = number.round(&random.values(tokens * features, 6.0));
                let bias = random.values(features, 1.0);
                let expected = tensor(&x, (tokens, features));
                BiasActivation(activation)
                    .apply(&expected, &tensor(&bias, features))
                    .expect("the CPU op runs");
                agreement.check(
                    &format!("{tokens}x{features}"),
                    &values(&expected),
                    |order| run(&emulator, number, code, &x, &bias, order),
                );
            }
        }
    }
}

#[test]
fn bias_activation_hides_neither_nan_nor_infinity() {
    let Some(emulator) = Emulator::of("bias_activation") else {
        return;
    };
    for number in Number::ALL {
        for (code, activation) in ACTIVATIONS.iter().enumerate() {
            let x = [f32::NAN, f32::INFINITY];
            let y = run(&emulator, number, code, &x, &[0.0; 2], Order::Forward);
            assert!(y[0].is_nan() && y[1] >= 1.0, "{activation:?}");
        }
    }
}
