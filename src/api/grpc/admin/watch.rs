//! `Watch`: the status of every model, and again of those that changed.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{action, closed, encode};
use crate::{
    api::{grpc::Shared, proto::ferry::v1 as pb},
    error::RequestError,
    repository::Repository,
};

/// Messages that a reader may leave unread; then changes gather until it has caught up.
const UNREAD: usize = 4;
/// What `interval_ms` may be, beside 0.
const INTERVALS: std::ops::RangeInclusive<u32> = 100..=60_000;

pub type Changes = ReceiverStream<Result<pb::WatchResponse, Status>>;
type Models = BTreeMap<String, pb::ModelStatus>;

/// Starts a watch.
///
/// # Errors
/// [`RequestError`] for a model that isn't there or an interval outside its range.
pub async fn start(
    shared: &Shared,
    permit: OwnedSemaphorePermit,
    request: pb::WatchRequest,
) -> Result<Changes, RequestError> {
    let look = match request.interval_ms {
        0 => None,
        fine if INTERVALS.contains(&fine) => Some(Duration::from_millis(fine.into())),
        other => {
            let allowed = "0 (changes only), or 100 to 60000";
            return Err(RequestError::invalid("interval_ms", other, allowed));
        }
    };
    let repository = Arc::clone(shared.admission.repository());
    let first = encode::named(&repository, &request.model).await?;
    let (changes, unread) = mpsc::channel(UNREAD);
    tokio::spawn(watch(
        shared.clone(),
        repository,
        request.model,
        first,
        look,
        changes,
        permit,
    ));
    Ok(ReceiverStream::new(unread))
}

async fn watch(
    shared: Shared,
    repository: Arc<Repository>,
    model: String,
    first: Vec<pb::ModelStatus>,
    look: Option<Duration>,
    changes: mpsc::Sender<Result<pb::WatchResponse, Status>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut changed = repository.watch();
    let mut closing = pin!(closed(shared.closing));
    // Without an interval it never ticks: the branch below is off.
    let mut ticks = interval(look.unwrap_or(Duration::from_secs(3600)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Models::new();
    let mut next = Some(first);
    loop {
        let is_first = next.is_some();
        // Looked at anew after the first, which the caller may have waited for.
        let models = match next.take() {
            Some(first) => first,
            None => encode::named(&repository, &model).await.unwrap_or_default(),
        };
        let models: Models = models
            .into_iter()
            .map(|status| (status.name.clone(), status))
            .collect();
        let message = difference(&known, &models);
        let says_something = is_first || !message.models.is_empty() || !message.gone.is_empty();
        if says_something && changes.send(Ok(message)).await.is_err() {
            return;
        }
        known = models;
        tokio::select! {
            () = changes.closed() => return,
            () = &mut closing => return,
            _ = changed.changed() => {}
            _ = ticks.tick(), if look.is_some() => {}
        }
    }
}

fn difference(before: &Models, now: &Models) -> pb::WatchResponse {
    let changed = now
        .iter()
        .filter(|(name, status)| before.get(*name) != Some(status));
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let states = changed.clone().filter_map(|(name, status)| {
        let earlier = before.get(name)?;
        let earlier = action::states_of(Some(earlier));
        let now = action::states_of(Some(status));
        Some(action::changes(name, &earlier, &now))
    });
    pb::WatchResponse {
        changes: states.flatten().collect(),
        models: changed.map(|(_, status)| status.clone()).collect(),
        gone: gone.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_other_than_before_is_told() {
        let models = |names: &[(&str, u64)]| -> Models {
            names
                .iter()
                .map(|(name, in_flight)| {
                    let version = pb::VersionStatus {
                        version: 1,
                        in_flight: *in_flight,
                        ..pb::VersionStatus::default()
                    };
                    let status = pb::ModelStatus {
                        name: (*name).to_owned(),
                        versions: vec![version],
                        ..pb::ModelStatus::default()
                    };
                    ((*name).to_owned(), status)
                })
                .collect()
        };
        let before = models(&[("a", 0), ("b", 0), ("c", 0)]);
        let told = difference(&before, &models(&[("a", 0), ("b", 3), ("d", 0)]));
        let names: Vec<_> = told
            .models
            .iter()
            .map(|model| model.name.as_str())
            .collect();
        assert_eq!(names, ["b", "d"]);
        assert_eq!(told.gone, ["c"]);
        assert!(told.changes.is_empty(), "no state is another");
    }
}
