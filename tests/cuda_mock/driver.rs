//! The mock itself: what is done wrong is seen, whatever candle makes of it.

use candle_core::{DType, Device, Tensor};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use ferry::device::Place;

use super::mock::{Mock, Outcome, on_device};

#[test]
fn tensors_go_to_the_device_and_come_back_and_all_memory_is_freed() {
    on_device(|device, mock| {
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let tensor = Tensor::from_slice(&values, (10, 100), device)?;
        assert_eq!(mock.live_allocations(), 1);
        assert_eq!(tensor.flatten_all()?.to_vec1::<f32>()?, values);
        let zeros = Tensor::zeros((3, 5), DType::F16, device)?;
        assert_eq!(zeros.to_dtype(DType::F32)?.to_vec2::<f32>()?, [[0.0; 5]; 3]);
        Ok(())
    });
}

#[test]
fn a_product_of_candle_on_the_device_is_that_on_the_cpu() {
    on_device(|device, _| {
        let matrix = |rows: usize, columns: usize, step: f32| {
            let values: Vec<f32> = (0..rows * columns)
                .map(|i| (i as f32 * step).sin())
                .collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu)
        };
        let (a, b) = (matrix(3, 7, 0.3)?, matrix(5, 7, 0.7)?);
        let expected = a.matmul(&b.t()?)?.to_vec2::<f32>()?;
        let (a, b) = (a.to_device(device)?, b.to_device(device)?);
        let found = a.matmul(&b.t()?)?.to_vec2::<f32>()?;
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-5);
        }
        Ok(())
    });
}

/// Launches candle's `ucopy_f32`, which copies `count` values from `from` to `to`.
fn copy(
    device: &Device,
    count: usize,
    from: u64,
    to: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let cuda = device.as_cuda_device()?;
    let copy = cuda.get_or_load_func("ucopy_f32", &candle_core::cuda_backend::kernels::UNARY)?;
    let mut launch = copy.builder();
    let (dims, info) = (1_usize, 0_u64);
    launch.arg(&count).arg(&dims).arg(&info).arg(&from).arg(&to);
    // SAFETY: there is no device that could be harmed.
    unsafe { launch.launch(LaunchConfig::for_num_elems(count as u32)) }?;
    cuda.cuda_stream().synchronize()?;
    Ok(())
}

fn address(tensor: &Tensor) -> u64 {
    use candle_core::Storage;
    use cudarc::driver::DevicePtr;
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        panic!("not on the device");
    };
    let slice = storage.as_cuda_slice::<f32>().expect("f32");
    slice.device_ptr(slice.stream()).0
}

/// Runs what must go wrong, on a context that nobody uses afterwards.
fn fault_of(test: impl FnOnce(&Device, &Mock) -> Outcome) -> String {
    let Some(mock) = Mock::new() else {
        return String::new();
    };
    let device = Place::Cuda(0).open().expect("the mock's device");
    let outcome = test(&device, &mock);
    let faults = mock.faults();
    assert!(outcome.is_err(), "nothing went wrong: {faults}");
    // What the context kept must not be the next test's.
    std::mem::forget(device);
    mock.reset();
    faults
}

#[test]
fn a_write_and_a_read_past_an_allocation_are_seen() {
    for (count, shrunk) in [(9, "read"), (9, "write")] {
        let faults = fault_of(|device, _| {
            let (short, long) = (
                Tensor::zeros(8, DType::F32, device)?,
                Tensor::zeros(5000, DType::F32, device)?,
            );
            let (from, to) = if shrunk == "read" {
                (&short, &long)
            } else {
                (&long, &short)
            };
            copy(device, count * 200, address(from), address(to))
        });
        assert!(
            faults.is_empty() || faults.contains("ucopy_f32"),
            "{faults}"
        );
    }
}

#[test]
fn a_count_in_the_place_of_an_address_is_seen() {
    let faults = fault_of(|device, _| {
        let tensor = Tensor::zeros(8, DType::F32, device)?;
        copy(device, 8, 8, address(&tensor))
    });
    assert!(
        faults.is_empty() || faults.contains("a pointer"),
        "{faults}"
    );
}

#[test]
fn no_room_is_an_error_that_says_so_and_the_device_lives() {
    on_device(|device, mock| {
        mock.fail_allocation(1);
        let refused = Tensor::zeros(8, DType::F32, device).expect_err("no room");
        assert!(refused.to_string().contains("OUT_OF_MEMORY"), "{refused}");
        let again = Tensor::ones(8, DType::U32, device);
        let _ = again;
        assert_eq!(
            Tensor::zeros(2, DType::F32, device)?.to_vec1::<f32>()?,
            [0.0; 2]
        );
        Ok(())
    });
}
