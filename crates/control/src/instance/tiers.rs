//! Freezing the idle, giving their memory back, and thawing them with the next request.
//!
//! Owns: the steps as tasks, and what is believed of an instance while one is under way. Deliberately not here: when a step
//! is due (`utsuwa_decide::tiers`), and whether nothing is in flight (the ingress, which must agree to each freeze).
//!
//! Invariants:
//! 1. The ingress has agreed before the driver is asked to freeze: from then on the next request asks for a thaw.
//! 2. A thaw that comes while a freeze is under way is done again after it, so that the last word is the request's.
//! 3. The ingress is told when the last step ended with the instance awake; it asks for its health only then, and nothing is
//!    frozen in between.
//! 4. A thaw is repeated until it succeeds, is refused for good, or the instance is gone: a request waits for it.

use std::time::Duration;

use utsuwa_decide::boost;
use utsuwa_decide::instances::InstanceView;
use utsuwa_decide::tiers::{self, TierSettings, TierView};
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Tier;
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};
use utsuwa_runtime::DriverError;

use crate::core::Core;
use crate::rounds::Priority;
use crate::world::{Phase, Record, Rest, RevisionState, Stage};

/// After a step failed for a reason that may pass.
const RETRY: Duration = Duration::from_secs(10);
/// Between attempts to thaw an instance that a request waits for.
const THAW_AGAIN: Duration = Duration::from_millis(20);

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// With the number of thaws until now.
    freeze: Vec<(InstanceId, u64)>,
    reclaim: Vec<(InstanceId, u64)>,
    thaw: Vec<InstanceId>,
    pub(super) next: Option<Timestamp>,
}

impl Steps {
    pub(super) fn count(&self) -> usize {
        self.freeze.len() + self.reclaim.len() + self.thaw.len()
    }
}

/// What every step changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RestMark {
    tier: Tier,
    steps: u32,
    thaws: u64,
}

impl Rest {
    /// The same later: no step was taken meanwhile.
    pub(super) fn mark(&self) -> RestMark {
        RestMark {
            tier: self.tier,
            steps: self.steps,
            thaws: self.thaws,
        }
    }

    /// Takes in what the driver sees. `true`: it is frozen and nobody here knows of that.
    pub(super) fn learn(&mut self, seen: Tier) -> bool {
        if self.steps > 0 {
            return false;
        }
        if seen == Tier::Awake {
            self.tier = Tier::Awake;
        }
        self.tier == Tier::Awake && seen != Tier::Awake
    }
}

/// What the decision is told of an instance.
pub(crate) fn seen(state: &RevisionState, record: &Record, view: &InstanceView) -> TierView {
    let boosted = record
        .ready_since
        .filter(|_| record.cpu != state.plan.limits.cpu);
    let boost_ends = boosted.map(|since| since.plus(boost::AFTER_READY));
    TierView {
        id: view.id.clone(),
        ready: view.reach == Reach::Ready,
        in_flight: view.in_flight,
        idle_since: view.idle_since,
        tier: record.rest.tier,
        under_way: record.rest.steps > 0,
        not_before: record.rest.not_before.max(boost_ends),
        barred: record.rest.barred.clone(),
    }
}

pub(crate) fn settings(state: &RevisionState) -> TierSettings {
    TierSettings {
        throttled: !state.template.keeps_cpu(),
        retention: state.settings.retention,
        keeps_some: state.settings.manual.unwrap_or(state.settings.min) > 0,
    }
}

/// Decides and notes the steps, together with why.
pub(super) fn look(state: &mut RevisionState, views: &[InstanceView], now: Timestamp) -> Steps {
    if state.stage != Stage::Serving {
        return Steps::default();
    }
    let seen: Vec<TierView> = views
        .iter()
        .filter_map(|view| {
            let record = state.instances.get(&view.id)?;
            (record.phase == Phase::Running && view.is_live()).then(|| seen(state, record, view))
        })
        .collect();
    let settings = settings(state);
    let plan = tiers::plan(&seen, &settings, now);
    debug_assert_eq!(
        utsuwa_decide::invariant::freezes_idle_only(&plan, &seen),
        Ok(())
    );
    let mut steps = Steps {
        thaw: plan.thaw,
        next: plan.next,
        ..Steps::default()
    };
    let mut begin = |ids: Vec<InstanceId>| {
        let begun = ids.into_iter().filter_map(|id| {
            let rest = &mut state.instances.get_mut(&id)?.rest;
            rest.steps += 1;
            Some((id, rest.thaws))
        });
        begun.collect::<Vec<_>>()
    };
    steps.freeze = begin(plan.freeze);
    steps.reclaim = begin(plan.reclaim);
    state.because.extend(plan.because);
    steps
}

impl Core {
    pub(super) fn take_steps(&self, key: &RevisionKey, steps: Steps) {
        for id in steps.thaw {
            self.thaw(key, &id);
        }
        for (id, thaws) in steps.freeze {
            let key = key.clone();
            self.spawn(|core| async move { core.freeze(&key, &id, thaws).await });
        }
        for (id, thaws) in steps.reclaim {
            let key = key.clone();
            self.spawn(|core| async move { core.reclaim(&key, &id, thaws).await });
        }
    }

