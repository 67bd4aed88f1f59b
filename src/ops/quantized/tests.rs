//! The whole layer against f64 references, for every format.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::super::testing::{Random, map_of};
use super::super::values::{ALIGNMENT, MappedBytes};
use super::activations::{Blocks32, Blocks256};
use super::product::Product;
use super::{QuantizedLinear, QuantizedWeight, machine};

const LEGACY: [GgmlDType; 6] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q8_1,
];
const SUPER: [GgmlDType; 5] = [
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];
const PLAIN: [GgmlDType; 3] = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];

fn all() -> impl Iterator<Item = GgmlDType> {
    LEGACY.into_iter().chain(SUPER).chain(PLAIN)
}

fn weight(dtype: GgmlDType, outputs: usize, inputs: usize, seed: u64) -> Result<QTensor> {
    let values = Random::new(seed).values(outputs * inputs, 0.5);
    // Off centre, so that a minimum has something to do.
    let values = values.into_iter().map(|w| w + 0.1).collect();
    QTensor::quantize(
        &Tensor::from_vec::<_, f32>(values, (outputs, inputs), &Device::Cpu)?,
        dtype,
    )
}

fn activation(rows: usize, inputs: usize, seed: u64) -> Result<Tensor> {
    let values = Random::new(seed).values(rows * inputs, 2.0);
    Tensor::from_vec(values, (rows, inputs), &Device::Cpu)
}

fn norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&v| f64::from(v) * f64::from(v));
    squares.sum::<f64>().sqrt()
}

/// Largest difference from `x·Wᵀ` in f64, as a share of `|x|·|w|`.
fn error(y: &[Vec<f32>], x: &[Vec<f32>], w: &[Vec<f32>]) -> f64 {
    let mut largest = 0f64;
    for (y, x) in y.iter().zip(x) {
        assert_eq!(y.len(), w.len());
        for (y, w) in y.iter().zip(w) {
            let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let difference = (f64::from(*y) - products.sum::<f64>()).abs();
            assert!(!difference.is_nan());
            largest = largest.max(difference / (norm(x) * norm(w)));
        }
    }
    largest
}

/// `x`, rounded as the product does it.
fn rounded(x: &Tensor, dtype: GgmlDType) -> Result<Vec<Vec<f32>>> {
    let inputs = x.dim(1)?;
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let (codes, scales): (_, Vec<f32>) = match dtype.block_size() {
        32 => {
            let blocks = Blocks32::quantize(&values);
            (
                blocks.codes,
                blocks.scales.iter().map(|s| s.scale).collect(),
            )
        }
        256 => {
            let blocks = Blocks256::quantize(&values);
            (
                blocks.codes,
                blocks.scales.iter().map(|s| s.scale).collect(),
            )
        }
        _ => return x.to_vec2(),
    };
    let codes = codes.as_flattened().chunks(dtype.block_size());
    let values: Vec<f32> = codes
        .zip(scales)
        .flat_map(|(codes, scale)| codes.iter().map(move |&q| f32::from(q) * scale))
        .collect();
    Ok(values.chunks(inputs).map(<[f32]>::to_vec).collect())
}

#[test]
fn equals_the_f64_reference_for_every_format() -> Result<()> {
    for dtype in all() {
        for (rows, inputs, outputs) in [
            (1, 256, 1),
            (2, 256, 7),
            (3, 512, 16),
            (5, 256, 33),
            (17, 768, 40),
            (130, 256, 50),
        ] {
            let weight = weight(dtype, outputs, inputs, 7)?;
            let x = activation(rows, inputs, 8)?;
            let w = weight.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
            let linear = QuantizedLinear::new(&[weight], None)?;
            assert_eq!(linear.out_features(), outputs);
            let y = linear.apply(&x)?.to_vec2::<f32>()?;
            let of_rounded = error(&y, &rounded(&x, dtype)?, &w);
            // The minima meet a sum rounded to f16.
            let minima = [GgmlDType::Q4_1, GgmlDType::Q5_1].contains(&dtype);
            let bound = if minima { 1e-4 } else { 1e-6 };
            assert!(
                of_rounded < bound,
                "{dtype:?} {rows}x{inputs}x{outputs}: {of_rounded:e}"
            );
            let of_x = error(&y, &x.to_vec2()?, &w);
            assert!(of_x < 5e-3, "{dtype:?} {rows}x{inputs}x{outputs}: {of_x:e}");
        }
    }
    Ok(())
}

