//! Who gets memory when there isn't enough for all (decision 20): deploys always, wakes while it lasts, idle ones give way.
//!
//! Owns: how many starts fit, who leaves to make room, and when it is looked at again. Deliberately not here: measuring, and
//! sending anybody away: who waits is given the time that §2.6 gives him (the ingress keeps it), since memory may come free.
//!
//! Invariants:
//! 1. A busy instance, one that starts, and one that holds a minimum never give way.
//! 2. What was idle for long with much memory gives way before what is idle for a short time or holds little: an instance whose
//!    memory was given back costs little to keep, and its end would free little.
//! 3. The longer memory is short, the more seldom it is looked at.
//! 4. Nobody gives way for room that is already on its way.

use std::time::Duration;

use utsuwa_model::{Because, InstanceId, Timestamp};

use crate::words::{many, time};

/// What a program is taken to need until it is seen: less than its limit mostly, and a limit is never exceeded.
pub const EXPECTED_BYTES: u64 = 64 << 20;

/// What an instance with `limit` bytes is taken to need when it starts.
#[must_use]
pub fn expected(limit: u64) -> u64 {
    limit.min(EXPECTED_BYTES)
}

/// How many of `wanted` starts that need `each` bytes fit into `available` bytes, of which `reserve` are never given and
/// `promised` are on their way to instances that are starting.
#[must_use]
pub fn fit(available: u64, reserve: u64, promised: u64, each: u64, wanted: u32) -> u32 {
    let free = available.saturating_sub(reserve).saturating_sub(promised);
    match free.checked_div(each) {
        Some(count) => wanted.min(u32::try_from(count).unwrap_or(u32::MAX)),
        None => wanted,
    }
}

/// The first look after memory was found short: about as long as an idle instance needs to go.
pub const FIRST_LOOK: Duration = Duration::from_millis(50);
/// The most seldom it is looked at while requests wait, whose window is ten seconds at least.
pub const WAITING_LOOK: Duration = Duration::from_secs(1);
/// The same while only a minimum or an average asks for more.
pub const QUIET_LOOK: Duration = Duration::from_secs(10);

/// What becomes of starts that don't all fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Started all the same.
    pub start: u32,
    /// Not started: memory for so many must be freed first.
    pub missing: u32,
    pub look_after: Duration,
    pub summary: String,
}

/// `wanted` starts of which `fits` fit, `short_for` a while already, with `waiting` requests. `None`: no shortage.
#[must_use]
pub fn shortage(wanted: u32, fits: u32, waiting: u32, short_for: Duration) -> Option<Shortage> {
    let missing = wanted.checked_sub(fits).filter(|missing| *missing > 0)?;
    let most = if waiting > 0 {
        WAITING_LOOK
    } else {
        QUIET_LOOK
    };
    Some(Shortage {
        start: fits,
        missing,
        look_after: (short_for / 2).clamp(FIRST_LOOK, most),
        summary: format!("start {fits} now; memory for {missing} more must be freed first"),
    })
}

/// An instance that is being retired and stopped: its memory is still taken, and comes free when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    /// What it is taken to free.
    pub bytes: u64,
    pub in_flight: u32,
    /// It makes room for another revision, which still waits for it.
    pub for_another: bool,
}

/// How many must give way so that `missing` starts of `each` bytes fit, beside those that leave anyway. Who leaves with
/// requests inside may need as long as these take, so he isn't waited for.
#[must_use]
pub fn still_missing(missing: u32, each: u64, leaving: &[Leaving]) -> u32 {
    let coming = leaving
        .iter()
        .filter(|l| l.in_flight == 0 && !l.for_another)
        .fold(0, |sum: u64, l| sum.saturating_add(l.bytes));
    let bytes = u64::from(missing)
        .saturating_mul(each)
        .saturating_sub(coming);
    u32::try_from(bytes.div_ceil(each.max(1))).unwrap_or(u32::MAX)
}

