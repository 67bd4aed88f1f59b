//! Devices: what configuration asks for, memory that runs out, and devices that are lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use ferry::{
    config::{DeviceChoice, ServerConfig},
    engine::{Forward, Recovery},
    error::RequestError,
    models::ForwardError,
    server::Server,
};
use tokio::sync::watch;

use super::{
    cli::{ferry, refused},
    echo::{Bench, echo},
    support::{Running, models_of, write_manifest},
};

const NO_MEMORY: &str = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
const ILLEGAL: &str =
    "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")";
/// The device is lost when it meets this token.
const KILLS: u32 = 700;
/// No batch with this token fits.
const HUGE: u32 = 701;

fn device_error(text: &'static str) -> ForwardError {
    ForwardError::Device(candle_core::Error::Cuda(text.into()))
}

/// A device that has memory for so many rows, and that is lost for good when it meets [`KILLS`].
fn device_of(rows: usize) -> Forward {
    let is_lost = AtomicBool::new(false);
    Arc::new(move |batch| {
        if batch.tokens().contains(&KILLS) {
            is_lost.store(true, SeqCst);
        }
        if is_lost.load(SeqCst) {
            return Err(device_error(ILLEGAL));
        }
        if batch.rows() > rows || batch.tokens().contains(&HUGE) {
            return Err(device_error(NO_MEMORY));
        }
        Ok(echo(batch))
    })
}

#[tokio::test]
async fn a_batch_that_the_device_has_no_memory_for_is_answered_in_parts() {
    let bench = Bench::over(vec![device_of(2)], Recovery::Stay);
    let tokens: Vec<u32> = (1..=9).collect();
    let found = bench.ask(&tokens).await;
    let expected: Vec<_> = tokens.iter().map(|&token| Ok(token as f32)).collect();
    assert_eq!(found, expected);
    assert!(bench.metrics.device.split_batches.get() >= 1);
    assert_eq!(bench.metrics.isolated_batches.get(), 0);
}

#[tokio::test]
async fn a_row_that_never_fits_is_refused_alone_and_the_instance_lives() {
    let bench = Bench::over(vec![device_of(8)], Recovery::Stay);
    let found = bench.ask(&[1, HUGE, 3]).await;
    assert_eq!((&found[0], &found[2]), (&Ok(1.0), &Ok(3.0)));
    let error = found[1].clone().unwrap_err();
    assert!(
        matches!(error, RequestError::DeviceMemory { .. }),
        "{error:?}"
    );
    let mapped = ferry::api::status::map(&error);
    assert_eq!(mapped.grpc, tonic::Code::ResourceExhausted);
    assert_eq!(bench.ask(&[5]).await, [Ok(5.0)]);
    assert_eq!(bench.engine.lost(), None);
}

#[tokio::test]
async fn when_the_last_instance_is_lost_all_that_waits_is_answered_and_nothing_more_is_taken() {
    let mut bench = Bench::over(vec![device_of(8)], Recovery::Stay);
    for answer in bench.ask(&[1, KILLS, 3]).await {
        // Which of them was run with the deadly one is the queue's business.
        let Err(error) = answer else { continue };
        assert_eq!(
            ferry::api::status::map(&error).grpc,
            tonic::Code::Unavailable
        );
        assert!(error.retry_after().is_some());
    }
    bench.changed(1).await;
    let error = bench.submit(&[4]).unwrap_err();
    assert!(
        error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"),
        "{error}"
    );
    assert!(
        bench
            .engine
            .lost()
            .unwrap()
            .contains("CUDA_ERROR_ILLEGAL_ADDRESS")
    );
    assert_eq!(bench.metrics.device.failed_instances.get(), 1);
}