#[test]
fn blocks_of_32_need_no_multiple_of_256() -> Result<()> {
    for dtype in LEGACY {
        let weight = weight(dtype, 20, 96, 1)?;
        let x = activation(4, 96, 2)?;
        let w = weight.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
        let y = QuantizedLinear::new(&[weight], None)?.apply(&x)?;
        assert!(error(&y.to_vec2()?, &x.to_vec2()?, &w) < 5e-3);
    }
    Ok(())
}

#[test]
fn the_widest_codes_do_not_overflow() -> Result<()> {
    for dtype in LEGACY.into_iter().chain(SUPER) {
        // Codes of all ones, which for 8 bits is -1; then the most negative byte.
        for byte in [0xFF, 0x80] {
            let inputs = 256;
            let size = inputs / dtype.block_size() * dtype.type_size();
            let mut bytes = vec![byte; size];
            for block in bytes.chunks_mut(dtype.type_size()) {
                // 1.0 as f16 wherever a scale stands.
                let one = [0x00, 0x3C];
                let at: &[usize] = match dtype {
                    GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
                    GgmlDType::Q2K => &[80, 82],
                    GgmlDType::Q3K => &[108],
                    GgmlDType::Q6K => &[208],
                    _ => &[0, 2],
                };
                for &at in at {
                    block[at..at + 2].copy_from_slice(&one);
                }
            }
            let storage = QStorage::from_data(bytes.into(), &Device::Cpu, dtype)?;
            let weight = QTensor::new(storage, (1, inputs))?;
            let w = weight.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
            let linear = QuantizedLinear::new(&[weight], None)?;
            for x in [1f32, -1.0] {
                let x = Tensor::full(x, (5, inputs), &Device::Cpu)?;
                let y = linear.apply(&x)?.to_vec2::<f32>()?;
                let error = error(&y, &rounded(&x, dtype)?, &w);
                assert!(error < 2e-4, "{dtype:?} {byte:x}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn parts_of_several_formats_lie_side_by_side() -> Result<()> {
    let inputs = 512;
    let formats = [
        (GgmlDType::Q5_0, 40),
        (GgmlDType::Q6K, 7),
        (GgmlDType::F16, 16),
        (GgmlDType::Q8_0, 3),
    ];
    let mut parts = Vec::new();
    let mut w = Vec::new();
    for (dtype, outputs) in formats {
        let part = weight(dtype, outputs, inputs, outputs as u64)?;
        w.extend(part.dequantize(&Device::Cpu)?.to_vec2::<f32>()?);
        parts.push(part);
    }
    let bias = Tensor::full(3f32, 66, &Device::Cpu)?;
    let linear = QuantizedLinear::new(&parts, Some(bias))?;
    assert_eq!(linear.out_features(), 66);
    for rows in [0, 1, 9, 200] {
        let x = activation(rows, inputs, 5)?;
        let y = (linear.apply(&x)? - 3.0)?.to_vec2::<f32>()?;
        assert_eq!(y.len(), rows);
        assert!(error(&y, &x.to_vec2()?, &w) < 5e-3);
    }
    let ids: Vec<u32> = (0..66).rev().collect();
    let rows = linear.rows(&ids, 1.0)?.to_vec2::<f32>()?;
    assert_eq!(rows.into_iter().rev().collect::<Vec<_>>(), w);
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_the_rows_around_it() -> Result<()> {
    for dtype in all() {
        // Enough work for the threads to share.
        let linear = QuantizedLinear::new(&[weight(dtype, 333, 512, 3)?], None)?;
        let x = activation(203, 512, 4)?;
        let together = linear.apply(&x)?.to_vec2::<f32>()?;
        for (row, count) in [(0, 1), (7, 1), (8, 2), (96, 3), (190, 12), (202, 1)] {
            let few = linear.apply(&x.narrow(0, row, count)?)?.to_vec2::<f32>()?;
            assert_eq!(few, together[row..row + count], "{dtype:?}");
        }
    }
    Ok(())
}

#[test]
fn a_row_that_is_not_finite_leaves_the_others_alone() -> Result<()> {
    for dtype in all() {
        let linear = QuantizedLinear::new(&[weight(dtype, 20, 256, 3)?], None)?;
        let x = activation(6, 256, 4)?.to_vec2::<f32>()?;
        let mut bad = x.clone();
        bad[1][3] = f32::NAN;
        bad[2][200] = f32::INFINITY;
        bad[4] = vec![f32::MAX; 256];
        bad[5] = vec![f32::from_bits(1); 256];
        let [x, bad] = [x, bad].map(|x| Tensor::new(x, &Device::Cpu));
        let good = linear.apply(&x?)?.to_vec2::<f32>()?;
        let bad = linear.apply(&bad?)?.to_vec2::<f32>()?;
        assert!(
            bad[1..3].iter().flatten().all(|y| !y.is_finite()),
            "{dtype:?}"
        );
        for row in [0, 3] {
            assert_eq!(good[row], bad[row]);
        }
        assert!(bad[5].iter().all(|y| y.abs() < 1e-30));
    }
    Ok(())
}

#[test]
fn rows_are_the_dequantized_weight() -> Result<()> {
    for dtype in all() {
        let weight = weight(dtype, 37, 512, 9)?;
        let w = weight.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
        let linear = QuantizedLinear::new(&[weight], None)?;
        let rows = linear.rows(&[36, 0, 5, 5, 17], 2.0)?.to_vec2::<f32>()?;
        for (row, id) in rows.iter().zip([36, 0, 5, 5, 17]) {
            for (got, expected) in row.iter().zip(&w[id]) {
                let difference = (got - 2.0 * expected).abs();
                assert!(difference <= 4e-7 * (expected.abs() + 1.0), "{dtype:?}");
            }
        }
        assert_eq!(linear.rows(&[], 1.0)?.dims(), [0, 512]);
        assert!(linear.rows(&[37], 1.0).is_err());
    }
    Ok(())
}

#[test]
fn panels_take_hardly_more_memory_than_the_file() -> Result<()> {
    for dtype in all().filter(|d| ![GgmlDType::Q2K, GgmlDType::Q3K].contains(d)) {
        let weight = weight(dtype, 64, 512, 9)?;
        let bytes = weight.storage_size_in_bytes();
        let panels = QuantizedLinear::new(&[weight], None)?.memory_bytes();
        // `Q4_K` and `Q5_K` pack their 6-bit scales; here each has a byte.
        assert!(panels <= bytes * 103 / 100, "{dtype:?}: {panels} {bytes}");
    }
    Ok(())
}

#[test]
fn all_instruction_sets_agree() -> Result<()> {
    for dtype in all() {
        let (rows, inputs, outputs) = (15, 512, 35);
        let linear = QuantizedLinear::new(&[weight(dtype, outputs, inputs, 3)?], None)?;
        let x = activation(rows, inputs, 4)?;
        let y = linear.apply(&x)?.flatten_all()?.to_vec1::<f32>()?;
        let x = x.flatten_all()?.to_vec1::<f32>()?;
        let product = Product {
            parts: &linear.parts,
            x: &linear.quantize(&x),
            inputs,
            outputs,
        };
        let mut results = Vec::new();
        for machine in machine::available() {
            let mut y = vec![0f32; rows * outputs];
            product.compute_with(machine, &mut y);
            results.push(y);
        }
        // The best is what `apply` takes, and those with a fused multiply-add give the same bits.
        assert!(
            results.iter().skip(1).all(|result| *result == y),
            "{dtype:?}"
        );
        for (portable, y) in results[0].iter().zip(&y) {
            assert!((portable - y).abs() < 1e-3, "{dtype:?}: {portable} {y}");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    assert!(QuantizedLinear::new(&[], None).is_err());
    let parts = [
        weight(GgmlDType::Q4_0, 4, 64, 1)?,
        weight(GgmlDType::Q8_0, 4, 96, 1)?,
    ];
    assert!(QuantizedLinear::new(&parts, None).is_err());
    let bias = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    assert!(QuantizedLinear::new(&parts[..1], Some(bias)).is_err());
    assert!(QuantizedLinear::new(&[weight(GgmlDType::Q8K, 4, 256, 1)?], None).is_err());
    let vector = Tensor::zeros(64, DType::F32, &Device::Cpu)?;
    assert!(QuantizedLinear::new(&[QTensor::quantize(&vector, GgmlDType::Q8_0)?], None).is_err());

    let linear = QuantizedLinear::new(&parts[..1], None)?;
    let x = Tensor::zeros((64, 3), DType::F32, &Device::Cpu)?;
    assert!(linear.apply(&x).is_err());
    assert!(linear.apply(&x.t()?).is_err());
    assert!(linear.apply(&x.t()?.contiguous()?).is_ok());
    assert!(linear.apply(&vector).is_err());
    let half = Tensor::zeros((3, 64), DType::F16, &Device::Cpu)?;
    assert!(linear.apply(&half).is_err());
    Ok(())
}

/// The sections of a weight in a mapped file, each at a multiple of 64.
fn in_a_file(weight: &QuantizedWeight) -> Vec<MappedBytes> {
    let mut bytes = Vec::new();
    let mut ranges = Vec::new();
    for section in weight.sections() {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        ranges.push(bytes.len()..bytes.len() + section.len());
        bytes.extend(section);
    }
    let map = map_of(&bytes);
    let range = |range| MappedBytes::new(&map, range).expect("the file has it");
    ranges.into_iter().map(range).collect()
}

#[test]
fn a_weight_that_is_read_in_place_multiplies_to_the_same_bits() -> Result<()> {
    let (outputs, inputs) = (37, 512);
    let x = activation(5, inputs, 3)?;
    for dtype in all() {
        let made = QuantizedWeight::new(&weight(dtype, outputs, inputs, 7)?)?;
        let sections = in_a_file(&made);
        let found = QuantizedWeight::mapped(dtype, outputs, inputs, &sections)?;
        let [y, z] = [made, found].map(|weight| QuantizedLinear::of(vec![weight], None));
        let [y, z] = [y?, z?];
        assert_eq!(
            y.apply(&x)?.to_vec2::<f32>()?,
            z.apply(&x)?.to_vec2::<f32>()?,
            "{dtype:?}"
        );
        assert_eq!(
            y.rows(&[36], 1.0)?.to_vec2::<f32>()?,
            z.rows(&[36], 1.0)?.to_vec2::<f32>()?
        );
        assert_eq!(y.memory_bytes(), z.memory_bytes());

        let mapped = QuantizedWeight::mapped;
        assert!(
            mapped(dtype, outputs + 16, inputs, &sections).is_err(),
            "{dtype:?}"
        );
        assert!(
            mapped(dtype, outputs, inputs + 256, &sections).is_err(),
            "{dtype:?}"
        );
        assert!(mapped(dtype, outputs, 0, &sections).is_err(), "{dtype:?}");
        assert!(
            mapped(dtype, outputs, inputs, &sections[1..]).is_err(),
            "{dtype:?}"
        );
    }
    Ok(())
}
