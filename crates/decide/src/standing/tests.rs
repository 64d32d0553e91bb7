#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use super::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp(0).plus(Duration::from_secs(seconds))
}

/// Started at 5 s, ready at 6 s, idle since 10 s.
fn view(reach: Reach) -> InstanceView {
    InstanceView {
        id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        reach,
        in_flight: 0,
        idle_since: Some(at(10)),
        started: at(5),
    }
}

fn scaling() -> ScalingSettings {
    ScalingSettings::for_concurrency(80, Duration::from_secs(900))
}

fn household(scaling: &ScalingSettings) -> Household<'_> {
    Household {
        scaling,
        tiers: TierSettings {
            throttled: true,
            retention: scaling.retention,
            keeps_some: scaling.min > 0,
        },
        routed: true,
        proving: false,
        in_system: 0,
        live: 1,
        last_active: Some(at(10)),
    }
}

fn told(
    view: &InstanceView,
    tier: Tier,
    barred: Option<(Tier, String)>,
    household: &Household<'_>,
    now: u64,
) -> Standing {
    let seen = tier_of(view, tier, barred);
    of(&subject(view, &seen), household, at(now))
}

fn tier_of(view: &InstanceView, tier: Tier, barred: Option<(Tier, String)>) -> TierView {
    TierView {
        id: view.id.clone(),
        ready: view.reach == Reach::Ready,
        in_flight: view.in_flight,
        idle_since: view.idle_since,
        tier,
        under_way: false,
        not_before: None,
        barred,
    }
}

fn subject<'a>(view: &'a InstanceView, seen: &'a TierView) -> Subject<'a> {
    Subject {
        view,
        tier: seen,
        tier_since: (seen.tier != Tier::Awake).then(|| at(11)),
        ready_since: Some(at(6)),
        leaving_since: Some(at(40)),
        gives_way: None,
        failing_since: Some(at(50)),
    }
}

fn next(standing: &Standing) -> Vec<(&str, Timestamp)> {
    let next = standing.next.iter();
    next.map(|(what, at)| (what.as_str(), *at)).collect()
}

#[test]
fn the_idle_fall_asleep_step_by_step_and_stop_when_their_time_is_up() {
    let scaling = scaling();
    let house = household(&scaling);
    let idle = view(Reach::Ready);
    let awake = told(&idle, Tier::Awake, None, &house, 10);
    assert_eq!(awake.since, Some(at(6)));
    assert_eq!(
        next(&awake),
        [("it is frozen", at(11)), ("it stops", at(910))]
    );
    let frozen = told(&idle, Tier::Frozen, None, &house, 30);
    assert_eq!(frozen.since, Some(at(11)));
    assert_eq!(
        frozen.because,
        "no request for 1s, and CPU is for requests only"
    );
    assert_eq!(
        next(&frozen),
        [("its memory is given back", at(70)), ("it stops", at(910))]
    );
    assert_eq!(
        frozen.kept.as_deref(),
        Some("an idle instance stays 15m (retention period)")
    );
    let asleep = told(&idle, Tier::Reclaimed, None, &house, 100);
    assert_eq!(asleep.because, "no request for 1m");
    assert_eq!(next(&asleep), [("it stops", at(910))]);
    let no_swap = Some((Tier::Reclaimed, "there is no swap".to_owned()));
    let kept = told(&idle, Tier::Frozen, no_swap, &house, 100);
    assert!(
        kept.because
            .ends_with("its memory is kept: there is no swap")
    );
    assert_eq!(next(&kept), [("it stops", at(910))]);
}

#[test]
fn what_keeps_an_idle_one_is_named() {
    let idle = view(Reach::Ready);
    let kept = |change: &dyn Fn(&mut ScalingSettings, &mut bool, &mut bool)| {
        let (mut scaling, mut routed, mut proving) = (scaling(), true, false);
        change(&mut scaling, &mut routed, &mut proving);
        let house = Household {
            routed,
            proving,
            ..household(&scaling)
        };
        told(&idle, Tier::Reclaimed, None, &house, 100)
    };
    let minimum = kept(&|scaling, _, _| scaling.min = 1);
    assert!(minimum.next.is_empty(), "{minimum:?}");
    assert_eq!(
        minimum.kept.as_deref(),
        Some("there are never fewer than 1 instance (minimum)")
    );
    let by_hand = kept(&|scaling, _, _| scaling.manual = Some(2));
    assert_eq!(by_hand.kept.as_deref(), Some("2 instances set by hand"));
    let proof = kept(&|_, _, proving| *proving = true);
    assert_eq!(proof.kept.as_deref(), Some("the revision is being proven"));
    let lost = kept(&|_, routed, _| *routed = false);
    assert!(lost.kept.unwrap().contains("no traffic leads here"));
    let delayed = kept(&|scaling, _, _| scaling.scale_down_delay = Duration::from_secs(9));
    assert_eq!(next(&delayed), [("it stops at the earliest", at(910))]);

    let scaling = scaling();
    let unused = Household {
        last_active: None,
        ..household(&scaling)
    };
    let unused = told(&idle, Tier::Frozen, None, &unused, 12);
    assert_eq!(next(&unused).last(), Some(&("it stops", at(20))));
    assert!(unused.kept.unwrap().contains("nobody called it"));
    let several = Household {
        live: 3,
        ..household(&scaling)
    };
    let several = told(&idle, Tier::Reclaimed, None, &several, 100);
    assert_eq!(next(&several), [("it stops at the latest", at(910))]);
}

#[test]
fn who_is_not_idle_says_why() {
    let scaling = scaling();
    let mut house = household(&scaling);
    house.in_system = 2;
    let mut busy = view(Reach::Ready);
    (busy.in_flight, busy.idle_since) = (2, None);
    let busy = told(&busy, Tier::Awake, None, &house, 100);
    assert_eq!(
        (busy.because.as_str(), busy.kept),
        ("2 requests inside", None)
    );
    let message = "The readiness probe failed.".to_owned();
    let sick = view(Reach::Unready {
        message: message.clone(),
    });
    let sick = told(&sick, Tier::Awake, None, &house, 100);
    assert_eq!((sick.since, sick.because), (Some(at(50)), message));
    let leaves = told(&view(Reach::Retiring), Tier::Awake, None, &house, 100);
    assert_eq!(leaves.since, Some(at(40)));
    let leaving = view(Reach::Retiring);
    let mut busy = leaving.clone();
    busy.in_flight = 2;
    for (view, want) in [
        (&leaving, "it makes room: b-00001 has no memory"),
        (
            &busy,
            "it gets no new requests; it is asked to stop when 2 requests inside has ended",
        ),
    ] {
        let tier = tier_of(view, Tier::Awake, None);
        let subject = Subject {
            gives_way: Some("b-00001 has no memory"),
            ..subject(view, &tier)
        };
        assert_eq!(of(&subject, &house, at(100)).because, want);
    }
    let starts = told(&view(Reach::Starting), Tier::Awake, None, &house, 100);
    assert_eq!(starts.since, Some(at(5)));
    house.tiers.throttled = false;
    let always = told(&view(Reach::Ready), Tier::Awake, None, &house, 100);
    assert!(always.because.contains("--no-cpu-throttling"));
}
