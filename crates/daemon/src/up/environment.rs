//! Time and chance for the parts that must not read them themselves.

use std::io::Read;
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
        // It is in the third line. One read, since a request waits for its instance meanwhile.
        let mut head = [0_u8; 256];
        let length = std::fs::File::open("/proc/meminfo")
            .and_then(|mut file| file.read(&mut head))
            .ok()?;
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
