//! The windows: how much of all jobs may be at one model at a time, so that jobs keep its batches
//! filled but never its queue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::row::RowWork;

/// Windows without anything in them that are kept.
const IDLE_KEPT: usize = 64;

/// The windows, by whether the model generates and by its name.
#[derive(Debug)]
pub(super) struct Lanes {
    window: u32,
    generate_window: u32,
    open: Mutex<HashMap<(bool, String), Arc<Semaphore>>>,
}

impl Lanes {
    pub(super) fn new(window: u32, generate_window: u32) -> Self {
        Self {
            window,
            generate_window,
            open: Mutex::default(),
        }
    }

    /// Waits until a row fits into its model's window; it leaves when the permit is dropped. A row
    /// larger than the window has it for itself.
    pub(super) async fn enter(&self, row: &RowWork) -> OwnedSemaphorePermit {
        let size = if row.generates {
            self.generate_window
        } else {
            self.window
        };
        let lane = self.lane(row, size);
        let permit = lane.acquire_many_owned(row.weight.clamp(1, size)).await;
        permit.expect("windows are never closed")
    }

    fn lane(&self, row: &RowWork, size: u32) -> Arc<Semaphore> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() > IDLE_KEPT {
            open.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        let lane = open
            .entry((row.generates, row.model.clone()))
            .or_insert_with(|| Arc::new(Semaphore::new(size as usize)));
        Arc::clone(lane)
    }
}
