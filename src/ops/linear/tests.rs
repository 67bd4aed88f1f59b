//! The product against f64, each instruction set against the others, and what bf16 and int8 lose.

use super::super::parallel;
use super::super::simd::{InstructionSet, WIDTH};
use super::super::testing::{Random, max_error};
use super::activations::{RowScale, Words, convert};
use super::dot::PortableBytes;
use super::product::{InBf16, InF32, Work};
use super::*;
use bytemuck::Zeroable;
use candle_core::Device;

const ALL: [Compute; 3] = [Compute::F32, Compute::Bf16, Compute::Int8];

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (1, 384, 3),
    (2, 500, 17),
    (7, 33, 65),
    (20, 700, 300),
    (100, 400, 50),
    (130, 384, 100),
    (0, 8, 8),
];

#[test]
fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
    let mut random = Random::new(12);
    for (tokens, inputs, outputs) in SHAPES {
        let x = random.values(tokens * inputs, 1.0);
        let w = random.values(outputs * inputs, 1.0);
        let b = random.values(outputs, 1.0);
        let mut expected = Vec::new();
        for x in x.chunks_exact(inputs) {
            for (w, b) in w.chunks_exact(inputs).zip(&b) {
                let dot: f64 = x
                    .iter()
                    .zip(w)
                    .map(|(x, w)| f64::from(*x) * f64::from(*w))
                    .sum();
                expected.push(dot + f64::from(*b));
            }
        }
        let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu)?;
        let b = Tensor::from_vec(b, outputs, &Device::Cpu)?;
        let linear = Linear::new(&w, Some(b))?;
        assert_eq!(linear.out_features(), outputs);
        let x = Tensor::from_vec(x, (tokens, inputs), &Device::Cpu)?;
        let y = linear.apply(&x)?.flatten_all()?.to_vec1()?;
        let error = max_error(&y, &expected);
        assert!(error < 2e-5, "{tokens}x{inputs}x{outputs}: {error:e}");
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_the_rows_around_it() -> Result<()> {
    let mut random = Random::new(15);
    let (inputs, outputs) = (500, 90);
    let w = random.values(outputs * inputs, 1.0);
    let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu)?;
    let x = random.values(203 * inputs, 1.0);
    let x = Tensor::from_vec(x, (203, inputs), &Device::Cpu)?;
    for compute in ALL {
        let linear = Linear::with_compute(&w, None, compute)?;
        let together = linear.apply(&x)?.to_vec2::<f32>()?;
        for row in [0, 7, 96, 202] {
            let alone = linear.apply(&x.narrow(0, row, 1)?)?.to_vec2::<f32>()?;
            assert_eq!(alone[0], together[row], "{compute:?}");
        }
        let some = parallel::alone(|| linear.apply(&x.narrow(0, 90, 17)?))?;
        assert_eq!(some.to_vec2::<f32>()?, together[90..107], "{compute:?}");
    }
    Ok(())
}

#[test]
fn a_wrong_width_is_an_error() -> Result<()> {
    let w = Tensor::zeros((3, 5), candle_core::DType::F32, &Device::Cpu)?;
    let linear = Linear::new(&w, None)?;
    let x = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;
    assert!(linear.apply(&x).is_err());
    Ok(())
}

