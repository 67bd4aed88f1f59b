//! The flag by which the two ends of a stream agree on a pause: the writer raises it, the reader takes
//! it away and asks to go on. Whichever of the two looks second sees what the other did, so that a
//! pause is never forgotten.

use crate::engine::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Whether the writer waits for the reader.
#[derive(Debug, Default)]
pub(super) struct Pause(AtomicBool);

impl Pause {
    /// The writer's, when there is little room: false when the reader has made some meanwhile, before
    /// it could see the flag, and there is nothing to wait for.
    pub(super) fn raise(&self, has_caught_up: impl FnOnce() -> bool) -> bool {
        self.0.store(true, SeqCst);
        if has_caught_up() {
            self.lower();
            return false;
        }
        true
    }

    /// The writer's, when it goes on.
    pub(super) fn lower(&self) {
        self.0.store(false, SeqCst);
    }

    /// The reader's, when it has made room: whether it is to ask the writer to go on.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}
