//! Which instances to start and which to let go, to get from what is there to what is wanted.
//!
//! Owns: the choice. Deliberately not here: the count ([`crate::scale`]) and the handshake that makes letting go safe
//! (the ingress answers a retirement only when nothing is in flight).
//!
//! Invariants:
//! 1. An instance with a request inside is never let go.
//! 2. Live instances (starting or ready) never exceed the maximum through our doing.
//! 3. With the wanted count there, nothing is done.

use utsuwa_model::demand::Reach;
use utsuwa_model::scaling::Ceiling;
use utsuwa_model::{Because, InstanceId, Timestamp};

use crate::words::many;

/// One instance as it is seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    pub id: InstanceId,
    pub reach: Reach,
    pub in_flight: u32,
    /// When its last request ended, or when it became ready.
    pub idle_since: Option<Timestamp>,
    pub started: Timestamp,
}

impl InstanceView {
    /// Takes requests or will.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.reach.is_live()
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct InstancePlan {
    pub start: u32,
    /// To retire, in this order.
    pub retire: Vec<InstanceId>,
    /// Given up by a probe: to stop and forget.
    pub discard: Vec<InstanceId>,
    pub because: Because,
}

impl InstancePlan {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_rest(&self) -> bool {
        self.start == 0 && self.retire.is_empty() && self.discard.is_empty()
    }
}

/// From `desired` and what is there to actions.
#[must_use]
pub fn plan(desired: u32, max: Ceiling, instances: &[InstanceView]) -> InstancePlan {
    let live: Vec<&InstanceView> = instances.iter().filter(|i| i.is_live()).collect();
    let count = u32::try_from(live.len()).unwrap_or(u32::MAX);
    let desired = match max {
        Ceiling::AtMost(most) => desired.min(most),
        Ceiling::Unlimited => desired,
    };
    let discard: Vec<InstanceId> = instances
        .iter()
        .filter(|i| i.reach.is_given_up())
        .map(|i| i.id.clone())
        .collect();
    let mut plan = InstancePlan {
        start: desired.saturating_sub(count),
        retire: Vec::new(),
        discard,
        because: Because::default(),
    };
    if count > desired {
        let surplus = usize::try_from(count - desired).unwrap_or(usize::MAX);
        plan.retire = candidates(&live).into_iter().take(surplus).collect();
    }
    plan.because = explain(desired, count, &plan);
    plan
}

/// Those without a request inside, first to go first: not ready before ready, longer idle before shorter, newer before
/// older (an old one has shown that it lives).
fn candidates(live: &[&InstanceView]) -> Vec<InstanceId> {
    let mut idle: Vec<&&InstanceView> = live.iter().filter(|i| i.in_flight == 0).collect();
    idle.sort_by(|a, b| {
        let rank = |i: &InstanceView| u8::from(i.reach == Reach::Ready);
        rank(a)
            .cmp(&rank(b))
            .then_with(|| a.idle_since.cmp(&b.idle_since))
            .then_with(|| b.started.cmp(&a.started))
            .then_with(|| b.id.cmp(&a.id))
    });
    idle.into_iter().map(|i| i.id.clone()).collect()
}

fn explain(desired: u32, count: u32, plan: &InstancePlan) -> Because {
    let retire = u32::try_from(plan.retire.len()).unwrap_or(u32::MAX);
    let summary = if plan.start > 0 {
        format!("start {}: {} of {desired} there", plan.start, count)
    } else if retire > 0 && count - retire > desired {
        format!(
            "let {} go, the rest are busy",
            many(retire, "idle instance")
        )
    } else if retire > 0 {
        format!("let {} go", many(retire, "idle instance"))
    } else if count > desired {
        format!(
            "{} too many, all busy: none is let go",
            many(count - desired, "instance")
        )
    } else if plan.discard.is_empty() {
        "nothing to do".to_owned()
    } else {
        format!(
            "remove {} that a probe gave up",
            many(
                u32::try_from(plan.discard.len()).unwrap_or(u32::MAX),
                "instance"
            )
        )
    };
    Because::new(summary)
        .fact("there", count)
        .fact("wanted", desired)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn id(n: u32) -> InstanceId {
        format!("{n:032x}").parse().unwrap()
    }

    fn view(
        n: u32,
        reach: Reach,
        in_flight: u32,
        idle_since: Option<i64>,
        started: i64,
    ) -> InstanceView {
        InstanceView {
            id: id(n),
            reach,
            in_flight,
            idle_since: idle_since.map(Timestamp),
            started: Timestamp(started),
        }
    }

    #[test]
    fn starts_what_is_missing_and_counts_what_is_on_its_way() {
        let there = [
            view(1, Reach::Starting, 0, None, 1),
            view(2, Reach::Ready, 1, None, 1),
            view(3, Reach::Retiring, 1, None, 1),
        ];
        let p = plan(4, Ceiling::Unlimited, &there);
        assert_eq!(
            (p.start, p.retire.len()),
            (2, 0),
            "a retiring one doesn't count"
        );
        assert_eq!(plan(9, Ceiling::AtMost(3), &there).start, 1);
        assert!(plan(2, Ceiling::Unlimited, &there).is_rest());
    }

    #[test]
    fn lets_the_longest_idle_go_and_the_newest_among_equals() {
        let there = [
            view(1, Reach::Ready, 0, Some(50), 10),
            view(2, Reach::Ready, 2, Some(10), 20),
            view(3, Reach::Ready, 0, Some(40), 30),
            view(4, Reach::Ready, 0, Some(40), 35),
            view(5, Reach::Starting, 0, None, 40),
        ];
        assert_eq!(
            plan(2, Ceiling::Unlimited, &there).retire,
            [id(5), id(4), id(3)]
        );
        assert_eq!(
            plan(0, Ceiling::Unlimited, &there).retire,
            [id(5), id(4), id(3), id(1)],
            "never a busy one"
        );
        assert_eq!(
            plan(5, Ceiling::AtMost(4), &there).retire,
            [id(5)],
            "a lowered maximum takes idle ones"
        );
    }

    #[test]
    fn unready_ones_count_as_there_and_go_before_ready_ones() {
        let unready = || Reach::Unready {
            message: String::new(),
        };
        let there = [
            view(1, Reach::Ready, 0, Some(40), 10),
            view(2, unready(), 0, Some(50), 20),
            view(3, unready(), 1, None, 30),
        ];
        assert!(plan(3, Ceiling::Unlimited, &there).is_rest());
        let fewer = plan(1, Ceiling::Unlimited, &there);
        assert_eq!(fewer.retire, [id(2), id(1)], "none with a request inside");
        assert_eq!(plan(2, Ceiling::Unlimited, &there).retire, [id(2)]);
    }

    #[test]
    fn unhealthy_ones_are_removed_and_replaced() {
        let unhealthy = Reach::Unhealthy {
            message: String::new(),
        };
        let there = [
            view(1, unhealthy, 2, None, 1),
            view(2, Reach::Ready, 0, Some(1), 1),
        ];
        let p = plan(2, Ceiling::Unlimited, &there);
        assert_eq!((p.start, p.discard, p.retire), (1, vec![id(1)], vec![]));
    }

    #[test]
    fn failed_ones_are_removed_and_replaced() {
        let there = [view(
            1,
            Reach::Failed {
                message: String::new(),
            },
            0,
            None,
            1,
        )];
        let p = plan(1, Ceiling::Unlimited, &there);
        assert_eq!((p.start, p.discard), (1, vec![id(1)]));
    }
}
