//! The runtime of the data path, apart from everything else: nothing that a loop or the API does stands in the way of a request.
//!
//! Half as many threads as processors: whatever answers behind it needs at least as much of them as forwarding does, and a
//! thread too many costs latency (it takes the processor from one that has requests at hand). A single thread needs nobody to
//! share tasks with, and tokio's runtime for one passes them on without the queues and wakers that several have (ADR 17).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;

const NAME: &str = "traffic";

/// What requests are served on.
#[derive(Debug)]
pub(super) enum Traffic {
    One {
        handle: Handle,
        end: Arc<Notify>,
        /// Comes back when its thread has ended.
        ended: Receiver<Runtime>,
    },
    Several(Runtime),
}

impl Traffic {
    /// Starts it.
    ///
    /// # Errors
    /// The kernel gives no thread, or none of what a runtime waits with.
    pub(super) fn start() -> anyhow::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::of(processors / 2)
    }

    fn of(threads: usize) -> anyhow::Result<Self> {
        let started = "start the runtime of the data path";
        if threads > 1 {
            let mut builder = Builder::new_multi_thread();
            let several = builder
                .worker_threads(threads)
                .enable_all()
                .thread_name(NAME)
                .build()
                .context(started)?;
            return Ok(Self::Several(several));
        }
        let one = Builder::new_current_thread()
            .enable_all()
            .thread_name(NAME)
            .build()
            .context(started)?;
        let (handle, end) = (one.handle().clone(), Arc::new(Notify::new()));
        let (back, ended) = sync_channel(1);
        let until = Arc::clone(&end);
        std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || {
                one.block_on(until.notified());
                // Nobody takes it who had no patience.
                let _ = back.send(one);
            })
            .context(started)?;
        Ok(Self::One { handle, end, ended })
    }

    pub(super) fn handle(&self) -> &Handle {
        match self {
            Self::One { handle, .. } => handle,
            Self::Several(runtime) => runtime.handle(),
        }
    }

    /// Drops what is left of its tasks. A task that holds up its thread for longer than `patience` is left alone.
    pub(super) fn end(self, patience: Duration) {
        match self {
            Self::One { end, ended, .. } => {
                end.notify_one();
                if let Ok(runtime) = ended.recv_timeout(patience) {
                    runtime.shutdown_timeout(patience);
                }
            }
            Self::Several(runtime) => runtime.shutdown_timeout(patience),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn tasks_run_on_threads_of_its_own_and_are_dropped_at_its_end() {
        for threads in [0, 1, 2] {
            let patience = Duration::from_secs(10);
            let traffic = Traffic::of(threads).unwrap();
            let (sender, names) = channel();
            let beats = sender.clone();
            traffic.handle().spawn(async move {
                let name = std::thread::current().name().map(str::to_owned);
                let _ = beats.send(name);
                std::future::pending::<()>().await;
            });
            assert_eq!(names.recv().unwrap().as_deref(), Some(NAME), "{threads}");
            traffic.end(patience);
            // The task had the other end of the channel: it is gone.
            drop(sender);
            assert!(names.recv_timeout(patience).is_err(), "{threads}");
            assert!(names.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected));
        }
    }
}
