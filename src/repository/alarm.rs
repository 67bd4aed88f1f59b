//! Who is told when an instance of a model is lost, with its device or since it hangs, and when it is
//! back; and what its engine does about it.

use std::sync::Arc;

use tokio::sync::watch;

use super::load::LoadSettings;
use crate::{
    config::{OnDeviceFailure, WatchdogConfig, WhenSpent},
    engine::{Changed, Limit, Recovery, Reload, Spent, Supervision, Watchdog},
};

/// Two bells: one for those who watch health, one for whoever ends the process.
#[derive(Debug, Clone, Default)]
pub struct Alarm {
    changed: watch::Sender<()>,
    fatal: watch::Sender<Option<String>>,
}

impl Alarm {
    /// One that also tells those who watch `changed`.
    pub(super) fn new(changed: watch::Sender<()>) -> Self {
        Self {
            changed,
            fatal: watch::Sender::default(),
        }
    }

    /// Why the process has to end, as soon as it has to.
    pub(super) fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    /// What the engine of `model` does about instances that are lost.
    pub(super) fn supervision<F>(
        &self,
        model: &str,
        settings: &LoadSettings,
        reload: Reload<F>,
    ) -> Supervision<F> {
        let changed = self.changed.clone();
        Supervision {
            recovery: match settings.on_device_failure {
                OnDeviceFailure::Restart => Recovery::Restart(reload),
                OnDeviceFailure::Exit => Recovery::Tell(self.end(model)),
            },
            watchdog: self.watchdog(model, &settings.watchdog),
            changed: Changed::new(move || {
                changed.send_replace(());
            }),
        }
    }

    fn watchdog(&self, model: &str, config: &WatchdogConfig) -> Option<Watchdog> {
        Some(Watchdog {
            limit: Limit {
                least: config.limit()?,
                factor: config.factor,
            },
            replacements: config.max_replacements,
            spent: match config.then {
                WhenSpent::Exit => Some(self.end(model)),
                WhenSpent::Unready => None,
            },
        })
    }

    /// Ends the process, for a reason.
    fn end(&self, model: &str) -> Spent {
        let (fatal, model) = (self.fatal.clone(), model.to_owned());
        Arc::new(move |reason| {
            fatal.send_replace(Some(format!("model '{model}': {reason}")));
        })
    }
}
