//! An action that takes time: it runs off the I/O threads, to its end whether or not anyone listens,
//! and what happens meanwhile is told as it happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{audit::Audit, closed, encode, errors::action_status};
use crate::{
    api::{grpc::Shared, proto::ferry::v1 as pb, status::status_of},
    error::RequestError,
    repository::Repository,
};

/// Steps that a reader may leave unread before it is waited for; the action itself waits for nobody.
const UNREAD: usize = 16;
/// How often the states are looked at beside their being announced.
const LOOK: Duration = Duration::from_millis(200);
/// How often a drain that goes on is told of.
const TELL: Duration = Duration::from_secs(1);

/// What an action did.
#[derive(Debug)]
pub struct Outcome {
    /// The version it was about; 0 for the whole model.
    pub version: u64,
    /// In a sentence.
    pub summary: String,
    /// Versions that are to have answered everything before it is done.
    pub drains: Vec<u64>,
}

impl Outcome {
    pub fn new(version: u64, summary: String) -> Self {
        Self {
            version,
            summary,
            drains: Vec::new(),
        }
    }
}

pub type Steps = ReceiverStream<Result<pb::Progress, Status>>;

/// Starts `work` and returns the stream of what happens.
pub async fn start(
    shared: &Shared,
    permit: OwnedSemaphorePermit,
    audit: Audit,
    model: String,
    work: impl FnOnce(&Repository) -> Result<Outcome, RequestError> + Send + 'static,
) -> Steps {
    let repository = Arc::clone(shared.admission.repository());
    let known = states_of(encode::status(&repository, &model).await.as_ref());
    let (ended, end) = oneshot::channel();
    let working = Arc::clone(&repository);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let worked = std::panic::AssertUnwindSafe(|| work(&working));
        let result = std::panic::catch_unwind(worked)
            .unwrap_or_else(|_| Err(RequestError::internal("the action panicked; see the log")));
        audit.close(&result);
        // Fails when nobody listens any more.
        let _ = ended.send(result);
    });
    let (steps, unread) = mpsc::channel(UNREAD);
    let follow = Follow {
        shared: shared.clone(),
        repository,
        model,
        known,
        began: Instant::now(),
        told_of_waiting: Instant::now(),
        steps,
    };
    tokio::spawn(follow.run(end));
    ReceiverStream::new(unread)
}

type States = BTreeMap<u64, pb::VersionStatus>;

/// Follows an action on one model.
struct Follow {
    shared: Shared,
    repository: Arc<Repository>,
    model: String,
    known: States,
    began: Instant,
    told_of_waiting: Instant,
    steps: mpsc::Sender<Result<pb::Progress, Status>>,
}

impl Follow {
    async fn run(mut self, mut end: oneshot::Receiver<Result<Outcome, RequestError>>) {
        let mut changed = self.repository.watch();
        let mut closing = pin!(closed(self.shared.closing.clone()));
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was done, while what it replaced still drains.
        let mut done: Option<Outcome> = None;
        loop {
            let ended = tokio::select! {
                biased;
                ended = &mut end, if done.is_none() => Some(ended),
                () = self.steps.closed() => return,
                () = &mut closing => {
                    let _ = self.steps.send(Err(status_of(&RequestError::ShuttingDown))).await;
                    return;
                }
                // An error would mean that the repository is gone, which `self` holds.
                _ = changed.changed() => None,
                _ = look.tick() => None,
            };
            let now = encode::status(&self.repository, &self.model).await;
            if !self.tell_changes(now.as_ref()).await {
                return;
            }
            match ended {
                None => {}
                Some(Ok(Ok(outcome))) => done = Some(outcome),
                Some(Ok(Err(error))) => {
                    let _ = self.steps.send(Err(action_status(&error))).await;
                    return;
                }
                // The sender is dropped unsent only when the runtime is.
                Some(Err(_)) => {
                    let _ = self
                        .steps
                        .send(Err(status_of(&RequestError::ShuttingDown)))
                        .await;
                    return;
                }
            }
            if let Some(outcome) = done.take_if(|outcome| !self.drains(outcome)) {
                self.tell(pb::progress::Step::Done(pb::Done {
                    version: outcome.version,
                    summary: outcome.summary,
                    took_us: self.began.elapsed().as_micros() as u64,
                    status: now,
                }))
                .await;
                return;
            }
        }
    }

    /// Whether something that the action waits for is still to be answered.
    fn drains(&self, outcome: &Outcome) -> bool {
        outcome.drains.iter().any(|version| {
            let status = self.known.get(version);
            status.is_some_and(|status| status.state() == pb::VersionState::Draining)
        })
    }

    /// False when the reader is gone.
    async fn tell_changes(&mut self, now: Option<&pb::ModelStatus>) -> bool {
        let states = states_of(now);
        for change in changes(&self.model, &self.known, &states) {
            if !self.tell(pb::progress::Step::Change(change)).await {
                return false;
            }
        }
        if self.told_of_waiting.elapsed() >= TELL {
            self.told_of_waiting = Instant::now();
            for status in states.values() {
                let draining = status.state() == pb::VersionState::Draining;
                let waiting = pb::Waiting {
                    version: status.version,
                    in_flight: status.in_flight,
                };
                if draining && !self.tell(pb::progress::Step::Waiting(waiting)).await {
                    return false;
                }
            }
        }
        self.known = states;
        true
    }

    /// False when the reader is gone.
    async fn tell(&self, step: pb::progress::Step) -> bool {
        let progress = pb::Progress { step: Some(step) };
        self.steps.send(Ok(progress)).await.is_ok()
    }
}

/// The versions of a model, by number.
pub fn states_of(status: Option<&pb::ModelStatus>) -> States {
    let versions = status.into_iter().flat_map(|status| &status.versions);
    versions
        .map(|version| (version.version, version.clone()))
        .collect()
}

/// The versions that are in another state than before.
pub fn changes(model: &str, before: &States, now: &States) -> Vec<pb::StateChange> {
    let numbers: BTreeSet<u64> = before.keys().chain(now.keys()).copied().collect();
    let state = |states: &States, number| {
        states
            .get(&number)
            .map_or(pb::VersionState::Unspecified, pb::VersionStatus::state)
    };
    numbers
        .into_iter()
        .filter(|number| state(before, *number) != state(now, *number))
        .map(|number| pb::StateChange {
            model: model.to_owned(),
            version: number,
            from: state(before, number).into(),
            to: state(now, number).into(),
            reason: now
                .get(&number)
                .map_or_else(String::new, |status| status.reason.clone()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(version: u64, state: pb::VersionState) -> (u64, pb::VersionStatus) {
        let status = pb::VersionStatus {
            version,
            state: state.into(),
            reason: "why".to_owned(),
            ..pb::VersionStatus::default()
        };
        (version, status)
    }

    #[test]
    fn what_came_went_or_is_in_another_state_is_told() {
        use pb::VersionState as S;
        let before = States::from([
            version(1, S::Ready),
            version(2, S::Loading),
            version(4, S::Ready),
        ]);
        let now = States::from([
            version(1, S::Ready),
            version(2, S::Warming),
            version(3, S::Absent),
        ]);
        let told: Vec<_> = changes("m", &before, &now)
            .into_iter()
            .map(|change| (change.version, change.from(), change.to(), change.reason))
            .collect();
        let why = || "why".to_owned();
        let wanted = [
            (2, S::Loading, S::Warming, why()),
            (3, S::Unspecified, S::Absent, why()),
            (4, S::Ready, S::Unspecified, String::new()),
        ];
        assert_eq!(told, wanted);
    }
}
