//! Each op on the device against the same op on the CPU, in every type that its kernel has.

use candle_core::{DType, Device, Result, Tensor};
use ferry::ops::{
    Activation, Attention, BiasActivation, EmbedNorm, GatedActivation, Pool, Pooling, ResidualNorm,
    ResidualRmsNorm, RmsNorm, WordTable,
};

use super::mock::on_device;

/// Types of activations, and how far a value of about 1 may be from the CPU's.
const TYPES: [(DType, f32); 3] = [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Values in ±1 that every type holds.
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        let tensor =
            Tensor::from_vec(values, shape, &Device::Cpu).and_then(|tensor| rounded(&tensor));
        tensor.expect("a tensor")
    }
}

fn rounded(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}

fn indices(values: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)
}

fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let values = |tensor: &Tensor| -> Result<Vec<f32>> {
        tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    };
    let (found, expected) = (values(found).expect(what), values(expected).expect(what));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        let allowed = tolerance * b.abs().max(1.0);
        assert!(
            (a - b).abs() <= allowed,
            "{what}: value {i} is {a}, not {b}"
        );
    }
}

/// Runs `op` on the CPU and, in each type, on the device. It gets the device, and what puts a tensor
/// of activations there.
fn agrees(
    name: &'static str,
    op: impl Fn(&Device, &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<Tensor>>,
) {
    on_device(|device, mock| {
        let expected = op(&Device::Cpu, &Tensor::copy)?;
        for (dtype, tolerance) in TYPES {
            let launches = mock.launches_of_all();
            let found = op(device, &|tensor| tensor.to_device(device)?.to_dtype(dtype))?;
            assert!(mock.launches_of_all() > launches, "{name} launched nothing");
            for (found, expected) in found.iter().zip(&expected) {
                close(&format!("{name} {dtype:?}"), found, expected, tolerance);
            }
        }
        Ok(())
    });
}

#[test]
fn residual_norm_agrees() {
    let mut random = Random(1);
    for (tokens, hidden) in [(1, 8), (5, 33), (9, 64), (3, 384)] {
        let [x, residual] = [(); 2].map(|()| random.tensor(&[tokens, hidden]));
        let [bias, weight, norm_bias] = [(); 3].map(|()| random.tensor(&[hidden]));
        agrees("residual norm", |device, put| {
            let op = ResidualNorm {
                bias: bias.to_device(device)?,
                weight: weight.to_device(device)?,
                norm_bias: norm_bias.to_device(device)?,
                epsilon: 1e-5,
            };
            let x = put(&x)?;
            op.apply(&x, &put(&residual)?)?;
            Ok(vec![x])
        });
    }
}

#[test]
fn embed_norm_agrees_with_and_without_tables() {
    let mut random = Random(2);
    let (word, position) = (random.tensor(&[50, 36]), random.tensor(&[20, 36]));
    let token_type = random.tensor(&[2, 36]);
    let [weight, bias] = [(); 2].map(|()| random.tensor(&[36]));
    for (with_position, with_type, offset) in [(true, true, 2), (true, false, 0), (false, true, 0)]
    {
        agrees("embed norm", |device, put| {
            let op = EmbedNorm {
                word: WordTable::Dense(put(&word)?),
                position: with_position.then(|| put(&position)).transpose()?,
                token_type: with_type.then(|| put(&token_type)).transpose()?,
                weight: weight.to_device(device)?,
                bias: bias.to_device(device)?,
                epsilon: 1e-5,
                position_offset: offset,
            };
            let tokens = indices(&[49, 3, 0, 7, 3, 21, 8], device)?;
            let types = indices(&[0, 1, 1, 0, 0, 1, 0], device)?;
            let ends = indices(&[0, 3, 4, 7], device)?;
            Ok(vec![op.apply(&tokens, &types, &ends)?])
        });
    }
}

#[test]
fn attention_agrees_for_heads_of_all_sizes() {
    let mut random = Random(3);
    for (heads, dim) in [(4, 8), (2, 32), (1, 64), (1, 96)] {
        let hidden = heads * dim;
        let (qkv, bias) = (
            random.tensor(&[100, 3 * hidden]),
            random.tensor(&[3 * hidden]),
        );
        agrees("attention", |device, put| {
            let op = Attention {
                heads,
                bias: Some(bias.to_device(device)?),
            };
            let ends = indices(&[0, 70, 71, 100], device)?;
            Ok(vec![op.apply_within(&put(&qkv)?, &ends, 70)?])
        });
    }
}

#[test]
fn bias_activation_agrees_for_all_activations() {
    let mut random = Random(4);
    let (x, bias) = (random.tensor(&[5, 130]), random.tensor(&[130]));
    for activation in [
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Tanh,
        Activation::Silu,
    ] {
        agrees("bias activation", |device, put| {
            let x = put(&x)?;
            BiasActivation(activation).apply(&x, &bias.to_device(device)?)?;
            Ok(vec![x])
        });
    }
}

#[test]
fn pooling_agrees_in_all_its_forms() {
    let mut random = Random(5);
    let x = random.tensor(&[30, 48]);
    for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
        for (dimension, normalize) in [(None, false), (None, true), (Some(7), true)] {
            agrees("pool", |device, put| {
                let op = Pool {
                    pooling,
                    dimension,
                    normalize,
                };
                let ends = indices(&[0, 1, 20, 30], device)?;
                Ok(vec![op.apply(&put(&x)?, &ends)?])
            });
        }
    }
}