    /// Freezes the instance if the ingress agrees. `thaws`: how many there were when it was decided.
    async fn freeze(&self, key: &RevisionKey, id: &InstanceId, thaws: u64) {
        let result = if self.door.rest(id) {
            self.driver.freeze(id).await.map(|()| true)
        } else {
            // A request came first, or it leaves.
            Ok(false)
        };
        let now = self.env.now();
        let undo = self.world.revision(key, |state| {
            let Some(record) = state.instances.get_mut(id) else {
                return false;
            };
            let rest = &mut record.rest;
            let mut undo = rest.thaws != thaws && !matches!(result, Ok(false));
            match &result {
                Ok(true) if !undo => (rest.tier, rest.since) = (Tier::Frozen, Some(now)),
                Ok(_) => {}
                // Its end is about to be told.
                Err(DriverError::NotFound(_)) => rest.not_before = Some(now.plus(RETRY)),
                Err(DriverError::Refused(why)) => rest.barred = Some((Tier::Frozen, why.clone())),
                // Whether it is frozen now is not known.
                Err(_) => {
                    rest.not_before = Some(now.plus(RETRY));
                    undo = true;
                }
            }
            undo
        });
        match &result {
            Err(DriverError::NotFound(_)) | Ok(_) => {}
            Err(DriverError::Refused(why)) => {
                tracing::info!(revision = %key, instance = %id, why, "an idle instance can't be frozen");
            }
            Err(error) => {
                tracing::warn!(revision = %key, instance = %id, %error, "freeze an idle instance, will be repeated");
            }
        }
        if undo == Some(true) {
            return self.thaw_until_done(key, id).await;
        }
        self.end_step(key, id);
        self.ask_instances(key, Priority::Soon);
    }

    /// One step less is under way. The last to end tells the ingress if the instance is awake.
    fn end_step(&self, key: &RevisionKey, id: &InstanceId) {
        let end = |only_if_asleep: bool| {
            self.world.revision(key, |state| {
                let Some(record) = state.instances.get_mut(id) else {
                    return false;
                };
                let rest = &mut record.rest;
                let last_awake = rest.steps == 1 && rest.tier == Tier::Awake;
                if !(last_awake && only_if_asleep) {
                    rest.steps = rest.steps.saturating_sub(1);
                }
                last_awake
            })
        };
        if end(true) == Some(true) {
            // Before the step is over: while one is counted no freeze begins, which this would undo in the ingress's eyes.
            self.door.awake(id);
            end(false);
        }
    }

    /// Gives the memory of a frozen instance back. A thaw doesn't wait for that: it makes it end.
    async fn reclaim(&self, key: &RevisionKey, id: &InstanceId, thaws: u64) {
        let result = match self.reclaiming.acquire().await {
            Ok(_permit) if self.still_asleep(key, id, thaws) => self.driver.reclaim(id).await,
            // Called while it waited for its turn; the turns are never closed.
            _ => Err(DriverError::NotFound(id.clone())),
        };
        let now = self.env.now();
        let asleep = self.world.revision(key, |state| {
            let rest = &mut state.instances.get_mut(id)?.rest;
            if rest.thaws != thaws {
                return None;
            }
            match &result {
                Ok(reclaimed) => {
                    (rest.tier, rest.since) = (Tier::Reclaimed, Some(now));
                    rest.kept_bytes = Some(reclaimed.after_bytes);
                }
                Err(DriverError::Refused(why)) => {
                    rest.barred = Some((Tier::Reclaimed, why.clone()));
                }
                Err(_) => rest.not_before = Some(now.plus(RETRY)),
            }
            Some(())
        });
        self.end_step(key, id);
        match &result {
            Ok(reclaimed) => {
                tracing::debug!(revision = %key, instance = %id, ?reclaimed, "gave memory back");
            }
            Err(DriverError::Refused(why)) => {
                tracing::debug!(revision = %key, instance = %id, why, "memory of the idle is kept");
            }
            // Thawed or gone meanwhile.
            Err(_) if asleep.flatten().is_none() => {}
            Err(error) => {
                tracing::warn!(revision = %key, instance = %id, %error, "give memory back, will be repeated");
            }
        }
        self.ask_instances(key, Priority::Soon);
    }

    /// Whether no request came since there were `thaws`.
    fn still_asleep(&self, key: &RevisionKey, id: &InstanceId, thaws: u64) -> bool {
        let asleep = self.world.revision(key, |state| {
            let record = state.instances.get(id)?;
            Some(record.rest.thaws == thaws)
        });
        asleep.flatten() == Some(true)
    }

    /// A request was let into an instance that is or may be frozen. Never waits. The driver is asked whatever is believed here:
    /// a belief that is wrong would leave the request in there.
    pub(crate) fn thaw(&self, key: &RevisionKey, id: &InstanceId) {
        let now = self.env.now();
        let known = self.world.revision(key, |state| {
            let rest = &mut state.instances.get_mut(id)?.rest;
            rest.thaws += 1;
            if rest.tier != Tier::Awake {
                (rest.tier, rest.since) = (Tier::Awake, Some(now));
            }
            rest.kept_bytes = None;
            rest.steps += 1;
            Some(())
        });
        if known.flatten().is_some() {
            let (key, id) = (key.clone(), id.clone());
            self.spawn(|core| async move { core.thaw_until_done(&key, &id).await });
        }
    }

    /// Ends a step that was counted.
    async fn thaw_until_done(&self, key: &RevisionKey, id: &InstanceId) {
        let mut told = false;
        loop {
            match self.driver.thaw(id).await {
                Ok(()) | Err(DriverError::NotFound(_)) => break,
                // Who can't thaw has frozen nothing.
                Err(DriverError::Refused(why)) => {
                    tracing::warn!(revision = %key, instance = %id, why, "thaw an instance");
                    break;
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(revision = %key, instance = %id, %error, "thaw an instance, will be repeated");
                }
                Err(_) => {}
            }
            let gone = self
                .world
                .revision(key, |state| !state.instances.contains_key(id));
            if gone != Some(false) {
                return;
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(THAW_AGAIN) => {}
            }
        }
        self.end_step(key, id);
        // It is to sleep again in its time, also if the request that woke it went away.
        self.ask_instances(key, Priority::Soon);
    }
}
