//! Where one request goes: which revision, which instance, or whether it waits.
//!
//! Owns: the rules of choice (`cloud-run-spec.md` §2.6 pending rule, §3.4 load balancing). Deliberately not here: slots
//! themselves (the ingress owns the one counter) and waking (the ingress raises it, `control` answers).
//!
//! Where this differs from §3.4: for a concurrency above three Knative takes the instances in turn and skips full ones; here the
//! least loaded one is taken, first among equals. Knative has several activators that don't see each other's requests; we have
//! one counter (invariant 2 of the architecture), so the load is known, and a request never goes to an instance with slow ones
//! inside while another is idle. Taking turns would also keep every instance busy at low load, and none would fall idle to sleep.
//! Told to users in `docs/compat.md`.
//!
//! Invariants:
//! 1. A request is only given to an instance with a free slot.
//! 2. A revision with 0 percent is never picked by the split.
//! 3. A request that neither gets a slot nor a place in the queue is refused at once.

use std::time::Duration;

use utsuwa_model::RevisionKey;

/// Requests that may wait for one revision: Knative's activator queue (§3.4). Beyond it waiting only delays the refusal.
pub const QUEUE_LIMIT: u32 = 10_000;

/// The shortest time a request may wait for an instance (§2.6).
pub const MINIMUM_PENDING: Duration = Duration::from_secs(10);

/// A ready instance as admission sees it. Only ready ones are offered, in a stable order, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    /// Requests inside it.
    pub in_flight: u32,
    /// Requests it may have inside; 0 = unlimited.
    pub limit: u32,
}

impl SlotView {
    /// Whether one more request fits.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.limit == 0 || self.in_flight < self.limit
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Take a slot of this instance (index into what was offered).
    Take(usize),
    /// Wait for a slot. `wake`: no instance is there or starting, so somebody must be woken.
    Wait { wake: bool },
    /// The queue is full: 429.
    QueueFull,
}

/// The revision of `split` (percentages that sum to 100) that `dice` falls on. Any `u32` is a fair die: 2^32 mod 100 shifts
/// the shares by less than one in forty million. Answers 0 for an empty or all-zero split; callers never hold one.
#[must_use]
pub fn pick_revision(split: &[(RevisionKey, u32)], dice: u32) -> usize {
    let total: u32 = split.iter().map(|(_, percent)| *percent).sum();
    if total == 0 {
        return 0;
    }
    let mut left = dice % total;
    for (index, (_, percent)) in split.iter().enumerate() {
        if left < *percent {
            return index;
        }
        left -= percent;
    }
    0
}

/// The instance a request goes to, `None` when all are full (§3.4):
/// unlimited — the less loaded of two drawn ones, so that a slow instance repels requests without a global order;
/// 1…3 — the first with a free slot, which keeps the others idle; more — the least loaded, first among equals.
#[must_use]
pub fn choose_instance(loads: &[SlotView], dice: u64) -> Option<usize> {
    let first = loads.first()?;
    match first.limit {
        0 => {
            let count = u64::try_from(loads.len()).ok()?;
            let one = usize::try_from((dice & 0xffff_ffff) % count).ok()?;
            let other = usize::try_from((dice >> 32) % count).ok()?;
            Some(if loads[other].in_flight < loads[one].in_flight {
                other
            } else {
                one
            })
        }
        1..=3 => loads.iter().position(SlotView::has_room),
        _ => loads
            .iter()
            .enumerate()
            .filter(|(_, load)| load.has_room())
            .min_by_key(|(index, load)| (load.in_flight, *index))
            .map(|(index, _)| index),
    }
}

/// As [`choose_instance`], but the instance the client was on before (`preferred`) wins while it has room. Best effort, as
/// on Cloud Run: a full one is left for another.
#[must_use]
pub fn choose_with_affinity(
    loads: &[SlotView],
    preferred: Option<usize>,
    dice: u64,
) -> Option<usize> {
    match preferred {
        Some(index) if loads.get(index).is_some_and(SlotView::has_room) => Some(index),
        _ => choose_instance(loads, dice),
    }
}

