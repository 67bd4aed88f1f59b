//! The mock itself: what is done wrong is seen, whatever candle makes of it.

use candle_core::{DType, Device, Tensor};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use ferry::device::{DeviceFailure, Place, classify};
use ferry::ops::{free_memory, upload};

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
    assert!(faults.is_empty() || faults.contains("0x8"), "{faults}");
}

/// Launches Ferry's `ferry_rms_norm_f32` over 3 rows of 40 with these arguments.
fn rms_norm(device: &Device, arguments: [u64; 3], n: i32, epsilon: f32) -> Outcome {
    let cuda = device.as_cuda_device()?;
    let stream = cuda.cuda_stream();
    let fatbin = ferry::ops::kernels::fatbin("rms_norm").expect("the kernel's file");
    let module = stream
        .context()
        .load_module(Ptx::from_binary(fatbin.to_vec()))?;
    let kernel = module.load_function("ferry_rms_norm_f32")?;
    let [y, x, weight] = arguments;
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&y).arg(&x).arg(&weight).arg(&n).arg(&epsilon);
    let shape = LaunchConfig {
        grid_dim: (3, 1, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: there is no device that could be harmed.
    unsafe { launch.launch(shape) }?;
    stream.synchronize()?;
    Ok(())
}

#[test]
fn swapped_arguments_of_a_kernel_of_ferrys_are_seen() {
    on_device(|device, _| {
        let (x, y) = (
            Tensor::zeros((3, 40), DType::F32, device)?,
            Tensor::zeros((3, 40), DType::F32, device)?,
        );
        let weight = Tensor::zeros(40, DType::F32, device)?;
        rms_norm(device, [&y, &x, &weight].map(address), 40, 1e-5)
    });
    // Weight and matrix change places: the weight is too short for what is read as the matrix.
    let faults = fault_of(|device, _| {
        let (x, y) = (
            Tensor::zeros((3, 40), DType::F32, device)?,
            Tensor::zeros((3, 40), DType::F32, device)?,
        );
        let weight = Tensor::zeros(40, DType::F32, device)?;
        rms_norm(device, [&y, &weight, &x].map(address), 40, 1e-5)
    });
    assert!(
        faults.is_empty() || faults.contains("ferry_rms_norm_f32 touched"),
        "{faults}"
    );
    // A number where an address belongs.
    let faults = fault_of(|device, _| {
        let y = Tensor::zeros((3, 40), DType::F32, device)?;
        rms_norm(device, [address(&y), 40, address(&y)], 40, 1e-5)
    });
    assert!(
        faults.is_empty() || faults.contains("argument 1, a pointer"),
        "{faults}"
    );
}

#[test]
fn pinned_memory_that_is_written_to_before_its_copy_is_done_spoils_the_copy() {
    on_device(|device, _| {
        let stream = device.as_cuda_device()?.cuda_stream();
        // SAFETY: u32 has no invalid values.
        let mut pinned = unsafe { stream.context().alloc_pinned::<u32>(4)? };
        pinned.as_mut_slice()?.copy_from_slice(&[1, 2, 3, 4]);
        let mut memory = stream.alloc_zeros::<u32>(4)?;
        stream.memcpy_htod(&pinned, &mut memory)?;
        // cudarc does not know of the copy where it keeps no events: nothing is waited for here.
        pinned.as_mut_slice()?[0] = 9;
        assert_eq!(
            stream.clone_dtoh(&memory)?,
            [9, 2, 3, 4],
            "a mock that copies at once hides this"
        );
        Ok(())
    });
}

#[test]
fn lists_from_staging_memory_arrive_whatever_comes_after_them() {
    on_device(|device, _| {
        let mut uploaded = Vec::new();
        for batch in 0..7_u32 {
            let list: Vec<u32> = (0..100 + batch).map(|i| i * 7 + batch).collect();
            let [ids, ends] = upload(device, [&list, &[batch, 1000]])?;
            uploaded.push((list, ids, ends));
        }
        for (batch, (list, ids, ends)) in uploaded.iter().enumerate() {
            assert_eq!(ids.to_vec1::<u32>()?, *list);
            assert_eq!(ends.to_vec1::<u32>()?, [batch as u32, 1000]);
        }
        Ok(())
    });
}

#[test]
fn no_room_is_an_error_that_says_so_and_the_device_lives() {
    on_device(|device, mock| {
        mock.fail_allocation(1);
        let refused = Tensor::zeros(8, DType::F32, device).expect_err("no room");
        assert!(refused.to_string().contains("OUT_OF_MEMORY"), "{refused}");
        assert_eq!(
            Tensor::zeros(2, DType::F32, device)?.to_vec1::<f32>()?,
            [0.0; 2]
        );
        let free = free_memory(device)?.expect("a device's memory");
        let too_much = Tensor::zeros(free, DType::F32, device);
        assert!(too_much.is_err_and(|error| classify(&error) == DeviceFailure::OutOfMemory));
        Ok(())
    });
}