/// `y` by every instruction set that this machine has for `compute`, the portable one first.
fn by_all_sets(compute: Compute, x: &[f32], weight: &Panels, outputs: usize) -> Vec<Vec<f32>> {
    let inputs = weight.inputs;
    let rows = x.len() / inputs;
    let mut words = vec![Words::zeroed(); rows * compute.words(inputs).div_ceil(WIDTH)];
    let scaled_rows = if compute == Compute::Int8 { rows } else { 0 };
    let mut scales = vec![RowScale::default(); scaled_rows];
    convert(&mut words, &mut scales, x, inputs, compute);
    let mut results = Vec::new();
    let mut run = |with: &mut dyn FnMut(&mut Work<'_>) -> bool| {
        let mut y = vec![0f32; rows * outputs];
        let mut work = Work {
            y: &mut y,
            x: &words,
            scales: &scales,
            columns: weight.columns(0, outputs),
            add: false,
        };
        if with(&mut work) {
            results.push(y);
        }
    };
    match compute {
        Compute::Int8 => run(&mut |work| {
            work.run::<PortableBytes>();
            true
        }),
        _ => {
            for set in InstructionSet::all() {
                run(&mut |work| {
                    if compute == Compute::F32 {
                        set.run(InF32(work));
                    } else {
                        set.run(InBf16(work));
                    }
                    true
                });
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    match compute {
        Compute::F32 => {}
        Compute::Bf16 => run(&mut x86::run_bf16),
        Compute::Int8 => {
            run(&mut x86::run_avx2_bytes);
            run(&mut x86::run_bytes);
        }
    }
    results
}

#[test]
fn all_instruction_sets_agree_and_on_bytes_to_the_last_bit() {
    let mut random = Random::new(14);
    for (rows, inputs, outputs) in SHAPES {
        let x = random.values(rows * inputs, 1.0);
        let w = random.values(outputs * inputs, 1.0);
        for compute in ALL {
            let weight = Panels::new(&w, inputs, compute);
            let results = by_all_sets(compute, &x, &weight, outputs);
            let portable: Vec<f64> = results[0].iter().map(|&y| f64::from(y)).collect();
            for result in &results[1..] {
                let error = max_error(result, &portable);
                let most = if compute == Compute::Int8 { 0.0 } else { 4e-5 };
                assert!(
                    error <= most,
                    "{compute:?} {rows}x{inputs}x{outputs}: {error:e}"
                );
            }
        }
    }
}

/// `Σ (y − expected)² / Σ expected²`, rooted.
fn relative_error(y: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = y.iter().zip(expected);
    let off: f64 = pairs
        .map(|(y, e)| square(f64::from(*y) - f64::from(*e)))
        .sum();
    let all: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    (off / all).sqrt()
}

#[test]
fn bf16_and_int8_lose_as_much_as_their_digits() -> Result<()> {
    let mut random = Random::new(16);
    for (rows, inputs, outputs) in [(1, 384, 33), (30, 401, 100), (50, 1536, 64)] {
        let w = Tensor::from_vec(
            random.values(outputs * inputs, 1.0),
            (outputs, inputs),
            &Device::Cpu,
        )?;
        // Not around 0, as what a GELU gives is not.
        let x: Vec<f32> = random.values(rows * inputs, 1.0);
        let x = x.iter().map(|x| x.max(-0.2) * 3.0).collect();
        let x = Tensor::from_vec(x, (rows, inputs), &Device::Cpu)?;
        let product = |compute| {
            let y = Linear::with_compute(&w, None, compute)?.apply(&x)?;
            y.flatten_all()?.to_vec1::<f32>()
        };
        let exact = product(Compute::F32)?;
        for (compute, most) in [(Compute::Bf16, 3e-3), (Compute::Int8, 8e-3)] {
            let error = relative_error(&product(compute)?, &exact);
            assert!(
                error < most,
                "{compute:?} {rows}x{inputs}x{outputs}: {error:e}"
            );
        }
    }
    Ok(())
}

#[test]
fn values_that_are_not_finite_are_not_hidden() -> Result<()> {
    let w = Tensor::ones((3, 70), candle_core::DType::F32, &Device::Cpu)?;
    for compute in ALL {
        let linear = Linear::with_compute(&w, None, compute)?;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1f32; 2 * 70];
            x[69] = bad;
            let x = Tensor::from_vec(x, (2, 70), &Device::Cpu)?;
            let y = linear.apply(&x)?.to_vec2::<f32>()?;
            assert!(y[0].iter().all(|y| !y.is_finite()), "{compute:?} {bad}");
            assert!(y[1].iter().all(|y| (y - 70.0).abs() < 0.5), "{compute:?}");
        }
    }
    Ok(())
}

#[test]
fn a_row_of_zeros_is_zeros_in_every_precision() -> Result<()> {
    let w = Tensor::ones((5, 9), candle_core::DType::F32, &Device::Cpu)?;
    let x = Tensor::zeros((3, 9), candle_core::DType::F32, &Device::Cpu)?;
    for compute in ALL {
        let y = Linear::with_compute(&w, None, compute)?.apply(&x)?;
        let y: Vec<f32> = y.flatten_all()?.to_vec1()?;
        assert!(y.iter().all(|&y| y.to_bits() == 0), "{compute:?}: {y:?}");
    }
    Ok(())
}