/// The whole rule: a slot if there is one, else a place in the queue, else a refusal. `queued` are those that wait already;
/// nobody overtakes them, so a slot is only taken when none wait. `starting`: instances that are on their way.
#[must_use]
pub fn admit(
    loads: &[SlotView],
    preferred: Option<usize>,
    queued: u32,
    starting: u32,
    dice: u64,
) -> Admission {
    if queued == 0
        && let Some(index) = choose_with_affinity(loads, preferred, dice)
    {
        return Admission::Take(index);
    }
    if !may_queue(queued) {
        return Admission::QueueFull;
    }
    Admission::Wait {
        wake: loads.is_empty() && starting == 0,
    }
}

/// Whether one more request may wait.
#[must_use]
pub const fn may_queue(queued: u32) -> bool {
    queued < QUEUE_LIMIT
}

/// How long a request may wait for an instance: 3.5 × the average startup time, at least 10 s (§2.6, pending rule).
#[must_use]
pub fn pending_window(avg_start: Option<Duration>) -> Duration {
    avg_start.map_or(MINIMUM_PENDING, |average| {
        (average * 7 / 2).max(MINIMUM_PENDING)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn key(name: &str) -> RevisionKey {
        format!("demo/here/app/{name}").parse().unwrap()
    }

    fn slots(limit: u32, loads: &[u32]) -> Vec<SlotView> {
        loads
            .iter()
            .map(|&in_flight| SlotView { in_flight, limit })
            .collect()
    }

    #[test]
    fn every_percent_gets_its_share_of_the_die() {
        let split = [(key("a"), 10), (key("b"), 0), (key("c"), 90)];
        let mut hits = [0; 3];
        for dice in 0..1000 {
            hits[pick_revision(&split, dice)] += 1;
        }
        assert_eq!(hits, [100, 0, 900]);
        assert_eq!(pick_revision(&split, u32::MAX), 2);
        assert_eq!(pick_revision(&[], 7), 0);
    }

    #[test]
    fn choice_by_concurrency() {
        for (limit, loads, dice, want) in [
            // Few slots: the first free one, so that later instances fall idle.
            (1, vec![1, 0, 0], 0, Some(1)),
            (3, vec![2, 0], 0, Some(0)),
            (3, vec![3, 3], 0, None),
            // Many: least loaded, first among equals.
            (80, vec![5, 2, 2], 0, Some(1)),
            (80, vec![80, 79], 0, Some(1)),
            (80, vec![80, 80], 0, None),
            // Unlimited: the better of two drawn ones.
            (0, vec![9, 1, 5], (1 << 32) | 2, Some(1)),
            (0, vec![9, 1, 5], 2 << 32, Some(2)),
            (0, vec![500], 77, Some(0)),
            (80, vec![], 0, None),
        ] {
            assert_eq!(
                choose_instance(&slots(limit, &loads), dice),
                want,
                "{limit} {loads:?} {dice}"
            );
        }
    }

    #[test]
    fn affinity_holds_while_there_is_room() {
        let loads = slots(4, &[0, 3, 4]);
        assert_eq!(choose_with_affinity(&loads, Some(1), 0), Some(1));
        assert_eq!(choose_with_affinity(&loads, Some(2), 0), Some(0));
        assert_eq!(choose_with_affinity(&loads, Some(9), 0), Some(0));
    }

    #[test]
    fn slot_then_queue_then_refusal() {
        let free = slots(4, &[3]);
        assert_eq!(admit(&free, None, 0, 0, 0), Admission::Take(0));
        assert_eq!(
            admit(&free, None, 1, 0, 0),
            Admission::Wait { wake: false },
            "nobody overtakes"
        );
        assert_eq!(admit(&[], None, 0, 0, 0), Admission::Wait { wake: true });
        assert_eq!(admit(&[], None, 0, 1, 0), Admission::Wait { wake: false });
        assert_eq!(admit(&[], None, QUEUE_LIMIT, 1, 0), Admission::QueueFull);
    }

    #[test]
    fn pending_is_three_and_a_half_starts_but_ten_seconds_at_least() {
        assert_eq!(pending_window(None), Duration::from_secs(10));
        assert_eq!(
            pending_window(Some(Duration::from_millis(50))),
            Duration::from_secs(10)
        );
        assert_eq!(
            pending_window(Some(Duration::from_secs(4))),
            Duration::from_secs(14)
        );
    }
}
