//! Time and chance for the parts that must not read them themselves.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use utsuwa_model::Timestamp;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Machine;

impl Machine {
    pub(super) fn time() -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

impl utsuwa_control::seam::Environment for Machine {
    fn now(&self) -> Timestamp {
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
        Self::time()
    }
}

impl utsuwa_api::Clock for Machine {
    fn now(&self) -> Timestamp {
        Self::time()
    }
}