/// An instance that might give way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: InstanceId,
    pub in_flight: u32,
    /// Since when nothing was inside it. `None`: not ready yet.
    pub idle_since: Option<Timestamp>,
    /// Its revision keeps no more than its minimum.
    pub holds_minimum: bool,
    /// What comes free with it: what it kept when its memory was given back, else what it is taken to have.
    pub bytes: u64,
}

/// Who gives way, and why these.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Victims {
    pub chosen: Vec<InstanceId>,
    pub because: Because,
}

/// The instances that give way so that `bytes` come free: those first that held most for longest, in bytes × time.
///
/// Idle for 10 min with 4 MiB left costs 40, idle for 1 min with 64 MiB costs 64: the second one goes first.
#[must_use]
pub fn victims(candidates: &[Candidate], bytes: u64, now: Timestamp) -> Victims {
    let mut idle: Vec<(u128, Timestamp, &Candidate)> = candidates
        .iter()
        .filter(|c| c.in_flight == 0 && !c.holds_minimum)
        .filter_map(|c| {
            let since = c.idle_since?;
            // A moment counts too: else who just fell idle would go in the order of ids.
            let idle = now.since(since).as_millis().max(1);
            Some((idle.saturating_mul(u128::from(c.bytes)), since, c))
        })
        .collect();
    idle.sort_by(|(a, a_since, a_view), (b, b_since, b_view)| {
        let cost = b.cmp(a);
        cost.then_with(|| a_since.cmp(b_since))
            .then_with(|| a_view.id.cmp(&b_view.id))
    });
    let mut freed: u64 = 0;
    let mut chosen = Vec::new();
    for (_, _, candidate) in &idle {
        if freed >= bytes {
            break;
        }
        freed = freed.saturating_add(candidate.bytes);
        chosen.push(candidate.id.clone());
    }
    let first = idle
        .first()
        .map(|(_, since, first)| (first.bytes, now.since(*since)));
    let because = Because::new(explain(chosen.len(), bytes, idle.len(), first))
        .fact("to be freed", mebibytes(bytes))
        .fact("freed", mebibytes(freed))
        .fact("idle instances of others", idle.len())
        .fact("that can't give way", candidates.len() - idle.len());
    Victims { chosen, because }
}

/// `first`: what the first of the `idle` holds, and since when.
fn explain(chosen: usize, bytes: u64, idle: usize, first: Option<(u64, Duration)>) -> String {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    match (chosen, first) {
        _ if bytes == 0 => "nobody has to give way: enough comes free already".to_owned(),
        (_, None) => "nobody can give way: every other instance is busy, starts or holds a minimum"
            .to_owned(),
        (1, Some((held, unused))) => format!(
            "1 of {} gives way: it held most memory for longest, {} for {}",
            many(count(idle), "idle instance"),
            mebibytes(held),
            time(unused)
        ),
        (more, Some((held, unused))) => format!(
            "{more} of {} give way: they held most memory for longest, the first {} for {}",
            many(count(idle), "idle instance"),
            mebibytes(held),
            time(unused)
        ),
    }
}

