//! The only place that speaks to the database: transactions, versions, migrations, change notification.
//!
//! Owns: the file `state.sqlite` and the lock beside it; every table; the rule that a write is acknowledged only once it is
//! durable.
//!
//! Deliberately not here: decisions, defaults, validation, HTTP, clocks. Callers bring time, ids and the changed values.
//!
//! Invariants:
//! 1. A write that returned `Ok` survives `kill -9` and power loss (WAL with `synchronous=FULL`; the answer follows COMMIT).
//! 2. A write is whole or absent: each runs in its own savepoint of the group's transaction; if the group can't be committed,
//!    every member of the group fails and nothing of it is there.
//! 3. There is one writer (a thread), so a read-check-write in one call can't be interleaved with another.
//! 4. A service's version strictly increases; status writes don't move it, so they never conflict with a user.
//! 5. A reader that starts after a write was acknowledged sees it.
//!
//! Fails by: [`StoreError`], which callers match by [`StoreError::class`], never by text. A full disk is
//! [`StoreError::DiskFull`] and leaves the database as it was.

mod audit;
mod changed;
mod domain;
mod error;
mod host;
mod image;
mod lock;
mod open;
mod operation;
mod page;
mod policy;
mod revision;
mod row;
mod schema;
mod service;
mod settings;
mod uid;
mod writer;

pub use audit::AuditEntry;
pub use changed::Changed;
pub use error::{Class, Retry, StoreError};
pub use operation::Asked;
pub use page::{Listing, Page};
pub use settings::Settings;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::Connection;
use tokio::sync::watch;

use crate::changed::Noting;

/// A cheap handle to the database. Clones share one writer thread and a few reader connections; the last one to go waits
/// for writes under way and gives the lock back.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) inner: Arc<open::Inner>,
}

impl Store {
    /// A number that grows after every commit that changed something. [`Store::changed_since`] says what.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Runs `work` on a reader connection; sees every acknowledged write.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let readers = &self.inner.readers;
        let free = readers.iter().find_map(|r| r.try_lock());
        let connection = match free {
            Some(connection) => connection,
            None => readers[0].lock(),
        };
        work(&connection).map_err(|e| e.located(&self.inner.path))
    }

    /// Queues `work` for the writer and waits until it is durable. `Err` from `work` undoes what it did. Dropping the future
    /// after the first poll doesn't take the write back.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Noting<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        if self.inner.given_up.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        self.inner
            .writer
            .run(work)
            .await
            .map_err(|e| e.located(&self.inner.path))
    }
}
