//! Attention against the formula in f64, and each instruction set against the portable one.

use super::super::simd::InstructionSet;
use super::super::testing::{Random, cu_seqlens, indices, max_error};
use super::*;
use candle_core::Device;

/// The formula at the top of the file, as it stands there, in f64.
fn reference(qkv: &[f32], bias: &[f32], lengths: &[usize], heads: usize) -> Vec<f64> {
    let width = bias.len();
    let hidden = width / 3;
    let dim = hidden / heads;
    let at = |t: usize, c: usize| f64::from(qkv[t * width + c]) + f64::from(bias[c]);
    let mut out = vec![0.0; qkv.len() / 3];
    let mut begin = 0;
    for len in lengths {
        let row = begin..begin + len;
        begin = row.end;
        for i in row.clone() {
            for h in 0..heads {
                let q = h * dim..(h + 1) * dim;
                let scores: Vec<f64> = row
                    .clone()
                    .map(|j| q.clone().map(|c| at(i, c) * at(j, hidden + c)).sum::<f64>())
                    .map(|s| s / (dim as f64).sqrt())
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let scores: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = scores.iter().sum();
                for c in q.clone() {
                    out[i * hidden + c] = row
                        .clone()
                        .zip(&scores)
                        .map(|(j, s)| s / total * at(j, 2 * hidden + c))
                        .sum();
                }
            }
        }
    }
    out
}

fn check(lengths: &[usize], heads: usize, dim: usize, range: f32) -> Result<f64> {
    let (tokens, hidden) = (lengths.iter().sum::<usize>(), heads * dim);
    let mut random = Random::new((tokens * hidden) as u64);
    let qkv = random.values(tokens * 3 * hidden, range);
    let bias = random.values(3 * hidden, 1.0);
    let expected = reference(&qkv, &bias, lengths, heads);
    let op = Attention {
        heads,
        bias: Some(Tensor::from_slice(&bias, bias.len(), &Device::Cpu)?),
    };
    let qkv = Tensor::from_vec(qkv, (tokens, 3 * hidden), &Device::Cpu)?;
    let y = op.apply(&qkv, &indices(&cu_seqlens(lengths))?)?;
    assert_eq!(y.dims(), [tokens, hidden]);
    Ok(max_error(&y.flatten_all()?.to_vec1()?, &expected))
}

#[test]
fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
    let shapes: [(&[usize], usize, usize); 9] = [
        (&[1], 1, 1),
        (&[0, 1, 0, 2], 2, 3),
        (&[5], 3, 16),
        (&[16, 17, 8, 9, 1], 2, 32),
        (&[47, 48, 49], 2, 20),
        (&[200, 3, 97], 3, 64),
        (&[64, 65, 63], 1, 80),
        (&[150], 2, 128),
        (&[7; 40], 12, 32),
    ];
    for (lengths, heads, dim) in shapes {
        let error = check(lengths, heads, dim, 2.0)?;
        assert!(error < 3e-6, "{lengths:?} {heads}x{dim}: {error:e}");
    }
    Ok(())
}

#[test]
fn large_scores_neither_overflow_nor_lose_the_row() -> Result<()> {
    let error = check(&[130, 30], 2, 32, 20.0)?;
    assert!(error < 1e-2, "{error:e}");
    Ok(())
}

#[test]
fn all_instruction_sets_agree() {
    for (heads, dim, len) in [(2, 24, 101), (3, 32, 70), (1, 64, 33), (2, 7, 5)] {
        let hidden = heads * dim;
        let mut random = Random::new(8);
        let qkv = random.values(len * 3 * hidden, 2.0);
        let bias = random.values(3 * hidden, 1.0);
        let run = |set: InstructionSet| {
            let mut out = vec![0f32; len * hidden];
            let task = Task {
                out: &mut out,
                qkv: &qkv,
                bias: &bias,
                first_query: 0,
                heads,
            };
            set.run(Attend(task, &mut Scratch::default()));
            out
        };
        let outputs: Vec<_> = InstructionSet::all().into_iter().map(run).collect();
        let portable: Vec<f64> = outputs[0].iter().map(|&x| f64::from(x)).collect();
        for out in &outputs[1..] {
            assert!(max_error(out, &portable) < 2e-6);
        }
    }
}

#[test]
fn bf16_loses_as_much_as_its_digits_and_zeros_what_is_beside_an_odd_key() -> Result<()> {
    // The longer rows first, so that the shorter ones find their keys in the scratch.
    let lengths = [131, 70, 33, 5, 1];
    for (heads, dim) in [(2, 32), (3, 20), (1, 64), (2, 7)] {
        let (tokens, hidden) = (lengths.iter().sum::<usize>(), heads * dim);
        let mut random = Random::new(21);
        let mut qkv = random.values(tokens * 3 * hidden, 2.0);
        // What the next row must not see of the first, not even times zero.
        qkv[2 * hidden..3 * hidden].fill(f32::INFINITY);
        let bias = random.values(3 * hidden, 1.0);
        let expected = reference(&qkv, &bias, &lengths, heads);
        let op = Attention {
            heads,
            bias: Some(Tensor::from_slice(&bias, bias.len(), &Device::Cpu)?),
        };
        let qkv = Tensor::from_vec(qkv, (tokens, 3 * hidden), &Device::Cpu)?;
        let ends = indices(&cu_seqlens(&lengths))?;
        let op = op.computing(Compute::Bf16);
        let y = op.apply_within(&qkv, &ends, 131)?;
        let y: Vec<f32> = y.flatten_all()?.to_vec1()?;
        let from = 131 * hidden;
        let error = max_error(&y[from..], &expected[from..]);
        assert!(error < 3e-2, "{heads}x{dim}: {error:e}");
        let part: Vec<f32> = op
            .apply_to_part(&qkv, &ends, 150..210)?
            .flatten_all()?
            .to_vec1()?;
        assert_eq!(part, y[150 * hidden..210 * hidden]);
    }
    Ok(())
}

#[test]
fn a_row_does_not_see_its_neighbours() -> Result<()> {
    let (heads, hidden) = (2, 64);
    let op = Attention { heads, bias: None };
    let mut random = Random::new(11);
    let mut values = random.values(30 * 3 * hidden, 1.0);
    let run = |values: &[f32]| -> Result<Vec<f32>> {
        let qkv = Tensor::from_slice(values, (30, 3 * hidden), &Device::Cpu)?;
        let y = op.apply(&qkv, &indices(&[0, 10, 30])?)?;
        y.flatten_all()?.to_vec1()
    };
    let before = run(&values)?;
    values[10 * 3 * hidden..].fill(1e30);
    let after = run(&values)?;
    assert_eq!(before[..10 * hidden], after[..10 * hidden]);
    Ok(())
}

#[test]
fn bad_shapes_are_errors() -> Result<()> {
    let zeros = |width: usize| Tensor::zeros((4, width), candle_core::DType::F32, &Device::Cpu);
    let ends = indices(&[0, 4])?;
    for (heads, width) in [(0, 12), (3, 12), (1, 13)] {
        assert!(
            Attention { heads, bias: None }
                .apply(&zeros(width)?, &ends)
                .is_err()
        );
    }
    let op = Attention {
        heads: 1,
        bias: None,
    };
    assert!(op.apply(&zeros(12)?, &indices(&[0, 3])?).is_err());
    assert!(op.apply(&zeros(12)?, &ends).is_ok());
    Ok(())
}
