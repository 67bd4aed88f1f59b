//! Speed of the quantized linear layer beside candle's `QMatMul`, on the shapes of Gemma 3 270M
//! (hidden 640) and `SmolLM2` 135M (hidden 576): bytes of weight and multiply-adds per second.

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use ferry::ops::QuantizedLinear;

/// What the server uses: large activations are not given back to the kernel after every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Format, outputs and inputs.
const WEIGHTS: [(GgmlDType, usize, usize); 9] = [
    (GgmlDType::Q5_0, 1536, 640),
    (GgmlDType::Q5_0, 4096, 640),
    (GgmlDType::Q4K, 640, 2048),
    (GgmlDType::Q6K, 640, 2048),
    (GgmlDType::Q8_0, 262_144, 640),
    (GgmlDType::Q4_0, 3072, 576),
    (GgmlDType::Q4_1, 3072, 576),
    (GgmlDType::Q8_0, 49_152, 576),
    (GgmlDType::F16, 4096, 640),
];

/// Rows of the activation: decoding alone, in small and larger batches, and a prompt.
const ROWS: [usize; 4] = [1, 4, 16, 128];

fn main() {
    divan::main();
}

#[divan::bench(args = cases(), consts = ROWS, max_time = 1)]
fn ferry<const R: usize>(bencher: Bencher, case: &Case) {
    let linear = QuantizedLinear::new(&[case.weight()], None).expect("a weight");
    let x = case.activation(R);
    case.count(bencher, R)
        .bench_local(|| linear.apply(&x).expect("a product"));
}

#[divan::bench(args = cases(), consts = ROWS, max_time = 1)]
fn candle<const R: usize>(bencher: Bencher, case: &Case) {
    let linear = QMatMul::from_qtensor(case.weight()).expect("a weight");
    let x = case.activation(R);
    case.count(bencher, R)
        .bench_local(|| linear.forward(&x).expect("a product"));
}

struct Case {
    format: GgmlDType,
    outputs: usize,
    inputs: usize,
}

fn cases() -> [Case; WEIGHTS.len()] {
    WEIGHTS.map(|(format, outputs, inputs)| Case {
        format,
        outputs,
        inputs,
    })
}

impl Case {
    /// A few random rows over and over: quantizing a whole table takes longer than the bench.
    fn weight(&self) -> QTensor {
        let rows = Tensor::rand(-1f32, 1f32, (32, self.inputs), &Device::Cpu).expect("random");
        let rows = QTensor::quantize(&rows, self.format).expect("quantized");
        let bytes = rows.data().expect("bytes").repeat(self.outputs / 32);
        let storage = QStorage::from_data(bytes.into(), &Device::Cpu, self.format);
        QTensor::new(storage.expect("storage"), (self.outputs, self.inputs)).expect("a weight")
    }

    fn activation(&self, rows: usize) -> Tensor {
        Tensor::rand(-1f32, 1f32, (rows, self.inputs), &Device::Cpu).expect("random")
    }

    fn count<'a, 'b>(&self, bencher: Bencher<'a, 'b>, rows: usize) -> Bencher<'a, 'b> {
        let weights = self.outputs * self.inputs;
        let bytes = weights / self.format.block_size() * self.format.type_size();
        bencher
            .counter(BytesCount::new(bytes))
            .counter(ItemsCount::new(weights * rows))
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}x{}", self.format, self.outputs, self.inputs)
    }
}
