//! Time that only moves when told, and the gate at which a process dies.

use super::*;

/// Paused time, counted from a fixed date.
#[derive(Debug)]
pub(crate) struct Clock {
    pub(super) zero: Instant,
    /// How far somebody has set the host's clock, in microseconds.
    pub(super) set_by: AtomicI64,
    pub(super) dice: AtomicU64,
    pub(crate) memory: Mutex<Option<u64>>,
    pub(crate) gate: Mutex<Option<Arc<Gate>>>,
    pub(super) hold: Mutex<Option<(&'static str, Arc<Hold>)>>,
}

/// Where one kind of write waits until it is let through.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    waits: AtomicBool,
    open: tokio::sync::Notify,
}

impl Hold {
    /// Whether a write waits.
    pub(crate) fn is_reached(&self) -> bool {
        self.waits.load(Ordering::SeqCst)
    }

    /// Lets the one that waits through.
    pub(crate) fn open(&self) {
        self.open.notify_one();
    }
}

impl Clock {
    /// Somebody sets the host's clock forward, or back for a negative number.
    pub(crate) fn set(&self, seconds: i64) {
        self.set_by.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }
}

const BIRTH: i64 = 1_700_000_000_000_000;

impl Environment for Clock {
    fn now(&self) -> Timestamp {
        Timestamp(BIRTH).plus(self.zero.elapsed())
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.now().0 + self.set_by.load(Ordering::SeqCst))
    }

    fn random(&self) -> u64 {
        let mut z = self
            .dice
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn available_memory(&self) -> Option<u64> {
        *self.memory.lock()
    }

    fn before(&self, write: &'static str) -> BoxFuture<'_, ()> {
        let gate = self.gate.lock().clone();
        let mut hold = self.hold.lock();
        let held = hold.take_if(|(held, _)| *held == write);
        async move {
            if let Some((_, hold)) = held {
                hold.waits.store(true, Ordering::SeqCst);
                hold.open.notified().await;
            }
            if let Some(gate) = gate {
                gate.pass(write).await;
            }
        }
        .boxed()
    }
}

/// Lets `left` actions through; the next one never comes back: the process died there.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(super) left: AtomicU64,
    pub(super) closed: AtomicBool,
    pub(crate) seen: Mutex<Vec<String>>,
}

impl Gate {
    pub(crate) fn after(actions: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(actions),
            closed: AtomicBool::new(false),
            seen: Mutex::default(),
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn try_pass(&self, action: &str) -> bool {
        if self.is_closed() {
            return false;
        }
        if self.left.load(Ordering::SeqCst) == 0 {
            self.closed.store(true, Ordering::SeqCst);
            return false;
        }
        self.left.fetch_sub(1, Ordering::SeqCst);
        self.seen.lock().push(action.to_owned());
        true
    }

    pub(super) async fn pass(&self, action: &str) {
        if !self.try_pass(action) {
            std::future::pending::<()>().await;
        }
    }
}
