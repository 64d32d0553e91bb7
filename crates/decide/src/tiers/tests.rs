#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

const SETTINGS: TierSettings = TierSettings {
    throttled: true,
    retention: Duration::from_secs(900),
    keeps_some: false,
};

fn id(n: u32) -> InstanceId {
    format!("{n:032x}").parse().unwrap()
}

fn at(seconds: f64) -> Timestamp {
    Timestamp(0).plus(Duration::from_secs_f64(seconds))
}

/// Ready, idle since second 10.
fn view(tier: Tier) -> TierView {
    TierView {
        id: id(1),
        ready: true,
        in_flight: 0,
        idle_since: Some(at(10.0)),
        tier,
        under_way: false,
        not_before: None,
        barred: None,
    }
}

fn said(plan: &TierPlan) -> String {
    plan.because.as_ref().unwrap().summary.clone()
}

#[test]
fn cpu_goes_first_and_memory_later() {
    let awake = plan(&[view(Tier::Awake)], &SETTINGS, at(10.2));
    assert!(awake.is_rest());
    assert_eq!(awake.next, Some(at(11.0)));
    let freeze = plan(&[view(Tier::Awake)], &SETTINGS, at(11.0));
    assert_eq!(freeze.freeze, [id(1)]);
    assert_eq!(
        said(&freeze),
        "freeze 1 instance: no request for 1s, and CPU is for requests only"
    );
    let frozen = plan(&[view(Tier::Frozen)], &SETTINGS, at(30.0));
    assert!(frozen.is_rest());
    assert_eq!(frozen.next, Some(at(70.0)));
    let reclaim = plan(&[view(Tier::Frozen)], &SETTINGS, at(70.0));
    assert_eq!(reclaim.reclaim, [id(1)]);
    let rest = plan(&[view(Tier::Reclaimed)], &SETTINGS, at(80.0));
    assert!(rest.is_rest() && rest.next.is_none());
    // One step at a time, however late we look.
    let late = plan(&[view(Tier::Awake)], &SETTINGS, at(500.0));
    assert_eq!((late.freeze.len(), late.reclaim.len()), (1, 0));
}

#[test]
fn who_has_a_request_or_starts_is_awake() {
    for tier in [Tier::Awake, Tier::Frozen, Tier::Reclaimed] {
        let busy = TierView {
            in_flight: 1,
            ..view(tier)
        };
        let starting = TierView {
            ready: false,
            ..view(tier)
        };
        for view in [busy, starting] {
            let plan = plan(std::slice::from_ref(&view), &SETTINGS, at(900.0));
            let want = usize::from(tier != Tier::Awake);
            assert_eq!((plan.thaw.len(), plan.freeze.len()), (want, 0));
            let look = view.ready && want == 0;
            assert_eq!(plan.next, look.then(|| at(902.0)));
        }
    }
}

#[test]
fn who_was_promised_its_cpu_keeps_it() {
    let settings = TierSettings {
        throttled: false,
        ..SETTINGS
    };
    let idle = plan(&[view(Tier::Awake)], &settings, at(900.0));
    assert!(idle.is_rest() && idle.next.is_none());
    assert!(said(&idle).contains("--no-cpu-throttling"));
    assert_eq!(
        plan(&[view(Tier::Frozen)], &settings, at(11.0)).thaw.len(),
        1
    );
}

#[test]
fn boosts_steps_under_way_and_bars_are_respected() {
    let boosted = TierView {
        not_before: Some(at(20.0)),
        ..view(Tier::Awake)
    };
    let early = plan(std::slice::from_ref(&boosted), &SETTINGS, at(15.0));
    assert!(early.is_rest());
    assert_eq!(early.next, Some(at(20.0)));
    assert_eq!(plan(&[boosted], &SETTINGS, at(20.0)).freeze.len(), 1);

    let under_way = TierView {
        under_way: true,
        ..view(Tier::Awake)
    };
    assert!(plan(&[under_way], &SETTINGS, at(30.0)).is_rest());

    let barred = |tier, why: &str| TierView {
        barred: Some((tier, why.to_owned())),
        ..view(if tier == Tier::Frozen {
            Tier::Awake
        } else {
            Tier::Frozen
        })
    };
    let never = plan(&[barred(Tier::Frozen, "no freezer")], &SETTINGS, at(100.0));
    assert!(never.is_rest() && never.next.is_none());
    assert_eq!(
        said(&never),
        "1 awake, 0 frozen, 0 without their memory; not frozen: no freezer"
    );
    let kept = plan(&[barred(Tier::Reclaimed, "no swap")], &SETTINGS, at(100.0));
    assert!(kept.is_rest() && kept.next.is_none());
    assert_eq!(
        said(&kept),
        "0 awake, 1 frozen, 0 without their memory; memory of the idle is kept: no swap"
    );
}

#[test]
fn memory_is_not_given_back_shortly_before_the_end() {
    let short = TierSettings {
        retention: Duration::from_secs(90),
        ..SETTINGS
    };
    let view = [view(Tier::Frozen)];
    assert!(plan(&view, &short, at(80.0)).is_rest());
    let kept = TierSettings {
        keeps_some: true,
        ..short
    };
    assert_eq!(plan(&view, &kept, at(80.0)).reclaim.len(), 1);
}
