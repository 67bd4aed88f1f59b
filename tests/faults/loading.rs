//! Many who want a model that is being loaded.

use std::sync::Arc;

use ferry::api::proto::inference::RepositoryModelLoadRequest;
use tonic::Code;

use super::{
    requests::{EMBED, embed},
    support::{Running, metric, models_of},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_at_a_model_that_loads_is_told_to_wait_and_it_is_loaded_once() {
    let running = Running::serving(models_of(&[EMBED]), |config| {
        config.models.load_at_start = false;
    })
    .await;
    let error = running.typed().embed(embed(1, 4)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let together = Arc::new(tokio::sync::Barrier::new(64 + 256));
    let loading: Vec<_> = (0..64)
        .map(|_| {
            let (mut open, together) = (running.open(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                let request = RepositoryModelLoadRequest {
                    model_name: EMBED.to_owned(),
                    ..RepositoryModelLoadRequest::default()
                };
                open.repository_model_load(request).await
            })
        })
        .collect();
    let calling: Vec<_> = (0..256)
        .map(|_| {
            let (mut typed, together) = (running.typed(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                typed.embed(embed(1, 4)).await
            })
        })
        .collect();
    for load in loading {
        load.await.unwrap().unwrap();
    }
    let mut refused = 0;
    for call in calling {
        if let Err(error) = call.await.unwrap() {
            let codes = [Code::NotFound, Code::Unavailable];
            assert!(codes.contains(&error.code()), "{error}");
            refused += 1;
        }
    }
    assert!(running.typed().embed(embed(2, 4)).await.is_ok());
    // One version is there, with one instance's memory, whoever asked for it how often.
    assert_eq!(metric(&running, "ferry_instances").await, 1);
    assert_eq!(running.server.repository().ready().len(), 1);
    assert_eq!(running.http("/health/ready").await.0, 200);
    println!("{refused} of 256 calls came before the model");
}
