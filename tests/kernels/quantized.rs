//! `kernels/quantized.cu` against `ferry::ops::QuantizedLinear`, which rounds activations alike.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor};
use ferry::ops::QuantizedLinear;

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

const THREADS: usize = 128;
/// Outputs of a block.
const OUTPUTS: usize = 8;
const SCALE_BYTES: usize = 16;

const FORMATS: [(&str, GgmlDType); 10] = [
    ("q4_0", GgmlDType::Q4_0),
    ("q4_1", GgmlDType::Q4_1),
    ("q5_0", GgmlDType::Q5_0),
    ("q5_1", GgmlDType::Q5_1),
    ("q8_0", GgmlDType::Q8_0),
    ("q2k", GgmlDType::Q2K),
    ("q3k", GgmlDType::Q3K),
    ("q4k", GgmlDType::Q4K),
    ("q5k", GgmlDType::Q5K),
    ("q6k", GgmlDType::Q6K),
];

struct Case<'a> {
    format: &'a str,
    block: usize,
    number: Number,
    x: &'a [f32],
    weight: &'a [u8],
    bias: Option<&'a [f32]>,
    rows: usize,
    inputs: usize,
    outputs: usize,
}

fn run(emulator: &Emulator, case: &Case, order: Order) -> Vec<f32> {
    let Case {
        rows,
        inputs,
        outputs,
        number,
        ..
    } = *case;
    let count = rows * inputs;
    let codes = Buffer::bytes("codes", 1, &vec![0x55; count]);
    let scales = Buffer::bytes("scales", 4, &vec![0xff; count / 32 * SCALE_BYTES]);
    let x = Buffer::numbers("x", number, case.x);
    let small = case.block == 32;
    let (threads, per_block) = if small {
        (THREADS, THREADS)
    } else {
        (256, 256)
    };
    emulator
        .launch(
            &format!(
                "ferry_quantize_activations_{}_{}",
                case.block,
                number.name()
            ),
            Launch::new([count.div_ceil(per_block) as u32, 1, 1], threads as u32),
            order,
            &[
                Argument::Buffer(&codes),
                Argument::Buffer(&scales),
                Argument::Buffer(&x),
                Argument::I64(count as i64),
            ],
        )
        .unwrap_or_else(|error| panic!("{error}"));

    let at_once = [1, 4, 8].into_iter().find(|&r| r >= rows).unwrap_or(8);
    // Beside another part's columns, which stay as they are.
    let stride = outputs + 3;
    let y = Buffer::numbers("y", number, &vec![7.0; rows * stride]);
    let weight = Buffer::bytes("weight", 2, case.weight);
    let bias = case.bias.map(|bias| Buffer::floats("bias", bias));
    let grid = [
        outputs.div_ceil(OUTPUTS) as u32,
        rows.div_ceil(at_once) as u32,
        1,
    ];
    let dtype = Number::ALL.iter().position(|&n| n == number).unwrap_or(0);
    emulator
        .launch(
            &format!("ferry_quantized_linear_{}_r{at_once}", case.format),
            Launch::new(grid, THREADS as u32),
            order,
            &[
                Argument::Buffer(&y),
                Argument::Buffer(&codes),
                Argument::Buffer(&scales),
                Argument::Buffer(&weight),
                bias.as_ref().map_or(Argument::Null, Argument::Buffer),
                Argument::I32(rows as i32),
                Argument::I32(inputs as i32),
                Argument::I32(outputs as i32),
                Argument::I64(stride as i64),
                Argument::I32(dtype as i32),
            ],
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let y = y.to_floats(number);
    let rows = y.chunks(stride);
    assert!(rows.clone().all(|row| row[outputs..] == [7.0; 3]));
    rows.flat_map(|row| row[..outputs].to_vec()).collect()
}

#[test]
fn quantized_products_agree_with_the_cpu_op_for_every_format() {
    let Some(emulator) = Emulator::of("quantized") else {
        return;
    };
    for (format, dtype) in FORMATS {
        let kernel = format!("ferry_quantized_linear_{format}");
        let mut agreements = Number::ALL.map(|number| {
            let roundings = if number == Number::F32 { 8.0 } else { 1.05 };
            Agreement::new(&kernel, number, 4e-5, roundings)
        });
        for (i, (rows, inputs, outputs)) in [
            (1, 256, 1),
            (2, 768, 9),
            (4, 256, 16),
            (8, 1280, 5),
            (11, 512, 10),
            (3, 96, 7),
        ]
        .into_iter()
        .enumerate()
        {
            if inputs % dtype.block_size() != 0 {
                continue;
            }
            let number = Number::ALL[i % 3];
            let agreement = &mut agreements[i % 3];
            let mut random = Random::new((rows * inputs) as u64);
            let mut x = number.round(&random.values(rows * inputs, 2.0));
            // A block of zeros.
            x[..inputs.min(256)].fill(0.0);
            // Off centre, so that a minimum has something to do.
            let weight: Vec<f32> = (random.values(outputs * inputs, 0.5).iter())
                .map(|w| w + 0.1)
                .collect();
            let weight = QTensor::quantize(&tensor(&weight, (outputs, inputs)), dtype)
                .expect("a weight of the format");
            let bias = (i % 2 == 1).then(|| random.values(outputs, 1.0));
            let bytes = weight.data().expect("the blocks").to_vec();
            let of_cpu = bias.as_ref().map(|bias| tensor(bias, outputs));
            let op = QuantizedLinear::new(&[weight], of_cpu).expect("a layer");
            let y = op
                .apply(&tensor(&x, (rows, inputs)))
                .expect("the CPU op runs");
            assert!(y.device().same_device(&Device::Cpu));
            let case = Case {
                format,
                block: dtype.block_size(),
                number,
                x: &x,
                weight: &bytes,
                bias: bias.as_deref(),
                rows,
                inputs,
                outputs,
            };
            let name = format!("{rows}x{inputs}x{outputs}");
            agreement.check(&name, &values(&y), |order| run(&emulator, &case, order));
        }
    }
}
