//! A model that does not come back, as callers, probes and operators of a server see it. What hangs is
//! a batch so large that it takes longer than the watchdog allows.

use std::time::{Duration, Instant};

use ferry::{
    api::proto::ferry::v1::inference_client::InferenceClient,
    config::{ServerConfig, WatchdogConfig, WhenSpent},
};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use super::{
    process::start,
    requests::{EMBED, HUGE, LONGEST, ONE_HUGE_BATCH, embed},
    support::{Running, metric, models_of, write_manifest},
};

fn impatient(config: &mut ServerConfig) {
    config.limits.max_rows = 65_536;
    config.models.watchdog = WatchdogConfig {
        limit_seconds: 0.05,
        factor: 1.0,
        max_replacements: 64,
        then: WhenSpent::Unready,
    };
}

fn assert_hung(error: &Status) {
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("did not answer within"), "{error}");
    assert!(error.get_details_retry_info().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_hangs_is_not_ready_until_another_instance_took_over() {
    let models = models_of(&[EMBED]);
    let manifest = format!("task = \"embed\"\n{ONE_HUGE_BATCH}");
    write_manifest(models.path(), EMBED, &manifest);
    let running = Running::serving(models, impatient).await;
    let mut health = HealthClient::new(running.channel());
    let watched = HealthCheckRequest {
        service: EMBED.to_owned(),
    };
    let mut states = health.watch(watched).await.unwrap().into_inner();
    let serving = |status: i32| status == 1;
    assert!(serving(states.message().await.unwrap().unwrap().status));

    let error = running.typed().embed(embed(HUGE, LONGEST)).await;
    assert_hung(&error.unwrap_err());
    // As the answer tells it: try again soon.
    let began = Instant::now();
    loop {
        match running.typed().embed(embed(1, 4)).await {
            Ok(answer) => break assert_eq!(answer.into_inner().rows.len(), 1),
            Err(error) => assert_hung(&error),
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(metric(&running, "ferry_instance_hangs_total").await >= 1);
    assert!(metric(&running, "ferry_instance_restarts_total").await >= 1);
    assert!(metric(&running, "ferry_requests_total{outcome=\"unavailable\"}").await >= 1);
    assert_eq!(metric(&running, "ferry_waiting_rows").await, 0);
    // It was told that the model is not ready, unless the next word came before it was sent; the last
    // word is that it is.
    while running.http("/health/ready").await.0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_model_hangs_too_often_ends_with_an_error() {
    let models = models_of(&[EMBED]);
    let manifest = format!("task = \"embed\"\n{ONE_HUGE_BATCH}");
    write_manifest(models.path(), EMBED, &manifest);
    let config = tempfile::NamedTempFile::new().unwrap();
    let settings = "[models.watchdog]\nlimit_seconds = 0.05\nfactor = 1\nmax_replacements = 0\n\
                    [limits]\nmax_rows = 65536\n";
    std::fs::write(config.path(), settings).unwrap();
    let more = ["--config", config.path().to_str().unwrap()];
    let (mut child, address, log) = start(models.path().to_str().unwrap(), &more);
    let client = InferenceClient::connect(format!("http://{address}")).await;
    let error = client.unwrap().embed(embed(HUGE, LONGEST)).await;
    assert_hung(&error.unwrap_err());
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert_eq!(ended.await.unwrap().code(), Some(1));
    let log = log.join().unwrap();
    assert!(log.contains("an instance hangs"), "{log}");
    assert!(log.contains("a model is lost"), "{log}");
}
