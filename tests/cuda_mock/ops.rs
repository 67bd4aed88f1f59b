//! Each op on the device against the same op on the CPU.

use candle_core::{Device, Tensor};
use ferry::ops::ResidualNorm;

use super::mock::on_device;

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
    }
}

fn close(found: &Tensor, expected: &Tensor, tolerance: f32) -> candle_core::Result<()> {
    assert_eq!(found.dims(), expected.dims());
    let found = found.flatten_all()?.to_vec1::<f32>()?;
    let expected = expected.flatten_all()?.to_vec1::<f32>()?;
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "value {i} is {a}, not {b}");
    }
    Ok(())
}

#[test]
fn residual_norm_on_the_device_is_that_on_the_cpu() {
    on_device(|device, mock| {
        let mut random = Random(1);
        for (tokens, hidden) in [(1, 1), (5, 33), (9, 64), (3, 384)] {
            let (x, residual) = (random.tensor(&[tokens, hidden]), random.tensor(&[tokens, hidden]));
            let [bias, weight, norm_bias] = [(); 3].map(|()| random.tensor(&[hidden]));
            let on = |device: &Device| -> candle_core::Result<Tensor> {
                let op = ResidualNorm {
                    bias: bias.to_device(device)?,
                    weight: weight.to_device(device)?,
                    norm_bias: norm_bias.to_device(device)?,
                    epsilon: 1e-5,
                };
                let x = x.copy()?.to_device(device)?;
                op.apply(&x, &residual.to_device(device)?)?;
                Ok(x)
            };
            close(&on(device)?, &on(&Device::Cpu)?, 1e-5)?;
        }
        assert!(mock.launches("ferry_residual_norm_f32") >= 4);
        Ok(())
    });
}
