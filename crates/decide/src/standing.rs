//! How one instance stands, for those who ask why: since when it is as it is, for what reason, and what becomes of it next.
//!
//! Owns: the words. Deliberately not here: the decisions they tell of ([`crate::tiers`], [`crate::scale`]), whose own functions
//! are asked, so that what is told is what will be done.

use utsuwa_model::Timestamp;
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Tier;
use utsuwa_model::scaling::ScalingSettings;

use crate::instances::InstanceView;
use crate::scale;
use crate::tiers::{self, FREEZE_AFTER, RECLAIM_AFTER, TierSettings, TierView};
use crate::words::{many, time};

/// What of the revision matters here.
#[derive(Debug, Clone, Copy)]
pub struct Household<'a> {
    pub scaling: &'a ScalingSettings,
    pub tiers: TierSettings,
    /// Some host leads to it.
    pub routed: bool,
    /// It is being proven: not ready yet.
    pub proving: bool,
    /// Requests inside instances, or held.
    pub in_system: u32,
    /// Instances that start or take requests.
    pub live: u32,
    /// When a request last came or went, as far as known.
    pub last_active: Option<Timestamp>,
}

/// One instance, as it is seen now.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub view: &'a InstanceView,
    pub tier: &'a TierView,
    /// Since when it is in its tier; `None` if it never changed, or that wasn't seen.
    pub tier_since: Option<Timestamp>,
    pub ready_since: Option<Timestamp>,
    pub leaving_since: Option<Timestamp>,
    /// It leaves to make room: for whom, and why it was chosen.
    pub gives_way: Option<&'a str>,
    /// Since when a probe of it fails.
    pub failing_since: Option<Timestamp>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// `None`: it was found like that.
    pub since: Option<Timestamp>,
    pub because: String,
    /// What happens next if nobody calls it, in the order of time.
    pub next: Vec<(String, Timestamp)>,
    /// Why it isn't stopped, where no time says so.
    pub kept: Option<String>,
}

/// Tells how `subject` stands at `now`.
#[must_use]
pub fn of(subject: &Subject<'_>, household: &Household<'_>, now: Timestamp) -> Standing {
    let view = subject.view;
    let only = |since: Option<Timestamp>, because: String| Standing {
        since,
        because,
        ..Standing::default()
    };
    match &view.reach {
        Reach::Starting => only(
            Some(view.started),
            "its startup probe has not succeeded yet".to_owned(),
        ),
        Reach::Retiring => only(
            subject.leaving_since,
            match (view.in_flight, subject.gives_way) {
                (0, Some(why)) => format!("it makes room: {why}"),
                (0, None) => "it gets no requests any more and is asked to stop".to_owned(),
                (inside, _) => format!(
                    "it gets no new requests; it is asked to stop when {} inside has ended",
                    many(inside, "request")
                ),
            },
        ),
        Reach::Unready { message } | Reach::Failed { message } | Reach::Unhealthy { message } => {
            only(subject.failing_since, message.clone())
        }
        Reach::Ready => ready(subject, household, now),
    }
}

fn ready(subject: &Subject<'_>, household: &Household<'_>, now: Timestamp) -> Standing {
    let (view, tier) = (subject.view, subject.tier);
    let settings = &household.tiers;
    let (_, change) = tiers::wanted(tier, settings, now);
    let began = subject.ready_since.or(view.idle_since);
    let mut standing = Standing {
        since: subject.tier_since,
        ..Standing::default()
    };
    let mut will = |what: &str| standing.next.extend(change.map(|at| (what.to_owned(), at)));
    standing.because = match tier.tier {
        Tier::Awake => {
            let because = if view.in_flight > 0 {
                format!("{} inside", many(view.in_flight, "request"))
            } else if !settings.throttled {
                "it keeps its CPU between requests, as asked for (--no-cpu-throttling)".to_owned()
            } else if let Some((Tier::Frozen, why)) = &tier.barred {
                format!("it can't be frozen: {why}")
            } else {
                will("it is frozen");
                "it was called or started a moment ago".to_owned()
            };
            standing.since = subject.tier_since.or(began);
            because
        }
        Tier::Frozen => {
            let mut because = format!(
                "no request for {}, and CPU is for requests only",
                time(FREEZE_AFTER)
            );
            match &tier.barred {
                Some((_, why)) => because.push_str(&format!("; its memory is kept: {why}")),
                None => will("its memory is given back"),
            }
            because
        }
        Tier::Reclaimed => format!("no request for {}", time(RECLAIM_AFTER)),
    };
    if household.in_system == 0 {
        stay(view, household, now, &mut standing);
    }
    standing
}

/// Until when it stays while nobody calls, or what keeps it.
fn stay(view: &InstanceView, household: &Household<'_>, now: Timestamp, standing: &mut Standing) {
    let scaling = household.scaling;
    if household.proving {
        standing.kept = Some("the revision is being proven".to_owned());
    } else if !household.routed {
        standing.kept = Some("nothing: no traffic leads here any more".to_owned());
    } else if let Some(count) = scaling.manual {
        standing.kept = Some(format!("{} set by hand", many(count, "instance")));
    } else if scaling.min > 0 && household.live <= scaling.min {
        standing.kept = Some(format!(
            "there are never fewer than {} (minimum)",
            many(scaling.min, "instance")
        ));
    } else {
        let idle = scale::idle(
            household.last_active,
            view.idle_since.unwrap_or(now),
            scaling,
        );
        let mut what = "it stops".to_owned();
        if scaling.min > 0 {
            what = format!("all but {} stop", scaling.min);
        }
        if !scaling.scale_down_delay.is_zero() {
            what.push_str(" at the earliest");
        } else if household.live > scaling.min.max(1) {
            what.push_str(" at the latest");
        }
        standing.next.push((what, idle.since.plus(idle.keep)));
        standing.kept = Some(format!(
            "an idle instance stays {} ({})",
            time(idle.keep),
            idle.rule()
        ));
    }
}

#[cfg(test)]
mod tests;
