//! What becomes of a runner whose step hangs: its sequences are ended, and another thread goes on with
//! what comes after them, over a model and a cache made anew.

use std::{sync::Arc, time::Duration};

use super::runner::Runner;
use crate::engine::watchdog::{Bay, Watchdog, hung, watch};

/// Starts the thread that looks at the runner's bay, for as long as the runner lives.
pub(super) fn watch_runner(
    name: &str,
    bay: Arc<Bay<Runner>>,
    mut watchdog: Watchdog,
) -> std::io::Result<()> {
    let limit = watchdog.limit;
    let name = name.to_owned();
    std::thread::Builder::new()
        .name(format!("watch-{name}"))
        .spawn(move || {
            watch(vec![bay], &limit, |_, runner, lasted| {
                replace(&name, runner, &mut watchdog, lasted)
            });
        })?;
    Ok(())
}

fn replace(
    name: &str,
    mut runner: Box<Runner>,
    watchdog: &mut Watchdog,
    lasted: Duration,
) -> Arc<Bay<Runner>> {
    let error = hung(lasted);
    let reason = error.to_string();
    tracing::error!(
        model = name,
        sequences = runner.sequences(),
        lasted_ms = lasted.as_millis() as u64,
        "a step hangs; its thread is left behind"
    );
    let bay = runner.give_up(&error);
    let recovery = watchdog.replacement(runner.recovery());
    let thread = std::thread::Builder::new().name(format!("generate-{name}"));
    if let Err(error) = thread.spawn(move || runner.run_anew(&recovery, &reason)) {
        tracing::error!(%error, model = name, "no thread in place of one that hangs");
    }
    bay
}
