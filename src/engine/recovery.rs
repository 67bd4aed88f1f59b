//! What becomes of an instance that is lost, with its device or since it hangs: it stays so, is made
//! anew, or somebody is told who ends the process. Meanwhile the engine refuses what it can't run.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use crate::{
    device::{DeviceFailure, classify, classify_text},
    engine::watchdog::Watchdog,
    error::RequestError,
    models::ForwardError,
    telemetry::DeviceMetrics,
};

/// Makes an instance anew by its number: a fresh context, the weights loaded again.
pub type Reload<F> = Arc<dyn Fn(usize) -> Result<F, String> + Send + Sync>;

/// What happens to an instance whose device is lost.
pub enum Recovery<F> {
    /// It stays lost.
    Stay,
    /// It is made anew. Tried some times, ever further apart: others may still hold the old context.
    Restart(Reload<F>),
    /// This is told why, and sees to the end of the process; the instance stays lost.
    Tell(Arc<dyn Fn(&str) + Send + Sync>),
}

/// Pauses before each attempt to make an instance anew; after the last it stays lost.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

/// What an engine does about instances that are lost.
#[derive(Debug, Clone)]
pub struct Supervision<F> {
    /// For the instance.
    pub recovery: Recovery<F>,
    /// For runs that do not come back; without, they are waited for.
    pub watchdog: Option<Watchdog>,
    /// For those who watch health.
    pub changed: Changed,
}

impl<F> Default for Supervision<F> {
    fn default() -> Self {
        Self {
            recovery: Recovery::Stay,
            watchdog: None,
            changed: Changed::default(),
        }
    }
}

/// Is told whenever an instance is lost or back.
#[derive(Clone, Default)]
pub struct Changed(Option<Arc<dyn Fn() + Send + Sync>>);

impl Changed {
    /// Calls `tell` each time.
    pub fn new(tell: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }
}

impl fmt::Debug for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changed")
    }
}

impl<F> Clone for Recovery<F> {
    fn clone(&self) -> Self {
        match self {
            Self::Stay => Self::Stay,
            Self::Restart(reload) => Self::Restart(Arc::clone(reload)),
            Self::Tell(tell) => Self::Tell(Arc::clone(tell)),
        }
    }
}

impl<F> fmt::Debug for Recovery<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stay => "Stay",
            Self::Restart(_) => "Restart",
            Self::Tell(_) => "Tell",
        })
    }
}

impl<F> Recovery<F> {
    /// A fresh instance in place of one that was lost for `reason` and is freed already; `None` when
    /// there is none to be had. `pause` waits and says whether the engine still runs.
    pub(super) fn recover(
        &self,
        instance: usize,
        reason: &str,
        metrics: &DeviceMetrics,
        mut pause: impl FnMut(Duration) -> bool,
    ) -> Option<F> {
        let reload = match self {
            Self::Stay => return None,
            Self::Tell(tell) => {
                tell(reason);
                return None;
            }
            Self::Restart(reload) => reload,
        };
        for wait in PAUSES {
            if !wait.is_zero() && !pause(wait) {
                return None;
            }
            match reload(instance) {
                Ok(fresh) => {
                    metrics.restarts.inc();
                    tracing::info!(instance, "made anew; it takes requests again");
                    return Some(fresh);
                }
                Err(error) => tracing::warn!(instance, error, "can't be made anew yet"),
            }
        }
        tracing::error!(
            instance,
            "can't be made anew; it stays out until the model is loaded again"
        );
        None
    }
}

/// How many instances of an engine live: written by its threads, read by admission and health.
#[derive(Debug)]
pub(super) struct Health {
    alive: AtomicUsize,
    instances: usize,
    reason: ArcSwapOption<RequestError>,
    metrics: DeviceMetrics,
    changed: Changed,
}

impl Health {
    pub(super) fn new(instances: usize, metrics: DeviceMetrics, changed: Changed) -> Self {
        // The version may be loaded anew after one that ended ill.
        metrics.failed_instances.set(0);
        Self {
            alive: AtomicUsize::new(instances),
            instances,
            reason: ArcSwapOption::empty(),
            metrics,
            changed,
        }
    }

    pub(super) fn alive(&self) -> usize {
        self.alive.load(Relaxed)
    }

    /// Notes that one is lost; `reason` is what those are answered who find none left.
    pub(super) fn lose(&self, reason: &RequestError) {
        self.reason.store(Some(Arc::new(reason.clone())));
        self.alive.fetch_sub(1, Relaxed);
        self.publish();
    }

