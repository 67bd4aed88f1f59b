//! A process that ends in the midst of its work. How it goes down when it is asked to, and what
//! becomes of jobs, is in `tests/it/drain.rs` and `tests/it/jobs.rs`.

use std::{process::Command, time::Duration};

use ferry::api::proto::ferry::v1::inference_client::InferenceClient;
use tonic::Code;

use super::{
    process::{FERRY, Served, start_by},
    requests::{EMBED, embed},
    support::models_of,
};

fn serve(models: &str, config: &str) -> Served {
    start_by(Command::new(FERRY), models, &["--config", config])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_load_leaves_nothing_that_the_next_one_stumbles_over() {
    let models = models_of(&[EMBED]);
    let models = models.path().to_str().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let log = kept.path().join("requests.log");
    let config = kept.path().join("ferry.toml");
    let settings = format!(
        "[request_log]\nfile = {log:?}\n[models]\nstate_file = {:?}\n",
        kept.path().join("routes.json")
    );
    std::fs::write(&config, settings).unwrap();
    let config = config.to_str().unwrap();
    for _ in 0..3 {
        let Served {
            mut child, grpc, ..
        } = serve(models, config);
        let calling: Vec<_> = (0..8)
            .map(|_| {
                let url = format!("http://{grpc}");
                tokio::spawn(async move {
                    let mut client = InferenceClient::connect(url).await.unwrap();
                    let mut answered = 0;
                    loop {
                        match client.embed(embed(16, 32)).await {
                            Ok(answer) => {
                                assert_eq!(answer.into_inner().rows.len(), 16);
                                answered += 1;
                            }
                            Err(error) => return (answered, error),
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for client in calling {
            let within = tokio::time::timeout(Duration::from_secs(20), client).await;
            let (answered, error) = within.expect("a caller waits for ever").unwrap();
            assert!(answered > 0);
            // The transport's words for a connection that broke.
            let broken = [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::Internal,
            ];
            assert!(broken.contains(&error.code()), "{error}");
        }
    }
    let Served {
        mut child, grpc, ..
    } = serve(models, config);
    let mut client = InferenceClient::connect(format!("http://{grpc}"))
        .await
        .unwrap();
    assert_eq!(
        client
            .embed(embed(2, 8))
            .await
            .unwrap()
            .into_inner()
            .rows
            .len(),
        2
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = std::fs::read_to_string(log).unwrap();
    assert!(lines.lines().count() > 8);
    for line in lines.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "{line}"
        );
    }
}