#[tokio::test]
async fn a_lost_instance_is_freed_first_and_then_made_anew_where_it_was() {
    let held = Arc::new(());
    let first = {
        let (held, device) = (Arc::clone(&held), device_of(8));
        let forward: Forward = Arc::new(move |batch| {
            let answer = device(batch);
            drop(Arc::clone(&held));
            answer
        });
        forward
    };
    let attempts = Arc::new(AtomicUsize::new(0));
    let (tried, context) = (Arc::clone(&attempts), Arc::clone(&held));
    let reload = Arc::new(move |instance: usize| {
        assert_eq!(instance, 0);
        assert_eq!(
            Arc::strong_count(&context),
            2,
            "the old model still holds its context"
        );
        match tried.fetch_add(1, SeqCst) {
            0 => Err("the context is still held by another model".to_owned()),
            _ => Ok(device_of(8)),
        }
    });
    let mut bench = Bench::over(vec![first], Recovery::Restart(reload));
    assert_eq!(bench.ask(&[1]).await, [Ok(1.0)]);
    assert!(bench.ask(&[KILLS]).await[0].is_err());
    bench.changed(2).await;
    assert_eq!(attempts.load(SeqCst), 2);
    assert_eq!(bench.ask(&[2]).await, [Ok(2.0)]);
    assert_eq!(bench.metrics.device.restarts.get(), 1);
    assert_eq!(bench.metrics.device.failed_instances.get(), 0);
    assert_eq!(bench.engine.lost(), None);
}

#[tokio::test]
async fn while_another_instance_lives_requests_are_answered() {
    let mut bench = Bench::over(vec![device_of(8), device_of(8)], Recovery::Stay);
    assert!(bench.ask(&[KILLS]).await[0].is_err());
    bench.changed(1).await;
    for token in 0..50 {
        assert_eq!(bench.ask(&[token]).await, [Ok(token as f32)]);
    }
    assert_eq!(bench.engine.lost(), None);
    assert_eq!(bench.metrics.device.failed_instances.get(), 1);
}

#[tokio::test]
async fn a_panic_that_names_a_lost_context_counts_as_one() {
    let forward: Forward = Arc::new(|_| panic!("unwrap on {ILLEGAL}"));
    let (told, mut telling) = watch::channel(String::new());
    let tell = Arc::new(move |reason: &str| {
        told.send_replace(reason.to_owned());
    });
    let bench = Bench::over(vec![forward], Recovery::Tell(tell));
    let error = bench.ask(&[1]).await[0].clone().unwrap_err();
    assert!(
        matches!(error, RequestError::DeviceLost { .. }),
        "{error:?}"
    );
    let reason = telling.wait_for(|reason| !reason.is_empty()).await.unwrap();
    assert!(reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{}", *reason);
}

/// What a demanded GPU that is not there is answered with, in this build on a machine without one.
fn why_not() -> &'static str {
    if cfg!(feature = "cuda") {
        "is missing"
    } else {
        "built without CUDA"
    }
}

/// Whether this machine has a GPU that this build can use: then there is nothing to refuse.
fn has_gpu() -> bool {
    matches!(ferry::device::cuda(), ferry::device::Cuda::Devices(_))
}

#[tokio::test]
async fn a_server_that_is_told_to_use_a_gpu_that_is_not_there_does_not_start_and_says_why() {
    if has_gpu() {
        return;
    }
    let models = models_of(&["tiny-bert-embed"]);
    let mut config = ServerConfig::default();
    models.path().clone_into(&mut config.models.directory);
    config.models.device = DeviceChoice::Cuda(vec![0]);
    let error = Server::start(config).await.unwrap_err().to_string();
    assert!(error.contains("models.device = \"cuda:0\""), "{error}");
    assert!(error.contains(why_not()), "{error}");

    let folder = models.path().to_str().unwrap();
    let output = ferry(&["serve", "--models", folder, "--device", "cuda:0"]);
    assert!(!output.status.success());
    assert!(refused(&output).contains(why_not()), "{}", refused(&output));
}

#[tokio::test]
async fn a_model_that_is_told_to_use_a_gpu_that_is_not_there_fails_to_load_beside_those_that_do() {
    if has_gpu() {
        return;
    }
    let models = models_of(&["tiny-bert-embed", "tiny-bert-classify"]);
    let manifest = "task = \"embed\"\n[resources]\ndevice = [\"cuda:0\", \"cuda:1\"]\n";
    write_manifest(models.path(), "tiny-bert-embed", manifest);
    let running = Running::serving(models, |_| {}).await;
    let status = running
        .server
        .repository()
        .status_of("tiny-bert-embed")
        .unwrap();
    let reason = &status.versions[0].reason;
    assert!(
        reason.contains("cuda:0,cuda:1") && reason.contains(why_not()),
        "{reason}"
    );
    let (code, page) = running.http("/metrics").await;
    assert_eq!(code, 200);
    let line = "ferry_instances{device=\"cpu\",model=\"tiny-bert-classify\",version=\"1\"} 1";
    assert!(page.contains(line), "{page}");
    assert_eq!(running.http("/health/ready").await.0, 200);
}
