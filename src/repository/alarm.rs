//! Who is told when the device under a model is lost, and when it is back.

use tokio::sync::watch;

use crate::{
    config::OnDeviceFailure,
    engine::{Changed, Recovery, Reload, Supervision},
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

    /// What the engine of `model` does about a lost device.
    pub(super) fn supervision<F>(
        &self,
        model: &str,
        on_failure: OnDeviceFailure,
        reload: Reload<F>,
    ) -> Supervision<F> {
        let changed = self.changed.clone();
        let recovery = match on_failure {
            OnDeviceFailure::Restart => Recovery::Restart(reload),
            OnDeviceFailure::Exit => {
                let (fatal, model) = (self.fatal.clone(), model.to_owned());
                Recovery::Tell(std::sync::Arc::new(move |reason| {
                    fatal.send_replace(Some(format!("model '{model}': {reason}")));
                }))
            }
        };
        Supervision {
            recovery,
            changed: Changed::new(move || {
                changed.send_replace(());
            }),
        }
    }
}
