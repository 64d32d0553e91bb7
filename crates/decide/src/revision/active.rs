//! What the `Active` condition follows.

/// What the `Active` condition of a revision says (§1.8, §3.3). It never touches `Ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    Yes,
    /// Instances are wanted and on their way.
    Queued,
    /// They were wanted and never came.
    TimedOut,
    NoTraffic,
}

/// From what it said: `wanted` instances, of which `ready` are. `least`: the minimum, one at least.
#[must_use]
pub fn active(before: Active, wanted: u32, ready: u32, least: u32) -> Active {
    match before {
        // any → yes, because enough can be called.
        _ if wanted > 0 && ready >= least.max(1) => Active::Yes,
        // any → queued, because more are wanted than are there.
        _ if wanted > 0 => Active::Queued,
        // queued → timed out, because the wish went before an instance came.
        Active::Queued | Active::TimedOut => Active::TimedOut,
        // yes → no traffic, because it sleeps.
        Active::Yes | Active::NoTraffic => Active::NoTraffic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_follows_what_is_wanted_and_there() {
        use Active::{NoTraffic, Queued, TimedOut, Yes};
        for (before, wanted, ready, least, after) in [
            (NoTraffic, 1, 0, 0, Queued),
            (Queued, 1, 1, 0, Yes),
            (Yes, 0, 0, 0, NoTraffic),
            (Queued, 0, 0, 0, TimedOut),
            (TimedOut, 0, 0, 0, TimedOut),
            (TimedOut, 1, 0, 0, Queued),
            // Fewer than the minimum are not enough.
            (Yes, 3, 2, 3, Queued),
            (Queued, 3, 3, 3, Yes),
            (NoTraffic, 0, 0, 3, NoTraffic),
        ] {
            assert_eq!(
                active(before, wanted, ready, least),
                after,
                "{before:?} {wanted} {ready} {least}"
            );
        }
    }
}
