//! Something that happens again and again, told of once a minute with its number: whoever floods us must not flood the log.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

/// Seconds between two lines.
const TELL_AGAIN: u64 = 60;

/// How often it happened since it was last said.
#[derive(Debug)]
pub(crate) struct Told {
    since: Instant,
    count: AtomicU64,
    /// In seconds after `since`, from 1 on; 0: never.
    told: AtomicU64,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            count: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }
}

impl Told {
    /// Counts once more. Answers how often it happened since that was last said, when it is time to say it again.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let now = self.since.elapsed().as_secs() + 1;
        let told = self.told.load(Ordering::Relaxed);
        if told != 0 && now < told + TELL_AGAIN {
            return None;
        }
        // Of several at once, one tells.
        self.told
            .compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed)
            .ok()
            .map(|_| self.count.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_a_minute_with_its_number() {
        let told = Told::default();
        assert_eq!(told.count(), Some(1));
        for _ in 0..5 {
            assert_eq!(told.count(), None);
        }
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(told.count(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(told.count(), Some(7));
    }
}
