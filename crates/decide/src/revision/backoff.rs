//! How long the next start waits of what ended again and again.

use std::time::Duration;

use crate::words::time;

/// How long a crashing revision waits before its next start: 0, then 1 s doubled up to 1 min.
#[must_use]
pub fn crash_backoff(crashes_in_a_row: u32) -> Duration {
    match crashes_in_a_row {
        0 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 1).min(6)).min(Duration::from_secs(60)),
    }
}

/// How long a revision waits whose instances end while they serve: like one that crashes, but never longer than a request that comes
/// meanwhile may wait (§2.5), which then finds the next instance and not an error.
#[must_use]
pub fn serving_backoff(ends_in_a_row: u32) -> Duration {
    crash_backoff(ends_in_a_row).min(Duration::from_secs(8))
}

/// The text for a start that is put off because of crashes; `served`: the last to end had been reached.
#[must_use]
pub fn backoff_summary(crashes: u32, served: bool, wait: Duration) -> String {
    let when = if served {
        "while it served"
    } else {
        "right after its start"
    };
    format!(
        "ended {crashes} times in a row {when}; the next start waits {}",
        time(wait)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_a_minute() {
        let served: Vec<u64> = (0..9).map(|n| serving_backoff(n).as_secs()).collect();
        assert_eq!(served, [0, 1, 2, 4, 8, 8, 8, 8, 8]);
        let seconds: Vec<u64> = (0..9).map(|n| crash_backoff(n).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
