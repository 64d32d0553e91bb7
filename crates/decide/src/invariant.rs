//! What must always hold (house rules §4.9), written once: asserted in simulation, checked in crash tests, `debug_assert`ed in
//! the product.
//!
//! Each function answers `Ok` or the [`Broken`] promise with the values that break it.

use std::collections::{BTreeMap, BTreeSet};

use utsuwa_model::InstanceId;
use utsuwa_model::demand::Reach;
use utsuwa_model::route::{RouteTable, Target};
use utsuwa_model::scaling::Ceiling;

use crate::instances::InstanceView;
use crate::tiers::{TierPlan, TierView};

/// A promise that doesn't hold. A bug, never a user's mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub promise: &'static str,
    pub found: String,
}

fn broken(promise: &'static str, found: String) -> Result<(), Broken> {
    Err(Broken { promise, found })
}

/// Every split of the table sums to 100, names no revision with zero, and every revision it names has its settings there.
///
/// # Errors
/// The host and its split.
pub fn table_is_whole(table: &RouteTable) -> Result<(), Broken> {
    for (host, route) in &table.hosts {
        let Target::Split(split) = &route.target else {
            continue;
        };
        let sum: u32 = split.iter().map(|(_, percent)| *percent).sum();
        if sum != 100 || split.iter().any(|(_, percent)| *percent == 0) {
            return broken("traffic sums to 100", format!("{host}: {split:?}"));
        }
        if let Some((missing, _)) = split
            .iter()
            .find(|(key, _)| !table.revisions.contains_key(key))
        {
            return broken(
                "every routed revision is known",
                format!("{host}: {missing}"),
            );
        }
    }
    Ok(())
}

/// Nothing that starts, or has a request inside, loses its CPU or its memory.
///
/// # Errors
/// The instance.
pub fn freezes_idle_only(plan: &TierPlan, views: &[TierView]) -> Result<(), Broken> {
    let asleep =
        |view: &&TierView| plan.freeze.contains(&view.id) || plan.reclaim.contains(&view.id);
    match views
        .iter()
        .filter(asleep)
        .find(|view| !view.ready || view.in_flight > 0)
    {
        Some(view) => broken("only the idle are frozen", format!("{view:?}")),
        None => Ok(()),
    }
}

/// Live instances (starting and ready) are at most the maximum, or were there before the maximum was lowered.
///
/// # Errors
/// The count and the maximum.
pub fn at_most_max(before: u32, after: u32, max: Ceiling) -> Result<(), Broken> {
    match max {
        Ceiling::AtMost(most) if after > most && after > before => broken(
            "never above max instances",
            format!("{before} → {after}, at most {most}"),
        ),
        _ => Ok(()),
    }
}

/// A request is only sent to an instance that the ingress has reached and that is the one it was (ids are never reused).
///
/// # Errors
/// The instance and its state.
pub fn may_route(
    id: &InstanceId,
    reach: &Reach,
    gone: &BTreeSet<InstanceId>,
) -> Result<(), Broken> {
    if *reach != Reach::Ready || gone.contains(id) {
        return broken(
            "never route to an unready or older incarnation",
            format!("{id}: {reach:?}"),
        );
    }
    Ok(())
}

/// Nothing chosen for retirement has a request inside.
///
/// # Errors
/// The busy instance.
pub fn retires_idle_only(retire: &[InstanceId], instances: &[InstanceView]) -> Result<(), Broken> {
    match instances
        .iter()
        .find(|i| i.in_flight > 0 && retire.contains(&i.id))
    {
        Some(busy) => broken(
            "never retire an instance with requests inside",
            format!("{}: {}", busy.id, busy.in_flight),
        ),
        None => Ok(()),
    }
}

/// An instance stops only after its retirement was confirmed.
///
/// # Errors
/// The instance.
pub fn stops_after_retirement(
    id: &InstanceId,
    confirmed: &BTreeSet<InstanceId>,
) -> Result<(), Broken> {
    if confirmed.contains(id) {
        Ok(())
    } else {
        broken(
            "an instance stops only after its retirement is confirmed",
            id.to_string(),
        )
    }
}

/// Nothing waits at zero instances without a wake raised.
///
/// # Errors
/// The numbers.
pub fn waiting_is_heard(queued: u32, live: u32, wake: bool) -> Result<(), Broken> {
    if queued > 0 && live == 0 && !wake {
        return broken(
            "nothing queued stays at zero instances without a wake raised",
            format!("{queued} waiting"),
        );
    }
    Ok(())
}

/// Every accepted request ends exactly once.
///
/// # Errors
/// The request and how often it ended.
pub fn each_ends_once(
    accepted: &BTreeSet<u64>,
    ends: &BTreeMap<u64, u32>,
    all_over: bool,
) -> Result<(), Broken> {
    if let Some((request, count)) = ends
        .iter()
        .find(|(request, count)| **count != 1 || !accepted.contains(request))
    {
        return broken(
            "every accepted request ends exactly once",
            format!("request {request} ended {count} times"),
        );
    }
    match accepted
        .iter()
        .find(|request| all_over && !ends.contains_key(request))
    {
        Some(request) => broken(
            "every accepted request ends exactly once",
            format!("request {request} never ended"),
        ),
        None => Ok(()),
    }
}

/// What loops answered for never runs ahead of what users wrote.
///
/// # Errors
/// Both generations.
pub fn observed_follows(observed: u64, generation: u64) -> Result<(), Broken> {
    if observed <= generation {
        Ok(())
    } else {
        broken(
            "observed_generation ≤ generation",
            format!("{observed} > {generation}"),
        )
    }
}

/// After faults stop, a fixed point is reached in `bound` passes, and a pass there does nothing. `actions` per pass, in order.
///
/// # Errors
/// The counts.
pub fn settles(actions: &[usize], bound: usize) -> Result<(), Broken> {
    match actions.iter().position(|count| *count == 0) {
        Some(rest) if rest <= bound && actions[rest..].iter().all(|count| *count == 0) => Ok(()),
        _ => broken(
            "a fixed point is reached in bounded passes and kept",
            format!("{actions:?}, at most {bound}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_can_break() {
        assert!(at_most_max(1, 3, Ceiling::AtMost(2)).is_err());
        assert!(
            at_most_max(3, 3, Ceiling::AtMost(2)).is_ok(),
            "a lowered maximum is no sin of ours"
        );
        assert!(waiting_is_heard(1, 0, false).is_err() && waiting_is_heard(1, 1, false).is_ok());
        assert!(observed_follows(2, 1).is_err() && observed_follows(1, 1).is_ok());
        assert!(settles(&[3, 1, 0, 0], 2).is_ok());
        assert!(settles(&[3, 0, 1, 0], 2).is_err() && settles(&[1, 1, 1], 2).is_err());
        let one = BTreeSet::from([1]);
        assert!(each_ends_once(&one, &BTreeMap::from([(1, 1)]), true).is_ok());
        assert!(each_ends_once(&one, &BTreeMap::from([(1, 2)]), false).is_err());
        assert!(each_ends_once(&one, &BTreeMap::new(), true).is_err());
        assert!(each_ends_once(&one, &BTreeMap::new(), false).is_ok());
    }
}
