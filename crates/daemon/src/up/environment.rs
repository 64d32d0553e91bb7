//! Time and chance for the parts that must not read them themselves.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use utsuwa_model::Timestamp;

/// Begins with the time that the host's clock showed, and goes on evenly from there: who sets that clock, or wakes the host from its
/// sleep, makes no instance idle or late. The loops and the ingress, which compare each other's times, need the same one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    began: Instant,
    showed: Timestamp,
}

impl Machine {
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
            showed: Self::time(),
        }
    }

    fn even(self) -> Timestamp {
        self.showed.plus(self.began.elapsed())
    }

    /// As the host's clock shows it.
    pub(super) fn time() -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

impl utsuwa_control::seam::Environment for Machine {
    fn now(&self) -> Timestamp {
        self.even()
    }

    fn wall(&self) -> Timestamp {
        Self::time()
    }

    fn available_memory(&self) -> Option<u64> {
        // It is in the third line. One call, since a request waits for its instance meanwhile: the kernel writes it anew for each
        // read from the beginning.
        static MEMORY: OnceLock<Option<File>> = OnceLock::new();
        let file = MEMORY.get_or_init(|| File::open("/proc/meminfo").ok());
        let mut head = [0_u8; 256];
        let length = file.as_ref()?.read_at(&mut head, 0).ok()?;
        let text = std::str::from_utf8(&head[..length]).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    }

    fn random(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().0
    }
}

impl utsuwa_ingress::seam::Clock for Machine {
    fn now(&self) -> Timestamp {
        self.even()
    }

    fn wall(&self) -> Timestamp {
        Self::time()
    }
}

impl utsuwa_api::Clock for Machine {
    fn now(&self) -> Timestamp {
        Self::time()
    }
}
