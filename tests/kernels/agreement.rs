//! How far a kernel is from the CPU op: random inputs, the largest error over all cases, and the
//! line that says so.

use candle_core::{Device, Tensor};

use super::buffer::Number;
use super::emulator::Order;

/// Xorshift: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// `count` values, uniform in ±`range`.
    pub fn values(&mut self, count: usize, range: f32) -> Vec<f32> {
        (0..count)
            .map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * range)
            .collect()
    }

    /// `count` indices below `bound`.
    pub fn indices(&mut self, count: usize, bound: usize) -> Vec<u32> {
        (0..count)
            .map(|_| ((self.next() >> 33) % bound as u64) as u32)
            .collect()
    }
}

/// A tensor on the CPU.
pub fn tensor(values: &[f32], shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_slice(values, shape.into(), &Device::Cpu).expect("values for the shape")
}

/// The values of a tensor of f32, row by row.
#[allow(dead_code, reason = "kernels whose op returns a tensor")]
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor
        .flatten_all()
        .and_then(|x| x.to_vec1())
        .expect("a tensor of f32")
}

/// `[0, l₀, l₀ + l₁, …]`.
#[allow(dead_code, reason = "kernels over packed rows")]
pub fn cu_seqlens(lengths: &[usize]) -> Vec<u32> {
    let mut ends = vec![0u32];
    for length in lengths {
        ends.push(ends.last().copied().unwrap_or(0) + *length as u32);
    }
    ends
}

/// A one-dimensional u32 tensor on the CPU.
pub fn indices(values: &[u32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).expect("as many indices")
}

/// The error of one kernel over all of its cases.
pub struct Agreement {
    kernel: String,
    number: Number,
    /// Allowed beside one rounding of the result: absolute, and relative to the value.
    allowed: (f32, f32),
    largest: f32,
    cases: usize,
}

impl Agreement {
    /// `roundings`: how many of `number`'s half units in the last place a value may be off, beside
    /// an absolute error of `absolute`.
    pub fn new(kernel: &str, number: Number, absolute: f32, roundings: f32) -> Self {
        Self {
            kernel: kernel.to_owned(),
            number,
            allowed: (absolute, roundings * number.rounding()),
            largest: 0.0,
            cases: 0,
        }
    }

    /// Runs a case in every order of threads: the results must have the same bits, and be near
    /// `expected`.
    pub fn check(&mut self, case: &str, expected: &[f32], run: impl Fn(Order) -> Vec<f32>) {
        let kernel = format!("{} {case}", self.kernel);
        let results = Order::ALL.map(&run);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for (result, order) in results.iter().zip(Order::ALL).skip(1) {
            let same = bits(result) == bits(&results[0]);
            assert!(same, "{kernel}: order {order:?} changes the result");
        }
        assert_eq!(results[0].len(), expected.len(), "{kernel}");
        let (absolute, relative) = self.allowed;
        for (i, (got, want)) in results[0].iter().zip(expected).enumerate() {
            if got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()) {
                continue;
            }
            let error = (got - want).abs();
            assert!(
                error <= absolute + relative * want.abs(),
                "{kernel}: value {i} is {got}, the CPU op has {want}"
            );
            self.largest = self.largest.max(error);
        }
        self.cases += 1;
    }
}

impl Drop for Agreement {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            println!(
                "{} ({}): largest error {:.1e} in {} cases of {} orders",
                self.kernel,
                self.number.name(),
                self.largest,
                self.cases,
                Order::ALL.len()
            );
        }
    }
}
