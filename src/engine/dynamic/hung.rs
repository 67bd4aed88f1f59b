//! What becomes of an executor that hangs: its rows are answered, and another thread takes its place.

use std::{sync::Arc, time::Duration};

use super::{
    executor::{Executor, InHand},
    messages::Report,
};
use crate::engine::{
    recovery::Health,
    watchdog::{Bay, Watchdog, hung, watch},
};

/// Takes the places of executors that hang.
pub(super) struct Replacing {
    /// What every executor of the engine has in common.
    pub(super) executor: Executor,
    pub(super) health: Arc<Health>,
    pub(super) watchdog: Watchdog,
}

impl Replacing {
    /// Starts the thread that looks at the executors' bays, for as long as one of them lives.
    pub(super) fn start(mut self, bays: Vec<Arc<Bay<InHand>>>) -> std::io::Result<()> {
        let limit = self.watchdog.limit;
        std::thread::Builder::new()
            .name(format!("watch-{}", self.executor.name))
            .spawn(move || {
                watch(bays, &limit, |instance, hand, lasted| {
                    self.replace(instance, *hand, lasted)
                });
            })?;
        Ok(())
    }

    fn replace(&mut self, instance: usize, hand: InHand, lasted: Duration) -> Arc<Bay<InHand>> {
        let error = hung(lasted);
        let reason = error.to_string();
        let (rows, tokens) = (hand.rows.len(), hand.tokens());
        tracing::error!(
            model = %self.executor.name,
            instance,
            rows,
            tokens,
            lasted_ms = lasted.as_millis() as u64,
            "an instance hangs; its thread is left behind"
        );
        self.executor.metrics.device.hung.inc();
        // First, so that whoever has an answer finds the instance gone.
        self.health.lose(&error);
        let batch = hand.refuse(&error);
        // An error means that the dispatcher is gone, and nobody is left to be told.
        let _ = self.executor.reports.send(Report::Hung(batch));

        let recovery = self.watchdog.replacement(&self.executor.recovery);
        let executor = self.executor.for_instance(instance);
        let bay = Arc::clone(&executor.bay);
        if let Err(error) = executor.start(move |executor| executor.run_anew(&recovery, &reason)) {
            tracing::error!(%error, instance, "no thread in place of one that hangs");
        }
        bay
    }
}