#[test]
fn rms_norm_agrees_alone_and_with_the_residual_sums() {
    let mut random = Random(6);
    for n in [8, 40, 129] {
        let [x, delta] = [(); 2].map(|()| random.tensor(&[6, n]));
        let [next, post] = [(); 2].map(|()| random.tensor(&[n]));
        agrees("rms norm", |device, put| {
            let norm = |weight: &Tensor, epsilon| -> Result<RmsNorm> {
                Ok(RmsNorm::new(weight.to_device(device)?, epsilon))
            };
            let plain = ResidualRmsNorm::new(None, norm(&next, 1e-5)?);
            let with_post = ResidualRmsNorm::new(Some(norm(&post, 1e-6)?), norm(&next, 1e-5)?);
            let alone = norm(&next, 1e-6)?.apply(&put(&x)?)?;
            let (sum, delta) = (put(&x)?, put(&delta)?);
            let first = plain.apply(&sum, &delta)?;
            let second = with_post.apply(&sum, &delta)?;
            Ok(vec![alone, first, second, sum])
        });
    }
}

#[test]
fn the_gate_agrees() {
    let mut random = Random(7);
    for n in [8, 37, 1100] {
        let gate_up = random.tensor(&[3, 2 * n]);
        agrees("gate", |_, put| {
            Ok(vec![
                GatedActivation(Activation::Silu).apply(&put(&gate_up)?)?,
                GatedActivation(Activation::GeluTanh).apply(&put(&gate_up)?)?,
            ])
        });
    }
}

#[test]
fn shapes_that_do_not_agree_are_errors_before_anything_is_launched() {
    on_device(|device, mock| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
        let launches = mock.launches_of_all();
        let op = ResidualNorm {
            bias: zeros(&[8])?,
            weight: zeros(&[8])?,
            norm_bias: zeros(&[8])?,
            epsilon: 1e-5,
        };
        let narrow = op.apply(&zeros(&[3, 7])?, &zeros(&[3, 7])?);
        assert!(narrow.is_err_and(|error| error.to_string().contains("must have 7 values")));
        let half = zeros(&[3, 8])?.to_dtype(DType::F16)?;
        let launches_of_the_cast = mock.launches_of_all() - launches;
        let mixed = op.apply(&zeros(&[3, 8])?, &half);
        assert!(mixed.is_err_and(|error| error.to_string().contains("residual must be F32")));
        let here = Tensor::zeros(8, DType::F32, &Device::Cpu)?;
        let apart = ResidualNorm { bias: here, ..op }.apply(&zeros(&[3, 8])?, &zeros(&[3, 8])?);
        assert!(apart.is_err_and(|error| error.to_string().contains("on the device")));
        assert!(
            GatedActivation(Activation::Silu)
                .apply(&zeros(&[3, 7])?)
                .is_err()
        );
        assert_eq!(mock.launches_of_all(), launches + launches_of_the_cast);
        Ok(())
    });
}
