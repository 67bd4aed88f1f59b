//! Tells the repository when a loaded copy is gone: the last request that held it is done.

use std::sync::{Arc, Weak};

use super::store::Inner;

/// The end of a loaded copy's life: the last field of a [`super::ServedModel`] to be dropped.
#[derive(Debug, Default)]
pub struct Lease {
    repository: Weak<Inner>,
    name: String,
    version: u64,
    copy: u64,
    bytes: u64,
}

impl Lease {
    pub(super) fn new(
        repository: &Arc<Inner>,
        name: &str,
        version: u64,
        copy: u64,
        bytes: u64,
    ) -> Self {
        Self {
            repository: Arc::downgrade(repository),
            name: name.to_owned(),
            version,
            copy,
            bytes,
        }
    }

    /// Which loaded copy this is; 0 for one that is no repository's.
    pub(super) fn copy(&self) -> u64 {
        self.copy
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(repository) = self.repository.upgrade() {
            repository.copy_is_gone(&self.name, self.version, self.copy, self.bytes);
        }
    }
}
