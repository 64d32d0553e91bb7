//! A future that is polled only when it has called: for what hardly ever happens, waited for by a task that is busy.
//!
//! Whoever waits in one task for bytes and for the end of the server polls both each time bytes come, and the second takes a lock
//! that all connections share. This one has a waker of its own and is left alone until that was used.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// `F`, polled when it asked to be.
#[derive(Debug)]
pub(crate) struct Seldom<F> {
    waits: Pin<Box<F>>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F> Seldom<F> {
    pub(crate) fn new(waits: F) -> Self {
        let bell = Bell {
            rung: AtomicBool::new(true), // it was never polled
            task: AtomicWaker::new(),
        };
        Self {
            waits: Box::pin(waits),
            bell: Arc::new(bell),
        }
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // First, so that a bell that rings from here on finds the task.
        self.bell.task.register(context.waker());
        if !self.bell.rung.load(Ordering::Relaxed) || !self.bell.rung.swap(false, Ordering::AcqRel)
        {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        self.waits.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicU32;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_called_and_then_answers() {
        let polls = Arc::new(AtomicU32::new(0));
        let (send, mut receive) = tokio::sync::oneshot::channel::<u8>();
        let counted = Arc::clone(&polls);
        let mut seldom = Seldom::new(poll_fn(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut receive).poll(context)
        }));
        for _ in 0..100 {
            poll_fn(|context| {
                assert!(Pin::new(&mut seldom).poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let mut waits = JoinSet::new();
        waits.spawn(seldom);
        tokio::task::yield_now().await;
        send.send(7).unwrap();
        assert_eq!(waits.join_next().await.unwrap().unwrap(), Ok(7));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