    /// Notes that one is back.
    pub(super) fn regain(&self) {
        self.alive.fetch_add(1, Relaxed);
        self.publish();
    }

    fn publish(&self) {
        let lost = self.instances.saturating_sub(self.alive());
        self.metrics.failed_instances.set(lost as i64);
        if let Changed(Some(tell)) = &self.changed {
            tell();
        }
    }

    /// Why no instance is left, if none is.
    pub(super) fn lost(&self) -> Option<String> {
        self.check().err().map(|error| error.to_string())
    }

    /// Refuses where no instance lives.
    pub(super) fn check(&self) -> Result<(), RequestError> {
        if self.alive() > 0 {
            return Ok(());
        }
        Err(self.refusal())
    }

    /// The answer to whom no instance can run.
    pub(super) fn refusal(&self) -> RequestError {
        let reason = self.reason.load_full();
        reason.map_or_else(
            || RequestError::internal("an engine without an instance"),
            |reason| RequestError::clone(&reason),
        )
    }
}

/// A run that failed: what the caller is answered, and what it means for the instance.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) kind: DeviceFailure,
    pub(super) error: RequestError,
}

impl Failed {
    /// From the model's error.
    pub(super) fn of(error: &ForwardError) -> Self {
        let kind = match error {
            ForwardError::Device(error) => classify(error),
            _ => DeviceFailure::Other,
        };
        Self::new(kind, error.to_string())
    }

    /// From what a panic in the model said.
    pub(super) fn of_panic(message: &str) -> Self {
        let what = format!("the model panicked: {message}");
        Self::new(classify_text(message), what)
    }

    /// A fault of ours.
    pub(super) fn internal(what: impl fmt::Display) -> Self {
        Self::new(DeviceFailure::Other, what.to_string())
    }

    fn new(kind: DeviceFailure, what: String) -> Self {
        let error = match kind {
            DeviceFailure::OutOfMemory => RequestError::DeviceMemory { what },
            DeviceFailure::Lost => RequestError::DeviceLost { reason: what },
            DeviceFailure::Other => RequestError::Internal { what },
        };
        Self { kind, error }
    }

    /// Why the device is lost, if it is.
    pub(super) fn lost(&self) -> Option<Lost> {
        (self.kind == DeviceFailure::Lost).then(|| Lost(self.error.clone()))
    }
}

/// The device under an instance is lost: what its requests are answered.
#[derive(Debug)]
pub(super) struct Lost(pub(super) RequestError);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    fn metrics() -> DeviceMetrics {
        Metrics::new().model("m", "1").device
    }

    #[test]
    fn an_instance_is_made_anew_as_often_as_it_takes_and_no_oftener_than_is_of_use() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let recovery: Recovery<u32> = Recovery::Restart(Arc::new(move |instance| {
            match counted.fetch_add(1, Relaxed) {
                0 | 1 => Err("the old context is still held".to_owned()),
                _ => Ok(instance as u32),
            }
        }));
        let mut pauses = Vec::new();
        let metrics = metrics();
        let fresh = recovery.recover(7, "why", &metrics, |pause| {
            pauses.push(pause);
            true
        });
        assert_eq!(fresh, Some(7));
        assert_eq!(metrics.restarts.get(), 1);
        assert!(pauses.is_sorted() && pauses.len() == 2);

        let never: Recovery<u32> = Recovery::Restart(Arc::new(|_| Err("no".to_owned())));
        let mut pauses = 0;
        let fresh = never.recover(0, "why", &metrics, |_| {
            pauses += 1;
            true
        });
        assert_eq!((fresh, pauses), (None, PAUSES.len() - 1));
        assert_eq!(never.recover(0, "why", &metrics, |_| false), None);
    }

    #[test]
    fn health_refuses_only_when_no_instance_is_left_and_says_why() {
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let changed = Changed::new(move || {
            count.fetch_add(1, Relaxed);
        });
        let health = Health::new(2, metrics(), changed);
        let lost = RequestError::DeviceLost {
            reason: "an illegal address".to_owned(),
        };
        health.lose(&lost);
        assert_eq!(health.check(), Ok(()));
        assert_eq!(health.metrics.failed_instances.get(), 1);
        health.lose(&lost);
        assert_eq!(health.check(), Err(lost));
        health.regain();
        assert_eq!(health.check(), Ok(()));
        assert_eq!(told.load(Relaxed), 3);
    }
}