/// `64 MiB`, rounded up: what is there is never told as nothing.
fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn only_what_is_free_and_not_promised_fits() {
        for (available, promised, wanted, want) in [
            (1000, 0, 3, 3),
            (1000, 600, 3, 2),
            (1000, 950, 3, 0),
            (100, 0, 3, 0),
            (0, 0, 1, 0),
        ] {
            assert_eq!(
                fit(available, 100, promised, 150, wanted),
                want,
                "{available} {promised}"
            );
        }
        assert_eq!(fit(0, 0, 0, 0, 2), 2);
        assert_eq!(
            (expected(16 << 20), expected(1 << 30)),
            (16 << 20, EXPECTED_BYTES)
        );
    }

    #[test]
    fn a_lasting_shortage_is_looked_at_more_and_more_seldom() {
        assert_eq!(shortage(2, 2, 9, Duration::ZERO), None);
        let looks = |waiting| {
            [0, 1, 4, 60].map(|seconds| {
                let short = shortage(3, 1, waiting, Duration::from_secs(seconds)).unwrap();
                assert_eq!((short.start, short.missing), (1, 2));
                short.look_after.as_millis()
            })
        };
        assert_eq!(looks(1), [50, 500, 1000, 1000]);
        assert_eq!(looks(0), [50, 500, 2000, 10_000]);
    }

    #[test]
    fn nobody_gives_way_for_room_that_comes_anyway() {
        let leaving = |bytes| Leaving {
            bytes,
            in_flight: 0,
            for_another: false,
        };
        let busy = Leaving {
            in_flight: 1,
            ..leaving(64)
        };
        let taken = Leaving {
            for_another: true,
            ..leaving(64)
        };
        for (missing, all, want) in [
            (2, vec![], 2),
            (2, vec![leaving(64)], 1),
            (2, vec![leaving(64), leaving(64)], 0),
            (2, vec![leaving(64), leaving(64), leaving(64)], 0),
            (1, vec![leaving(16)], 1),
            (2, vec![leaving(16), leaving(48)], 1),
            (1, vec![busy, taken], 1),
            (0, vec![], 0),
        ] {
            assert_eq!(still_missing(missing, 64, &all), want, "{missing} {all:?}");
        }
        assert_eq!(still_missing(3, 0, &[]), 0);
        assert_eq!(still_missing(u32::MAX, u64::MAX, &[leaving(1)]), 1);
    }

    #[test]
    fn who_held_most_for_longest_gives_way() {
        let candidate = |n: u32, in_flight, idle: Option<i64>, holds_minimum| Candidate {
            id: format!("{n:032x}").parse().unwrap(),
            in_flight,
            idle_since: idle.map(|seconds| Timestamp(seconds * 1_000_000)),
            holds_minimum,
            bytes: 64 << 20,
        };
        let now = Timestamp(100_000_000);
        let all = [
            candidate(1, 0, Some(30), false),
            candidate(2, 1, Some(1), false),
            candidate(3, 0, Some(10), false),
            candidate(4, 0, Some(5), true),
            candidate(5, 0, None, false),
        ];
        let ids = |all: &[Candidate], bytes: u64| {
            victims(all, bytes << 20, now)
                .chosen
                .iter()
                .map(|id| id.as_str()[31..].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&all, 0), Vec::<String>::new());
        assert_eq!(ids(&all, 64), ["3"]);
        assert_eq!(ids(&all, 65), ["3", "1"]);
        assert_eq!(ids(&all, 1000), ["3", "1"]);
        // Idle for longer, but there is little to be had.
        let mut given_back = all.clone();
        given_back[2].bytes = 4 << 20;
        assert_eq!(ids(&given_back, 64), ["1"]);
        assert_eq!(ids(&given_back, 66), ["1", "3"]);

        let why = |all: &[Candidate], bytes: u64| victims(all, bytes << 20, now).because.summary;
        assert_eq!(
            why(&all, 64),
            "1 of 2 idle instances gives way: it held most memory for longest, 64 MiB for 1m30s"
        );
        assert_eq!(
            why(&all, 65),
            "2 of 2 idle instances give way: they held most memory for longest, the first 64 MiB for 1m30s"
        );
        assert_eq!(
            why(&all, 0),
            "nobody has to give way: enough comes free already"
        );
        assert_eq!(
            why(&all[3..], 64),
            "nobody can give way: every other instance is busy, starts or holds a minimum"
        );
        let facts = victims(&all, 65 << 20, now).because.facts;
        let facts: Vec<(&str, &str)> = facts.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            facts,
            [
                ("to be freed", "65 MiB"),
                ("freed", "128 MiB"),
                ("idle instances of others", "2"),
                ("that can't give way", "3")
            ]
        );
    }
}
