//! `grpc.health.v1`: the server as a whole (the empty name) and each model by its name.

use std::collections::BTreeSet;

use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};

use super::Shared;

/// The health service, kept up to date by a task that ends with the server.
pub fn serve_health(shared: &Shared) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    tokio::spawn(report(reporter, shared.clone()));
    service
}

async fn report(reporter: HealthReporter, shared: Shared) {
    let repository = shared.admission.repository();
    let mut models = repository.watch();
    let mut started = shared.started.clone();
    let mut closing = shared.closing.clone();
    let mut known = BTreeSet::new();
    loop {
        let serving = |yes| {
            if yes {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            }
        };
        let open = !shared.admission.is_closed();
        reporter
            .set_service_status("", serving(shared.is_ready()))
            .await;
        let ready: BTreeSet<String> = repository
            .ready()
            .iter()
            .filter(|model| model.lost().is_none())
            .map(|model| model.name.clone())
            .collect();
        for gone in known.difference(&ready) {
            reporter
                .set_service_status(gone, ServingStatus::NotServing)
                .await;
        }
        for name in &ready {
            reporter.set_service_status(name, serving(open)).await;
        }
        known.extend(ready);
        let over = tokio::select! {
            changed = models.changed() => changed.is_err(),
            changed = started.changed() => changed.is_err(),
            _ = closing.wait_for(|closing| *closing) => true,
        };
        if over {
            // The last word before the listener closes: nothing is served any more.
            for name in known.iter().map(String::as_str).chain([""]) {
                reporter
                    .set_service_status(name, ServingStatus::NotServing)
                    .await;
            }
            return;
        }
    }
}
