//! Opening: lock, check, migrate, connections, the writer's start.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use crate::changed::Ring;
use crate::writer::Writer;
use crate::{Store, StoreError, lock, schema};

/// Readers beside the writer. Reads take well under a millisecond; four keep a listing of everything from standing in the way
/// of single rows.
const READERS: usize = 4;

type Readers = Vec<Arc<Mutex<Connection>>>;

/// What the handles share. Fields drop in order: first the writer (which finishes what is queued), then the readers, then
/// the lock.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) writer: Writer,
    pub(crate) readers: Readers,
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) ring: Arc<Mutex<Ring>>,
    pub(crate) path: PathBuf,
    /// Set once the place is given up: nothing is written from then on.
    pub(crate) given_up: AtomicBool,
    lock: Mutex<Option<File>>,
}

impl Store {
    /// Opens (or makes) `dir/state.sqlite`, brings it to the schema this program knows, and takes the directory's lock.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it open, [`StoreError::Newer`] if a newer program wrote it,
    /// [`StoreError::Corrupt`] if it can't be read, [`StoreError::Io`] if the directory can't be used.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let io = |path: &Path, source| StoreError::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        };
        make_private_dir(dir).map_err(|e| io(dir, e))?;
        let held = lock::take(&dir.join("lock"))?;
        let path = dir.join("state.sqlite");
        let open = || -> Result<(Connection, Readers), StoreError> {
            let mut writer = Connection::open(&path)?;
            prepare(&writer)?;
            check(&writer, &path)?;
            schema::migrate(&mut writer, &path)?;
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let readers = (0..READERS).map(|_| {
                let reader = Connection::open_with_flags(&path, flags)?;
                reader.busy_timeout(Duration::from_secs(10))?;
                reader.set_prepared_statement_cache_capacity(64);
                Ok(Arc::new(Mutex::new(reader)))
            });
            let readers = readers.collect::<Result<Vec<_>, StoreError>>()?;
            Ok((writer, readers))
        };
        let (writer, readers) = open().map_err(|e| e.located(&path))?;
        // The directory entry of a new database must be on the disk before the first write is acknowledged.
        File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(|e| io(dir, e))?;
        Self::start(Arc::new(Mutex::new(writer)), readers, path, Some(held))
    }

    /// Lets another process open the directory, though this one lives on: returns when all writes that were queued are done,
    /// and gives the lock back. Later writes fail with [`StoreError::Closed`]; reads go on.
    pub async fn give_up(&self) {
        self.inner.given_up.store(true, Ordering::Release);
        // The queue is in order: behind this nothing is left. It fails only if the writer has ended, with nothing left either.
        let _ = self.inner.writer.run(|_| Ok(())).await;
        self.inner.lock.lock().take();
    }

    /// A database in memory, for tests: same rules, nothing durable, one connection for reading and writing.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`] if memory runs out.
    pub fn open_in_memory() -> Result<Self, StoreError> {
        let path = PathBuf::from(":memory:");
        let mut connection = Connection::open_in_memory()?;
        prepare(&connection)?;
        schema::migrate(&mut connection, &path)?;
        let connection = Arc::new(Mutex::new(connection));
        Self::start(Arc::clone(&connection), vec![connection], path, None)
    }

    fn start(
        writer: Arc<Mutex<Connection>>,
        readers: Readers,
        path: PathBuf,
        held: Option<File>,
    ) -> Result<Self, StoreError> {
        let (changes, _) = watch::channel(0);
        let ring = Arc::new(Mutex::new(Ring::default()));
        let writer =
            Writer::start(writer, changes.clone(), Arc::clone(&ring)).map_err(|source| {
                StoreError::Io {
                    path: path.clone(),
                    source: Arc::new(source),
                }
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                writer,
                readers,
                changes,
                ring,
                path,
                given_up: AtomicBool::new(false),
                lock: Mutex::new(held),
            }),
        })
    }
}

/// Secrets may end up in environment variables of services: nobody else reads this directory.
fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        Ok(())
    } else {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
    }
}

/// Settings of the writing connection.
fn prepare(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

/// Refuses a damaged file before anything is built on it.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(StoreError::Corrupt {
            path: path.to_owned(),
            problem: verdict,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an acknowledged write rests on.
    #[test]
    fn the_writer_is_durable() {
        let dir = tempfile::tempdir().expect("a directory");
        let connection = Connection::open(dir.path().join("x.sqlite")).expect("opens");
        prepare(&connection).expect("prepares");
        let mode: String = connection
            .pragma_query_value(None, "journal_mode", |r| r.get(0))
            .expect("reads");
        let synchronous: i64 = connection
            .pragma_query_value(None, "synchronous", |r| r.get(0))
            .expect("reads");
        assert_eq!(
            (mode.as_str(), synchronous),
            ("wal", 2),
            "2 is FULL: every commit waits for the disk"
        );
    }
}
