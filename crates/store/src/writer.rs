//! The one writer: a thread that takes what is queued, does it in one transaction (a savepoint each), commits once, and only
//! then answers. While a commit waits for the disk, the next group gathers.
//!
//! Fails by: a job's own error undoes that job; a failed commit, or a full disk that made SQLite roll the whole transaction
//! back, fails every job of the group.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};
use utsuwa_model::ServiceKey;

use crate::StoreError;
use crate::changed::{Noting, Ring};

/// Jobs waiting at most; further callers wait for room.
const QUEUE: usize = 1024;
/// Jobs of one transaction at most, so that the first caller's wait stays short.
const GROUP: usize = 256;

/// Answers the caller with the group's verdict, or with the job's own result where the group was committed.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// One queued write.
trait Job: Send {
    /// Does the work inside a savepoint; says whether to keep it and how to answer.
    fn run(self: Box<Self>, connection: &Noting<'_>) -> (bool, Reply);
    /// Answers without having done anything.
    fn refuse(self: Box<Self>, why: StoreError);
}

struct Write<T, F> {
    work: F,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Write<T, F>
where
    F: FnOnce(&Noting<'_>) -> Result<T, StoreError> + Send,
    T: Send + 'static,
{
    fn run(self: Box<Self>, connection: &Noting<'_>) -> (bool, Reply) {
        let Self { work, answer } = *self;
        let result = work(connection);
        // Nobody listens any more when the caller went away; the write stands.
        (
            result.is_ok(),
            Box::new(move |committed| drop(answer.send(committed.and(result)))),
        )
    }

    fn refuse(self: Box<Self>, why: StoreError) {
        drop(self.answer.send(Err(why)));
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(
        connection: Arc<Mutex<Connection>>,
        changes: watch::Sender<u64>,
        ring: Arc<Mutex<Ring>>,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || serve(&connection, jobs, &changes, &ring))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Queues `work`; answers after the commit.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Noting<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue
            .send(Box::new(Write { work, answer }))
            .await
            .map_err(|_| StoreError::Closed)?;
        // The sender is dropped unanswered only if the job panicked.
        answered.await.unwrap_or(Err(StoreError::Abandoned))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _panicked = thread.join();
        }
    }
}

fn serve(
    connection: &Mutex<Connection>,
    mut jobs: mpsc::Receiver<Box<dyn Job>>,
    changes: &watch::Sender<u64>,
    ring: &Mutex<Ring>,
) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = jobs.try_recv()
        {
            group.push(next);
        }
        let mut touched = BTreeSet::new();
        let (verdict, replies) = {
            let connection = connection.lock();
            let before = connection.total_changes();
            let (verdict, replies) = run_group(&connection, group, &mut touched);
            (
                verdict.map(|()| connection.total_changes() != before),
                replies,
            )
        };
        if matches!(verdict, Ok(true)) {
            // Only this thread counts. Noted first: who sees the number finds the notes.
            let seq = *changes.borrow() + 1;
            ring.lock().push(seq, touched);
            changes.send_replace(seq);
        }
        for reply in replies {
            reply(verdict.clone().map(|_| ()));
        }
    }
}

/// Runs the group in one transaction. After an `Err` nothing of it is in the database; jobs that were not begun are answered
/// here, the others by their reply. `touched` takes what the kept jobs noted; it counts only after an `Ok`.
fn run_group(
    connection: &Connection,
    group: Vec<Box<dyn Job>>,
    touched: &mut BTreeSet<ServiceKey>,
) -> (Result<(), StoreError>, Vec<Reply>) {
    let mut replies = Vec::with_capacity(group.len());
    let mut verdict = connection
        .execute_batch("BEGIN IMMEDIATE")
        .map_err(StoreError::from);
    for job in group {
        match &verdict {
            Ok(()) => verdict = run_job(connection, job, &mut replies, touched),
            Err(error) => job.refuse(error.clone()),
        }
    }
    if verdict.is_ok() {
        verdict = connection.execute_batch("COMMIT").map_err(StoreError::from);
    }
    if verdict.is_err()
        && !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "roll back a group of writes");
    }
    (verdict, replies)
}

/// Runs one job in its savepoint. `Err`: the whole transaction can't go on.
fn run_job(
    connection: &Connection,
    job: Box<dyn Job>,
    replies: &mut Vec<Reply>,
    touched: &mut BTreeSet<ServiceKey>,
) -> Result<(), StoreError> {
    if let Err(error) = connection.execute_batch("SAVEPOINT job") {
        let error = StoreError::from(error);
        job.refuse(error.clone());
        return Err(error);
    }
    let noting = Noting::new(connection);
    // A panicking closure is a bug of its caller: it ends that write only, and its caller is told (`Abandoned`).
    let keep = match catch_unwind(AssertUnwindSafe(|| job.run(&noting))) {
        Ok((keep, reply)) => {
            replies.push(reply);
            if keep {
                touched.append(&mut noting.into_touched());
            }
            keep
        }
        Err(_panic) => false,
    };
    if connection.is_autocommit() {
        // SQLite gave up the whole transaction: the disk is full (or failed).
        return Err(StoreError::DiskFull {
            path: PathBuf::new(),
        });
    }
    connection.execute_batch(if keep {
        "RELEASE job"
    } else {
        "ROLLBACK TO job; RELEASE job"
    })?;
    Ok(())
}
