//! The embedded database, redb: one writer, readers that see the last commit, commits that are on
//! the disk when they return. After the disk has failed it, it has to be opened again.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use redb::{ReadTransaction, ReadableDatabase as _, WriteTransaction};

use crate::error::RequestError;

/// Bytes of pages that the database keeps in memory.
const CACHE_BYTES: usize = 16 << 20;

/// When a disk that is full is tried again.
pub(super) const FULL_RETRY: Duration = Duration::from_secs(2);

/// Why something was not read or written.
#[derive(Debug)]
pub(super) enum StoreError {
    /// The request is at fault, or a bound is reached.
    Refused(RequestError),
    /// The disk or the database.
    Database(Box<redb::Error>),
}

impl StoreError {
    /// What is written there can't have been written by this version.
    pub(super) fn damaged(what: impl std::fmt::Display) -> Self {
        Self::Refused(RequestError::internal(format_args!(
            "the jobs database is damaged: {what}"
        )))
    }

    fn into_request(self, path: &Path) -> RequestError {
        match self {
            Self::Refused(error) => error,
            Self::Database(error) if is_full(&error) => RequestError::NoRoom {
                what: format!("the disk of {} is full: {error}", path.display()),
            },
            Self::Database(error) => {
                RequestError::internal(format_args!("{}: {error}", path.display()))
            }
        }
    }
}

impl From<RequestError> for StoreError {
    fn from(error: RequestError) -> Self {
        Self::Refused(error)
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        })*
    };
}

from_redb!(
    redb::CommitError,
    redb::DatabaseError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError
);

/// Whether the disk, and not the database, is what there is too little of.
fn is_full(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else {
        return false;
    };
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

/// Whether nothing more can be done with an open database that told of this.
fn is_lost(error: &redb::Error) -> bool {
    matches!(
        error,
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed
    )
}

/// The database, open unless the disk has failed it.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    open: RwLock<Option<Arc<redb::Database>>>,
}

impl Database {
    /// Opens the database, or makes one.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let open = open_at(&path)?;
        Ok(Self {
            path,
            open: RwLock::new(Some(Arc::new(open))),
        })
    }

    /// Whether the disk has failed it and it was not opened again.
    pub(super) fn is_lost(&self) -> bool {
        self.get().is_none()
    }

    /// Opens it again.
    pub(super) fn reopen(&self) -> Result<(), RequestError> {
        let open = open_at(&self.path).map_err(|error| error.into_request(&self.path))?;
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(open));
        Ok(())
    }

    /// Reads what was committed last.
    pub(super) fn read<T>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, RequestError> {
        self.using(|database| look(&database.begin_read()?))
    }

    /// Changes something and returns when it is on the disk. After an error nothing is changed, or
    /// (where the disk failed at the last moment) all of it.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, RequestError> {
        self.using(|database| {
            let transaction = database.begin_write()?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    fn using<T>(
        &self,
        act: impl FnOnce(&redb::Database) -> Result<T, StoreError>,
    ) -> Result<T, RequestError> {
        let database = self.get().ok_or_else(|| RequestError::Overloaded {
            what: "the disk of the jobs database failed; it is being opened again".to_owned(),
            retry_after: FULL_RETRY,
        })?;
        act(&database).map_err(|error| {
            if let StoreError::Database(error) = &error
                && is_lost(error)
            {
                tracing::error!(%error, path = %self.path.display(), "the jobs database is closed");
                *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            error.into_request(&self.path)
        })
    }

    fn get(&self) -> Option<Arc<redb::Database>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.clone()
    }
}

fn open_at(path: &Path) -> Result<redb::Database, StoreError> {
    let mut builder = redb::Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    Ok(builder.create(path)?)
}
